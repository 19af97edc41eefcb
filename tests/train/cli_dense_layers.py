"""ctest: timeout=300
Dense layers in front of MoE layers, from outside: the same bits at 1, 2, 3, 4 and 8 ranks and any
number of threads, with attention too; resumed in the middle by another number of ranks; results
that speak of the MoE layers alone; parameters, their names and their number; spans in the
timeline; and what is refused.
"""
import json
import os

from _moesim import (
    TEMPORARY,
    check,
    config,
    load,
    metrics,
    moesim,
    save,
    run,
    same_bytes,
    summary,
    verdict,
)

H, WIDTH, LAYERS, DENSE = 24, 40, 4, 2
SMALL = {
    "run.mode": "train",
    "run.steps": 6,
    "model.num_layers": LAYERS,
    "model.first_dense_layers": DENSE,
    "model.intermediate_size": WIDTH,
    "model.hidden_size": H,
    "model.num_experts": 24,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "router.bias_update_rate": 0.01,
    "balance.alpha_expert": 0.01,
    "balance.aux_form": "mixtral",
    "balance.aux_layers": "all",
    "cluster.devices": 24,
    "data.tokens_per_device": 20,
    "data.sequence_length": 20,
    "train.clip_norm": 0.5,
    "train.accumulate": 2,
    "train.validation_every": 3,
    "train.validation_batches": 2,
    "train.checkpoint_every": 2,
}
ATTENTION = {"model.attention": "mla", "model.num_heads": 3, "model.kv_lora_rank": 10}
FORWARD = {
    **{k: v for k, v in SMALL.items() if not k.startswith("train.") and "bias" not in k},
    "run.mode": "forward",
    "run.steps": 2,
    "output.routing": "yes",
    "output.tensors": "yes",
}


def without_time(folder):
    return [
        {key: value for key, value in line.items() if key != "time"} for line in metrics(folder)
    ]


def check_folded(name, more):
    settings = {**SMALL, **more}
    first = run(f"{name}-1", 1, {**settings, "run.threads": 1})
    lines = without_time(first)
    for ranks, threads in ((1, 2), (2, 1), (3, 1), (4, 1), (8, 1)) if not more else ((2, 2),):
        folder = run(f"{name}-{ranks}-{threads}", ranks, {**settings, "run.threads": threads})
        check(
            without_time(folder) == lines, f"{name}: np {ranks}, {threads} threads: other metrics"
        )
        check(
            same_bytes(f"{folder}/expert_load.npy", f"{first}/expert_load.npy"),
            f"{name}: np {ranks}: another expert_load.npy",
        )
    recomputed = run(f"{name}-recompute", 2, {**settings, "train.recompute": "yes"})
    check(without_time(recomputed) == lines, f"{name}: train.recompute changes the metrics")
    return lines


def check_resumed(lines):
    """Four steps of six by two ranks and the rest by four: weights, moments and biases are read."""
    folder = run("stopped", 2, {**SMALL, "run.steps": 4})
    done = moesim(4, "--resume", folder, "--quiet", "--set", "run.steps=6")
    check(done.code == 0, f"resumed: {done.code} {done.err}")
    found = without_time(folder)
    check(
        [line["task_loss"] for line in found] == [line["task_loss"] for line in lines]
        and found[-1]["gradient_norm"] == lines[-1]["gradient_norm"],
        "resumed: other metrics",
    )
    for change in ("model.first_dense_layers=1", "model.intermediate_size=41"):
        done = moesim(2, "--resume", folder, "--set", "run.steps=8", "--set", change)
        check(
            done.code == 2 and change.split("=")[0] in done.err and done.err.count("\n") == 1,
            f"resumed with {change}: {done.code} {done.err}",
        )


def check_results():
    """The axis of layers is that of the MoE layers, in files, summary and means."""
    moe = LAYERS - DENSE
    folder = run("forward", 2, FORWARD)
    found = summary(folder)
    check(len(found["layers"]) == moe, f"{len(found['layers'])} layers in summary.json")
    mean = sum(layer["loss_raw"]["expert"] for layer in found["layers"]) / moe
    check(abs(found["loss_raw"]["expert"] - mean) < 1e-12, "the mean over layers")
    for file, shape in (
        ("expert_load", (2, moe, 24)),
        ("comm_matrix", (moe, 24, 24)),
        ("topk_idx", (moe, 480, 3)),
    ):
        shape_there = load(f"{folder}/{file}.npy").shape
        check(shape_there == shape, f"{file}: {shape_there}")
    check(
        os.path.exists(f"{folder}/y_layer1.npy") and not os.path.exists(f"{folder}/y_layer2.npy"),
        "y of layers",
    )
    for np in (1, 4):
        other = run(f"forward-{np}", np, FORWARD)
        for file in ("y_layer0", "y_layer1", "topk_idx", "dlogits_layer1", "comm_matrix"):
            check(same_bytes(f"{folder}/{file}.npy", f"{other}/{file}.npy"), f"np {np}: {file}")


def check_parameters():
    """Counted by hand: of a dense layer the norm and three matrices, of the others as ever. The
    default width is that of the active experts.
    """
    folder = os.path.join(TEMPORARY, "plain-1")
    counts = summary(folder)["training"]["parameters"]
    expert = 3 * H * 8
    check(counts["expert"] == (LAYERS - DENSE) * 24 * expert, f"parameters {counts}")
    replicated = DENSE * (H + 3 * H * WIDTH) + (LAYERS - DENSE) * (H + 24 * H + expert)
    check(counts["replicated"] == replicated, f"parameters {counts}, {replicated} replicated")
    out = os.path.join(TEMPORARY, "exported")
    done = moesim(1, "--resume", folder, "--export-parameters", out)
    check(done.code == 0, f"--export-parameters: {done.code} {done.err}")
    files = sorted(os.listdir(out))
    for name, shape in (
        ("layer0.dense.w1", (WIDTH, H)),
        ("layer1.dense.w2", (H, WIDTH)),
        ("layer1.dense.w3", (WIDTH, H)),
        ("layer1.norm", (H,)),
        ("layer2.gate", (24, H)),
        ("layer3.bias", (24,)),
    ):
        there = f"{name}.npy" in files
        check(there and load(f"{out}/{name}.npy").shape == shape, f"exported {name}, {files}")
    check(
        not any(name.startswith(("layer0.gate", "layer1.bias", "layer4")) for name in files),
        f"exported {files}",
    )
    default = {k: v for k, v in SMALL.items() if k != "model.intermediate_size"}
    done = moesim(1, "--check", config("default", default))
    check(
        done.code == 0 and "intermediate_size = 32\n" in done.out,
        f"--check: {done.code} {done.out[:600]} {done.err}",
    )


def check_timeline():
    """Layers have the numbers that they have in the model."""
    with open(os.path.join(TEMPORARY, "mla-2-2", "timeline.json")) as file:
        spans = [event for event in json.load(file)["traceEvents"] if event["ph"] == "X"]
    for name, wanted in (
        ("dense", [0, 1]),
        ("dense backward", [0, 1]),
        ("attention", [0, 1, 2, 3]),
        ("gate", [2, 3]),
        ("backward", [2, 3]),
        ("tally", [2, 3]),
    ):
        layers = [s["args"]["layer"] for s in spans if s["name"] == name and s["tid"] == 1]
        check(sorted(layers) == sorted(2 * wanted), f"timeline: {name} of layers {layers}")


def check_files():
    """A bias for each MoE layer."""
    for layers, code in ((LAYERS - DENSE, 0), (LAYERS, 2)):
        numbers = [i % 5 for i in range(24 * layers)]
        path = save(f"bias{layers}.npy", "<f8", (layers, 24), numbers)
        done = moesim(
            1,
            config("bias", {**FORWARD, "router.bias_file": path, "output.tensors": "no"}),
            "--quiet",
            "--out",
            os.path.join(TEMPORARY, f"bias{layers}"),
        )
        check(done.code == code, f"a bias of {layers} layers: {done.code} {done.err}")


def check_refused():
    recorded = {"run.mode": "forward", "data.source": "logits", "data.path": "/nowhere.npy"}
    for change, named in (
        ({"model.first_dense_layers": LAYERS}, "model.first_dense_layers"),
        ({"model.num_layers": DENSE}, "model.first_dense_layers"),
        ({"model.first_dense_layers": -1}, "model.first_dense_layers"),
        (recorded, "a recording holds MoE layers"),
    ):
        settings = {**(FORWARD if "run.mode" in change else SMALL), **change}
        done = moesim(2, config("refused", settings))
        check(
            done.code == 2 and named in done.err and done.err.count("\n") == 1,
            f"{change}: {done.code} {done.err}",
        )
    done = moesim(1, "--dialects", config("dialects", {**FORWARD, "output.tensors": "no"}))
    check(done.code == 2 and "first_dense_layers" in done.err, f"--dialects: {done.err}")
    mini = {"router.preset": "deepseek_v2_mini", "cluster.devices": 8, "data.sequence_length": 64}
    for layers, text in ((1, "first_dense_layers = 0 "), (3, "first_dense_layers = 1\n")):
        done = moesim(1, "--check", config("mini", {**mini, "model.num_layers": layers}))
        check(done.code == 0 and text in done.out, f"{layers}: {done.out[:400]}")


plain = check_folded("plain", {})
check_folded("mla", ATTENTION)
check_resumed(plain)
check_results()
check_parameters()
check_timeline()
check_files()
check_refused()
verdict()
