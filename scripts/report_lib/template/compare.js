/* compare.js: several runs on one page, side by side or as differences to the first. The elements
 * that these charts draw into are on that page only. */

const asDifference = () => state.diff === "yes";
const others = () => (asDifference() ? RUNS.slice(1) : RUNS);

/* A run's points of one series: [[step, value]]. */
function pointsOf(run, path) {
  if (path === "validation")
    return run.validation.step.map((step, index) => [step, run.validation.loss[index]]);
  return (run.steps.series[path] ?? []).map((value, index) => [run.steps.step[index], value]);
}

/* At the steps that both have. */
function minusFirst(points, first) {
  const base = new Map(first);
  return points
    .filter(
      ([step, value]) => value !== null && base.get(step) !== undefined && base.get(step) !== null,
    )
    .map(([step, value]) => [step, value - base.get(step)]);
}

function comparedLine(run, path, text) {
  const index = RUNS.indexOf(run),
    own = pointsOf(run, path),
    points = asDifference() ? minusFirst(own, pointsOf(RUN, path)) : own;
  return {
    type: "scatter",
    mode: lineMode(points.length),
    name: run.name,
    x: points.map(([step]) => step),
    y: points.map(([, value]) => value),
    line: {color: series(index), width: 2, dash: DASHES[index % 5]},
    marker: {symbol: SYMBOLS[index % 6], size: 6, color: series(index)},
    customdata: points.map(([, value]) => text(value)),
    hovertemplate: `${run.name}, step %{x}: %{customdata}<extra></extra>`,
  };
}

/* The value at balance, dashed: once where it is the same for all runs. */
function balancedLines(path) {
  const name = path.startsWith("loss_raw.") ? path.slice(9) : "",
    runs = RUNS.filter((run) => run.ideal[name] !== undefined && run.steps.step.length);
  const same = runs.every((run) => run.ideal[name] === runs[0].ideal[name]);
  return (same ? runs.slice(0, 1) : runs).map((run) =>
    levelLine(
      run,
      run.ideal[name],
      same ? "at balance" : `${run.name} at balance`,
      same ? 6 : RUNS.indexOf(run),
    ),
  );
}

for (const figure of document.querySelectorAll("figure[data-series]")) {
  const path = figure.dataset.series,
    inBytes = path.startsWith("volume.");
  chart(figure.querySelector(".chart").id, ["diff"], () => {
    if (!RUNS.some((run) => pointsOf(run, path).length)) return null;
    const traces = others().map((run) => comparedLine(run, path, inBytes ? bytesText : realText));
    if (!asDifference()) traces.push(...balancedLines(path));
    const values = traces.flatMap((trace) => trace.y);
    return {
      traces,
      layout: {
        showlegend: true,
        xaxis: stepAxis(),
        yaxis: inBytes ? {...bytesAxis(values, "bytes a step"), rangemode: "tozero"} : {},
      },
    };
  });
}

const AMOUNTS = {
  counts_per_device: "selections",
  received_rows: "rows received",
  sent_rows: "rows sent",
};

chart("chart-c-devices", ["diff", "layer", "amount"], () => {
  const base = ofLayer(RUN, state.amount);
  const traces = others()
    .map((run) => [run, ofLayer(run, state.amount)])
    .filter(([, values]) => values.length && (!asDifference() || values.length === base.length))
    .map(([run, values]) => {
      const index = RUNS.indexOf(run),
        shown = asDifference() ? values.map((value, device) => value - base[device]) : values;
      return {
        type: "bar",
        name: run.name,
        x: shown.map((_, device) => device),
        y: shown,
        marker: barMarker(index),
        customdata: shown.map(countText),
        hovertemplate:
          `${run.name}, device %{x}: %{customdata} ` + `${AMOUNTS[state.amount]}<extra></extra>`,
      };
    });
  if (!traces.length && !asDifference()) return null;
  return {
    traces,
    layout: {
      showlegend: true,
      barmode: "group",
      xaxis: {
        title: {text: `device${state.layer < 0 ? ", sum over layers" : `, layer ${state.layer}`}`},
        showgrid: false,
      },
      yaxis: {title: {text: AMOUNTS[state.amount]}},
      annotations: traces.length ? [] : [nothing("the runs have different numbers of devices")],
    },
  };
});

function nothing(text) {
  return {
    text,
    showarrow: false,
    xref: "paper",
    yref: "paper",
    x: 0.5,
    y: 0.5,
    font: {color: colour("soft"), size: 13},
  };
}

function comparedMatrix(run) {
  const cells = run.matrix && matrixOf(run);
  if (!cells) return null;
  if (!asDifference() || run === RUN) return cells;
  const base = RUN.matrix && matrixOf(RUN);
  return base && base.length === cells.length && RUN.devices === run.devices
    ? cells.map((row, from) => row.map((value, to) => value - base[from][to]))
    : null;
}

RUNS.forEach((run, index) =>
  chart(`chart-c-matrix-${index}`, ["diff", "layer", "unit"], () => {
    if (!run.matrix) return null;
    const cells = comparedMatrix(run),
      differs = asDifference() && run !== RUN;
    if (!cells)
      return {
        traces: [],
        layout: {
          annotations: [
            nothing(asDifference() ? "the first run has other devices or layers" : "no such layer"),
          ],
        },
      };
    const limit = differs
      ? largest(RUNS.slice(1).map(comparedMatrix))
      : largest(RUNS.map((one) => one.matrix && matrixOf(one)));
    const scale = differs
      ? {colorscale: diverging(), zmin: -limit || -1, zmax: limit || 1}
      : {zmax: limit || 1};
    const bar = merged(matrixBar([[differs ? -limit : 0, limit]]), {
      title: {text: differs ? "difference" : state.unit === "bytes" ? "payload" : "rows"},
    });
    return {
      traces: [matrixTrace(run, cells, {...scale, colorbar: bar})],
      layout: matrixLayout(run),
    };
  }),
);

chart("chart-c-volume", ["diff"], () => {
  const runs = RUNS.filter((run) => run.waterfall.length);
  if (!runs.length) return null;
  const kind = (name) => name.replace(/M = .*/, "M");
  const names = [
    ...new Set(runs.flatMap((run) => run.waterfall.map((stage) => kind(stage.name)))),
  ].sort((a, b) => place(runs, a, kind) - place(runs, b, kind));
  const stageOf = (run, name) => run.waterfall.find((stage) => kind(stage.name) === name);
  const traces = runs
    .filter((run) => others().includes(run))
    .map((run) => {
      const index = RUNS.indexOf(run),
        stages = names.map((name) => comparedStage(stageOf(run, name), stageOf(RUN, name)));
      return {
        type: "bar",
        name: run.name,
        x: names,
        y: stages.map((stage) => stage?.bytes ?? null),
        marker: barMarker(index),
        text: stages.map((stage) =>
          stage ? `${stage.sent ? "\u25a0 " : ""}${bytesText(stage.bytes)}` : "",
        ),
        textposition: "outside",
        cliponaxis: false,
        customdata: stages.map((stage) =>
          stage
            ? [
                stage.name,
                bytesText(stage.bytes),
                countText(stage.rows),
                asDifference()
                  ? ""
                  : `<br>${share(stage.bytes, run.waterfall[0].bytes)} of one row per selection`,
              ]
            : [],
        ),
        hovertemplate:
          `${run.name}: %{customdata[0]}<br>` +
          "%{customdata[1]} in %{customdata[2]} rows%{customdata[3]}<extra></extra>",
      };
    });
  return {
    traces,
    layout: {
      showlegend: true,
      barmode: "group",
      xaxis: {showgrid: false, type: "category"},
      yaxis: stageAxis(traces.flatMap((trace) => trace.y)),
    },
  };
});

/* A stage, or what it has more than the first run's. */
function comparedStage(stage, base) {
  if (!asDifference()) return stage;
  return (
    stage &&
    base && {...stage, bytes: stage.bytes - base.bytes, rows: stage.rows - base.rows, sent: false}
  );
}

/* Where a stage stands, at the latest, in any run. */
function place(runs, name, kind) {
  return Math.max(
    ...runs.map((run) => run.waterfall.findIndex((stage) => kind(stage.name) === name)),
  );
}

chart("chart-c-phases", [], () => {
  const runs = RUNS.filter((run) => Object.keys(run.phases).length);
  return runs.length
    ? {
        traces: phaseBars(runs),
        layout: {
          barmode: "stack",
          xaxis: {title: {text: "mean step (s)"}},
          yaxis: {autorange: "reversed"},
          legend: {traceorder: "normal"},
        },
      }
    : null;
});
