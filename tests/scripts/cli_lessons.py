"""ctest: timeout=240
scripts/lesson: every lesson at its test size does what its page says (every row of EXPECT); rows
can fail; pages are complete; mistakes in the command get one sentence and run nothing; another
folder and another number of ranks give the same.
"""
import os
import pty
import re
import shutil
import subprocess
import sys
import time

import _moesim as m

sys.path.insert(0, os.path.join(m.SOURCE, "scripts"))
sys.dont_write_bytecode = True
from lesson_lib import measure, page, show  # noqa: E402  (needs the path)
from lesson_lib.command import changed_name  # noqa: E402

LESSONS = {number: page.read(path) for number, path in page.paths().items()}
LICENCES = (  # without it, another text: what is expected is printed but not demanded
    "/usr/share/common-licenses"
)
SECONDS = 30  # on two idle cores it is three; here other tests run beside it
ENVIRONMENT = {
    name: value
    for name, value in m.environment().items()
    if name not in ("DISPLAY", "WAYLAND_DISPLAY")
}


def lesson(*words, scripts=os.path.join(m.SOURCE, "scripts")):
    start = time.monotonic()
    line = [sys.executable, os.path.join(scripts, "lesson"), *map(str, words)]
    done = subprocess.run(
        line, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ENVIRONMENT
    )
    return m.Result(done.returncode, done.stdout, done.stderr, time.monotonic() - start)


def text_words(number):
    """--set of another text where the lesson's is not there."""
    with open(LESSONS[number].path) as file:
        needed = LICENCES in file.read() and not os.path.exists(LICENCES)
    return ["--set", "data.path=" + os.path.join(m.SOURCE, "src")] if needed else []


def folder(number):
    return os.path.join(m.TEMPORARY, f"lesson-{number}")


def screen(number, run):
    with open(os.path.join(folder(number), run, "screen.txt"), encoding="utf-8") as file:
        return file.read()


def test_pages():
    m.check(sorted(LESSONS) == list(range(1, len(LESSONS) + 1)), "the lessons are", sorted(LESSONS))
    for number, one in LESSONS.items():
        with open(one.path, encoding="utf-8") as file:
            lines = file.read().splitlines()
        answers = max(i for i, line in enumerate(lines) if line == "; ANSWERS")
        m.check(
            all(line.startswith(";") for line in lines[answers:]),
            f"lesson {number}: the answers do not stand at the end",
        )
        for block in ("QUESTIONS", "ANSWERS"):
            marks = [
                int(found[1])
                for line in one.blocks[block]
                if (found := re.match(r"  (\d)\. ", line))
            ]
            m.check(marks == [1, 2, 3], f"lesson {number}: {block} are numbered {marks}")
        m.check(
            one.sections
            and len(one.expectations) >= 6
            and all(row.figure for row in one.expectations),
            f"lesson {number} lacks something",
        )
        m.check(
            len(set(one.runs())) == len(one.runs()) > 0,
            f"lesson {number}: its runs are {one.runs()}",
        )
        for path in re.findall(r"\bsrc/[a-z_/]+(?:\.[ch])?", "\n".join(lines)):
            m.check(os.path.exists(os.path.join(m.SOURCE, path)), f"lesson {number}: no {path}")
        m.check(
            max(map(len, lines)) <= 120,
            f"lesson {number}: a line of {max(map(len, lines))} characters",
        )


def test_lesson(number):
    """At the lesson's test size every row of EXPECT is on the screen, with what was measured, and
    holds."""
    one, changed = LESSONS[number], text_words(number)
    done = lesson(number, "--test", "--out", folder(number), *changed)
    print(f"lesson {number}: {done.seconds:.1f} s")
    m.check(
        done.code == 0 and not done.err,
        f"lesson {number}: status {done.code}: {done.out[-2500:]}{done.err}",
    )
    m.check(done.seconds < SECONDS, f"lesson {number} takes {done.seconds:.1f} s at its test size")
    rows = re.findall(r"^(\S.*?)  +.*  (yes|NO)$", done.out, re.M)
    m.check(
        len(rows) == len(one.expectations),
        f"lesson {number}: {len(rows)} rows for {len(one.expectations)} expectations",
    )
    for section in one.sections:
        m.check(
            re.search(rf"^{re.escape(section)}", done.out, re.M),
            f"lesson {number} does not show '{section}'",
        )
    m.check(
        done.out.count("\n$ ") == len(one.commands), f"lesson {number} does not show its commands"
    )


def test_screens():
    """What lessons 4 and 6 let one read on moesim's own screen, and that a run of one step is no
    shorter than the step.
    """
    measured = m.summary(os.path.join(folder(4), "tokens"))["time"]
    m.check(
        measured["total"] >= measured["measured"]["step_mean"],
        "the run is shorter than its step:",
        measured,
    )
    losses = " ".join(screen(4, "selections").split())
    m.check(
        "at balance it is selections per token / 3 = 6.000 / 3" in losses,
        "f'' by selections at balance is not K over the most devices",
    )
    rows = m.summary(os.path.join(folder(6), "device"))["volume"]["dispatch"]["rows"]
    shown = re.search(r"one row per token and device +([\d,]+).* sent$", screen(6, "device"), re.M)
    m.check(
        shown and int(shown[1].replace(",", "")) == rows,
        "with dropping, not what was sent is marked as sent:",
        shown and shown[0],
    )
    undropped = re.search(r"the same without dropping +([\d,]+)", screen(6, "device"))
    all_rows = m.summary(os.path.join(folder(6), "all"))["volume"]["dispatch"]["rows"]
    m.check(
        undropped and int(undropped[1].replace(",", "")) == all_rows,
        "rows without dropping are",
        undropped and undropped[0],
    )


def test_ranks():
    """The same figures on at most two ranks as on eight, from another folder; also where one run of
    the lesson has one rank.
    """
    os.makedirs("elsewhere", exist_ok=True)
    os.chdir("elsewhere")
    done = lesson(4, "--test", "-np", "2")
    os.chdir(m.TEMPORARY)
    m.check(done.code == 0, done.code, done.out[-1500:], done.err)
    done = lesson(1, "--test", "-np", "2", "--out", "one-and-two")
    ranks = [m.summary(os.path.join("one-and-two", run))["ranks"] for run in LESSONS[1].runs()]
    m.check(done.code == 0 and ranks == [1, 2], done.code, ranks, done.out[-1500:], done.err)
    for run in LESSONS[4].runs():
        two, eight = (
            m.summary(os.path.join(place, run))
            for place in ("elsewhere/runs/lesson-04-test", folder(4))
        )
        m.check(
            two["ranks"] == 2 and eight["ranks"] == 8 and two["loss_raw"] == eight["loss_raw"],
            f"{run}: losses on 2 and on 8 ranks differ",
        )


def test_measure():
    """Expressions and bounds mean what measure.py says, and can fail."""
    runs = {
        "a": {"x": {"global": 2.0}, "list": [1, 2, 4], "rows": [{"n": 3}, {"n": 5}]},
        "b": {"list": [1, 3, 4]},
    }
    for figure, value in (
        ("a.x.global * 3 - 1", 5),
        ("sum(a.rows[*].n)", 8),
        ("mean(a.rows[-1:].n)", 5),
        ("differ(a.list, b.list)", 1),
        ("-a.list[-1] / 8", -0.5),
        ("over(a.list, 1.5)", 3),
    ):
        m.check(
            measure.evaluate(figure, runs) == value, figure, "is", measure.evaluate(figure, runs)
        )
    for value, bound, good in (
        (2, "= 2", True),
        (2.1, "= 2", False),
        (1.05, "1 +- 0.1", True),
        (1.2, "1 +- 0.1", False),
        (0.5, "< 1", True),
        (1, "< 1", False),
        (3, "> 2", True),
        (2, "> 2", False),
        (1.5, "1 to 4/2", True),
        (2.5, "1 to 4/2", False),
        (-3, "-4 to -2", True),
    ):
        m.check(measure.holds(value, bound) == good, value, bound, "holds:", not good)
    try:
        measure.evaluate("a.x.nothing", runs)
        m.check(False, "a figure that is not there has a value")
    except measure.Missing:
        m.check(True)


def test_wrong_page():
    """A page whose figures are not true, or not there, says NO and ends with status 3."""
    tree = os.path.join(m.TEMPORARY, "tree")
    shutil.copytree(
        os.path.join(m.SOURCE, "scripts"),
        os.path.join(tree, "scripts"),
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copytree(
        os.path.join(m.SOURCE, "configs", "lessons"), os.path.join(tree, "configs", "lessons")
    )
    path = os.path.join(tree, "configs", "lessons", os.path.basename(LESSONS[4].path))
    with open(path, encoding="utf-8") as file:
        text = file.read()
    wrong = text.replace("| 2 +- 1e-12", "| 3 +- 1e-12", 1).replace(
        "balance.received", "balance.recieved"
    )
    m.check(
        wrong.count("recieved") == wrong.count("3 +- 1e-12") == 1,
        "lesson 4 has changed: change this test",
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write(wrong)
    done = lesson(4, "--test", "--out", "wrong", scripts=os.path.join(tree, "scripts"))
    failed = re.findall(r"  NO$", done.out, re.M)
    m.check(
        done.code == 3 and len(failed) == 2 and "missing: recieved" in done.out,
        done.code,
        done.out[-1500:],
        done.err,
    )


def test_idea():
    """The idea stands before the first command, in whole parts of about 15 lines that fit 80
    columns (formulas as they are set), and says where the rest is.
    """
    for number, one in LESSONS.items():
        text, parts = show.idea(one, "PAGE"), one.idea()
        first = " ".join(parts[0][1].split())
        m.check(" ".join(text.split()).startswith(first), f"lesson {number} begins with", text[:90])
        lines = text.splitlines()
        m.check(4 <= len(lines) <= 22, f"lesson {number}: its idea has {len(lines)} lines")
        formulas = {line for kind, part in parts if kind == "pre" for line in part.splitlines()}
        wide = [line for line in lines if len(line) > 80 and line not in formulas]
        m.check(not wide, f"lesson {number}: {wide}")
        shown = " ".join(text.split())
        whole = all(" ".join(part.split()) in shown for kind, part in parts if kind == "p")
        m.check(whole or "goes on in PAGE" in lines[-1], f"lesson {number}: the rest is nowhere")
        for block in ("QUESTIONS", "ANSWERS"):
            items = one.numbered(block)
            m.check(len(items) == 3 and all(items), f"lesson {number}: {block} are", items)
    done = lesson(4, "--test", "--out", "idea")
    m.check(0 < done.out.find("DeepSeek-V2 (arXiv") < done.out.find("\n$ "), done.out[:900])


def test_side_by_side():
    """--set leaves the lesson's folder alone, writes beside it, and shows both."""
    os.makedirs("beside")
    os.chdir("beside")
    words = (4, "--test", "--set", "router.topk_group=2")
    alone, usual, both = lesson(*words), lesson(4, "--test"), lesson(*words)
    os.chdir(m.TEMPORARY)
    folders = sorted(os.listdir(os.path.join("beside", "runs")))
    m.check(
        folders == ["lesson-04-test", "lesson-04-test-with-router.topk_group=2"],
        "the folders are",
        folders,
    )
    m.check(
        "not run" in alone.out and "scripts/lesson 4 --test, then this" in alone.out,
        alone.out[-900:],
    )
    m.check("now" not in usual.out.split("LOOK AT")[1].split(), usual.out[-900:])
    own = re.search(r"^expert loss  .* (\S+)  yes$", usual.out, re.M)[1]
    beside = re.search(r"^expert loss  .* (\S+) +(\S+)  (yes|NO)$", both.out, re.M)
    loss = m.summary(os.path.join("beside", "runs", folders[1], "tokens"))["layers"][0]["loss_raw"]
    m.check(beside and beside[1] == own != beside[2], beside and beside[0])
    m.check(beside and abs(float(beside[2]) - loss["expert"]) < 1e-5, loss)
    names = {changed_name([text]) for text in ("a.b=" + "x" * 300, "a.b=" + "x" * 301, "a.b=c/d")}
    m.check(len(names) == 3 and all(len(name) <= 80 and "/" not in name for name in names), names)


def test_changed():
    """With --set a lesson is another one: rows may fail, the status is 0."""
    done = lesson(
        4, "--test", "--out", "changed", "--set", "router.topk_group=2", "--set=run.seed=3"
    )
    m.check(
        done.code == 0 and "  NO\n" in done.out and "another lesson" in done.out,
        done.code,
        done.out[-1500:],
        done.err,
    )
    config = os.path.join("changed", "tokens", "config.ini")
    with open(config, encoding="utf-8") as file:
        m.check("topk_group = 2" in file.read(), "--set did not reach the run")


def on_terminal(words, interrupt_at=None):
    """(status, what stands on a terminal of 80 columns), with a Ctrl-C once a pattern is there."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(words[0], words, {**ENVIRONMENT, "COLUMNS": "80", "TERM": "dumb"})
    seen = b""
    while True:
        try:
            fresh = os.read(terminal, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not fresh:
            break
        seen += fresh
        if interrupt_at and re.search(interrupt_at, seen):
            os.write(terminal, b"\x03")
            interrupt_at = None
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    return status, seen.decode(errors="replace")


def test_progress():
    """A bar on a terminal while a run trains, erased behind it; none in a pipe; Ctrl-C says which
    folder and checkpoint are there and how to go on.
    """
    script = os.path.join(m.SOURCE, "scripts", "lesson")
    steps = ["--set", "run.steps=400", "--set", "train.checkpoint_every=4", *text_words(3)]
    words = [sys.executable, script, "3", "--test", "--out", "stopped", *steps]
    status, said = on_terminal(words, rb"\] step ([9]|\d\d+)/400")
    m.check(re.search(r"\[#*-+\] step \d+/400, \d+:\d\d left", said), said[-900:])
    left = re.search(
        r"interrupted: stopped/alone/ has (\d+) of 400 steps and the checkpoint"
        r" (checkpoints/step-\d+\.moe)\r\nto go on: mpirun -np D moesim --resume stopped/alone",
        said,
    )
    if m.check(status == 130 and left, status, said[-900:]):
        m.check(os.path.exists(os.path.join("stopped", "alone", left[2])), left[2], "is not there")
        with open(os.path.join("stopped", "alone", "metrics.jsonl")) as file:
            m.check(abs(len(file.readlines()) - int(left[1])) <= 1, "steps said:", left[1])
    m.check("\r" not in lesson(4, "--test", "--out", "piped").out, "a bar in a pipe")


def test_list():
    done = lesson()
    m.check(
        done.code == 0
        and [int(line.split()[0]) for line in done.out.splitlines()[: len(LESSONS)]]
        == sorted(LESSONS),
        done.out,
    )
    m.check(all(one.title in done.out for one in LESSONS.values()), "a title is missing:", done.out)
    with open(os.path.join(page.FOLDER, "README.md"), encoding="utf-8") as file:
        index = file.read()
    m.check(
        all(f"[{one.title}]({os.path.basename(one.path)})" in index for one in LESSONS.values()),
        "README.md of the lessons lacks a title",
    )
    m.check(lesson("--help").code == 0, "--help")


def test_mistakes():
    before = sorted(os.listdir(m.TEMPORARY))
    for words, said in (
        ((len(LESSONS) + 1,), f"the lessons are 1 to {len(LESSONS)}"),
        ((0,), "no lesson 0"),
        (("five",), "no lesson five"),
        ((1, 2), "one lesson at a time"),
        ((1, "--fast"), "unknown option --fast"),
        ((1, "--set"), "--set needs a value"),
        ((1, "-np", "0"), "-np 0"),
        (("--test",), "which lesson?"),
        ((1, "--out"), "--out needs a value"),
    ):
        done = lesson(*words)
        one_sentence = said in done.err and done.err.count("\n") == 1 and not done.out
        m.check(
            done.code == 2 and one_sentence, f"{words}: status {done.code}: {done.out}{done.err}"
        )
    m.check(sorted(os.listdir(m.TEMPORARY)) == before, "a mistake left something behind")
    done = lesson(1, "--test", "--set", "router.top_kk=3")
    m.check(
        done.code == 2 and done.err.count("\n") == 1 and "router.top_kk" in done.err,
        f"an unknown key: status {done.code}: {done.err}",
    )


test_pages()
test_measure()
test_list()
test_mistakes()
for each in LESSONS:
    test_lesson(each)
for test in (
    test_screens,
    test_ranks,
    test_wrong_page,
    test_changed,
    test_idea,
    test_side_by_side,
    test_progress,
):
    test()
m.verdict()
