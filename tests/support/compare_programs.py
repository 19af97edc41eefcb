"""Compares two builds of moesim: the same configurations must give the same results.

    python3 tests/support/compare_programs.py OLD NEW [CONFIG.ini ...]

OLD and NEW are two programs, for example that of the commit before a change that must not change
behaviour, and that of the commit after it. Without configurations all of configs/ and its folders
are run. Each is run by both programs; summary.json, metrics.jsonl and explain.json must be equal
but for times and the machine, every .npy byte for byte, and so must what is printed, but for times,
sizes of memory and the folder. Training is cut to a few steps. Exits with 1 when anything differs.
"""

import argparse
import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMES = re.compile(r"time|seconds|topology|machine|hosts")
NUMBER = r"\d[\d.,e+-]*"
UNITS = r"(?:ns|us|µs|ms|s|min|h|GiB|MiB/s|GB/s|GFLOP/s|TFLOP/s)"
# What is printed and differs from run to run: a line that speaks of one of these is left out.
STEP_TIME = re.compile(rf"\s+{NUMBER} ?{UNITS}\s*$")
VARYING = re.compile(rf"{NUMBER} ?{UNITS}\b|memory|time|seconds|results? in|/|phase|route|combine")


def without_times(value):
    """The same JSON value without keys that hold times or describe the machine."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not TIMES.search(k)}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return value


def steady(path):
    """What of a result file must not change, or None for a file of times."""
    if path.name in ("timeline.json", "report.html"):
        return None
    if path.suffix == ".json":
        return without_times(json.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in path.read_bytes().splitlines()]
    return path.read_bytes()


def screen(text):
    """The lines that must not change, with their blanks folded."""
    kept = []
    for line in text.splitlines():
        if re.match(r"\s+\d+\s", line):
            line = STEP_TIME.sub("", line)
        if not VARYING.search(line):
            kept.append(" ".join(line.split()))
    return kept


def settings_of(config):
    """Ranks, and settings that cut training to a few steps."""
    text = config.read_text(encoding="utf-8")
    devices = re.search(r"^\s*devices\s*=\s*(\d+)", text, re.M)
    count = int(devices[1]) if devices else 0
    ranks = 2 if count % 2 == 0 and count else 1
    sets = ["--set", "run.threads=1"]
    if count == 0:
        sets += ["--set", "cluster.devices=8"]
        ranks = 2
    if re.search(r"^\s*mode\s*=\s*train", text, re.M):
        sets += ["--set", "run.steps=3"]
    return ranks, sets


def run(program, config, out):
    ranks, sets = settings_of(config)
    mpirun = ["mpirun", "--oversubscribe", "-np", str(ranks)]
    command = [*mpirun, str(program), str(config), "--out", str(out), *sets]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    return result.returncode, screen(result.stdout), result.stderr


def differences(config, programs, folder):
    """What differs between the two programs on one configuration, as lines."""
    outs = [Path(folder) / name for name in ("old", "new")]
    runs = [run(program, config, out) for program, out in zip(programs, outs)]
    found = []
    if runs[0][0] != runs[1][0]:
        found.append(f"exit status {runs[0][0]} and {runs[1][0]}: {runs[1][2].strip()[:300]}")
    if runs[0][1] != runs[1][1]:
        changed = difflib.unified_diff(runs[0][1], runs[1][1], "old", "new", lineterm="", n=0)
        found.append("the screen differs:\n    " + "\n    ".join(list(changed)[:12]))
    names = [{p.name for p in out.iterdir()} if out.is_dir() else set() for out in outs]
    for name in sorted(names[0] ^ names[1]):
        found.append(f"{name} is written by one of them only")
    for name in sorted(names[0] & names[1]):
        old, new = outs[0] / name, outs[1] / name
        if old.is_file() and steady(old) != steady(new):
            found.append(f"{name} differs")
    files = len(names[0] & names[1])
    return found, files, runs[1][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("configs", nargs="*", type=Path)
    options = parser.parse_args()
    programs = [options.old.resolve(), options.new.resolve()]
    configs = options.configs or sorted(
        p for p in ROOT.glob("configs/**/*.ini") if "clusters" not in p.parts
    )
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
    os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    failures = 0
    for config in configs:
        with tempfile.TemporaryDirectory() as folder:
            found, files, status = differences(config.resolve(), programs, folder)
        failures += bool(found)
        print(f"{config.name}: {'; '.join(found) or 'equal'} ({files} files, exit {status})")
    print(f"{len(configs)} configurations, {failures} differ")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
