/* traffic.js: who sends to whom, and how much: the matrix, levels, the waterfall, and payload over
 * steps. */

function levelOf(run, from, to) {
  if (from === to) return "same_device";
  return Math.floor(from / run.per_node) === Math.floor(to / run.per_node)
    ? "same_node"
    : "across_nodes";
}

/* [from][to] in rows or bytes, of the chosen layer or summed over layers; null where the chosen
 * level has no cell. Of the chosen step: the last one, or one of those before it that were kept. */
function matrixOf(run, step = state.matrix) {
  const rows = run.matrix.earlier[step] ?? run.matrix.rows,
    layers = state.layer >= 0 ? [state.layer] : rows.map((_, layer) => layer);
  if (layers[0] >= rows.length) return null;
  const bytes = state.unit === "bytes",
    factor = layers.map((layer) => (bytes ? (run.layer[layer]?.row_bytes ?? 0) : 1));
  return rows[layers[0]].map((row, from) =>
    row.map((_, to) => {
      if (
        run.matrix.devices_per_bin === 1 &&
        state.level !== "all" &&
        levelOf(run, from, to) !== state.level
      )
        return null;
      return sum(layers.map((layer, index) => rows[layer][from][to] * factor[index]));
    }),
  );
}

function matrixText(run, cells, from, to) {
  const size = run.matrix.devices_per_bin,
    value = cells[from][to];
  if (value === null) return "";
  const level = size === 1 ? ` (${LEVEL_NAMES[levelOf(run, from, to)]})` : "";
  return (
    `device ${span(from, size, run.devices)} → ${span(to, size, run.devices)}${level}<br>` +
    amountText(value, state.unit)
  );
}

function matrixTrace(run, cells, extra) {
  const size = run.matrix.devices_per_bin,
    places = cells.map((_, index) => index * size + (size - 1) / 2);
  return {
    type: "heatmap",
    z: cells,
    x: places,
    y: places,
    colorscale: "Viridis",
    zmin: 0,
    zmax: largest([cells]) || 1,
    text: cells.map((row, from) => row.map((_, to) => matrixText(run, cells, from, to))),
    hovertemplate: "%{text}<extra></extra>",
    hoverongaps: false,
    colorbar: matrixBar(cells),
    ...extra,
  };
}

function matrixBar(cells) {
  const values = cells.flat().filter((value) => value !== null),
    bar = {
      title: {text: state.unit === "bytes" ? "payload" : "rows", side: "top"},
      thickness: 14,
      outlinewidth: 0,
    };
  return state.unit === "bytes"
    ? {...bar, ...merged(bytesAxis(values, "payload"), {title: {side: "top"}})}
    : bar;
}

/* White lines where nodes end. */
function nodeEdges(run) {
  const nodes = Math.ceil(run.devices / run.per_node),
    lines = [];
  if (nodes < 2 || nodes > 32 || run.matrix.devices_per_bin > 1) return lines;
  for (let node = 1; node < nodes; node++) {
    const at = node * run.per_node - 0.5,
      line = {color: "#ffffff", width: 1};
    lines.push(
      {type: "line", x0: at, x1: at, y0: -0.5, y1: run.devices - 0.5, line},
      {type: "line", y0: at, y1: at, x0: -0.5, x1: run.devices - 0.5, line},
    );
  }
  return lines;
}

function stepText(run) {
  return run.matrix.earlier.length && RUNS.length === 1
    ? `, step ${run.matrix.steps[state.matrix]}`
    : "";
}

function matrixLayout(run) {
  const axis = {
    showgrid: false,
    zeroline: false,
    constrain: "domain",
    tickformat: "d",
    dtick: run.devices <= 16 ? 1 : undefined,
  };
  return {
    xaxis: {...axis, title: {text: `to device${layerText(run)}${stepText(run)}`}},
    yaxis: {...axis, title: {text: "from device"}, autorange: "reversed", scaleanchor: "x"},
    shapes: nodeEdges(run),
  };
}

chart("chart-matrix", ["layer", "unit", "level", "matrix"], () => {
  const cells = RUN.matrix && matrixOf(RUN);
  if (!cells) return null;
  const steps = [...RUN.matrix.earlier.keys(), RUN.matrix.earlier.length],
    most = largest(steps.map((step) => matrixOf(RUN, step))) || 1; // one colour scale for all steps
  return {
    traces: [matrixTrace(RUN, cells, {zmax: most, colorbar: matrixBar([[0, most]])})],
    layout: matrixLayout(RUN),
  };
});

/* --- volume --- */

/* Room for a text above the highest bar. */
function stageAxis(values) {
  return {
    ...bytesAxis(values, "payload of the dispatch, a step"),
    range: [1.12 * Math.min(...values, 0), 1.12 * Math.max(...values, 1)],
  };
}

chart("chart-waterfall", [], () => {
  const stages = RUN.waterfall;
  if (!stages.length) return null;
  const names = stages.map((stage) => `${stage.sent ? "\u25a0 " : ""}${stage.name}`),
    first = stages[0].bytes;
  const bars = {
    type: "bar",
    name: "payload",
    x: names,
    y: stages.map((stage) => stage.bytes),
    marker: {color: stages.map((stage) => series(stage.sent ? 2 : 0))},
    text: stages.map((stage) => `${bytesText(stage.bytes)}<br>${share(stage.bytes, first)}`),
    textposition: "auto",
    insidetextfont: {color: colour("paper")},
    customdata: stages.map((stage) => [
      bytesText(stage.bytes),
      countText(stage.rows),
      share(stage.bytes, first),
    ]),
    hovertemplate:
      "%{x}<br>%{customdata[0]} in %{customdata[1]} rows<br>" +
      "%{customdata[2]} of one row per selection<extra></extra>",
  };
  const saved = stages.map((stage, index) => (index ? stages[index - 1].bytes - stage.bytes : 0));
  const steps = {
    type: "bar",
    name: "left out",
    x: names,
    y: saved.map(Math.abs),
    base: stages.map((stage, index) =>
      saved[index] >= 0 ? stage.bytes : stage.bytes + saved[index],
    ),
    marker: {color: series(4), opacity: 0.45, pattern: {shape: "/", fgcolor: colour("c4")}},
    customdata: saved.map((value) => bytesText(-value)),
    text: saved.map((value) => (value ? bytesText(-value) : "")),
    textposition: "auto",
    insidetextfont: {color: colour("ink")},
    hovertemplate: "%{x}<br>%{customdata} against the stage before<extra></extra>",
  };
  return {
    traces: [bars, steps],
    layout: {
      barmode: "overlay",
      xaxis: {
        showgrid: false,
        type: "category",
        tickvals: names,
        ticktext: names.map((name) => name.replace(/^(.{10,18}) (?!=)/, "$1<br>")), // on two lines
      },
      yaxis: stageAxis(stages.map((stage) => stage.bytes)),
    },
  };
});

chart("chart-levels", [], () => {
  const directions = Object.keys(RUN.levels);
  if (!directions.length) return null;
  const traces = Object.entries(LEVEL_NAMES).map(([, name], level) => ({
    type: "bar",
    name,
    x: directions.map((direction) => DIRECTION_NAMES[direction] ?? direction),
    y: directions.map((direction) => RUN.levels[direction][level].bytes),
    marker: barMarker(level),
    customdata: directions.map((direction) => {
      const one = RUN.levels[direction][level];
      return [bytesText(one.bytes), countText(one.rows), bytesText(one.metadata_bytes)];
    }),
    hovertemplate:
      `%{x}, ${name}<br>%{customdata[0]} payload in %{customdata[1]} rows<br>` +
      "metadata %{customdata[2]}<extra></extra>",
  }));
  const stacked = directions.map((direction) => sum(RUN.levels[direction].map((one) => one.bytes)));
  return {
    traces,
    layout: {
      barmode: "stack",
      xaxis: {showgrid: false},
      yaxis: bytesAxis(stacked, "payload, last step"),
    },
  };
});

chart("chart-volume", [], () => {
  const lines = ["dispatch", "combine"]
    .flatMap((direction, index) => [
      stepLine(RUN, `volume.${direction}.logical_bytes`, `${direction}, all`, index * 2, bytesText),
      stepLine(
        RUN,
        `volume.${direction}.remote_bytes`,
        `${direction}, to other devices`,
        index * 2 + 1,
        bytesText,
      ),
    ])
    .filter(Boolean);
  if (!lines.length) return null;
  lines.forEach((line, index) => {
    line.line.dash = DASHES[index % 5];
  });
  return {
    traces: lines,
    layout: {
      xaxis: stepAxis(),
      yaxis: {
        ...bytesAxis(
          lines.flatMap((line) => line.y),
          "payload a step",
        ),
        rangemode: "tozero",
      },
    },
  };
});
