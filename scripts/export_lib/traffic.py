"""What each device sends to each other device in each phase of a run's last step, in bytes.

A dispatch sends the rows of the device matrix; a combine sends them back, and so do the two exchanges
of the backward pass. The payload of a row is that of summary.json: payload bytes of the direction
over its rows. Rows that stay on their device are no traffic.
"""
import os

from command_line import Refused
from export_lib import matrix
from export_lib.matrix import MOST_BYTES
from run_lib import contents, safe_files
from run_lib.fields import Found, Wrong
from run_lib.record import at


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


def _row_bytes(summary, layer, phase, sent):
    """Payload of one row of a phase of a layer; None where the run has no such phase."""
    layers = summary.get("layers") or []
    volume = at(layers[layer], f"volume.{phase}") if layer < len(layers) else None
    if not isinstance(volume, dict):
        return None
    there, payload = at(volume, "rows"), at(volume, "logical_bytes")
    rows = sent.rows(layer)
    if type(there) is not int or type(payload) is not int:
        raise Refused(f"summary.json has no rows and bytes of the {phase} of layer {layer}")
    if there != rows:
        raise Refused(
            f"{sent.name} has {rows} rows in layer {layer} and summary.json {there} in its "
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
        sent = matrix.read(folder)
        layers, self.devices = len(sent.layers), sent.devices
        self.phases = []
        trains = at(summary, "volume.dispatch_backward") is not None
        for backward in (False, True) if trains else (False,):
            for layer in reversed(range(layers)) if backward else range(layers):
                self._add(summary, layer, sent, backward)

    def _add(self, summary, layer, sent, backward):
        """The phases of a layer. The backward pass sends dy along the dispatch, then dx back."""
        names = ("dispatch_backward", "combine_backward") if backward else ("dispatch", "combine")
        for name, returns in zip(names, (False, True)):
            size = _row_bytes(summary, layer, name, sent)
            if size is None:
                raise Refused(f"summary.json says nothing of the {name} of layer {layer}")
            pairs = [
                (device, home, count * size) if returns else (home, device, count * size)
                for home, device, count in sent.between(layer)
            ]
            self.phases.append((layer, name, sorted(pairs)))

    @property
    def total(self):
        return sum(size for _, _, pairs in self.phases for _, _, size in pairs)

    def count_of_messages(self):
        return sum(len(pairs) for _, _, pairs in self.phases)
