"""One layer: settings and arrays in, a routing and its losses out."""

import ctypes
import numbers

import numpy

from ._library import (
    Array,
    MoesimError,
    checked,
    dimensions,
    floats,
    integers,
    library,
    settings_keys,
    words,
)

# --- settings ---


def _full_key(name):
    """The key "section.key" that is meant by a full key, by section_key, or by a key's own name
    where no other section has one of that name.
    """
    keys = settings_keys()
    if name in keys:
        return name
    matches = [key for key in keys if key.replace(".", "_", 1) == name]
    matches = matches or [key for key in keys if key.split(".")[1] == name]
    if len(matches) > 1:
        several = " or ".join(key.replace(".", "_", 1) for key in matches)
        raise MoesimError(f"{name}: several sections have such a key: write {several}")
    if not matches:
        raise MoesimError(f"{name}: there is no such setting (docs/configuration.md lists them)")
    return matches[0]


def _text(key, value):
    if isinstance(value, (bool, numpy.bool_)):
        return "yes" if value else "no"
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, str) and "\n" not in value and "\r" not in value:
        return value
    raise TypeError(f"{key} = {value!r}: a setting is a number, a word, True or False")


def _settings(settings, keys):
    """Both ways to say settings, as {full key: text}."""
    found = {}
    for name, value in {**(settings or {}), **keys}.items():
        key = _full_key(name)
        if key in found:
            raise MoesimError(f"{key} is given twice")
        found[key] = _text(key, value)
    return found


# --- arrays ---


def _token_rows(name, array, found, lengths):
    """Tokens in one line. [B,S,..] are B sequences of S tokens."""
    dimensions(name, array, (2, 3), "[tokens, columns] or [sequences, tokens, columns]")
    if array.ndim == 2:
        return array
    lengths.add(array.shape[1])
    if len(lengths) > 1:
        raise MoesimError(f"{name}: sequences of {sorted(lengths)} tokens do not go together")
    found.setdefault("data.sequence_length", str(array.shape[1]))
    return numpy.ascontiguousarray(array.reshape(-1, array.shape[2]))


def _arrays(found, logits, experts, weights, scores, mask, bias, boundaries, expert_at):
    """What moesim_layer_set takes, by name; checks kinds and dimensions, and leaves shapes and
    numbers to the library.
    """
    both, arrays, lengths = (numpy.float32, numpy.float64), {}, set()
    if logits is not None:
        arrays["logits"] = _token_rows("logits", floats("logits", logits, both), found, lengths)
    if experts is not None:
        rows = integers("experts", experts, numpy.int32)
        arrays["routing"] = _token_rows("experts", rows, found, lengths)
    for name, given in (("weights", weights), ("scores", scores)):
        if given is not None:
            arrays[name] = _token_rows(name, floats(name, given), found, lengths)
    if mask is not None:
        flags = integers("mask", mask, numpy.int64) != 0
        arrays["mask"] = dimensions("mask", flags, (1, 2), "[tokens]").reshape(-1).astype("u1")
    if bias is not None:
        arrays["bias"] = dimensions("bias", floats("bias", bias), (1,), "[experts]")
    if boundaries is not None:
        rows = integers("boundaries", boundaries, numpy.int64)
        arrays["boundaries"] = dimensions("boundaries", rows, (1,), "[sequences + 1]")
    if expert_at is not None:
        slots = integers("expert_at", expert_at, numpy.int32)
        dimensions("expert_at", slots, (1, 2), "[slots] or [devices, slots of a device]")
        arrays["expert_at"] = numpy.ascontiguousarray(slots.reshape(-1))
        found.setdefault("placement.policy", "file")
    return arrays


# --- the layer ---


class Routing:
    """What a layer made of its tokens. Results are attributes: routing.counts_per_expert; `results`
    lists their names.
    """

    def __init__(self, found, arrays, double):
        self._library, self._made = library(double), {}
        self._layer = None
        text = "".join(f"{key} = {value}\n" for key, value in found.items())
        self._layer = checked(self._library.moesim_layer_new, text.encode())
        for name, array in arrays.items():
            reference = ctypes.byref(Array.of(array))
            checked(self._library.moesim_layer_set, self._layer, name.encode(), reference)
        checked(self._library.moesim_layer_route, self._layer)
        self.settings = dict(found)
        self.scope = found.get("balance.scope")

    def __del__(self):
        if getattr(self, "_layer", None):
            self._library.moesim_layer_free(self._layer)
            self._layer = None

    results = property(lambda self: words("results"))

    def __getitem__(self, name):
        if name not in self._made:
            found = Array()
            checked(self._library.moesim_layer_get, self._layer, name.encode(), ctypes.byref(found))
            self._made[name] = found.numpy()
        return self._made[name]

    def __getattr__(self, name):
        if name.startswith("_") or name not in words("results"):
            raise AttributeError(f"a routing has no {name!r}")
        return self[name]

    def __dir__(self):
        return [*super().__dir__(), *words("results")]

    experts = property(lambda self: self["topk_idx"], doc="int32 [T,K], -1 = none")
    weights = property(lambda self: self["topk_weight"], doc="float64 [T,K]")

    @property
    def losses(self):
        """{name: loss with a coefficient of 1}, in the scope that trains; NaN: not defined."""
        return dict(zip(words("losses"), self["loss_raw"].tolist()))

    # Tables are dicts of columns of equal length: pandas.DataFrame takes them.

    def loss_table(self):
        by_scope = self["loss_by_scope"]
        return {
            "loss": words("losses"),
            "raw": self["loss_raw"],
            **{scope: by_scope[i] for i, scope in enumerate(words("scopes"))},
            "at_balance": self["loss_ideal"],
            "times_alpha": self["loss"],
        }

    def expert_table(self):
        counts = self["counts_per_expert"]
        columns = {"expert": numpy.arange(len(counts)), "selections": counts}
        columns["kept"], columns["f"] = self["kept_per_expert"], self["f"]
        try:
            columns["p"] = self["p"]
        except MoesimError:  # a recorded choice without scores
            columns["p"] = numpy.full(len(counts), numpy.nan)
        return columns

    def device_table(self):
        rows = self["comm_matrix"]
        return {
            "device": numpy.arange(len(rows)),
            "selections": self["counts_per_device"],
            "kept": self["kept_per_device"],
            "tokens": self["distinct_tokens_per_device"],
            "rows_sent": rows.sum(axis=1),
            "rows_received": rows.sum(axis=0),
        }


def route(
    logits=None,
    *,
    experts=None,
    weights=None,
    scores=None,
    mask=None,
    bias=None,
    boundaries=None,
    expert_at=None,
    settings=None,
    **keys,
):
    """Routes tokens and returns a Routing.

    logits [T,N] or [sequences, tokens, N]; float64 is computed with libmoesim-f64, else weights are
    in single precision. experts [T,K] is a choice that was made elsewhere, whose losses and rows
    are wanted; weights [T,K] and scores [T,N] may stand beside it. Without logits, experts and
    scores the tokens are synthetic. Settings are keywords (top_k=6, capacity_policy="expert") or
    {"section.key": value}. Raises MoesimError, a ValueError, with one sentence, and TypeError for
    arrays that do not hold numbers of the right kind.
    """
    found = _settings(settings, keys)
    arrays = _arrays(found, logits, experts, weights, scores, mask, bias, boundaries, expert_at)
    double = any(arrays[name].dtype == numpy.float64 for name in ("logits",) if name in arrays)
    return Routing(found, arrays, double)


def balance_losses(logits=None, *, experts=None, settings=None, **more):
    """{name: balance loss with a coefficient of 1}: of the library's own choice, or of `experts`.
    Takes what route takes.
    """
    return route(logits, experts=experts, settings=settings, **more).losses
