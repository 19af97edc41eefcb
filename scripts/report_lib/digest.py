"""What the page's charts draw, as one JSON object per run: series over steps, load per expert,
traffic matrix, volume. Figures are the files' own; where there are too many to draw, steps are
thinned, or cells added up, and the object says so (`every`, `per_bin`).
"""
import numpy

import tables
import explain
import rebalance
import sparse_file
import timeline
from names import DIRECTIONS, LEVELS
from run_lib.record import amount, at, items, number, numbers, objects, whole

LOADS = ("expert", "device", "received", "sent", "node", "node_received")
METRICS = ("max_over_mean", "cv", "gini", "idle")


class Room:
    """How much one run may put on the page. Shrunk until the page is small enough."""

    def __init__(self, share=1.0):
        self.points = max(int(1200 * share), 50)  # of a line
        self.columns = max(int(250 * share), 40)  # of a heat map over steps
        self.cells = max(
            int(260_000 * share), 4096
        )  # of all layers' heat maps; as many again of traffic matrices before the last step
        self.spans = max(int(32_000 * share), 400)  # of the timeline


# --- over steps ---


def thinned(count, points):
    """Indices that stay of `count` steps: every n-th, and the last."""
    every = max(1, -(-count // points))
    kept = list(range(0, count, every))
    if count and kept[-1] != count - 1:
        kept.append(count - 1)
    return kept, every


def series_paths(metrics):
    """Names of everything that is drawn over steps, as paths into a line of metrics.jsonl."""
    fixed = ["task_loss", "lm_loss", "gradient_norm", "learning_rate", "time.step", "dropped"]
    for group in ("loss", "loss_raw", "time.phases"):
        names = {name: None for step in (metrics[0], metrics[-1]) for name in items(step, group)}
        fixed += [f"{group}.{name}" for name in names]
    fixed += [f"balance.{load}.{metric}" for load in LOADS for metric in METRICS]
    fixed += [
        f"volume.{direction}.{what}"
        for direction in DIRECTIONS
        for what in ("logical_bytes", "remote_bytes")
    ]
    return fixed


def steps_of(folder, room):
    """{"step": [...], "every": n, "count": all steps, "series": {path: [...]}}; series without a
    value are left out.
    """
    if not folder.metrics:
        return {"step": [], "every": 1, "count": 0, "series": {}}
    kept, every = thinned(len(folder.metrics), room.points)
    lines, series = [folder.metrics[index] for index in kept], {}
    for path in series_paths(folder.metrics):
        values = [number(at(line, path)) for line in lines]
        if any(value is not None for value in values):
            series[path] = values
    return {
        "step": [line["step"] for line in lines],
        "every": every,
        "count": len(folder.metrics),
        "series": series,
    }


def validation_of(folder, room):
    """Validation runs on few steps: a list of its own."""
    made = [
        (line["step"], line["validation_loss"])
        for line in folder.metrics
        if number(line.get("validation_loss")) is not None
    ]
    kept, _ = thinned(len(made), room.points)
    return {"step": [made[index][0] for index in kept], "loss": [made[index][1] for index in kept]}


# --- load and traffic ---


def bins(count, most):
    """(size, first index of each bin): `count` entries in at most `most` bins of equal size, the
    last perhaps smaller.
    """
    size = max(1, -(-count // max(most, 1)))
    return size, list(range(0, count, size))


def load_of(folder, room):
    """Selections per expert and step, added up in bins; `sum` is [layer][expert bin][step bin]."""
    if folder.load is None:
        return None
    steps, layers, experts = folder.load.shape
    rows = min(experts, 256, max(room.cells // (8 * layers), 8))
    columns = max(min(room.columns, room.cells // (layers * rows)), 8)
    step_bin, step_first = bins(steps, columns)
    expert_bin, expert_first = bins(experts, rows)
    total = numpy.add.reduceat(folder.load, step_first, axis=0).astype(numpy.int64)
    total = numpy.add.reduceat(total, expert_first, axis=2)
    return {
        "steps": steps,
        "experts": experts,
        "steps_per_bin": step_bin,
        "experts_per_bin": expert_bin,
        "sum": total.transpose(1, 2, 0).tolist(),
    }


def in_blocks(matrices, first):
    """The last two dimensions added up in blocks."""
    return numpy.add.reduceat(numpy.add.reduceat(matrices, first, axis=-2), first, axis=-1)


def matrix_of(folder, room):
    """Dispatch rows from device to device, [layer][from][to], of the last step, and of some `steps`
    before it (`earlier`); devices added up in blocks where there are very many.
    """
    if folder.matrix is None:
        return None
    layers, devices, _ = folder.matrix.shape
    size, first = bins(devices, min(devices, 128, max(int((room.cells / layers) ** 0.5), 8)))
    kept = (
        timeline.spread(
            list(range(len(folder.matrix_steps) - 1)), room.cells // (layers * len(first) ** 2)
        )
        if folder.matrices is not None
        else []
    )
    return {
        "devices": devices,
        "devices_per_bin": size,
        "rows": (
            folder.matrix.in_blocks(first, size)
            if isinstance(folder.matrix, sparse_file.Sparse)
            else in_blocks(folder.matrix, first)
        ).tolist(),
        "steps": (
            [folder.matrix_steps[index] for index in [*kept, -1]] if folder.matrix_steps else []
        ),
        "earlier": [in_blocks(folder.matrices[index], first).tolist() for index in kept],
    }


# --- specialisation ---


def domain_names(found):
    """As texts; of a path the last part, where that tells all apart."""
    names = [str(name) for name in found.get("domains") or []]
    short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    return short if len(set(short)) == len(short) else names


def specialization_of(folder, room):
    """Losses without each token's best experts, and how often each domain chose each expert,
    [layer][domain][expert bin].
    """
    found = folder.specialization
    if found is None:
        return None
    losses = [
        {"experts": one.get("experts"), "loss": number(one.get("task_loss"))}
        for one in objects(found, "disabled")
    ]
    made = {
        "disabled": losses,
        "domains": domain_names(found),
        "shared": {
            "routed": at(found, "shared_replaced.routed_experts"),
            "loss": number(at(found, "shared_replaced.task_loss")),
        },
    }
    if folder.domain_load is None:
        return {**made, "load": None, "experts_per_bin": 1}
    layers, domains, experts = folder.domain_load.shape
    size, first = bins(experts, min(experts, 256, max(room.cells // (4 * layers * domains), 8)))
    return {
        **made,
        "load": numpy.add.reduceat(folder.domain_load, first, axis=2).tolist(),
        "experts_per_bin": size,
    }


# --- layers ---


def ratio(above, below):
    return above / below if below else None


def layer_of(layer, batches):
    """The arrays of one layer of summary.json, and the bytes of one row of its dispatch. Counts are
    of all micro-batches of a step, and so is the capacity here.
    """
    dispatch = items(layer, "volume.dispatch")
    names = (
        "counts_per_expert",
        "kept_per_expert",
        "counts_per_device",
        "distinct_tokens_per_device",
        "sent_rows",
        "received_rows",
        "tokens_by_reach",
    )
    capacity = (
        {name: at(layer, f"capacity.{name}") for name in ("policy", "scope")}
        if at(layer, "capacity")
        else None
    )
    if capacity:
        capacity["capacity"] = amount(layer, "capacity.capacity") * batches
    return {
        **{name: numbers(layer.get(name)) for name in names},
        "capacity": capacity,
        **{
            name: numbers(at(layer, f"capacity.{name}"))
            for name in ("dropped_per_expert", "dropped_per_device")
        },
        "row_bytes": ratio(
            number(dispatch.get("logical_bytes")) or 0, number(dispatch.get("rows")) or 0
        ),
    }


def waterfall_of(folder):
    """Stages of the dispatch volume of the last step, [{"name", "bytes", "rows", "sent"}]: what was
    left out at each. Sums over layers.
    """
    layers, tokens = folder.layers, number(at(folder.summary, "num_tokens"))
    if not layers or not tokens:
        return []
    mode = folder.get("exchange", "mode", "token")
    paths = {
        "pairs": "selections",
        "free": "mean_devices_per_token_unlimited",
        "reach": "mean_devices_per_token",
        "dropped": "dropped",
        "rows": "volume.dispatch.rows",
        "bytes": "volume.dispatch.logical_bytes",
        "remote": "volume.dispatch.remote_bytes",
        "nodes": "mean_remote_nodes_per_token",
        "selection": "volume.dispatch.selection_bytes",
    }
    figures = [{name: number(at(layer, path)) for name, path in paths.items()} for layer in layers]
    if any(
        figure["rows"] in (None, 0) or figure["bytes"] is None or figure["pairs"] is None
        for figure in figures
    ):
        return []
    size = [figure["bytes"] / figure["rows"] for figure in figures]

    def stage(name, rows, in_bytes=None):
        weighed = (
            sum(count * row for count, row in zip(rows, size)) if in_bytes is None else in_bytes
        )
        return {"name": name, "rows": sum(rows), "bytes": weighed, "sent": False}

    dropped = sum(figure["dropped"] or 0 for figure in figures)
    exact = None if dropped else sum(figure["selection"] or 0 for figure in figures)
    stages = [stage("one row per selection", [figure["pairs"] for figure in figures], exact)]
    # a recorded routing keeps to a limit or fails its self-check: nothing of it was chosen here
    recorded = folder.get("data", "source") == "routing"
    limited = folder.get("router", "group_limit", "none") != "none" and not recorded
    if limited and all(figure["free"] is not None for figure in figures):
        free = [figure["free"] * tokens for figure in figures]
        stages.append(stage("token and device, unlimited", free))
    if all(figure["reach"] is not None for figure in figures):
        reach = [figure["reach"] * tokens for figure in figures]
        stages.append(stage("one row per token and device", reach))
    sent = {
        "rows": sum(figure["rows"] for figure in figures),
        "bytes": sum(figure["bytes"] for figure in figures),
        "sent": True,
    }
    if mode == "selection":
        stages[0]["sent"] = not dropped
    if mode != "selection" or dropped:
        same = mode != "selection" and not dropped and abs(stages[-1]["rows"] - sent["rows"]) < 0.5
        if same:
            stages[-1].update(sent)
        else:
            after = dropped and mode != "two_level"
            stages.append({"name": "after dropping" if after else f"sent in mode {mode}", **sent})
    if all(figure["remote"] is not None for figure in figures):
        local = sum(amount(layer, "volume.dispatch.by_level.same_device.rows") for layer in layers)
        stages.append(
            {
                "name": "to other devices",
                "rows": sent["rows"] - local,
                "bytes": sum(figure["remote"] for figure in figures),
                "sent": True,
            }
        )
    return stages + between_nodes(layers, [figure["nodes"] for figure in figures], tokens, stage)


def between_nodes(layers, remote_nodes, tokens, stage):
    """What crosses between nodes, and what would with one row per token and node."""
    crossed = [amount(layer, "volume.dispatch.by_level.across_nodes.rows") for layer in layers]
    if not sum(crossed):
        return []
    sent = sum(amount(layer, "volume.dispatch.by_level.across_nodes.bytes") for layer in layers)
    stages = [{**stage("to other nodes", crossed, sent), "sent": True}]
    if None not in remote_nodes:
        rows = [nodes * tokens for nodes in remote_nodes]
        undropped = ", undropped" if sum(amount(layer, "dropped") for layer in layers) else ""
        stages.append(stage(f"if one row per token and node{undropped}", rows))
    return stages


def mean_of(layers, path):
    values = [number(at(layer, path)) for layer in layers]
    return sum(values) / len(values) if values and None not in values else None


def ideals_of(folder):
    """Value of each loss at perfect balance, mean over layers; only where every layer has one, or
    of a loss over all layers.
    """
    names = {name: None for layer in folder.layers for name in items(layer, "loss_ideal")}
    means = {name: mean_of(folder.layers, f"loss_ideal.{name}") for name in names}
    of_all = {name: number(value) for name, value in items(folder.summary, "loss_ideal").items()}
    return {name: mean for name, mean in {**means, **of_all}.items() if mean is not None}


def overlap_of(folder):
    """What an exchange in chunks hid behind the experts: of all ranks, the least and the most of any;
    None with one chunk, or where nothing travelled.
    """
    share = number(at(folder.summary, "time.overlap.hidden_share"))
    ranks = at(folder.summary, "time.overlap.ranks") or []
    shares = [number(rank.get("hidden_share")) for rank in ranks]
    if share is None or not shares or None in shares:
        return None
    return {"share": share, "least": min(shares), "most": max(shares)}


def digest(folder, room):
    """All of a run that charts draw."""
    per_node = whole(folder.get("cluster", "devices_per_node")) or folder.devices
    batches = (
        whole(folder.get("train", "accumulate")) if folder.get("run", "mode") == "train" else 1
    )
    levels = {
        direction: [
            {name: amount(v, name) for name in ("rows", "bytes", "metadata_bytes")}
            for v in (
                items(folder.last, f"volume.{direction}.by_level.{level}") for level in LEVELS
            )
        ]
        for direction in DIRECTIONS
        if at(folder.last, f"volume.{direction}.by_level")
    }
    return {
        "name": folder.name,
        "devices": folder.devices,
        "experts": folder.num_experts,
        "layers": folder.num_layers,
        "dense": whole(folder.get("model", "first_dense_layers")),
        "per_node": per_node,
        "block": folder.get("placement", "policy", "block") == "block",
        "mode": folder.get("run", "mode", "forward"),
        "steps": steps_of(folder, room),
        "validation": validation_of(folder, room),
        "task_unit": tables.task_unit(folder),
        "unigram": number(at(folder.summary, "training.unigram_entropy")),
        "ideal": ideals_of(folder),
        "load": load_of(folder, room),
        "rebalance": rebalance.digest(folder, room),
        "matrix": matrix_of(folder, room),
        "layer": [layer_of(layer, batches) for layer in folder.layers],
        "waterfall": waterfall_of(folder),
        "levels": levels,
        "specialization": specialization_of(folder, room),
        "timeline": timeline.digest(folder.timeline, room),
        "overlap": overlap_of(folder),
        "explain": explain.digest(folder.explanation),
        "step_mean": number(at(folder.summary, "time.measured.step_mean")),
        "num_steps": whole(at(folder.summary, "steps")),
        "phases": {
            name: number(value)
            for name, value in items(folder.summary, "time.measured.phases").items()
        },
    }
