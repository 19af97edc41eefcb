"use strict";
/* core.js: data, colours, numbers as text, and the list of charts. A chart is a function that
 * returns {traces, layout} for the present state (layer, unit, ...) and colours; core.js draws it,
 * and draws it again when either changes. */

const DATA = JSON.parse(document.getElementById("run-data").textContent);
const RUNS = DATA.runs;
const RUN = RUNS[0];

/* What the controls choose; layer -1 = all layers. */
const state = {
  layer: -1,
  heat: "count",
  heatby: "expert",
  metric: "max_over_mean",
  unit: "rows",
  level: "all",
  // which of the matrix's steps; the one after the earlier ones is the last
  matrix: RUNS.length === 1 ? (RUN.matrix?.earlier.length ?? 0) : -1,
  decision: 0, // which of the placements by load
  diff: "no",
  amount: "counts_per_device",
  loss: "z",
};

const LOSS_NAMES = {expert: "expert", device: "device", comm: "communication", z: "z (logits)"};
const LEVEL_NAMES = {
  same_device: "same device",
  same_node: "same node",
  across_nodes: "across nodes",
};
const DIRECTION_NAMES = {
  dispatch: "dispatch",
  combine: "combine",
  dispatch_backward: "dispatch<br>backward",
  combine_backward: "combine<br>backward",
};

/* --- numbers as text --- */

const MINUS = "\u2212";
const counts = new Intl.NumberFormat("en-US");
const signed = (text) => text.replace("-", MINUS);

function countText(value) {
  return signed(counts.format(Math.round(value * 100) / 100).replaceAll(",", "\u2009"));
}

function realText(value, digits = 6) {
  return value === null || value === undefined
    ? "\u2013"
    : signed(String(Number(value.toPrecision(digits))));
}

function scaledText(value, base, units, digits) {
  let size = Math.abs(value),
    unit = 0;
  for (; unit < units.length - 1 && size >= base - 0.05; unit++) size /= base;
  const rounded = unit === 0 ? Math.round(size) : Number(size.toPrecision(digits));
  return `${value < 0 ? MINUS : ""}${rounded} ${units[unit]}`;
}

/* Binary units, as on moesim's screen. */
function bytesText(value) {
  return scaledText(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4);
}

function amountText(value, unit) {
  return unit === "bytes" ? bytesText(value) : `${countText(value)} rows`;
}

function secondsText(value) {
  if (value >= 1) return `${Number(value.toPrecision(3))} s`;
  return value >= 1e-3
    ? `${Number((value * 1e3).toPrecision(3))} ms`
    : `${Number((value * 1e6).toPrecision(3))} \u00b5s`;
}

const share = (part, whole) =>
  whole ? `${Number(((100 * part) / whole).toPrecision(3))} %` : "\u2013";
/* Largest absolute value of several matrices; null counts as 0. */
const largest = (matrices) =>
  matrices
    .filter(Boolean)
    .flat(2)
    .reduce((most, value) => Math.max(most, Math.abs(value ?? 0)), 0);
const sum = (values) => values.reduce((total, value) => total + value, 0);

/* Steps of whole binary units: d3's "k" and "M" would be decimal. */
function bytesAxis(values, title) {
  const largest = Math.max(1, ...values),
    smallest = Math.min(0, ...values);
  let step = 1;
  while ((largest - smallest) / step > 6) step *= 2;
  const ticks = [];
  for (let tick = Math.ceil(smallest / step) * step; tick <= largest + step; tick += step)
    ticks.push(tick);
  return {title: {text: title}, tickvals: ticks, ticktext: ticks.map(bytesText)};
}

/* --- colours --- */

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const series = (index) => colour(`c${index % 9}`);
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "star"];
const HATCHES = ["", "/", ".", "x", "\\", "+"];

/* Bars tell apart without colour too. */
function barMarker(index) {
  return {
    color: series(index),
    pattern: {
      shape: HATCHES[index % HATCHES.length],
      fillmode: "overlay",
      fgcolor: colour("paper"),
      fgopacity: 0.55,
      size: 6,
    },
  };
}

/* More kinds than colours: the ninth on are hatched. */
function manyMarker(index) {
  return index < 8
    ? {color: series(index)}
    : {
        color: series(index - 8),
        pattern: {shape: "/", fillmode: "overlay", fgcolor: colour("paper"), size: 6},
      };
}

/* Around 0: blue below, vermilion above, the paper's colour between. */
function diverging() {
  return [
    [0, colour("c0")],
    [0.5, colour("grid")],
    [1, colour("c1")],
  ];
}

function baseLayout() {
  const axis = () => ({
    gridcolor: colour("grid"),
    linecolor: colour("line"),
    zeroline: false,
    exponentformat: "none",
    separatethousands: true,
    automargin: true,
    ticks: "outside",
    tickcolor: colour("line"),
    title: {font: {size: 12}, standoff: 8},
  });
  return {
    separators: ".\u2009",
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: {
      color: colour("ink"),
      family: "system-ui, 'Noto Sans', 'DejaVu Sans', sans-serif",
      size: 12,
    },
    margin: {l: 60, r: 20, t: 24, b: 44},
    xaxis: axis(),
    yaxis: axis(),
    hoverlabel: {
      bgcolor: colour("panel"),
      bordercolor: colour("line"),
      font: {color: colour("ink")},
    },
    modebar: {bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("ink")},
    legend: {orientation: "h", x: 0, y: 1.01, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)"},
    bargap: 0.15,
    dragmode: "zoom",
  };
}

/* Nested objects are merged, anything else is replaced. */
function merged(base, extra) {
  const out = {...base};
  for (const [key, value] of Object.entries(extra ?? {})) {
    const nested =
      value &&
      typeof value === "object" &&
      !Array.isArray(value) &&
      out[key] &&
      typeof out[key] === "object";
    out[key] = nested ? merged(out[key], value) : value;
  }
  return out;
}

/* --- charts --- */

/* Only buttons whose work stays on this machine: by default there is one that would send the chart
 * to Plotly's site. */
const CONFIG = {
  responsive: true,
  displaylogo: false,
  showSendToCloud: false,
  plotlyServerURL: "",
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
};
const charts = new Map(); // id -> {build, uses}

/* `uses`: which entries of `state` change the chart. A chart without an element on this page, or
 * without anything to draw (null), is left out. */
function chart(id, uses, build) {
  if (document.getElementById(id)) charts.set(id, {build, uses});
}

function withoutChart(element) {
  const figure = element.closest("figure") ?? element,
    heading = element.previousElementSibling;
  figure.hidden = true;
  if (heading?.tagName === "H3") heading.hidden = true;
}

function draw(id, width) {
  const element = document.getElementById(id),
    built = charts.get(id).build();
  if (!built) {
    withoutChart(element);
    charts.delete(id);
    return;
  }
  const layout = merged(baseLayout(), built.layout);
  layout.showlegend ??= built.traces.length > 1;
  if (width) layout.width = width;
  Plotly.react(element, built.traces, layout, CONFIG);
}

function redraw(uses) {
  for (const [id, one] of [...charts]) if (!uses || one.uses.includes(uses)) draw(id);
}

/* --- parts of charts --- */

/* x of a line over steps: few points are also marked. */
function lineMode(count) {
  return count <= 40 ? "lines+markers" : "lines";
}

/* One line over steps; gaps (null) stay gaps. `text` turns a value into its hover text. */
function stepLine(run, path, name, index, text = realText) {
  const values = run.steps.series[path];
  if (!values) return null;
  return {
    type: "scatter",
    mode: lineMode(values.length),
    name,
    x: run.steps.step,
    y: values,
    line: {color: series(index), width: 2, dash: DASHES[Math.floor(index / 9) % 5]},
    marker: {symbol: SYMBOLS[index % 6], size: 6, color: series(index)},
    customdata: values.map((value) => text(value)),
    hovertemplate: `step %{x}<br>${name}: %{customdata}<extra></extra>`,
  };
}

/* A dashed level across the steps of a run. */
function levelLine(run, value, name, index) {
  const steps = run.steps.step,
    ends =
      steps.length > 1 ? [steps[0], steps[steps.length - 1]] : [steps[0] - 0.5, steps[0] + 0.5];
  return {
    type: "scatter",
    mode: "lines",
    name,
    x: ends,
    y: [value, value],
    line: {color: series(index), width: 1.5, dash: "dash"},
    hovertemplate: `${name}: ${realText(value)}<extra></extra>`,
  };
}

/* Few steps: a tick at each, and none between. */
function stepAxis() {
  const count = Math.max(...RUNS.map((run) => run.steps.count));
  return {
    title: {text: "step"},
    tickformat: "d",
    rangemode: "normal",
    ...(count <= 12 ? {dtick: 1} : {}),
  };
}

/* The chosen layer's arrays, or the sum of all layers'. */
function ofLayer(run, name) {
  const lists = run.layer.map((layer) => layer[name]).filter((list) => list.length);
  if (state.layer >= 0) return run.layer[state.layer]?.[name] ?? [];
  return lists.length ? lists[0].map((_, index) => sum(lists.map((list) => list[index] ?? 0))) : [];
}

function layerText(run) {
  if (run.layers <= 1) return "";
  return state.layer < 0 ? `, sum of ${run.layers} layers` : `, layer ${state.layer}`;
}
