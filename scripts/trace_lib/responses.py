"""What servers return with each answer when they are asked for the routed experts. vLLM
(--enable-return-routed-experts): `routed_experts` in each choice, [tokens, layers, K], as nested
lists (0.21, with `prompt_routed_experts` beside it) or as the base64 of a .npy (later); SGLang
(--enable-return-routed-experts, return_routed_experts): the base64 of bare int32, whose shape the
user has to say."""

import array
import base64
import binascii

from trace_lib import npy
from trace_lib.guard import (
    MOST_EXPERTS,
    MOST_LAYERS,
    NoJson,
    Refused,
    few,
    is_whole,
    name_of,
    parse_json,
    shown,
)
from trace_lib.trace import Layer, Trace, check_range

WIRE = {"int32": "i", "uint16": "H", "uint8": "B"}
USED = ("prompt_routed_experts", "routed_experts", "routed_experts_dtype")
PARTS = ("meta_info", "sglext", "choices")


class Found:
    """What the fields of all answers have given so far."""

    def __init__(self, path):
        self.trace = Trace(name_of(path))
        self.missing = 0  # tokens without any expert
        self.unsigned = 0  # rows of the largest unsigned number, which stands for -1
        self.asked_shape = False  # whether --shape was needed


def objects(path, intake):
    """The answers of a file: one object, a list of them, or one on each line."""
    text, where = intake.text(path), shown(path)
    try:
        found = parse_json(text, where)
        return found if isinstance(found, list) else [found]
    except NoJson:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2:
            raise
    try:
        return [parse_json(line, f"{where}:{number}") for number, line in lines]
    except NoJson as error:
        raise Refused(
            f"{error}; expected is one JSON value, or one JSON object on each line"
        ) from None


def own_fields(part, trace):
    """(value, dtype) of the lists of routed experts in one dictionary, prompt first."""
    trace.saw((name for name in part if name not in PARTS), USED)
    dtype = part.get("routed_experts_dtype")
    return [(part[name], dtype) for name in USED[:2] if part.get(name) is not None]


def fields(answer, trace):
    """(value, dtype) of each list of routed experts in an answer and its choices."""
    found = []
    if not isinstance(answer, dict):
        return found
    choices = answer.get("choices")
    for part in (answer, *(choices if isinstance(choices, list) else [])):
        if isinstance(part, dict):
            found += own_fields(part, trace)
            for name in PARTS[:2]:
                if isinstance(part.get(name), dict):
                    found += own_fields(part[name], trace)
    return found


def bare_numbers(content, dtype, options, where):
    """SGLang's: numbers without a shape."""
    if not options.shape:
        raise Refused(
            f"{where}: the experts are bare numbers: say how many layers and experts per token they"
            " are of, --shape LAYERS,K"
        )
    dtype = dtype or "int32"
    if not isinstance(dtype, str) or dtype not in WIRE:
        raise Refused(
            f"{where}: routed_experts_dtype = {shown(dtype, 40)}: read are {', '.join(WIRE)}"
        )
    numbers = array.array(WIRE[dtype])
    layers, top_k = options.shape
    if len(content) % (numbers.itemsize * layers * top_k):
        raise Refused(
            f"{where}: {len(content)} bytes of {dtype} are no whole number of tokens with"
            f" {layers} layers of {top_k} experts"
        )
    numbers.frombytes(content)
    return (len(numbers) // (layers * top_k), layers, top_k), numbers, dtype.startswith("u")


def check_expert(expert, token, where):
    if not is_whole(expert, -1, MOST_EXPERTS - 1):
        raise Refused(
            f"{where}: routed_experts: token {token}: expert {shown(expert, 60)}; allowed are -1"
            f" (none) and 0 to {MOST_EXPERTS - 1}"
        )
    return expert


def nested(value, where):
    """Lists in lists in lists."""
    if not isinstance(value, list) or not all(
        isinstance(token, list) and all(isinstance(layer, list) for layer in token)
        for token in value
    ):
        raise Refused(
            f"{where}: routed_experts is no list of tokens, each a list of layers, each a list of"
            " experts"
        )
    layers = len(value[0]) if value else 0
    top_k = len(value[0][0]) if layers else 0
    numbers = array.array("i")
    for t, token in enumerate(value):
        if len(token) != layers or any(len(layer) != top_k for layer in token):
            raise Refused(
                f"{where}: routed_experts has tokens with different numbers of layers or experts:"
                f" token {t}; expected are {layers} layers of {top_k}"
            )
        for layer in token:
            numbers.extend([check_expert(expert, t, where) for expert in layer])
    return (len(value), layers, top_k), numbers, False


def decode(value, dtype, options, where, found):
    """(shape, numbers, whether they are unsigned) of one field."""
    if not isinstance(value, str):
        return nested(value, where)
    try:
        content = base64.b64decode(value.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{where}: routed_experts is a text, but no base64") from None
    if content.startswith(npy.MAGIC):
        shape, numbers, descr = npy.loads(content, f"{where}: routed_experts")
        return shape, numbers, descr[1] == "u"
    found.asked_shape = True
    return bare_numbers(content, dtype, options, where)


def signed(numbers, top_k, unsigned, experts, found):
    """Unsigned numbers cannot hold -1: servers write the largest one. A whole row of it is no
    choice of experts, and neither is one that is larger than all experts."""
    largest = (1 << (8 * numbers.itemsize)) - 1
    if not unsigned or not len(numbers) or max(numbers) < largest:
        return numbers
    row = array.array(numbers.typecode, [largest] * top_k)
    # no array holds both -1 and the largest number of 64 bits, which check_range then refuses
    out = list(numbers) if numbers.itemsize == 8 else array.array("q", numbers)
    for begin in range(0, len(numbers), top_k):
        if (top_k > 1 and numbers[begin : begin + top_k] == row) or 0 < experts <= largest:
            for place in range(begin, begin + top_k):
                if out[place] == largest:
                    out[place] = -1
                    found.unsigned += 1
    return out


def add(found, field, options, where):
    """Tokens of one answer; those that the server did not compute (all -1: it had them in its
    cache) are left out and counted."""
    shape, numbers, unsigned = field
    if len(shape) != 3:
        raise Refused(
            f"{where}: the experts have shape {list(shape)}; expected is [tokens, layers, K]"
        )
    tokens, layers, top_k = shape
    if tokens and not (1 <= layers <= MOST_LAYERS and 1 <= top_k <= MOST_EXPERTS):
        raise Refused(
            f"{where}: the experts have shape {list(shape)}; expected are 1 to {MOST_LAYERS} layers"
            f" of 1 to {MOST_EXPERTS} experts"
        )
    there = found.trace.layers
    if tokens and there and (len(there), there["0"].top_k) != (layers, top_k):
        raise Refused(
            f"{where}: {layers} layers of {top_k} experts beside {len(there)} of"
            f" {there['0'].top_k}: give one model at a time"
        )
    if not tokens:
        return
    numbers = signed(numbers, top_k, unsigned, options.experts, found)
    check_range(
        numbers, where, lambda i: f"token {i // (layers * top_k)}, layer {i // top_k % layers}"
    )
    numbers = array.array("i", numbers)
    size = layers * top_k
    if min(numbers) < 0:
        kept = [t for t in range(tokens) if max(numbers[t * size : (t + 1) * size]) >= 0]
        found.missing += tokens - len(kept)
        if len(kept) < tokens:
            whole = numbers
            numbers = array.array("i")
            for t in kept:
                numbers.extend(whole[t * size : (t + 1) * size])
            tokens = len(kept)
    for layer in range(layers):
        ids = array.array("i", bytes(4 * tokens * top_k))
        for k in range(top_k):
            ids[k::top_k] = numbers[layer * top_k + k :: size]
        there.setdefault(str(layer), Layer(top_k)).ids.extend(ids)


def told(found, answers, options):
    """The trace, with what was seen."""
    trace = found.trace
    if options.shape and not found.asked_shape:
        raise Refused(
            f"{trace.source}: --shape does nothing here: the experts have a shape of their own;"
            " leave it out"
        )
    if answers > 1:
        trace.notes.append(f"the tokens of {answers} lists stand one behind the other")
    if found.missing:
        trace.notes.append(
            f"left out: {found.missing} tokens without routing (the server had them in its cache)"
        )
    if found.unsigned:
        trace.notes.append(
            f"{found.unsigned} numbers are the largest of their unsigned type, which stands for -1"
            " (none)"
        )
    return trace


def read(paths, intake, options):
    """Answers in JSON."""
    found, count = Found(paths[0]), 0
    for path in paths:
        here = [field for answer in objects(path, intake) for field in fields(answer, found.trace)]
        if not here:
            raise Refused(
                f"{shown(path)}: no routed_experts in it: start the server with"
                " --enable-return-routed-experts"
            )
        for number, (value, dtype) in enumerate(here):
            where = f"{shown(path)}: answer {number}"
            add(found, decode(value, dtype, options, where, found), options, where)
        found.trace.notes.append(f"{name_of(path)}: {len(here)} lists of routed experts")
        count += len(here)
    return told(found, count, options)


def read_arrays(paths, intake, options):
    """.npy of [tokens, layers, K], as numpy.save writes what vLLM's Python interface returns."""
    found, seen = Found(paths[0]), []
    for path in paths:
        shape, numbers, descr = npy.loads(intake.read(path, npy.MAGIC), shown(path))
        add(found, (shape, numbers, descr[1] == "u"), options, shown(path))
        seen.append(f"{name_of(path)} ({npy.name_of_type(descr)} {list(shape)})")
    trace = told(found, 0, options)
    trace.notes.insert(0, f"files: {few(seen)}")
    return trace
