"""What a device limit costs a model: the configuration trained under each M, with several seeds, and
the losses paired by seed. Times and bytes are those of the trained models' last steps.
"""
import concurrent.futures
import os
import statistics
from dataclasses import dataclass

from advise_lib import judge
from advise_lib.runs import words
from sweep_lib import spread, table

QUALITY = ("validation_loss", "task_loss")  # the first one that the runs have


@dataclass
class Trained:
    """Of one M: the loss of each seed, and the means of what else the runs say."""

    limit: int
    losses: dict
    seconds: float
    bytes_per_token: float

    @property
    def loss(self):
        return statistics.fmean(self.losses.values())


def train(bench, limits, seeds):
    """[Trained] of the configured M (0) and the others."""
    jobs = [(limit, seed) for limit in (0, *limits) for seed in range(1, seeds + 1)]
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        rows = list(pool.map(lambda job: _run(bench, *job), jobs))
    name = next(name for name in QUALITY if all(row[name] is not None for row in rows))
    found = []
    for limit in (0, *limits):
        mine = {seed: row for (m, seed), row in zip(jobs, rows) if m == limit}
        found.append(
            Trained(
                limit,
                {seed: row[name] for seed, row in mine.items()},
                statistics.fmean(row["predicted_step_us"] for row in mine.values()) / 1e6,
                statistics.fmean(row["remote_bytes_per_token"] for row in mine.values()),
            )
        )
    return found


def _run(bench, limit, seed):
    out = os.path.join(bench.folder, f"trained{limit}-{seed}")
    settings = {
        **bench.given,
        "cluster.devices": str(bench.devices),
        "run.seed": str(seed),
        "run.threads": "1",
    }
    if limit:
        rule = bench.config["router.group_limit"]
        settings["router.group_limit"] = "max" if rule == "none" else rule
        settings["router.topk_group"] = str(limit)
    bench.program.ask("--quiet", "--out", out, *words(settings), bench.path)
    return table.figures(out)[0]


def front(found):
    """Those than which none is at once as good in time, bytes and loss, and better in one."""

    def beats(one, other):
        mine, theirs = ((x.seconds, x.bytes_per_token, x.loss) for x in (one, other))
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs))

    return [one for one in found if not any(beats(other, one) for other in found)]


def answer(found):
    """(answer, reason) about the fastest M that saves time."""
    now = found[0]
    best = min(found, key=lambda one: one.seconds)
    gain = 1 - best.seconds / now.seconds
    if gain < judge.WORTH:
        return judge.NO, "no other M is faster."
    costs = spread.paired(now.losses, best.losses)
    text = f"M = {best.limit} saves {100 * gain:.1f} % of a step and changes the loss by"
    text += f" {costs.mean:+.4f}"
    if costs.noise is None:
        return judge.UNKNOWN, f"{text}, of one seed, which says nothing of chance (--train 3)."
    text += f" ({costs.low:+.4f} to {costs.high:+.4f} in 95 of 100 cases, {costs.seeds} seeds)."
    if costs.high <= 0:
        return judge.YES, text
    if costs.noise:
        return judge.UNKNOWN, text + " That may be chance: more seeds would tell."
    return "Your choice", text
