"""The random test finds faults: each is planted by a program that stands in front of moesim.

Without a fault the same seeds pass, so that a broken start is not taken for the fault.
"""

import os
import re
import stat
import subprocess
import sys

import _moesim
from _moesim import MOESIM, TEMPORARY, check, verdict

HERE = os.path.dirname(os.path.abspath(__file__))
DOUBLE = os.environ.get("MOESIM_F64", MOESIM + "-f64")

# A bash program. $out is the folder of results, `two` says that there are two ranks.
HEAD = """#!/bin/bash
program={program}
out=; resumed=
for ((i = 1; i <= $#; i++)); do
    j=$((i + 1))
    [ "${{!i}}" = --out ] && out=${{!j}}
    [ "${{!i}}" = --export-parameters ] && out=${{!j}}
    [ "${{!i}}" = --resume ] && out=${{!j}} && resumed=yes
done
two() {{ [ "${{OMPI_COMM_WORLD_SIZE:-1}}" = 2 ]; }}
first() {{ [ "${{OMPI_COMM_WORLD_RANK:-0}}" = 0 ]; }}
"""
RUN = '"$program" "$@"; status=$?\n'
END = "exit $status\n"
CHANGE = 'sed -i \'s/"expert": \\([0-9]\\)/"expert": 7\\1/\''

# name: what the program does, the comparison that is made, and what has to be found
FAULTS = {
    "none": ('exec "$program" "$@"\n', "ranks", None),
    "a loss differs at np = 2": (
        RUN + f"two && first && [ -f $out/metrics.jsonl ] && {CHANGE} $out/metrics.jsonl\n" + END,
        "ranks",
        "ranks: metrics.jsonl differs",
    ),
    "an array differs at np = 2": (
        RUN + "two && first && printf x | dd of=$out/expert_load.npy bs=1 seek=129 conv=notrunc"
        " status=none\n" + END,
        "ranks",
        "ranks: expert_load.npy differs",
    ),
    "a hang at np = 2": (
        'two && exec sleep 1000\nexec "$program" "$@"\n',
        "ranks",
        "(run|ranks): hang",
    ),
    "status 3": (RUN + "two && exit 3\n" + END, "ranks", "(run|ranks): self-check"),
    "status 1": (RUN + "two && exit 1\n" + END, "ranks", "(run|ranks): status 1"),
    "a crash": (
        'two && first && kill -SEGV $$\nexec "$program" "$@"\n',
        "ranks",
        "(run|ranks): status 139",
    ),
    "two sentences": (
        "two && { first && printf 'a sentence\\nand another one\\n' >&2; sleep 1; exit 2; }\n"
        + RUN
        + END,
        "ranks",
        "(run|ranks): refused with 2 lines",
    ),
    "words beside success": (RUN + "first && echo hm >&2\n" + END, "echo", "run: words on"),
    "a failed check with status 0": (
        RUN + 'first && sed -i \'s/"finite": true/"finite": false/\' $out/summary.json\n' + END,
        "echo",
        "run: a failed check with status 0",
    ),
    "threads": (
        RUN + f"[[ $* == *threads=2* ]] && first && {CHANGE} $out/summary.json\n" + END,
        "threads",
        "threads: summary.json differs",
    ),
    "mode": (
        RUN + f"[[ $* == *exchange.mode* ]] && first && {CHANGE} $out/summary.json\n" + END,
        "mode",
        "mode: summary.json differs",
    ),
    "transport": (
        RUN + f"[[ $* == *exchange.transport* ]] && first && {CHANGE} $out/summary.json\n" + END,
        "transport",
        "transport: summary.json differs",
    ),
    "an echo that is refused": (
        'set -o pipefail\nif [[ $* != *--check* ]]; then exec "$program" "$@"; fi\n'
        '"$program" "$@" | sed "s/^seed/sede/"\n',
        "echo",
        "--check of its own echo: status 0 and 2",
    ),
    "a config.ini that forgets the seed": (
        RUN + '[[ $* != */config.ini ]] && first && sed -i "/^seed/d" $out/config.ini\n' + END,
        "again",
        "config.ini again: .* differs",
    ),
    "a resumed run that differs": (
        RUN + f'[ "$resumed" ] && first && {CHANGE} $out/metrics.jsonl\n' + END,
        "fewer steps",
        "resume.*: metrics.jsonl differs",
    ),
    "double": (RUN + END, "double", "double: a loss differs"),
    "placements": (
        RUN + "[[ $* == *--placements* ]] && two && first && [ -f $out/placements.json ] &&"
        ' sed -i \'s/"slots": /"slots": 7/\' $out/placements.json\n' + END,
        "placements",
        "placements: placements.json differs",
    ),
    "dialects": (
        RUN + "[[ $* == *--dialects* ]] && two && first && echo and more\n" + END,
        "dialects",
        "dialects: another table",
    ),
    "export": (
        RUN + "[[ $* == *--export-parameters* ]] && two && first &&"
        " printf x | dd of=$out/layer0.gate.npy bs=1 seek=129 conv=notrunc status=none\n" + END,
        "export",
        "export: layer0.gate.npy differs",
    ),
}
# Seeds with devices on two ranks, with training that is resumed, and with refusals.
SEEDS, COUNT = 1, 6


def plant(name, body, program):
    path = os.path.join(TEMPORARY, re.sub(r"\W", "-", name) + os.path.basename(program))
    with open(path, "w", encoding="ascii") as file:
        file.write(HEAD.format(program=program) + body)
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
    return path


def try_fault(name, body, comparison, kind):
    planted = plant(name, body, MOESIM)
    double = DOUBLE
    if name == "double":
        change = f"first && {CHANGE[:-1]}g' $out/metrics.jsonl\n"
        double = plant(name, RUN + change + END, DOUBLE)
    words = ["--seed", SEEDS, "--count", COUNT, "--only", comparison, "--timeout", 10]
    words += ["--shrink", 2, "--stop-after", 1]
    done = subprocess.run(
        [sys.executable, os.path.join(HERE, "random_configurations.py"), *map(str, words)],
        env={**_moesim.environment(), "MOESIM": planted, "MOESIM_F64": double},
        cwd=TEMPORARY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    if kind is None:
        check(done.returncode == 0, "without a fault:", output[-2000:])
        return
    check(done.returncode == 1, name, "is not found:", output[-2000:])
    check(re.search(rf"seed \d+: FOUND {kind}", output), name, "is not named:", output[-2000:])
    printed = re.search(r"--- seed \d+: .*?\[cluster\].*?\n    \S.*?\n---", output, re.S)
    check(printed, name, "is not printed with its configuration:", output[-2000:])


for fault, (text, compared, expected) in FAULTS.items():
    if len(sys.argv) == 1 or fault in sys.argv[1:]:
        try_fault(fault, text, compared, expected)
verdict()
