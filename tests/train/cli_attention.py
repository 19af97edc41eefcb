"""ctest: timeout=480
Attention in training on text, from outside: the same bits at 1, 2, 3, 4 and 8 ranks and any number
of threads; resumed in the middle by another number of ranks; a lower loss than without attention;
its spans in the timeline; and what is refused.
"""
import json
import math
import os
import random

from _moesim import (
    TEMPORARY,
    check,
    config,
    metrics,
    moesim,
    run,
    same_bytes,
    summary,
    verdict,
)


def text_file(name, length):
    """Words whose second half repeats the first one: what comes next is seen far back only."""
    draw, text = random.Random(5), ""
    while len(text) < length:
        half = "".join(draw.choice("abcdefghijklmnop") for _ in range(6))
        text += half + half + " "
    path = os.path.join(TEMPORARY, name)
    with open(path, "w") as file:
        file.write(text[:length])
    return path


SMALL = {
    "run.mode": "train",
    "run.steps": 6,
    "model.num_layers": 2,
    "model.hidden_size": 24,
    "model.num_experts": 24,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 8,
    "model.num_heads": 3,
    "router.top_k": 3,
    "router.bias_update_rate": 0.01,
    "balance.alpha_expert": 0.01,
    "balance.alpha_device": 0.05,
    "cluster.devices": 24,
    "data.source": "text",
    "data.path": text_file("halves.txt", 24000),
    "data.tokens_per_device": 40,
    "data.sequence_length": 20,
    "train.warmup_steps": 2,
    "train.clip_norm": 0.5,
    "train.context": 1,
    "train.accumulate": 2,
    "train.validation_every": 3,
    "train.validation_batches": 2,
    "train.checkpoint_every": 2,
}
KINDS = {
    "mha": {"model.attention": "mha"},
    "gqa": {"model.attention": "mha", "model.num_kv_heads": 1, "model.rope_order": "half"},
    "mla": {"model.attention": "mla", "model.kv_lora_rank": 10, "model.q_lora_rank": 9},
}


def without_time(folder):
    return [
        {key: value for key, value in line.items() if key != "time"} for line in metrics(folder)
    ]


def check_folded(kind):
    settings = {**SMALL, **KINDS[kind]}
    first = run(f"{kind}-1", 1, {**settings, "run.threads": 1})
    lines = without_time(first)
    check(lines[-1]["task_loss"] < lines[0]["task_loss"], f"{kind}: {lines[-1]['task_loss']}")
    for ranks, threads in ((1, 2), (2, 1), (3, 1), (4, 1), (8, 1)) if kind == "mla" else ((2, 2),):
        folder = run(f"{kind}-{ranks}-{threads}", ranks, {**settings, "run.threads": threads})
        check(
            without_time(folder) == lines, f"{kind}: np {ranks}, {threads} threads: other metrics"
        )
        check(
            same_bytes(f"{folder}/expert_load.npy", f"{first}/expert_load.npy"),
            f"{kind}: np {ranks}: another expert_load.npy",
        )
    recomputed = run(f"{kind}-recompute", 2, {**settings, "train.recompute": "yes"})
    check(without_time(recomputed) == lines, f"{kind}: train.recompute changes the metrics")
    return lines


def check_resumed(kind, lines):
    """Four steps of six, by two ranks, and the rest by four: the parameters, and the state of the
    optimiser, of attention are in the checkpoint.
    """
    settings = {**SMALL, **KINDS[kind]}
    folder = run(f"{kind}-stopped", 2, {**settings, "run.steps": 4})
    done = moesim(4, "--resume", folder, "--quiet", "--set", "run.steps=6")
    check(done.code == 0, f"{kind}: resumed: {done.code} {done.err}")
    found = without_time(folder)
    check(
        [line["task_loss"] for line in found] == [line["task_loss"] for line in lines]
        and found[-1]["gradient_norm"] == lines[-1]["gradient_norm"],
        f"{kind}: resumed: other metrics",
    )
    done = moesim(2, "--resume", folder, "--set", "run.steps=8", "--set", "model.num_heads=2")
    check(
        done.code == 2 and "model.num_heads" in done.err and len(done.err.splitlines()) == 1,
        f"{kind}: resumed with other heads: {done.code} {done.err}",
    )


def check_learns():
    """What stood six bytes before: no table of single bytes can tell, attention can. Behind a
    letter comes a blank once in 12 times and else one of 16 letters, behind a blank a letter.
    """
    behind_letter = (math.log(12) + 11 * math.log(12 / 11 * 16)) / 12
    table = (12 * behind_letter + math.log(16)) / 13
    settings = {
        **SMALL,
        "run.steps": 120,
        "cluster.devices": 2,
        "data.tokens_per_device": 400,
        "data.sequence_length": 40,
        "train.accumulate": 1,
        "train.learning_rate": 0.01,
        "train.validation_every": 120,
        "train.checkpoint_every": 0,
    }
    loss = {}
    for kind, more in (("none", {}), ("mla", KINDS["mla"])):
        loss[kind] = metrics(run(f"learns-{kind}", 2, {**settings, **more}))[-1]["validation_loss"]
    check(abs(loss["none"] - table) < 0.03, f"without attention {loss['none']}, a table {table}")
    check(loss["mla"] < table - 0.05, f"with attention {loss['mla']}, a table {table}")
    return loss


def check_timeline():
    with open(os.path.join(TEMPORARY, "mla-2-1", "timeline.json")) as file:
        spans = [event for event in json.load(file)["traceEvents"] if event["ph"] == "X"]
    for name in ("attention", "attention backward"):
        layers = [s["args"]["layer"] for s in spans if s["name"] == name and s["tid"] == 1]
        check(sorted(layers) == [0, 0, 1, 1], f"timeline: {name} of layers {layers}")


def check_parameters():
    """mla of H 24, 3 heads of 8 + 4, r 10, r_q 9, counted by hand, twice."""
    plain = run("plain", 1, {**SMALL, "run.steps": 1})
    with_mla = run("counted", 1, {**SMALL, **KINDS["mla"], "run.steps": 1})
    counts = [summary(f)["training"]["parameters"]["replicated"] for f in (plain, with_mla)]
    norms, queries = 24 + 9 + 10, 9 * 24 + 3 * (8 + 4) * 9
    keys = 10 * 24 + 4 * 24 + 3 * 8 * 10
    wanted = 2 * (norms + queries + keys + 3 * 8 * 10 + 24 * 3 * 8)
    check(counts[1] - counts[0] == wanted, f"parameters {counts}, {wanted} of attention")


def check_cache():
    """Of mla 10 + 4 numbers in two layers, of mqa 2 x 8; --check says it too."""
    cache = summary(os.path.join(TEMPORARY, "mla-1"))["kv_cache"]
    check(
        cache["kind"] == "mla"
        and cache["elements_per_token"] == 28
        and cache["bf16_bytes_per_token"] == 56
        and cache["elements_by_kind"] == {"mha": 96, "gqa": 32, "mqa": 32, "mla": 28},
        f"cache {cache}",
    )
    cache = summary(os.path.join(TEMPORARY, "gqa-1"))["kv_cache"]
    check(cache["kind"] == "mqa" and cache["elements_per_token"] == 32, f"cache {cache}")
    lite = {"router.preset": "deepseek_v2_lite", "model.num_layers": 27, "model.attention": "mla"}
    done = moesim(1, "--check", config("lite", lite))
    check(
        done.code == 0 and "mla 15552 elements, 31104 bytes in bf16 (mha: 110592" in done.out,
        f"--check: {done.code} {done.out[:2000]} {done.err}",
    )
    done = moesim(1, "--check", config("plain-lite", {**lite, "model.attention": "none"}))
    check(done.code == 0 and "KV cache" not in done.out, "a cache without attention")


def check_refused():
    quick = {**SMALL, **KINDS["mla"]}
    for change, named in (
        ({"data.sequence_length": 32}, "whole on one device"),
        ({"model.num_heads": 5}, "model.num_heads"),
        ({"model.rope_dim": 3}, "model.rope_dim"),
        ({"model.residual": "no"}, "model.residual"),
    ):
        done = moesim(2, config("refused", {**quick, **change}))
        check(
            done.code == 2 and named in done.err and len(done.err.splitlines()) == 1,
            f"{change}: {done.code} {done.err}",
        )
    done = moesim(1, "--dialects", config("dialects", {"model.attention": "mha"}))
    check(
        done.code == 2 and "attention" in done.err and len(done.err.splitlines()) == 1,
        f"--dialects: {done.code} {done.err}",
    )


for kind in KINDS:
    folded = check_folded(kind)
    if kind != "gqa":
        check_resumed(kind, folded)
check_timeline()
check_parameters()
check_cache()
check_refused()
print("validation losses:", check_learns())
verdict()
