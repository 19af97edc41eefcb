"""What the command lines of the Python scripts have in common: a mistake gets one sentence and exit
status 2, --help fits 80 columns, and neither Ctrl-C nor a standard output that takes nothing more
ends in a traceback.
"""
import argparse
import contextlib
import importlib
import os
import re
import shutil
import sys
import textwrap


class Refused(Exception):
    """The user's mistake, as one sentence."""


WIDE = 80  # columns that --help is written for


def _columns():
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE


def narrowed(line, columns):
    """A line broken between words; what follows stands under its text, behind the first gap of two
    blanks where there is one and it leaves room.
    """
    gap = re.match(r" *\S+(?: \S+)*  +(?=\S)", line)
    indent = gap.end() if gap and gap.end() <= columns // 2 else len(line) - len(line.lstrip())
    lines = textwrap.wrap(
        line,
        columns,
        subsequent_indent=" " * min(indent, columns // 2),
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )
    return "\n".join(lines)


def fitted(text):
    """--help as it stands; on a terminal of fewer than 80 columns, its lines are broken."""
    if _columns() >= WIDE:
        return text
    return "\n".join(narrowed(line, _columns() - 1) for line in text.split("\n"))


def _format(prog):
    return argparse.RawDescriptionHelpFormatter(
        prog, max_help_position=24, width=min(WIDE, _columns()) - 1
    )


class Fitted(argparse.ArgumentParser):
    """An argument parser whose --help fits a narrow terminal, and is flushed with other output."""

    def format_help(self):
        return fitted(super().format_help())

    def print_help(self, file=None):
        print(self.format_help(), end="", file=file)


class Parser(Fitted):
    """An argument parser that raises Refused where argparse would print its usage and exit."""

    def __init__(self, name, **more):
        super().__init__(
            prog=f"scripts/{name}", formatter_class=_format, allow_abbrev=False, **more
        )

    def error(self, message):
        option = re.match(r"argument (\S+?)(?:/\S+)?: ", message)
        if option and message.endswith("expected one argument"):
            raise Refused(f"{option[1]} needs a value")
        if option and "invalid float value" in message:
            raise Refused(f"{option[1]} takes a number, not {message.rsplit(': ', 1)[1]}")
        raise Refused(message.replace("argument ", "", 1))

    def parse(self, words):
        """The options; a word with a dash that is none of them is a mistake."""
        options, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            self.unknown(unknown[0])
        return options

    def unknown(self, word):
        raise Refused(f"unknown option {word}: {self.prog} --help lists them")


# --- running ---


def take_streams():
    """Makes standard output and error fit for every text. A closed one is replaced, so that no
    file that is opened later takes its place. Returns whether standard output was open.
    """
    there = sys.stdout is not None
    for name, instead in (("stdout", "/dev/full"), ("stderr", os.devnull)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(instead, "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")
    return there


def give_up_output():
    """What still waits for standard output is not tried again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(name, error):
    """Prints the sentence of a mistake; gives back the exit status that goes with it. `name` is that
    of a script in scripts/, or one with its folder.
    """
    with contextlib.suppress(OSError):  # the exit status says it too
        print(f"{name if '/' in name else f'scripts/{name}'}: {error}", file=sys.stderr, flush=True)
    return 2


def later(module, function="main"):
    """The function of a module that is loaded when the function is called."""
    return lambda words: getattr(importlib.import_module(module), function)(words)


def flushed(main, words):
    """What main(words) returns or raises, after its output has gone."""
    try:
        return main(words)
    finally:
        sys.stdout.flush()


def run(name, main):
    """The exit status of a script: main(words), which prints and gives back a status.

    Output and files that cannot be written, and files that cannot be opened, end with one sentence
    and status 1; a reader that has seen enough (| head) needs no sentence. Ctrl-C is 130.
    """
    there = take_streams()
    try:
        return flushed(main, sys.argv[1:])
    except BrokenPipeError:
        give_up_output()
    except OSError as error:
        if error.filename is None:  # which the system names where a file is opened, not written
            give_up_output()
            full = f" or a file cannot be written: {error.strerror}"
            say(name, f"standard output{full if there else ' is closed'}")
        else:
            say(name, f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        give_up_output()
        return 130
    return 1
