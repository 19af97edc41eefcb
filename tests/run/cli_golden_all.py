"""ctest: timeout=240
All golden cases of the public reference code through the program, folded onto one rank: choices,
weights, kept pairs, capacity, counts, matrices, losses. Every quantity of every expected.json and
every file is either compared here (or by the unit test that is named), or stands in NOT_COMPARED
with the reason; one that is in neither fails the test.
"""
import json
import math
import os

from _golden import HUGGING_FACE, MEGATRON, PRESETS, ROUTING, by_preset, form, read, settings
from _moesim import check, load, near, run, save, summary, verdict

# Why a quantity says nothing about moesim: it describes another run of the reference.
NOT_COMPARED = {
    "case": "the folder's name",
    "notes": "words",
    "variants_note": "words",
    "a2a_note": "words",
    "gradients": "words; dlogits_*.npy are compared",
    "tie_policy": "words",
    "position_policy": "words",
    "n_device": "a setting",
    "capacity_f32run": "of the reference in float32",
    "f32_vs_f64_max_abs_weight_diff": "of the reference in float32",
    "f32_vs_f64_max_rel_weight_diff": "of the reference in float32",
    "numpy_max_rel_weight_diff": "of two references",
    "expert_reference_vs_paper_rel_diff": "of two references",
    "losses.*.f32": "of the reference in float32",
    "losses.*.alpha": "a setting",
    "losses.*.source": "words",
    "losses.*.variant": "words",
    "losses.*.level": "words",
    "losses.total.source": "words",
    "variants.*_f32": "of the reference in float32",
    "variants.aux@hf_5.2_double_softmax": (
        "a later version that takes the softmax of probabilities: not one of moesim's forms"
    ),
    "case.ini": "the same as case.json",
    "logits.npy": "input",
    "bias.npy": "input",
    "attention_mask.npy": "input",
    "case.json": "settings",
    "expected.json": "this list",
    "kept_torch.npy": "arbitrary among equals in the reference",
    "slot_torch.npy": "arbitrary among equals",
    "topk_weight_torch.npy": "arbitrary among equals",
    "topk_idx_torch_f32.npy": "arbitrary among ties",
    "topk_weight_torch_f32.npy": "arbitrary among ties",
}
# Compared by a unit test on arrays that the program does not write.
IN_UNIT_TESTS = {
    "slot.npy": "golden_capacity",
    "topk_weight_f64.npy": "golden_routing, golden_dialects",
    "counts_per_expert_per_sequence": "golden_routing, golden_dialects",
}


# --- one case ---


class Golden:
    """One folder, the program's results for it, and what of it was compared."""

    def __init__(self, name):
        self.name, self.folder, self.seen = name, os.path.join(ROUTING, name), set()
        self.case, self.expected = read(self.folder, "case.json"), read(
            self.folder, "expected.json"
        )

    def want(self, *path):
        """A quantity of expected.json, or None; it counts as compared."""
        value = self.expected
        for key in path:
            value = value.get(key) if value else None
        if value is not None:
            self.seen.add(".".join(path))
        return value

    def file(self, file):
        if not os.path.exists(os.path.join(self.folder, file)):
            return None
        self.seen.add(file)
        return load(os.path.join(self.folder, file))

    def same(self, found, expected, what, bound=0):
        if expected is not None:
            check(
                found == expected if not bound else near(found, expected, bound),
                f"{self.name}: {what}: {found}, expected {expected}",
            )

    def overlooked(self):
        """Quantities and files that nobody looks at."""
        names = set(os.listdir(self.folder))
        for key, value in self.expected.items():
            if key == "losses":
                names |= {
                    f"losses.{loss}.{figure}"
                    for loss, figures in value.items()
                    for figure in figures
                }
            elif key == "variants":
                names |= {f"variants.{reading}" for reading in value}
            else:
                names.add(key)
        for name in sorted(names - self.seen):
            parts = name.split(".")
            general = {
                name,
                f"losses.*.{parts[-1]}" if parts[0] == "losses" else name,
                "variants.*_f32" if name.endswith("_f32") else name,
            }
            if not general & (set(NOT_COMPARED) | set(IN_UNIT_TESTS)):
                yield name


def final_weights(case, weights, kept):
    """DeepSpeed's are those after dropping, normalised over what is kept."""
    if case["family"] != "deepspeed":
        return weights
    k = case["top_k"]
    result = []
    for at in range(0, len(weights), k):
        left = [w if keep else 0 for w, keep in zip(weights[at : at + k], kept[at : at + k])]
        total = sum(left) if k > 1 and sum(left) else 1
        result += [w / total for w in left]
    return result


def matrices(case, index):
    """From the choices: selections and distinct tokens from device to device; token t lives on t //
    (T/D).
    """
    devices, share, per = (
        case["n_device"],
        case["T"] // case["n_device"],
        case["E"] // case["n_device"],
    )
    routes, distinct = [[0] * devices for _ in range(devices)], [
        [0] * devices for _ in range(devices)
    ]
    for t, row in enumerate(index):
        to = [e // per for e in row if e >= 0]
        for d in to:
            routes[t // share][d] += 1
        for d in set(to):
            distinct[t // share][d] += 1
    return routes, distinct


def check_routing(golden, out, layer):
    case = golden.case
    index, weight, kept = (
        load(f"{out}/topk_idx.npy"),
        load(f"{out}/topk_weight.npy"),
        load(f"{out}/kept.npy"),
    )
    check(list(index.data) == list(golden.file("topk_idx.npy").data), f"{golden.name}: choices")
    expected_kept = golden.file("kept.npy")
    if expected_kept:
        check(list(kept.data) == list(expected_kept.data), f"{golden.name}: kept pairs")
    else:
        check(
            all(k or i < 0 for k, i in zip(kept.data, index.data)),
            f"{golden.name}: pairs were dropped",
        )
    check(
        near(
            final_weights(case, list(weight.data), list(kept.data)),
            list(golden.file("topk_weight.npy").data),
            1e-5,
        ),
        f"{golden.name}: weights",
    )
    reach = layer["tokens_by_reach"]
    golden.same(layer["counts_per_expert"], golden.want("counts_per_expert"), "counts_per_expert")
    golden.same(layer["counts_per_expert"], golden.want("exp_counts"), "exp_counts")
    golden.same(layer["counts_per_expert"], golden.want("counts_aux_map"), "counts_aux_map")
    per = case["E"] // case["n_device"]
    on_devices = [
        [sum(e // per == d for e in row if e >= 0) for d in range(case["n_device"])]
        for row in index.rows()
    ]
    recounted = {
        "counts_per_device": [sum(counts) for counts in zip(*on_devices)],
        "distinct_tokens_per_device": [sum(map(bool, counts)) for counts in zip(*on_devices)],
    }
    here = recounted if case.get("sinkhorn") else layer  # of one device, see settings
    golden.same(here["counts_per_device"], golden.want("counts_per_device"), "counts_per_device")
    golden.same(
        max(x for x, tokens in enumerate(reach) if tokens),
        golden.want("max_devices_per_token"),
        "max_devices_per_token",
    )
    golden.same(
        layer["mean_devices_per_token"],
        golden.want("mean_devices_per_token"),
        "mean_devices_per_token",
        1e-12,
    )
    routes, distinct = (
        matrices(case, index.rows()) if case["T"] % case["n_device"] == 0 else (None, None)
    )
    golden.same(routes, golden.want("a2a_routes_src_dst"), "a2a_routes_src_dst")
    golden.same(distinct, golden.want("a2a_distinct_tokens_src_dst"), "a2a_distinct_tokens_src_dst")
    if (
        distinct
        and not case.get("sinkhorn")
        and layer["dropped"] == 0
        and not case.get("pad_to_capacity")
    ):
        check(load(f"{out}/comm_matrix.npy").rows() == distinct, f"{golden.name}: comm_matrix.npy")
    if case.get("attention_mask"):  # padding does not count in f'', but does there
        here = recounted
    golden.same(
        here["distinct_tokens_per_device"],
        golden.want("distinct_tokens_per_device"),
        "distinct_tokens_per_device",
    )


def check_capacity(golden, layer):
    found = layer.get("capacity")
    check(
        (found is not None) == ("capacity" in golden.expected),
        f"{golden.name}: a capacity where there is none, or none where there is one",
    )
    if not found:
        return
    golden.same(found["capacity"], golden.want("capacity"), "capacity")
    golden.same(layer["kept_per_expert"], golden.want("kept_per_expert"), "kept_per_expert")
    golden.same(
        found["dropped_per_expert"], golden.want("dropped_per_expert"), "dropped_per_expert"
    )
    golden.same(layer["dropped"], golden.want("dropped_routes"), "dropped_routes")
    golden.same(
        found["fully_dropped_tokens"], golden.want("tokens_fully_dropped"), "tokens_fully_dropped"
    )
    rows = sum(layer["kept_per_expert"]) + found["padding_rows"]
    golden.same(rows, golden.want("final_map_sum"), "final_map_sum")
    full = [
        found["capacity"] if golden.case.get("pad_to_capacity") else kept
        for kept in layer["kept_per_expert"]
    ]
    golden.same(full, golden.want("per_expert_final_map"), "per_expert_final_map")


# --- losses ---

OURS = {"deepseek": "expert", "switch": "switch", "gshard": "gshard", "mixtral": "mixtral"}


def loss(golden, name, raw, weighted=None):
    """raw against f64_raw; with alpha against f64."""
    golden.same(raw, golden.want("losses", name, "f64_raw"), f"{name}, raw", 1e-10)
    alpha = golden.expected["losses"].get(name, {}).get("alpha")
    if name in golden.expected["losses"]:
        golden.same(
            alpha * raw if weighted is None else weighted,
            golden.want("losses", name, "f64"),
            f"{name} x alpha",
            1e-10,
        )


def check_losses(golden, whole, layer):
    case, raw, trained, ours = (
        golden.case,
        layer["loss_raw"],
        layer["loss"],
        OURS[form(golden.case)],
    )
    family, scopes = case["family"], layer["loss_by_scope"]
    if family == "fastmoe":  # its loss has (experts of a worker)^2 in place of N^2
        workers = case["world_size"] if case["top_k"] > 1 else 1
        loss(golden, "loss", raw[ours] / workers**2)
    elif family == "deepspeed":
        loss(golden, "l_aux", raw[ours], trained[ours])
    elif family == MEGATRON and not case.get(
        "sinkhorn"
    ):  # the loss does not go with sinkhorn there
        loss(golden, "aux", scopes["global"]["expert"], trained["expert"])
        loss(golden, "seq_aux", scopes["sequence"]["expert"])
    elif family == "switch":
        loss(golden, "aux_predrop", raw["switch"], trained["switch"])
        golden.seen |= {
            "losses.aux_hf_postdrop.f64",
            "losses.aux_hf_postdrop.f64_raw",
        }  # see check_switch_after_dropping
    elif family == "tutel" and case["loss_fn"] == "importance":
        loss(
            golden,
            "load_importance",
            (raw["importance"] + raw["load"]) / 2,
            trained["importance"] + trained["load"],
        )
    elif family == "tutel":
        loss(golden, "gshard", raw["gshard"], trained["gshard"])
    elif family in (HUGGING_FACE, "mixlora"):
        loss(golden, "aux", raw[ours], trained[ours])
        if ours == "mixtral":  # one layer: all layers put together are the same
            check(
                near(
                    whole["loss_raw"]["mixtral_all_layers"],
                    golden.expected["losses"]["aux"]["f64_raw"],
                    1e-10,
                ),
                f"{golden.name}: all layers",
            )
        golden.same(
            trained["total"],
            golden.want("losses", "total_router_loss", "f64"),
            "total_router_loss",
            1e-10,
        )
        golden.want("losses", "total_router_loss", "f64_raw")
    if "z" in golden.expected["losses"]:
        loss(golden, "z", raw["z"], trained["z"])


def check_own_losses(golden, layer):
    """DeepSeek-V2 and V3: the paper's readings, per sequence and over the batch; of equals those of
    the lowest index.
    """
    case, by_scope = golden.case, layer["loss_by_scope"]
    ties = "_ties" if case.get("ties") else ""
    for name in ("expert", "device", "comm"):
        if ties:
            golden.same(
                by_scope["sequence"][name],
                golden.want("variants", f"{name}@paper_lowest_index_ties"),
                f"{name}@paper_lowest_index_ties",
                1e-10,
            )
            continue
        golden.same(
            by_scope["sequence"][name],
            golden.want("variants", f"{name}@paper_per_sequence"),
            f"{name}@paper_per_sequence",
            1e-10,
        )
        golden.same(
            by_scope["global"][name],
            golden.want("variants", f"{name}@paper_batch"),
            f"{name}@paper_batch",
            1e-10,
        )
        if name in golden.expected["losses"]:
            loss(golden, name, layer["loss_raw"][name], layer["loss"][name])
    if not ties:
        golden.same(layer["loss"]["total"], golden.want("losses", "total", "f64"), "total", 1e-10)
        if "v3_seq_balance" in golden.expected["losses"]:
            loss(golden, "v3_seq_balance", by_scope["sequence"]["expert"])


WITH_READINGS = ("ds2_v2_E160_K6_G8_M3_zipf", "ds2_E16_K2_G4_M2_small", "ds2_collapse_E32_K4_G8_M2")
READINGS = {"reading_mean_p_selections": "mean", "reading_sum_p_selections": "sum"}


def check_readings(golden, of, layer):
    """The two circulating misreadings, and that they are not what the paper says."""
    case = golden.case
    if case["family"] != "ds2" or case.get("ties"):
        return
    if golden.name not in WITH_READINGS:  # golden_routing compares them all
        golden.seen |= {
            f"variants.{name}@{variant}"
            for variant in READINGS
            for name in ("expert", "device", "comm")
        }
        return
    for variant, device_p in READINGS.items():
        out = run(
            f"{golden.name}-{device_p}",
            1,
            {**of, "balance.device_p": device_p, "balance.comm_count": "selections"},
        )
        if not out:
            continue
        found = summary(out)["layers"][0]["loss_by_scope"]["sequence"]
        for name in ("expert", "device", "comm"):
            golden.same(
                found[name],
                golden.want("variants", f"{name}@{variant}"),
                f"{name}@{variant}",
                1e-10,
            )
        right = layer["loss_by_scope"]["sequence"]
        per = case["E"] // case["n_device"]
        if device_p == "mean" and per > 1:
            check(
                near(right["device"], per * found["device"], 1e-10),
                f"{golden.name}: a mean P' is |E_d| times too small",
            )
        share = case["top_k"] / (
            case["topk_group"] if case["n_group"] > 1 else min(case["top_k"], case["n_device"])
        )
        check(
            near(found["comm"], share * found["device"], 1e-10),
            f"{golden.name}: counting selections, the third loss is K/M times the second",
        )
        if device_p == "sum":
            check(
                not near(right["comm"], found["comm"], 1e-3),
                f"{golden.name}: tokens or selections in f'' make no difference here",
            )


# --- replays: the reference's own choice, as a recorded routing ---


def softmax(z):
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / math.fsum(e) for v in e]


def scores_of(case, logits):
    rows = load(logits).rows()
    return [
        softmax(z) if case["score_func"] == "softmax" else [1 / (1 + math.exp(-v)) for v in z]
        for z in rows
    ]


def replay(golden, of, name, index, scores):
    """The losses of a recorded choice [T,K]."""
    case = golden.case
    of = {
        key: value for key, value in of.items() if not key.startswith(("capacity.", "router.bias"))
    }
    of.update(
        {
            "data.source": "routing",
            "data.path": save(
                f"{golden.name}-{name}-idx.npy", "<i4", (case["T"], case["top_k"]), index
            ),
            "data.scores": save(
                f"{golden.name}-{name}-scores.npy",
                "<f8",
                (case["T"], case["E"]),
                [v for row in scores for v in row],
            ),
            "balance.z_loss": 0,
        }
    )
    out = run(f"{golden.name}-{name}", 1, of)
    return summary(out)["layers"][0] if out else None


def check_switch_after_dropping(golden, of, out):
    """Hugging Face's Switch takes f after dropping and counts every dropped token for expert 0."""
    if golden.case["family"] != "switch":
        return
    index, kept = load(f"{out}/topk_idx.npy").data, load(f"{out}/kept.npy").data
    layer = replay(
        golden,
        of,
        "postdrop",
        [e if keep else 0 for e, keep in zip(index, kept)],
        scores_of(golden.case, of["data.path"]),
    )
    if layer:
        loss(golden, "aux_hf_postdrop", layer["loss_raw"]["switch"], layer["loss"]["switch"])
        if golden.want("dropped_routes"):
            check(
                not near(
                    layer["loss_raw"]["switch"],
                    golden.expected["losses"]["aux_predrop"]["f64_raw"],
                    1e-3,
                ),
                f"{golden.name}: no difference",
            )


def check_choice_of_torch(golden, of, layer):
    """ties_*: the stored losses belong to the experts that torch chose among equals: they are what
    the program gives for that choice. Its own choice is the lowest index (topk_idx.npy, compared
    above). Of V3's loss there is no variant for it: it is compared with the equation.
    """
    case = golden.case
    if not case.get("ties"):
        return
    scores, own = (
        scores_of(case, of["data.path"]),
        load(os.path.join(golden.folder, "topk_idx.npy")).rows(),
    )
    torch = golden.file("topk_idx_torch_f64.npy")
    differ = sum(a != b for a, b in zip(torch.rows(), own))
    golden.same(
        differ,
        golden.want("tie_rows_differ_torch_f64_vs_lowest"),
        "tie_rows_differ_torch_f64_vs_lowest",
    )
    other = load(os.path.join(golden.folder, "topk_idx_torch_f32.npy")).rows()
    golden.same(
        sum(a != b for a, b in zip(other, own)),
        golden.want("tie_rows_differ_torch_f32_vs_lowest"),
        "tie_rows_differ_torch_f32_vs_lowest",
    )
    replayed = replay(golden, of, "torch", list(torch.data), scores)
    if not replayed:
        return
    if case["family"] == "ds2":
        for name in ("expert", "device", "comm"):
            loss(golden, name, replayed["loss_raw"][name], replayed["loss"][name])
            golden.same(
                replayed["loss_by_scope"]["sequence"][name],
                golden.want("variants", f"{name}@paper_per_sequence"),
                name,
                1e-10,
            )
            golden.same(
                replayed["loss_by_scope"]["global"][name],
                golden.want("variants", f"{name}@paper_batch"),
                name,
                1e-10,
            )
        golden.same(
            replayed["loss"]["total"], golden.want("losses", "total", "f64"), "total", 1e-10
        )
        for variant, device_p in READINGS.items():
            again = replay(
                golden,
                {**of, "balance.device_p": device_p, "balance.comm_count": "selections"},
                f"torch-{device_p}",
                list(torch.data),
                scores,
            )
            for name in ("expert", "device", "comm"):
                golden.same(
                    again["loss_by_scope"]["sequence"][name],
                    golden.want("variants", f"{name}@{variant}"),
                    f"{name}@{variant}",
                    1e-10,
                )
        return
    loss(golden, "v3_seq_balance", replayed["loss_by_scope"]["sequence"]["expert"])
    expected = v3_loss(case, scores, own)
    check(
        near(layer["loss_by_scope"]["sequence"]["expert"], expected, 1e-10),
        f"{golden.name}: V3's loss of the lowest indices",
    )
    check(
        near(
            v3_loss(case, scores, torch.rows()),
            golden.expected["losses"]["v3_seq_balance"]["f64_raw"],
            1e-10,
        ),
        f"{golden.name}: the equation",
    )


def v3_loss(case, scores, chosen):
    """DeepSeek-V3, equations 17 to 20, mean over the sequences."""
    n, k, s = case["E"], case["top_k"], case["S"]
    losses = []
    for begin in range(0, case["T"], s):
        tokens = range(begin, begin + s)
        f = [0] * n
        for t in tokens:
            for e in chosen[t]:
                f[e] += n / (k * s)
        p = [math.fsum(scores[t][i] / math.fsum(scores[t]) for t in tokens) / s for i in range(n)]
        losses.append(math.fsum(a * b for a, b in zip(f, p)))
    return math.fsum(losses) / len(losses)


def check_group_limit(golden, out):
    """How many tokens leave their M best groups: none, with masks of -inf. The reference's masks of
    0 give the same as long as no bias is negative enough.
    """
    case, group = golden.case, golden.case["E"] // golden.case["n_group"]
    if (
        "topk_group" not in case
        or golden.expected.get("tokens_violating_group_limit_in_reference") is None
    ):
        return
    beyond = sum(
        len({e // group for e in row}) > case["topk_group"]
        for row in load(f"{out}/topk_idx.npy").rows()
    )
    golden.same(
        beyond,
        golden.want("tokens_violating_group_limit_in_reference"),
        "tokens beyond the group limit",
    )


def check_gradient(golden, out):
    parts = [golden.file(f"dlogits_{name}.npy") for name in ("expert", "device", "comm")]
    if None in parts:
        return
    expected = [math.fsum(numbers) for numbers in zip(*(part.data for part in parts))]
    error = max(abs(a - b) for a, b in zip(expected, load(f"{out}/dlogits.npy").data))
    check(
        error <= 1e-10 * max(map(abs, expected)) + 1e-18,
        f"{golden.name}: dlogits differ by {error}",
    )


def check_case(name):
    golden = Golden(name)
    of = settings(golden.case, golden.folder)
    if name in PRESETS:
        of = by_preset(name, of)
    out = run(name, 1, of)
    if not out:
        return
    whole = summary(out)
    layer = whole["layers"][0]
    check(
        all(passed is not False for passed in whole["checks"].values()),
        f"{name}: a self-check failed",
    )
    check_routing(golden, out, layer)
    check_capacity(golden, layer)
    check_group_limit(golden, out)
    if golden.case["family"].startswith(("ds2", "ds3", "hfds")):
        check_own_losses(golden, layer)
        check_readings(golden, of, layer)
    else:
        check_losses(golden, whole, layer)
    check_switch_after_dropping(golden, of, out)
    check_choice_of_torch(golden, of, layer)
    check_gradient(golden, out)
    overlooked = list(golden.overlooked())
    check(not overlooked, f"{name}: nobody looks at {', '.join(overlooked)}")


CASES = sorted(os.listdir(ROUTING))
check(len(CASES) == 59, f"{len(CASES)} cases")
for case_name in CASES:
    check_case(case_name)
verdict()
