"""ctest: timeout=180
libmoesim against the program on the same tokens, what it refuses and in which words, the folder of
a run as arrays and tables, and the example that checks one's own routing.
"""
import json
import math
import os
import subprocess
import sys

from _library import arguments, moesim, numpy, same_as_run
from _moesim import SOURCE, TEMPORARY, check, run, summary, verdict
from _random_layers import random_layer

# --- the same as the program ---


def test_synthetic(count):
    """Random settings, synthetic tokens."""
    for seed in range(count):
        of = {**random_layer(seed), "run.gemm": "reference", "output.routing": "yes"}
        of["model.expert_type"] = "identity"
        folder = run(f"synthetic-{seed}", 1, of)
        if folder:
            routing = moesim.route(**arguments(of))
            same_as_run(check, folder, summary(folder), routing, f"seed {seed}: {of}")


def save(name, array):
    path = os.path.join(TEMPORARY, name)
    numpy.save(path, array)
    return path


def test_arrays():
    """Logits with disabled experts, a mask and a bias; then the choice of that run as recorded."""
    rng = numpy.random.default_rng(7)
    z = rng.standard_normal((300, 24)).astype(numpy.float32)
    z[rng.random(z.shape) < 0.05] = -numpy.inf
    mask = (rng.random(300) < 0.9).astype(numpy.uint8)
    bias = rng.standard_normal(24) * 0.1
    for padding in ("counted", "dropped"):
        of = {
            "model.hidden_size": 8,
            "model.num_experts": 24,
            "model.expert_type": "identity",
            "router.top_k": 4,
            "router.score_func": "sigmoid",
            "router.norm_topk_prob": "yes",
            "router.bias_file": save("bias.npy", bias),
            "router.bias_update_rate": 0.001,
            "cluster.devices": 6,
            "data.source": "logits",
            "data.path": save("logits.npy", z),
            "data.mask": save("mask.npy", mask),
            "data.padding": padding,
            "data.sequence_length": 70,
            "balance.alpha_expert": 0.01,
            "balance.alpha_device": 0.02,
            "balance.alpha_comm": 0.03,
            "balance.z_loss": 0.001,
            "output.routing": "yes",
            "output.tensors": "yes",
        }
        folder = run(f"arrays-{padding}", 1, of)
        if not folder:
            return
        routing = moesim.route(**arguments(of))
        same_as_run(check, folder, summary(folder), routing, f"arrays, padding {padding}")
        wanted = numpy.load(f"{folder}/dlogits.npy")
        check(numpy.abs(routing.dlogits - wanted).max() <= 1e-15, "dlogits", padding)
        recorded(of, z, mask, padding, routing)


def recorded(of, z, mask, padding, routing):
    """Somebody else's choice, here the same one: the same losses, from logits or from scores."""
    settings = arguments(of)["settings"]
    settings.pop("router.bias_update_rate")
    scores = 1 / (1 + numpy.exp(-z.astype(float)))
    for more in ({"logits": z}, {"scores": scores}):
        again = moesim.route(
            experts=routing.experts,
            weights=routing.weights,
            mask=mask,
            settings=settings,
            **more,
        )
        for name in ("expert", "device", "comm", "mixtral", "importance"):
            a, b = again.losses[name], routing.losses[name]
            bound = 1e-6 if name == "importance" else 1e-12  # its weights were in single precision
            check(abs(a - b) <= bound * abs(b), padding, list(more), name, a, b)
        check(math.isnan(again.losses["z"]), "a recorded routing has no z-loss")
        check(numpy.array_equal(again.comm_matrix, routing.comm_matrix), padding, "comm_matrix")


# --- what is refused ---

LOGITS = numpy.zeros((8, 4), numpy.float32)


def with_value(value, kind=numpy.float32):
    z = LOGITS.astype(kind)
    z[3, 2] = value
    return z


REFUSED = [  # what is given, the error, words of its sentence
    ({"logits": with_value(numpy.nan)}, moesim.MoesimError, "logits [3,2] is nan"),
    ({"logits": with_value(numpy.inf)}, moesim.MoesimError, "logits [3,2] is inf"),
    ({"logits": with_value(2e6, float)}, moesim.MoesimError, "logits [3,2] is 2e+06"),
    ({"logits": numpy.full((8, 4), -numpy.inf)}, moesim.MoesimError, "all of token 0 are -inf"),
    ({"logits": numpy.zeros((8, 4), int)}, TypeError, "float16, float32 and float64"),
    ({"logits": numpy.zeros((8, 4), complex)}, TypeError, "float16, float32 and float64"),
    ({"logits": numpy.zeros(8)}, moesim.MoesimError, "logits has the shape (8,)"),
    ({"logits": numpy.zeros((0, 4))}, moesim.MoesimError, "holds nothing"),
    ({"logits": [["a", "b"]]}, TypeError, "logits is an array of"),
    ({"logits": LOGITS, "top_k": 5}, moesim.MoesimError, "at most model.num_experts"),
    ({"logits": LOGITS, "top_k": "many"}, moesim.MoesimError, "router.top_k"),
    ({"logits": LOGITS, "top_k": [1]}, TypeError, "a setting is a number"),
    ({"logits": LOGITS, "topk": 2}, moesim.MoesimError, "there is no such setting"),
    ({"logits": LOGITS, "policy": "expert"}, moesim.MoesimError, "capacity_policy"),
    ({"logits": LOGITS, "num_experts": 8}, moesim.MoesimError, "the array has 4 columns"),
    ({"logits": LOGITS, "devices": 3}, moesim.MoesimError, "multiple of cluster.devices"),
    ({"logits": LOGITS, "steps": 2}, moesim.MoesimError, "run.steps is no setting of a layer"),
    ({"logits": LOGITS, "source": "text"}, moesim.MoesimError, "data.source is no setting"),
    ({"logits": LOGITS, "mask": numpy.ones(7, int)}, moesim.MoesimError, "mask has 7 elements"),
    ({"logits": LOGITS, "mask": numpy.zeros(8, int)}, moesim.MoesimError, "all of it is 0"),
    ({"logits": LOGITS, "mask": numpy.ones(8)}, TypeError, "integers are needed"),
    ({"logits": LOGITS, "bias": numpy.zeros(5)}, moesim.MoesimError, "bias has 5 elements"),
    ({"logits": LOGITS, "bias": [0, 0, numpy.nan, 0]}, moesim.MoesimError, "bias [2,0] is nan"),
    ({"logits": LOGITS, "boundaries": [0, 4, 4, 8]}, moesim.MoesimError, "rising numbers"),
    ({"logits": LOGITS, "boundaries": [0, 4]}, moesim.MoesimError, "number of tokens, here 8"),
    ({"logits": LOGITS, "experts": LOGITS}, TypeError, "experts is an array of float32"),
    ({"logits": LOGITS, "experts": [[0, 4]] * 8}, moesim.MoesimError, "routing [0,1] is 4"),
    ({"logits": LOGITS, "experts": [[1, 1]] * 8}, moesim.MoesimError, "different experts"),
    ({"logits": LOGITS, "experts": [[0, 1]] * 7}, moesim.MoesimError, "logits is [8,4]"),
    ({"logits": LOGITS, "experts": [[2**40, 1]] * 8}, moesim.MoesimError, "more than int32"),
    (
        {"experts": [[0, 1]] * 8, "num_experts": 4, "weights": numpy.zeros((8, 3))},
        moesim.MoesimError,
        "weights is [8,3]",
    ),
    (
        {"experts": [[0, 1]] * 8, "scores": numpy.full((8, 4), 2.0)},
        moesim.MoesimError,
        "scores from 0 to 1",
    ),
    ({"logits": LOGITS, "weights": numpy.zeros((8, 2))}, moesim.MoesimError, "data.source"),
    ({"logits": LOGITS, "expert_at": [0, 1, 2, 2]}, moesim.MoesimError, "expert 3 is in no slot"),
    ({"logits": LOGITS, "expert_at": [0, 1, 2]}, moesim.MoesimError, "expert_at has 3 elements"),
    (
        {"logits": LOGITS, "settings": {"placement.policy": "eplb"}, "top_k": 1},
        moesim.MoesimError,
        "moesim_place",
    ),
    ({"logits": LOGITS, "top_k": 1, "settings": {"router.top_k": 1}}, moesim.MoesimError, "twice"),
]


def refusal(call, error, sentence, what):
    try:
        call()
    except error as found:
        check(sentence in str(found) and "\n" not in str(found), what, "says", found)
    except Exception as found:
        check(False, what, type(found), found)
    else:
        check(False, what, "is not refused")


def test_refused():
    for given, error, sentence in REFUSED:
        refusal(
            lambda: moesim.route(
                **{"top_k": 2, **given}
                if "top_k" not in given and "settings" not in given
                else given
            ),
            error,
            sentence,
            given,
        )
    routing = moesim.route(LOGITS, top_k=2)
    refusal(lambda: routing["losses?"], moesim.MoesimError, "there is no result", "a result")
    refusal(lambda: routing.capacity, moesim.MoesimError, "needs a capacity.policy", "capacity")
    refusal(lambda: routing.nothing, AttributeError, "has no 'nothing'", "an attribute")
    load = numpy.ones(8)
    for more, sentence in (
        ({"devices": 3}, "3 devices do not divide 8 experts"),
        ({"devices": 0}, "whole number from 1 on"),
        ({"devices": 4, "policy": "best"}, "there is no balancer 'best'"),
        ({"devices": 4, "nodes": 3}, "nodes"),
        ({"devices": 4, "slots_per_device": 1}, "do not fit into 4 slots"),
        ({"devices": 4, "policy": "joint"}, "which experts are chosen together"),
        ({"devices": 4, "pairs": numpy.ones((2, 2))}, "pairs has the shape (2, 2)"),
    ):
        refusal(lambda: moesim.place(load, **more), moesim.MoesimError, sentence, more)
    bad = load.copy()
    bad[5] = numpy.nan
    refusal(lambda: moesim.place(bad, 4), moesim.MoesimError, "load of expert 5 is nan", "load")


# --- forms of arrays ---


def test_forms():
    """Half precision, other orders and byte orders, sequences as a dimension, tensors."""
    rng = numpy.random.default_rng(3)
    z = rng.standard_normal((4, 16, 8)).astype(numpy.float16)
    flat = z.reshape(-1, 8).astype(numpy.float32)
    wanted = moesim.route(flat, top_k=2, devices=4, sequence_length=16)
    for form in (
        z,
        flat.reshape(4, 16, 8).astype(">f4"),
        numpy.asfortranarray(flat.reshape(4, 16, 8)),
        z.tolist(),
    ):
        found = moesim.route(form, top_k=2, devices=4)
        check(numpy.array_equal(found.experts, wanted.experts), "another form of logits")
        check(abs(found.losses["expert"] - wanted.losses["expert"]) < 1e-14, "another form")
    table = wanted.loss_table()
    check(len({len(column) for column in table.values()}) == 1, "loss_table")
    check(wanted.losses == moesim.balance_losses(flat, top_k=2, devices=4, sequence_length=16))
    load = wanted.counts_per_expert
    placed = moesim.place(load, 4, "eplb", slots_per_device=3)
    moved = moesim.route(flat, top_k=2, devices=4, expert_at=placed.expert_at, redundant_experts=4)
    check(moved.counts_per_device.sum() == load.sum(), "replicas lose selections")
    check(placed.expert_at.shape == (4, 3) and placed.served.sum() == load.sum(), "place")


# --- a run's folder ---


def test_load_run():
    of = {
        "model.num_experts": 16,
        "model.hidden_size": 16,
        "model.num_layers": 2,
        "cluster.devices": 4,
        "data.tokens_per_device": 32,
        "router.top_k": 2,
        "run.steps": 3,
        "output.routing": "yes",
    }
    folder = run("three-steps", 2, of)
    if not folder:
        return
    found = moesim.load_run(folder)
    check(found.config["router"]["top_k"] == 2, "config")
    check(found.arrays["topk_idx"].shape == (2, 128, 2), "topk_idx")
    steps, experts, devices = found.step_table(), found.expert_table(), found.device_table()
    check(list(steps["step"]) == [0, 1, 2], steps["step"])
    check(steps["loss_raw.expert"].dtype == float, "a column of losses")
    check(len(found.layer_table()["layer"]) == 2, "layer_table")
    check(experts["counts_per_expert"].sum() == 2 * 128 * 2, "expert_table")
    loads = found.arrays["expert_load"][-1].reshape(-1)
    check(numpy.array_equal(experts["counts_per_expert"], loads), "expert_load")
    check(len(devices["device"]) == 8, "device_table")
    for table in (steps, experts, devices, found.layer_table()):
        check(len({len(column) for column in table.values()}) == 1, "columns of equal length")
    with open(f"{folder}/metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    check(len(moesim.load_run(folder).metrics) == 3, "a line that is being written")
    os.remove(f"{folder}/summary.json")
    unfinished = moesim.load_run(folder)
    refusal(unfinished.layer_table, moesim.MoesimError, "the run has not ended", "no summary")
    refusal(lambda: moesim.load_run("nowhere"), FileNotFoundError, "no such folder", "nowhere")
    refusal(lambda: moesim.load_run(SOURCE), FileNotFoundError, "holds no run", "the source")
    refusal(lambda: found.arrays["y"], KeyError, "y.npy is not there", "an array")
    with open(f"{folder}/kept.npy", "r+b") as file:
        file.truncate(200)
    refusal(lambda: found.arrays["kept"], moesim.MoesimError, "no complete array", "half a file")


# --- the example ---


def test_example():
    """examples/check_routing.py with a right implementation and with two wrong ones."""
    script = os.path.join(SOURCE, "python", "examples", "check_routing.py")
    environment = {**os.environ, "PYTHONPATH": os.path.join(SOURCE, "python")}
    for mistake, word in (("none", "agree"), ("mean", "device"), ("selections", "comm")):
        done = subprocess.run(
            [sys.executable, script, "--mistake", mistake],
            capture_output=True,
            text=True,
            env=environment,
        )
        check(done.returncode == (mistake != "none"), mistake, done.returncode, done.stderr)
        check(word in done.stdout, mistake, done.stdout)


test_synthetic(16)
test_arrays()
test_refused()
test_forms()
test_load_run()
test_example()
print(json.dumps(moesim.version()))
verdict()
