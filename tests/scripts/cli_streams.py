"""ctest: timeout=180
When standard output takes nothing more: a reader that has seen enough, a full disk, and a closed
one end with a status that is not 0 and at most one sentence; Ctrl-C is 130.
"""
import os
import signal
import subprocess
import sys

import _moesim as m

SCRIPTS = os.path.join(m.SOURCE, "scripts")
sys.dont_write_bytecode = True
sys.path.insert(0, SCRIPTS)
from command_line import run  # noqa: E402  (needs the path)

FRAMEWORKS = os.path.join(m.SOURCE, "bench", "frameworks.py")
NAMES = "advise export-placement export-traffic import-placement import-trace lesson playground"
NAMES = [*NAMES.split(), "record-trace", "report", "simulate", "sweep"]


def into_pipe(words):
    """Standard output is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(words, stdout=writer, **OPTIONS)
    finally:
        os.close(writer)


def into_full(words):
    with open("/dev/full", "wb") as full:
        return subprocess.run(words, stdout=full, **OPTIONS)


def into_closed(words):
    line = ["sh", "-c", 'exec "$@" >&-', "sh", *words]
    return subprocess.run(line, **OPTIONS)


OPTIONS = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
WAYS = (into_pipe, into_full, into_closed)


def check_streams(words, sentence="standard output"):
    for way in WAYS:
        done = way(words)
        label = f"{os.path.basename(words[0])} {' '.join(words[1:3])}, {way.__name__}"
        m.check(done.returncode in (1, 2), f"{label}: status {done.returncode}: {done.stderr}")
        lines = done.stderr.splitlines()
        quiet = way is into_pipe and not lines
        m.check(quiet or (len(lines) == 1 and sentence in lines[0]), f"{label}: {done.stderr}")


for name in NAMES:
    check_streams([os.path.join(SCRIPTS, name), "--help"])

with open("choices.csv", "w") as file:
    file.write("token,expert\n0,1\n1,0\n")
check_streams(
    [os.path.join(SCRIPTS, "import-trace"), "choices.csv", "--out", "imported", "--force"]
)
m.check(os.path.exists("imported/topk_idx.npy"), "the import was not written")
check_streams([sys.executable, FRAMEWORKS], "number of devices")
here = subprocess.run([sys.executable, FRAMEWORKS, "1"], stdout=subprocess.DEVNULL, **OPTIONS)
m.check(here.returncode == 0 and not here.stderr, f"frameworks.py: {here.stderr}")
done = into_pipe([sys.executable, FRAMEWORKS, "1"])
m.check(done.returncode == 1 and not done.stderr, f"frameworks.py: {done.stderr}")

# The judge of all that, where a script is interrupted or finds a file in its way.
if os.fork() == 0:
    os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT), 2)
    os._exit(run("tool", lambda words: signal.raise_signal(signal.SIGINT)))
m.check(os.waitstatus_to_exitcode(os.wait()[1]) == 130, "Ctrl-C is not 130")
with open("said") as file:
    m.check(file.read() == "", "Ctrl-C says something")
if os.fork() == 0:
    os.dup2(os.open("said", os.O_WRONLY | os.O_TRUNC), 2)
    os._exit(run("tool", lambda words: open("no/such/file")))
m.check(os.waitstatus_to_exitcode(os.wait()[1]) == 1, "a missing file is not 1")
with open("said") as file:
    said = file.read()
m.check(said == "scripts/tool: no/such/file: No such file or directory\n", said)
if os.fork() == 0:
    os.dup2(os.open("said", os.O_WRONLY | os.O_TRUNC), 2)
    os._exit(run("tool", lambda words: open("/dev/full", "w").write("x" * 10**6)))
m.check(os.waitstatus_to_exitcode(os.wait()[1]) == 1, "a file on a full disk is not 1")
with open("said") as file:
    said = file.read()
full = "standard output or a file cannot be written: No space left on device"
m.check(said == f"scripts/tool: {full}\n", said)
m.verdict()
