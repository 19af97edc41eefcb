"""scripts/lesson: runs a lesson, shows what it is about, and writes its report. Exit status: 0
everything is as the lesson says; 3 something is not; 2 the user's mistake, one sentence; otherwise
that of the command that failed.
"""
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

import launch
from command_line import Parser, Refused, say
from lesson_lib import page, show
from run_lib import safe_files, watch

ROOT = os.path.dirname(launch.SCRIPTS)
POLL_SECONDS, PATIENCE_SECONDS = 0.1, 5
MOST_NAME = 80  # characters of a folder's name that say what --set changed


class Failed(Exception):
    """A command that failed and has said why; .args[0] is its exit status."""


DESCRIPTION = """\
Runs one of the short lessons about expert-parallel Mixture-of-Experts.
Each is a page to read, configs/lessons/NN_name.ini.

  scripts/lesson       lists them, with a line each
  scripts/lesson N     runs lesson N, shows what it expects beside what was
                       measured, writes the report and opens it
"""
EPILOG = """\
exit status: 0 everything is as the lesson says, 3 something is not, 2 a mistake
in the command
"""


def parser():
    made = Parser(
        "lesson", description=DESCRIPTION, epilog=EPILOG, usage="scripts/lesson [N] [options]"
    )
    made.add_argument("numbers", nargs="*", metavar="N", help="number of the lesson")
    made.add_argument(
        "--set",
        metavar="KEY=VALUE",
        dest="sets",
        action="append",
        default=[],
        help="changes section.key in every run of the lesson; what was measured is shown beside the"
        " lesson's own, as long as that was run; repeatable",
    )
    made.add_argument(
        "-np", metavar="D", help="no more than D ranks; the figures do not depend on it"
    )
    made.add_argument(
        "--out",
        metavar="DIR",
        help="where the results go; default runs/lesson-NN, with --test runs/lesson-NN-test, with"
        " --set one beside it that is named by what was changed",
    )
    made.add_argument("--test", action="store_true", help="a size of seconds, without a report")
    made.add_argument(
        "--all",
        action="store_true",
        help="everything that moesim says, not only what the lesson points at",
    )
    made.add_argument(
        "--no-open", action="store_true", help="writes the report, but opens no browser"
    )
    return made


def options_of(words):
    """The command line; .number is None where no lesson is named."""
    options = parser().parse(words)
    if len(options.numbers) > 1:
        first, second = options.numbers[:2]
        raise Refused(f"one lesson at a time: {first} and {second} were given")
    if options.np is not None and not re.fullmatch(r"[1-9][0-9]{0,3}", options.np):
        raise Refused(f"-np {options.np}: a number of ranks from 1 on is allowed")
    options.number = options.numbers[0] if options.numbers else None
    options.sets = [word for text in options.sets for word in ("--set", text)]
    return options


def chosen(number):
    paths = page.paths()
    if not re.fullmatch(r"[0-9]{1,4}", number) or int(number) not in paths:
        raise Refused(f"there is no lesson {number}: the lessons are {min(paths)} to {max(paths)}")
    return page.read(paths[int(number)])


def list_lessons():
    for lesson in map(page.read, page.paths().values()):
        print(f"{lesson.number:3}  {lesson.title}")
    print(f"\n{launch.called('lesson')} N runs one. The pages: {shown(page.FOLDER)}/")


def shown(path):
    """As short as the current folder allows."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


# --- running ---


def changed_name(settings):
    """What the folder of a changed lesson is called by, so that the lesson itself stays there:
    -with-router.topk_group=2.
    """
    if not settings:
        return ""
    name = "-with-" + re.sub(r"[^A-Za-z0-9._=+,-]", "_", ",".join(settings))
    if len(name) <= MOST_NAME:
        return name
    return name[: MOST_NAME - 9] + "-" + hashlib.sha256(",".join(settings).encode()).hexdigest()[:8]


class Commands:
    """The lesson's command lines as they are run: here, into the chosen folder, with --set and -np
    of the user.
    """

    def __init__(self, lesson, options, moesim):
        self.lesson, self.options, self.moesim = lesson, options, moesim
        self.usual = lesson.place + ("-test" if options.test else "")
        self.out = options.out or self.usual + changed_name(options.sets[1::2])
        self.sets = [*(lesson.small if options.test else []), *options.sets]

    def folder(self, name):
        return os.path.join(self.out, name)

    def place(self, word):
        """A word of the page, with the paths that hold here."""
        word = word.replace(self.lesson.place, self.out)
        if word.startswith("configs/lessons/"):
            return shown(os.path.join(page.FOLDER, os.path.basename(word)))
        return shown(os.path.join(ROOT, word)) if word.startswith("scripts/") else word

    def line(self, words):
        """(words to run, words to show). What an earlier run of the lesson left is replaced."""
        words = [self.place(word) for word in words]
        if words[0] != "mpirun":
            return [sys.executable, *words, "--force"], words
        ranks, arguments = min(words[2], self.options.np or words[2], key=int), [
            *words[4:],
            *self.sets,
        ]
        # --placements makes no step that could be shown in full
        full = [] if "--placements" in arguments else ["--full"]
        return (
            [*launch.mpirun(ranks), self.moesim, *full, "--force", *arguments],
            ["mpirun", "-np", ranks, shown(self.moesim), *arguments],
        )


class Interrupted(Exception):
    """Ctrl-C; .args[0] is the folder of the run that it ended."""


def watched(line, environment, folder):
    """Runs a command; (status, what it said). On a terminal a bar says how far the run is."""
    bar, progress = watch.Line(), watch.Watch(folder)
    with tempfile.TemporaryFile() as said, subprocess.Popen(
        line, env=environment, stdin=subprocess.DEVNULL, stdout=said
    ) as child:
        try:
            while child.poll() is None:
                if bar.shown:
                    progress.look()
                    bar.draw(progress.text())
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:  # the terminal has told mpirun too
            end(child)
            raise Interrupted(folder) from None
        finally:
            bar.clear()
        said.seek(0)
        return child.returncode, said.read().decode(errors="replace")


def end(child):
    """Waits for a command that was told to end, and makes it end."""
    for stop in (child.terminate, child.kill):
        try:
            child.wait(PATIENCE_SECONDS)
            return
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            stop()
    child.wait()


def run(commands, words, environment):
    """Runs one command of the page; returns what it said. What it says goes to a file beside the
    results too.
    """
    line, say = commands.line(words)
    print(f"\n$ {shlex.join(say)}", flush=True)
    folder = say[say.index("--out") + 1]
    status, said = watched(line, environment, folder)
    if status not in (0, 3):
        print(said, end="")
        raise Failed(max(status, 1))  # killed: negative
    try:
        safe_files.write_whole(os.path.join(folder, "screen.txt"), said)
    except safe_files.Unfit as error:
        raise Refused(f"{folder}/screen.txt {error}: remove it, or give another --out") from None
    if status == 3:
        print(said, end="")
        raise Failed(3)
    return said


def excerpt(text, sections):
    """Those sections of moesim's output whose title begins with one of the words; and of the
    header, which comes first, the lines with such a label.
    """
    header, *parts = re.split(r"\n\n(?=\S)", text)
    labelled = re.findall(r"^\S.*(?:\n +.*)*", header, re.M)
    return "\n\n".join(
        part.rstrip("\n")
        for part in (*labelled, *parts)
        if any(part.startswith(section) for section in sections)
    )


def run_all(commands, environment):
    for words in commands.lesson.commands:
        said = run(commands, words, environment)
        if words[0] == "mpirun" and not commands.options.all:
            said = excerpt(said, commands.lesson.sections)
        print(said.rstrip("\n"), flush=True)


# --- showing ---


def show_block(lesson, name):
    """As it stands on the page."""
    first, *more = lesson.blocks[name]
    print(f"\n{name:8} {first}".rstrip(), *more, sep="\n")


def write_report(commands, table):
    """The page about the run, or the comparison of several, behind the lesson's text; its path, or
    None (scripts/report has said why).
    """
    folders = [commands.folder(name) for name in commands.lesson.reported()]
    target, text = (os.path.join(commands.out, name) for name in ("report.html", "lesson.json"))
    changed = commands.options.sets[1::2]
    safe_files.write_whole(text, show.for_report(commands.lesson, table, changed))
    line = [os.path.join(launch.SCRIPTS, "report"), *folders, "-o", target, "--lesson", text]
    done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)
    return target if done.returncode == 0 else None


def open_report(path):
    """In the user's browser, where there is a screen to show it on."""
    opener = (
        shutil.which("xdg-open")
        if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        else None
    )
    if opener:
        subprocess.Popen(
            [opener, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def teach(options):
    lesson, begin = chosen(options.number), time.monotonic()
    moesim = launch.program()
    if not moesim:
        raise Refused(launch.NOT_FOUND)
    print(f"Lesson {lesson.number}: {lesson.title}\nThe page: {shown(lesson.path)}\n")
    print(show.idea(lesson, shown(lesson.path)))
    commands = Commands(lesson, options, moesim)
    run_all(commands, launch.environment())
    show_block(lesson, "LOOK AT")
    table = show.Table(lesson, commands.out, options.test, options.sets and commands.usual)
    print(f"\n{table.text()}")
    if options.sets:
        print(f"\nWith {', '.join(options.sets[1::2])} this is another lesson, in {commands.out}/:")
        print("what is expected need not hold.")
        if any(show.NOT_RUN in row for row in table.rows):
            test = " --test" if options.test else ""
            print(
                f"The lesson's own figures beside it: {launch.called('lesson')} {lesson.number}{test}, then this."
            )
    if options.test:
        return 0 if table.good or options.sets else 3
    show_block(lesson, "QUESTIONS")
    print(f"The answers stand at the end of {shown(lesson.path)}, and folded in the report.")
    report = write_report(commands, table)
    print(
        f"\n{time.monotonic() - begin:.0f} s; all that moesim said:"
        f" {os.path.join(commands.out, '*', 'screen.txt')}"
    )
    if report:
        print(report)
        if not options.no_open:
            open_report(report)
    return 0 if table.good or options.sets else 3


def say_interrupted(folder):
    print("\ninterrupted: " + "\n".join(watch.left_behind(folder)), file=sys.stderr)
    print("the same command begins the lesson anew", file=sys.stderr)
    return 130


def main(arguments):
    try:
        options = options_of(arguments)
        if options.number is None:
            if arguments:
                raise Refused(f"which lesson? {launch.called('lesson')} lists them")
            list_lessons()
            return 0
        return teach(options)
    except Refused as error:
        return say("lesson", error)
    except Failed as failed:
        return failed.args[0]
    except Interrupted as stopped:
        return say_interrupted(*stopped.args)
