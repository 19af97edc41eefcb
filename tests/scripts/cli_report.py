"""ctest: timeout=180
scripts/report without a browser: pages of made-up runs hold the figures of their files, load
nothing, and say what is damaged; bad folders and versions are refused with a sentence. A stand-in
takes the place of the charts' library.
"""
import http.server
import json
import os
import re
import shutil
import sys
import threading
import time

from _moesim import SOURCE, TEMPORARY, check, load, metrics, summary, verdict
from _report import LIMIT, REPORT, ROW_BYTES, TOKENS, Page, made_run, report, write_json, write_npy

LIBRARY = os.path.join(TEMPORARY, "stand-in.js")
with open(LIBRARY, "w") as file:
    file.write('var Plotly = {react() {}}; // "</script>" must not end the page\n')
OPTION = ("--plotly", LIBRARY)


def page_of(label, *arguments):
    """The page, after checking that it was written without a complaint; None otherwise."""
    done = report(*arguments, *OPTION)
    target = done.stdout.strip()
    good = check(
        done.returncode == 0 and done.stderr == "" and os.path.isfile(target),
        f"{label}: status {done.returncode}: {done.stdout}{done.stderr}",
    )
    return Page(target) if good else None


def check_refused(label, words, *arguments):
    done = report(*arguments, *OPTION)
    check(
        done.returncode == 2 and len(done.stderr.splitlines()) == 1 and words in done.stderr,
        f"{label}: status {done.returncode}: {done.stderr}",
    )


def cell(array, a, b, c):
    """array[a, b, c]."""
    return array.data[(a * array.shape[1] + b) * array.shape[2] + c]


# --- figures ---


def check_load(run, folder):
    """Bins of the heat map are sums of the file's; without bins, its very numbers."""
    array, shown = load(os.path.join(folder, "expert_load.npy")), run["load"]
    steps, layers, experts = array.shape
    by, of = shown["steps_per_bin"], shown["experts_per_bin"]
    bad = 0
    for layer in range(layers):
        for row, expert in enumerate(range(0, experts, of)):
            for column, step in enumerate(range(0, steps, by)):
                cells = [
                    cell(array, s, layer, e)
                    for s in range(step, min(step + by, steps))
                    for e in range(expert, min(expert + of, experts))
                ]
                bad += shown["sum"][layer][row][column] != sum(cells)
    check(bad == 0, f"{folder}: {bad} cells of the load differ")


def check_series(run, folder):
    lines = {line["step"]: line for line in metrics(folder)}
    shown = run["steps"]
    check(
        shown["count"] == len(lines) and shown["step"][-1] == max(lines),
        f"{folder}: {shown['count']} steps, the last {shown['step'][-1]}",
    )
    for path in (
        "loss_raw.expert",
        "loss.total",
        "balance.device.max_over_mean",
        "volume.dispatch.remote_bytes",
        "time.phases.expert",
    ):
        values = []
        for step in shown["step"]:
            value = lines[step]
            for key in path.split("."):
                value = value[key]
            values.append(value)
        check(shown["series"].get(path) == values, f"{folder}: {path} differs from metrics.jsonl")


def check_layers(run, folder):
    layers = summary(folder)["layers"]
    for name in (
        "counts_per_expert",
        "kept_per_expert",
        "counts_per_device",
        "sent_rows",
        "received_rows",
        "tokens_by_reach",
    ):
        check(
            [one[name] for one in run["layer"]] == [layer[name] for layer in layers],
            f"{folder}: {name} differs",
        )
    matrix, devices = load(os.path.join(folder, "comm_matrix.npy")), run["devices"]
    rows = [
        [[cell(matrix, l, s, d) for d in range(devices)] for s in range(devices)]
        for l in range(len(layers))
    ]
    check(
        run["matrix"]["rows"] == rows and run["matrix"]["devices_per_bin"] == 1,
        f"{folder}: the matrix differs",
    )
    steps, size = summary(folder)["comm_matrix_steps"], len(matrix.data)
    check(
        run["matrix"]["steps"] == steps and len(run["matrix"]["earlier"]) == len(steps) - 1,
        f"{folder}: steps of the matrix {run['matrix']['steps']}",
    )
    all_steps = load(os.path.join(folder, "comm_matrix_steps.npy")).data.tolist()
    for index, earlier in enumerate(run["matrix"]["earlier"]):
        cells = [value for layer in earlier for row in layer for value in row]
        check(
            cells == all_steps[index * size : (index + 1) * size],
            f"{folder}: the matrix of step {steps[index]} differs",
        )


def check_timeline(run, folder):
    """Every span that has no other inside it, with its rows."""
    with open(os.path.join(folder, "timeline.json")) as file:
        events = json.load(file)["traceEvents"]
    shown, wanted = run["timeline"], []
    for event in events:
        if (
            event["ph"] == "X"
            and event["name"] not in ("step", "backward")
            and not event["name"].startswith("layer ")
        ):
            args = event["args"]
            rows = (
                [None, args["rows"], args["selections"]]
                if "rows" in args
                else [args["rows_sent"], args["rows_received"]]
                if "rows_sent" in args
                else []
            )
            wanted.append(
                [
                    event["tid"] - 1,
                    event["name"],
                    args.get("layer", -1),
                    event["ts"],
                    event["dur"],
                    *rows,
                ]
            )
    got = [[span[0], shown["kinds"][span[1]], *span[2:]] for span in shown["spans"]]
    check(got == wanted and wanted, f"{folder}: the timeline differs")
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    check(
        shown["ranks"] == names and shown["all"] == len(names),
        f"{folder}: the timeline's ranks {shown['ranks']}",
    )


def check_waterfall(run, folder):
    layers = summary(folder)["layers"]
    sent = sum(layer["volume"]["dispatch"]["rows"] for layer in layers)
    free = sum(layer["mean_devices_per_token_unlimited"] for layer in layers) * TOKENS * ROW_BYTES
    dispatch = summary(folder)["volume"]["dispatch"]
    wanted = [
        ("one row per selection", dispatch["selection_bytes"], False),
        ("token and device, unlimited", free, False),
        ("one row per token and device", dispatch["logical_bytes"], True),
        ("to other devices", dispatch["remote_bytes"], True),
    ]
    got = [(stage["name"], stage["bytes"], stage["sent"]) for stage in run["waterfall"]]
    check(
        len(got) == 4
        and all(
            a[0] == b[0] and abs(a[1] - b[1]) < 1e-6 * b[1] and a[2] == b[2]
            for a, b in zip(got, wanted)
        ),
        f"{folder}: waterfall {got}",
    )
    check(run["waterfall"][2]["rows"] == sent, f"{folder}: {run['waterfall'][2]['rows']} rows sent")


def check_figures():
    for name, shape in (
        ("small", {}),
        ("one step", {"steps": 1, "layers": 1}),
        ("train", {"train": True, "steps": 120, "layers": 1}),
    ):
        folder = made_run(name, **shape)
        page = page_of(name, folder)
        if not page:
            continue
        run = page.runs[0]
        check_load(run, folder)
        check_series(run, folder)
        check_layers(run, folder)
        check_timeline(run, folder)
        check_waterfall(run, folder)
        check(not page.banners, f"{name}: {page.banners}")
        for words in (
            "8 routed + 1 shared",
            f"at most {LIMIT} of 4 devices (max)",
            "✓ passed",
            "– not made",
            "as many rows as planned",
            "num_experts",
            "host (CPU, 2 cores",
        ):
            check(words in page.words, f"{name}: '{words}' is not on the page")
        check("To keep this page small" not in page.words, f"{name}: says that it was thinned")
        validation = [
            (line["step"], line["validation_loss"])
            for line in metrics(folder)
            if "validation_loss" in line
        ]
        check(
            list(zip(run["validation"]["step"], run["validation"]["loss"])) == validation,
            f"{name}: validation",
        )
        check(("Quality" in page.words) == (name == "train"), f"{name}: quality")


def check_thinning():
    """A long run is thinned, says so, and its bins still add up."""
    folder = made_run("long", devices=2, experts=4, layers=1, steps=3001)
    page = page_of("long", folder)
    if page:
        run = page.runs[0]
        check(
            run["steps"]["every"] > 1
            and run["load"]["steps_per_bin"] > 1
            and len(run["steps"]["step"]) <= 1201,
            f"long: every {run['steps']['every']}",
        )
        check_load(run, folder)
        check_series(run, folder)
        check(
            "To keep this page small" in page.words
            and f"every {run['steps']['every']}. step" in page.words,
            "long: does not say what was left out",
        )
        check(page.size < 6_000_000, f"long: {page.size} bytes")


def specialized(name):
    """A training run that measured its specialisation: 3 domains, 2 layers, 8 experts."""
    folder, domains = made_run(name, train=True), [
        "/texts/one.txt",
        "/texts/two.txt",
        "/texts/<three>.txt",
    ]
    write_json(
        folder,
        "specialization.json",
        {
            "validation_batches": 4,
            "disabled": [
                {"experts": 0, "task_loss": 1.5, "rise": 0},
                {"experts": 1, "task_loss": 2.25, "rise": 0.75},
            ],
            "shared_replaced": {"routed_experts": 5, "task_loss": 1.625, "rise": 0.125},
            "domains": domains,
            "layers": [
                {"mutual_information": 0.5, "score": 0.3125, "chance": 0.002},
                {"mutual_information": 0.25, "score": 0.1875, "chance": 0.003},
            ],
        },
    )
    write_npy(os.path.join(folder, "domain_load.npy"), (2, 3, 8), range(48))
    return folder


def check_specialization():
    page = page_of("specialised", specialized("specialised"))
    if page:
        shown = page.runs[0]["specialization"]
        check(
            shown["load"]
            == [[[l * 24 + d * 8 + e for e in range(8)] for d in range(3)] for l in range(2)],
            f"specialised: load {shown['load']}",
        )
        check(
            shown["domains"] == ["one.txt", "two.txt", "<three>.txt"]
            and "<three>" not in page.text,
            f"specialised: {shown['domains']}",
        )
        check(
            shown["disabled"] == [{"experts": 0, "loss": 1.5}, {"experts": 1, "loss": 2.25}],
            f"specialised: {shown['disabled']}",
        )
        check(shown["shared"] == {"routed": 5, "loss": 1.625}, f"specialised: {shown['shared']}")
        check(
            all(words in page.words for words in ("Specialisation", "0.3125", "0.1875"))
            and not page.banners,
            f"specialised: {page.banners}",
        )
    folder = specialized("specialised, damaged")
    os.truncate(os.path.join(folder, "specialization.json"), 40)
    page = page_of("specialised, damaged", folder)
    check(
        page
        and "specialization.json is damaged" in " ".join(page.banners)
        and page.runs[0]["specialization"] is None,
        "damaged: specialisation",
    )
    folder = specialized("specialised, other experts")
    write_npy(os.path.join(folder, "domain_load.npy"), (2, 3, 4), range(24))
    page = page_of("specialised, other experts", folder)
    check(
        page
        and page.runs[0]["specialization"]["load"] is None
        and "domain_load.npy" in " ".join(page.banners),
        "another number of experts",
    )


# --- the page itself ---


def check_closed(label, page):
    """Only links lead outside; names from the folder cannot become markup."""
    loads = re.findall(r'\b(?:src|srcset|action|data|poster)\s*=\s*"([^"]*)"', page.markup)
    check(not loads, f"{label}: loads {loads}")
    check(
        all(
            link.startswith("data:")
            for link in re.findall(r'<link[^>]*href="([^"]*)"', page.markup)
        ),
        f"{label}: a <link> leads outside",
    )
    check(
        "default-src 'none'" in page.text
        and "url(" not in page.text
        and "@import" not in page.text,
        f"{label}: not closed",
    )
    check(
        page.text.count("</script>") == 3 and page.text.count("<script") == 3,
        f"{label}: scripts do not end where they should",
    )
    check(
        "<!DOCTYPE html>" in page.text[:200] and page.text.rstrip().endswith("</html>"),
        f"{label}: not a whole page",
    )


def check_page():
    folder = made_run("na<me> & 'quotes'")
    changed = summary(folder)
    changed["config"]["data"]["path"] = "</script><b>bold</b>"
    changed["checks"]["<i>check</i>"] = False
    changed["check_details"]["matrix_sums"] = {}
    write_json(folder, "summary.json", changed)
    page = page_of("odd names", folder)
    if page:
        check_closed("odd names", page)
        check(
            "<b>bold" not in page.text and "<i>check" not in page.text and "<me>" not in page.text,
            "odd names: markup came through",
        )
        check(
            len(page.banners) == 1
            and "failed its own checks" in page.banners[0]
            and "✗ FAILED" in page.words,
            f"odd names: {page.banners}",
        )


# --- bad folders ---


def spoil_unfinished(folder):
    for name in ("summary.json", "comm_matrix.npy", "expert_load.npy"):
        os.remove(os.path.join(folder, name))
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        lines = file.readlines()
    with open(os.path.join(folder, "metrics.jsonl"), "w") as file:
        file.write(lines[0] + lines[1][:100])


def cut(name, size):
    def spoil(folder):
        os.truncate(os.path.join(folder, name), size)

    return spoil


def text(name, content):
    def spoil(folder):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)

    return spoil


def gone(name):
    return lambda folder: os.remove(os.path.join(folder, name))


def both(first, second):
    return lambda folder: (first(folder), second(folder))


def only(name):
    def spoil(folder):
        for other in os.listdir(folder):
            if other != name:
                os.remove(os.path.join(folder, other))

    return spoil


DAMAGE = {  # what is wrong -> (how, words of the banner, what is still on the page)
    "unfinished": (
        spoil_unfinished,
        ("has not finished: 1 of 3 steps", "line 2 of metrics.jsonl is damaged"),
        "Balance losses",
    ),
    "cut summary": (cut("summary.json", 700), ("summary.json is damaged",), "Balance losses"),
    "empty summary": (cut("summary.json", 0), ("summary.json is damaged",), "Balance losses"),
    "summary is a list": (
        text("summary.json", b"[1]"),
        ("not the summary of a run",),
        "Balance losses",
    ),
    "summary without layers": (
        text("summary.json", b'{"version": "0.1.0"}'),
        ("not the summary of a run",),
        "Balance losses",
    ),
    "no version": (
        text("summary.json", b'{"layers": [], "config": {}}'),
        ("does not say which version",),
        "Balance losses",
    ),
    "layers of nonsense": (
        text(
            "summary.json",
            (
                b'{"version": "0.1.0", "layers": [{"volume": 3, "counts_per_expert": "x"}],'
                b' "checks": [], "time": 1}'
            ),
        ),
        (),
        "Balance losses",
    ),
    "no metrics": (
        gone("metrics.jsonl"),
        ("metrics.jsonl is missing",),
        "Traffic from device to device",
    ),
    "metrics of bytes": (
        text("metrics.jsonl", b'\xff\xfe\x00\n{}\n{"step": 0}\n'),
        ("2 lines of metrics.jsonl",),
        "Traffic from device to device",
    ),
    "cut matrix": (cut("comm_matrix.npy", 200), ("comm_matrix.npy is damaged",), "Volume"),
    "empty load": (cut("expert_load.npy", 0), ("expert_load.npy is damaged",), "Volume"),
    "matrix of text": (
        text("comm_matrix.npy", b"not an array"),
        ("comm_matrix.npy is damaged",),
        "Volume",
    ),
    "matrix of another shape": (
        lambda folder: write_npy(os.path.join(folder, "comm_matrix.npy"), (1, 2, 2), [1, 2, 3, 4]),
        ("shape 1 x 2 x 2",),
        "Volume",
    ),
    "matrix of another run": (
        lambda folder: write_npy(os.path.join(folder, "comm_matrix.npy"), (2, 4, 4), [1] * 32),
        ("disagree about the rows sent in layer 0",),
        "Volume",
    ),
    "no matrix": (gone("comm_matrix.npy"), ("comm_matrix.npy is missing",), "Volume"),
    "no matrices of steps, cut timeline": (
        both(gone("comm_matrix_steps.npy"), cut("timeline.json", 1000)),
        ("comm_matrix_steps.npy is missing", "timeline.json is damaged"),
        "Dispatch of the last step",
    ),
    "cut matrices of steps, no timeline's": (
        both(
            cut("comm_matrix_steps.npy", 300),
            text(
                "timeline.json",
                b'{"traceEvents": [{"ph": "X", "ts": "x", "dur": 1, "args": {}, "tid": 1}]}',
            ),
        ),
        ("comm_matrix_steps.npy is damaged", "timeline.json is damaged"),
        "Dispatch of the last step",
    ),
    "matrices of another run, empty timeline": (
        both(
            lambda folder: write_npy(
                os.path.join(folder, "comm_matrix_steps.npy"), (3, 2, 4, 4), [1] * 96
            ),
            text("timeline.json", b'{"traceEvents": []}'),
        ),
        ("comm_matrix_steps.npy does not agree", "timeline.json is damaged"),
        "Dispatch of the last step",
    ),
    "no config": (gone("config.ini"), ("config.ini is missing",), "Volume"),
    "only a configuration": (
        only("config.ini"),
        ("has not finished", "metrics.jsonl is missing"),
        "Configuration",
    ),
    "only an array": (only("expert_load.npy"), ("has not finished",), "Load"),
    "bad configuration, alone": (
        lambda folder: (
            only("config.ini")(folder),
            text("config.ini", b"no section = 1\n\x00")(folder),
        ),
        ("config.ini is damaged",),
        "",
    ),
}


def check_damage():
    for label, (spoil, wanted, still) in DAMAGE.items():
        folder = made_run(label)
        spoil(folder)
        page = page_of(label, folder)
        if page:
            banner = " ".join(page.banners)
            check(
                page.banners and all(words in banner for words in wanted),
                f"{label}: banner '{banner}'",
            )
            check(still in page.words, f"{label}: '{still}' is not on the page")
            check_closed(label, page)
    folder = made_run("damaged beside a good one")
    spoil_unfinished(folder)
    page = page_of("damaged in a comparison", folder, made_run("good"), "-o", "damaged.html")
    check(
        page and any("damaged beside a good one: Unfinished" in banner for banner in page.banners),
        "a comparison does not name the damaged run",
    )


def check_mistakes():
    folder = made_run("mistakes")
    newer = summary(folder)
    check_refused("no folder", "'nowhere' is no folder", "nowhere")
    check_refused("a file", "is no folder", os.path.join(folder, "summary.json"))
    check_refused("not a run", "is not the folder of a run", TEMPORARY)
    check_refused("no run", "which run?")
    check_refused("twice", "given twice", folder, folder + "/.")
    check_refused(
        "target", "cannot be written", folder, "-o", os.path.join(folder, "no", "where.html")
    )
    done = report(folder, "--plotly", "nowhere.js")
    check(
        done.returncode == 2 and "nowhere.js" in done.stderr,
        f"no library: status {done.returncode}: {done.stderr}",
    )
    for version in ("0.2.0", "1.0.0", "10.0"):
        write_json(folder, "summary.json", {**newer, "version": version})
        check_refused(f"version {version}", f"written by moesim {version}", folder)
    check(not os.path.exists(os.path.join(folder, "report.html")), "a refused folder got a report")
    write_json(folder, "summary.json", {**newer, "version": "0.1.99"})
    check(page_of("a later patch", folder), "a later patch release is refused")


def check_version():
    """The report knows the files of the moesim beside it: whoever raises the version looks at the
    report too.
    """
    with open(os.path.join(SOURCE, "CMakeLists.txt")) as file:
        version = re.search(r"project\(moesim VERSION (\d+)\.(\d+)", file.read())
    with open(os.path.join(SOURCE, "scripts", "report_lib", "folder.py")) as file:
        known = re.search(r"^VERSION = \((\d+), (\d+)\)", file.read(), re.M)
    check(
        version.groups() == known.groups(),
        (
            f"moesim is {version.groups()}, scripts/report_lib/folder.py knows {known.groups()}:"
            " does summary.json still mean the same?"
        ),
    )


# --- several runs, and the end of a run ---


def check_mean_of_last_steps():
    """The figures of a training are means over its last 20 steps, and say so; they differ from the
    last step's here.
    """
    runs = [made_run(f"trained {seed}", train=True, steps=40, seed=seed) for seed in (4, 5)]
    page = page_of("two trainings", *runs, "-o", "trainings.html")
    if not page:
        return
    for name, path in (("task loss", ["task_loss"]), ("expert loss", ["loss_raw", "expert"])):
        cells = re.search(rf'<tr data-figure="{name}">(.*?)</tr>', page.text, re.S)[1]
        check("mean of the last 20 steps" in cells, f"{name}: does not say what it is the mean of")
        for run in runs:
            values = []
            for line in metrics(run)[-20:]:
                for key in path:
                    line = line[key]
                values.append(line)
            wanted, last = (f"{value:.6g}" for value in (sum(values) / 20, values[-1]))
            check(
                wanted in cells and wanted != last and last not in cells,
                f"{name}: {wanted} is expected, not {last}: {cells}",
            )


def check_comparison():
    first, second, wider = (
        made_run("first", seed=2),
        made_run("second", seed=3),
        made_run("wider", devices=8, experts=16, layers=1),
    )
    page = page_of("comparison", first, second, wider, "-o", "all.html")
    if page:
        check_closed("comparison", page)
        check(
            [run["name"] for run in page.runs] == ["first", "second", "wider"],
            "comparison: the runs' names",
        )
        for run, folder in zip(page.runs, (first, second, wider)):
            check_series(run, folder)
            check_layers(run, folder)
            check_timeline(run, folder)
        rows = [summary(folder)["volume"]["dispatch"]["remote_bytes"] for folder in (first, second)]
        cells = re.search(r'<tr data-figure="to other devices">(.*?)</tr>', page.text, re.S)[1]
        share = f"{abs(100 * (rows[1] - rows[0]) / rows[0]):.1f} %"
        check(share in cells, f"comparison: {share} is not in {cells}")
        check(
            "cluster.devices" in page.words and "router.score_func" not in page.words,
            "comparison: the settings that differ",
        )
    text = made_run("text", train=True)
    changed = summary(text)
    changed["config"]["data"]["source"] = "text"
    write_json(text, "summary.json", changed)
    page = page_of("forward beside training", first, text, "-o", "mixed.html")
    check(
        page and "task loss (nats)" in page.words and "mean squared error" not in page.words,
        "a comparison gives the loss of a text another unit",
    )
    check_mean_of_last_steps()
    done = report(first, second, *OPTION)
    check(
        done.stdout == "comparison.html\n"
        and os.path.isfile(os.path.join(TEMPORARY, "comparison.html")),
        f"comparison: {done.stdout}{done.stderr}",
    )


def check_after_run():
    begin, runs = time.time() - 5, os.path.join(TEMPORARY, "runs")
    older, newer = made_run("runs/older"), made_run("runs/newer")
    os.utime(os.path.join(older, "metrics.jsonl"), (begin + 1, begin + 1))
    done = report("--after-run", f"{begin:.0f}", runs, *OPTION)
    check(
        done.returncode == 0 and done.stdout.strip() == os.path.join(newer, "report.html"),
        f"after a run: {done.returncode} {done.stdout}{done.stderr}",
    )
    done = report("--after-run", f"{begin:.0f}", older, *OPTION)
    check(
        done.returncode == 0 and done.stdout.strip() == os.path.join(older, "report.html"),
        f"after a run into a folder: {done.stdout}{done.stderr}",
    )
    for place, since in ((runs, begin + 1000), ("nowhere", begin)):
        done = report("--after-run", f"{since:.0f}", place, *OPTION)
        check(
            (done.returncode, done.stdout, done.stderr) == (0, "", ""),
            f"nothing new in {place}: {done}",
        )
    done = report(
        "--after-run", f"{begin:.0f}", runs, XDG_CACHE_HOME=os.path.join(TEMPORARY, "empty cache")
    )
    check(
        done.returncode == 0
        and "no report.html" in done.stdout
        and "scripts/report" in done.stdout,
        f"without the library: {done}",
    )


def check_without_python():
    """The script alone, where no interpreter has what it needs."""
    alone = os.path.join(TEMPORARY, "scripts")
    os.makedirs(alone)
    with open(REPORT) as source, open(os.path.join(alone, "report"), "w") as file:
        file.write(source.read().replace("/usr/bin/python3", "/nonexistent/python3"))
    os.chmod(os.path.join(alone, "report"), 0o755)
    os.makedirs(os.path.join(alone, "bin"))
    for tool in ("sh", "dirname"):
        os.symlink(shutil.which(tool), os.path.join(alone, "bin", tool))
    for arguments, code in ((["run"], 1), (["--after-run", "0"], 0)):
        done = report(
            *arguments,
            script=os.path.join(alone, "report"),
            PATH=os.path.join(alone, "bin"),
            MOESIM_PYTHON="",
        )
        said = done.stdout if code == 0 else done.stderr
        check(
            done.returncode == code and "NumPy and Jinja2" in said and "python3-jinja2" in said,
            f"without Python: {done}",
        )


class Registry(http.server.BaseHTTPRequestHandler):
    """Gives 200 and a wrong archive, whatever is asked."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"not the archive that was pinned")

    def log_message(self, *_):
        pass


def check_integrity():
    """What a registry or the cache gives is compared with the pin; there is no npm here, so that
    the archive comes from the registry itself.
    """
    server = http.server.HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tools, cache = os.path.join(TEMPORARY, "tools"), os.path.join(TEMPORARY, "cache", "moesim")
    os.makedirs(tools)
    os.makedirs(cache)
    for tool in ("sh", "dirname"):
        os.symlink(shutil.which(tool), os.path.join(tools, tool))
    with open(os.path.join(SOURCE, "scripts", "report_lib", "plotly.py")) as source:
        pinned = source.read()
    archive = (
        re.search(r'PACKAGE = "(.*)"', pinned)[1]
        + "-"
        + re.search(r'VERSION = "(.*)"', pinned)[1]
        + ".tgz"
    )
    with open(os.path.join(cache, archive), "w") as file:
        file.write("spoilt in the cache")
    around = {
        "PATH": tools,
        "XDG_CACHE_HOME": os.path.dirname(cache),
        "npm_config_registry": f"http://127.0.0.1:{server.server_port}",
        "no_proxy": "127.0.0.1",
    }
    done = report("--setup", **around)
    check(
        done.returncode == 1
        and [line.split()[0] for line in done.stderr.splitlines()]
        == ["fetching", "scripts/report:"]
        and "sha512" in done.stderr,
        f"a wrong archive: {done}",
    )
    server.shutdown()
    server.server_close()
    done = report("--setup", **around)
    check(
        done.returncode == 1
        and "could not be fetched" in done.stderr
        and "--plotly FILE" in done.stderr,
        f"no registry: {done}",
    )
    check(os.listdir(cache) == [archive], f"something stayed in the cache: {os.listdir(cache)}")


if "NumPy and Jinja2" in report("--help").stderr:
    print(
        "SKIPPED, NOTHING WAS TESTED: scripts/report needs python3-numpy and python3-jinja2"
        " (scripts/setup --test installs them)"
    )
    sys.exit(0)


def check_lesson():
    """A lesson stands in front of the figures of one run and of a comparison, with its questions
    and folded answers; what is no lesson is refused.
    """
    one, other = made_run("lesson-a"), made_run("lesson-b")
    text = os.path.join(TEMPORARY, "lesson.json")
    made = {
        "number": 4,
        "title": "What <b> costs",
        "idea": [["p", "The idea & its reason."], ["pre", "f = N c / S"], ["li", "an item"]],
        "changed": ["router.top_k=3"],
        "head": ["", "expected", "the lesson", "now"],
        "rows": [["expert loss", "1 to 2", "1.25", "1.5", "yes"]],
        "questions": ["Why is it so?"],
        "answers": ["Because of <this>."],
    }
    write_json(TEMPORARY, "lesson.json", made)
    for folders in ((one,), (one, other)):
        target = os.path.join(TEMPORARY, "lesson.html")
        done = report(*folders, *OPTION, "--lesson", text, "-o", target)
        check(done.returncode == 0, f"a lesson: {done.stderr}")
        with open(target, encoding="utf-8") as file:
            page = file.read().split("<main>")[1]
        places = [
            page.find(words)
            for words in (
                "Lesson 4: What &lt;b&gt; costs",
                "The idea &amp; its reason.",
                "<pre>f = N c / S</pre>",
                "<code>router.top_k=3</code>",
                "<td>1.5</td>",
                "Why is it so?",
                "<details><summary>answer</summary><p>Because of &lt;this&gt;.</p></details>",
                '<section id="run',
            )
        ]
        check(-1 not in places and places == sorted(places), "parts of a lesson stand at", places)
    for content in ("{}", "no JSON", '{"number": 1, "title": "x", "idea": 3}'):
        with open(text, "w", encoding="utf-8") as file:
            file.write(content)
        check_refused(content, "is not what scripts/lesson wrote", one, "--lesson", text)


for part in (
    check_lesson,
    check_figures,
    check_thinning,
    check_specialization,
    check_page,
    check_damage,
    check_mistakes,
    check_version,
    check_comparison,
    check_after_run,
    check_without_python,
    check_integrity,
):
    part()
verdict()
