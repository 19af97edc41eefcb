"""One row a run: what of summary.json and metrics.jsonl goes into sweep.csv. A figure that a run
does not have is an empty field.
"""
import csv
import io
import os
import tempfile

from command_line import Refused
from run_lib import contents, safe_files
from run_lib.fields import OUT, Found, Wrong
from run_lib.units import LAST_STEPS
from run_lib.record import amount, at, items, number, objects

MOST_BYTES = 64 * safe_files.MIB  # of a file that is read


def read_json(path, check, strict=False):
    """(what is checked of a JSON file, sentence about what is wrong in it); None where it is
    missing, damaged, or wrong in a field and read strictly.
    """
    name = os.path.basename(path)
    found = Found(name, strict)
    try:
        checked = check(safe_files.read_json(path, MOST_BYTES), found)
    except FileNotFoundError:
        return None, ""
    except safe_files.Unfit as error:
        return None, f"{name} {error}"
    except Wrong as error:
        return None, f"{name} is damaged ({error})"
    return (None if checked is OUT else checked), "".join(found.problems())


def last_steps(path):
    """(the last LAST_STEPS objects of metrics.jsonl, sentence about what is wrong in them). A damaged
    line ends them.
    """
    steps, found = [], Found("metrics.jsonl")
    try:
        for line in safe_files.read_last_lines(path, MOST_BYTES)[-LAST_STEPS:]:
            step = contents.STEP(safe_files.parse(line), found)
            if step is OUT:
                break
            steps.append(step)
    except (FileNotFoundError, ValueError):
        pass
    except safe_files.Unfit as error:
        return steps, f"metrics.jsonl {error}"
    return steps, "".join(found.problems())


def mean(values):
    known = [value for value in values if number(value) is not None]
    return sum(known) / len(known) if known else None


def over_layers(summary, path):
    return mean([at(layer, path) for layer in objects(summary, "layers")])


def total_over_layers(summary, name):
    known = [number(layer.get(name)) for layer in objects(summary, "layers")]
    known = [value for value in known if value is not None]
    return sum(known) if known else None


def over_steps(steps, path):
    return mean([at(step, path) for step in steps])


def bytes_of(steps, path):
    """Mean over the steps of the sum over all directions: dispatch, combine and, in training, both
    backwards.
    """
    volumes = [items(step, "volume") for step in steps]
    return mean([sum(amount(way, path) for way in one.values()) for one in volumes if one])


def remote_bytes_per_token(steps):
    """Runs with different numbers of tokens are compared by it."""
    shares = []
    for step in steps:
        sent, tokens = bytes_of([step], "remote_bytes"), number(step.get("num_tokens"))
        shares.append(sent / tokens if sent is not None and tokens else None)
    return mean(shares)


def counted_per_token(summary, steps, way):
    """In the bytes of a real system's rows, in a layer."""
    layers = len(objects(summary, "layers"))
    row_bytes, shares = at(summary, f"counted.{way}_row_bytes"), []
    for step in steps:
        rows, tokens = at(step, f"volume.{way}.rows"), layers * (
            number(step.get("num_tokens")) or 0
        )
        shares.append(
            rows * row_bytes / tokens if None not in (rows, row_bytes) and tokens else None
        )
    return mean(shares)


def figures(folder):
    """(name -> number or None, in the order of the columns; a sentence about what is wrong in the
    files, or ""). Losses by scope and drops are of the
    last step; the others that change from step to step are means over the last 20 steps (or as many
    as there are).
    """
    summary, wrong = read_json(os.path.join(folder, "summary.json"), contents.SUMMARY)
    steps, wrong_steps = last_steps(os.path.join(folder, "metrics.jsonl")) if summary else ([], "")
    training = at(summary, "training")
    row = {name: at(summary, name) for name in ("devices", "ranks", "steps", "num_tokens")}
    for scope in ("sequence", "device", "global"):
        for loss in ("expert", "device", "comm"):
            row[f"loss_{loss}_{scope}"] = over_layers(summary, f"loss_by_scope.{scope}.{loss}")
    row["loss_z"] = at(summary, "loss_raw.z")
    row["loss_total"] = at(summary, "loss.total")
    row["task_loss"] = at(training, "task_loss.mean_last_20")
    row["validation_loss"] = at(training, "validation_loss.last")
    row["bits_per_byte"] = at(training, "bits_per_byte.mean_last_20")
    row["validation_bits_per_byte"] = at(training, "validation_bits_per_byte.last")
    for load in ("expert", "device", "received"):
        row[f"maxvio_{load}"] = over_steps(steps, f"balance.{load}.maxvio")
    row["rows"] = over_steps(steps, "volume.dispatch.rows")
    row["dispatch_remote_bytes"] = over_steps(steps, "volume.dispatch.remote_bytes")
    row["remote_bytes"] = bytes_of(steps, "remote_bytes")
    row["remote_bytes_per_token"] = remote_bytes_per_token(steps)
    for way in ("dispatch", "combine"):
        row[f"counted_{way}_bytes_per_token"] = counted_per_token(summary, steps, way)
    row["across_nodes_bytes"] = bytes_of(steps, "by_level.across_nodes.bytes")
    row["metadata_bytes"] = bytes_of(steps, "metadata_bytes")
    row["selection_remote_bytes"] = bytes_of(steps, "selection_remote_bytes")
    row["devices_per_token"] = over_layers(summary, "mean_devices_per_token")
    row["nodes_per_token"] = over_layers(summary, "mean_nodes_per_token")
    row["remote_nodes_per_token"] = over_layers(summary, "mean_remote_nodes_per_token")
    row["selections"] = total_over_layers(summary, "selections")
    row["dropped"] = total_over_layers(summary, "dropped")
    row["step_seconds"] = at(summary, "time.measured.step_mean")
    row["seconds"] = at(summary, "time.total")
    row["predicted_step_us"] = at(summary, "time.predicted.step_us")
    row["balanced_step_us"] = at(summary, "time.balanced.step_us")
    row["price_per_million_tokens"] = at(summary, "time.price_per_million_tokens")
    return row, " ".join(filter(None, (wrong, wrong_steps)))


def failed_checks(summary):
    """A sentence about the checks that a finished run failed; "" when all passed."""
    names = [name for name, passed in items(summary, "checks").items() if passed is False]
    return (
        f"failed its own check{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else ""
    )


def row_of(run, outcome, folder):
    """One row: the varied keys, the seed, how it ended, its figures."""
    summary, _ = read_json(os.path.join(folder, "summary.json"), contents.SUMMARY)
    row = {
        "run": run.name,
        **({"variant": run.variant} if run.variant else {}),
        **dict(run.values),
        "seed": run.seed or at(summary, "config.run.seed"),
        "status": outcome.status,
        "error": outcome.error,
        "wall_seconds": outcome.seconds,
    }
    if outcome.status in ("ok", "failed checks"):
        measured, wrong = figures(folder)
        row.update(measured)
        row["error"] = row["error"] or wrong
    return row


def text_of(value):
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def write_csv(path, rows):
    """The whole table, or the old one: readers never see half of it."""
    columns = list(
        dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    )
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([text_of(row.get(name)) for name in columns] for row in rows)
    write_file(path, lines.getvalue())


def write_file(path, text):
    """As safe_files.write_whole; what it refuses is the user's mistake."""
    try:
        safe_files.write_whole(path, text)
    except safe_files.Unfit as error:
        raise Refused(f"{path} {error}: remove it, or give another --out") from None


def write_parquet(csv_path, path):
    """Beside the CSV, where pandas and an engine of its are installed; returns whether it was
    written.
    """
    try:
        import pandas  # noqa: PLC0415  (optional)

        with tempfile.TemporaryDirectory(dir=os.path.dirname(path) or ".") as beside:
            made = os.path.join(beside, "table")
            pandas.read_csv(csv_path).to_parquet(made, index=False)
            os.replace(made, path)
    except Exception:  # whatever keeps an optional engine from working, the CSV is there
        return False
    return True
