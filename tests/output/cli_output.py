"""ctest: timeout=120
What moesim prints and how it is asked: clean text through a pipe, --quiet, --help, --version,
--keys, --check, options in any order, and a config.ini in the results that gives the same results
again.
"""
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from itertools import zip_longest

from _moesim import (
    TEMPORARY,
    check,
    command,
    config,
    environment,
    metrics,
    moesim,
    near,
    run,
    same_bytes,
    save,
    sets,
    summary,
    verdict,
)

BASE = {
    "run.steps": 2,
    "model.hidden_size": 16,
    "model.num_experts": 16,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "router.group_limit": "max",
    "router.topk_group": 2,
    "balance.alpha_expert": 0.003,
    "cluster.devices": 4,
    "data.tokens_per_device": 32,
    "data.sequence_length": 16,
    "output.routing": "yes",
    "output.tensors": "yes",
}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def plain(**more):
    """An environment without settings of colour."""
    for name in ("NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "COLUMNS"):
        os.environ.pop(name, None)
    return {"TERM": "xterm-256color", **more}


def check_clean(label, text):
    dirty = CONTROL.findall(text)
    check(
        not dirty,
        (
            f"{label}: {len(dirty)} control characters, such as {sorted(set(dirty))[:4]}, in"
            f" {text[:160]!r}"
        ),
    )


def check_pipe():
    for ranks in (1, 4):
        for label, more in (
            ("piped", {}),
            ("piped with NO_COLOR", {"NO_COLOR": "1"}),
            ("piped without TERM", {"TERM": "dumb"}),
        ):
            done = moesim(
                ranks,
                "--full",
                "--out",
                f"pipe-{ranks}-{len(label)}",
                config("pipe", BASE),
                **plain(**more),
            )
            check(done.code == 0 and done.err == "", f"{label}: status {done.code}: {done.err}")
            check_clean(f"{label} at np {ranks}", done.out)
            check(
                all(len(line) <= 160 for line in done.out.splitlines()),
                f"{label}: a line of more than 160 characters",
            )
            for word in (
                "expert",
                "device",
                "communication",
                "dispatch",
                "combine",
                "rows_conserved",
                "passed",
                f"pipe-{ranks}",
            ):
                check(word in done.out, f"{label}: nothing about {word}")


def check_short():
    """Without --full the ending fits on a screen: the busiest device and the saving of its files in
    a sentence, the three losses, the bars, the number of checks.
    """
    done = moesim(2, "--out", "short", config("short", BASE), **plain())
    found = summary("short")
    volume = found["volume"]["dispatch"]
    (load,) = device_loads(found)
    ending = done.out[done.out.index("\nDevice ") :]
    said = " ".join(ending.split())
    saved = 100 - 100 * volume["logical_bytes"] / volume["selection_bytes"]
    for words in (
        f"Device {load.index(max(load))} has {over_mean(load):.2f} times the mean load.",
        f"saves {saved:.1f} % of the bytes",
        f"{sum(passed is True for passed in found['checks'].values())} checks passed",
        "communication",
        "Predicted on 4 devices",
    ):
        check(words in said, f"short: '{words}' is not in {said[:400]}")
    check(ending.count("\n") <= 45, f"short: an ending of {ending.count(chr(10))} lines")
    check("rows_conserved" not in said and "entropy z" not in said, "short: tells everything")


def device_loads(found):
    return [layer["counts_per_device"] for layer in found["layers"]]


def over_mean(load):
    return max(load) * len(load) / sum(load)


def check_replay():
    """A recorded routing has no losses: no column and no line is full of dashes. Of its layers, of
    which one sends everything to two devices, the worst is named.
    """
    layers, tokens, k = 3, 4 * 32, 3
    experts = [
        (t + i) % 6 if layer == 1 else (t + 5 * i) % 16
        for layer in range(layers)
        for t in range(tokens)
        for i in range(k)
    ]
    save("topk.npy", "<i4", (1, layers, tokens, k), experts)
    replay = {
        "run.steps": 1,
        "router.group_limit": "none",
        "router.topk_group": 0,
        "balance.alpha_expert": 0,
        "model.num_layers": layers,
        "data.source": "routing",
        "data.path": "topk.npy",
    }
    for full in ((), ("--full",)):
        done = moesim(
            2, "--force", "--out", "replay", *full, config("replay", {**BASE, **replay}), **plain()
        )
        check(done.code == 0, f"replay: {done.err}")
        dashed = [line for line in done.out.splitlines() if line.split().count("-") > 2]
        check(not dashed, f"replay: {dashed}")
        check("the recorded routing has no scores" in done.out, "replay: why there are no losses")
    loads = device_loads(summary("replay"))
    worst = max(range(layers), key=lambda layer: over_mean(loads[layer]))
    check(worst == 1, f"the test's layer 1 is not the worst: {loads}")
    short = moesim(2, "--force", "--out", "replay", config("replay", {**BASE, **replay}), **plain())
    said = " ".join(short.out.split())
    device = loads[worst].index(max(loads[worst]))
    for words in (
        f"the worst layer is 1, where device {device} has {over_mean(loads[worst]):.2f} times",
        "step devices sent to device worst expert time a token others max/mean layer max/mean",
    ):
        check(words in said, f"replay: '{words}' is not said")


def terminal_output(*arguments, columns=0, **more):
    """What a terminal shows whose mpirun runs moesim on two ranks."""
    ours, theirs = pty.openpty()
    if columns:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command(2, *arguments),
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the last process has closed the terminal
            part = b""
        if not part:
            break
        shown += part
    os.close(ours)
    check(process.wait() == 0, "on a terminal: status is not 0")
    return shown.decode()


def check_terminal():
    """On a terminal there is colour, unless NO_COLOR says no."""
    coloured = terminal_output("--out", "terminal", config("terminal", BASE), **plain())
    check("\x1b[" in coloured, "no colour on a terminal")
    uncoloured = terminal_output(
        "--out", "terminal-plain", config("terminal", BASE), **plain(NO_COLOR="1")
    )
    check(re.search(r"\x1b\[[0-9;]*m", uncoloured) is None, "colour in spite of NO_COLOR")


WIDE = {
    **BASE,
    "run.mode": "train",
    "run.steps": 3,
    "train.validation_every": 2,
    "model.num_layers": 2,
    "data.source": "text",
    "data.path": "words.txt",
    "capacity.policy": "device",
    "output.tensors": "no",
    "train.specialization": "yes",
}
EVERYWHERE = (
    "step",
    "expert",
    "sent to",
    "at balance",
    "payload",
    "max/mean",
    "rows_conserved",
)  # words of tables, on the narrowest terminal too


def check_width():
    """Tables fit the terminal, as wide as the terminal or COLUMNS says; narrow ones have fewer
    columns, wide ones all; rows stand under their heads.
    """
    with open("words.txt", "w") as file:
        file.write("the quick brown fox jumps over the lazy dog. " * 200)
    cases = [
        (
            "forward",
            ("--full", config("narrow", BASE)),
            EVERYWHERE,
            ("devices", "mean/max", "ratio"),
        ),
        (
            "training",
            ("--full", config("wide", WIDE)),
            EVERYWHERE + ("MaxVio", "task"),
            ("norm", "byte"),
        ),
        (
            "dialects",
            (
                "--dialects",
                config("dialects", {**BASE, "output.routing": "no", "output.tensors": "no"}),
            ),
            ("expert", "drop", "form"),
            ("limit", "scope", "importance"),
        ),
    ]
    for label, arguments, always, in_full in cases:
        for columns, how in (
            (60, "terminal"),
            (60, "COLUMNS"),
            (80, "terminal"),
            (130, "terminal"),
        ):
            if how == "COLUMNS" and label != "forward":
                continue
            more = {"COLUMNS": str(columns)} if how == "COLUMNS" else {}
            out = ["--out", f"{label}-{columns}-{how}"] if "--dialects" not in arguments else []
            shown = terminal_output(
                *out,
                *arguments,
                columns=columns if how == "terminal" else 200,
                **plain(**more),
            )
            lines = [
                piece
                for line in re.sub(r"\x1b\[[0-9;]*[mK]", "", shown).split("\n")
                for piece in line.split("\r")
            ]
            long = [
                line for line in lines if len(line) > columns and "/" not in line
            ]  # a folder's name is not broken
            check(
                not long,
                f"{label}, {columns} columns of {how}: {len(long)} lines too long: {long[:3]}",
            )
            text = "\n".join(lines)
            check(
                all(word in text for word in always),
                (
                    f"{label}, {columns} columns: without"
                    f" {[word for word in always if word not in text]}"
                ),
            )
            check(
                columns < 130 or all(word in text for word in in_full),
                (
                    f"{label}, {columns} columns: without"
                    f" {[word for word in in_full if word not in text]}"
                ),
            )
            if label == "forward":
                head, row = (
                    next(line for line in lines if re.match(start, line))
                    for start in (r" +step +expert", r" +0 +\d\.\d{4}")
                )
                check(
                    len(head) == len(row)
                    and [bool(cell) for cell in head.split()]
                    and head.rstrip().endswith("time"),
                    f"{columns} columns: {head!r} {row!r}",
                )
                check(
                    "steps/s" in shown and " left" in shown,
                    f"no progress on a terminal of {columns} columns",
                )


TIME = re.compile(r" *(\d+ min \d\d s|[\d.]+ m?s)\b")
HEADER_OF_RANKS = re.compile(
    r"^((devices|machine|memory|warning) | {11}fullest rank:).*\n( {11}.*\n)*", re.M
)  # say how many ranks there are


def without_time(text, folder):
    """Times masked; where they make text wrap elsewhere, blanks and newlines are one."""
    text, ending = TIME.sub(" TIME", text.replace(folder, "FOLDER")).split("\nTime\n")
    return text, " ".join(ending.split())


def check_stable():
    """What is piped is the same, run after run, and on any number of ranks but for the lines about
    the ranks.
    """
    shown = {}
    for label, settings in (("forward", BASE), ("training", WIDE)):
        for ranks, turn in ((2, 1), (2, 2), (1, 1), (4, 1)):
            folder = f"stable-{label}-{ranks}-{turn}"
            done = moesim(ranks, "--full", config("stable", settings), "--out", folder, **plain())
            if check(done.code == 0 and done.err == "", f"{folder}: {done.err}"):
                shown[ranks, turn] = without_time(done.out, folder)
        check(shown[2, 1] == shown[2, 2], f"{label}: two runs say different things")
        check(
            "TIME" in shown[2, 1][0]
            and "FOLDER" in shown[2, 1][1]
            and "rank" in HEADER_OF_RANKS.search(shown[2, 1][0])[0],
            f"{label}: nothing was masked",
        )
        rest = {
            key: (HEADER_OF_RANKS.sub("", text), ending) for key, (text, ending) in shown.items()
        }
        check(len(rest[1, 1][0]) > 3000, f"{label}: only {rest[1, 1][0]!r}")
        for ranks in (2, 4):
            other = [
                (a, b)
                for one, two in zip(rest[1, 1], rest[ranks, 1])
                for a, b in zip_longest(one.split("\n"), two.split("\n"))
                if a != b
            ]
            check(not other, f"{label} says other things at np {ranks} than at np 1: {other[:3]}")


def check_help():
    """One screen."""
    lines = moesim(1, "--help").out.splitlines()
    check(
        len(lines) <= 24 and max(map(len, lines)) <= 80,
        f"--help has {len(lines)} lines of up to {max(map(len, lines))} columns",
    )
    check(
        sum(line.startswith("  mpirun -np") for line in lines) == 2, "--help has not two examples"
    )
    narrow = terminal_output("--help", columns=60, **plain())
    check(
        max(map(len, narrow.splitlines())) <= 60 and narrow.split() == " ".join(lines).split(),
        f"--help in 60 columns: {narrow}",
    )


def check_idle():
    """Keys that were changed and do nothing are named, each with what makes it idle; those that a
    file has for another case are not.
    """
    folder = ("--out", "idle", "--force")
    done = moesim(
        2,
        config("idle", BASE),
        *folder,
        *sets(
            {
                "capacity.drop": "position",
                "data.path": "nowhere",
                "router.noise": 0.1,
            }
        ),
        **plain(),
    )
    said = " ".join(done.out.split())
    for words in (
        "capacity.drop has no effect: capacity.policy = none",
        "data.path has no effect: data.source = synthetic",
        "router.noise has no effect: run.mode = forward",
    ):
        check(
            done.code == 0 and words in said,
            f"'{words}' is not said: {done.code} {done.out[:1500]}",
        )
    file = config(
        "idle-file", {**BASE, "capacity.policy": "device", "capacity.capacity_factor": 0.5}
    )
    check(
        "no effect" not in moesim(2, file, *folder, **plain()).out,
        "a warning about keys that have an effect",
    )
    check(
        "no effect"
        not in moesim(2, file, *folder, *sets({"capacity.policy": "none"}), **plain()).out,
        "a warning about what --set switched off",
    )
    check(
        "method random, "
        in moesim(
            2,
            file,
            *folder,
            *sets({"router.method": "random", "router.group_limit": "none"}),
            **plain(),
        ).out,
        "the header does not name the method",
    )


def check_objective():
    """With several layers, what training adds to the task's loss is the sum over the layers, and
    the total that is shown is their mean."""
    folder = run("layers", 2, {**BASE, "model.num_layers": 3, "balance.alpha_expert": 0.3})
    made = summary(folder)
    totals = [layer["loss"]["total"] for layer in made["layers"]]
    check(
        near(made["loss"]["objective"], sum(totals), 1e-12)
        and near(made["loss"]["total"], sum(totals) / 3, 1e-12),
        f"totals {totals}, {made['loss']}",
    )
    check(
        metrics(folder)[-1]["loss"]["objective"] == made["loss"]["objective"],
        "metrics.jsonl has another objective",
    )


def check_quiet():
    done = moesim(2, config("quiet", BASE), "--quiet", "--out", "quiet")
    check(
        done.code == 0 and done.out == "" and done.err == "",
        f"--quiet: status {done.code}, {done.out!r}, {done.err!r}",
    )
    check(os.path.exists("quiet/summary.json"), "--quiet writes no results")


def check_talk():
    """No configuration is needed, all ranks end with 0, one of them speaks."""
    before = set(os.listdir(TEMPORARY))
    for option, pattern in (
        ("--version", r"\Amoesim \d+\.\d+\.\d+\n\Z"),
        ("--help", r"usage:"),
        ("--keys", r"\btop_k\b"),
    ):
        done = moesim(2, option, **plain())
        check(done.code == 0 and done.err == "", f"{option}: status {done.code}: {done.err}")
        check(re.search(pattern, done.out) is not None, f"{option}: {done.out[:200]}")
        check(
            done.out == moesim(1, option, **plain()).out,
            f"{option}: two ranks do not say the same as one",
        )
        check_clean(option, done.out)
    check(set(os.listdir(TEMPORARY)) == before, "--help, --version or --keys wrote something")
    keys = moesim(1, "--keys").out
    for key in (
        "steps",
        "hidden_size",
        "group_limit",
        "alpha_comm",
        "devices_per_node",
        "tokens_per_device",
        "tensors",
    ):
        check(key in keys, f"--keys does not name {key}")


def equal_results(first, second, label):
    arrays = sorted(name for name in os.listdir(first) if name.endswith(".npy"))
    check(
        len(arrays) >= 5
        and arrays == sorted(name for name in os.listdir(second) if name.endswith(".npy")),
        f"{label}: arrays",
    )
    for name in arrays:
        check(same_bytes(f"{first}/{name}", f"{second}/{name}"), f"{label}: {name} differs")
    a, b = summary(first), summary(second)
    for one in (a, b):
        one["config"].pop("name")
        for key in ("time", "machine", "ranks"):
            one.pop(key)
    check(a == b, f"{label}: summary.json differs")


def check_reproduction():
    """What --check prints, and the config.ini of a run, are configurations that give the same
    results, at another np too.
    """
    first = run("first", 4, BASE)
    checked = moesim(4, "--check", config("check", BASE), "--out", "not-made")
    check(
        checked.code == 0 and not os.path.exists("not-made"),
        f"--check: status {checked.code}: {checked.err}",
    )
    check_clean("--check", checked.out)
    with open("checked.ini", "w") as file:
        file.write(checked.out)
    for label, path, ranks in (
        ("--check", "checked.ini", 4),
        ("config.ini", f"{first}/config.ini", 4),
        ("config.ini at np 2", f"{first}/config.ini", 2),
    ):
        done = moesim(ranks, path, "--quiet", "--out", label)
        if first and check(done.code == 0, f"{label} does not run: {done.err}"):
            equal_results(first, label, label)
            check(
                same_bytes(f"{label}/config.ini", f"{first}/config.ini") or ranks != 4,
                f"{label}: its own config.ini differs",
            )


def check_options():
    """Options after the configuration, both ways of giving a value, --set over the file, the last
    --set over the first.
    """
    path = config("options", BASE)
    done = moesim(
        2, "--set", "router.top_k=1", path, "--set=router.top_k=2", "--out=options-a", "--quiet"
    )
    check(
        done.code == 0 and summary("options-a")["config"]["router"]["top_k"] == 2,
        f"options after the configuration: {done.err}",
    )
    done = moesim(2, *sets({"router.top_k": 2}), "--out", "deep/er/options-b", path, "--quiet")
    check(done.code == 0, f"a folder inside folders that are not there: {done.err}")
    if done.code == 0:
        equal_results("options-a", "deep/er/options-b", "options before and after")
    done = moesim(2, path, "--quiet")
    made = os.listdir("runs") if os.path.isdir("runs") else []
    check(
        done.code == 0 and len(made) == 1 and re.fullmatch(r"options-\d{8}-\d{6}\S*", made[0]),
        f"default folder: {made}, {done.err}",
    )


def check_force():
    """A finished run is not overwritten unless asked for; other files stay."""
    path = config("force", BASE)
    done = moesim(2, path, "--quiet", "--out", "force")
    with open("force/notes.txt", "w") as file:
        file.write("mine")
    before = os.stat("force/summary.json").st_mtime_ns
    done = moesim(2, path, "--quiet", "--out", "force")
    check(
        done.code == 2 and os.stat("force/summary.json").st_mtime_ns == before,
        f"an existing run: status {done.code}: {done.err}",
    )
    done = moesim(
        2,
        path,
        "--quiet",
        "--out",
        "force",
        "--force",
        "--set",
        "run.steps=1",
        "--set",
        "output.tensors=no",
    )
    check(
        done.code == 0 and summary("force")["steps"] == 1,
        f"--force: status {done.code}: {done.err}",
    )
    check(os.path.exists("force/notes.txt"), "--force removed a file that moesim did not write")
    check(not os.path.exists("force/y.npy"), "--force left an array of the run before")


check_pipe()
check_short()
check_replay()
check_terminal()
check_width()
check_stable()
check_help()
check_idle()
check_objective()
check_quiet()
check_talk()
check_reproduction()
check_options()
check_force()
verdict()
