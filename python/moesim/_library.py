"""libmoesim through ctypes: finding it, its functions, its arrays as those of NumPy."""

import ctypes
import os
import sysconfig

import numpy

ERROR_MAX, MAX_DIMS = 1024, 3
TYPES = {1: numpy.uint8, 2: numpy.int32, 3: numpy.int64, 4: numpy.float32, 5: numpy.float64}
NUMBERS = {numpy.dtype(kind): number for number, kind in TYPES.items()}


class MoesimError(ValueError):
    """What libmoesim refuses, in its own words."""


class Array(ctypes.Structure):
    """struct moesim_array"""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("num_dims", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_DIMS),
        ("data", ctypes.c_void_p),
    ]

    @classmethod
    def of(cls, array):
        """`array`, contiguous and of one of TYPES, which has to live as long as this."""
        shape = (ctypes.c_int64 * MAX_DIMS)(*array.shape)
        return cls(NUMBERS[array.dtype], array.ndim, shape, array.ctypes.data)

    def numpy(self):
        """A copy."""
        shape = tuple(self.shape[: self.num_dims])
        kind = numpy.dtype(TYPES[self.type])
        count = int(numpy.prod(shape)) * kind.itemsize
        return numpy.frombuffer(ctypes.string_at(self.data, count), kind).reshape(shape).copy()


def _candidates(file):
    """Where the library may be: MOESIM_LIBRARY names its folder; else an installation around this
    file, the build of the repository around it, and what the system's loader finds.
    """
    if folder := os.environ.get("MOESIM_LIBRARY"):
        yield os.path.join(folder, file)
        return
    here = os.path.dirname(os.path.abspath(__file__))
    lib = os.path.dirname(os.path.dirname(os.path.dirname(here)))  # .../lib/python3/dist-packages
    triplet = sysconfig.get_config_var("MULTIARCH") or ""
    for folder in (
        os.path.join(os.path.dirname(os.path.dirname(here)), "build", "library"),
        os.path.join(lib, triplet),
        lib,
    ):
        if os.path.exists(os.path.join(folder, file)):
            yield os.path.join(folder, file)
    yield file


FUNCTIONS = {  # name: (result, arguments)
    "moesim_version": (ctypes.c_char_p, []),
    "moesim_layer_new": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]),
    "moesim_layer_free": (None, [ctypes.c_void_p]),
    "moesim_layer_set": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(Array), ctypes.c_char_p],
    ),
    "moesim_layer_route": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    "moesim_layer_get": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(Array), ctypes.c_char_p],
    ),
    "moesim_place": (
        ctypes.c_int,
        [ctypes.c_char_p] + 5 * [ctypes.c_int32] + 4 * [ctypes.c_void_p] + [ctypes.c_char_p],
    ),
    "moesim_list": (ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_int32]),
}
_opened = {}


def library(double=False):
    """libmoesim, or libmoesim-f64."""
    if double in _opened:
        return _opened[double]
    file, last = f"libmoesim{'-f64' if double else ''}.so.0", None
    for path in _candidates(file):
        try:
            found = ctypes.CDLL(path)
            break
        except OSError as error:
            last = error
    else:
        raise ImportError(
            f"moesim: {file} cannot be loaded ({last}); build or install moesim, or let the"
            " environment variable MOESIM_LIBRARY name the folder that holds it"
        )
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    _opened[double] = found
    return found


def version():
    return library().moesim_version().decode()


def words(what):
    """One of the lists of moesim_list."""
    found = []
    while (word := library().moesim_list(what.encode(), len(found))) is not None:
        found.append(word.decode())
    return found


def settings_keys():
    """All keys of a configuration, as "section.key"."""
    return words("keys")


def checked(call, *arguments):
    """Calls a function whose last argument is the room for a sentence."""
    error = ctypes.create_string_buffer(ERROR_MAX)
    result = call(*arguments, error)
    if error.value:
        raise MoesimError(error.value.decode(errors="replace"))
    return result


# --- arrays that come from outside ---


def plain(name, given):
    """Anything that is an array, tensors of PyTorch among them, as one of NumPy."""
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        if "bfloat16" in str(given.dtype):
            given = given.float()
    array = numpy.asarray(given)
    if array.dtype == object:
        raise TypeError(f"{name} is no array of numbers")
    return array


def floats(name, given, kinds=(numpy.float64,)):
    """A contiguous array of one of `kinds`. Half precision is widened, which changes no value."""
    array = plain(name, given)
    if array.dtype == numpy.float16:
        array = array.astype(numpy.float32)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{name} is an array of {array.dtype}: allowed are float16, float32 and float64"
        )
    kind = array.dtype.newbyteorder("=") if array.dtype.newbyteorder("=") in kinds else kinds[0]
    return numpy.ascontiguousarray(array, kind)


def integers(name, given, kind):
    """A contiguous array of an integer type that holds all its values."""
    array = plain(name, given)
    if array.dtype.kind not in "iub":
        raise TypeError(f"{name} is an array of {array.dtype}: integers are needed")
    limits = numpy.iinfo(kind)
    if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise MoesimError(f"{name} holds {array.min()} to {array.max()}, more than {kind.__name__}")
    return numpy.ascontiguousarray(array, kind)


def dimensions(name, array, allowed, shape):
    if array.ndim not in allowed:
        raise MoesimError(f"{name} has the shape {array.shape}, and it has to be {shape}")
    if array.size == 0:
        raise MoesimError(f"{name} has the shape {array.shape}: it holds nothing")
    return array
