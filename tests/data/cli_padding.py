"""ctest: timeout=400
Padding that is dropped, and sequences of different lengths. The same tokens are given padded ([B,S]
with a mask, data.padding = dropped) and packed (one behind the other, with data.boundaries): the
figures are the same, with every capacity, method and scope, and do not depend on ranks or mode.
Boundaries at equal distances are data.sequence_length, bit for bit.
"""
import math
import random

from _moesim import check, config, load, moesim, near, run, same_bytes, save, summary, verdict

DEVICES, PADDED, EXPERTS, K = 4, 8, 16, 3
BASE = {
    "model.hidden_size": 8,
    "model.num_experts": EXPERTS,
    "model.moe_intermediate_size": 4,
    "model.num_shared_experts": 1,
    "router.top_k": K,
    "balance.alpha_expert": 0.01,
    "balance.alpha_device": 0.05,
    "balance.alpha_comm": 0.02,
    "cluster.devices": DEVICES,
    "data.source": "logits",
    "output.routing": "yes",
    "output.tensors": "yes",
}
drawn = random.Random(5)


def logits_of(tokens):
    return [[drawn.gauss(0, 1.5) for _ in range(EXPERTS)] for _ in range(tokens)]


def flat(rows):
    return [number for row in rows for number in row]


def cumulated(lengths):
    return [sum(lengths[:i]) for i in range(len(lengths) + 1)]


def inputs(name, lengths, front):
    """Files of the same sequences, padded and packed; padding stands in front of or behind
    them, and is NaN: nobody looks at it."""
    rows = [logits_of(n) for n in lengths]
    nothing = [math.nan] * EXPERTS
    padded, mask = [], []
    for sequence in rows:
        fill = PADDED - len(sequence)
        ones, none = [1] * len(sequence), [0] * fill
        padded += [nothing] * fill + sequence if front else sequence + [nothing] * fill
        mask += none + ones if front else ones + none
    packed = [row for sequence in rows for row in sequence]
    return (
        {
            "data.path": save(f"{name}-padded.npy", "<f8", (len(padded), EXPERTS), flat(padded)),
            "data.mask": save(f"{name}-mask.npy", "|u1", (len(lengths), PADDED), mask),
            "data.padding": "dropped",
            "data.sequence_length": PADDED,
        },
        {
            "data.path": save(f"{name}-packed.npy", "<f8", (len(packed), EXPERTS), flat(packed)),
            "data.boundaries": save(
                f"{name}-ends.npy", "<i4", (len(lengths) + 1,), cumulated(lengths)
            ),
        },
        mask,
    )


SAME = (
    "counts_per_expert",
    "counts_per_device",
    "kept_per_expert",
    "dropped_per_expert",
    "distinct_tokens_per_device",
    "selections",
    "tokens_by_reach",
    "mean_devices_per_token",
    "capacity",
)


def compare(name, padded, packed, mask):
    """Padded and packed runs agree; what is written of padding says that nothing was done."""
    one, two = summary(padded), summary(packed)
    for key in SAME:
        check(one["layers"][0].get(key) == two["layers"][0].get(key), name, key)
    check(
        one["volume"] == two["volume"] and one["balance"] == two["balance"],
        name,
        "volume or balance",
    )
    for scope in ("sequence", "device", "global"):
        check(
            near(
                list(one["layers"][0]["loss_by_scope"][scope].values()),
                list(two["layers"][0]["loss_by_scope"][scope].values()),
                1e-12,
            ),
            name,
            scope,
        )
    check(same_bytes(f"{padded}/comm_matrix.npy", f"{packed}/comm_matrix.npy"), name, "matrix")
    for folder in (one, two):
        check(all(ok is not False for ok in folder["checks"].values()), name, folder["checks"])
    for file in ("topk_idx", "topk_weight", "kept"):
        rows, others = load(f"{padded}/{file}.npy").rows(), load(f"{packed}/{file}.npy").rows()
        check([row for row, m in zip(rows, mask) if m] == others, name, file)
    chosen = load(f"{padded}/topk_idx.npy").rows()
    output = load(f"{padded}/y.npy").rows()
    for row, y, counted in zip(chosen, output, mask):
        if not counted:
            check(set(row) == {-1} and not any(y), name, "padding has experts or an output")


CAPACITIES = [
    {},
    {"capacity.policy": "device", "capacity.capacity_factor": 0.8},
    {
        "capacity.policy": "device",
        "capacity.capacity_factor": 0.7,
        "capacity.exempt_sequences": 0.3,
    },
    {"capacity.policy": "device", "capacity.capacity_scope": "device"},
    {"capacity.policy": "expert", "capacity.drop": "position", "capacity.rounding": "megatron"},
    {
        "capacity.policy": "expert",
        "capacity.rounding": "deepspeed",
        "capacity.first_choices": "yes",
    },
    {
        "capacity.policy": "expert",
        "capacity.rounding": "fastmoe",
        "capacity.capacity_scope": "device",
        "capacity.overflow": "next_choice",
    },
    {"capacity.policy": "expert", "capacity.rounding": "tutel", "capacity.drop": "batch_priority"},
    {"capacity.policy": "sequence", "capacity.rounding": "deepspeed"},
    {"capacity.policy": "sequence", "capacity.overflow": "next_choice"},
]
ROUTERS = [
    {},
    {"router.group_limit": "max", "router.topk_group": 2},
    {"router.method": "expert_choice"},
    {"router.method": "sinkhorn"},
    {"router.score_func": "sigmoid", "router.norm_topk_prob": "yes"},
]


def check_padded_and_packed():
    """Each device has two sequences with 11 tokens together, so that the packed tokens of a device
    are those of the padded one."""
    lengths = []
    for _ in range(DEVICES):
        first = drawn.randint(4, 7)
        lengths += [first, 11 - first]
    for number, capacity in enumerate(CAPACITIES):
        router = ROUTERS[number % len(ROUTERS)]
        padded, packed, mask = inputs(f"aligned{number}", lengths, number % 2 == 0)
        ranks = (1, 2, 4)[number % 3]
        more = {**BASE, **router, **capacity}
        one = run(f"padded{number}", ranks, {**more, **padded})
        two = run(f"packed{number}", ranks, {**more, **packed})
        if one and two:
            compare(f"{router} {capacity}", one, two, mask)


def check_any_lengths():
    """Sequences that begin and end anywhere: on one device padded and packed agree; on several the
    figures are the same on any number of ranks and in both modes."""
    for number, capacity in enumerate(CAPACITIES):
        lengths = [drawn.randint(1, PADDED) for _ in range(9)]
        padded, packed, mask = inputs(f"any{number}", lengths, number % 2 == 1)
        more = {**BASE, **ROUTERS[(number + 1) % len(ROUTERS)], **capacity}
        if number % 3 == 0:
            alone = {"cluster.devices": 1, "router.group_limit": "none"}
            one = run(f"one-padded{number}", 1, {**more, **padded, **alone})
            two = run(f"one-packed{number}", 1, {**more, **packed, **alone})
            if one and two:
                compare(f"one device {capacity}", one, two, mask)
        for kind, data in (("padded", padded), ("packed", packed)):
            if kind == "padded" and number % 2:
                continue
            name = f"any-{kind}{number}"
            first = run(f"{name}-1", 1, {**more, **data})
            for ranks, mode in ((2, "token"), (4, "selection"))[number % 2 :]:
                other = run(f"{name}-{ranks}", ranks, {**more, **data, "exchange.mode": mode})
                if not first or not other:
                    continue
                a, b = summary(first)["layers"][0], summary(other)["layers"][0]
                for key in (*SAME, "loss_by_scope", "loss", "output_rms"):
                    if key == "capacity" and mode == "selection":
                        continue  # rows and bytes are those of the mode
                    check(a.get(key) == b.get(key), name, ranks, mode, key)
                for file in ("topk_idx", "topk_weight", "kept", "y", "dlogits"):
                    check(
                        same_bytes(f"{first}/{file}.npy", f"{other}/{file}.npy"), name, ranks, file
                    )


def check_explained():
    """--explain of padding and of a token, and every figure of the step derived."""
    padded, packed, mask = inputs("explained", [5, 8, 1, 6, 3], True)
    more = {**BASE, "capacity.policy": "sequence", "router.group_limit": "max"}
    for data in (padded, packed):
        for token in (0, 7, 11):
            done = moesim(
                2,
                config("explained", {**more, **data}),
                *("--explain", str(token), "--explain-step", "--out", "explained", "--force"),
            )
            check(done.code == 0, token, done.err, done.out[-300:])
            if data is padded and not mask[token]:
                check("it is not routed" in done.out, done.out)


def check_equal_distances():
    """Boundaries at equal distances are sequence_length."""
    path = save("equal.npy", "<f4", (70, EXPERTS), flat(logits_of(70)))
    ends = save("equal-ends.npy", "<i8", (8,), [0, 11, 22, 33, 44, 55, 66, 70])
    for number, capacity in enumerate(CAPACITIES[::3] + [CAPACITIES[2]]):
        more = {**BASE, **capacity, "data.path": path}
        a = run(f"length{number}", 2, {**more, "data.sequence_length": 11})
        b = run(f"ends{number}", 4, {**more, "data.boundaries": ends})
        if not a or not b:
            continue
        check(summary(a)["layers"] == summary(b)["layers"], capacity, "layers")
        for file in ("topk_idx", "topk_weight", "kept", "y", "dlogits", "comm_matrix"):
            check(same_bytes(f"{a}/{file}.npy", f"{b}/{file}.npy"), capacity, file)
    made = {**BASE, "data.source": "synthetic", "data.tokens_per_device": 16, "run.mode": "train"}
    del made["output.tensors"]
    ends = save("made-ends.npy", "<i4", (5,), [0, 20, 40, 60, 64])
    a = run("made-length", 1, {**made, "data.sequence_length": 20, "run.steps": 3})
    b = run("made-ends", 2, {**made, "data.boundaries": ends, "run.steps": 3})
    if a and b:
        check(summary(a)["layers"] == summary(b)["layers"], "training on synthetic tokens")


def check_recorded_routing():
    """A recorded routing whose padding holds anything, such as rows of zeros."""
    mask = [t % 4 != 1 for t in range(24)]
    rows = [drawn.sample(range(EXPERTS), K) if m else [0] * K for m in mask]
    scores = [[1 / EXPERTS] * EXPERTS if m else [math.inf] * EXPERTS for m in mask]
    path = save("routing.npy", "<i4", (24, K), flat(rows))
    settings = {
        **BASE,
        "data.source": "routing",
        "data.path": path,
        "data.scores": save("scores.npy", "<f8", (24, EXPERTS), flat(scores)),
        "data.mask": save("routing-mask.npy", "|b1", (24,), mask),
        "data.padding": "dropped",
        "capacity.policy": "expert",
        "capacity.drop": "position",
    }
    del settings["output.tensors"]
    expected = [sum(row.count(e) for row, m in zip(rows, mask) if m) for e in range(EXPERTS)]
    for ranks in (1, 4):
        folder = run(f"routing{ranks}", ranks, settings)
        if folder:
            check(summary(folder)["layers"][0]["counts_per_expert"] == expected, "recorded routing")
            idx = load(f"{folder}/topk_idx.npy").rows()
            check(
                [sorted(row) if m else row for row, m in zip(idx, mask)]
                == [sorted(row) if m else [-1] * K for row, m in zip(rows, mask)],
                "topk_idx of a recorded routing",
            )


def refused(label, words, changes):
    for ranks in (1, 2):
        done = moesim(
            ranks, config("refused", {**GOOD, **changes}), "--out", "refused", "--force", "--quiet"
        )
        check(done.code == 2 and all(w in done.err for w in words), label, done.code, done.err)


def ends(numbers, dtype="<i4", shape=None):
    return {"data.boundaries": save("bad.npy", dtype, shape or (len(numbers),), numbers)}


GOOD = {**BASE, "data.path": save("good.npy", "<f4", (12, EXPERTS), flat(logits_of(12)))}


def check_refused():
    key = "data.boundaries"
    refused("not from 0", [key, "begins with 1"], ends([1, 5, 12]))
    refused("not to T", [key, "ends with 11", "here 12"], ends([0, 5, 11]))
    refused("falls", [key, "number 2 is 4 after 5"], ends([0, 5, 4, 12]))
    refused("an empty sequence", [key, "number 2 is 5 after 5"], ends([0, 5, 5, 12]))
    refused("beyond T", [key, "ends with 9223372036854775807"], ends([0, 2**63 - 1], "<i8"))
    refused("a single number", [key, "[sequences + 1]"], ends([0]))
    refused("floats", [key, "int32 or int64"], ends([0, 12], "<f4"))
    refused("two dimensions", [key, "2 dimensions"], ends([0, 12], "<i4", (1, 2)))
    refused("missing", [key, "nowhere"], {key: "nowhere.npy"})
    refused("text", [key, "windows of one length"], {"data.source": "text", **ends([0, 12])})
    refused("no mask", ["data.padding", "data.mask"], {"data.padding": "dropped"})
    mask = save("short.npy", "|u1", (11,), [1] * 11)
    refused("mask", ["data.mask", "12"], {"data.padding": "dropped", "data.mask": mask})


check_padded_and_packed()
check_any_lengths()
check_explained()
check_equal_distances()
check_recorded_routing()
check_refused()
verdict()
