"""What the command lines of the Python scripts have in common: a mistake gets one sentence and exit
status 2, and --help fits 80 columns.
"""
import argparse
import re
import sys


class Refused(Exception):
    """The user's mistake, as one sentence."""


def _format(prog):
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=79)


class Parser(argparse.ArgumentParser):
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


def say(name, error):
    """Prints the sentence of a mistake; gives back the exit status that goes with it."""
    print(f"scripts/{name}: {error}", file=sys.stderr)
    return 2
