"""What a sweep runs: the command line, the values of each varied key, and the list of runs that
they make.
"""
import collections
import hashlib
import itertools
import os
import re
from dataclasses import dataclass, field

from command_line import Parser, Refused

MOST_RUNS = 100_000
MODES = (
    "--check",
    "--keys",
    "--resume",
    "--explain",
    "--explain-step",
    "--version",
    "--verify",
    "--calibrate",
    "--dialects",
)
DESCRIPTION = """\
Runs a configuration once for each combination of values, and writes one table
of what came out.
"""
EPILOG = """\
The same --out again goes on after an interruption, or adds values and seeds:
what has finished is not run twice. DIR/sweep.csv has one row for each run
(sweep.parquet too, where pandas can write it), DIR/sweep.html the plots, and
DIR/runs/ the runs themselves, which scripts/report shows.

examples:
  scripts/sweep configs/quickstart.ini --vary balance.alpha_comm=0,0.02,0.2 \\
    --vary router.topk_group=1:8 --seeds 3
  scripts/sweep configs/quickstart.ini --vary cluster.devices=8:64:*2 -np 8 \\
    --set run.steps=1
  scripts/sweep configs/training_quickstart.ini --seeds 3 --zip \\
    --vary balance.alpha_expert=0,0.01,0.01 \\
    --vary balance.alpha_comm=0,0,0.02 --names none,expert,both

exit status: 0 every run is done, 1 some failed (the table says why), 2 a
mistake in the command (nothing was run), 130 interrupted
"""


class Words(Parser):
    """The command line of scripts/sweep."""

    def __init__(self):
        super().__init__(
            "sweep",
            description=DESCRIPTION,
            epilog=EPILOG,
            usage="scripts/sweep CONFIG.ini --vary section.key=VALUES [options]",
        )
        add = self.add_argument
        add("config", nargs="*", metavar="CONFIG.ini", help="the configuration to start from")
        add(
            "--vary",
            metavar="KEY=VALUES",
            action="append",
            default=[],
            help="a list 0,0.02,0.2, a range 1:8 (inclusive), 0:100:20 (steps of 20) or 1:64:*2"
            " (doubling), or a mixture of them; several --vary make a grid",
        )
        add(
            "--zip",
            action="store_true",
            help="take the lists in parallel instead: first with first, second with second; a"
            " value may come again, a whole combination not",
        )
        add(
            "--names",
            metavar="A,B,...",
            default="",
            help="with --zip: what the combinations are called in table and plots",
        )
        add(
            "--seeds",
            metavar="N",
            action="append",
            default=[],
            help="seeds 1 to N for each combination; or a list, 3,5,8",
        )
        add(
            "-np",
            "--np",
            "-n",
            metavar="D",
            help="ranks of each run; default 8, or the largest number up to 8 that divides every"
            " cluster.devices",
        )
        add(
            "-j",
            "--jobs",
            metavar="JOBS",
            help="runs at once; default: as many as have D cores for themselves, at least one",
        )
        add(
            "--out",
            metavar="DIR",
            default="",
            help="where everything goes; default runs/sweep-<config name>",
        )
        add("--force", action="store_true", help="run again what has finished before")
        add(
            "--report",
            action="store_true",
            help="also scripts/report's comparison of the runs, DIR/comparison.html (up to 8 runs)",
        )
        add("--quiet", action="store_true", help="say nothing but errors")
        add(
            "--set",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="for moesim, in every run; repeatable",
        )

    def unknown(self, word):
        name = word.split("=")[0]
        if name in MODES:
            raise Refused(f"{name} is for a single run: scripts/run {name}")
        super().unknown(word)


@dataclass
class Options:
    """The command line, taken apart."""

    config: str = ""
    vary: dict = field(default_factory=dict)  # key -> list of texts, in the order given
    zipped: bool = False
    names: list = field(default_factory=list)  # of the combinations of --zip
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
    """One run: its folder's name, the values of the varied keys, its seed ("" = the
    configuration's), and what its combination is called ("" = by its values).
    """

    name: str
    values: tuple
    seed: str
    variant: str = ""

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
    found = re.fullmatch(r"(-?[0-9]{1,18}):(-?[0-9]{1,18})(?::(\*?)([0-9]{1,18}))?", text)
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


def values_of(text, what, may_repeat=False):
    """The values of `1,2,5:8`: a list whose parts may be ranges. A repeated value is a mistake
    except in lists that are taken in parallel.
    """
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
    if twice and not may_repeat:
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
    options.vary[key] = values_of(value, f"--vary {key}", options.zipped)


def add_seeds(options, text):
    listed = values_of(text, "--seeds")
    if len(listed) == 1 and text.strip().isdigit():
        most = whole(text, "--seeds")
        if most > MOST_RUNS:
            raise Refused(f"--seeds {text}: at most {MOST_RUNS} runs are allowed")
        options.seeds = [str(seed) for seed in range(1, most + 1)]
    else:
        options.seeds = [str(whole(seed, "--seeds", 0)) for seed in listed]


def parse(arguments):
    """Options of the command line; raises Refused."""
    given = Words().parse(arguments)
    options = Options(
        zipped=given.zip,
        out=given.out,
        force=given.force,
        report=given.report,
        quiet=given.quiet,
    )
    if len(given.config) > 1:
        first, second = given.config[:2]
        raise Refused(f"two configurations are given, {first} and {second}: one is expected")
    options.config = "".join(given.config)
    for text in given.vary:
        add_vary(options, text)
    options.sets = dict(key_and_value(text, "--set") for text in given.set)
    for text in given.seeds:
        add_seeds(options, text)
    options.ranks = whole(given.np, "-np") if given.np is not None else 0
    options.jobs = whole(given.jobs, "-j") if given.jobs is not None else 0
    options.names = [name.strip() for name in given.names.split(",")] if given.names else []
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
    if options.zipped:
        check_combinations(options)
    check_names(options)
    return options


def check_combinations(options):
    """Taken in parallel, no combination comes twice: it would be the same run."""
    counts = collections.Counter(zip(*options.vary.values()))
    twice = next((values for values, count in counts.items() if count > 1), None)
    if twice:
        pairs = ", ".join(f"{key}={value}" for key, value in zip(options.vary, twice))
        raise Refused(f"--zip: the combination {pairs} is given twice")


def check_names(options):
    """One name for each combination of --zip, all different."""
    if not options.names:
        return
    if not options.zipped or not options.vary:
        raise Refused("--names is for the combinations of --zip --vary ...: there are none")
    count = len(next(iter(options.vary.values())))
    if len(options.names) != count:
        raise Refused(f"--names has {len(options.names)} names for {count} combinations")
    twice = [name for name, times in collections.Counter(options.names).items() if times > 1]
    if twice or "" in options.names:
        wrong = f"{twice[0]} twice" if twice and twice[0] else "an empty name"
        raise Refused(f"--names gives {wrong}: every combination needs a name of its own")


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
    for row, variant in itertools.zip_longest(rows, options.names, fillvalue=""):
        values = tuple(zip(keys, row))
        runs += [Run(folder_name(values, seed, keys), values, seed, variant) for seed in seeds]
    return runs


def default_jobs(ranks):
    """Runs at once: each keeps `ranks` cores busy, so as many as fit."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores // ranks)
