"""The device matrix of very many devices, comm_matrix_sparse.npz: a scipy.sparse CSR matrix
[layers * D, D] in an uncompressed zip archive. It is never spread out: D^2 numbers may not fit.
"""
import io
import math
import zipfile
import zlib

import numpy

import array_file
from run_lib.safe_files import Unfit, open_regular

LARGEST = 1 << 30  # bytes of the file
ARRAYS = ("data", "indices", "indptr", "shape")
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    OSError,
)


class Sparse:
    """shape (layers, D, D); the cells that are not 0 as (row, column, count), where row counts on
    from layer to layer.
    """

    def __init__(self, shape, row, column, count):
        self.shape, self.row, self.column, self.count = shape, row, column, count

    def sent(self, layer):
        """Rows by source device, integers."""
        devices = self.shape[1]
        mine = self.row // devices == layer
        sums = numpy.zeros(devices, dtype=numpy.int64)
        numpy.add.at(sums, self.row[mine] % devices, self.count[mine])
        return sums

    def in_blocks(self, first, size):
        """[layer][from][to], added up in blocks of `size` devices that begin with `first`."""
        layers, devices, _ = self.shape
        blocks = numpy.zeros((layers, len(first), len(first)), dtype=numpy.int64)
        place = (self.row // devices, self.row % devices // size, self.column // size)
        numpy.add.at(blocks, place, self.count)
        return blocks


def _integers(archive, name):
    content = archive.read(f"{name}.npy")
    kind, shape, offset = array_file.header(io.BytesIO(content))
    if kind[1] not in "iu" or kind[2:] not in "1248" or len(shape) != 1:
        raise Unfit(f"is damaged ({name} is no list of integers)")
    if offset + math.prod(shape) * int(kind[2:]) != len(content):
        raise Unfit(f"is damaged ({name} is longer or shorter than its shape)")
    return numpy.frombuffer(content, dtype=kind, offset=offset).astype(numpy.int64)


def _read(file):
    """The four lists of integers. Nothing is unpacked: what is read is no larger than the file."""
    with zipfile.ZipFile(file) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise Unfit("is damaged (it is compressed)")
        if sum(one.file_size for one in archive.infolist()) > LARGEST:
            raise Unfit("is damaged (its parts overlap)")
        if not archive.read("format.npy").endswith(b"csr"):
            raise Unfit("is damaged (its format is not csr)")
        return [_integers(archive, name) for name in ARRAYS]


def _matrix(data, indices, indptr, shape):
    rows, devices = shape.tolist() if len(shape) == 2 else (0, 0)
    if devices < 1 or rows < 1 or rows % devices:
        raise Unfit("is damaged (its shape is not that of device matrices)")
    if len(indptr) != rows + 1 or indptr[0] != 0 or indptr[-1] != len(data):
        raise Unfit("is damaged (its rows do not add up)")
    lengths = numpy.diff(indptr)
    if lengths.min() < 0 or len(indices) != len(data):
        raise Unfit("is damaged (its rows do not add up)")
    if len(data) and (indices.min() < 0 or indices.max() >= devices):
        raise Unfit("is damaged (it names devices that do not exist)")
    if len(data) and not array_file.are_counts(data):
        raise Unfit("holds numbers that are no counts")
    row = numpy.repeat(numpy.arange(rows), lengths)
    return Sparse((rows // devices, devices, devices), row, indices, data)


def read(path):
    """The matrix of a file. Raises Unfit and FileNotFoundError."""
    with open(open_regular(path), "rb") as file:
        if file.seek(0, 2) > LARGEST:
            raise Unfit(f"has more than {LARGEST >> 20} MiB, the most that is read of it")
        try:
            return _matrix(*_read(file))
        except BROKEN as error:
            raise Unfit(f"is damaged ({type(error).__name__})") from None
