"""The device matrix, counted again from topk_idx.npy: with as many devices as are kept as an array,
a few more, and so many that the matrix is written as comm_matrix_sparse.npz. Every number of ranks
writes the same bytes.
"""
import io
import os
import zipfile

from _moesim import QUICKSTART, check, load, moesim, same_bytes, sets, summary, verdict

TOP_K = 4


def array(archive, name):
    """One array of an .npz; its checksum is compared on the way."""
    path = f"{name}.npy"
    with open(path, "wb") as file:
        file.write(archive.read(path))
    return load(path)


def sparse(path):
    """(shape, {(row, column): count}) of a matrix as scipy.sparse.save_npz writes it."""
    with open(path, "rb") as file, zipfile.ZipFile(io.BytesIO(file.read())) as archive:
        check(archive.testzip() is None, path, "a checksum is wrong")
        raw = archive.read("format.npy")
        check(b"'descr': '|S3'" in raw and raw.endswith(b"\ncsr"), path, "format")
        data, indices, indptr, shape = (
            array(archive, name).data for name in ("data", "indices", "indptr", "shape")
        )
    check(len(indptr) == shape[0] + 1 and indptr[0] == 0 and indptr[-1] == len(data), path)
    cells = {}
    for row in range(shape[0]):
        columns = list(indices[indptr[row] : indptr[row + 1]])
        check(columns == sorted(set(columns)), path, f"columns of row {row}")
        cells.update(zip(((row, to) for to in columns), data[indptr[row] : indptr[row + 1]]))
    return tuple(shape), cells


def dense(path):
    matrix = load(path)
    columns = matrix.shape[-1]
    cells = {divmod(i, columns): count for i, count in enumerate(matrix.data) if count}
    return (matrix.shape[0] * matrix.shape[1], columns), cells


def recounted(folder, layers, devices, per_device, mode):
    """Expert e lives on device e, and token t on device t // per_device."""
    cells = {}
    for index, experts in enumerate(load(f"{folder}/topk_idx.npy").rows()):
        layer, token = divmod(index, devices * per_device)
        home = layer * devices + token // per_device
        for to in set(experts) if mode == "token" else experts:
            cells[home, to] = cells.get((home, to), 0) + 1
    return (layers * devices, devices), cells


def case(devices, layers, per_device, mode, ranks):
    name = f"d{devices}-{mode}"
    settings = sets(
        {
            "cluster.devices": devices,
            "cluster.devices_per_node": 4,
            "model.num_layers": layers,
            "model.num_experts": devices,
            "model.hidden_size": 8,
            "model.moe_intermediate_size": 8,
            "router.top_k": TOP_K,
            "router.topk_group": TOP_K,
            "exchange.mode": mode,
            "data.tokens_per_device": per_device,
            "run.steps": 1,
            "output.routing": "yes",
        }
    )
    written = "comm_matrix.npy" if devices <= 2048 else "comm_matrix_sparse.npz"
    folders = []
    for np in ranks:
        folder = f"{name}-np{np}"
        done = moesim(np, QUICKSTART, *settings, "--out", folder)
        if not check(done.code == 0, f"{folder}: status {done.code}: {done.err}"):
            return
        folders.append(folder)
    first = folders[0]
    there = {file for file in os.listdir(first) if file.startswith("comm_matrix")}
    check(there - {"comm_matrix_steps.npy"} == {written}, first, there)
    read = (sparse if written.endswith("npz") else dense)(f"{first}/{written}")
    check(read == recounted(first, layers, devices, per_device, mode), first, "matrix")
    whole = summary(first)
    rows = sum(read[1].values())
    check(whole["volume"]["dispatch"]["rows"] == rows, first, "rows", rows)
    for layer, one in enumerate(whole["layers"]):
        sent, received = [0] * devices, [0] * devices
        for (row, to), count in read[1].items():
            if row // devices == layer:
                sent[row % devices] += count
                received[to] += count
        check(one["sent_rows"] == sent and one["received_rows"] == received, first, layer)
    for folder in folders[1:]:
        check(same_bytes(f"{first}/{written}", f"{folder}/{written}"), folder, written)
        check(summary(folder)["layers"] == whole["layers"], folder, "layers")
        check(all(ok is not False for ok in summary(folder)["checks"].values()), folder, "checks")


for mode in ("token", "selection"):
    case(64, 2, 6, mode, (1, 2, 4))
    case(72, 2, 6, mode, (1, 3, 4, 8))
case(2052, 2, 1, "token", (1, 2))
verdict()
