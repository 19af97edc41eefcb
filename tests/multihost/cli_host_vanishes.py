"""ctest: timeout=240 labels=long
A host whose network is cut in the middle of a training run ends the run, non-zero, within the time
that docs/clusters.md states; its last checkpoint is whole, and the run goes on from it on the hosts
that are left, with the same result bit for bit. Network namespaces are the hosts
(tests/support/hosts); it starts itself again on the first one.
"""
import os
import subprocess
import sys
import time

HOSTS = os.path.join(os.path.dirname(__file__), "..", "support", "hosts")
if "MOESIM_HOSTFILE" not in os.environ:
    os.execv(HOSTS, [HOSTS, "2", sys.executable, __file__])

from _moesim import (
    MOESIM,
    SOURCE,
    check,
    config,
    environment,
    metrics,
    moesim,
    verdict,
    wait_for,
)

STATED = 60  # seconds, in docs/clusters.md and scripts/openmpi.conf
STEPS = 400
TRAINED = {
    "run.mode": "train",
    "run.steps": STEPS,
    "model.num_experts": 16,
    "model.hidden_size": 32,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "cluster.devices": 4,
    "data.tokens_per_device": 32,
    "data.sequence_length": 32,
    "train.checkpoint_every": 20,
    "train.learning_rate": 0.01,
}


def checkpoints(folder):
    there = os.path.join(folder, "checkpoints")
    return sorted(os.listdir(there)) if os.path.isdir(there) else []


def running():
    """Ranks of this test on any host: the namespaces of processes are its own."""
    done = subprocess.run(["pgrep", "-f", "^" + MOESIM], stdout=subprocess.PIPE, check=False)
    return done.returncode == 0


def start(path):
    """The run on two ranks of each host, without this test's own time-out in front of it."""
    line = ["mpirun", "-np", "4", "--hostfile", os.environ["MOESIM_HOSTFILE"], MOESIM]
    said = open("said", "w")
    return subprocess.Popen(
        [*line, "--out", "cut", path],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
    )


def check_vanishing(host):
    """The host's cable is pulled once the run has written its second checkpoint."""
    subprocess.run(["rm", "-rf", "cut"], check=True)
    path = config("run", TRAINED)
    job = start(path)
    check(wait_for(lambda: len(checkpoints("cut")) >= 1 and len(steps("cut")) > 25, 60), "no start")
    check(job.poll() is None and running(), "the run does not run")
    subprocess.run([HOSTS, "cut", host], check=True)
    cut = time.monotonic()
    try:
        code = job.wait(STATED)
    except subprocess.TimeoutExpired:
        job.kill()
        code = None
    took = time.monotonic() - cut
    print(f"{host} cut: status {code} after {took:.1f} s")
    check(code not in (None, 0), f"{host} was cut: status {code} after {took:.0f} s")
    check(wait_for(lambda: not running(), STATED), "ranks are left on a host")
    subprocess.run([HOSTS, "mend", host], check=True)


def steps(folder):
    try:
        return metrics(folder)
    except (OSError, ValueError):
        return []


def figures(folder):
    """What the steps say, without their times."""
    return [{k: v for k, v in line.items() if k != "time"} for line in metrics(folder)]


def check_resumed():
    """On one host it goes on from the last checkpoint as if nothing had happened."""
    there = checkpoints("cut")
    check(len(steps("cut")) < STEPS, "the run was over before its host was cut")
    resumed = moesim(2, "--resume", "cut", "--quiet")
    check(resumed.code == 0, f"resumed from {there}: {resumed.err}")
    whole = {**TRAINED, "cluster.devices_per_node": 2}
    alone = moesim(2, config("whole", whole), "--out", "whole", "--quiet")
    check(alone.code == 0, alone.err)
    one, other = figures("whole"), figures("cut")
    check(len(one) == STEPS and one == other, f"{len(one)} and {len(other)} steps, or they differ")


check_vanishing("host1")
check_resumed()
verdict()
