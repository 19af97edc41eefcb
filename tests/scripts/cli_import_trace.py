"""ctest: timeout=60
scripts/import-trace: files in each documented format, made here out of one known routing, become
.npy that hold that routing, and moesim replays them on two ranks. Damaged and foreign files are
refused with one sentence; cli_import_fuzz.py has more of those."""
import array
import base64
import io
import json
import os
import pickle
import random
import subprocess
import sys
import types
import zipfile

import _moesim as m

LAYERS, TOKENS, K, N = 2, 24, 3, 16
drawn = random.Random(7)
ROUTING = [
    [drawn.sample(range(N), K) for _ in range(TOKENS)] for _ in range(LAYERS)
]  # [layer][token][choice]
WEIGHTS = [
    [
        sorted((round(drawn.uniform(0.1, 0.9), 3) for _ in range(K)), reverse=True)
        for _ in range(TOKENS)
    ]
    for _ in range(LAYERS)
]
FLAT = [expert for layer in ROUTING for token in layer for expert in token]
BY_TOKEN = [
    ROUTING[layer][t] for t in range(TOKENS) for layer in range(LAYERS)
]  # [token, layer] of choices
FLAT_BY_TOKEN = [expert for choice in BY_TOKEN for expert in choice]


def tool(script, *words):
    return subprocess.run(
        [sys.executable, os.path.join(m.SOURCE, "scripts", script), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def write(name, text):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "w") as file:
        file.write(text)
    return name


def imported(name, *words):
    """Folder of an import that has to go well."""
    done = tool("import-trace", *words, "--out", name)
    m.check(done.returncode == 0, f"{name}: status {done.returncode}: {done.stderr}")
    return name


def holds_routing(folder, shape=(LAYERS, TOKENS, K), numbers=FLAT):
    got = m.load(os.path.join(folder, "topk_idx.npy"))
    m.check(got.dtype == "<i4" and got.shape == shape, folder, "has", got.dtype, got.shape)
    m.check(list(got.data) == list(numbers), folder, "holds another routing")


def holds_steps(folder, sizes):
    """The steps of the routing, each on as many places as the longest, and the replay of them: in
    every step as many tokens as it has, dealt evenly."""
    got, mask = (m.load(os.path.join(folder, name)) for name in ("topk_idx.npy", "mask.npy"))
    places = max(sizes)
    m.check(got.shape == (len(sizes), LAYERS, places, K), folder, "has", got.shape)
    m.check(mask.shape == (len(sizes), places), folder, "has the mask", mask.shape)
    rows, begin = got.rows(), 0
    for step, size in enumerate(sizes):
        marked = list(mask.data)[step * places : (step + 1) * places]
        m.check(sum(marked) == size, folder, "step", step, marked)
        for layer in range(LAYERS):
            here = rows[(step * LAYERS + layer) * places : (step * LAYERS + layer + 1) * places]
            kept = [list(row) for row, there in zip(here, marked) if there]
            m.check(kept == ROUTING[layer][begin : begin + size], folder, "step", step, kept)
            m.check(
                all(set(row) == {-1} for row, there in zip(here, marked) if not there),
                folder,
                "padding has experts",
            )
        begin += size
    run = m.moesim(
        2, f"{folder}/routing.ini", "--out", f"{folder}-replay", *m.sets({"model.hidden_size": 8})
    )
    m.check(run.code == 0, run.err)
    found = [step["num_tokens"] for step in m.metrics(f"{folder}-replay")]
    m.check(found == sizes, folder, "tokens of the steps:", found)
    first = m.summary(f"{folder}-replay")["layers"][0]["sent_rows"]
    m.check(min(first) > 0, folder, "a device has nothing but padding:", first)


def refused(what, sentence, *words):
    done = tool("import-trace", *words, "--out", "refused")
    m.check(
        done.returncode == 2
        and sentence in done.stderr
        and done.stderr.count("\n") == 1
        and not os.path.exists("refused"),
        f"{what}: status {done.returncode}: {done.stderr}",
    )


# --- Megatron-Core ---


def bfloat16(number):
    return array.array("I", array.array("f", [number]).tobytes())[0] >> 16


def megatron_record(layer, rank, step, rows, **more):
    return {
        "step": step,
        "stage": "pre_dispatch",
        "block": "decoder",
        "layer": layer,
        "rank": rank,
        "num_tokens": len(rows),
        "topk": K,
        "top_indices": rows,
        **more,
    }


def megatron(folder, logits=None):
    """Two ranks with half of the tokens each, two steps on the second one; layers are named 3 and
    10. Prediction's layer 3 is not theirs."""
    half = TOKENS // 2
    for rank, parts in ((0, [(0, 0, half)]), (1, [(0, half, half + 5), (1, half + 5, TOKENS)])):
        lines, content = [], b""
        for step, first, last in parts:
            for i, layer in enumerate((3, 10)):
                more = {}
                if logits:
                    part = array.array(
                        "H", [bfloat16(z) for t in range(first, last) for z in logits[i][t]]
                    ).tobytes()
                    more = {
                        "logit_offset": len(content),
                        "logit_bytes": len(part),
                        "logit_shape": [last - first, N],
                    }
                    content += part
                lines.append(megatron_record(layer, rank, step, ROUTING[i][first:last], **more))
            lines.append(
                {**megatron_record(3, rank, step, [[0] * K]), "block": "mtp", "mtp_idx": 0}
            )
        write(
            f"{folder}/router_trace_rank{rank}.jsonl",
            "".join(json.dumps(line) + "\n" for line in lines),
        )
        if logits:
            with open(f"{folder}/logits_rank{rank}.bin", "wb") as file:
                file.write(content)
    return folder


def test_megatron():
    holds_routing(imported("megatron", megatron("mcore"), "--experts", str(N), "--one-step"))
    holds_steps(imported("msteps", "mcore", "--experts", str(N)), [TOKENS // 2 + 5, 7])
    one = imported(
        "megatron1",
        "mcore/router_trace_rank1.jsonl",
        "--steps",
        "1:1",
        "--layers",
        "1:1",
        "--experts",
        str(N),
    )
    holds_routing(
        one,
        (TOKENS - TOKENS // 2 - 5, K),
        [e for token in ROUTING[1][TOKENS // 2 + 5 :] for e in token],
    )
    stages = [
        write(f"stage{i}.jsonl", json.dumps(megatron_record(layer, i, 0, ROUTING[i])) + "\n")
        for i, layer in enumerate((3, 10))
    ]
    holds_routing(imported("megatron2", *stages))
    refused(
        "a record without layer",
        ":1: no record",
        write("nolayer.jsonl", '{"top_indices": [[1]]}\n{}\n'),
    )
    refused("another block", "no token with an expert", "mcore", "--block", "mtp", "--steps", "7:8")
    refused("an id too large", "there are 4", "mcore", "--experts", "4")


def test_megatron_logits():
    """Logits of distinct sixteenths: exact in bfloat16, and the K largest are the routing."""
    logits = [
        [
            [
                1.0 - ROUTING[i][t].index(e) / 16 if e in ROUTING[i][t] else -(e + 1) / 16
                for e in range(N)
            ]
            for t in range(TOKENS)
        ]
        for i in range(LAYERS)
    ]
    folder = imported("mlogits", megatron("mcore2", logits), "--one-step")
    got = m.load(f"{folder}/logits.npy")
    m.check(
        got.shape == (LAYERS, TOKENS, N)
        and list(got.data) == [z for layer in logits for token in layer for z in token],
        "logits.npy differs",
    )
    run = m.moesim(2, f"{folder}/logits.ini", "--out", "mrun", "--quiet")
    m.check(run.code == 0, run.err)
    m.check(
        run.code == 0 and list(m.load("mrun/topk_idx.npy").data) == FLAT,
        "moesim chooses other experts from the logits",
    )
    folder = imported("msteplogits", "mcore2")
    run = m.moesim(2, f"{folder}/logits.ini", "--out", "msteprun", "--quiet")
    m.check(run.code == 0, run.err)
    loads = m.load("msteprun/expert_load.npy")
    m.check(
        loads.shape == (2, LAYERS, N) and [sum(row) for row in loads.rows()] == [51, 51, 21, 21],
        "steps of logits:",
        loads.shape,
        loads.rows(),
    )


# --- SGLang ---


class Storage:
    def __init__(self, kind, numbers):
        self.kind, self.numbers = kind, numbers


class FakeTensor:
    """Pickles as torch.save writes a tensor."""

    def __init__(self, shape, numbers, kind="IntStorage", strides=None):
        self.shape, self.storage, self.strides = (
            tuple(shape),
            Storage(kind, array.array({"IntStorage": "i", "LongStorage": "q"}[kind], numbers)),
            strides,
        )

    def __reduce__(self):
        strides, size = [], 1
        for length in reversed(self.shape):
            strides.insert(0, size)
            size *= length
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (
            self.storage,
            0,
            self.shape,
            tuple(self.strides or strides),
            False,
            {},
        )


def fake_torch():
    """Modules whose names the pickle carries."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def rebuild(*_):
        raise AssertionError("only the name is needed")

    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = (
        "torch._utils",
        "_rebuild_tensor_v2",
        "_rebuild_tensor_v2",
    )
    utils._rebuild_tensor_v2 = rebuild
    for kind in ("IntStorage", "LongStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    sys.modules.update({"torch": torch, "torch._utils": utils})


def save_pt(path, thing):
    """As torch.save since 1.6: NAME/data.pkl, NAME/data/0 ..."""
    parts, body = [], io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, part):
            if not isinstance(part, Storage):
                return None
            parts.append(part)
            return (
                "storage",
                getattr(sys.modules["torch"], part.kind),
                str(len(parts) - 1),
                "cpu",
                len(part.numbers),
            )

    Pickler(body, protocol=2).dump(thing)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dump/data.pkl", body.getvalue())
        archive.writestr("dump/byteorder", "little")
        for i, part in enumerate(parts):
            archive.writestr(f"dump/data/{i}", part.numbers.tobytes())
    return path


def sglang_record(number, rank, first, last, physical):
    """8 places for each token, -1 behind the K that are used, and a dense layer without experts."""
    ids = [-1] * (8 * (last - first))
    for layer in ROUTING:
        for token in layer[first:last]:
            ids += [physical(e) for e in token] + [-1] * (8 - K)
    return {
        "forward_pass_id": number,
        "rank": rank,
        "gatherer_key": "primary",
        "input_ids": [0] * (last - first),
        "extend_seq_lens": None,
        "topk_ids_of_layer": FakeTensor((LAYERS + 1, last - first, 8), ids),
        "misc_objects": [],
        "global_physical_count": FakeTensor((LAYERS + 1, N + 2), [0] * (N + 2) * (LAYERS + 1)),
    }


def test_sglang():
    """Physical experts stand in reverse order behind two replicas of expert 0; passes are out of
    order in the files."""
    fake_torch()
    table = FakeTensor(
        (LAYERS + 1, N + 2), [0, 0, *reversed(range(N))] * (LAYERS + 1), "LongStorage"
    )
    physical = lambda e: N + 1 - e if e else drawn.randrange(2)  # noqa: E731
    os.makedirs("sg")
    save_pt(
        "sg/expert_distribution_recorder_1.5_0.pt",
        {
            "records": [
                sglang_record(5, 0, 10, 20, physical),
                sglang_record(4, 0, 0, 10, physical),
            ],
            "last_physical_to_logical_map": table,
        },
    )
    save_pt(
        "sg/expert_distribution_recorder_1.5_1.pt",
        {
            "records": [sglang_record(5, 1, 20, TOKENS, physical)],
            "last_physical_to_logical_map": table,
        },
    )
    holds_routing(imported("sglang", "sg", "--one-step"))
    holds_steps(imported("sgsteps", "sg"), [10, 14])
    loads = save_pt(
        "stat.pt",
        {
            "rank": 0,
            "logical_count": FakeTensor((2, 3, 4), range(24)),
            "average_utilization_rate_over_window": None,
        },
    )
    got = m.load(os.path.join(imported("sgstat", loads), "expert_load.npy"))
    m.check(
        got.dtype == "<i8" and got.shape == (2, 3, 4) and list(got.data) == list(range(24)),
        "loads differ",
    )
    text = write("stat.json", json.dumps({"logical_count": [[[1, 2], [3, 4]]]}))
    got = m.load(os.path.join(imported("sgjson", text), "expert_load.npy"))
    m.check(got.shape == (1, 2, 2) and list(got.data) == [1, 2, 3, 4], "loads of JSON differ")
    flat = write("flat.json", json.dumps({"logical_count": [[1, 2], [3, 4], [5, 6]]}))
    got = m.load(os.path.join(imported("sgflat", flat), "expert_load.npy"))
    m.check(got.shape == (1, 3, 2) and list(got.data) == [1, 2, 3, 4, 5, 6], "one step of loads")
    ragged = write("ragged.json", json.dumps({"logical_count": [[1, 2], [3]]}))
    refused("ragged loads", "different numbers of layers or experts", ragged)
    refused("no loads", "logical_count", write("none.json", json.dumps({"logical_count": 3})))
    turned = save_pt(
        "turned.pt", {"logical_count": FakeTensor((2, 3, 4), range(24), strides=(1, 2, 6))}
    )
    got = m.load(os.path.join(imported("sgturned", turned), "expert_load.npy"))
    m.check(
        list(got.data) == [a + 2 * b + 6 * c for a in range(2) for b in range(3) for c in range(4)],
        "a tensor that is not contiguous is misread",
    )
    old = write(
        "expert_distribution_rank0_timestamp1.csv", "layer_id,expert_id,count\n0,1,5\n1,0,2\n"
    )
    m.check(
        list(m.load(os.path.join(imported("sgcsv", old), "expert_load.npy")).data) == [0, 5, 2, 0],
        "loads of the CSV differ",
    )
    refused(
        "a pickle with code",
        "only tensors and plain values",
        save_pt("evil.pt", {"records": os.getcwd}),
    )
    refused("no zip", "no zip archive", write("text.pt", "hello"))


# --- answers of servers ---


def npy_bytes(dtype, shape, numbers):
    return m.header_of(dtype, shape) + array.array(m.TYPES[dtype], numbers).tobytes()


def nested(first, last):
    return [[ROUTING[layer][t] for layer in range(LAYERS)] for t in range(first, last)]


def test_answers():
    """vLLM 0.21: prompt and choice as lists, cached tokens as -1; later a .npy; SGLang: bare
    numbers. And the arrays themselves."""
    cached = [[[-1] * K] * LAYERS] * 2
    lists = {
        "choices": [{"routed_experts": nested(10, TOKENS)}],
        "prompt_routed_experts": cached + nested(0, 10),
    }
    holds_routing(imported("vllm21", write("vllm21.json", json.dumps(lists)), "--experts", str(N)))
    half = len(FLAT) // 2
    lines = [
        {
            "choices": [
                {
                    "routed_experts": base64.b64encode(
                        npy_bytes("|u1", (TOKENS // 2, LAYERS, K), part)
                    ).decode()
                }
            ]
        }
        for part in (FLAT_BY_TOKEN[:half], FLAT_BY_TOKEN[half:])
    ]
    holds_routing(
        imported(
            "vllm22", write("vllm22.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        )
    )
    bare = {
        "meta_info": {
            "routed_experts": base64.b64encode(array.array("i", FLAT_BY_TOKEN).tobytes()).decode()
        }
    }
    answer = write("sglang.json", json.dumps([bare]))
    holds_routing(imported("sganswer", answer, "--shape", f"{LAYERS},{K}"))
    refused("bare numbers without a shape", "--shape LAYERS,K", answer)
    refused("a wrong shape", "no whole number of tokens", answer, "--shape", "7,5")
    holds_routing(
        imported("arrays", m.save("routed.npy", "<i2", (TOKENS, LAYERS, K), FLAT_BY_TOKEN))
    )
    refused(
        "an answer without experts",
        "--enable-return-routed-experts",
        write("plain.json", '{"choices": [{"text": "hi"}]}'),
    )
    refused("no JSON", "is no JSON", write("broken.json", "{"))


# --- CSV and the replay ---


def test_csv():
    """Lines in any order; two tokens have fewer choices; the replay counts what the file holds, and
    writes back the same routing."""
    kept = [
        (layer, t, k)
        for layer in range(LAYERS)
        for t in range(TOKENS)
        for k in range(K)
        if not (t == 3 and k == 2) and not (t == 5 and layer == 1)
    ]
    drawn.shuffle(kept)
    path = write(
        "choices.csv",
        "layer,token,weight,expert\n"
        + "".join(f"{i},{t},{WEIGHTS[i][t][k]},{ROUTING[i][t][k]}\n" for i, t, k in kept),
    )
    steps = write(
        "steps.csv",
        "iteration,layer,token,weight,expert\n"
        + "".join(
            f"{7 * (t // 12)},{i},{t % 12},{WEIGHTS[i][t][k]},{ROUTING[i][t][k]}\n"
            for i, t, k in kept
        ),
    )
    by_step = [
        ROUTING[i][t][k] if (i, t, k) in set(kept) else -1
        for step in (0, 1)
        for i in range(LAYERS)
        for t in range(12 * step, 12 * step + 12)
        for k in range(K)
    ]
    holds_routing(
        imported("csvsteps", steps, "--experts", str(N)), (2, LAYERS, TOKENS // 2, K), by_step
    )
    folder = imported("csv", path, "--experts", str(N))
    expected = [
        ROUTING[i][t][k] if (i, t, k) in set(kept) else -1
        for i in range(LAYERS)
        for t in range(TOKENS)
        for k in range(K)
    ]
    holds_routing(folder, numbers=expected)
    weights = m.load(f"{folder}/topk_weight.npy")
    wanted = [
        WEIGHTS[i][t][k] if e >= 0 else 0
        for (i, t, k), e in zip(
            ((i, t, k) for i in range(LAYERS) for t in range(TOKENS) for k in range(K)), expected
        )
    ]
    m.check(weights.dtype == "<f4" and m.near(list(weights.data), wanted, 1e-6), "weights differ")
    run = m.moesim(
        2,
        f"{folder}/routing.ini",
        "--out",
        "replay",
        "--set",
        "output.routing=yes",
        "--set",
        "model.hidden_size=8",
        "--quiet",
    )
    if m.check(run.code == 0, run.err):
        m.check(
            list(m.load("replay/topk_idx.npy").data) == expected,
            "moesim writes back another routing",
        )
        for i, layer in enumerate(m.summary("replay")["layers"]):
            counts = [
                sum(e == expert for e in expected[i * TOKENS * K : (i + 1) * TOKENS * K])
                for expert in range(N)
            ]
            m.check(layer["counts_per_expert"] == counts, f"layer {i}: counts differ")
    m.check(
        tool("import-trace", path, "--out", "csv").returncode == 2,
        "an earlier import was overwritten",
    )
    m.check(
        tool("import-trace", path, "--out", "csv", "--force").returncode == 0,
        "--force does not replace an import",
    )
    said = tool("import-trace", path, "--experts", "18", "--out", "eighteen").stdout
    m.check(" -np 6 " in said, f"18 experts on 8 ranks cannot be replayed: {said}")
    holds_routing(
        imported("bare", write("bare.csv", "0,1\n0,2\n2,0\n")), (3, 2), [1, 2, -1, -1, 0, -1]
    )
    refused(
        "an expert twice",
        "bad.csv:3: token 0 has expert 1 twice",
        write("bad.csv", "token,expert\n0,1\n0,1\n"),
    )
    refused(
        "a word",
        "words.csv:2: token is x; allowed are whole numbers",
        write("words.csv", "token,expert\nx,1\n"),
    )
    refused("no columns", "expected are token, expert", write("else.csv", "a,b\n1,2\n"))
    refused("an empty file", "expected are token, expert", write("empty.csv", ""))
    refused("a missing file", "No such file", "missing.csv")


for test in (test_megatron, test_megatron_logits, test_sglang, test_answers, test_csv):
    test()
m.verdict()
