"""Where experts live, in the forms of deployed systems: moesim's own is an array [layers][slots] of
the expert in each slot, device d having the slots d*S/D .. (d+1)*S/D - 1 (EPLB's phy2log).
docs/placement.md says from which public sources the forms are."""

import csv
import io
import json
import os
import re
from dataclasses import dataclass

from trace_lib import npy
from trace_lib.guard import (
    MOST_EXPERTS,
    MOST_LAYERS,
    NoJson,
    Refused,
    few,
    parse_json,
    shown,
    whole,
)

MOST_SLOTS = 1 << 20
CSV_COLUMNS = ["layer", "device", "slot", "expert"]


@dataclass
class Placement:
    """rows [layers][slots]; 0 devices: the form does not say it."""

    rows: list
    experts: int = 0
    devices: int = 0

    @property
    def slots(self):
        return len(self.rows[0])


# --- checks ---


def check(placement, where):
    """Every layer has as many slots, every expert has one, and devices have equal numbers."""
    rows = placement.rows
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise Refused(
            f"{where}: the layers have {few(sorted({len(row) for row in rows})) or 'no'} slots;"
            " expected is one number"
        )
    if len(rows) > MOST_LAYERS or placement.slots > MOST_SLOTS:
        raise Refused(
            f"{where}: {len(rows)} layers of {placement.slots} slots; up to {MOST_LAYERS} and"
            f" {MOST_SLOTS} are allowed"
        )
    least, most = min(map(min, rows)), max(map(max, rows))
    if least < 0:
        raise Refused(
            f"{where}: a slot is empty ({least}): a policy that fetches weights for every batch"
            " (llep, moonep) has no placement that stays"
        )
    placement.experts = placement.experts or most + 1
    if most >= min(placement.experts, MOST_EXPERTS):
        raise Refused(
            f"{where}: expert {most}, and there are {placement.experts} (0 to"
            f" {placement.experts - 1})"
        )
    for layer, row in enumerate(rows):
        homeless = set(range(placement.experts)) - set(row)
        if homeless:
            raise Refused(f"{where}: layer {layer} has no slot for expert {few(sorted(homeless))}")
    if placement.devices and placement.slots % placement.devices:
        raise Refused(
            f"{where}: {placement.slots} slots, which is no multiple of {placement.devices} devices"
        )
    return placement


# --- writing ---


def replicas(placement):
    """log2phy [layers][experts]: the slots of each expert in their order."""
    table = [[[] for _ in range(placement.experts)] for _ in placement.rows]
    for row, of_layer in zip(placement.rows, table):
        for slot, expert in enumerate(row):
            of_layer[expert].append(slot)
    return table


def write_eplb(placement, path, _first):
    """A folder with the three results of rebalance_experts as int64 arrays."""
    table = replicas(placement)
    width = max(len(slots) for layer in table for slots in layer)
    layers, experts = len(table), placement.experts
    os.makedirs(path, exist_ok=True)
    padded = [slots + [-1] * (width - len(slots)) for layer in table for slots in layer]
    for name, shape, parts in (
        ("phy2log", (layers, placement.slots), placement.rows),
        ("log2phy", (layers, experts, width), padded),
        ("logcnt", (layers, experts), [[len(slots) for slots in layer] for layer in table]),
    ):
        npy.save(os.path.join(path, f"{name}.npy"), "<i8", shape, parts)


def write_text(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def with_dense(placement, first):
    """The layers before the first one with experts stand at 0 .. in slot order, as SGLang itself
    fills them."""
    trivial = [slot % placement.experts for slot in range(placement.slots)]
    return [trivial] * first + placement.rows


def write_sglang(placement, path, first):
    rows = ",\n  ".join(map(json.dumps, with_dense(placement, first)))
    write_text(path, f'{{"physical_to_logical_map": [\n  {rows}\n]}}\n')


def write_trtllm(placement, path, first):
    lines = [f"  {first + layer}: {json.dumps(row)}\n" for layer, row in enumerate(placement.rows)]
    write_text(
        path,
        f"num_slots: {placement.slots}\ninitial_global_assignments:\n{''.join(lines)}"
        "layer_updates_per_iter: 0\n",
    )


def write_ascend(placement, path, _first):
    size = placement.slots // placement.devices
    layers = [
        {
            "layer_id": layer,
            "device_count": placement.devices,
            "device_list": [
                {"device_id": device, "device_expert": row[device * size : (device + 1) * size]}
                for device in range(placement.devices)
            ],
        }
        for layer, row in enumerate(placement.rows)
    ]
    table = {"moe_layer_count": len(layers), "layer_list": layers}
    write_text(path, json.dumps(table, indent=1) + "\n")


def write_csv(placement, path, _first):
    size = placement.slots // placement.devices
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(CSV_COLUMNS)
        for layer, row in enumerate(placement.rows):
            out.writerows((layer, s // size, s % size, expert) for s, expert in enumerate(row))


def write_npy(placement, path, _first):
    """moesim's own form, for placement.file."""
    npy.save(path, "<i4", (len(placement.rows), placement.slots), placement.rows)


# --- reading ---


def numbers(value, where):
    """A list of experts."""
    if not isinstance(value, list):
        raise Refused(f"{where} is no list of experts")
    return [whole(expert, -1, MOST_EXPERTS - 1, where, "an expert") for expert in value]


def without_dense(rows, first, where):
    if first >= len(rows):
        raise Refused(f"{where}: {len(rows)} layers, none behind the first {first}")
    return rows[first:]


def read_array(content, where, _first):
    """An array [layers, slots] or [slots] of any integer type."""
    shape, flat, _ = npy.loads(content, where)
    if len(shape) not in (1, 2) or not flat:
        raise Refused(f"{where} has the shape {list(shape)}; expected is [layers, slots]")
    width = shape[-1]
    return Placement([list(flat[at : at + width]) for at in range(0, len(flat), width)])


def read_json(content, where, first):
    """SGLang's physical_to_logical_map, or the lists of vllm-ascend."""
    try:
        table = parse_json(content.decode("utf-8-sig"), where)
    except (UnicodeDecodeError, NoJson):
        raise Refused(f"{where} is no JSON") from None
    if isinstance(table, dict) and isinstance(table.get("physical_to_logical_map"), list):
        rows = table["physical_to_logical_map"]
        rows = [numbers(row, f"{where}: layer {layer}") for layer, row in enumerate(rows)]
        return Placement(without_dense(rows, first, where))
    if isinstance(table, dict) and isinstance(table.get("layer_list"), list):
        return read_ascend(table["layer_list"], where)
    raise Refused(
        f"{where} has neither physical_to_logical_map (SGLang) nor layer_list (vllm-ascend)"
    )


def members(thing, name, where):
    """A list of objects by their id: [(id, object)] in the order of ids 0, 1, ..."""
    found = thing.get(name) if isinstance(thing, dict) else None
    key = {"layer_list": "layer_id", "device_list": "device_id"}[name]
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Refused(f"{where}: {name} is no list of objects")
    ids = [whole(one.get(key), 0, MOST_SLOTS, where, key) for one in found]
    if sorted(ids) != list(range(len(ids))):
        raise Refused(f"{where}: {key} is {few(ids)}; expected is each of 0 to {len(ids) - 1} once")
    return [one for _, one in sorted(zip(ids, found), key=lambda pair: pair[0])]


def read_ascend(layers, where):
    rows, devices = [], set()
    for layer, one in enumerate(members({"layer_list": layers}, "layer_list", where)):
        here = f"{where}: layer {layer}"
        parts = [
            numbers(device.get("device_expert"), f"{here}: device_expert")
            for device in members(one, "device_list", here)
        ]
        if len({len(part) for part in parts}) != 1:
            raise Refused(f"{here}: its devices have different numbers of experts")
        devices.add(len(parts))
        rows.append([expert for part in parts for expert in part])
    if len(devices) > 1:
        raise Refused(f"{where}: the layers have {few(sorted(devices))} devices")
    return Placement(rows, devices=devices.pop() if devices else 0)


ASSIGNMENTS = re.compile(
    r"^initial_global_assignments:[ \t]*\n((?:[ \t]+\S.*\n?|-.*\n?|\n)*)", re.M
)
LAYER = re.compile(
    r"^[ \t]+[\"']?(\d{1,9})[\"']?:[ \t]*(\[[^\]]*\]|(?:\n[ \t]*-[ \t]*-?\d+[ \t]*)+)", re.M
)


def read_yaml(content, where, _first):
    """TensorRT-LLM's: the lists under initial_global_assignments, in one line, folded, or with a
    line for each number. Other YAML is not read."""
    try:
        text = re.sub(r"(?m)[ \t]#.*$|^#.*$", "", content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise Refused(f"{where} is no text in UTF-8") from None
    block = ASSIGNMENTS.search(text.replace("\r\n", "\n"))
    found = LAYER.findall(block[1]) if block else []
    if not found:
        raise Refused(f"{where} has no lists under initial_global_assignments")
    layers = {
        int(layer): re.findall(r"-?\b\d{1,9}\b", re.sub(r"(?m)^[ \t]*- ", "", row))
        for layer, row in found
    }
    if len(layers) < len(found):
        raise Refused(f"{where}: a layer stands twice under initial_global_assignments")
    return Placement([list(map(int, layers[layer])) for layer in sorted(layers)])


def read_csv(content, where, _first):
    """layer,device,slot,expert: a line for each slot."""
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{where}: {shown(error, 80)}") from None
    if not rows or [cell.strip() for cell in rows[0]] != CSV_COLUMNS:
        raise Refused(f"{where}: its first line is not {','.join(CSV_COLUMNS)}")
    places = {}
    for line, row in enumerate(rows[1:], 2):
        if len(row) != 4 or not all(re.fullmatch(r" *-?[0-9]{1,9} *", cell) for cell in row):
            raise Refused(f"{where}:{line}: expected are four whole numbers")
        layer, device, slot, expert = map(int, row)
        if (layer, device, slot) in places:
            raise Refused(f"{where}:{line}: slot {slot} of device {device} stands twice")
        places[layer, device, slot] = expert
    layers, devices, size = (1 + max((place[i] for place in places), default=-1) for i in range(3))
    if len(places) != len(rows) - 1 or layers * devices * size != len(places) or not places:
        raise Refused(
            f"{where}: {len(rows) - 1} lines for {layers} layers, {devices} devices and {size}"
            " slots; expected is one for each, counted from 0"
        )
    flat = [places[place] for place in sorted(places)]
    width = devices * size
    return Placement([flat[at : at + width] for at in range(0, len(flat), width)], devices=devices)


WRITERS = {
    "eplb": write_eplb,
    "sglang": write_sglang,
    "trtllm": write_trtllm,
    "vllm-ascend": write_ascend,
    "csv": write_csv,
}
READERS = {
    ".npy": read_array,
    ".json": read_json,
    ".yaml": read_yaml,
    ".yml": read_yaml,
    ".csv": read_csv,
}
NEEDS_DEVICES = ("vllm-ascend", "csv")
# The forms that count a model's dense layers too.
COUNTS_DENSE = ("sglang", "trtllm")


def read(path, intake, first=0):
    """The checked placement of a file in any of the forms, known by its ending. `first`: how many
    layers of the model stand before the first one with experts, where the form counts them."""
    if os.path.isdir(path):
        path = os.path.join(path, "phy2log.npy")
    ending = os.path.splitext(path)[1].lower()
    if ending not in READERS:
        raise Refused(f"{shown(path)}: its name ends in none of {', '.join(READERS)}")
    return check(READERS[ending](intake.read(path), shown(path), first), shown(path))
