"""ctest: timeout=180
Where tokens come from: real text, a folder of made-up text, recorded routing that reproduces the
run it was recorded from, masks, bias files, recordings of several layers, fewer tokens than
devices.
"""
import os
import random
import re
import struct

from _moesim import (
    TEMPORARY,
    check,
    config,
    header_of,
    load,
    metrics,
    moesim,
    near,
    run,
    same_bytes,
    save,
    summary,
    verdict,
)

BASE = {
    "model.hidden_size": 16,
    "model.num_experts": 16,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "router.group_limit": "max",
    "router.topk_group": 2,
    "balance.alpha_expert": 0.01,
    "balance.alpha_device": 0.05,
    "balance.alpha_comm": 0.02,
    "cluster.devices": 4,
    "data.tokens_per_device": 40,
    "data.sequence_length": 20,
    "output.routing": "yes",
    "output.tensors": "yes",
}
ROUTED = (
    "counts_per_expert",
    "counts_per_device",
    "distinct_tokens_per_device",
    "selections",
    "tokens_by_reach",
    "mean_devices_per_token",
)


def passed(folder):
    return all(ok is not False for ok in summary(folder)["checks"].values())


def layer(folder, index=0):
    return summary(folder)["layers"][index]


# --- text ---


def folder_of_text():
    folder = os.path.join(TEMPORARY, "text")
    os.makedirs(f"{folder}/inner")
    for name, text in (
        ("b.txt", "to be or not to be, that is the question. " * 9),
        ("a.txt", "whan that aprille with his shoures soote "),
        ("inner/c.txt", "\x00\xff binary as well \n" * 30),
        ("empty.txt", ""),
    ):
        with open(f"{folder}/{name}", "w", encoding="latin-1") as file:
            file.write(text)
    return folder


def check_text(name, path):
    runs = [
        run(
            f"{name}-np{ranks}",
            ranks,
            {**BASE, "data.source": "text", "data.path": path, "run.steps": 2},
        )
        for ranks in (1, 4)
    ]
    if not all(runs):
        return
    for file in ("topk_idx.npy", "topk_weight.npy", "comm_matrix.npy", "y.npy", "expert_load.npy"):
        check(
            same_bytes(f"{runs[0]}/{file}", f"{runs[1]}/{file}"),
            f"{name}: {file} depends on the number of ranks",
        )
    loads = load(f"{runs[0]}/expert_load.npy")
    check(
        passed(runs[0])
        and loads.shape == (2, 1, 16)
        and all(sum(row) == 480 for row in loads.rows()),
        f"{name}: {loads.shape}",
    )
    check(loads.rows()[0] != loads.rows()[1], f"{name}: both steps read the same text")


# --- recorded routing ---


def replay(name, recorded, settings, ranks, **more):
    """Runs the choices that the run in folder `recorded` wrote."""
    return run(
        name,
        ranks,
        {**settings, "data.source": "routing", "data.path": f"{recorded}/topk_idx.npy", **more},
    )


def check_replay(mode):
    settings = {**BASE, "exchange.mode": mode}
    recorded = run(f"recorded-{mode}", 2, settings)
    if not recorded:
        return
    weights = {"data.weights": f"{recorded}/topk_weight.npy"}
    for ranks in (1, 4):
        again = replay(f"replay-{mode}-np{ranks}", recorded, settings, ranks, **weights)
        if not again:
            continue
        for figure in ROUTED:
            check(layer(again)[figure] == layer(recorded)[figure], f"replay, mode {mode}: {figure}")
        check(
            summary(again)["volume"] == summary(recorded)["volume"], f"replay, mode {mode}: volume"
        )
        check(passed(again), f"replay, mode {mode}: a self-check failed")
        for file in ("comm_matrix.npy", "expert_load.npy", "topk_weight.npy"):
            check(
                same_bytes(f"{again}/{file}", f"{recorded}/{file}"), f"replay, mode {mode}: {file}"
            )
        losses = layer(again)["loss_by_scope"]
        check(
            all(value is None for scope in losses.values() for value in scope.values()),
            f"losses without scores: {losses}",
        )


def check_replay_elsewhere():
    """Under twice the devices: the same experts, other rows."""
    recorded = run("recorded-small", 2, BASE)
    again = recorded and replay(
        "replay-8", recorded, {**BASE, "cluster.devices": 8, "router.group_limit": "none"}, 4
    )
    if again:
        check(
            layer(again)["counts_per_expert"] == layer(recorded)["counts_per_expert"],
            "counts under 8 devices",
        )
        check(
            summary(again)["volume"]["dispatch"]["rows"]
            >= summary(recorded)["volume"]["dispatch"]["rows"],
            "rows under 8 devices",
        )
        check(len(layer(again)["counts_per_device"]) == 8 and passed(again), "8 devices")


def check_scores():
    """With recorded scores the losses are those of the equations; -1 means none, and tokens may
    choose different numbers of experts.
    """
    rng, tokens, experts = random.Random(5), 50, 16
    index = [rng.sample(range(experts), 3) for _ in range(tokens)]
    for t in range(0, tokens, 7):
        index[t][1:] = [-1, -1]
    scores = [[rng.random() for _ in range(experts)] for _ in range(tokens)]
    scores = [[s / sum(row) for s in row] for row in scores]
    out = run(
        "scores",
        4,
        {
            **BASE,
            "data.source": "routing",
            "data.path": save("idx.npy", "<i4", (tokens, 3), sum(index, [])),
            "data.scores": save("scores.npy", "<f8", (tokens, experts), sum(scores, [])),
            "router.group_limit": "none",
            "balance.scope": "global",
        },
    )
    if not out:
        return
    counts = [sum(row.count(e) for row in index) for e in range(experts)]
    check(layer(out)["counts_per_expert"] == counts, "counts of recorded routing")
    mean = [sum(row[e] for row in scores) / tokens for e in range(experts)]
    expected = sum(experts / sum(counts) * c * p for c, p in zip(counts, mean))
    check(
        near(layer(out)["loss_raw"]["expert"], expected, 1e-10),
        f"expert loss {layer(out)['loss_raw']['expert']}, expected {expected}",
    )


# --- masks, bias, layers, few tokens ---


def random_logits(name, shape, seed):
    rng, count = random.Random(seed), 1
    for n in shape:
        count *= n
    return save(name, "<f4", shape, [rng.gauss(0, 1) for _ in range(count)])


def check_mask():
    """Padding is routed and sent, and left out of the losses: those are the losses of the counted
    tokens alone.
    """
    logits = random_logits("mask-logits.npy", (60, 16), 3)
    rows = load(logits).rows()
    kept = [t for t in range(60) if t % 3 != 1]
    alone = save("kept-logits.npy", "<f4", (len(kept), 16), sum((rows[t] for t in kept), []))
    settings = {
        **BASE,
        "data.source": "logits",
        "data.sequence_length": 0,
        "balance.scope": "global",
    }
    mask = save("mask.npy", "|b1", (3, 20), [t % 3 != 1 for t in range(60)])
    masked = run("masked", 4, {**settings, "data.path": logits, "data.mask": mask})
    whole = run("unmasked", 4, {**settings, "data.path": logits})
    only = run("kept-only", 4, {**settings, "data.path": alone})
    if masked and whole and only:
        check(
            near(
                list(layer(masked)["loss_by_scope"]["global"].values()),
                list(layer(only)["loss_by_scope"]["global"].values()),
                1e-12,
            ),
            "losses of the counted tokens",
        )
        done = moesim(
            4,
            config("masked-note", {**settings, "data.path": logits, "data.mask": mask}),
            "--out",
            "masked-note",
            "--force",
            "--full",
        )
        note = re.search(r"per counted token / \d+ = ([\d.]+) / (\d+)", " ".join(done.out.split()))
        check(
            note and near(float(note[1]) / int(note[2]), layer(masked)["loss_ideal"]["comm"], 1e-3),
            f"the note on the value at balance: {note and note[0]}",
        )
        check(
            layer(masked)["counts_per_expert"] == layer(whole)["counts_per_expert"],
            "padding counts in counts_per_expert",
        )
        check(summary(masked)["volume"] == summary(whole)["volume"], "padding counts in the volume")
        gradient = load(f"{masked}/dlogits.npy").rows()
        check(
            all(any(row) == (t in kept) for t, row in enumerate(gradient)),
            "padding has a gradient, or a counted token has none",
        )


def check_bias():
    """A bias changes who is chosen, never the weight."""
    logits = random_logits("bias-logits.npy", (40, 16), 4)
    settings = {
        **BASE,
        "data.source": "logits",
        "data.path": logits,
        "router.group_limit": "none",
        "router.score_func": "sigmoid",
    }
    bias = save("bias.npy", "<f8", (16,), [10 if e == 7 else 0 for e in range(16)])
    plain, biased = run("unbiased", 2, settings), run(
        "biased", 2, {**settings, "router.bias_file": bias}
    )
    if plain and biased:
        check(
            layer(biased)["counts_per_expert"][7] == 40 > layer(plain)["counts_per_expert"][7],
            "expert 7 is not chosen by everybody",
        )
        check(max(load(f"{biased}/topk_weight.npy").data) < 1, "the bias went into a weight")


def check_bias_of_layers():
    """Every layer chooses with its own bias, forward, explained, and at the start of training."""
    draw = random.Random(12)
    rows = [[draw.uniform(-0.3, 0.3) for _ in range(16)] for _ in range(3)]
    each = save("bias-each.npy", "<f8", (3, 16), sum(rows, []))
    settings = {**BASE, "model.num_layers": 3, "router.score_func": "sigmoid"}
    recorded = {
        **settings,
        "data.source": "logits",
        "data.path": random_logits("bias-layers.npy", (3, 40, 16), 9),
        "cluster.devices": 4,
    }
    layered = run("bias-each", 4, {**recorded, "router.bias_file": each})
    for l, row in enumerate(rows):
        path = save(f"bias-{l}.npy", "<f4" if l == 0 else "<f8", (16,), row)
        alone = run(f"bias-{l}", 2, {**recorded, "router.bias_file": path})
        if layered and alone:
            for key in (*ROUTED, "loss_by_scope"):
                check(layer(layered, l)[key] == layer(alone, l)[key], "bias of layer", l, key)
    del settings["output.tensors"]
    for explain in ("7", "39"):
        done = moesim(
            2,
            config("bias-explained", {**recorded, "router.bias_file": each}),
            *("--explain", explain, "--explain-step", "--out", "bias-explained", "--force"),
        )
        check(done.code == 0, "--explain with a bias of each layer", done.err)
    trained = {
        **settings,
        "model.norm": "rmsnorm",
        "router.bias_file": each,
        "run.mode": "train",
        "router.bias_update_rate": 0.001,
    }
    first = run("bias-train", 2, trained)
    forward = run("bias-forward", 1, {**trained, "run.mode": "forward"})
    if first and forward:
        for l in range(3):
            check(
                layer(first, l)["counts_per_expert"] == layer(forward, l)["counts_per_expert"],
                "the bias that training starts with",
                l,
            )
    for shape in ((2, 16), (3, 15), (48,), (1, 3, 16)):
        numbers = [0.0] * (shape[0] * (shape[1] if len(shape) > 1 else 1) * (shape + (1, 1))[2])
        bad = save("bias-bad.npy", "<f4", shape, numbers)
        done = moesim(2, config("bias-bad", {**recorded, "router.bias_file": bad}), "--check")
        check(done.code == 2 and "[3, 16]" in done.err, shape, done.err)


def check_layers():
    """Two layers in one recording, in three dimensions and in two."""
    shape3, shape2 = random_logits("layers3.npy", (2, 30, 16), 6), random_logits(
        "layers2.npy", (60, 16), 6
    )
    runs = [
        run(name, 2, {**BASE, "model.num_layers": 2, "data.source": "logits", "data.path": path})
        for name, path in (("layers3", shape3), ("layers2", shape2))
    ]
    if all(runs):
        check(
            same_bytes(f"{runs[0]}/topk_idx.npy", f"{runs[1]}/topk_idx.npy"),
            "[layers,T,N] and [layers x T,N] differ",
        )
        check(load(f"{runs[0]}/topk_idx.npy").shape == (2, 30, 3), "shape of two layers")
        check(
            layer(runs[0], 0)["counts_per_expert"] != layer(runs[0], 1)["counts_per_expert"],
            "both layers read the same rows",
        )
        check(len(metrics(runs[0])) == 1, "a recording has one step")


def check_few_tokens():
    """Three tokens on eight devices: ranks without tokens take part in everything."""
    index = save("few.npy", "<i4", (3, 2), [0, 5, 15, 2, 7, -1])
    settings = {**BASE, "cluster.devices": 8, "router.group_limit": "none"}
    for name, more in (
        ("few-routing", {"data.source": "routing", "data.path": index, "router.top_k": 2}),
        (
            "few-logits",
            {"data.source": "logits", "data.path": random_logits("few-logits.npy", (3, 16), 8)},
        ),
    ):
        runs = [run(f"{name}-np{ranks}", ranks, {**settings, **more}) for ranks in (8, 1)]
        if all(runs):
            check(passed(runs[0]), f"{name}: a self-check failed")
            check(
                layer(runs[0]) == layer(runs[1]),
                f"{name}: the report depends on the number of ranks",
            )
            check(
                same_bytes(f"{runs[0]}/y.npy", f"{runs[1]}/y.npy"),
                f"{name}: y depends on the number of ranks",
            )


def check_half():
    """float16 gives what the same numbers in float32 give, in every file of numbers."""
    random.seed(16)
    tokens, n = 24, BASE["model.num_experts"]
    logits = [random.gauss(0, 1) for _ in range(tokens * n)]
    halves = struct.pack(f"<{len(logits)}e", *logits)
    exact = struct.unpack(f"<{len(logits)}e", halves)
    bias = exact[:n]
    folders = []
    for name, dtype in (("half", "<f2"), ("single", "<f4")):
        paths = []
        for what, shape, numbers in (("z", (tokens, n), exact), ("b", (n,), bias)):
            paths.append(os.path.join(TEMPORARY, f"{name}-{what}.npy"))
            form = f"<{len(numbers)}{'e' if dtype == '<f2' else 'f'}"
            with open(paths[-1], "wb") as file:
                file.write(header_of(dtype, shape) + struct.pack(form, *numbers))
        settings = {**BASE, "data.source": "logits", "data.path": paths[0]}
        settings.update({"router.bias_file": paths[1], "router.score_func": "sigmoid"})
        folders.append(run(f"from-{name}", 2, settings))
    if all(folders):
        for file in ("topk_idx.npy", "topk_weight.npy", "y.npy"):
            check(
                same_bytes(f"{folders[0]}/{file}", f"{folders[1]}/{file}"),
                f"float16 gives another {file} than the same numbers in float32",
            )


def check_index_types():
    """A routing of every type of whole numbers, and logits as float64, are what int32 and float32
    of the same numbers are."""
    n, k, tokens = BASE["model.num_experts"], BASE["router.top_k"], 24
    random.seed(7)
    ids = [i for _ in range(tokens) for i in random.sample(range(n), k)]
    folders = []
    for dtype, form in ("<i4", "i"), ("|u1", "B"), ("<i2", "h"), ("<u4", "I"), ("<i8", "q"):
        path = os.path.join(TEMPORARY, f"ids-{form}.npy")
        with open(path, "wb") as file:
            file.write(header_of(dtype, (tokens, k)) + struct.pack(f"<{len(ids)}{form}", *ids))
        settings = {**BASE, "data.source": "routing", "data.path": path}
        settings["router.group_limit"] = "none"
        folders.append(run(f"ids-{form}", 2, settings))
    z = [random.randint(-512, 512) / 128 for _ in range(tokens * n)]
    for dtype in "<f4", "<f8":
        path = save(f"z{dtype[1:]}.npy", dtype, (tokens, n), z)
        settings = {**BASE, "data.source": "logits", "data.path": path}
        folders.append(run(f"z{dtype[1:]}", 2, settings))
    for first, others in (0, range(1, 5)), (5, [6]):
        for other in others if all(folders) else ():
            for file in "topk_idx.npy", "comm_matrix.npy", "y.npy":
                one, two = (os.path.join(folders[i], file) for i in (first, other))
                check(same_bytes(one, two), f"{folders[other]}: another {file}")


licences = "/usr/share/common-licenses"
if os.path.isdir(licences):
    check_text("licences", licences)
else:
    print(f"{licences} is not there: a folder of made-up text alone stands for text")
check_text("folder", folder_of_text())
check_text("one-file", os.path.join(TEMPORARY, "text", "b.txt"))
check_replay("token")
check_replay("selection")
check_replay_elsewhere()
check_scores()
check_mask()
check_bias()
check_bias_of_layers()
check_layers()
check_few_tokens()
check_half()
check_index_types()
verdict()
