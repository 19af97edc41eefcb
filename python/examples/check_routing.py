#!/usr/bin/env python3
"""Checks one's own router and balance losses against moesim: choices, combine weights, and the
three losses of DeepSeek-V2 with their gradient. Replace my_router and my_losses by yours.

    PYTHONPATH=python python3 python/examples/check_routing.py

With PyTorch the logits are a tensor and the gradient is that of autograd; without it NumPy does the
same, and the gradient is left out. --mistake shows what a wrong reading of the paper looks like:
`mean` takes the mean of P over the experts of a device in place of their sum, `selections` counts
selections where the paper counts tokens.
"""
import argparse
import sys

import numpy

import moesim

try:
    import torch
except ImportError:
    torch = None

TOKENS, EXPERTS, K, DEVICES, LIMIT = 2048, 64, 6, 8, 3
ALPHA = {"expert": 0.003, "device": 0.05, "comm": 0.02}


def my_router(logits):
    """Softmax, then the K best experts on the LIMIT devices with the best single score."""
    scores = numpy.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    best = scores.reshape(TOKENS, DEVICES, -1).max(axis=2)
    devices = numpy.argsort(-best, axis=1, kind="stable")[:, :LIMIT]
    allowed = numpy.zeros((TOKENS, DEVICES), bool)
    numpy.put_along_axis(allowed, devices, True, axis=1)
    masked = numpy.where(numpy.repeat(allowed, EXPERTS // DEVICES, axis=1), scores, -numpy.inf)
    experts = numpy.argsort(-masked, axis=1, kind="stable")[:, :K]
    return experts, numpy.take_along_axis(scores, experts, axis=1)


def my_losses(scores, experts, mistake):
    """L1, L2, L3 over the whole batch (DeepSeek-V2, equations 23 to 31) of scores [T,N], a tensor or
    an array, and of a choice [T,K], which is a constant for the gradient.
    """
    chosen = numpy.zeros((TOKENS, EXPERTS))
    numpy.put_along_axis(chosen, experts, 1, axis=1)
    on_device = chosen.reshape(TOKENS, DEVICES, -1).sum(axis=2)
    f = EXPERTS / (K * TOKENS) * chosen.sum(axis=0)
    f_device = f.reshape(DEVICES, -1).mean(axis=1)
    sent = on_device if mistake == "selections" else on_device > 0
    f_comm = DEVICES / (LIMIT * TOKENS) * sent.sum(axis=0)
    if torch:
        f, f_device, f_comm = map(torch.from_numpy, (f, f_device, f_comm))
    p = scores.mean(0)
    by_device = p.reshape(DEVICES, -1)
    p_device = by_device.mean(1) if mistake == "mean" else by_device.sum(1)
    return {
        "expert": (f * p).sum(),
        "device": (f_device * p_device).sum(),
        "comm": (f_comm * p_device).sum(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--mistake", choices=("none", "mean", "selections"), default="none")
    mistake = parser.parse_args().mistake

    logits = 2 * numpy.random.default_rng(1).standard_normal((TOKENS, EXPERTS))
    experts, weights = my_router(logits)
    if torch:
        tensor = torch.from_numpy(logits).requires_grad_()
        losses = my_losses(torch.softmax(tensor, dim=1), experts, mistake)
        sum(ALPHA[name] * loss for name, loss in losses.items()).backward()
        gradient = tensor.grad.numpy()
        logits = tensor
    else:
        exponents = numpy.exp(logits)
        scores = exponents / exponents.sum(axis=1, keepdims=True)
        losses, gradient = my_losses(scores, experts, mistake), None

    # from here on it is moesim that computes
    reference = moesim.route(
        logits,
        top_k=K,
        devices=DEVICES,
        group_limit="max",
        topk_group=LIMIT,
        balance_scope="global",
        **{f"alpha_{name}": value for name, value in ALPHA.items()},
    )
    differences = {
        "experts": (reference.experts != experts).any(axis=1).sum() / TOKENS,
        "weights": numpy.abs(reference.weights - weights).max(),
    }
    for name, value in losses.items():
        differences[name] = abs(float(value) - reference.losses[name])
    if gradient is not None:
        differences["gradient"] = numpy.abs(gradient - reference.dlogits).max()
    for name, difference in differences.items():
        print(f"{name:10} {'agree' if difference < 1e-10 else 'DIFFER'}   by {difference:.3g}")
    return int(max(differences.values()) >= 1e-10)


if __name__ == "__main__":
    sys.exit(main())
