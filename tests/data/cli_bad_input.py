"""ctest: timeout=180
Every mistake in the input ends all ranks with exit status 2 within seconds, with exactly one
sentence on standard error, nothing on standard output and nothing written. cli_bad_config.sh looks
at the sentences about the configuration; here: files, folders, sizes, the command line.
"""
import itertools
import os
import struct
from concurrent.futures import ThreadPoolExecutor

from _moesim import QUICKSTART, TEMPORARY, check, config, header_of, moesim, save, sets, verdict

# Cases are collected, then run several at a time: most of a run that fails is waiting for mpirun.
cases, number = [], itertools.count()
BASE = {
    "model.hidden_size": 8,
    "model.num_experts": 4,
    "model.moe_intermediate_size": 4,
    "router.top_k": 2,
    "data.tokens_per_device": 4,
}
NAN = float("nan")
INFINITY = float("inf")


def tree():
    """All that lies in the test's folder."""
    return {
        os.path.join(folder, name)
        for folder, folders, files in os.walk(TEMPORARY)
        for name in folders + files
    }


def refused(label, words, arguments, ranks=2):
    """words: what the sentence has to name."""
    cases.append((label, words, arguments, ranks))


def check_case(label, words, arguments, ranks):
    done = moesim(ranks, *arguments)
    lines = done.err.splitlines()
    check(done.code == 2, f"{label}: status {done.code}, expected 2: {done.err}")
    check(
        len(lines) == 1 and lines[0].startswith("moesim: "),
        f"{label}: {len(lines)} lines on standard error: {done.err}",
    )
    check(done.out == "", f"{label}: standard output: {done.out[:200]}")
    check(done.seconds < 15, f"{label}: took {done.seconds:.1f} s")
    for word in words:
        check(word in done.err, f"{label}: the sentence does not name {word}: {done.err}")


def check_cases():
    before = tree()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda case: check_case(*case), cases))
    check(tree() == before, f"something was written: {sorted(tree() - before)}")


def refused_config(label, words, settings, ranks=2):
    n = next(number)
    refused(
        label,
        words,
        ["--out", os.path.join(TEMPORARY, f"results{n}"), config(f"bad{n}", {**BASE, **settings})],
        ranks,
    )


# --- .npy ---


def raw(content, name=None):
    path = os.path.join(TEMPORARY, name or f"bad{next(number)}.npy")
    with open(path, "wb") as file:
        file.write(content)
    return path


def logits(numbers=None, shape=(3, 4), dtype="<f4", fortran=False):
    count = 1
    for n in shape:
        count *= n
    return save(f"bad{next(number)}.npy", dtype, shape, numbers or [0] * count, fortran)


def bad_logits(label, words, path, **more):
    refused_config(
        label,
        ["data.path", os.path.basename(path), *words],
        {"data.source": "logits", "data.path": path, **more},
    )


def check_npy_files():
    whole = header_of("<f4", (3, 4)) + bytes(48)
    bad_logits("missing .npy", ["nowhere.npy"], "nowhere.npy")
    bad_logits("a folder for a .npy", ["bad-folder"], os.path.join(TEMPORARY, "bad-folder"))
    bad_logits("empty file", [], raw(b""))
    bad_logits("text for a .npy", ["not a .npy", "numpy.save"], raw(b"1 2 3\n" * 50))
    bad_logits("cut header", [], raw(whole[:40]))
    bad_logits("cut data", [], raw(whole[:-1]))
    bad_logits("bytes too many", [], raw(whole + b"\0"))
    bad_logits("unknown version", [], raw(whole[:6] + b"\x09" + whole[7:]))
    bad_logits("broken header", [], raw(whole.replace(b"'descr'", b"'decsr'")))
    bad_logits(
        "big endian", ["'>f4'", "little endian", "newbyteorder"], raw(whole.replace(b"<f4", b">f4"))
    )
    bad_logits("objects", [], raw(whole.replace(b"<f4'", b"|O' ")))
    bad_logits("negative shape", [], raw(whole.replace(b"(3, 4)", b"(-3,4)")))
    bad_logits("overflowing shape", [], raw(header_of("<f4", (1 << 62, 1 << 62)) + bytes(48)))
    bad_logits(
        "huge header length",
        [],
        raw(b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + bytes(100)),
    )
    bad_logits("Fortran order", ["C order", "ascontiguousarray"], logits(fortran=True))


def check_logits():
    bad_logits("integers", ["int32", "float16, float32 and float64"], logits(dtype="<i4"))
    bad_logits("columns", ["[3, 5]"], logits(shape=(3, 5)))
    bad_logits("one dimension", ["[12]"], logits(shape=(12,)))
    bad_logits("two layers in each step", ["[steps, 1, T, 4]"], logits(shape=(1, 2, 4, 4)))
    bad_logits("five dimensions", [], logits(shape=(1, 1, 1, 3, 4)))
    bad_logits("no token", ["[0, 4]"], logits(shape=(0, 4), numbers=[]))
    bad_logits("layers", [], logits(shape=(3, 3, 4)), **{"model.num_layers": 2})
    bad_logits("NaN in the first token", ["token 0", "nan"], logits([NAN] + [0] * 11))
    bad_logits(
        "NaN in the last token, on the last rank", ["token 2", "nan"], logits([0] * 11 + [NAN])
    )
    bad_logits(
        "two NaN: the first is named", ["token 1"], logits([0] * 7 + [NAN, NAN, NAN, NAN, NAN])
    )
    bad_logits("+inf", ["token 1", "inf"], logits([0] * 4 + [INFINITY] + [0] * 7))


def check_routing():
    def bad(label, words, numbers=(0, 1, 2, 3, 0, 1), shape=(3, 2), dtype="<i4", **more):
        path = save(f"idx{next(number)}.npy", dtype, shape, list(numbers))
        refused_config(
            label, words, {"data.source": "routing", "data.path": path, "router.top_k": 2, **more}
        )

    bad("expert too large", ["data.path", "token 1"], (0, 1, 2, 4, 0, 1))
    bad("expert below -1", ["data.path", "token 0"], (-2, 1, 2, 3, 0, 1))
    bad("an expert twice", ["data.path", "token 2"], (0, 1, 2, 3, 1, 1))
    bad("floats for experts", ["data.path", "float32"], dtype="<f4")
    bad("another K", ["top_k"], numbers=(0, 1, 2), shape=(3, 1))
    bad("more columns than experts", ["data.path", "[1, 6]"], shape=(1, 6))
    bad(
        "weights of another shape",
        ["data.weights", "[2, 2]"],
        **{"data.weights": save("w.npy", "<f4", (2, 2), [1] * 4)},
    )
    bad(
        "NaN weight",
        ["data.weights", "token 2"],
        **{"data.weights": save("w2.npy", "<f4", (3, 2), [1] * 5 + [NAN])},
    )
    bad(
        "scores of another shape",
        ["data.scores", "[3, 5]"],
        **{"data.scores": save("s.npy", "<f8", (3, 5), [0] * 15)},
    )
    bad(
        "negative score",
        ["data.scores", "token 0"],
        **{"data.scores": save("s2.npy", "<f8", (3, 4), [-1] + [0] * 11)},
    )
    bad(
        "mask of another length",
        ["data.mask", "[4]"],
        **{"data.mask": save("m.npy", "|u1", (4,), [1] * 4)},
    )
    bad(
        "float mask",
        ["data.mask", "float32"],
        **{"data.mask": save("m2.npy", "<f4", (3,), [1] * 3)},
    )
    bad(
        "mask of zeros",
        ["data.mask", "no token is left"],
        **{"data.mask": save("m3.npy", "|u1", (3,), [0] * 3)},
    )
    bad("missing mask", ["data.mask", "nowhere"], **{"data.mask": "nowhere.npy"})


def check_bias():
    for label, path in (
        ("length", save("b.npy", "<f8", (5,), [0] * 5)),
        ("NaN", save("b2.npy", "<f8", (4,), [0, NAN, 0, 0])),
        ("type", save("b3.npy", "<i4", (4,), [0] * 4)),
        ("dimensions", save("b4.npy", "<f8", (2, 2), [0] * 4)),
        ("missing", "nowhere.npy"),
    ):
        refused_config(f"bias: {label}", ["router.bias_file"], {"router.bias_file": path})


# --- text, folders, sizes, command line ---


def check_text():
    os.mkdir("empty-folder")
    open("empty.txt", "w").close()
    for path in ("nowhere.txt", "empty-folder", "empty.txt", "/dev/null"):
        refused_config(
            f"text: {path}", ["data.path", path], {"data.source": "text", "data.path": path}
        )


def check_results_folder():
    os.mkdir("full")
    raw(b"mine", "full/mine.txt")
    good = config("good", BASE)
    refused("a folder that is not empty", ["full", "--force"], ["--out", "full", good])
    refused("a file for a folder", ["full/mine.txt"], ["--out", "full/mine.txt", good])
    refused("below a file", ["full/mine.txt/deeper"], ["--out", "full/mine.txt/deeper", good])
    refused("a folder that cannot be made", ["/proc/moesim"], ["--out", "/proc/moesim", good])
    refused("a path that is too long", [], ["--out", "x/" * 2000, good])
    refused("no name", ["--out"], ["--out", "", good])


def check_sizes():
    big = {
        "model.hidden_size": 65536,
        "model.moe_intermediate_size": 65536,
        "model.num_experts": 1024,
    }
    refused_config("weights that do not fit", ["GiB", "model.num_experts"], big)
    refused_config(
        "tokens that do not fit",
        ["GiB", "data.tokens_per_device"],
        {"data.tokens_per_device": 1000000000, "model.hidden_size": 4096},
    )
    refused_config(
        "a number beyond 64 bits", ["data.tokens_per_device"], {"data.tokens_per_device": 10**30}
    )
    refused_config(
        "products beyond 64 bits", [], {"data.tokens_per_device": 2**39, "router.top_k": 4}
    )
    refused_config("devices without end", ["cluster.devices"], {"cluster.devices": 2**31})


def check_combinations():
    for label, words, settings in (
        ("unknown key", ["router.topk", "router.top_k"], {"router.topk": 3}),
        ("bad value", ["softmin", "softmax"], {"router.score_func": "softmin"}),
        ("out of range", ["router.top_k"], {"router.top_k": 0}),
        ("top_k above the experts", ["top_k"], {"router.top_k": 5}),
        (
            "experts not divisible by devices",
            ["num_experts"],
            {"model.num_experts": 5, "router.num_groups": 1},
        ),
        (
            "devices not a multiple of ranks",
            ["cluster.devices"],
            {"cluster.devices": 3, "model.num_experts": 6},
        ),
        (
            "M above the groups",
            ["topk_group"],
            {"router.group_limit": "max", "router.topk_group": 3},
        ),
        (
            "K impossible within M groups",
            ["top_k"],
            {"router.group_limit": "max", "router.topk_group": 1, "router.top_k": 3},
        ),
        ("not there yet", ["windowed", "not available yet"], {"exchange.algorithm": "windowed"}),
    ):
        refused_config(label, words, settings)


def check_command_line():
    good = config("good", BASE)
    refused("no configuration", ["CONFIG.ini"], [])
    refused("two configurations", ["two configurations"], [good, QUICKSTART])
    refused("an empty name", ["the name of the configuration is empty"], [""])
    refused("missing configuration", ["nowhere.ini"], ["nowhere.ini"], 4)
    refused("a folder for a configuration", [TEMPORARY], [TEMPORARY])
    refused("unknown option", ["--fast"], ["--fast", good])
    refused("--set without a value", ["--set"], [good, "--set"])
    refused("--set without an equals sign", ["run.steps"], [*sets({}), "--set", "run.steps", good])
    refused(
        "mistake after the configuration",
        ["run.stepz", "run.steps"],
        [good, "--set", "run.stepz=1"],
    )
    for words in (
        ["--keys", "--out", "x"],
        ["--keys", "--set", "run.steps=3"],
        ["--version", "--force"],
        ["--keys", "--version"],
        ["--version", "--verify"],
        ["--verify", good],
        ["--verify", "predict", "--check"],
        ["--dialects", good, "--out", "x"],
        ["--dialects", good, "--check"],
    ):
        idle = next(word for word in reversed(words) if word[0] == "-" or word == good)
        refused(f"{words}: one does nothing", ["leave", idle], words)
    refused(
        "--check of a bad file",
        ["data.path"],
        ["--check", "--set", "data.source=logits", "--set", "data.path=nowhere.npy", good],
    )


os.mkdir("bad-folder")
check_npy_files()
check_logits()
check_routing()
check_bias()
check_text()
check_results_folder()
check_sizes()
check_combinations()
check_command_line()
check_cases()
verdict()
