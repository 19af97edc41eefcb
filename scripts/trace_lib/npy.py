"""The .npy format without NumPy, as much of it as traces need: C order, little-endian."""

import array
import re
import struct

from trace_lib.guard import Refused, shown

TYPES = {
    "<f4": "f",
    "<f8": "d",
    "|i1": "b",
    "|u1": "B",
    "|b1": "B",
    "<i2": "h",
    "<u2": "H",
    "<i4": "i",
    "<u4": "I",
    "<i8": "q",
    "<u8": "Q",
}
INTEGERS = ("|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8")
NAMES = {
    "|i1": "int8",
    "|u1": "uint8",
    "|b1": "bool",
    "<f2": "float16",
    "f": "float",
    "i": "int",
    "u": "uint",
}
MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 1 << 16
MOST_DIMENSIONS = 8

# The header is a Python literal; only the form that NumPy writes is read, and nothing is evaluated.
ENTRY = re.compile(
    r"\s*'(?:(descr)'\s*:\s*'([^'\\]{1,64})'|(fortran_order)'\s*:\s*(True|False)"
    r"|(shape)'\s*:\s*\(([0-9, ]*)\))\s*"
)
LENGTH = re.compile(r"0|[1-9][0-9]{0,18}")


def header(dtype, shape):
    """The bytes before the numbers."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": tuple(shape)})
    text += " " * (-(len(text) + len(MAGIC) + 5) % 64) + "\n"
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def product(shape):
    """How many numbers an array of a shape has."""
    count = 1
    for size in shape:
        count *= size
    return count


def save(path, dtype, shape, parts):
    """Writes the arrays of `parts`, one behind the other, as one array of that shape."""
    count = 0
    with open(path, "wb") as file:
        file.write(header(dtype, shape))
        for part in parts:
            file.write(array.array(TYPES[dtype], part).tobytes())
            count += len(part)
    assert count == product(shape), "the parts do not fill the shape"


def name_of_type(descr):
    """<i4 as a reader knows it: int32."""
    if descr in NAMES:
        return NAMES[descr]
    if re.fullmatch(r"[<>][fiu][1248]", descr):
        return (
            NAMES[descr[1]] + str(8 * int(descr[2])) + (", big-endian" if descr[0] == ">" else "")
        )
    return shown(descr, 40)


def parse_shape(text, where):
    """(2, 3) or (2,) or (); lengths are written without a leading 0."""
    parts = [part.strip(" ") for part in text.split(",")]
    if len(parts) > 1 and parts[-1] == "":
        parts.pop()
    if parts == [""]:
        return ()
    if len(parts) > MOST_DIMENSIONS or not all(LENGTH.fullmatch(part) for part in parts):
        raise Refused(
            f"{where} has the shape ({shown(text, 60)}) in its header; expected are up to"
            f" {MOST_DIMENSIONS} whole numbers without a leading 0"
        )
    return tuple(int(part) for part in parts)


def parse_header(text, where):
    """(descr, shape) of a header in C order."""
    found, text = {}, text.strip(" \n")
    inner, place = text[1:-1], 0
    if text[:1] == "{" and text[-1:] == "}":
        while place < len(inner):
            entry = ENTRY.match(inner, place)
            if not entry or inner[entry.end() : entry.end() + 1] not in ("", ","):
                break
            name, value = [group for group in entry.groups() if group is not None]
            if name in found:
                break
            found[name] = value
            place = entry.end() + 1
            if not inner[place:].strip(" "):
                place = len(inner)
    if place < len(inner) or len(found) != 3 or text[-1:] != "}":
        raise Refused(
            f"{where} has a header that is not read: {shown(text, 120)}; expected are descr,"
            " fortran_order and shape as numpy.save writes them"
        )
    if found["fortran_order"] == "True":
        raise Refused(f"{where} is in Fortran order; expected is C order (numpy.ascontiguousarray)")
    return found["descr"], parse_shape(found["shape"], where)


def split(content, where):
    """(header's text, place of the numbers) of a file's bytes."""
    if not content.startswith(MAGIC):
        raise Refused(f"{where} is no .npy: it does not begin with \\x93NUMPY")
    if content[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise Refused(
            f"{where} is of a version of .npy that is not read; read are 1.0, 2.0 and 3.0"
        )
    begin = 10 if content[6] == 1 else 12
    size = int.from_bytes(content[8:begin], "little")
    if size > LONGEST_HEADER or begin + size > len(content):
        raise Refused(
            f"{where} is cut off in its header of {size} bytes; headers of up to"
            f" {LONGEST_HEADER} bytes are read"
        )
    return content[begin : begin + size].decode("latin-1"), begin + size


def loads(content, where, allowed=INTEGERS):
    """(shape, array of numbers, type) of the bytes of a .npy, whose type is one of `allowed`."""
    text, begin = split(content, where)
    descr, shape = parse_header(text, where)
    if descr not in allowed:
        raise Refused(
            f"{where} holds {name_of_type(descr)}; allowed here are "
            f"{', '.join(name_of_type(name) for name in allowed)} (numpy's astype converts)"
        )
    numbers = array.array(TYPES[descr])
    found, needed = len(content) - begin, product(shape) * numbers.itemsize
    if found != needed:
        raise Refused(
            f"{where} holds {found} bytes behind its header, but its shape {list(shape)} of "
            f"{name_of_type(descr)} takes {needed}"
        )
    numbers.frombytes(memoryview(content)[begin:])
    return shape, numbers, descr


def load(path):
    """(shape, array) of a file of any type that is known: for files of our own runs."""
    with open(path, "rb") as file:
        return loads(file.read(), path, tuple(TYPES))[:2]
