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
import json
import operator
import os
import re

from trace_lib import npy

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
FUNCTIONS = {
    "abs": abs,
    "len": len,
    "max": max,
    "min": min,
    "sum": sum,
    "mean": lambda numbers: sum(numbers) / len(numbers),
    "over": lambda numbers, limit: sum(max(0, number - limit) for number in numbers),
    "differ": lambda first, second: abs(len(first) - len(second))
    + sum(a != b for a, b in zip(first, second)),
}


class Missing(Exception):
    """A figure that is not there."""


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
        if name.endswith(".npy"):
            return nested(*npy.load(path))
        with open(path, encoding="utf-8") as file:
            return (
                [json.loads(line) for line in file] if name.endswith(".jsonl") else json.load(file)
            )

    def file(self, name):
        if name not in self.files:
            self.files[name] = self.read(name)
        return self.files[name]

    def get(self, name):
        for ending in (".json", ".jsonl", ".npy"):
            if os.path.exists(os.path.join(self.folder, name + ending)):
                return self.file(name + ending)
        summary = self.file("summary.json")
        return item(summary if name in summary else summary["layers"][0], name)


class Each(list):
    """What [*] or [-20:] made: a path behind it goes into each."""


def item(value, key):
    """value.key or value[key]; of a run, what its folder holds."""
    if isinstance(value, Run):
        return value.get(key)
    try:
        found = Each(value[key]) if isinstance(key, slice) else value[key]
    except (KeyError, IndexError, TypeError):
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
        return OPERATORS[type(node.op)](value_of(node.operand, runs))
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](value_of(node.left, runs), value_of(node.right, runs))
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
