"""What a sweep says while it runs: a bar with the time left on a terminal, one plain line a run
elsewhere, nothing with --quiet.
"""
import shutil
import sys
import time

BAR = 24


def clock(seconds):
    """2:05 or 1:02:05"""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """Counts runs; the time left is that of the runs of this sitting, at their mean pace."""

    def __init__(self, total, already, quiet, out=sys.stdout):
        self.total, self.done, self.already, self.failed = total, already, already, 0
        self.quiet, self.out, self.begin = quiet, out, time.monotonic()
        self.bar = not quiet and out.isatty()

    def left(self):
        here = self.done - self.already
        return (time.monotonic() - self.begin) / here * (self.total - self.done) if here else None

    def draw(self):
        if not self.bar:
            return
        full = BAR * self.done // max(1, self.total)
        left = self.left()
        text = f"[{'#' * full}{'-' * (BAR - full)}] {self.done}/{self.total}"
        text += f", {self.failed} failed" if self.failed else ""
        text += f", {clock(left)} left" if left is not None and self.done < self.total else ""
        self.out.write(
            "\r"
            + text[: shutil.get_terminal_size().columns - 1].ljust(
                min(79, shutil.get_terminal_size().columns - 1)
            )
        )
        self.out.flush()

    def clear(self):
        if self.bar:
            self.out.write("\r" + " " * min(79, shutil.get_terminal_size().columns - 1) + "\r")

    def ended(self, run, outcome):
        self.done += 1
        self.failed += outcome.status != "ok"
        if not self.quiet and (not self.bar or outcome.status != "ok"):
            self.clear()
            seconds = f"{outcome.seconds:.1f} s" if outcome.seconds is not None else "-"
            self.say(
                f"{self.done:>{len(str(self.total))}}/{self.total} "
                f" {outcome.status:<8} {seconds:>9}  {run.name}"
                + (f": {outcome.error}" if outcome.error else "")
            )
        self.draw()

    def say(self, text):
        if not self.quiet:
            self.out.write(text + "\n")
            self.out.flush()
