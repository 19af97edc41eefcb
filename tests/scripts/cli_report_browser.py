"""ctest: labels=long timeout=600
The report in a real browser: headless Chromium opens the pages of four runs (8 devices; 64 devices
and 256 experts; training with 1000 steps; a comparison) and of a made-up one of 1000 steps with 256
experts. No message on its console, nothing loaded, first paint within 2 s; the numbers that are
drawn are read back and equal those of the files. MOESIM_SCREENSHOTS=FOLDER keeps pictures and
prints of the pages.
"""
import json
import os
import sys

from _browser import CHROMIUM, DRIVER, Browser
from _moesim import (
    QUICKSTART,
    SOURCE,
    TEMPORARY,
    check,
    load,
    metrics,
    moesim,
    near,
    sets,
    summary,
    verdict,
)
from _report import Page, made_run, report

SHOTS = os.environ.get("MOESIM_SCREENSHOTS")
DRAWN = "document.documentElement.dataset.drawn"
TRACES = """return document.getElementById(arguments[0]).data.map((trace) => {
  const isList = (value) => Array.isArray(value) || ArrayBuffer.isView(value);
  const plain = (value) => (isList(value) ? Array.from(value, plain) : value);
  const text = trace.type === "heatmap" ? trace.text[0][1] : null;
  return {name: trace.name, x: plain(trace.x), y: plain(trace.y), z: plain(trace.z), text};
});"""
TIMES = (
    "return Object.fromEntries(performance.getEntriesByType('paint').map((entry) => [entry.name,"
    " entry.startTime]))"
)


# --- runs ---


def real_run(name, ranks, configuration, settings, *options):
    done = moesim(ranks, configuration, "--out", name, "--quiet", *options, *sets(settings))
    return (
        os.path.join(TEMPORARY, name)
        if check(done.code == 0, f"{name}: status {done.code}: {done.err}")
        else None
    )


def runs():
    """Name -> folder; a run that failed is left out."""
    small = {
        "model.hidden_size": 32,
        "model.moe_intermediate_size": 16,
        "model.num_experts": 32,
        "data.tokens_per_device": 64,
        "data.sequence_length": 32,
        "cluster.devices": 8,
    }
    training = {
        **small,
        "run.mode": "train",
        "run.steps": 1000,
        "model.num_layers": 2,
        "train.validation_every": 50,
    }
    made = {
        "8 devices": real_run(
            "eight",
            2,
            QUICKSTART,
            {"cluster.devices": 8, "run.steps": 12},
            "--explain",
            1000,
            "--explain-step",
        ),
        "limit of one device": real_run(
            "limit", 2, QUICKSTART, {"cluster.devices": 8, "run.steps": 12, "router.topk_group": 1}
        ),
        "64 devices, 256 experts": real_run(
            "wide",
            2,
            os.path.join(SOURCE, "configs", "deepseek_v3.ini"),
            {"run.steps": 6, "model.num_layers": 3},
            "--explain",
            77,
        ),
        "training": real_run("training", 2, QUICKSTART, training),
        "placements": real_run(
            "placements",
            2,
            QUICKSTART,
            {
                **small,
                "run.steps": 6,
                "model.num_layers": 2,
                "data.skew": 1,
                "data.drift": 1,
                "placement.policy": "eplb_global",
                "placement.redundant_experts": 8,
                "placement.rebalance_every": 2,
            },
        ),
        "long": made_run("long", devices=64, experts=256, layers=4, steps=1000),
    }
    return {name: folder for name, folder in made.items() if folder}


# --- what is drawn ---


class Drawn:
    """An open page: its charts' traces, and its controls."""

    def __init__(self, browser, label):
        self.browser, self.label = browser, label

    def traces(self, chart):
        return {
            trace["name"] or index: trace
            for index, trace in enumerate(self.browser.run(TRACES, chart))
        }

    def choose(self, state, value):
        """As a reader would: presses the button, or moves the slider."""
        if isinstance(value, int):
            self.browser.run(
                (
                    "const slider = document.querySelector(`input[data-state=${arguments[0]}]`);"
                    " slider.value = arguments[1];slider.dispatchEvent(new Event('input'))"
                ),
                state,
                value,
            )
        else:
            self.browser.run(
                "const [state, value] = arguments;"
                "document.querySelector("
                "`button[data-state=${state}][data-value=${value}]`).click()",
                state,
                value,
            )

    def equal(self, what, got, wanted):
        same = (
            near(got, wanted, 1e-12)
            if isinstance(got, list) and isinstance(wanted, list)
            else got == wanted
        )
        check(
            same, f"{self.label}: {what}: drawn {str(got)[:120]}, in the files {str(wanted)[:120]}"
        )


def nested(line, path):
    for key in path.split("."):
        line = line[key]
    return line


def check_lines(drawn, folder):
    """Lines over steps, of runs short enough not to be thinned."""
    lines, losses = metrics(folder), drawn.traces("chart-loss-raw")
    for name, key in (("expert", "expert"), ("device", "device"), ("communication", "comm")):
        drawn.equal(f"{name} loss", losses[name]["y"], [line["loss_raw"][key] for line in lines])
    drawn.equal("steps", losses["expert"]["x"], [line["step"] for line in lines])
    layers = summary(folder)["layers"]
    level = next(
        trace
        for name, trace in losses.items()
        if "communication" in str(name) and "at balance" in name
    )
    drawn.equal(
        "value at balance",
        level["y"],
        [sum(layer["loss_ideal"]["comm"] for layer in layers) / len(layers)] * 2,
    )
    drawn.equal(
        "total",
        drawn.traces("chart-loss-weighted")["total"]["y"],
        [line["loss"]["total"] for line in lines],
    )
    drawn.choose("metric", "gini")
    drawn.equal(
        "Gini",
        drawn.traces("chart-balance")["selections by device"]["y"],
        [line["balance"]["device"]["gini"] for line in lines],
    )
    phases = drawn.traces("chart-phases-steps")
    for name in ("gate", "expert", "combine"):
        drawn.equal(
            f"phase {name}", phases[name]["y"], [line["time"]["phases"][name] for line in lines]
        )
    drawn.equal(
        "payload",
        drawn.traces("chart-volume")["dispatch, to other devices"]["y"],
        [line["volume"]["dispatch"]["remote_bytes"] for line in lines],
    )


def heat_of(folder, layers, step_bin):
    """[expert][bin] of expert_load.npy, means over the bin's steps, summed over the layers."""
    array = load(os.path.join(folder, "expert_load.npy"))
    steps, all_layers, experts = array.shape
    wanted = []
    for expert in range(experts):
        row = []
        for first in range(0, steps, step_bin):
            inside = range(first, min(first + step_bin, steps))
            row.append(
                sum(
                    array.data[(s * all_layers + l) * experts + expert]
                    for s in inside
                    for l in layers
                )
                / len(inside)
            )
        wanted.append(row)
    return wanted


def check_load(drawn, folder, step_bin):
    layers = summary(folder)["layers"]
    last = len(layers) - 1
    for chosen, which in [(-1, range(len(layers))), (last, [last])] if last else [(None, [0])]:
        if chosen is not None:
            drawn.choose("layer", chosen)
        heat = drawn.traces("chart-heat")[0]["z"]
        wanted = heat_of(folder, which, step_bin)
        check(
            len(heat) == len(wanted) and all(near(a, b, 1e-12) for a, b in zip(heat, wanted)),
            f"{drawn.label}: heat map, layer {chosen}",
        )
        drawn.choose("heatby", "device")
        shown, each = drawn.traces("chart-heat")[0]["z"], len(wanted) // summary(folder)["devices"]
        by_device = [
            [sum(column) for column in zip(*wanted[first : first + each])]
            for first in range(0, len(wanted), each)
        ]
        check(
            len(shown) == len(by_device)
            and all(near(a, b, 1e-9) for a, b in zip(shown, by_device)),
            f"{drawn.label}: heat map by device, layer {chosen}",
        )
        drawn.choose("heatby", "expert")
        for chart, trace, key in (
            ("chart-experts", "selections", "counts_per_expert"),
            ("chart-devices", "selections", "counts_per_device"),
            ("chart-devices", "rows received", "received_rows"),
            ("chart-devices", "rows sent", "sent_rows"),
        ):
            counts = [sum(column) for column in zip(*(layers[l][key] for l in which))]
            drawn.equal(
                f"{trace} of {chart}, layer {chosen}", drawn.traces(chart)[trace]["y"], counts
            )


def check_matrix(drawn, folder):
    matrix, dispatch = load(os.path.join(folder, "comm_matrix.npy")), [
        layer["volume"]["dispatch"] for layer in summary(folder)["layers"]
    ]
    layers, devices, _ = matrix.shape
    rows = matrix.rows()
    if layers > 1:
        drawn.choose("layer", 1)
    layer = 1 if layers > 1 else 0
    own = rows[layer * devices : (layer + 1) * devices]
    drawn.equal("matrix, rows", sum(drawn.traces("chart-matrix")[0]["z"], []), sum(own, []))
    drawn.choose("unit", "bytes")
    size = dispatch[layer]["logical_bytes"] / dispatch[layer]["rows"]
    drawn.equal(
        "matrix, bytes",
        sum(drawn.traces("chart-matrix")[0]["z"], []),
        [cell * size for cell in sum(own, [])],
    )
    drawn.choose("unit", "rows")
    for level, counts in dispatch[layer]["by_level"].items():
        drawn.choose("level", level)
        cells = [cell for cell in sum(drawn.traces("chart-matrix")[0]["z"], []) if cell is not None]
        drawn.equal(f"matrix, {level}", sum(cells), counts["rows"])
    drawn.choose("level", "all")
    check_matrix_steps(drawn, folder, layer)


def check_matrix_steps(drawn, folder, layer):
    """The slider goes through the steps that the page has, on one colour scale; the number beside
    it is the step's.
    """
    every, steps = (
        load(os.path.join(folder, "comm_matrix_steps.npy")),
        summary(folder)["comm_matrix_steps"],
    )
    size = every.shape[2] ** 2
    shown = drawn.browser.run("return RUN.matrix.steps")
    check(
        shown
        and set(shown) <= set(steps)
        and shown[-1] == steps[-1]
        and len(shown) >= min(len(steps), 5),
        f"{drawn.label}: steps {shown} of {steps}",
    )
    scales = set()
    for place in {0, len(shown) // 2, len(shown) - 1}:
        drawn.choose("matrix", place)
        begin = (steps.index(shown[place]) * every.shape[1] + layer) * size
        drawn.equal(
            f"matrix of step {shown[place]}",
            sum(drawn.traces("chart-matrix")[0]["z"], []),
            every.data[begin : begin + size].tolist(),
        )
        drawn.equal(
            "number beside the slider",
            drawn.browser.run("return document.querySelector('output[data-show=matrix]').value"),
            str(shown[place]),
        )
        scales.add(drawn.browser.run("return document.getElementById('chart-matrix').data[0].zmax"))
    check(len(scales) == 1, f"{drawn.label}: colour scales {scales} of the matrix's steps")


def check_timeline(drawn, folder):
    """Begin and duration of every drawn bar, and the line it is on."""
    with open(os.path.join(folder, "timeline.json")) as file:
        events = json.load(file)["traceEvents"]
    names = {
        event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"
    }
    layers = len(summary(folder)["layers"])
    for layer in [-1, layers - 1] if layers > 1 else [None]:
        if layer is not None:
            drawn.choose("layer", layer)
        bars = drawn.browser.run(
            "return document.getElementById('chart-timeline').data.map((one) => [one.name,"
            " Array.from(one.y), Array.from(one.base), Array.from(one.x)])"
        )
        for name in ("gate", "dispatch", "expert", "tally", "combine dx", "optimizer"):
            own = [
                event
                for event in events
                if event["name"] == name
                and event["ph"] == "X"
                and layer in (None, -1, event["args"].get("layer"))
            ]
            got = next((rest for kind, *rest in bars if kind == name), [[], [], []])
            drawn.equal(
                f"lines of {name}, layer {layer}", got[0], [names[event["tid"]] for event in own]
            )
            drawn.equal(
                f"begin of {name}, layer {layer}", got[1], [event["ts"] / 1000 for event in own]
            )
            drawn.equal(
                f"duration of {name}, layer {layer}", got[2], [event["dur"] / 1000 for event in own]
            )


def check_token(drawn, folder):
    """Bars of the token's scores, outputs and gradients, in every layer."""
    with open(os.path.join(folder, "explain.json")) as file:
        layers = json.load(file)["token"]["layers"]
    for index, layer in enumerate(layers):
        if len(layers) > 1:
            drawn.browser.run(
                (
                    "const list = document.querySelector('select[data-state=token_layer]');"
                    " list.value = arguments[0]; list.dispatchEvent(new Event('change'))"
                ),
                str(index),
            )
        bars = drawn.browser.run(
            "return document.getElementById('chart-token-scores').data.map((one) => [one.name,"
            " Array.from(one.x), Array.from(one.y)])"
        )
        for kind, experts, values in bars:
            drawn.equal(
                f"scores of those {kind}, layer {index}",
                values,
                [layer["score"][int(expert)] for expert in experts],
            )
        chosen = sorted(
            int(expert)
            for kind, experts, _ in bars
            if kind in ("chosen", "dropped")
            for expert in experts
        )
        drawn.equal(
            f"chosen experts, layer {index}",
            chosen,
            sorted(one["expert"] for one in layer["choices"]),
        )
        norms = drawn.browser.run(
            "return Array.from(document.getElementById('chart-token-outputs').data[0].y)"
        )
        served = [
            one["contribution_norm"] for one in layer["choices"] if one["served_by"] is not None
        ]
        drawn.equal(f"norms, layer {index}", norms[: len(served)], served)
        gradient = drawn.browser.run(
            "return document.getElementById('chart-token-gradient').data.map((one) => [one.name,"
            " Array.from(one.x), Array.from(one.y)])"
        )
        name, experts, values = gradient[0]
        key = {"communication": "comm", "z (logits)": "z"}.get(name, name)
        drawn.equal(
            f"gradient of {name}, layer {index}",
            values,
            [layer["gradient"][key][int(expert)] for expert in experts],
        )


def check_volume(drawn, folder):
    dispatch, layers = summary(folder)["volume"]["dispatch"], summary(folder)["layers"]
    bars = drawn.traces("chart-waterfall")["payload"]
    known = [dispatch[key] for key in ("selection_bytes", "logical_bytes", "remote_bytes")]
    drawn.equal("first and last two stages", [bars["y"][0], *bars["y"][-2:]], known)
    size = dispatch["logical_bytes"] / dispatch["rows"]
    free = (
        sum(layer["mean_devices_per_token_unlimited"] for layer in layers)
        * summary(folder)["num_tokens"]
        * size
    )
    check(
        abs(bars["y"][1] - free) < 1e-9 * free,
        f"{drawn.label}: without the limit {bars['y'][1]}, in the files {free}",
    )
    levels = drawn.traces("chart-levels")
    for name, key in (
        ("same device", "same_device"),
        ("same node", "same_node"),
        ("across nodes", "across_nodes"),
    ):
        counts = [
            summary(folder)["volume"][direction]["by_level"][key]["bytes"]
            for direction in ("dispatch", "combine")
        ]
        drawn.equal(f"payload, {name}", levels[name]["y"][:2], counts)


def check_placement(drawn, folder):
    """Loads of the devices and who moved, of every decision and layer."""
    decided = [line for line in metrics(folder) if "rebalance" in line]
    check(len(decided) == 3, f"{drawn.label}: {len(decided)} placements")
    for place, line in enumerate(decided):
        found = line["rebalance"]
        drawn.choose("decision", place)
        for layer in (-1, 0, 1):
            drawn.choose("layer", layer)
            chosen = range(2) if layer < 0 else [layer]
            where = f"placement before step {line['step']}, layer {layer}"
            bars = drawn.traces("chart-placement-load")
            for name in ("before", "after"):
                wanted = [
                    sum(loads) for loads in zip(*(found[f"device_load_{name}"][i] for i in chosen))
                ]
                drawn.equal(f"{where}, {name}", bars[name]["y"], wanted)
            cells = [[0] * 8 for _ in range(8)]
            for moved, _, source, target in found["moves"]:
                cells[source][target] += moved in chosen
            drawn.equal(
                where, sum(drawn.traces("chart-placement-moves")[0]["z"], []), sum(cells, [])
            )
    drawn.choose("layer", -1)
    rows = drawn.browser.run(
        "return [...document.querySelectorAll('#placement details tbody tr')].length"
    )
    moved = sum(line["rebalance"]["experts_moved"] for line in decided)
    check(0 < rows == min(moved, 300), f"{drawn.label}: {rows} rows of {moved} moves")


def check_quality(drawn, folder):
    lines, quality = metrics(folder), drawn.traces("chart-quality")
    drawn.equal(
        "task loss",
        next(trace for name, trace in quality.items() if name.startswith("task loss"))["y"],
        [line["task_loss"] for line in lines],
    )
    made = [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]
    drawn.equal(
        "validation",
        [quality["validation loss"]["x"], quality["validation loss"]["y"]],
        [[step for step, _ in made], [loss for _, loss in made]],
    )
    drawn.equal(
        "gradient",
        drawn.traces("chart-gradient")["norm of the gradient"]["y"],
        [line["gradient_norm"] for line in lines],
    )


def check_comparison(drawn, folders):
    first, second = map(metrics, folders)
    losses = [[line["loss_raw"]["device"] for line in lines] for lines in (first, second)]
    lines = list(drawn.traces("chart-c-device").values())
    drawn.equal("device loss of both", [lines[0]["y"], lines[1]["y"]], losses)
    counts = [summary(folder)["layers"][0]["counts_per_device"] for folder in folders]
    drawn.equal(
        "devices of both",
        [trace["y"] for trace in drawn.traces("chart-c-devices").values()],
        counts,
    )
    matrices = [load(os.path.join(folder, "comm_matrix.npy")).data.tolist() for folder in folders]
    for index, matrix in enumerate(matrices):
        drawn.equal(
            f"matrix {index}", sum(drawn.traces(f"chart-c-matrix-{index}")[0]["z"], []), matrix
        )
    drawn.choose("diff", "yes")
    drawn.equal(
        "difference of the device loss",
        list(drawn.traces("chart-c-device").values())[0]["y"],
        [b - a for a, b in zip(*losses)],
    )
    drawn.equal(
        "difference of the devices",
        list(drawn.traces("chart-c-devices").values())[0]["y"],
        [b - a for a, b in zip(*counts)],
    )
    drawn.equal(
        "difference of the matrices",
        sum(drawn.traces("chart-c-matrix-1")[0]["z"], []),
        [b - a for a, b in zip(*matrices)],
    )
    drawn.equal(
        "difference of the volumes",
        list(drawn.traces("chart-c-volume").values())[0]["y"][-1],
        summary(folders[1])["volume"]["dispatch"]["remote_bytes"]
        - summary(folders[0])["volume"]["dispatch"]["remote_bytes"],
    )


# --- pages ---


def opened(browser, label, path):
    """Opens the page, light; None when it was not drawn."""
    browser.colours("light")
    paints = []
    while (
        not paints or min(paints) > 2000 and len(paints) < 3
    ):  # the machine may be busy with other things
        seconds = browser.open(path, DRAWN)
        paints.append(browser.run(TIMES).get("first-contentful-paint", 1e9))
    print(
        f"{label}: {os.path.getsize(path)} bytes, first paint {min(paints):.0f} ms, all drawn after"
        f" {seconds} s"
    )
    check(min(paints) <= 2000, f"{label}: first paint after {paints} ms")
    check(os.path.getsize(path) < 6_000_000, f"{label}: {os.path.getsize(path)} bytes")
    requests = browser.run(
        "return performance.getEntriesByType('resource').map((entry) => entry.name).filter((name)"
        " => !/^(data|blob):/.test(name))"
    )
    check(not requests, f"{label}: loaded {requests}")
    return Drawn(browser, label) if check(seconds is not None, f"{label}: was not drawn") else None


def check_colours(browser, label, path):
    """Dark by the system's wish and by the switch; the charts follow; printing is light and comes
    back.
    """
    ink = (
        "return [...document.querySelectorAll('.chart')].find((chart) =>"
        " chart.layout).layout.font.color"
    )
    light = browser.run(ink)
    picture(browser, label, "light")
    browser.colours("dark")
    browser.open(path, DRAWN)
    dark = browser.run(ink)
    check(dark != light, f"{label}: the charts are as dark as they were light")
    picture(browser, label, "dark")
    browser.run("document.querySelector('[data-theme-choice=light]').click()")
    check(browser.run(ink) == light, f"{label}: the switch to light")
    browser.run("document.querySelector('[data-theme-choice=auto]').click()")
    browser.printed(os.path.join(SHOTS or TEMPORARY, f"{label}.pdf"))
    check(browser.run(ink) == dark, f"{label}: colours after printing")


def picture(browser, label, scheme):
    if SHOTS:
        browser.screenshot(os.path.join(SHOTS, f"{label} {scheme}.png"))


def check_page(browser, label, folders, *parts):
    done = report(*folders, "-o", f"{label}.html")
    if not check(done.returncode == 0, f"{label}: status {done.returncode}: {done.stderr}"):
        return
    drawn = opened(browser, label, f"{label}.html")
    if drawn:
        for part in parts:
            part(drawn)
        check_colours(browser, label, f"{label}.html")
    console = browser.console()
    check(not console, f"{label}: on the console: {console[:3]}")


def main():
    folders = runs()
    with Browser() as browser:
        for label, folder in folders.items():
            if label == "limit of one device":
                continue
            step_bin = Page(report_path(folder)).runs[0]["load"]["steps_per_bin"]
            parts = [
                lambda drawn: check_lines(drawn, folder),
                lambda drawn: check_load(drawn, folder, step_bin),
                lambda drawn: check_matrix(drawn, folder),
                lambda drawn: check_volume(drawn, folder),
                lambda drawn: check_timeline(drawn, folder),
            ]
            if os.path.exists(os.path.join(folder, "explain.json")):
                parts.append(lambda drawn: check_token(drawn, folder))
            if label == "placements":
                parts = [lambda drawn: check_placement(drawn, folder)]
            if label == "training":
                parts.append(lambda drawn: check_quality(drawn, folder))
            check_page(browser, label, [folder], *parts)
        pair = [
            folders[label] for label in ("8 devices", "limit of one device") if label in folders
        ]
        if check(len(pair) == 2, "the two runs of the comparison"):
            check_page(browser, "comparison", pair, lambda drawn: check_comparison(drawn, pair))
    verdict()


def report_path(folder):
    report(folder)
    return os.path.join(folder, "report.html")


if not CHROMIUM or not DRIVER:
    print("FAILED: chromium and chromedriver are needed (apt-get install chromium chromium-driver)")
    sys.exit(1)
if report("--setup").returncode != 0:
    print(
        "FAILED: the charts' library is not there: scripts/report --setup says why:",
        report("--setup").stderr,
    )
    sys.exit(1)
main()
