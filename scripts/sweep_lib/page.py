"""sweep.html: the plots that answer "what does balance cost", and the tables under them, in one
file without scripts. Quality against bytes to other devices with the Pareto front, and against each
varied key MaxVio, bytes, quality and drops; of combinations taken in parallel one point each.
"""
import html

from run_lib.units import plain
from sweep_lib import combinations, table
from sweep_lib.draw import Chart, Point, Series, bytes_text, svg

MOST_SERIES = 8
MOST_LABELS = 16  # of points that have their names beside them
STYLE = """
:root {
  color-scheme: light dark;
  --ink: #222;
  --paper: #fff;
  --grid: #ddd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #ddd;
    --paper: #161616;
    --grid: #3a3a3a;
  }
}
body {
  font:
    15px/1.45 system-ui,
    sans-serif;
  color: var(--ink);
  background: var(--paper);
  margin: 2em auto;
  max-width: 1180px;
  padding: 0 1em;
}
.plots {
  display: grid;
  grid-template-columns: repeat(auto-fit, minmax(430px, 1fr));
  gap: 1em;
}
figure {
  margin: 0;
  break-inside: avoid;
}
figure > svg {
  width: 100%;
  height: auto;
}
svg text {
  fill: var(--ink);
  font-size: 12px;
}
svg text.title {
  font-size: 14px;
  font-weight: 600;
}
.grid {
  stroke: var(--grid);
}
.axis {
  stroke: var(--ink);
}
svg text.label {
  font-size: 10.5px;
}
.error {
  stroke-width: 1.3;
}
td.noise {
  opacity: 0.6;
}
figcaption {
  font-size: 13px;
}
figcaption span {
  margin-right: 1em;
  white-space: nowrap;
}
figcaption p {
  margin: 0.2em 0;
}
.scroll {
  overflow-x: auto;
}
table {
  border-collapse: collapse;
  font-size: 13px;
  font-variant-numeric: tabular-nums;
}
th,
td {
  padding: 0.2em 0.6em;
  text-align: right;
  border-bottom: 1px solid var(--grid);
  white-space: nowrap;
}
td.words {
  text-align: left;
  white-space: normal;
}
@media print {
  body {
    margin: 0;
  }
  .scroll {
    overflow: visible;
  }
}
"""
COLUMNS = (
    "seed",
    "status",
    "task_loss",
    "validation_loss",
    "maxvio_expert",
    "maxvio_device",
    "maxvio_received",
    "remote_bytes_per_token",
    "rows",
    "dropped",
    "seconds",
)


def number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def in_order(values):
    """Distinct values: by size where all are numbers, else in the order of the runs."""
    distinct = list(dict.fromkeys(values))
    return (
        sorted(distinct, key=number)
        if all(number(value) is not None for value in distinct)
        else distinct
    )


def front(points):
    """Pareto front of points where less is better both ways, from left to right."""
    best, kept = float("inf"), []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        if point.y < best:
            best = point.y
            kept.append(point)
    return kept


def grouped(things, key):
    """Lists of things of one key, in the order of their first."""
    groups = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


def hover(combo, figures):
    lines = [combo.label]
    lines += [f"{one.title} {combinations.measured_text(one, combo)}" for one in figures]
    count = len(combo.rows)
    return "\n".join([*lines, f"{count} run{'s' if count > 1 else ''}"])


# --- charts ---


def cost_chart(combos, keys, figures, in_parallel):
    """What is given up for less traffic: quality where the runs train, the devices' MaxVio where
    they do not; None where nothing is known. A colour for each value of the first key.
    """
    by_name = {figure.name: figure for figure in figures}
    traffic = by_name.get("remote_bytes_per_token")
    cost = next((one for one in figures if one.name != "maxvio_expert"), None)
    if traffic is None or cost in (None, traffic):
        return None
    usable = [
        one
        for one in combos
        if one.mean(cost.name) is not None and one.mean(traffic.name) is not None
    ]
    groups = grouped(usable, lambda one: one.values[:1])
    if in_parallel or len(groups) > MOST_SERIES or len(keys) < 2:
        groups = {(): usable}
    named = len(usable) <= MOST_LABELS
    series = []
    for first, group in groups.items():
        points = []
        for one in group:
            point = Point(
                one.mean(traffic.name),
                one.mean(cost.name),
                hover(one, (cost, traffic)),
                spread=one.deviation(cost.name) or 0.0,
            )
            if named and len(usable) > 1:
                point.label = point_label(one, keys, len(first))
            points.append(point)
        series.append(Series(" ".join((keys[0], *first)) if first else "", points, line=False))
    best = front([point for one in series for point in one.points])
    for point in best:
        point.mark = True
    return Chart(
        f"{'Balance' if cost.name.startswith('maxvio') else 'Quality'} against traffic",
        traffic.title,
        cost.title,
        series,
        note=(
            "One point a combination, mean over seeds; bars: standard deviation between seeds."
            " Bytes are those of dispatch and combine, in training of their backwards too."
            " Ringed and joined: the Pareto front, less is better both ways."
        ),
        path=best,
        bytes_of="x",
    )


def point_label(combo, keys, left_out):
    """The variant's name, or the values that the colour does not say, with the key's name where it
    is one.
    """
    if combo.rows[0].get("variant"):
        return combo.rows[0]["variant"]
    values = combo.values[left_out:]
    return f"{keys[-1].split('.')[1]} {values[0]}" if len(values) == 1 else " · ".join(values)


def variants_chart(combos, keys, figure):
    """One figure of combinations that are no grid: a point each, not joined."""
    usable = [one for one in combos if one.mean(figure.name) is not None]
    if len(usable) < 2:
        return None
    names = [one.rows[0].get("variant") or " · ".join(one.values) for one in usable]
    points = [measured_point(index, one, figure) for index, one in enumerate(usable)]
    x_title = (
        "combination"
        if usable[0].rows[0].get("variant")
        else " · ".join(key.split(".")[1] for key in keys)
    )
    return Chart(
        figure.title,
        x_title,
        figure.title,
        [Series("", points, line=False)],
        names,
        seeds_note(usable),
        bytes_of="y" if figure.in_bytes else "",
    )


def measured_point(x, combo, figure):
    return Point(
        x,
        combo.mean(figure.name),
        hover(combo, [figure]),
        spread=combo.deviation(figure.name) or 0.0,
    )


def seeds_note(combos):
    if any(len(one.rows) > 1 for one in combos):
        return "Mean over seeds; bars: standard deviation between seeds."
    return ""


def key_chart(combos, keys, key, figure):
    """One figure against one key: a line for each combination of the other keys, or the mean over
    them where these are too many.
    """
    usable = [one for one in combos if one.mean(figure.name) is not None]
    at = keys.index(key)
    labels = in_order([one.values[at] for one in usable])
    if len(labels) < 2:
        return None
    lines = grouped(usable, lambda one: one.values[:at] + one.values[at + 1 :])
    y = "y" if figure.in_bytes else ""
    title = f"{figure.title} against {key.split('.')[1]}"
    if len(lines) > MOST_SERIES:
        points = [
            averaged(index, label, [one for one in usable if one.values[at] == label], figure)
            for index, label in enumerate(labels)
        ]
        note = "Mean over all other keys and seeds."
        return Chart(title, key, figure.title, [Series("", points)], labels, note, bytes_of=y)
    others = [other.split(".")[1] for other in keys if other != key]
    series = []
    for values, group in lines.items():
        name = ", ".join(f"{other} {value}" for other, value in zip(others, values))
        points = [measured_point(labels.index(one.values[at]), one, figure) for one in group]
        series.append(Series(name, sorted(points, key=lambda point: point.x)))
    return Chart(title, key, figure.title, series, labels, seeds_note(usable), bytes_of=y)


def averaged(x, label, group, figure):
    """A point that is the mean of several combinations, and says from where to where they go."""
    means = [one.mean(figure.name) for one in group]
    text = bytes_text if figure.in_bytes else lambda value: plain(value, 5)
    middle = sum(means) / len(means)
    return Point(
        x,
        middle,
        f"{label}\n{figure.title} {text(middle)}"
        f" (from {text(min(means))} to {text(max(means))} in {len(group)} combinations)",
    )


def charts(combos, keys, figures, in_parallel):
    """All charts that the combinations have something for."""
    found = [cost_chart(combos, keys, figures, in_parallel)]
    if in_parallel:
        found += [variants_chart(combos, keys, figure) for figure in figures]
    else:
        found += [key_chart(combos, keys, key, figure) for key in keys for figure in figures]
    return [chart for chart in found if chart]


# --- tables ---


def cells(kind, texts):
    return "".join(f"<{kind}>{html.escape(text)}</{kind}>" for text in texts)


def combinations_table(combos, figures):
    """Mean and standard deviation of each combination."""
    body = "".join(
        "<tr>"
        + cells(
            "td",
            [
                one.label,
                str(len(one.rows)),
                *(combinations.measured_text(figure, one) for figure in figures),
            ],
        )
        + "</tr>"
        for one in combos
    )
    head = cells("th", ["combination", "runs", *(figure.heading for figure in figures)])
    return f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"


def difference_cell(figure, first, combo):
    """The difference and its 95 % interval, pale inside the noise."""
    found = combinations.difference_of(figure, first, combo)
    if found is None:
        return "<td>–</td>"
    text = combinations.signed(figure, found.mean)
    if found.low is None:
        return f"<td>{html.escape(text)}</td>"
    ends = " … ".join(combinations.signed(figure, end) for end in (found.low, found.high))
    noise = found.noise and found.mean
    said = f"[{ends}]{' inside the noise' if noise else ''}"
    return (
        f"<td{' class=noise' if noise else ''}>{html.escape(text)}"
        f"<br><small>{html.escape(said)}</small></td>"
    )


def differences_table(combos, figures):
    first = combos[0]
    body = "".join(
        f"<tr>{cells('td', [one.label])}"
        + "".join(difference_cell(figure, first, one) for figure in figures)
        + "</tr>"
        for one in combos[1:]
    )
    head = cells("th", ["combination", *(figure.heading for figure in figures)])
    return (
        f"<h2>Differences to {html.escape(first.label)}</h2><p>Paired by seed; in brackets the 95 %"
        " interval, where there are several seeds. A difference whose interval holds 0 is inside"
        f" the noise.</p><div class=scroll><table><tr>{head}</tr>{body}</table></div>"
    )


def cell(row, name):
    value = row.get(name)
    return plain(value, 5) if isinstance(value, float) else "" if value is None else str(value)


def table_of(rows, keys):
    shown = [name for name in (*keys, *COLUMNS) if any(row.get(name) is not None for row in rows)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in shown)
    body = []
    for row in rows:
        cells = "".join(f"<td>{html.escape(cell(row, name))}</td>" for name in shown)
        body.append(f"<tr>{cells}<td class=words>{html.escape(row.get('error') or '')}</td></tr>")
    return f"<div class=scroll><table><tr>{head}<th></th></tr>{''.join(body)}</table></div>"


def build(rows, keys, name, in_parallel):
    ok = [row for row in rows if row["status"] in ("ok", "failed checks")]
    combos, figures = combinations.combinations(ok, keys), combinations.figures_of(ok)
    drawn = "".join(svg(chart) for chart in charts(combos, keys, figures, in_parallel))
    compared = differences_table(combos, figures) if len(combos) > 1 else ""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width"><title>Sweep of'
        f" {html.escape(name)}</title><style>{STYLE}</style></head><body><h1>Sweep of"
        f" {html.escape(name)}</h1><p>{len(rows)} runs, {len(ok)} with results; varied:"
        f' {html.escape(", ".join(keys) or "the seed")}. All figures are in sweep.csv. MaxVio is'
        " the largest load over the mean load, minus 1. Hover over a point for its"
        " numbers.</p><div"
        f' class="plots">{drawn}</div><h2>Combinations</h2><p>Mean ± standard deviation between'
        f" seeds.</p>{combinations_table(combos, figures)}{compared}"
        f"<h2>Runs</h2>{table_of(rows, keys)}</body></html>\n"
    )


def write(path, rows, keys, name, in_parallel):
    """Whole or not at all; returns the path."""
    table.write_file(path, build(rows, keys, name, in_parallel))
    return path
