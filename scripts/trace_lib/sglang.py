"""SGLang's expert distribution recorder: expert_distribution_recorder_{time}[_{rank}].pt, written
by /dump_expert_distribution_record. Mode per_token: {"records": [{"forward_pass_id", "rank",
"topk_ids_of_layer": int32 [layers, tokens, 8], -1 = none, ...}], "last_physical_to_logical_map":
[layers, physical experts]}. Mode per_pass has `global_physical_count` [layers, physical experts] in
each record, mode stat one `logical_count` [steps, layers, experts]: loads, not tokens. Early
versions wrote a CSV of layer_id, expert_id, count."""

import array
import os

from trace_lib import torchfile
from trace_lib.guard import (
    LARGEST_COUNT,
    MOST_EXPERTS,
    MOST_FILES,
    MOST_LAYERS,
    MOST_STEPS,
    Refused,
    few,
    name_of,
    parse_json,
    range_of,
    shown,
    whole,
)
from trace_lib.table import parse_whole, rows
from trace_lib.trace import Layer, Trace, check_range

COUNT_COLUMNS = ["layer_id", "expert_id", "count"]
USED = ("forward_pass_id", "rank", "topk_ids_of_layer", "global_physical_count")


def files_of(paths):
    """The dumps, those of a folder in the order of their names."""
    found = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(name for name in os.listdir(path) if name.endswith(".pt"))
            if not inside:
                raise Refused(f"{shown(path)} has no .pt in it")
            found += [os.path.join(path, name) for name in inside]
        else:
            found.append(path)
    if len(found) > MOST_FILES:
        raise Refused(f"{len(found)} files; up to {MOST_FILES} are read")
    return found


def tensor(thing, name, dimensions, where):
    """The tensor's whole numbers; anything else gets a sentence."""
    if not isinstance(thing, torchfile.Tensor):
        raise Refused(
            f"{where}: {name} is no tensor; expected is one of shape [{', '.join(dimensions)}]"
        )
    return thing.integers(f"{where}: {name}", dimensions)


def logical_map(dump, layers, where):
    """Physical to logical expert, for each layer; None where the file has no map."""
    table = dump.get("last_physical_to_logical_map")
    if table is None:
        return None
    name = "last_physical_to_logical_map"
    numbers = tensor(table, name, (f"{layers} layers", "physical experts"), where)
    if table.shape[0] < layers:
        raise Refused(
            f"{where}: {name} has shape {list(table.shape)}; expected is [{layers}, physical"
            " experts]"
        )
    if len(numbers) and not 0 <= min(numbers) <= max(numbers) < MOST_EXPERTS:
        raise Refused(
            f"{where}: {name} holds {min(numbers)} and {max(numbers)}; allowed are experts 0 to"
            f" {MOST_EXPERTS - 1}"
        )
    size = table.shape[1]
    return [list(numbers[layer * size : (layer + 1) * size]) for layer in range(table.shape[0])]


def logical_ids(ids, table, layer, where):
    """Logical experts of physical ones; -1 stays."""
    if table is None:
        return ids
    physical = len(table[layer])
    if len(ids) and max(ids) >= physical:
        raise Refused(
            f"{where}: layer {layer}: expert {max(ids)}, but last_physical_to_logical_map has"
            f" {physical}"
        )
    return [table[layer][expert] if expert >= 0 else -1 for expert in ids]


def add_tokens(trace, entry, table):
    """The tokens of one forward pass of one rank."""
    where, chosen = entry.where, entry.tokens
    num_layers, num_tokens, top_k = chosen.shape
    numbers = tensor(chosen, "topk_ids_of_layer", ("layers", "tokens", "K"), where)
    if top_k < 1 or (
        trace.layers and (len(trace.layers), trace.layers["0"].top_k) != (num_layers, top_k)
    ):
        raise Refused(
            f"{where}: topk_ids_of_layer has shape {list(chosen.shape)}; expected are as many"
            " layers and experts as in the records before it, at least 1"
        )
    if num_layers > MOST_LAYERS:
        raise Refused(f"{where}: {num_layers} layers; up to {MOST_LAYERS} are allowed")
    size = num_tokens * top_k
    for layer in range(num_layers):
        ids = numbers[layer * size : (layer + 1) * size]
        check_range(ids, f"{where}: layer {layer}", lambda i: f"token {i // top_k}")
        here = trace.layers.setdefault(str(layer), Layer(top_k))
        here.ids.extend(array.array("i", logical_ids(ids, table, layer, where)))


def check_count(count, where):
    """A load is a whole number from 0 on that an int64 holds."""
    if not 0 <= count <= LARGEST_COUNT:
        raise Refused(
            f"{where}: a count of {shown(count, 60)}; allowed are whole numbers from 0 to"
            f" {LARGEST_COUNT}"
        )
    return count


def add_pass(by_pass, entry, table, num_experts):
    """Loads of one forward pass of one rank, as logical experts, added to those of other ranks."""
    where, counts = entry.where, entry.loads
    layers, physical = counts.shape
    numbers = tensor(counts, "global_physical_count", ("layers", "physical experts"), where)
    if table and any(len(row) < physical for row in table[:layers]):
        raise Refused(
            f"{where}: global_physical_count has {physical} experts, last_physical_to_logical_map"
            f" {len(table[0])}"
        )
    here = by_pass.setdefault(entry.number, [[0] * num_experts for _ in range(layers)])
    if len(here) != layers:
        raise Refused(
            f"{where}: global_physical_count has {layers} layers, and {len(here)} in another record"
            " of this pass"
        )
    for layer in range(layers):
        for expert in range(physical):
            place = table[layer][expert] if table else expert
            here[layer][place] = check_count(
                here[layer][place] + check_count(numbers[layer * physical + expert], where), where
            )


class Entry:
    """One record of one file: pass, rank, and a tensor of tokens or of loads."""

    def __init__(self, record, path, index, dump, trace):
        self.file, self.where = name_of(path), f"{shown(path)}: record {index}"
        if not isinstance(record, dict):
            raise Refused(f"{self.where}: it is no dictionary")
        self.dump, self.index = dump, index
        self.number = whole(
            record.get("forward_pass_id", 0), 0, MOST_STEPS, self.where, "forward_pass_id"
        )
        self.rank = whole(record.get("rank", 0), 0, MOST_STEPS, self.where, "rank")
        self.tokens, self.loads = record.get("topk_ids_of_layer"), record.get(
            "global_physical_count"
        )
        known, dimensions = (self.tokens, 3) if self.tokens is not None else (self.loads, 2)
        if not isinstance(known, torchfile.Tensor) or len(known.shape) != dimensions:
            raise Refused(
                f"{self.where}: it has neither topk_ids_of_layer [layers, tokens, K] nor"
                " global_physical_count [layers, experts]"
            )
        self.shape = known.shape
        trace.saw((name for name in record if isinstance(name, str)), USED)


def entries_of(dumps, trace, options):
    """All records that are wanted, by pass and rank."""
    entries = []
    for path, dump in dumps:
        if not isinstance(dump["records"], list):
            raise Refused(f"{shown(path)}: records is no list")
        for index, record in enumerate(dump["records"]):
            entry = Entry(record, path, index, dump, trace)
            if options.steps[0] <= entry.number <= options.steps[1]:
                entries.append(entry)
    if not entries:
        raise Refused(f"{trace.source}: no record in it, or none of the passes that --steps names")
    return sorted(entries, key=lambda entry: (entry.number, entry.rank))


def tell(trace, entries):
    """What was seen: files, passes, ranks, and what stands twice."""
    by_file = {}
    for entry in entries:
        by_file[entry.file] = by_file.get(entry.file, 0) + 1
    trace.notes.append(f"records: {few(f'{name}: {count}' for name, count in by_file.items())}")
    passes, ranks = {entry.number for entry in entries}, {entry.rank for entry in entries}
    trace.notes.append(
        f"{len(entries)} records of {len(passes)} forward passes ({range_of(passes)}) on ranks"
        f" {range_of(ranks)}"
    )
    twice = len(entries) - len({(entry.number, entry.rank) for entry in entries})
    if not twice:
        trace.notes.append("no pass stands twice on a rank")
    else:
        trace.notes.append(
            f"{twice} records have a pass and rank that were there before: their tokens or loads"
            " count twice"
        )


def map_of(entry, maps):
    """The map of the entry's dump, read once, for as many layers as the entry has."""
    if id(entry.dump) not in maps:
        maps[id(entry.dump)] = logical_map(entry.dump, entry.shape[0], entry.where)
    table = maps[id(entry.dump)]
    if table is not None and len(table) < entry.shape[0]:
        raise Refused(
            f"{entry.where}: {entry.shape[0]} layers, and last_physical_to_logical_map has"
            f" {len(table)}"
        )
    return table


def experts_of(entry, table):
    """How many experts an entry knows of: those of its map, else those it counts, else 0."""
    if table:
        return 1 + max((max(row) for row in table if row), default=-1)
    experts = 0 if entry.tokens is not None else entry.shape[1]
    return whole(experts, 0, MOST_EXPERTS, entry.where, "the number of experts")


def read_records(trace, dumps, intake, options):
    """Tokens or loads of every pass."""
    passes, maps, entries = {}, {}, entries_of(dumps, trace, options)
    tables = [map_of(entry, maps) for entry in entries]
    trace.num_experts = max(map(experts_of, entries, tables))
    for entry, table in zip(entries, tables):
        if entry.tokens is not None:
            add_tokens(trace, entry, table)
        else:
            intake.room((len(passes) + 1) * entry.shape[0] * trace.num_experts, entry.where)
            add_pass(passes, entry, table, trace.num_experts)
    if trace.layers and passes:
        raise Refused(
            f"{trace.source}: some records hold tokens and some hold loads: give dumps of one mode"
        )
    set_counts(trace, [passes[number] for number in sorted(passes)])
    sizes = {}
    for entry in entries:
        if entry.tokens is not None:
            sizes[entry.number] = sizes.get(entry.number, 0) + entry.shape[1]
    trace.step_tokens = [sizes[number] for number in sorted(sizes)]
    tell(trace, entries)


def set_counts(trace, counts):
    """Loads of all steps, of one size; layers are named by their numbers."""
    if not counts:
        return
    if (
        len({len(step) for step in counts}) > 1
        or len({len(layer) for step in counts for layer in step}) > 1
    ):
        raise Refused(f"{trace.source}: the passes have different numbers of layers or experts")
    trace.counts = counts
    trace.count_names = [str(layer) for layer in range(len(counts[0]))]


def read_stat(trace, path, dump, options):
    """Loads that SGLang has added up itself."""
    where = shown(path)
    numbers = tensor(dump["logical_count"], "logical_count", ("steps", "layers", "experts"), where)
    steps, layers, experts = dump["logical_count"].shape
    if not len(numbers) or layers > MOST_LAYERS or experts > MOST_EXPERTS:
        raise Refused(
            f"{where}: logical_count has shape {[steps, layers, experts]}; allowed are 1 step or"
            f" more, 1 to {MOST_LAYERS} layers, 1 to {MOST_EXPERTS} experts"
        )
    check_count(min(numbers), where)
    first, last = options.steps[0], min(options.steps[1], steps - 1)
    if first > last:
        raise Refused(f"{where}: it has steps 0 to {steps - 1}, none of those that --steps names")
    at = [
        [(step * layers + layer) * experts for layer in range(layers)]
        for step in range(first, last + 1)
    ]
    set_counts(trace, [[list(numbers[place : place + experts]) for place in step] for step in at])
    trace.num_experts = experts
    trace.notes.append(f"steps {first} to {last} of {steps} in logical_count")
    trace.saw((name for name in dump if isinstance(name, str)), ("logical_count",))


def read_json(paths, intake, _options):
    """One dump of loads as JSON, {"logical_count": [steps][layers][experts]}, or of one step
    without the first of these: what --init-expert-location takes."""
    trace, where = Trace(name_of(paths[0])), shown(paths[0])
    if len(paths) > 1:
        raise Refused(f"{shown(paths[1])}: one file of loads holds all ranks: give one file")
    counts = parse_json(intake.text(paths[0]), where)["logical_count"]
    depth, at = 0, counts
    while isinstance(at, list) and at and depth < 4:
        depth, at = depth + 1, at[0]
    if depth not in (2, 3):
        raise Refused(
            f"{where}: logical_count is no list of [steps, layers, experts] or [layers, experts]"
        )
    steps = counts if depth == 3 else [counts]
    for step in steps:
        for layer in step if isinstance(step, list) else [None]:
            if not isinstance(layer, list) or not all(type(count) is int for count in layer):
                raise Refused(
                    f"{where}: logical_count is not everywhere as deep as at its beginning, or it"
                    " holds something else than whole numbers"
                )
            for count in layer:
                check_count(count, where)
    set_counts(trace, steps)
    whole(len(steps[0]), 1, MOST_LAYERS, where, "the number of layers")
    trace.num_experts = whole(len(steps[0][0]), 1, MOST_EXPERTS, where, "the number of experts")
    trace.notes.append(f"{len(steps)} steps in logical_count")
    return trace


def read(paths, intake, options):
    """Dumps of one mode; those of tokens and of passes may be several files."""
    trace = Trace(name_of(paths[0]))
    dumps = [(path, torchfile.load(path, intake)) for path in files_of(paths)]
    for path, dump in dumps:
        if not isinstance(dump, dict) or not ("records" in dump or "logical_count" in dump):
            raise Refused(
                f"{shown(path)} is no dump of SGLang's recorder: expected are `records` or"
                " `logical_count`"
            )
    stat = [(path, dump) for path, dump in dumps if "logical_count" in dump]
    if stat and len(dumps) > 1:
        raise Refused(
            f"{shown(stat[0][0])}: a dump of loads (mode stat) already holds all ranks: give one"
            " file"
        )
    if stat:
        read_stat(trace, *stat[0], options)
    else:
        read_records(trace, dumps, intake, options)
    return trace


def is_counts_csv(path, intake):
    """Whether a CSV has the columns of the recorder's early versions."""
    for _, text in intake.lines(path):
        return [name.strip() for name in text[:200].split(",")] == COUNT_COLUMNS
    return False


def read_counts_csv(paths, intake, _options):
    """Early versions: one step of loads, a file for each rank, added up."""
    loads, trace = {}, Trace(name_of(paths[0]))
    for path in paths:
        for number, row in rows(path, intake):
            where = f"{shown(path)}:{number}"
            if number == 1:
                trace.saw([name.strip() for name in row], COUNT_COLUMNS)
                continue
            if len(row) != 3:
                raise Refused(
                    f"{where}: expected are three whole numbers, layer_id,expert_id,count"
                )
            layer = parse_whole(row[0], 0, MOST_LAYERS - 1, where, "layer_id")
            place = layer, parse_whole(row[1], 0, MOST_EXPERTS - 1, where, "expert_id")
            count = parse_whole(row[2], 0, LARGEST_COUNT, where, "count")
            loads[place] = check_count(loads.get(place, 0) + count, where)
    if not loads:
        raise Refused(f"{shown(paths[0])}: it has no line but the first")
    names = sorted({layer for layer, _ in loads})
    experts = 1 + max(expert for _, expert in loads)
    intake.room(len(names) * experts, f"{trace.source}: {len(names)} layers of {experts} experts")
    trace.counts = [
        [[loads.get((layer, expert), 0) for expert in range(experts)] for layer in names]
    ]
    trace.count_names, trace.num_experts = [str(name) for name in names], experts
    return trace
