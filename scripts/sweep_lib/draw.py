"""Small charts as SVG text: points and lines over a linear or an ordinal x axis. Colours are safe
for the colour-blind (Okabe and Ito) and every series has a marker of its own; the text takes the
page's colour, so that light and dark both work. Hovering shows the numbers.
"""
import html
import math
from dataclasses import dataclass, field

from run_lib.units import scale_of_bytes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")
MARKERS = ("circle", "square", "triangle", "diamond")
WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 84, 26, 34, 52
LETTER = 6  # width of one in a label, about


@dataclass
class Point:
    """Where a point stands and what hovering says; `mark` rings it, `spread` is half the length of
    its error bar, `label` stands beside it.
    """

    x: float
    y: float
    text: str = ""
    mark: bool = False
    spread: float = 0.0
    label: str = ""


@dataclass
class Series:
    """Points of one name, joined where `line` says so."""

    name: str
    points: list
    line: bool = True


@dataclass
class Chart:
    """Title, axes with their units, series; `labels` makes x ordinal: position i has the text
    labels[i]. `path` is joined by a dashed line; `bytes_of` names the axes that count bytes.
    """

    title: str
    x_title: str
    y_title: str
    series: list
    labels: list = field(default_factory=list)
    note: str = ""
    path: list = field(default_factory=list)
    bytes_of: str = ""


def bytes_text(value):
    size, unit = scale_of_bytes(abs(value))
    return f"{value / size:.4g} {unit}"


def short(value):
    """Four digits, thousands as k, M, G."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / {'G': 1e9, 'M': 1e6, 'k': 1e3}[letter]:.4g}{letter}"
    return f"{value:.4g}"


def ticks(low, high, about=5):
    """Round numbers from low to high."""
    step = (high - low) / about
    power = 10 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def limits(values):
    """A range with some room around it; from 0 where that costs little."""
    values = [0 if abs(value) < 1e-200 else value for value in values]
    low, high = min(values), max(values)
    if 0 < low < 0.4 * high:
        low = 0
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1
    return (low - room if low else 0 if high > 0 else -room), high + room


def marker(shape, x, y, size, colour):
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{colour}"/>'
    turned = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": [(0, -1.2), (1.1, 0.9), (-1.1, 0.9)],
        "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    }[shape]
    points = " ".join(f"{x + dx * size:.1f},{y + dy * size:.1f}" for dx, dy in turned)
    return f'<polygon points="{points}" fill="{colour}"/>'


class Canvas:
    """From data to pixels, and the parts of the drawing so far."""

    def __init__(self, chart):
        points = [point for series in chart.series for point in series.points]
        self.chart, self.parts, self.labelled = chart, [], []
        self.x_range = (
            (-0.5, len(chart.labels) - 0.5)
            if chart.labels
            else limits([point.x for point in points])
        )
        ends = [point.y + side * point.spread for point in points for side in (-1, 1)]
        self.y_range = limits(ends)

    def x(self, value):
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def text(self, x, y, words, anchor="middle", kind="", more=""):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
            f' class="{kind}"{more}>{html.escape(words)}</text>'
        )

    def ticks(self, axis, ends):
        """[(value, text)]: round numbers in the axis' unit."""
        if axis not in self.chart.bytes_of:
            return [(value, short(value)) for value in ticks(*ends)]
        size, unit = scale_of_bytes(max(map(abs, ends)))
        return [
            (value * size, f"{value:.4g} {unit}") for value in ticks(ends[0] / size, ends[1] / size)
        ]

    def line(self, points, colour, dash=""):
        if len(points) > 1:
            corners = " ".join(f"{self.x(point.x):.1f},{self.y(point.y):.1f}" for point in points)
            self.parts.append(
                f'<polyline points="{corners}" fill="none" stroke="{colour}"'
                f' stroke-width="1.6"{dash}/>'
            )

    def error_bar(self, point, colour):
        if not point.spread:
            return
        x, high, low = (
            self.x(point.x),
            self.y(point.y + point.spread),
            self.y(point.y - point.spread),
        )
        self.parts.append(
            f'<path d="M{x - 4:.1f},{high:.1f}h8m-4,0V{low:.1f}m-4,0h8" fill="none"'
            f' stroke="{colour}" class="error"/>'
        )

    def axes(self):
        bottom = HEIGHT - BOTTOM
        for value, words in self.ticks("y", self.y_range):
            self.parts.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(value):.1f}"'
                f' y2="{self.y(value):.1f}" class="grid"/>'
            )
            self.text(LEFT - 6, self.y(value) + 4, words, "end")
        labels = list(enumerate(self.chart.labels)) or self.ticks("x", self.x_range)
        every = math.ceil(len(labels) / 12)
        for value, words in labels[::every]:
            self.text(self.x(value), bottom + 17, words[:14])
        self.parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" class="axis"/>'
        )
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, self.chart.x_title)
        middle = (TOP + bottom) / 2
        self.text(14, middle, self.chart.y_title, more=f' transform="rotate(-90 14 {middle:.1f})"')
        self.text(LEFT, 18, self.chart.title, "start", "title")

    def label(self, x, y, text):
        """A text beside a point: above it, else below, else nowhere, as long as others are in the
        way; hovering tells it all the same.
        """
        side, width = "end" if x > 0.75 * WIDTH else "start", LETTER * len(text)
        left = x - 9 - width if side == "end" else x + 9
        for line in (y - 6, y + 14, y - 19, y + 27):
            free = all(
                left + width < other or other + wide < left or abs(line - at) >= 11
                for other, wide, at in self.labelled
            )
            if free:
                self.labelled.append((left, width, line))
                self.text(x + (-9 if side == "end" else 9), line, text, side, "label")
                return

    def draw(self, number, series):
        colour, shape = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        if series.line:
            self.line(series.points, colour)
        for point in series.points:
            x, y = self.x(point.x), self.y(point.y)
            self.error_bar(point, colour)
            if point.label:
                self.label(x, y, point.label)
            ring = (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="8" fill="none" stroke="{colour}"'
                ' stroke-width="1.6" class="front"/>'
                if point.mark
                else ""
            )
            self.parts.append(
                f"<g>{ring}{marker(shape, x, y, 4, colour)}"
                f"<title>{html.escape(point.text)}</title></g>"
            )


def svg(chart):
    """The chart with its legend underneath, as HTML."""
    canvas = Canvas(chart)
    canvas.axes()
    canvas.line(chart.path, "currentColor", ' stroke-dasharray="4 3"')
    for number, series in enumerate(chart.series):
        canvas.draw(number, series)
    keys = ""
    if len(chart.series) > 1:
        for number, series in enumerate(chart.series):
            shape, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
            keys += (
                '<span><svg width="14" height="12" aria-hidden="true">'
                f"{marker(shape, 6, 6, 4, colour)}</svg>{html.escape(series.name)}</span>"
            )
    note = f"<p>{html.escape(chart.note)}</p>" if chart.note else ""
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{html.escape(chart.title)}">{"".join(canvas.parts)}</svg>'
        f"<figcaption>{keys}{note}</figcaption></figure>"
    )
