"""ctest: timeout=120
--placements: EPLB's golden cases from a file of loads; the figures of a run's own routing, computed
here again from what the run wrote; the same on any number of ranks; and what is refused.
"""
import json
import os

from _moesim import GOLDEN, QUICKSTART, TEMPORARY, check, config, load, moesim, near, run, save
from _moesim import sets, verdict

ROUTED = {
    "run.steps": 4,
    "model.num_layers": 2,
    "model.num_experts": 16,
    "model.hidden_size": 16,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "data.tokens_per_device": 40,
    "cluster.devices": 8,
    "cluster.devices_per_node": 4,
}


def placements(name, ranks, settings, *arguments):
    """The parsed placements.json and the folder, or None after a failed check."""
    folder = os.path.join(TEMPORARY, name)
    path = config(name, settings)
    done = moesim(ranks, "--placements", path, "--out", folder, *arguments)
    if not check(done.code == 0, f"{name} at np {ranks}: status {done.code}: {done.err}"):
        return None, folder
    check(
        all(len(line) <= 80 for line in done.out.splitlines() if not line.startswith("/")),
        f"{name}: wider than 80 columns",
    )
    with open(os.path.join(folder, "placements.json")) as file:
        return json.load(file), folder


# --- EPLB's golden cases ---


def check_golden(case):
    folder = os.path.join(GOLDEN, "eplb", case)
    with open(os.path.join(folder, "expected.json")) as file:
        expected = json.load(file)
    devices, experts = expected["num_gpus"], expected["experts"]
    found, out = placements(
        case,
        1,
        {
            "model.num_experts": experts,
            "cluster.devices": devices,
            "cluster.devices_per_node": devices // expected["num_nodes"],
            "router.num_groups": expected["num_groups"],
            "placement.redundant_experts": expected["num_replicas"] - experts,
            "placement.load": os.path.join(folder, "weight.npy"),
        },
    )
    if not found:
        return
    policy = "eplb" if expected["policy"] == "hierarchical" else "eplb_global"
    for name in {policy, "eplb"}:
        mine = load(os.path.join(out, "placements", name + ".npy"))
        theirs = load(os.path.join(folder, "phy2log.npy"))
        check(mine.dtype == "<i4" and mine.shape == theirs.shape, f"{case}: {mine.shape}")
        check(list(mine.data) == list(theirs.data), f"{case}: {name} is another placement")
        by_layer = found["policies"][name]["device_max_over_mean_by_layer"]
        check(near(by_layer, expected["imbalance_max_over_mean"], 1e-9), f"{case}: {by_layer}")
    check(found["own_window"], f"{case}: one step is judged on itself, and that is not marked")
    check(found["policies"]["joint"]["left_out"], f"{case}: joint has no pairs")
    check(found["policies"]["eplb"]["cross_node_rows"] is None, f"{case}: rows without tokens")


# --- a routing ---


def serve(placement, chosen, homes, devices, per_node):
    """(device max/mean, receiver max/mean, rows, across devices, across nodes) by the rule."""
    slots = len(placement) // devices
    served, received = [0] * devices, [0] * devices
    rows = cross_device = cross_node = 0
    for token, (experts, home) in enumerate(zip(chosen, homes)):
        reached = set()
        for expert in experts:
            if expert < 0:
                continue
            on = [slot // slots for slot, e in enumerate(placement) if e == expert]
            same = [d for d in on if d == home]
            near_by = [d for d in on if d // per_node == home // per_node]
            choice = same or near_by or on
            device = choice[token % len(choice)]
            served[device] += 1
            reached.add(device)
        for device in reached:
            received[device] += 1
            rows += 1
            cross_device += device != home
            cross_node += device // per_node != home // per_node
    return (
        max(served) * devices / sum(served),
        max(received) * devices / sum(received),
        rows,
        cross_device,
        cross_node,
    )


def check_routing():
    """One step judged on itself, against the routing that the run of the same step writes."""
    one = {**ROUTED, "run.steps": 1}
    written = run("routing", 2, {**one, "output.routing": "yes"})
    own = {**one, "placement.fit": 1, "placement.score": 1, "placement.redundant_experts": 8}
    found, out = placements("own", 2, own)
    if not written or not found:
        return
    check(found["own_window"] and not found["steps_are_halves"], "a window on itself is marked")
    idx = load(os.path.join(written, "topk_idx.npy"))
    layers, tokens, k = idx.shape
    rows = idx.rows()
    homes = [t // (tokens // 8) for t in range(tokens)]
    for policy in ("block", "round_robin", "eplb", "eplb_global", "flashlb", "epic", "joint"):
        placement = load(os.path.join(out, "placements", policy + ".npy")).rows()
        each = [
            serve(placement[layer], rows[layer * tokens : (layer + 1) * tokens], homes, 8, 4)
            for layer in range(layers)
        ]
        figures = found["policies"][policy]
        for i, key in enumerate(("device_max_over_mean", "receiver_max_over_mean")):
            mean = sum(layer[i] for layer in each) / layers
            worst = max(layer[i] for layer in each)
            check(near(figures[key], mean, 1e-12), f"{policy} {key}: {figures[key]}, not {mean}")
            check(near(figures[key + "_worst"], worst, 1e-12), f"{policy}: worst {key}")
        for i, key in enumerate(("rows", "cross_device_rows", "cross_node_rows")):
            total = sum(layer[2 + i] for layer in each)
            check(figures[key] == total, f"{policy} {key}: {figures[key]}, not {total}")
        check(figures["selections"] == layers * tokens * k, f"{policy}: selections")
    for policy in ("llep", "moonep"):
        check(found["policies"][policy]["device_max_over_mean"] < 1.05, f"{policy} balances")


def without_times(found):
    for policy in found["policies"].values():
        policy.pop("seconds_to_decide", None)
        policy.pop("seconds_per_step", None)
    return found


def check_ranks():
    """A later window, and the same figures on any number of ranks."""
    settings = {**ROUTED, "placement.redundant_experts": 8}
    first, folder = placements("np1", 1, settings)
    if not first:
        return
    check(
        first["fit"] == {"first_step": 0, "steps": 2}
        and first["score"] == {"first_step": 2, "steps": 2}
        and not first["own_window"],
        "the first half fits, the rest is judged:",
        first["fit"],
        first["score"],
    )
    for ranks in (2, 8):
        other, _ = placements(f"np{ranks}", ranks, settings)
        check(other and without_times(other) == without_times(first), f"np {ranks}: other figures")
    block = first["policies"]["block"]
    check(block["weights_moved"] == 0 and block["replicas_wasted"] == 0, "blocks move nothing")
    check(sorted(os.listdir(folder)) == ["config.ini", "placements", "placements.json"], "files")
    halves, _ = placements("halves", 2, {**settings, "run.steps": 1})
    check(halves and halves["steps_are_halves"] and not halves["own_window"], "halves of one batch")


def check_steps_of_loads():
    """Loads of steps: judged step by step, not by their sum."""
    numbers = [float(x) for step in ((8, 0, 0, 0), (0, 8, 0, 0), (0, 0, 8, 0)) for x in step]
    path = save("steps.npy", "<f8", (3, 1, 4), numbers)
    found, _ = placements(
        "steps",
        2,
        {"model.num_experts": 4, "cluster.devices": 2, "placement.load": path, "placement.fit": 1},
    )
    block = found and found["policies"]["block"]
    check(block and block["device_max_over_mean"] == 2, "each step has one busy device:", block)
    check(found and found["score"]["steps"] == 2, "what fit leaves is judged")


# --- what is refused ---


def refused(sentence, settings, *words):
    done = moesim(1, "--placements", QUICKSTART, *sets(settings), *words)
    lines = done.err.splitlines()
    check(
        done.code == 2 and len(lines) == 1 and sentence in done.err and not done.out,
        f"{settings}: status {done.code}, expected '{sentence}': {done.err}",
    )


def check_refusals():
    good = save("good.npy", "<f4", (1, 4), [1, 2, 3, 4])
    four = {"model.num_experts": 4, "cluster.devices": 2, "placement.load": good}
    flat = save("flat.npy", "<f4", (4,), [1, 2, 3, 4])
    nan = save("nan.npy", "<f8", (1, 4), [1, float("nan"), 3, 4])
    negative = save("negative.npy", "<i8", (1, 4), [1, 2, 3, -4])
    huge = save("huge.npy", "<f8", (1, 4), [1e308, 1e308, 3, 4])
    for sentence, settings in (
        ("expert 0: 1e+308 is no load", {**four, "placement.load": huge}),
        ("which is no multiple of cluster.devices", {"placement.redundant_experts": 1}),
        ("placement.fit = 9: the run has 4 steps", {"run.steps": 4, "placement.fit": 9}),
        ("placement.score = 9: the run has 4 steps", {"run.steps": 4, "placement.score": 9}),
        ("has the shape [1,4]", {**four, "model.num_experts": 8}),
        ("has the shape [4]", {**four, "placement.load": flat}),
        ("expert 1: nan is no load", {**four, "placement.load": nan}),
        ("expert 3: -4 is no load", {**four, "placement.load": negative}),
        ("cannot be", {**four, "placement.load": "nowhere.npy"}),
        ("it has to divide cluster.devices", {**four, "cluster.devices_per_node": 3}),
    ):
        refused(sentence, {"cluster.devices": 4, **settings})
    for key, value in (("load", good), ("fit", 1), ("score", 1)):
        done = moesim(1, QUICKSTART, *sets({f"placement.{key}": value}))
        check(
            done.code == 2 and "it goes with moesim --placements" in done.err,
            f"a run with placement.{key}: status {done.code}: {done.err}",
        )
    done = moesim(1, "--placements", QUICKSTART, "--check", *sets(four))
    check(done.code == 0 and "redundant_experts" in done.out, f"--check: {done.code}: {done.err}")


for name in sorted(os.listdir(os.path.join(GOLDEN, "eplb"))):
    check_golden(name)
check_routing()
check_ranks()
check_steps_of_loads()
check_refusals()
verdict()
