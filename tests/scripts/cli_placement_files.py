"""ctest: timeout=120
scripts/export-placement and import-placement: what a comparison writes goes out in the form of each
system and comes back the same; the golden EPLB cases are EPLB's own results; forms that others
write otherwise are read; and what is damaged gets one sentence.
"""
import json
import os
import subprocess
import sys

import _moesim as m

os.chdir(m.TEMPORARY)
LAYERS, EXPERTS, DEVICES, SLOTS = 2, 6, 4, 8
ROWS = [[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 5]]
FLAT = [expert for row in ROWS for expert in row]


def tool(script, *words):
    line = [sys.executable, os.path.join(m.SOURCE, "scripts", script), *map(str, words)]
    return subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def written(script, *words):
    done = tool(script, *words)
    m.check(done.returncode == 0, f"{script} {words}: {done.returncode}: {done.stderr}")
    return done.stdout


def refused(script, sentence, *words):
    done = tool(script, *words, "--out", "refused")
    m.check(
        done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1,
        f"{script} {words}: {done.returncode}, expected '{sentence}': {done.stderr}",
    )
    m.check(not os.path.exists("refused"), f"{script} {words}: something was written")


def text(name, content):
    with open(name, "w", encoding="utf-8") as file:
        file.write(content)
    return name


def read(name):
    with open(name, encoding="utf-8") as file:
        return file.read()


def comes_back(name, *words, rows=FLAT):
    written("import-placement", name, "--out", "back.npy", "--force", *words)
    got = m.load("back.npy")
    m.check(
        got.dtype == "<i4" and got.shape == (len(rows) // SLOTS, SLOTS) and list(got.data) == rows,
        name,
        "comes back as",
        got.shape,
        list(got.data),
    )


def test_forms():
    """Each form holds what its system looks for, and comes back."""
    path = m.save("p.npy", "<i4", (LAYERS, SLOTS), FLAT)
    out = {}
    for form, ending in (
        ("eplb", ""),
        ("sglang", ".json"),
        ("trtllm", ".yaml"),
        ("vllm-ascend", ".json"),
        ("csv", ".csv"),
    ):
        out[form] = f"out-{form}{ending}"
        words = ["--format", form, "--devices", DEVICES, "--out", out[form]]
        said = written("export-placement", path, *words)
        m.check("2 layers, 6 experts in 8 slots (2 redundant) on 4 devices" in said, said)
        comes_back(out[form])
    m.check(
        list(m.load("out-eplb/logcnt.npy").data) == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3], "logcnt"
    )
    back = m.load("out-eplb/log2phy.npy")
    m.check(back.shape == (LAYERS, EXPERTS, 3) and back.dtype == "<i8", back.shape, back.dtype)
    m.check(list(back.data)[:6] == [0, 6, -1, 1, 7, -1], "log2phy", list(back.data))
    m.check(json.loads(read(out["sglang"])) == {"physical_to_logical_map": ROWS}, "SGLang's")
    m.check(
        read(out["trtllm"]).splitlines()
        == [
            "num_slots: 8",
            "initial_global_assignments:",
            f"  0: {ROWS[0]}",
            f"  1: {ROWS[1]}",
            "layer_updates_per_iter: 0",
        ],
        read(out["trtllm"]),
    )
    ascend = json.loads(read(out["vllm-ascend"]))
    m.check(ascend["moe_layer_count"] == LAYERS, "moe_layer_count")
    last = ascend["layer_list"][1]
    m.check(
        (last["layer_id"], last["device_count"]) == (1, DEVICES)
        and last["device_list"][3] == {"device_id": 3, "device_expert": [5, 5]},
        last,
    )
    m.check(
        read(out["csv"]).splitlines()[:4]
        == ["layer,device,slot,expert", "0,0,0,0", "0,0,1,1", "0,1,0,2"],
        "CSV",
    )


def test_dense_layers():
    """SGLang and TensorRT-LLM count the layers before the first one with experts."""
    words = ["--first-layer", 3, "--format"]
    written("export-placement", "p.npy", *words, "sglang", "--out", "dense.json")
    rows = json.loads(read("dense.json"))["physical_to_logical_map"]
    m.check(len(rows) == 5 and rows[0] == [0, 1, 2, 3, 4, 5, 0, 1] and rows[3:] == ROWS, rows)
    comes_back("dense.json", "--first-layer", 3)
    written("export-placement", "p.npy", *words, "trtllm", "--out", "dense.yaml")
    m.check(f"  3: {ROWS[0]}\n  4: {ROWS[1]}\n" in read("dense.yaml"), read("dense.yaml"))
    comes_back("dense.yaml")


def test_other_hands():
    """YAML as libraries write it, ids in another order, other integer types."""
    block = "".join(
        f"  {i + 3}:\n" + "".join(f"  - {e}\n" for e in row) for i, row in enumerate(ROWS)
    )
    comes_back(
        text(
            "block.yaml",
            f"# by hand\nep_size: 4\ninitial_global_assignments:\n{block}num_slots: 8\n",
        )
    )
    folded = "".join(
        f"  '{i}': [{', '.join(map(str, row[:5]))},\n    {', '.join(map(str, row[5:]))}]  # layer\n"
        for i, row in enumerate(ROWS)
    )
    comes_back(
        text(
            "folded.yml",
            f"num_slots: 8\ninitial_global_assignments:\n{folded}layer_updates_per_iter: 0\n",
        )
    )
    table = json.loads(read("out-vllm-ascend.json"))
    table["layer_list"].reverse()
    for layer in table["layer_list"]:
        layer["device_list"].reverse()
    comes_back(text("turned.json", json.dumps(table)))
    comes_back(m.save("wide.npy", "<i8", (LAYERS, SLOTS), FLAT))
    comes_back(m.save("flat.npy", "|u1", (SLOTS,), ROWS[0]), rows=ROWS[0])


def test_comparison():
    """The golden EPLB case goes through a comparison and out again: EPLB's own three results."""
    case = os.path.join(m.GOLDEN, "eplb", sorted(os.listdir(os.path.join(m.GOLDEN, "eplb")))[0])
    expected = json.loads(read(os.path.join(case, "expected.json")))
    settings = {
        "model.num_experts": expected["experts"],
        "cluster.devices": expected["num_gpus"],
        "cluster.devices_per_node": expected["num_gpus"] // expected["num_nodes"],
        "router.num_groups": expected["num_groups"],
        "placement.redundant_experts": expected["num_replicas"] - expected["experts"],
        "placement.load": os.path.join(case, "weight.npy"),
    }
    done = m.moesim(1, "--placements", m.QUICKSTART, *m.sets(settings), "--out", "compared")
    if not m.check(done.code == 0, done.err):
        return
    written(
        "export-placement", "compared", "--policy", "eplb", "--format", "eplb", "--out", "golden"
    )
    for name in ("phy2log", "logcnt"):
        mine, theirs = (m.load(os.path.join(f, f"{name}.npy")) for f in ("golden", case))
        m.check(list(mine.data) == list(theirs.data), f"{name} is not EPLB's")
    mine, theirs = (m.load(os.path.join(f, "log2phy.npy")) for f in ("golden", case))
    m.check(
        [set(row) - {-1} for row in mine.rows()] == [set(row) - {-1} for row in theirs.rows()],
        "log2phy is not EPLB's",
    )
    refused("export-placement", "--policy is missing; it has", "compared", "--format", "csv")
    refused(
        "export-placement",
        "--policy x is not there",
        "compared",
        "--format",
        "csv",
        "--policy",
        "x",
    )
    refused(
        "export-placement",
        "--devices 3: compared has",
        "compared",
        "--format",
        "csv",
        "--policy",
        "eplb",
        "--devices",
        3,
    )


def test_refusals():
    refused("export-placement", "needs --devices D", "p.npy", "--format", "csv")
    refused(
        "export-placement", "no multiple of 3 devices", "p.npy", "--format", "csv", "--devices", 3
    )
    refused(
        "export-placement",
        "--first-layer does nothing",
        "p.npy",
        "--format",
        "eplb",
        "--first-layer",
        1,
    )
    empty = m.save("empty.npy", "<i4", (1, 3), [0, 1, -1])
    refused("export-placement", "a slot is empty (-1)", empty, "--format", "sglang")
    for name, content, sentence in (
        ("homeless.csv", "layer,device,slot,expert\n0,0,0,0\n0,1,0,2\n", "no slot for expert 1"),
        ("twice.csv", "layer,device,slot,expert\n0,0,0,0\n0,0,0,1\n", "stands twice"),
        ("hole.csv", "layer,device,slot,expert\n0,0,0,0\n0,1,1,1\n", "expected is one for each"),
        ("head.csv", "0,0,0,0\n", "its first line is not layer,device,slot,expert"),
        ("none.json", "{}", "neither physical_to_logical_map"),
        ("word.json", '{"physical_to_logical_map": [[0, "1"]]}', "an expert is 1"),
        ("deep.json", '{"physical_to_logical_map": [0, 1]}', "layer 0 is no list of experts"),
        ("uneven.json", '{"physical_to_logical_map": [[0, 1], [0, 1, 0]]}', "2, 3 slots"),
        ("text.json", "hello", "is no JSON"),
        (
            "ids.json",
            '{"layer_list": [{"layer_id": 1, "device_list": []}]}',
            "expected is each of 0 to 0",
        ),
        ("empty.yaml", "num_slots: 8\n", "no lists under initial_global_assignments"),
        ("same.yaml", "initial_global_assignments:\n  1: [0]\n  1: [0]\n", "stands twice"),
        ("what.txt", "0", "its name ends in none of"),
    ):
        refused("import-placement", sentence, text(name, content))
    done = tool("import-placement", "p.npy", "--out", "p.npy")
    m.check(done.returncode == 2 and "is there already" in done.stderr, done.stderr)


for test in (test_forms, test_dense_layers, test_other_hands, test_comparison, test_refusals):
    test()
m.verdict()
