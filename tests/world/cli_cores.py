"""ctest: timeout=120
Cores are those that the run was given: under a mask of one core (taskset) a rank has one thread,
and several ranks are told that they share it, whether or not mpirun binds them.
"""
import os
import subprocess

from _moesim import MOESIM, MPIRUN, check, config, summary, verdict

CONFIG = config(
    "cores.ini",
    {
        "model.hidden_size": 8,
        "model.num_experts": 8,
        "model.moe_intermediate_size": 4,
        "router.top_k": 2,
        "data.tokens_per_device": 16,
    },
)
GIVEN = sorted(os.sched_getaffinity(0))


def machine(out, ranks, cores, *launcher):
    """Runs with mpirun restricted to `cores`; returns what summary.json says of the machine."""
    words = [*MPIRUN[:-1], *launcher, "-np", str(ranks), MOESIM, CONFIG, "--out", out, "--force"]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        check=False,
    )
    check(done.returncode == 0, out, done.stdout[-500:], done.stderr[-500:])
    return summary(out)["machine"]


for number, core in enumerate(dict.fromkeys([GIVEN[0], GIVEN[-1]])):
    for ranks in (1, 2, 4):
        for binding in ("none", "core"):
            if binding == "core" and ranks > len(GIVEN):
                continue
            found = machine(f"one{number}-{ranks}{binding}", ranks, {core}, "--bind-to", binding)
            host = found["hosts"][0]
            check(host["cores"] == 1, core, ranks, binding, host)
            check(host["oversubscribed"] == (ranks > 1), core, ranks, binding, host)
            check(
                all(r["threads"] == 1 and r["bound_cores"] == 1 for r in found["ranks"]),
                core,
                ranks,
                binding,
                found["ranks"],
            )

# a binding by mpirun alone takes no core from a single rank that has threads for all of them
free = machine("free", 1, set(GIVEN), "--bind-to", "none")
bound = machine("bound", 1, set(GIVEN), "--bind-to", "core")
check(free["hosts"][0]["cores"] == bound["hosts"][0]["cores"], free, bound)
check(free["ranks"][0]["threads"] == bound["ranks"][0]["threads"], free, bound)

verdict()
