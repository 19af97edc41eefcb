"""ctest: timeout=120
Checkpoints whose checksums are right and whose contents are not: anybody can make them. They are
refused with one sentence, or are not used; nothing is read or written outside an array.
"""
import glob
import json
import os
import shutil
import struct

from _moesim import TEMPORARY, check, metrics, moesim, run, verdict

TRAINING = {
    "run.mode": "train",
    "run.steps": 5,
    "model.hidden_size": 8,
    "model.num_experts": 8,
    "model.moe_intermediate_size": 4,
    "router.top_k": 2,
    "router.bias_update_rate": 0.001,
    "cluster.devices": 2,
    "data.tokens_per_device": 8,
    "train.checkpoint_every": 4,
}
MASK = 2**64 - 1
P1, P2, P3, P4, P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)


def rotated(x, bits):
    return (x << bits | x >> (64 - bits)) & MASK


def mixed(acc, word):
    return rotated((acc + word * P2) & MASK, 31) * P1 & MASK


def xxh64(data):
    """XXH64 with seed 0 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md)."""
    at, end = 0, len(data)
    if end >= 32:
        acc = [(P1 + P2) & MASK, P2, 0, -P1 & MASK]
        while at + 32 <= end:
            acc = [mixed(a, w) for a, w in zip(acc, struct.unpack_from("<4Q", data, at))]
            at += 32
        h = sum(rotated(a, bits) for a, bits in zip(acc, (1, 7, 12, 18))) & MASK
        for a in acc:
            h = ((h ^ mixed(0, a)) * P1 + P4) & MASK
    else:
        h = P5
    h = (h + end) & MASK
    while at + 8 <= end:
        h = (rotated(h ^ mixed(0, struct.unpack_from("<Q", data, at)[0]), 27) * P1 + P4) & MASK
        at += 8
    if at + 4 <= end:
        h ^= struct.unpack_from("<I", data, at)[0] * P1 & MASK
        h = (rotated(h, 23) * P2 + P3) & MASK
        at += 4
    for byte in data[at:]:
        h = rotated(h ^ byte * P5 & MASK, 11) * P1 & MASK
    h = (h ^ h >> 33) * P2 & MASK
    h = (h ^ h >> 29) * P3 & MASK
    return h ^ h >> 32


class Checkpoint:
    def __init__(self, path):
        with open(path, "rb") as file:
            content = file.read()
        texts = struct.unpack_from("<Q", content, 32)[0]
        table, self.name, self.config, _ = content[40 : 40 + texts].split(b"\0")
        self.table = json.loads(table)
        self.data = bytearray(content[40 + texts :])

    def section(self, name):
        """The first one of that name, or of the name and the part in "name.part"."""
        return next(
            s for s in self.table["sections"] if name in (s["name"], f"{s['name']}.{s['part']}")
        )

    def put(self, name, form, at, value):
        struct.pack_into(form, self.data, self.section(name)["offset"] + at, value)

    def put_last(self, name, form, value):
        self.put(name, form, self.section(name)["size"] - struct.calcsize(form), value)

    def save(self, path):
        """With the checksums of what it holds now (sections of less than one block)."""
        for s in self.table["sections"]:
            unit = 1 if s["part"] == "blob" else self.table["real"]
            length = s["size"] * unit
            for i in range(len(s["checksums"])):
                at = s["offset"] + i * length
                s["checksums"][i] = f"{xxh64(self.data[at:at + length]):016x}"
        texts = b"\0".join((json.dumps(self.table).encode(), self.name, self.config, b""))
        rest = struct.pack("<3Q", 1, 40 + len(texts) + len(self.data), len(texts)) + texts
        with open(path, "wb") as file:
            file.write(b"MOESIMCK" + struct.pack("<Q", xxh64(rest)) + rest + self.data)


def crafted(label, change, *words, step=4, of="whole"):
    """Goes on from a copy of the run with one changed checkpoint, which must be refused."""
    folder = os.path.join(TEMPORARY, "crafted")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(os.path.join(TEMPORARY, of), folder)
    os.remove(f"{folder}/summary.json")
    path = f"{folder}/checkpoints/step-00000004.moe"
    checkpoint = Checkpoint(path)
    change(checkpoint)
    for old in glob.glob(f"{folder}/checkpoints/*"):
        os.remove(old)
    checkpoint.save(f"{folder}/checkpoints/step-{step:08d}.moe")
    done = moesim(2, "--resume", folder, "--quiet")
    if not words:
        check(done.code == 0, f"{label}: {done.code}: {done.err}")
        return
    check(done.code == 2 and done.err.count("\n") == 1, f"{label}: {done.code}: {done.err}")
    for word in words:
        check(word in done.err, f"{label}: {word!r} is not in {done.err!r}")
    check(len(metrics(folder)) == 5, f"{label}: metrics.jsonl was touched")


def renamed(old, new):
    def change(checkpoint):
        checkpoint.config = checkpoint.config.replace(old, new)

    return change


def twice(checkpoint):
    checkpoint.table["sections"].append(
        {**checkpoint.section("text checksum"), "offset": len(checkpoint.data)}
    )
    checkpoint.data += bytes(8)


def at_step(step):
    def change(checkpoint):
        checkpoint.table["step"] = step

    return change


check(xxh64(b"") == 0xEF46DB3751D8E999 and xxh64(b"a") == 0xD24EC4F1A98C6E5B, "xxh64")
check(xxh64(b"Nobody inspects the spammish repetition") == 0xFBCEA83C8A378BF1, "xxh64")
run("whole", 2, TRAINING)
crafted("nothing changed", lambda c: None)
nan, infinite = float("nan"), float("inf")
for value in (-8.0, -1.0, 0.5, 5.0, 1e300, nan, infinite):
    crafted(
        f"history of {value} steps", lambda c: c.put("results.history", "<d", 0, value), "history"
    )
for value in (0, 3, 5, -4, 2**63 - 1):
    crafted(f"times of {value} steps", lambda c: c.put_last("results.times", "<q", value), "times")
crafted(
    "a bias that is no number", lambda c: c.put("layer0.bias", "<d", 16, nan), "bias", "expert 2"
)
for value in (-1, 2**62, -(2**63)):
    for name in ("results.expert_load", "results.matrices"):
        crafted(f"{name} of {value}", lambda c: c.put(name, "<q", 8, value), name)
for value in (nan, infinite, -infinite):
    for name in ("layer0.gate", "layer0.experts.w1", "layer0.experts.w2.m"):
        crafted(f"{name} of {value}", lambda c: c.put(name, "<f", 4, value), name, "holds")
crafted(
    "a negative mean of squares",
    lambda c: c.put("layer0.gate.v", "<f", 4, -1.0),
    "layer0.gate.v",
    "holds -1",
)
run("moving", 2, {**TRAINING, "placement.policy": "eplb_global", "placement.rebalance_every": 2})
crafted("nothing changed where experts move", lambda c: None, of="moving")
for value in (-1.0, nan, infinite, 1e300):
    crafted(
        f"a load of {value}",
        lambda c: c.put("placement load", "<d", 8, value),
        "placement load",
        of="moving",
    )
for expert in (-1, 8, 2**31 - 1, 0):
    crafted(
        f"expert {expert} twice or nowhere",
        lambda c: c.put("placement", "<i", 4, expert),
        "placement of layer 0",
        of="moving",
    )
for at, form, value in ((0, "<B", 255), (1, "<B", 2), (8, "<q", -1), (48, "<d", nan)):
    crafted(
        f"moves with {value} at {at}",
        lambda c: c.put("placement moves", form, at, value),
        "placement moves",
        of="moving",
    )
crafted("a section twice", twice, "twice")
for step in (6, 10**12, 10**17):
    crafted(f"step {step}", at_step(step), "damaged", step=step)
crafted(
    "a step for which there is no room",
    lambda c: (at_step(10**12)(c), renamed(b"steps = 5", b"steps = 1000000000000")(c)),
    "this run needs",
    step=10**12,
)
verdict()
