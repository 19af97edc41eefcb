"""The program itself under SimGrid's SMPI, one device a rank: its own messages, on a cluster whose
links are shared, beside the replay of the same messages and the formula.

Latency is left out as in the replay, and computing takes no time. Sizes (an all-to-all of three
numbers), tokens and weights of the rows, and rows are three exchanges, which follow one another; or
two, where sizes, tokens and weights go in one block. SMPI adds an envelope to every message, which is
counted here too.
"""
import json
import os
import subprocess

import launch
from advise_lib import runs
from command_line import Refused
from export_lib import matrix
from run_lib import safe_files
from run_lib.record import at
from simulate_lib import simgrid

MOST_DEVICES = 64
AGREES = 0.01
ENVELOPE = 16  # bytes that SMPI adds to a message
SIZES = 24  # bytes of the numbers of rows, pairs and parts
ALL_AT_ONCE = (
    "--cfg=smpi/alltoallv:ompi_basic_linear",
    "--cfg=smpi/alltoall:basic_linear",
)
TIMES = ("time", "seconds")  # members that say how long something took


def program():
    """The program as smpicc compiled it, built now where it has to be."""
    script = os.path.join(launch.SCRIPTS, "build-if-needed")
    if not os.path.exists(script):
        raise Refused("--online needs the sources of moesim, from which it is built for SimGrid")
    if subprocess.run([script, "simgrid"], check=False).returncode:
        raise simgrid.Failed("moesim could not be built for SimGrid")
    return os.path.join(os.path.dirname(launch.SCRIPTS), "build-simgrid", "moesim")


def run(path, scratch, devices, out, words, environment):
    """Runs the program on platform.xml and hosts of the folder. Only a summary says that it did:
    SimGrid ends with status 0 after an abort.
    """
    done = subprocess.run(
        [
            *simgrid.smpirun(scratch, devices),
            *ALL_AT_ONCE,
            f"--cfg=surf/precision:{simgrid.SHORTEST}",
        ]
        + [path, "--quiet", "--out", out, *words],
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode or not os.path.exists(os.path.join(out, "summary.json")):
        said = (
            runs.sentence(done.stdout) if "moesim: " in done.stdout else simgrid.reason(done.stdout)
        )
        raise simgrid.Failed(f"the program under SimGrid ended without results: {said}")


def last_step(folder):
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        return json.loads(file.read().splitlines()[-1])


def block_bytes(folder):
    """Of the block in which sizes and metadata went to each device; None where they did not."""
    with open(os.path.join(folder, "summary.json"), encoding="utf-8") as file:
        return at(json.load(file), "machine.metadata_block_bytes")


def figures(folder):
    """The steps of a run without what says how long something took."""
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        return [_timeless(json.loads(line)) for line in file]


def _timeless(value):
    if isinstance(value, dict):
        return {name: _timeless(inner) for name, inner in value.items() if name not in TIMES}
    return value


# --- the same messages replayed ---


def messages(folder, summary):
    """[(phase, {(source, destination): bytes})] of the last step, as the program sends them."""
    sent = matrix.read(folder)
    devices = sent.devices
    block = block_bytes(folder)
    announced = {(s, d): block or SIZES for s in range(devices) for d in range(devices) if s != d}
    kinds = ("logical_bytes",) if block else ("metadata_bytes", "logical_bytes")
    found = []
    for layer in range(len(sent.layers)):
        counts = sent.between(layer)
        volume = summary["layers"][layer]["volume"]
        for phase in ("dispatch", "combine"):
            there, ways = at(volume, f"{phase}.rows"), phase == "dispatch"
            for kind in kinds:
                a_row = at(volume, f"{phase}.{kind}") / there if there else 0
                pairs = {(s, d) if ways else (d, s): round(n * a_row) for s, d, n in counts}
                found += [(phase, pairs)] if a_row else []
            found += [(phase, announced)] if ways else []
    return found


def enveloped(pairs):
    """With what SMPI adds to each message."""
    return {pair: size + ENVELOPE for pair, size in pairs.items()}


def compare(folder, summary, replay, busiest):
    """{name: microseconds} of dispatch and combine together: under SMPI, replayed and by the
    formula, which is the busiest link of each exchange.
    """
    phases = last_step(folder)["time"]["phases"]
    found = {"online_us": (phases["dispatch"] + phases["combine"]) * 1e6 / simgrid.SLOWER}
    exchanges = messages(folder, summary)
    found["online_replay_us"] = 1e6 * sum(replay(pairs) for _, pairs in exchanges)
    found["online_formula_us"] = 1e6 * sum(busiest(enveloped(pairs)) for _, pairs in exchanges)
    return found


def refuse(devices, config):
    """What the program under SimGrid is not compared in; config: the resolved one, where known."""
    if devices > MOST_DEVICES:
        raise Refused(f"--online with {devices} devices: at most {MOST_DEVICES} are run")
    if config.get("exchange.mode") == "two_level":
        raise Refused("--online with exchange.mode = two_level: only one hop is compared")


def check_same(folded, online):
    """Figures do not depend on ranks, and not on who carries messages."""
    if figures(folded) != figures(online):
        raise simgrid.Failed(f"the figures of {online} are not those of {folded}")
    names = [os.path.join(folder, "comm_matrix.npy") for folder in (folded, online)]
    first, second = (safe_files.read_bytes(name, matrix.MOST_BYTES) for name in names)
    if first != second:
        raise simgrid.Failed(f"{names[1]} is not {names[0]}")
