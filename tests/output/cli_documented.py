"""ctest: timeout=120
docs/results.md and what runs write are the same: every file and every field that a run writes
stands there with its type, and whatever stands there is written by some run."""
import fnmatch
import json
import math
import os
import re

from _moesim import GOLDEN, SOURCE, TEMPORARY, check, moesim, run, save, verdict

BASE = {
    "run.steps": 2,
    "model.hidden_size": 16,
    "model.num_experts": 16,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "cluster.devices": 4,
    "data.tokens_per_device": 32,
    "data.sequence_length": 16,
}
DEEPSEEK = {"balance.alpha_expert": 0.003, "balance.alpha_device": 0.05, "balance.alpha_comm": 0.02}
TRAIN = {"run.mode": "train", "run.steps": 4, "train.validation_every": 2}
DROP = {"capacity.policy": "device", "capacity.capacity_factor": 0.8}

# What a run changes of BASE, and its options.
RUNS = {
    "many": (
        {
            "cluster.devices": 2052,
            "model.num_experts": 2052,
            "data.tokens_per_device": 1,
            "run.steps": 1,
        },
        (),
    ),
    "rounded": (
        {**TRAIN, "model.compute": "bf16", "run.gemm": "reference", "exchange.chunks": 2},
        (),
    ),
    "narrow": (
        {
            **TRAIN,
            "exchange.payload": "fp8",
            "exchange.combine_payload": "bf16",
            "exchange.mode": "two_level",
        },
        (),
    ),
    "forward": (
        {
            **DEEPSEEK,
            "model.num_layers": 2,
            "router.group_limit": "max",
            "router.topk_group": 2,
            "output.routing": "yes",
            "output.tensors": "yes",
        },
        ("--explain", "3", "--explain-step"),
    ),
    "all-layers": (
        {
            "model.num_layers": 2,
            "router.score_func": "softmax_topk",
            "balance.aux_form": "mixtral",
            "balance.aux_layers": "all",
            "balance.alpha_expert": 0.02,
        },
        (),
    ),
    "all-layers-switch": (
        {
            "model.num_layers": 2,
            "balance.aux_form": "switch",
            "balance.aux_layers": "all",
            "balance.alpha_expert": 0.02,
        },
        (),
    ),
    "mixtral": (
        {
            "balance.aux_form": "mixtral",
            "balance.alpha_expert": 0.02,
            "output.routing": "yes",
            "output.tensors": "yes",
            **DROP,
            "capacity.policy": "expert",
            "capacity.overflow": "next_choice",
        },
        ("--explain", "3"),
    ),
    "switch": (
        {
            "router.top_k": 1,
            "balance.aux_form": "switch",
            "balance.alpha_expert": 0.01,
            "balance.importance_loss": 0.01,
            "balance.z_loss": 0.001,
            "router.noise": 0.5,
            "balance.load_form": "tutel",
            "balance.load_loss": 0.01,
        },
        ("--explain", "3"),
    ),
    "gshard": (
        {
            "router.method": "gshard",
            "router.top_k": 2,
            "balance.aux_form": "gshard",
            "balance.alpha_expert": 0.01,
            "model.num_shared_experts": 0,
        },
        ("--explain", "3"),
    ),
    "text": (
        {
            **TRAIN,
            **DEEPSEEK,
            "data.source": "text",
            "data.path": "a.txt:b.txt",
            "model.attention": "mla",
            "train.accumulate": 2,
            "train.checkpoint_every": 2,
            "train.specialization": "yes",
        },
        ("--explain", "3", "--explain-step"),
    ),
    "synthetic": (
        {
            **TRAIN,
            **DEEPSEEK,
            **DROP,
            "train.validation_every": 0,
            "train.specialization": "yes",
            "model.num_shared_experts": 0,
        },
        ("--explain", "3"),
    ),
    "rebalance": (
        {
            **TRAIN,
            "placement.policy": "eplb",
            "placement.redundant_experts": 8,
            "placement.rebalance_every": 1,
        },
        (),
    ),
    "batches": (
        {"placement.policy": "llep", "placement.redundant_experts": 8},
        (),
    ),
    "placements": (
        {"placement.redundant_experts": 8, "cluster.devices_per_node": 2},
        ("--placements",),
    ),
}

# What continues a prompt with the model of the run "text".
GENERATE = {
    "run.mode": "generate",
    "generate.prompt": "the quick",
    "generate.max_new_tokens": "3",
}

# A layer whose weights, input and upstream gradient come from files, with the files' shapes.
LOADED = {
    "model.load": os.path.join(GOLDEN, "layer", "layer_1_ds2_seq"),
    "model.hidden_size": 6,
    "model.moe_intermediate_size": 5,
    "model.num_experts": 8,
    "model.num_shared_experts": 1,
    "router.top_k": 2,
    "router.group_limit": "max",
    "router.topk_group": 2,
    "cluster.devices": 4,
    "data.sequence_length": 8,
    "output.tensors": "yes",
}

# The same with LoRA experts: [T,H] = [8,6], F = 5, N = 4, r = 2.
ADAPTERS = {
    "model.load": os.path.join(TEMPORARY, "weights"),
    "model.expert_type": "lora",
    "model.lora_rank": 2,
    "model.hidden_size": 6,
    "model.moe_intermediate_size": 5,
    "model.num_experts": 4,
    "router.top_k": 2,
    "cluster.devices": 2,
    "output.tensors": "yes",
}
SHAPES = {
    "x": (8, 6),
    "dy": (8, 6),
    "wgate": (4, 6),
    "w1": (5, 6),
    "w2": (6, 5),
    "w3": (5, 6),
    "a1": (4, 2, 6),
    "a2": (4, 2, 5),
    "a3": (4, 2, 6),
    "b1": (4, 5, 2),
    "b2": (4, 6, 2),
    "b3": (4, 5, 2),
}


def write_adapters():
    os.mkdir(os.path.join(TEMPORARY, "weights"))
    for name, shape in SHAPES.items():
        numbers = [(7 * i % 11 - 5) / 10 for i in range(math.prod(shape))]
        save(os.path.join("weights", name + ".npy"), "<f4", shape, numbers)


# --- what stands in docs/results.md ---


def expanded(pattern):
    """a.{b,c}.d -> a.b.d, a.c.d"""
    found = re.search(r"\{([^}]*)\}", pattern)
    if not found:
        return [pattern]
    start, end = pattern[: found.start()], pattern[found.end() :]
    return [path for name in found[1].split(",") for path in expanded(start + name + end)]


def tables(text):
    """(heading of level 2, cells of the head, cells of a row) of every row of every table."""
    heading, head = "", None
    for line in text.split("\n"):
        if line.startswith("## "):
            heading, head = line[3:], None
        cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = cells
        elif not line.startswith("|---"):
            yield heading, head, cells


def documented(text):
    """files: pattern -> row; fields: heading -> path -> row."""
    files, fields = {}, {}
    for heading, head, row in tables(text):
        names = [name for span in re.findall(r"`([^`]+)`", row[0]) for name in expanded(span)]
        if head[0] == "file":
            files.update((name, row) for name in names)
        elif head[0] == "field":
            for name in names:
                check(name not in fields.setdefault(heading, {}), f"{heading}: {name} stands twice")
                fields[heading][name] = row
    for heading in ("summary.json", "metrics.jsonl"):
        for name in [name for name in fields[heading] if name.endswith(".…")]:
            part = "Balance" if name.endswith("balance.…") else "Volume"
            row = fields[heading].pop(name)
            fields[heading].update(
                (name[:-1] + inner, [*of[:3], row[3]]) for inner, of in fields[part].items()
            )
    return files, fields


# --- what runs write ---


def leaves(value, path=""):
    """(path, value) of everything that is not an object or a list of objects."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from leaves(inner, path + "[]")
    else:
        yield path, value


def objects(path):
    with open(path) as file:
        return [json.loads(line) for line in file] if path.endswith("l") else [json.load(file)]


def has_type(value, kind):
    if value is None:
        return "null" in kind
    if isinstance(value, list):
        return "[" in kind or "text or int" in kind
    if isinstance(value, bool):
        return "bool" in kind
    if isinstance(value, str):
        return "text" in kind
    return "double" in kind or ("int" in kind and isinstance(value, int))


def is_null_object(path, fields):
    """An object that is null: one of its fields says so."""
    inside = [row for name, row in fields.items() if re.match(re.escape(path) + r"[.\[]", name)]
    return any("null" in " ".join(row[1:]) for row in inside)


def check_values(label, value, fields, seen):
    for path, leaf in leaves(value):
        if path.startswith("config.") and path not in fields:
            path = "config.*"
        path = re.sub(r"^policies\.\w+\.", "policies.*.", path)
        if path not in fields:
            missing = leaf is None and is_null_object(path, fields)
            check(missing, f"{label}: {path} = {leaf!r:.80} does not stand in docs/results.md")
            continue
        seen.add(path)
        kind = " ".join(fields[path][1:]) if leaf is None else fields[path][1]
        check(
            path == "config.*" or has_type(leaf, kind),
            f"{label}: {path} = {leaf!r:.80} is not '{fields[path][1]}'",
        )


def files_of(folder):
    for path, _, names in os.walk(folder):
        for name in names:
            yield os.path.relpath(os.path.join(path, name), folder)


def main():
    with open(os.path.join(SOURCE, "docs", "results.md"), encoding="utf-8") as file:
        files, fields = documented(file.read())
    for name in ("a.txt", "b.txt"):
        with open(name, "w") as file:
            file.write(f"{name}: the quick brown fox jumps over the lazy dog. " * 300)
    folders = [
        run(name, 2, {**BASE, **changes}, *options) for name, (changes, options) in RUNS.items()
    ]
    folders.append(run("loaded", 1, LOADED))
    sets = [word for pair in GENERATE.items() for word in ("--set", "=".join(pair))]
    moesim(2, "--resume", "text", *sets, "--out", "generated")
    folders.append(os.path.join(TEMPORARY, "generated"))
    write_adapters()
    folders.append(run("adapters", 1, ADAPTERS))
    seen_files, seen = {"report.html"}, {heading: set() for heading in fields}  # scripts/report's
    for folder in filter(None, folders):
        for name in files_of(folder):
            patterns = [pattern for pattern in files if fnmatch.fnmatchcase(name, pattern)]
            check(patterns, f"{folder}/{name} does not stand in docs/results.md")
            seen_files.update(patterns)
            if name in fields:
                for value in objects(os.path.join(folder, name)):
                    check_values(
                        f"{os.path.basename(folder)}/{name}", value, fields[name], seen[name]
                    )
    for pattern in sorted(files.keys() - seen_files):
        check(False, f"docs/results.md: no run wrote {pattern}")
    for heading in fields.keys() - {"Volume", "Balance"}:
        for path in sorted(fields[heading].keys() - seen[heading]):
            check(False, f"docs/results.md: no run wrote {path} of {heading}")
    verdict()


main()
