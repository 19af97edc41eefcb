"""ctest: timeout=180
What scripts/import-trace says of its input, and inputs that public reports have shown: traces that
were cut off, repeated or recorded twice, rows that a server never filled, options that a format
does not look at, and single hostile files with the sentence that each gets."""

import array
import json
import os
import subprocess
import sys
import time
import types

import _moesim as m
import _trace_files as files
import _trace_fuzz as fuzz


def tool(*words):
    """The tool in a forked process, which is faster than a new one; cli_import_trace.py starts it
    as a user does."""
    outcome = fuzz.run(list(words))
    done = types.SimpleNamespace(returncode=outcome.status)
    done.stdout, done.stderr = outcome.out, outcome.err
    return done


def write(name, content):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return name


def accepted(what, sentences, *words):
    """An import that goes well and says all of these sentences; returns its folder."""
    folder = f"{what.replace(' ', '_')}.out"
    done = tool(*words, "--out", folder)
    if m.check(done.returncode == 0, f"{what}: status {done.returncode}: {done.stderr}"):
        for sentence in sentences:
            m.check(sentence in done.stdout, f"{what}: {sentence!r} is not in {done.stdout}")
    return folder


def refused(what, sentence, *words):
    """An import that ends with one sentence and leaves nothing."""
    done = tool(*words, "--out", "refused")
    one = done.returncode == 2 and done.stderr.count("\n") == 1 and not os.path.exists("refused")
    m.check(one, f"{what}: status {done.returncode}: {done.stderr}")
    m.check(sentence in done.stderr, f"{what}: {sentence!r} is not in {done.stderr}")


def holds(folder, shape, numbers):
    got = m.load(os.path.join(folder, "topk_idx.npy"))
    m.check(got.shape == shape and list(got.data) == numbers, folder, got.shape, list(got.data))


# --- Megatron-Core: steps, ranks, what stands twice ---


def record(layer, step, rows, **more):
    return {
        "step": step,
        "stage": "pre_dispatch",
        "layer": layer,
        "rank": 0,
        "top_indices": rows,
    } | more


def trace(name, records):
    return write(name, "".join(json.dumps(one) + "\n" for one in records))


def test_steps():
    """The run was stopped in step 2: the sentence leads to the steps before it."""
    rows = [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[1, 2], [3, 4]]]
    whole = [record(layer, step, rows[step]) for step in (0, 1) for layer in (1, 2)]
    cut = trace("cut/router_trace_rank0.jsonl", [*whole, record(1, 2, rows[2])])
    refused(
        "a step that is not whole",
        "step 2 is not whole: layer 1 has 2 tokens, layer 2 has 0",
        "cut",
    )
    refused("its advice", "--steps 0:1 takes those before it", "cut")
    last = "step 2 is not whole: layer 1 has 2 tokens, layer 2 has 0"
    refused("that step alone", last, "cut", "--steps", "2:2")
    said = ["2 layers (1, 2), 4 tokens, top 2 of 8", "2 steps, each of which is a step of"]
    said += ["columns used: step, layer", "ignored: stage", "no record and no file stands twice"]
    folder = accepted("whole steps", said, cut, "--steps", "0:1")
    flat = [expert for step in rows[:2] for row in step for expert in row]
    by_step = [expert for step in rows[:2] for _ in (1, 2) for row in step for expert in row]
    holds(folder, (2, 2, 2, 2), by_step)
    said = ["the tokens of 2 steps stand in one step (--one-step)"]
    holds(accepted("joined", said, cut, "--steps", "0:1", "--one-step"), (2, 4, 2), flat * 2)
    write("line/router_trace_rank0.jsonl", "".join(json.dumps(r) + "\n" for r in whole) + '{"st')
    accepted("last line", ["its last line is cut off and was left out", "4 tokens"], "line")


def test_twice():
    """Step 0 is recorded twice; two ranks hold the same tokens: said, and left out on demand."""
    rows = [[0, 1], [2, 3]]
    again = [record(layer, step, rows) for step in (0, 1, 0) for layer in (1, 2)]
    path = trace("again.jsonl", again)
    said = "2 records (4 rows) have a step and layer that were there before"
    said_padding = "steps have 2 to 4 tokens: mask.npy marks the padding of shorter ones"
    spread = [0, 1, -1, -1, 2, 3, -1, -1]
    holds(
        accepted("repeated", [said, "count twice", said_padding], path),
        (2, 2, 4, 2),
        [0, 1, 2, 3] * 4 + spread * 2,
    )
    holds(
        accepted("repeated in one", [said, "count twice"], path, "--one-step"),
        (2, 6, 2),
        [0, 1, 2, 3] * 6,
    )
    holds(
        accepted("distinct", [said, "left out"], path, "--distinct"),
        (2, 2, 2, 2),
        [0, 1, 2, 3] * 4,
    )
    for rank in (0, 1):
        trace(f"ranks/router_trace_rank{rank}.jsonl", again[:2])
    said = "router_trace_rank1.jsonl (as router_trace_rank0.jsonl)"
    holds(accepted("twins", [said, "count twice"], "ranks"), (2, 4, 2), [0, 1, 2, 3] * 4)
    holds(
        accepted("one twin", [said, "left out"], "ranks", "--distinct"), (2, 2, 2), [0, 1, 2, 3] * 2
    )


def test_megatron_limits():
    """Numbers that point outside the file of logits, or out of every range."""
    good = record(0, 0, [[0, 1]], logit_offset=0, logit_bytes=16, logit_shape=[1, 8])
    write("logits/logits_rank0.bin", array.array("H", [0x3F80] * 8).tobytes())
    for change, sentence in (
        ({"logit_bytes": 1 << 40}, "are not whole in"),
        ({"logit_offset": -1}, "logit_offset is -1; allowed are whole numbers from 0"),
        ({"logit_shape": [1, 1 << 40]}, "expected are 1 tokens and 1 to 65536 experts"),
        ({"logit_shape": "x"}, "expected is [tokens, experts]"),
        ({"rank": "../../../etc/passwd"}, "rank is ../../../etc/passwd; allowed are whole numbers"),
        ({"top_indices": [[0, 2**31 - 1]]}, "allowed are -1 (none) and 0 to 65535"),
        ({"top_indices": [[0, -2]]}, "allowed are -1 (none) and 0 to 65535"),
        ({"top_indices": [[True, 1]]}, "allowed are -1 (none) and 0 to 65535"),
        ({"num_tokens": 2}, "num_tokens is 2, but top_indices has 1 rows"),
        ({"layer": "x"}, "layer is x; allowed are whole numbers"),
        ({"layer": 10**30}, "allowed are whole numbers"),
    ):
        path = trace("logits/router_trace_rank0.jsonl", [{**good, **change}])
        refused(f"megatron with {change}", sentence, path)
    accepted(
        "logits", ["8 experts: from the source"], trace("logits/router_trace_rank0.jsonl", [good])
    )


# --- arrays and answers: what servers leave unfilled ---


def array_file(name, shape, numbers, dtype="|u1"):
    return write(name, m.header_of(dtype, shape) + array.array(m.TYPES[dtype], numbers).tobytes())


def test_unfilled():
    """Rows of zeros, rows of 255, a dense layer; -1 before an expert."""
    zeros = array_file("zeros.npy", (4, 1, 2), [0] * 8)
    refused("zeros", "that the server never filled", zeros)
    prompt = array_file("prompt.npy", (4, 1, 2), [0] * 4 + [3, 1, 2, 0])
    refused("zeros of a prompt", "never filled: token 0, 1 of layer 0", prompt)
    dense = array_file("dense.npy", (2, 2, 2), [0, 0, 3, 1, 0, 0, 2, 0])
    refused(
        "a dense layer", "all tokens of layer 0 (a dense layer has no experts); --layers 1:1", dense
    )
    holds(accepted("other layers", [], dense, "--layers", "1:1"), (2, 2), [3, 1, 2, 0])
    largest = array_file("largest.npy", (3, 1, 2), [255, 255, 3, 1, 2, 255])
    said = ["left out: 1 tokens without routing", "stands for -1 (none)"]
    holds(accepted("largest", said, largest, "--experts", "8"), (2, 2), [3, 1, 2, -1])
    middle = array_file("middle.npy", (2, 1, 3), [-1, 4, 2, 5, -1, 3], "<i4")
    said = ["2 rows have -1 before an expert", "top 2 of 6", "files: middle.npy (int32 [2, 1, 3])"]
    holds(accepted("middle", said, middle), (2, 2), [4, 2, 5, 3])


def test_types():
    """Types, order and headers of .npy: read, or a sentence that says which are read."""
    for dtype in ("<i2", "<i4", "<i8", "|i1"):
        path = array_file(f"as{dtype[1:]}.npy", (2, 1, 2), [0, 1, 2, 3], dtype)
        holds(accepted(f"type {dtype[1:]}", [], path), (2, 2), [0, 1, 2, 3])
    for text, sentence in (
        (
            "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 1, 4), }",
            "holds float16; allowed",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 2), }", "int8, uint8, int16"),
        ("{'descr': '>i4', 'fortran_order': False, 'shape': (2, 1, 2), }", "int32, big-endian"),
        ("{'descr': '<i4', 'fortran_order': True, 'shape': (2, 1, 2), }", "ascontiguousarray"),
        ("{'descr': '<i4', 'fortran_order': False, 'shape': (02, 1, 2), }", "without a leading 0"),
        ("{'descr': '<i4\0', 'fortran_order': False, 'shape': (2, 1, 2), }", "<i4\\x00"),
        ("{'descr': '<i4', 'fortran_order': False, 'shape': (2, 1, 3), }", "takes 24"),
        ("(" * 60000, "has a header that is not read"),
        ("-" * 60000, "has a header that is not read"),
    ):
        path = write("header.npy", files.npy_header(text) + bytes(16))
        refused(f"header {text[:70]}", sentence, path)
    for numbers in ([0, 2**31 - 1], [0, -2], [2**62, 1]):
        path = array_file("wide.npy", (1, 1, 2), numbers, "<i8")
        refused(f"experts {numbers}", "allowed are -1 (none) and experts 0 to 65535", path)


# --- options that a format does not look at ---


def test_options():
    """Every option acts, or is refused."""
    table = write("table.csv", "token,expert,other\n0,1,x\n0,2,x\n1,0,x\n")
    said = ["columns used: token, expert; ignored: other", "table.csv: 3 choices of 2 tokens"]
    holds(accepted("csv", said, table), (2, 2), [1, 2, 0, -1])
    array_file("two.npy", (2, 1, 2), [0, 1, 2, 3])
    for words in (["--steps", "0:1"], ["--block", "mtp"], ["--distinct"], ["--shape", "1,2"]):
        for path in (table, "two.npy"):
            refused(f"{words} of {path}", "does nothing for files of the format", path, *words)
    refused("one step of an array", "--one-step does nothing", "two.npy", "--one-step")
    refused("parquet", "docs/traces.md", write("a.parquet", "PAR1"))
    lists = write("lists.json", json.dumps({"routed_experts": [[[0, 1]], [[2, 3]]]}))
    refused("a shape beside lists", "--shape does nothing here", lists, "--shape", "1,2")
    for number in ("-1", "0", "x", "1_0", "99999999999"):
        refused(
            f"{number} experts", "allowed are whole numbers from 1", table, f"--experts={number}"
        )
    refused("few experts", "--experts is 3 or more here", table, "--experts", "2")
    counts = files.Tensor((2, 3, 4), range(24), "LongStorage")
    stat = write("stat.pt", files.torch_file({"logical_count": counts}))
    refused(
        "few experts of loads", "loads of 4 experts, and --experts says 2", stat, "--experts", "2"
    )
    folder = accepted("layers of loads", ["2 layers (1, 2)"], stat, "--layers", "1:2")
    got = m.load(f"{folder}/expert_load.npy")
    m.check(got.shape == (2, 2, 4) and list(got.data) == [*range(4, 12), *range(16, 24)], got.data)
    got = m.load(
        accepted("steps of loads", [], stat, "--steps", "1:1", "--experts", "5")
        + "/expert_load.npy"
    )
    m.check(got.shape == (1, 3, 5) and list(got.data[:5]) == [12, 13, 14, 15, 0], got.data)


def test_loads():
    """Loads of two ranks and replicas become loads of logical experts, within int64."""
    table = files.Tensor((2, 4), [0, 1, 2, 0, 2, 1, 0, 1], "LongStorage")
    for rank in (0, 1):
        counts = files.Tensor((2, 4), [1 + rank, 2, 3, 4, 5, 6, 7, 8])
        one = {"forward_pass_id": 9, "rank": rank, "global_physical_count": counts}
        dump = {"records": [one], "last_physical_to_logical_map": table}
        write(f"pass/d{rank}.pt", files.torch_file(dump))
    said = ["records: d0.pt: 1, d1.pt: 1", "2 records of 1 forward passes (9) on ranks 0, 1"]
    got = m.load(accepted("passes", said, "pass") + "/expert_load.npy")
    m.check(list(got.data) == [11, 4, 6, 14, 28, 10], list(got.data))
    for numbers in ([2**62, 2**62], [-1, 0]):
        one = {"global_physical_count": files.Tensor((1, 2), numbers, "LongStorage")}
        path = write("huge.pt", files.torch_file({"records": [one] * 2}))
        refused(
            f"counts {numbers}", "allowed are whole numbers from 0 to 9223372036854775807", path
        )
    text = "layer_id,expert_id,count\n0,0,9223372036854775807\n0,0,1\n"
    refused(
        "a sum beyond int64", "allowed are whole numbers from 0 to 9223", write("huge.csv", text)
    )


# --- single hostile files ---


def test_hostile():
    """Each gets its own sentence, soon."""
    ids = files.Tensor((1, 2, 2), [0, 1, 2, 3])
    good = {"records": [{"topk_ids_of_layer": ids}]}
    long_ids = files.Tensor((1, 2, 2), [0, 1, 2, 3], "LongStorage")
    path = write("long.pt", files.torch_file({"records": [{"topk_ids_of_layer": long_ids}]}))
    holds(accepted("int64 in a pt", [], path), (2, 2), [0, 1, 2, 3])

    def tensor(**wrong):
        return files.torch_file(
            {"records": [{"topk_ids_of_layer": files.Tensor((1, 2, 2), [0, 1, 2, 3], **wrong)}]}
        )

    started = time.monotonic()
    deep = "[" * 100000 + "]" * 100000
    for what, name, content, sentence in (
        ("deep JSON", "deep.json", '{"routed_experts": ' + deep + "}", "nested too deeply"),
        ("a deep trace", "deep.jsonl", '{"top_indices": ' + deep + "}\n", "nested too deeply"),
        ("a long number", "long.json", '{"routed_experts": [[[' + "9" * 9999 + "]]]}", "long.json"),
        ("NaN", "nan.json", '{"routed_experts": [[[NaN]]]}', "NaN is no number of JSON"),
        (
            "a long field",
            "long.csv",
            "token,expert\n0," + "1" * 200000 + "\n",
            "long.csv:2: a column",
        ),
        ("a quoted field", "quote.csv", 'token,expert\n0,"1\n', "quote.csv:2: "),
        ("a far token", "far.csv", "token,expert\n134217727,0\n", "asks for a table of 134217728"),
        ("UTF-16", "wide.csv", "token,expert\n0,1\n".encode("utf-16"), "expected is UTF-8"),
        ("no UTF-8", "latin.csv", b"token,expert\n0,\xe9\n", "latin.csv:2: byte 2 is no UTF-8"),
        ("expert 2^31 - 1", "expert.csv", "0,2147483647\n", "expert.csv:1: expert is 2147483647"),
        (
            "infinity",
            "inf.csv",
            "token,expert,weight\n0,1,inf\n",
            "weight is inf; allowed are numbers",
        ),
        ("a large weight", "e30.csv", "token,expert,weight\n0,1,1e30\n", "from -1e+09 to 1e+09"),
        ("digits of others", "arabic.csv", "token,expert\n0,\u0661\n", "allowed are whole numbers"),
        ("a far offset", "offset.pt", tensor(offset=2), "reaches number 5 of a storage of 4"),
        (
            "negative strides",
            "strides.pt",
            tensor(strides=(4, -2, 1)),
            "allowed are whole numbers from 0",
        ),
        ("wide strides", "wide.pt", tensor(strides=(4, 1 << 40, 1)), "of a storage of 4"),
        (
            "a long storage",
            "count.pt",
            tensor(count=5),
            "has 16 bytes, but 5 numbers of IntStorage",
        ),
        (
            "floats",
            "float.pt",
            tensor(kind="FloatStorage"),
            "type FloatStorage; expected are whole",
        ),
        ("compression", "bomb.pt", files.torch_file(good, compression=8), "is compressed in it"),
        ("big-endian", "big.pt", files.torch_file(good, "big"), "big-endian"),
        ("a zip of nothing", "none.pt", b"PK\x05\x06" + bytes(18), "no data.pkl"),
    ):
        refused(what, sentence, write(name, content))
    calls = b"\x80\x02cos\nsystem\nX\x0e\x00\x00\x00touch executed\x85R."
    refused(
        "a call", "holds a os.system", write("call.pt", files.torch_file(None, instructions=calls))
    )
    m.check(not os.path.exists("executed"), "a pickle was executed")
    seconds = (time.monotonic() - started) / 23
    m.check(seconds < 5, f"{seconds:.1f} s for each hostile file")


def test_names():
    """Byte-order mark, names with odd letters, folders, FIFOs, links."""
    mark = write("mark.csv", b"\xef\xbb\xbftoken,expert\n0,1\n")
    holds(accepted("mark", [], mark), (1, 1), [1])
    for name in (b"odd\xff.csv", b"line\nbreak.csv"):
        with open(name, "wb") as file:
            file.write(b"token,expert\n0,1\n")
        done = tool(os.fsdecode(name), "--out", "odd", "--force")
        m.check(
            done.returncode == 0 and len(done.stdout.split("\n")) == 8, done.stderr, done.stdout
        )
        with open("odd/routing.ini", encoding="utf-8") as file:
            m.check(file.readline().count("csv, as it was recorded") == 1, "a name breaks the line")
        run = m.moesim(1, "odd/routing.ini", "--check")
        m.check(run.code == 0, run.err)
    os.mkfifo("pipe.csv")
    refused("a FIFO", "is no regular file", "pipe.csv")
    os.mkdir("folder.csv")
    refused("a folder", "has neither", "folder.csv")
    refused("a folder as a file", "folder.csv", "folder.csv", "--format", "csv")
    refused("NUL in a name", "", "/proc/self/mem", "--format", "csv")
    write("kept.txt", "precious")
    os.mkdir("linked")
    os.symlink(os.path.abspath("kept.txt"), "linked/topk_idx.npy")
    done = tool(mark, "--out", "linked")
    m.check(done.returncode == 2, "a link in the folder is not seen")
    done = tool(mark, "--out", "linked", "--force")
    with open("kept.txt", encoding="utf-8") as file:
        m.check(done.returncode == 0 and file.read() == "precious", "a link was followed")
    done = tool(write("wrong.csv", "a\n"), "--out", "linked", "--force")
    m.check(
        done.returncode == 2 and os.path.exists("linked/routing.ini"),
        "an import that failed took the files before it",
    )
    done = tool(mark, "--out", "x" * 255 + "/" + "y" * 255 + "/" + "z" * 600)
    m.check(done.returncode == 2 and "can name up to 1023" in done.stderr, done.stderr)


def test_bounds():
    """Work that goes on for ever, or takes memory without an end, is stopped by the tool itself."""
    begin = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True\n"
        "from trace_lib import cli, guard\n"
        "guard.FREE_SECONDS = 1\n"
        "def work():\n"
        "    guard.Intake(guarded=True).limit()\n"
    )
    for what, line, sentence in (
        ("an endless loop", "    while True: pass", "of the processor, which is more than"),
        (
            "endless memory",
            "    some = [0]\n    while True: some += some",
            "more memory than files",
        ),
        ("endless depth", "    work2 = lambda: work2()\n    work2()", "nested too deeply"),
        ("an unforeseen fault", "    [][1]", "was not foreseen (IndexError: list index"),
    ):
        end = "\nsys.exit(cli.run('tool', work))"
        words = [sys.executable, "-c", begin + line + end, os.path.join(m.SOURCE, "scripts")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        one = done.returncode == 2 and done.stderr.count("\n") == 1 and sentence in done.stderr
        m.check(one, f"{what}: status {done.returncode}: {done.stderr}")


def test_output():
    """Standard output that is full or closed, and a folder that cannot be filled: status 2, one
    sentence, and no half of an import."""
    write("plain.csv", "0,1\n")
    write("other/routing.ini", "")
    script = os.path.join(m.SOURCE, "scripts", "import-trace")
    call = f'"{sys.executable}" "{script}" plain.csv --out full --force'
    for end, status in (("> /dev/full", 2), (">&-", 2), ("2>&- > /dev/null", 0)):
        done = subprocess.run(["bash", "-c", f"{call} {end}"], capture_output=True, text=True)
        m.check(done.returncode == status, f"{end}: status {done.returncode}: {done.stderr}")
        m.check(done.stderr.count("\n") == (status > 0), f"{end}: {done.stderr}")
    silent = call.replace("full --force", "other") + " 2>&- > /dev/null"
    done = subprocess.run(["bash", "-c", silent])
    m.check(done.returncode == 2, f"a closed standard error: status {done.returncode}")
    done = subprocess.run(["bash", "-c", f"ulimit -f 0; {call}"], capture_output=True, text=True)
    m.check(done.returncode == 2 and "full: File too large" in done.stderr, done.stderr)
    m.check(os.listdir("full") == [], "half of an import stays")


for test in (test_steps, test_twice, test_megatron_limits, test_unfilled, test_types, test_options):
    test()
for test in (test_loads, test_hostile, test_names, test_bounds, test_output):
    test()
m.verdict()
