"""ctest: timeout=900 labels=long
The closed loop: what configs/training/ shows holds on three seeds (150 steps, mean of the last 20,
np 2). Prints the figures of docs/training.md.
"""
from _closed_loop import shown, trained
from _moesim import check, verdict

LAST = 20


def check_seed(seed):
    runs = {
        name: trained(name, seed, LAST)
        for name in ("collapse", "expert_loss", "three_losses", "bias")
    }
    runs |= {m: trained("device_limit", seed, LAST, router__topk_group=m) for m in (1, 2, 3, 8)}
    for name, figures in runs.items():
        if figures:
            label = f"M = {name}" if isinstance(name, int) else name
            print(f"seed {seed} {label:14} {shown(figures)}", flush=True)
    if not all(runs.values()):
        return
    collapse, expert, losses, bias = (
        runs[name] for name in ("collapse", "expert_loss", "three_losses", "bias")
    )
    say = f"seed {seed}:"
    check(
        collapse["experts"] > 1.5 and collapse["idle"] >= 2,
        say,
        "no collapse without a balance loss:",
        shown(collapse),
    )
    check(
        expert["experts"] < 0.75 * collapse["experts"],
        say,
        "the expert loss does not even out the experts:",
        shown(expert),
    )
    check(
        losses["devices"] < 0.5 * collapse["devices"] and losses["devices"] < 0.3,
        say,
        "devices with losses:",
        shown(losses),
    )
    check(
        losses["received"] < 0.5 * collapse["received"] and losses["received"] < 0.3,
        say,
        "rows received with losses:",
        shown(losses),
    )
    check(
        bias["experts"] < 0.5 * collapse["experts"] and bias["experts"] < 0.5 * losses["experts"],
        say,
        "experts with bias:",
        shown(bias),
    )
    check(
        bias["loss"] < losses["loss"] < collapse["loss"],
        say,
        "loss:",
        shown(bias),
        "|",
        shown(losses),
        "|",
        shown(collapse),
    )
    check(
        runs[1]["bytes"] < runs[2]["bytes"] < runs[3]["bytes"] < runs[8]["bytes"],
        say,
        "bytes do not rise with M",
    )
    check(
        runs[1]["loss"] > runs[2]["loss"] > runs[8]["loss"],
        say,
        "a smaller M costs no quality:",
        [runs[m]["loss"] for m in (1, 2, 8)],
    )
    check(
        runs[3]["loss"] < runs[8]["loss"] + 0.03,
        say,
        "M = 3 costs more than a little:",
        [runs[m]["loss"] for m in (3, 8)],
    )


for number in (1, 2, 3):
    check_seed(number)
verdict()
