"""ctest: timeout=180
Signals to scripts/run: the run ends within seconds, the status says which signal it was, and no
process is left, also where the script is killed and cannot do anything any more. A signal that was
ignored when the script started (nohup; Ctrl-C of a job that a shell script put into the background)
stays ignored, as everywhere.
"""
import os
import shutil
import signal
import subprocess

from _moesim import MOESIM, SOURCE, TEMPORARY, check, config, environment, verdict, wait_for

ENDLESS = {
    "run.steps": 1000000,
    "model.hidden_size": 8,
    "model.num_experts": 8,
    "model.moe_intermediate_size": 4,
    "router.top_k": 2,
    "cluster.devices": 2,
    "data.tokens_per_device": 8,
}
SCRIPTS = os.path.join(TEMPORARY, "scripts")  # as they are installed: nothing is built


def processes(folder):
    """{process: its command line} of all that name this folder."""
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if folder.encode() in words:
            found[int(process)] = b" ".join(words[:4]).decode(errors="replace")
    return found


def runs(folder):
    path = os.path.join(folder, "metrics.jsonl")
    return os.path.exists(path) and os.path.getsize(path) > 1000


def started(label, ignored=()):
    """scripts/run of an endless run, once it is under way: (job, folder)."""
    folder = os.path.join(TEMPORARY, label)
    words = [os.path.join(SCRIPTS, "run"), config("endless", ENDLESS), "-np", "2"]

    def prepare():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    job = subprocess.Popen(
        [*words, "--out", folder, "--quiet"],
        env=environment(MOESIM=MOESIM),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=prepare,
    )
    check(wait_for(lambda: runs(folder), 60), f"{label}: the run does not start")
    return job, folder


def ended(job, folder, status, label):
    try:
        code = job.wait(timeout=30)
    except subprocess.TimeoutExpired:
        code = None
    check(code == status, f"{label}: status {code}, expected {status}")
    check(wait_for(lambda: not processes(folder), 10), f"{label}: left behind: {processes(folder)}")
    for process in processes(folder):
        os.kill(process, signal.SIGKILL)
    job.kill()
    job.wait()


shutil.copytree(os.path.join(SOURCE, "scripts"), SCRIPTS)
os.remove(os.path.join(SCRIPTS, "build-if-needed"))
for name, number, status in (
    ("interrupted", signal.SIGINT, 130),
    ("terminated", signal.SIGTERM, 143),
    ("hung-up", signal.SIGHUP, 129),
    ("killed", signal.SIGKILL, -signal.SIGKILL),
):
    job, folder = started(name)
    job.send_signal(number)
    ended(job, folder, status, name)
job, folder = started("ignored", (signal.SIGINT, signal.SIGHUP))
job.send_signal(signal.SIGINT)
job.send_signal(signal.SIGHUP)
size = os.path.getsize(os.path.join(folder, "metrics.jsonl"))
check(
    wait_for(lambda: os.path.getsize(os.path.join(folder, "metrics.jsonl")) > size, 30)
    and job.poll() is None,
    "a signal that is ignored ended the run",
)
job.send_signal(signal.SIGTERM)
ended(job, folder, 143, "ignored")
verdict()
