"""scripts/sweep: from the command line to sweep.csv and sweep.html. Exit status: 0 every run is
done; 1 some failed (their rows say why); 2 the user's mistake, one sentence, nothing was run; 130
interrupted.
"""
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keys_table
import launch
from command_line import Refused, say
from run_lib import contents
from sweep_lib import check, combinations, page, plan, runner, table
from sweep_lib.progress import Progress

MOST_COMPARED = 8


def claim(options):
    """OUT belongs to one configuration, number of ranks and set of --set: rows of different ones
    would not be comparable.
    """
    if os.path.realpath(options.out) == "/":
        raise Refused(f"--out {options.out} is the root of the file system: give another --out")
    with open(options.config, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    mine = {"config": digest, "ranks": options.ranks, "set": options.sets}
    path = os.path.join(options.out, "sweep.json")
    held, wrong = table.read_json(path, contents.SWEEP, strict=True)
    if wrong and not options.force:
        raise Refused(f"{options.out}/{wrong}: give another --out, or --force to begin anew")
    if wrong or (held is not None and held != mine):
        if not options.force:
            other = next(name for name in mine if held[name] != mine[name])
            what = {
                "config": "another configuration file",
                "ranks": f"{held['ranks']} ranks",
                "set": "other --set options",
            }[other]
            raise Refused(
                f"{options.out} holds a sweep with {what}: give another --out, or --force to begin"
                " anew"
            )
        shutil.rmtree(os.path.join(options.out, "runs"), ignore_errors=True)
    os.makedirs(os.path.join(options.out, "runs"), exist_ok=True)
    plan_of_it = {
        **mine,
        "config_name": os.path.basename(options.config),
        "vary": options.vary,
        "zip": options.zipped,
        "seeds": options.seeds,
    }
    table.write_file(path, json.dumps(plan_of_it, indent=1))


class Sweep:
    """The runs, how each ended so far, and the table, which is written while the sweep goes on (at
    most once a second).
    """

    def __init__(self, options, runs):
        self.options, self.runs, self.rows, self.written = options, runs, {}, 0.0
        self.outcomes = {
            run: None if options.force else runner.previous(run, self.folder(run)) for run in runs
        }
        self.progress = None

    def folder(self, run):
        return os.path.join(self.options.out, "runs", run.name)

    def waiting(self):
        return [run for run in self.runs if self.outcomes[run] is None]

    def ended(self, run, outcome):
        self.outcomes[run] = outcome
        self.progress.ended(run, outcome)
        if time.monotonic() - self.written > 1:
            self.write()

    def write(self):
        for run in self.runs:
            outcome = self.outcomes[run]
            if run not in self.rows and outcome:
                self.rows[run] = table.row_of(run, outcome, self.folder(run))
        missing = runner.Outcome("not run")
        table.write_csv(
            self.csv(),
            [
                self.rows.get(run) or table.row_of(run, missing, self.folder(run))
                for run in self.runs
            ],
        )
        self.written = time.monotonic()

    def csv(self):
        return os.path.join(self.options.out, "sweep.csv")

    def compare(self):
        """scripts/report over the finished runs; whether its page was written. It says itself what
        it lacks.
        """
        folders = [
            self.folder(run)
            for run, row in self.rows.items()
            if row["status"] in ("ok", "failed checks")
        ]
        if not 2 <= len(folders) <= MOST_COMPARED:
            self.progress.say(
                f"no comparison of {len(folders)} runs: scripts/report compares 2 to"
                f" {MOST_COMPARED}; name yours, scripts/report RUN RUN..."
            )
            return False
        line = [
            os.path.join(launch.SCRIPTS, "report"),
            *folders,
            "-o",
            os.path.join(self.options.out, "comparison.html"),
        ]
        return (
            subprocess.run(
                line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False
            ).returncode
            == 0
        )

    def finish(self):
        """The last table, its plots, and a word about both."""
        self.write()
        written = [self.csv()]
        if table.write_parquet(self.csv(), os.path.join(self.options.out, "sweep.parquet")):
            written.append(os.path.join(self.options.out, "sweep.parquet"))
        ok = [row for row in self.rows.values() if row["status"] in ("ok", "failed checks")]
        if ok:
            written.append(
                page.write(
                    os.path.join(self.options.out, "sweep.html"),
                    list(self.rows.values()),
                    list(self.options.vary),
                    os.path.basename(self.options.config),
                    self.options.zipped,
                )
            )
        if self.options.report and self.compare():
            written.append(os.path.join(self.options.out, "comparison.html"))
        self.progress.clear()
        counts = {}
        for outcome in self.outcomes.values():
            status = outcome.status if outcome else "not run"
            counts[status] = counts.get(status, 0) + 1
        self.progress.say(
            f"{len(self.runs)} runs: "
            + ", ".join(f"{count} {status}" for status, count in counts.items())
        )
        for line in combinations.table(ok, list(self.options.vary)):
            self.progress.say(line)
        self.progress.say("\n".join(written))
        return all(outcome and outcome.status == "ok" for outcome in self.outcomes.values())


def prepare(options):
    """Everything that may be refused; returns (sweep, its runner)."""
    moesim, variables = launch.program(), launch.environment()
    if not moesim:
        raise Refused(launch.NOT_FOUND)
    if not os.path.isfile(options.config):
        raise Refused(f"{options.config} cannot be read: it is no file")
    check.check_alone(options, keys_table.read(moesim))
    in_file = check.devices_in(options.config)
    options.ranks = options.ranks or check.default_ranks(check.all_devices(options, in_file))
    options.jobs = options.jobs or plan.default_jobs(options.ranks)
    options.out = options.out or os.path.join(
        "runs", "sweep-" + os.path.splitext(os.path.basename(options.config))[0]
    )
    sweep = Sweep(options, plan.runs_of(options))
    waiting = sweep.waiting()
    finished = [run for run in sweep.runs if sweep.outcomes[run]]
    refused = check.check_together(options, waiting, finished, moesim, in_file, variables)
    claim(options)
    sweep.progress = Progress(len(sweep.runs), len(sweep.runs) - len(waiting), options.quiet)
    for run in waiting:
        if run.values in refused:
            sweep.ended(run, runner.Outcome("refused", refused[run.values]))
    sweep.progress.already = sweep.progress.done
    return sweep, runner.Runner(options, moesim, variables, sweep.progress, sweep.ended)


def sweep_all(options):
    sweep, running = prepare(options)
    waiting = sweep.waiting()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, running.interrupt)
    sweep.progress.say(
        f"{len(sweep.runs)} runs on {options.ranks} ranks, {options.jobs} at once"
        + (f"; {len(sweep.runs) - len(waiting)} are done" if len(waiting) < len(sweep.runs) else "")
    )
    sweep.progress.draw()
    try:
        running.all(waiting)
    except runner.Interrupted:
        sweep.finish()
        left = len(sweep.waiting())
        print(
            f"interrupted: what is done stands in {options.out}/; the same command goes on with the"
            f" {left} run{'s' if left != 1 else ''} that {'are' if left != 1 else 'is'} left, each from"
            " its start",
            file=sys.stderr,
        )
        return 130
    return 0 if sweep.finish() else 1


def main(arguments):
    if not arguments:
        plan.Words().print_help()
        return 2
    try:
        return sweep_all(plan.parse(arguments))
    except Refused as error:
        return say("sweep", error)
