#!/usr/bin/env python3
"""model.load with expert_type = lora: the frozen base and the adapters of every expert are read.

The reference is the same layer with ordinary experts whose matrices are W + s B A, multiplied out
here; their gradients determine those of the adapters: dB = s dW A^T and dA = s B^T dW. Files in the
shape of ordinary experts are refused, and so are files of tensors that the layer does not have.

ctest: timeout=120
"""

import os
import random

import _moesim
from _moesim import MOESIM, TEMPORARY, check, load, moesim, save, verdict

N, H, F, RANK, TOKENS, ALPHA = 4, 6, 5, 2, 10, 3.0
SCALE = ALPHA / RANK
SHAPES = {"1": (F, H), "2": (H, F), "3": (F, H)}  # of W, rows x columns
DOUBLE = os.environ.get("MOESIM_F64", MOESIM + "-f64")


def numbers(seed, count):
    draw = random.Random(seed)
    return [draw.gauss(0, 0.5) for _ in range(count)]


def product(a, b, rows, inner, columns):
    """a [rows,inner] times b [inner,columns], both flat."""
    return [
        sum(a[i * inner + k] * b[k * columns + j] for k in range(inner))
        for i in range(rows)
        for j in range(columns)
    ]


def transposed(a, rows, columns):
    return [a[i * columns + j] for j in range(columns) for i in range(rows)]


def write(folder, name, shape, values):
    os.makedirs(os.path.join(TEMPORARY, folder), exist_ok=True)
    save(os.path.join(folder, name + ".npy"), "<f8", shape, values)


def adapters(expert, m):
    rows, columns = SHAPES[m]
    a = numbers(f"a{m}{expert}", RANK * columns)
    b = numbers(f"b{m}{expert}", rows * RANK)
    return a, b


def make_folders():
    for folder in ("lora", "merged"):
        write(folder, "wgate", (N, H), numbers("gate", N * H))
        write(folder, "x", (TOKENS, H), numbers("x", TOKENS * H))
        write(folder, "dy", (TOKENS, H), numbers("dy", TOKENS * H))
    for m, (rows, columns) in SHAPES.items():
        base = numbers("w" + m, rows * columns)
        merged, all_a, all_b = [], [], []
        for e in range(N):
            a, b = adapters(e, m)
            merged += [w + SCALE * d for w, d in zip(base, product(b, a, rows, RANK, columns))]
            all_a += a
            all_b += b
        write("lora", "w" + m, (rows, columns), base)
        write("lora", "a" + m, (N, RANK, columns), all_a)
        write("lora", "b" + m, (N, rows, RANK), all_b)
        write("merged", "w" + m, (N, rows, columns), merged)


def run(ranks, kind, folder):
    ini = os.path.join(TEMPORARY, kind + ".ini")
    with open(ini, "w", encoding="utf-8") as file:
        file.write(
            f"[model]\nload = {os.path.join(TEMPORARY, folder)}\nhidden_size = {H}\n"
            f"moe_intermediate_size = {F}\nnum_experts = {N}\nexpert_type = {kind}\n"
            f"lora_rank = {RANK}\nlora_alpha = {ALPHA}\n[router]\ntop_k = 2\n"
            "[cluster]\ndevices = 2\n[output]\ntensors = yes\n"
        )
    out = os.path.join(TEMPORARY, f"out-{kind}-{folder}-{ranks}")
    result = moesim(ranks, "--quiet", "--force", "--out", out, ini)
    return result, out


def close(found, expected, what):
    most = max(abs(v) for v in expected)
    worst = max(abs(a - b) for a, b in zip(found, expected))
    check(len(found) == len(expected) and worst <= 1e-12 * most, what, "differs by", worst)


def compare(ranks):
    lora, out = run(ranks, "lora", "lora")
    merged, reference = run(ranks, "swiglu", "merged")
    if not check(lora.code == 0 and merged.code == 0, lora.err, merged.err):
        return
    for tensor in ("y", "dx", "dwgate", "dlogits"):
        expected = load(os.path.join(reference, tensor + ".npy"))
        close(load(os.path.join(out, tensor + ".npy")).data, expected.data, tensor)
    for m, (rows, columns) in SHAPES.items():
        dw = load(os.path.join(reference, f"dw{m}.npy")).data
        da = load(os.path.join(out, f"da{m}.npy"))
        db = load(os.path.join(out, f"db{m}.npy"))
        check(da.shape == (N, RANK, columns), "da" + m, da.shape)
        check(db.shape == (N, rows, RANK), "db" + m, db.shape)
        wanted_a, wanted_b = [], []
        for e in range(N):
            a, b = adapters(e, m)
            d = dw[e * rows * columns : (e + 1) * rows * columns]
            b_t, a_t = transposed(b, rows, RANK), transposed(a, RANK, columns)
            wanted_a += [SCALE * v for v in product(b_t, d, RANK, rows, columns)]
            wanted_b += [SCALE * v for v in product(d, a_t, rows, columns, RANK)]
        close(da.data, wanted_a, "da" + m)
        close(db.data, wanted_b, "db" + m)
        check(not os.path.exists(os.path.join(out, f"dw{m}.npy")), "the base is frozen")


def refused():
    result, _ = run(2, "lora", "merged")
    words = f"w1.npy is [{N}, {F}, {H}] of float64, and float16, float32 or float64 of [{F}, {H}]"
    check(result.code == 2 and words in result.err, "ordinary experts", result.code, result.err)
    result, _ = run(2, "swiglu", "lora")
    words = f"w1.npy is [{F}, {H}]"
    check(result.code == 2 and words in result.err, "a frozen base", result.code, result.err)
    for kind, idle in (("relu", "w3"), ("identity", "w1")):
        result, _ = run(2, kind, "merged")
        words = f"{idle}.npy is there, but a layer with model.expert_type = {kind}"
        check(result.code == 2 and words in result.err, kind, result.code, result.err)


make_folders()
_moesim.MOESIM = DOUBLE
for size in (1, 2):
    compare(size)
refused()
verdict()
