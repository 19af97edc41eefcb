"""What both tools share on the command line: errors are one line on standard error and exit status
2, whatever the input holds."""

import argparse
import contextlib
import os
import signal
import sys

from command_line import Fitted, give_up_output
from trace_lib.guard import Refused, shown


class Parser(Fitted):
    """Says a mistake on the command line in one sentence."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {shown(message)}; --help lists what is allowed\n")


def whole_number(least, most):
    """A type for argparse: a whole number in a range."""

    def parse(text):
        # int() also takes blanks, underscores and digits of other scripts, and thousands of digits
        if (
            not (text.isascii() and text.isdigit() and len(text) < 20)
            or not least <= int(text) <= most
        ):
            raise argparse.ArgumentTypeError(
                f"{shown(text, 60)}: allowed are whole numbers from {least} to {most}"
            )
        return int(text)

    return parse


def pair(separator, least, most):
    """A type for argparse: two whole numbers."""
    number = whole_number(least, most)

    def parse(text):
        parts = text.split(separator)
        if len(parts) != 2:
            raise argparse.ArgumentTypeError(
                f"{shown(text, 60)}: expected are two whole numbers, as in"
                f" {least + 1}{separator}{least + 2}"
            )
        return number(parts[0]), number(parts[1])

    return parse


def reason_of(error):
    """A fault of the system as a sentence."""
    if error.filename is None:
        return error.strerror or shown(error)
    return f"{shown(error.filename)}: {error.strerror}"


def finished(work):
    """What `work` returns or raises; the clock that watches over it stops then."""
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def printed(lines):
    """Prints the lines; returns what was in the way, or None. Nothing is tried again at exit."""
    try:
        print("\n".join(lines), flush=True)
        return None
    except OSError as error:
        give_up_output()
        return f"standard output: {error.strerror}; the files are written"


def run(name, work):
    """Calls `work`, prints the lines that it returns, and turns every error into one line."""
    try:
        lines = finished(work)
        said = printed(lines)
        if said is None:
            return 0
    except Refused as error:
        said = shown(error, 2000)
    except MemoryError:
        said = (
            "the files need more memory than files of their size should: they are damaged, or"
            " larger than this machine can take"
        )
    except KeyboardInterrupt:
        said = "interrupted"
    except RecursionError:
        said = "what the files hold is nested too deeply"
    except OSError as error:
        said = reason_of(error)
    except Exception as error:  # the last resort: a fault of the tool, and still one sentence
        said = (
            f"what the files hold was not foreseen ({type(error).__name__}: {shown(error, 200)}):"
            " they are damaged, or this is a fault of the tool"
        )
    with contextlib.suppress(OSError):  # the exit status says it too
        print(f"{name}: {said}", file=sys.stderr, flush=True)
    return 2
