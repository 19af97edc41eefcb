"""The table of configuration keys, read from `moesim --keys`: what sweep checks values against, and
what the man page and the shell completion are made of. moesim itself stays the only place where a
key is defined.
"""
import difflib
import os
import re
import subprocess
from dataclasses import dataclass, field

HEAD = re.compile(r"^  ([a-z_]+)\.([a-z_0-9]+) =\s*(.*)$")
ALLOWED = re.compile(
    r"^(.*?)\s*\(((?:a whole number|a number|one of|yes or no|a path|a text)\b.*)\)$"
)
ALONE = re.compile(r"^      \((one of .*)\)$")
RANGE = re.compile(r"^(a whole number|a number) from (\S+) to (\S+)$")


@dataclass
class Key:
    """section.name, its default as text, what is allowed as a sentence, and what it means."""

    section: str
    name: str
    default: str
    allowed: str = ""
    meaning: str = ""

    @property
    def full(self):
        return f"{self.section}.{self.name}"

    def words(self):
        """The values of an enumeration or a switch, else an empty list."""
        if self.allowed == "yes or no":
            return ["yes", "no"]
        if self.allowed.startswith("one of ") and not self.allowed.startswith("one of the presets"):
            return [word.strip() for word in self.allowed[len("one of ") :].split(",")]
        return []

    def accepts(self, text):
        """Whether the value can be one of this key, seen alone. Ties between keys are for moesim
        --check.
        """
        found = RANGE.match(self.allowed)
        if found:
            kind = int if found[1] == "a whole number" else float
            try:
                value = kind(text)
            except ValueError:
                return False
            return kind(float(found[2])) <= value <= kind(float(found[3]))
        if self.allowed == "yes or no":
            return text.lower() in ("yes", "no", "true", "false", "on", "off", "1", "0")
        words = self.words()
        return not words or text in words


@dataclass
class Table:
    """All keys by their full name, and the names of the presets."""

    keys: dict = field(default_factory=dict)
    presets: list = field(default_factory=list)
    preset_text: str = ""

    def nearest(self, name):
        close = difflib.get_close_matches(name, self.keys, n=1, cutoff=0)
        return close[0] if close else None

    def values(self, key):
        """What completion offers behind key=."""
        return self.presets if key.full == "router.preset" else key.words()


def parse(text):
    """Table of the text that `moesim --keys` prints."""
    table, key = Table(), None
    keys_text, _, table.preset_text = text.partition("\nPresets:")
    for line in keys_text.splitlines():
        head, alone = HEAD.match(line), ALONE.match(line)
        if head:
            found = ALLOWED.match(head[3])
            default, allowed = (found[1].strip(), found[2]) if found else (head[3].strip(), "")
            key = table.keys[f"{head[1]}.{head[2]}"] = Key(head[1], head[2], default, allowed)
        elif alone and key and not key.allowed:
            key.allowed = alone[1]
        elif key and line.startswith("      "):
            key.meaning = f"{key.meaning} {line.strip()}".strip()
    table.presets = re.findall(r"^  ([a-z0-9_]+)(?: \(.*\))?$", table.preset_text, re.M)
    return table


def read(program):
    """Table of a built moesim, started alone: no mpirun, no daemon."""
    return parse(ask(program, "--keys"))


def ask(program, *arguments):
    done = subprocess.run(
        [program, *arguments],
        env=alone(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def alone(environment=None):
    """Environment of one rank without mpirun: it starts in a tenth of the time."""
    return {
        **(os.environ if environment is None else environment),
        "OMPI_MCA_ess_singleton_isolated": "1",
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "self",
    }
