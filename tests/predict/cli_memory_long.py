"""ctest: timeout=1800 labels=long
The estimate of memory beside the resident peak: of what a run can do, one configuration each, and
of many random ones. Of these a twentieth may be outside the bounds: what is trained changes the
load, and where a byte of text is a tenth of all tokens, a single choice that differs in a later
layer moves as much.
"""
import os

from _memory import check_random, compare
from _moesim import TEMPORARY, check, config, verdict

FORWARD = {
    "run.threads": 1,
    "run.steps": 2,
    "exchange.transport": "alltoallv",
    "cluster.devices": 4,
    "model.num_experts": 32,
    "model.hidden_size": 256,
    "model.moe_intermediate_size": 128,
    "data.tokens_per_device": 2048,
    "router.top_k": 4,
}
TRAIN = {
    **FORWARD,
    "run.mode": "train",
    "model.num_layers": 2,
    "model.hidden_size": 128,
    "data.tokens_per_device": 1024,
}
DENSE = {"model.num_layers": 4, "model.first_dense_layers": 2, "model.intermediate_size": 512}
ATTENTION = {"data.sequence_length": 256, "model.num_heads": 8}
NODES = {"exchange.mode": "two_level", "cluster.devices_per_node": 2}
REPLICAS = {"placement.redundant_experts": 16}
EPLB = {
    **FORWARD,
    **REPLICAS,
    "run.steps": 6,
    "placement.policy": "eplb",
    "placement.rebalance_every": 2,
    "placement.window": 2,
}
TEXT = {
    **TRAIN,
    "run.steps": 4,
    "data.source": "text",
    "data.path": os.path.join(TEMPORARY, "bytes.txt"),
    "train.context": 1,
}
LETTERS = {**TEXT, "data.path": os.path.join(TEMPORARY, "letters.txt"), "model.num_layers": 3}
FEATURES = {
    "dense": (2, {**FORWARD, **DENSE}),
    "dense, trained": (2, {**TRAIN, **DENSE}),
    "mha": (2, {**FORWARD, **ATTENTION, "model.attention": "mha"}),
    "mla, trained": (2, {**TRAIN, **ATTENTION, "model.attention": "mla"}),
    "selection": (2, {**FORWARD, "exchange.mode": "selection"}),
    "two_level": (4, {**FORWARD, **NODES}),
    "two_level, trained": (4, {**TRAIN, **NODES}),
    "replicas": (4, {**FORWARD, **REPLICAS}),
    "replicas, trained": (4, {**TRAIN, **REPLICAS}),
    "eplb": (4, EPLB),
    "eplb, two layers": (4, {**EPLB, "model.num_layers": 2}),
    "llep": (4, {**FORWARD, **REPLICAS, "placement.policy": "llep"}),
    "lplb": (4, {**FORWARD, **REPLICAS, "placement.policy": "lplb"}),
    "bf16": (2, {**FORWARD, "model.compute": "bf16"}),
    "bf16, trained": (2, {**TRAIN, "model.compute": "bf16"}),
    "fp8": (2, {**FORWARD, "exchange.payload": "fp8", "exchange.combine_payload": "bf16"}),
    "folded, trained": (
        2,
        {
            **TRAIN,
            "cluster.devices": 1024,
            "model.num_experts": 1024,
            "data.tokens_per_device": 4,
            "model.hidden_size": 16,
            "model.moe_intermediate_size": 16,
        },
    ),
    "validated": (2, {**TEXT, "train.validation_every": 2, "train.validation_batches": 2}),
    "letters": (2, LETTERS),
    "letters, at np 4": (4, LETTERS),
    "letters, forward": (
        2,
        {
            **FORWARD,
            **{k: LETTERS[k] for k in LETTERS if "data." in k},
            "run.mode": "forward",
            "model.num_layers": 3,
            "train.context": 1,
        },
    ),
    "saved": (2, {**TEXT, "train.checkpoint_every": 2, "train.save_final": "yes"}),
    "top_p": (
        2,
        {
            **FORWARD,
            "router.method": "top_p",
            "router.top_k": 16,
            "router.top_p": 0.6,
            "router.gate_scale": 2,
        },
    ),
    "written": (
        2,
        {
            **FORWARD,
            "output.timeline": "yes",
            "output.routing": "yes",
            "output.tensors": "yes",
        },
    ),
}


def check_features():
    with open(TEXT["data.path"], "wb") as file:
        file.write(bytes(i * i % 251 for i in range(60000)))
    with open(LETTERS["data.path"], "wb") as file:  # one in two is the same
        file.write(bytes(97 + (i * i % 7 if i % 2 else 0) for i in range(60000)))
    for name, (ranks, settings) in FEATURES.items():
        path = os.path.abspath(config("feature", settings))
        check(compare(".", ranks, path, name), f"{name}: the estimate is off, or was not made")


check_features()
check_random(range(1000, 1150), 0.05)
verdict()
