"""Random configurations must give the same results however they are run.

    MOESIM=build/moesim PYTHONPATH=tests/support \\
        python3 tests/random/random_configurations.py [--seed S] [--count N] [--all]

Draws N configurations from the seeds S, S + 1, ... over the whole key table, and compares runs of
each that have to agree: on 1, 2, 4 and more ranks, with 1 and 2 threads, in all exchange modes and
through shared memory, from the config.ini that was written, explained, in double precision within
bounds, training that was interrupted and resumed, text from a trained model, and on other ranks the
placements, the dialects and the exported parameters. How many comparisons each gets says
--comparisons; --all makes all of them. A finding is printed with its configuration, shrunk, and
with the commands to repeat it; the configuration and its files stay in the folder `findings`.
Findings listed in known.py do not fail the test. A configuration that is refused with one sentence
counts as refused, and their share is bounded.
"""

import argparse
import collections
import os
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.getcwd()  # _moesim goes to a temporary folder

import _moesim  # noqa: E402
from comparisons import Bench, choose, applicable, perform  # noqa: E402
from configurations import UNAVAILABLE, draw  # noqa: E402
from files import write_files  # noqa: E402
from keys import read_table  # noqa: E402
from known import KNOWN, known  # noqa: E402
from shrink import Shrinker  # noqa: E402

MOST_REFUSED = 0.15  # of a hundred configurations or more
MANY = 400  # configurations after which every key should have been varied, every known row seen


def options_of(words):
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--count", type=int, default=40, help="configurations")
    parser.add_argument("--comparisons", type=int, default=2, help="of each configuration")
    parser.add_argument("--all", action="store_true", help="all comparisons of each")
    parser.add_argument("--only", default="", help="this comparison, where it can be made")
    parser.add_argument("--stop-after", type=int, default=0, help="findings; 0: never")
    parser.add_argument("--jobs", type=int, default=2, help="configurations at the same time")
    parser.add_argument("--timeout", type=int, default=60, help="seconds of one run")
    parser.add_argument("--shrink", type=float, default=60, help="seconds for a finding; 0: none")
    parser.add_argument("--seconds", type=float, default=0, help="begin no case later; 0: no end")
    parser.add_argument("--findings", default=os.path.join(HERE, "findings"), help="a folder")
    return parser.parse_args(words)


class Test:
    def __init__(self, options):
        self.options, self.table = options, read_table()
        self.count = collections.Counter()
        self.varied, self.known_seen = set(), collections.Counter()
        self.findings = collections.defaultdict(list)  # by kind
        self.lock, self.stopped = threading.Lock(), False
        self.end = time.monotonic() + options.seconds if options.seconds else None

    # --- one configuration ---

    def try_seed(self, seed):
        if self.end and time.monotonic() > self.end:
            self.count["not begun: no time left"] += 1
            return
        if self.stopped or 0 < self.options.stop_after <= len(self.findings):
            return
        case = draw(seed, self.table)
        folder = os.path.join(_moesim.TEMPORARY, f"seed-{seed}")
        bench = Bench(case, self.table, folder, self.options)
        found = perform(bench, "run")
        with self.lock:
            self.count["configurations"] += 1
            self.note_keys(case)
            self.count["refused"] += bench.base().code == 2
            self.count["training"] += case.trains() and bench.base().code == 0
        if found:
            self.report(case, found, "run")
        else:
            for name in self.names(bench):
                self.compare(bench, name)
        shutil.rmtree(folder, ignore_errors=True)

    def names(self, bench):
        everything = applicable(bench)
        if self.options.only:
            return [name for name in everything if name == self.options.only]
        return everything if self.options.all else choose(bench, self.options.comparisons)

    def compare(self, bench, name):
        if self.stopped:
            return
        found = perform(bench, name)
        with self.lock:
            self.count[f"compared: {name}"] += 1
        if found:
            self.report(bench.case, found, name)

    def note_keys(self, case):
        for name, value in case.settings.items():
            if str(value) != self.table.keys[name].default:
                self.varied.add(name)

    # --- findings ---

    def report(self, case, found, name):
        row = known(case, self.table, found)
        with self.lock:
            if row:
                self.known_seen[row] += 1
                print(f"seed {case.seed}: known ({row.where}): {found.kind}", flush=True)
                return
            first = found.kind not in self.findings
            self.findings[found.kind].append(case.seed)
            print(f"seed {case.seed}: FOUND {found.kind}: {found.text[:300]}", flush=True)
        if first:
            self.shrink(case, found, name)

    def shrink(self, case, found, name):
        """The first finding of a kind is shrunk, and kept as a folder."""
        folder = os.path.join(_moesim.TEMPORARY, f"shrink-{case.seed}-{name.replace(' ', '-')}")
        if self.options.shrink > 0:
            shrinker = Shrinker(case, self.table, folder, self.options, found, name)
            case, found = shrinker.shrink()
        shutil.rmtree(folder, ignore_errors=True)
        kept = os.path.join(self.options.findings, f"seed-{case.seed}-{name.replace(' ', '-')}")
        write_files(case, self.table, kept)
        with self.lock:
            print(f"--- seed {case.seed}: {found.kind}\n{found.text}\n{case.ini()}in {kept}:")
            print("\n".join(f"    {c}" for c in found.commands), "\n---", flush=True)

    # --- the end ---

    def refused_share(self):
        return self.count["refused"] / max(1, self.count["configurations"])

    def problems(self):
        """What fails the test beside findings."""
        many = self.count["configurations"] >= MANY
        if self.count["configurations"] == 0:
            yield "no configuration was tried"
        if self.count["configurations"] >= 100 and self.refused_share() > MOST_REFUSED:
            yield f"more than {MOST_REFUSED:.0%} of the configurations are refused"
        names = set(self.table.keys) - self.varied - UNAVAILABLE - {"run.threads"}
        if many and names:
            yield f"keys that were never varied: {' '.join(sorted(names))}"

    def verdict(self):
        for name, number in sorted(self.count.items()):
            print(f"{number:6d}  {name}")
        print(f"{self.refused_share():.1%} were refused, at most {MOST_REFUSED:.0%} are allowed")
        for row in KNOWN:
            seen = self.known_seen[row]
            print(f"known, {seen} times: {row.where}: {row.reason}")
            if not seen and self.count["configurations"] >= MANY:
                print("    it no longer occurs: take it out of known.py")
        for kind, seeds in sorted(self.findings.items()):
            print(f"FOUND {len(seeds)} times: {kind} (seeds {' '.join(map(str, seeds[:8]))})")
        problems = list(self.problems())
        for text in problems:
            print("FAILED:", text)
        return 1 if problems or self.findings else 0


def main(words=None):
    options = options_of(words)
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        os.environ.setdefault(name, "1")
    test = Test(options)
    seeds = range(options.seed, options.seed + options.count)
    with ThreadPoolExecutor(max_workers=options.jobs) as pool:
        try:
            list(pool.map(test.try_seed, seeds))
        except SystemExit:  # a signal: the pool waits for what runs
            test.stopped = True
            raise
    return test.verdict()


if __name__ == "__main__":
    sys.exit(main())
