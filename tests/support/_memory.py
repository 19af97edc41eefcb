"""The estimate of memory beside the resident peak of a rank. Configurations are those of the random
test, enlarged until they need some tens of MiB, because below that the libraries are most of it.
"""

import os
import random
import re
import shutil
import subprocess
import sys

import _moesim
from _moesim import MPIRUN, SOURCE, TEMPORARY, check, environment

sys.path.insert(0, os.path.join(SOURCE, "tests", "random"))
from configurations import draw  # noqa: E402
from files import write_files  # noqa: E402
from keys import read_table  # noqa: E402

MIB = 1 << 20
# Within -5 and +15 %, or 3 MiB: pages of libraries differ from run to run by so much.
LEAST, MOST, SLACK = 0.95, 1.15, 3 * MIB
NEEDED = re.compile(
    r";   on the fullest rank: (\d+)\n(?:;     .*\n)+;   besides on rank 0, [^:]*: (\d+)\n"
)
PEAK = os.path.join(TEMPORARY, "peak.py")

with open(PEAK, "w", encoding="ascii") as file:
    file.write(
        "import os, resource, subprocess, sys\n"
        "code = subprocess.run(sys.argv[2:]).returncode\n"
        "peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss\n"
        "rank = os.environ.get('OMPI_COMM_WORLD_RANK') or os.environ.get('PMI_RANK', '0')\n"
        "open(sys.argv[1] + '.' + rank, 'w').write(str(peak))\n"
        "sys.exit(code if code >= 0 else 1)\n"
    )


def peaks(ranks, folder, *words):
    """The outcome, and the resident peak of each rank in bytes."""
    name = os.path.join(TEMPORARY, folder, "peak")
    done = subprocess.run(
        [*MPIRUN, str(ranks), sys.executable, PEAK, name, *words],
        cwd=os.path.join(TEMPORARY, folder),
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return done, []
    found = []
    for rank in range(ranks):
        with open(f"{name}.{rank}", encoding="ascii") as file:
            found.append(int(file.read()) * 1024)
    return done, found


def estimate(folder, ranks, words):
    """Bytes of the fullest rank; None where the configuration is refused."""
    done = subprocess.run(
        [*MPIRUN, str(ranks), _moesim.MOESIM, "--check", *words],
        cwd=os.path.join(TEMPORARY, folder),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    needed = NEEDED.search(done.stdout)
    return sum(map(int, needed.groups())) if needed else None


def compare(folder, ranks, words, label):
    """Prints and checks estimate and peak of a configuration; None where it is refused."""
    words = [words] if isinstance(words, str) else words
    said = estimate(folder, ranks, words)
    if not said or said > 800 * MIB:
        return None
    done, found = peaks(ranks, folder, _moesim.MOESIM, "--quiet", "--force", "--out", "out", *words)
    if not found:
        return None
    took = max(found)
    close = LEAST * took <= said <= MOST * took or abs(said - took) <= SLACK
    print(f"{label}, np {ranks}: {said / MIB:.1f} said, {took / MIB:.1f} taken", flush=True)
    return close


def enlarge(case, table, draw_of_seed, factor):
    """Multiplies tokens and, as the seed has it, widths."""
    wide = draw_of_seed.random() < 0.5
    powers = {"data.tokens_per_device": 0.7 if wide else 1}
    powers["model.hidden_size"] = 0.3 if wide else 0
    powers["model.moe_intermediate_size"] = 0.2 if wide else 0
    for key, power in powers.items():
        case.settings[key] = max(1, int(case.number(key, table) * 3 * factor**power))
    if "tokens" in case.extra:
        case.extra["tokens"] = int(case.extra["tokens"] * factor)


def check_random(seeds, allowed):
    """Of these configurations at most the share `allowed` may be estimated outside the bounds."""
    table, tried, bad = read_table(), 0, []
    for seed in seeds:
        case, draw_of_seed = draw(seed, table), random.Random(f"memory {seed}")
        case.settings["run.threads"] = draw_of_seed.choice([1, 1, 2])
        # pages of a window count in the resident memory of every rank that touched them;
        # tests/predict/mpi_windows.c compares the windows themselves
        case.settings["exchange.transport"] = "alltoallv"
        enlarge(case, table, draw_of_seed, 400)
        ranks = draw_of_seed.choice([n for n in (1, 2, 4) if case.devices() % n == 0])
        folder = os.path.join(TEMPORARY, "case")
        shutil.rmtree(folder, ignore_errors=True)
        write_files(case, table, folder)
        close = compare("case", ranks, "case.ini", f"seed {seed}")
        tried += close is not None
        if close is False:
            bad.append(seed)
    check(tried >= len(seeds) / 2, f"{tried} of {len(seeds)} configurations ran")
    check(len(bad) <= allowed * tried, f"outside the bounds: seeds {bad} of {tried}")
