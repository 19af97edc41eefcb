"""Reads the .pt files of torch.save without torch: a zip with one pickle and the bytes of each storage. Only tensors and plain values are
let through; a pickle that asks for anything else is refused, so that a file from elsewhere cannot run code."""
import array
import collections
import io
import pickle
import zipfile
import zlib
from dataclasses import dataclass

from trace_lib.trace import Refused

STORAGES = {"FloatStorage": "f", "DoubleStorage": "d", "IntStorage": "i", "LongStorage": "q", "ShortStorage": "h", "CharStorage": "b",
            "ByteStorage": "B", "BoolStorage": "B"}


@dataclass
class Tensor:
    """A tensor's numbers in C order."""
    shape: tuple
    data: array.array

    def at(self, index):
        """The part at one index of the first dimension."""
        size = len(self.data) // self.shape[0]
        return Tensor(self.shape[1:], self.data[index * size:(index + 1) * size])


def contiguous(shape):
    strides, size = [], 1
    for length in reversed(shape):
        strides.insert(0, size)
        size *= length
    return tuple(strides)


def rebuild(storage, offset, shape, strides, *_):
    """What torch._utils._rebuild_tensor_v2 stands for: a view of a storage, copied into C order."""
    count = 1
    for length in shape:
        count *= length
    if tuple(strides) == contiguous(shape) or count == 0:
        return Tensor(tuple(shape), storage[offset:offset + count])
    places = [offset]
    for length, stride in zip(shape, strides):
        places = [place + i * stride for place in places for i in range(length)]
    return Tensor(tuple(shape), array.array(storage.typecode, [storage[place] for place in places]))


class Unpickler(pickle.Unpickler):
    """Knows tensors, their storages and ordered dictionaries, and nothing else."""

    def __init__(self, file, archive, prefix):
        super().__init__(file)
        self.archive, self.prefix, self.storages = archive, prefix, {}

    def find_class(self, module, name):
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return rebuild
        if module in ("torch", "torch.storage") and name in STORAGES:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise Refused(f"the file holds a {module}.{name}: only tensors and plain values are read")

    def persistent_load(self, saved):
        kind, storage, key, _place, count = saved
        if kind != "storage" or storage not in STORAGES:
            raise Refused(f"the file holds a {kind} of type {storage}: only tensors of integers and floats are read")
        if key not in self.storages:
            numbers = array.array(STORAGES[storage])
            numbers.frombytes(self.archive.read(f"{self.prefix}data/{key}")[:count * numbers.itemsize])
            self.storages[key] = numbers
        return self.storages[key]


def load(path):
    """The object that torch.save wrote, tensors as Tensor."""
    try:
        with zipfile.ZipFile(path) as archive:
            inside = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if inside is None:
                raise Refused(f"{path}: no data.pkl is in it, as torch.save writes one")
            prefix = inside[:-len("data.pkl")]
            if prefix + "byteorder" in archive.namelist() and archive.read(prefix + "byteorder") != b"little":
                raise Refused(f"{path}: its numbers are big-endian")
            return Unpickler(io.BytesIO(archive.read(inside)), archive, prefix).load()
    except Refused as error:
        raise Refused(f"{path}: {error}" if path not in str(error) else str(error)) from None
    except zipfile.BadZipFile:
        raise Refused(f"{path} is no zip archive: torch.save of version 1.6 and later writes one") from None
    except (pickle.UnpicklingError, LookupError, ValueError, EOFError, TypeError, AttributeError, RuntimeError, OverflowError, zlib.error) as error:
        raise Refused(f"{path} is damaged: {error}") from None
