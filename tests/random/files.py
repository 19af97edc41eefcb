"""Writes the files that a configuration names: text, logits, routing, masks, weights of a layer.

Contents are functions of the seed and of the settings, so that a configuration that is being
shrunk gets files of the new shapes.
"""

import array
import math
import os
import random
import struct

from _moesim import TYPES, header_of

WORDS = "the a of expert device token routes balance loads and to in is many few".split()


def save(folder, name, dtype, shape, numbers):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    half = dtype == "<f2"  # which module array does not know
    data = (
        struct.pack(f"<{len(numbers)}e", *numbers)
        if half
        else array.array(TYPES[dtype], numbers).tobytes()
    )
    with open(path, "wb") as file:
        file.write(header_of(dtype, shape) + data)


class Files:
    def __init__(self, case, table, folder):
        self.case, self.table, self.folder = case, table, folder
        self.tokens = case.extra.get("tokens", 1)
        dense = case.number("model.first_dense_layers", table)
        self.layers = max(1, case.number("model.num_layers", table) - dense)
        self.steps = case.extra.get("steps", 1)
        self.experts = case.num_experts(table)

    def random(self, name):
        return random.Random(f"{self.case.seed} {name}")

    def gauss(self, name, count, scale=1.0):
        draw = self.random(name)
        return [draw.gauss(0, scale) for _ in range(count)]

    def shape(self, columns):
        if self.steps > 1:
            return (self.steps, self.layers, self.tokens, columns)
        if self.layers == 1:
            return (self.tokens, columns)
        if self.case.extra.get("flat"):
            return (self.layers * self.tokens, columns)
        return (self.layers, self.tokens, columns)

    def rows(self):
        return self.steps * self.layers * self.tokens

    def write_logits(self):
        extra = self.case.extra
        numbers = self.gauss("logits", self.rows() * self.experts, extra.get("scale", 1.5))
        if extra.get("ties"):
            numbers = [round(v) for v in numbers]
        if extra.get("disabled"):  # any expert but the token's first
            draw = self.random("disabled")
            numbers = [
                -math.inf if i % self.experts and draw.random() < 0.3 else v
                for i, v in enumerate(numbers)
            ]
        save(self.folder, "logits.npy", self.dtype(), self.shape(self.experts), numbers)

    def dtype(self):
        """The type of recorded logits and of a bias."""
        return self.case.extra.get("dtype", "<f4")

    def columns(self):
        return min(self.case.extra.get("columns", 1), self.experts)

    def write_routing(self):
        draw, columns, numbers = self.random("routing"), self.columns(), []
        for _ in range(self.rows()):
            row = draw.sample(range(self.experts), columns)
            if self.case.extra.get("holes"):
                row = [-1 if draw.random() < 0.2 else e for e in row]
            numbers += row
        save(self.folder, "routing.npy", "<i4", self.shape(columns), numbers)

    def write_weights(self):
        draw, columns = self.random("weights"), self.columns()
        numbers = [draw.random() for _ in range(self.rows() * columns)]
        save(self.folder, "weights.npy", "<f4", self.shape(columns), numbers)

    def write_scores(self):
        numbers = []
        logits = self.gauss("scores", self.rows() * self.experts)
        for i in range(0, len(logits), self.experts):
            e = [math.exp(v) for v in logits[i : i + self.experts]]
            numbers += [v / sum(e) for v in e]
        save(self.folder, "scores.npy", "<f4", self.shape(self.experts), numbers)

    def write_mask(self):
        draw = self.random("mask")
        steps = self.steps if self.steps > 1 and draw.random() < 0.5 else 1
        numbers = [
            int(t == 0 or draw.random() < 0.7) for _ in range(steps) for t in range(self.tokens)
        ]
        shape = (self.tokens,) if steps == 1 else (steps, self.tokens)
        dtype = draw.choice(["|u1", "|b1", "<i4", "<i8"])
        save(self.folder, "mask.npy", dtype, shape, numbers)

    def write_boundaries(self):
        draw = self.random("boundaries")
        inner = draw.sample(range(1, self.tokens), min(self.tokens - 1, draw.randint(0, 9)))
        numbers = [0, *sorted(inner), self.tokens]
        save(self.folder, "boundaries.npy", draw.choice(["<i4", "<i8"]), (len(numbers),), numbers)

    def write_bias(self):
        each = self.case.extra.get("bias_of_layers")
        shape = (self.layers, self.experts) if each else (self.experts,)
        numbers = self.gauss("bias", math.prod(shape), 0.1)
        save(self.folder, "bias.npy", self.dtype(), shape, numbers)

    def write_placement(self):
        """Every expert somewhere, and any in the slots that are left."""
        draw, numbers = self.random("placement"), []
        slots = self.experts + self.case.number("placement.redundant_experts", self.table)
        each = self.case.extra.get("placement_of_layers")
        for _ in range(self.layers if each else 1):
            more = [draw.randrange(self.experts) for _ in range(slots - self.experts)]
            numbers += draw.sample([*range(self.experts), *more], slots)
        shape = (self.layers, slots) if each else (slots,)
        save(self.folder, "placement.npy", "<i4", shape, numbers)

    def write_texts(self):
        """Long enough for every device to have a sequence to validate."""
        devices = self.case.devices()
        total = devices * self.case.number("data.tokens_per_device", self.table)
        sequence = self.case.number("data.sequence_length", self.table)
        length = min(sequence, total) if sequence > 0 else total
        share = float(self.case.get("train.validation_share", self.table))
        needed = devices * (length + 2) * (2 + math.ceil(1 / min(share, 1 - share)))
        for name in str(self.case.settings["data.path"]).split(":"):
            draw, text = self.random(name), ""
            while len(text) < needed:
                text += draw.choice(WORDS) + " "
            path = os.path.join(self.folder, name)
            if self.case.extra.get("folder"):
                os.makedirs(path, exist_ok=True)
                path = os.path.join(path, "a.txt")
            with open(path, "w", encoding="ascii") as file:
                file.write(text)

    def write_layer(self):
        hidden = self.case.number("model.hidden_size", self.table)
        width = self.case.number("model.moe_intermediate_size", self.table)
        shared = self.case.number("model.num_shared_experts", self.table)
        rank = self.case.number("model.lora_rank", self.table)
        kind = self.case.get("model.expert_type", self.table)
        n = self.experts
        shapes = {"wgate": (n, hidden), "x": (self.tokens, hidden)}
        if self.case.extra.get("gradient"):
            shapes["dy"] = (self.tokens, hidden)
        matrices = {"1": (width, hidden), "2": (hidden, width), "3": (width, hidden)}
        if kind not in ("swiglu", "lora"):
            del matrices["3"]
        for m, (rows, columns) in matrices.items() if kind != "identity" else ():
            if kind == "lora":
                shapes["w" + m] = (rows, columns)
                shapes["a" + m], shapes["b" + m] = (n, rank, columns), (n, rows, rank)
            else:
                shapes["w" + m] = (n, rows, columns)
            if shared:
                wide = {"1": (shared * width, hidden), "2": (hidden, shared * width)}
                shapes["sw" + m] = wide.get(m, wide["1"])
        for name, shape in shapes.items():
            numbers = self.gauss(name, math.prod(shape), 0.5)
            save(self.folder, f"layer/{name}.npy", "<f4", shape, numbers)

    def write_cluster(self):
        """Some speeds of a cluster, and a key that the configuration may give itself."""
        lines = ["intra_gbps = 100", "inter_gbps = 20", "device_tflops = 50", "memory_gbps = 500"]
        lines += ["exchange_us = 3", "gemm_half_rows = 0", "price_per_hour = 2"]
        with open(os.path.join(self.folder, "cluster.ini"), "w", encoding="ascii") as file:
            file.write("\n".join(["[cluster]", *lines, ""]))


WRITERS = {
    "cluster.ini": Files.write_cluster,
    "logits.npy": Files.write_logits,
    "routing.npy": Files.write_routing,
    "weights.npy": Files.write_weights,
    "scores.npy": Files.write_scores,
    "mask.npy": Files.write_mask,
    "boundaries.npy": Files.write_boundaries,
    "bias.npy": Files.write_bias,
    "placement.npy": Files.write_placement,
    "layer": Files.write_layer,
}


def write_files(case, table, folder):
    """All files that the settings name, and case.ini itself."""
    os.makedirs(folder, exist_ok=True)
    files = Files(case, table, folder)
    for value in case.settings.values():
        if value in WRITERS and files.experts > 0:
            WRITERS[value](files)
        elif str(value).startswith("text-"):
            files.write_texts()
    with open(os.path.join(folder, "case.ini"), "w", encoding="ascii") as file:
        file.write(case.ini())
    return folder
