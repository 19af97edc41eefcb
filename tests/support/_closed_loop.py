"""Helper of the closed-loop tests: runs configurations of configs/training/ and takes the mean of
their last steps.
"""
import os

from _moesim import SOURCE, TEMPORARY, check, metrics, moesim, sets

LICENCES = "/usr/share/common-licenses"
TEXT = (
    LICENCES if os.path.isdir(LICENCES) else os.path.join(SOURCE, "src")
)  # any text; the claims are not about this one


def trained(name, seed, last, **settings):
    """Means over the last steps of configs/training/NAME.ini; None after a failed check."""
    folder = os.path.join(TEMPORARY, f"{name}-{seed}-{'-'.join(map(str, settings.values()))}")
    changes = sets(
        {
            "run.seed": seed,
            "run.threads": 1,
            "data.path": TEXT,
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
    )
    done = moesim(
        2,
        *changes,
        "--quiet",
        "--out",
        folder,
        os.path.join(SOURCE, "configs", "training", f"{name}.ini"),
    )
    if not check(done.code == 0, f"{name}, seed {seed}: status {done.code}: {done.err}"):
        return None
    lines = metrics(folder)[-last:]

    def mean(value):
        return sum(map(value, lines)) / len(lines)

    return {
        "loss": mean(lambda line: line["task_loss"]),
        "experts": mean(lambda line: line["balance"]["expert"]["maxvio"]),
        "devices": mean(lambda line: line["balance"]["device"]["maxvio"]),
        "received": mean(lambda line: line["balance"]["received"]["maxvio"]),
        "idle": mean(lambda line: line["balance"]["expert"]["idle"]),
        "bytes": mean(lambda line: line["volume"]["dispatch"]["remote_bytes"]),
    }


def shown(figures):
    return ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
