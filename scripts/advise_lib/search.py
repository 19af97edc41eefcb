"""Which choices are measured, and what is advised of them.

All placements of a choice come out of one run. The number of devices that share the experts and
what changes the model or its numbers are looked at from the configuration as it is; replicas at the
best number of devices. So the runs add up instead of multiplying.
"""
from dataclasses import dataclass, field, replace

from advise_lib import judge
from advise_lib.judge import Choice
from advise_lib.runs import Failed

MOST_SIZES = 5
REPLICAS = (1, 2, 4)  # slots more on each device
LIMITS = (1, 2, 3, 4, 8, 16)
PAYLOADS = ("bf16", "fp8")
MATRICES = {"swiglu": 3, "silu": 2, "gelu": 2, "relu": 2, "identity": 0}
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp8": 1}


@dataclass
class Advice:
    """`outcomes` of everything that ran; `now` and `best` two of them; `refused` {choice: sentence}
    of what the program does not run.
    """

    now: object
    best: object
    outcomes: list
    sizes: list = field(default_factory=list)  # the best of each number of devices
    replicas: list = field(default_factory=list)
    limits: list = field(default_factory=list)
    modes: list = field(default_factory=list)
    payloads: list = field(default_factory=list)
    refused: dict = field(default_factory=dict)

    def of(self, choice):
        """All placements of a choice."""
        wanted = replace(choice, policy="block")
        return [one for one in self.outcomes if replace(one.choice, policy="block") == wanted]


def weights_bytes(config, group, redundant):
    """Of the routed experts of all layers on one device."""
    return layers_of(config) * expert_bytes(config) * (experts_of(config) + redundant) / group


def expert_bytes(config):
    hidden = widths(config)
    matrices = MATRICES.get(config["model.expert_type"], 3)
    return matrices * hidden[0] * hidden[1] * WEIGHT_BYTES[config["exchange.payload"]]


def widths(config):
    """H and F that times are predicted for."""
    return tuple(
        int(config[wish]) or int(config[own])
        for wish, own in (
            ("cluster.model_hidden_size", "model.hidden_size"),
            ("cluster.model_intermediate_size", "model.moe_intermediate_size"),
        )
    )


def layers_of(config):
    """MoE layers: dense ones have no experts to place."""
    moe = int(config["model.num_layers"]) - int(config["model.first_dense_layers"])
    return int(config["cluster.model_layers"]) or moe


def experts_of(config):
    return int(config["model.num_experts"])


def sizes(config, devices, per_node):
    """Numbers of devices that can share the experts: whole nodes, or a part of one."""
    found = [
        size
        for size in range(2, devices)
        if devices % size == 0
        and experts_of(config) % size == 0
        and (size % per_node == 0 or per_node % size == 0)
    ]
    return sorted(found)[-(MOST_SIZES - 1) :]


def limits(config, devices):
    """Other values of M that bind, and under which a token finds enough experts."""
    groups = int(config["router.num_groups"])
    if config["data.source"] == "routing" or config["router.method"] != "topk" or groups < 2:
        return []
    now = int(config["router.topk_group"]) if config["router.group_limit"] != "none" else groups
    room, wanted = experts_of(config) // groups, int(config["router.top_k"])
    most = min(groups - 1, wanted)  # a token has no more experts than that
    return [m for m in LIMITS if m <= most and m != min(now, wanted) and m * room >= wanted]


def configured(config, devices):
    return Choice(
        devices,
        int(config["placement.redundant_experts"]),
        policy=config["placement.policy"],
    )


def alternatives(bench, now):
    """{what is decided: choices} beside the configuration as it is."""
    config = bench.config
    other = "selection" if config["exchange.mode"] == "token" else "token"
    widest = config["exchange.payload"]
    return {
        "sizes": [
            replace(now, group=size, redundant=now.redundant * size // bench.devices)
            for size in sizes(config, bench.devices, bench.per_node)
        ],
        "limits": [replace(now, limit=m) for m in limits(config, bench.devices)],
        "modes": [replace(now, mode=other)],
        "payloads": [replace(now, payload=name) for name in PAYLOADS if name != widest],
    }


def more_replicas(config, choice):
    """The choice with other numbers of replicas, 0 too."""
    wanted = {0, *(times * choice.group for times in REPLICAS)} - {choice.redundant}
    return [
        replace(choice, redundant=number)
        for number in sorted(wanted)
        if number <= experts_of(config) and (experts_of(config) + number) % choice.group == 0
    ]


def plain(choice):
    return replace(choice, policy="block")


def _fits(bench, one, memory):
    """Whether the experts of a device fit into its memory. Where that is not known, no more than
    the configuration itself asks for is sure to.
    """
    needed = weights_bytes(bench.config, one.choice.group, one.choice.redundant)
    return needed <= memory if memory else one.choice.group >= bench.devices


def _simplest(outcomes, now):
    """The choice that is advised: the fastest, unless the one that is in use, or one with fewer
    replicas or fewer experts to copy, is as good but for what is not worth a change.
    """
    fastest = judge.best(outcomes)
    close = [
        one
        for one in outcomes
        if one.usable and one.chosen_by <= fastest.chosen_by * (1 + judge.WORTH)
    ]
    return min(
        close,
        key=lambda one: (
            one.choice != now,
            one.choice.group != now.group,
            one.choice.redundant,
            one.moved,
            one.chosen_by,
        ),
    )


def advise(bench, memory, say):
    """Measures and decides. `memory` is that of a device in bytes, 0 where it is not known."""
    now = configured(bench.config, bench.devices)
    asked, refused = alternatives(bench, now), {}
    for name, choices in asked.items():
        for choice in choices:
            why = bench.refused(plain(choice))
            if why:
                refused[choice] = why
        asked[name] = [choice for choice in choices if choice not in refused]
    first = [plain(now), *(plain(one) for choices in asked.values() for one in choices)]
    say(f"{len(first)} runs of the program, each with every placement")
    outcomes = _measure(bench, first)
    advice = Advice(_find(outcomes, now), None, outcomes, refused=refused)
    fitting = [
        one
        for one in outcomes
        if deploys(one, now) and (one.choice.group == now.group or _fits(bench, one, memory))
    ]
    start = judge.best(fitting).choice
    second = [plain(one) for one in more_replicas(bench.config, start)]
    second = [choice for choice in second if not bench.refused(choice)]
    say(f"{len(second)} runs with other numbers of replicas")
    more = _measure(bench, second)
    advice.outcomes = outcomes + more
    fitting += [one for one in more if not memory or _fits(bench, one, memory)]
    advice.best = _simplest(fitting, now)
    _sort_out(advice, asked, now, start)
    return advice


def _measure(bench, choices):
    outcomes = bench.measure(choices)
    if not outcomes:
        raise Failed("no placement could be compared")
    return outcomes


def _find(outcomes, choice):
    return next(one for one in outcomes if one.choice == choice)


def deploys(one, now):
    """Whether a choice leaves the model and its numbers as they are."""
    return (one.choice.limit, one.choice.payload) == (now.limit, now.payload)


def _sort_out(advice, asked, now, start):
    """What each question is answered with."""
    for name in ("limits", "modes", "payloads"):
        found = [_find(advice.outcomes, one) for one in asked[name]]
        setattr(advice, name, found)
    advice.sizes = [judge.best(advice.of(one)) for one in [*asked["sizes"], now]]
    counts = {
        one.choice.redundant: replace(start, redundant=one.choice.redundant)
        for one in advice.outcomes
        if plain(one.choice) == plain(replace(start, redundant=one.choice.redundant))
    }
    advice.replicas = [judge.best(advice.of(counts[number])) for number in sorted(counts)]
