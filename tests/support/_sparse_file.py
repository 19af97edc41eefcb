"""comm_matrix_sparse.npz, written by Python's zipfile."""
import array
import os
import struct
import zipfile

from _moesim import header_of

NAME = "comm_matrix_sparse.npz"


def csr(matrix):
    """The arrays of [layers, D, D] as one [layers * D, D]."""
    data, indices, indptr = [], [], [0]
    for row in matrix.rows():
        data += [count for count in row if count]
        indices += [to for to, count in enumerate(row) if count]
        indptr.append(len(data))
    layers, devices, _ = matrix.shape
    return {
        "data": data,
        "indices": indices,
        "indptr": indptr,
        "shape": [layers * devices, devices],
    }


def write(folder, arrays, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(os.path.join(folder, NAME), "w", method) as archive:
        for name, numbers in arrays.items():
            content = header_of("<i8", (len(numbers),)) + array.array("q", numbers).tobytes()
            archive.writestr(f"{name}.npy", content)
        text = b"{'descr': '|S3', 'fortran_order': False, 'shape': (), }\n"
        archive.writestr(
            "format.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"csr"
        )
