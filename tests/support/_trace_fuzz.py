"""Hostile inputs for scripts/import-trace, drawn from a seed.

Each case is some files, options and a promise: exit 0 with files that the program accepts, or exit
2 with one sentence; never a traceback, a hang or much memory. The tool runs in a forked process
with the limits that it sets for itself, so that thousands of cases take a minute."""

import array
import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import _moesim as m
import _trace_files as files

sys.path.insert(0, os.path.join(m.SOURCE, "scripts"))
sys.dont_write_bytecode = True
from trace_lib import command  # noqa: E402

MOST_SECONDS = 20  # of one case, on a machine that does other things too
MOST_MEMORY = 500 << 20
WRITTEN = ("topk_idx.npy", "topk_weight.npy", "logits.npy", "expert_load.npy", "routing.ini")

NUMBERS = [
    0,
    1,
    -1,
    -2,
    7,
    255,
    65535,
    65536,
    2**27,
    2**31 - 1,
    2**31,
    -(2**31) - 1,
    2**40,
]
NUMBERS += [
    2**53 + 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63) - 1,
    10**30,
    1.5,
    1e308,
    -0.0,
]
THINGS = NUMBERS + [None, True, False, "", "1", "\u0661", "x" * 300, "a\nb", "\ud800", "../../x"]
THINGS += [[], {}, [[]], [[[]]], [None], [-1, 3, -1], [3, 3], [2**31], [[1, 2], [3]], {"a": 1}]
CELLS = [
    "",
    " ",
    "-1",
    "-0",
    "+1",
    "01",
    "1.0",
    "1e3",
    "1_0",
    "\u0661",
    "0x1",
    "nan",
    "inf",
    "-inf",
]
CELLS += ["1e308", "1e400", "9" * 30, "9" * 5000, "x" * 200000, '"', '"1"', "2147483647", "65536"]
CELLS += ["134217727", "4294967296", "a\0b", "1\r2", "\u2028", "token", "expert", "'", "=1+1"]


def deep(drawn, open_="[", close="]"):
    """Brackets in brackets."""
    depth = drawn.choice([3, 50, 900, 5000, 200000])
    return open_ * depth + close * depth


def mutated(drawn, content):
    """Some bytes of a file changed, cut off, doubled or put in."""
    content = bytearray(content)
    for _ in range(drawn.choice([1, 1, 2, 5])):
        at = drawn.randrange(len(content) + 1)
        kind = drawn.randrange(7)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << drawn.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            del content[at : at + drawn.randrange(1, 20)]
        elif kind == 3:
            content[at:at] = drawn.choice([b"\xff", b"\0", b"\xef\xbb\xbf", b"9" * 40, b"-", b"[["])
        elif kind == 4:
            content[at:at] = content[at : at + drawn.randrange(1, 200)]
        elif kind == 5 and at < len(content):
            content[at] = drawn.randrange(256)
        elif kind == 6:
            content[0:0] = drawn.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b" ", b"\0"])
    return bytes(content)


def twisted(drawn, value):
    """A JSON value with one part of it replaced by something else."""
    if drawn.random() < 0.25 or not isinstance(value, (list, dict)) or not value:
        return drawn.choice(THINGS)
    if isinstance(value, dict):
        key = drawn.choice(list(value))
        if drawn.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: twisted(drawn, value[key])}
    place = drawn.randrange(len(value))
    if drawn.random() < 0.1:
        return value[:place] + value[place + 1 :]
    return [*value[:place], twisted(drawn, value[place]), *value[place + 1 :]]


def text_of(value):
    """JSON in UTF-8; half of a surrogate pair becomes three bytes that are no UTF-8."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def rows_of(drawn, tokens, top_k, experts):
    return [drawn.sample(range(experts), top_k) for _ in range(tokens)]


# --- one generator for each format: {name: bytes}, and the names to give to the tool ---


def megatron(drawn):
    layers, tokens, top_k, experts = drawn.randrange(1, 4), drawn.randrange(1, 6), 2, 8
    lines, logits = [], b""
    for step in range(drawn.randrange(1, 3)):
        for layer in range(layers):
            record = {"step": step, "block": "decoder", "layer": layer, "rank": 0}
            record.update(num_tokens=tokens, topk=top_k)
            record["top_indices"] = rows_of(drawn, tokens, top_k, experts)
            if drawn.random() < 0.7:
                part = array.array("H", [drawn.randrange(0x4300) for _ in range(tokens * experts)])
                record.update(logit_offset=len(logits), logit_bytes=2 * len(part))
                record["logit_shape"] = [tokens, experts]
                logits += part.tobytes()
            lines.append(record)
    if drawn.random() < 0.6:
        place = drawn.randrange(len(lines))
        lines[place] = twisted(drawn, lines[place])
    content = b"".join(text_of(line) + b"\n" for line in lines)
    if drawn.random() < 0.2:
        content += deep(drawn).encode() + b"\n"
    if drawn.random() < 0.3:
        content = mutated(drawn, content)
    made = {"router_trace_rank0.jsonl": content, "logits_rank0.bin": logits}
    if drawn.random() < 0.2:
        made["router_trace_rank1.jsonl"] = drawn.choice([content, mutated(drawn, content), b""])
    return made, sorted(name for name in made if name.endswith("l"))


def answers(drawn):
    layers, tokens, top_k, experts = drawn.randrange(1, 4), drawn.randrange(1, 6), 2, 8
    nested = [rows_of(drawn, layers, top_k, experts) for _ in range(tokens)]
    flat = [expert for token in nested for row in token for expert in row]
    array_ = files.npy_header(
        repr({"descr": "|u1", "fortran_order": False, "shape": (tokens, layers, top_k)})
    ) + bytes(flat)
    kind = drawn.randrange(4)
    if kind == 0:
        value = {"choices": [{"routed_experts": nested}], "prompt_routed_experts": nested}
    elif kind == 1:
        value = {"choices": [{"routed_experts": base64.b64encode(array_).decode()}]}
    elif kind == 2:
        broken = base64.b64encode(mutated(drawn, array_)).decode()
        value = {"choices": [{"routed_experts": broken}]}
    else:
        bare = array.array("i", flat).tobytes()
        value = {"meta_info": {"routed_experts": base64.b64encode(bare).decode()}}
    if drawn.random() < 0.5:
        value = twisted(drawn, value)
    content = text_of(value)
    if drawn.random() < 0.2:
        content = b'{"routed_experts": ' + deep(drawn).encode() + b"}"
    if drawn.random() < 0.3:
        content = content + b"\n" + content
    if drawn.random() < 0.3:
        content = mutated(drawn, content)
    return {"answers.json": content}, ["answers.json"]


HEADERS = [
    "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 1, 2), }",
    "{'descr': '<i8', 'fortran_order': False, 'shape': (1, 1, 2), }",
    "{'descr': '<i4', 'fortran_order': False, 'shape': (02, 1, 2), }",
    "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 1, \u00b2), }",
    "{'descr': '<i4', 'fortran_order': False, 'shape': (-2, 1, 2), }",
    "{'descr': '<i4', 'fortran_order': False, 'shape': (99999999999999999999, 1, 2), }",
    "{'descr': '<i4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }",
    "{'descr': '<i4', 'fortran_order': False, 'shape': (0, 1, 2), }",
    "{'descr': '<i4', 'fortran_order': False, 'shape': (), }",
    "{'descr': '<i4', 'fortran_order': True, 'shape': (2, 1, 2), }",
    "{'descr': '<i4\0', 'fortran_order': False, 'shape': (2, 1, 2), }",
    "{'descr': '<f2', 'fortran_order': False, 'shape': (4, 1, 2), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 1, 2), }",
    "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (2, 1, 2), }",
    "{'descr': '<i4', 'shape': (2, 1, 2), }",
    "{'descr': '<i4', 'descr': '<i4', 'fortran_order': False, 'shape': (2, 1, 2), }",
    "__import__('os').system('touch executed')",
    "",
]


def arrays(drawn):
    top_k, experts = 2, 8
    tokens = drawn.randrange(1, 6)
    flat = [expert for row in rows_of(drawn, tokens, top_k, experts) for expert in row]
    dtype = drawn.choice(["|u1", "|i1", "<i2", "<i4", "<i8", "<u8"])
    good = m.header_of(dtype, (tokens, 1, top_k)) + array.array(m.TYPES[dtype], flat).tobytes()
    kind = drawn.randrange(5)
    if kind == 0:
        content = mutated(drawn, good)
    elif kind == 4:  # the largest number of an unsigned type may stand for -1
        dtype, largest = drawn.choice([("|u1", 2**8 - 1), ("<u8", 2**64 - 1)])
        numbers = [drawn.choice([largest, 0, 1, 2, 3]) for _ in flat]
        content = m.header_of(dtype, (tokens, 1, top_k))
        content += array.array(m.TYPES[dtype], numbers).tobytes()
    elif kind == 1:
        text = drawn.choice(HEADERS)
        if drawn.random() < 0.3:
            text = deep(drawn, *drawn.choice(["[]", "()", "{}", "--"]))[:60000]
        version = drawn.choice([1, 1, 2, 3, 9])
        content = files.npy_header(text, version) + array.array("i", [0, 1, 2, 3]).tobytes()
    elif kind == 2:
        numbers = [drawn.choice([n for n in NUMBERS if isinstance(n, int)]) for _ in range(4)]
        numbers = [n if -(2**63) <= n < 2**63 else 3 for n in numbers]
        content = m.header_of("<i8", (2, 1, 2)) + array.array("q", numbers).tobytes()
    else:
        content = good
    return {"routed.npy": content}, ["routed.npy"]


def table(drawn):
    columns = ["token", "expert", *drawn.sample(["weight", "layer", "other"], drawn.randrange(4))]
    drawn.shuffle(columns)
    lines = [columns] if drawn.random() < 0.8 else []
    for t in range(drawn.randrange(1, 6)):
        cells = {"token": t, "weight": round(drawn.random(), 3), "layer": 0, "other": "x"}
        for expert in drawn.sample(range(8), 2):
            lines.append([str({**cells, "expert": expert}[name]) for name in columns])
    for _ in range(drawn.choice([0, 0, 1, 3])):
        place = drawn.randrange(len(lines))
        row = list(lines[place])
        row[drawn.randrange(len(row))] = drawn.choice(CELLS)
        lines[place] = row + ["9"] * drawn.choice([0, 0, 0, 1, 2000])
    content = "\n".join(",".join(line) for line in lines).encode("utf-8", "surrogatepass") + b"\n"
    if drawn.random() < 0.2:
        content = mutated(drawn, content)
    return {"choices.csv": content}, ["choices.csv"]


def loads(drawn):
    lines = ["layer_id,expert_id,count"]
    for layer in range(2):
        lines += [f"{layer},{expert},{drawn.randrange(9)}" for expert in range(4)]
    if drawn.random() < 0.6:
        cells = [str(drawn.choice(NUMBERS)), drawn.choice(CELLS), str(drawn.choice(NUMBERS))]
        drawn.shuffle(cells)
        lines.insert(drawn.randrange(1, 9), ",".join(cells))
    return {"loads.csv": "\n".join(lines).encode()}, ["loads.csv"]


def wrong_tensor(drawn, shape, numbers):
    """A tensor of which one part does not fit."""
    count = drawn.choice([None, None, 0, len(numbers) + 1, 2**40])
    strides, offset = None, drawn.choice([0, 0, 1, 10**6, 2**62, -1])
    if drawn.random() < 0.3:
        shape = [
            drawn.choice([0, 1, 2, 2**20, 2**40, -1]) for _ in range(drawn.choice([0, 1, 3, 9]))
        ]
    if drawn.random() < 0.4:
        strides = [drawn.choice([0, 1, 2, -1, 2**40, 2**62]) for _ in shape]
    kind = drawn.choice(["IntStorage", "IntStorage", "LongStorage", "FloatStorage"])
    return files.Tensor(shape, numbers, kind, strides, offset, count)


PICKLES = [
    b"\x80\x02cos\nsystem\nX\x0e\x00\x00\x00touch executed\x85R.",
    b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(X\x08\x00\x00\x00__code__NubR.",
    b"\x80\x02ccollections\nOrderedDict\n(tR}b.",
    b"\x80\x02]r\xff\xff\xff\x7f.",
    b"\x80\x02]q\x00h\x00a.",
    b"\x80\x02]q\x00(h\x00h\x00h\x00e.",
    b"\x80\x02" + b"(" * 100000 + b"t" * 100000 + b".",
    b"\x80\x02N" + b"\x85" * 200000 + b".",
    b"\x80\x02}N" + b"\x85" * 200000 + b"Ns.",
    b"\x80\x02\x8b\xff\xff\xff\x7f.",
    b"\x80\x02X\xff\xff\xff\xff.",
    b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"\x80\x02I" + b"9" * 10000 + b"\n.",
    b"\x80\x02.",
    b"\x80\x02t.",
    b"",
    b"\x80\x02N",
]


def dumps(drawn):
    layers, tokens, top_k = 2, 3, 2
    ids = [e for row in rows_of(drawn, layers * tokens, top_k, 8) for e in row]
    record = {"forward_pass_id": 0, "rank": 0, "input_ids": [1, 2, 3]}
    record["topk_ids_of_layer"] = files.Tensor((layers, tokens, top_k), ids)
    if drawn.random() < 0.4:
        record["topk_ids_of_layer"] = wrong_tensor(drawn, (layers, tokens, top_k), ids)
    value = {"records": [record], "last_physical_to_logical_map": None}
    kind = drawn.randrange(8)
    if kind == 0:
        table_ = files.Tensor((layers, 8), list(range(8)) * layers, "LongStorage")
        value["last_physical_to_logical_map"] = drawn.choice(
            [table_, wrong_tensor(drawn, (2, 4), [9] * 8)]
        )
    elif kind == 1:
        counts = [drawn.choice([0, 5, -1, 2**62, 2**63 - 1]) for _ in range(12)]
        value = {"logical_count": files.Tensor((1, 3, 4), counts, "LongStorage")}
    elif kind == 2:
        counts = [drawn.choice([0, 5, 2**62, 2**63 - 1]) for _ in range(8)]
        per_pass = {"forward_pass_id": 1, "rank": drawn.choice([0, 1])}
        per_pass["global_physical_count"] = files.Tensor((2, 4), counts, "LongStorage")
        value = {"records": [per_pass] * drawn.choice([1, 2])}
    elif kind == 3:
        value = twisted(drawn, value)
        value = files.Raw(b"N") if value == "\ud800" else value
    made = {}
    if kind in (0, 2) and drawn.random() < 0.5:
        other = {**value, "last_physical_to_logical_map": wrong_tensor(drawn, (2, 5), [4] * 10)}
        made["other.pt"] = files.torch_file(drawn.choice([other, value]))
    content = files.torch_file(value, drawn.choice(["little"] * 9 + ["big"]))
    if kind == 4:
        content = files.torch_file(None, instructions=drawn.choice(PICKLES))
    elif kind == 5:
        bomb = {
            "records": [
                {
                    "topk_ids_of_layer": files.Tensor(
                        (1, 10**6, 8), bytes(8 * 10**6), "ByteStorage"
                    )
                }
            ]
        }
        content = files.torch_file(bomb, compression=zipfile.ZIP_DEFLATED)
    elif kind == 6:
        content = mutated(drawn, content)
    made["dump.pt"] = content
    return made, sorted(made)


FORMATS = {"megatron": megatron, "responses": answers, "npy": arrays, "csv": table}
FORMATS.update({"counts": loads, "sglang": dumps})
OPTIONS = [["--experts", "8"], ["--experts", "4"], ["--experts", "65536"], ["--layers", "0:0"]]
OPTIONS += [["--layers", "1:9"], ["--steps", "0:0"], ["--shape", "2,2"], ["--shape", "1,2"]]
OPTIONS += [["--distinct"], ["--block", "mtp"], ["--format", "csv"], ["--format", "sglang"]]
OPTIONS += [["--format", "npy"], ["--format", "megatron"], ["--experts", "-3"], ["--layers", "x"]]
NAMES = [b"\xff.", b"new\nline.", b"a b.", b"x" * 200 + b".", b"#;.", "\u00e9\u2028.".encode()]


def options_of(drawn):
    chosen = drawn.sample(OPTIONS, drawn.choice([0, 0, 0, 1, 1, 2]))
    return [word for words in chosen for word in words]


def make(seed, kind):
    """Writes a case's files into a new folder `case`; returns the words of the command line."""
    drawn = random.Random(f"{kind}{seed}")
    shutil.rmtree("case", ignore_errors=True)
    os.mkdir("case")
    made, given = FORMATS[kind](drawn)
    for name, content in made.items():
        with open(os.path.join("case", name), "wb") as file:
            file.write(content)
    words = [os.path.join("case", name) for name in given]
    if len(words) == 1 and drawn.random() < 0.1:
        ending = words[0].rsplit(".", 1)[1].encode()
        name = os.fsdecode(b"case/" + drawn.choice(NAMES) + ending)
        os.rename(words[0], name)
        words = [name]
    if drawn.random() < 0.05:
        words = ["case"]
    return [*words, *options_of(drawn), "--out", "case/out"]


# --- running and judging ---


class Outcome:
    """How one run ended."""

    def __init__(self, status, out, err, seconds, memory):
        self.status, self.out, self.err = status, out, err
        self.seconds, self.memory = seconds, memory


def child(words):
    """The tool in the forked process, with its output in files."""
    for name, number in (("stdout.txt", 1), ("stderr.txt", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    status = 70
    try:
        status = command.main(words)
    except SystemExit as end:
        status = end.code
    except BaseException:  # what would be a traceback
        import traceback

        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


def run(words):
    """Forks the tool and waits for it, not for ever."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(words)
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - started > MOST_SECONDS:
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            break
        time.sleep(0.001)
    texts = []
    for name in ("stdout.txt", "stderr.txt"):
        with open(name, "rb") as file:
            texts.append(file.read().decode("utf-8", "replace"))
    code = os.waitstatus_to_exitcode(status)
    return Outcome(code, *texts, time.monotonic() - started, usage.ru_maxrss << 10)


def setting(text, key):
    """A value of an INI text."""
    return next(line.split(" = ")[1] for line in text.split("\n") if line.startswith(key + " = "))


def routing_fault(folder):
    """What is wrong with the files of an import, read independently; None if nothing is."""
    with open(os.path.join(folder, "routing.ini"), encoding="utf-8") as file:
        text = file.read()
    ids = m.load(os.path.join(folder, "topk_idx.npy"))
    experts, top_k = int(setting(text, "num_experts")), int(setting(text, "top_k"))
    layers = int(setting(text, "num_layers"))
    shape = ids.shape if layers > 1 else (1, *ids.shape)
    if len(ids.shape) == 4:
        shape = ids.shape[1:]
    if ids.dtype != "<i4" or len(shape) != 3 or shape[0] != layers or shape[2] != top_k:
        return f"shape {ids.shape} of {ids.dtype} beside {layers} layers, top {top_k}"
    for row in ids.rows():
        chosen = [expert for expert in row if expert != -1]
        if len(set(chosen)) < len(chosen) or not all(0 <= expert < experts for expert in chosen):
            return f"a token has the experts {row} of {experts}"
    for name, width in (("topk_weight.npy", top_k), ("logits.npy", experts)):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            numbers = m.load(path)
            if numbers.shape[-1] != width or not all(abs(x) <= 1e9 for x in numbers.data):
                return f"{name} has shape {numbers.shape}, or numbers that are not finite"
    return None


def refused_by_program(folder):
    """What the program says to the configurations; None if it accepts them."""
    for name in ("routing.ini", "logits.ini"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            done = subprocess.run(
                [*m.command(1, path, "--check")],
                env=m.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                return f"{name}: status {done.returncode}: {done.stderr[:300]}"
    return None


def fault_of(outcome, folder, ask_program):
    """What breaks the promise; None if nothing does."""
    if outcome.seconds > MOST_SECONDS or outcome.memory > MOST_MEMORY:
        return f"{outcome.seconds:.1f} s, {outcome.memory >> 20} MiB"
    if os.path.exists("executed"):
        return "something in the file was executed"
    if outcome.status == 0:
        if outcome.err:
            return f"exit 0 with {outcome.err[:200]}"
        if os.path.exists(os.path.join(folder, "expert_load.npy")):
            counts = m.load(os.path.join(folder, "expert_load.npy"))
            return None if len(counts.shape) == 3 and min(counts.data) >= 0 else "wrong loads"
        return routing_fault(folder) or (refused_by_program(folder) if ask_program else None)
    said = outcome.err
    if outcome.status != 2 or said.count("\n") != 1 or outcome.out:
        return f"status {outcome.status}: {said[-600:]}"
    if not said.startswith("scripts/import-trace: ") or len(said) > 4000 or "Error" in said:
        return f"no sentence: {said[:600]}"
    if any(os.path.lexists(os.path.join(folder, name)) for name in WRITTEN):
        return f"refused, but files were written: {said[:200]}"
    return None


def trial(seeds, ask_every):
    """Runs a case of each format for every seed; counts and prints what breaks the promise."""
    statuses, slowest, most, accepted = {}, 0, 0, 0
    for seed in seeds:
        for kind in FORMATS:
            words = make(seed, kind)
            outcome = run(words)
            accepted += outcome.status == 0
            ask = outcome.status == 0 and accepted % ask_every == 0
            fault = fault_of(outcome, "case/out", ask)
            m.check(fault is None, f"{kind}, seed {seed}, {ascii(words)}: {fault}")
            statuses[kind, outcome.status] = statuses.get((kind, outcome.status), 0) + 1
            slowest, most = max(slowest, outcome.seconds), max(most, outcome.memory)
    print(", ".join(f"{kind} {status}: {count}" for (kind, status), count in statuses.items()))
    print(f"slowest {slowest:.2f} s, most memory {most >> 20} MiB")
    return statuses
