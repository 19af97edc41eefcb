"""A run's folder while the run is under way: how far it is, and what is left where it was
interrupted.
"""
import glob
import os
import re
import shutil
import sys
import time

from run_lib import safe_files

MOST_CONFIG = safe_files.MIB
BAR = 24
CHECKPOINT = re.compile(r"step-(\d+)\.moe$")


def clock(seconds):
    """2:05 or 1:02:05"""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def bar(part):
    """A bar of which so much is full, 0 to 1."""
    full = int(BAR * min(max(part, 0), 1))
    return f"[{'#' * full}{'-' * (BAR - full)}]"


class Line:
    """One line of a terminal that is written again and again; nothing elsewhere."""

    def __init__(self, out=sys.stdout, quiet=False):
        self.out, self.shown = out, not quiet and out.isatty()

    def columns(self):
        return min(79, shutil.get_terminal_size().columns - 1)

    def draw(self, text):
        if self.shown:
            self.out.write("\r" + text[: self.columns()].ljust(self.columns()))
            self.out.flush()

    def clear(self):
        if self.shown:
            self.out.write("\r" + " " * self.columns() + "\r")
            self.out.flush()


class Watch:
    """Counts the steps in metrics.jsonl as they are written. What another run left in the folder is
    not counted: the file has to be younger than this object, or to have been cut.
    """

    def __init__(self, folder):
        self.folder, self.at, self.done, self.total = folder, 0, 0, None
        self.begin, self.old = time.monotonic(), self._identity()

    def _identity(self):
        try:
            found = os.lstat(os.path.join(self.folder, "metrics.jsonl"))
        except OSError:
            return None
        return found.st_ino, found.st_size

    def _steps(self):
        """run.steps of the folder's config.ini."""
        try:
            text = safe_files.read_text(os.path.join(self.folder, "config.ini"), MOST_CONFIG)
        except (OSError, safe_files.Unfit):
            return None
        found = re.search(r"^\[run\][^\[]*?^steps *= *(\d+)", text, re.MULTILINE | re.DOTALL)
        return int(found[1]) if found else None

    def look(self):
        """Updates done and total."""
        now = self._identity()
        if now is None or (self.old and now[0] == self.old[0] and now[1] == self.old[1]):
            return
        self.old = None
        if now[1] < self.at:
            self.at = self.done = 0
        path = os.path.join(self.folder, "metrics.jsonl")
        try:
            with open(safe_files.open_regular(path), "rb") as file:
                file.seek(self.at)
                fresh = file.read(64 * safe_files.MIB)
        except (OSError, safe_files.Unfit):
            return
        self.at += len(fresh)
        self.done += fresh.count(b"\n")
        self.total = self.total or self._steps()

    def part(self):
        """How much of the run is done, 0 to 1."""
        return self.done / self.total if self.total else 0

    def text(self):
        """ "[###---] step 12/150, 0:23 left"; as long as no step is done, the time."""
        seconds = time.monotonic() - self.begin
        if not self.total or not self.done:
            return f"{bar(0)} {clock(seconds)}"
        left = seconds / self.done * (self.total - self.done)
        more = f", {clock(left)} left" if self.done < self.total else ", writing"
        return f"{bar(self.part())} step {self.done}/{self.total}{more}"


def left_behind(folder, program="mpirun -np D moesim"):
    """What an interrupted run has left in its folder, and how it goes on, as lines; empty where
    there is no such folder.
    """
    if not os.path.isdir(folder):
        return []
    watch = Watch(folder)
    watch.old = None
    watch.look()
    total = f" of {watch.total}" if watch.total else ""
    lines = [f"{folder}/ has {watch.done}{total} step{'' if watch.done == 1 else 's'}"]
    found = sorted(
        (int(CHECKPOINT.search(path)[1]), path)
        for path in glob.glob(os.path.join(glob.escape(folder), "checkpoints", "step-*.moe"))
        if CHECKPOINT.search(path)
    )
    if found:
        lines[0] += f" and the checkpoint {os.path.relpath(found[-1][1], folder)}"
        lines.append(f"to go on: {program} --resume {folder}")
    else:
        lines[0] += " and no checkpoint (train.checkpoint_every writes them)"
    return lines
