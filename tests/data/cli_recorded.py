"""ctest: timeout=180
Recorded data that is not what it seems: what has no meaning is refused with a sentence that names
the token, what may be a mistake is said, and the self-checks hold or say why they are not made.
"""
import math
import os

from _moesim import TEMPORARY, check, config, moesim, near, save, summary, verdict

BASE = {"model.num_experts": 8, "model.hidden_size": 4, "model.moe_intermediate_size": 2}
LOW = -math.inf


def ran(name, settings, *arguments, ranks=2):
    """Status, all that was printed, and the folder."""
    folder = os.path.join(TEMPORARY, name)
    done = moesim(ranks, config(name, {**BASE, **settings}), "--out", folder, "--force", *arguments)
    return done, folder


def refused(name, settings, *words):
    done, _ = ran(name, settings)
    check(done.code == 2, f"{name}: status {done.code}, expected 2: {done.err}")
    for word in words:
        check(word in done.err, f"{name}: the sentence does not name {word}: {done.err}")


def runs(name, settings, *arguments):
    done, folder = ran(name, settings, *arguments)
    check(done.code == 0, f"{name}: status {done.code}: {done.err}")
    return done.out, summary(folder) if done.code == 0 else {}


def passed(figures, name):
    return figures["checks"][name] is True


def logits(name, rows):
    return {
        "data.source": "logits",
        "router.top_k": 2,
        "data.path": save(f"{name}.npy", "<f4", (len(rows), 8), [z for row in rows for z in row]),
    }


def routing(name, rows, layers=1):
    shape = (
        (len(rows), len(rows[0])) if layers == 1 else (layers, len(rows) // layers, len(rows[0]))
    )
    return {
        "data.source": "routing",
        "data.path": save(f"{name}.npy", "<i4", shape, [e for row in rows for e in row]),
    }


def test_logits():
    """Softmax over the enabled experts; a token without any has to be padding."""
    odd = [0.5, -1, LOW, 2, LOW, 0, 1, 3]
    even = [float(e) for e in range(8)]
    none = [LOW] * 8
    refused("none-left", logits("none-left", [odd, even, none, even]), "token 2", "-inf")
    mask = {"data.mask": save("mask.npy", "|u1", (4,), [1, 1, 0, 1]), "balance.scope": "global"}
    _, with_padding = runs("padding", {**logits("padding", [odd, even, none, even]), **mask})
    _, without = runs(
        "no-padding", {**logits("short", [odd, even, even]), "balance.scope": "global"}
    )
    for loss in ("expert", "z"):
        check(
            near(with_padding["loss_raw"][loss], without["loss_raw"][loss], 1e-12),
            f"a token without experts that is padding changes the loss {loss}",
        )
    large = even[:3] + [1e30] + even[4:]
    refused("large", logits("large", [even, large, even, even]), "token 1, expert 3", "1e+30")
    small = [-1e30] * 8
    refused("small", logits("small", [even, even, even, small]), "token 3")
    runs("masked-by-hand", logits("masked-by-hand", [even, odd[:2] + [-1e30] * 3 + odd[5:]]))


def test_probabilities():
    shares = [0.5, 0.25, 0.125, 0.125, 0, 0, 0, 0]
    out, _ = runs("shares", logits("shares", [shares] * 4))
    check("look like probabilities" in " ".join(out.split()), f"no warning: {out[:1500]}")
    out, _ = runs("not-shares", logits("not-shares", [shares, [0.1] * 8, shares, shares]))
    check("look like probabilities" not in " ".join(out.split()), f"a warning: {out[:1500]}")
    mask = {"data.mask": save("first.npy", "|u1", (4,), [0, 1, 1, 1])}
    out, _ = runs("behind-padding", {**logits("behind", [[0] * 8] + [shares] * 3), **mask})
    check("look like probabilities" in " ".join(out.split()), f"padding hides it: {out[:1500]}")


def scores(name, rows):
    return {
        "data.scores": save(f"{name}-s.npy", "<f4", (len(rows), 8), [s for r in rows for s in r])
    }


CHOICES = [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_scores():
    """Sigmoid scores under the default score_func do not sum to 1."""
    odd = {**routing("odd", CHOICES), **scores("odd", [[0.5] * 8] * 4)}
    out, _ = runs("odd-scores", odd)
    check(
        "do not sum to 1 (the first sums to 4)" in " ".join(out.split()), f"not said: {out[:1500]}"
    )
    out, figures = runs("sigmoid", {**odd, "router.score_func": "sigmoid"})
    check("do not sum to 1" not in " ".join(out.split()), f"said of sigmoid: {out[:1500]}")
    check(near(figures["loss_raw"]["expert"], 1, 1e-12), "sigmoid scores are not normalised")
    out, _ = runs("shares-2", {**routing("fine", CHOICES), **scores("fine", [[0.125] * 8] * 4)})
    check("do not sum to 1" not in " ".join(out.split()), f"said of shares: {out[:1500]}")
    padded = scores("padded", [[0.125] * 8] * 3 + [[0.5] * 8])
    for padding in "counted", "dropped":
        mask = {
            "data.mask": save("last.npy", "|u1", (4,), [1, 1, 1, 0]),
            "data.padding": padding,
        }
        out, _ = runs("padded-" + padding, {**routing("padded", CHOICES), **padded, **mask})
        check("not sum to 1" not in " ".join(out.split()), f"said of padding: {out[:1500]}")
    weights = {"data.weights": save("w.npy", "<f4", (4, 2), [1, 1, 1, 1, 1e30, 1, 1, 1])}
    refused("weights", {**routing("weights", CHOICES), **weights}, "token 2, choice 0", "1e+30")


def test_checks():
    """A loss that needs what was not recorded leaves the total open, and fails no check."""
    three = {**routing("three", CHOICES * 3, layers=3), "model.num_layers": 3}
    shares = save("three-s.npy", "<f4", (3, 4, 8), [0.125] * 96)
    for name, settings in {
        "z": {"balance.z_loss": 0.1, "data.scores": shares},
        "load": {"balance.aux_form": "mixtral", "balance.alpha_expert": 0.1},
        "all": {
            "balance.aux_form": "mixtral",
            "balance.aux_layers": "all",
            "balance.alpha_expert": 0.1,
        },
        "all-scores": {
            "balance.aux_form": "mixtral",
            "balance.aux_layers": "all",
            "balance.alpha_expert": 0.1,
            "data.scores": shares,
        },
        "importance": {"balance.importance_of": "scores", "balance.importance_loss": 0.1},
    }.items():
        _, figures = runs(f"three-{name}", {**three, **settings}, "--explain-step")
        if figures:
            check(passed(figures, "finite"), f"three-{name}: finite")
    few = {**routing("one-each", [[e] for e in range(8)]), "model.num_experts": 8}
    runs("one-each", few)
    runs("one-of-four", {**routing("one-of-four", [[0], [1], [2], [3]]), "model.num_experts": 4})


def test_ceilings():
    """Groups of two experts, one of which a token may reach."""
    limit = {"router.group_limit": "max", "router.num_groups": 4, "router.topk_group": 1}
    runs("kept", {**routing("kept", CHOICES), **limit})
    done, folder = ran("broken", {**routing("broken", CHOICES[:3] + [[0, 7]]), **limit})
    check(done.code == 3 and "ceilings" in done.err, f"broken limit: {done.code}: {done.err}")
    check(not passed(summary(folder), "ceilings"), "ceilings passes on a broken limit")


def test_weights():
    """Factors below 0, and scores whose sum is as small as the 1e-20 of the divisor."""
    for name, settings in {
        "negative": {"router.routed_scaling_factor": -2.5},
        "negative-normalised": {
            "router.routed_scaling_factor": -2.5,
            "router.norm_topk_prob": "yes",
        },
        "nothing": {"router.routed_scaling_factor": 0},
        "small": {
            "router.score_func": "sigmoid",
            "router.norm_topk_prob": "yes",
            "router.method": "round_robin",
            "router.gate_scale": 60,
        },
        "random-second": {
            "router.method": "gshard",
            "router.second_choice": "random",
            "router.norm_topk_prob": "yes",
            "router.routed_scaling_factor": -3,
        },
        "large": {"router.gate_scale": 100000},
    }.items():
        _, figures = runs(f"weights-{name}", {"router.top_k": 2, **settings})
        if figures:
            check(passed(figures, "weight_sums"), f"weights-{name}: weight_sums")
    tiny = [[-46.0 - e / 8 for e in range(8)]] * 4
    for norm in ("yes", "no"):
        settings = {"router.score_func": "sigmoid", "router.norm_topk_prob": norm}
        runs(f"tiny-{norm}", {**logits("tiny", tiny), **settings})


def test_training():
    """A recording has nothing to learn from, whichever it is and on any number of ranks."""
    rows = [[e / 8 for e in range(8)]] * 4
    train = {"run.mode": "train", "run.steps": 2, "router.top_k": 2, "balance.alpha_expert": 0.1}
    for source, settings in (
        ("routing", routing("train", CHOICES)),
        ("logits", logits("train", rows)),
    ):
        refused(f"train-{source}", {**settings, **train}, "run.mode = train", f"= {source}")


def test_beyond_numbers():
    """Without a norm, experts of the degree two square what they get in each layer: the logits of
    the last one are beyond 1e6, and the sentence says what to do."""
    settings = {
        "model.num_layers": 3,
        "model.norm": "none",
        "model.hidden_size": 1,
        "model.moe_intermediate_size": 9,
        "model.num_experts": 24,
        "model.expert_type": "lora",
        "model.lora_rank": 2,
        "model.lora_alpha": 16,
        "router.top_k": 6,
        "run.steps": 6,
    }
    done = moesim(1, "--quiet", "--force", "--out", "beyond", config("beyond", settings))
    check(done.code == 3, done.code, done.err)
    check("finite" in done.err and "model.norm = none" in done.err, done.err)


def test_diverged():
    """Training without a norm that ends in NaN fails `finite`, and no check that compares them."""
    path = os.path.join(TEMPORARY, "words.txt")
    with open(path, "w", encoding="ascii") as file:
        file.write("the quick brown fox jumps over the lazy dog. " * 60)
    settings = {
        "run.mode": "train",
        "run.steps": 60,
        "cluster.devices": 4,
        "cluster.devices_per_node": 1,
        "model.num_experts": 16,
        "model.hidden_size": 25,
        "model.moe_intermediate_size": 16,
        "model.num_layers": 3,
        "model.norm": "none",
        "model.attention": "mha",
        "model.num_heads": 1,
        "model.head_dim": 7,
        "router.score_func": "sqrtsoftplus",
        "router.group_limit": "max",
        "data.source": "text",
        "data.path": path,
        "data.tokens_per_device": 16,
        "data.sequence_length": 1,
        "train.learning_rate": 0.1,
        "train.schedule": "cosine",
    }
    done = moesim(1, "--quiet", "--force", "--out", "diverged", config("diverged", settings))
    check(done.code == 3 and "self-check finite: " in done.err, done.code, done.err)


def test_lost_tokens():
    """A token whose logits are all -inf, in the second layer."""
    rows = [[0.0] * 8] * 4 + [[0.0] * 8] * 2 + [[LOW] * 8] + [[0.0] * 8]
    lost = {**logits("lost", rows), "model.num_layers": 2, "router.top_k": 1}
    refused("lost", lost, "token 2 in layer 1", "data.mask")


test_logits()
test_training()
test_beyond_numbers()
test_diverged()
test_lost_tokens()
test_probabilities()
test_scores()
test_checks()
test_ceilings()
test_weights()
verdict()
