"""ctest: timeout=120
scripts/export-traffic: each format, read back by a reader of its own, has the bytes of the run's
matrix pair by pair and those of summary.json in all; sends and receives agree; bad input.
"""
import collections
import json
import os
import shutil
import subprocess
import sys

from _moesim import SOURCE, check, load, run, summary, verdict
from _sparse_file import NAME, csr, write

SCRIPT = os.path.join(SOURCE, "scripts/export-traffic")
D, LAYERS = 8, 2
SMALL = {
    "run.steps": 2,
    "model.num_layers": LAYERS,
    "model.hidden_size": 16,
    "model.num_experts": 16,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "cluster.devices": D,
    "data.tokens_per_device": 12,
}


def export(folder, kind, *options):
    return subprocess.run(
        [sys.executable, SCRIPT, folder, "--format", kind, *options], capture_output=True, text=True
    )


def expected(folder, phases):
    """{(place of the phase, source, destination): bytes} from the matrix and the row's size."""
    matrix, found = load(os.path.join(folder, "comm_matrix.npy")), {}
    for place, (layer, phase) in enumerate(phases):
        for s in range(D):
            for d in range(D):
                rows = matrix.data[(layer * D + s) * D + d]
                if rows and s != d:
                    ends = (d, s) if phase.startswith("combine") else (s, d)
                    found[(place, *ends)] = rows * 16 * 4
    volume = summary(folder)["volume"]
    wanted = sum(volume[phase]["remote_bytes"] for phase in {phase for _, phase in phases})
    check(sum(found.values()) == wanted, f"{sum(found.values())} bytes, summary.json {wanted}")
    return found


def from_csv(folder, phases):
    found = {}
    with open(os.path.join(folder, "traffic.csv")) as file:
        lines = file.read().splitlines()
    check(lines[0] == "layer,phase,source,destination,bytes", lines[0])
    for line in lines[1:]:
        layer, phase, source, destination, size = line.split(",")
        place = phases.index((int(layer), phase))
        found[(place, int(source), int(destination))] = int(size)
    return found


def from_smpi(folder):
    sent, received = {}, {}
    with open(os.path.join(folder, "traces.txt")) as file:
        names = file.read().split()
    check(len(names) == D, names)
    for device, name in enumerate(names):
        with open(os.path.join(folder, name)) as file:
            actions = [line.split() for line in file]
        check(all(int(action[0]) == device for action in actions), f"{name} is of another device")
        check([actions[0][1], actions[-1][1]] == ["init", "finalize"], f"{name}: {actions[0]}")
        waiting = False
        for action in actions:
            if action[1] in ("isend", "irecv"):
                peer, tag, size = map(int, action[2:5])
                check(action[5] == "6", "the type is not MPI_BYTE")
                key = (tag, device, peer) if action[1] == "isend" else (tag, peer, device)
                (sent if action[1] == "isend" else received)[key] = size
                waiting = True
            waiting = waiting and action[1] != "waitall"
        check(not waiting, f"{name} ends without waiting")
    check(sent == received, "what is sent is not what is received")
    return sent


# --- a reader of protocol buffers ---


def varint(content, at):
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def message(content):
    """{field: [values]}"""
    at, found = 0, collections.defaultdict(list)
    while at < len(content):
        key, at = varint(content, at)
        value, at = varint(content, at)
        if key & 7 == 2:
            value, at = content[at : at + value], at + value
        found[key >> 3].append(value)
    return found


def packed(values):
    found = []
    for content in values:
        at = 0
        while at < len(content):
            value, at = varint(content, at)
            found.append(value)
    return found


def from_chakra(folder):
    sent, received = {}, {}
    for device in range(D):
        with open(os.path.join(folder, f"traffic.{device}.et"), "rb") as file:
            content = file.read()
        at, nodes = 0, []
        while at < len(content):
            size, at = varint(content, at)
            nodes.append(message(content[at : at + size]))
            at += size
        check(nodes[0][1] == [b"0.0.4"], "no metadata in front")
        known = set()
        for node in nodes[1:]:
            a = {}
            for value in node[10]:
                pair = message(value)
                field = next(f for f in pair if f != 1)
                a[pair[1][0].decode()] = pair[field][0]
            check(set(packed(node[5])) <= known, "a message depends on a later one")
            known.add(node[1][0])
            key = (a["comm_tag"], a["comm_src"], a["comm_dst"])
            check(a["comm_src" if node[3][0] == 5 else "comm_dst"] == device, "another's message")
            (sent if node[3][0] == 5 else received)[key] = a["comm_size"]
    check(sent == received, "what is sent is not what is received")
    return sent


def check_formats(name, settings, phases):
    folder = run(name, 2, {**SMALL, **settings})
    wanted = expected(folder, phases)
    readers = {"csv": lambda f: from_csv(f, phases), "smpi": from_smpi, "chakra": from_chakra}
    for kind, reader in readers.items():
        done = export(folder, kind)
        if check(done.returncode == 0, f"{name}, {kind}: {done.stderr}"):
            check(f"{sum(wanted.values())} bytes" in done.stdout, done.stdout)
            found = reader(os.path.join(folder, f"traffic-{kind}"))
            check(found == wanted, f"{name}, {kind}: {len(found)} pairs, {len(wanted)} wanted")
        again = export(folder, kind)
        check(again.returncode == 2 and "is not empty" in again.stderr, again.stderr)
        check(export(folder, kind, "-o", f"{name}-{kind}").returncode == 0, "another folder")
    return folder


def refused(words, *arguments):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    said = done.stderr
    check(
        done.returncode == 2 and words in said and said.count("\n") == 1,
        f"'{words}' is not said: {done.returncode} {said}",
    )


def check_refused(folder):
    refused("--format is missing", folder)
    refused("--format xml: allowed", folder, "--format", "xml")
    refused("no summary.json", "nowhere", "--format", "csv")
    refused("RUN", "--format", "csv")
    for name, content in (
        ("short", b"\x93NUMPY\x01\x00"),
        ("text", b"hello"),
        ("cut", None),
    ):
        shutil.copytree(folder, name)
        path = os.path.join(name, "comm_matrix.npy")
        with open(path, "rb") as file:
            content = content or file.read()[:-8]
        with open(path, "wb") as file:
            file.write(content)
        refused("comm_matrix.npy", name, "--format", "csv")
    shutil.copytree(folder, "other")
    shutil.copy("again/comm_matrix.npy", "other/comm_matrix.npy")
    refused("of different runs", "other", "--format", "csv", "-o", "o")
    shutil.copytree(folder, "damaged")
    for text in ('{"layers": 3}', "{", "3", '{"volume": {"dispatch": 3}}'):
        with open("damaged/summary.json", "w") as file:
            file.write(text)
        refused("summary.json", "damaged", "--format", "csv", "-o", "o")
    for value in ({"remote": 5}, {}, [], "5", None, True, 1.5, -1, 10**30):
        changed = summary(folder)
        changed["layers"][0]["volume"]["dispatch"]["logical_bytes"] = value
        with open("damaged/summary.json", "w") as file:
            json.dump(changed, file)
        refused("dispatch of layer 0", "damaged", "--format", "csv", "-o", "o")


def content_of(folder):
    found = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            found[name] = file.read()
    return found


def check_list(folder):
    """With very many devices the pairs are a list: the same traffic; and what is damaged in it."""
    shutil.copytree(folder, "list", ignore=shutil.ignore_patterns("traffic-*"))
    arrays = csr(load("list/comm_matrix.npy"))
    os.remove("list/comm_matrix.npy")
    write("list", arrays)
    for kind in ("csv", "smpi", "chakra"):
        done = export("list", kind)
        check(done.returncode == 0, done.stderr)
        check(
            content_of(f"list/traffic-{kind}")
            == content_of(os.path.join(folder, f"traffic-{kind}")),
            f"{kind} of a list is not that of the array",
        )
    for spoiled in (
        {"indices": [99] + arrays["indices"][1:]},
        {"data": [-1] + arrays["data"][1:]},
        {"data": arrays["data"][1:]},
        {"indptr": [0, 5, 1] + arrays["indptr"][3:]},
        {"shape": [0, 0]},
    ):
        write("list", {**arrays, **spoiled})
        refused(NAME, "list", "--format", "csv", "-o", "o")
    with open(os.path.join("list", NAME), "r+b") as file:
        file.truncate(300)
    refused(f"{NAME} is damaged", "list", "--format", "csv", "-o", "o")
    os.remove(os.path.join("list", NAME))
    refused("neither comm_matrix.npy nor", "list", "--format", "csv", "-o", "o")


forward = [(layer, phase) for layer in range(LAYERS) for phase in ("dispatch", "combine")]
backward = [
    (layer, phase)
    for layer in reversed(range(LAYERS))
    for phase in ("dispatch_backward", "combine_backward")
]
made = check_formats("forward", {}, forward)
check_formats("train", {"run.mode": "train"}, forward + backward)
run("again", 2, {**SMALL, "data.tokens_per_device": 13})
check_refused(made)
check_list(made)
verdict()
