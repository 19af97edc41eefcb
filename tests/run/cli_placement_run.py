"""ctest: timeout=240
Runs under every static placement: the same bits on any number of ranks and in both exchange modes;
loads, rows, losses and their gradient computed here again from what the run wrote; and what is
refused.
"""
import math
import os
import random

from _moesim import QUICKSTART, TEMPORARY, check, load, moesim, near, run, same_bytes, save, sets
from _moesim import summary, verdict

EXPERTS, DEVICES, PER_NODE, K, EACH, HIDDEN = 16, 8, 4, 3, 24, 16
TOKENS = DEVICES * EACH
BASE = {
    "model.num_experts": EXPERTS,
    "model.hidden_size": HIDDEN,
    "model.moe_intermediate_size": 8,
    "router.top_k": K,
    "router.group_limit": "max",
    "router.topk_group": 3,
    "data.tokens_per_device": EACH,
    "cluster.devices": DEVICES,
    "cluster.devices_per_node": PER_NODE,
    "balance.scope": "global",
    "balance.alpha_device": 0.7,
    "balance.alpha_comm": 0.3,
    "output.tensors": "yes",
    "output.routing": "yes",
}


def drawn(slots, seed):
    """Experts in slots, every one of them somewhere, some twice on one device."""
    generator = random.Random(seed)
    experts = [*range(EXPERTS), *(generator.randrange(4) for _ in range(slots - EXPERTS))]
    generator.shuffle(experts)
    return experts


def expected_slots(policy, slots):
    if policy == "block":
        return [s % EXPERTS for s in range(slots)]
    each = slots // DEVICES
    return [(s % each * DEVICES + s // each) % EXPERTS for s in range(slots)]


def serving(placement, expert, token):
    """The device that serves, by the rule of docs/placement.md."""
    each, home = len(placement) // DEVICES, token // EACH
    on = [slot // each for slot, e in enumerate(placement) if e == expert]
    same = [d for d in on if d == home]
    near_by = [d for d in on if d // PER_NODE == home // PER_NODE]
    choice = same or near_by or on
    return choice[token % len(choice)]


def softmax(row):
    most = max(row)
    powers = [math.exp(z - most) for z in row]
    total = sum(powers)
    return [p / total for p in powers]


def check_figures(folder, placement, name):
    """Counts and matrix exactly; device and communication loss and dlogits in double."""
    idx = load(os.path.join(folder, "topk_idx.npy")).rows()
    logits = load(os.path.join(folder, "logits.npy")).rows()
    scores = [softmax(row) for row in logits]
    matrix = [[0] * DEVICES for _ in range(DEVICES)]
    count, by_device = [0] * EXPERTS, [0] * DEVICES
    share = [[0.0] * DEVICES for _ in range(EXPERTS)]
    for token, experts in enumerate(idx):
        devices = [serving(placement, e, token) for e in experts]
        for expert, device in zip(experts, devices):
            count[expert] += 1
            by_device[device] += 1
            share[expert][device] += 1
        for device in set(devices):
            matrix[token // EACH][device] += 1
    each = len(placement) // DEVICES
    for expert in range(EXPERTS):
        on = [slot // each for slot, e in enumerate(placement) if e == expert]
        for device in range(DEVICES):
            share[expert][device] = (
                share[expert][device] / count[expert]
                if count[expert]
                else on.count(device) / len(on)
            )
    found = summary(folder)
    layer = found["layers"][0]
    check(layer["counts_per_device"] == by_device, f"{name}: selections of devices")
    written = load(os.path.join(folder, "comm_matrix.npy")).data
    check(list(written) == [x for row in matrix for x in row], f"{name}: rows between devices")
    mean = [sum(s[e] for s in scores) / TOKENS for e in range(EXPERTS)]
    sums = [sum(mean[e] * share[e][d] for e in range(EXPERTS)) for d in range(DEVICES)]
    blocks = placement == list(range(EXPERTS))
    reach = 3 if blocks else min(K, DEVICES)
    f1 = [DEVICES * by_device[d] / (K * TOKENS) for d in range(DEVICES)]
    f2 = [
        DEVICES * sum(matrix[s][d] for s in range(DEVICES)) / (reach * TOKENS)
        for d in range(DEVICES)
    ]
    for key, f in (("device", f1), ("comm", f2)):
        value = sum(f[d] * sums[d] for d in range(DEVICES))
        check(
            near(found["loss_raw"][key], value, 1e-5),
            f"{name}: {key} loss {value}, {found['loss_raw'][key]}",
        )
    a = [
        sum(share[e][d] * (0.7 * f1[d] + 0.3 * f2[d]) for d in range(DEVICES))
        for e in range(EXPERTS)
    ]
    dlogits = load(os.path.join(folder, "dlogits.npy")).rows()
    gap = 0.0
    for s, row in zip(scores, dlogits):
        average = sum(x * y for x, y in zip(a, s))
        gap = max(gap, *(abs(row[e] - s[e] * (a[e] - average) / TOKENS) for e in range(EXPERTS)))
    check(gap < 1e-8, f"{name}: dlogits differ by {gap}")


def check_policies():
    plain = run("plain", 2, BASE)
    for policy, redundant in (
        ("round_robin", 0),
        ("block", 8),
        ("round_robin", 8),
        ("file", 0),
        ("file", 16),
    ):
        name = f"{policy}{redundant}"
        slots = EXPERTS + redundant
        settings = {
            **BASE,
            "placement.policy": policy,
            "placement.redundant_experts": redundant,
        }
        placement = expected_slots(policy, slots)
        if policy == "file":
            placement = drawn(slots, redundant)
            settings["placement.file"] = save(f"{name}.npy", "<i4", [slots], placement)
        first = run(name, 1, settings)
        if not first or not plain:
            continue
        check_figures(first, placement, name)
        check(
            same_bytes(os.path.join(plain, "topk_idx.npy"), os.path.join(first, "topk_idx.npy")),
            f"{name}: the same choices as in blocks",
        )
        y, other = (load(os.path.join(f, "y.npy")).data for f in (plain, first))
        check(
            max(abs(u - v) for u, v in zip(y, other)) < 1e-5, f"{name}: another output than blocks"
        )
        for ranks, mode in ((2, "selection"), (4, "token"), (8, "selection"), (8, "token")):
            again = run(f"{name}-{ranks}-{mode}", ranks, {**settings, "exchange.mode": mode})
            for file in ("y.npy", "dlogits.npy") if again else ():
                check(
                    same_bytes(os.path.join(first, file), os.path.join(again, file)),
                    f"{name}: {file} at np {ranks}, mode {mode}",
                )


def check_batches():
    """What decides in every batch: the same bits on any number of ranks; y of blocks; and how even
    the devices are: LPLB's and MoonEP's exactly, where there are enough links and slots.
    """
    for policy, redundant in (("lplb", 24), ("llep", 24), ("moonep", 48)):
        settings = {
            **BASE,
            "data.skew": 1,
            "placement.policy": policy,
            "placement.redundant_experts": redundant,
        }
        plain = run(f"{policy}-plain", 2, {**BASE, "data.skew": 1})
        first = run(f"{policy}-1", 1, settings)
        if not plain or not first:
            continue
        layer, blocks = (summary(folder)["layers"][0] for folder in (first, plain))
        check(layer["counts_per_expert"] == blocks["counts_per_expert"], f"{policy}: choices")
        check(
            max(layer["counts_per_device"]) < max(blocks["counts_per_device"]),
            f"{policy}: {layer['counts_per_device']}, in blocks {blocks['counts_per_device']}",
        )
        if policy == "moonep":
            check(layer["counts_per_device"] == [K * EACH] * DEVICES, "moonep: not all the same")
        y, other = (load(os.path.join(f, "y.npy")).data for f in (plain, first))
        check(max(abs(u - v) for u, v in zip(y, other)) < 1e-5, f"{policy}: another output")
        for ranks, mode in ((2, "selection"), (4, "token"), (8, "token")):
            again = run(f"{policy}-{ranks}", ranks, {**settings, "exchange.mode": mode})
            for file in ("y.npy", "dlogits.npy") if again else ():
                check(
                    same_bytes(os.path.join(first, file), os.path.join(again, file)),
                    f"{policy}: {file} at np {ranks}, mode {mode}",
                )
        run(f"{policy}-explained", 2, settings, "--explain", 5, "--explain-step")


def check_uneven():
    """13 experts on 8 devices, where 3 redundant ones fill the slots: y of one device that has them
    all; the same bits on any number of ranks.
    """
    settings = {
        **BASE,
        "model.num_experts": 13,
        "router.group_limit": "none",
        "router.topk_group": 0,
        "placement.redundant_experts": 3,
    }
    alone = run(
        "uneven-alone",
        1,
        {
            **settings,
            "placement.redundant_experts": 0,
            "cluster.devices": 1,
            "cluster.devices_per_node": 1,
            "data.tokens_per_device": TOKENS,
        },
    )
    for policy in ("block", "round_robin", "eplb", "eplb_global", "flashlb", "joint"):
        settings["placement.policy"] = policy
        one = run(f"uneven-{policy}-1", 1, settings)
        four = run(f"uneven-{policy}-4", 4, settings, "--explain", 5, "--explain-step")
        if not alone or not one or not four:
            continue
        y, other = (load(os.path.join(f, "y.npy")).data for f in (alone, one))
        check(max(abs(u - v) for u, v in zip(y, other)) < 1e-5, f"uneven {policy}: another y")
        for file in ("y.npy", "dlogits.npy"):
            same = same_bytes(os.path.join(one, file), os.path.join(four, file))
            check(same, f"uneven {policy}: {file} at np 1 and 4")


def check_others():
    """Several layers with capacities: the self-checks of the run are the test."""
    for i, more in enumerate(
        (
            {"capacity.policy": "device", "capacity.capacity_factor": 1},
            {
                "capacity.policy": "device",
                "capacity.overflow": "next_choice",
                "capacity.capacity_factor": 1,
            },
            {
                "capacity.policy": "expert",
                "capacity.capacity_factor": 1,
                "balance.device_p": "mean",
            },
        )
    ):
        settings = {**BASE, **more, "model.num_layers": 2, "output.tensors": "no"}
        settings["placement.redundant_experts"] = 8
        one = run(f"others{i}-1", 1, settings)
        four = run(f"others{i}-4", 4, settings)
        if one and four:
            first, second = summary(one), summary(four)
            check(first["loss_raw"] == second["loss_raw"], f"{more}: losses at np 1 and 4")
            check(first["layers"] == second["layers"], f"{more}: layers at np 1 and 4")
        run(f"explained{i}", 2, settings, "--explain", 5, "--explain-step")


def check_refusals():
    small = {"model.num_experts": 16, "cluster.devices": 4}
    names = {
        "homeless": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 14],
        "unknown": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16],
        "short": list(range(12)),
    }
    files = {key: save(f"{key}.npy", "<i4", [len(x)], x) for key, x in names.items()}
    for sentence, settings in (
        ("which is no multiple of cluster.devices", {"placement.redundant_experts": 3}),
        ("more than there are experts", {"placement.redundant_experts": 64}),
        ("has to be a multiple of cluster.devices", {"model.num_experts": 13}),
        (
            "every device is home to as many",
            {
                "model.num_experts": 13,
                "router.group_limit": "none",
                "router.num_groups": 0,
                "placement.redundant_experts": 3,
                "placement.policy": "epic",
            },
        ),
        ("leaves expert 15 of layer 0 without a slot", {"placement.file": files["homeless"]}),
        ("names expert 16 in slot 15", {"placement.file": files["unknown"]}),
        ("has 12 slots in 1 layers, and 16", {"placement.file": files["short"]}),
        ("placement.policy = file", {"placement.file": ""}),
        ("cannot be opened", {"placement.file": os.path.join(TEMPORARY, "none.npy")}),
    ):
        settings = {**small, **settings}
        if "placement.file" in settings:
            settings["placement.policy"] = "file"
        done = moesim(2, QUICKSTART, *sets(settings))
        check(done.code == 2, f"{settings}: status {done.code}")
        check(sentence in done.err, f"'{sentence}' is not in: {done.err}")
        check(done.err.count("\n") == 1, f"more than one line: {done.err}")


check_policies()
check_batches()
check_uneven()
check_others()
check_refusals()
verdict()
