/* timeline.js: when each rank did what in the last step: a line for each rank, a bar for each span
 * that has no spans inside it. */

const MOST_BARS = 6000; // at a time

/* Backward parts have their forward phase's colour, hatched; what is outside the phases is grey. */
const FORWARD_OF = {
  "dispatch dy": "dispatch",
  "expert backward": "expert",
  "combine dx": "combine",
  "router backward": "route",
  "shared backward": "shared",
  "input backward": "input",
  "attention backward": "attention",
  "dense backward": "dense",
};
// a chunk on its way, on lines of its own below the rank's
const FLIGHTS = {
  "dispatch in flight": "dispatch",
  "combine in flight": "combine",
  "dispatch dy in flight": "dispatch",
  "combine dx in flight": "combine",
};
const PHASE_NAMES = ["gate", "route", "plan", "dispatch", "expert", "combine", "shared", "balance"];
const COLOUR_OF = {dense: "shared"}; // an FFN for all tokens too
const OTHER_SHAPES = {
  tally: "",
  attention: "-",
  dense: ".",
  input: ".",
  "head and loss": "x",
  "sum of gradients": "+",
  optimizer: "\\",
  validation: "|",
};

function timelineMarker(kind, edge) {
  const forward = FORWARD_OF[kind] ?? FLIGHTS[kind] ?? kind,
    phase = PHASE_NAMES.indexOf(COLOUR_OF[forward] ?? forward),
    shape = kind in FLIGHTS ? "." : forward !== kind ? "/" : (OTHER_SHAPES[kind] ?? "");
  return {
    color: phase >= 0 ? series(phase) : colour("soft"),
    pattern: {
      shape,
      fillmode: "overlay",
      fgcolor: colour("paper"),
      fgopacity: 0.7,
      size: 5,
      solidity: 0.35,
    },
    line: {color: colour("paper"), width: edge},
  };
}

function spanText(timeline, span) {
  const [rank, kind, layer, begin, time, sent, received, selections] = span,
    lines = [
      timeline.ranks[rank],
      `${timeline.kinds[kind]}${layer >= 0 ? `, layer ${layer}` : ""}`,
    ];
  lines.push(`${secondsText(time * 1e-6)}, from ${secondsText(begin * 1e-6)}`);
  if (selections !== undefined)
    lines.push(`${countText(received)} rows, ${countText(selections)} selections computed`);
  else if (sent !== undefined)
    lines.push(`${countText(sent)} rows sent, ${countText(received)} received`);
  return lines.join("<br>");
}

const ofWholeStep = () => state.layer < 0 || RUN.layers <= 1;

/* Of the chosen MoE layer, in front of which there may be dense ones, or all; of fewer ranks where there would be too many bars. */
function shownSpans(timeline) {
  const chosen = ofWholeStep()
      ? timeline.spans
      : timeline.spans.filter((span) => span[2] === state.layer + RUN.dense),
    every = Math.ceil(chosen.length / MOST_BARS);
  return every > 1 ? chosen.filter((span) => span[0] % every === 0) : chosen;
}

chart("chart-timeline", ["layer"], () => {
  const timeline = RUN.timeline;
  if (!timeline) return null;
  const spans = shownSpans(timeline),
    ranks = [...new Set(spans.map((span) => span[0]))].sort((one, other) => one - other),
    first = ofWholeStep() ? 0 : spans.reduce((least, span) => Math.min(least, span[3]), Infinity);
  const traces = timeline.kinds.map((name, kind) => {
    const own = spans.filter((span) => span[1] === kind);
    return {
      type: "bar",
      orientation: "h",
      name,
      y: own.map((span) => timeline.ranks[span[0]]),
      base: own.map((span) => span[3] * 1e-3),
      x: own.map((span) => span[4] * 1e-3),
      marker: timelineMarker(name, spans.length > 1000 ? 0 : 0.4),
      text: own.map((span) => spanText(timeline, span)),
      textposition: "none",
      hovertemplate: "%{text}<extra></extra>",
    };
  });
  return {
    traces: traces.filter((trace) => trace.x.length),
    layout: {
      barmode: "overlay",
      bargap: 0.25,
      xaxis: {
        title: {
          text:
            `ms since the first rank began step ${timeline.step}` +
            shownOf(ranks.length, timeline.all),
        },
        range: [first * 1e-3, lastEnd(spans) * 1e-3],
      },
      yaxis: {
        autorange: "reversed",
        type: "category",
        categoryarray: ranks.map((rank) => timeline.ranks[rank]),
        showgrid: false,
      },
      // above the chart, two lines of the legend would reach the buttons
      legend: {traceorder: "normal", yref: "container", y: 0, yanchor: "bottom"},
      margin: {b: 90},
    },
  };
});

const shownOf = (count, all) => (count < all ? `; ${count} of ${all} ranks, chosen evenly` : "");

function lastEnd(spans) {
  return spans.reduce((most, span) => Math.max(most, span[3] + span[4]), 0);
}
