"""ctest: timeout=200
--explain and --explain-step from outside: the same on any number of ranks, nothing else of a run
changes, the numbers add up and are those of summary.json, for many kinds of routing, dropping, data
and training; what cannot be shown is said; mistakes get one sentence.
"""
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios

from _moesim import (
    TEMPORARY,
    check,
    command,
    config,
    environment,
    load,
    metrics,
    moesim,
    near,
    save,
    summary,
    verdict,
)
from _report import Page, report

BASE = {
    "run.steps": 1,
    "model.hidden_size": 16,
    "model.num_experts": 16,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "cluster.devices": 4,
    "data.tokens_per_device": 16,
    "data.sequence_length": 8,
    "data.topic_strength": 0.7,
    "router.gate_scale": 1.5,
    "balance.alpha_expert": 0.01,
    "output.timeline": "no",
}
TEXT = (
    b"To be, or not to be:\n\tthat is the \x1b[31mquestion\x1b[0m \xe2\x80\x94 whether 'tis nobler"
    b" in the mind to suffer \\ and so on\r\n" * 40
)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def text_file():
    with open("text.txt", "wb") as file:
        file.write(TEXT)
    return os.path.abspath("text.txt")


def training(**more):
    return {
        **BASE,
        "run.mode": "train",
        "run.steps": 3,
        "data.source": "text",
        "data.path": text_file(),
        "data.tokens_per_device": 32,
        "train.validation_every": 0,
        "train.context": 4,
        "model.norm": "rmsnorm",
        "model.num_layers": 2,
        "model.num_shared_experts": 1,
        "balance.alpha_comm": 0.02,
        "balance.z_loss": 0.001,
        **more,
    }


CASES = {  # name -> (settings, words on the screen)
    "deepseek_v2": (
        {
            **BASE,
            "router.group_limit": "max",
            "router.topk_group": 2,
            "balance.alpha_device": 0.05,
            "model.num_shared_experts": 1,
        },
        ("device limit", "the best 2 of 4 are admitted", "shared experts", "not admitted"),
    ),
    "deepseek_v3": (
        {
            **BASE,
            "router.score_func": "sigmoid",
            "router.norm_topk_prob": "yes",
            "router.group_limit": "top2_sum",
            "router.topk_group": 2,
            "router.bias_file": "BIAS",
            "cluster.devices_per_node": 2,
        },
        (
            "s + bias",
            "sum of its two best",
            "s / sum of the chosen s",
            "same node",
            "s / sum of the token's s",
        ),
    ),
    "gshard": (
        {
            **BASE,
            "router.method": "gshard",
            "router.top_k": 2,
            "router.second_choice": "random",
            "balance.aux_form": "gshard",
            "capacity.policy": "expert",
            "capacity.capacity_factor": 0.5,
            "capacity.drop": "position",
            "router.norm_topk_prob": "yes",
        },
        ("a second", "room for", "earlier tokens first", "gshard"),
    ),
    "top_p": (
        {**BASE, "router.method": "top_p", "router.top_p": 0.5, "router.top_k": 6},
        ("router.top_p = 0.5",),
    ),
    "expert_choice": ({**BASE, "router.method": "expert_choice"}, ("experts choose",)),
    "sinkhorn": ({**BASE, "router.method": "sinkhorn", "router.top_k": 2}, ("sinkhorn",)),
    "random": ({**BASE, "router.method": "random"}, ("chance decides",)),
    "dropping": (
        {
            **BASE,
            "capacity.policy": "device",
            "capacity.capacity_factor": 0.4,
            "exchange.mode": "selection",
            "router.top_k": 2,
        },
        ("higher scores first", "every choice was dropped", "nothing comes back: y = 0"),
    ),
    "two_level": (
        {
            **BASE,
            "router.top_k": 4,
            "exchange.mode": "two_level",
            "exchange.node_sum": "no",
            "cluster.devices_per_node": 2,
        },
        ("one to each node, then one to each device there", "rows come back", "of each hop"),
    ),
    "text": ({**BASE, "data.source": "text", "data.path": "TEXT"}, ('text       "',)),
    "training": (
        training(),
        ("dL/dg", "task", "and both again for the gradients", "Layer 1", "u = rmsnorm(x)"),
    ),
    "accumulated": (training(**{"train.accumulate": 2}), ("the last of the 2 micro-batches",)),
    "logits": ({**BASE, "data.source": "logits", "data.path": "LOGITS"}, ("-inf",)),
}


def settings_of(name):
    settings = dict(CASES[name][0])
    made = {
        "BIAS": lambda: save("bias.npy", "<f8", (16,), [0.01 * (i % 5) for i in range(16)]),
        "TEXT": text_file,
        "LOGITS": lambda: save(
            "logits.npy",
            "<f4",
            (64, 16),
            [float("-inf") if i % 16 == 3 else (i * 37 % 101) / 25 for i in range(64 * 16)],
        ),
    }
    return {key: made[value]() if value in made else value for key, value in settings.items()}


def explanation(text):
    """What is shown of the token and the derivation, without the ranks that host devices."""
    part = text[text.index("\nToken ") : text.index("\nBalance losses")]
    lines, rows = [], False
    for line in part.splitlines():
        rows = line.startswith("  to device  rank") or (
            rows and re.match(r" +(\d+ > )?\d+ +\d+ ", line) is not None
        )
        lines.append(line[:11] + line[17:] if rows else re.sub(r"\(rank \d+\)", "", line))
    return lines


def without_ranks(value):
    if isinstance(value, dict):
        return {key: without_ranks(one) for key, one in value.items() if key != "rank"}
    return [without_ranks(one) for one in value] if isinstance(value, list) else value


def untimed(value):
    return {key: one for key, one in value.items() if key not in ("time", "machine", "ranks")}


def explain_of(folder):
    with open(os.path.join(folder, "explain.json")) as file:
        return json.load(file)


# --- numbers ---


def check_token(name, token, layer, whole):
    """One layer of the token against itself and the summary's layer."""
    choices, normal = layer["choices"], summary(name)["config"]
    served = [choice for choice in choices if choice["served_by"] is not None]
    for choice in choices:
        if layer["weight_divisor"] is not None:
            g = choice["score"] / layer["weight_divisor"] * layer["weight_factor"]
            check(
                near(g, choice["weight"], 1e-5),
                f"{name}: weight {choice['weight']}, by its formula {g}",
            )
    shares = [choice["part_of_y"] for choice in served] + [layer["output"]["shared_part_of_y"] or 0]
    if layer["output"]["y_norm"]:
        check(near(sum(shares), 1, 1e-4), f"{name}: parts of y add up to {sum(shares)}")
    for hop in {row["hop"] for row in layer["rows"]}:
        pairs = sum(row["pairs"] for row in layer["rows"] if row["hop"] == hop)
        check(pairs == len(served), f"{name}: rows {layer['rows']}")
    check(
        all(row["bytes"] == 4 * normal["model"]["hidden_size"] for row in layer["rows"]),
        f"{name}: bytes of rows",
    )
    scores = layer["score"]
    check(
        len(scores) == 16
        and all(scores[choice["expert"]] == choice["score"] for choice in choices),
        f"{name}: scores",
    )
    if token["micro_batches"] == 1:
        for loss, value in whole["loss_raw"].items():
            check(near(layer["loss"][loss]["batch"], value, 1e-14), f"{name}: {loss} of the batch")
    total = [
        sum(layer["gradient"][part][i] for part in layer["gradient"] if part in layer["loss"])
        for i in range(16)
    ]
    check(
        all(abs(a - b) < 1e-12 for a, b in zip(total, layer["gradient"]["balance"])),
        f"{name}: gradients of the losses",
    )
    if "task" in layer["gradient"]:
        for balance, task, both in zip(
            *(layer["gradient"][part] for part in ("balance", "task", "total"))
        ):
            check(abs(balance + task - both) < 1e-12, f"{name}: {balance} + {task} is not {both}")


def check_step(name, steps):
    """Derived figures equal summary.json's."""
    by_name = {(one["name"], one["layer"]): one for one in steps if one["micro_batch"] is None}
    whole = summary(name)
    check(
        all(one["agrees"] for one in steps) and len(steps) >= 60,
        f"{name}: {[one for one in steps if not one['agrees']]}",
    )
    volume = whole["volume"]["dispatch"]
    wanted = {
        "rows of dispatch": volume["rows"],
        "payload of dispatch": volume["logical_bytes"],
        "payload of dispatch to other devices": volume["remote_bytes"],
        "metadata of dispatch": volume["metadata_bytes"],
        "one row per selection would be": volume["selection_bytes"],
        "experts, selections: max/mean": whole["balance"]["expert"]["max_over_mean"],
        "devices, selections: CV": whole["balance"]["device"]["cv"],
        "devices, rows received: Gini": whole["balance"]["received"]["gini"],
        "experts, selections: entropy": whole["balance"]["expert"]["entropy"],
    }
    for figure, value in wanted.items():
        check(
            near(by_name[figure, None]["value"], value, 1e-11),
            f"{name}: {figure} {by_name[figure, None]['value']}, not {value}",
        )
    for index, layer in enumerate(whole["layers"]):
        check(
            near(
                by_name["mean devices per token", index]["value"],
                layer["mean_devices_per_token"],
                1e-12,
            ),
            f"{name}: devices per token",
        )
        for figure, loss in (
            ("expert loss", "expert"),
            ("communication loss", "comm"),
            ("z loss", "z"),
            ("usage variance", "usage_variance"),
        ):
            one = (
                by_name.get((figure, index)) or by_name[figure + ", mean over micro-batches", index]
            )
            check(
                near(one["value"], layer["loss_raw"][loss], 1e-11),
                f"{name}: {figure} of layer {index}",
            )


def check_case(name):
    settings, words = settings_of(name), CASES[name][1]
    path, shown = config(name, settings), {}
    for ranks in (1, 4):
        folder = f"{name}-{ranks}"
        done = moesim(ranks, "--explain", 37, "--explain-step", "--out", folder, path)
        if not check(
            done.code == 0 and done.err == "",
            f"{name} at np {ranks}: status {done.code}: {done.err}",
        ):
            return
        check(
            not CONTROL.findall(done.out)
            and all(len(line) <= 80 for line in explanation(done.out)),
            (
                f"{name}: control characters or long lines:"
                f" {[line for line in explanation(done.out) if len(line) > 80][:2]}"
            ),
        )
        shown[ranks] = explanation(done.out)
    flat = re.sub(r"\s+", " ", "\n".join(shown[1]))
    check(
        shown[1] == shown[4],
        (
            f"{name}: np 1 and 4 differ:"
            f" {[pair for pair in zip(shown[1], shown[4]) if pair[0] != pair[1]][:3]}"
        ),
    )
    missing = [word for word in words if re.sub(r"\s+", " ", word) not in flat]
    check(not missing, f"{name}: {missing} not in {flat[:3000]}")
    one, four = explain_of(f"{name}-1"), explain_of(f"{name}-4")
    check(without_ranks(one) == without_ranks(four), f"{name}: explain.json of np 1 and 4 differ")
    os.rename(f"{name}-1", name)
    for layer, whole in zip(one["token"]["layers"], summary(name)["layers"]):
        check_token(name, one["token"], layer, whole)
    check_step(name, one["step"])


def check_narrow():
    """A terminal of 60 columns: no line is longer."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    path = config(
        "narrow",
        training(
            **{
                "router.bias_file": save("bias.npy", "<f8", (16,), [0.01] * 16),
                "balance.alpha_device": 0.1,
            }
        ),
    )
    around = {**environment(TERM="xterm"), "NO_COLOR": "1"}
    process = subprocess.Popen(
        command(1, "--explain", 3, "--explain-step", "--out", "narrow", path),
        env=around,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            part = b""
        if not part:
            break
        shown += part
    os.close(ours)
    check(process.wait() == 0, "on a terminal: status is not 0")
    lines = explanation(shown.decode().replace("\r", ""))
    check(
        len(lines) > 100 and all(len(line) <= 60 for line in lines),
        f"narrow: {[line for line in lines if len(line) > 60][:4]}",
    )


def check_unchanged():
    """Whoever looks changes nothing."""
    path = config("unchanged", training(**{"output.routing": "yes"}))
    for folder, options in (("watched", ("--explain", 5, "--explain-step")), ("unwatched", ())):
        done = moesim(2, *options, "--out", folder, "--quiet", path)
        check(
            done.code == 0 and done.out == "", f"{folder}: status {done.code}: {done.err}{done.out}"
        )
    check(
        untimed(summary("watched")) == untimed(summary("unwatched")),
        "the summary changes with --explain",
    )
    check(
        [untimed(line) for line in metrics("watched")]
        == [untimed(line) for line in metrics("unwatched")],
        "the metrics change with --explain",
    )
    check(
        load("watched/topk_weight.npy").data == load("unwatched/topk_weight.npy").data,
        "the routing changes with --explain",
    )
    check(
        os.path.exists("watched/explain.json") and not os.path.exists("unwatched/explain.json"),
        "explain.json",
    )
    done = moesim(1, "--force", "--out", "watched", "--quiet", path)
    check(
        done.code == 0 and not os.path.exists("watched/explain.json"),
        "--force leaves an old explain.json behind",
    )


def check_text():
    """The token and its context, with control characters escaped."""
    token = explain_of("text")["token"]
    shown, raw = token["text"], TEXT * 2
    escaped = "".join(
        {10: "\\n", 9: "\\t", 13: "\\r", 92: "\\\\"}.get(
            byte, chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"
        )
        for byte in raw
    )
    check(
        shown["before"] + shown["token"] + shown["after"] in escaped and shown["token"],
        f"text: {shown}",
    )
    check(
        token["position"] == 37 % 8 and token["sequence"] == 4,
        f"text: place {token['position']} of sequence {token['sequence']}",
    )


def check_recorded():
    """A recorded routing: with scores all but logits and gradients; without them a sentence says
    why there is little.
    """
    picks = [(token + k * 5) % 16 for token in range(64) for k in range(3)]
    base = {**BASE, "data.source": "routing", "data.path": save("picks.npy", "<i4", (64, 3), picks)}
    scored = {**base, "data.scores": save("scores.npy", "<f8", (64, 16), [1 / 16] * 1024)}
    for name, settings, says in (("recorded", base, True), ("scored", scored, False)):
        done = moesim(2, "--explain", 9, "--explain-step", "--out", name, config(name, settings))
        check(done.code == 0, f"{name}: status {done.code}: {done.err}")
        flat = re.sub(r"\s+", " ", done.out)
        check(
            ("cannot be shown, for all of them are made from scores" in flat) == says,
            f"{name}: what is said about scores",
        )
        layer = explain_of(name)["token"]["layers"][0]
        check(
            [choice["expert"] for choice in layer["choices"]]
            == sorted((9 + k * 5) % 16 for k in range(3)),
            f"{name}: {layer['choices']}",
        )
        check(
            (layer["score"] is None) == says
            and layer["logit"] is None
            and layer["gradient"] is None,
            f"{name}: scores and gradients",
        )
        check(all(one["agrees"] for one in explain_of(name)["step"]), f"{name}: derivation")


def page_of(label, folder, library):
    done = report(folder, "--plotly", library)
    good = check(
        done.returncode == 0 and done.stderr == "",
        f"{label}: status {done.returncode}: {done.stdout}{done.stderr}",
    )
    return Page(done.stdout.strip()) if good else None


def check_report():
    """The page shows the numbers of explain.json; a damaged one is said and left out."""
    library = os.path.join(TEMPORARY, "stand-in.js")
    with open(library, "w") as file:
        file.write("var Plotly = {react() {}};\n")
    if "NumPy and Jinja2" in report("--help").stderr:
        print("the report was not tested: it needs python3-numpy and python3-jinja2")
        return
    for name in ("deepseek_v3", "dropping", "accumulated", "recorded"):
        page, told = page_of(name, name, library), explain_of(name)
        if not page:
            continue
        drawn, layer = page.runs[0]["explain"]["layers"][0], told["token"]["layers"][0]
        check(
            not page.banners
            and "One token's way" in page.words
            and "Where the figures come from" in page.words,
            f"{name}: {page.banners}",
        )
        check(
            all(one["name"] in page.words for one in told["step"]), f"{name}: figures are missing"
        )
        check((drawn["scores"] is None) == (layer["score"] is None), f"{name}: scores")
        if drawn["scores"]:
            check(
                [one["score"] for one in drawn["scores"]]
                == [layer["score"][one["expert"]] for one in drawn["scores"]]
                and len(drawn["scores"]) == 16,
                f"{name}: the scores drawn",
            )
            kinds = {one["expert"]: one["kind"] for one in drawn["scores"]}
            check(
                all(
                    kinds[one["expert"]]
                    == ("chosen" if one["served_by"] is not None else "dropped")
                    for one in layer["choices"]
                ),
                f"{name}: {kinds}",
            )
        check(
            [one["norm"] for one in drawn["outputs"]][: len(layer["choices"])]
            == [
                one["contribution_norm"] for one in layer["choices"] if one["served_by"] is not None
            ],
            f"{name}: what comes back",
        )
    told = json.dumps(explain_of("training"))
    for label, spoilt in (
        ("cut", told[:900]),
        ("text for a number", told.replace('"part_of_y": ', '"part_of_y": "x", "was": ')),
        ("without a key", told.replace('"rows"', '"lines"')),
        ("nan", told.replace('"counted_tokens": 128', '"counted_tokens": NaN')),
    ):
        with open("training/explain.json", "w") as file:
            file.write(spoilt)
        page = page_of(label, "training", library)
        check(
            page
            and "explain.json is damaged" in " ".join(page.banners)
            and "One token's way" not in page.words,
            f"{label}: {page and page.banners}",
        )


def check_columns():
    """More losses than columns: the last one is all others, and the row adds up. A loss that is
    known after the last layer only is said to be left out.
    """
    many = {
        **BASE,
        "balance.alpha_device": 0.05,
        "balance.alpha_comm": 0.02,
        "balance.z_loss": 0.01,
        "balance.importance_loss": 0.1,
    }
    done = moesim(2, config("many", many), "--explain", "5", "--out", "many")
    rows = re.findall(
        r"^ +\d+((?: +-?\d+\.\d+){5})(?:  chosen)?$",
        done.out.split("the gradient of its logits")[-1],
        re.M,
    )
    check(
        done.code == 0 and " others " in done.out and len(rows) > 3,
        f"many losses: {done.code}, {len(rows)} rows",
    )
    for row in rows:
        *parts, whole = map(float, row.split())
        check(
            abs(sum(parts) - whole) <= 0.02 + 1e-3 * max(map(abs, parts)),
            f"columns {parts} do not add up to {whole}",
        )
    layers = {
        **BASE,
        "model.num_layers": 2,
        "balance.aux_form": "mixtral",
        "balance.aux_layers": "all",
    }
    said = " ".join(
        moesim(2, config("layers", layers), "--explain", "5", "--out", "layers").out.split()
    )
    check(
        "mixtral of all layers together (alpha 0.01) is not in what follows" in said
        and "no other balance loss" in said,
        "left out without a word",
    )


def check_mistakes():
    path = config("mistakes", BASE)
    for options, words in (
        (("--explain", "x"), "--explain x: the number of a token is expected"),
        (("--explain", "-1"), "the number of a token is expected"),
        (("--explain", "3.5"), "the number of a token is expected"),
        (("--explain=",), "the number of a token is expected"),
        (("--explain", "9" * 30), "the number of a token is expected"),
        (("--explain", 64), "a step has 64 (0 to 63)"),
        (("--explain", 1, "--check"), "--check makes none"),
        (("--explain-step", "--dialects"), "--explain-step looks at the last step of a run"),
        (("--explain", 1, "--verify"), "--verify makes none"),
        (("--explain-step=1",), "unknown option"),
    ):
        done = moesim(2, *options, path, "--out", "mistaken")
        check(
            done.code == 2 and words in done.err and len(done.err.splitlines()) == 1,
            f"{options}: status {done.code}: {done.err}",
        )
        check(not os.path.exists("mistaken"), f"{options}: a folder is left behind")
    done = moesim(1, "--explain")
    check(
        done.code == 2 and "--explain needs a value" in done.err,
        f"--explain alone: status {done.code}: {done.err}",
    )


for case in CASES:
    check_case(case)
check_columns()
check_narrow()
check_unchanged()
check_text()
check_recorded()
check_mistakes()
check_report()
verdict()
