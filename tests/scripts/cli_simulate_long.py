"""ctest: timeout=1500 labels=long
scripts/simulate --online: the program itself under SimGrid's SMPI. It is built with smpicc; replay
and program take the same time within 1 %, even and skewed, in one node and across nodes, up to 64
devices; losses of training are those under Open MPI, bit for bit.
"""
import os
import shutil
import subprocess
import sys

import _moesim as m
from _moesim import check

sys.path.insert(0, os.path.join(m.SOURCE, "scripts"))
import launch  # noqa: E402  (needs the path)
from simulate_lib import online, simgrid  # noqa: E402

SETTINGS = {
    "run.steps": 2,
    "model.num_layers": 2,
    "model.num_experts": 64,
    "model.hidden_size": 256,
    "model.moe_intermediate_size": 16,
    "router.top_k": 4,
    "data.tokens_per_device": 32,
    "data.sequence_length": 32,
    "cluster.file": os.path.join(m.SOURCE, "configs", "clusters", "h200.ini"),
}


def test_replay(name, nodes, gpus, settings):
    out = os.path.join(m.TEMPORARY, name)
    done = subprocess.run(
        [sys.executable, os.path.join(m.SOURCE, "scripts", "simulate"), "--online"]
        + [m.config(name, {**SETTINGS, **settings}), "--out", out]
        + ["--nodes", str(nodes), "--gpus", str(gpus)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=m.environment(),
    )
    if not check(done.returncode == 0, f"{name}: {done.returncode} {done.stderr}"):
        return
    found = m.summary(out)["time"]["simulated"]
    own = found["online_us"]
    check(abs(found["online_replay_us"] / own - 1) < 0.01, f"{name}: {found}")
    check(abs(found["online_formula_us"] / own - 1) < 0.1, f"{name}: {found}")
    check("bit for bit" in done.stdout, done.stdout)


def test_losses():
    """Training, with its backward pass, checkpoint and optimiser."""
    settings = {**SETTINGS, "run.mode": "train", "run.steps": 5, "cluster.devices": 8}
    settings["cluster.devices_per_node"] = 4
    config = m.config("train", settings)
    folder = os.path.join(m.TEMPORARY, "smpi")
    ours, theirs = (os.path.join(m.TEMPORARY, name) for name in ("ours", "theirs"))
    os.makedirs(folder)
    done = m.moesim(4, "--quiet", "--out", ours, config)
    check(done.code == 0, f"Open MPI: {done.err}")
    simgrid.write_platform(os.path.join(folder, "platform.xml"), 2, 4, 200e9, 50e9)
    simgrid.write_hosts(os.path.join(folder, "hosts"), 8)
    online.run(online.program(), folder, 8, theirs, [config], launch.environment())
    steps = online.figures(ours)
    check(len(steps) == 5 and isinstance(steps[-1]["task_loss"], float), f"{steps[-1:]}")
    check(steps == online.figures(theirs), "losses differ between Open MPI and SimGrid")


if shutil.which("smpirun") and shutil.which("smpicc"):
    test_replay("even", 2, 4, {"data.skew": 0})
    test_replay("skewed", 4, 4, {"data.skew": 2, "exchange.payload": "bf16"})
    test_replay("one-node", 1, 8, {})
    test_replay("64", 8, 8, {"run.steps": 1})
    test_losses()
else:
    print("skipped: SimGrid is not installed (libsimgrid-dev)")
m.verdict()
