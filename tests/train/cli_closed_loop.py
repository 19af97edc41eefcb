"""ctest: timeout=120
The closed loop in little: 60 steps of one seed of configs/training/, np 2. test_closed_loop_long.py
has three seeds and the figures.
"""
from _closed_loop import shown, trained
from _moesim import check, verdict

STEPS = {"run__steps": 60, "train__validation_every": 0}
collapse, losses, bias = (
    trained(name, 1, 10, **STEPS) for name in ("collapse", "three_losses", "bias")
)
limit = trained("device_limit", 1, 10, router__topk_group=1, **STEPS)
if collapse and losses and bias and limit:
    check(
        collapse["experts"] > 1.5,
        "without a balance loss the load of the experts is even:",
        shown(collapse),
    )
    check(
        losses["devices"] < 0.6 * collapse["devices"],
        "the losses do not even out the devices:",
        shown(collapse),
        "|",
        shown(losses),
    )
    check(
        losses["received"] < 0.6 * collapse["received"],
        "the losses do not even out the rows received:",
        shown(collapse),
        "|",
        shown(losses),
    )
    check(
        bias["experts"] < 0.5 * collapse["experts"],
        "the bias does not even out the experts:",
        shown(collapse),
        "|",
        shown(bias),
    )
    check(
        limit["bytes"] < 0.5 * losses["bytes"],
        "M = 1 sends no less:",
        shown(losses),
        "|",
        shown(limit),
    )
    check(limit["loss"] > losses["loss"], "M = 1 costs nothing:", shown(losses), "|", shown(limit))
    check(bias["loss"] < 3.0, "the loss does not fall below 3.0 nats:", shown(bias))
verdict()
