"""ctest: timeout=180
The folder of a run: one run at a time writes to it, and a killed one leaves no lock behind; links
that stand in it are not followed when something is written or removed; any name works that the
system allows.
"""
import os
import signal
import subprocess

from _moesim import (
    MOESIM,
    TEMPORARY,
    check,
    command,
    config,
    environment,
    metrics,
    moesim,
    run,
    sets,
    verdict,
    wait_for,
)

SMALL = {
    "model.hidden_size": 8,
    "model.num_experts": 8,
    "model.moe_intermediate_size": 4,
    "router.top_k": 2,
    "cluster.devices": 4,
    "data.tokens_per_device": 8,
}
TRAINING = {
    **SMALL,
    "run.mode": "train",
    "run.steps": 6,
    "data.source": "synthetic",
    "train.checkpoint_every": 2,
}


def path(*names):
    return os.path.join(TEMPORARY, *names)


def start(ranks, *arguments):
    return subprocess.Popen(
        command(ranks, *arguments),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def open_files(process):
    """Their names. The process opens and closes others meanwhile."""
    for number in os.listdir(f"/proc/{process}/fd"):
        try:
            yield os.readlink(f"/proc/{process}/fd/{number}")
        except OSError:
            continue


def rank_0_of(folder):
    """The process that holds the lock of a folder."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if words[0] != MOESIM.encode() or folder.encode() not in words:
                continue
            if f"{folder}/.lock" in open_files(process):
                return int(process)
        except OSError:
            continue  # it ended meanwhile
    return None


def refused(done, *words):
    check(done.code == 2, f"status {done.code}, expected 2: {done.err}")
    check(done.err.count("\n") == 1, f"more than one sentence: {done.err}")
    for word in words:
        check(word in done.err, f"{word!r} is not in {done.err!r}")


# --- locks ---


def check_two_at_once():
    """A run with --force, and one that goes on, are refused where a run is under way; one that was
    killed is in nobody's way.
    """
    folder = path("busy")
    begun = run("busy", 2, {**TRAINING, "run.steps": 3})
    more = {"run.steps": 1000000, "train.checkpoint_every": 1000000}
    job = start(2, "--resume", begun, "--quiet", *sets(more))
    try:
        if not check(wait_for(lambda: rank_0_of(folder)), "the run does not start"):
            return
        refused(moesim(1, config("busy2", SMALL), "--out", folder, "--force"), folder, "in use")
        refused(moesim(2, "--resume", folder, "--set", "run.steps=1000000"), folder, "in use")
        refused(moesim(1, config("busy2", SMALL), "--out", folder), folder)
        os.kill(rank_0_of(folder), signal.SIGKILL)
        check(job.wait(timeout=30) != 0, "a killed run ends with status 0")
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
    check(os.path.exists(f"{folder}/.lock"), "the test did not meet a lock that was left behind")
    done = moesim(1, "--resume", folder, "--quiet", "--set", "run.steps=5")
    check(done.code == 0, f"after a killed run: {done.code}: {done.err}")
    check([line["step"] for line in metrics(folder)] == [0, 1, 2, 3, 4], "steps after a killed run")
    check(not os.path.exists(f"{folder}/.lock"), "a run that ended leaves its lock")


def check_race():
    """Of two that begin at once each ends, with 0 or refused; what is there is one run's."""
    folder = path("race")
    for _ in range(4):
        words = (config("race", SMALL), "--out", folder, "--force", "--quiet")
        jobs = [start(2, *words) for _ in "12"]
        codes = []
        for job in jobs:
            try:
                said = job.communicate(timeout=60)[1]
                codes.append(job.returncode)
                check(job.returncode in (0, 2), f"status {job.returncode}: {said}")
            except subprocess.TimeoutExpired:
                check(False, "two runs with --force into one folder: one of them hangs")
                job.kill()
                job.wait()
        check(0 in codes, f"both were refused: {codes}")
        check(os.path.exists(f"{folder}/summary.json"), "no summary after two runs at once")


# --- links ---


def plant(name, folder, *names):
    """Makes a file that must not change, and links to it under these names."""
    victim = path(name)
    with open(victim, "w") as file:
        file.write("precious\n")
    for link in names:
        if os.path.lexists(f"{folder}/{link}"):
            os.remove(f"{folder}/{link}")
        os.symlink(victim, f"{folder}/{link}")
    return victim


def untouched(victim, label):
    with open(victim) as file:
        check(file.read() == "precious\n", f"{label}: written through a link")


def check_links():
    arrays = ["comm_matrix.npy", "expert_load.npy", "y_layer0.npy", "y.npy"]
    texts = ["config.ini", "metrics.jsonl", "summary.json", "timeline.json"]
    settings = {**SMALL, "output.tensors": "yes", "output.timeline": "yes"}
    folder = path("links")
    os.mkdir(folder)
    victim = plant("victim", folder, *arrays, *texts, *[f"{text}.tmp" for text in texts])
    run("links", 2, settings, "--force")
    untouched(victim, "a new run")
    check(os.path.isfile(f"{folder}/y.npy") and not os.path.islink(f"{folder}/y.npy"), "y.npy")

    folder = run("linked-resume", 2, TRAINING)
    names = [*arrays, *[f"{text}.tmp" for text in texts], "checkpoints/step-00000006.moe.tmp"]
    victim = plant("victim2", folder, *names)
    done = moesim(2, "--resume", folder, "--quiet", "--set", "run.steps=8")
    check(done.code == 0, f"--resume: {done.code}: {done.err}")
    untouched(victim, "a run that goes on")

    victim = plant("victim3", folder, ".lock")
    refused(moesim(1, config("l", SMALL), "--out", folder, "--force"), ".lock")
    untouched(victim, "the lock")
    os.remove(f"{folder}/.lock")


def check_force_through_links():
    other = run("other", 1, TRAINING)
    os.symlink(other, path("link-to-other"))
    before = sorted(os.listdir(f"{other}/checkpoints"))
    refused(moesim(1, config("f", SMALL), "--out", path("link-to-other/"), "--force"), "link")
    check(os.path.exists(f"{other}/summary.json"), "--force removed files through a link")

    folder = path("with-link")
    os.mkdir(folder)
    os.symlink(f"{other}/checkpoints", f"{folder}/checkpoints")
    refused(moesim(1, "--resume", folder), "link")
    run("with-link", 1, TRAINING, "--force")
    check(
        sorted(os.listdir(f"{other}/checkpoints")) == before, "checkpoints behind a link are gone"
    )
    check(not os.path.islink(f"{folder}/checkpoints"), "the link is still there")


# --- names ---


def check_long_names():
    for name in ("n" * 255, os.path.join("m" * 200, "n" * 240, "o" * 255)):
        folder = path(name)
        settings = {**TRAINING, "run.steps": 2, "train.checkpoint_every": 1}
        done = moesim(2, config("long", settings), "--out", folder, "--quiet")
        check(done.code == 0, f"{len(name)} characters: {done.code}: {done.err}")
        check(os.path.exists(f"{folder}/summary.json"), f"{len(name)} characters: no summary")
    check(sorted(os.listdir(path("m" * 200))) == ["n" * 240], "something beside the folder")
    for name in ("n" * 256, "n/" * 600):
        done = moesim(1, config("long", SMALL), "--out", path(name), "--quiet")
        check(done.code == 2 and done.err.count("\n") == 1, f"{done.code}: {done.err}")


def check_unfit_names():
    """--check says it as the run does, and makes nothing."""
    small = config("small", SMALL)
    os.mkdir(path("full"))
    open(path("full", "somebody's"), "w").close()
    os.symlink(path("full"), path("link"))
    os.symlink(path("nowhere"), path("dangling"))
    for name, force, words in (
        ("/", False, ["'/'", "root"]),
        ("/", True, ["'/'", "root"]),
        ("//./", True, ["root"]),
        ("", False, ["0"]),
        (path("full"), False, ["not empty"]),
        (path("link"), False, ["not empty"]),
        (path("link"), True, ["link"]),
        (path("dangling"), True, ["not a folder"]),
        (path("dangling", "x"), False, ["dangling"]),
        (path("full", "somebody's"), True, ["not a folder"]),
        (path("full", "somebody's", "x"), False, ["somebody's"]),
        ("/dev/null", True, ["not a folder"]),
    ):
        for check_only in ([], ["--check"]):
            words_of_run = [small, "--out", name, "--quiet", *check_only]
            refused(moesim(1, *words_of_run, *(["--force"] if force else [])), "--out", *words)
    done = moesim(1, small, "--out", path("to", "be", "made"), "--check")
    check(done.code == 0 and not os.path.exists(path("to")), f"--check: {done.code}: {done.err}")
    check(os.listdir(path("full")) == ["somebody's"], "something beside the file")


# --- what is no file ---


def check_pipes():
    """A pipe that nobody writes to is refused where a file is read, instead of being waited for."""
    pipe = path("pipe")
    os.mkfifo(pipe)
    refused(moesim(1, pipe), pipe, "not a regular file")
    refused(moesim(1, "--ranks", pipe), pipe, "not a regular file")
    refused(moesim(1, TEMPORARY), TEMPORARY, "not a regular file")
    settings = {**SMALL, "data.source": "logits", "data.path": pipe}
    refused(moesim(1, config("p", settings)), pipe, "not a regular file")
    for name in ("summary.json", "metrics.jsonl", "checkpoints/step-00000004.moe"):
        folder = run(f"pipe-{name[:4]}", 1, TRAINING)
        os.remove(f"{folder}/summary.json")
        if os.path.exists(f"{folder}/{name}"):
            os.remove(f"{folder}/{name}")
        os.mkfifo(f"{folder}/{name}")
        done = moesim(1, "--resume", folder)
        check(done.seconds < 20, f"{name}: a pipe was waited for")
        check(
            done.code == (2 if name == "metrics.jsonl" else 0), f"{name}: {done.code}: {done.err}"
        )
    folder = path("pipes-to-write")
    os.mkdir(folder)
    for name in ("metrics.jsonl", "summary.json.tmp", "config.ini", "comm_matrix.npy"):
        os.mkfifo(f"{folder}/{name}")
    run("pipes-to-write", 1, SMALL, "--force")


check_two_at_once()
check_pipes()
check_race()
check_links()
check_force_through_links()
check_long_names()
check_unfit_names()
verdict()
