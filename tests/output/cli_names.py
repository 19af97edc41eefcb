"""ctest: timeout=120
The names that the scripts read (scripts/names.py) are those that the program writes: the keys of
summary.json, metrics.jsonl and timeline.json, and the files of the folder.
"""
import json
import os
import sys

from _moesim import SOURCE, check, metrics, run, summary, verdict

sys.path.insert(0, os.path.join(SOURCE, "scripts"))
import names  # noqa: E402

SMALL = {
    "run.steps": 2,
    "model.num_layers": 2,
    "model.hidden_size": 16,
    "model.num_experts": 16,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "cluster.devices": 4,
    "data.tokens_per_device": 32,
    "data.sequence_length": 16,
    "exchange.chunks": 2,
    "output.timeline": "yes",
    "output.routing": "yes",
    "output.tensors": "yes",
}
FORWARD = {**SMALL, "capacity.policy": "expert", "capacity.overflow": "next_choice"}
TRAINING = {**SMALL, "run.mode": "train", "train.specialization": "yes"}


def same(what, found, expected):
    check(list(found) == list(expected), f"{what}: {list(found)} instead of {list(expected)}")


def check_figures(label, line, directions):
    """Of a step or of the summary."""
    same(f"{label}: losses", line["loss_raw"], names.LOSSES)
    same(f"{label}: loads", line["balance"], names.LOADS)
    same(f"{label}: metrics of balance", line["balance"]["node_sent"], names.IMBALANCE)
    same(f"{label}: directions", line["volume"], directions)
    same(f"{label}: levels", line["volume"]["dispatch"]["by_level"], names.LEVELS)


def check_spans(label, folder, missing):
    with open(os.path.join(folder, "timeline.json")) as file:
        found = {
            event["name"].rstrip("0123456789 ")
            for event in json.load(file)["traceEvents"]
            if event["ph"] == "X"
        }
    check(
        found == set(names.SPANS) - missing,
        f"{label}: spans {found ^ (set(names.SPANS) - missing)}",
    )


def check_files(label, folder, *others):
    files = set(os.listdir(folder))
    by_layer = {name.replace("_layer0", "").replace("_layer1", "") for name in files}
    check(set(names.ALWAYS) <= files, f"{label}: not there: {set(names.ALWAYS) - files}")
    check(by_layer <= set(names.FILES), f"{label}: not in the list: {by_layer - set(names.FILES)}")
    check(set(others) <= by_layer, f"{label}: not there: {set(others) - by_layer}")


def check_run(label, settings, trains, missing_spans, *others):
    folder = run(label, 2, settings, "--explain", "0", "--explain-step")
    if not folder:
        return
    directions = list(names.DIRECTIONS)[: 4 if trains else 2]
    for line in (summary(folder), *metrics(folder)):
        check_figures(label, line, directions)
    for layer in summary(folder)["layers"]:
        check_figures(f"{label}, a layer", layer, directions)
    same(
        f"{label}: phases",
        metrics(folder)[0]["time"]["phases"],
        names.PHASES if trains else names.PHASES[:-1],
    )
    check_spans(label, folder, missing_spans)
    check_files(
        label,
        folder,
        "timeline.json",
        "explain.json",
        "topk_idx.npy",
        "topk_weight.npy",
        "kept.npy",
        *others,
    )


of_training = set(names.SPANS[names.SPANS.index("head and loss") :]) | {"backward"}
check_run(
    "forward",
    FORWARD,
    False,
    of_training | {"attention", "dense"},
    "served_idx.npy",
    "y.npy",
    "logits.npy",
)
check_run(
    "train",
    {
        **TRAINING,
        "model.attention": "mha",
        "model.num_layers": 3,
        "model.first_dense_layers": 1,
        "train.accumulate": 2,
        "balance.scope": "global",
        "balance.global_batch": "step",
        "balance.alpha_expert": 0.01,
    },
    True,
    {"validation"},
    "specialization.json",
    "domain_load.npy",
)
verdict()
