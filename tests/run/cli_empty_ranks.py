"""ctest: timeout=120
Ranks without tokens, without rows or with nothing left of their tokens: one to three recorded
tokens on four ranks, padding that is dropped, experts nobody chose, training on one token of each
device. Every setting ends well and gives the same results as one rank; in the sanitizer's build no
call gets a null pointer that it may not have.
"""
import glob
import json
import math
import os
import random

from _moesim import TEMPORARY, check, metrics, run, same_bytes, save, summary, verdict

N, DEVICES, RANKS = 8, 8, 4
random.seed(5)
BASE = {
    "model.num_experts": N,
    "model.hidden_size": 4,
    "model.moe_intermediate_size": 3,
    "model.num_shared_experts": 1,
    "cluster.devices": DEVICES,
    "router.top_k": 2,
    "balance.alpha_expert": 0.1,
    "balance.alpha_device": 0.1,
    "balance.alpha_comm": 0.1,
    "data.tokens_per_device": 1,
    "output.routing": "yes",
}
TENSORS = {"output.tensors": "yes"}


def logits_of(tokens, layers=1):
    numbers = [random.gauss(0, 1) for _ in range(layers * tokens * N)]
    path = save(f"logits-{tokens}-{layers}.npy", "<f4", (layers * tokens, N), numbers)
    return {"data.source": "logits", "data.path": path, "model.num_layers": layers, **TENSORS}


def routing_of(tokens):
    chosen = [e for _ in range(tokens) for e in random.sample(range(N), 2)]
    return {
        "data.source": "routing",
        "data.path": save(f"routing-{tokens}.npy", "<i4", (tokens, 2), chosen),
        "data.weights": save(f"weights-{tokens}.npy", "<f4", (tokens, 2), [0.5] * (tokens * 2)),
        "data.scores": save(f"scores-{tokens}.npy", "<f4", (tokens, N), [1 / N] * (tokens * N)),
    }


def masked(tokens, kept, padding="dropped"):
    mask = [int(t in kept) for t in range(tokens)]
    path = save(f"mask-{tokens}-{len(kept)}.npy", "|u1", (tokens,), mask)
    return {**logits_of(tokens), "data.mask": path, "data.padding": padding}


def capacity(policy, **more):
    settings = {"policy": policy, "capacity_factor": 0.5, **more}
    return {f"capacity.{key}": value for key, value in settings.items()}


def layer_of(tokens):
    """A layer from files, with an upstream gradient."""
    folder = os.path.join(TEMPORARY, f"layer-{tokens}")
    os.makedirs(folder)
    h, f = BASE["model.hidden_size"], BASE["model.moe_intermediate_size"]
    shapes = {"x": (tokens, h), "dy": (tokens, h), "wgate": (N, h)}
    shapes.update({"w1": (N, f, h), "w2": (N, h, f), "w3": (N, f, h)})
    shapes.update({"sw1": (f, h), "sw2": (h, f), "sw3": (f, h)})
    for name, shape in shapes.items():
        numbers = [random.gauss(0, 1) for _ in range(math.prod(shape))]
        save(os.path.join(folder, f"{name}.npy"), "<f4", shape, numbers)
    return {"model.load": folder, **TENSORS}


TRAIN = {
    "run.mode": "train",
    "run.steps": 2,
    "router.top_k": 1,
    "router.expert_dropout": 0.8,
    "router.bias_update_rate": 0.1,
    "train.validation_every": 1,
    "train.checkpoint_every": 1,
    "train.accumulate": 2,
}
CASES = {
    "one": logits_of(1),
    "layers": {**logits_of(3, 3), "exchange.mode": "selection"},
    "device": {**logits_of(2), **capacity("device", exempt_sequences=0.5)},
    "expert": {**logits_of(3), **capacity("expert", overflow="next_choice", first_choices="yes")},
    "sequence": {**logits_of(3), **capacity("sequence"), "data.sequence_length": 2},
    "scope": {**logits_of(2), **capacity("expert", capacity_scope="device")},
    "recorded": {**routing_of(3), **capacity("expert", drop="batch_priority")},
    "padding": masked(16, (0, 1)),
    "padding-last": {**masked(16, (15,)), **capacity("device")},
    "padding-few": {**masked(3, (0, 2)), **capacity("sequence"), "data.sequence_length": 2},
    "padding-counted": masked(2, (1,), "counted"),
    "padding-recorded": {**masked(3, (0, 1)), **routing_of(3)},
    "top_p": {**logits_of(1), "router.method": "top_p"},
    "expert_choice": {**logits_of(3), "router.method": "expert_choice"},
    "sinkhorn": {**logits_of(2), "router.method": "sinkhorn"},
    "forward": {**TENSORS, "router.top_k": 1, "router.gate_scale": 9, "data.num_topics": 1},
    "load-one": layer_of(1),
    "load": {**layer_of(3), **capacity("device"), "exchange.mode": "selection"},
    "train": {**TRAIN},
    "train-layers": {
        **TRAIN,
        **capacity("expert", drop="scores"),
        "model.num_layers": 2,
        "train.recompute": "yes",
        "train.specialization": "yes",
        "exchange.mode": "selection",
    },
    "train-lora": {**TRAIN, "model.expert_type": "lora", "model.lora_rank": 2},
}


def without_time(value):
    """What does not depend on ranks and clocks."""
    left_out = ("time", "config", "machine", "ranks", "predicted", "rank_placement", "placement")
    return json.dumps({key: item for key, item in value.items() if key not in left_out})


def same(name, one, many):
    """Figures and arrays. What a rank gives to MPI for itself and for others differs by ranks."""
    first, second = ([json.loads(without_time(line)) for line in metrics(f)] for f in (one, many))
    check(len(first) == len(second) > 0, f"{name}: steps")
    for a, b in zip(first, second):
        check(a["loss_raw"] == b["loss_raw"], f"{name}: losses differ")
        check(a["balance"] == b["balance"], f"{name}: balance differs")
        check(a.get("task_loss") == b.get("task_loss"), f"{name}: the task's loss differs")
    for path in glob.glob(os.path.join(one, "*.npy")):
        other = os.path.join(many, os.path.basename(path))
        check(same_bytes(path, other), f"{name}: {os.path.basename(path)} differs")


def main():
    for name, settings in CASES.items():
        explain = [] if name.startswith("train") else ["--explain", "0", "--explain-step"]
        one = run(f"{name}-1", 1, {**BASE, **settings})
        many = run(f"{name}-{RANKS}", RANKS, {**BASE, **settings}, *explain)
        if one and many:
            same(name, one, many)
            checks = summary(many)["checks"]
            check(all(ok is not False for ok in checks.values()), f"{name}: {checks}")


main()
verdict()
