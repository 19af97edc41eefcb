"""What the command lines of the Python scripts have in common: a mistake gets one sentence and exit
status 2, and --help fits 80 columns.
"""
import argparse
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


class Parser(argparse.ArgumentParser):
    """An argument parser that raises Refused where argparse would print its usage and exit."""

    def __init__(self, name, **more):
        super().__init__(
            prog=f"scripts/{name}", formatter_class=_format, allow_abbrev=False, **more
        )

    def format_help(self):
        return fitted(super().format_help())

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


def say(name, error):
    """Prints the sentence of a mistake; gives back the exit status that goes with it."""
    print(f"scripts/{name}: {error}", file=sys.stderr)
    return 2
