"""Reads checkpoints (docs/checkpoints.md): every byte is verified before anything of it is used.

    PYTHONPATH=scripts python3
    >>> from run_lib.checkpoint import read_checkpoint
    >>> state = read_checkpoint("runs/x/checkpoints/step-00000100.moe")
    >>> state.step, state.tensors["layer0.gate"].shape
    >>> numpy.frombuffer(state.tensors["layer0.gate"].data, "<f4").reshape(...)
"""
import array
import json
import os
import struct

from run_lib.safe_files import Unfit, read_bytes

MAGIC, VERSION, PREAMBLE = b"MOESIMCK", 1, 40
SLICE = 1 << 20  # bytes of a block of what is not of experts
LARGEST = 64 << 30  # bytes of a file
PARTS = {"value": "", "m": ".m", "v": ".v", "blob": ""}
MASK = 2**64 - 1
P1, P2, P3, P4, P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


class Tensor:
    """Numbers in C order: `kind` is f4, f8 or, of state that is bytes, u1."""

    def __init__(self, kind, shape, data):
        self.kind, self.shape, self.data = kind, shape, data

    def numbers(self):
        return array.array({"f4": "f", "f8": "d", "u1": "B"}[self.kind], bytes(self.data))


class Checkpoint:
    """`tensors` by name: those of the parameters as --export-parameters calls them; `state` what is
    kept as bytes beside them. `config` is the text of the resolved configuration.
    """

    def __init__(self, step, program, name, config):
        self.step, self.program, self.name, self.config = step, program, name, config
        self.tensors, self.state = {}, {}


# --- XXH64 with seed 0 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md) ---


def _rotated(x, bits):
    return (x << bits | x >> (64 - bits)) & MASK


def _mixed(acc, word):
    return _rotated((acc + word * P2) & MASK, 31) * P1 & MASK


def _stripes(data):
    """The state after all whole stripes of 32 bytes, and where they end."""
    a, b, c, d = (P1 + P2) & MASK, P2, 0, -P1 & MASK
    end = len(data) // 32 * 32
    for at in struct.iter_unpack("<4Q", data[:end]):
        a, b, c, d = _mixed(a, at[0]), _mixed(b, at[1]), _mixed(c, at[2]), _mixed(d, at[3])
    return (a, b, c, d), end


def xxh64(data):
    """A second for some MiB; where the module xxhash is installed, it is used instead."""
    h, at, length = P5, 0, len(data)
    if length >= 32:
        state, at = _stripes(data)
        h = sum(_rotated(a, bits) for a, bits in zip(state, (1, 7, 12, 18))) & MASK
        for a in state:
            h = ((h ^ _mixed(0, a)) * P1 + P4) & MASK
    h = (h + length) & MASK
    while at + 8 <= length:
        word = _mixed(0, struct.unpack_from("<Q", data, at)[0])
        h = (_rotated(h ^ word, 27) * P1 + P4) & MASK
        at += 8
    if at + 4 <= length:
        h ^= struct.unpack_from("<I", data, at)[0] * P1 & MASK
        h = (_rotated(h, 23) * P2 + P3) & MASK
        at += 4
    for byte in data[at:]:
        h = _rotated(h ^ byte * P5 & MASK, 11) * P1 & MASK
    h = (h ^ h >> 33) * P2 & MASK
    h = (h ^ h >> 29) * P3 & MASK
    return h ^ h >> 32


try:
    from xxhash import xxh64_intdigest as checksum
except ImportError:
    checksum = xxh64


# --- the file ---


def _damaged(why):
    return Unfit(f"is damaged: {why}")


def _header(content):
    """(table, name, configuration, where the data begin)."""
    if len(content) < PREAMBLE or content[:8] != MAGIC:
        raise Unfit("is not a checkpoint (it does not begin like one)")
    found, version, length, texts = struct.unpack_from("<4Q", content, 8)
    if version != VERSION:
        raise Unfit(f"has version {version} of the format, {VERSION} is read")
    if length != len(content):
        raise _damaged(f"it has {len(content)} bytes instead of {length}")
    end = PREAMBLE + texts
    if end > length or checksum(content[16:end]) != found:
        raise _damaged("the checksum of its header differs")
    words = bytes(content[PREAMBLE:end]).split(b"\0")
    if len(words) != 4 or words[3]:
        raise _damaged("its header cannot be understood")
    try:
        return json.loads(words[0]), words[1].decode(), words[2].decode(), end
    except (ValueError, RecursionError):
        raise _damaged("its header cannot be understood") from None


def _is_count(value):
    return type(value) is int and 0 <= value < 2**62


def _shape(section):
    """Experts, rows and columns, as far as the section has them."""
    expert, count, size = section["expert"], section["count"], section["size"]
    columns = section.get("columns", 0)
    fits = type(expert) is bool and all(map(_is_count, (count, size, columns)))
    if not fits or (columns and size % columns):
        raise _damaged("its header cannot be understood")
    shape = [count] if expert else []
    return (*shape, size // columns, columns) if columns else (*shape, size)


def _data(section, content, at, unit):
    """The bytes of a section that begins at `at`, after its checksums were compared."""
    count, size, sums = section["count"], section["size"], section["checksums"]
    length = count * size * unit
    if at + length > len(content):
        raise _damaged("a section of it ends behind the file")
    block = size * unit if section["expert"] else SLICE
    blocks = count if section["expert"] else -(-length // SLICE)
    if not isinstance(sums, list) or len(sums) != blocks:
        raise _damaged("its header cannot be understood")
    for i in range(blocks):
        found = checksum(content[at + i * block : min(at + (i + 1) * block, at + length)])
        if f"{found:016x}" != sums[i]:
            raise _damaged(f"the checksum of block {i} of {section['name']} differs")
    return content[at : at + length]


def _tensor(section, content, data, real):
    blob = section["part"] == "blob"
    shape = _shape(section)
    at = data + section["offset"] if _is_count(section["offset"]) else len(content) + 1
    part = _data(section, content, at, 1 if blob else real)
    if blob and section["name"].endswith(".bias") and len(part) % 8 == 0:
        return Tensor("f8", (len(part) // 8,), part)
    return Tensor("u1" if blob else f"f{real}", shape, part)


def read_checkpoint(path):
    """The Checkpoint in a file. Raises Unfit, whose text goes on behind the file's name, and
    FileNotFoundError.
    """
    most = min(LARGEST, os.path.getsize(path))  # for as much as is read, memory is taken
    content = memoryview(read_bytes(path, most, links=True))
    table, name, config, data = _header(content)
    try:
        real, sections = table["real"], table["sections"]
        found = Checkpoint(table["step"], table["program"], name, config)
        if real not in (4, 8) or not _is_count(found.step):
            raise _damaged("its header cannot be understood")
        for section in sections:
            tensor = _tensor(section, content, data, real)
            kept = found.state if tensor.kind == "u1" else found.tensors
            full = section["name"] + PARTS[section["part"]]
            if full in kept:
                raise _damaged(f"it holds {section['name']} twice")
            kept[full] = tensor
        whole = sum(len(t.data) for t in (*found.tensors.values(), *found.state.values()))
    except (KeyError, TypeError, AttributeError):
        raise _damaged("its header cannot be understood") from None
    if data + whole != len(content):
        raise _damaged("its sections are not as long as the file")
    return found
