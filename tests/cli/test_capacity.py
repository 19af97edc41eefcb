"""ctest: timeout=180
Dropping seen from outside: summary.json, kept.npy and the matrix agree with each other and do not depend on the number of ranks or threads; the bytes
saved are the difference to the same run without a capacity; f'' and the losses are those before dropping."""
from _moesim import check, load, run, same_bytes, summary, verdict

BASE = {
    "model.num_layers": 2, "model.hidden_size": 16, "model.num_experts": 32, "model.moe_intermediate_size": 8, "router.top_k": 4,
    "router.group_limit": "max", "router.topk_group": 3, "balance.alpha_expert": 0.003, "balance.alpha_comm": 0.02, "cluster.devices": 8,
    "data.tokens_per_device": 37, "data.sequence_length": 50, "model.residual": "no", "output.routing": "yes",
}
RULES = {
    "device": {"policy": "device", "exempt_sequences": 0.2},
    "device_small": {"policy": "device", "capacity_factor": 0.25, "exempt_sequences": 0.5},
    "device_next": {"policy": "device", "overflow": "next_choice"},
    "expert": {"policy": "expert", "capacity_factor": 0.7, "pad_to_capacity": "yes"},
    "expert_local": {"policy": "expert", "capacity_scope": "device", "drop": "position", "first_choices": "yes"},
    "sequence": {"policy": "sequence", "expert_capacity": 3},
    "sequence_next": {"policy": "sequence", "expert_capacity": 3, "overflow": "next_choice"},
}
SAME_BEFORE = ("counts_per_expert", "counts_per_device", "distinct_tokens_per_device", "loss_raw", "loss_by_scope", "selections")


def settings(rule, **more):
    return {**BASE, **{f"capacity.{k}": v for k, v in rule.items()}, **more}


def check_layer(name, layer, kept, plain):
    c = layer["capacity"]
    check(sum(kept) == sum(layer["kept_per_expert"]) == layer["selections"] - layer["dropped"], f"{name}: kept pairs")
    check(kept.count(0) == layer["dropped"] == c["dropped"] == sum(c["dropped_per_expert"]) == sum(c["dropped_per_device"])
          == sum(c["dropped_per_sequence"]), f"{name}: dropped pairs")
    check(c["dropped"] > 0, f"{name}: nothing was dropped")
    check(c["dropped_sequences"] == sum(n > 0 for n in c["dropped_per_sequence"]), f"{name}: sequences")
    k = BASE["router.top_k"]
    lost = [kept[i:i + k].count(0) for i in range(0, len(kept), k)]
    check(c["dropped_tokens"] == sum(n > 0 for n in lost) and c["fully_dropped_tokens"] == lost.count(k), f"{name}: tokens")
    saved = sum(plain["volume"][d]["logical_bytes"] - layer["volume"][d]["logical_bytes"] for d in ("dispatch", "combine"))
    check(c["bytes_saved"] == saved, f"{name}: {c['bytes_saved']} bytes saved, {saved} fewer were sent")
    for key in SAME_BEFORE:
        check(layer[key] == plain[key], f"{name}: {key} is not that before dropping")


def check_rule(name, rule, plain):
    folders = [run(f"{name}{np}", np, settings(rule, **{"run.threads": 1 + np % 2})) for np in (1, 2, 4)]
    if not all(folders):
        return
    first = summary(folders[0])
    check(all(v is not False for v in first["checks"].values()), f"{name}: {first['checks']}")
    kept = load(f"{folders[0]}/kept.npy").data
    share = len(kept) // len(first["layers"])
    check_layer(name, first["layers"][0], list(kept[:share]), plain["layers"][0])   # the second layer's input differs
    if rule["policy"] == "device":
        exempt = round(rule.get("exempt_sequences", 0) * len(first["layers"][0]["capacity"]["dropped_per_sequence"]))
        free = first["layers"][0]["capacity"]["dropped_per_sequence"].count(0)
        check(free >= exempt, f"{name}: {free} sequences lost nothing, {exempt} are exempt")
    if "pad_to_capacity" in rule:
        c = first["layers"][0]["capacity"]
        check(c["padding_rows"] == 32 * c["capacity"] - sum(first["layers"][0]["kept_per_expert"]), f"{name}: padding")
    for folder in folders[1:]:
        check(summary(folder)["layers"] == first["layers"], f"{name}: {folder} differs in summary.json")
        for array in ("kept.npy", "topk_idx.npy", "comm_matrix.npy") + (("served_idx.npy",) if "overflow" in rule else ()):
            check(same_bytes(f"{folder}/{array}", f"{folders[0]}/{array}"), f"{name}: {folder}/{array} differs")


without_capacity = summary(run("plain", 2, BASE))
check("capacity" not in without_capacity["layers"][0], "a capacity that nobody asked for")
for rule_name, capacity in RULES.items():
    check_rule(rule_name, capacity, without_capacity)
verdict()
