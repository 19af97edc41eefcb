"""ctest: timeout=180
Recorded logits through the program, against golden cases of the public reference code: choices,
weights, counts, device matrices in both modes, losses and their gradient; and the three losses in
all three scopes against the equations, written out here once more.
"""
import json
import math
import os

from _moesim import GOLDEN, check, load, near, run, summary, verdict

# Folder, ranks. Experts always divide by the devices, tokens do not.
CASES = [
    ("ds2_E16_K2_G4_M2_small", 2),
    ("ds2_tiny_T4_E8_K2_G4_M2", 4),
    ("ds2_onetoken_E16_K4_G4_M2", 4),
    ("ds2_E6_K3_G2_M2_norm_scale", 2),
    ("ds2_v2_E160_K6_G8_M3_zipf", 8),
    ("ds2_E160_K5_G10_M2", 5),
    ("ds2_E64_K7_G4_M4_norm_batch", 4),
    ("ds2_E60_K6_G12_M12_batch", 3),
    ("ties_ds2_equal_E160_K6_G8_M3", 2),
    ("ds3_E64_K6_G16_M3_nonorm", 4),
    ("ds3inf_E60_K7_G4_M2", 2),
    ("ds3inf_E64_K6_G1", 1),
    ("hfds3_E32_K1_G4_M2_top1", 2),
    ("hfds2_E60_K3_G6_M1", 6),
]
BOTH_MODES = (
    "ds2_E16_K2_G4_M2_small",
    "ds2_tiny_T4_E8_K2_G4_M2",
    "ds2_v2_E160_K6_G8_M3_zipf",
    "ds2_E160_K5_G10_M2",
    "ds3inf_E60_K7_G4_M2",
)
SCOPES = ("sequence", "device", "global")


def settings(case, folder):
    """The configuration of a case."""
    of = {"softmax": {}, "sigmoid": {"router.score_func": "sigmoid"}}[case["score_func"]]
    limit = (
        {"max": "max", "top2sum": "top2_sum"}[case["group_score"]]
        if case["n_group"] > 1
        else "none"
    )
    of.update(
        {
            "model.hidden_size": 4,
            "model.num_experts": case["E"],
            "model.moe_intermediate_size": 4,
            "router.top_k": case["top_k"],
            "router.group_limit": limit,
            "router.num_groups": case["n_group"],
            "router.topk_group": case["topk_group"],
            "router.norm_topk_prob": "yes" if case["norm_topk_prob"] else "no",
            "router.routed_scaling_factor": case["routed_scaling_factor"],
            "balance.scope": "global" if case.get("seq_aux") is False else "sequence",
            "cluster.devices": case["n_device"],
            "data.source": "logits",
            "data.path": f"{folder}/logits.npy",
            "data.sequence_length": case["S"],
            "output.routing": "yes",
            "output.tensors": "yes",
        }
    )
    if case["family"] == "ds2" or case["family"].startswith("ties_ds2"):
        of["router.scale_normalized"] = "no"
    if not case["family"].startswith("hf"):
        of["router.norm_single"] = "no"
    if case.get("alpha1"):
        of.update(
            {
                "balance.alpha_expert": case["alpha1"],
                "balance.alpha_device": case["alpha2"],
                "balance.alpha_comm": case["alpha3"],
            }
        )
    if case.get("bias"):
        of["router.bias_file"] = f"{folder}/{case['bias']}"
    return of


# --- the equations ---


def device_of_token(t, tokens, devices):
    """Contiguous blocks; the first T mod D devices hold one token more."""
    share, more = divmod(tokens, devices)
    return t // (share + 1) if t < more * (share + 1) else more + (t - more * (share + 1)) // share


def normalized_scores(case, logits):
    for z in logits:
        if case["score_func"] == "softmax":
            top = max(z)
            s = [math.exp(v - top) for v in z]
        else:
            s = [1 / (1 + math.exp(-v)) for v in z]
        total = math.fsum(s)
        yield [v / total for v in s]


def losses_of(case, limit, tokens, scores, chosen):
    """Expert, device and communication loss of a set of tokens."""
    n, k, devices, count = case["E"], case["top_k"], case["n_device"], len(tokens)
    per = n // devices
    c, reached = [0] * n, [0] * devices
    for t in tokens:
        for e in chosen[t]:
            c[e] += 1
        for d in {e // per for e in chosen[t]}:
            reached[d] += 1
    f = [n / (k * count) * x for x in c]
    p = [math.fsum(scores[t][e] for t in tokens) / count for e in range(n)]
    p_device = [math.fsum(p[d * per : (d + 1) * per]) for d in range(devices)]
    f_device = [math.fsum(f[d * per : (d + 1) * per]) / per for d in range(devices)]
    f_comm = [devices / (limit * count) * x for x in reached]
    return {
        "expert": math.fsum(a * b for a, b in zip(f, p)),
        "device": math.fsum(a * b for a, b in zip(f_device, p_device)),
        "comm": math.fsum(a * b for a, b in zip(f_comm, p_device)),
    }


def check_scopes(name, case, layer, folder):
    scores, chosen = (
        list(normalized_scores(case, load(f"{folder}/logits.npy").rows())),
        load(f"{folder}/topk_idx.npy").rows(),
    )
    limit = case["topk_group"] if case["n_group"] > 1 else min(case["top_k"], case["n_device"])
    key = {
        "sequence": lambda t: t // case["S"],
        "device": lambda t: device_of_token(t, case["T"], case["n_device"]),
        "global": lambda t: 0,
    }
    for scope in SCOPES:
        sets = {}
        for t in range(case["T"]):
            sets.setdefault(key[scope](t), []).append(t)
        each = [losses_of(case, limit, tokens, scores, chosen) for tokens in sets.values()]
        for loss in ("expert", "device", "comm"):
            expected, found = (
                math.fsum(one[loss] for one in each) / len(each),
                layer["loss_by_scope"][scope][loss],
            )
            check(
                near(found, expected, 1e-10),
                f"{name}: {loss} loss, scope {scope}: {found}, by the equations {expected}",
            )


# --- the reference's figures ---


def check_losses(name, case, expected, layer):
    variants = expected.get("variants", {})
    ties = name.startswith("ties_")
    for loss in ("expert", "device", "comm"):
        for scope, variant in (
            ("sequence", "paper_lowest_index_ties" if ties else "paper_per_sequence"),
            ("global", "paper_batch"),
        ):
            if f"{loss}@{variant}" in variants and not (ties and scope == "global"):
                check(
                    near(layer["loss_by_scope"][scope][loss], variants[f"{loss}@{variant}"], 1e-10),
                    f"{name}: {loss}@{variant}",
                )
        if loss in expected.get("losses", {}) and not ties:
            check(
                near(layer["loss"][loss], expected["losses"][loss]["f64"], 1e-10),
                f"{name}: {loss} loss times alpha",
            )
    if "v3_seq_balance" in expected.get("losses", {}):
        check(
            near(
                layer["loss_by_scope"]["sequence"]["expert"],
                expected["losses"]["v3_seq_balance"]["f64_raw"],
                1e-10,
            ),
            f"{name}: V3's loss",
        )


def check_gradient(name, folder, out):
    parts = [f"{folder}/dlogits_{loss}.npy" for loss in ("expert", "device", "comm")]
    if not all(map(os.path.exists, parts)):
        return
    expected = [math.fsum(numbers) for numbers in zip(*(load(part).data for part in parts))]
    error = max(abs(a - b) for a, b in zip(expected, load(f"{out}/dlogits.npy").data))
    check(error <= 1e-10 * max(map(abs, expected)), f"{name}: dlogits differ by {error}")


def check_case(name, ranks):
    folder = f"{GOLDEN}/routing/{name}"
    with open(f"{folder}/case.json") as file:
        case = json.load(file)
    with open(f"{folder}/expected.json") as file:
        expected = json.load(file)
    for mode, matrix in (
        ("token", "a2a_distinct_tokens_src_dst"),
        ("selection", "a2a_routes_src_dst"),
    ):
        if mode == "selection" and name not in BOTH_MODES:
            continue
        out = run(f"{name}-{mode}", ranks, {**settings(case, folder), "exchange.mode": mode})
        if not out:
            continue
        layer = summary(out)["layers"][0]
        check(
            all(passed is not False for passed in summary(out)["checks"].values()),
            f"{name}: a self-check failed",
        )
        index, weight = load(f"{out}/topk_idx.npy"), load(f"{out}/topk_weight.npy")
        check(
            index.shape == (1, case["T"], case["top_k"]) and index.dtype == "<i4",
            f"{name}: topk_idx.npy is {index.shape} {index.dtype}",
        )
        check(list(index.data) == list(load(f"{folder}/topk_idx.npy").data), f"{name}: choices")
        check(
            near(list(weight.data), list(load(f"{folder}/topk_weight.npy").data), 1e-5),
            f"{name}: weights",
        )
        for figure in ("counts_per_expert", "counts_per_device", "distinct_tokens_per_device"):
            check(
                layer[figure] == expected[figure],
                f"{name}, mode {mode}: {figure}: {layer[figure]}, expected {expected[figure]}",
            )
        if matrix in expected:
            check(
                load(f"{out}/comm_matrix.npy").rows() == expected[matrix],
                f"{name}: matrix of mode {mode}",
            )
        else:
            rows = sum(
                expected["distinct_tokens_per_device" if mode == "token" else "counts_per_device"]
            )
            check(sum(load(f"{out}/comm_matrix.npy").data) == rows, f"{name}: rows of mode {mode}")
        check_losses(name, case, expected, layer)
        if mode == "token":
            check_gradient(name, folder, out)
            check_scopes(name, case, layer, folder)


for case_name, case_ranks in CASES:
    check_case(case_name, case_ranks)
verdict()
