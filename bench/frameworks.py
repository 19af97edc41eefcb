#!/usr/bin/python3
"""Times the steps of bench_peers.c in NumPy and in PyTorch, as a user of these would write them.

Reads the lines of the program `peers` from standard input and prints, for each step of moesim in
them, one line per framework that is installed: the time of moesim, of the framework, and their
ratio. The shapes are taken from the lines, so that they are written in bench_peers.c only.

A framework runs one process per device, with one thread each, and exchanges nothing, which is to
its favour: a process routes its own T tokens among all N experts and computes their T K rows with
N / D experts of its own (expert e of the routing is computed by its expert e mod N / D), so that
the products have the shapes they have in moesim. A training step is: the mean of squared errors,
the gradients of experts, gate and input, and AdamW. The gradient of the input belongs to it: the
layer stands in a model, and moesim's own norm in front of it needs that gradient. Losses for
balance and statistics are left out, again to the framework's favour; the line of the router counts
f and P.
"""

import ctypes
import multiprocessing
import os
import re
import statistics
import sys
import time

sys.path.insert(
    1, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
)

from command_line import Refused, run, say  # noqa: E402  (needs the path)

NAME = "bench/frameworks.py"
SECONDS = 4  # of repetitions for one line
LEARNING_RATE, BETA1, BETA2, EPSILON, DECAY = 1e-4, 0.9, 0.999, 1e-8, 0.01


class Shape:
    """The sizes that a line of `peers` names, as "S1, T 1024, H 512, F 256, N 64, K 6"."""

    def __init__(self, text, devices):
        self.tokens, self.hidden, self.width, self.experts, self.top_k = (
            int(match.group(1)) if (match := re.search(rf"\b{name} (\d+)", text)) else 0
            for name in "THFNK"
        )
        groups = re.search(r"(\d+) of (\d+) groups", text)
        self.kept_groups, self.groups = map(int, groups.groups()) if groups else (1, 1)
        self.local = self.experts // devices


# --- NumPy ---


class Numpy:
    """The layer in NumPy: products by the BLAS that NumPy uses, everything else vectorised."""

    def __init__(self, shape, seed):
        import numpy

        self.np, self.shape = numpy, shape
        rng = numpy.random.default_rng(seed)

        def normal(*size):
            return rng.standard_normal(size, dtype=numpy.float32) / numpy.float32(size[-1] ** 0.5)

        self.x, self.target = normal(shape.tokens, shape.hidden), normal(shape.tokens, shape.hidden)
        self.logits = normal(shape.tokens, shape.experts)
        self.parameters = {"gate": normal(shape.experts, shape.hidden)}
        if shape.width:
            self.parameters["w1"] = normal(shape.local, shape.width, shape.hidden)
            self.parameters["w3"] = normal(shape.local, shape.width, shape.hidden)
            self.parameters["w2"] = normal(shape.local, shape.hidden, shape.width)
        self.gradient = {k: numpy.empty_like(v) for k, v in self.parameters.items()}
        self.first = {k: numpy.zeros_like(v) for k, v in self.parameters.items()}
        self.second = {k: numpy.zeros_like(v) for k, v in self.parameters.items()}
        self.scratch = {k: numpy.empty_like(v) for k, v in self.parameters.items()}
        self.steps = 0

    def route(self, logits):
        """Scores [T,N], the K experts of each token, and their scores."""
        np, s = self.np, self.shape
        scores = np.exp(logits - logits.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        allowed = scores
        if s.groups > 1:
            best = scores.reshape(s.tokens, s.groups, -1).max(2)
            kept = np.argpartition(-best, s.kept_groups - 1, 1)[:, : s.kept_groups]
            mask = np.zeros((s.tokens, s.groups), bool)
            np.put_along_axis(mask, kept, True, 1)
            allowed = np.where(np.repeat(mask, s.experts // s.groups, 1), scores, -1)
        expert = np.argpartition(-allowed, s.top_k - 1, 1)[:, : s.top_k]
        return scores, expert, np.take_along_axis(scores, expert, 1)

    def router(self):
        scores, expert, _ = self.route(self.logits)
        counts = self.np.bincount(expert.ravel(), minlength=self.shape.experts)
        return counts @ scores.mean(0)

    def forward(self):
        np, s, p = self.np, self.shape, self.parameters
        scores, expert, weight = self.route(self.x @ p["gate"].T)
        local = (expert % s.local).ravel()
        order = np.argsort(local, kind="stable")
        end = np.cumsum(np.bincount(local, minlength=s.local))
        token, rows = order // s.top_k, self.x[order // s.top_k]
        out, kept = np.empty_like(rows), []
        for i in range(s.local):
            part = slice(end[i - 1] if i else 0, end[i])
            a, b = rows[part] @ p["w1"][i].T, rows[part] @ p["w3"][i].T
            gate = 1 / (1 + np.exp(-a))
            h = a * gate * b
            np.matmul(h, p["w2"][i].T, out=out[part])
            kept.append((part, a, b, gate, h))
        by_token = np.empty_like(out)
        by_token[order] = out
        by_token = by_token.reshape(s.tokens, s.top_k, s.hidden)
        y = np.einsum("tkh,tk->th", by_token, weight)
        return y, (scores, expert, weight, order, token, rows, kept, by_token)

    def train(self):
        np, s, p, g = self.np, self.shape, self.parameters, self.gradient
        y, (scores, expert, weight, order, token, rows, kept, by_token) = self.forward()
        dy = (y - self.target) * np.float32(2 / y.size)
        dweight = np.einsum("tkh,th->tk", by_token, dy)
        dout = dy[token] * weight.ravel()[order][:, None]
        drows = np.empty_like(rows)
        for i, (part, a, b, gate, h) in enumerate(kept):
            np.matmul(dout[part].T, h, out=g["w2"][i])
            dh = dout[part] @ p["w2"][i]
            da, db = dh * b * gate * (1 + a * (1 - gate)), dh * a * gate
            np.matmul(da.T, rows[part], out=g["w1"][i])
            np.matmul(db.T, rows[part], out=g["w3"][i])
            np.matmul(da, p["w1"][i], out=drows[part])
            drows[part] += db @ p["w3"][i]
        dscores = np.zeros_like(scores)
        np.put_along_axis(dscores, expert, dweight, 1)
        dlogits = scores * (dscores - (dscores * scores).sum(1, keepdims=True))
        np.matmul(dlogits.T, self.x, out=g["gate"])
        dx = np.empty_like(drows)
        dx[order] = drows
        self.dx = dx.reshape(s.tokens, s.top_k, s.hidden).sum(1) + dlogits @ p["gate"]
        self.adamw()

    def adamw(self):
        """w <- (1 - lr decay) w - lr m / (sqrt(v) + eps), with its bias corrections, in place."""
        np = self.np
        self.steps += 1
        first, second = 1 - BETA1**self.steps, 1 - BETA2**self.steps
        for name, w in self.parameters.items():
            g, m, v, t = (d[name] for d in (self.gradient, self.first, self.second, self.scratch))
            m *= np.float32(BETA1)
            np.multiply(g, np.float32(1 - BETA1), out=t)
            m += t
            v *= np.float32(BETA2)
            np.multiply(g, g, out=t)
            t *= np.float32(1 - BETA2)
            v += t
            np.sqrt(v, out=t)
            t *= np.float32(second**-0.5)
            t += np.float32(EPSILON)
            np.divide(m, t, out=t)
            t *= np.float32(LEARNING_RATE / first)
            w *= np.float32(1 - LEARNING_RATE * DECAY)
            w -= t


# --- PyTorch ---


class Torch:
    """The layer in PyTorch, in the form that the public model code of MoE models has."""

    def __init__(self, shape, seed):
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.torch, self.shape = torch, shape

        def parameter(*size):
            return torch.nn.Parameter(torch.randn(*size) / size[-1] ** 0.5)

        self.x = torch.randn(shape.tokens, shape.hidden, requires_grad=True)
        self.target = torch.randn(shape.tokens, shape.hidden)
        self.logits = torch.randn(shape.tokens, shape.experts)
        self.gate = parameter(shape.experts, shape.hidden)
        f, h = shape.width, shape.hidden
        self.expert = [
            (parameter(f, h), parameter(f, h), parameter(h, f)) for _ in range(shape.local)
        ]
        every = [self.gate] + [w for expert in self.expert for w in expert]
        try:
            self.optimizer = torch.optim.AdamW(every, lr=LEARNING_RATE, foreach=True)
        except TypeError:  # before PyTorch 1.12
            self.optimizer = torch.optim.AdamW(every, lr=LEARNING_RATE)

    def route(self, logits):
        s = self.shape
        scores = logits.softmax(-1)
        allowed = scores
        if s.groups > 1:
            best = scores.view(s.tokens, s.groups, -1).max(-1).values
            kept = best.topk(s.kept_groups, sorted=False).indices
            mask = self.torch.zeros_like(best).scatter_(1, kept, 1)
            each = mask.unsqueeze(-1).expand(-1, -1, s.experts // s.groups)
            allowed = scores.masked_fill(each.reshape(s.tokens, -1) == 0, -1.0)
        weight, expert = allowed.topk(s.top_k, sorted=False)
        return scores, expert, weight

    def router(self):
        with self.torch.no_grad():
            scores, expert, _ = self.route(self.logits)
            counts = self.torch.bincount(expert.flatten(), minlength=self.shape.experts)
            return float((counts * scores.mean(0)).sum())

    def layer(self):
        torch, s = self.torch, self.shape
        _, expert, weight = self.route(self.x @ self.gate.t())
        local = (expert % s.local).flatten()
        order = local.argsort()
        count = torch.bincount(local, minlength=s.local).tolist()
        token = torch.div(order, s.top_k, rounding_mode="floor")
        rows, silu = self.x[token].split(count), torch.nn.functional.silu
        out = [
            (silu(row @ w1.t()) * (row @ w3.t())) @ w2.t()
            for row, (w1, w3, w2) in zip(rows, self.expert)
        ]
        weighted = torch.cat(out) * weight.flatten()[order].unsqueeze(1)
        return torch.zeros_like(self.x).index_add(0, token, weighted)

    def forward(self):
        with self.torch.no_grad():
            return self.layer()

    def train(self):
        self.optimizer.zero_grad(set_to_none=True)
        self.x.grad = None
        ((self.layer() - self.target) ** 2).mean().backward()
        self.optimizer.step()


# --- measuring ---

FRAMEWORKS = {"NumPy": Numpy, "PyTorch": Torch}


def work(framework, shape, what, rank, barrier, stop, times):
    """One process: steps in time with the others until the first process has seen enough."""
    step = getattr(FRAMEWORKS[framework](shape, rank), what)
    step()
    repetitions, end = 0, time.perf_counter() + SECONDS
    while repetitions < len(times) and not stop.value:
        barrier.wait()
        begin = time.perf_counter()
        step()
        times[repetitions] = time.perf_counter() - begin
        repetitions += 1
        if rank == 0 and repetitions >= 5 and time.perf_counter() > end:
            stop.value = 1
        barrier.wait()


def measure(framework, shape, what, devices):
    """Milliseconds of a step, as quartiles: the slowest process of each repetition counts."""
    barrier, stop = multiprocessing.Barrier(devices), multiprocessing.Value(ctypes.c_int, 0)
    times = [multiprocessing.Array(ctypes.c_double, 2000, lock=False) for _ in range(devices)]
    rank = [
        multiprocessing.Process(target=work, args=(framework, shape, what, i, barrier, stop, t))
        for i, t in enumerate(times)
    ]
    for process in rank:
        process.start()
    for process in rank:
        process.join()
    if any(process.exitcode for process in rank):
        raise SystemExit(f"{framework}: a process ended with {rank[0].exitcode}")
    slowest = [1000 * max(each) for each in zip(*times) if each[0] > 0]
    return statistics.quantiles(slowest, n=4)


def installed(module):
    """The version of a module, or None. Asked in a process of its own, before any thread is."""
    code = f"import {module}; print({module}.__version__)"
    with os.popen(f"{sys.executable} -c '{code}' 2>/dev/null") as answer:
        return answer.read().strip() or None


def devices_of(words):
    """The number of devices, which is the only word."""
    if len(words) != 1 or not (words[0].isascii() and words[0].isdigit()) or not int(words[0]):
        raise Refused("peers DEVICES lines | frameworks.py DEVICES: a number of devices from 1 on")
    return int(words[0])


def compare(devices):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    versions = {"NumPy": installed("numpy"), "PyTorch": installed("torch")}
    for framework, version in versions.items():
        print(
            f"{framework} {version}" if version else f"{framework} is not installed: no lines of it"
        )
    for line in sys.stdin:
        what, measured, *_ = line.rstrip("\n").split("\t") + [""]
        step = re.search(r"(forward|train), limit: own library|(router)", what)
        if not step or not measured:
            continue
        kind = step.group(1) or step.group(2)
        shape = Shape(what, devices)
        aim = {"forward": "1.5", "train": "1.3", "router": "4"}[kind]
        aim = "3" if what.startswith("S4") else aim
        label = what.split(", limit:")[0].split(", bare:")[0]
        for framework in (name for name, version in versions.items() if version):
            low, middle, high = measure(framework, shape, kind, devices)
            ours = float(measured)
            row = (f"{ours:.3f}", f"{middle:.3f}", "ms", f"{middle / ours:.2f}")
            spread = f"{low / ours:.2f}-{high / ours:.2f}"
            print(f"{label}, bare: {framework}", *row, spread, aim, sep="\t", flush=True)


def main(words):
    try:
        return compare(devices_of(words))
    except Refused as error:
        return say(NAME, error)


if __name__ == "__main__":
    sys.exit(run(NAME, main))
