"""A recording (data.source = routing or logits) as the advice looks at it: some of its layers and
steps, dealt to groups of devices that work apart from each other.

A step of T tokens on D devices becomes D / E steps of T E / D tokens when E devices share the
experts: one for each group. A recording of one step becomes two, the first and the second half of
each device's tokens, since balancers need a window to decide by and a later one to be judged on.
"""
import os
from dataclasses import dataclass

from command_line import Refused
from run_lib import safe_files
from trace_lib import guard, npy

ITEM = {"f2": 2, "f4": 4, "f8": 8, "i1": 1, "u1": 1, "b1": 1}
ITEM.update({"i2": 2, "u2": 2, "i4": 4, "u4": 4, "i8": 8, "u8": 8})
LONGEST_HEADER = 1 << 17


def evenly(count, most):
    """At most `most` of the numbers 0 to count - 1, spread over all of them."""
    if count <= most:
        return list(range(count))
    return [(2 * i + 1) * count // (2 * most) for i in range(most)]


@dataclass
class Array:
    """A .npy on disk: its type, shape, and where its numbers begin."""

    path: str
    descr: str
    shape: tuple
    begin: int

    @property
    def item(self):
        return ITEM[self.descr[1:]]


def open_array(path):
    """The header of a .npy; Refused where it is none, or is cut off."""
    try:
        descriptor = safe_files.open_regular(path, links=True)
        with open(descriptor, "rb") as file:
            text, begin = npy.split(file.read(LONGEST_HEADER), path)
            descr, shape = npy.parse_header(text, path)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise Refused(f"{path}: there is no such file") from None
    except safe_files.Unfit as error:
        raise Refused(f"{path} {error}") from None
    except guard.Refused as error:
        raise Refused(str(error)) from None
    array = Array(path, descr, shape, begin)
    if descr[1:] not in ITEM or not shape or 0 in shape:
        raise Refused(f"{path} holds {npy.name_of_type(descr)} {list(shape)}: nothing to look at")
    if size - begin != npy.product(shape) * array.item:
        raise Refused(f"{path} is not as long as its shape {list(shape)} says")
    return array


@dataclass
class Recording:
    """`shape` is [steps, layers, tokens, columns]; `layers` and `steps` those that are looked at."""

    array: Array
    shape: tuple
    devices: int
    layers: list
    steps: list
    mask: Array = None

    @property
    def tokens(self):
        """Of a device in a step of the recording."""
        return self.shape[2] // self.devices

    @property
    def halves(self):
        return len(self.steps) == 1

    @property
    def num_steps(self):
        return 2 if self.halves else len(self.steps)

    def spans(self, group):
        """[[(first token, tokens)]] of the replayed steps that one recorded step becomes; the halves
        of a recording with one step are given apart: first all groups of one, then of the other.
        """
        each, tokens = self.devices // group, self.tokens
        first = [[g * group * tokens] for g in range(each)]
        if not self.halves:
            return [[(begin, group * tokens) for begin in begins] for begins in first]
        half = tokens // 2
        return [
            [((g * group + d) * tokens + h * half, half) for d in range(group)]
            for h in range(2)
            for g in range(each)
        ]

    def write(self, folder, group):
        """Settings that replay it on groups of `group` devices; the files go to the folder."""
        spans = self.spans(group)
        tokens = sum(count for _, count in spans[0])
        steps = len(self.steps) * len(spans)
        shape = (steps, len(self.layers), tokens, self.shape[3])
        path = os.path.join(folder, "recording.npy")
        rows = [(step * self.shape[1] + layer) for step in self.steps for layer in self.layers]
        per_step = len(self.layers)
        with open(path, "wb") as file:
            file.write(npy.header(self.array.descr, shape))
            for place in range(len(self.steps)):
                for span in spans:
                    for row in rows[place * per_step : (place + 1) * per_step]:
                        _copy(self.array, row * self.shape[2], span, self.shape[3], file)
        settings = {"data.path": path, "run.steps": str(steps)}
        if self.mask:
            settings["data.mask"] = self._write_mask(folder, spans, steps, tokens)
        return settings

    def _write_mask(self, folder, spans, steps, tokens):
        path = os.path.join(folder, "mask.npy")
        with open(path, "wb") as file:
            file.write(npy.header(self.mask.descr, (steps, tokens)))
            for step in self.steps:
                row = step * self.shape[2] if len(self.mask.shape) == 2 else 0
                for span in spans:
                    _copy(self.mask, row, span, 1, file)
        return path


def _copy(array, first_row, span, columns, out):
    """Rows of an array, from memory to a file."""
    size = columns * array.item
    with open(array.path, "rb") as file:
        for begin, count in span:
            file.seek(array.begin + (first_row + begin) * size)
            out.write(file.read(count * size))


def of_config(config, devices, choices, most_steps):
    """The recording that a resolved configuration names. At most `choices` (token, expert) are
    looked at in all, in two layers at least.
    """
    array = open_array(config["data.path"])
    if len(array.shape) not in (2, 3, 4):
        raise Refused(f"{array.path} has the shape {list(array.shape)}; expected is [.., T, K]")
    shape = (1,) * (4 - len(array.shape)) + tuple(array.shape)
    per_layer = shape[2] * int(config["router.top_k"] if _logits(config) else shape[3])
    steps = evenly(min(shape[0], int(config["run.steps"])), most_steps)
    layers = evenly(shape[1], max(2, choices // (per_layer * len(steps))))
    mask = open_array(config["data.mask"]) if config["data.mask"] else None
    found = Recording(array, shape, devices, layers, steps, mask)
    if found.tokens < (2 if found.halves else 1):
        raise Refused(
            f"{array.path} has {shape[2]} tokens in a step, too few for {devices} devices"
            + (" and two windows" if found.halves else "")
        )
    return found


def _logits(config):
    return config["data.source"] == "logits"


def write_rows(path, layers, folder, name):
    """Those rows of a .npy [layers, ...] of all layers, as a file of its own; the path itself where
    it has no layers.
    """
    array = open_array(path)
    if len(array.shape) < 2:
        return path
    columns = npy.product(array.shape[1:])
    out = os.path.join(folder, name)
    with open(out, "wb") as file:
        file.write(npy.header(array.descr, (len(layers), *array.shape[1:])))
        for layer in layers:
            _copy(array, layer, [(0, 1)], columns, file)
    return out
