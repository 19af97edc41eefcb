"""The folder that a run of moesim wrote, as arrays and tables."""

import json
import os

import numpy

from ._library import MoesimError


def _read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MoesimError(f"{path} is not complete or not JSON: {error}") from None


def _read_lines(path):
    """The steps of metrics.jsonl. The line that a run is still writing has no end yet."""
    steps = []
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break
            try:
                steps.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise MoesimError(f"{path}:{number} is not JSON: {error}") from None
    return steps


def _flat(value, name=""):
    """The numbers, truths and words inside objects, with dots between the names; no lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else key)
    elif not isinstance(value, list):
        yield name, value


def _table(rows):
    """Columns of equal length; what a row does not have is NaN."""
    flat = [dict(_flat(row)) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    found = {}
    for column in columns:
        values = [row.get(column) for row in flat]
        if all(v is None or isinstance(v, (int, float)) for v in values):
            if any(v is None or isinstance(v, float) for v in values):
                values = [numpy.nan if v is None else float(v) for v in values]
            found[column] = numpy.array(values)
        else:
            found[column] = numpy.array(values, object)
    return found


class Run:
    """A run's files. `summary` is None before the end of a run, `metrics` has a dict of each step,
    `config` every key by section; `arrays` are the .npy files by name, read when they are asked
    for. docs/results.md says what they mean.
    """

    def __init__(self, folder):
        self.folder = os.fspath(folder)
        summary, metrics = (os.path.join(folder, x) for x in ("summary.json", "metrics.jsonl"))
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"{self.folder}: there is no such folder")
        if not os.path.exists(summary) and not os.path.exists(metrics):
            raise FileNotFoundError(
                f"{self.folder} holds no run: neither summary.json nor metrics.jsonl is there"
            )
        self.summary = _read_json(summary) if os.path.exists(summary) else None
        self.metrics = _read_lines(metrics) if os.path.exists(metrics) else []
        self.config = self.summary["config"] if self.summary else None
        self.arrays = Arrays(self.folder)

    def step_table(self):
        """A row for each step: losses, rows, bytes, times."""
        return _table(self.metrics)

    def layer_table(self):
        """A row for each layer of the last step."""
        return _table([{"layer": i, **layer} for i, layer in enumerate(self._layers())])

    def expert_table(self):
        """A row for each expert of each layer of the last step."""
        return self._by("expert", ("counts_per_expert", "kept_per_expert"))

    def device_table(self):
        """A row for each device of each layer of the last step."""
        names = ("counts_per_device", "distinct_tokens_per_device", "sent_rows", "received_rows")
        return self._by("device", names)

    def _layers(self):
        if self.summary is None:
            raise MoesimError(f"{self.folder}: summary.json is not there: the run has not ended")
        return self.summary["layers"]

    def _by(self, what, names):
        layers = self._layers()
        number = [len(layer[names[0]]) for layer in layers]
        return {
            "layer": numpy.repeat(numpy.arange(len(layers)), number),
            what: numpy.concatenate([numpy.arange(n) for n in number]),
            **{name: numpy.concatenate([layer[name] for layer in layers]) for name in names},
        }


class Arrays:
    """The .npy files of a folder by name, mapped read-only, as a dict would hold them."""

    def __init__(self, folder):
        self._folder = folder

    def keys(self):
        return sorted(x[:-4] for x in os.listdir(self._folder) if x.endswith(".npy"))

    def __iter__(self):
        return iter(self.keys())

    def __len__(self):
        return len(self.keys())

    def __contains__(self, name):
        return name in self.keys()

    def __getitem__(self, name):
        path = os.path.join(self._folder, f"{name}.npy")
        if name not in self:
            raise KeyError(f"{path} is not there; there are {', '.join(self) or 'none'}")
        try:
            return numpy.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise MoesimError(f"{path} is no complete array: {error}") from None


def load_run(folder):
    """The run in a folder, finished or not."""
    return Run(folder)
