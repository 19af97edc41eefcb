"""Helper of the tests of libmoesim: the Python module of this build, imported; golden cases and
configurations as it takes them.
"""
import os
import sys

import _numpy  # noqa: F401 (first of all)
import numpy
from _moesim import SOURCE

BUILD = os.environ.get("MOESIM_BUILD_DIR") or os.path.join(SOURCE, "build")
os.environ["MOESIM_LIBRARY"] = os.path.join(BUILD, "library")
sys.path.insert(0, os.path.join(SOURCE, "python"))
import moesim  # noqa: E402, F401

FILES = {  # keys that name a file, and the arrays that take their place
    "data.path": "logits",
    "data.mask": "mask",
    "router.bias_file": "bias",
    "placement.file": "expert_at",
}
NOT_OF_A_LAYER = (
    "output.",
    "run.steps",
    "run.gemm",
    "run.mode",
    "data.source",
    "balance.aux_layers",
    "balance.begin_step",
    "balance.ramp_steps",
    "balance.global_batch",
    "model.residual",
    "model.norm",
)


def arguments(settings, double=False):
    """What moesim.route takes to do what the program does with these settings."""
    of = {k: v for k, v in settings.items() if not k.startswith(NOT_OF_A_LAYER) and k not in FILES}
    arrays = {FILES[k]: numpy.load(v) for k, v in settings.items() if k in FILES}
    if "logits" in arrays and double:
        arrays["logits"] = arrays["logits"].astype(numpy.float64)
    if "mask" in arrays:
        arrays["mask"] = arrays["mask"].reshape(-1)
    if "bias" in arrays:
        arrays["bias"] = arrays["bias"].astype(numpy.float64)
    return {"settings": of, **arrays}


def same_as_run(check, folder, summary, routing, what):
    """Compares a routing with what the program wrote: integers exactly, losses to 1e-12."""
    layer = summary["layers"][0]
    for name in (
        "counts_per_expert",
        "kept_per_expert",
        "counts_per_device",
        "distinct_tokens_per_device",
    ):
        check(list(routing[name]) == layer[name], what, name)
    reach = layer["tokens_by_reach"]
    own = routing.tokens_by_reach[:64].tolist()
    check(own[: len(reach)] == reach[:64][: len(own)], what, "tokens_by_reach", own, reach)
    volume = layer["volume"]["dispatch"]
    for i, level in enumerate(("same_device", "same_node", "across_nodes")):
        found = volume["by_level"][level]
        back = layer["volume"]["combine"]["by_level"][level]["bytes"]
        check(routing.combine_bytes_by_level[i] == back, what, level, "combine")
        check(
            (
                routing.rows_by_level[i],
                routing.dispatch_bytes_by_level[i],
                routing.metadata_bytes_by_level[i],
            )
            == (found["rows"], found["bytes"], found["metadata_bytes"]),
            what,
            level,
        )
    check("capacity" not in layer or routing.capacity[0] == layer["capacity"]["capacity"], what)
    losses = routing.losses
    for name, value in layer["loss_raw"].items():
        if name in losses and value is not None:
            near = abs(losses[name] - value) <= 1e-12 * max(1, abs(value))
            check(near, what, name, losses[name], value)
    predicted = summary["time"]["predicted"]
    for name, found in zip(
        ("attention", "dense", "gate", "dispatch", "expert", "combine"), routing.predicted_us
    ):
        value = predicted[f"{name}_us"]
        check(abs(found - value) <= 1e-9 * abs(value), what, f"predicted {name}", found, value)
    for name in ("topk_idx", "topk_weight", "kept"):
        path = os.path.join(folder, f"{name}.npy")
        if os.path.exists(path):
            check(
                numpy.array_equal(
                    numpy.load(path)[0], routing[name].astype(numpy.load(path).dtype)
                ),
                what,
                name,
            )
