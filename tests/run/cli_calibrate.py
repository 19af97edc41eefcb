"""ctest: timeout=200
--calibrate: the cluster file it writes is one that a run takes, its figures are possible, the steps
are compared, and what is refused. No time is judged: the machine may have other work.
"""
import os
import re

from _moesim import QUICKSTART, check, moesim, sets, summary, verdict


def keys_of(path):
    with open(path) as file:
        return {k: float(v) for k, v in re.findall(r"^(\w+) = (\S+)", file.read(), re.M)}


def check_file(ranks):
    path = f"host{ranks}.ini"
    done = moesim(ranks, "--calibrate", path)
    if not check(done.code == 0, f"np {ranks}: {done.code} {done.err}"):
        return
    keys = keys_of(path)
    for name in ("intra_gbps", "device_tflops", "memory_gbps", "memory_efficiency"):
        check(keys.get(name, 0) > 0, f"np {ranks}: {name} in {keys}")
    check((keys["exchange_us"] > 0) == (ranks > 1), f"np {ranks}: {keys}")
    check(keys["memory_efficiency"] <= 1 and keys["gemm_half_rows"] >= 0, f"np {ranks}: {keys}")
    steps = re.findall(r"T \d+, H \d+.* ms +[0-9.]+ ms +[-+][0-9.]+ %", done.out)
    check(len(steps) == 3, f"np {ranks}: {done.out}")
    check(("2 ranks:" in done.out) == (ranks > 1), f"np {ranks}: exchanges")
    check(max(map(len, done.out.splitlines())) <= 100, "a wide line")
    small = sets({"data.tokens_per_device": 16, "run.steps": 1, "router.topk_group": 0})
    small += sets({"cluster.file": path})
    ran = moesim(ranks, QUICKSTART, *small, "--quiet", "--out", f"run{ranks}")
    check(ran.code == 0, f"a run does not take the file: {ran.err}")
    check(summary(f"run{ranks}")["time"]["predicted"]["step_us"] > 0, "no prediction")


def check_refused():
    with open("there.ini", "w") as file:
        file.write("mine")
    for options, words in (
        (("there.ini",), "the file exists"),
        (("nowhere/x.ini",), "no file can be written"),
        (("folder/",), "no file can be written"),
        (("x.ini", QUICKSTART), "do not go with it"),
        (("x.ini", "--set", "run.seed=1"), "do not go with it"),
        ((), "needs a value"),
    ):
        done = moesim(1, "--calibrate", *options)
        check(done.code == 2 and words in done.err, f"{options}: {done.code} {done.err}")
    with open("there.ini") as file:
        check(file.read() == "mine", "a file was replaced")
    check(not os.path.exists("x.ini"), "a file was written")


check_refused()
check_file(1)
check_file(2)
verdict()
