"""Reads a run's folder as far as it goes. What is missing or damaged becomes a sentence in
`problems`, never an exception; only a folder that is no run's at all, or that a newer moesim wrote,
is refused.
"""
import configparser
import json
import re
from pathlib import Path

import numpy

import explain
import timeline

VERSION = (
    0,
    1,
)  # the newest major.minor of summary.json that this report knows; tests/cli/test_report.py compares it with CMakeLists.txt
FILES = ("summary.json", "metrics.jsonl", "config.ini", "comm_matrix.npy", "expert_load.npy")


class Refused(Exception):
    """The user's mistake, as one sentence."""


class Folder:
    """What could be read of one run. Absent parts: summary None, metrics and problems [], config
    {}, arrays None.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.name = self.path.resolve().name
        self.problems = []
        if not self.path.is_dir():
            raise Refused(
                f"'{path}' is no folder: give the folder of a run, such as runs/NAME (moesim prints"
                " it at the end)"
            )
        if not any((self.path / name).is_file() for name in FILES):
            raise Refused(
                f"'{path}' is not the folder of a run: none of {', '.join(FILES)} is in it"
            )
        self.summary = self._summary()
        self.config_text = self._text("config.ini") or ""
        self.config = self._config()
        self.metrics = self._metrics()
        self.num_layers, self.num_experts, self.devices = self._shape()
        self.matrix = self._array("comm_matrix.npy", (self.num_layers, self.devices, self.devices))
        self.load = self._array("expert_load.npy", (None, self.num_layers, self.num_experts))
        self.matrices = self._array(
            "comm_matrix_steps.npy", (None, self.num_layers, self.devices, self.devices)
        )
        self.matrix_steps = numbers(at(self.summary, "comm_matrix_steps"))
        self.explanation = explain.read(self._text("explain.json"), self.problems)
        self.timeline = timeline.read(self._text("timeline.json"), self.problems)
        if self.matrix is not None:
            self.num_layers, self.devices = self.matrix.shape[:2]
        if self.load is not None:
            self.num_layers, self.num_experts = self.load.shape[1:]
        self.specialization, self.domain_load = self._specialization()
        self._unfinished()
        self._agreement()

    # --- files ---

    def _text(self, name):
        try:
            return (self.path / name).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problems.append(f"{name} could not be read: {error.strerror}.")
            return None

    def _summary(self):
        text = self._text("summary.json")
        if text is None:
            return None
        try:
            summary = json.loads(text)
        except (ValueError, RecursionError) as error:
            self.problems.append(
                f"summary.json is damaged ({error}): the page shows what the other files hold."
            )
            return None
        if isinstance(summary, dict):
            self._refuse_newer(summary)
            layers = summary.get("layers")
            if (
                isinstance(layers, list)
                and layers
                and all(isinstance(layer, dict) for layer in layers)
            ):
                return summary
        self.problems.append(
            "summary.json is not the summary of a run: the page shows what the other files hold."
        )
        return None

    def _refuse_newer(self, summary):
        version = re.match(r"(\d+)\.(\d+)", str(summary.get("version")))
        if not version:
            self.problems.append("summary.json does not say which version of moesim wrote it.")
        elif (int(version[1]), int(version[2])) > VERSION:
            raise Refused(
                f"'{self.path}/summary.json' was written by moesim {summary['version']}; this"
                f" report knows versions up to {VERSION[0]}.{VERSION[1]}: use the scripts/report of"
                " that moesim"
            )

    def _config(self):
        """Sections of keys: the summary's, with types, else the text of config.ini."""
        config = items(self.summary, "config")
        if config:
            return {section: keys for section, keys in config.items() if isinstance(keys, dict)}
        parser = configparser.ConfigParser(
            interpolation=None, inline_comment_prefixes=(";", "#"), strict=False
        )
        try:
            parser.read_string(self.config_text)
        except configparser.Error as error:
            self.problems.append(f"config.ini is damaged ({str(error).splitlines()[0]}).")
        return {
            section: {key: typed(value) for key, value in parser[section].items()}
            for section in parser.sections()
        }

    def _metrics(self):
        text = self._text("metrics.jsonl")
        lines = [] if text is None else text.splitlines()
        steps, bad = [], []
        for number, line in enumerate(lines, 1):
            try:
                step = json.loads(line)
                (
                    steps.append(step)
                    if isinstance(step, dict) and isinstance(step.get("step"), int)
                    else bad.append(number)
                )
            except (ValueError, RecursionError):
                bad.append(number)
        if text is None:
            self.problems.append(
                "metrics.jsonl is missing: nothing is known about the steps before the last."
            )
        if bad:
            which = (
                f"line {bad[0]} of metrics.jsonl is"
                if len(bad) == 1
                else f"{len(bad)} lines of metrics.jsonl (the first: {bad[0]}) are"
            )
            self.problems.append(f"{which} damaged and left out.")
        return steps

    def _array(self, name, shape):
        """An int64 array of that shape (None: any length); None, with a problem said, when it is
        not.
        """
        path = self.path / name
        if not path.is_file():
            return None
        try:
            array = numpy.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError) as error:
            self.problems.append(f"{name} is damaged ({str(error).splitlines()[0]}).")
            return None
        fits = array.ndim == len(shape) and all(
            want in (None, 0, have) for want, have in zip(shape, array.shape)
        )
        if array.dtype.kind not in "iu" or not fits or array.size == 0:
            wanted = " x ".join("any" if not n else str(n) for n in shape)
            shape = " x ".join(map(str, array.shape))
            self.problems.append(
                f"{name} holds {array.dtype} of shape {shape}, not integers of shape {wanted}: left"
                " out."
            )
            return None
        return array

    def _specialization(self):
        """(specialization.json, domain_load.npy) of a training that measured it; (None, None) where
        there is none.
        """
        text = self._text("specialization.json")
        if text is None:
            return None, None
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self.problems.append("specialization.json is damaged: left out.")
            return None, None
        domains = found.get("domains")
        return found, self._array(
            "domain_load.npy",
            (
                self.num_layers,
                len(domains) if isinstance(domains, list) else None,
                self.num_experts,
            ),
        )

    # --- what is known ---

    def get(self, section, key, default=None):
        value = self.config.get(section, {}).get(key)
        return default if value is None or value == "" else value

    def _shape(self):
        """(layers, experts, devices); 0 where nobody says."""
        first = self.layers[0] if self.layers else {}
        experts, devices = len(numbers(first.get("counts_per_expert"))), len(
            numbers(first.get("counts_per_device"))
        )
        return (
            len(self.layers) or whole(self.get("model", "num_layers")),
            experts or whole(self.get("model", "num_experts")),
            devices or whole(self.get("cluster", "devices")),
        )

    @property
    def layers(self):
        return self.summary["layers"] if self.summary else []

    @property
    def last(self):
        """The last step's figures: of the summary, else the last line of metrics.jsonl."""
        return self.summary or (self.metrics[-1] if self.metrics else {})

    def _unfinished(self):
        wanted, done = whole(self.get("run", "steps")), len(self.metrics)
        if self.summary is None and not any("summary.json" in problem for problem in self.problems):
            of = f" of {wanted}" if wanted else ""
            self.problems.insert(
                0,
                (
                    f"This run has not finished: {done}{of} steps are there. "
                    "moesim --resume goes on from its last checkpoint, if it has one."
                ),
            )
        if self.summary is not None:
            for name in FILES[1:]:
                if not (self.path / name).is_file() and name != "metrics.jsonl":
                    self.problems.append(f"{name} is missing.")
            if self.matrix_steps and not (self.path / "comm_matrix_steps.npy").is_file():
                self.problems.append(
                    "comm_matrix_steps.npy is missing: traffic is shown of the last step only."
                )
            if (
                self.get("output", "timeline") is True
                and not (self.path / "timeline.json").is_file()
            ):
                self.problems.append("timeline.json is missing.")

    def _agreement(self):
        """Files of two different runs in one folder show up here."""
        if not self.layers:
            return
        if self.metrics and self.metrics[-1].get("volume") != self.summary.get("volume"):
            self.problems.append(
                "summary.json and the last line of metrics.jsonl disagree about the volume: they"
                " may be of different runs."
            )
        self._agreement_of_matrices()
        for index, layer in enumerate(self.layers):
            sent = numbers(layer.get("sent_rows"))
            if self.matrix is not None and sent and self.matrix[index].sum(axis=1).tolist() != sent:
                self.problems.append(
                    "comm_matrix.npy and summary.json disagree about the rows sent in layer"
                    f" {index}."
                )
            counts = numbers(layer.get("counts_per_expert"))
            if self.load is not None and counts and self.load[-1, index].tolist() != counts:
                self.problems.append(
                    f"expert_load.npy and summary.json disagree about the load of layer {index}."
                )

    def _agreement_of_matrices(self):
        """Matrices of steps that nobody knows, or of another run, are not shown."""
        if self.matrices is None:
            return
        rows = {line["step"]: number(at(line, "volume.dispatch.rows")) for line in self.metrics}
        same = len(self.matrices) == len(self.matrix_steps) and (
            self.matrix is None or (self.matrices[-1] == self.matrix).all()
        )
        if not same or any(
            rows.get(step) not in (None, matrix.sum())
            for step, matrix in zip(self.matrix_steps, self.matrices)
        ):
            self.problems.append(
                "comm_matrix_steps.npy does not agree with the other files: traffic is shown of the"
                " last step only."
            )
            self.matrices = None


def typed(value):
    """A value of config.ini as number or boolean where it looks like one."""
    if value in ("yes", "no"):
        return value == "yes"
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def whole(value):
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def number(value):
    """A finite number, else None."""
    good = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and value == value
        and abs(value) != float("inf")
    )
    return value if good else None


def numbers(value):
    """A list of numbers, else an empty list."""
    return (
        value if isinstance(value, list) and all(number(item) is not None for item in value) else []
    )


def items(record, path):
    """The object at a path, as a dictionary; empty where there is none."""
    value = at(record, path)
    return value if isinstance(value, dict) else {}


def objects(record, path):
    """The objects of the list at a path."""
    value = at(record, path)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def amount(record, path):
    """The number at a path, 0 where there is none."""
    return number(at(record, path)) or 0


def at(record, path, default=None):
    """record["a"]["b"] for the path "a.b"; default where any of it is missing or null."""
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return default if record is None else record
