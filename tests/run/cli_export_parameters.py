"""ctest: timeout=180
moesim --export-parameters and train.save_final: the .npy files hold what a checkpoint holds, as a
reader of its own finds it, under any number of ranks; before the first step they are what training
starts from; a run goes on from its final state; damaged files and senseless words get one sentence.
"""
import glob
import os
import random
import shutil
import sys

from _moesim import (
    SOURCE,
    TEMPORARY,
    check,
    config,
    load,
    metrics,
    moesim,
    run,
    same_bytes,
    verdict,
)

sys.path.insert(0, os.path.join(SOURCE, "scripts"))
from run_lib.checkpoint import Unfit, checksum, read_checkpoint, xxh64  # noqa: E402

H, N, F, R, LAYERS, STEPS = 12, 8, 5, 2, 2, 6
COMMON = {
    "run.mode": "train",
    "run.steps": STEPS,
    "run.threads": 1,
    "cluster.devices": 4,
    "model.num_layers": LAYERS,
    "model.num_experts": N,
    "model.hidden_size": H,
    "model.moe_intermediate_size": F,
    "model.num_shared_experts": 1,
    "router.bias_update_rate": 0.001,
    "router.top_k": 2,
    "data.tokens_per_device": 32,
    "train.save_final": "yes",
    "train.checkpoint_every": STEPS,  # before the first step
}
LORA = {**COMMON, "model.expert_type": "lora", "model.lora_rank": R}
TEXT = {
    **COMMON,
    "data.source": "text",
    "data.path": os.path.join(SOURCE, "README.md"),
    "train.context": 2,
    "train.optimizer": "sgd",
    "placement.redundant_experts": 4,
}
SHAPES_LORA = {
    "gate": (N, H),
    "norm": (H,),
    "bias": (N,),
    "experts.base.w1": (F, H),
    "experts.base.w2": (H, F),
    "experts.base.w3": (F, H),
    "experts.a1": (N, R, H),
    "experts.a2": (N, R, F),
    "experts.a3": (N, R, H),
    "experts.b1": (N, F, R),
    "experts.b2": (N, H, R),
    "experts.b3": (N, F, R),
    "shared.w1": (F, H),
    "shared.w2": (H, F),
    "shared.w3": (F, H),
}
SHAPES_TEXT = {
    "gate": (N, H),
    "norm": (H,),
    "bias": (N,),
    "experts.w1": (N, F, H),
    "experts.w2": (N, H, F),
    "experts.w3": (N, F, H),
    "shared.w1": (F, H),
    "shared.w2": (H, F),
    "shared.w3": (F, H),
}
ENDS = {"embedding": (2 * 256, H), "head_norm": (H,), "head": (256, H)}


def of_layers(shapes):
    return {f"layer{l}.{name}": shape for l in range(LAYERS) for name, shape in shapes.items()}


def exported(ranks, folder, *words):
    done = moesim(ranks, "--export-parameters", folder, *words)
    check(done.code == 0, words, done.code, done.err)
    return {os.path.basename(p)[:-4]: load(p) for p in glob.glob(f"{folder}/*.npy")}


def check_same(arrays, tensors, what):
    check(set(arrays) == set(tensors), f"{what}: {set(arrays) ^ set(tensors)}")
    for name, tensor in tensors.items():
        found = arrays[name]
        check(tuple(found.shape) == tensor.shape, f"{what}, {name}: {found.shape}")
        check(found.dtype == "<" + tensor.kind, f"{what}, {name}: {found.dtype}")
        check(found.data == tensor.numbers(), f"{what}, {name}: the numbers differ")


def check_run(name, settings, shapes, has_state):
    folder = run(name, 2, settings)
    files = sorted(os.listdir(f"{folder}/checkpoints"))
    check(files == ["step-00000000.moe", f"step-{STEPS:08d}.moe"], files)
    first = read_checkpoint(f"{folder}/checkpoints/{files[0]}")
    last = read_checkpoint(f"{folder}/checkpoints/{files[1]}")
    check((first.step, last.step) == (0, STEPS), first.step, last.step)
    check("hidden_size = 12" in last.config, last.config)
    for ranks in (1, 2, 4):
        to = os.path.join(TEMPORARY, f"{name}-last-{ranks}")
        check_same(exported(ranks, to, "--resume", folder), last.tensors, f"{name}, np {ranks}")
        start = os.path.join(TEMPORARY, f"{name}-start-{ranks}")
        begun = exported(ranks, start, config(name, settings))
        values = {k: t for k, t in first.tensors.items() if not k.endswith((".m", ".v"))}
        check_same(begun, values, f"{name} at its start, np {ranks}")
    check({k: t.shape for k, t in values.items()} == shapes, f"{name}: shapes")
    parameters = [k for k in shapes if not k.endswith(".bias") and ".base." not in k]
    check(
        has_state == all(f"{k}.{part}" in last.tensors for k in parameters for part in "mv"), name
    )
    for k in shapes:
        moved = first.tensors[k].numbers() != last.tensors[k].numbers()
        check(moved == (".base." not in k), f"{name}: {k} moved: {moved}")
    return folder


def check_alone(folder):
    """Without another folder the files stand in that of the run, and --force writes them again."""
    exported(1, folder)
    done = moesim(1, "--export-parameters", folder)
    check(done.code == 2 and "--force" in done.err, done.code, done.err)
    with open(f"{folder}/parameters/layer0.gate.npy", "wb") as file:
        file.write(b"other")
    exported(2, folder, "--force")
    names = os.listdir(f"{folder}/parameters")
    for name in names:
        same = same_bytes(f"{folder}/parameters/{name}", f"{TEMPORARY}/lora-last-1/{name}")
        check(same, f"{name} differs in the run's folder")
    check(len(names) == len(os.listdir(f"{TEMPORARY}/lora-last-1")), names)
    exported(1, folder, "--out", os.path.join(TEMPORARY, "elsewhere"))
    check(os.path.exists(f"{TEMPORARY}/elsewhere/layer1.gate.npy"), "--out")


def check_goes_on(folder):
    """From the final state as if the run had been longer from the beginning."""
    longer = run("longer", 2, {**LORA, "run.steps": STEPS + 3})
    copy = os.path.join(TEMPORARY, "copy")
    shutil.copytree(folder, copy)
    done = moesim(4, "--resume", copy, "--set", f"run.steps={STEPS + 3}", "--quiet")
    check(done.code == 0, done.err)
    losses = [[line["task_loss"] for line in metrics(f)] for f in (longer, copy)]
    check(losses[0] == losses[1] and len(losses[0]) == STEPS + 3, losses)
    os.remove(f"{copy}/summary.json")
    done = moesim(2, "--resume", copy, "--quiet")
    words = "after the last of"
    check(done.code == 2 and words in done.err and done.err.count("\n") == 1, done.err)


def refused(path, folder, label):
    """By the program, which has no other checkpoint, and by the reader."""
    done = moesim(1, "--export-parameters", os.path.join(TEMPORARY, "none"), "--resume", folder)
    check(done.code == 2 and done.err.count("\n") == 1, f"{label}: {done.code} {done.err}")
    try:
        read_checkpoint(path)
        check(False, f"{label}: the reader took it")
    except Unfit as why:
        check(len(str(why)) > 10, why)


def check_damaged(folder):
    draw = random.Random(5)
    copy = os.path.join(TEMPORARY, "damaged")
    shutil.copytree(folder, copy)
    os.remove(f"{copy}/checkpoints/step-00000000.moe")
    path = f"{copy}/checkpoints/step-{STEPS:08d}.moe"
    with open(path, "rb") as file:
        whole = file.read()

    def put(content):
        with open(path, "wb") as file:
            file.write(content)

    for length in (0, 7, 39, 40, 200, len(whole) // 2, len(whole) - 1):
        put(whole[:length])
        refused(path, copy, f"{length} bytes")
    put(whole + b"\0")
    refused(path, copy, "a byte more")
    places = [0, 8, 16, 24, 32, 40, len(whole) - 1] + [draw.randrange(len(whole)) for _ in range(9)]
    for at in places:
        put(whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :])
        refused(path, copy, f"byte {at} flipped")
    check(not os.path.exists(os.path.join(TEMPORARY, "none")), "a folder for nothing")
    put(whole)
    exported(1, os.path.join(TEMPORARY, "whole"), "--resume", copy)


def check_names(folder):
    """A name in a file that leads elsewhere, with right checksums."""
    copy = os.path.join(TEMPORARY, "crafted")
    shutil.copytree(folder, copy)
    os.remove(f"{copy}/checkpoints/step-00000000.moe")
    path = f"{copy}/checkpoints/step-{STEPS:08d}.moe"
    with open(path, "rb") as file:
        content = file.read()
    for name in (b"/../../gate", b"...../gate.", b"layer0.bate"):
        put = content.replace(b'"layer0.gate"', b'"' + name + b'"')
        put = put.replace(b'"layer0.gate"', b'"' + name + b'"')
        end = 40 + int.from_bytes(put[32:40], "little")
        put = put[:8] + checksum(put[16:end]).to_bytes(8, "little") + put[16:]
        with open(path, "wb") as file:
            file.write(put)
        to = os.path.join(TEMPORARY, "crafted", "to")
        done = moesim(2, "--export-parameters", to, "--resume", copy, "--force")
        good = name == b"layer0.bate"
        check(done.code == (0 if good else 2), name, done.code, done.err)
        check(good or "damaged" in done.err, done.err)


def check_words(folder):
    ini = config("words", COMMON)
    for words, part in (
        (["x", "--check", ini], "--check"),
        (["x", "--dialects", ini], "--dialects"),
        (["x", "--explain", "1", ini], "--explain"),
        (["x", "--out", "y", ini], "--out"),
        (["x", "--resume", folder, "--set", "run.steps=9"], "--set"),
        (["x", "--resume", folder, ini], "CONFIG"),
        ([os.path.join(TEMPORARY, "nowhere")], "nowhere"),
        ([ini], "words.ini"),
        ([os.path.dirname(folder)], "no checkpoints"),
        ([ini, ini], "not a folder"),
        (["/proc/x", ini], "/proc/x"),
        (["", ini], "1 to"),
    ):
        done = moesim(1, "--export-parameters", *words)
        check(done.code == 2 and part in done.err, words, done.code, done.err)
        check(done.err.count("\n") == 1, words, done.err)
    forward = {k: v for k, v in COMMON.items() if not k.startswith(("run.mode", "train", "router"))}
    arrays = exported(2, os.path.join(TEMPORARY, "forward"), config("forward", forward))
    check(arrays["layer1.gate"].shape == (N, H) and "layer0.bias" not in arrays, list(arrays))


def check_attention():
    """Starting weights of mla, 2 heads of 4 + 2 with r = 6, r_q = 0, are the same arrays whether
    the run goes forward or trains.
    """
    heads, width, rope, rank = 2, 4, 2, 6
    mla = {
        "model.attention": "mla",
        "model.num_heads": heads,
        "model.head_dim": width,
        "model.rope_dim": rope,
        "model.kv_lora_rank": rank,
        "model.q_lora_rank": 0,
        "data.sequence_length": 32,
    }
    wanted = {
        "norm": (H,),
        "w_q": (heads * (width + rope), H),
        "w_dkv": (rank, H),
        "kv_norm": (rank,),
        "w_kr": (rope, H),
        "w_uk": (heads * width, rank),
        "w_uv": (heads * width, rank),
        "w_o": (H, heads * width),
    }
    train = {**COMMON, **mla}
    forward = {k: v for k, v in train.items() if not k.startswith(("run.mode", "train", "router"))}
    made = [
        exported(2, os.path.join(TEMPORARY, f"attention-{name}"), config(f"attention-{name}", c))
        for name, c in (("forward", forward), ("train", train))
    ]
    for layer in range(LAYERS):
        for name, shape in wanted.items():
            name = f"layer{layer}.attention.{name}"
            found = [arrays[name] for arrays in made if name in arrays]
            check(len(found) == 2 and found[0].shape == shape, name, [a.shape for a in found])
            check(all(a.data == found[0].data for a in found), name)
    count = sum(".attention." in name for name in made[0])
    check(count == LAYERS * len(wanted), list(made[0]))


check(xxh64(b"Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1, "xxh64")
check(xxh64(b"a") == checksum(b"a") == 0xD24EC4F1A98C6E5B, "xxh64")
lora = check_run("lora", LORA, of_layers(SHAPES_LORA), True)
check_run("text", TEXT, {**of_layers(SHAPES_TEXT), **ENDS}, False)
check_alone(lora)
check_goes_on(lora)
check_damaged(lora)
check_names(lora)
check_words(lora)
check_attention()
verdict()
