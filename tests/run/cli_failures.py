"""ctest: timeout=180
What goes wrong outside the program: a rank is killed, mpirun is told to stop, the disk is full. The
job ends within seconds with a status other than 0, no process is left, and what was written can be
read.
"""
import json
import os
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
    moesim,
    verdict,
    wait_for,
)

ENDLESS = {
    "run.steps": 1000000,
    "model.hidden_size": 8,
    "model.num_experts": 8,
    "model.moe_intermediate_size": 4,
    "router.top_k": 2,
    "cluster.devices": 4,
    "data.tokens_per_device": 8,
}


def lines(folder):
    try:
        with open(f"{folder}/metrics.jsonl") as file:
            return file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def ranks_of(folder):
    """{rank: process} of the moesim processes that write to this folder."""
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if words[0] != MOESIM.encode() or folder.encode() not in words:
                continue
            with open(f"/proc/{process}/environ", "rb") as file:
                variables = dict(
                    word.split(b"=", 1) for word in file.read().split(b"\0") if b"=" in word
                )
            found[int(variables.get(b"OMPI_COMM_WORLD_RANK", b"-1"))] = int(process)
        except (OSError, ValueError):
            continue  # it ended meanwhile
    return found


def interrupted(label, end):
    """Starts a run without end, calls end(mpirun's process, ranks) when results come in, looks at
    what is left.
    """
    folder = os.path.join(TEMPORARY, label.replace(" ", "-"))
    with open(folder + ".err", "w") as err:
        job = subprocess.Popen(
            command(4, config("endless", ENDLESS), "--out", folder, "--quiet"),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
    try:
        if not check(
            wait_for(lambda: len(lines(folder)) >= 3 and len(ranks_of(folder)) == 4),
            f"{label}: the run does not start",
        ):
            return
        start = time.monotonic()
        end(job, ranks_of(folder))
        code = job.wait(timeout=60)
        seconds = time.monotonic() - start
        check(code != 0, f"{label}: status {code}")
        check(seconds < 10, f"{label}: took {seconds:.1f} s")
        check(
            wait_for(lambda: not ranks_of(folder), 10),
            f"{label}: processes are left: {ranks_of(folder)}",
        )
    finally:
        if job.poll() is None:
            job.kill()
            job.wait()
    written = lines(folder)
    check(len(written) >= 3, f"{label}: {len(written)} lines of metrics.jsonl")
    for number, line in enumerate(written):
        try:
            good = line.endswith("\n") and json.loads(line)["step"] == number
        except ValueError:
            good = False
        if not check(
            good, f"{label}: line {number} of metrics.jsonl cannot be read: {line[-100:]!r}"
        ):
            break
    check(
        not os.path.exists(f"{folder}/summary.json"),
        f"{label}: a summary.json, as if the run had finished",
    )


def kill_rank(rank):
    return lambda job, ranks: os.kill(ranks[rank], signal.SIGKILL)


def kill_mpirun(job, ranks):
    """mpirun is the parent of the ranks; the job may be a program that started it."""
    with open(f"/proc/{ranks[0]}/stat") as file:
        os.kill(int(file.read().rpartition(")")[2].split()[1]), signal.SIGKILL)


# --- standard output that takes nothing ---


def check_output_lost():
    """What cannot be shown is not status 0, wherever it fails; a quiet run has nothing to lose."""
    run = [MOESIM, config("shown", {**ENDLESS, "run.steps": 40}), "--force", "--out"]
    for number, words in enumerate(([MOESIM, "--keys"], [MOESIM, "--version"], run, run)):
        for where in ("> /dev/full", ">&-"):
            folder = os.path.join(TEMPORARY, f"lost-{number}")
            words = [*words, folder] if words[-1] == "--out" else words
            done = subprocess.run(
                command(1, "")[:-2] + ["sh", "-c", f'exec "$@" {where}', "sh", *words],
                env=environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            check(
                done.returncode == 1 and "standard output" in done.stderr,
                f"{words[1]} {where}: status {done.returncode}: {done.stderr}",
            )
    for name in ("config.ini", "metrics.jsonl", "summary.json"):
        with open(os.path.join(TEMPORARY, "lost-2", name)) as file:
            check("moesim" not in file.read(20), f"{name} holds what was to be shown")
    done = moesim(1, run[1], "--quiet", "--out", os.path.join(TEMPORARY, "lost-quiet"))
    check(done.code == 0, f"a quiet run: {done.code}: {done.err}")


# --- full disk ---


def on_full_disk(label, settings):
    """Runs onto a file system of 64 KiB. False when there is none to be had."""
    disk = os.path.join(TEMPORARY, "disk")
    os.makedirs(disk, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "moesim-test", disk],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        return False
    try:
        done = moesim(
            2, config("full", {**ENDLESS, **settings}), "--out", f"{disk}/results", "--quiet"
        )
        said = [
            line for line in done.err.splitlines() if not line.startswith("mca_")
        ]  # Open MPI's own words, not moesim's
        check(done.code == 1, f"{label}: status {done.code}, expected 1: {done.err}")
        check(
            len(said) == 1 and said[0].startswith("moesim: ") and f"{disk}/results" in said[0],
            f"{label}: {done.err}",
        )
        check(done.seconds < 30, f"{label}: took {done.seconds:.1f} s")
        check(
            not os.path.exists(f"{disk}/results/summary.json"),
            f"{label}: a summary.json, as if the run had finished",
        )
        written = lines(f"{disk}/results")
        check(
            all(json.loads(line) for line in written if line.endswith("\n")),
            f"{label}: metrics.jsonl",
        )
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    return True


def check_full_disk():
    cases = (
        ("the disk is full of steps", {}),
        (
            "the disk is too small for an array",
            {"run.steps": 1, "data.tokens_per_device": 4096, "output.tensors": "yes"},
        ),
        ("the disk is too small for the timeline", {"run.steps": 1, "model.num_layers": 60}),
        (
            "the disk is too small for the choices",
            {"run.steps": 1, "data.tokens_per_device": 4096, "output.routing": "yes"},
        ),
        (
            "the disk is too small for the loads",
            {"run.steps": 12, "model.num_layers": 2, "model.num_experts": 512},
        ),
    )
    for label, settings in cases:
        if not on_full_disk(label, settings):
            print("SKIPPED: a full disk: mounting a tmpfs of 64 KiB is not allowed here")
            return


# --- a limit on the size of files ---


def check_file_limit():
    """A file that may not grow (ulimit -f) is a sentence, as a full disk is."""
    folder = os.path.join(TEMPORARY, "limit")
    settings = {"model.hidden_size": 64, "data.tokens_per_device": 32768, "output.tensors": "yes"}
    words = command(2, config("limit", settings), "--out", folder, "--quiet")
    at = words.index(MOESIM)
    words[at:at] = ["sh", "-c", 'ulimit -f 16384; exec "$@"', "sh"]  # room for shared memory
    done = subprocess.run(
        words, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    check(
        done.returncode == 1 and done.stderr.startswith("moesim: ") and folder in done.stderr,
        f"ulimit -f: status {done.returncode}: {done.stderr}",
    )
    check(not os.path.exists(f"{folder}/summary.json"), "ulimit -f: a summary.json")


# --- a file that one rank alone cannot open ---

SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
static int is_refused(const char *path) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    rank = rank ? rank : getenv("PMI_RANK");
    return rank && atoi(rank) == 1 && (strstr(path, ".npy") || strstr(path, ".moe"));
}
#define SHIM(name)                                                                      \\
    int name(const char *path, int flags, ...) {                                        \\
        va_list rest;                                                                   \\
        va_start(rest, flags);                                                          \\
        int mode = va_arg(rest, int);                                                   \\
        va_end(rest);                                                                   \\
        if (is_refused(path)) {                                                         \\
            errno = ENOENT;                                                             \\
            return -1;                                                                  \\
        }                                                                               \\
        int (*next)(const char *, int, ...) =                                           \\
            (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name);                   \\
        return next(path, flags, mode);                                                 \\
    }
SHIM(open)
SHIM(open64)
int __open64_2(const char *path, int flags) { return open64(path, flags, 0); }
int __open_2(const char *path, int flags) { return open(path, flags, 0); }
"""


def check_one_rank_fails():
    """As where a file was removed meanwhile, or a network file system shows it late."""
    with open(MOESIM, "rb") as file:
        if b"__asan_init" in file.read():
            print(
                "SKIPPED: a file that one rank alone cannot open: a preloaded library stands in "
                "for the failure, and AddressSanitizer has to be the first to be loaded"
            )
            return
    library = os.path.join(TEMPORARY, "shim.so")
    words = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library, "-ldl"]
    try:
        subprocess.run(words, input=SHIM, text=True, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        print("SKIPPED: a file that one rank alone cannot open: no C compiler here")
        return
    training = {"run.mode": "train", "train.checkpoint_every": 1, "data.source": "synthetic"}
    cases = (("arrays", {}, {}), ("a checkpoint", training, {}))
    cases += (("arrays", {}, {"OMPI_MCA_io": "romio321"}),)
    for number, (label, settings, more) in enumerate(cases):
        folder = os.path.join(TEMPORARY, f"one-rank-{number}")
        settings = config("one-rank", {**ENDLESS, "run.steps": 1, **settings})
        words = command(2, settings, "--out", folder, "--quiet")
        words[words.index(MOESIM) : words.index(MOESIM)] = ["env", f"LD_PRELOAD={library}"]
        done = subprocess.run(
            words, env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        said = [line for line in done.stderr.splitlines() if line.startswith("moesim: ")]
        check(
            done.returncode == 1 and len(said) == 1 and folder in said[0],
            f"{label} {more}: status {done.returncode}: {done.stderr}",
        )
        check(not os.path.exists(f"{folder}/summary.json"), f"{label}: a summary.json")


# --- the end of MPI ---


def check_plug_in_stays():
    """A thread of Open MPI may still be about to run a function of its plug-in for PMIx when
    MPI_Finalize unloads it, and the run then ends in a segmentation fault: it stays loaded.
    """
    log = os.path.join(TEMPORARY, "loader")
    settings = config("one-step", {**ENDLESS, "run.steps": 1})
    variables = environment(LD_DEBUG="files", LD_DEBUG_OUTPUT=log)
    folder = os.path.join(TEMPORARY, "one-step")
    words = [MOESIM, settings, "--out", folder, "--quiet"]
    job = subprocess.Popen(words, env=variables, stdin=subprocess.DEVNULL)
    check(job.wait(timeout=60) == 0, f"a run without mpirun: status {job.returncode}")
    with open(f"{log}.{job.pid}", errors="replace") as file:
        said = [line.split() for line in file if "/mca_pmix_" in line]
    said = [words for words in said if words[0] == f"{job.pid}:"]  # not of a process that it forks
    loaded = {words[-1] for words in said if words[1:3] == ["calling", "init:"]}
    gone = {words[1][len("file=") :] for words in said if "destroying" in words}
    if not loaded:
        print("SKIPPED: this MPI has no plug-in for PMIx")
    check(not loaded or loaded - gone, f"loaded: {loaded}, unloaded: {gone}")


interrupted("killed rank", kill_rank(2))
interrupted("killed rank 0", kill_rank(0))
interrupted("killed mpirun", kill_mpirun)
interrupted("mpirun told to stop", lambda job, ranks: job.send_signal(signal.SIGTERM))
check_output_lost()
check_full_disk()
check_file_limit()
check_one_rank_fails()
check_plug_in_stays()
verdict()
