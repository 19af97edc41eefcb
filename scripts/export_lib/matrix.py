"""The rows that a run's devices sent each other in its last step: comm_matrix.npy, or with very many
devices comm_matrix_sparse.npz, a CSR matrix of scipy.sparse in a zip archive. Without NumPy.
"""
import io
import os
import zipfile
import zlib

from command_line import Refused
from run_lib import safe_files
from trace_lib import guard, npy

MOST_BYTES = 1 << 30
ARRAY, LIST = "comm_matrix.npy", "comm_matrix_sparse.npz"
PARTS = ("data", "indices", "indptr", "shape")
BROKEN = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, RuntimeError, EOFError, OSError)


class Matrix:
    """`name` of the file, `devices`, and for each layer the (source, destination, rows) of the pairs
    that have any.
    """

    def __init__(self, name, devices, layers):
        self.name, self.devices, self.layers = name, devices, layers

    def between(self, layer):
        """Those of different devices."""
        return [cell for cell in self.layers[layer] if cell[0] != cell[1]]

    def rows(self, layer):
        return sum(count for _, _, count in self.layers[layer])


def _bytes(path):
    try:
        return safe_files.read_bytes(path, MOST_BYTES)
    except safe_files.Unfit as error:
        raise Refused(f"{path} {error}") from None


def _numbers(content, path):
    try:
        return npy.loads(content, path, ("<i8",))[:2]
    except guard.Refused as error:
        raise Refused(str(error)) from None


def _from_array(path):
    shape, rows = _numbers(_bytes(path), path)
    if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
        raise Refused(f"{path} has the shape {list(shape)}; expected is [layers, D, D]")
    layers = [[] for _ in range(shape[0])]
    for place, count in enumerate(rows):
        if count:
            row, destination = divmod(place, shape[1])
            layers[row // shape[1]].append((row % shape[1], destination, count))
    return Matrix(ARRAY, shape[1], layers)


def _parts(path):
    """What is in the archive. Nothing is unpacked: it is no larger than the file."""
    try:
        with zipfile.ZipFile(io.BytesIO(_bytes(path))) as archive:
            stored = all(one.compress_type == zipfile.ZIP_STORED for one in archive.infolist())
            if not stored or sum(one.file_size for one in archive.infolist()) > MOST_BYTES:
                raise Refused(f"{path} is damaged: it is compressed, or its parts overlap")
            if not archive.read("format.npy").endswith(b"csr"):
                raise Refused(f"{path} is damaged: its format is not csr")
            contents = {name: archive.read(f"{name}.npy") for name in PARTS}
    except BROKEN as error:
        raise Refused(f"{path} is damaged ({type(error).__name__})") from None
    return [_numbers(contents[name], f"{name} in {path}")[1] for name in PARTS]


def _from_list(path):
    data, indices, indptr, shape = _parts(path)
    rows, devices = shape if len(shape) == 2 else (0, 0)
    adds_up = devices > 0 and rows > 0 and rows % devices == 0 and len(indptr) == rows + 1
    rises = adds_up and all(indptr[i] <= indptr[i + 1] for i in range(rows))
    if not rises or (indptr[0], indptr[-1], len(indices)) != (0, len(data), len(data)):
        raise Refused(f"{path} is damaged: its rows do not add up")
    if len(data) and not 0 <= min(indices) <= max(indices) < devices:
        raise Refused(f"{path} is damaged: it names devices that do not exist")
    layers = [[] for _ in range(rows // devices)]
    for row in range(rows):
        layers[row // devices] += [
            (row % devices, indices[i], data[i]) for i in range(indptr[row], indptr[row + 1])
        ]
    return Matrix(LIST, devices, layers)


def read(folder):
    """The matrix of a folder of results."""
    path = os.path.join(folder, ARRAY)
    listed = os.path.join(folder, LIST)
    if not safe_files.is_there(path) and safe_files.is_there(listed):
        matrix = _from_list(listed)
    else:
        try:
            matrix = _from_array(path)
        except FileNotFoundError:
            raise Refused(f"{folder} has neither {ARRAY} nor {LIST}") from None
    if any(not 0 <= count < 2**53 for layer in matrix.layers for _, _, count in layer):
        raise Refused(
            f"{os.path.join(folder, matrix.name)} holds numbers that are no counts of rows"
        )
    return matrix
