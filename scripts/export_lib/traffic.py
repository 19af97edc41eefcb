"""What each device sends to each other device in each phase of a run's last step, in bytes.

A dispatch sends the rows of comm_matrix.npy; a combine sends them back, and so do the two exchanges
of the backward pass. The payload of a row is that of summary.json: payload bytes of the direction
over its rows. Rows that stay on their device are no traffic.
"""
import os

from command_line import Refused
from run_lib import contents, safe_files
from run_lib.fields import Found, Wrong
from run_lib.record import at
from trace_lib import guard, npy

MOST_BYTES = 1 << 30


def _summary(folder):
    path = os.path.join(folder, "summary.json")
    try:
        read = contents.SUMMARY(safe_files.read_json(path, MOST_BYTES), Found("summary.json"))
    except FileNotFoundError:
        raise Refused(f"{folder} has no summary.json: it is no folder of a finished run") from None
    except (safe_files.Unfit, Wrong) as error:
        raise Refused(f"{path} {error}") from None
    if not isinstance(read, dict):
        raise Refused(f"{path} is damaged: it is not that of a run")
    return read


def matrix_of(folder):
    """(layers, devices, all rows in C order)."""
    path = os.path.join(folder, "comm_matrix.npy")
    try:
        shape, rows, _ = npy.loads(safe_files.read_bytes(path, MOST_BYTES), path, ("<i8",))
    except FileNotFoundError:
        raise Refused(f"{folder} has no comm_matrix.npy") from None
    except safe_files.Unfit as error:
        raise Refused(f"{path} {error}") from None
    except guard.Refused as error:
        raise Refused(str(error)) from None
    if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
        raise Refused(f"{path} has the shape {list(shape)}; expected is [layers, D, D]")
    if min(rows) < 0 or max(rows) >= 2**53:
        raise Refused(f"{path} holds numbers that are no counts of rows")
    return shape[0], shape[1], rows


def _row_bytes(summary, layer, phase, rows):
    """Payload of one row of a phase of a layer; None where the run has no such phase."""
    layers = summary.get("layers") or []
    volume = at(layers[layer], f"volume.{phase}") if layer < len(layers) else None
    if not isinstance(volume, dict):
        return None
    there, payload = at(volume, "rows", 0), at(volume, "logical_bytes", 0)
    if there != rows:
        raise Refused(
            f"comm_matrix.npy has {rows} rows in layer {layer} and summary.json {there} in its "
            f"{phase}: they are of different runs, or rows take several hops, which are not "
            "exported yet"
        )
    if there and payload % there:
        raise Refused(f"the {phase} of layer {layer} has {payload} bytes in {there} rows")
    return payload // there if there else 0


class Traffic:
    """`devices`, and `phases`: a list of (layer, phase, [(source, destination, bytes)])."""

    def __init__(self, folder):
        summary = _summary(folder)
        layers, self.devices, rows = matrix_of(folder)
        self.phases = []
        square = self.devices * self.devices
        trains = at(summary, "volume.dispatch_backward") is not None
        for backward in (False, True) if trains else (False,):
            for layer in reversed(range(layers)) if backward else range(layers):
                matrix = rows[layer * square : (layer + 1) * square]
                self._add(summary, layer, matrix, backward)

    def _add(self, summary, layer, matrix, backward):
        """The phases of a layer. The backward pass sends dy along the dispatch, then dx back."""
        names = ("dispatch_backward", "combine_backward") if backward else ("dispatch", "combine")
        for name, returns in zip(names, (False, True)):
            size = _row_bytes(summary, layer, name, sum(matrix))
            if size is None:
                raise Refused(f"summary.json says nothing of the {name} of layer {layer}")
            pairs = [
                (device, home, count * size) if returns else (home, device, count * size)
                for home, device, count in nonzero(matrix, self.devices)
            ]
            self.phases.append((layer, name, sorted(pairs)))

    @property
    def total(self):
        return sum(size for _, _, pairs in self.phases for _, _, size in pairs)

    def count_of_messages(self):
        return sum(len(pairs) for _, _, pairs in self.phases)


def nonzero(matrix, devices):
    """(home, device, rows) of the pairs of different devices that have any."""
    for place, count in enumerate(matrix):
        home, device = divmod(place, devices)
        if count and home != device:
            yield home, device, count
