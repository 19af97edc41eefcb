"""ctest: timeout=180
Training from outside: the same bits at any number of ranks and threads and in every exchange mode;
killed at three moments and resumed under other numbers of ranks; what is refused, and how a run
that goes wrong says so.
"""
import glob
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

from _moesim import (
    MOESIM,
    TEMPORARY,
    check,
    command,
    config,
    environment,
    metrics,
    moesim,
    near,
    run,
    same_bytes,
    verdict,
)

MOESIM_F64 = os.environ.get("MOESIM_F64", MOESIM + "-f64")
WORDS = (
    "the expert token device router sends a row to each of its own and no balance loss moves what"
    " is not chosen by gate or bias".split()
)


def text_file(name, length, seed):
    """A text of words, every byte decided by the seed."""
    draw, text = random.Random(seed), ""
    while len(text) < length:
        text += draw.choice(WORDS) + draw.choice(("", ",", "."))[:1] + draw.choice((" ", " ", "\n"))
    path = os.path.join(TEMPORARY, name)
    with open(path, "w") as file:
        file.write(text[:length])
    return path


TEXT, OTHER = text_file("one.txt", 12000, 1), text_file("two.txt", 9000, 2)
SMALL = {
    "run.mode": "train",
    "run.steps": 6,
    "model.num_layers": 2,
    "model.hidden_size": 16,
    "model.num_experts": 16,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "router.bias_update_rate": 0.01,
    "router.group_limit": "max",
    "router.topk_group": 2,
    "balance.alpha_expert": 0.01,
    "balance.alpha_device": 0.05,
    "balance.alpha_comm": 0.02,
    "balance.z_loss": 0.001,
    "cluster.devices": 8,
    "data.source": "text",
    "data.path": f"{TEXT}:{OTHER}",
    "data.tokens_per_device": 20,
    "data.sequence_length": 32,
    "train.warmup_steps": 2,
    "train.schedule": "cosine",
    "train.clip_norm": 0.5,
    "train.weight_decay": 0.01,
    "train.accumulate": 2,
    "train.validation_every": 3,
    "train.validation_batches": 2,
    "train.specialization": "yes",
}


def without_time(folder):
    return [
        {key: value for key, value in line.items() if key != "time"} for line in metrics(folder)
    ]


def pick(folder, *keys):
    return [[line.get(key) for key in keys] for line in metrics(folder)]


# --- the same run in other clothes ---


def check_folded():
    first = run("np1", 1, {**SMALL, "run.threads": 1})
    lines = without_time(first)
    check(
        len(lines) == 6 and all(isinstance(line["task_loss"], float) for line in lines),
        "np 1: lines",
    )
    check(
        [line["step"] for line in lines if line.get("validation_loss") is not None] == [2, 5],
        "validation at other steps",
    )
    for ranks, threads in ((1, 2), (2, 2), (4, 1), (8, 1)):
        folder = run(f"np{ranks}-{threads}", ranks, {**SMALL, "run.threads": threads})
        check(without_time(folder) == lines, f"np {ranks}, {threads} threads: other metrics")
        for name in (
            "specialization.json",
            "domain_load.npy",
            "expert_load.npy",
            "comm_matrix.npy",
            "comm_matrix_steps.npy",
        ):
            check(
                same_bytes(f"{folder}/{name}", f"{first}/{name}"),
                f"np {ranks}, {threads} threads: another {name}",
            )


def check_synthetic():
    settings = {
        **SMALL,
        "data.source": "synthetic",
        "data.path": "",
        "data.num_topics": 6,
        "train.optimizer": "sgd",
    }
    lines = without_time(run("synthetic1", 1, settings))
    check(
        without_time(run("synthetic4", 4, settings)) == lines,
        "synthetic: np 4 has other metrics than np 1",
    )
    check(
        lines[-1]["task_loss"] < lines[0]["task_loss"],
        f"synthetic: the loss does not fall: {lines[0]['task_loss']} {lines[-1]['task_loss']}",
    )


def check_modes():
    """Rows differ, sums do not (docs/method.md section 4): fp32 is the same bits."""
    keys = ("task_loss", "validation_loss", "gradient_norm", "loss", "loss_raw")
    folders = {
        mode: run(mode, 2, {**SMALL, "exchange.mode": mode, "cluster.devices_per_node": 4})
        for mode in ("selection", "token")
    }
    check(
        pick(folders["selection"], *keys) == pick(folders["token"], *keys),
        "exchange modes: other losses",
    )
    rows = {
        mode: metrics(folder)[-1]["volume"]["dispatch"]["rows"] for mode, folder in folders.items()
    }
    check(rows["token"] < rows["selection"] == 8 * 20 * 3 * 2 * 2, f"exchange modes: rows {rows}")


def check_precision():
    """float beside double: rounding moves the losses by 1e-6 of themselves in the first step, and
    selections flip later.
    """
    settings = {**SMALL, "run.steps": 20, "train.specialization": "no", "train.validation_every": 0}
    single, double = os.path.join(TEMPORARY, "single"), os.path.join(TEMPORARY, "double")
    for program, folder in ((MOESIM, single), (MOESIM_F64, double)):
        words = [
            program if word == MOESIM else word
            for word in command(2, config("precision", settings), "--out", folder, "--quiet")
        ]
        done = subprocess.run(
            words, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        check(done.returncode == 0, f"{program}: status {done.returncode}: {done.stderr}")
    pairs = list(zip(pick(single, "task_loss"), pick(double, "task_loss")))
    check(len(pairs) == 20 and near(*pairs[0], 1e-5), f"float and double, first step: {pairs[0]}")
    check(all(near(*pair, 1e-2) for pair in pairs), f"float and double: {pairs}")


# --- killed and resumed ---

LONG = {
    **SMALL,
    "run.steps": 60,
    "model.num_layers": 1,
    "train.accumulate": 1,
    "train.checkpoint_every": 4,
    "train.specialization": "no",
}


def lines_of(folder):
    try:
        with open(f"{folder}/metrics.jsonl") as file:
            return file.read().count("\n")
    except FileNotFoundError:
        return 0


def processes_of(folder):
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if words[0] == MOESIM.encode() and folder.encode() in words:
            found.append(int(process))
    return found


def killed(words, folder, lines):
    """Starts a job and kills one of its ranks when metrics.jsonl has so many lines. True when it
    was killed on the way.
    """
    job = subprocess.Popen(
        words,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while job.poll() is None and lines_of(folder) < lines:
        time.sleep(0.002)
    for process in processes_of(folder)[-1:]:
        os.kill(process, signal.SIGKILL)
    return job.wait(timeout=60) != 0


def check_killed():
    draw, whole, folder = random.Random(7), run("whole", 2, LONG), os.path.join(TEMPORARY, "killed")
    words, moments = command(2, config("long", LONG), "--out", folder, "--quiet"), []
    for ranks in (4, 1, 8):  # of the run that goes on
        before = lines_of(folder)  # a resumed run first cuts back to a checkpoint: at most 4 lines
        moments.append(before + draw.randint(5, 12))
        check(killed(words, folder, moments[-1]), f"killed at {moments}: it ended by itself")
        words = command(ranks, "--resume", folder, "--quiet")
    copy = os.path.join(TEMPORARY, "damaged")
    shutil.copytree(folder, copy)
    done = moesim(8, "--resume", folder)
    check(done.code == 0, f"killed at {moments}, resumed: status {done.code}: {done.err}")
    check(
        without_time(folder) == without_time(whole),
        f"killed at {moments}: other metrics than those of the run that was not",
    )
    for name in ("expert_load.npy", "comm_matrix_steps.npy"):
        check(
            same_bytes(f"{folder}/{name}", f"{whole}/{name}"),
            f"killed at {moments}: another {name}",
        )
    done = moesim(1, "--resume", folder)
    check(done.code == 0 and "finished" in done.out, f"a finished run: {done.code} {done.out}")
    return whole, copy


def check_damaged(whole, folder):
    """A byte in the middle of the newest checkpoint: the one before it is used, and the user is
    told.
    """
    newest = sorted(glob.glob(f"{folder}/checkpoints/step-*.moe"))[-1]
    refused(folder)
    with open(newest, "r+b") as file:
        file.seek(os.path.getsize(newest) * 2 // 3)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 64]))
    done = moesim(2, "--resume", folder)
    check(
        done.code == 0 and os.path.basename(newest) in done.out,
        (
            f"damaged: {os.path.basename(newest)} is not named:"
            f" {done.code} {done.out[:1500]} {done.err}"
        ),
    )
    check(
        without_time(folder) == without_time(whole),
        "damaged: other metrics than those of the whole run",
    )


def refused(folder):
    """Another model, optimiser or text."""
    for setting, named in (
        ("model.hidden_size=32", "model.hidden_size"),
        ("train.optimizer=sgd", "train.optimizer"),
        (f"data.path={TEXT}", "data.path"),
        ("run.steps=80", "run.steps"),
    ):
        before = lines_of(folder)
        done = moesim(2, "--resume", folder, "--set", setting)
        check(
            done.code == 2 and named in done.err and len(done.err.splitlines()) == 1,
            f"--resume --set {setting}: {done.code} {done.err}",
        )
        check(lines_of(folder) == before, f"--resume --set {setting}: metrics.jsonl was touched")
    with open(OTHER) as file:
        text = file.read()
    with open(OTHER, "w") as file:
        file.write(text.replace("expert", "EXPERT", 1))
    done = moesim(2, "--resume", folder)
    check(
        done.code == 2 and "text" in done.err and len(done.err.splitlines()) == 1,
        f"another text: {done.code} {done.err}",
    )
    with open(OTHER, "w") as file:
        file.write(text)


# --- bad input, and runs that go wrong ---


def check_bad():
    folder = os.path.join(TEMPORARY, "nan")
    done = moesim(
        2,
        config(
            "nan",
            {
                **SMALL,
                "train.optimizer": "sgd",
                "train.clip_norm": 0,
                "train.learning_rate": 1e6,
                "train.warmup_steps": 0,
                "train.schedule": "constant",
                "run.steps": 50,
            },
        ),
        "--out",
        folder,
        "--quiet",
    )
    check(done.code == 3 and len(done.err.splitlines()) == 1, f"NaN: {done.code} {done.err}")
    check(
        re.search(r"step \d+\b.*\b(layer ?\d+|layer0|embedding|head)", done.err)
        and "rank" in done.err,
        f"NaN: step, layer, rank: {done.err}",
    )
    kept = metrics(folder)
    check(kept and [line["step"] for line in kept] == list(range(len(kept))), "NaN: metrics.jsonl")
    check(
        f"step {kept[-1]['step']}" in done.err,
        f"NaN: the last line is of step {kept[-1]['step']}: {done.err}",
    )
    short = text_file("short.txt", 200, 3)
    done = moesim(
        2, config("short", {**SMALL, "data.path": short}), "--out", os.path.join(TEMPORARY, "short")
    )
    check(
        done.code == 2 and "data.path" in done.err and len(done.err.splitlines()) == 1,
        f"short text: {done.code} {done.err}",
    )


def check_diverging():
    """A step size that makes the loss rise: the run ends, and says so."""
    settings = {
        **SMALL,
        "train.learning_rate": 3,
        "train.warmup_steps": 0,
        "train.schedule": "constant",
        "train.specialization": "no",
        "run.steps": 25,
    }
    folder = os.path.join(TEMPORARY, "diverging")
    done = moesim(2, config("diverging", settings), "--out", folder)
    lines = metrics(folder)
    check(
        lines[-1]["task_loss"] > lines[0]["task_loss"],
        f"diverging: it did not: {lines[0]['task_loss']}, {lines[-1]['task_loss']}",
    )
    check(
        done.code == 0 and "learning_rate" in done.out.split("Training:")[-1],
        f"diverging: nothing is said: {done.code} {done.out[-3000:]}",
    )


def check_specialization():
    """What the file says of the run of check_folded."""
    with open(os.path.join(TEMPORARY, "np1-2", "specialization.json")) as file:
        found = json.load(file)
    last = metrics(os.path.join(TEMPORARY, "np1-2"))[-1]
    check(
        [one["experts"] for one in found["disabled"]] == [0, 1, 2, 4, 8],
        f"specialisation: {found['disabled']}",
    )
    check(
        found["disabled"][0]["task_loss"] == last["validation_loss"],
        "specialisation: n = 0 is not the validation loss",
    )
    check(
        found["shared_replaced"]["routed_experts"] == 4 and found["domains"] == [TEXT, OTHER],
        f"specialisation: {found}",
    )
    check(
        len(found["layers"]) == 2 and all(0 <= layer["score"] <= 1 for layer in found["layers"]),
        f"specialisation: {found['layers']}",
    )


check_folded()
check_specialization()
check_synthetic()
check_modes()
check_precision()
check_damaged(*check_killed())
check_bad()
check_diverging()
verdict()
