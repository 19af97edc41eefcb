/* placement.js: the load of the devices before and after a placement by load, and the experts that
 * moved. */

/* The chosen decision's load of each device, of the chosen layer or all. */
function placedLoads(name) {
  const layers = RUN.rebalance[state.decision][name];
  const chosen = state.layer >= 0 ? [layers[state.layer]] : layers;
  return chosen[0].map((_, device) => sum(chosen.map((layer) => layer[device])));
}

chart("chart-placement-load", ["layer", "decision"], () => {
  if (!RUN.rebalance.length) return null;
  const bars = ["before", "after"].map((name, index) => {
    const values = placedLoads(name),
      mean = sum(values) / values.length;
    return {
      type: "bar",
      name,
      x: values.map((_, device) => device),
      y: values,
      marker: barMarker(index),
      customdata: values.map((value) => [
        countText(value),
        realText(mean ? value / mean : 0, 3),
      ]),
      hovertemplate: `device %{x}, ${name}: %{customdata[0]} selections<br>%{customdata[1]} × mean<extra></extra>`,
    };
  });
  return {
    traces: bars,
    layout: {
      barmode: "group",
      xaxis: {title: {text: `device${layerText(RUN)}`}, tickformat: "d", showgrid: false},
      yaxis: {title: {text: "selections"}, rangemode: "tozero"},
    },
  };
});

chart("chart-placement-moves", ["layer", "decision"], () => {
  if (!RUN.rebalance.length) return null;
  const chosen = RUN.rebalance[state.decision].moves.filter(
      ([layer]) => state.layer < 0 || layer === state.layer,
    ),
    who = Array.from({length: RUN.devices}, () => Array.from({length: RUN.devices}, () => []));
  for (const [layer, expert, from, to] of chosen)
    who[from]?.[to]?.push(RUN.layers > 1 && state.layer < 0 ? `${expert} of layer ${layer}` : expert);
  const text = who.map((row, from) =>
    row.map((experts, to) =>
      [
        `device ${from} to device ${to}`,
        `${experts.length} expert${experts.length === 1 ? "" : "s"}`,
        experts.slice(0, 12).join(", ") + (experts.length > 12 ? ", ..." : ""),
      ].join("<br>"),
    ),
  );
  return {
    traces: [
      {
        type: "heatmap",
        z: who.map((row) => row.map((experts) => experts.length)),
        colorscale: "Cividis",
        zmin: 0,
        text,
        hovertemplate: "%{text}<extra></extra>",
        colorbar: {
          title: {text: "experts", side: "top"},
          thickness: 14,
          outlinewidth: 0,
          tickformat: "d",
        },
      },
    ],
    layout: {
      xaxis: {title: {text: `to device${layerText(RUN)}`}, showgrid: false, tickformat: "d"},
      yaxis: {
        title: {text: "from device"},
        showgrid: false,
        autorange: "reversed",
        tickformat: "d",
      },
    },
  };
});
