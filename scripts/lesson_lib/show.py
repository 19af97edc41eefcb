"""What a lesson shows: its idea, what it expects beside what was measured, and the same for the page
of scripts/report.
"""
import json
import os
import shutil
import sys
import textwrap

from lesson_lib import measure
from run_lib.units import plain

IDEA_LINES = 19  # of the idea that are shown; whole parts of it, and at least the first
NARROW, WIDE = 60, 100  # columns


def width():
    """Columns for running text: what the terminal has; 80 where the text goes into a file."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    return min(max(columns, NARROW), WIDE) - 1


def part_lines(kind, text, columns):
    if kind == "pre":
        return text.split("\n")
    first, other = ("  - ", "    ") if kind == "li" else ("", "")
    return textwrap.wrap(
        text,
        columns,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )


def units(parts):
    """The parts, a formula together with the paragraph that it ends or goes on."""
    found = []
    for part in parts:
        if part[0] == "pre" and found:
            found[-1].append(part)
        else:
            found.append([part])
    return found


def unit_lines(unit):
    lines = []
    for kind, text in unit:
        lines += ([""] if lines else []) + part_lines(kind, text, width())
    return lines


def idea(lesson, path):
    """The first lines of what the lesson is about."""
    lines, left, last = [], units(lesson.idea()), ""
    while left:
        kind, more = left[0][0][0], unit_lines(left[0])
        gap = [""] if lines and not kind == last == "li" else []
        if lines and len(lines) + len(gap) + len(more) > IDEA_LINES:
            lines += ["", f"[it goes on in {path}, and in the report]"]
            break
        lines, last = [*lines, *gap, *more], kind
        left.pop(0)
    return "\n".join(lines)


# --- expected beside measured ---

NOT_RUN = "not run"


def number_text(value):
    return plain(value, 6) if isinstance(value, float) else str(value)


def measured(figure, runs):
    """(text, value or None)."""
    try:
        value = measure.amount(measure.evaluate(figure, runs))
    except (measure.Missing, OSError, ArithmeticError, ValueError) as error:
        return f"missing: {error}", None
    return number_text(value), value


class Table:
    """Expected beside measured; `before` is the folder of the lesson as it stands on its page, where
    this run changed it.
    """

    def __init__(self, lesson, folder, small, before=None):
        runs = {name: measure.Run(os.path.join(folder, name)) for name in lesson.runs()}
        self.head = ["", "expected", *(["the lesson"] if before else []), "measured"]
        self.head[-1] = "now" if before else "measured"
        self.rows, self.good = [], True
        for expectation in lesson.expectations:
            bound = expectation.small if small else expectation.full
            text, value = measured(expectation.figure, runs)
            good = value is not None and measure.holds(value, bound)
            middle = [self.of_lesson(lesson, before, expectation)] if before else []
            self.rows.append(
                [
                    expectation.words,
                    bound.removeprefix("= "),
                    *middle,
                    text,
                    "yes" if good else "NO",
                ]
            )
            self.good &= good

    @staticmethod
    def of_lesson(lesson, before, expectation):
        if not all(os.path.isdir(os.path.join(before, name)) for name in lesson.runs()):
            return NOT_RUN
        runs = {name: measure.Run(os.path.join(before, name)) for name in lesson.runs()}
        return measured(expectation.figure, runs)[0]

    def text(self):
        columns = len(self.head)
        widths = [max(len(row[i]) for row in [self.head, *self.rows]) for i in range(columns)]
        if (
            sys.stdout.isatty()
        ):  # the words take two lines before the last column goes over the edge
            others = sum(widths[1:]) + 2 * columns + len("yes")
            widths[0] = min(widths[0], max(20, shutil.get_terminal_size().columns - 1 - others))
        lines = []
        for row in [self.head, *self.rows]:
            words = textwrap.wrap(row[0], widths[0], break_long_words=False) or [""]
            cells = [f"{words[-1]:{widths[0]}}"]
            cells += [f"{row[i]:>{widths[i]}}" for i in range(1, columns)]
            lines += [*words[:-1], "  ".join(cells + row[columns:]).rstrip()]
        return "\n".join(lines)


# --- for the page ---


def for_report(lesson, table, changed):
    """The lesson as JSON, which scripts/report puts in front of the figures."""
    return json.dumps(
        {
            "number": lesson.number,
            "title": lesson.title,
            "idea": [(kind, textwrap.dedent(text)) for kind, text in lesson.idea()],
            "changed": changed,
            "head": table.head,
            "rows": table.rows,
            "questions": lesson.numbered("QUESTIONS"),
            "answers": lesson.numbered("ANSWERS"),
        }
    )
