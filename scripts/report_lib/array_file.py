"""The arrays of a run's folder, .npy files of integers. They are mapped, not read: they may be
large.
"""
import math
import os
import re
import struct

import numpy

from run_lib.safe_files import Unfit, open_regular

LARGEST = 4 << 30  # bytes of a file
MOST_DIMENSIONS = 8
MOST_VALUE = 2**53  # a browser knows larger integers only roughly
MAGIC = b"\x93NUMPY"
HEADER = re.compile(
    rb"\{'descr': '([<>|][a-zA-Z][0-9]{1,4})', 'fortran_order': (False|True), "
    rb"'shape': \(((?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\),? *\} *\n?"
)


def header(file):
    """(type, shape, offset of the numbers) of an open file."""
    begin = file.read(12)
    if begin[:6] != MAGIC or len(begin) < 12:
        raise Unfit("is damaged (it does not begin as a .npy file)")
    first, length = (
        (12, struct.unpack("<I", begin[8:12])[0])
        if begin[6] > 1
        else (10, struct.unpack("<H", begin[8:10])[0])
    )
    if length > 4096:
        raise Unfit(f"is damaged (its header has {length} bytes)")
    file.seek(first)
    found = HEADER.fullmatch(file.read(length))
    if not found:
        raise Unfit("is damaged (its header is not that of an array)")
    if found[2] == b"True":
        raise Unfit("is damaged (its numbers are in Fortran order)")
    shape = tuple(int(size) for size in found[3].replace(b" ", b"").split(b",") if size)
    if len(shape) > MOST_DIMENSIONS:
        raise Unfit(f"is damaged (it has {len(shape)} dimensions)")
    return found[1].decode(), shape, first + length


def _name(kind):
    """The type as NumPy calls it: int64."""
    try:
        return numpy.dtype(kind).name
    except TypeError:
        return kind


def read(path):
    """(type as text, shape, array or None where the numbers are no integers). Raises Unfit."""
    descriptor = open_regular(path)
    with open(descriptor, "rb") as file:
        kind, shape, offset = header(file)
        name = _name(kind)
        there = os.fstat(descriptor).st_size
        if there > LARGEST:
            raise Unfit(f"has more than {LARGEST >> 30} GiB, the most that is read of it")
        if kind[1] not in "iu" or kind[2:] not in "1248":
            return name, shape, None
        wanted = offset + math.prod(shape) * int(kind[2:])
        if wanted != there:
            raise Unfit(f"is damaged ({there} bytes, {wanted} expected for its shape)")
        if 0 in shape:
            return name, shape, None
        return name, shape, numpy.memmap(file, dtype=kind, mode="r", offset=offset, shape=shape)


def are_counts(array):
    """Whether the numbers are counts of which sums can be taken."""
    return array.min() >= 0 and array.max() <= MOST_VALUE and array.sum(dtype=float) < 2**62
