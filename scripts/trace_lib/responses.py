"""What servers return with each answer when they are asked for the routed experts. vLLM (--enable-return-routed-experts): `routed_experts` in
each choice, [tokens, layers, K], as nested lists (0.21, with `prompt_routed_experts` beside it) or as the base64 of a .npy (later);
SGLang (--enable-return-routed-experts, return_routed_experts): the base64 of bare int32, whose shape the user has to say."""
import array
import base64
import binascii
import json

from trace_lib import npy
from trace_lib.trace import Layer, Refused, Trace, name_of

WIRE = {"int32": "i", "uint16": "H", "uint8": "B"}


def objects(path):
    """The answers of a file: one object, a list of them, or one on each line."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        raise Refused(f"{path} is no JSON, and not one JSON object on each line either") from None


def fields(answer):
    """(value, dtype) of each list of routed experts in an answer, prompt first."""
    found = []
    if isinstance(answer, dict):
        dtype = answer.get("routed_experts_dtype")
        for name in ("prompt_routed_experts", "routed_experts"):
            if answer.get(name) is not None:
                found.append((answer[name], dtype))
        for name in ("meta_info", "sglext"):
            found += fields(answer.get(name))
        for choice in answer.get("choices") or []:
            found += fields(choice)
    return found


def bare_numbers(content, dtype, options, path):
    """SGLang's: numbers without a shape."""
    if not options.shape:
        raise Refused(f"{path}: the experts are bare numbers: say how many layers and experts per token they are of, --shape LAYERS,K")
    if (dtype or "int32") not in WIRE:
        raise Refused(f"{path}: routed_experts_dtype = {dtype}: read are {', '.join(WIRE)}")
    numbers = array.array(WIRE[dtype or "int32"])
    layers, top_k = options.shape
    if len(content) % (numbers.itemsize * layers * top_k):
        raise Refused(f"{path}: {len(content)} bytes of {dtype or 'int32'} are no whole number of tokens with {layers} layers of {top_k} experts")
    numbers.frombytes(content)
    return (len(numbers) // (layers * top_k), layers, top_k), numbers


def nested(value, path):
    """Lists in lists in lists."""
    try:
        shape = (len(value), len(value[0]), len(value[0][0])) if value else (0, 0, 0)
        numbers = array.array("q", [expert for token in value for layer in token for expert in layer])
    except (TypeError, IndexError, OverflowError):
        raise Refused(f"{path}: routed_experts is no list of tokens, each a list of layers, each a list of experts") from None
    if len(numbers) != shape[0] * shape[1] * shape[2]:
        raise Refused(f"{path}: routed_experts has tokens with different numbers of layers or experts")
    return shape, numbers


def decode(value, dtype, options, path):
    """(shape, numbers) of one field."""
    if not isinstance(value, str):
        return nested(value, path)
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{path}: routed_experts is a text, but no base64") from None
    return npy.loads(content, f"{path}: routed_experts") if content.startswith(npy.MAGIC) else bare_numbers(content, dtype, options, path)


def add(trace, shape, numbers, path):
    """Tokens of one answer; those that the server did not compute (all -1: it had them in its cache) are left out and counted."""
    if len(shape) != 3:
        raise Refused(f"{path}: the experts have shape {list(shape)}; expected is [tokens, layers, K]")
    tokens, layers, top_k = shape
    if tokens and trace.layers and (len(trace.layers), trace.layers[0].top_k) != (layers, top_k):
        raise Refused(f"{path}: {layers} layers of {top_k} experts beside {len(trace.layers)} of {trace.layers[0].top_k}: give one model at a time")
    missing, size = 0, layers * top_k
    for t in range(tokens):
        row = numbers[t * size:(t + 1) * size]
        if all(expert < 0 for expert in row):
            missing += 1
            continue
        for layer in range(layers):
            trace.layers.setdefault(layer, Layer(top_k)).add(row[layer * top_k:(layer + 1) * top_k])
    return missing


def told(trace, missing):
    if missing:
        trace.notes.append(f"left out: {missing} tokens without routing (the server had them in its cache)")
    return trace


def read(paths, options):
    trace, missing = Trace(name_of(paths[0])), 0
    for path in paths:
        found = [field for answer in objects(path) for field in fields(answer)]
        if not found:
            raise Refused(f"{path}: no routed_experts in it: start the server with --enable-return-routed-experts")
        for value, dtype in found:
            missing += add(trace, *decode(value, dtype, options, path), path)
    return told(trace, missing)


def read_arrays(paths, _options):
    """.npy of [tokens, layers, K], as numpy.save writes what vLLM's Python interface returns."""
    trace, missing = Trace(name_of(paths[0])), 0
    for path in paths:
        missing += add(trace, *npy.load(path), path)
    return told(trace, missing)
