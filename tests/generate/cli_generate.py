"""ctest: timeout=240
A tiny model is trained for some steps and continues prompts: the same text twice, on 1, 2, 3, 4
and 8 ranks, from config.ini again, on other devices and without the text of the training; what the
results say of prefill and decode; and what is refused.
"""
import os
import random

from _moesim import TEMPORARY, check, metrics, moesim, run, summary, verdict

WORDS = "to be or not that is the question whether it is nobler in the mind".split()


def text_file(name, length):
    draw, text = random.Random(3), ""
    while len(text) < length:
        text += draw.choice(WORDS) + " "
    path = os.path.join(TEMPORARY, name)
    with open(path, "w") as file:
        file.write(text[:length])
    return path


TRAIN = {
    "run.mode": "train",
    "run.steps": 12,
    "model.num_layers": 2,
    "model.hidden_size": 24,
    "model.num_experts": 24,
    "model.moe_intermediate_size": 8,
    "model.attention": "mla",
    "model.num_heads": 3,
    "router.top_k": 3,
    "router.bias_update_rate": 0.01,
    "cluster.devices": 24,
    "data.source": "text",
    "data.path": text_file("words.txt", 24000),
    "data.tokens_per_device": 40,
    "data.sequence_length": 40,
    "train.context": 1,
    "train.learning_rate": 0.02,
    "train.save_final": "yes",
}
LONG = 60  # bytes that a sequence of 40 has no room for


def arguments(model, **changes):
    found = {"run.mode": "generate", "generate.prompt": "to be or\\s", **changes}
    return [
        "--resume",
        model,
        *(word for key, value in found.items() for word in ("--set", f"{key}={value}")),
    ]


def generated(name, ranks, model, **changes):
    done = moesim(ranks, *arguments(model, **changes), "--out", name)
    check(done.code == 0, f"{name}: {done.code} {done.err}")
    with open(os.path.join(name, "generated.txt"), encoding="utf-8") as file:
        return file.read(), done.out


def check_same(kind, model):
    text, shown = generated(f"{kind}-a", 2, model)
    check(text.count("=== sequence ") == 24, text[:400])
    first = text.split("\n=== sequence 1,")[0].split("===\n")[1]
    check(first.startswith("to be or ") and len(first) >= 41, f"{kind}: {first!r}")
    check(first in shown, f"{kind}: the screen does not show {first!r}")
    for ranks in (1, 3, 4, 8) if kind == "mla" else (3,):
        again, _ = generated(f"{kind}-{ranks}", ranks, model)
        check(again == text, f"{kind}: another text on {ranks} ranks")
    repeated = moesim(2, os.path.join(f"{kind}-a", "config.ini"), "--out", f"{kind}-b")
    with open(os.path.join(f"{kind}-b", "generated.txt"), encoding="utf-8") as file:
        check(repeated.code == 0 and file.read() == text, f"{kind}: config.ini: {repeated.err}")
    other, _ = generated(f"{kind}-c", 2, model, **{"run.seed": 5})
    check(other != text, f"{kind}: the seed changes nothing")
    greedy, _ = generated(f"{kind}-d", 2, model, **{"generate.temperature": 0, "run.seed": 5})
    lines = greedy.split("\n=== sequence ")
    check(len({part.split("===\n")[1].strip() for part in lines}) == 1, f"{kind}: {greedy[:300]}")
    return text


def check_results(folder):
    found, lines = summary(folder), metrics(folder)
    steps = found["config"]["generate"]["max_new_tokens"]
    check(steps == 40 - len("to be or ") + 1 == found["steps"] == len(lines), steps)
    prefill, decode = found["generate"]["prefill"], found["generate"]["decode"]
    check(prefill["tokens_per_device"] == 9 and decode["tokens_per_device"] == 1, found["generate"])
    check(prefill["steps"] == 1 and decode["steps"] == steps - 1, found["generate"])
    check([line["num_tokens"] for line in lines] == [24 * 9] + [24] * (steps - 1), "num_tokens")
    for line in lines:  # the rows of a pass are those that the volume counts
        rows = line["volume"]["dispatch"]["rows"] / (2 * line["num_tokens"])
        check(abs(line["generate"]["rows_per_token"] - rows) < 1e-9, line["step"])
        bytes_ = sum(line["volume"][way]["logical_bytes"] for way in ("dispatch", "combine"))
        check(line["generate"]["bytes"] == bytes_, line["step"])
    mean = sum(line["generate"]["active_experts"] for line in lines[1:]) / (steps - 1)
    check(abs(decode["active_experts"] - mean) < 1e-9, decode)
    check(abs(decode["rows_per_expert"] * mean - 24 * 3) < 1e-6, decode)
    check(found["generate"]["cache_places"] == 40, found["generate"])


def check_refused(model, forward):
    for words, sentence in (
        (arguments(model, **{"generate.prompt": ""}), "the prompt is empty"),
        (arguments(model, **{"generate.prompt": "x" * LONG}), "has 60 bytes"),
        (arguments(model, **{"generate.max_new_tokens": LONG}), "at most 32"),
        (arguments(model, **{"generate.prompt": "a\\q"}), "a backslash stands in front of"),
        (arguments(model, **{"generate.prompt": "a\x1b[2J"}), "control characters"),
        (arguments(model, **{"generate.prompts": "none"}), "one of the two"),
        (arguments(model, **{"generate.temperature": "hot"}), "a number from 0"),
        (arguments(model, **{"model.num_heads": 2}), "model.num_heads was 3"),
        (arguments(model, **{"capacity.policy": "device"}), "--set capacity.policy=none"),
        (arguments(forward), "has no checkpoints"),
        (arguments("nowhere"), "nowhere"),
        ([*arguments(model), "--explain", "0"], "leave it out"),
        (["--set", "run.mode=generate", f"{forward}/config.ini"], "--resume RUN"),
    ):
        done = moesim(2, *words)
        check(done.code == 2 and sentence in done.err, f"{words}: {done.code} {done.err!r}")
        check(done.err.count("\n") == 1, f"{words}: {done.err!r}")


def check_prompts(model):
    """Prompts of different lengths: each is continued as it would be alone."""
    with open("prompts.txt", "w") as file:
        file.write("to be\n\nwhether it is nobler\r\nthe\n")
    several, _ = generated("several", 2, model, **{"generate.prompt": "", **PROMPTS})
    check("\nwhether it is nobler" in several, several[:500])
    alone, _ = generated("alone", 2, model, **{"generate.prompt": "to be", **FEW})
    check(several.split("\n=== sequence 1,")[0] == alone.split("\n=== sequence 1,")[0], several)


FEW = {"generate.max_new_tokens": 12, "generate.temperature": 0}
PROMPTS = {"generate.prompts": "prompts.txt", **FEW}


def main():
    model = run("mla", 2, TRAIN)
    text = check_same("mla", model)
    check_results("mla-a")
    check_prompts(model)
    twice, _ = generated("twice", 2, model, **{"generate.sequences_per_device": 2})
    more, _ = generated("devices", 2, model, **{"cluster.devices": 12, **CLUSTER})
    for name, other in (("two a device", twice), ("twelve devices", more)):
        check(other.split("\n")[1] == text.split("\n")[1], f"{name}: {other[:200]}")
    for kind, changes in (
        ("mha", {"model.attention": "mha", "model.num_kv_heads": 1}),
        ("none", {"model.attention": "none", "train.context": 6}),
    ):
        check_same(kind, run(kind, 2, {**TRAIN, **changes}))
    dropping = {**TRAIN, "run.steps": 2, "capacity.policy": "device"}
    generated("capacity", 2, run("dropping", 2, dropping))
    check(summary("capacity")["config"]["capacity"]["policy"] == "none", "a capacity stays")
    forward = run("forward", 2, {**TRAIN, "run.mode": "forward", "train.save_final": "no"})
    os.remove(TRAIN["data.path"])
    check(generated("no-text", 2, model)[0] == text, "without the text of the training")
    check_refused(model, forward)
    verdict()


CLUSTER = {"cluster.devices_per_node": 6}

main()
