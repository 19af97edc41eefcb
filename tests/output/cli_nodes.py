"""ctest: timeout=100
Nodes per token, what is sent across nodes and what one row per token and node would send there: in
summary.json and on the screen, counted again from the choices of a run on nodes of two devices,
whose router keeps to two nodes.
"""
from _moesim import check, config, load, moesim, near, summary, verdict

EXPERTS, DEVICES, PER_NODE, TOKENS, LAYERS, K = 32, 8, 2, 48, 2, 4
BASE = {
    "run.steps": 1,
    "model.hidden_size": 16,
    "model.num_layers": LAYERS,
    "model.num_experts": EXPERTS,
    "model.moe_intermediate_size": 8,
    "router.score_func": "sigmoid",
    "router.top_k": K,
    "router.group_limit": "top2_sum",
    "router.num_groups": DEVICES // PER_NODE,
    "router.topk_group": 2,
    "cluster.devices": DEVICES,
    "cluster.devices_per_node": PER_NODE,
    "data.tokens_per_device": TOKENS,
    "data.sequence_length": 16,
    "output.routing": "yes",
}


def nodes_of(choices):
    """Of the K experts of each token: nodes, nodes without the token's own, devices on others."""
    nodes = remote = rows = 0
    for token, experts in enumerate(choices):
        devices = {expert * DEVICES // EXPERTS for expert in experts if expert >= 0}
        own = token // TOKENS // PER_NODE
        reached = {device // PER_NODE for device in devices}
        nodes += len(reached)
        remote += len(reached - {own})
        rows += sum(device // PER_NODE != own for device in devices)
    return nodes, remote, rows


def counted(name, ranks, settings):
    done = moesim(ranks, config(name, {**BASE, **settings}), "--out", name)
    check(done.code == 0, f"{name}: {done.err}")
    choices = load(f"{name}/topk_idx.npy").rows()
    total = DEVICES * TOKENS
    by_layer = [choices[layer * total : (layer + 1) * total] for layer in range(LAYERS)]
    return done.out, summary(name), [nodes_of(layer) for layer in by_layer]


def check_nodes():
    unlimited = counted("free", 2, {"router.group_limit": "none", "router.topk_group": 0})[2]
    for ranks in (1, 4):
        name = f"limited-{ranks}"
        out, found, wanted = counted(name, ranks, {})
        total = DEVICES * TOKENS
        for layer, (nodes, remote, rows) in zip(found["layers"], wanted):
            check(
                near(layer["mean_nodes_per_token"], nodes / total, 1e-12)
                and near(layer["mean_remote_nodes_per_token"], remote / total, 1e-12),
                f"{name}: {layer['mean_nodes_per_token']} is not {nodes / total}",
            )
            across = layer["volume"]["dispatch"]["by_level"]["across_nodes"]["rows"]
            check(across == rows > remote, f"{name}: {across} rows across nodes, {rows} expected")
            check(layer["mean_nodes_per_token"] <= 2, f"{name}: more than two nodes")
        check(
            near(
                found["layers"][0]["mean_nodes_per_token_unlimited"], unlimited[0][0] / total, 1e-12
            ),
            f"{name}: without limit {found['layers'][0]['mean_nodes_per_token_unlimited']}",
        )
        nodes, remote, rows = (sum(layer[i] for layer in wanted) for i in range(3))
        said = " ".join(out.split())
        for words in (
            f"nodes: mean {nodes / total / LAYERS:.3f} of {DEVICES // PER_NODE},",
            f"Across nodes a token sends {rows / total / LAYERS:.2f} rows; one row per token and"
            f" node would be {remote / total / LAYERS:.2f}.",
            f"one row per token and node {nodes:,} {nodes / total / LAYERS:.3f}",
            f"if one per token and node {remote:,}",
        ):
            check(words in said, f"{name}: '{words}' is not said: {said}")


def check_undropped():
    """Beside what is sent after dropping, rows of all choices are called undropped."""
    settings = {"capacity.policy": "expert", "capacity.capacity_factor": 0.5}
    out, found, wanted = counted("dropped", 2, settings)
    check(all(layer["dropped"] > 0 for layer in found["layers"]), "nothing is dropped")
    nodes, remote = (sum(layer[i] for layer in wanted) for i in range(2))
    said = " ".join(out.split())
    for rows in (f"{nodes:,} {nodes / DEVICES / TOKENS / LAYERS:.3f}", f"{remote:,}"):
        check(f"token and node, undropped {rows}" in said, f"undropped: {rows} is not in: {said}")
    check("one per token and node" not in said, f"undropped: {said}")


check_nodes()
check_undropped()
verdict()
