"""ctest: timeout=240
scripts/advise on small recordings: the figures are those of moesim --placements and of counting by
hand; the advised choice is within 3 % of the best of all choices on the steps that were held out;
what is not worth it, or not sure, is said; one sentence for bad input.
"""
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys

import _moesim as m
from _moesim import check

SCRIPT = os.path.join(m.SOURCE, "scripts", "advise")
CLUSTER = os.path.join(m.SOURCE, "configs", "clusters", "h200.ini")
S, L, T, N, K, D, NODE = 9, 2, 768, 32, 3, 8, 4
FIT, CHOOSE = 3, 2  # a third of the steps, and of those that are left
WIDTHS = {"cluster.model_hidden_size": 7168, "cluster.model_intermediate_size": 2048}
BASE = {
    "model.num_layers": L,
    "model.num_experts": N,
    "model.hidden_size": 16,
    "model.moe_intermediate_size": 8,
    "router.top_k": K,
    "cluster.devices": D,
    "cluster.devices_per_node": NODE,
    "data.source": "routing",
    **WIDTHS,
}


def routing(name, choose):
    """A recording [S,L,T,K]; choose(step, layer, token) gives K experts."""
    rows = [
        expert
        for step, layer, token in itertools.product(range(S), range(L), range(T))
        for expert in choose(step, layer, token)
    ]
    path = os.path.join(m.TEMPORARY, name + ".npy")
    m.save(path, "<i4", (S, L, T, K), rows)
    return path, rows


def popular(skew, drift):
    """Choices by popularity, which moves from step to step."""
    draw = random.Random(5)
    taste = [[draw.gauss(0, skew) for _ in range(N)] for _ in range(L)]

    def choose(step, layer, _):
        weights = [
            2.718 ** (taste[layer][e] * (1 - drift * step) + drift * step * taste[layer][e - 5])
            for e in range(N)
        ]
        found = []
        while len(found) < K:
            expert = draw.choices(range(N), weights)[0]
            if expert not in found:
                found.append(expert)
        return found

    return choose


def advise(*words):
    return subprocess.run(
        [sys.executable, SCRIPT, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=m.environment(),
    )


def advice(name, path, *more):
    """(advice.json, the page) of a recording."""
    out = os.path.join(m.TEMPORARY, "advice-" + name)
    config = m.config(name, {**BASE, "data.path": path})
    nodes = f"cluster.devices_per_node={NODE}"  # those of the cluster file are larger
    done = advise(config, "--cluster", CLUSTER, "--set", nodes, "--out", out, *more)
    if not check(done.returncode == 0, f"{name}: {done.returncode} {done.stderr}"):
        return None, ""
    check(all(len(line) <= 80 for line in done.stdout.splitlines()), f"{name}: wide")
    with open(os.path.join(out, "advice.txt")) as file:
        check(file.read() == done.stdout, f"{name}: advice.txt is another page")
    with open(os.path.join(out, "advice.json")) as file:
        return json.load(file), done.stdout


# --- every choice, one by one ---


def sliced(rows, group):
    """The recording for groups of devices: (steps, tokens of a step, rows)."""
    tokens = T * group // D
    out = []
    for step, part, layer in itertools.product(range(S), range(D // group), range(L)):
        begin = ((step * L + layer) * T + part * tokens) * K
        out += rows[begin : begin + tokens * K]
    return S * D // group, tokens, out


def swept(rows, group, redundant, known={}):
    """{policy: seconds of each judged step} of one run of the program."""
    key = (id(rows), group, redundant)
    if key not in known:
        known[key] = sweep(rows, group, redundant)
    return known[key]


def sweep(rows, group, redundant):
    steps, tokens, mine = sliced(rows, group)
    path = os.path.join(m.TEMPORARY, f"sliced{group}.npy")
    m.save(path, "<i4", (steps, L, tokens, K), mine)
    name = f"sweep{group}-{redundant}"
    config = m.config(
        name,
        {
            **BASE,
            "data.path": path,
            "cluster.file": CLUSTER,
            "cluster.devices": group,
            "cluster.devices_per_node": min(group, NODE),
            "placement.redundant_experts": redundant,
            "placement.fit": FIT * D // group,
            "placement.score": (S - FIT) * D // group,
        },
    )
    out = os.path.join(m.TEMPORARY, name)
    done = m.moesim(1, "--placements", "--quiet", "--out", out, config)
    check(done.code == 0, f"{name}: {done.err}")
    with open(os.path.join(out, "placements.json")) as file:
        policies = json.load(file)["policies"]
    each = D // group
    return {
        policy: [
            sum(figures["predicted_step_us_by_step"][i : i + each]) / each
            for i in range(0, (S - FIT) * each, each)
        ]
        for policy, figures in policies.items()
        if figures["left_out"] is None
    }


def mean(values):
    return sum(values) / len(values)


def remote_bytes(rows):
    """Bytes to other devices and back, a token and all layers, with blocks: mean of the judged."""
    sent = 0
    for step, layer, token in itertools.product(range(FIT, S), range(L), range(T)):
        place = ((step * L + layer) * T + token) * K
        devices = {expert * D // N for expert in rows[place : place + K]}
        sent += len(devices - {token * D // T})
    return sent * 7168 * 4 * 2 / (S - FIT) / T


def check_figures(found, rows):
    """Against single runs, and against a count by hand."""
    for choice in found["choices"]:
        if choice["limit"] or choice["mode"] or choice["payload"]:
            continue
        key = (choice["group"], choice["redundant"])
        by_hand = swept(rows, *key)
        check(
            m.near(choice["step_us_by_step"], by_hand[choice["policy"]], 1e-12),
            f"{key} {choice['policy']}: {choice['step_us_by_step']}, {by_hand[choice['policy']]}",
        )
    check(
        m.near(found["now"]["bytes_per_token"], remote_bytes(rows), 1e-9),
        f"{found['now']['bytes_per_token']} bytes a token, by hand {remote_bytes(rows)}",
    )


def check_best(found, rows, groups):
    """The advised choice against all of them, on the steps that were held out."""
    usable = ("block", "round_robin", "eplb", "eplb_global", "flashlb", "epic", "joint")
    best = min(
        mean(steps[CHOOSE:])
        for group in groups
        for times in (0, 1, 2, 4)
        for policy, steps in swept(rows, group, times * group).items()
        if policy in usable
    )
    check(
        found["best"]["step_us"] <= 1.03 * best,
        f"advised {found['best']['step_us']} us, the best takes {best}",
    )


def test_worth_it():
    path, rows = routing("popular", popular(1.0, 0.02))
    found, page = advice("popular", path)
    if found:
        check_figures(found, rows)
        check_best(found, rows, (D,))
        check(found["answer"] == "Yes" and found["gain"] > 0.05, f"{found['gain']}")
        check("Is balance worth anything here?\n  Yes." in page, page)
        check("--set placement.policy=" in page, page)
        check(found["balanced_step_us"] <= found["now"]["step_us"], "balanced above real")
        check("Not enough evidence: EP" in page or "as fast as any other" in page, page)
    found, page = advice("memory", path, "--memory", "1000")
    if found:
        check_best(found, rows, (2, 4, 8))


def test_not_worth_it():
    path, _ = routing("even", lambda s, l, t: [(t * K + k + 7 * s) % N for k in range(K)])
    found, page = advice("even", path)
    if found:
        check("here?\n  Not worth it." in page, page)
        check(found["answer"] == "Not worth it", found["answer"])
        check("Nothing. No change" in page, page)


def test_chance():
    """Popularity that is drawn anew in every step says nothing of the next one."""
    draw, weights = random.Random(2), {}

    def choose(step, layer, _):
        if (step, layer) not in weights:
            weights[step, layer] = [2.718 ** draw.gauss(0, 1) for _ in range(N)]
        return pick(weights[step, layer])

    def pick(popularity):
        found = set()
        while len(found) < K:
            found.add(draw.choices(range(N), popularity)[0])
        return sorted(found)

    found, page = advice("chance", routing("chance", choose)[0])
    if found:
        check("here?\n  Yes" not in page, page)
        best = found["best"]  # more replicas even out any load
        check(best["policy"] == "block" or found["answer"] != "Yes", f"{best}, {found['gain']}")


def test_router():
    """Where the router chooses, M is looked at; what that costs the model is not known."""
    out = os.path.join(m.TEMPORARY, "router")
    config = m.config(
        "router",
        {
            **{key: value for key, value in BASE.items() if key != "data.source"},
            "router.group_limit": "max",
            "router.topk_group": 3,
            "data.tokens_per_device": 32,
            "data.sequence_length": 32,
        },
    )
    done = advise(config, "--cluster", CLUSTER, "--out", out)
    check(done.returncode == 0, done.stderr)
    with open(os.path.join(out, "advice.json")) as file:
        found = json.load(file)
    blocks = [one for one in found["choices"] if one["policy"] == "block"]
    limits = {one["limit"]: one["bytes_per_token"] for one in blocks if one["limit"]}
    check(set(limits) == {1, 2}, limits)
    check(limits[1] < limits[2] < found["now"]["bytes_per_token"], limits)
    check(found["best"]["limit"] == 0, "a model that was not trained so is advised")


def test_trained():
    """Losses are those of a training by itself; the front holds what nothing beats."""
    out = os.path.join(m.TEMPORARY, "trained")
    settings = {
        "run.mode": "train",
        "run.steps": 4,
        "model.hidden_size": 16,
        "model.num_experts": 16,
        "model.moe_intermediate_size": 8,
        "router.top_k": 3,
        "router.group_limit": "max",
        "router.topk_group": 2,
        "cluster.devices": 4,
        "data.tokens_per_device": 32,
        "data.sequence_length": 32,
        "train.validation_every": 2,
    }
    config = m.config("trained", settings)
    done = advise(config, "--cluster", CLUSTER, "--out", out, "--train", "2")
    if not check(done.returncode == 0, done.stderr):
        return
    with open(os.path.join(out, "advice.json")) as file:
        found = {one["limit"]: one for one in json.load(file)["trained"]}
    check(set(found) == {0, 1, 3}, found)
    alone = {**settings, "router.topk_group": 1, "run.seed": 2, "cluster.file": CLUSTER}
    folder = m.run("trained-alone", 2, alone)
    if folder:
        loss = m.summary(folder)["training"]["validation_loss"]["last"]
        check(found[1]["losses"]["2"] == loss, f"{found[1]}, alone {loss}")
    check(re.search("M +loss +step +sent/token +on the front", done.stdout), done.stdout)
    first = min(found.values(), key=lambda one: one["bytes_per_token"])
    check(re.search(rf"^    {first['limit']} .* yes$", done.stdout, re.M), done.stdout)


# --- bad input ---


def refused(name, pattern, *words):
    done = advise(*words)
    check(done.returncode == 2, f"{name}: status {done.returncode}: {done.stdout[-200:]}")
    check(re.search(pattern, done.stderr), f"{name}: {done.stderr}")
    check(done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, f"{name}: {done.stderr}")
    check(done.stdout == "", f"{name}: {done.stdout[:100]}")


def written(name, text):
    path = os.path.join(m.TEMPORARY, name)
    with open(path, "w") as file:
        file.write(text)
    return path


def test_refused():
    path = routing("small", lambda s, l, t: [t % N, (t + 1) % N, (t + 2) % N])[0]
    config = m.config("small", {**BASE, "data.path": path})
    with open(path, "rb") as file:
        content = file.read()
    cut = os.path.join(m.TEMPORARY, "cut.npy")
    with open(cut, "wb") as file:
        file.write(content[:-4])
    zero = written("zero.ini", "[cluster]\ninter_gbps = 0\n")
    less = written("less.ini", "[cluster]\ninter_gbps = 50\n")
    text = written("text.npy", "experts")
    for name, pattern, *words in (
        ("no cluster", "--cluster is missing", config),
        ("no source", "one trace or configuration", "--cluster", CLUSTER),
        ("no such cluster", "not there", config, "--cluster", "nowhere.ini"),
        ("zero bandwidth", "inter_gbps", config, "--cluster", zero),
        ("a cluster without figures", "intra_gbps is missing", config, "--cluster", less),
        ("no such config", "nothing.ini", "nothing.ini", "--cluster", CLUSTER),
        ("no such recording", "no such file", "nothing.npy", "--cluster", CLUSTER),
        ("a cut recording", "not as long", cut, "--cluster", CLUSTER),
        ("a text", "no .npy", text, "--cluster", CLUSTER),
        ("an empty folder", "none of", m.TEMPORARY, "--cluster", CLUSTER),
        ("memory", "--memory", config, "--cluster", CLUSTER, "--memory", "0"),
        ("a key", "no_key", config, "--cluster", CLUSTER, "--set", "model.no_key=1"),
        (
            "other experts",
            "31|expert",
            config,
            "--cluster",
            CLUSTER,
            "--set",
            "model.num_experts=16",
        ),
        ("seeds", "--train 0", config, "--cluster", CLUSTER, "--train", "0"),
        ("no training", "run.mode = train", config, "--cluster", CLUSTER, "--train", "3"),
        ("devices", "devices", config, "--cluster", CLUSTER, "--set", "cluster.devices=5"),
        ("one device", "single", config, "--cluster", CLUSTER, "--set", "cluster.devices=1"),
        (
            "nodes",
            "devices_per_node",
            config,
            "--cluster",
            CLUSTER,
            "--set",
            "cluster.devices_per_node=3",
        ),
        (
            "loads",
            "goes with moesim --placements",
            config,
            "--cluster",
            CLUSTER,
            "--set",
            f"placement.load={path}",
        ),
    ):
        refused(name, pattern, *words)
    lines = os.path.join(m.TEMPORARY, "a\n[run]\nsteps = 9.npy")
    shutil.copy(cut, lines)
    refused("a name of several lines", "printable", lines, "--cluster", CLUSTER)
    os.makedirs("pipes")
    os.mkfifo("pipes/routing.ini")
    refused("a pipe", "not a regular file", "pipes", "--cluster", CLUSTER)


test_worth_it()
test_not_worth_it()
test_chance()
test_router()
test_trained()
test_refused()
m.verdict()
