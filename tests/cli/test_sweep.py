#!/usr/bin/env python3
"""scripts/sweep: a grid with seeds runs and is one tidy table; finished runs are not run again; a failed run is a row and the rest goes on; an unknown
key is refused before anything runs.
ctest: timeout=180"""
import csv
import os
import subprocess

from _moesim import QUICKSTART, SOURCE, TEMPORARY, check, environment, verdict

SWEEP = os.path.join(SOURCE, "scripts", "sweep")
OUT = os.path.join(TEMPORARY, "sweep")
SMALL = ["--set", "data.tokens_per_device=32", "--set", "run.steps=1", "--set", "model.hidden_size=16"]


def sweep(*arguments):
    return subprocess.run([SWEEP, QUICKSTART, "-np", "4", "--out", OUT, *arguments, *SMALL], env=environment(), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)


def rows():
    with open(os.path.join(OUT, "sweep.csv"), newline="") as file:
        return list(csv.DictReader(file))


done = sweep("--vary", "router.topk_group=1:3", "--seeds", "2")
check(done.returncode == 0, done.stdout, done.stderr)
table = rows()
check(len(table) == 6 and all(r["status"] == "ok" for r in table), table)
check({(r["router.topk_group"], r["seed"]) for r in table} == {(m, s) for m in "123" for s in "12"}, table)
sent = {r["router.topk_group"]: int(float(r["rows"])) for r in table if r["seed"] == "1"} if "rows" in table[0] else None
check(sent is None or sent["1"] < sent["2"] < sent["3"], sent)

before = {name: os.stat(os.path.join(OUT, name)).st_mtime for name in os.listdir(OUT) if os.path.isdir(os.path.join(OUT, name))}
done = sweep("--vary", "router.topk_group=1:3", "--seeds", "2")
check(done.returncode == 0 and "\x1b" not in done.stdout, done.stdout, done.stderr)
after = {name: os.stat(os.path.join(OUT, name)).st_mtime for name in before}
check(before == after, "finished runs were run again")

refused = sweep("--vary", "router.topk_gruop=1,2")
check(refused.returncode == 2 and "topk_group" in refused.stderr, refused.returncode, refused.stderr)
verdict()
