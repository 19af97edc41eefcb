#!/usr/bin/env python3
"""model.load against whole layers of the public reference code: output, logits and every gradient,
float within 1e-4, double within 1e-9, folded and spread, in both exchange modes; and what is wrong
with the files is said in a sentence. ctest: gemm timeout=180
"""
import json
import os
import shutil

import _moesim
from _moesim import GOLDEN, MOESIM, TEMPORARY, check, load, moesim, save, sets, verdict

TENSORS = "y logits dlogits dx dwgate dw1 dw2 dw3 dsw1 dsw2 dsw3".split()
DOUBLE = os.environ.get("MOESIM_F64", MOESIM + "-f64")


def configuration(folder, case):
    """The configuration of a golden layer (its case.json), reading the weights from `folder`."""
    a = case["alpha"]
    path = os.path.join(TEMPORARY, "layer.ini")
    with open(path, "w") as f:
        f.write(
            f"""[model]
load = {folder}
hidden_size = {case['H']}
moe_intermediate_size = {case['I']}
num_experts = {case['E']}
num_shared_experts = {case['n_shared']}
[router]
top_k = {case['K']}
group_limit = max
topk_group = {case['M']}
norm_topk_prob = {'yes' if case['norm'] else 'no'}
routed_scaling_factor = {case['scale']}
scale_normalized = no
[balance]
alpha_expert = {a['expert']}
alpha_device = {a['device']}
alpha_comm = {a['comm']}
scope = {'sequence' if case['seq_aux'] else 'global'}
[cluster]
devices = {case['D']}
[data]
sequence_length = {case['S']}
[output]
tensors = yes
"""
        )
    return path


def worst(found, expected):
    """Largest difference beside the largest value."""
    most = max(abs(v) for v in expected)
    return max(abs(a - b) for a, b in zip(found, expected)) / most


def compare(name, ranks, program, bound, *settings):
    folder = os.path.join(GOLDEN, "layer", name)
    case = json.load(open(os.path.join(folder, "case.json")))
    out = os.path.join(TEMPORARY, "out")
    shutil.rmtree(out, True)
    _moesim.MOESIM = program
    result = moesim(ranks, "--quiet", "--out", out, *settings, configuration(folder, case))
    _moesim.MOESIM = MOESIM
    if not check(result.code == 0, name, ranks, result.err):
        return
    for tensor in TENSORS:
        expected, found = load(os.path.join(folder, tensor + ".npy")), load(
            os.path.join(out, tensor + ".npy")
        )
        check(found.shape == expected.shape, name, tensor, found.shape, expected.shape)
        error = worst(found.data, expected.data)
        check(error <= bound, name, "at np", ranks, settings, tensor, "differs by", error)
    expected = json.load(open(os.path.join(folder, "expected.json")))["losses"]
    loss = json.load(open(os.path.join(out, "summary.json")))["layers"][0]["loss"]
    for kind in ("expert", "device", "comm"):
        check(
            abs(loss[kind] - expected[kind]) <= 1e-6 * expected[kind],
            name,
            kind,
            loss[kind],
            expected[kind],
        )


def bad_files():
    name = "layer_1_ds2_seq"
    source = os.path.join(GOLDEN, "layer", name)
    case = json.load(open(os.path.join(source, "case.json")))
    folder = os.path.join(TEMPORARY, "weights")
    for spoil, words in (("missing", "w2.npy"), ("shape", "[8, 5, 6]"), ("short", "w3.npy")):
        shutil.rmtree(folder, True)
        shutil.copytree(source, folder)
        if spoil == "missing":
            os.remove(os.path.join(folder, "w2.npy"))
        elif spoil == "shape":
            shutil.copy(os.path.join(source, "w2.npy"), os.path.join(folder, "w1.npy"))
        else:
            with open(os.path.join(folder, "w3.npy"), "r+b") as f:
                f.truncate(300)
        result = moesim(2, "--out", os.path.join(TEMPORARY, "bad"), configuration(folder, case))
        check(
            result.code == 2 and words in result.err and len(result.err.strip().splitlines()) == 1,
            spoil,
            result.code,
            result.err,
        )


def recorded():
    """The same experts under the golden routing, recorded: golden output. Without a row of input
    for each token, or beside text, the folder is refused.
    """
    source = os.path.join(GOLDEN, "layer", "layer_1_ds2_seq")
    case = json.load(open(os.path.join(source, "case.json")))
    folder, out = os.path.join(TEMPORARY, "experts"), os.path.join(TEMPORARY, "recorded")
    shutil.copytree(source, folder)
    for gate in ("wgate", "dy"):
        os.remove(os.path.join(folder, gate + ".npy"))
    path = configuration(folder, case)
    routing = {
        "data.source": "routing",
        "data.weights": os.path.join(source, "topk_weight.npy"),
        "router.group_limit": "none",
        "router.topk_group": 0,
        "router.scale_normalized": "no",
        "router.routed_scaling_factor": 1,
    }
    expected = load(os.path.join(source, "y.npy"))
    experts = load(os.path.join(source, "topk_idx.npy"))
    tokens, k = experts.shape
    for count in (tokens, tokens - 4, tokens + 4):
        rows = (list(experts.data) * 2)[: count * k]
        weights = (list(load(routing["data.weights"]).data) * 2)[: count * k]
        given = {
            **routing,
            "data.path": save(f"experts-{count}.npy", "<i4", (count, k), rows),
            "data.weights": save(f"weights-{count}.npy", "<f8", (count, k), weights),
        }
        for ranks in (1, 2):
            shutil.rmtree(out, True)
            done = moesim(ranks, "--quiet", "--out", out, *sets(given), path)
            if count != tokens:
                check(done.code == 2 and "x.npy has 16 rows" in done.err, count, done.err)
            elif check(done.code == 0, done.err):
                found = load(os.path.join(out, "y.npy"))
                error = worst(found.data, expected.data)
                check(error <= 1e-4, "recorded routing at np", ranks, "differs by", error)
                shutil.copy(os.path.join(source, "dy.npy"), folder)
                done = moesim(ranks, "--quiet", "--force", "--out", out, *sets(given), path)
                check(done.code == 2 and "dy.npy" in done.err, "gradients", done.err)
                os.remove(os.path.join(folder, "dy.npy"))


for golden, sizes in (("layer_1_ds2_seq", (1, 2, 4)), ("layer_2_ds2_norm_batch_mse", (1, 3))):
    for size in sizes:
        compare(golden, size, DOUBLE, 1e-9)
    compare(
        golden, 1, DOUBLE, 1e-9, "--set", "exchange.mode=selection", "--set", "train.recompute=yes"
    )
    compare(golden, sizes[1], MOESIM, 1e-4)
recorded()
bad_files()
verdict()
