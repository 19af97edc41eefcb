"""Files of every format that scripts/import-trace reads, built by hand: no torch, no NumPy."""

import array
import io
import struct
import zipfile


class Tensor:
    """A tensor as torch.save pickles it. What is None follows from the rest; everything may be
    set wrongly on purpose."""

    def __init__(self, shape, numbers, kind="IntStorage", strides=None, offset=0, count=None):
        self.shape, self.kind, self.offset = tuple(shape), kind, offset
        code = {"IntStorage": "i", "LongStorage": "q", "FloatStorage": "f", "ByteStorage": "B"}
        self.numbers = array.array(code[kind], numbers)
        self.strides = self.in_order() if strides is None else tuple(strides)
        self.count = len(self.numbers) if count is None else count

    def in_order(self):
        strides, size = [], 1
        for length in reversed(self.shape):
            strides.insert(0, size)
            size *= length
        return tuple(strides)


class Raw:
    """Instructions of a pickle as they are."""

    def __init__(self, content):
        self.content = content


def whole(number):
    if 0 <= number < 256:
        return b"K" + bytes([number])
    if -(1 << 31) <= number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    size = number.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + number.to_bytes(size, "little", signed=True)


def pickled(value, storages):
    """The instructions (protocol 2) that make a value; the storages of its tensors are added."""
    if isinstance(value, Raw):
        return value.content
    if value is None or value is True or value is False:
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return whole(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        content = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(content)) + content
    if isinstance(value, list):
        return b"](" + b"".join(pickled(item, storages) for item in value) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(pickled(item, storages) for item in value) + b"t"
    if isinstance(value, dict):
        items = (pickled(part, storages) for item in value.items() for part in item)
        return b"}(" + b"".join(items) + b"u"
    storages.append(value.numbers.tobytes())
    kind = Raw(f"ctorch\n{value.kind}\n".encode())
    saved = ("storage", kind, str(len(storages) - 1), "cpu", value.count)
    storage = Raw(pickled(saved, storages) + b"Q")
    arguments = (storage, value.offset, value.shape, value.strides, False, {})
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + pickled(arguments, storages) + b"R"


def torch_file(value, byteorder="little", compression=zipfile.ZIP_STORED, instructions=None):
    """The bytes of a .pt as torch.save has written it since 1.6: NAME/data.pkl, NAME/data/0 ..."""
    storages = []
    body = b"\x80\x02" + pickled(value, storages) + b"." if instructions is None else instructions
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("dump/data.pkl", body)
        archive.writestr("dump/byteorder", byteorder)
        for i, content in enumerate(storages):
            archive.writestr(f"dump/data/{i}", content)
    return out.getvalue()


def npy_header(text, version=1, size=None):
    """The bytes before the numbers, of any text."""
    content = text.encode("latin-1", "replace")
    size = len(content) if size is None else size
    form = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, size & 0xFFFF) + content
