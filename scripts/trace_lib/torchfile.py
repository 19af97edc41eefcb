"""Reads the .pt files of torch.save without torch and without unpickling: a zip of one pickle and
the bytes of each storage. The pickle's instructions are followed by a small interpreter of its own
that knows plain values, containers and tensors. It calls nothing that the file names, so a file
from elsewhere cannot run code."""

import array
import io
import pickletools
import struct
import zipfile
import zlib

from trace_lib.guard import Refused, is_whole, shown

# The only globals that a file may name, and what they stand for here.
STORAGES = {
    "FloatStorage": "f",
    "DoubleStorage": "d",
    "IntStorage": "i",
    "LongStorage": "q",
    "ShortStorage": "h",
    "CharStorage": "b",
    "ByteStorage": "B",
    "BoolStorage": "B",
    "HalfStorage": None,  # known, so that a dump that has one beside its experts is read
    "BFloat16Storage": None,
}
TENSOR, ORDERED = "tensor", "ordered dictionary"
GLOBALS = {
    ("torch._utils", "_rebuild_tensor_v2"): TENSOR,
    ("torch._utils", "_rebuild_tensor"): TENSOR,
}
GLOBALS.update({("collections", "OrderedDict"): ORDERED})
GLOBALS.update({(module, name): name for module in ("torch", "torch.storage") for name in STORAGES})
LARGEST_PICKLE = 1 << 30
MAGIC = b"PK"
INTEGERS = ("i", "q", "h", "b", "B")


class Global:
    """A global of the fixed list; it is never called."""

    def __init__(self, meaning):
        self.meaning = meaning


class Mark:
    """The begin of a group on the interpreter's stack."""


class Storage:
    """The numbers behind some tensors; read when a tensor asks for them."""

    def __init__(self, archive, kind, key, count):
        self.archive, self.kind, self.key, self.count = archive, kind, key, count
        self.numbers = None

    def read(self):
        if self.numbers is None:
            code = STORAGES[self.kind]
            if code is None:
                raise Refused(
                    f"the file holds a tensor of type {self.kind} where numbers are needed; read"
                    f" are {', '.join(k for k in STORAGES if STORAGES[k])}"
                )
            numbers = array.array(code)
            content = self.archive.member(f"data/{self.key}")
            if len(content) != self.count * numbers.itemsize:
                raise Refused(
                    f"storage {shown(self.key, 40)} has {len(content)} bytes, but"
                    f" {self.count} numbers of {self.kind} take {self.count * numbers.itemsize}"
                )
            numbers.frombytes(content)
            self.numbers = numbers
        return self.numbers


class Tensor:
    """A view of a storage: checked when it is made, copied into C order when it is asked for."""

    def __init__(self, storage, offset, shape, strides, intake):
        self.storage, self.offset, self.shape, self.strides, self.intake = (
            storage,
            offset,
            shape,
            strides,
            intake,
        )

    @property
    def count(self):
        count = 1
        for length in self.shape:
            count *= length
        return count

    def data(self, where):
        """The numbers in C order."""
        self.intake.room(self.count, where)
        numbers = self.storage.read()
        if self.strides == contiguous(self.shape):
            return numbers[self.offset : self.offset + self.count]
        flat = array.array(numbers.typecode)
        if self.count:
            self.gather(numbers, self.offset, 0, flat)
        return flat

    def integers(self, where, dimensions):
        """The same; another type or number of dimensions gets a sentence."""
        if len(self.shape) != len(dimensions):
            raise Refused(
                f"{where} has shape {list(self.shape)}; expected is [{', '.join(dimensions)}]"
            )
        if STORAGES[self.storage.kind] not in INTEGERS or self.storage.kind == "BoolStorage":
            raise Refused(
                f"{where} is a tensor of type {self.storage.kind}; expected are whole numbers"
            )
        return self.data(where)

    def gather(self, numbers, place, dimension, flat):
        """Copies one dimension after the other; the last as a slice."""
        length, stride = self.shape[dimension], self.strides[dimension]
        if dimension == len(self.shape) - 1:
            flat.extend(
                numbers[place : place + length * stride : stride]
                if stride
                else numbers[place : place + 1] * length
            )
            return
        for i in range(length):
            self.gather(numbers, place + i * stride, dimension + 1, flat)


def contiguous(shape):
    """Strides of an array in C order."""
    strides, size = [], 1
    for length in reversed(shape):
        strides.insert(0, size)
        size *= length
    return tuple(strides)


def make_tensor(arguments, intake):
    """What _rebuild_tensor_v2 stands for: (storage, offset, shape, strides, ...)."""
    if (
        not isinstance(arguments, tuple)
        or len(arguments) < 4
        or not isinstance(arguments[0], Storage)
    ):
        raise Refused("a tensor in it is not made of a storage, an offset, a shape and strides")
    storage, offset, shape, strides = arguments[:4]
    most = 1 << 48
    if not (
        isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 8
    ):
        raise Refused(
            "a tensor in it has a shape and strides that do not fit together; expected are tuples"
            " of one length of up to 8"
        )
    if not all(is_whole(number, 0, most) for number in (offset, *shape, *strides)):
        raise Refused(
            f"a tensor in it has offset {shown(offset, 40)}, shape {shown(shape, 80)} and strides"
            f" {shown(strides, 80)}; allowed are whole numbers from 0 on"
        )
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
    if 0 not in shape and last >= storage.count:
        raise Refused(
            f"a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} reaches"
            f" number {last} of a storage of {storage.count}"
        )
    return Tensor(storage, offset, shape, strides, intake)


class Archive:
    """The zip, as torch.save writes it: members in one folder, stored without compression."""

    def __init__(self, file, size):
        self.zip, self.left = zipfile.ZipFile(file), 2 * size
        self.names = {info.filename: info for info in self.zip.infolist()}
        inside = next((name for name in self.names if name.endswith("data.pkl")), None)
        if inside is None:
            raise Refused("no data.pkl is in it, as torch.save writes one")
        self.prefix = inside[: -len("data.pkl")]
        if self.prefix + "byteorder" in self.names and self.member("byteorder") != b"little":
            raise Refused("its numbers are big-endian; expected are little-endian ones")

    def member(self, name):
        """The bytes of one member; all of them together may not exceed the file."""
        info = self.names.get(self.prefix + name)
        if info is None:
            raise Refused(f"{shown(self.prefix + name, 80)} is missing in it")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Refused(
                f"{shown(info.filename, 80)} is compressed in it; torch.save writes members without"
                " compression"
            )
        self.left -= info.file_size
        if self.left < 0:
            raise Refused("its members overlap: together they are larger than the file")
        return self.zip.read(info)


class Interpreter:
    """Follows the instructions of one pickle; `values` is its stack, `memo` what it may repeat."""

    def __init__(self, archive, intake):
        self.archive, self.intake, self.values, self.memo, self.storages = (
            archive,
            intake,
            [],
            {},
            {},
        )

    def follow(self, content):
        """The value that the pickle describes."""
        for code, argument, _ in pickletools.genops(io.BytesIO(content)):
            if code.name == "STOP":
                return self.values.pop()
            step = STEPS.get(code.name)
            if step is None:
                raise Refused(
                    f"the pickle in it has an instruction {code.name}; only plain values and"
                    " tensors are read"
                )
            step(self, argument)
        raise Refused("the pickle in it has no end")

    def push(self, value):
        self.values.append(value)

    def group(self):
        """What stands on the stack behind the last mark; the mark is taken off."""
        begin = len(self.values) - 1
        while not isinstance(self.values[begin], Mark):
            begin -= 1
            if begin < 0:
                raise IndexError("no mark")
        taken = self.values[begin + 1 :]
        del self.values[begin:]
        return taken

    def last(self, count):
        taken = self.values[len(self.values) - count :] if len(self.values) >= count else []
        if len(taken) < count or any(isinstance(value, Mark) for value in taken):
            raise IndexError("the stack is too short")
        del self.values[len(self.values) - count :]
        return taken

    def named(self, module, name):
        if (
            not isinstance(module, str)
            or not isinstance(name, str)
            or (module, name) not in GLOBALS
        ):
            raise Refused(
                f"the file holds a {shown(module, 80)}.{shown(name, 80)}: only tensors and plain"
                " values are read"
            )
        self.push(Global(GLOBALS[module, name]))

    def set_items(self, target, items):
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused("the pickle in it sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) not in (str, int):
                raise Refused(
                    f"a dictionary in it has a key of type {type(key).__name__}; read are texts and"
                    " whole numbers"
                )
            target[key] = value

    def append(self, target, items):
        if not isinstance(target, list):
            raise Refused("the pickle in it appends to what is no list")
        target.extend(items)

    def reduce(self):
        """Stands for a call: of the two things that the list of globals has to call."""
        called, arguments = self.last(2)
        if isinstance(called, Global) and called.meaning == TENSOR:
            self.push(make_tensor(arguments, self.intake))
        elif isinstance(called, Global) and called.meaning == ORDERED and arguments == ():
            self.push({})
        else:
            raise Refused(
                "the pickle in it calls something; only tensors and plain values are read"
            )

    def storage(self):
        """A persistent id: ("storage", type, key, place, how many numbers)."""
        (saved,) = self.last(1)
        if not isinstance(saved, tuple) or len(saved) != 5 or saved[0] != "storage":
            raise Refused("the pickle in it refers to something that is no storage of numbers")
        kind = saved[1].meaning if isinstance(saved[1], Global) else None
        if (
            kind not in STORAGES
            or not isinstance(saved[2], str)
            or not is_whole(saved[4], 0, 1 << 48)
        ):
            raise Refused(
                f"the file holds a storage of type {shown(kind, 40)}: only tensors of integers and"
                " floats are read"
            )
        key = saved[2]
        if key not in self.storages:
            self.storages[key] = Storage(self.archive, kind, key, saved[4])
        if (self.storages[key].kind, self.storages[key].count) != (kind, saved[4]):
            raise Refused(f"storage {shown(key, 40)} is named with two types or sizes")
        self.push(self.storages[key])

    def build(self):
        """The state of an object: nothing of it is needed."""
        self.last(1)


def step_set_items(machine, _):
    items = machine.group()
    machine.set_items(machine.values[-1], items)


def step_set_item(machine, _):
    items = machine.last(2)
    machine.set_items(machine.values[-1], items)


def step_appends(machine, _):
    items = machine.group()
    machine.append(machine.values[-1], items)


def step_append(machine, _):
    items = machine.last(1)
    machine.append(machine.values[-1], items)


def step_memoize(machine, _):
    machine.memo[len(machine.memo)] = machine.values[-1]


def step_put(machine, argument):
    machine.memo[argument] = machine.values[-1]


def step_stack_global(machine, _):
    machine.named(*machine.last(2))


PLAIN = (
    "BININT BININT1 BININT2 LONG1 BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINFLOAT SHORT_BINBYTES"
    " BINBYTES SHORT_BINSTRING BINSTRING".split()
)
STEPS = {name: Interpreter.push for name in PLAIN}
STEPS.update(
    {
        "PROTO": lambda machine, _: None,
        "FRAME": lambda machine, _: None,
        "NONE": lambda machine, _: machine.push(None),
        "NEWTRUE": lambda machine, _: machine.push(True),
        "NEWFALSE": lambda machine, _: machine.push(False),
        "MARK": lambda machine, _: machine.push(Mark()),
        "EMPTY_DICT": lambda machine, _: machine.push({}),
        "EMPTY_LIST": lambda machine, _: machine.push([]),
        "EMPTY_TUPLE": lambda machine, _: machine.push(()),
        "TUPLE": lambda machine, _: machine.push(tuple(machine.group())),
        "LIST": lambda machine, _: machine.push(machine.group()),
        "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
        "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
        "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
        "BINGET": lambda machine, argument: machine.push(machine.memo[argument]),
        "LONG_BINGET": lambda machine, argument: machine.push(machine.memo[argument]),
        "BINPUT": step_put,
        "LONG_BINPUT": step_put,
        "MEMOIZE": step_memoize,
        "POP": lambda machine, _: machine.last(1),
        "APPEND": step_append,
        "APPENDS": step_appends,
        "SETITEM": step_set_item,
        "SETITEMS": step_set_items,
        "GLOBAL": lambda machine, argument: machine.named(*argument.split(" ", 1)),
        "STACK_GLOBAL": step_stack_global,
        "REDUCE": lambda machine, _: machine.reduce(),
        "BUILD": lambda machine, _: machine.build(),
        "BINPERSID": lambda machine, _: machine.storage(),
    }
)


def load(path, intake):
    """The object that torch.save wrote, tensors as Tensor."""
    where = shown(path)
    content = intake.read(path, MAGIC)
    if content[: len(MAGIC)] != MAGIC:
        raise Refused(f"{where} is no zip archive: torch.save of version 1.6 and later writes one")
    try:
        archive = Archive(io.BytesIO(content), len(content))
        found = Interpreter(archive, intake).follow(archive.member("data.pkl"))
        return found
    except Refused as error:
        raise Refused(f"{where}: {error}") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        LookupError,
        ValueError,
        EOFError,
        OverflowError,
        RuntimeError,
        OSError,
        NotImplementedError,
        TypeError,
        AttributeError,
    ) as error:
        raise Refused(
            f"{where} is damaged: {shown(error, 100)}; expected is a zip as torch.save writes one"
        ) from None
