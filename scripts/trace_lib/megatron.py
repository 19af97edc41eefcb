"""Megatron-Core's router trace (--moe-routing-trace-path): router_trace_rank{R}.jsonl, one record for each step, block and layer with
`step`, `block`, `layer`, `rank`, `num_tokens`, `topk`, `top_indices`, for multi-token prediction `mtp_idx`; and, where logits were captured,
`logit_offset`, `logit_bytes` and `logit_shape` into logits_rank{R}.bin, bfloat16."""
import array
import json
import os

from trace_lib.trace import Layer, Refused, Trace, name_of


def records(path):
    """The records of one file; a last line that was cut off is left out."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            yield number, record, record["layer"], record["top_indices"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and isinstance(error, ValueError):
                return
            raise Refused(f"{path}:{number}: no record of a router trace (expected are step, layer, rank, top_indices)") from None


def from_bfloat16(content):
    """float32 of bfloat16, which is its upper half."""
    halves = array.array("H", content)
    numbers = array.array("f")
    numbers.frombytes(array.array("I", [half << 16 for half in halves]).tobytes())
    return numbers


def logits_of(record, path, number):
    """Numbers of the record's logits from the file beside the trace; None where none were captured."""
    if "logit_offset" not in record:
        return None
    beside = os.path.join(os.path.dirname(path), f"logits_rank{record['rank']}.bin")
    try:
        with open(beside, "rb") as file:
            file.seek(record["logit_offset"])
            content = file.read(record["logit_bytes"])
    except OSError as error:
        raise Refused(f"{path}:{number}: it names logits, and {beside} cannot be read: {error.strerror}") from None
    if len(content) != record["logit_bytes"] or len(content) != 2 * record["logit_shape"][0] * record["logit_shape"][1]:
        raise Refused(f"{path}:{number}: its logits are not whole in {beside}")
    return from_bfloat16(content)


def name_in_block(record, layer):
    return layer if "mtp_idx" not in record else f"{record['mtp_idx']}.{layer}"


def read_file(path, options):
    """(layers by name, N or 0) of one rank."""
    layers, experts, bare = {}, 0, False
    for number, record, layer, rows in records(path):
        step = record.get("step", 0)
        if record.get("block", "decoder") != options.block or not options.first_step <= step <= options.last_step:
            continue
        here = layers.setdefault(name_in_block(record, layer), Layer(max((len(row) for row in rows), default=1) or 1))
        for row in rows:
            if len(row) > here.top_k or not all(isinstance(expert, int) for expert in row):
                raise Refused(f"{path}:{number}: {row} is no choice of up to {here.top_k} experts, as the layer's first record has")
            here.add(row)
        logits = logits_of(record, path, number)
        bare |= logits is None
        if logits is not None:
            experts = record["logit_shape"][1]
            here.logits.extend(logits)
    if bare:
        for layer in layers.values():
            layer.logits = array.array("f")
    return layers, 0 if bare else experts


def files_of(paths):
    """The trace files, those of a folder in the order of their ranks."""
    found = []
    for path in paths:
        if os.path.isdir(path):
            inside = [name for name in os.listdir(path) if name.startswith("router_trace_rank") and name.endswith(".jsonl")]
            found += [os.path.join(path, name) for name in sorted(inside, key=lambda name: (len(name), name))]
        else:
            found.append(path)
    return found


def read(paths, options):
    """Files with the same layers are ranks with different tokens, one behind the other; files with other layers are other stages."""
    stages, experts = {}, 0
    for path in files_of(paths):
        layers, said = read_file(path, options)
        experts = max(experts, said)
        stage = stages.setdefault(tuple(sorted(layers, key=str)), {})
        for name, layer in layers.items():
            if name not in stage:
                stage[name] = layer
                continue
            stage[name].ids.extend(layer.ids)
            stage[name].logits.extend(layer.logits)
    trace = Trace(name_of(paths[0]), num_experts=experts)
    for names, stage in stages.items():
        twice = next((name for name in names if name in trace.layers), None)
        if twice is not None:
            raise Refused(f"layer {twice} is in files that have different sets of layers: give the files of one pipeline at a time")
        trace.layers.update(stage)
    trace.layers = dict(sorted(trace.layers.items(), key=lambda item: [int(part) for part in str(item[0]).split(".")]))
    trace.notes.append("the ids of a token may stand in the order of the experts, not of the weights; weights are not in this trace")
    return trace
