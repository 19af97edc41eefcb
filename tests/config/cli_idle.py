"""ctest: timeout=120
A key that was changed and has no effect beside the others is named on the screen, with what makes
it idle; where it acts it is not named.
"""
import itertools

from _moesim import check, config, moesim, save, sets, verdict

N, T = 8, 16
BASE = {
    "model.num_experts": N,
    "model.hidden_size": 4,
    "model.moe_intermediate_size": 3,
    "router.top_k": 2,
    "cluster.devices": 2,
}
CHOSEN = list(itertools.chain.from_iterable((t % N, (t + 3) % N) for t in range(T)))
ROUTING = {
    "data.source": "routing",
    "data.path": save("routing.npy", "<i4", (T, 2), CHOSEN),
}
SCORES = {"data.scores": save("scores.npy", "<f4", (T, N), [1 / N] * (T * N))}
LOGITS = {
    "data.source": "logits",
    "data.path": save("logits.npy", "<f4", (T, N), [i % 7 for i in range(T * N)]),
}
TRAIN = {"run.mode": "train", "train.learning_rate": 0.01}
BIAS = save("bias.npy", "<f4", (N,), [0] * N)

# What runs, keys that do nothing there, and what is named as the cause.
IDLE = (
    ({}, {"model.lora_alpha": 3, "model.lora_rank": 2}, "model.expert_type = swiglu"),
    ({}, {"model.residual": "no"}, "model.num_layers = 1"),
    ({}, {"router.num_groups": 4, "router.topk_group": 1}, "router.group_limit = none"),
    ({}, {"router.scale_normalized": "no", "router.norm_single": "no"}, "norm_topk_prob = no"),
    ({}, {"router.top_p": 0.5, "router.temperature_on": "probabilities"}, "router.method = topk"),
    ({}, {"router.sinkhorn_tolerance": 0.1, "router.sinkhorn_iterations": 9}, "method = topk"),
    ({"router.norm_topk_prob": "yes"}, {"router.norm_single": "no"}, "router.top_k = 2"),
    (
        {"router.norm_topk_prob": "yes"},
        {"router.scale_normalized": "no"},
        "router.routed_scaling_factor = 1",
    ),
    (
        {"router.score_func": "softmax_topk"},
        {"router.norm_topk_prob": "yes", "router.norm_single": "no"},
        "router.score_func = softmax_topk",
    ),
    (
        {"router.method": "top_p"},
        {"router.temperature_on": "probabilities"},
        "router.temperature = 1",
    ),
    (
        LOGITS,
        {"router.gate_scale": 2, "data.topic_strength": 0.1, "data.topic_persistence": 1},
        "data.source = logits",
    ),
    (
        ROUTING,
        {
            "router.norm_topk_prob": "yes",
            "router.routed_scaling_factor": 2,
            "router.bias_file": BIAS,
            "balance.z_loss": 0.1,
            "router.gate_scale": 2,
        },
        "data.source = routing",
    ),
    (
        ROUTING,
        {"router.score_func": "sigmoid", "balance.alpha_expert": 1, "balance.alpha_comm": 1},
        "without data.scores",
    ),
    (
        TRAIN,
        {"router.jitter_experts": "yes"},
        "router.jitter = 0",
    ),
    (
        TRAIN,
        {"router.bias_update": "proportional", "router.bias_centered": "yes"},
        "router.bias_update_rate = 0",
    ),
    (
        {**TRAIN, "train.optimizer": "sgd"},
        {"train.beta1": 0.5, "train.beta2": 0.5, "train.epsilon": 0.1},
        "train.optimizer = sgd",
    ),
    (TRAIN, {"train.validation_batches": 2}, "train.validation_every = 0"),
    (
        {**TRAIN, "train.accumulate": 2},
        {"balance.global_batch": "step"},
        "balance.scope = sequence",
    ),
    (
        {**TRAIN, "balance.scope": "global"},
        {"balance.global_batch": "step"},
        "train.accumulate = 1",
    ),
    ({"balance.scope": "global"}, {"balance.global_batch": "step"}, "run.mode = forward"),
    (
        TRAIN,
        {"train.context": 3, "train.validation_share": 0.3},
        "data.source = synthetic",
    ),
)
# The same keys where they act.
ACTS = (
    {
        **TRAIN,
        "train.accumulate": 2,
        "balance.scope": "global",
        "balance.global_batch": "step",
    },
    {"model.expert_type": "lora", "model.lora_alpha": 3, "model.lora_rank": 2},
    {"model.num_layers": 2, "model.residual": "no"},
    {"router.group_limit": "max", "router.num_groups": 4, "router.topk_group": 1},
    {
        "router.top_k": 1,
        "router.norm_topk_prob": "yes",
        "router.norm_single": "no",
        "router.routed_scaling_factor": 2,
        "router.scale_normalized": "no",
    },
    {
        "router.method": "top_p",
        "router.top_p": 0.5,
        "router.temperature": 2,
        "router.temperature_on": "probabilities",
    },
    {"router.method": "sinkhorn", "router.sinkhorn_iterations": 9},
    {**ROUTING, **SCORES, "router.score_func": "sigmoid", "balance.alpha_expert": 1},
    {
        **TRAIN,
        "router.jitter": 0.1,
        "router.jitter_experts": "yes",
        "router.bias_update_rate": 0.1,
        "router.bias_update": "proportional",
        "train.beta1": 0.5,
        "train.validation_every": 1,
        "train.validation_batches": 1,
    },
)


def screen(settings, more):
    path = config("idle", {**BASE, **settings})
    done = moesim(1, path, "--out", "idle", "--force", *sets(more), COLUMNS="1000")
    check(done.code == 0, f"{settings} {more}: {done.code}: {done.err}")
    return " ".join(done.out.split())


for settings, keys, because in IDLE:
    said = screen(settings, keys)
    named = ", ".join(keys)
    begin = said.find(f"{named} ha")
    check(
        begin >= 0 and because in said[begin : begin + len(named) + 90],
        f"{named} beside {settings}: '{because}' is not said: {said[:1500]}",
    )
for settings in ACTS:
    said = screen(settings, {})
    check("no effect" not in said, f"{settings}: {said[:1500]}")
said = screen({**ROUTING, "router.group_limit": "max", "router.topk_group": 2}, {})
check("as recorded, 2 of 8, which has to keep to the limit" in said, said[:800])
check("router as recorded, 2 of 8 balance" in screen(ROUTING, {}), "a limit of no limit")
verdict()
