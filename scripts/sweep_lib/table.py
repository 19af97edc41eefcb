"""One row a run: what of summary.json and metrics.jsonl goes into sweep.csv. A figure that a run
does not have is an empty field.
"""
import csv
import json
import os

WINDOW = 20  # steps that means over the end of a run are taken of


def read_json(path):
    """The object in a file; None where it is missing or damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def last_steps(path):
    """The last WINDOW objects of metrics.jsonl; a damaged line ends them."""
    steps = []
    try:
        with open(path, encoding="utf-8") as file:
            for line in file.readlines()[-WINDOW:]:
                steps.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return steps


def at(value, *path):
    """value[a][b]..., None where there is nothing."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def mean(values):
    known = [value for value in values if isinstance(value, (int, float))]
    return sum(known) / len(known) if known else None


def over_layers(summary, *path):
    return mean([at(layer, *path) for layer in at(summary, "layers") or []])


def total_over_layers(summary, name):
    known = [
        layer[name]
        for layer in at(summary, "layers") or []
        if isinstance(layer.get(name), (int, float))
    ]
    return sum(known) if known else None


def over_steps(steps, *path):
    return mean([at(step, *path) for step in steps])


def bytes_of(steps, name):
    """Mean over the steps of the sum over all directions: dispatch, combine and, in training, both
    backwards.
    """
    return mean(
        [
            sum(way.get(name) or 0 for way in step["volume"].values())
            for step in steps
            if step.get("volume")
        ]
    )


def across_nodes(steps):
    return mean(
        [
            sum(
                at(way, "by_level", "across_nodes", "bytes") or 0 for way in step["volume"].values()
            )
            for step in steps
            if step.get("volume")
        ]
    )


def figures(folder):
    """Name -> number or None, in the order of the columns. Losses by scope and drops are of the
    last step; the others that change from step to step are means over the last 20 steps (or as many
    as there are).
    """
    summary = read_json(os.path.join(folder, "summary.json"))
    steps = last_steps(os.path.join(folder, "metrics.jsonl")) if summary else []
    training = at(summary, "training")
    row = {name: at(summary, name) for name in ("devices", "ranks", "steps", "num_tokens")}
    for scope in ("sequence", "device", "global"):
        for loss in ("expert", "device", "comm"):
            row[f"loss_{loss}_{scope}"] = over_layers(summary, "loss_by_scope", scope, loss)
    row["loss_z"] = at(summary, "loss_raw", "z")
    row["loss_total"] = at(summary, "loss", "total")
    row["task_loss"] = at(training, "task_loss", "mean_last_20")
    row["validation_loss"] = at(training, "validation_loss", "last")
    row["bits_per_byte"] = at(training, "bits_per_byte", "mean_last_20")
    row["validation_bits_per_byte"] = at(training, "validation_bits_per_byte", "last")
    for load in ("expert", "device", "received"):
        row[f"maxvio_{load}"] = over_steps(steps, "balance", load, "maxvio")
    row["rows"] = over_steps(steps, "volume", "dispatch", "rows")
    row["dispatch_remote_bytes"] = over_steps(steps, "volume", "dispatch", "remote_bytes")
    row["remote_bytes"] = bytes_of(steps, "remote_bytes")
    row["across_nodes_bytes"] = across_nodes(steps)
    row["metadata_bytes"] = bytes_of(steps, "metadata_bytes")
    row["selection_remote_bytes"] = bytes_of(steps, "selection_remote_bytes")
    row["devices_per_token"] = over_layers(summary, "mean_devices_per_token")
    row["selections"] = total_over_layers(summary, "selections")
    row["dropped"] = total_over_layers(summary, "dropped")
    row["step_seconds"] = at(summary, "time", "measured", "step_mean")
    row["seconds"] = at(summary, "time", "total")
    return row


def failed_checks(summary):
    """A sentence about the checks that a finished run failed; "" when all passed."""
    names = [name for name, passed in (at(summary, "checks") or {}).items() if passed is False]
    return (
        f"failed its own check{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else ""
    )


def row_of(run, outcome, folder):
    """One row: the varied keys, the seed, how it ended, its figures."""
    row = {
        "run": run.name,
        **dict(run.values),
        "seed": run.seed
        or at(read_json(os.path.join(folder, "summary.json")), "config", "run", "seed"),
        "status": outcome.status,
        "error": outcome.error,
        "wall_seconds": outcome.seconds,
    }
    return {**row, **(figures(folder) if outcome.status in ("ok", "failed checks") else {})}


def text_of(value):
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def write_csv(path, rows):
    """The whole table, or the old one: readers never see half of it."""
    columns = list(
        dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    )
    beside = f"{path}.tmp"
    with open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([text_of(row.get(name)) for name in columns] for row in rows)
    os.replace(beside, path)


def write_parquet(csv_path, path):
    """Beside the CSV, where pandas and an engine of its are installed; returns whether it was
    written.
    """
    try:
        import pandas  # noqa: PLC0415  (optional)

        pandas.read_csv(csv_path).to_parquet(path, index=False)
    except Exception:  # whatever keeps an optional engine from working, the CSV is there
        return False
    return True
