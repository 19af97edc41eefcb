"""ctest: timeout=90
scripts/sweep: grid, lists in parallel and seeds; the table agrees with the runs' own files; nothing
runs after a mistake; failures are rows; finished runs are not run again; an interruption ends
cleanly and is gone on from; piped output has no control characters; small overhead.
"""
import csv
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time

import _moesim as m

TINY = m.config(
    "tiny",
    {
        "run.steps": 3,
        "model.hidden_size": 8,
        "model.num_experts": 8,
        "model.moe_intermediate_size": 8,
        "router.top_k": 2,
        "router.group_limit": "max",
        "router.topk_group": 2,
        "data.tokens_per_device": 32,
        "data.sequence_length": 16,
    },
)
SWEEP = [sys.executable, os.path.join(m.SOURCE, "scripts", "sweep")]
PROCESS = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.PIPE,
    "text": True,
    "env": m.environment(),
}


def sweep(*words):
    start = time.monotonic()
    done = subprocess.run([*SWEEP, *words], **PROCESS)
    return m.Result(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


def rows(folder):
    with open(os.path.join(folder, "sweep.csv"), newline="") as file:
        return list(csv.DictReader(file))


def runs_in(folder):
    return sorted(os.listdir(os.path.join(folder, "runs")))


def agrees(folder, row):
    """The row's figures against the run's own files."""
    run = os.path.join(folder, "runs", row["run"])
    summary, steps = m.summary(run), m.metrics(run)
    last = steps[-20:]
    expected = {
        "devices": summary["devices"],
        "loss_expert_sequence": summary["layers"][0]["loss_by_scope"]["sequence"]["expert"],
        "loss_comm_global": summary["layers"][0]["loss_by_scope"]["global"]["comm"],
        "loss_total": summary["loss"]["total"],
        "maxvio_device": sum(step["balance"]["device"]["maxvio"] for step in last) / len(last),
        "remote_bytes": sum(way["remote_bytes"] for step in last for way in step["volume"].values())
        / len(last),
        "remote_bytes_per_token": sum(
            way["remote_bytes"] / step["num_tokens"]
            for step in last
            for way in step["volume"].values()
        )
        / len(last),
        "counted_combine_bytes_per_token": sum(
            step["volume"]["combine"]["rows"]
            * summary["counted"]["combine_row_bytes"]
            / step["num_tokens"]
            / len(summary["layers"])
            for step in last
        )
        / len(last),
        "rows": sum(step["volume"]["dispatch"]["rows"] for step in last) / len(last),
        "dropped": sum(layer["dropped"] for layer in summary["layers"]),
    }
    for name, value in expected.items():
        m.check(
            m.near(float(row[name]), float(value), 1e-12),
            f"{row['run']}: {name} is {row[name]}, its files say {value}",
        )


GRID = (
    TINY,
    *("--vary", "router.topk_group=1:2", "--vary", "balance.alpha_comm=0,0.5", "--seeds", "2"),
    *("-np", "2", "--out", "grid"),
)


def test_grid():
    done = sweep(*GRID)
    m.check(done.code == 0, done.code, done.err)
    table = rows("grid")
    keys = [(row["router.topk_group"], row["balance.alpha_comm"], row["seed"]) for row in table]
    m.check(
        keys == [(g, a, s) for g in "12" for a in ("0", "0.5") for s in "12"], "the rows are", keys
    )
    m.check(all(row["status"] == "ok" and not row["error"] for row in table), "not every row is ok")
    for row in table:
        agrees("grid", row)
    m.check(
        len({row["loss_comm_sequence"] for row in table}) == 4,
        "settings and seeds make no difference",
    )
    m.check(
        not re.search(r"[\x00-\x09\x0b-\x1f]", done.out) and done.out.count(" ok ") == 8,
        "piped output:",
        repr(done.out),
    )
    with open("grid/sweep.html") as file:
        page = file.read()
    m.check(
        "Balance against traffic" in page
        and "MaxVio of the devices against alpha_comm" in page
        and "<script" not in page,
        "sweep.html lacks its plots",
    )


def test_spread():
    """The table on the terminal and the page, against mean and deviation of the rows of sweep.csv;
    the differences are paired by seed, and one inside the noise is called so.
    """
    figures = {}
    for row in rows("grid"):
        where = (row["router.topk_group"], row["balance.alpha_comm"])
        figures.setdefault(where, {})[row["seed"]] = float(row["maxvio_device"])
    done = sweep(*GRID)
    m.check(done.code == 0 and "8 are done" in done.out, done.code, done.err)
    with open("grid/sweep.html") as file:
        page = file.read()
    first = figures["1", "0"]
    lines = done.out.splitlines()
    compared = next(index for index, line in enumerate(lines) if line.startswith("Differences to"))
    wide = [line for line in lines if line.startswith("  ") and len(line) > 80]
    m.check(not wide, "lines of the table are cut at 80 columns:", wide)
    for (group, alpha), by_seed in figures.items():
        label = f"alpha_comm {alpha}"
        label = f"topk_group {group}, {label}"
        middle, deviation = statistics.mean(by_seed.values()), statistics.stdev(by_seed.values())
        shown = [
            [line.split(label)[1] for line in part if label in line]
            for part in (lines[:compared], lines[compared + 1 :])
        ]
        found = [
            tuple(map(float, pair))
            for pair in re.findall(r"([0-9.]+) ± ([0-9.]+)", " ".join(shown[0]))
        ]
        m.check(
            any(
                abs(one[0] - middle) < 0.1 * deviation and abs(one[1] / deviation - 1) < 0.06
                for one in found
            ),
            f"{label}: {middle} ± {deviation} is not in {shown[0]}",
        )
        if by_seed is first:
            continue
        steps = [by_seed[seed] - first[seed] for seed in by_seed]
        half = 12.706 * statistics.stdev(steps) / math.sqrt(2)
        mean = statistics.mean(steps)
        text = (f"{mean:+.3g}" + (" ~" if abs(mean) < half else "")) if mean else " 0"
        m.check(
            text in "".join(shown[1]) and text.split()[0] in page,
            f"{label}: {text} is not in {shown[1]}",
        )
    m.check("inside the noise" in done.out and "inside the noise" in page, "noise is not named")


def test_resume():
    """A second sweep into the same folder runs what is new only; other options are refused there,
    and folders of other settings not trusted.
    """
    before = os.stat("grid/runs/topk_group=1__alpha_comm=0__seed=1/summary.json").st_mtime_ns
    os.remove("grid/runs/topk_group=2__alpha_comm=0__seed=2/summary.json")
    done = sweep(*GRID)
    m.check(
        done.code == 0 and "7 are done" in done.out and done.out.count(" ok ") == 1,
        "resumed:",
        done.out,
        done.err,
    )
    m.check(
        os.stat("grid/runs/topk_group=1__alpha_comm=0__seed=1/summary.json").st_mtime_ns == before,
        "a finished run was run again",
    )
    m.check(
        len(rows("grid")) == 8 and all(row["wall_seconds"] for row in rows("grid")),
        "the table lost rows or times",
    )
    done = sweep(
        TINY, "--vary", "router.topk_group=1:2", "--set", "data.skew=0", "-np", "2", "--out", "grid"
    )
    m.check(done.code == 2 and "other --set" in done.err, done.code, done.err)
    for key in (
        "capacity.policy",
        "placement.policy",
    ):  # two keys of one short name: the run of the other is not taken for this one's
        done = sweep(
            TINY,
            "--vary",
            f"{key}={'none' if key[0] == 'c' else 'block'}",
            "-np",
            "2",
            "--out",
            "policy",
        )
        m.check(done.code == 0 and "are done" not in done.out, done.out, done.err)
    os.rename("policy/runs/policy=none", "policy/runs/policy=none.old")
    os.rename("policy/runs/policy=block", "policy/runs/policy=none")
    done = sweep(TINY, "--vary", "capacity.policy=none", "-np", "2", "--out", "policy")
    m.check(
        done.code == 0 and "are done" not in done.out,
        "a run with other settings was taken for finished:",
        done.out,
    )


def test_failures_are_rows():
    """4 groups need 4 devices: refused for 2 in advance. 3 devices cannot be folded onto 2 ranks:
    that run fails. The rest goes on.
    """
    done = sweep(
        TINY,
        "--vary",
        "cluster.devices=2,4",
        "--vary",
        "router.topk_group=1,4",
        "-np",
        "2",
        "--out",
        "rows",
    )
    table = rows("rows")
    m.check(
        done.code == 1 and [row["status"] for row in table] == ["ok", "refused", "ok", "ok"],
        done.code,
        [row["status"] for row in table],
        done.err,
    )
    m.check(
        "topk_group = 4" in table[1]["error"]
        and "\n" not in table[1]["error"]
        and not table[1]["rows"],
        "the sentence is",
        table[1]["error"],
    )
    m.check(len(runs_in("rows")) == 3, "a refused combination was started")
    done = sweep(
        TINY,
        "--vary",
        "cluster.devices=2,4",
        "--set",
        "model.num_experts=12",
        "--vary",
        "data.skew=0",
        "-np",
        "4",
        "--out",
        "fails",
    )
    table = rows("fails")
    m.check(
        done.code == 1 and [row["status"] for row in table] == ["failed", "ok"],
        done.code,
        [row["status"] for row in table],
        done.err,
    )
    m.check(
        "cluster.devices" in table[0]["error"] and "--" * 5 not in table[0]["error"],
        "the sentence is",
        table[0]["error"],
    )


def test_mistakes():
    """Refused with one sentence before anything runs."""
    cases = [
        (["--vary", "router.topk_gruop=1"], "nearest known one is router.topk_group"),
        (["--vary", "router.topk_group=1:9"], "runs in no combination"),
        (["--vary", "balance.alpha_comm=a"], "allowed is a number from 0"),
        (["--vary", "router.score_func=softmax,soft"], "allowed is one of softmax"),
        (["--vary", "router.topk_group=1,1"], "is given twice"),
        (["--vary", "run.steps"], "expected is --vary section.key=value"),
        (["--vary", "run.steps=3:1"], "empty or endless"),
        (["--vary", "run.steps=1,,2"], "a value is missing"),
        ([], "nothing varies"),
        (["--vary", "run.seed=1", "--seeds", "2"], "one of them is expected"),
        (["--seeds", "0"], "from 1 on"),
        (["--zip", "--vary", "run.steps=1,2", "--vary", "data.skew=1"], "lists of one length"),
        (["--zip", "--vary", "run.steps=1,2,1", "--vary", "data.skew=0,1,0"], "is given twice"),
        (["--vary", "run.steps=1,2", "--names", "a,b"], "--names is for"),
        (["--zip", "--vary", "run.steps=1,2", "--names", "a"], "1 names for 2"),
        (["--zip", "--vary", "run.steps=1,2", "--names", "a,a"], "gives a twice"),
        (["--seeds", "2", "--chekc"], "unknown option --chekc"),
        (["--seeds", "2", "--resume", "x"], "single run"),
        (["--seeds", "2", "other.ini"], "two configurations"),
        (["--vary", "run.steps=1:1000000"], "at most"),
    ]
    for words, sentence in cases:
        done = sweep(TINY, *words, "-np", "2", "--out", "never")
        m.check(
            done.code == 2 and sentence in done.err and done.err.count("\n") == 1 and not done.out,
            words,
            done.code,
            done.err,
        )
    m.check(
        sweep("missing.ini", "--seeds", "2", "--out", "never").code == 2,
        "a missing configuration is no mistake",
    )
    m.check(not os.path.exists("never"), "a mistake left a folder")
    for root in ("/", "//."):
        done = sweep(TINY, "--seeds", "2", "-np", "2", "--out", root)
        m.check(done.code == 2 and "root of the file system" in done.err, root, done.err)
    os.mkfifo("pipe.ini")
    done = sweep("pipe.ini", "--seeds", "2", "-np", "2", "--out", "never")
    m.check(done.code == 2 and done.err.count("\n") == 1, "a pipe", done.code, done.err)


def test_zip_and_doubling():
    done = sweep(
        TINY,
        "--zip",
        "--vary",
        "cluster.devices=1:4:*2",
        "--vary",
        "router.topk_group=1,2,3",
        "--set",
        "run.steps=1",
        "--out",
        "zip",
        "--quiet",
    )
    table = rows("zip")
    m.check(done.code == 0 and not done.out, done.code, done.err)
    m.check(
        [(row["devices"], row["router.topk_group"], row["ranks"]) for row in table]
        == [("1", "1", "1"), ("2", "2", "1"), ("4", "3", "1")],
        "the rows are",
        [(row["devices"], row["router.topk_group"], row["ranks"]) for row in table],
    )


def test_ablation():
    """Values may come again in parallel lists; the combinations have names, a point each that no
    line joins.
    """
    done = sweep(
        TINY,
        "--zip",
        *("--vary", "balance.alpha_expert=0,0.1,0.1", "--vary", "balance.alpha_comm=0,0,0.5"),
        *("--names", "none,expert only,both", "--set", "run.steps=2", "-np", "2"),
        *("--out", "ablation"),
    )
    m.check(done.code == 0 and "expert only" in done.out, done.code, done.err, done.out)
    m.check(
        [row["variant"] for row in rows("ablation")] == ["none", "expert only", "both"],
        "sweep.csv does not name the variants",
    )
    with open("ablation/sweep.html") as file:
        page = file.read()
    lines = page.count("<polyline") - page.count("stroke-dasharray")
    m.check(
        ">expert only</text>" in page and lines == 0,
        f"the page joins variants by {lines} lines, or does not name them",
    )


def test_interruption():
    """SIGINT under way: exit 130 within seconds, a table with every row, and the same command goes
    on.
    """
    words = [TINY, "--seeds", "3", "--set", "run.steps=4000", "-np", "2", "--out", "stopped"]
    process = subprocess.Popen([*SWEEP, *words], **PROCESS)
    started, begin = os.path.join("stopped", "runs", "seed=1", "metrics.jsonl"), time.monotonic()
    while not os.path.exists(started) and time.monotonic() - begin < 30:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, said = process.communicate(timeout=30)
    m.check(
        process.returncode == 130 and "interrupted" in said and time.monotonic() - begin < 8,
        process.returncode,
        said,
    )
    statuses = [row["status"] for row in rows("stopped")]
    m.check(len(statuses) == 3 and "not run" in statuses, statuses)
    m.check(
        runs_in("stopped") == ["seed=1"] or statuses.count("ok") > 0,
        "more was started than one after the other",
    )


def test_overhead():
    """What a sweep takes beside its runs: at most a tenth, with room for a busy machine."""
    done = sweep(
        TINY,
        "--vary",
        "data.skew=0,1",
        "--seeds",
        "2",
        "--set",
        "run.steps=1500",
        "--set",
        "output.every=1000",
        "-np",
        "2",
        "--out",
        "overhead",
    )
    if not m.check(done.code == 0, done.code, done.err):
        return
    inside = sum(float(row["wall_seconds"]) for row in rows("overhead"))
    m.check(
        done.seconds - inside < 0.1 * inside + 0.7,
        f"{inside:.2f} s of runs took {done.seconds:.2f} s",
    )


def test_training_columns():
    text = os.path.join(m.TEMPORARY, "text.txt")
    with open(text, "w") as file:
        file.write("the quick brown fox jumps over the lazy dog. " * 200)
    done = sweep(
        TINY,
        "--vary",
        "balance.alpha_expert=0,0.1",
        "--set",
        "run.mode=train",
        "--set",
        "data.source=text",
        "--set",
        f"data.path={text}",
        "--set",
        "run.steps=12",
        "--set",
        "train.validation_every=4",
        "-np",
        "2",
        "--out",
        "train",
    )
    m.check(done.code == 0, done.code, done.err)
    for row in rows("train"):
        training = m.summary(os.path.join("train", "runs", row["run"]))["training"]
        for name, value in (
            ("task_loss", training["task_loss"]["mean_last_20"]),
            ("validation_loss", training["validation_loss"]["last"]),
            ("bits_per_byte", training["bits_per_byte"]["mean_last_20"]),
        ):
            m.check(
                row[name] and m.near(float(row[name]), value, 1e-12),
                f"{row['run']}: {name} is {row[name]}, not {value}",
            )
        agrees("train", row)
    with open("train/sweep.html") as file:
        m.check(
            "Quality against traffic" in file.read(), "sweep.html lacks quality against traffic"
        )


for test in (
    test_grid,
    test_spread,
    test_resume,
    test_failures_are_rows,
    test_mistakes,
    test_zip_and_doubling,
    test_ablation,
    test_interruption,
    test_overhead,
    test_training_columns,
):
    begin = time.monotonic()
    test()
    print(f"{test.__name__}: {time.monotonic() - begin:.1f} s", flush=True)
m.verdict()
