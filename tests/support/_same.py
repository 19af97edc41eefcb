"""Whether two runs gave the same: their reports but for what may differ, and their arrays."""
import os

from _moesim import check, metrics, same_bytes, summary


def without(value, keys):
    if isinstance(value, dict):
        return {k: without(v, keys) for k, v in value.items() if k not in keys}
    return [without(v, keys) for v in value] if isinstance(value, list) else value


def told(folder, *more):
    """What summary.json, but for the keys `more`, time and machine, and metrics.jsonl say."""
    whole = without(summary(folder), {"time", "machine", "ranks", *more})
    whole["config"].pop("name")
    return whole, without(metrics(folder), {"time"})


def arrays(folder):
    return sorted(
        os.path.relpath(os.path.join(at, name), folder)
        for at, _, names in os.walk(folder)
        for name in names
        if name.endswith(".npy")
    )


def compare(first, second, label, *more):
    """The same figures but for the keys `more` of the summary, checks that passed, equal arrays."""
    same = told(first, *more) == told(second, *more)
    check(same, f"{label}: summary.json or metrics.jsonl differ")
    check(all(p is not False for p in summary(second)["checks"].values()), f"{label}: self-checks")
    names = arrays(first)
    check(names == arrays(second) and len(names) > 0, f"{label}: other files")
    for name in names:
        check(same_bytes(f"{first}/{name}", f"{second}/{name}"), f"{label}: {name} differs")
