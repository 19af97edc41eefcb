"""The .npy format, as much of it as traces need, without NumPy: numbers in C order, little-endian."""
import array
import ast
import struct

from trace_lib.trace import Refused

TYPES = {"<f4": "f", "<f8": "d", "|i1": "b", "|u1": "B", "|b1": "B", "<i2": "h", "<u2": "H", "<i4": "i", "<u4": "I", "<i8": "q", "<u8": "Q"}
MAGIC = b"\x93NUMPY"


def header(dtype, shape):
    text = repr({"descr": dtype, "fortran_order": False, "shape": tuple(shape)})
    text += " " * (-(len(text) + len(MAGIC) + 5) % 64) + "\n"
    return MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def save(path, dtype, shape, parts):
    """Writes the arrays of `parts`, one behind the other, as one array of that shape."""
    count = 1
    for size in shape:
        count *= size
    assert sum(len(part) for part in parts) == count, "the parts do not fill the shape"
    with open(path, "wb") as file:
        file.write(header(dtype, shape))
        for part in parts:
            file.write(array.array(TYPES[dtype], part).tobytes())


def loads(content, where):
    """(shape, array) of the bytes of a .npy."""
    if not content.startswith(MAGIC):
        raise Refused(f"{where} is no .npy")
    try:
        wide = content[6] >= 2
        length = struct.unpack("<I" if wide else "<H", content[8:12 if wide else 10])[0]
        begin = (12 if wide else 10) + length
        said = ast.literal_eval(content[begin - length:begin].decode("latin-1"))
        code, shape, fortran = TYPES[said["descr"]], said["shape"], said["fortran_order"]
    except (struct.error, ValueError, SyntaxError, LookupError, TypeError):
        raise Refused(f"{where} holds numbers of a type that is not read; read are {', '.join(TYPES)}") from None
    if fortran:
        raise Refused(f"{where} is in Fortran order; expected is C order (numpy.ascontiguousarray)")
    numbers = array.array(code)
    try:
        numbers.frombytes(content[begin:])
    except ValueError:
        raise Refused(f"{where} ends in the middle of a number") from None
    count = 1
    for size in shape:
        count *= size
    if len(numbers) != count:
        raise Refused(f"{where} is cut off: {len(numbers)} numbers, {count} expected")
    return shape, numbers


def load(path):
    with open(path, "rb") as file:
        return loads(file.read(), path)
