"""What a sweep runs: the command line, the values of each varied key, and the list of runs that
they make.
"""
import collections
import hashlib
import itertools
import os
import re
from dataclasses import dataclass, field

MOST_RUNS = 100_000
MODES = (
    "--check",
    "--keys",
    "--resume",
    "--explain",
    "--explain-step",
    "--help",
    "--version",
    "--verify",
    "--calibrate",
    "--dialects",
)


class Refused(Exception):
    """The user's mistake, as one sentence."""


@dataclass
class Options:
    """The command line, taken apart."""

    config: str = ""
    vary: dict = field(default_factory=dict)  # key -> list of texts, in the order given
    zipped: bool = False
    seeds: list = field(default_factory=list)  # texts; empty: the configuration's own
    ranks: int = 0  # 0: 8, or what divides [cluster] devices
    out: str = ""
    jobs: int = 0  # 0: as many runs at once as fit on the cores
    force: bool = False
    report: bool = False
    quiet: bool = False
    sets: dict = field(default_factory=dict)  # --set of every run


@dataclass(frozen=True)
class Run:
    """One run: its folder's name, the values of the varied keys, and its seed ("" = the
    configuration's).
    """

    name: str
    values: tuple
    seed: str

    def settings(self):
        return [*self.values, ("run.seed", self.seed)] if self.seed else list(self.values)


def whole(text, what, least=1):
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise Refused(f"{what} = {text}: allowed is a whole number from {least} on")
    return value


def span(text):
    """first:last, first:last:step or first:last:*factor, inclusive, as a list of texts; None when
    it is no range.
    """
    found = re.fullmatch(r"(-?\d+):(-?\d+)(?::(\*?)(\d+))?", text)
    if not found:
        return None
    first, last, times, step = int(found[1]), int(found[2]), found[3], int(found[4] or 1)
    if last < first or step < 1 or (times and (step < 2 or first < 1)):
        raise Refused(
            f"the range {text} is empty or endless: allowed are first:last, first:last:step and"
            " first:last:*factor (a factor from 2 on, first from 1 on)"
        )
    values = []
    while first <= last and len(values) <= MOST_RUNS:
        values.append(str(first))
        first = first * step if times else first + step
    return values


def values_of(text, what):
    """The values of `1,2,5:8`: a list whose parts may be ranges. A repeated value is a mistake."""
    values = []
    for part in text.split(","):
        part = part.strip()
        if not part:
            raise Refused(f"{what}: a value is missing in '{text}'")
        values += span(part) or [part]
    if len(values) > MOST_RUNS:
        raise Refused(
            f"{what}: {text} has more than {MOST_RUNS} values: at most that many runs are allowed"
        )
    twice = [value for value, count in collections.Counter(values).items() if count > 1]
    if twice:
        raise Refused(f"{what}: the value {twice[0]} is given twice")
    return values


def key_and_value(text, option):
    key, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[a-z_]+\.[a-z_0-9]+", key.strip()):
        raise Refused(f"{option} {text}: expected is {option} section.key=value")
    return key.strip(), value.strip()


def add_vary(options, text):
    key, value = key_and_value(text, "--vary")
    if key in options.vary:
        raise Refused(f"--vary {key} is given twice: put all values into one, {key}=a,b,c")
    options.vary[key] = values_of(value, f"--vary {key}")


def add_seeds(options, text):
    listed = values_of(text, "--seeds")
    alone = len(listed) == 1 and text.strip().isdigit()
    options.seeds = (
        [str(seed) for seed in range(1, whole(text, "--seeds") + 1)]
        if alone
        else [str(whole(seed, "--seeds", 0)) for seed in listed]
    )


def parse(arguments):
    """Options of the command line; raises Refused."""
    options, words = Options(), list(arguments)

    def value(word, name):
        if word.startswith(name + "="):
            return word[len(name) + 1 :]
        if not words:
            raise Refused(f"{name} needs a value")
        return words.pop(0)

    while words:
        word = words.pop(0)
        name = word.split("=")[0]
        if name == "--vary":
            add_vary(options, value(word, "--vary"))
        elif name == "--set":
            key, text = key_and_value(value(word, "--set"), "--set")
            options.sets[key] = text
        elif name == "--seeds":
            add_seeds(options, value(word, "--seeds"))
        elif name in ("-np", "--np", "-n"):
            options.ranks = whole(value(word, name), "-np")
        elif name == "--out":
            options.out = value(word, "--out")
        elif name in ("-j", "--jobs"):
            options.jobs = whole(value(word, name), "-j")
        elif word == "--zip":
            options.zipped = True
        elif word == "--force":
            options.force = True
        elif word == "--report":
            options.report = True
        elif word == "--quiet":
            options.quiet = True
        elif name in MODES:
            raise Refused(f"{name} is for a single run: scripts/run {name}")
        elif word.startswith("-"):
            raise Refused(f"unknown option {word}: scripts/sweep --help lists them")
        elif options.config:
            raise Refused(
                f"two configurations are given, {options.config} and {word}: one is expected"
            )
        else:
            options.config = word
    return complete(options)


def complete(options):
    """What only the whole command line tells."""
    if not options.config:
        raise Refused(
            "no configuration is given: scripts/sweep CONFIG.ini --vary section.key=values"
        )
    if not options.vary and not options.seeds:
        raise Refused("nothing varies: give --vary section.key=values, or --seeds N")
    clash = next((key for key in options.vary if key in options.sets), None)
    if clash:
        raise Refused(f"{clash} is given to --vary and to --set: one of them is expected")
    if options.seeds and "run.seed" in {**options.vary, **options.sets}:
        raise Refused("run.seed is given beside --seeds: one of them is expected")
    if options.zipped and len({len(values) for values in options.vary.values()}) > 1:
        counts = ", ".join(f"{key} has {len(values)}" for key, values in options.vary.items())
        raise Refused(f"--zip takes lists of one length: {counts}")
    return options


def short(key, keys):
    """The key without its section, where that is enough to tell it from the others."""
    name = key.split(".")[1]
    return name if sum(other.split(".")[1] == name for other in keys) == 1 else key


def folder_name(values, seed, keys):
    """A name for people, unique and fit for a file system: values that are neither get a sum of
    theirs.
    """
    parts = [f"{short(key, keys)}={value}" for key, value in values] + (
        [f"seed={seed}"] if seed else []
    )
    plain = "__".join(parts)
    fit = re.sub(r"[^A-Za-z0-9_.=+-]", "_", plain)
    if fit != plain or len(fit) > 150:
        fit = f"{fit[:150]}-{hashlib.sha256(plain.encode()).hexdigest()[:10]}"
    return fit or "run"


def runs_of(options):
    """The runs, the last key varying fastest, seeds faster still."""
    keys = list(options.vary)
    columns = [options.vary[key] for key in keys]
    seeds = options.seeds or [""]
    count = len(seeds) * (len(columns[0]) if options.zipped and columns else 1)
    for column in () if options.zipped else columns:
        count *= len(column)
    if count > MOST_RUNS:
        raise Refused(f"these are {count} runs: at most {MOST_RUNS} are allowed")
    rows = zip(*columns) if options.zipped and columns else itertools.product(*columns)
    runs = []
    for row in rows:
        values = tuple(zip(keys, row))
        runs += [Run(folder_name(values, seed, keys), values, seed) for seed in seeds]
    return runs


def default_jobs(ranks):
    """Runs at once: each keeps `ranks` cores busy, so as many as fit."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // ranks)
