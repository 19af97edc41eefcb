"""Checks of what a JSON file holds: each field has to be of its type and in its range before
anything uses it.

A check is a function of a value and a `Found`. It gives back the value, or reports to the Found and
gives back OUT. A Found is either lenient, so that a field that is wrong is left out and everything
else is used, or strict, so that the first wrong field ends the reading.

A field that is not named in a check is dropped.
"""

import re

CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")  # all but tabs and ends of lines
LARGEST = 1e60  # of a real number: sums and products of a few of these are still finite
COUNT = 2**63 - 1
LONGEST = 4096  # characters of a text
MOST = 4096  # entries of an object whose names are free
MOST_LAYERS = 4096
OUT = object()


class Wrong(Exception):
    """A field that is not what it has to be, as a sentence."""


def short(value):
    """A value of any type and size, in a few words."""
    if isinstance(value, list):
        return f"a list of {len(value)} entries"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "...")
    if isinstance(value, int) and value.bit_length() > 80:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if value == value else "NaN"


class Found:
    """What was wrong in one file so far. `path` is where the reading is now, as a list of names."""

    def __init__(self, file, strict=False):
        self.file, self.strict, self.path = file, strict, []
        self.first, self.count = "", 0

    def where(self):
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return text.lstrip(".")[:200] or "all of it"

    def wrong(self, value, expected):
        """Reports the field at `path`; gives back OUT."""
        self.count += 1
        if self.count == 1 or self.strict:
            self.first = f"{self.where()} is {short(value)}, expected is {expected}"
        if self.strict:
            raise Wrong(self.first)
        return OUT

    def problems(self):
        """One sentence or none."""
        if not self.count:
            return []
        more = f", and {self.count - 1} more of its fields are wrong" if self.count > 1 else ""
        left = "left out" if self.count == 1 else "these are left out"
        return [f"{self.file} has a wrong field: {self.first}{more}; {left}."]


# --- single values ---


def number(least=-LARGEST, most=LARGEST):
    """A finite number in a range, an integer or not."""

    def check(value, found):
        if type(value) in (int, float) and least <= value <= most:
            return value
        return found.wrong(value, f"a number from {least:g} to {most:g}")

    return check


def whole(least=0, most=COUNT):
    """An integer in a range."""

    def check(value, found):
        if type(value) is int and least <= value <= most:
            return value
        return found.wrong(value, f"a whole number from {least} to {most}")

    return check


def text(longest=LONGEST):
    """A text that can be written as UTF-8."""

    def check(value, found):
        if isinstance(value, str) and len(value) <= longest:
            return writable(value)
        return found.wrong(value, f"a text of at most {longest} characters")

    return check


def writable(value):
    """The text without halves of characters, which JSON can hold and UTF-8 cannot, and without
    characters that command a terminal.
    """
    if value.isprintable():
        return value
    return CONTROL.sub("\ufffd", value.encode("utf-8", "replace").decode("utf-8"))


def flag(value, found):
    """true or false."""
    return value if isinstance(value, bool) else found.wrong(value, "true or false")


real = number()
count = whole()
_scalar_text = text()


def scalar(value, found):
    """A text, a number, true or false, or null."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _scalar_text(value, found)
    return (whole(-COUNT) if type(value) is int else real)(value, found)


def remark(value, found):
    """A text, or nothing: whatever else stands there is not shown."""
    return _scalar_text(value, found) if isinstance(value, str) else None


def maybe(check):
    """What `check` allows, or null."""
    return lambda value, found: None if value is None else check(value, found)


# --- lists and objects ---


def each(check, most, instead=None):
    """A list of at most `most` entries; `instead` takes the place of a wrong one, so that places
    stay.
    """

    def check_list(value, found):
        if not isinstance(value, list) or len(value) > most:
            return found.wrong(value, f"a list of at most {most} entries")
        entries = []
        for index, entry in enumerate(value):
            found.path.append(index)
            entry = check(entry, found)
            found.path.pop()
            entries.append(instead if entry is OUT else entry)
        return entries

    return check_list


def free(check, most=MOST):
    """An object with names that are not fixed, whose values are all of one kind, or null."""

    def check_object(value, found):
        if not isinstance(value, dict) or len(value) > most:
            return found.wrong(value, f"an object of at most {most} fields")
        entries = {}
        for name, entry in value.items():
            found.path.append(name[:100])
            entry = None if entry is None else check(entry, found)
            found.path.pop()
            if entry is not OUT:
                entries[writable(name)[:LONGEST]] = entry
        return entries

    return check_object


def tree(leaf, depth):
    """A value of `leaf`, or objects of such values, one in another `depth` times at most."""
    inner = free(tree(leaf, depth - 1)) if depth else None
    return (
        lambda value, found: inner(value, found)
        if inner and isinstance(value, dict)
        else leaf(value, found)
    )


def fields(optional=(), **checks):
    """An object with these fields. Found lenient, any of them may be missing or null; found strict,
    only those named in `optional` may be missing, and only those that are maybe() may be null."""

    def check_object(value, found):
        if not isinstance(value, dict):
            return found.wrong(value, "an object")
        entries = {}
        for name, check in checks.items():
            if name not in value:
                if found.strict and name not in optional:
                    raise Wrong(f"{found.where()} has no field {name}")
                continue
            entry = value[name]
            if entry is not None or found.strict:
                found.path.append(name)
                entry = check(entry, found)
                found.path.pop()
            if entry is not OUT:
                entries[name] = entry
        return entries

    return check_object
