"""ctest: timeout=1200 labels=long
16384 folded devices with an expert each: on 1 and on 2 ranks the same figures and the same list of
device pairs, which adds up and which report and export-traffic read; a rank takes at most a stated
amount of memory; and what would not fit is refused.
"""
import array
import os
import subprocess
import sys
import zipfile

from _moesim import MPIRUN, MOESIM, SOURCE, TEMPORARY, check, config, environment, metrics
from _moesim import moesim, summary, verdict

DEVICES, TOKENS, K = 16384, 4, 8
MOST = {1: 1000 << 20, 2: 640 << 20}  # resident bytes of a rank; all cells would be 36 GiB
SETTINGS = {
    "run.steps": 1,
    "run.threads": 1,
    "model.hidden_size": 32,
    "model.moe_intermediate_size": 16,
    "model.num_experts": DEVICES,
    "router.top_k": K,
    "cluster.devices": DEVICES,
    "cluster.devices_per_node": 8,
    "data.tokens_per_device": TOKENS,
    "data.sequence_length": 2 * TOKENS,
    "balance.alpha_comm": 0.02,
}
LONGER = ["600" if word == "120" else word for word in MPIRUN]  # seconds before it is stopped
PEAK = (
    "import os, resource, subprocess, sys\n"
    "code = subprocess.run(sys.argv[2:]).returncode\n"
    "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
    "open(sys.argv[1] + os.environ['OMPI_COMM_WORLD_RANK'], 'w').write(str(peak))\n"
    "sys.exit(code if code >= 0 else 1)\n"
)


def run(ranks):
    folder = os.path.join(TEMPORARY, f"np{ranks}")
    words = [MOESIM, "--quiet", "--out", folder, config("many", SETTINGS)]
    done = subprocess.run(
        [*LONGER, str(ranks), sys.executable, "-c", PEAK, folder + ".peak", *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    check(done.returncode == 0, f"np {ranks}: {done.returncode} {done.stderr}")
    for rank in range(ranks):
        with open(f"{folder}.peak{rank}", encoding="ascii") as file:
            peak = 1024 * int(file.read())
        print(f"np {ranks}, rank {rank}: {peak >> 20} MiB", flush=True)
        check(peak < MOST[ranks], f"rank {rank} of {ranks} took {peak >> 20} MiB")
    return folder


def without_times(folder):
    return [
        {key: value for key, value in step.items() if key != "time"} for step in metrics(folder)
    ]


def pairs_of(folder):
    """(data, indices, indptr) of the list of pairs."""
    with zipfile.ZipFile(os.path.join(folder, "comm_matrix_sparse.npz")) as archive:
        for name in ("data", "indices", "indptr"):
            content = archive.read(f"{name}.npy")
            numbers = array.array("q")
            numbers.frombytes(content[10 + int.from_bytes(content[8:10], "little") :])
            yield numbers


def check_pairs(folder):
    """A row for each token and device that it reaches, at most K of them."""
    data, indices, indptr = pairs_of(folder)
    volume = summary(folder)["volume"]["dispatch"]
    check(sum(data) == volume["rows"], f"{sum(data)} rows listed, {volume['rows']} sent")
    check(0 < sum(data) <= DEVICES * TOKENS * K and min(data) > 0, "rows")
    check(len(indptr) == DEVICES + 1 and max(indices) < DEVICES, "the shape")
    most = max(b - a for a, b in zip(indptr, indptr[1:]))
    check(most <= TOKENS * K, f"a device sends to {most} others")


def check_script(name, *words):
    done = subprocess.run(
        [os.path.join(SOURCE, "scripts", name), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    check(done.returncode == 0, f"{name}: {done.returncode} {done.stderr[-500:]}")


def check_refused():
    """A gradient needs all logits and cells: far more than there is, or than is wanted here."""
    done = moesim(1, "--check", config("train", {**SETTINGS, "run.mode": "train"}))
    check(done.code == 2 and "this run needs about" in done.err, done.code, done.err)


one, two = run(1), run(2)
check(without_times(one) == without_times(two), "other figures on 2 ranks")
check(list(pairs_of(one)) == list(pairs_of(two)), "other pairs on 2 ranks")
check_pairs(one)
page = os.path.join(TEMPORARY, "page.html")
check_script("report", one, "-o", page)
check(os.path.getsize(page) < 8 << 20, f"the page has {os.path.getsize(page) >> 20} MiB")
check_script("export-traffic", "--format", "csv", one)
check_refused()
verdict()
