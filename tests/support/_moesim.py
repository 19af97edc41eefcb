"""Helper of the black-box tests: runs moesim under mpirun, reads and writes .npy without numpy,
counts checks. Environment: MOESIM (program), MPIRUN (words that end in -np), MOESIM_SOURCE_DIR,
MOESIM_GOLDEN_DIR.
"""
import array
import ast
import atexit
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

MOESIM = os.path.abspath(os.environ["MOESIM"])
MPIRUN = os.environ.get("MPIRUN", "timeout -k 5 120 mpirun --oversubscribe -np").split()
SOURCE = os.environ.get("MOESIM_SOURCE_DIR") or os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)
GOLDEN = os.environ.get("MOESIM_GOLDEN_DIR") or os.path.join(SOURCE, "tests", "golden")
QUICKSTART = os.path.join(SOURCE, "configs", "quickstart.ini")
TEMPORARY = tempfile.mkdtemp(prefix="moesim-test-")
atexit.register(shutil.rmtree, TEMPORARY, True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # clean up when a timeout ends the test
os.chdir(TEMPORARY)

checks = failures = 0
counting = threading.Lock()


def check(ok, *message):
    """Counts one check; a failure is printed and the test goes on. Threads may check too."""
    global checks, failures
    with counting:
        checks += 1
        failures += not ok
        if not ok and failures <= 40:
            print("FAILED:", *message, flush=True)
    return ok


def wait_for(condition, seconds=30):
    """What the condition says as soon as that is true, or in the end."""
    end = time.monotonic() + seconds
    found = condition()
    while not found and time.monotonic() < end:
        time.sleep(0.02)
        found = condition()
    return found


def verdict():
    print(f"{checks} checks, {failures} failed")
    sys.exit(failures > 0 or checks == 0)


# --- running ---


class Result:
    """Exit status, output and seconds of one mpirun."""

    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds


def environment(**more):
    """mpirun adds no lines of its own when a rank exits non-zero, and does not wait a second or two
    before it ends.
    """
    return {
        "OMPI_MCA_odls_base_sigkill_timeout": "0",
        **os.environ,
        "OMPI_MCA_orte_execute_quiet": "1",
        **more,
    }


def command(ranks, *arguments):
    return [*MPIRUN, str(ranks), MOESIM, *map(str, arguments)]


def moesim(ranks, *arguments, **more):
    start = time.monotonic()
    done = subprocess.run(
        command(ranks, *arguments),
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    return Result(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


def config(name, settings):
    """Writes NAME.ini from {"section.key": value}; returns its path."""
    sections = {}
    for key, value in settings.items():
        section, key = key.split(".")
        sections.setdefault(section, []).append(f"{key} = {value}\n")
    path = os.path.join(TEMPORARY, name + ".ini")
    with open(path, "w") as file:
        for section, lines in sections.items():
            file.write(f"[{section}]\n{''.join(lines)}")
    return path


def sets(settings):
    """--set options of {"section.key": value}."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def run(name, ranks, settings, *arguments, **more):
    """Runs a configuration into the folder NAME; gives the folder, or None after a failed check."""
    folder = os.path.join(TEMPORARY, name)
    done = moesim(ranks, config(name, settings), "--out", folder, "--quiet", *arguments, **more)
    return (
        folder
        if check(done.code == 0, f"{name} at np {ranks}: status {done.code}: {done.err}")
        else None
    )


def summary(folder):
    with open(os.path.join(folder, "summary.json")) as file:
        return json.load(file)


def metrics(folder):
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


# --- .npy ---

TYPES = {
    "<f4": "f",
    "<f8": "d",
    "|i1": "b",
    "|u1": "B",
    "|b1": "B",
    "<i2": "h",
    "<i4": "i",
    "<i8": "q",
    "<u8": "Q",
}


class Array:
    """A .npy: dtype, shape, and all numbers in C order."""

    def __init__(self, dtype, shape, data):
        self.dtype, self.shape, self.data = dtype, tuple(shape), data

    def rows(self):
        """Lists of the last dimension."""
        n = self.shape[-1]
        return [list(self.data[i : i + n]) for i in range(0, len(self.data), n)] if n else []


def load(path):
    with open(path, "rb") as file:
        content = file.read()
    length = struct.unpack("<H", content[8:10])[0]
    header = ast.literal_eval(content[10 : 10 + length].decode())
    data = array.array(TYPES[header["descr"]], content[10 + length :])
    return Array(header["descr"], header["shape"], data)


def header_of(dtype, shape, fortran=False):
    text = repr({"descr": dtype, "fortran_order": fortran, "shape": tuple(shape)})
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def save(name, dtype, shape, numbers, fortran=False):
    path = os.path.join(TEMPORARY, name)
    with open(path, "wb") as file:
        file.write(header_of(dtype, shape, fortran) + array.array(TYPES[dtype], numbers).tobytes())
    return path


def same_bytes(first, second):
    with open(first, "rb") as a, open(second, "rb") as b:
        return a.read() == b.read()


def near(a, b, relative):
    if isinstance(a, (list, tuple, array.array)):
        return len(a) == len(b) and all(near(x, y, relative) for x, y in zip(a, b))
    return a == b or abs(a - b) <= relative * max(abs(a), abs(b))
