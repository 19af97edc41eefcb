"""Helper of the tests with hostile run folders: makes one small real run, spoils copies of it in
one of many ways, each from a seed, and looks at what scripts/report, scripts/sweep and
scripts/lesson do with the copy.

None of them may end in a traceback, hang, take much memory, write through a link, show the content
of a file outside the folder, or execute anything.
"""
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile

import _moesim as m
from _report import REPORT, Page

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(m.SOURCE, "scripts"))
from command_line import Refused  # noqa: E402  (needs the path)
from lesson_lib import measure, show  # noqa: E402
from sweep_lib import command as sweep  # noqa: E402
from sweep_lib import page as sweep_page  # noqa: E402
from sweep_lib import plan, runner, table  # noqa: E402

SECONDS = 40  # for one report, while other tests run beside it
MEMORY = 4 << 30  # address space of one report
SECRET = "a-secret-of-somebody-else"
JSON_FILES = (
    "summary.json",
    "metrics.jsonl",
    "explain.json",
    "timeline.json",
    "specialization.json",
)
ARRAYS = ("comm_matrix.npy", "comm_matrix_steps.npy", "expert_load.npy", "domain_load.npy")
FILES = (*JSON_FILES, "config.ini", *ARRAYS)
SETTINGS = {
    "run.steps": 6,
    "run.mode": "train",
    "model.num_layers": 2,
    "model.hidden_size": 8,
    "model.num_experts": 8,
    "model.moe_intermediate_size": 8,
    "router.top_k": 2,
    "cluster.devices": 4,
    "capacity.policy": "expert",
    "data.tokens_per_device": 16,
    "data.sequence_length": 8,
    "train.specialization": "yes",
    "train.validation_every": 2,
    "output.timeline": "yes",
}


class Raw:
    """A piece of JSON text that json.dumps would not write."""

    def __init__(self, text):
        self.text = text


VALUES = (
    *(
        1e308,
        -1e308,
        5e-324,
        10**40,
        -(10**40),
        2**63,
        2**53 + 1,
        -1,
        0,
        1,
        65536,
        10**9,
        0.5,
    ),
    *(None, True, False, "", "x", "\ud800", "</script><script>alert(1)</script>", "x" * 10_000),
    "\x1b]0;title\x07\x1b[2J",
    *([], {}, [[1]], [1, 2, 3], ["a"], {"a": {"b": 1}}, [None], [{}], {"": 0}),
    *(Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000)),
    *(
        Raw("[" * 60 + "]" * 60),
        Raw("[" * 100_000 + "]" * 100_000),
        Raw('{"a":' * 2000 + "1" + "}" * 2000),
    ),
)


def real_run():
    """A training of a few steps that writes every file that the report reads."""
    folder = m.run("real", 2, SETTINGS, "--explain", "3", "--explain-step")
    state = {"status": "ok", "error": "", "seconds": 1.0, "settings": [["run.seed", "1"]]}
    with open(os.path.join(folder, runner.STATE), "w") as file:
        json.dump(state, file)
    missing = [name for name in FILES if not os.path.exists(os.path.join(folder, name))]
    m.check(not missing, "the real run lacks", missing)
    return folder


# --- ways to spoil a folder ---


def places(value, path=()):
    """The paths to everything in a JSON value."""
    yield path
    entries = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, entry in entries:
        yield from places(entry, (*path, key))


def json_text(value):
    """JSON with what json.dumps would not write."""
    raw = {}

    def instead(one):
        name = f"raw piece {len(raw)}"
        raw[name] = one.text
        return name

    text = json.dumps(value, default=instead)
    for name, piece in raw.items():
        text = text.replace(json.dumps(name), piece)
    return text


def change(draw, value):
    """One change somewhere in a JSON value; gives back the value and what was done."""
    path = draw.choice(list(places(value)))
    if not path:
        new = draw.choice(VALUES)
        return new, "everything"
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    key, old = path[-1], inside[path[-1]]
    kind = draw.randrange(6)
    if kind == 0:
        del inside[key]
        return value, f"{path} removed"
    if kind == 1 and isinstance(old, list) and old:
        times = draw.choice((2, 1000, 100_000 // max(1, len(json.dumps(old)) // 20)))
        inside[key] = old * times
        return value, f"{path} repeated {times} times"
    if kind == 2 and isinstance(old, dict) and old:
        old[f"name {draw.randrange(100)}\n<b>\u202e"] = draw.choice(VALUES)
        return value, f"{path} with another field"
    inside[key] = draw.choice(VALUES)
    shown = inside[key].text if isinstance(inside[key], Raw) else repr(inside[key])
    return value, f"{path} is {shown[:30]}"


def spoil_json(draw, folder):
    name = draw.choice((*JSON_FILES, "summary.json", "summary.json", runner.STATE))
    path = os.path.join(folder, name)
    with open(path) as file:
        lines = file.read().splitlines() if name == "metrics.jsonl" else [file.read()]
    index, done = draw.randrange(len(lines)), []
    value = json.loads(lines[index])
    for _ in range(draw.choice((1, 1, 1, 4))):
        if isinstance(value, (dict, list)):
            value, what = change(draw, value)
            done.append(what)
        try:
            lines[index] = json_text(value)
            value = json.loads(lines[index])
        except (ValueError, RecursionError):
            break
    with open(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return f"{name}: {'; '.join(done)}"


def spoil_layers(draw, folder):
    """Very many layers, or very many experts or devices in one."""
    path, count = os.path.join(folder, "summary.json"), draw.choice((4096, 5000, 100_000))
    summary = m.summary(folder)
    kind = draw.choice(("layers", "counts_per_expert", "counts_per_device"))
    if kind == "layers":
        summary["layers"] = [{}] * (count - 1) + [summary["layers"][0]]
    else:
        summary["layers"][0][kind] = [1] * count
    with open(path, "w") as file:
        json.dump(summary, file)
    return f"{count} {kind}"


def spoil_bytes(draw, folder):
    """Bytes of any file cut off, changed, or in the wrong place."""
    name = draw.choice((*FILES, runner.STATE))
    path, kind = os.path.join(folder, name), draw.randrange(4)
    with open(path, "rb") as file:
        content = bytearray(file.read())
    at = draw.randrange(len(content))
    if kind == 0:
        del content[at:]
    elif kind == 1:
        for _ in range(draw.choice((1, 20))):
            content[draw.randrange(len(content))] = draw.randrange(256)
    elif kind == 2:
        content[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 100))))
    else:
        content = bytearray(draw.randbytes(draw.choice((0, 1, 13, 1000))))
    with open(path, "wb") as file:
        file.write(content)
    return f"{name}: bytes, way {kind}, at {at}"


class Mischief:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self):
        return os.mkdir, (os.path.join(m.TEMPORARY, "executed"),)


def header(text, version=1, length=None):
    body = text.encode("latin-1")
    size = len(body) if length is None else length
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + struct.pack("<H" if version == 1 else "<I", size)
        + body
    )


def spoil_array(draw, folder):
    """A .npy whose header lies, whose numbers are no counts, or that is something else."""
    name = draw.choice(ARRAYS)
    path = os.path.join(folder, name)
    with open(path, "rb") as file:
        content = file.read()
    shape = m.load(path).shape
    numbers = content[10 + struct.unpack("<H", content[8:10])[0] :]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("arr_0.npy", content)
    head = "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }\n"
    ways = (
        ("an archive", archive.getvalue()),
        ("objects", header(head % ("|O", False, shape)) + pickle.dumps([Mischief()])),
        ("a pickle", pickle.dumps(Mischief())),
        ("a long header", header(" " * 60_000)),
        ("a header without end", header("{", 2, 2**32 - 1)),
        ("nested", header(head % ("<i8", False, "(" * 3000 + ")" * 3000))),
        ("huge", header(head % ("<i8", False, (2**40,) * len(shape))) + numbers),
        ("negative", header(head % ("<i8", False, (-1, *shape[1:]))) + numbers),
        ("empty", header(head % ("<i8", False, (10**9, *(0 for _ in shape[1:]))))),
        ("Fortran", header(head % ("<i8", True, shape)) + numbers),
        (
            "other type",
            header(head % (draw.choice(("<f8", "<c16", "|S8", "<M8", ">i4")), False, shape))
            + numbers,
        ),
        ("many dimensions", header(head % ("<i8", False, (1,) * 60 + shape)) + numbers),
        (
            "not square",
            header(head % ("<i8", False, (*shape[:-2], 1, shape[-1] * shape[-2]))) + numbers,
        ),
        (
            "large values",
            content[: -len(numbers)] + struct.pack("<q", 2**63 - 1) * (len(numbers) // 8),
        ),
        ("negative values", content[: -len(numbers)] + struct.pack("<q", -5) * (len(numbers) // 8)),
        ("other content", numbers),
    )
    what, content = draw.choice(ways)
    with open(path, "wb") as file:
        file.write(content)
    return f"{name}: {what}"


def spoil_kind(draw, folder):
    """Something that is no regular file, or a very large one, takes the place of a file."""
    name = draw.choice((*FILES, runner.STATE))
    path = os.path.join(folder, name)
    os.remove(path)
    kind = draw.choice(("pipe", "folder", "link", "loop", "device", "socket", "sparse", "nothing"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "link":
        os.symlink(os.path.join(m.TEMPORARY, "secret"), path)
    elif kind == "loop":
        os.symlink(path, path)
    elif kind == "device":
        os.symlink("/dev/zero", path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(folder)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)
        os.chdir(here)
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(draw.choice((1 << 40, 5 << 30, 300 << 20)))
    return f"{name}: a {kind}"


def spoil_config(draw, folder):
    """Without a summary, the configuration is read from config.ini."""
    os.remove(os.path.join(folder, "summary.json"))
    many = "".join(f"[s{i}]\na = 1\n" for i in range(20_000))
    text = draw.choice(
        (
            "[cluster]\ndevices = " + "9" * 4000 + "\n",
            "[cluster]\ndevices = 1e999\n[model]\nnum_layers = nan\nnum_experts = 99999999999\n",
            "[DEFAULT]\n" + "".join(f"k{i} = 1\n" for i in range(20_000)) + many,
            "[run]\nsteps = " + "1" * 5000 + "\n" + "x" * 100_000,
            "[model]\nnum_experts = " + "\u0661" * 20 + "\n",
            "[a]\n" + " b\n" * 100_000,
        )
    )
    with open(os.path.join(folder, "config.ini"), "w", encoding="utf-8") as file:
        file.write(text)
    return f"config.ini: {text[:40]!r}"


def spoil_target(draw, folder):
    """What stands where the report is going to be written."""
    victim = os.path.join(m.TEMPORARY, "secret")
    name = draw.choice(("report.html", "report.html.tmp", "sweep-run.json"))
    path, kind = os.path.join(folder, name), draw.choice(("link", "dangling", "pipe", "folder"))
    if os.path.exists(path):
        os.remove(path)
    if kind == "link":
        os.symlink(victim, path)
    elif kind == "dangling":
        os.symlink(os.path.join(m.TEMPORARY, "planted"), path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.mkdir(path)
    return f"{name}: a {kind}"


WAYS = (
    *(spoil_json,) * 10,
    *(spoil_array,) * 4,
    *(spoil_bytes,) * 3,
    *(spoil_kind,) * 4,
    spoil_layers,
    spoil_config,
    spoil_target,
)


# --- what is done with the folder ---


def too_long(*_):
    raise TimeoutError("took too long")


def within(seconds, what, label):
    """Calls `what` in this process; anything that it lets out but a Refused is a failure."""
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        what()
    except Refused:
        pass
    except BaseException as error:  # noqa: BLE001  (this is what the test looks for)
        if isinstance(error, KeyboardInterrupt):
            raise
        m.check(False, f"{label}: {type(error).__name__}: {error}")
    finally:
        signal.alarm(0)


def limited():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def check_report(folder, label, library):
    line, begin = [REPORT, folder, "--plotly", library], time.monotonic()
    around = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            line,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            env=around,
            preexec_fn=limited,
        )
    except subprocess.TimeoutExpired:
        m.check(False, f"{label}: the report took more than {SECONDS} s")
        return 0
    sentences = done.stderr.splitlines()
    good = (done.returncode == 0 and not sentences) or (
        done.returncode == 2 and len(sentences) == 1
    )
    m.check(good, f"{label}: status {done.returncode}: {done.stderr[-600:]}")
    if done.returncode == 0:
        target = os.path.join(folder, "report.html")
        page = Page(target)
        m.check(SECRET not in page.text, f"{label}: the page shows a file from outside")
        m.check("\x1b" not in page.text, f"{label}: the page commands a terminal")
        m.check("<script>alert" not in page.text, f"{label}: the page holds a script of the folder")
        os.remove(target)
    return time.monotonic() - begin


FIGURES = (
    "a.loss_raw.comm / a.layers[0].loss_raw.comm",
    "sum(a.layers[*].dropped)",
    "mean(a.metrics[-3:].volume.dispatch.rows)",
    "a.comm_matrix[0][0][1] * 2",
    "over(a.expert_load[0][0], 1)",
    "differ(a.counts_per_expert, a.kept_per_expert)",
    "max(a.counts_per_device) - min(a.sent_rows)",
    "len(a.explain.token.layers[0].choices)",
    "a.explain.token.layers[0].choices[0].weight",
    "abs(a.training.task_loss.mean_last_20) * 3",
    "a.specialization.layers[0].score",
    "a.timeline.traceEvents[0].ts",
)


def measure_all(folder):
    """As scripts/lesson does it."""
    runs = {"a": measure.Run(folder)}
    for figure in FIGURES:
        show.measured(figure, runs)


def table_all(folder):
    """As scripts/sweep does it."""
    run = plan.Run("run", (), "1")
    runner.previous(run, folder)
    row = table.row_of(run, runner.Outcome("ok", "", 1.0), folder)
    table.write_csv(os.path.join(folder, "sweep.csv"), [row])
    sweep_page.write(os.path.join(folder, "sweep.html"), [row, row], [], "hostile", False)
    runner.remember(run, folder, runner.Outcome("under way"))


def claim(folder):
    """A sweep's own file, spoilt as a run's are."""
    options = plan.Options(config=os.path.join(m.SOURCE, "configs", "quickstart.ini"), ranks=1)
    options.out = os.path.join(folder, "sweep")
    os.mkdir(options.out)
    os.symlink(os.path.join(folder, runner.STATE), os.path.join(options.out, "sweep.json"))
    sweep.claim(options)


def check_seed(real, seed, library):
    """One copy of the real run, spoilt as the seed says."""
    draw, folder = random.Random(seed), os.path.join(m.TEMPORARY, f"hostile-{seed}")
    shutil.copytree(real, folder)
    label = f"seed {seed}: {draw.choice(WAYS)(draw, folder)}"
    seconds = check_report(folder, label, library)
    within(SECONDS, lambda: measure_all(folder), f"{label}: lesson")
    within(SECONDS, lambda: table_all(folder), f"{label}: sweep")
    within(SECONDS, lambda: claim(folder), f"{label}: sweep.json")
    with open(os.path.join(m.TEMPORARY, "secret")) as file:
        m.check(file.read() == SECRET, f"{label}: wrote through a link")
    for name in ("planted", "executed"):
        m.check(not os.path.lexists(os.path.join(m.TEMPORARY, name)), f"{label}: {name}")
    shutil.rmtree(folder)
    return seconds, label


def check_seeds(seeds):
    """All of these seeds; prints the slowest."""
    library = os.path.join(m.TEMPORARY, "stand-in.js")
    for path, text in (
        (library, "var Plotly = {react() {}};\n"),
        (os.path.join(m.TEMPORARY, "secret"), SECRET),
    ):
        with open(path, "w") as file:
            file.write(text)
    real = real_run()
    print(f"seeds {seeds[0]} to {seeds[-1]}")
    slowest = max(check_seed(real, seed, library) for seed in seeds)
    print(f"the slowest report: {slowest[0]:.1f} s, {slowest[1]}")
