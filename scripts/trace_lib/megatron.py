"""Megatron-Core's router trace (--moe-routing-trace-path): router_trace_rank{R}.jsonl, one record
for each step, block and layer with `step`, `block`, `layer`, `rank`, `num_tokens`, `topk`,
`top_indices`, for multi-token prediction `mtp_idx`; and, where logits were captured,
`logit_offset`, `logit_bytes` and `logit_shape` into logits_rank{R}.bin, bfloat16."""

import array
import os
import re
from dataclasses import dataclass, field

from trace_lib.guard import (
    MOST_EXPERTS,
    MOST_FILES,
    MOST_LAYERS,
    MOST_STEPS,
    NoJson,
    Refused,
    few,
    is_whole,
    name_of,
    parse_json,
    range_of,
    shown,
    whole,
)
from trace_lib.trace import Layer, Trace

USED = (
    "step",
    "block",
    "layer",
    "rank",
    "num_tokens",
    "mtp_idx",
    "top_indices",
    "logit_offset",
    "logit_bytes",
    "logit_shape",
)
MOST_BYTES = 1 << 48
NAME = re.compile(r"router_trace_rank(\d+)\.jsonl")


@dataclass
class Rank:
    """What one file holds."""

    path: str
    layers: dict = field(default_factory=dict)
    names: set = field(default_factory=set)  # layers of all steps, the wanted ones or not
    experts: int = 0  # of the logits; 0 where there are none
    tokens: dict = field(default_factory=dict)  # (step, layer) -> tokens of its records
    pieces: dict = field(default_factory=dict)  # layer -> (step, tokens) of its records, in order
    repeated: int = 0  # records whose step and layer were there before
    repeated_tokens: int = 0
    cut: bool = False  # the last line is cut off
    bare: bool = False  # some record has no logits
    logits: object = None  # the open file of logits


def records(rank, intake):
    """(place, record) of each line. A last line that was cut off is left out, and noted."""
    wrong = None
    for number, line in intake.lines(rank.path):
        where = f"{shown(rank.path)}:{number}"
        if wrong is not None:
            raise wrong
        if not line.strip():
            continue
        try:
            record = parse_json(line, where)
        except NoJson as error:
            wrong = error
            continue
        if not isinstance(record, dict) or "layer" not in record or "top_indices" not in record:
            raise Refused(
                f"{where}: no record of a router trace (expected are step, layer, rank,"
                " top_indices)"
            )
        yield where, record
    if wrong is not None and not rank.layers:
        raise wrong
    rank.cut = wrong is not None


def name_in_block(record, where):
    """A layer's name: its number, in multi-token prediction behind that of the block."""
    layer = whole(record["layer"], 0, MOST_BYTES, where, "layer")
    if "mtp_idx" not in record:
        return str(layer)
    return f"{whole(record['mtp_idx'], 0, MOST_BYTES, where, 'mtp_idx')}.{layer}"


def order_of(name):
    """Key by which layers are sorted."""
    return [int(part) for part in name.split(".")]


def check_rows(rows, record, where):
    """top_indices: a list of rows of whole numbers, as many as num_tokens says."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise Refused(f"{where}: top_indices is no list of rows, one for each token")
    if "num_tokens" in record and record["num_tokens"] != len(rows):
        raise Refused(
            f"{where}: num_tokens is {shown(record['num_tokens'], 40)}, but top_indices has"
            f" {len(rows)} rows"
        )
    for t, row in enumerate(rows):
        if not all(is_whole(expert, -1, MOST_EXPERTS - 1) for expert in row):
            raise Refused(
                f"{where}: token {t} has the experts {few(row)}; allowed are -1 (none) and 0 to"
                f" {MOST_EXPERTS - 1}"
            )


def from_bfloat16(content):
    """float32 of bfloat16, which is its upper half."""
    halves = array.array("H", content)
    numbers = array.array("f")
    numbers.frombytes(array.array("I", [half << 16 for half in halves]).tobytes())
    return numbers


def logits_of(rank, record, tokens, where, intake):
    """Numbers of the record's logits from the file beside the trace; None where there are none."""
    if "logit_offset" not in record:
        return None
    number = whole(record.get("rank"), 0, MOST_BYTES, where, "rank")
    beside = os.path.join(os.path.dirname(rank.path), f"logits_rank{number}.bin")
    offset = whole(record["logit_offset"], 0, MOST_BYTES, where, "logit_offset")
    size = whole(record.get("logit_bytes"), 0, MOST_BYTES, where, "logit_bytes")
    shape = record.get("logit_shape")
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(is_whole(n, 0, MOST_BYTES) for n in shape)
    ):
        raise Refused(f"{where}: logit_shape is {shown(shape, 60)}; expected is [tokens, experts]")
    if shape[0] != tokens or not 1 <= shape[1] <= MOST_EXPERTS:
        raise Refused(
            f"{where}: logit_shape is {shape}; expected are {tokens} tokens and 1 to"
            f" {MOST_EXPERTS} experts"
        )
    if rank.experts not in (0, shape[1]):
        raise Refused(
            f"{where}: logits of {shape[1]} experts behind logits of {rank.experts}; expected is"
            " one number"
        )
    rank.experts = shape[1]
    if rank.logits is None:
        try:
            rank.logits = number, intake.open(beside)
        except OSError as error:
            raise Refused(
                f"{where}: it names logits, and {shown(beside)} cannot be read: {error.strerror}"
            ) from None
    if rank.logits[0] != number:
        raise Refused(f"{where}: rank is {number}, and {rank.logits[0]} in the records before it")
    file = rank.logits[1]
    if size != 2 * shape[0] * shape[1] or offset + size > os.fstat(file.fileno()).st_size:
        raise Refused(
            f"{where}: its logits ({size} bytes from {offset} on, shape {shape}, 2 bytes each) are"
            f" not whole in {shown(beside)}"
        )
    file.seek(offset)
    return from_bfloat16(file.read(size))


def add_record(rank, record, where, options, intake, trace):
    """One record's tokens, if its block and step are wanted."""
    step = whole(record.get("step", 0), 0, MOST_STEPS, where, "step")
    if record.get("block", "decoder") != options.block:
        return
    name = name_in_block(record, where)
    rank.names.add(name)
    if len(rank.names) > MOST_LAYERS:
        raise Refused(f"{where}: more than {MOST_LAYERS} layers, which is what the program takes")
    if not options.steps[0] <= step <= options.steps[1]:
        return
    trace.saw(record, USED)
    rows = record["top_indices"]
    check_rows(rows, record, where)
    if (step, name) in rank.tokens:
        rank.repeated += 1
        rank.repeated_tokens += len(rows)
        if options.distinct:
            return
    rank.tokens[step, name] = rank.tokens.get((step, name), 0) + len(rows)
    rank.pieces.setdefault(name, []).append((step, len(rows)))
    here = rank.layers.setdefault(name, Layer(max((len(row) for row in rows), default=1) or 1))
    intake.room(here.top_k * (here.tokens + len(rows)), where)
    for t, row in enumerate(rows):
        if len(row) > here.top_k:
            raise Refused(
                f"{where}: token {t} has the experts {few(row)}; expected are up to {here.top_k},"
                " as the layer's first record has"
            )
        here.add(row)
    logits = logits_of(rank, record, len(rows), where, intake)
    rank.bare |= logits is None
    if logits is not None:
        here.logits.extend(logits)


def read_file(path, intake, options, trace):
    """What one rank wrote. Logits that some records lack are not used."""
    rank = Rank(path)
    for where, record in records(rank, intake):
        add_record(rank, record, where, options, intake, trace)
    if rank.logits is not None:
        rank.logits[1].close()
    if rank.bare:
        rank.experts = 0
        for layer in rank.layers.values():
            layer.logits = array.array("f")
    check_steps(rank)
    return rank


def check_steps(rank):
    """A run that was stopped leaves a last step in which layers are missing."""
    by_step = {}
    for (step, name), tokens in rank.tokens.items():
        by_step.setdefault(step, {})[name] = tokens
    steps = sorted(by_step)
    for i, step in enumerate(steps):
        counts = {name: by_step[step].get(name, 0) for name in sorted(rank.names)}
        if len(set(counts.values())) > 1:
            least, most = min(counts, key=counts.get), max(counts, key=counts.get)
            advice = (
                f"--steps {steps[0]}:{steps[i - 1]} takes those before it"
                if i
                else "it is the first one"
            )
            raise Refused(
                f"{shown(rank.path)}: step {step} is not whole: layer {most} has"
                f" {counts[most]} tokens, layer {least} has {counts[least]} (the run was stopped"
                f" there?); {advice}"
            )


def files_of(paths):
    """The trace files, those of a folder in the order of their ranks."""
    found = []
    for path in paths:
        if os.path.isdir(path):
            inside = [name for name in os.listdir(path) if NAME.fullmatch(name)]
            if not inside:
                raise Refused(f"{shown(path)} has no router_trace_rank*.jsonl in it")
            found += [
                os.path.join(path, name)
                for name in sorted(inside, key=lambda name: (len(name), name))
            ]
        else:
            found.append(path)
    if len(found) > MOST_FILES:
        raise Refused(f"{len(found)} files; up to {MOST_FILES} are read")
    return found


def same(first, second):
    """Whether two ranks hold the same experts for the same tokens."""
    return first.tokens == second.tokens and all(
        second.layers[name].ids == layer.ids for name, layer in first.layers.items()
    )


def drop_twins(ranks, options, trace):
    """Ranks of one tensor-parallel group write the same records: says so, and with --distinct
    keeps the first of them."""
    kept, twins, seen = [], [], {}
    for rank in ranks:
        key = hash(
            tuple(sorted((name, hash(layer.ids.tobytes())) for name, layer in rank.layers.items()))
        )
        first = (
            next((other for other in seen.get(key, []) if same(other, rank)), None)
            if rank.layers
            else None
        )
        if first is None:
            seen.setdefault(key, []).append(rank)
        else:
            twins.append(f"{name_of(rank.path)} (as {name_of(first.path)})")
        if first is None or not options.distinct:
            kept.append(rank)
    if not twins and not any(rank.repeated for rank in ranks):
        trace.notes.append("no record and no file stands twice")
    if twins:
        done = (
            "left out"
            if options.distinct
            else "kept, so that these tokens count twice; --distinct takes the first of them"
        )
        trace.notes.append(
            "files with the same tokens and experts (ranks of one tensor-parallel group?):"
            f" {few(twins)}: {done}"
        )
    return kept


def tell(trace, ranks, options):
    """What was seen: ranks, steps, what stands twice, what was cut off."""
    for rank in ranks[:8]:
        tokens = max((layer.tokens for layer in rank.layers.values()), default=0)
        trace.notes.append(
            f"{name_of(rank.path)}: {len(rank.layers)} layers, {tokens} tokens, steps"
            f" {range_of({step for step, _ in rank.tokens}) or 'none'}"
        )
    if len(ranks) > 8:
        trace.notes.append(f"and {len(ranks) - 8} more files")
    steps = {step for rank in ranks for step, _ in rank.tokens}
    if len(steps) > 1:
        trace.notes.append(f"steps {range_of(steps)}")
    for rank in ranks:
        if rank.repeated:
            done = (
                "left out"
                if options.distinct
                else "kept, so that these tokens count twice; --distinct takes the first of each"
            )
            trace.notes.append(
                f"{name_of(rank.path)}: {rank.repeated} records ({rank.repeated_tokens} rows) have"
                f" a step and layer that were there before (activation recomputation?): {done}"
            )
        if rank.cut:
            trace.notes.append(f"{name_of(rank.path)}: its last line is cut off and was left out")


def join(name, parts, trace):
    """One layer of several ranks: step after step, and in each step rank after rank."""
    pieces, sizes, joined = [], {}, Layer(parts[0][1].top_k)
    for rank, layer in parts:
        at = 0
        for step, tokens in rank.pieces[name]:
            pieces.append((step, layer, at, at + tokens))
            sizes[step] = sizes.get(step, 0) + tokens
            at += tokens
    for _, layer, begin, end in sorted(pieces, key=lambda piece: piece[0]):
        width = len(layer.logits) // layer.tokens if layer.tokens else 0
        joined.ids.extend(layer.ids[begin * layer.top_k : end * layer.top_k])
        joined.logits.extend(layer.logits[begin * width : end * width])
    tokens = [sizes[step] for step in sorted(sizes)]
    if trace.step_tokens and sum(tokens) == sum(trace.step_tokens) and tokens != trace.step_tokens:
        raise Refused(
            f"{trace.source}: layer {name} has {few(tokens)} tokens in its steps, and another layer"
            f" {few(trace.step_tokens)}; expected is one number for each step"
        )
    trace.step_tokens = tokens
    return joined


def merge(trace, ranks):
    """Files with the same layers are ranks with different tokens, one behind the other; files with
    other layers are other stages."""
    stages, bare = {}, any(rank.bare for rank in ranks)
    sizes = {rank.experts for rank in ranks if rank.experts}
    if len(sizes) > 1 and not bare:
        raise Refused(
            f"{trace.source}: logits of {few(sorted(sizes))} experts; expected is one number"
        )
    trace.num_experts = 0 if bare else max(sizes, default=0)
    for rank in ranks:
        stage = stages.setdefault(tuple(sorted(rank.layers)), {})
        for name, layer in rank.layers.items():
            parts = stage.setdefault(name, [])
            parts.append((rank, layer))
            if parts[0][1].top_k != layer.top_k:
                raise Refused(
                    f"{shown(rank.path)}: layer {name} has {layer.top_k} experts for each token,"
                    f" and {parts[0][1].top_k} in the files before it"
                )
    for names, stage in stages.items():
        twice = next((name for name in names if name in trace.layers), None)
        if twice is not None:
            raise Refused(
                f"{trace.source}: layer {twice} is in files that have different sets of layers:"
                " give the files of one pipeline at a time"
            )
        trace.layers.update((name, join(name, parts, trace)) for name, parts in stage.items())
    if bare:
        for layer in trace.layers.values():
            layer.logits = array.array("f")
    trace.layers = dict(sorted(trace.layers.items(), key=lambda item: order_of(item[0])))


def read(paths, intake, options):
    """The trace of all files; how they belong together is said in `merge`."""
    trace = Trace(name_of(paths[0]))
    ranks = [read_file(path, intake, options, trace) for path in files_of(paths)]
    ranks = drop_twins(ranks, options, trace)
    tell(trace, ranks, options)
    merge(trace, ranks)
    trace.notes.append(
        "the ids of a token may stand in the order of the experts, not of the weights; weights are"
        " not in this trace"
    )
    return trace
