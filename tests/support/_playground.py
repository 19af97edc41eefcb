"""Helper of the tests of the page that routes: settings through its WebAssembly in a browser and
through the program; everything that both say is compared.
"""
import json
import os
import random
import re
import subprocess

from _browser import Browser
from _moesim import SOURCE, TEMPORARY, check, run, summary
from _random_layers import random_layer

PAGE = os.path.join(SOURCE, "docs", "playground.html")
READY = "document.documentElement.dataset.ready || !document.getElementById('error').hidden"
# Results as JSON, and the names of the phases, whose order is the engine's.
PLAIN = """const plain = (r) => Object.fromEntries([
  ...Object.entries(r).map(([name, x]) => [name, ArrayBuffer.isView(x) ? Array.from(x) : x]),
  ["phases", window.moesim.engine.lists.phases]]);"""
ROUTE = (
    PLAIN
    + """
const m = window.moesim, layer = m.engine.layer(arguments[0]);
try { return plain(m.compute(layer, {})); } finally { layer.free(); }"""
)
CONTROLS = (
    PLAIN
    + """
const m = window.moesim;
Object.assign(m.state, arguments[0]);
m.update();
const error = document.getElementById("error");
if (!error.hidden) { return error.textContent; }
return [m.settingsOf(m.state), plain(m.result())];"""
)
COUNTS = (
    "counts_per_expert",
    "kept_per_expert",
    "counts_per_device",
    "distinct_tokens_per_device",
)
PHASES = ("gate", "dispatch", "expert", "combine", "allreduce")


def near(a, b, bound):
    return abs(a - b) <= bound * max(1, abs(b))


def same(found, settings, name):
    """The page's figures against a run of the program with these settings."""
    of = {**settings, "run.gemm": "reference"}
    folder = run(name, 1, of)
    if not folder:
        return
    whole = summary(folder)
    layer = whole["layers"][0]
    what = f"{name}: {settings}"
    for counts in COUNTS:
        check(found[counts] == layer[counts], what, counts)
    levels = layer["volume"]["dispatch"]["by_level"]
    for i, level in enumerate(("same_device", "same_node", "across_nodes")):
        check(found["rows_by_level"][i] == levels[level]["rows"], what, level)
    if "capacity" in layer:
        check(found["capacity"] == [layer["capacity"]["capacity"]], what, "capacity")
    for loss, value in layer["loss_raw"].items():
        if value is not None and loss in found["losses"]:
            check(
                near(found["losses"][loss], value, 1e-9), what, loss, found["losses"][loss], value
            )
    predicted = dict(zip(found["phases"], found["predicted_us"]))
    for phase in PHASES:
        value = whole["time"]["predicted"][f"{phase}_us"]
        check(near(predicted[phase], value, 1e-9), what, f"predicted {phase}")


def random_controls(seed):
    """Values of the controls; the page takes what is possible."""
    r = random.Random(seed)
    return {
        "devices": r.choice([1, 2, 4, 8, 16, 32]),
        "experts": r.choice([8, 16, 32, 64, 128]),
        "k": r.randint(1, 12),
        "tokens": r.choice([64, 256, 1024]),
        "skew": r.choice([0, 0.8, 1.2, 2.5]),
        "alike": r.choice([0, 0.4, 0.9]),
        "seed": r.randint(1, 20),
        "score": r.choice(["softmax", "sigmoid", "sqrtsoftplus", "softmax_topk"]),
        "limit": r.choice(["none", "max", "top2_sum"]),
        "m": r.randint(1, 8),
        "policy": r.choice(["none", "device", "expert", "sequence"]),
        "factor": r.choice([1, 1.25, 2]),
        "mode": r.choice(["token", "selection"]),
        "node": r.choice([1, 4, 8, 16]),
        "payload": r.choice(["fp8", "bf16", "fp32"]),
    }


def compare(browser, count):
    """`count` random settings: every second one through the controls."""
    for seed in range(count):
        if seed % 2:
            settings = random_layer(seed, 512)
            same(browser.run(ROUTE, settings), settings, f"settings-{seed}")
            continue
        answer = browser.run(CONTROLS, random_controls(seed))
        if check(isinstance(answer, list), f"controls-{seed}", answer):
            same(answer[1], answer[0], f"controls-{seed}")


def check_page(browser, page):
    """It computes by itself, loads nothing, answers its questions, and fits on a telephone."""
    check(browser.open(page, READY), page, "does not start")
    error = "return document.getElementById('error').hidden"
    check(browser.run(error), browser.run("return document.getElementById('error').textContent"))
    loaded = browser.run("return performance.getEntriesByType('resource').map((x) => x.name)")
    check(loaded == [], "the page loads", loaded)
    answers = browser.run(
        """return [...document.querySelectorAll("#questions > li")].map((item) => {
          const input = item.querySelector("input");
          if (input.type === "radio") { input.checked = true; }
          input.dispatchEvent(new Event("input", {bubbles: true}));
          item.querySelector("button").click();
          return item.querySelector(".answer").textContent;
        });"""
    )
    wanted = (
        r"4\. Forward",
        r"17,886 rows",
        r"Across nodes",
        r"About 163.*= 163\.3",
        r"1/6 to 1.*0\.167",
    )
    for answer, pattern in zip(answers, wanted):
        check(re.search(pattern, answer), pattern, "is not in", answer)
    check(len(answers) == len(wanted), answers)
    check_keyboard(browser)
    browser.devtools(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=740,
        deviceScaleFactor=1,
        mobile=True,
    )
    wide = browser.run("return document.documentElement.scrollWidth")
    check(wide <= 360, "on a telephone the page is", wide, "wide")
    browser.devtools("Emulation.clearDeviceMetricsOverride")
    check(browser.console() == [], browser.console())


def check_keyboard(browser):
    """An arrow key on a slider routes again."""
    changes = "return Number(document.documentElement.dataset.changes)"
    browser.run("document.getElementById('k').focus()")
    before, k = browser.run(changes), browser.run("return window.moesim.state.k")
    for kind in ("rawKeyDown", "keyUp"):
        browser.devtools(
            "Input.dispatchKeyEvent",
            type=kind,
            key="ArrowLeft",
            code="ArrowLeft",
            windowsVirtualKeyCode=37,
        )
    check(browser.run(changes) > before, "an arrow key changes nothing")
    check(browser.run("return window.moesim.state.k") == k - 1, "the arrow key is no step")


def milliseconds(browser):
    """Of changes at 4096 tokens: the least and the middle one of each kind of change."""
    return browser.run(
        """const m = window.moesim, found = {};
        const start = {devices: 8, experts: 64, k: 6, tokens: 4096, node: 8, policy: "none",
          limit: "none", mode: "token", skew: 1.2, score: "softmax", seed: 1};
        const kinds = {k: [2, 6], skew: [0.5, 1.2], limit: ["max", "none"], seed: [1, 2],
          policy: ["expert", "none"], score: ["sigmoid", "softmax"], experts: [128, 64],
          devices: [16, 8]};
        for (const [kind, values] of Object.entries(kinds)) {
          Object.assign(m.state, start);
          m.update();
          const took = [];
          for (let i = 0; i < 12; i++) {
            m.state[kind] = values[i % 2];
            m.update();
            took.push(Number(document.documentElement.dataset.took));
          }
          took.sort((a, b) => a - b);
          found[kind] = [took[0], took[6]].map((x) => Math.round(10 * x) / 10);
        }
        return found;"""
    )


def digest():
    words = [os.path.join(SOURCE, "scripts", "playground"), "--digest"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def test_page(page, count):
    with open(page, encoding="utf-8") as file:
        text = file.read()
    up_to_date = f'name="moesim-template" content="{digest()}"' in text
    check(up_to_date, page, "is older than its template: scripts/playground builds it again")
    check(not re.search(r"(?:src|href)=\\?\"?https?:", text), page, "refers to the network")
    with Browser() as browser:
        check_page(browser, page)
        print("ms of a change at 4096 tokens, least and middle:", json.dumps(milliseconds(browser)))
        compare(browser, count)


def build(name):
    """A page that is built now, or None where there is no compiler for it."""
    target = os.path.join(TEMPORARY, name)
    words = [os.path.join(SOURCE, "scripts", "playground"), target]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode and "--playground installs it" in done.stderr:
        print(done.stderr.strip())
        return None
    return target if check(done.returncode == 0, done.stderr) else None
