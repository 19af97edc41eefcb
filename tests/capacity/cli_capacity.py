"""ctest: timeout=180
Dropping seen from outside: summary.json, kept.npy and the matrix agree with each other and do not
depend on the number of ranks or threads; the bytes saved are the difference to the same run without
a capacity; f'' and the losses are those before dropping.
"""
import os
import re

from _moesim import check, config, load, moesim, run, same_bytes, save, summary, verdict

BASE = {
    "model.num_layers": 2,
    "model.hidden_size": 16,
    "model.num_experts": 32,
    "model.moe_intermediate_size": 8,
    "router.top_k": 4,
    "router.group_limit": "max",
    "router.topk_group": 3,
    "balance.alpha_expert": 0.003,
    "balance.alpha_comm": 0.02,
    "cluster.devices": 8,
    "data.tokens_per_device": 37,
    "data.sequence_length": 50,
    "model.residual": "no",
    "output.routing": "yes",
}
RULES = {
    "device": {"policy": "device", "exempt_sequences": 0.2},
    "device_small": {"policy": "device", "capacity_factor": 0.25, "exempt_sequences": 0.5},
    "device_next": {"policy": "device", "overflow": "next_choice"},
    "expert": {"policy": "expert", "capacity_factor": 0.7, "pad_to_capacity": "yes"},
    "expert_local": {
        "policy": "expert",
        "capacity_scope": "device",
        "drop": "position",
        "first_choices": "yes",
    },
    "sequence": {"policy": "sequence", "expert_capacity": 3},
    "sequence_next": {"policy": "sequence", "expert_capacity": 3, "overflow": "next_choice"},
}
SAME_BEFORE = (
    "counts_per_expert",
    "counts_per_device",
    "distinct_tokens_per_device",
    "loss_raw",
    "loss_by_scope",
    "selections",
)


def settings(rule, **more):
    return {**BASE, **{f"capacity.{k}": v for k, v in rule.items()}, **more}


def check_layer(name, layer, kept, plain):
    c = layer["capacity"]
    check(
        sum(kept) == sum(layer["kept_per_expert"]) == layer["selections"] - layer["dropped"],
        f"{name}: kept pairs",
    )
    check(
        kept.count(0)
        == layer["dropped"]
        == c["dropped"]
        == sum(c["dropped_per_expert"])
        == sum(c["dropped_per_device"])
        == sum(c["dropped_per_sequence"]),
        f"{name}: dropped pairs",
    )
    check(c["dropped"] > 0, f"{name}: nothing was dropped")
    check(
        c["dropped_sequences"] == sum(n > 0 for n in c["dropped_per_sequence"]),
        f"{name}: sequences",
    )
    k = BASE["router.top_k"]
    lost = [kept[i : i + k].count(0) for i in range(0, len(kept), k)]
    check(
        c["dropped_tokens"] == sum(n > 0 for n in lost)
        and c["fully_dropped_tokens"] == lost.count(k),
        f"{name}: tokens",
    )
    saved = sum(
        plain["volume"][d]["logical_bytes"] - layer["volume"][d]["logical_bytes"]
        for d in ("dispatch", "combine")
    )
    check(
        c["bytes_saved"] == saved,
        f"{name}: {c['bytes_saved']} bytes saved, {saved} fewer were sent",
    )
    for key in SAME_BEFORE:
        check(layer[key] == plain[key], f"{name}: {key} is not that before dropping")


def recount(index, served):
    """From the arrays alone: pairs lost by expert, device and sequence, tokens that lost some and
    all, rows before and after. served: -1 where nobody.
    """
    n, k, devices, tokens = (
        BASE["model.num_experts"],
        BASE["router.top_k"],
        BASE["cluster.devices"],
        len(index) // BASE["router.top_k"],
    )
    per, length = n // devices, BASE["data.sequence_length"]
    lost = {"expert": [0] * n, "device": [0] * devices, "sequence": [0] * -(-tokens // length)}
    some = every = before = after = 0
    for t in range(tokens):
        chosen, by = index[t * k : (t + 1) * k], served[t * k : (t + 1) * k]
        for e, server in zip(chosen, by):
            if server < 0:
                lost["expert"][e] += 1
                lost["device"][e // per] += 1
                lost["sequence"][t // length] += 1
        left = [e for e in by if e >= 0]
        some, every = some + (len(left) < k), every + (not left)
        before, after = before + len({e // per for e in chosen}), after + len(
            {e // per for e in left}
        )
    return lost, some, every, before - after


def check_from_arrays(name, rule, layer, index, served):
    c, h, n = layer["capacity"], BASE["model.hidden_size"], BASE["model.num_experts"]
    lost, some, every, rows = recount(index, served)
    for what, pairs in lost.items():
        check(
            c[f"dropped_per_{what}"] == pairs,
            f"{name}: dropped by {what}: {c[f'dropped_per_{what}']}, from the arrays {pairs}",
        )
    check(
        (c["dropped_tokens"], c["fully_dropped_tokens"]) == (some, every),
        f"{name}: {some} tokens lost a pair, {every} all",
    )
    check(
        (c["rows_saved"], c["bytes_saved"]) == (rows, rows * h * 4 * 2),
        f"{name}: {c['rows_saved']} rows saved, from the arrays {rows}",
    )
    kept = [served.count(e) for e in range(n)]
    check(layer["kept_per_expert"] == kept, f"{name}: kept by expert")
    wasted = sum(c["capacity"] - pairs for pairs in kept) if rule.get("pad_to_capacity") else 0
    check(
        (c["padding_rows"], c["padding_bytes"]) == (wasted, wasted * h * 4 * 2),
        f"{name}: {c['padding_rows']} rows of padding, from the arrays {wasted}",
    )


def check_screen(name, rule):
    """The figures on the screen are those of the summary, one layer."""
    out = f"{name}-screen"
    done = moesim(2, config(out, settings(rule, **{"model.num_layers": 1})), "--out", out)
    if not check(done.code == 0, f"{name}: {done.err}"):
        return
    layer = summary(out)["layers"][0]
    c = layer["capacity"]
    text = " ".join(
        done.out[done.out.index("Capacity (policy") :].split("\n\n")[0].split()
    ).replace(",", "")
    found = re.search(
        r"(\d+) pairs per .*: dropped (\d+) of (\d+) pairs .*; (\d+) tokens lost a pair (\d+) of",
        text,
    )
    figures = [
        c["capacity"],
        c["dropped"],
        layer["selections"],
        c["dropped_tokens"],
        c["fully_dropped_tokens"],
    ]
    check(
        found and [int(x) for x in found.groups()] == figures,
        f"{name}: {figures} are not in: {text}",
    )
    check(f"saved {c['rows_saved']} rows" in text, f"{name}: rows saved: {text}")
    if rule.get("pad_to_capacity"):
        check(f"wastes {c['padding_rows']} rows" in text, f"{name}: padding: {text}")
    for what in ("expert", "device", "sequence"):
        pairs = c[f"dropped_per_{what}"]
        first = sorted((i for i in range(len(pairs)) if pairs[i]), key=lambda i: (-pairs[i], i))[:8]
        check(
            f"by {what} most first: " + " ".join(f"{i} ({pairs[i]})" for i in first) in text,
            f"{name}: by {what}: {pairs}: {text}",
        )


def check_refused():
    """A capacity without room is none: both keys, and what would be one."""
    done = moesim(
        2,
        config(
            "none", settings({"policy": "expert", "rounding": "fastmoe", "capacity_factor": 0.001})
        ),
        "--out",
        "none",
    )
    words = (
        "capacity.capacity_factor = 0.001",
        "capacity.rounding = fastmoe",
        "min_capacity",
        "rounding = ceil",
    )
    check(
        done.code == 2 and done.err.count("\n") == 1 and all(word in done.err for word in words),
        f"{done.code}: {done.err}",
    )
    # the balanced load of a small batch, which FastMoE rounds down to nothing
    path = save("few.npy", "<i4", (4, 2), list(range(8)))
    few = {
        "model.num_experts": 8,
        "model.hidden_size": 4,
        "model.moe_intermediate_size": 2,
        "router.preset": "fastmoe_gshard",
        "cluster.devices": 2,
        "data.source": "routing",
        "data.path": path,
    }
    out = run("few", 2, few)
    if out:
        check(summary(out)["layers"][0]["dropped"] == 8, "FastMoE drops all eight pairs")
        done = moesim(2, os.path.join(out, "config.ini"), "--out", "few-again", "--quiet")
        check(done.code == 0, f"its config.ini again: {done.code}: {done.err}")


def check_rule(name, rule, plain):
    folders = [
        run(f"{name}{np}", np, settings(rule, **{"run.threads": 1 + np % 2})) for np in (1, 2, 4)
    ]
    if not all(folders):
        return
    first = summary(folders[0])
    check(all(v is not False for v in first["checks"].values()), f"{name}: {first['checks']}")
    kept = load(f"{folders[0]}/kept.npy").data
    share = len(kept) // len(first["layers"])
    check_layer(
        name, first["layers"][0], list(kept[:share]), plain["layers"][0]
    )  # the second layer's input differs
    index = list(load(f"{folders[0]}/topk_idx.npy").data)
    served = (
        list(load(f"{folders[0]}/served_idx.npy").data)
        if "overflow" in rule
        else [e if keep else -1 for e, keep in zip(index, kept)]
    )
    for l, layer in enumerate(first["layers"]):
        check_from_arrays(
            f"{name}, layer {l}",
            rule,
            layer,
            index[l * share : (l + 1) * share],
            served[l * share : (l + 1) * share],
        )
    if rule["policy"] == "device":
        exempt = round(
            rule.get("exempt_sequences", 0)
            * len(first["layers"][0]["capacity"]["dropped_per_sequence"])
        )
        free = first["layers"][0]["capacity"]["dropped_per_sequence"].count(0)
        check(free >= exempt, f"{name}: {free} sequences lost nothing, {exempt} are exempt")
    if "pad_to_capacity" in rule:
        c = first["layers"][0]["capacity"]
        check(
            c["padding_rows"] == 32 * c["capacity"] - sum(first["layers"][0]["kept_per_expert"]),
            f"{name}: padding",
        )
    for folder in folders[1:]:
        check(
            summary(folder)["layers"] == first["layers"],
            f"{name}: {folder} differs in summary.json",
        )
        for array in ("kept.npy", "topk_idx.npy", "comm_matrix.npy") + (
            ("served_idx.npy",) if "overflow" in rule else ()
        ):
            check(
                same_bytes(f"{folder}/{array}", f"{folders[0]}/{array}"),
                f"{name}: {folder}/{array} differs",
            )


def check_choices_of_experts():
    """Experts choose, and a token may have more than top_k of them: each choice has its turn."""
    rule = {"policy": "expert", "expert_capacity": 20, "drop": "position", "first_choices": "yes"}
    more = {"router.method": "expert_choice", "router.group_limit": "none", "model.num_layers": 1}
    for np in (1, 2):
        out = run(f"experts-choose{np}", np, settings(rule, **more))
        if not out:
            return
        n, index = BASE["model.num_experts"], list(load(f"{out}/topk_idx.npy").data)
        pairs = [(i % n, i // n, e) for i, e in enumerate(index) if e >= 0]
        check(max(pairs)[0] >= BASE["router.top_k"], "no token has more than top_k experts")
        served, kept = {}, [0] * len(index)
        for choice, token, e in sorted(pairs):
            if served.get(e, 0) < rule["expert_capacity"]:
                served[e], kept[token * n + choice] = served.get(e, 0) + 1, 1
        wrong = sum(a != b for a, b in zip(kept, load(f"{out}/kept.npy").data))
        check(wrong == 0 and kept.count(1) < len(pairs), f"first choices of experts: {wrong}")


without_capacity = summary(run("plain", 2, BASE))
check("capacity" not in without_capacity["layers"][0], "a capacity that nobody asked for")
for rule_name, capacity in RULES.items():
    check_rule(rule_name, capacity, without_capacity)
for rule_name in ("device_small", "expert", "sequence"):
    check_screen(rule_name, RULES[rule_name])
check_refused()
check_choices_of_experts()
verdict()
