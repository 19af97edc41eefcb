"""A trace on its way from any format to moesim's files: for each layer the experts of each token,
and what else was recorded."""

import array
import math
from dataclasses import dataclass, field

from trace_lib.guard import (
    LARGEST_NUMBER,
    MOST_EXPERTS,
    MOST_EXPERTS_OF_ALL_LAYERS,
    MOST_LAYERS,
    MOST_TOKENS,
    Refused,
    few,
    range_of,
)


@dataclass
class Layer:
    """Tokens of one layer, one behind the other: `top_k` ids each (-1 = none), and as many weights
    or none at all."""

    top_k: int
    ids: array.array = field(default_factory=lambda: array.array("i"))
    weights: array.array = field(default_factory=lambda: array.array("f"))
    logits: array.array = field(default_factory=lambda: array.array("f"))  # N a token, or empty

    @property
    def tokens(self):
        return len(self.ids) // self.top_k if self.top_k else 0

    def add(self, ids, weights=None):
        """One token; shorter lists are filled with -1 (and weight 0). Weights are given for every
        token or for none."""
        missing = self.top_k - len(ids)
        self.ids.extend([*ids, *[-1] * missing])
        if weights is not None:
            self.weights.extend([*weights, *[0.0] * missing])


@dataclass
class Trace:
    """Layers by their name in the source, in order; or, where only loads were recorded, `counts`
    [steps][layer][expert] with the layers' names."""

    source: str
    layers: dict = field(default_factory=dict)
    num_experts: int = 0  # 0: not said by the source
    counts: list = field(default_factory=list)
    count_names: list = field(default_factory=list)
    step_tokens: list = field(default_factory=list)  # tokens of each step; empty: one step has all
    notes: list = field(default_factory=list)  # what was seen, as sentences for the user
    used: dict = field(default_factory=dict)  # names of columns and fields, in order
    ignored: dict = field(default_factory=dict)

    def saw(self, names, known):
        """Notes which fields of the source were used and which were not."""
        for name in names:
            (self.used if name in known else self.ignored)[name] = True

    def fields(self):
        """The sentence about columns or fields; none where the format has none."""
        if not self.used:
            return []
        return [f"columns used: {few(self.used, 12)}; ignored: {few(self.ignored, 12) or 'none'}"]


def check_range(numbers, where, place):
    """Ids are -1 or whole numbers below the largest number of experts. `place` names the token of
    an index in `numbers`."""
    if not len(numbers) or (min(numbers) >= -1 and max(numbers) < MOST_EXPERTS):
        return
    index = next(i for i, expert in enumerate(numbers) if not -1 <= expert < MOST_EXPERTS)
    raise Refused(
        f"{where}: {place(index)}: expert {numbers[index]}; allowed are -1 (none) and experts 0 to"
        f" {MOST_EXPERTS - 1}"
    )


def resized(layer, top_k):
    """The layer with `top_k` places for each token; places that are cut off hold no expert."""
    if layer.top_k == top_k:
        return layer
    ids = array.array("i", b"\xff" * (4 * layer.tokens * top_k))
    weights = array.array("f", bytes(len(ids) * 4 if layer.weights else 0))
    for k in range(min(top_k, layer.top_k)):
        ids[k::top_k] = layer.ids[k :: layer.top_k]
        if layer.weights:
            weights[k::top_k] = layer.weights[k :: layer.top_k]
    return Layer(top_k, ids, weights, layer.logits)


def used_places(layer):
    """The places that some token uses, counted from the first."""
    top_k = layer.top_k
    while top_k > 1 and max(layer.ids[top_k - 1 :: layer.top_k]) < 0:
        top_k -= 1
    return top_k


def move_to_front(layer):
    """Puts a token's experts before its -1, in their order; returns how many tokens that took."""
    moved, top_k = 0, layer.top_k
    if top_k == 1 or min(layer.ids) >= 0:
        return 0
    for begin in range(0, len(layer.ids), top_k):
        ids = layer.ids[begin : begin + top_k]
        there = [k for k in range(top_k) if ids[k] >= 0]
        if there and there[-1] >= len(there):
            moved += 1
            fill = top_k - len(there)
            layer.ids[begin : begin + top_k] = array.array(
                "i", [ids[k] for k in there] + [-1] * fill
            )
            if layer.weights:
                kept = [layer.weights[begin + k] for k in there] + [0.0] * fill
                layer.weights[begin : begin + top_k] = array.array("f", kept)
    return moved


def check_filled(trace):
    """Servers leave rows of zeros where they captured nothing: no choice of experts looks so."""
    bare = {}
    for name, layer in trace.layers.items():
        if layer.top_k > 1:
            zeros = array.array("i", bytes(4 * layer.top_k))
            size = layer.top_k
            rows = [
                t
                for t in range(layer.tokens)
                if layer.ids[t * size] == 0 and layer.ids[t * size : (t + 1) * size] == zeros
            ]
            if rows:
                bare[name] = rows
    if not bare:
        return
    names = list(trace.layers)
    whole = [name for name in bare if len(bare[name]) == trace.layers[name].tokens]
    kept = [i for i, name in enumerate(names) if name not in bare]
    said = f"{trace.source}: rows of zeros that the server never filled: "
    if whole and len(whole) == len(bare) and kept:
        advice = (
            f"; --layers {kept[0]}:{kept[-1]} keeps the others"
            if kept[-1] - kept[0] + 1 == len(kept)
            else "; --layers A:B leaves them out"
        )
        raise Refused(
            f"{said}all tokens of layer {few(whole)} (a dense layer has no experts){advice}"
        )
    rows = sorted(set(row for some in bare.values() for row in some))
    raise Refused(
        f"{said}token {range_of(rows)} of layer {few(bare)} (nothing was captured there); leave"
        " these tokens out of the file"
    )


def check_tokens(layer, name, num_experts):
    """Ids in range, none twice in one token."""
    top_k = layer.top_k
    if max(layer.ids) >= num_experts:
        t = next(i for i, expert in enumerate(layer.ids) if expert >= num_experts)
        raise Refused(
            f"layer {name}, token {t // top_k}: expert {layer.ids[t]}, but there are"
            f" {num_experts} experts (0 to {num_experts - 1})"
        )
    for begin in range(0, len(layer.ids) if top_k > 1 else 0, top_k):
        ids = layer.ids[begin : begin + top_k]
        if len(set(ids)) < top_k:
            ids = [expert for expert in ids if expert >= 0]
            if len(set(ids)) < len(ids):
                raise Refused(
                    f"layer {name}, token {begin // top_k}: an expert is chosen twice in"
                    f" {few(ids)}; allowed is each expert once"
                )


def check_numbers(numbers, width, where):
    """Weights and logits are finite and not so large that a run ends in NaN."""
    if not len(numbers) or (
        all(map(math.isfinite, numbers))
        and max(numbers) <= LARGEST_NUMBER
        and min(numbers) >= -LARGEST_NUMBER
    ):
        return
    i = next(i for i, x in enumerate(numbers) if not abs(x) <= LARGEST_NUMBER)
    raise Refused(
        f"{where}, token {i // width}: {numbers[i]:g}; allowed are numbers from"
        f" {-LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}"
    )


def check_sizes(trace, layers, tokens):
    """What the program can take."""
    if layers > MOST_LAYERS:
        raise Refused(
            f"{trace.source}: {layers} layers; up to {MOST_LAYERS} are allowed (--layers A:B keeps"
            " some)"
        )
    if tokens > MOST_TOKENS:
        raise Refused(f"{trace.source}: {tokens} tokens; up to {MOST_TOKENS} are allowed")
    if layers * trace.num_experts > MOST_EXPERTS_OF_ALL_LAYERS:
        raise Refused(
            f"{trace.source}: {layers} layers of {trace.num_experts} experts; up to"
            f" {MOST_EXPERTS_OF_ALL_LAYERS} experts in all layers are allowed"
        )


def choose_experts(trace, found, wanted):
    """How many experts there are: what the user says, else the source, else the largest id + 1."""
    said = trace.num_experts
    if wanted and wanted < found:
        raise Refused(
            f"{trace.source}: expert {found - 1}, but there are {wanted}: --experts is {found} or"
            " more here"
        )
    if wanted and said and wanted < said:
        raise Refused(
            f"{trace.source}: it says {said} experts, and --experts says {wanted}: {said} or more"
            " are allowed"
        )
    trace.num_experts = wanted or max(said, found)
    if said and found > said:
        raise Refused(
            f"{trace.source}: expert {found - 1}, but it says that there are {said} experts"
        )
    if wanted:
        trace.notes.append(f"{wanted} experts: from --experts; the largest id is {found - 1}")
    elif said:
        trace.notes.append(f"{said} experts: from the source; the largest id is {found - 1}")
    else:
        trace.notes.append(
            f"the source does not say how many experts there are: {found}, the largest id + 1, is"
            " taken (--experts N says otherwise)"
        )


def drop_empty(trace):
    """Leaves out layers in which no token has an expert."""
    empty = [name for name, layer in trace.layers.items() if not layer.ids or max(layer.ids) < 0]
    for name in empty:
        del trace.layers[name]
    if empty:
        trace.notes.append(f"left out, since no token has an expert there: layers {few(empty)}")
    if not trace.layers:
        raise Refused(f"{trace.source}: no token with an expert was found")


def finish(trace, intake, num_experts=0):
    """Checks a trace and makes its layers alike: one number of tokens, one K, one N."""
    drop_empty(trace)
    tokens = {layer.tokens for layer in trace.layers.values()}
    if len(tokens) > 1:
        said = few(f"layer {name} has {layer.tokens}" for name, layer in trace.layers.items())
        raise Refused(
            f"{trace.source}: the layers have different numbers of tokens ({said}); expected is one"
            " number"
        )
    check_sizes(trace, len(trace.layers), max(tokens))
    for name, layer in trace.layers.items():
        check_range(
            layer.ids, f"{trace.source}: layer {name}", lambda i, k=layer.top_k: f"token {i // k}"
        )
    check_filled(trace)
    moved = sum(move_to_front(layer) for layer in trace.layers.values())
    if moved:
        trace.notes.append(
            f"{moved} rows have -1 before an expert: their experts were moved to the front, in"
            " their order"
        )
    choose_experts(trace, 1 + max(max(layer.ids) for layer in trace.layers.values()), num_experts)
    check_sizes(trace, len(trace.layers), max(tokens))
    top_k = max(used_places(layer) for layer in trace.layers.values())
    intake.room(
        len(trace.layers) * max(tokens) * top_k,
        (
            f"{trace.source}: {len(trace.layers)} layers of {max(tokens)} tokens with"
            f" {top_k} experts each"
        ),
    )
    trace.layers = {name: resized(layer, top_k) for name, layer in trace.layers.items()}
    for name, layer in trace.layers.items():
        check_tokens(layer, name, trace.num_experts)
        check_numbers(layer.weights, top_k, f"{trace.source}: weights of layer {name}")
        check_numbers(layer.logits, trace.num_experts, f"{trace.source}: logits of layer {name}")
    return trace


def chosen_names(names, first, last):
    """The names at positions first to last."""
    if not 0 <= first <= last < len(names):
        raise Refused(
            f"--layers {first}:{last}: the trace has layers 0 to {len(names) - 1} (named"
            f" {names[0]} to {names[-1]})"
        )
    return names[first : last + 1]


def settle_steps(trace, intake, joined):
    """Leaves out steps without tokens; says what becomes of the others. `joined`: the user wants
    one step with all tokens."""
    sizes = [size for size in trace.step_tokens if size]
    trace.step_tokens = sizes if len(sizes) > 1 and not joined else []
    if len(sizes) > 1 and joined:
        trace.notes.append(f"the tokens of {len(sizes)} steps stand in one step (--one-step)")
    if not trace.step_tokens:
        return
    trace.notes.append(f"{len(sizes)} steps, each of which is a step of the replay")
    if min(sizes) < max(sizes):
        trace.notes.append(
            f"steps have {min(sizes)} to {max(sizes)} tokens: mask.npy marks the padding of shorter"
            " ones, which is spread evenly and neither routed nor sent"
        )
    width = next(iter(trace.layers.values())).top_k
    intake.room(
        len(sizes) * max(sizes) * len(trace.layers) * width,
        f"{trace.source}: {len(sizes)} steps of {max(sizes)} tokens (--one-step puts all tokens into"
        " one, --steps A:B takes some)",
    )


def keep_layers(trace, first, last):
    """Only the layers at positions first to last, counted from 0 in the order of the source."""
    if trace.counts:
        names = chosen_names(trace.count_names, first, last)
        trace.counts = [step[first : last + 1] for step in trace.counts]
        trace.count_names = names
    elif trace.layers:
        trace.layers = {
            name: trace.layers[name] for name in chosen_names(list(trace.layers), first, last)
        }


def keep_counts(trace, intake, num_experts=0):
    """Checks loads, and gives every layer the number of experts that the user says."""
    found = len(trace.counts[0][0])
    if num_experts and num_experts < found:
        raise Refused(
            f"{trace.source}: loads of {found} experts, and --experts says {num_experts}:"
            f" {found} or more are allowed"
        )
    trace.num_experts = num_experts or found
    steps, layers = len(trace.counts), len(trace.counts[0])
    intake.room(
        steps * layers * trace.num_experts,
        f"{trace.source}: loads of {steps} steps, {layers} layers and {trace.num_experts} experts",
    )
    fill = [0] * (trace.num_experts - found)
    trace.counts = [[[*layer, *fill] for layer in step] for step in trace.counts]
