"""ctest: timeout=120
Mixtral's and Switch's loss over the tokens of all layers put together: value, mask, scopes and
gradient against Hugging Face's two functions load_balancing_loss_func, written out here in plain
numbers; what trains is said where it belongs; the same bits on any number of ranks.
"""
import json
import math
import os
import random

from _moesim import check, config, load, metrics, moesim, near, run, save, summary, verdict

N, K, T, LAYERS = 8, 2, 48, 3
ALPHA = 0.25
random.seed(11)
# float32 numbers; each layer prefers other experts, so that the layers even each other out
LOGITS = [
    [
        [round((random.gauss(0, 1) + 1.5 * ((i + l) % N < 2)) * 1024) / 1024 for i in range(N)]
        for _ in range(T)
    ]
    for l in range(LAYERS)
]
MASK = [int(random.random() < 0.7) for _ in range(T)]
PATH = save(
    "logits.npy", "<f4", (LAYERS * T, N), [v for layer in LOGITS for row in layer for v in row]
)
MASK_PATH = save("mask.npy", "|u1", (T,), MASK)
BASE = {
    "model.num_layers": LAYERS,
    "model.num_experts": N,
    "model.hidden_size": 4,
    "model.moe_intermediate_size": 4,
    "router.top_k": K,
    "router.score_func": "softmax_topk",
    "balance.aux_form": "mixtral",
    "balance.alpha_expert": ALPHA,
    "balance.scope": "global",
    "cluster.devices": 4,
    "data.source": "logits",
    "data.path": PATH,
    "data.sequence_length": 0,
}


def softmax(z):
    top = max(z)
    e = [math.exp(v - top) for v in z]
    total = math.fsum(e)
    return [v / total for v in e]


def chosen(z):
    return sorted(range(N), key=lambda i: (-z[i], i))[:K]


def fractions(tokens):
    """f_{k,i}: share of the tokens (l, t) whose k-th choice is i."""
    f = [[0] * N for _ in range(K)]
    for l, t in tokens:
        for k, i in enumerate(chosen(LOGITS[l][t])):
            f[k][i] += 1 / len(tokens)
    return f


def load_balancing_loss(tokens, f=None, logits=LOGITS):
    """Of the tokens (l, t) of any layers: N sum_k sum_i f_{k,i} P_i."""
    f = f or fractions(tokens)
    scores = [softmax(logits[l][t]) for l, t in tokens]
    p = [math.fsum(s[i] for s in scores) / len(tokens) for i in range(N)]
    return N * math.fsum(f[k][i] * p[i] for k in range(K) for i in range(N))


ALL = [(l, t) for l in range(LAYERS) for t in range(T)]
COUNTED = [(l, t) for l, t in ALL if MASK[t]]


def of_device(tokens, d):
    return [(l, t) for l, t in tokens if t // (T // 4) == d]


def check_values():
    bits = set()
    for ranks in (1, 2, 4):
        out = run(f"each-{ranks}", ranks, BASE)
        if not out:
            continue
        whole = summary(out)
        found = whole["loss_raw"]["mixtral_all_layers"]
        bits.add(found)
        check(
            near(found, load_balancing_loss(ALL), 1e-10),
            f"all layers: {found}, by Hugging Face's code {load_balancing_loss(ALL)}",
        )
        check(
            metrics(out)[-1]["loss_raw"]["mixtral_all_layers"] == found,
            "metrics.jsonl and summary.json differ",
        )
        check(whole["loss_ideal"]["mixtral_all_layers"] == K, "K at balance")
        each = [layer["loss_raw"]["mixtral"] for layer in whole["layers"]]
        for l in range(LAYERS):
            expected = load_balancing_loss([(l, t) for t in range(T)])
            check(near(each[l], expected, 1e-10), f"layer {l}: {each[l]}, expected {expected}")
            check(
                near(whole["layers"][l]["loss"]["mixtral"], ALPHA * expected, 1e-10),
                f"layer {l} trains its own loss",
            )
        check(
            sum(each) / LAYERS - found > 0.2,
            (
                "layers that prefer other experts even each other out, and only the loss over all"
                " of them sees it"
            ),
        )
        by_scope = whole["loss_by_scope"]
        device = sum(load_balancing_loss(of_device(ALL, d)) for d in range(4)) / 4
        check(
            near(by_scope["device"]["mixtral_all_layers"], device, 1e-10),
            "scope device: the mean over devices of each one's own",
        )
        check(
            by_scope["sequence"]["mixtral_all_layers"]
            == by_scope["global"]["mixtral_all_layers"]
            == found,
            "one sequence is the batch",
        )
    check(len(bits) == 1, f"not the same bits on 1, 2 and 4 ranks: {bits}")
    out = run("masked", 2, {**BASE, "data.mask": MASK_PATH})
    if out:
        check(
            near(
                summary(out)["loss_raw"]["mixtral_all_layers"], load_balancing_loss(COUNTED), 1e-10
            ),
            "padding is left out",
        )


def gradient(loss, step=1e-4):
    """Central differences of loss(logits), which takes the choices as fixed."""
    moved = [[list(row) for row in layer] for layer in LOGITS]
    found = {}
    for l, t in [(0, 0), (0, T - 1), (1, 7), (2, 3), (2, T // 2)]:
        for i in range(N):
            ends = []
            for sign in (1, -1):
                moved[l][t][i] = LOGITS[l][t][i] + sign * step
                ends.append(loss(moved))
            moved[l][t][i] = LOGITS[l][t][i]
            found[l, t, i] = (ends[0] - ends[1]) / (2 * step)
    return found


SEQUENCE = 16  # of the batch of 48 tokens there are three


def switch_loss(tokens, logits=LOGITS):
    """Mean over sequences of N sum_i F_i P_i over the sequence's tokens of all layers, F_i the
    share of the tokens whose first choice (of the logits as recorded) is expert i.
    """
    losses = []
    for first in range(0, T, SEQUENCE):
        own = [(l, t) for l, t in tokens if first <= t < first + SEQUENCE]
        f = [sum(chosen(LOGITS[l][t])[0] == i for l, t in own) / len(own) for i in range(N)]
        scores = [softmax(logits[l][t]) for l, t in own]
        p = [math.fsum(s[i] for s in scores) / len(own) for i in range(N)]
        losses.append(N * math.fsum(f[i] * p[i] for i in range(N)))
    return math.fsum(losses) / len(losses)


SWITCH = {
    "balance.aux_form": "switch",
    "balance.scope": "sequence",
    "data.sequence_length": SEQUENCE,
}


def check_gradient():
    for name, form, extra, tokens in (
        ("all", "mixtral", {}, ALL),
        ("all-masked", "mixtral", {"data.mask": MASK_PATH}, COUNTED),
        ("switch", "switch", SWITCH, ALL),
    ):
        out = run(name, 2, {**BASE, **extra, "balance.aux_layers": "all", "output.tensors": "yes"})
        if not out:
            continue
        whole = summary(out)
        f = fractions(tokens)

        def loss(logits):
            if form == "switch":
                return switch_loss(tokens, logits)
            return load_balancing_loss(tokens, f, logits)

        raw = loss(LOGITS)
        check(
            near(whole["loss"][form + "_all_layers"], ALPHA * raw, 1e-10)
            and near(whole["loss"]["total"], ALPHA * raw, 1e-10),
            f"{name}: it counts once: {whole['loss']}",
        )
        check(
            all(
                form not in layer["loss"] and layer["loss"]["total"] == 0
                for layer in whole["layers"]
            ),
            f"{name}: nothing trains twice",
        )
        dlogits = [load(os.path.join(out, f"dlogits_layer{l}.npy")).rows() for l in range(LAYERS)]
        expected = gradient(loss)
        most = max(map(abs, expected.values()))
        worst = max(abs(dlogits[l][t][i] - ALPHA * value) for (l, t, i), value in expected.items())
        check(worst <= 1e-6 * ALPHA * most, f"{name}: gradient off by {worst} of {ALPHA * most}")
        for l, t in ALL:
            if (l, t) not in set(tokens):
                check(not any(dlogits[l][t]), f"{name}: padding token {t} has a gradient")


def check_switch():
    """The loss of each layer trains unless aux_layers = all; preset switch puts the layers
    together as its source does, which the published report shows: two layers, each of which sends
    all of its tokens to one expert, another one in each layer.
    """
    bits = set()
    for ranks in (1, 2, 4):
        out = run(f"switch-{ranks}", ranks, {**BASE, **SWITCH, "balance.aux_layers": "all"})
        if out:
            bits.add(summary(out)["loss_raw"]["switch_all_layers"])
    check(
        len(bits) == 1 and near(min(bits), switch_loss(ALL), 1e-10),
        f"switch over all layers: {bits}, expected {switch_loss(ALL)}",
    )
    out = run("switch-each", 1, {**BASE, **SWITCH})
    if out:
        whole = summary(out)
        check(
            "switch_all_layers" not in whole["loss_raw"]
            and all(
                near(
                    layer["loss"]["switch"],
                    ALPHA * switch_loss([(l, t) for t in range(T)]),
                    1e-10,
                )
                for l, layer in enumerate(whole["layers"])
            ),
            f"aux_layers = each: every layer its own: {whole['loss']}",
        )
    sharp = [[[16.0 * (i == l) for i in range(4)] for _ in range(8)] for l in range(2)]
    path = save("sharp.npy", "<f4", (16, 4), [v for layer in sharp for row in layer for v in row])
    preset = {
        "model.num_layers": 2,
        "model.num_experts": 4,
        "model.hidden_size": 8,
        "model.moe_intermediate_size": 4,
        "router.preset": "switch",
        "capacity.policy": "none",
        "data.source": "logits",
        "data.path": path,
        "data.sequence_length": 8,
    }
    most = softmax(sharp[0][0])[0]
    for name, extra, key, expected in (
        ("preset", {}, "switch_all_layers", 4 * (most / 2 + (1 - most) / 6)),
        ("paper", {"balance.aux_layers": "each"}, "switch", 4 * most),
    ):
        out = run(name, 1, {**preset, **extra})
        if out:
            found = summary(out)["loss"]
            check(
                near(found[key], 0.01 * expected, 1e-10),
                f"{name}: {found}, expected 0.01 x {expected}",
            )


def without_time(line):
    return {key: value for key, value in line.items() if key != "time"}


def check_training():
    """Preset mixtral: both layers' routers learn from the loss over all layers; a schedule scales
    it.
    """
    settings = {
        "run.mode": "train",
        "run.steps": 3,
        "model.num_layers": 2,
        "model.hidden_size": 16,
        "model.moe_intermediate_size": 8,
        "router.preset": "mixtral",
        "cluster.devices": 4,
        "data.tokens_per_device": 24,
        "data.sequence_length": 12,
        "balance.ramp_steps": 2,
    }
    lines = {}
    for ranks in (1, 4):
        out = run(f"train-{ranks}", ranks, settings)
        if out:
            lines[ranks] = [without_time(line) for line in metrics(out)]
            with open(os.path.join(out, "config.ini")) as file:
                check(
                    "aux_layers = all" in file.read(),
                    "the preset's reading is in the resolved configuration",
                )
    check(
        len(lines) == 2 and json.dumps(lines[1]) == json.dumps(lines[4]),
        "training over all layers differs between 1 and 4 ranks",
    )
    for step, line in enumerate(lines.get(1, [])):
        alpha = 0.02 * min(1, (step + 1) / 2)
        check(
            near(
                line["loss"]["mixtral_all_layers"],
                alpha * line["loss_raw"]["mixtral_all_layers"],
                1e-12,
            ),
            f"step {step}: {line['loss']}",
        )
        check(
            near(line["loss"]["total"], line["loss"]["mixtral_all_layers"], 1e-12)
            and line["loss"]["mixtral"] == 0,
            f"step {step}: {line['loss']}",
        )
    for full in ((), ("--full",)):
        all_layers = config("screen", {**BASE, "balance.aux_layers": "all"})
        done = moesim(1, all_layers, "--force", "--out", "screen", *full)
        check(
            done.code == 0 and "  all layers " in done.out and "of all layers together" in done.out,
            f"the screen does not say what trains: {full} {done.out}",
        )


def check_refused():
    for sets, words in (
        (
            ["balance.aux_form=gshard", "balance.aux_layers=all"],
            ("aux_form = gshard", "aux_form = mixtral or switch", "aux_layers = each"),
        ),
    ):
        done = moesim(
            1,
            config("refused", BASE),
            "--check",
            *[word for one in sets for word in ("--set", one)],
        )
        check(
            done.code == 2
            and done.err.count("\n") == 1
            and all(word in done.err for word in words),
            f"{sets}: {done.code}: {done.err}",
        )
    # a preset's reading goes when another form is asked for
    done = moesim(
        1,
        config("refused", {"router.preset": "mixtral"}),
        "--check",
        "--set",
        "balance.aux_form=deepseek",
    )
    check(done.code == 0, f"preset mixtral with another form: {done.err}")


check_values()
check_gradient()
check_switch()
check_training()
check_refused()
verdict()
