"""The program's own table of keys and presets, read from `moesim --keys`."""

import re
import subprocess

import _moesim

KEY = re.compile(r"  (\w+\.\w+) = (.*?)(?:  \((.*)\))?$")
NUMBER = re.compile(r"(a whole number|a number) from (\S+) to (\S+)")


class Key:
    """One row: name, default, and what is allowed (`kind` is enum, bool, int, float or path)."""

    def __init__(self, name, default, allowed):
        self.name, self.default = name, default.strip()
        self.names, self.least, self.most = [], None, None
        number = NUMBER.match(allowed)
        if number:
            self.kind = "int" if number[1] == "a whole number" else "float"
            self.least, self.most = float(number[2]), float(number[3])
        elif allowed.startswith("one of ") and not allowed.startswith("one of the presets"):
            self.kind, self.names = "enum", allowed[len("one of ") :].split(", ")
        elif allowed == "yes or no":
            self.kind, self.names = "bool", ["yes", "no"]
        else:
            self.kind = "path"


class Table:
    def __init__(self, text):
        self.keys, self.presets = {}, {}
        keys, presets = text.split("\nPresets:")
        lines = keys.splitlines()
        for line, following in zip(lines, lines[1:] + [""]):
            row = KEY.match(line)
            if row:
                allowed = row[3] or following.strip().strip("()")
                self.keys[row[1]] = Key(row[1], row[2], allowed)
        name = None
        for line in presets.splitlines():
            if re.match(r"  \w+$", line):
                name = line.strip()
            words = line.split()
            if name and words and all(re.match(r"\w+\.\w+=", word) for word in words):
                self.presets[name] = dict(word.split("=", 1) for word in words)


def read_table():
    done = subprocess.run(
        [_moesim.MOESIM, "--keys"],
        env=_moesim.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    table = Table(done.stdout)
    if len(table.keys) < 100 or len(table.presets) < 10:
        raise SystemExit("the table of `moesim --keys` has another form than is read here")
    return table
