"""ctest: timeout=120
model.compute = bf16: the same bits on any ranks and threads, an error that is measured in the same
run, and a refusal or a warning where it cannot be had or does nothing.
"""
import os

from _moesim import check, config, moesim, run, same_bytes, summary, verdict

SETS = {
    "run.steps": 1,
    "model.num_layers": 1,
    "model.hidden_size": 40,
    "model.num_experts": 16,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 24,
    "model.compute": "bf16",
    "router.top_k": 3,
    "cluster.devices": 4,
    "data.tokens_per_device": 33,
    "output.tensors": "yes",
    "run.gemm": "reference",
}


def told(name, ranks, sets):
    """How a run ends that writes nothing."""
    sets = {**SETS, "output.tensors": "no", **sets}
    return moesim(ranks, config(name, sets))


def errors(name, sets):
    """What the run reports; the same on 1 and 4 ranks with other threads."""
    folders = [
        run(f"{name}-np{ranks}", ranks, {**SETS, **sets, "run.threads": threads})
        for ranks, threads in ((4, 1), (1, 2))
    ]
    if not all(folders):
        return None
    four, one = map(summary, folders)
    check("payload_error" not in four, f"{name}: two errors are reported")
    check(four["compute_error"] == one["compute_error"], f"{name}: errors of np 4 and 1")
    check(four["loss"] == one["loss"], f"{name}: losses of np 4 and 1")
    for array in (a for a in os.listdir(folders[0]) if a.startswith("y") and a.endswith(".npy")):
        check(same_bytes(*(f"{folder}/{array}" for folder in folders)), f"{name}: {array} differs")
    return four["compute_error"]


# 2^-8 bounds the rounding of a number; a product of rounded ones stays near that.
FORWARD = errors("forward", {})
if FORWARD:
    check(0.0005 < FORWARD["y"] < 0.02, f"error of y: {FORWARD['y']}")
    check(FORWARD["loss"] is None and FORWARD["gradient"] is None, "gradients of a forward run")
TRAIN = errors("train", {"run.mode": "train", "output.tensors": "no"})
if TRAIN:
    check(0.0005 < TRAIN["y"] < 0.02, f"error of y in training: {TRAIN['y']}")
    check(0.0005 < TRAIN["gradient"] < 0.1, f"error of the gradient: {TRAIN['gradient']}")
    check(TRAIN["loss"] != 0 and abs(TRAIN["loss"]) < 0.01, f"of the loss: {TRAIN['loss']}")
BOTH = errors("both", {"exchange.payload": "fp8"})
if BOTH and FORWARD:
    check(BOTH["y"] > 2 * FORWARD["y"], f"fp8 payloads add nothing: {BOTH['y']}")
WHOLE = run("whole", 2, {**SETS, "model.compute": "fp32"})
if WHOLE:
    check("compute_error" not in summary(WHOLE), "an error of fp32")

REFUSED = told("refused", 2, {"run.gemm": "blas"})
check(REFUSED.code == 2, f"a BLAS computes bf16: exit {REFUSED.code}")
check("model.compute = bf16: a BLAS has no products in bf16" in REFUSED.err, REFUSED.err)
IDLE = told("idle", 1, {"model.expert_type": "identity"})
check(IDLE.code == 0 and "model.compute has no effect" in IDLE.out + IDLE.err, IDLE.out, IDLE.err)
HEAD = told("head", 1, {})
check("swiglu in bf16" in HEAD.out, HEAD.out)
verdict()
