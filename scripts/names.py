"""The names that moesim and its scripts share, read from the lists that the C sources include.

The lists (src/*/*.def) name the balance losses, levels, directions, phases, spans, loads, metrics of
balance, and the files of a run. Nothing is repeated here: tests/output/cli_names.py compares what
this module says with what the program writes.
"""

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
LISTS = ("balance/losses.def", "measure/names.def", "output/files.def")
ROW = re.compile(r"^([A-Z_]+)\((.*)\)$", re.M)
FIELD = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^",\s]+))\s*(?:,|$)')


def list_path(name):
    """An installed list stands beside the scripts, the repository's stands in its folder of src/."""
    installed = HERE / Path(name).name
    return installed if installed.is_file() else HERE.parent / "src" / name


def rows_of(text):
    """[(macro, [fields])] of a .def file, in its order."""
    return [
        (macro, [quoted or word for quoted, word in FIELD.findall(fields)])
        for macro, fields in ROW.findall(text)
    ]


ROWS = [row for name in LISTS for row in rows_of(list_path(name).read_text(encoding="utf-8"))]


def columns(macro, key, value=None):
    """The column `key` of the rows of one macro: a tuple, or with `value` a dictionary in the same order."""
    rows = [fields for name, fields in ROWS if name == macro]
    return (
        tuple(fields[key] for fields in rows)
        if value is None
        else {fields[key]: fields[value] for fields in rows}
    )


LOSSES = columns("LOSS", 1, 2)  # key in JSON: title, such as "comm": "communication"
LEVELS = columns("LEVEL", 1, 2)  # "same_device": "stays on its device"
DIRECTIONS = columns("DIRECTION", 1, 2)  # "dispatch_backward": "dispatch of dy"
PHASES = columns("PHASE", 1)  # "gate", "route", ...; the last one, "backward", in training only
SPANS = PHASES + columns("SPAN", 1)  # all names in timeline.json
LOADS = columns("LOAD", 1, 2)  # "received": "rows received by device"
IMBALANCE = columns("IMBALANCE", 0, 1)  # "maxvio": "max / mean - 1"
ARRAYS = columns("RESULT_ARRAY", 1)  # without .npy
FILES = tuple(
    fields[1] if macro == "RESULT_TEXT" else f"{fields[1]}.npy"
    for macro, fields in ROWS
    if macro.startswith("RESULT_")
)
ALWAYS = tuple(
    fields[1] if macro == "RESULT_TEXT" else f"{fields[1]}.npy"
    for macro, fields in ROWS
    if macro.startswith("RESULT_") and fields[2] == "ALWAYS"
)  # files that every finished run has
