"""Helper of the report's tests: made-up run folders whose files agree, calls of scripts/report, and
the data that a page holds.
"""
import array
import html
import json
import os
import random
import re
import subprocess

from _moesim import SOURCE, TEMPORARY, header_of

REPORT = os.path.join(SOURCE, "scripts", "report")
LOSSES = ("expert", "device", "comm", "z")
LOADS = ("expert", "device", "received", "sent", "node", "node_received", "node_sent")
METRICS = (
    "max_over_mean",
    "maxvio",
    "balancedness",
    "cv",
    "gini",
    "entropy",
    "idle",
    "p50",
    "p90",
    "p99",
)
PHASES = ("gate", "route", "plan", "dispatch", "expert", "combine", "shared", "balance")
ROW_BYTES, TOKENS, TOP_K, LIMIT = 64, 512, 4, 2


def report(*arguments, script=REPORT, **more):
    return subprocess.run(
        [script, *map(str, arguments)],
        env={**os.environ, **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def write_npy(path, shape, numbers):
    with open(path, "wb") as file:
        file.write(header_of("<i8", shape) + array.array("q", numbers).tobytes())


# --- one run ---


def volume(rows, same_device):
    levels = {"same_device": same_device, "same_node": rows - same_device, "across_nodes": 0}
    return {
        "rows": rows,
        "logical_bytes": rows * ROW_BYTES,
        "remote_bytes": (rows - same_device) * ROW_BYTES,
        "selection_bytes": TOKENS * TOP_K * ROW_BYTES,
        "selection_remote_bytes": TOKENS * TOP_K * ROW_BYTES // 2,
        "metadata_bytes": rows * 8,
        "by_level": {
            name: {"rows": count, "bytes": count * ROW_BYTES, "metadata_bytes": count * 8}
            for name, count in levels.items()
        },
    }


def summed(volumes):
    total = {}
    for one in volumes:
        for key, value in one.items():
            total[key] = (
                summed([total.get(key, {}), value])
                if isinstance(value, dict)
                else total.get(key, 0) + value
            )
    return total


def step_line(draw, step, layers, dispatch, train):
    raw = {name: draw.uniform(1, 2) for name in LOSSES}
    line = {
        "step": step,
        "num_tokens": TOKENS,
        "loss": {
            **{name: 0.01 * value for name, value in raw.items()},
            "total": 0.01 * sum(raw.values()),
        },
        "loss_raw": raw,
        "volume": {"dispatch": dispatch, "combine": dispatch},
        "balance": {load: {metric: draw.uniform(1, 3) for metric in METRICS} for load in LOADS},
        "passed": True,
        "time": {
            "step": 0.01,
            "phases": {phase: draw.uniform(0, 0.001) * layers for phase in PHASES},
        },
    }
    if train:
        line.update(
            task_loss=3 / (1 + 0.02 * step) + draw.uniform(0, 0.1),
            gradient_norm=draw.uniform(0.1, 1),
            learning_rate=1e-3,
        )
        if step % 50 == 49:
            line["validation_loss"] = 3 / (1 + 0.02 * step)
    return line


def layer_object(draw, devices, experts, matrix, counts):
    """A layer of summary.json; its dispatch is that of the matrix, a list of rows."""
    sent, received = [sum(row) for row in matrix], [sum(column) for column in zip(*matrix)]
    dispatch, each = (
        volume(sum(sent), sum(matrix[d][d] for d in range(devices))),
        experts // devices,
    )
    raw = {name: draw.uniform(1, 2) for name in LOSSES}
    return {
        "loss": {"expert": 0.01 * raw["expert"], "total": 0.01 * raw["expert"]},
        "loss_raw": raw,
        "loss_ideal": {"expert": 1.0, "device": 1.0, "comm": 0.95, "z": None},
        "loss_by_scope": {
            scope: {name: draw.uniform(1, 2) for name in LOSSES[:3]}
            for scope in ("sequence", "device", "global")
        },
        "counts_per_expert": counts,
        "kept_per_expert": counts,
        "counts_per_device": [sum(counts[d * each : (d + 1) * each]) for d in range(devices)],
        "distinct_tokens_per_device": received,
        "sent_rows": sent,
        "received_rows": received,
        "selections": sum(counts),
        "dropped": 0,
        "mean_devices_per_token": sum(sent) / TOKENS,
        "mean_devices_per_token_unlimited": sum(sent) / TOKENS + 1.25,
        "tokens_by_reach": [0, 12, TOKENS - 12],
        "volume": {"dispatch": dispatch, "combine": dispatch},
        "balance": {load: {metric: 1.0 for metric in METRICS} for load in LOADS},
    }


def matrix_steps(steps):
    """As moesim keeps them: multiples of a power of two that leaves at most 32, and the last."""
    stride = 1
    while -(-steps // stride) > 32:
        stride *= 2
    return sorted({*range(0, steps, stride), steps - 1})


def timeline(draw, ranks, layers, step):
    """Trace events: each rank goes through its phases without a pause."""
    events = [
        {
            "ph": "M",
            "pid": 1,
            "tid": q + 1,
            "name": "thread_name",
            "args": {"name": f"rank {q}: device {q}"},
        }
        for q in range(ranks)
    ]
    for q in range(ranks):
        spans, at = [], draw.uniform(0, 50)
        for layer in range(layers):
            begin, own = at, []
            for phase in PHASES:
                span = {
                    "ph": "X",
                    "pid": 1,
                    "tid": q + 1,
                    "ts": round(at, 3),
                    "dur": round(draw.uniform(1, 200), 3),
                    "name": phase,
                    "args": {"layer": layer},
                }
                if phase == "dispatch":
                    span["args"].update(
                        rows_sent=draw.randrange(100), rows_received=draw.randrange(100), rows_own=1
                    )
                if phase == "expert":
                    span["args"].update(rows=draw.randrange(100), selections=draw.randrange(100))
                own.append(span)
                at += span["dur"]
            spans += [
                {
                    **own[0],
                    "ts": round(begin, 3),
                    "dur": round(at - begin, 3),
                    "name": f"layer {layer}",
                    "args": {"layer": layer},
                },
                *own,
            ]
        events += [
            {
                **spans[0],
                "dur": round(at - spans[0]["ts"], 3),
                "name": "step",
                "args": {"step": step, "first_device": q, "devices": 1},
            },
            *spans,
        ]
    return {"displayTimeUnit": "ms", "otherData": {"step": step}, "traceEvents": events}


def config_of(devices, experts, layers, steps, train):
    return {
        "name": "made up",
        "run": {"seed": 1, "steps": steps, "mode": "train" if train else "forward"},
        "model": {
            "num_layers": layers,
            "hidden_size": 16,
            "num_experts": experts,
            "num_shared_experts": 1,
        },
        "router": {
            "score_func": "softmax",
            "top_k": TOP_K,
            "group_limit": "max",
            "num_groups": devices,
            "topk_group": LIMIT,
        },
        "balance": {"scope": "sequence"},
        "capacity": {"policy": "none"},
        "exchange": {"mode": "token", "payload": "fp32", "combine_payload": "fp32"},
        "cluster": {"devices": devices, "devices_per_node": devices},
        "placement": {"policy": "block"},
        "data": {"source": "synthetic"},
    }


def made_run(name, devices=4, experts=8, layers=2, steps=3, train=False, seed=1):
    """Writes the folder NAME of a finished run; returns its path. Expert counts of a layer and step
    add up to TOKENS x TOP_K only roughly.
    """
    draw, folder = random.Random(seed), os.path.join(TEMPORARY, name)
    os.makedirs(folder)
    load = [draw.randrange(1, 60) for _ in range(steps * layers * experts)]
    matrices = [
        [[draw.randrange(1, 40) for _ in range(devices)] for _ in range(devices)]
        for _ in range(layers)
    ]
    last = load[(steps - 1) * layers * experts :]
    objects = [
        layer_object(draw, devices, experts, matrices[l], last[l * experts : (l + 1) * experts])
        for l in range(layers)
    ]
    dispatch = summed([one["volume"]["dispatch"] for one in objects])
    lines = [step_line(draw, step, layers, dispatch, train) for step in range(steps)]
    config = config_of(devices, experts, layers, steps, train)
    summary = {
        "version": "0.1.0",
        "config": config,
        "devices": devices,
        "ranks": 1,
        "steps": steps,
        "num_tokens": TOKENS,
        "comm_matrix_steps": matrix_steps(steps),
        "checks": {"rows_conserved": True, "group_theorem": None},
        "check_details": {
            "rows_conserved": "as many rows as planned",
            "group_theorem": "not made here",
        },
        "loss": lines[-1]["loss"],
        "loss_raw": lines[-1]["loss_raw"],
        "volume": lines[-1]["volume"],
        "balance": lines[-1]["balance"],
        "layers": objects,
        "machine": {
            "hosts": [{"name": "host", "processor": "CPU", "cores": 2, "memory_bytes": 2**33}],
            "ranks": [{"rank": 0, "host": "host", "devices": devices}],
        },
        "time": {
            "total": 1.5,
            "measured": {
                "steps": 0.01 * steps,
                "step_mean": 0.01,
                "phases": {phase: 0.001 * steps for phase in PHASES},
            },
        },
    }
    write_json(folder, "summary.json", summary)
    with open(os.path.join(folder, "metrics.jsonl"), "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    with open(os.path.join(folder, "config.ini"), "w") as file:
        for section, keys in config.items():
            if isinstance(keys, dict):
                file.write(
                    f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
                )
    cells = [cell for matrix in matrices for row in matrix for cell in row]
    write_npy(os.path.join(folder, "comm_matrix.npy"), (layers, devices, devices), cells)
    kept = matrix_steps(steps)  # those before the last: the same numbers at other places
    write_npy(
        os.path.join(folder, "comm_matrix_steps.npy"),
        (len(kept), layers, devices, devices),
        [cell for step in kept for cell in cells[steps - 1 - step :] + cells[: steps - 1 - step]],
    )
    write_json(folder, "timeline.json", timeline(draw, devices, layers, steps - 1))
    write_npy(os.path.join(folder, "expert_load.npy"), (steps, layers, experts), load)
    return folder


def write_json(folder, name, value):
    with open(os.path.join(folder, name), "w") as file:
        json.dump(value, file)


# --- the page ---


class Page:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.text = file.read()
        self.size = os.path.getsize(path)
        self.runs = json.loads(
            re.search(
                r'<script type="application/json" id="run-data">(.*?)</script>', self.text, re.S
            )[1]
        )["runs"]

    @property
    def markup(self):
        """The page without scripts and style."""
        return re.sub(r"<(script|style)\b.*?</\1>", "", self.text, flags=re.S)

    @property
    def words(self):
        """What a reader sees, thin spaces as plain ones."""
        return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", self.markup)))

    @property
    def banners(self):
        return [
            re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))
            for text in re.findall(
                r'<(?:p|div) class="banner[^"]*" role="alert">(.*?)</(?:p|div)>', self.markup, re.S
            )
        ]
