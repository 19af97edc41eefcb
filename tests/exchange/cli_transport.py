"""ctest: timeout=240
Rows through shared memory (exchange.transport): the same results, reports and trained parameters as
by MPI_Alltoallv, in every mode and payload, forward and in training, folded too, and where the
smallest messages of MPI are large ones to it. A folder for shared memory that is too small is named
in one sentence.
"""
import os
import shutil
import subprocess

from _moesim import (
    MOESIM,
    MPIRUN,
    TEMPORARY,
    check,
    config,
    environment,
    moesim,
    run,
    summary,
    verdict,
)
from _same import compare

BASE = {
    "run.steps": 2,
    "run.threads": 1,
    "model.num_layers": 2,
    "model.hidden_size": 136,
    "model.num_experts": 16,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 12,
    "router.top_k": 3,
    "balance.alpha_expert": 0.003,
    "cluster.devices": 8,
    "cluster.devices_per_node": 4,
    "data.tokens_per_device": 23,
}
MODES = {
    "token": {},
    "selection": {"exchange.mode": "selection"},
    "two_level": {"exchange.mode": "two_level"},
    "parts": {"exchange.mode": "two_level", "exchange.node_sum": "no"},
}
PAYLOADS = {
    "fp32": {},
    "bf16": {"exchange.payload": "bf16", "exchange.combine_payload": "bf16"},
    "fp8": {"exchange.payload": "fp8"},
}
FORWARD = {"output.tensors": "yes"}
TRAIN = {"run.mode": "train", "train.save_final": "yes", "train.accumulate": 2}
SMALL_MESSAGES = {"OMPI_MCA_btl_vader_eager_limit": "64", "OMPI_MCA_btl_vader_fbox_size": "256"}


def check_results():
    for way, settings in (("forward", FORWARD), ("train", TRAIN)):
        for mode, of_mode in MODES.items():
            for payload, of_payload in PAYLOADS.items():
                label = f"{way}-{mode}-{payload}"
                every = {**BASE, **settings, **of_mode, **of_payload}
                first = run(label, 2, every)
                # a few ranks in turn: all of them with all would take minutes
                index = len(label) % 3
                for ranks in ((4,), (8,), (2,))[index]:
                    shared = run(
                        f"{label}-shared", ranks, {**every, "exchange.transport": "shared"}
                    )
                    if first and shared:
                        compare(first, shared, f"{label}, np {ranks}", "transport")


def check_small_messages():
    for index, mode in enumerate(MODES):
        every = {**BASE, **FORWARD, **MODES[mode], **list(PAYLOADS.values())[index % 3]}
        first = run(f"small-{mode}", 2, every)
        for transport in ("alltoallv", "auto"):
            sets = {**every, "exchange.transport": transport}
            small = run(f"small-{mode}-{transport}", 2 + index % 2 * 2, sets, **SMALL_MESSAGES)
            if first and small:
                compare(first, small, f"small messages, {mode}, {transport}", "transport")


def check_told():
    for ranks, said, inside in (
        (2, "through shared memory", "shared"),
        (1, "nothing travels: one rank", None),
    ):
        folder = os.path.join(TEMPORARY, f"told-{ranks}")
        path = config(f"told-{ranks}", {**BASE, "exchange.transport": "auto"})
        done = moesim(ranks, path, "--out", folder)
        check(done.code == 0 and said in " ".join(done.out.split()), f"np {ranks}: header")
        used = summary(folder)["machine"]["transport"]
        check(used == {"inside_host": inside, "between_hosts": None}, f"np {ranks}: {used}")


def check_last_group():
    """H = 136 is no multiple of 128: the last group of fp8 has 8 values and a scale of its own."""
    folder = os.path.join(TEMPORARY, "last-group")
    path = config("last-group", {**BASE, "exchange.payload": "fp8"})
    done = moesim(2, path, "--out", folder)
    said = "fp8 (fp32 scale per 128 values, the last of 8)"
    check(done.code == 0 and said in " ".join(done.out.split()), "the last group: header")
    levels = summary(folder)["volume"]["dispatch"]["by_level"].values()
    for level in levels:
        check(level["bytes"] == level["rows"] * (136 + 2 * 4), f"the last group: {level}")
    check(sum(level["rows"] for level in levels) > 0, "the last group: no rows")


def in_small_folder(size, transport, folder, sets):
    """Two ranks with a /dev/shm of that size, where mounts are allowed; else None. MPI itself takes
    others' memory there."""
    own = ["unshare", "-rm"]
    mount = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"
    if (
        not shutil.which("unshare")
        or subprocess.run([*own, "sh", "-c", mount], check=False, capture_output=True).returncode
    ):
        return None
    path = config(f"room-{transport}", {**sets, "exchange.transport": transport})
    words = [*MPIRUN, "2", MOESIM, path, "--out", os.path.join(TEMPORARY, folder)]
    return subprocess.run(
        [*own, "sh", "-c", f'{mount} && exec "$@"', "sh", *words],
        env=environment(OMPI_MCA_btl_vader_backing_directory=TEMPORARY),
        capture_output=True,
        text=True,
        check=False,
    )


def check_room():
    """What was asked for is refused; `auto` takes the other way, with the same results."""
    large = {**BASE, **FORWARD, "model.hidden_size": 1024, "data.tokens_per_device": 512}
    done = in_small_folder("2m", "shared", "room", large)
    if done is None:
        print("no mounts are allowed here: a small /dev/shm is not tested")
        return
    check(done.returncode == 2, f"a small /dev/shm: status {done.returncode}")
    lines = done.stderr.strip().splitlines()
    check(
        len(lines) == 1 and "/dev/shm has" in lines[0] and "alltoallv" in lines[0],
        f"a small /dev/shm: {lines}",
    )
    first = run("room-first", 2, BASE | FORWARD)
    for size, inside, said in (
        ("64k", "alltoallv", "by MPI_Alltoallv: a folder for shared memory (/dev/shm)"),
        ("64m", "shared", "through shared memory"),
    ):
        folder = os.path.join(TEMPORARY, f"room-{size}")
        done = in_small_folder(size, "auto", folder, BASE | FORWARD)
        check(done.returncode == 0, f"auto in {size}: {done.returncode}, {done.stderr}")
        if done.returncode == 0:
            check(said in " ".join(done.stdout.split()), f"auto in {size}: header")
            check(
                summary(folder)["machine"]["transport"]["inside_host"] == inside,
                f"auto in {size}: summary",
            )
            compare(first, folder, f"auto in {size}", "transport")


check_results()
check_small_messages()
check_told()
check_last_group()
check_room()
verdict()
