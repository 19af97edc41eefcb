"""ctest: timeout=100
Predicted times from outside: the cluster files, who wins, what is refused, the fields of a run, the
same figures on any number of ranks, and --verify predict.
"""
import glob
import json
import os

from _moesim import QUICKSTART, SOURCE, check, metrics, moesim, near, sets, summary, verdict

PHASES = "attention dense gate dispatch expert combine allreduce backward step".split()
SMALL = sets({"data.tokens_per_device": 16, "run.steps": 1, "cluster.devices": 8})
H200 = os.path.join(SOURCE, "configs/clusters/h200.ini")
GOOD = "[cluster]\nintra_gbps = 100\ninter_gbps = 20\ndevice_tflops = 50\nmemory_gbps = 900\n"


def cluster(name, text):
    with open(name, "w") as file:
        file.write(text)
    return sets({"cluster.file": name})


def run(name, ranks, *options):
    done = moesim(ranks, QUICKSTART, *SMALL, *options, "--quiet", "--force", "--out", name)
    check(done.code == 0, f"{name}: {done.code} {done.err}")
    return summary(name) if done.code == 0 else None


def refused(words, *options):
    done = moesim(1, QUICKSTART, *SMALL, *options, "--check")
    said = " ".join(done.err.split())
    check(done.code == 2 and words in said, f"'{words}' is not said: {done.code} {said}")


def check_fields():
    s = run("fields", 2)
    for kind in ("predicted", "balanced"):
        times = s["time"][kind]
        check(list(times) == [p + "_us" for p in PHASES], f"{kind}: {times}")
        check(times["backward_us"] == 0 and min(times.values()) >= 0, f"{kind}: {times}")
    for key, value in s["time"]["balanced"].items():
        check(value <= s["time"]["predicted"][key] * (1 + 1e-12), f"balanced {key} is above")
    check(s["time"]["price_per_million_tokens"] is None, "a price without a price")
    check(" of the step: " in s["time"]["bottleneck"], s["time"]["bottleneck"])
    last = metrics("fields")[-1]["time"]["predicted"]["step_us"]
    check(last == s["time"]["predicted"]["step_us"], "metrics.jsonl and summary.json differ")


def check_ranks():
    first = run("np1", 1)["time"]["predicted"]
    for ranks in (2, 8):
        other = run(f"np{ranks}", ranks)["time"]["predicted"]
        check(other == first, f"np {ranks} predicts {other}, np 1 {first}")


def check_files():
    """Each file of configs/clusters is accepted. Keys that are given win, and the resolved
    configuration does without the file.
    """
    files = sorted(glob.glob(os.path.join(SOURCE, "configs/clusters/*.ini")))
    check(len(files) == 7, files)
    for file in files:
        done = moesim(1, QUICKSTART, *SMALL, *sets({"cluster.file": file}), "--check")
        check(done.code == 0 and "inter_gbps" in done.out, f"{file}: {done.err}")
    options = cluster("mine.ini", GOOD)
    a = run("mine", 1, *options)["time"]["predicted"]
    check(summary("np1")["time"]["predicted"] != a, "the file has no effect")
    given = {"cluster.inter_gbps": 20, "cluster.intra_gbps": 100, "cluster.device_tflops": 50}
    given["cluster.memory_gbps"] = 900
    check(run("keys", 1, *sets(given))["time"]["predicted"] == a, "keys and file differ")
    fast = run("wins", 1, *options, *sets({"cluster.intra_gbps": 1e5}))["time"]["predicted"]
    check(fast["dispatch_us"] < a["dispatch_us"], "a key does not win over the file")
    os.remove("mine.ini")
    done = moesim(1, "mine/config.ini", "--quiet", "--out", "again")
    check(done.code == 0, f"a resolved configuration needs the file: {done.err}")
    check(summary("again")["time"]["predicted"] == a, "the second run predicts something else")
    other = sets({"cluster.file": H200})
    done = moesim(1, "mine/config.ini", *other, "--quiet", "--out", "moved")
    moved = summary("moved")["time"]["predicted"] if done.code == 0 else None
    check(moved and moved != a, f"--set cluster.file has no effect: {done.err}")


def check_model():
    """A full-size model: layers multiply, and a part of a node is a node."""
    size = {"cluster.model_hidden_size": 7168, "cluster.model_intermediate_size": 2048}
    one = run("one", 1, *sets({**size, "cluster.file": H200, "cluster.model_layers": 1}))
    many = run("many", 1, *sets({**size, "cluster.file": H200, "cluster.model_layers": 58}))
    a, b = one["time"]["predicted"]["step_us"], many["time"]["predicted"]["step_us"]
    check(near(b, 58 * a, 1e-12), f"58 layers take {b}, one {a}")
    price = many["time"]["price_per_million_tokens"]
    tokens = many["num_tokens"]
    check(near(price, 3.5 / 3600 * 8 * b / tokens, 1e-12), f"price {price}")
    check(one["config"]["cluster"]["devices_per_node"] == 8, "a node of h200.ini has 8")


def check_placements():
    """--placements on a run's last step: in blocks it is that step, without the allreduce."""
    options = sets({"run.steps": 2, "cluster.devices_per_node": 4, "model.num_layers": 2})
    ran = run("ran", 1, *options)
    time = ran["time"]["predicted"]
    more = sets({"placement.score": 1, "placement.fit": 1})
    done = moesim(2, QUICKSTART, *SMALL, *options, *more, "--placements", "--quiet", "--out", "p")
    if check(done.code == 0, f"--placements: {done.err}"):
        with open("p/placements.json") as file:
            policies = json.load(file)["policies"]
        block = policies["block"]["predicted_step_us"]
        wanted = time["step_us"] - time["allreduce_us"]
        check(near(block, wanted, 1e-9), f"--placements predicts {block}, the run {wanted}")
        other = policies["eplb"]["predicted_step_us"]
        check(other != block and 0.2 < other / block < 5, f"eplb: {other}, block: {block}")


def check_training():
    options = sets({"run.mode": "train", "cluster.devices_per_node": 4})
    t = run("train", 2, *options)["time"]["predicted"]
    check(t["backward_us"] > t["expert_us"], f"backward: {t}")
    twice = run("twice", 2, *options, *sets({"train.accumulate": 2}))["time"]["predicted"]
    check(1.5 < twice["step_us"] / t["step_us"] < 2.5, f"two micro-batches: {twice} {t}")


def check_attention():
    """On the screen and in the step where there is attention, and 0 elsewhere."""
    options = sets({"model.attention": "mla", "data.sequence_length": 16})
    done = moesim(1, QUICKSTART, *SMALL, *options, "--full", "--force", "--out", "attends")
    check(done.code == 0 and "\n  attention " in done.out, f"{done.err} {done.out[-2000:]}")
    time = summary("attends")["time"]["predicted"]
    without = summary("np1")["time"]["predicted"]
    check(time["attention_us"] > 0 and without["attention_us"] == 0, f"{time} {without}")


def check_compute():
    """What bf16 products are worth is not among a cluster's constants, which is said."""
    said = "what model.compute = bf16 changes on this cluster is not known"
    for compute in ("fp32", "bf16"):
        options = sets({"model.compute": compute})
        for full in ((), ("--full",)):
            done = moesim(1, QUICKSTART, *SMALL, *options, *full, "--force", "--out", "compute")
            there = said in " ".join(done.out.split())
            check(done.code == 0 and there == (compute == "bf16"), f"{compute}: {done.out}")


def check_refused():
    refused("cluster.intra_gbps = 0: allowed", *sets({"cluster.intra_gbps": 0}))
    refused("nowhere.ini cannot be read", *sets({"cluster.file": "nowhere.ini"}))
    refused("memory_gbps is missing", *cluster("a.ini", GOOD.replace("memory_gbps = 900\n", "")))
    refused("b.ini:5: cluster.memory_gbps", *cluster("b.ini", GOOD.replace("900", "0")))
    refused("c.ini:7: router.top_k", *cluster("c.ini", GOOD + "[router]\ntop_k = 2\n"))
    refused("d.ini:6", *cluster("d.ini", GOOD + "inter_gbs = 3\n"))
    refused("it has to divide", *cluster("e.ini", GOOD + "devices_per_node = 3\n"))
    refused("f.ini:6: cluster.file", *cluster("f.ini", GOOD + "file = x\n"))
    os.makedirs("folder", exist_ok=True)
    refused("folder cannot be read", *sets({"cluster.file": "folder"}))


def check_verify():
    done = moesim(1, "--verify", "predict")
    check(done.code == 0 and not done.err, f"{done.code} {done.err}")
    lines = done.out.splitlines()
    check(max(map(len, lines)) <= 100, "a wide line")
    for words in ("measured", "predicted", "NOT EXPLAINED", "which no byte count explains"):
        check(words in done.out, f"'{words}' is not said")
    check("passed" not in done.out and "ok" not in done.out.split(), "a measurement is no check")
    done = moesim(1, "--verify", "--quiet", "predict")
    check(done.code == 0 and "measured" in done.out, "words in another order")


check_fields()
check_ranks()
check_files()
check_model()
check_placements()
check_training()
check_attention()
check_compute()
check_refused()
check_verify()
verdict()
