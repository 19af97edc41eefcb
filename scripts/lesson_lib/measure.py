"""Figures of a lesson's runs, and whether they are as expected.

A figure is an expression: run.path, numbers, + - * /, and abs, len, max, mean, min, sum, over (what
exceeds a limit, summed over a list), and differ (entries of two lists that are not the same).
`limited.layers[0].loss_raw.comm` is that value of summary.json in the folder of the run `limited`,
and `layers[0].` may be left out. Where the folder has a file of the first name (metrics.jsonl,
explain.json, topk_idx.npy, ...), it is the file: `limited.topk_idx[0][5]`. `[*]` and `[-20:]` go
through a list: `sum(limited.layers[*].dropped)`.

A bound is = X, > X, < X, X +- D or X to Y; its numbers may be expressions without a run, such as
4/3.
"""
import ast
import operator
import os
import re

from run_lib import safe_files
from run_lib.fields import LARGEST, short
from trace_lib import npy
from trace_lib.trace import Refused

MOST_BYTES = 64 * safe_files.MIB  # of a file that is read

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


class Missing(Exception):
    """A figure that is not there."""


def amount(value):
    """The value, which has to be a number that one can calculate with."""
    if isinstance(value, (int, float)) and -LARGEST <= value <= LARGEST:
        return value
    raise Missing(f"{short(value)} is no number")


def amounts(values):
    """The same of a list."""
    if not isinstance(values, list):
        raise Missing(f"{short(values)} is no list")
    return [amount(value) for value in values]


def mean(values):
    return sum(amounts(values)) / len(values)


def over(values, limit):
    """What exceeds the limit, summed over a list."""
    return sum(max(0, value - amount(limit)) for value in amounts(values))


def differ(first, second):
    """Entries of two lists that are not the same."""
    if not isinstance(first, list) or not isinstance(second, list):
        raise Missing("lists to compare are no lists")
    return abs(len(first) - len(second)) + sum(a != b for a, b in zip(first, second))


def length(values):
    if not isinstance(values, (list, dict, str)):
        raise Missing(f"{short(values)} is no list")
    return len(values)


FUNCTIONS = {
    "abs": lambda value: abs(amount(value)),
    "len": length,
    "max": lambda *values: max(amounts(values[0]) if len(values) == 1 else amounts([*values])),
    "min": lambda *values: min(amounts(values[0]) if len(values) == 1 else amounts([*values])),
    "sum": lambda values: sum(amounts(values)),
    "mean": mean,
    "over": over,
    "differ": differ,
}


def nested(shape, numbers):
    """A flat sequence as lists in lists."""
    if len(shape) < 2:
        return list(numbers)
    size = len(numbers) // shape[0] if shape[0] else 0
    return [nested(shape[1:], numbers[i * size : (i + 1) * size]) for i in range(shape[0])]


class Run:
    """A run's folder; files are read when something asks for them."""

    def __init__(self, folder):
        self.folder, self.files = folder, {}

    def read(self, name):
        path = os.path.join(self.folder, name)
        try:
            if name.endswith(".npy"):
                return array_of(safe_files.read_bytes(path, MOST_BYTES), name)
            text = safe_files.read_text(path, MOST_BYTES)
            if name.endswith(".jsonl"):
                return [safe_files.parse(line) for line in text.splitlines()]
            return safe_files.parse(text)
        except FileNotFoundError:
            raise Missing(f"{name} is not there") from None
        except (safe_files.Unfit, ValueError) as error:
            raise Missing(f"{name} cannot be used: {error}") from None

    def file(self, name):
        if name not in self.files:
            self.files[name] = self.read(name)
        return self.files[name]

    def get(self, name):
        for ending in (".json", ".jsonl", ".npy"):
            if safe_files.is_there(os.path.join(self.folder, name + ending)):
                return self.file(name + ending)
        summary = self.file("summary.json")
        if isinstance(summary, dict) and name in summary:
            return item(summary, name)
        return item(item(item(summary, "layers"), 0), name)


def array_of(content, name):
    """A .npy as lists in lists."""
    try:
        shape, numbers = npy.loads(content, name)
    except Refused as error:
        raise Missing(str(error)) from None
    if len(shape) > 8 or 0 in shape:
        raise Missing(f"{name} has the shape {list(shape[:8])}, of which nothing can be measured")
    return nested(shape, numbers)


class Each(list):
    """What [*] or [-20:] made: a path behind it goes into each."""


def item(value, key):
    """value.key or value[key]; of a run, what its folder holds."""
    if isinstance(value, Run):
        return value.get(key)
    try:
        found = Each(value[key]) if isinstance(key, slice) else value[key]
    except (KeyError, IndexError, TypeError, ValueError):
        found = None
    if found is None:
        raise Missing(f"{key} is not there")
    return found


def step(value, key):
    return Each(item(one, key) for one in value) if isinstance(value, Each) else item(value, key)


def evaluate(text, runs):
    """Value of an expression. A name behind a dot may be any word of a file, also one that means
    something in Python (global).
    """
    return value_of(
        ast.parse(
            re.sub(r"\.([A-Za-z_]\w*)", r"['\1']", text.strip()).replace("[*]", "[...]"),
            mode="eval",
        ).body,
        runs,
    )


def value_of(node, runs):
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return item(runs, node.id)
    if isinstance(node, ast.Subscript):
        value, key = value_of(node.value, runs), value_of(node.slice, runs)
        return Each(value) if key is ... else step(value, key)
    if isinstance(node, ast.Slice):
        return slice(*(part and value_of(part, runs) for part in (node.lower, node.upper)))
    if isinstance(node, ast.UnaryOp):
        return OPERATORS[type(node.op)](amount(value_of(node.operand, runs)))
    if isinstance(node, ast.BinOp):
        left, right = value_of(node.left, runs), value_of(node.right, runs)
        return OPERATORS[type(node.op)](amount(left), amount(right))
    if isinstance(node, ast.Call):
        return FUNCTIONS[node.func.id](*(value_of(argument, runs) for argument in node.args))
    raise SyntaxError(f"{ast.unparse(node)} is no part of a figure")


def holds(value, bound):
    """Whether a measured figure keeps its bound."""
    near = re.fullmatch(r"(.+?)\s*\+-\s*(.+)", bound)
    if near:
        return abs(value - evaluate(near[1], {})) <= evaluate(near[2], {})
    between = re.fullmatch(r"(.+?) to (.+)", bound)
    if between:
        return evaluate(between[1], {}) <= value <= evaluate(between[2], {})
    limit = evaluate(bound[1:], {})
    return {"=": operator.eq, ">": operator.gt, "<": operator.lt}[bound[0]](value, limit)
