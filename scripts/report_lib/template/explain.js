/* explain.js: one token's way: its scores, its groups, what comes back, and the gradient of its
 * logits. */

const tokenLayer = () => RUN.explain?.layers[Number(state.token_layer ?? 0)];

/* A kind has a colour and a hatch of its own. */
const TOKEN_KINDS = [
  ["chosen", 0],
  ["dropped", 1],
  ["not chosen", 5],
  ["not admitted", 6],
];

chart("chart-token-scores", ["token_layer"], () => {
  const scores = tokenLayer()?.scores;
  if (!scores) return null;
  const names = scores.map((one) => `${one.expert}`);
  const traces = TOKEN_KINDS.map(([kind, index]) => {
    const mine = scores.filter((one) => one.kind === kind);
    return {
      type: "bar",
      name: kind,
      x: mine.map((one) => `${one.expert}`),
      y: mine.map((one) => one.score),
      marker: barMarker(index),
      customdata: mine.map((one) => [
        one.device,
        realText(one.score),
        realText(one.logit),
        realText(one.selection),
      ]),
      hovertemplate:
        `expert %{x} on device %{customdata[0]}, ${kind}<br>` +
        "score %{customdata[1]}<br>logit %{customdata[2]}<br>" +
        "ranked by %{customdata[3]}<extra></extra>",
    };
  }).filter((trace) => trace.x.length);
  return {
    traces,
    layout: {
      barmode: "overlay",
      showlegend: true,
      xaxis: {
        title: {text: "expert, in the order of what they are ranked by"},
        type: "category",
        categoryorder: "array",
        categoryarray: names,
        showgrid: false,
      },
      yaxis: {title: {text: "score s"}},
    },
  };
});

chart("chart-token-groups", ["token_layer"], () => {
  const groups = tokenLayer()?.groups;
  if (!groups) return null;
  const kinds = [
    ["admitted", 0, (group) => groups.admitted.includes(group)],
    ["not admitted", 6, (group) => !groups.admitted.includes(group)],
  ];
  const traces = kinds.map(([name, index, keep]) => {
    const mine = groups.score.map((_, group) => group).filter(keep);
    return {
      type: "bar",
      name,
      x: mine.map((group) => `${group}`),
      y: mine.map((group) => groups.score[group]),
      marker: barMarker(index),
      customdata: mine.map((group) => realText(groups.score[group])),
      hovertemplate: `${groups.unit} %{x}, ${name}<br>score %{customdata}<extra></extra>`,
    };
  });
  return {
    traces,
    layout: {
      barmode: "overlay",
      xaxis: {
        title: {text: groups.unit},
        type: "category",
        categoryorder: "array",
        categoryarray: groups.score.map((_, group) => `${group}`),
        showgrid: false,
      },
      yaxis: {title: {text: `score of the ${groups.unit}`}},
    },
  };
});

chart("chart-token-outputs", ["token_layer"], () => {
  const outputs = tokenLayer()?.outputs;
  if (!outputs?.length) return null;
  return {
    traces: [
      {
        type: "bar",
        name: "|g FFN(u)|",
        x: outputs.map((one) => one.name),
        y: outputs.map((one) => one.norm),
        marker: {color: series(2)},
        customdata: outputs.map((one) => [
          realText(one.norm),
          one.part === null ? "\u2013" : share(one.part, 1),
        ]),
        hovertemplate: "%{x}<br>norm %{customdata[0]}<br>%{customdata[1]} of y<extra></extra>",
      },
    ],
    layout: {xaxis: {type: "category", showgrid: false}, yaxis: {title: {text: "norm"}}},
  };
});

chart("chart-token-gradient", ["token_layer"], () => {
  const gradient = tokenLayer()?.gradient;
  if (!gradient || gradient.parts.every((one) => one.value.every((value) => !value))) return null;
  const traces = gradient.parts.map((one, index) => ({
    type: "bar",
    name: one.name,
    x: gradient.expert.map((expert) => `${expert}`),
    y: one.value,
    marker: barMarker(index),
    customdata: one.value.map((value) => realText(value, 4)),
    hovertemplate: `expert %{x}<br>${one.name}: %{customdata}<extra></extra>`,
  }));
  return {
    traces,
    layout: {
      barmode: "group",
      xaxis: {
        title: {text: "expert, in the order of what they are ranked by"},
        type: "category",
        showgrid: false,
      },
      yaxis: {
        title: {text: "d loss / d logit, α included"},
        exponentformat: "power",
        zeroline: true,
      },
    },
  };
});
