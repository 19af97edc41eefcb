"""ctest: timeout=180
A run's own files are accepted again: --check accepts what it printed and prints the same,
config.ini gives the same results, and --resume goes on. The cases are those in which a default, a
preset or a derived value stands in the echo beside a key that may forbid it.
"""
import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor

from _moesim import MOESIM, TEMPORARY, check, config, metrics, moesim, save, verdict

SMALL = {
    "model.num_experts": 8,
    "model.hidden_size": 8,
    "model.moe_intermediate_size": 4,
    "data.tokens_per_device": 16,
    "data.sequence_length": 8,
    "cluster.devices": 2,
}
draw = random.Random(5)
ROUTING = save(
    "routing.npy", "<i4", (48, 3), [e for _ in range(48) for e in draw.sample(range(8), 3)]
)
RECORDED = {"data.source": "routing", "data.path": ROUTING, "capacity.min_capacity": 1}


def without_comments(text):
    """The settings; what a comment says of a preset or of a cut may differ."""
    return [line.split(" ;")[0].rstrip() for line in text.splitlines() if line[:1] not in (";", "")]


def presets():
    keys = subprocess.run([MOESIM, "--keys"], capture_output=True, text=True).stdout
    lines = keys[keys.index("\nPresets:") :].splitlines()
    return [line.strip() for line in lines if line.startswith("  ") and line[2:3].isalpha()]


def check_echo(case):
    name, settings = case
    first = moesim(1, "--check", config(f"first-{name}", {**SMALL, **settings}))
    if not check(first.code == 0, f"{name}: --check: status {first.code}: {first.err}"):
        return
    echo = os.path.join(TEMPORARY, f"echo-{name}.ini")
    with open(echo, "w") as file:
        file.write(first.out)
    second = moesim(1, "--check", echo)
    check(second.code == 0, f"{name}: its echo: status {second.code}: {second.err}")
    check(
        without_comments(second.out) == without_comments(first.out),
        f"{name}: the echo of the echo differs",
    )


TRAINED = {"run.mode": "train", "run.steps": 3, "router.top_k": 2}
CASES = {
    "sequence": {"router.top_k": 2, "capacity.policy": "sequence"},
    "sequence-trained": {**TRAINED, "capacity.policy": "sequence"},
    "sequence-deepspeed": {
        "router.preset": "deepspeed_topk",
        "capacity.policy": "sequence",
        "capacity.capacity_scope": "global",
        "capacity.renormalize": "no",
        "capacity.rounding": "ceil",
    },
    "sinkhorn": {"router.method": "sinkhorn", "router.top_k": 1},
    "top-p": {"router.method": "top_p"},
    "top-p-limited": {
        "router.method": "top_p",
        "router.group_limit": "max",
        "router.topk_group": 1,
    },
    "hash": {"router.method": "hash", "router.top_k": 2},
    "gshard": {"router.method": "gshard"},
    "switch": {"router.method": "switch"},
    "expert-choice": {"router.method": "expert_choice", "router.top_k": 2},
    "all-layers": {"router.preset": "mixtral", "balance.aux_form": "deepseek"},
    "cut": {"model.expert_segmentation": 2, "router.top_k": 2, "model.num_shared_experts": 2},
    "cut-recorded": {**RECORDED, "model.expert_segmentation": 2, "model.num_shared_experts": 2},
    "recorded": RECORDED,
    "recorded-limited": {**RECORDED, "router.group_limit": "topk_sum", "router.num_groups": 2},
    "straddling": {
        "model.num_experts": 12,
        "router.group_limit": "max",
        "router.num_groups": 3,
        "router.top_k": 2,
    },
    "trained-late": {**TRAINED, "balance.begin_step": 2, "balance.ramp_steps": 3},
}


def check_training():
    """config.ini of a run, and its checkpoints, where the default of capacity.drop gave way."""
    settings = {**SMALL, **CASES["sequence-trained"], "train.checkpoint_every": 1}
    run = os.path.join(TEMPORARY, "run")
    again = os.path.join(TEMPORARY, "again")
    first = moesim(2, "--quiet", "--out", run, config("run", settings))
    check(first.code == 0, f"training: status {first.code}: {first.err}")
    second = moesim(2, "--quiet", "--out", again, f"{run}/config.ini")
    check(second.code == 0, f"its config.ini: status {second.code}: {second.err}")
    losses = [[step["task_loss"] for step in metrics(folder)] for folder in (run, again)]
    check(losses[0] == losses[1], f"its config.ini gives other losses: {losses}")
    resumed = moesim(2, "--quiet", "--resume", run, "--set", "run.steps=5")
    check(resumed.code == 0, f"--resume: status {resumed.code}: {resumed.err}")
    check(len(metrics(run)) == 5, "--resume did not go on to step 5")


names = presets()
check(len(names) > 15, f"presets: {names}")
for preset in names:
    CASES[f"recorded-{preset}"] = {
        **RECORDED,
        "router.preset": preset,
        **(
            {"router.num_groups": 2, "router.topk_group": 2}
            if preset.startswith("deepseek_v")
            else {}
        ),
    }
with ThreadPoolExecutor(3) as pool:
    list(pool.map(check_echo, CASES.items()))
check_training()
verdict()
