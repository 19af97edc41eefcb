"""ctest: timeout=180
A recording of several steps: each step is the run of that step alone, bit for bit, with its own
mask, weights and scores; run.steps takes the first ones; --placements goes through them; and what
does not fit is refused.
"""
import json
import os
import random

from _moesim import QUICKSTART, TEMPORARY, check, load, metrics as steps_of, moesim, near, run
from _moesim import save, sets, summary, verdict

STEPS, LAYERS, TOKENS, EXPERTS, K = 4, 2, 24, 8, 2
BASE = {
    "model.num_layers": LAYERS,
    "model.num_experts": EXPERTS,
    "model.hidden_size": 4,
    "model.moe_intermediate_size": 2,
    "cluster.devices": 4,
    "cluster.devices_per_node": 2,
    "data.sequence_length": 6,
    "router.top_k": K,
}
draw = random.Random(7)


def chosen(step):
    """Two experts of a token; in later steps the upper ones are chosen more often."""
    weights = [1.0 / (1 + (e + 2 * step) % EXPERTS) for e in range(EXPERTS)]
    first = draw.choices(range(EXPERTS), weights)[0]
    return [first, (first + draw.randint(1, EXPERTS - 1)) % EXPERTS]


PLANES = STEPS * LAYERS * TOKENS
ROUTING = [e for i in range(PLANES) for e in chosen(i // (LAYERS * TOKENS))]
WEIGHTS = [draw.random() for _ in range(PLANES * K)]
SCORES = [draw.random() for _ in range(PLANES * EXPERTS)]
LOGITS = [draw.gauss(0, 1) for _ in range(PLANES * EXPERTS)]
MASK = [int(t % TOKENS < 10 + 3 * (t // TOKENS)) for t in range(STEPS * TOKENS)]


def of_step(numbers, step):
    size = len(numbers) // STEPS
    return numbers[step * size : (step + 1) * size]


def files(name, source, step=None):
    """Settings that name the files of one step, or of all."""
    shape = (LAYERS, TOKENS) if step is not None else (STEPS, LAYERS, TOKENS)

    def written(kind, dtype, numbers, *inner):
        part = numbers if step is None else of_step(numbers, step)
        return save(f"{name}-{kind}.npy", dtype, (*shape, *inner), part)

    mask = MASK if step is None else of_step(MASK, step)
    settings = {
        "data.source": source,
        "data.mask": save(
            f"{name}-mask.npy", "|u1", (TOKENS,) if step is not None else (STEPS, TOKENS), mask
        ),
    }
    if source == "logits":
        return {
            **settings,
            "data.path": written("logits", "<f4", LOGITS, EXPERTS),
            "balance.z_loss": 0.01,
        }
    return {
        **settings,
        "data.path": written("routing", "<i4", ROUTING, K),
        "data.weights": written("weights", "<f4", WEIGHTS, K),
        "data.scores": written("scores", "<f4", SCORES, EXPERTS),
        "router.score_func": "sigmoid",
    }


def same(whole, alone, what):
    """All but the number of the step and the times."""
    parts = [
        {key: x for key, x in m.items() if key not in ("step", "time")} for m in (whole, alone)
    ]
    check(parts[0] == parts[1], f"{what}: {parts[0]} and alone {parts[1]}")


def test_steps(source, padding):
    name = f"{source}-{padding}"
    settings = {**BASE, "data.padding": padding, "output.routing": "yes"}
    whole = run(name, 2, {**settings, **files(name, source)})
    if not whole:
        return
    metrics = steps_of(whole)
    check(len(metrics) == STEPS, f"{name}: {len(metrics)} steps")
    for step, found in enumerate(metrics):
        alone = run(f"{name}-{step}", 4, {**settings, **files(f"{name}-{step}", source, step)})
        if alone:
            same(found, steps_of(alone)[0], f"{name}, step {step}")
    routing = [load(os.path.join(folder, "topk_idx.npy")) for folder in (whole, alone)]
    check(
        list(routing[0].data) == list(routing[1].data), f"{name}: topk_idx is not the last step's"
    )
    first = run(f"{name}-first", 1, {**settings, **files(name, source), "run.steps": 2})
    for found, expected in zip(steps_of(first), metrics[:2]):
        same(found, expected, f"{name}: the first of two steps")
    check(len(steps_of(first)) == 2, f"{name}: run.steps = 2")
    again = moesim(2, os.path.join(whole, "config.ini"), "--out", f"{name}-again")
    check(again.code == 0, f"{name}: its config.ini: {again.err}")


def naive_over_steps(folder):
    """max/mean of every step and layer, and how far the shares of experts move."""
    loads = load(os.path.join(folder, "expert_load.npy"))
    steps, layers, experts = loads.shape
    rows = loads.rows()
    shares = [
        [[x / sum(rows[s * layers + l]) for x in rows[s * layers + l]] for l in range(layers)]
        for s in range(steps)
    ]

    def moved(a, b):
        return (
            sum(
                sum(abs(x - y) for x, y in zip(shares[a][l], shares[b][l])) / 2
                for l in range(layers)
            )
            / layers
        )

    peaks = [[max(shares[s][l]) * experts for l in range(layers)] for s in range(steps)]
    worst = max(x for step in peaks for x in step)
    place = next((s, l) for s in range(steps) for l in range(layers) if peaks[s][l] == worst)
    return (
        {
            "mean": sum(map(sum, peaks)) / steps / layers,
            "worst": worst,
            "worst_step": place[0],
            "worst_layer": place[1],
        },
        [moved(s - 1, s) for s in range(1, steps)],
        moved(0, steps - 1),
    )


def test_over_steps():
    """The worst step and the drift, against expert_load.npy."""
    whole = run("over", 2, {**BASE, **files("over", "routing")})
    if not whole:
        return
    peaks, drift, from_first = naive_over_steps(whole)
    found = summary(whole)["over_steps"]
    for key, value in peaks.items():
        check(near(found["expert_max_over_mean"][key], value, 1e-12), key, found, value)
    check(near(found["drift"]["step_mean"], sum(drift) / len(drift), 1e-12), found, drift)
    check(near(found["drift"]["step_worst"], max(drift), 1e-12), found, drift)
    check(near(found["drift"]["first_to_last"], from_first, 1e-12), found, from_first)
    alone = run("over-0", 2, {**BASE, **files("over-0", "routing", 0)})
    check(alone and summary(alone)["over_steps"] is None, "one step has no drift")


def test_placements():
    """Balancers decide by the first steps of a recording and are judged on the last ones."""
    recording = {**BASE, "data.source": "routing", "placement.fit": 1, "placement.score": 2}
    recording["data.path"] = save("p.npy", "<i4", (STEPS, LAYERS, TOKENS, K), ROUTING)
    written = run("p-run", 2, {k: v for k, v in recording.items() if "placement" not in k})
    found = {}
    for name, settings in (
        ("tokens", recording),
        ("loads", {**recording, "placement.load": os.path.join(written or "", "expert_load.npy")}),
    ):
        done = moesim(2, "--placements", QUICKSTART, *sets(settings), "--out", f"p-{name}")
        if not check(done.code == 0, f"--placements on {name}: {done.err}"):
            return
        with open(os.path.join(f"p-{name}", "placements.json")) as file:
            found[name] = json.load(file)
        check(
            found[name]["fit"] == {"first_step": 0, "steps": 1}
            and found[name]["score"] == {"first_step": 2, "steps": 2},
            "windows of the recording:",
            found[name]["fit"],
        )
    tokens, loads = (found[name]["policies"]["block"] for name in ("tokens", "loads"))
    rows = load(os.path.join(written, "expert_load.npy")).rows()
    by_step = [
        [
            max(sum(row[d * 2 : d * 2 + 2]) for d in range(4)) * 4 / sum(row)
            for row in rows[s * LAYERS : (s + 1) * LAYERS]
        ]
        for s in (2, 3)
    ]
    for each in (tokens, loads):
        means = [sum(step) / LAYERS for step in by_step]
        check(near(each["device_max_over_mean_by_step"], means, 1e-12), each, means)
        worst = max(max(step) for step in by_step)
        place = next((s, l) for s in (0, 1) for l in range(LAYERS) if by_step[s][l] == worst)
        check(
            near(each["device_max_over_mean_worst"], worst, 1e-12)
            and (each["worst_step"], each["worst_layer"]) == (2 + place[0], place[1]),
            "the worst step:",
            each,
            place,
        )
    shares = [[x / sum(row) for x in row] for row in rows]
    drift = [
        sum(
            sum(abs(x - y) for x, y in zip(shares[l], shares[s * LAYERS + l])) / 2
            for l in range(LAYERS)
        )
        / LAYERS
        for s in (2, 3)
    ]
    check(near(found["tokens"]["drift_by_step"], drift, 1e-12), found["tokens"], drift)
    check(near(found["loads"]["drift_by_step"], drift, 1e-12), found["loads"], drift)


def refused(what, settings, *words):
    done = moesim(2, QUICKSTART, *sets({**BASE, **settings}), "--out", "refused")
    lines = done.err.splitlines()
    check(done.code == 2 and len(lines) == 1, f"{what}: status {done.code}: {done.err}")
    for word in words:
        check(word in done.err, f"{what}: the sentence does not say '{word}': {done.err}")


def test_refusals():
    path = save("r.npy", "<i4", (STEPS, LAYERS, TOKENS, K), ROUTING)
    good = {"data.source": "routing", "data.path": path}
    refused("more steps", {**good, "run.steps": 5}, "run.steps = 5", "the recording has 4 steps")
    weights = save("short.npy", "<f4", (2, LAYERS, TOKENS, K), WEIGHTS[: PLANES * K // 2])
    refused("weights of other steps", {**good, "data.weights": weights}, "[4, 2, 24, 2]")
    bad = list(ROUTING)
    bad[(2 * LAYERS + 1) * TOKENS * K + 5 * K] = EXPERTS
    bad = save("bad.npy", "<i4", (STEPS, LAYERS, TOKENS, K), bad)
    refused("a wrong expert", {**good, "data.path": bad}, "token 5 in layer 1 of step 2, choice 0")
    mask = [int(t // TOKENS != 3) for t in range(STEPS * TOKENS)]
    mask = save("none.npy", "|u1", (STEPS, TOKENS), mask)
    refused("a step of padding", {**good, "data.mask": mask}, "all of step 3 is 0")
    layers = save("layers.npy", "<i4", (1, 3, TOKENS, K), ROUTING[: 3 * TOKENS * K])
    refused("other layers", {**good, "data.path": layers}, "[steps, 2, T, K]")
    one = save("one.npy", "<i4", (LAYERS, TOKENS, K), ROUTING[: LAYERS * TOKENS * K])
    settings = {**BASE, "data.source": "routing", "data.path": one}
    done = moesim(2, QUICKSTART, *sets(settings), "--out", "one")
    check(done.code == 0 and summary("one")["steps"] == 1, f"a file's run.steps: {done.err}")


os.chdir(TEMPORARY)
for each in ("counted", "dropped"):
    test_steps("routing", each)
    test_steps("logits", each)
test_over_steps()
test_placements()
test_refusals()
verdict()
