"""ctest: timeout=180
scripts/simulate: on matrices whose time is known the replay gives it; it is never below the busiest
link; it agrees with the formula where loads are balanced; more bytes take longer; what it writes;
bad input, SimGrid's own failures, and SimGrid missing.
"""
import os
import re
import shutil
import subprocess
import sys

import _moesim as m
from _moesim import check

SCRIPT = os.path.join(m.SOURCE, "scripts", "simulate")
sys.path.insert(0, os.path.join(m.SOURCE, "scripts"))
from simulate_lib import simgrid  # noqa: E402  (needs the path)

INTRA, INTER = 200e9, 50e9
CONFIG = {
    "run.steps": 1,
    "model.num_layers": 2,
    "model.num_experts": 32,
    "model.hidden_size": 16,
    "model.moe_intermediate_size": 8,
    "router.top_k": 4,
    "data.tokens_per_device": 32,
    "data.sequence_length": 32,
    "data.skew": 0,
    "cluster.file": os.path.join(m.SOURCE, "configs", "clusters", "h200.ini"),
    "cluster.model_hidden_size": 7168,
}


def simulate(*words, **more):
    return subprocess.run(
        [sys.executable, SCRIPT, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=m.environment(**more),
    )


# --- times that are known ---


def replayed(nodes, gpus, pairs, window, precise=1e-6):
    folder = os.path.join(m.TEMPORARY, "replay")
    os.makedirs(folder, exist_ok=True)
    devices = nodes * gpus
    simgrid.write_platform(os.path.join(folder, "platform.xml"), nodes, gpus, INTRA, INTER)
    simgrid.write_hosts(os.path.join(folder, "hosts"), devices)
    actions = os.path.join(folder, "actions")
    simgrid.write_actions(actions, devices, gpus, pairs, window)
    bound = busiest(gpus, devices, pairs)
    return simgrid.replay(
        folder, devices, actions, simgrid.moment(bound, 2 * devices, window, precise)
    )


def busiest(gpus, devices, pairs):
    """Seconds of the link that has the most to carry."""
    sent = [[0, 0] for _ in range(devices)]
    received = [[0, 0] for _ in range(devices)]
    for (s, d), size in pairs.items():
        across = s // gpus != d // gpus
        sent[s][across] += size
        received[d][across] += size
    return max(
        max(bytes_[0] / INTRA, bytes_[1] / INTER) for one in (sent, received) for bytes_ in one
    )


def close(name, found, expected):
    check(abs(found / expected - 1) < 1e-3, f"{name}: {found} s, expected {expected}")


def test_known():
    million = 10**6
    close("inside a node", replayed(2, 2, {(0, 1): million}, 4), million / INTRA)
    close("across nodes", replayed(2, 2, {(0, 2): million}, 4), million / INTER)
    both = {(0, 3): million, (1, 3): million}
    close("two into one device", replayed(2, 2, both, 4), 2 * million / INTER)
    close("two out of one", replayed(2, 2, {(0, 2): million, (0, 3): million}, 4), 2e6 / INTER)
    apart = {(0, 2): million, (2, 0): million, (1, 3): million}
    close("each on links of its own", replayed(2, 2, apart, 4), million / INTER)
    # A chain of devices each of which has to wait for nothing: both directions work at once.
    ring = {(d, (d + 1) % 8): million for d in range(8)}
    close("a ring", replayed(4, 2, ring, 2), million / INTER)
    # All to all: in the order of distances every round is a permutation.
    every = {(s, d): million for s in range(8) for d in range(8) if s != d}
    for window in (4, 16):
        found, bound = replayed(8, 1, every, window), busiest(1, 8, every)
        check(bound * (1 - 1e-6) <= found <= 1.02 * bound, f"all to all: {found} s, {bound}")
    uneven = {(s, d): (1 + (s * 7 + d * 3) % 5) * million for s, d in every}
    exact = replayed(4, 2, uneven, 16, 0)
    for precise in (1e-6, 2e-3, 5e-3):
        found = replayed(4, 2, uneven, 16, precise)
        check(exact * (1 - precise) <= found <= exact * (1 + 1e-6), f"{precise}: {found}, {exact}")
    more = {pair: size * 2 for pair, size in every.items()}
    close("twice the bytes", replayed(8, 1, more, 16), 2 * replayed(8, 1, every, 16))


# --- the program's own exchanges ---


def time_of(name, nodes, gpus, settings=(), *words):
    out = os.path.join(m.TEMPORARY, name)
    config = m.config(name, {**CONFIG, **dict(settings)})
    done = simulate(config, "--nodes", str(nodes), "--gpus", str(gpus), "--out", out, *words)
    if not check(done.returncode == 0, f"{name}: {done.returncode} {done.stderr}"):
        return None
    check("Traceback" not in done.stderr and "[" not in done.stdout, done.stdout)
    return m.summary(out)


def test_run():
    found = time_of("even", 2, 4)
    if not found:
        return
    predicted, simulated = found["time"]["predicted"], found["time"]["simulated"]
    check(re.search("SMPI replay, [0-9]+ messages", simulated["algorithm"]), simulated)
    rows = m.load(os.path.join(m.TEMPORARY, "even", "comm_matrix.npy"))
    fixed, floor = found["time"]["exchange"]["fixed_us"], 0
    check(found["time"]["exchange"]["dispatch_row_bytes"] == 7168 * 4, "row bytes")
    rates = found["config"]["cluster"]
    for layer in range(2):
        for phase in ("dispatch", "combine"):
            pairs = {
                (s, d): rows.data[(layer * 8 + s) * 8 + d] * 7168 * 4
                for s in range(8)
                for d in range(8)
                if s != d
            }
            global INTRA, INTER
            INTRA = rates["intra_gbps"] * rates["link_efficiency"] * 1e9
            INTER = rates["inter_gbps"] * rates["link_efficiency"] * 1e9
            floor += 1e6 * busiest(4, 8, pairs) + fixed
    both = simulated["dispatch_us"] + simulated["combine_us"]
    check(both >= floor * (1 - 1e-6), f"{both} us, the busiest links alone take {floor}")
    for phase in ("dispatch", "combine"):
        ratio = simulated[f"{phase}_us"] / predicted[f"{phase}_us"]
        check(0.999 <= ratio <= 1.1, f"{phase}: replay / formula = {ratio}")
    check(simulated["contention"] is False, "contention where it agrees")
    moved = both - predicted["dispatch_us"] - predicted["combine_us"]
    check(m.near(simulated["step_us"], predicted["step_us"] + moved, 1e-9), "step")
    skewed = time_of("skewed", 2, 4, {"data.skew": 2}.items())
    alone = time_of("one-node", 1, 8)
    for name, one in (("skewed", skewed), ("one node", alone)):
        for phase in ("dispatch_us", "combine_us") if one else ():
            ratio = one["time"]["simulated"][phase] / one["time"]["predicted"][phase]
            check(0.999 <= ratio <= 1.1, f"{name}, {phase}: replay / formula = {ratio}")
    again = time_of("again", 2, 4)
    check(again and again["time"]["simulated"] == simulated, "another time from the same run")


# --- what fails ---


def refused(name, pattern, *words, **more):
    done = simulate(*words, **more)
    check(done.returncode == 2, f"{name}: status {done.returncode}: {done.stderr}")
    check(re.search(pattern, done.stderr), f"{name}: {done.stderr}")
    check(done.stderr.count("\n") == 1 and not done.stdout, f"{name}: {done.stderr}{done.stdout}")


def path_without(name):
    """A PATH with python3 and mpirun, and nothing of SimGrid."""
    folder = os.path.join(m.TEMPORARY, name)
    os.makedirs(folder)
    for tool in ("bash", "env", "python3", "mpirun"):
        os.symlink(shutil.which(tool), os.path.join(folder, tool))
    return folder


def test_refused():
    config = m.config("refused", CONFIG)
    out = os.path.join(m.TEMPORARY, "refused-out")
    size = ("--nodes", "2", "--gpus", "4")
    for name, pattern, *words in (
        ("no configuration", "one configuration", *size),
        ("no nodes", "--nodes is missing", config, "--gpus", "4"),
        ("no devices", "whole number", config, "--nodes", "0", "--gpus", "4"),
        ("a word", "whole number", config, "--nodes", "2", "--gpus", "many"),
        ("too many", "2 to 2048", config, "--nodes", "4000", "--gpus", "8"),
        ("no such file", "nothing.ini", "nothing.ini", *size),
        ("experts", "experts", config, "--nodes", "3", "--gpus", "5"),
        ("rate", "inter_gbps", config, *size, "--set", "cluster.inter_gbps=0"),
    ):
        refused(name, pattern, *words, "--out", out)
    check(not os.path.exists(out), "something ran")
    refused("no SimGrid", "libsimgrid-dev", config, *size, PATH=path_without("bare"))


def test_quirks():
    """A replay that cannot end, or that is cut off, is no time."""
    folder = os.path.join(m.TEMPORARY, "quirk")
    os.makedirs(folder)
    simgrid.write_platform(os.path.join(folder, "platform.xml"), 1, 2, INTRA, INTER)
    simgrid.write_hosts(os.path.join(folder, "hosts"), 2)
    actions = os.path.join(folder, "actions")
    for name, text in (
        (
            "a deadlock",
            "0 init\n0 recv 1 0 10 6\n0 finalize\n1 init\n1 recv 0 0 10 6\n1 finalize\n",
        ),
        ("an unknown action", "0 init\n0 jump\n0 finalize\n1 init\n1 finalize\n"),
        ("nothing", ""),
    ):
        with open(actions, "w") as file:
            file.write(text)
        try:
            found = simgrid.replay(folder, 2, actions)
            check(False, f"{name} took {found} s")
        except simgrid.Failed as error:
            check("\n" not in str(error), f"{name}: {error}")


if shutil.which("smpirun"):
    test_known()
    test_run()
    test_quirks()
test_refused()
m.verdict()
