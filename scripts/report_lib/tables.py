"""The page's tables and key figures, as text: one function for each, all of one run. The comparison
puts them side by side.
"""
from names import DIRECTIONS, IMBALANCE, LOADS
from run_lib.units import LAST_STEPS
from run_lib.record import at, items, number, objects, whole
from texts import NONE, bytes_text, count_text, loss_name, real_text, seconds_text
from texts import share_text, value_text

# How a metric is called in a table, and its formula with the signs of mathematics.
FORMULAS = {
    "max_over_mean": ("max / mean", "largest over mean"),
    "maxvio": ("MaxVio", "max / mean − 1"),
    "balancedness": ("balancedness", "mean / max"),
    "cv": ("CV", "standard deviation / mean"),
    "gini": ("Gini", "Σ (2i − n − 1) x₍ᵢ₎ / (n Σ x)"),
    "entropy": ("entropy (nats)", "−Σ p ln p, p = x / Σ x"),
    "idle": ("idle", "entries that are 0"),
    "p50": ("p50", "median"),
    "p90": ("p90", "90th percentile"),
    "p99": ("p99", "99th percentile"),
}

PASSES = ("prefill", "decode")  # of a run that generates

# --- key figures ---


def mean(values):
    return sum(values) / len(values) if values and None not in values else None


def last_steps(folder):
    """The steps whose mean stands for a run: the last LAST_STEPS of a training, as in the lessons and
    in sweep.csv, because one step of it says little; the last step of any other run.
    """
    return folder.metrics[-(LAST_STEPS if folder.get("run", "mode") == "train" else 1) :]


def said_of(folder):
    """Of which steps the figures of `over_last_steps` are."""
    count = len(last_steps(folder))
    return f"mean of the last {count} steps" if count > 1 else "last step"


def over_last_steps(folder, path):
    """A figure of metrics.jsonl as the mean of `last_steps`; of the last step where the steps are
    not known.
    """
    values = [number(at(line, path)) for line in last_steps(folder)]
    known = [value for value in values if value is not None]
    return mean(known) if known else number(at(folder.last, path))


def saving(folder):
    """Share of the payload that one row per selection would have sent and this run did not; None on
    one device, where nothing is sent.
    """
    if folder.devices == 1:
        return None
    sent, all_rows = (
        over_last_steps(folder, f"volume.dispatch.{name}")
        for name in ("logical_bytes", "selection_bytes")
    )
    return 1 - sent / all_rows if sent is not None and all_rows else None


def counted_bytes(folder, direction):
    """Bytes a token of a real system's rows, where the run asks to count them."""
    protocol = folder.get("exchange", "row_protocol") or "bare"
    asked = protocol != "bare" or folder.get("cluster", "model_hidden_size")
    return number(at(folder.last, f"counted.{direction}_bytes_per_token")) if asked else None


def step_seconds(folder):
    measured = number(at(folder.summary, "time.measured.step_mean"))
    return (
        measured
        if measured is not None
        else mean([number(at(line, "time.step")) for line in folder.metrics])
    )


def prediction_text(folder):
    """How long the last step would take on the cluster of [cluster]; "" where it is not said."""
    step, balanced = (
        number(at(folder.summary, f"time.{kind}.step_us")) for kind in ("predicted", "balanced")
    )
    if step is None or balanced is None:
        return ""
    file = str(folder.get("cluster", "file", "")).rsplit("/", 1)[-1] or "the cluster in [cluster]"
    why = at(folder.summary, "time.bottleneck")
    simulated = number(at(folder.summary, "time.simulated.step_us"))
    contended = f", {seconds_text(1e-6 * simulated)} with contention" if simulated else ""
    return (
        f"{seconds_text(1e-6 * step)} a step on {folder.devices} devices of {file}, "
        f"{seconds_text(1e-6 * balanced)} at perfect balance{contended}"
        + (f"; {why}" if why else "")
    )


def last_validation(folder):
    made = [number(line.get("validation_loss")) for line in folder.metrics]
    return next((value for value in reversed(made) if value is not None), None)


def dropped_share(folder):
    chosen, dropped = (
        sum(number(layer.get(name)) or 0 for layer in folder.layers)
        for name in ("selections", "dropped")
    )
    return dropped / chosen if chosen else None


def task_unit(folder):
    """Unit of the task's loss: of the text task cross-entropy in nats, else the mean squared error
    of the regression; empty without training.
    """
    if folder.get("run", "mode") != "train":
        return ""
    return "nats" if folder.get("data", "source") == "text" else "mean squared error"


def of_nodes(folder, name):
    """The mean over layers of a figure about nodes; None where there is one node only."""
    if whole(folder.get("cluster", "devices_per_node")) in (0, folder.devices):
        return None
    return mean([number(layer.get(name)) for layer in folder.layers])


def all_figures(folder):
    """[(name, unit or explanation, value or None, text of a value)], the same rows for every run:
    of a training the means over its last steps, of other runs the last step.
    """
    when, unit = said_of(folder), task_unit(folder)

    def over(name, explanation, path, text):
        return name, f"{explanation}, {when}", over_last_steps(folder, path), text

    return [
        ("tokens", "in a step", number(folder.last.get("num_tokens")), count_text),
        over("task loss", unit, "task_loss", real_text),
        ("bits per byte", when, over_last_steps(folder, "bits_per_byte"), real_text),
        ("validation loss", f"latest, {unit}", last_validation(folder), real_text),
        (
            "balance losses",
            f"Σ α × raw, {when}",
            over_last_steps(folder, "loss.total") or None,
            real_text,
        ),
        over("expert loss", "raw", "loss_raw.expert", real_text),
        over("device loss", "raw", "loss_raw.device", real_text),
        over("communication loss", "raw", "loss_raw.comm", real_text),
        (
            "devices per token",
            "mean over the tokens of the last step",
            mean([number(layer.get("mean_devices_per_token")) for layer in folder.layers]),
            real_text,
        ),
        (
            "nodes per token",
            "mean over the tokens of the last step",
            of_nodes(folder, "mean_nodes_per_token"),
            real_text,
        ),
        (
            "other nodes per token",
            "without its own: rows across nodes, if there were one per token and node",
            of_nodes(folder, "mean_remote_nodes_per_token"),
            real_text,
        ),
        over(
            "dispatch payload",
            "a step, local rows included",
            "volume.dispatch.logical_bytes",
            bytes_text,
        ),
        over(
            "to other devices",
            "dispatch payload, a step",
            "volume.dispatch.remote_bytes",
            bytes_text,
        ),
        ("saved", f"against one row per selection, {when}", saving(folder), share_text),
        (
            "payload error",
            "of y, against fp32, last step",
            number(at(folder.last, "payload_error.y")),
            share_text,
        ),
        (
            "compute error",
            "of y, against fp32, last step",
            number(at(folder.last, "compute_error.y")),
            share_text,
        ),
        (
            "counted out",
            f"a token, {at(folder.last, 'counted.row_protocol')}",
            counted_bytes(folder, "dispatch"),
            bytes_text,
        ),
        (
            "counted back",
            f"a token, {at(folder.last, 'counted.row_protocol')}",
            counted_bytes(folder, "combine"),
            bytes_text,
        ),
        over("expert load", "max / mean", "balance.expert.max_over_mean", real_text),
        over("device load", "max / mean", "balance.device.max_over_mean", real_text),
        over("received rows", "max / mean", "balance.received.max_over_mean", real_text),
        (
            "dropped",
            "of the selections, last step",
            dropped_share(folder) if has_capacity(folder) else None,
            share_text,
        ),
        ("time", "of a step, mean, slowest rank", step_seconds(folder), seconds_text),
    ]


def figures(folder):
    return [row for row in all_figures(folder) if row[2] is not None]


def limited_units(folder):
    """What a group limit counts: devices, where each group is what one device holds, else groups."""
    blocks = folder.get("placement", "policy", "block") == "block"
    spare = folder.get("placement", "redundant_experts", "0") not in ("0", 0)
    same = folder.get("router", "num_groups") == folder.get("cluster", "devices")
    return "devices" if same and blocks and not spare else "groups"


def router_text(folder):
    limit, preset = folder.get("router", "group_limit", "none"), folder.get("router", "preset")
    method = folder.get("router", "method", "topk")
    recorded = folder.get("data", "source") == "routing"
    score = "as recorded" if recorded else folder.get("router", "score_func", "?")
    text = f"{score}, K = {folder.get('router', 'top_k', '?')}, "
    if recorded and limit == "none":
        return text[:-2] + (f", preset {preset}" if preset else "")
    if method == "top_p":
        text = f"method top_p = {folder.get('router', 'top_p', '?')}, {text}"
    elif method != "topk":
        text = f"method {method}, {text}"
    text += (
        "no device limit"
        if limit == "none"
        else (
            f"{'which has to keep to the limit of ' if recorded else ''}at most"
            f" {folder.get('router', 'topk_group', '?')} of"
            f" {folder.get('router', 'num_groups', '?')} {limited_units(folder)} ({limit})"
        )
    )
    return text + (f", preset {preset}" if preset else "")


def over_mean(layer, name):
    """The largest of a layer's counts over their mean; None where they are not all numbers."""
    counts = [number(count) for count in layer.get(name) or [None]]
    return None if None in counts or not sum(counts) else max(counts) * len(counts) / sum(counts)


def worst_layer(folder):
    """Which layer's devices are the most uneven, in a sentence; "" where there is one layer."""
    devices = [over_mean(layer, "counts_per_device") for layer in folder.layers]
    experts = [over_mean(layer, "counts_per_expert") for layer in folder.layers]
    if len(devices) < 2 or None in devices + experts:
        return ""
    worst, uneven = max(range(len(devices)), key=devices.__getitem__), max(experts)
    return (
        f"The worst layer is {worst}: its busiest device has {real_text(devices[worst], 3)} times"
        f" the mean of selections (mean over layers {real_text(mean(devices), 3)}). The busiest"
        f" expert is in layer {experts.index(uneven)}, with {real_text(uneven, 3)} times."
    )


def attention_text(folder):
    """What stands in front of the MoE layers, and what a decoder would remember of a token."""
    kind, cache = folder.get("model", "attention", "none"), (folder.summary or {}).get("kv_cache")
    if kind == "none" or not cache:
        return ""
    own = count_text(number(cache.get("elements_per_token")))
    size = bytes_text(number(cache.get("bf16_bytes_per_token")))
    others = ", ".join(
        f"{name} {count_text(number(elements))}"
        for name, elements in (cache.get("elements_by_kind") or {}).items()
        if name != cache.get("kind")
    )
    return (
        f"{kind}, {folder.get('model', 'num_heads', '?')} heads; KV cache of a token:"
        f" {own} elements ({cache.get('kind')}), {size} in bf16; beside it {others}"
    )


def dense_text(folder):
    """The layers in front of the MoE layers."""
    layers = whole(folder.get("model", "first_dense_layers"))
    width = folder.get("model", "intermediate_size", "?")
    return f"{layers} dense layer{'s' if layers != 1 else ''} of width {width}, then " * (
        layers > 0
    )


def generation_text(folder):
    """A decode step beside prefill, of a run that generates."""
    found = (folder.summary or {}).get("generate")
    if not found:
        return ""

    def both(path, text):
        return " and ".join(text(number(at(found, f"{name}.{path}"))) for name in PASSES)

    def figure(value):
        return "-" if value is None else real_text(value, 2)

    def size(value):
        return "-" if value is None else bytes_text(value)

    return (
        f"{count_text(number(found.get('new_bytes')))} bytes of each of"
        f" {count_text(number(found.get('sequences')))} sequences; prefill and a decode step:"
        f" {both('tokens_per_device', figure)} tokens of a device,"
        f" {both('active_experts', figure)} experts with a token,"
        f" {both('rows_per_expert', figure)} rows of such an expert,"
        f" {both('rows_per_token', figure)} rows sent for a token and layer,"
        f" {both('bytes_by_level.same_node', size)} inside nodes and"
        f" {both('bytes_by_level.across_nodes', size)} across; an exchange on [cluster]:"
        f" {both('exchange.latency_us', figure)} µs latency,"
        f" {both('exchange.transfer_us', figure)} µs transfer"
    )


def facts(folder):
    """What ran, on what: [(name, text)]."""
    get, summary = folder.get, folder.summary or {}
    experts = f"{folder.num_experts} routed"
    if whole(get("model", "num_shared_experts")):
        experts += f" + {get('model', 'num_shared_experts')} shared"
    per_node = whole(get("cluster", "devices_per_node")) or folder.devices
    hosts = [
        f"{host.get('name')} ({host.get('processor')}, {host.get('cores')} cores,"
        f" {bytes_text(number(host.get('memory_bytes')))})"
        for host in objects(summary, "machine.hosts")
    ]
    ranks = summary.get("ranks")
    rows = [
        (
            "run",
            (
                f"{at(summary, 'config.name', folder.name)}, mode {get('run', 'mode', '?')}, seed"
                f" {get('run', 'seed', '?')}"
            ),
        ),
        ("steps", f"{len(folder.metrics) or summary.get('steps')} of {get('run', 'steps', '?')}"),
        (
            "model",
            (
                f"{dense_text(folder)}{folder.num_layers} MoE"
                f" layer{'s' if folder.num_layers != 1 else ''}, hidden size"
                f" {get('model', 'hidden_size', '?')}, experts: {experts},"
                f" {get('model', 'expert_type', '?')}, width"
                f" {get('model', 'moe_intermediate_size', '?')}"
            ),
        ),
        ("attention", attention_text(folder)),
        ("generated", generation_text(folder)),
        ("router", router_text(folder)),
        (
            "devices",
            f"{folder.devices}, {per_node} on each node"
            + (f", on {ranks} rank{'s' if ranks != 1 else ''}" if ranks else ""),
        ),
        (
            "exchange",
            (
                f"mode {get('exchange', 'mode', '?')}, payload {get('exchange', 'payload', '?')}, "
                f"back {get('exchange', 'combine_payload', '?')}"
            ),
        ),
        (
            "data",
            (
                f"{get('data', 'source', '?')},"
                f" {count_text(number(folder.last.get('num_tokens')))} tokens a step"
            ),
        ),
        ("machine", "; ".join(hosts)),
        ("moesim", str(summary.get("version", "")) and f"version {summary.get('version')}"),
        (
            "time",
            (
                f"{seconds_text(number(at(summary, 'time.total')))} in all"
                if at(summary, "time.total") is not None
                else ""
            ),
        ),
        ("predicted", prediction_text(folder)),
    ]
    return [(name, text) for name, text in rows if text]


# --- tables ---


def layer_mean(folder, path):
    return mean([number(at(layer, path)) for layer in folder.layers])


def losses(folder):
    """[(loss, raw, at balance, ratio, alpha x raw)] of the last step, mean over layers; without
    those that are not defined (undefined_losses).
    """
    rows = []
    for name, raw in items(folder.last, "loss_raw").items():
        of_all = number(at(folder.summary, f"loss_ideal.{name}"))  # of a loss over all layers
        raw, ideal = (
            number(raw),
            layer_mean(folder, f"loss_ideal.{name}") if of_all is None else of_all,
        )
        if raw is None:
            continue
        over = raw / ideal if ideal else None
        trained = number(at(folder.last, f"loss.{name}"))
        rows.append(
            (
                loss_name(name),
                real_text(raw),
                real_text(ideal),
                real_text(over, 4),
                real_text(trained),
            )
        )
    return rows


def undefined_losses(folder):
    """Names of the losses that a recording without scores or logits does not define."""
    raw = items(folder.last, "loss_raw")
    return [loss_name(name) for name, value in raw.items() if number(value) is None]


def trains_balance(series):
    """Whether any loss was multiplied by more than 0."""
    return any(series.get("loss.total") or [])


def other_losses(series):
    """[(name, text)] of the losses over steps that are none of DeepSeek's three."""
    names = [path.split(".", 1)[1] for path in series if path.startswith("loss_raw.")]
    return [(name, loss_name(name)) for name in names if name not in ("expert", "device", "comm")]


def scopes(folder):
    """(names of losses, [(scope, values..., trains)]), mean over layers."""
    names = list(items(folder.layers[0], "loss_by_scope.global")) if folder.layers else []
    rows = [
        (
            scope,
            [real_text(layer_mean(folder, f"loss_by_scope.{scope}.{name}")) for name in names],
            scope == folder.get("balance", "scope"),
        )
        for scope in ("sequence", "device", "global")
    ]
    shown = any(value != NONE for _, values, _ in rows for value in values)
    return [loss_name(name) for name in names], rows if shown else []


def balance(folder):
    """(metrics with formulas, [(load, values)]) of the last step, mean over layers."""
    one_node = whole(folder.get("cluster", "devices_per_node")) in (0, folder.devices)
    rows = [
        (LOADS.get(load, load), [real_text(number(values.get(name)), 4) for name in IMBALANCE])
        for load, values in items(folder.last, "balance").items()
        if isinstance(values, dict) and not (one_node and load.startswith("node"))
    ]
    return [FORMULAS[name] for name in IMBALANCE], rows


def specialization(folder):
    """(layer, mutual information, score, by chance) of each layer."""
    layers = objects(folder.specialization, "layers")
    return [
        (
            str(index),
            *(
                real_text(number(layer.get(name)), 4)
                for name in ("mutual_information", "score", "chance")
            ),
        )
        for index, layer in enumerate(layers)
    ]


def direction_name(key):
    backward = " (backward)" if key.endswith("_backward") else ""
    return DIRECTIONS.get(key, key) + backward


def volumes(folder):
    """[(direction, rows, payload, to other devices, metadata)] of the last step."""
    rows = []
    for name, volume in items(folder.last, "volume").items():
        values = [
            number(at(volume, key))
            for key in ("rows", "logical_bytes", "remote_bytes", "metadata_bytes")
        ]
        rows.append((direction_name(name), count_text(values[0]), *map(bytes_text, values[1:])))
    return rows


def hops(folder):
    """[(direction, level, rows of each hop and of the other modes, payload likewise)] of the last
    step of a run in mode two_level; [] of another one.
    """
    rows = []
    for name in ("dispatch", "combine"):
        for level, traffic in items(folder.last, f"volume.{name}.by_level").items():
            counts = [
                number(at(traffic, key))
                for key in ("to_node.rows", "in_node.rows", "token_rows", "selection_rows")
            ]
            bytes_ = [
                number(at(traffic, key))
                for key in ("to_node.bytes", "in_node.bytes", "token_bytes", "selection_bytes")
            ]
            if None not in counts + bytes_:
                texts = [f"{count_text(n)} ({bytes_text(b)})" for n, b in zip(counts, bytes_)]
                rows.append((direction_name(name), level.replace("_", " "), *texts))
    return rows


def checks(folder):
    """[(name, state, detail)]: passed, FAILED or not made."""
    details = items(folder.summary, "check_details")
    return [
        (
            name,
            "passed" if passed is True else "FAILED" if passed is False else "not made",
            details.get(name) if isinstance(details.get(name), str) else "",
        )
        for name, passed in items(folder.summary, "checks").items()
    ]


def has_capacity(folder):
    limited = folder.get("capacity", "policy", "none") != "none" or any(
        "capacity" in layer for layer in folder.layers
    )
    return limited or any(number(layer.get("dropped")) for layer in folder.layers)


SAID = (
    "policy",
    "scope",
    "drop",
    "overflow",
    "dropped",
)  # of a capacity object: stand above its table, or in it anyway


def capacity(folder):
    """(columns, [values by layer]): dropped pairs, and the figures of each layer's `capacity`
    object that are not 0 everywhere.
    """
    if not has_capacity(folder) or not folder.layers:
        return [], []
    found = [items(layer, "capacity") for layer in folder.layers]
    keys = {
        key: None
        for one in found
        for key, value in one.items()
        if value and not isinstance(value, (list, dict)) and key not in SAID
    }
    rows = []
    for index, (layer, one) in enumerate(zip(folder.layers, found)):
        chosen, dropped = number(layer.get("selections")), number(layer.get("dropped"))
        share = dropped / chosen if chosen and dropped is not None else None
        rows.append(
            [
                str(index),
                count_text(chosen),
                count_text(dropped),
                share_text(share),
                *[capacity_text(key, one.get(key)) for key in keys],
            ]
        )
    return [
        "layer",
        "selections",
        "dropped",
        "share",
        *(key.replace("_", " ") for key in keys),
    ], rows


def capacity_rules(folder):
    """The rules by which pairs were dropped, as a sentence."""
    scope = {"global": "batch", "device": "device"}.get(
        folder.get("capacity", "capacity_scope", ""), "?"
    )
    rules = {
        name: str(folder.get("capacity", name, "?"))
        for name in ("policy", "capacity_factor", "overflow", "drop")
    }
    return (
        f"Policy {rules['policy']}, capacity factor {rules['capacity_factor']},"
        f" overflow: {rules['overflow'].replace('_', ' ')}, dropped by {rules['drop']},"
        f" budgets per {scope}."
    )


def capacity_text(key, value):
    if number(value) is None:
        return value_text(value)
    return (
        bytes_text(value)
        if "bytes" in key
        else count_text(value)
        if isinstance(value, int)
        else real_text(value)
    )


def config(folder):
    """[(section, [(key, text)])]."""
    return [
        (section, [(key, value_text(value)) for key, value in keys.items()])
        for section, keys in folder.config.items()
    ]


def ranks(folder):
    """[(rank, host, devices, threads, package, numa, core)]."""
    keys = ("rank", "host", "devices", "threads", "package", "numa", "core")
    return [
        [value_text(rank.get(key)) for key in keys]
        for rank in objects(folder.summary, "machine.ranks")
    ]


# --- several runs ---


def compared_figures(folders):
    """[(name, unit, [text], [difference to the first])] of the figures that any of the runs has."""
    rows = []
    for same in zip(*map(all_figures, folders)):
        (name, _, base, text), values = same[0], [row[2] for row in same]
        if any(value is not None for value in values):
            unit = " or ".join(dict.fromkeys(row[1] for row in same if row[2] is not None))
            rows.append(
                (
                    name,
                    unit,
                    [text(value) for value in values],
                    [difference(value, base, text) for value in values[1:]],
                )
            )
    return rows


def difference(value, base, text):
    """ "+1.5 KiB (+20.0 %)"."""
    if value is None or base is None:
        return NONE
    if value == base:
        return "="
    sign = "+" if value > base else ""
    part = (
        f" ({sign}{share_text((value - base) / abs(base))})"
        if base and text is not share_text
        else ""
    )
    amount = (
        text(value - base).replace(" %", " points") if text is share_text else text(value - base)
    )
    return f"{sign}{amount}{part}"


def compared_config(folders):
    """[(section.key, [text])] of the keys that are not the same in all runs."""
    flat = [
        {f"{section}.{key}": text for section, keys in config(folder) for key, text in keys}
        for folder in folders
    ]
    names = {name: None for run in flat for name in run}
    rows = [(name, [run.get(name, NONE) for run in flat]) for name in names]
    return [row for row in rows if len(set(row[1])) > 1]
