"""The combinations of a sweep: the runs that differ in nothing but their seed, with mean and spread
of what was measured, and what each differs from the first one in.
"""
import math
import shutil
import statistics
import sys
from dataclasses import dataclass

from run_lib.units import plain, scale_of_bytes
from sweep_lib import spread
from sweep_lib.draw import bytes_text

QUALITY = (
    ("validation_bits_per_byte", "validation loss (bits per byte)"),
    ("validation_loss", "validation loss"),
    ("bits_per_byte", "training loss (bits per byte, last 20 steps)"),
    ("task_loss", "task loss (last 20 steps)"),
)


MOST = 1e100  # whatever is larger, or no number, is damage: its square is no number either


@dataclass(frozen=True)
class Figure:
    """A column of sweep.csv as it is shown: heading of a table, title of an axis."""

    name: str
    heading: str
    title: str
    in_bytes: bool = False


@dataclass
class Combination:
    """`values` of the varied keys, one text each; `rows` one for each seed."""

    label: str
    values: tuple
    rows: list

    def by_seed(self, name):
        """{seed: value} of the runs that have this figure."""
        return {
            row["seed"]: row[name]
            for row in self.rows
            if isinstance(row.get(name), (int, float)) and abs(row[name]) < MOST
        }

    def mean(self, name):
        values = list(self.by_seed(name).values())
        return statistics.fmean(values) if values else None

    def deviation(self, name):
        return spread.deviation(list(self.by_seed(name).values()))


def label_of(row, keys):
    """The variant's name, else the values: alpha_comm 0.02, topk_group 3."""
    return row.get("variant") or ", ".join(f"{key.split('.')[1]} {row[key]}" for key in keys)


def combinations(rows, keys):
    """In the order of the runs; only runs that have results count."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        Combination(label_of(group[0], keys) or "all seeds", values, group)
        for values, group in groups.items()
    ]


def quality_of(rows):
    """(column, title) of the best measure of quality that the runs have; (None, "") of none."""
    found = (
        (name, title)
        for name, title in QUALITY
        if any(isinstance(row.get(name), (int, float)) for row in rows)
    )
    return next(found, (None, ""))


def figures_of(rows):
    """What is compared: quality where the runs train, balance, traffic, predicted time, and drops
    where there are any.
    """
    name, title = quality_of(rows)
    found = [Figure(name, title.split(" (")[0], title)] if name else []
    found += [
        Figure("maxvio_expert", "MaxVio experts", "MaxVio of the experts"),
        Figure("maxvio_device", "MaxVio devices", "MaxVio of the devices"),
        Figure("maxvio_received", "MaxVio received", "MaxVio of received rows"),
        Figure(
            "remote_bytes_per_token",
            "sent a token",
            "bytes sent to other devices, a token",
            True,
        ),
        Figure("predicted_step_us", "predicted us", "predicted step on [cluster], µs"),
    ]
    if any(row.get("dropped") for row in rows):
        found.append(Figure("dropped", "dropped", "selections dropped in the last step"))
    return [
        figure
        for figure in found
        if any(isinstance(row.get(figure.name), (int, float)) for row in rows)
    ]


def decimals(value):
    """Places after the point that show two digits of `value`."""
    return min(8, max(0, 1 - math.floor(math.log10(value)))) if value else 0


def measured_text(figure, combination):
    """ "3.612 ± 0.021"; without ± where one run says nothing of the spread."""
    middle, deviation = combination.mean(figure.name), combination.deviation(figure.name)
    if middle is None:
        return "–"
    if figure.in_bytes:
        size, unit = scale_of_bytes(abs(middle))
        if deviation is None:
            return bytes_text(middle)
        return f"{middle / size:.4g} ± {plain(deviation / size, 2)} {unit}"
    if not deviation:
        return plain(middle, 4) + (" ± 0" if deviation == 0 else "")
    places = decimals(deviation)
    return f"{middle:.{places}f} ± {deviation:.{places}f}"


def signed(figure, value):
    if figure.in_bytes:
        return ("+" if value > 0 else "") + bytes_text(value)
    return ("+" if value > 0 else "") + plain(value, 3) if value else "0"


def difference_of(figure, first, combination):
    return spread.paired(first.by_seed(figure.name), combination.by_seed(figure.name))


NOISE = {True: "~", False: "", None: "?"}  # of the sign after a difference


def difference_text(figure, first, combination):
    """ "-0.0123", with "~" behind it inside the noise and "?" where the noise is not known."""
    found = difference_of(figure, first, combination)
    if found is None:
        return "–"
    mark = NOISE[found.noise] if found.mean else ""
    return f"{signed(figure, found.mean)}{' ' + mark if mark else ''}"


def legend(combos):
    """What the signs in a table of differences mean, as far as they can occur."""
    if all(len(one.rows) < 2 for one in combos):
        return "? one seed a combination tells nothing about the noise: --seeds 3 or more does."
    return (
        "± is the standard deviation between seeds. ~ is inside the noise: the 95 %\ninterval of the"
        " differences, paired by seed, holds 0."
    )


# --- on the terminal ---

MOST_LINES = 24


def blocks(widths, most):
    """Numbers of the columns behind the first that fit beside it, block by block."""
    found, used = [[]], 0
    for column, width in list(enumerate(widths))[1:]:
        if found[-1] and 2 + widths[0] + used + 2 + width > most:
            found.append([])
            used = 0
        found[-1].append(column)
        used += 2 + width
    return found


def aligned(rows):
    """Lines of at most 80 columns, or of what the terminal has: what does not fit stands below, with
    the first column again.
    """
    most = max(60, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for block in blocks(widths, most):
        lines += [""] if lines else []
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in block)]
            lines.append("  " + "  ".join(cells).rstrip())
    return lines


def shortened(text, most=34):
    return text if len(text) <= most else text[: most - 1] + "…"


def table(rows, keys):
    """The lines of the table that ends a sweep, and of the differences under it."""
    combos = combinations(rows, keys)
    figures = [figure for figure in figures_of(rows) if figure.name != "maxvio_received"]
    if not combos or not figures:
        return []
    shown = combos[:MOST_LINES]
    head = ["", "runs", *(figure.heading for figure in figures)]
    lines = aligned(
        [head]
        + [
            [
                shortened(one.label),
                str(len(one.rows)),
                *(measured_text(figure, one) for figure in figures),
            ]
            for one in shown
        ]
    )
    if len(combos) > 1:
        first = combos[0]
        lines += ["", f"Differences to {first.label}"]
        lines += aligned(
            [["", *head[2:]]]
            + [
                [
                    shortened(one.label),
                    *(difference_text(figure, first, one) for figure in figures),
                ]
                for one in shown[1:]
            ]
        )
    if len(combos) > len(shown):
        lines.append(f"  and {len(combos) - len(shown)} more combinations, in sweep.html")
    return ["", *lines, "", legend(combos), ""]
