"""Reads a run's folder as far as it goes. What is missing, damaged or wrong becomes a sentence in
`problems`, never an exception; only a folder that is no run's at all, or that a newer moesim wrote,
is refused.
"""
import configparser
import math
import re
from pathlib import Path

import array_file
import explain
import sparse_file
from run_lib import contents
import timeline
from command_line import Refused
from run_lib.fields import OUT, Found, writable
from run_lib.record import at, items, number, numbers, whole
from run_lib.safe_files import MIB, Unfit, is_there, parse, read_text

# The newest major.minor of summary.json that this report knows. A test compares it with
# CMakeLists.txt.
VERSION = (0, 1)
SPARSE = "comm_matrix_sparse.npz"
FILES = ("summary.json", "metrics.jsonl", "config.ini", "comm_matrix.npy", "expert_load.npy")
MOST_BYTES = {"config.ini": MIB, "metrics.jsonl": 256 * MIB}
MOST_BYTES_OF_OTHERS = 64 * MIB
MOST_LINES = 1_000_000  # of metrics.jsonl
MOST_CONFIG_LINES = 5000
MOST_PROBLEMS = 20


class Folder:
    """What could be read of one run. Absent parts: summary None, metrics and problems [], config
    {}, arrays None.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.name = writable(self.path.resolve().name)
        self.problems = []
        if not self.path.is_dir():
            raise Refused(
                f"'{path}' is no folder: give the folder of a run, such as runs/NAME (moesim prints"
                " it at the end)"
            )
        if not any(map(self.has, FILES)):
            raise Refused(
                f"'{path}' is not the folder of a run: none of {', '.join(FILES)} is in it"
            )
        self.summary = self._summary()
        self.config_text = self._text("config.ini") or ""
        self.config = self._config()
        self.metrics = self._metrics()
        self.num_layers, self.num_experts, self.devices = self._shape()
        self._arrays()
        self.explanation = explain.read(self._json("explain.json"), self.problems)
        self.timeline = timeline.read(self._json("timeline.json"), self.problems)
        self.specialization, self.domain_load = self._specialization()
        self._unfinished()
        self._agreement()
        self._shorten()

    # --- files ---

    def has(self, name):
        return is_there(self.path / name)

    def _text(self, name):
        """The text of a file; None where there is none, and a problem unless it is missing."""
        try:
            return read_text(self.path / name, MOST_BYTES.get(name, MOST_BYTES_OF_OTHERS))
        except FileNotFoundError:
            return None
        except Unfit as error:
            self.problems.append(f"{name} {error}: left out.")
            return None

    def _json(self, name, left_out="left out"):
        """The value of a JSON file, not checked yet; None where there is none."""
        text = self._text(name)
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            self.problems.append(f"{name} is damaged ({error}): {left_out}.")
            return None

    def _summary(self):
        read = self._json("summary.json", "the page shows what the other files hold")
        if read is None:
            return None
        found, summary = Found("summary.json"), None
        if isinstance(read, dict):
            summary = contents.SUMMARY(read, found)
            self._refuse_newer(summary)
            self.problems += found.problems()
            if summary.get("layers") and all(isinstance(one, dict) for one in read["layers"]):
                return summary
        self.problems.append(
            "summary.json is not the summary of a run: the page shows what the other files hold."
        )
        return None

    def _refuse_newer(self, summary):
        version = re.match(r"([0-9]+)\.([0-9]+)", summary.get("version") or "")
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
        if self.config_text.count("\n") > MOST_CONFIG_LINES:
            self.problems.append(f"config.ini has more than {MOST_CONFIG_LINES} lines: left out.")
            self.config_text = ""
        # no section is taken for defaults that every other one would repeat
        parser = configparser.ConfigParser(
            interpolation=None,
            inline_comment_prefixes=(";", "#"),
            strict=False,
            default_section="\n",
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
        steps, bad, found = [], [], Found("metrics.jsonl")
        if text is None and not self.has("metrics.jsonl"):
            self.problems.append(
                "metrics.jsonl is missing: nothing is known about the steps before the last."
            )
        lines = (text or "").rstrip("\n").split("\n") if text else []
        if len(lines) > MOST_LINES:
            self.problems.append(f"metrics.jsonl has more than {MOST_LINES} lines: left out.")
            lines = []
        for index, line in enumerate(lines, 1):
            found.path = [f"line {index}"]
            step = step_of(line, found)
            steps.append(step) if step else bad.append(index)
        if bad:
            which = (
                f"line {bad[0]} of metrics.jsonl is"
                if len(bad) == 1
                else f"{len(bad)} lines of metrics.jsonl (the first: {bad[0]}) are"
            )
            self.problems.append(f"{which} damaged and left out.")
        self.problems += found.problems()
        return steps

    def _arrays(self):
        """The traffic and the load; what they say of layers, devices and experts counts now."""
        shape = (self.num_layers, self.devices, self.devices)
        limits = (contents.MOST_LAYERS, contents.MOST_DEVICES, contents.MOST_DEVICES)
        self.matrix = (
            self._sparse_matrix(shape, limits)
            if self.has(SPARSE) and not self.has("comm_matrix.npy")
            else self._array("comm_matrix.npy", shape, limits)
        )
        if self.matrix is not None:
            self.num_layers, self.devices = self.matrix.shape[:2]
        self.load = self._array(
            "expert_load.npy",
            (None, self.num_layers, self.num_experts),
            (contents.MOST_STEPS, contents.MOST_LAYERS, contents.MOST_EXPERTS),
        )
        if self.load is not None:
            self.num_layers, self.num_experts = self.load.shape[1:]
        self.matrices = self._array(
            "comm_matrix_steps.npy",
            (None, self.num_layers, self.devices, self.devices),
            (1024, *limits),
        )
        self.matrix_steps = numbers(at(self.summary, "comm_matrix_steps"))

    def _sparse_matrix(self, wanted, limits):
        """The matrix of so many devices that it is written as a list; None, with a problem said."""
        try:
            matrix = sparse_file.read(self.path / SPARSE)
        except Unfit as error:
            self.problems.append(f"{SPARSE} {error}: left out.")
            return None
        fits = all(
            want in (0, have) and have <= most
            for want, have, most in zip(wanted, matrix.shape, limits)
        )
        if not fits:
            shape_text = " x ".join(map(str, matrix.shape))
            self.problems.append(
                f"{SPARSE} has shape {shape_text}, not that of this run: left out."
            )
            return None
        return matrix

    def _array(self, name, wanted, limits):
        """An array of integers of that shape (None and 0: any length up to its limit); None, with a
        problem said, when it is not. The last two lengths of a matrix are the same.
        """
        try:
            kind, shape, array = array_file.read(self.path / name)
        except FileNotFoundError:
            return None
        except Unfit as error:
            self.problems.append(f"{name} {error}: left out.")
            return None
        fits = len(shape) == len(wanted) and all(
            want in (None, 0, have) and have <= most
            for want, have, most in zip(wanted, shape, limits)
        )
        if fits and name.startswith("comm_matrix"):
            fits = shape[-1] == shape[-2]
        if array is None or not fits:
            wanted_text = " x ".join("any" if not length else str(length) for length in wanted)
            shape_text = " x ".join(map(str, shape))
            self.problems.append(
                f"{name} holds {kind} of shape {shape_text}, not integers of shape {wanted_text}:"
                " left out."
            )
            return None
        if not array_file.are_counts(array):
            self.problems.append(f"{name} holds numbers that are no counts: left out.")
            return None
        return array

    def _specialization(self):
        """(specialization.json, domain_load.npy) of a training that measured it; (None, None) where
        there is none.
        """
        read = self._json("specialization.json")
        if read is None:
            return None, None
        found = Found("specialization.json")
        checked = contents.SPECIALIZATION(read, found)
        if checked is OUT:
            self.problems.append("specialization.json is damaged: left out.")
            return None, None
        self.problems += found.problems()
        domains = checked.get("domains")
        return checked, self._array(
            "domain_load.npy",
            (self.num_layers, len(domains) if domains else None, self.num_experts),
            (contents.MOST_LAYERS, 1 << 16, contents.MOST_EXPERTS),
        )

    # --- what is known ---

    def get(self, section, key, default=None):
        value = self.config.get(section, {}).get(key)
        return default if value is None or value == "" else value

    def _shape(self):
        """(layers, experts, devices); 0 where nobody says."""
        first = self.layers[0] if self.layers else {}
        experts = len(numbers(first.get("counts_per_expert")))
        devices = len(numbers(first.get("counts_per_device")))
        return (
            len(self.layers) or self._moe_layers(),
            experts or self._size("model", "num_experts", contents.MOST_EXPERTS),
            devices or self._size("cluster", "devices", contents.MOST_DEVICES),
        )

    def _moe_layers(self):
        dense = self._size("model", "first_dense_layers", contents.MOST_LAYERS)
        return max(0, self._size("model", "num_layers", contents.MOST_LAYERS) - dense)

    def _size(self, section, key, most):
        """A size of the configuration, 0 where it does not say or is out of range."""
        size = whole(self.get(section, key))
        return size if size <= most else 0

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
                f"This run has not finished: {done}{of} steps are there. "
                "moesim --resume goes on from its last checkpoint, if it has one.",
            )
        if self.summary is not None:
            for name in FILES[1:]:
                if name == "comm_matrix.npy" and self.has(SPARSE):
                    continue
                if not self.has(name) and name != "metrics.jsonl":
                    self.problems.append(f"{name} is missing.")
            if self.matrix_steps and not self.has("comm_matrix_steps.npy"):
                self.problems.append(
                    "comm_matrix_steps.npy is missing: traffic is shown of the last step only."
                )
            if self.get("output", "timeline") is True and not self.has("timeline.json"):
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
            if self.matrix is not None and sent and self._sent(index) != sent:
                name = SPARSE if self._is_sparse() else "comm_matrix.npy"
                self.problems.append(
                    f"{name} and summary.json disagree about the rows sent in layer {index}."
                )
            counts = numbers(layer.get("counts_per_expert"))
            if self.load is not None and counts and self.load[-1, index].tolist() != counts:
                self.problems.append(
                    f"expert_load.npy and summary.json disagree about the load of layer {index}."
                )

    def _is_sparse(self):
        return isinstance(self.matrix, sparse_file.Sparse)

    def _sent(self, layer):
        """Rows by source device, of the matrix."""
        if self._is_sparse():
            return self.matrix.sent(layer).tolist()
        return self.matrix[layer].sum(axis=1).tolist()

    def _agreement_of_matrices(self):
        """Matrices of steps that nobody knows, or of another run, are not shown."""
        if self.matrices is None:
            return
        rows = {line["step"]: number(at(line, "volume.dispatch.rows")) for line in self.metrics}
        array = None if self._is_sparse() else self.matrix
        same = len(self.matrices) == len(self.matrix_steps) and (
            array is None or (self.matrices[-1] == array).all()
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

    def _shorten(self):
        """More problems than a reader wants to know of become a number."""
        more = len(self.problems) - MOST_PROBLEMS
        if more > 1:
            self.problems[MOST_PROBLEMS:] = [f"There are {more} more problems of this kind."]


def step_of(line, found):
    """The figures of one line of metrics.jsonl; None where it is damaged."""
    try:
        read = parse(line)
    except ValueError:
        return None
    if not isinstance(read, dict) or type(read.get("step")) is not int:
        return None
    step = contents.STEP(read, found)
    return step if "step" in step else None


def typed(value):
    """A value of config.ini as number or boolean where it looks like one, and is one."""
    if value in ("yes", "no"):
        return value == "yes"
    for kind in (int, float):
        try:
            number_of_text = kind(value)
            return number_of_text if math.isfinite(number_of_text) else value
        except (ValueError, OverflowError):
            pass
    return value
