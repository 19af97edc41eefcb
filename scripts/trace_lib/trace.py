"""A trace on its way from any format to moesim's files: for each layer the experts of each token, and what else was recorded."""
import array
import os
from dataclasses import dataclass, field


class Refused(Exception):
    """What cannot be read, as one sentence."""


@dataclass
class Layer:
    """Tokens of one layer, one behind the other: `top_k` ids each (-1 = none), and as many weights or none at all."""
    top_k: int
    ids: array.array = field(default_factory=lambda: array.array("i"))
    weights: array.array = field(default_factory=lambda: array.array("f"))
    logits: array.array = field(default_factory=lambda: array.array("f"))   # N for each token, or empty

    @property
    def tokens(self):
        return len(self.ids) // self.top_k if self.top_k else 0

    def add(self, ids, weights=None):
        """One token; shorter lists are filled with -1 (and weight 0). Weights are given for every token or for none."""
        missing = self.top_k - len(ids)
        self.ids.extend([*ids, *[-1] * missing])
        if weights is not None:
            self.weights.extend([*weights, *[0.0] * missing])


@dataclass
class Trace:
    """Layers by their name in the source, in order; or, where only loads were recorded, `counts` [steps][layer][expert]."""
    source: str
    layers: dict = field(default_factory=dict)
    num_experts: int = 0                             # 0: not said by the source
    counts: list = field(default_factory=list)
    notes: list = field(default_factory=list)        # sentences for the user


def widened(layer, top_k):
    """The layer with `top_k` places for each token."""
    if layer.top_k == top_k:
        return layer
    wide = Layer(top_k, logits=layer.logits)
    for t in range(layer.tokens):
        place = slice(t * layer.top_k, (t + 1) * layer.top_k)
        wide.add(layer.ids[place], layer.weights[place] if layer.weights else None)
    return wide


def trimmed(layer):
    """The layer without trailing places that no token uses."""
    top_k = layer.top_k
    while top_k > 1 and all(expert < 0 for expert in layer.ids[top_k - 1::layer.top_k]):
        top_k -= 1
    if top_k == layer.top_k:
        return layer
    narrow = Layer(top_k, logits=layer.logits)
    for t in range(layer.tokens):
        place = slice(t * layer.top_k, t * layer.top_k + top_k)
        narrow.add(layer.ids[place], layer.weights[place] if layer.weights else None)
    return narrow


def check_tokens(layer, name, num_experts):
    """Ids in range, none twice in one token."""
    for t in range(layer.tokens):
        ids = [expert for expert in layer.ids[t * layer.top_k:(t + 1) * layer.top_k] if expert >= 0]
        if len(set(ids)) < len(ids):
            raise Refused(f"layer {name}, token {t}: an expert is chosen twice in {ids}")
        if ids and max(ids) >= num_experts:
            raise Refused(f"layer {name}, token {t}: expert {max(ids)}, but there are {num_experts}")


def finish(trace, num_experts=0):
    """Checks a trace and makes its layers alike: one number of tokens, one K, one N; layers without experts are left out."""
    empty = [name for name, layer in trace.layers.items() if all(expert < 0 for expert in layer.ids)]
    for name in empty:
        del trace.layers[name]
    if empty:
        trace.notes.append(f"left out, since no token has an expert there: layers {', '.join(map(str, empty))}")
    if not trace.layers:
        raise Refused(f"{trace.source}: no token with an expert was found")
    tokens = {layer.tokens for layer in trace.layers.values()}
    if len(tokens) > 1:
        said = ", ".join(f"layer {name} has {layer.tokens}" for name, layer in list(trace.layers.items())[:4])
        raise Refused(f"{trace.source}: the layers have different numbers of tokens ({said})")
    largest = 1 + max(max(layer.ids) for layer in trace.layers.values())
    trace.num_experts = num_experts or trace.num_experts
    if not trace.num_experts:
        trace.num_experts = largest
        trace.notes.append(f"the source does not say how many experts there are: {largest}, the largest id + 1, is taken (--experts N says otherwise)")
    trace.layers = {name: trimmed(layer) for name, layer in trace.layers.items()}
    top_k = max(layer.top_k for layer in trace.layers.values())
    trace.layers = {name: widened(layer, top_k) for name, layer in trace.layers.items()}
    for name, layer in trace.layers.items():
        check_tokens(layer, name, trace.num_experts)
    return trace


def keep_layers(trace, first, last):
    """Only the layers at positions first to last, counted from 0 in the order of the source."""
    names = list(trace.layers)
    if not 0 <= first <= last < len(names):
        raise Refused(f"--layers {first}:{last}: the trace has layers 0 to {len(names) - 1} (named {names[0]} to {names[-1]})")
    trace.layers = {name: trace.layers[name] for name in names[first:last + 1]}


def name_of(path):
    return os.path.basename(os.path.normpath(path))
