"""ctest: timeout=120
What chance does to the gate: learned noise, smooth load and jitter are functions of keys (the same
metrics on any number of ranks, and after a resume), act in training only, and move W_noise away
from 0; combinations without a meaning are refused with both keys and what would be consistent.
"""
import json

from _moesim import check, config, metrics, moesim, near, run, sets, summary, verdict

SMALL = {
    "run.mode": "train",
    "run.steps": 6,
    "model.num_layers": 2,
    "model.hidden_size": 16,
    "model.num_experts": 16,
    "model.moe_intermediate_size": 8,
    "router.top_k": 2,
    "cluster.devices": 4,
    "data.tokens_per_device": 24,
    "data.sequence_length": 12,
    "data.num_topics": 5,
    "train.learning_rate": 0.01,
    "balance.scope": "global",
}
NOISY = {
    **SMALL,
    "router.noise_form": "softplus",
    "router.noise": 0.01,
    "router.jitter": 0.1,
    "balance.load_form": "shazeer",
    "balance.load_loss": 0.05,
    "balance.importance_loss": 0.05,
    "train.checkpoint_every": 2,
}


def lines(folder):
    return [
        {key: value for key, value in line.items() if key != "time"} for line in metrics(folder)
    ]


def check_ranks():
    one, four = run("one", 1, NOISY, "--set", "run.threads=2"), run("four", 4, NOISY)
    if not (one and four):
        return None
    check(lines(one) == lines(four), "1 and 4 ranks: other metrics")
    plain, parameters = run("plain", 2, SMALL), summary(one)["training"]["parameters"]
    extra = parameters["replicated"] - summary(plain)["training"]["parameters"]["replicated"]
    check(extra == 2 * 16 * 16, f"W_noise has {extra} parameters")
    check(
        all(
            line["loss"]["load"] > 0
            and near(line["loss"]["load"], line["loss_raw"]["load"] * 0.05, 1e-12)
            for line in metrics(one)
        ),
        "the smooth load trains",
    )
    return one


def check_resume(whole):
    """Half of it, then the rest on another number of ranks."""
    half = run("half", 2, {**NOISY, "run.steps": 4})
    if not half:
        return
    done = moesim(4, "--resume", half, "--set", "run.steps=6", "--quiet")
    check(
        done.code == 0 and lines(half) == lines(whole), f"resumed: status {done.code}: {done.err}"
    )
    done = moesim(2, "--resume", half, "--set", "router.noise=0.02")
    check(
        done.code == 2 and "router.noise was 0.01" in done.err,
        f"resumed with other noise: {done.code}: {done.err}",
    )


def check_explained():
    """One token's gradient, part by part, adds up to what the gate gets: the smooth load, the loss
    over all layers and the task; over micro-batches too.
    """
    settings = {
        **NOISY,
        "run.steps": 2,
        "train.accumulate": 2,
        "balance.aux_form": "mixtral",
        "balance.aux_layers": "all",
        "balance.alpha_expert": 0.1,
    }
    out = run("explained", 2, settings, "--explain", "5", "--explain-step")
    if not out:
        return
    with open(f"{out}/explain.json") as file:
        layers = json.load(file)["token"]["layers"]
    for l, layer in enumerate(layers):
        g = layer["gradient"]
        for i, whole in enumerate(g["total"]):
            parts = g["mixtral"][i] + g["load"][i] + g["importance"][i]
            check(
                abs(parts - g["balance"][i]) < 1e-15
                and abs(g["balance"][i] + g["task"][i] - whole) < 1e-15,
                f"layer {l}, expert {i}: {g}",
            )
    check(
        len(layers) == 2
        and all(
            any(layer["gradient"]["mixtral"]) and any(layer["gradient"]["load"]) for layer in layers
        ),
        "no gradient explained",
    )


def check_learns():
    """W_noise = 0 begins with the same scale ln 2 for all; the first step is that of fixed noise of
    ln 2, later ones are not.
    """
    learned = run(
        "learned", 2, {**SMALL, "router.noise_form": "softplus", "balance.alpha_expert": 0.01}
    )
    fixed = run(
        "fixed", 2, {**SMALL, "router.noise": 0.69314718055994530942, "balance.alpha_expert": 0.01}
    )
    if learned and fixed:
        a, b = metrics(learned), metrics(fixed)
        check(
            near(a[0]["task_loss"], b[0]["task_loss"], 1e-5),
            f"first step: {a[0]['task_loss']}, {b[0]['task_loss']}",
        )
        check(not near(a[-1]["task_loss"], b[-1]["task_loss"], 1e-5), "W_noise never moved")


def check_training_only():
    forward = {**SMALL, "run.mode": "forward", "run.steps": 1}
    quiet = run("forward", 2, forward)
    noisy = run(
        "forward-noisy",
        2,
        {
            **forward,
            "router.noise_form": "softplus",
            "router.jitter": 0.1,
            "router.jitter_experts": "yes",
        },
    )
    if quiet and noisy:
        check(
            summary(quiet)["layers"] == summary(noisy)["layers"],
            "noise and jitter act outside training",
        )
    gate, both = (
        run(name, 2, {**SMALL, "run.steps": 2, "router.jitter": 0.3, "router.jitter_experts": name})
        for name in ("no", "yes")
    )
    if gate and both:
        first, second = metrics(gate)[0]["task_loss"], metrics(both)[0]["task_loss"]
        check(
            first != second and near(first, second, 0.2),
            f"jitter of what the gate reads, and of what the experts read: {first}, {second}",
        )


def check_screen():
    done = moesim(2, config("screen", {**NOISY, "run.steps": 1}), "--out", "screen")
    text = " ".join(done.out.split())
    check(
        done.code == 0
        and "noise of learned scale + 0.01; jitter 0.1 of what the gate reads" in text,
        f"{done.code}: {done.err}: {text[:600]}",
    )


REFUSED = [
    (
        {"balance.load_form": "shazeer"},
        ("load_form = shazeer", "router.noise = 0", "noise_form = softplus"),
    ),
    (
        {
            "balance.load_form": "shazeer",
            "router.noise": 1,
            "router.group_limit": "max",
            "router.topk_group": 2,
        },
        ("router.group_limit = max", "= none"),
    ),
    (
        {"balance.load_form": "shazeer", "router.noise": 1, "router.method": "gshard"},
        ("router.method = gshard", "topk or switch"),
    ),
    (
        {"balance.load_form": "shazeer", "router.noise": 1, "router.bias_update_rate": 0.1},
        ("router.bias_update_rate = 0.1", "= 0"),
    ),
    (
        {"balance.load_form": "tutel", "router.noise_form": "softplus", "router.noise": 1},
        ("router.noise_form = softplus", "= gaussian"),
    ),
    ({"balance.load_loss": 0.1}, ("load_form = selections", "shazeer or tutel")),
    ({"router.jitter": 1}, ("router.jitter = 1", "from 0 to 0.999")),
    ({"router.top_p": 1.5}, ("router.top_p = 1.5", "to 1")),
    ({"router.top_p": 0}, ("router.top_p = 0", "to 1")),
    ({"router.temperature": 0}, ("router.temperature = 0", "from 1e-06")),
    ({"router.temperature": 2}, ("router.method = topk", "method = top_p")),
    (
        {"router.method": "expert_choice", "router.group_limit": "max"},
        ("router.method = expert_choice", "router.group_limit = max", "group_limit = none"),
    ),
    (
        {"router.method": "sinkhorn", "router.sinkhorn_iterations": 1},
        ("router.sinkhorn_tolerance", "router.sinkhorn_iterations = 1", "raise either"),
    ),
    (
        {
            "capacity.policy": "expert",
            "capacity.rounding": "fastmoe",
            "capacity.capacity_factor": 0.001,
        },
        ("capacity.capacity_factor", "capacity.rounding"),
    ),
]


def check_refused():
    path = config("refused", SMALL)
    for settings, words in REFUSED:
        done = moesim(1, path, *sets(settings), "--out", "refused", "--quiet")
        check(
            done.code == 2
            and done.err.count("\n") == 1
            and all(word in done.err for word in words),
            f"{settings}: {done.code}: {done.err}",
        )


whole_run = check_ranks()
if whole_run:
    check_resume(whole_run)
check_explained()
check_learns()
check_training_only()
check_screen()
check_refused()
verdict()
