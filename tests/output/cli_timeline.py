"""ctest: timeout=120
timeline.json, forward and in training, at np 1 and 4, with devices folded and not: JSON of the
trace-event format; spans of a rank nest and do not overlap; sums of phases, over layers of the
slowest rank, are metrics.jsonl's; rows and selections are those of comm_matrix.npy and of the
counts.
"""
import json
import os

from _moesim import TEMPORARY, check, load, metrics, moesim, config, run, summary, verdict

SMALL = {
    "run.steps": 3,
    "model.num_layers": 2,
    "model.hidden_size": 16,
    "model.num_experts": 16,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "router.group_limit": "max",
    "router.topk_group": 2,
    "cluster.devices": 4,
    "data.tokens_per_device": 32,
    "data.sequence_length": 16,
}
TRAINING = {
    **SMALL,
    "run.mode": "train",
    "train.accumulate": 2,
    "train.validation_every": 3,
    "train.validation_batches": 2,
}
DROPPING = {
    **SMALL,
    "capacity.policy": "device",
    "capacity.capacity_factor": 1,
    "capacity.exempt_sequences": 0,
}
PHASES = ("gate", "route", "plan", "dispatch", "expert", "combine", "shared", "balance")
STEP_PARTS = (
    "input",
    "head and loss",
    "input backward",
    "sum of gradients",
    "optimizer",
    "validation",
)
BACKWARD_PARTS = [
    "dispatch dy",
    "expert backward",
    "combine dx",
    "router backward",
    "shared backward",
]


def read(folder):
    with open(os.path.join(folder, "timeline.json")) as file:
        return json.load(file)


def by_rank(trace):
    """{rank: its spans, in the file's order}."""
    spans = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            spans.setdefault(event["tid"] - 1, []).append(event)
    return spans


def check_format(label, trace, ranks, devices):
    other, events = trace["otherData"], trace["traceEvents"]
    check(
        other["ranks"] == ranks
        and other["devices"] == devices
        and other["devices_per_rank"] == devices // ranks,
        f"{label}: {other}",
    )
    check(
        other["step"] == SMALL["run.steps"] - 1
        and other["spans_left_out"] == 0
        and "host" in other["clock"],
        f"{label}: {other}",
    )
    check(
        {event["ph"] for event in events} == {"M", "X"},
        f"{label}: kinds of events {({event['ph'] for event in events})}",
    )
    threads = {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    each = devices // ranks
    named = {
        q
        + 1: (
            f"rank {q}: device {q}"
            if each == 1
            else f"rank {q}: devices {q * each}-{q * each + each - 1}"
        )
        for q in range(ranks)
    }
    check(threads == named, f"{label}: threads {threads}")
    processes = [event for event in events if event["name"] == "process_name"]
    check(
        len(processes) == 1 and processes[0]["args"]["name"].startswith("host "),
        f"{label}: processes {processes}",
    )
    spans = [event for event in events if event["ph"] == "X"]
    check(
        all(
            event["ts"] >= 0 and event["dur"] >= 0 and event["pid"] == processes[0]["pid"]
            for event in spans
        ),
        f"{label}: times or processes",
    )
    check(min(event["ts"] for event in spans) == 0, f"{label}: the first span does not begin at 0")
    check(
        sorted({event["tid"] for event in spans}) == sorted(threads),
        f"{label}: not every rank has spans",
    )


def path_of(spans):
    """For each span the names of those it is inside of, outermost first; a span that overlaps
    another is None.
    """
    open_spans, paths = [], []
    for span in spans:
        begin, end = span["ts"], span["ts"] + span["dur"]
        while open_spans and begin >= open_spans[-1][1] - 1e-4:
            open_spans.pop()
        paths.append(
            [name for name, _ in open_spans]
            if not open_spans or end <= open_spans[-1][1] + 1e-4
            else None
        )
        open_spans.append((span["name"], end))
    return paths


def check_nesting(label, spans, train):
    paths = path_of(spans)
    check(None not in paths, f"{label}: spans overlap")
    for span, path in zip(spans, paths):
        name = span["name"]
        if name == "step":
            wanted = []
        elif name in PHASES or name == "tally":
            wanted = ["step", f"layer {span['args']['layer']}"]
        elif name in BACKWARD_PARTS:
            wanted = ["step", "backward"]
        else:
            wanted = ["step"]
        check(path == wanted, f"{label}: {name} is inside {path}")
    names = [span["name"] for span in spans]
    batches = TRAINING["train.accumulate"] if train else 1
    one_layer = [*PHASES, "tally"]
    forward = [
        name for l in range(SMALL["model.num_layers"]) for name in (f"layer {l}", *one_layer)
    ]
    backward = ["backward", *BACKWARD_PARTS] * SMALL["model.num_layers"]
    batch = [
        "input",
        *forward,
        *(["head and loss", *backward, "input backward"] if train else []),
    ]
    check(
        names == ["step", *batch * batches, *(STEP_PARTS[3:] if train else [])],
        f"{label}: spans {names}",
    )


def check_sums(label, folder, spans):
    """metrics.jsonl: sum over layers of the slowest rank's seconds."""
    line = metrics(folder)[-1]
    for phase, seconds in line["time"]["phases"].items():
        total = 0
        for layer in range(SMALL["model.num_layers"]):
            total += max(
                sum(s["dur"] for s in own if s["name"] == phase and s["args"]["layer"] == layer)
                for own in spans.values()
            )
        check(
            abs(total * 1e-6 - seconds) < 1e-7,
            f"{label}: {phase} {total} us, in metrics.jsonl {seconds} s",
        )
    step = max(s["dur"] for own in spans.values() for s in own if s["name"] == "step") * 1e-6
    check(
        abs(step - line["time"]["step"]) < 2e-3,
        f"{label}: step {step}, in metrics.jsonl {line['time']['step']}",
    )
    for own in spans.values():
        parts = sum(
            s["dur"]
            for s in own
            if s["args"].get("layer") is None
            and s["name"] != "step"
            or s["name"].startswith("layer")
            or s["name"] == "backward"
        )
        whole = own[0]["dur"]
        check(
            parts <= whole * (1 + 1e-9),
            f"{label}: the parts {parts} us are longer than the step {whole} us",
        )


def summed(spans):
    """{name: {argument: sum over micro-batches}} of one layer's spans."""
    total = {}
    for span in spans:
        of_name = total.setdefault(span["name"], {"layer": span["args"]["layer"]})
        for key, value in span["args"].items():
            if key != "layer":
                of_name[key] = of_name.get(key, 0) + value
    return total


def check_rows(label, folder, spans, devices):
    matrix, layers, ranks = (
        load(os.path.join(folder, "comm_matrix.npy")),
        summary(folder)["layers"],
        len(spans),
    )
    rows, each = matrix.rows(), devices // ranks
    experts = SMALL["model.num_experts"] // ranks
    for rank, own in spans.items():
        step = own[0]["args"]
        check(
            step["first_device"] == rank * each and step["devices"] == each,
            f"{label}: rank {rank}: {step}",
        )
        mine = range(rank * each, (rank + 1) * each)
        for layer in range(len(layers)):
            cells = rows[layer * devices : (layer + 1) * devices]
            sent, received = sum(sum(cells[d]) for d in mine), sum(
                cells[s][d] for s in range(devices) for d in mine
            )
            stay = sum(cells[s][d] for s in mine for d in mine)
            kept = sum(layers[layer]["kept_per_expert"][rank * experts : (rank + 1) * experts])
            moved = summed(s for s in own if s["args"].get("layer") == layer)
            for name in ("dispatch", "dispatch dy"):
                if name in moved:
                    wanted = {
                        "layer": layer,
                        "rows_sent": sent,
                        "rows_received": received,
                        "rows_own": stay,
                    }
                    check(
                        moved[name] == wanted, f"{label}: {name} {moved[name]}, expected {wanted}"
                    )
            for name in ("combine", "combine dx"):
                if name in moved:
                    wanted = {
                        "layer": layer,
                        "rows_sent": received,
                        "rows_received": sent,
                        "rows_own": stay,
                    }
                    check(
                        moved[name] == wanted, f"{label}: {name} {moved[name]}, expected {wanted}"
                    )
            for name in ("expert", "expert backward"):
                if name in moved:
                    check(
                        moved[name] == {"layer": layer, "rows": received, "selections": kept},
                        f"{label}: {name} {moved[name]}, {received} rows, {kept} kept",
                    )


def check_run(label, ranks, settings):
    folder, devices = run(label.replace(" ", "-"), ranks, settings), settings["cluster.devices"]
    if not folder:
        return
    trace = read(folder)
    check_format(label, trace, ranks, devices)
    spans = by_rank(trace)
    for rank, own in spans.items():
        check_nesting(f"{label}, rank {rank}", own, settings.get("run.mode") == "train")
    check_sums(label, folder, spans)
    check_rows(label, folder, spans, devices)


def check_bound():
    """Many layers and ranks: what would make the file large is left out and counted, the same on
    every rank; no rank is without its step.
    """
    many = {
        **SMALL,
        "run.steps": 1,
        "model.num_layers": 1100,
        "model.hidden_size": 4,
        "model.moe_intermediate_size": 2,
        "model.num_experts": 4,
        "router.top_k": 1,
        "router.group_limit": "none",
        "data.tokens_per_device": 1,
        "model.num_shared_experts": 0,
    }
    many.pop("router.topk_group")
    folder = run("many", 4, many)
    if folder:
        trace, spans = read(folder), by_rank(read(folder))
        check(
            {len(own) for own in spans.values()} == {10240},
            f"bound: {[len(own) for own in spans.values()]} spans a rank",
        )
        made = 2 + 1100 * 10
        check(
            trace["otherData"]["spans_left_out"] == 4 * (made - 10240),
            f"bound: {trace['otherData']}",
        )
        check(
            os.path.getsize(os.path.join(folder, "timeline.json")) < 6_000_000,
            "bound: size of the file",
        )


def check_off():
    folder = run("off", 2, {**SMALL, "output.timeline": "no"})
    check(
        folder and not os.path.exists(os.path.join(folder, "timeline.json")),
        "output.timeline = no writes a timeline",
    )
    done = moesim(2, config("off", SMALL), "--out", folder, "--force", "--quiet")
    check(
        done.code == 0 and os.path.exists(os.path.join(folder, "timeline.json")),
        "output.timeline is not on by default",
    )
    done = moesim(
        2,
        config("off", SMALL),
        "--out",
        folder,
        "--force",
        "--quiet",
        "--set",
        "output.timeline=no",
    )
    check(
        done.code == 0 and not os.path.exists(os.path.join(folder, "timeline.json")),
        "--force leaves the timeline of the run before",
    )


os.chdir(TEMPORARY)
check_run("forward at np 1", 1, SMALL)
check_run("forward at np 4", 4, SMALL)
check_run("forward at np 2", 2, DROPPING)
check_run("training at np 1", 1, TRAINING)
check_run("training at np 4", 4, TRAINING)
check_bound()
check_off()
verdict()
