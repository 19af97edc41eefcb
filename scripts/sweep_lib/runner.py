"""Runs the runs: some at once, each in a folder of its own under OUT/runs, and remembers how each
ended. A run whose summary.json is there is not run again. When the sweep is interrupted, the runs
that are under way are ended and count as not run.
"""
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass

import launch
from run_lib import contents, watch
from sweep_lib import table
from sweep_lib.check import sentence

STATE = "sweep-run.json"  # in a run's folder: how it ended, and how long it took, start-up included
POLL_SECONDS = 0.01
PATIENCE_SECONDS = 5


@dataclass
class Outcome:
    """status: ok, failed checks, failed, refused, not run; in a folder also under way."""

    status: str
    error: str = ""
    seconds: float = None


def settings_of(run):
    """As they come back from JSON."""
    return [list(pair) for pair in run.settings()]


def previous(run, folder):
    """Outcome of a run that finished earlier with the same settings; None when it has to run
    (again).
    """
    summary, _ = table.read_json(os.path.join(folder, "summary.json"), contents.SUMMARY)
    state, _ = table.read_json(os.path.join(folder, STATE), contents.SWEEP_RUN, strict=True)
    if summary is None or state is None:
        return None
    if state["status"] == "failed" or state["settings"] != settings_of(run):
        return None
    wrong = table.failed_checks(summary)
    return Outcome("failed checks" if wrong else "ok", wrong, state.get("seconds"))


def remember(run, folder, outcome):
    os.makedirs(folder, exist_ok=True)
    state = {**vars(outcome), "settings": settings_of(run)}
    table.write_file(os.path.join(folder, STATE), json.dumps(state))


class Process:
    """One mpirun under way, in a session of its own: a Ctrl-C at the terminal reaches the sweep
    only.
    """

    def __init__(self, run, folder, line, environment):
        self.run, self.folder, self.begin = run, folder, time.monotonic()
        self.watch = watch.Watch(folder)
        self.errors = tempfile.TemporaryFile()
        self.child = subprocess.Popen(
            line,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            start_new_session=True,
        )

    def outcome(self):
        """How it ended; None while it runs."""
        status = self.child.poll()
        if status is None:
            return None
        seconds = round(time.monotonic() - self.begin, 3)
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace")
        self.errors.close()
        if status == 0:
            return Outcome("ok", "", seconds)
        summary, _ = table.read_json(os.path.join(self.folder, "summary.json"), contents.SUMMARY)
        if status == 3 and summary is not None:
            return Outcome(
                "failed checks",
                sentence(said, status) if said.strip() else table.failed_checks(summary),
                seconds,
            )
        return Outcome("failed", sentence(said, status), seconds)

    def stop(self):
        """mpirun passes the end on to its ranks."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)

    def reap(self, deadline):
        try:
            self.child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
        self.errors.close()


class Interrupted(Exception):
    """Ctrl-C or SIGTERM."""


class Runner:
    """Starts runs while there is room, tells `ended` about each, and ends what is under way when it
    is interrupted.
    """

    def __init__(self, options, program, environment, progress, ended):
        self.options, self.program, self.environment = options, program, environment
        self.progress, self.ended = progress, ended
        self.under_way, self.interrupted = [], False

    def interrupt(self, _number=None, _frame=None):
        """Signal handler: the loop sees to it, so that no process is lost between being started and
        being known.
        """
        self.interrupted = True

    def line(self, run, folder):
        words = [
            word
            for key, value in [*self.options.sets.items(), *run.settings()]
            for word in ("--set", f"{key}={value}")
        ]
        return [
            *launch.mpirun(self.options.ranks),
            self.program,
            "--quiet",
            "--force",
            "--out",
            folder,
            *words,
            self.options.config,
        ]

    def start(self, run):
        folder = os.path.join(self.options.out, "runs", run.name)
        if os.path.lexists(os.path.join(folder, "summary.json")):
            os.remove(os.path.join(folder, "summary.json"))
        remember(run, folder, Outcome("under way"))
        self.under_way.append(Process(run, folder, self.line(run, folder), self.environment))

    def collect(self):
        """Takes up what has ended since the last look; returns whether anything had."""
        done = [(process, outcome) for process in self.under_way if (outcome := process.outcome())]
        for process, outcome in done:
            self.under_way.remove(process)
            remember(process.run, process.folder, outcome)
            self.ended(process.run, outcome)
        return bool(done)

    def stop(self):
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in self.under_way:
            process.stop()
        for process in self.under_way:
            process.reap(deadline)
        self.under_way.clear()

    def all(self, runs):
        """Runs them; Interrupted comes out only when everything has ended."""
        waiting = list(runs)
        try:
            while waiting or self.under_way:
                if self.interrupted:
                    raise Interrupted
                while waiting and len(self.under_way) < self.options.jobs:
                    self.start(waiting.pop(0))
                if not self.collect():
                    self.progress.under_way([process.watch for process in self.under_way])
                    time.sleep(POLL_SECONDS)
        finally:
            self.stop()
