"""ctest: timeout=240
Training with replicas: the same figures on any number of ranks and in both exchange modes, those of
contiguous blocks up to the order of sums, after a restart on another number of ranks too; and the
gradients of one layer.
"""
import os
import shutil

from _moesim import GOLDEN, check, config, load, metrics, moesim, near, run
from _moesim import summary, verdict

TRAINED = {
    "run.mode": "train",
    "run.steps": 6,
    "model.num_layers": 2,
    "model.num_experts": 16,
    "model.hidden_size": 16,
    "model.moe_intermediate_size": 8,
    "model.num_shared_experts": 1,
    "router.top_k": 3,
    "balance.alpha_expert": 0.01,
    "data.tokens_per_device": 32,
    "train.learning_rate": 0.01,
    "train.clip_norm": 0.5,
    "train.accumulate": 2,
    "train.validation_every": 3,
    "train.checkpoint_every": 5,
    "train.optimizer": "adamw",
    "cluster.devices": 8,
    "cluster.devices_per_node": 4,
}
REPLICAS = {"placement.redundant_experts": 16}


def figures(folder):
    """What a step says, without its times."""
    return [{k: v for k, v in line.items() if k != "time"} for line in metrics(folder)]


def restart(one, after, what):
    """A copy of a finished run that goes on, on 4 ranks, from its checkpoint after so many steps;
    its figures are those of the run.
    """
    folder = f"{one}-from-{after}"
    shutil.copytree(one, folder)
    os.remove(os.path.join(folder, "summary.json"))
    kept = f"step-{after:08}.moe"
    for name in os.listdir(os.path.join(folder, "checkpoints")):
        if name != kept:
            os.remove(os.path.join(folder, "checkpoints", name))
    done = moesim(4, "--resume", folder)
    check(done.code == 0 and kept in done.out, f"{what}, after {after} steps: {done.err}")
    check(figures(folder) == figures(one), f"{what}, after {after} steps: other figures")
    return folder


def check_training(optimizer, expert):
    settings = {**TRAINED, "train.optimizer": optimizer, "model.expert_type": expert}
    blocks = run(f"blocks-{optimizer}", 2, settings)
    one = run(f"{optimizer}-1", 1, {**settings, **REPLICAS})
    if not blocks or not one:
        return
    for key in ("task_loss", "gradient_norm", "validation_loss"):
        ours = [line.get(key) for line in metrics(one)]
        theirs = [line.get(key) for line in metrics(blocks)]
        for a, b in zip(ours, theirs):
            check(a == b or near(a, b, 2e-4), f"{optimizer} {key}: {ours}, in blocks {theirs}")
    check(
        all(line["replica_gradient_bytes"] > 0 for line in metrics(one))
        and all(line["replica_gradient_bytes"] == 0 for line in metrics(blocks)),
        f"{optimizer}: bytes of the gradients of replicas",
    )
    for ranks, mode in ((2, "token"), (4, "selection"), (8, "token")):
        again = run(f"{optimizer}-{ranks}", ranks, {**settings, **REPLICAS, "exchange.mode": mode})
        if again and mode == "token":
            check(figures(again) == figures(one), f"{optimizer}: np {ranks} has other figures")
        elif again:
            for key in ("task_loss", "gradient_norm", "loss"):
                check(
                    [x[key] for x in metrics(again)] == [x[key] for x in metrics(one)],
                    f"{optimizer}: {key} in mode {mode}",
                )
    restart(one, 5, f"{optimizer}: a restart")


def check_layer():
    """Gradients of a layer from files: one of each expert, whoever of its replicas served."""
    folder = os.path.join(GOLDEN, "layer", "layer_1_ds2_seq")
    shape = {
        key: load(os.path.join(folder, f"{key}.npy")).shape for key in ("x", "wgate", "w1", "sw1")
    }
    experts, width = shape["w1"][0], shape["w1"][1]
    settings = {
        "model.load": folder,
        "model.hidden_size": shape["x"][1],
        "model.num_experts": experts,
        "model.moe_intermediate_size": width,
        "model.num_shared_experts": shape["sw1"][0] // width,
        "cluster.devices": 4,
        "router.top_k": 2,
        "output.tensors": "yes",
    }
    blocks = run("layer-blocks", 2, settings)
    spread = run("layer-spread", 2, {**settings, "placement.redundant_experts": experts // 2})
    for name in ("dw1", "dw2", "dw3", "dwgate", "dx") if blocks and spread else ():
        a, b = (load(os.path.join(f, name + ".npy")).data for f in (blocks, spread))
        most = max(map(abs, a))
        gap = max(abs(x - y) for x, y in zip(a, b))
        check(gap <= 1e-5 * most, f"{name}: replicas differ by {gap} of {most}")


def check_migration():
    """Experts that move by load, each policy; restarts on other ranks, between two moves (7) and
    where the next one is due at once (6).
    """
    blocks = run("still", 2, {**TRAINED, "run.steps": 8})
    for policy, more in (
        ("eplb", {"router.num_groups": 8}),
        ("flashlb", {"placement.window": 2, "placement.hysteresis": 0.05}),
        ("joint", {"placement.redundant_experts": 0}),
        ("epic", {"exchange.mode": "selection"}),
    ):
        settings = {
            **TRAINED,
            "run.steps": 8,
            "placement.redundant_experts": 16,
            "placement.policy": policy,
            "placement.rebalance_every": 3,
            "train.checkpoint_every": 1,
            **more,
        }
        one = run(f"moves-{policy}-1", 1, settings)
        eight = run(f"moves-{policy}-8", 8, settings)
        if not blocks or not one or not eight:
            continue
        check(figures(one) == figures(eight), f"{policy}: np 1 and 8 have other figures")
        ours = [line["task_loss"] for line in metrics(one)]
        theirs = [line["task_loss"] for line in metrics(blocks)]
        check(near(ours, theirs, 2e-4), f"{policy}: losses {ours}, in blocks {theirs}")
        moves = {line["step"]: line["rebalance"] for line in figures(one) if "rebalance" in line}
        check(list(moves) == [0, 3, 6], f"{policy}: decides before the steps {list(moves)}")
        check(sum(m["experts_moved"] for m in moves.values()) > 0, f"{policy}: nobody moved")
        # AdamW: three tensors of 16 x 8 float32 of an expert, each with two moments
        for step, m in moves.items():
            check(m["bytes"] == m["experts_moved"] * 3 * 3 * 16 * 8 * 4, f"{policy}: bytes, {step}")
        total = summary(one)["rebalance"]
        for key in ("decisions", "experts_moved", "bytes", "cross_node_bytes"):
            check(total[key] == sum(m[key] for m in moves.values()), f"{policy}: total {key}")
        for after in (6, 7):
            again = restart(one, after, f"{policy}: a restart")
            check(summary(again)["rebalance"] == total, f"{policy}: totals after a restart")


def check_batches():
    """What decides in every batch: the same on other ranks and after a restart, and with contiguous
    blocks up to the order of sums; the bytes of the experts that were copied.
    """
    blocks = run("blocks-batches", 2, TRAINED)
    for policy, more in (
        ("lplb", {"placement.rebalance_every": 3}),
        ("llep", {}),
        ("moonep", {"exchange.mode": "selection"}),
    ):
        settings = {
            **TRAINED,
            "placement.redundant_experts": 16,
            "placement.policy": policy,
            **more,
        }
        one = run(f"batches-{policy}-1", 1, settings)
        eight = run(f"batches-{policy}-8", 8, settings)
        if not blocks or not one or not eight:
            continue
        check(figures(one) == figures(eight), f"{policy}: np 1 and 8 have other figures")
        for key in ("task_loss", "gradient_norm", "validation_loss"):
            ours = [line.get(key) for line in metrics(one)]
            theirs = [line.get(key) for line in metrics(blocks)]
            for a, b in zip(ours, theirs):
                check(a == b or near(a, b, 2e-4), f"{policy} {key}: {ours}, in blocks {theirs}")
        fetched = [line["fetched"] for line in metrics(one)]
        check(summary(one)["fetched"] == fetched[-1], f"{policy}: fetched in summary.json")
        # three tensors of 16 x 8 float32 there as weights, and back as gradients
        for step, found in enumerate(fetched):
            check((found["experts"] > 0) == (policy != "lplb"), f"{policy}: copies, step {step}")
            check(found["bytes"] == found["experts"] * 2 * 3 * 16 * 8 * 4, f"{policy}: {found}")
            check(found["cross_node_bytes"] <= found["bytes"], f"{policy}: {found}")
        restart(one, 5, f"{policy}: a restart")


def check_three_ranks():
    """Six devices, so that three ranks have two each."""
    settings = {
        **TRAINED,
        "model.num_experts": 12,
        "cluster.devices": 6,
        "cluster.devices_per_node": 3,
        "placement.redundant_experts": 12,
        "placement.rebalance_every": 2,
        "train.accumulate": 1,
    }
    for policy in ("eplb_global", "joint", "lplb"):
        settings["placement.policy"] = policy
        one = run(f"three-{policy}-1", 1, settings)
        three = run(f"three-{policy}-3", 3, settings)
        if one and three:
            check(figures(one) == figures(three), f"{policy}: np 1 and 3 have other figures")
            check(summary(one)["rebalance"]["experts_moved"] > 0, f"{policy}: nobody moved")


def check_refusals():
    for sentence, more in (
        ("it shares batches with copies", {"placement.policy": "llep"}),
        (
            "it copies experts anew for every batch",
            {
                "placement.policy": "moonep",
                "placement.redundant_experts": 8,
                "placement.rebalance_every": 2,
            },
        ),
        (
            "what a batch is split by",
            {
                "placement.policy": "lplb",
                "placement.redundant_experts": 8,
                "balance.aux_selection": "unlimited",
            },
        ),
        ("it looks at no load", {"placement.rebalance_every": 2}),
        (
            "a window is part of it",
            {"placement.policy": "eplb", "placement.rebalance_every": 2, "placement.window": 7},
        ),
    ):
        done = moesim(2, config("refused", {**TRAINED, **more}), "--out", "refused")
        check(done.code == 2 and sentence in done.err, f"{more}: {done.code} {done.err}")


check_training("adamw", "swiglu")
check_training("sgd", "lora")
check_layer()
check_migration()
check_batches()
check_three_ranks()
check_refusals()
verdict()
