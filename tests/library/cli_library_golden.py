"""ctest: timeout=120
libmoesim through its Python module on all golden cases of the public reference code: choices,
weights, kept pairs, slots, counts, capacity, losses and gradients in single and double precision,
and EPLB's placements.
"""
import json
import os

from _library import arguments, moesim, numpy
from _golden import HUGGING_FACE, PRESETS, ROUTING, by_preset, form, read, settings
from _moesim import GOLDEN, check, verdict

OURS = {"deepseek": "expert", "switch": "switch", "gshard": "gshard", "mixtral": "mixtral"}


def close(found, expected, bound):
    found, expected = numpy.asarray(found, float), numpy.asarray(expected, float)
    return bool(numpy.all(numpy.abs(found - expected) <= bound * numpy.abs(expected) + 1e-18))


def losses_of(case, expected):
    """(name in expected.json, value of the same) that say the same as one of the library's."""
    family, ours = case["family"], OURS[form(case)]
    raw = {name: loss["f64_raw"] for name, loss in expected["losses"].items() if "f64_raw" in loss}
    if case.get("ties"):
        return
    if family == "ds2":
        yield from ((name, raw[name]) for name in ("expert", "device", "comm"))
    elif "v3_seq_balance" in raw:
        yield "sequence.expert", raw["v3_seq_balance"]
    elif family == "switch":
        yield "switch", raw["aux_predrop"]
    elif family == "megatron" and not case.get("sinkhorn") and "aux" in raw:
        yield "global.expert", raw["aux"]
    elif family in (HUGGING_FACE, "mixlora"):
        yield ours, raw["aux"]
    elif family == "deepspeed":
        yield ours, raw["l_aux"]
    elif family == "tutel" and "gshard" in raw:
        yield "gshard", raw["gshard"]
    if "z" in raw:
        yield "z", raw["z"]


compared = {"losses": 0, "gradients": 0, "slots": 0}


def check_losses(name, case, expected, routing):
    scopes = {"sequence": 0, "device": 1, "global": 2}
    names = list(routing.losses)
    for path, value in losses_of(case, expected):
        *scope, loss = path.split(".")
        found = (
            routing.loss_by_scope[scopes[scope[0]]][names.index(loss)]
            if scope
            else routing.losses[loss]
        )
        check(close(found, value, 1e-10), name, path, found, value)
        compared["losses"] += 1


def check_gradient(name, folder, routing):
    parts = [os.path.join(folder, f"dlogits_{x}.npy") for x in ("expert", "device", "comm")]
    if not all(map(os.path.exists, parts)):
        return
    wanted = sum(numpy.load(part) for part in parts)
    error = numpy.abs(routing.dlogits - wanted).max()
    check(error <= 1e-10 * numpy.abs(wanted).max() + 1e-18, name, "dlogits", error)
    compared["gradients"] += 1


def weights_after_dropping(case, routing):
    """DeepSpeed's are normalised over what is kept."""
    if case["family"] != "deepspeed":
        return routing.weights
    left = routing.weights * routing.kept
    total = left.sum(axis=1, keepdims=True) if case["top_k"] > 1 else numpy.ones((1, 1))
    return left / numpy.where(total > 0, total, 1)


def check_case(name, double):
    folder = os.path.join(ROUTING, name)
    case, expected = read(folder, "case.json"), read(folder, "expected.json")
    of = settings(case, folder)
    if name in PRESETS:
        of = by_preset(name, of)
    routing = moesim.route(**arguments(of, double))
    what = f"{name}, {'double' if double else 'single'}"
    check(numpy.array_equal(routing.experts, numpy.load(f"{folder}/topk_idx.npy")), what, "choice")
    weights = "topk_weight_f64.npy" if double else "topk_weight.npy"
    if os.path.exists(f"{folder}/{weights}"):
        bound = 1e-9 if double and case["family"] != "deepspeed" else 1e-5
        wanted = numpy.load(f"{folder}/{weights}")
        check(close(weights_after_dropping(case, routing), wanted, bound), what, "weights")
    for file in ("kept", "slot"):
        if os.path.exists(f"{folder}/{file}.npy"):
            check(numpy.array_equal(routing[file], numpy.load(f"{folder}/{file}.npy")), what, file)
            compared["slots"] += file == "slot"
    check(list(routing.counts_per_expert) == expected["counts_per_expert"], what, "counts")
    if "capacity" in expected:
        check(routing.capacity[0] == expected["capacity"], what, "capacity")
    check_losses(what, case, expected, routing)
    check_gradient(what, folder, routing)


def check_eplb(name):
    folder = os.path.join(GOLDEN, "eplb", name)
    load, wanted = numpy.load(f"{folder}/weight.npy"), read(folder, "expected.json")
    policy = "eplb" if wanted["num_groups"] % wanted["num_nodes"] == 0 else "eplb_global"
    found = moesim.place(
        load.astype(float),
        wanted["num_gpus"],
        policy,
        nodes=wanted["num_nodes"],
        groups=wanted["num_groups"],
        slots_per_device=wanted["num_replicas"] // wanted["num_gpus"],
    )
    slots = found.expert_at.reshape(len(load), -1)
    check(numpy.array_equal(slots, numpy.load(f"{folder}/phy2log.npy")), name, "phy2log")
    check(numpy.array_equal(found.replicas, numpy.load(f"{folder}/logcnt.npy")), name, "logcnt")


names = sorted(os.listdir(ROUTING))
check(len(names) == 59, len(names), "cases")
for case_name in names:
    for precision in (False, True):
        check_case(case_name, precision)
for case_name in sorted(os.listdir(os.path.join(GOLDEN, "eplb"))):
    check_eplb(case_name)
print(json.dumps(compared))
check(compared["losses"] >= 150 and compared["gradients"] >= 10 and compared["slots"] > 0, compared)
verdict()
