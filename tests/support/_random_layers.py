"""Helper: random settings of one layer with synthetic tokens, within what the program allows."""

import random


def random_layer(seed, most_tokens=1024):
    """{"section.key": value}, the same for the same seed."""
    r = random.Random(seed)
    devices = r.choice([1, 2, 4, 8, 16, 32])
    per_device = r.choice([1, 2, 4, 8, 16])
    experts = devices * per_device
    score = r.choice(["softmax", "sigmoid", "sqrtsoftplus", "softmax_topk"])
    of = {
        "run.seed": r.randint(0, 10**6),
        "model.num_experts": experts,
        "model.hidden_size": r.choice([8, 16, 32]),
        "cluster.devices": devices,
        "cluster.devices_per_node": r.choice([d for d in (1, 2, 4, 8, 16, 32) if d <= devices]),
        "router.score_func": score,
        "router.norm_topk_prob": r.choice(["yes", "no"]),
        "router.gate_scale": r.choice([0.5, 1, 3]),
        "data.tokens_per_device": r.randint(1, max(1, most_tokens // devices)),
        "data.sequence_length": r.choice([0, 16, 64, 100]),
        "data.skew": r.choice([0, 0.5, 1.2, 2]),
        "data.num_topics": r.choice([4, 16, 64]),
        "data.topic_strength": r.choice([0, 0.5, 0.9]),
        "balance.scope": r.choice(["sequence", "device", "global"]),
        "exchange.mode": r.choice(["token", "selection"]),
        "exchange.payload": r.choice(["fp32", "bf16", "fp8"]),
        "exchange.combine_payload": r.choice(["fp32", "bf16"]),
    }
    most = min(experts, 12)
    of["router.top_k"] = r.randint(1, most)
    if devices > 1 and r.random() < 0.6:
        groups = r.choice([devices, max(1, devices // 2)])
        size, limit = experts // groups, r.choice(["max", "max", "top2_sum"])
        group_limit = "max" if size < 2 else limit
        m = r.randint(1, groups)
        of.update(
            {
                "router.group_limit": group_limit,
                "router.num_groups": groups,
                "router.topk_group": m,
                "router.top_k": r.randint(1, min(most, m * size)),
            }
        )
    if r.random() < 0.5:
        policy = r.choice(["device", "expert", "sequence"])
        of.update(
            {
                "capacity.policy": policy,
                "capacity.capacity_factor": r.choice([1, 1.25, 2]),
                "capacity.min_capacity": r.choice([1, 4]),
            }
        )
        if policy != "sequence":
            of["capacity.drop"] = r.choice(["scores", "probs", "position"])
        if policy == "expert" and r.random() < 0.3:
            of["capacity.overflow"] = "next_choice"
    return of
