"""The formats of scripts/export-traffic. Each is a function (traffic, folder) that writes its files
into the folder and gives back their names.
"""
import os


def _write(folder, name, content):
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return name


def csv(traffic, folder):
    """One line for each pair of devices and phase."""
    lines = ["layer,phase,source,destination,bytes\n"]
    for layer, phase, pairs in traffic.phases:
        lines += [f"{layer},{phase},{s},{d},{size}\n" for s, d, size in pairs]
    return [_write(folder, "traffic.csv", "".join(lines))]


def _by_device(traffic):
    """For each device: a list by phase of (what it sends, what it receives)."""
    devices = [[([], []) for _ in traffic.phases] for _ in range(traffic.devices)]
    for index, (_, _, pairs) in enumerate(traffic.phases):
        for source, destination, size in pairs:
            devices[source][index][0].append((destination, size))
            devices[destination][index][1].append((source, size))
    return devices


def smpi(traffic, folder):
    """Time-independent traces of SimGrid's SMPI: actions of each device in a file, and their list.

    A phase posts what is received, then what is sent, and waits for all of it; the datatype 6 is
    MPI_BYTE, and the tag the number of the phase.
    """
    names = []
    for device, phases in enumerate(_by_device(traffic)):
        lines = [f"{device} init\n"]
        for tag, (sends, receives) in enumerate(phases):
            lines += [f"{device} irecv {peer} {tag} {size} 6\n" for peer, size in receives]
            lines += [f"{device} isend {peer} {tag} {size} 6\n" for peer, size in sends]
            lines += [f"{device} waitall\n"] if sends or receives else []
        lines.append(f"{device} finalize\n")
        names.append(_write(folder, f"device{device}.trace", "".join(lines)))
    return [_write(folder, "traces.txt", "".join(f"{name}\n" for name in names)), *names]


# --- Chakra execution traces: protocol buffers, written by hand ---
#
# schema/protobuf/et_def.proto of MLCommons Chakra. A file is a GlobalMetadata and then Nodes, each
# behind its length.

SEND, RECEIVE = 5, 6  # NodeType


def _varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field, value):
    return _varint(field << 3) + _varint(value)


def _bytes(field, content):
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _attribute(name, field, value):
    return _bytes(10, _bytes(1, name.encode()) + _number(field, value))


def _node(number, name, kind, after, source, destination, size, tag):
    """A message. int32 is field 7 of an attribute, uint64 field 13, bool field 27."""
    packed = b"".join(_varint(other) for other in after)
    return (
        _number(1, number)
        + _bytes(2, name.encode())
        + _number(3, kind)
        + (_bytes(5, packed) if after else b"")
        + _attribute("is_cpu_op", 27, 0)
        + _attribute("comm_size", 13, size)
        + _attribute("comm_src", 7, source)
        + _attribute("comm_dst", 7, destination)
        + _attribute("comm_tag", 7, tag)
    )


def chakra(traffic, folder):
    """Chakra execution traces, one of each device: traffic.N.et. A message depends on all messages
    of the device's phase before.
    """
    names = []
    for device, phases in enumerate(_by_device(traffic)):
        content = bytearray(_delimited(_bytes(1, b"0.0.4")))
        number, before = 1, []
        for tag, (sends, receives) in enumerate(phases):
            layer, phase, _ = traffic.phases[tag]
            mine = []
            for kind, messages in ((RECEIVE, receives), (SEND, sends)):
                for peer, size in messages:
                    ends = (device, peer) if kind == SEND else (peer, device)
                    name = f"{phase} of layer {layer}"
                    content += _delimited(_node(number, name, kind, before, *ends, size, tag))
                    mine.append(number)
                    number += 1
            before = mine or before
        names.append(_write(folder, f"traffic.{device}.et", bytes(content)))
    return names


def _delimited(message):
    return _varint(len(message)) + message


FORMATS = {"csv": csv, "smpi": smpi, "chakra": chakra}
