"""ctest: timeout=180
The same devices on 1, 2, 4 and 8 ranks, with 1 and 2 threads, in modes token and selection: the
same report and the same bytes; and with narrow payloads, forward and in training, where their error
is measured.
"""
import os

from _moesim import check, metrics, run, same_bytes, summary, verdict

BASE = {
    "run.steps": 2,
    "model.num_layers": 2,
    "model.hidden_size": 24,
    "model.num_experts": 32,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 12,
    "model.expert_type": "swiglu",
    "router.top_k": 5,
    "router.group_limit": "max",
    "router.topk_group": 3,
    "balance.alpha_expert": 0.003,
    "balance.alpha_device": 0.05,
    "balance.alpha_comm": 0.02,
    "balance.z_loss": 0.001,
    "cluster.devices": 8,
    "cluster.devices_per_node": 4,
    "data.tokens_per_device": 21,
    "data.sequence_length": 40,
    "output.routing": "yes",
    "output.tensors": "yes",
}
# What may differ: where and how fast it ran. In another mode also: rows, and what counts rows.
RUN_KEYS = {"time", "machine", "ranks"}
MODE_KEYS = {
    "volume",
    "check_details",
    "checks",
    "sent_rows",
    "received_rows",
    "received",
    "sent",
    "node_received",
    "node_sent",
    "counted",
}


def without(value, keys):
    if isinstance(value, dict):
        return {k: without(v, keys) for k, v in value.items() if k not in keys}
    return [without(v, keys) for v in value] if isinstance(value, list) else value


def report(folder, keys):
    whole = without(summary(folder), keys)
    whole["config"]["run"].pop("threads")
    whole["config"]["exchange"].pop("mode")
    whole["config"].pop("name")
    return whole


def differences(a, b, path=""):
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            d
            for k in sorted(a.keys() | b.keys())
            for d in differences(a.get(k), b.get(k), f"{path}.{k}")
        ]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {a} and {b}"]


def compare(first, second, keys, label):
    different = differences(report(first, keys), report(second, keys))
    check(not different, f"{label}: summary.json differs:", *different[:5])
    different = differences(without(metrics(first), keys), without(metrics(second), keys))
    check(not different, f"{label}: metrics.jsonl differs:", *different[:5])
    arrays = sorted(name for name in os.listdir(first) if name.endswith(".npy"))
    check(
        arrays == sorted(name for name in os.listdir(second) if name.endswith(".npy")),
        f"{label}: other .npy files",
    )
    for name in arrays:
        if name.startswith("comm_matrix") and "volume" in keys:
            continue
        check(same_bytes(f"{first}/{name}", f"{second}/{name}"), f"{label}: {name} differs")
    return arrays


reference = {}
for mode in ("token", "selection"):
    for ranks in (8, 4, 2, 1):
        for threads in (1, 2):
            label = f"{mode}-np{ranks}-threads{threads}"
            folder = run(label, ranks, {**BASE, "exchange.mode": mode, "run.threads": threads})
            if not folder:
                continue
            first = reference.setdefault(mode, folder)
            arrays = compare(first, folder, RUN_KEYS, f"{os.path.basename(first)} and {label}")
            written = {
                "topk_idx.npy",
                "topk_weight.npy",
                "comm_matrix.npy",
                "comm_matrix_steps.npy",
                "expert_load.npy",
            }
            check(
                written <= set(arrays) and any(a.startswith("y") for a in arrays),
                f"{label}: only {arrays} were written",
            )
            check(
                all(passed is not False for passed in summary(folder)["checks"].values()),
                f"{label}: a self-check failed",
            )
if len(reference) == 2:
    compare(reference["token"], reference["selection"], RUN_KEYS | MODE_KEYS, "token and selection")
    token, selection = (summary(reference[m])["volume"]["dispatch"] for m in ("token", "selection"))
    check(
        token["selection_bytes"] == selection["logical_bytes"] == selection["selection_bytes"],
        "bytes that mode selection would have sent",
    )
    check(token["rows"] < selection["rows"], "mode token saves no row")

NARROW = {
    **BASE,
    "model.hidden_size": 136,
    "exchange.payload": "fp8",
    "exchange.combine_payload": "bf16",
    "output.routing": "no",
    "run.threads": 1,
}
BYTES = {"dispatch": 136 + 8, "combine": 2 * 136}  # two groups of fp8 values, two fp32 scales
for way in ("forward", "train"):
    first = None
    tensors = "yes" if way == "forward" else "no"
    for ranks in (8, 4, 2, 1):
        sets = {**NARROW, "run.mode": way, "output.tensors": tensors}
        folder = run(f"narrow-{way}-np{ranks}", ranks, sets)
        if not folder:
            continue
        first = first or folder
        compare(first, folder, RUN_KEYS, f"narrow payloads, {way}, np {ranks}")
    told = summary(first)
    for direction, size in BYTES.items():
        volume = told["volume"][direction]
        check(volume["logical_bytes"] == size * volume["rows"], f"bytes of {direction}")
    error = told["payload_error"]
    check(0.005 < error["y"] < 0.06, f"error of y in fp8: {error['y']}")
    if way == "train":
        check(0.001 < error["gradient"] < 0.2, f"error of the gradient: {error['gradient']}")
        check(error["loss"] != 0 and abs(error["loss"]) < 0.05, f"of the loss: {error['loss']}")
    else:
        check(error["gradient"] is None and error["loss"] is None, "gradients of a forward run")
verdict()
