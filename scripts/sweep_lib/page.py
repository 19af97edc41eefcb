"""sweep.html: the plots that answer "what does balance cost", and the table under them, in one file
without scripts. Quality against remote bytes with the Pareto front, and against each varied key
MaxVio, bytes, quality and drops.
"""
import html

from sweep_lib import table
from sweep_lib.draw import Chart, Point, Series, short, svg

QUALITY = (
    ("validation_bits_per_byte", "validation loss (bits per byte)"),
    ("validation_loss", "validation loss"),
    ("bits_per_byte", "training loss (bits per byte, last 20 steps)"),
    ("task_loss", "task loss (last 20 steps)"),
)
MOST_SERIES = 8
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
    "remote_bytes",
    "rows",
    "dropped",
    "seconds",
)


def number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def mean(values):
    return sum(values) / len(values)


def in_order(values):
    """Distinct values: by size where all are numbers, else in the order of the runs."""
    distinct = list(dict.fromkeys(values))
    return (
        sorted(distinct, key=number)
        if all(number(value) is not None for value in distinct)
        else distinct
    )


def combination(row, keys):
    """alpha_comm 0.02, topk_group 3"""
    return ", ".join(f"{key.split('.')[1]} {row[key]}" for key in keys)


def front(points):
    """Pareto front of points where less is better both ways, from left to right."""
    best, kept = float("inf"), []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        if point.y < best:
            best = point.y
            kept.append(point)
    return kept


def grouped(rows, keys):
    """(values of the keys) -> rows: what differs inside a group is the seed, or keys that are
    averaged over.
    """
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def known(rows, *names):
    return [row for row in rows if all(isinstance(row.get(name), (int, float)) for name in names)]


def cost_chart(rows, keys):
    """What is given up for less traffic: quality where the runs train, the devices' MaxVio where
    they do not; None where nothing is known.
    """
    choices = (*QUALITY, ("maxvio_device", "MaxVio of the devices"))
    name, title = next(
        ((name, title) for name, title in choices if known(rows, name, "remote_bytes")),
        (None, None),
    )
    if name is None:
        return None
    points = []
    for group in grouped(known(rows, name, "remote_bytes"), keys).values():
        x, y = mean([row["remote_bytes"] for row in group]), mean([row[name] for row in group])
        points.append(
            Point(
                x,
                y,
                (
                    f"{combination(group[0], keys)}\n{title} {y:.5g}\n{short(x)}B a step;"
                    f" {len(group)} run{'s' if len(group) > 1 else ''}"
                ),
            )
        )
    best = front(points)
    for point in best:
        point.mark = True
    what = "Quality" if name != "maxvio_device" else "Balance"
    return Chart(
        f"{what} against traffic",
        "bytes to other devices in a step, all directions",
        title,
        [Series("runs", points, path=best)],
        note=(
            "One point a combination, mean over seeds. Ringed and joined: the Pareto front, less is"
            " better both ways."
        ),
    )


def key_chart(rows, key, others, name, title, y_title):
    """One figure against one key: a line for each combination of the other keys, or their mean
    where these are too many.
    """
    usable = known(rows, name)
    labels = in_order([row[key] for row in usable])
    if len(labels) < 2:
        return None
    lines = grouped(usable, others)
    in_parallel = all(
        len({row[key] for row in group}) == 1 for group in lines.values()
    )  # --zip: the keys change together
    averaged = in_parallel or len(lines) > MOST_SERIES
    if averaged:
        lines = {(): usable}
    series = []
    for group in lines.values():
        points = []
        for i, label in enumerate(labels):
            here = [row[name] for row in group if row[key] == label]
            if here:
                spread = (
                    f" (from {min(here):.5g} to {max(here):.5g} in {len(here)} runs)"
                    if len(here) > 1
                    else ""
                )
                points.append(
                    Point(i, mean(here), f"{key} {label}\n{y_title} {mean(here):.5g}{spread}")
                )
        series.append(Series("" if averaged else combination(group[0], others), points))
    note = f"{', '.join(others)} change with it." if in_parallel and others else ""
    if len(usable) > sum(len(one.points) for one in series):
        note += " Mean over " + (
            "all other keys and seeds." if averaged and not in_parallel else "seeds."
        )
    return Chart(f"{title} against {key.split('.')[1]}", key, y_title, series, labels, note.strip())


def charts(rows, keys):
    """All charts that the rows have something for."""
    found = [cost_chart(rows, keys)]
    quality = next(((name, title) for name, title in QUALITY if known(rows, name)), None)
    figures = [
        ("maxvio_expert", "MaxVio of the experts", "max/mean - 1"),
        ("maxvio_device", "MaxVio of the devices", "max/mean - 1"),
        ("maxvio_received", "MaxVio of received rows", "max/mean - 1"),
        ("remote_bytes", "Traffic", "bytes to other devices in a step"),
    ]
    if quality:
        figures.append((quality[0], "Quality", quality[1]))
    if any(row.get("dropped") for row in rows):
        figures.append(("dropped", "Drops", "selections dropped in the last step"))
    for key in keys:
        others = [other for other in keys if other != key]
        found += [key_chart(rows, key, others, *figure) for figure in figures]
    return [chart for chart in found if chart]


def cell(row, name):
    value = row.get(name)
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else str(value)


def table_of(rows, keys):
    shown = [name for name in (*keys, *COLUMNS) if any(row.get(name) is not None for row in rows)]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in shown)
    body = []
    for row in rows:
        cells = "".join(f"<td>{html.escape(cell(row, name))}</td>" for name in shown)
        body.append(f"<tr>{cells}<td class=words>{html.escape(row.get('error') or '')}</td></tr>")
    return f"<div class=scroll><table><tr>{head}<th></th></tr>{''.join(body)}</table></div>"


def build(rows, keys, name):
    ok = [row for row in rows if row["status"] in ("ok", "failed checks")]
    drawn = "".join(svg(chart) for chart in charts(ok, keys))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport"'
        ' content="width=device-width"><title>Sweep of'
        f" {html.escape(name)}</title><style>{STYLE}</style></head><body><h1>Sweep of"
        f" {html.escape(name)}</h1><p>{len(rows)} runs, {len(ok)} with results; varied:"
        f' {html.escape(", ".join(keys) or "the seed")}. All figures are in sweep.csv. MaxVio is'
        " the largest load over the mean load, minus 1. Hover over a point for its"
        " numbers.</p><div"
        f' class="plots">{drawn}</div><h2>Runs</h2>{table_of(rows, keys)}</body></html>\n'
    )


def write(path, rows, keys, name):
    """Whole or not at all; returns the path."""
    table.write_file(path, build(rows, keys, name))
    return path
