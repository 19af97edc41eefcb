/* losses.js: losses, quality, balance and phases over steps, of one run. */

/* Names of the series of a group: loss, loss_raw, time.phases. */
function seriesOf(group) {
  return Object.keys(RUN.steps.series)
    .filter((path) => path.startsWith(`${group}.`))
    .map((path) => path.slice(group.length + 1));
}

const lossName = (name) => LOSS_NAMES[name] ?? name.replaceAll("_", " ");

const MAIN_LOSSES = ["expert", "device", "comm"];

/* Losses by their value at balance: [[value, names]]. */
function levels(names) {
  const byValue = new Map();
  for (const name of names.filter((one) => RUN.ideal[one] !== undefined))
    byValue.set(RUN.ideal[name], [...(byValue.get(RUN.ideal[name]) ?? []), name]);
  return [...byValue];
}

function rawLosses(names, first) {
  const traces = names.map((name, index) =>
    stepLine(RUN, `loss_raw.${name}`, lossName(name), first + index),
  );
  for (const [value, which] of levels(names))
    traces.push(
      levelLine(
        RUN,
        value,
        `${which.map(lossName).join(", ")} at balance`,
        first + names.indexOf(which[0]),
      ),
    );
  return {
    traces,
    layout: {showlegend: true, xaxis: stepAxis(), yaxis: {title: {text: "loss, raw (α = 1)"}}},
  };
}

chart("chart-loss-raw", [], () => {
  const names = seriesOf("loss_raw").filter((name) => MAIN_LOSSES.includes(name));
  return names.length ? rawLosses(names, 0) : null;
});

chart("chart-loss-other", ["loss"], () =>
  seriesOf("loss_raw").includes(state.loss) ? rawLosses([state.loss], 3) : null,
);

chart("chart-loss-weighted", [], () => {
  const names = seriesOf("loss").filter(
    (name) => name === "total" || RUN.steps.series[`loss.${name}`].some((value) => value),
  );
  if (!names.length) return null;
  const order = ["expert", "device", "comm", "z"];
  const traces = names.map((name, index) =>
    stepLine(
      RUN,
      `loss.${name}`,
      lossName(name),
      name === "total" ? 8 : order.includes(name) ? order.indexOf(name) : index,
    ),
  );
  return {
    traces,
    layout: {
      showlegend: true,
      xaxis: stepAxis(),
      yaxis: {title: {text: "α × raw"}, rangemode: "tozero"},
    },
  };
});

chart("chart-quality", [], () => {
  const both = RUN.steps.series.lm_loss && RUN.steps.series.task_loss;
  const same =
    both &&
    RUN.steps.series.lm_loss.every((value, index) => value === RUN.steps.series.task_loss[index]);
  const traces = [
    stepLine(RUN, "task_loss", same ? "task loss (language model)" : "task loss", 0),
    same ? null : stepLine(RUN, "lm_loss", "language model loss", 3),
  ].filter(Boolean);
  if (RUN.validation.step.length)
    traces.push({
      type: "scatter",
      mode: "lines+markers",
      name: "validation loss",
      x: RUN.validation.step,
      y: RUN.validation.loss,
      line: {color: series(1), width: 2, dash: "dot"},
      marker: {symbol: "diamond", size: 7, color: series(1)},
      customdata: RUN.validation.loss.map((value) => realText(value)),
      hovertemplate: `step %{x}<br>validation loss: %{customdata} ${RUN.task_unit}<extra></extra>`,
    });
  if (!traces.length) return null;
  if (RUN.unigram !== null)
    traces.push(levelLine(RUN, RUN.unigram, "unigram entropy of the text", 8));
  return {
    traces,
    layout: {
      showlegend: true,
      xaxis: stepAxis(),
      yaxis: {title: {text: `loss (${RUN.task_unit})`}},
    },
  };
});

function single(id, path, title, index) {
  chart(id, [], () => {
    const line = stepLine(RUN, path, title, index);
    return (
      line && {
        traces: [line],
        layout: {xaxis: stepAxis(), yaxis: {title: {text: title}, rangemode: "tozero"}},
      }
    );
  });
}

single("chart-gradient", "gradient_norm", "norm of the gradient", 2);
single("chart-rate", "learning_rate", "learning rate", 4);

/* --- balance --- */

const METRIC_TITLES = {
  max_over_mean: "max / mean",
  cv: "CV (standard deviation / mean)",
  gini: "Gini coefficient",
  idle: "idle (mean number over layers)",
};
const LOAD_NAMES = {
  expert: "selections by expert",
  device: "selections by device",
  received: "rows received by device",
  sent: "rows sent by device",
  node: "selections by node",
  node_received: "rows received by node",
};

chart("chart-balance", ["metric"], () => {
  const several = RUN.per_node < RUN.devices;
  const loads = Object.keys(LOAD_NAMES).filter((load) => several || !load.startsWith("node"));
  const traces = loads
    .map((load, index) => stepLine(RUN, `balance.${load}.${state.metric}`, LOAD_NAMES[load], index))
    .filter(Boolean);
  if (!traces.length) return null;
  return {
    traces,
    layout: {
      xaxis: stepAxis(),
      yaxis: {
        title: {text: METRIC_TITLES[state.metric]},
        rangemode: state.metric === "max_over_mean" ? "normal" : "tozero",
      },
    },
  };
});

/* --- phases --- */

/* A step also has time outside its phases: the loop, the results. */
function phaseParts(phases, whole) {
  const parts = Object.entries(phases).filter(([, seconds]) => seconds !== null);
  const other = whole - sum(parts.map(([, seconds]) => seconds));
  return whole > 0 && other > 0 ? [...parts, ["other", other]] : parts;
}

function phaseBars(runs) {
  const parts = runs.map((run) => {
    const steps = Math.max(run.num_steps, 1);
    return Object.fromEntries(
      phaseParts(
        Object.fromEntries(
          Object.entries(run.phases).map(([name, seconds]) => [name, seconds / steps]),
        ),
        run.step_mean,
      ),
    );
  });
  const names = [...new Set(parts.flatMap((part) => Object.keys(part)))];
  return names.map((name, index) => ({
    type: "bar",
    orientation: "h",
    name,
    y: runs.map((run) => run.name),
    x: parts.map((part) => part[name] ?? 0),
    marker: manyMarker(index),
    customdata: parts.map((part) => [
      secondsText(part[name] ?? 0),
      share(part[name] ?? 0, sum(Object.values(part))),
    ]),
    hovertemplate: `%{y}<br>${name}: %{customdata[0]}, %{customdata[1]} of a step<extra></extra>`,
  }));
}

chart("chart-phases", [], () => {
  if (!Object.keys(RUN.phases).length) return null;
  return {
    traces: phaseBars([RUN]),
    layout: {
      barmode: "stack",
      xaxis: {title: {text: "mean step (s)"}},
      yaxis: {showticklabels: false},
      legend: {traceorder: "normal"},
    },
  };
});

/* The axis ends a little above nearly all steps: one slow step in a thousand would press the others
 * flat. */
function usualSeconds(names) {
  const totals = RUN.steps.step.map((_, index) =>
    sum(names.map((name) => RUN.steps.series[`time.phases.${name}`][index] ?? 0)),
  );
  totals.sort((one, other) => one - other);
  const usual = 1.25 * totals[Math.floor(0.98 * (totals.length - 1))],
    most = totals[totals.length - 1];
  return totals.length > 60 && usual > 0 && most > usual
    ? {range: [0, usual], title: {text: "seconds (double-click: slowest steps too)"}}
    : {rangemode: "tozero", title: {text: "seconds"}};
}

function phaseOverSteps(name, index, bars) {
  const line = stepLine(RUN, `time.phases.${name}`, name, index, secondsText);
  if (bars)
    return {...line, type: "bar", mode: undefined, line: undefined, marker: manyMarker(index)};
  const pattern = {
    shape: index < 8 ? "" : "/",
    fillmode: "overlay",
    fgcolor: colour("paper"),
    size: 6,
  };
  return {
    ...line,
    mode: "lines",
    line: {color: series(index % 8), width: 0},
    fillcolor: series(index % 8),
    fillpattern: pattern,
    stackgroup: "phases",
  };
}

chart("chart-phases-steps", [], () => {
  const names = seriesOf("time.phases");
  if (!names.length) return null;
  const traces = names.map((name, index) =>
    phaseOverSteps(name, index, RUN.steps.step.length <= 60),
  );
  const whole = stepLine(RUN, "time.step", "whole step", 8, secondsText);
  if (whole)
    traces.push({...whole, mode: "lines", line: {color: series(8), width: 1.2, dash: "dot"}});
  return {
    traces,
    layout: {
      barmode: "stack",
      xaxis: stepAxis(),
      yaxis: usualSeconds(names),
      legend: {traceorder: "normal"},
    },
  };
});
