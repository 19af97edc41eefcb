"""What a sweep says while it runs: a bar with the time left on a terminal, one plain line a run
elsewhere, nothing with --quiet.
"""
import sys
import time

from run_lib.watch import Line, bar, clock


class Progress:
    """Counts runs; the time left is that of the runs of this sitting, at their mean pace."""

    def __init__(self, total, already, quiet, out=sys.stdout):
        self.total, self.done, self.already, self.failed = total, already, already, 0
        self.quiet, self.out, self.begin = quiet, out, time.monotonic()
        self.line = Line(out, quiet)
        self.bar = self.line.shown
        self.drawn = 0

    def left(self, begun):
        """Seconds, `begun` being the parts of the runs under way that are done, added up."""
        here = self.done - self.already + begun
        return (
            (time.monotonic() - self.begin) / here * (self.total - self.done - begun)
            if here
            else None
        )

    def draw(self, watches=()):
        """The bar; `watches` look at the runs that are under way."""
        if not self.bar:
            return
        self.drawn = time.monotonic()
        begun = sum(watch.part() for watch in watches)
        left = self.left(begun)
        text = f"{bar((self.done + begun) / max(1, self.total))} {self.done}/{self.total}"
        steps = [f"{watch.done}/{watch.total}" for watch in watches if watch.total]
        text += f", at step {' and '.join(steps[:3])}" if steps else ""
        text += f", {self.failed} failed" if self.failed else ""
        text += f", {clock(left)} left" if left is not None and self.done < self.total else ""
        self.line.draw(text)

    def under_way(self, watches):
        """While runs are under way: looks at them and draws, a few times a second."""
        if self.bar and time.monotonic() - self.drawn > 0.2:
            for watch in watches:
                watch.look()
            self.draw(watches)

    def clear(self):
        self.line.clear()

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
