/* specialization.js: what the loss becomes without each token's best experts, and which expert
 * serves which domain. */

chart("chart-disabled", [], () => {
  const found = RUN.specialization;
  if (!found) return null;
  const bars = found.disabled.map((one) => ({
    name: one.experts ? `best ${one.experts}` : "none",
    loss: one.loss,
    index: one.experts ? 1 : 0,
  }));
  if (found.shared.loss !== null)
    bars.push({
      name: `shared \u2192 ${found.shared.routed} routed`,
      loss: found.shared.loss,
      index: 2,
    });
  const base = found.disabled[0]?.loss;
  return {
    traces: [0, 1, 2].map((index) => {
      const shown = bars.filter((bar) => bar.index === index);
      return {
        type: "bar",
        name: ["all experts", "disabled for each token", "shared expert replaced by a routed one"][
          index
        ],
        x: shown.map((bar) => bar.name),
        y: shown.map((bar) => bar.loss),
        marker: barMarker(index),
        customdata: shown.map((bar) => [
          realText(bar.loss, 5),
          bar.loss === null || base === null
            ? ""
            : ` (${bar.loss < base ? "" : "+"}${realText(bar.loss - base, 4)})`,
        ]),
        hovertemplate: `%{x}: %{customdata[0]} ${RUN.task_unit}%{customdata[1]}<extra></extra>`,
      };
    }),
    layout: {
      xaxis: {title: {text: "disabled"}, type: "category", showgrid: false},
      yaxis: {title: {text: `task loss (${RUN.task_unit})`}, rangemode: "tozero"},
    },
  };
});

/* [domain][expert bin] of the chosen layer, or of all. */
function domainCounts(found) {
  const chosen = state.layer >= 0 ? [found.load[state.layer]] : found.load;
  return chosen[0].map((row, domain) =>
    row.map((_, expert) => sum(chosen.map((layer) => layer[domain][expert]))),
  );
}

chart("chart-domains", ["layer"], () => {
  const found = RUN.specialization;
  if (!found?.load) return null;
  const rows = domainCounts(found),
    size = found.experts_per_bin,
    shares = rows.map((row) => row.map((value) => value / (sum(row) || 1)));
  const text = rows.map((row, domain) =>
    row.map((value, expert) =>
      [
        found.domains[domain] ?? domain,
        `expert ${span(expert, size, RUN.experts)}`,
        `${countText(value)} selections, ${share(value, sum(row))} of the domain's`,
      ].join("<br>"),
    ),
  );
  return {
    traces: [
      {
        type: "heatmap",
        z: shares.map((row) => row.map((value) => 100 * value)),
        x: rows[0].map((_, expert) => expert * size + (size - 1) / 2),
        y: rows.map((_, domain) => found.domains[domain] ?? `${domain}`),
        colorscale: "Cividis",
        zmin: 0,
        text,
        hovertemplate: "%{text}<extra></extra>",
        colorbar: {
          title: {text: "% of the<br>domain's<br>selections", side: "top"},
          thickness: 14,
          outlinewidth: 0,
        },
      },
    ],
    layout: {
      xaxis: {
        title: {text: `expert${layerText(RUN)}`},
        showgrid: false,
        zeroline: false,
        tickformat: "d",
      },
      yaxis: {
        type: "category",
        showgrid: false,
        automargin: true,
        autorange: "reversed",
        title: {text: RUN.steps.series.lm_loss ? "domain" : "topic"},
      },
    },
  };
});
