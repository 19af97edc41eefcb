/* load.js: the load of each expert or device over steps (a heat map) and in the last step, the
 * number of devices that tokens reach, and drops. */

/* Rows of the heat map, each a bin of experts or the experts of a device:
 * [[first bin, end), what one row is divided by, its name]. */
function heatRows(load) {
  const bins = load.sum[0].length,
    each = RUN.experts / RUN.devices / load.experts_per_bin;
  if (state.heatby === "device")
    return Array.from({length: RUN.devices}, (_, device) => [
      device * each,
      (device + 1) * each,
      1,
      `device ${device}`,
    ]);
  const one = load.experts_per_bin === 1;
  return Array.from({length: bins}, (_, bin) => [
    bin,
    bin + 1,
    Math.min(load.experts_per_bin, load.experts - bin * load.experts_per_bin),
    `expert ${span(bin, load.experts_per_bin, load.experts)}${one ? deviceOf(bin) : ""}`,
  ]);
}

/* [row][step bin] of the chosen layer, or of all: mean selections of one expert, or of a device, in
 * one step. */
function heatMeans(load, rows) {
  const chosen = state.layer >= 0 ? [load.sum[state.layer]] : load.sum;
  return rows.map(([first, end, experts]) =>
    chosen[0][0].map((_, step) => {
      const steps = Math.min(load.steps_per_bin, load.steps - step * load.steps_per_bin);
      return (
        sum(chosen.map((layer) => sum(layer.slice(first, end).map((row) => row[step])))) /
        (experts * steps)
      );
    }),
  );
}

const span = (index, size, count) =>
  size === 1 ? `${index}` : `${index * size}\u2013${Math.min((index + 1) * size, count) - 1}`;

function deviceOf(expert) {
  return RUN.block && RUN.devices
    ? ` (device ${Math.floor(expert / (RUN.experts / RUN.devices))})`
    : "";
}

function heatText(load, [, , experts, who], step, value, relative) {
  const mean = experts === 1 && load.steps_per_bin === 1 ? "" : " (mean)";
  return [
    `step ${span(step, load.steps_per_bin, load.steps)}`,
    who,
    `${countText(value)} selections${mean}`,
    `${realText(relative, 3)} × mean`,
  ].join("<br>");
}

chart("chart-heat", ["layer", "heat", "heatby"], () => {
  const load = RUN.load;
  if (!load) return null;
  const rows = heatRows(load),
    byDevice = state.heatby === "device",
    size = byDevice ? 1 : load.experts_per_bin,
    means = heatMeans(load, rows),
    columns = means[0].length,
    ratio = state.heat === "ratio";
  const column = means[0].map((_, step) => sum(means.map((row) => row[step])) / means.length);
  const relative = means.map((row) =>
    row.map((value, step) => (column[step] ? value / column[step] : 0)),
  );
  const text = means.map((row, place) =>
    row.map((value, step) => heatText(load, rows[place], step, value, relative[place][step])),
  );
  const trace = {
    type: "heatmap",
    z: ratio ? relative : means,
    x: Array.from(
      {length: columns},
      (_, step) => step * load.steps_per_bin + (load.steps_per_bin - 1) / 2,
    ),
    y: means.map((_, place) => place * size + (size - 1) / 2),
    colorscale: "Cividis",
    zmin: 0,
    zmax: largest([ratio ? relative : means]) || 1,
    hoverinfo: "text",
    text,
    hovertemplate: "%{text}<extra></extra>",
    colorbar: {
      title: {text: ratio ? "× mean" : "selections<br>a step", side: "top"},
      thickness: 14,
      outlinewidth: 0,
    },
  };
  return {
    traces: [trace],
    layout: {
      xaxis: {...stepAxis(), showgrid: false, zeroline: false},
      yaxis: {
        title: {text: `${byDevice ? "device" : "expert"}${layerText(RUN)}`},
        showgrid: false,
        zeroline: false,
        autorange: "reversed",
        tickformat: "d",
      },
    },
  };
});

/* Thin lines where a device's experts end, if there are few. */
function deviceEdges() {
  if (!RUN.block || RUN.devices < 2 || RUN.devices > 32) return [];
  return Array.from({length: RUN.devices - 1}, (_, device) => ({
    type: "line",
    xref: "x",
    yref: "paper",
    x0: ((device + 1) * RUN.experts) / RUN.devices - 0.5,
    x1: ((device + 1) * RUN.experts) / RUN.devices - 0.5,
    y0: 0,
    y1: 1,
    line: {color: colour("line"), width: 1, dash: "dot"},
  }));
}

function expertBars(name, values, index, mean) {
  return {
    type: "bar",
    name,
    x: values.map((_, expert) => expert),
    y: values,
    marker: barMarker(index),
    customdata: values.map((value, expert) => [
      countText(value),
      deviceOf(expert),
      mean ? `<br>${realText(value / mean, 3)} × mean` : "",
    ]),
    hovertemplate:
      `expert %{x}%{customdata[1]}<br>` +
      `${name}: %{customdata[0]}%{customdata[2]}<extra></extra>`,
  };
}

const overMean = (values) => {
  const mean = sum(values) / values.length;
  return values.map((value) => (mean ? value / mean : 0));
};

function layerLine(name, title, index) {
  return {
    type: "scatter",
    mode: lineMode(RUN.layer.length),
    name: title,
    x: RUN.layer.map((_, layer) => layer),
    y: RUN.layer.map((layer) => Math.max(...overMean(layer[name]))),
    line: {color: series(index)},
    marker: {color: series(index)},
    hovertemplate: `layer %{x}<br>${title}: %{y:.3f} \u00d7 mean<extra></extra>`,
  };
}

/* Whole numbers only. */
const layerAxis = () => ({
  title: {text: "layer"},
  tickformat: "d",
  ...(RUN.layer.length <= 16 ? {tick0: 0, dtick: 1} : {}),
});

chart("chart-layers", [], () => ({
  traces: [
    layerLine("counts_per_device", "busiest device", 0),
    layerLine("counts_per_expert", "busiest expert", 1),
  ],
  layout: {
    xaxis: layerAxis(),
    yaxis: {title: {text: "selections, max / mean"}, rangemode: "tozero"},
  },
}));

chart("chart-layer-map", [], () => {
  const map = RUN.layer.map((layer) => overMean(layer.counts_per_expert));
  const text = map.map((row, layer) =>
    row.map(
      (value, expert) =>
        `layer ${layer}, expert ${expert}${deviceOf(expert)}<br>` +
        `${countText(RUN.layer[layer].counts_per_expert[expert])} selections, ` +
        `${realText(value, 3)} \u00d7 mean of the layer`,
    ),
  );
  return {
    traces: [
      {
        type: "heatmap",
        z: map,
        colorscale: "Cividis",
        zmin: 0,
        zmax: largest([map]) || 1,
        text,
        hovertemplate: "%{text}<extra></extra>",
        colorbar: {title: {text: "\u00d7 mean", side: "top"}, thickness: 14, outlinewidth: 0},
      },
    ],
    layout: {
      xaxis: {title: {text: "expert"}, showgrid: false, zeroline: false, tickformat: "d"},
      yaxis: {...layerAxis(), showgrid: false, zeroline: false, autorange: "reversed"},
    },
  };
});

chart("chart-experts", ["layer"], () => {
  const values = ofLayer(RUN, "counts_per_expert");
  if (!values.length) return null;
  const mean = sum(values) / values.length;
  const level = {
    type: "scatter",
    mode: "lines",
    name: `mean ${countText(mean)}`,
    x: [-0.5, values.length - 0.5],
    y: [mean, mean],
    line: {color: series(8), width: 1.5, dash: "dash"},
    hoverinfo: "skip",
  };
  return {
    traces: [expertBars("selections", values, 0, mean), level],
    layout: {
      bargap: values.length > 64 ? 0 : 0.15,
      xaxis: {
        title: {
          text:
            `expert${layerText(RUN)}` + (RUN.block && RUN.devices <= 32 ? "; dotted: devices" : ""),
        },
        showgrid: false,
      },
      yaxis: {title: {text: "selections"}},
      shapes: deviceEdges(),
    },
  };
});

chart("chart-devices", ["layer"], () => {
  const kinds = [
    ["counts_per_device", "selections"],
    ["distinct_tokens_per_device", "distinct tokens (f'')"],
    ["received_rows", "rows received"],
    ["sent_rows", "rows sent"],
  ];
  const traces = kinds
    .map(([key, name], index) => [name, ofLayer(RUN, key), index])
    .filter(([, values]) => values.length)
    .map(([name, values, index]) => {
      const mean = sum(values) / values.length;
      return {
        type: "bar",
        name,
        x: values.map((_, device) => device),
        y: values,
        marker: barMarker(index),
        customdata: values.map((value) => [
          countText(value),
          mean ? realText(value / mean, 3) : "\u2013",
        ]),
        hovertemplate:
          `device %{x}<br>${name}: ` + "%{customdata[0]}, %{customdata[1]} × mean<extra></extra>",
      };
    });
  if (!traces.length) return null;
  return {
    traces,
    layout: {
      barmode: "group",
      xaxis: {
        title: {text: `device${layerText(RUN)}`},
        showgrid: false,
        dtick: RUN.devices <= 16 ? 1 : undefined,
      },
      yaxis: {title: {text: "selections, tokens, rows"}},
    },
  };
});

chart("chart-reach", ["layer"], () => {
  const values = ofLayer(RUN, "tokens_by_reach"),
    all = sum(values);
  if (!all) return null;
  const last = values.reduce((most, value, devices) => (value ? devices : most), 0),
    shown = values.slice(0, Math.max(last, 3) + 1);
  return {
    traces: [
      {
        type: "bar",
        name: "tokens",
        x: shown.map((_, devices) => (devices === 64 ? "64+" : `${devices}`)),
        y: shown,
        marker: {color: series(5)},
        text: shown.map((value) => (value ? share(value, all) : "")),
        textposition: "auto",
        customdata: shown.map(countText),
        hovertemplate: "%{x} devices: %{customdata} tokens<extra></extra>",
      },
    ],
    layout: {
      xaxis: {
        title: {text: `devices per token${layerText(RUN)}`},
        type: "category",
        showgrid: false,
      },
      yaxis: {title: {text: "tokens"}},
    },
  };
});

/* --- drops --- */

/* Capacity of one expert or device, as a level: where budgets are of the whole batch. */
function capacityLevel(policy, count) {
  const layers = state.layer >= 0 ? [RUN.layer[state.layer]] : RUN.layer,
    capacities = layers.map((layer) => layer?.capacity);
  if (
    capacities.some(
      (one) => !one || one.policy !== policy || one.scope !== "global" || !(one.capacity > 0),
    )
  )
    return [];
  const level = sum(capacities.map((one) => one.capacity));
  return [
    {
      type: "scatter",
      mode: "lines",
      name: `capacity ${countText(level)}`,
      x: [-0.5, count - 0.5],
      y: [level, level],
      line: {color: series(8), width: 1.5, dash: "dash"},
      hovertemplate: `capacity: ${countText(level)}<extra></extra>`,
    },
  ];
}

/* Pairs kept and dropped of each expert or device; pairs that moved to a next choice are kept where
 * they went. */
function dropBars(kind, chosen, kept, dropped, policy) {
  if (!chosen.length || !kept.length) return null;
  const bars = (name, values, index) => ({
    type: "bar",
    name,
    x: values.map((_, place) => place),
    y: values,
    marker: barMarker(index),
    customdata: values.map(countText),
    hovertemplate: `${kind} %{x}<br>${name}: %{customdata}<extra></extra>`,
  });
  const traces = [bars("kept", kept, 0), bars("dropped", dropped, 1)];
  if (chosen.some((count, place) => count !== kept[place] + dropped[place]))
    traces.push({
      type: "scatter",
      mode: "markers",
      name: "chosen by the router",
      x: chosen.map((_, place) => place),
      y: chosen,
      marker: {symbol: "line-ew-open", size: 9, color: series(8), line: {width: 2}},
      customdata: chosen.map(countText),
      hovertemplate: `${kind} %{x}<br>chosen by the router: %{customdata}<extra></extra>`,
    });
  traces.push(...capacityLevel(policy, chosen.length));
  return {
    traces,
    layout: {
      barmode: "stack",
      bargap: chosen.length > 64 ? 0 : 0.15,
      xaxis: {title: {text: `${kind}${layerText(RUN)}`}, showgrid: false},
      yaxis: {title: {text: "pairs of token and expert"}},
    },
  };
}

chart("chart-drops", ["layer"], () => {
  const chosen = ofLayer(RUN, "counts_per_expert"),
    kept = ofLayer(RUN, "kept_per_expert"),
    dropped = ofLayer(RUN, "dropped_per_expert");
  return dropBars(
    "expert",
    chosen,
    kept,
    dropped.length ? dropped : chosen.map((count, expert) => Math.max(count - kept[expert], 0)),
    "expert",
  );
});

chart("chart-drops-device", ["layer"], () => {
  const chosen = ofLayer(RUN, "counts_per_device"),
    experts = ofLayer(RUN, "kept_per_expert"),
    dropped = ofLayer(RUN, "dropped_per_device");
  if (!dropped.length || !RUN.block) return null;
  const each = experts.length / RUN.devices,
    kept = chosen.map((_, device) => sum(experts.slice(device * each, (device + 1) * each)));
  return dropBars("device", chosen, kept, dropped, "device");
});
