"""SGLang's expert distribution recorder: expert_distribution_recorder_{time}[_{rank}].pt, written by /dump_expert_distribution_record.
Mode per_token: {"records": [{"forward_pass_id", "rank", "topk_ids_of_layer": int32 [layers, tokens, 8], -1 = none, ...}],
"last_physical_to_logical_map": [layers, physical experts]}. Mode per_pass has `global_physical_count` [layers, physical experts] in each
record, mode stat one `logical_count` [steps, layers, experts]: loads, not tokens. Early versions wrote a CSV of layer_id, expert_id, count."""
import csv
import os

from trace_lib import torchfile
from trace_lib.trace import Layer, Refused, Trace, name_of

COUNT_COLUMNS = ["layer_id", "expert_id", "count"]


def files_of(paths):
    found = []
    for path in paths:
        if os.path.isdir(path):
            found += [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(".pt")]
        else:
            found.append(path)
    return found


def logical_map(dump, layers):
    """Physical to logical expert, for each layer; None where the file has no map."""
    table = dump.get("last_physical_to_logical_map")
    if table is None:
        return None
    if len(table.shape) != 2 or table.shape[0] < layers:
        raise Refused(f"last_physical_to_logical_map has shape {list(table.shape)}; expected is [{layers}, physical experts]")
    return [list(table.at(layer).data) for layer in range(table.shape[0])]


def add_tokens(trace, record, table):
    """The tokens of one forward pass of one rank."""
    chosen = record["topk_ids_of_layer"]
    num_layers, num_tokens, top_k = chosen.shape
    for layer in range(num_layers):
        ids = chosen.at(layer).data
        if table:
            if max(ids, default=-1) >= len(table[layer]):
                raise Refused(f"layer {layer}: expert {max(ids)}, but last_physical_to_logical_map has {len(table[layer])}")
            ids = [table[layer][expert] if expert >= 0 else -1 for expert in ids]
        here = trace.layers.setdefault(layer, Layer(top_k))
        for t in range(num_tokens):
            here.add(ids[t * top_k:(t + 1) * top_k])


def add_pass(by_pass, record, table, num_experts):
    """Loads of one forward pass of one rank, as logical experts, added to those of the other ranks."""
    counts = record["global_physical_count"]
    here = by_pass.setdefault(record["forward_pass_id"], [[0] * num_experts for _ in range(counts.shape[0])])
    for layer in range(counts.shape[0]):
        for expert, count in enumerate(counts.at(layer).data):
            here[layer][table[layer][expert] if table else expert] += count


def read_records(trace, dumps):
    passes, entries = {}, []
    for path, dump in dumps:
        for record in dump["records"]:
            entries.append((record.get("forward_pass_id", 0), record.get("rank", 0), len(entries), path, dump, record))
    for _, _, _, path, dump, record in sorted(entries, key=lambda entry: entry[:3]):
        tokens = record.get("topk_ids_of_layer")
        loads = record.get("global_physical_count")
        known = tokens if tokens is not None else loads
        if known is None or len(known.shape) != (3 if tokens is not None else 2):
            raise Refused(f"{path}: a record has neither topk_ids_of_layer [layers, tokens, K] nor global_physical_count [layers, experts]")
        table = logical_map(dump, known.shape[0])
        trace.num_experts = max(trace.num_experts, 1 + max(map(max, table)) if table else known.shape[1] if tokens is None else 0)
        if tokens is not None:
            add_tokens(trace, record, table)
        else:
            add_pass(passes, record, table, trace.num_experts)
    trace.counts = [passes[number] for number in sorted(passes)]


def read_stat(trace, dump):
    counts = dump["logical_count"]
    if len(counts.shape) != 3:
        raise Refused(f"logical_count has shape {list(counts.shape)}; expected is [steps, layers, experts]")
    trace.num_experts = counts.shape[2]
    trace.counts = [[list(counts.at(step).at(layer).data) for layer in range(counts.shape[1])] for step in range(counts.shape[0])]


def read(paths, _options):
    files = files_of(paths)
    trace, dumps = Trace(name_of(paths[0])), [(path, torchfile.load(path)) for path in files]
    for path, dump in dumps:
        if not isinstance(dump, dict) or not ("records" in dump or "logical_count" in dump):
            raise Refused(f"{path} is no dump of SGLang's recorder: expected are `records` or `logical_count`")
    stat = [dump for _, dump in dumps if "logical_count" in dump]
    if stat and len(dumps) > 1:
        raise Refused("a dump of loads (mode stat) already holds all ranks: give one file")
    if stat:
        read_stat(trace, stat[0])
    else:
        read_records(trace, dumps)
    if trace.layers and trace.counts:
        raise Refused("some records hold tokens and some hold loads: give dumps of one mode")
    return trace


def is_counts_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [name.strip() for name in next(csv.reader(file), [])] == COUNT_COLUMNS


def read_counts_csv(paths, _options):
    """Early versions: one step of loads, a file for each rank, added up."""
    loads = {}
    for path in paths:
        with open(path, newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    place = int(row["layer_id"]), int(row["expert_id"])
                    loads[place] = loads.get(place, 0) + int(row["count"])
                except (TypeError, ValueError):
                    raise Refused(f"{path}:{number}: expected are three whole numbers, layer_id,expert_id,count") from None
    if not loads:
        raise Refused(f"{paths[0]}: it has no line but the first")
    names, experts = sorted({layer for layer, _ in loads}), 1 + max(expert for _, expert in loads)
    return Trace(name_of(paths[0]), num_experts=experts, counts=[[[loads.get((layer, expert), 0) for expert in range(experts)] for layer in names]])
