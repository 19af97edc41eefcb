"""ctest: timeout=300
The estimate of memory beside the resident peak, for fixed configurations: those that are drawn
change with every new key, and cli_memory_long.py shows how many of them are within the bounds.
What cannot fit is refused before it is allocated; an allocation that fails after all ends the job
with one sentence, on all ranks or on one alone.
"""
import os
import re
import subprocess

from _memory import compare
from _moesim import (
    MOESIM,
    MPIRUN,
    TEMPORARY,
    check,
    config,
    environment,
    moesim,
    near,
    run,
    verdict,
)

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
    "many_folded": (  # a sequence lies on 16 devices
        2,
        {
            "cluster.devices": 1024,
            "model.num_experts": 1024,
            "model.hidden_size": 64,
            "model.moe_intermediate_size": 8,
            "data.tokens_per_device": 8,
        },
    ),
    "uneven": (  # two topics, nearly all tokens of the first
        2,
        {
            "data.num_topics": 2,
            "data.topic_strength": 0.95,
            "data.skew": 4,
            "model.num_experts": 32,
            "model.hidden_size": 512,
            "model.moe_intermediate_size": 64,
            "data.tokens_per_device": 4096,
        },
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


def check_known():
    for name, (ranks, settings) in KNOWN.items():
        path = config(f"memory-{name}", {"run.threads": 1, **settings})
        check(compare(".", ranks, os.path.abspath(path), name), f"{name}: the estimate is off")


def check_generated():
    """A trained model that continues prompts, whose cache and prefill need most of the memory."""
    text = os.path.join(TEMPORARY, "words.txt")
    with open(text, "w", encoding="ascii") as file:
        file.write("to be or not to be that is the question " * 500)
    settings = {
        "run.mode": "train",
        "run.steps": 1,
        "run.threads": 1,
        "model.num_layers": 2,
        "model.hidden_size": 64,
        "model.num_experts": 8,
        "model.moe_intermediate_size": 32,
        "model.attention": "mha",
        "model.num_heads": 4,
        "cluster.devices": 2,
        "data.source": "text",
        "data.path": text,
        "data.tokens_per_device": 512,
        "data.sequence_length": 512,
        "train.context": 1,
        "train.save_final": "yes",
    }
    if run("trained", 1, settings):
        words = ["run.mode=generate", "generate.prompt=" + "to be or not to be " * 12]
        words += ["generate.sequences_per_device=64", "generate.max_new_tokens=20"]
        words = ["--resume", os.path.abspath("trained"), *(w for x in words for w in ("--set", x))]
        check(compare(".", 2, words, "generated"), "generated: the estimate is off")


def size_of(text):
    """Bytes of "weights 1.5 GiB"."""
    number, unit = text.split()[-2:]
    return float(number) * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)


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
    whole, parts = re.search(
        r": ([^:]*) on each of 1 rank .on the fullest: (.*?)\)", done.err
    ).groups()
    listed = sum(size_of(part) for part in parts.split(", "))
    check(near(listed, size_of(whole), 0.01), f"{parts} are not {whole}")


def check_limited():
    """Under a limit of addresses: status 1, the sentence, no hang (the timeout gives 124)."""
    path = os.path.join(TEMPORARY, "limited.sh")
    with open(path, "w", encoding="ascii") as file:
        file.write(
            'case "$WHO" in all|"$OMPI_COMM_WORLD_RANK") ulimit -v 500000 ;; esac\nexec "$@"\n'
        )
    settings = {"run.threads": 1, "data.tokens_per_device": 40000, "model.hidden_size": 512}
    case = os.path.abspath(config("limited", settings))
    for ranks, who in (("1", "all"), ("2", "all"), ("2", "0"), ("2", "1"), ("4", "3")):
        done = subprocess.run(
            [*MPIRUN, ranks, "bash", path, MOESIM, "--quiet", "--out", f"limited-{who}", case],
            env=environment(WHO=who),
            capture_output=True,
            text=True,
            check=False,
        )
        check(done.returncode == 1, ranks, who, done.returncode, done.stderr)
        check("out of memory: " in done.stderr, ranks, who, done.stderr)


def check_start():
    """Limits in which MPI does not start, of all ranks or of one: status 1 and the sentence."""
    path = os.path.join(TEMPORARY, "start.sh")
    with open(path, "w", encoding="ascii") as file:
        file.write('case "$WHO" in all|"$OMPI_COMM_WORLD_RANK") ulimit $LIMIT ;; esac\nexec "$@"\n')
    case = os.path.abspath(config("start", {"run.threads": 1, "data.tokens_per_device": 8}))
    for limit in ("-v 300000", "-v 390000", "-v 450000", "-f 0", "-f 1000", "-f 4096"):
        for who in ("all", "1"):
            done = subprocess.run(
                [*MPIRUN, "2", "bash", path, MOESIM, "--quiet", "--out", "start", case],
                env=environment(WHO=who, LIMIT=limit),
                capture_output=True,
                text=True,
                check=False,
                restore_signals=False,  # mpirun may write to a rank that has ended as it ends
            )
            check(done.returncode == 1, limit, who, done.returncode, done.stderr)
            check(f"(ulimit {limit[:2]}) is {limit[3:]} KiB" in done.stderr, limit, done.stderr)


check_known()
check_generated()
check_refused()
check_limited()
check_start()
verdict()
