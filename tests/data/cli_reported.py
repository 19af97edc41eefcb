"""ctest: timeout=120
Figures that public reports ask for, each worked out here by hand or in plain numbers: padding that
must not take the places of tokens (NVIDIA/Megatron-LM issue 5542), a selection bias for each layer
(huggingface/transformers issue 45441), experts that are switched off by a logit of -inf
(onnxsim/onnxsim issue 929), the loss by sequence of packed sequences (NVIDIA/Megatron-LM issue
6108), and groups whose borders are not those of devices.
"""
import itertools
import math
import random

from _moesim import check, load, near, run, save, summary, verdict

draw = random.Random(29)
BASE = {
    "model.hidden_size": 8,
    "model.moe_intermediate_size": 4,
    "model.expert_type": "identity",
    "data.source": "logits",
    "data.sequence_length": 0,
    "output.routing": "yes",
}


def rows(count, width):
    """Numbers that float32 holds exactly."""
    return [[round(draw.gauss(0, 1) * 256) / 256 for _ in range(width)] for _ in range(count)]


def logits(name, matrix):
    flat = [value for row in matrix for value in row]
    return save(name, "<f4", (len(matrix), len(matrix[0])), flat)


def softmax(z):
    e = [math.exp(value - max(z)) for value in z]
    return [value / math.fsum(e) for value in e]


def best(scores, k):
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


def expert_loss(tokens, k):
    """sum_i f_i P_i of one scope (docs/method.md section 2.1)."""
    n, count = len(tokens[0]), len(tokens)
    scores = [softmax(z) for z in tokens]
    chosen = [i for s in scores for i in best(s, k)]
    return math.fsum(
        n / (k * count) * chosen.count(i) * math.fsum(s[i] for s in scores) / count
        for i in range(n)
    )


def check_padding():
    """Four tokens of padding in front want expert 0; each valid token wants another expert, of
    which each has one place: ceil(4 tokens / 4 experts).
    """
    wants = [0, 0, 0, 0, 0, 1, 2, 3]
    settings = {
        **BASE,
        "model.num_experts": 4,
        "data.path": logits("padded.npy", [[4.0 * (i == w) for i in range(4)] for w in wants]),
        "data.mask": save("mask.npy", "|u1", (8,), [0] * 4 + [1] * 4),
        "data.padding": "dropped",
        "router.top_k": 1,
        "balance.scope": "global",
        "capacity.policy": "expert",
        "capacity.drop": "position",
    }
    folder = run("padding", 1, settings)
    layer = summary(folder)["layers"][0]
    check(layer["counts_per_expert"] == [1] * 4, "padding is counted", layer["counts_per_expert"])
    check(layer["kept_per_expert"] == [1] * 4, "a valid token is dropped")
    check(layer["capacity"]["capacity"] == 1 and layer["capacity"]["dropped"] == 0, layer)
    check(near(layer["loss_raw"]["expert"], 1, 1e-12), layer["loss_raw"])


def check_bias_of_layers():
    layers, tokens, n, k = 3, 12, 8, 2
    z = [rows(tokens, n) for _ in range(layers)]
    bias = [[value / 4 for value in row] for row in rows(layers, n)]
    flat = [value for row in bias for value in row]
    settings = {
        **BASE,
        "model.num_experts": n,
        "model.num_layers": layers,
        "data.path": logits("layers.npy", [row for layer in z for row in layer]),
        "router.top_k": k,
        "router.score_func": "sigmoid",
        "router.bias_file": save("bias.npy", "<f4", (layers, n), flat),
    }
    ids = list(load(f"{run('bias', 1, settings)}/topk_idx.npy").data)
    for l in range(layers):
        for t in range(tokens):
            scores = [1 / (1 + math.exp(-value)) for value in z[l][t]]
            wanted = best([s + b for s, b in zip(scores, bias[l])], k)
            got = ids[(l * tokens + t) * k :][:k]
            check(sorted(got) == sorted(wanted), "layer", l, "token", t, got, wanted)


def check_switched_off():
    n, k = 8, 3
    tokens = [row[:5] + [-math.inf] * 3 for row in rows(16, n)]
    settings = {
        **BASE,
        "model.num_experts": n,
        "data.path": logits("off.npy", tokens),
        "router.top_k": k,
        "balance.scope": "global",
    }
    layer = summary(run("off", 1, settings))["layers"][0]
    z = math.fsum(math.log(math.fsum(map(math.exp, row))) ** 2 for row in tokens) / len(tokens)
    check(layer["counts_per_expert"][5:] == [0] * 3, layer["counts_per_expert"])
    check(near(layer["loss_raw"]["expert"], expert_loss(tokens, k), 1e-6), layer["loss_raw"])
    check(near(layer["loss_raw"]["z"], z, 1e-6), layer["loss_raw"], z)


def check_packed():
    """Sequences of 3, 7 and 6 tokens, one behind the other: the mean over them, and one pack."""
    n, k, begins = 6, 2, [0, 3, 10, 16]
    tokens = rows(16, n)
    settings = {
        **BASE,
        "model.num_experts": n,
        "data.path": logits("packed.npy", tokens),
        "router.top_k": k,
        "balance.scope": "sequence",
    }
    boundaries = save("cu_seqlens.npy", "<i4", (4,), begins)
    cut = summary(run("packed", 1, {**settings, "data.boundaries": boundaries}))
    one = summary(run("as-one", 1, settings))
    parts = [tokens[a:b] for a, b in zip(begins, begins[1:])]
    wanted = math.fsum(expert_loss(part, k) for part in parts) / 3
    check(near(cut["loss_raw"]["expert"], wanted, 1e-12), cut["loss_raw"]["expert"], wanted)
    wanted = expert_loss(tokens, k)
    check(near(one["loss_raw"]["expert"], wanted, 1e-12), one["loss_raw"]["expert"], wanted)


def comm_loss(tokens, n, devices, groups, kept, k):
    """Choices by the best score of a group, and sum_d f''_d P''_d with M = min(K, D, span)."""
    scores = [softmax(z) for z in tokens]
    size, each = n // groups, n // devices
    lies_on = [{e // each for e in range(g * size, (g + 1) * size)} for g in range(groups)]
    span = max(len(set().union(*some)) for some in itertools.combinations(lies_on, kept))
    sent, chosen = [0] * devices, []
    for s in scores:
        inside = best([max(s[g * size : (g + 1) * size]) for g in range(groups)], kept)
        chosen.append(best([v if e // size in inside else -1 for e, v in enumerate(s)], k))
        for device in {e // each for e in chosen[-1]}:
            sent[device] += 1
    limit, count = min(k, devices, span), len(tokens)
    p = [
        math.fsum(s[e] for s in scores for e in range(d * each, (d + 1) * each)) / count
        for d in range(devices)
    ]
    loss = math.fsum(devices / (limit * count) * sent[d] * p[d] for d in range(devices))
    return loss, sum(sent) / count / limit, chosen


def check_straddling():
    """Groups and devices of which neither number divides the other, and those that do."""
    k, count = 4, 24
    for n, devices, groups, kept in (
        (12, 6, 4, 2),
        (12, 6, 4, 3),
        (12, 4, 3, 1),
        (24, 4, 6, 3),
        (24, 6, 8, 3),
        (24, 8, 2, 1),
    ):
        name = f"straddling-{n}-{devices}-{groups}-{kept}"
        tokens = rows(count, n)
        settings = {
            **BASE,
            "model.num_experts": n,
            "cluster.devices": devices,
            "data.path": logits(name + ".npy", tokens),
            "router.top_k": k,
            "router.group_limit": "max",
            "router.num_groups": groups,
            "router.topk_group": kept,
            "balance.scope": "global",
        }
        wanted, ideal, chosen = comm_loss(tokens, n, devices, groups, kept, k)
        folder = run(name, 2, settings)
        found = summary(folder)
        check(
            [sorted(r) for r in load(f"{folder}/topk_idx.npy").rows()]
            == [sorted(r) for r in chosen],
            name,
            "choices",
        )
        check(near(found["loss_raw"]["comm"], wanted, 1e-12), name, found["loss_raw"], wanted)
        check(near(found["layers"][0]["loss_ideal"]["comm"], ideal, 1e-12), name, "at balance")
        check(found["checks"]["ceilings"] is True, name, found["checks"])


check_padding()
check_bias_of_layers()
check_switched_off()
check_packed()
check_straddling()
verdict()
