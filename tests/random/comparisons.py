"""Runs one configuration in two ways that must give the same results, and says what differs.

Every comparison returns None or a Finding. `kind` names the comparison and what went wrong without
figures, so that the same fault has the same kind in a smaller configuration.
"""

import json
import os
import random
import re
import shlex
import shutil
import signal
import struct
import subprocess
import time
import traceback

import _moesim
from files import write_files

# What may differ: where and how fast a run was.
RUN_KEYS = {"time", "machine", "ranks", "rank"}
# In another exchange mode also rows, and what counts rows.
MODE_KEYS = RUN_KEYS | {
    "volume",
    "check_details",
    "checks",
    "sent_rows",
    "received_rows",
    "received",
    "sent",
    "node_received",
    "node_sent",
    "remote_bytes",
    "dispatch_remote_bytes",
    "rows_saved",
    "bytes_saved",
    "counted",
}
# What carries rows is told with the settings and the machine.
TRANSPORT_KEYS = RUN_KEYS | {"transport"}
# A run validates after its last step; one that went on from there keeps that validation.
EXTENDED_KEYS = RUN_KEYS | {"validation_loss", "validation_bits_per_byte"}
TIMES = ("timeline.json", "report.html")
DOUBLE_BOUND = 2e-3  # of losses in float and in double, relative to the larger of 1 and the loss


class Finding:
    def __init__(self, comparison, what, text, *outcomes):
        self.comparison, self.kind, self.text = comparison, f"{comparison}: {what}", text
        self.commands = [o.command for o in outcomes]


class Outcome:
    """One run: exit status, what it said, its folder and the command that a reader can repeat."""

    def __init__(self, code, out, err, folder, command):
        self.code, self.out, self.err = code, out, err
        self.folder, self.command = folder, command

    def sentence(self):
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""


def without(value, keys):
    if isinstance(value, dict):
        return {k: without(v, keys) for k, v in value.items() if k not in keys}
    return [without(v, keys) for v in value] if isinstance(value, list) else value


def differences(a, b, path=""):
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted(a.keys() | b.keys())
        return [d for k in names for d in differences(a.get(k), b.get(k), f"{path}.{k}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b and isinstance(a, type(b)) else [f"{path}: {a} and {b}"]


def read_json(path, keys):
    with open(path, encoding="utf-8") as file:
        if path.endswith(".jsonl"):
            return [without(json.loads(line), keys) for line in file]
        value = without(json.load(file), keys)
    if "config" in value:
        value["config"].pop("name", None)
        value["config"].get("run", {}).pop("threads", None)
        value["config"].get("exchange", {}).pop("mode", None)
    return value


def results(folder):
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return {n for n in names if n.endswith((".npy", ".json", ".jsonl")) and n not in TIMES}


def different_file(first, second, name, keys):
    """None, or what differs in a file that both folders have."""
    a, b = os.path.join(first, name), os.path.join(second, name)
    if name.endswith(".npy"):
        if "volume" in keys and name.startswith("comm_matrix"):
            return None
        return None if _moesim.same_bytes(a, b) else f"{name} has other bytes"
    found = differences(read_json(a, keys), read_json(b, keys))
    return f"{name}: {'; '.join(found[:3])}" if found else None


class Bench:
    """One case in a folder of its own, with its first run."""

    def __init__(self, case, table, folder, options):
        self.case, self.table, self.options = case, table, options
        self.folder, self.runs = folder, 0
        shutil.rmtree(folder, ignore_errors=True)
        write_files(case, table, folder)
        self.draw = random.Random(f"comparisons {case.seed}")
        self.divisors = [r for r in (1, 2, 3, 4, 6, 8) if case.devices() % r == 0]
        few = [r for r in self.divisors if r <= 2]
        self.ranks = self.draw.choice(few)
        self.first = None

    # --- running ---

    def words(self, ranks, program=None):
        """The command up to its arguments; ranks = 0 starts the program without mpirun."""
        program = program or _moesim.MOESIM
        if ranks == 0:
            return ["timeout", "-k", "5", str(self.options.timeout), program]
        words = list(_moesim.MPIRUN)
        if words[:2] == ["timeout", "-k"]:
            words[3] = str(self.options.timeout)
        return [*words, str(ranks), program]

    def run(self, ranks, *arguments, program=None):
        words = [*self.words(ranks, program), *arguments]
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=_moesim.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr, None, shlex.join(words))

    def run_into(self, ranks, *arguments, config="case.ini", program=None, sets=()):
        self.runs += 1
        name = f"run-{self.runs}"
        options = [word for s in sets for word in ("--set", s)]
        words = ["--quiet", "--out", name, *options, *arguments, config]
        done = self.run(ranks, *words, program=program)
        done.folder = os.path.join(self.folder, name)
        return done

    def base(self):
        if self.first is None:
            self.first = self.run_into(self.ranks, sets=["run.threads=1"])
        return self.first

    def other_ranks(self):
        others = [r for r in self.divisors if r != self.ranks]
        small = [r for r in others if r <= 4]
        return self.draw.choice(small if small and self.draw.random() < 0.8 else others or [1])

    # --- judging ---

    def bad(self, comparison, done):
        """A finding when a run ended as no run may: neither done nor refused in one sentence."""
        where = f"status {done.code}: {done.err.strip()[-600:]}"
        lines = [line for line in done.err.splitlines() if line.strip()]
        if done.code in (124, 137):
            return Finding(comparison, "hang", f"no end in {self.options.timeout} s", done)
        if done.code == 3:
            return Finding(comparison, f"self-check {self.failed_checks(done)}", where, done)
        if done.code == 2 and len(lines) != 1:
            return Finding(comparison, f"refused with {len(lines)} lines", where, done)
        if done.code not in (0, 2):
            return Finding(comparison, f"status {done.code}", where, done)
        if done.code == 0 and lines:
            return Finding(comparison, "words on standard error", where, done)
        if done.code == 0 and done.folder and self.failed_checks(done):
            text = f"status 0 although {self.failed_checks(done)} failed"
            return Finding(comparison, "a failed check with status 0", text, done)
        return None

    def failed_checks(self, done):
        try:
            with open(os.path.join(done.folder, "summary.json"), encoding="utf-8") as file:
                checks = json.load(file)["checks"]
            return " ".join(k for k, v in checks.items() if v is False)
        except (OSError, TypeError, ValueError, KeyError):
            match = re.search(r"checks?[^:]*: (.*)", done.err)
            return re.sub(r"[\d.]+", "#", match[1])[:60] if match else ""

    def same_end(self, comparison, first, second):
        """Findings of the second run alone, and refusals that differ."""
        found = self.bad(comparison, second)
        if found:
            return found
        if first.code != second.code:
            text = f"status {first.code} and {second.code}: {first.err}{second.err}".strip()
            what = f"status {first.code} and {second.code}"
            refused = first if first.code == 2 else second
            key = re.search(r"(\w+\.\w+) = ", refused.sentence())
            return Finding(comparison, f"{what} {key[1] if key else ''}", text, first, second)
        if first.code == 2 and first.sentence() != second.sentence():
            text = f"{first.sentence()} / {second.sentence()}"
            return Finding(comparison, "another sentence", text, first, second)
        return None

    def same_results(self, comparison, first, second, keys=RUN_KEYS, more=()):
        """`more`: files that only the second run may have."""
        found = self.same_end(comparison, first, second)
        if found or first.code == 2:
            return found
        names, others = results(first.folder), results(second.folder) - set(more)
        if names != others:
            text = f"files {sorted(names ^ others)} are written by one of them only"
            return Finding(comparison, "other files", text, first, second)
        for name in sorted(names):
            different = different_file(first.folder, second.folder, name, keys)
            if different:
                return Finding(comparison, f"{name} differs", different, first, second)
        return None


# --- the comparisons --- each takes a bench whose first run ended with status 0 or 2 --------------


def compare_ranks(bench):
    other = bench.run_into(bench.other_ranks(), sets=["run.threads=1"])
    return bench.same_results("ranks", bench.base(), other)


def compare_threads(bench):
    other = bench.run_into(bench.ranks, sets=["run.threads=2"])
    return bench.same_results("threads", bench.base(), other)


def compare_mode(bench):
    if bench.case.get("exchange.combine_payload", bench.table) != "fp32":
        return None  # a row's sum is rounded in one mode, its terms in the other
    mode = bench.case.get("exchange.mode", bench.table)
    names = ["selection", "token"]
    if bench.case.number("exchange.chunks", bench.table) == 1:
        names.append("two_level")
    others = [name for name in names if name != mode]
    another = bench.draw.choice(others)
    other = bench.run_into(bench.ranks, sets=["run.threads=1", f"exchange.mode={another}"])
    return bench.same_results("mode", bench.base(), other, MODE_KEYS)


def compare_transport(bench):
    """Rows through shared memory, or by MPI_Alltoallv where the case has that itself."""
    shared = bench.case.get("exchange.transport", bench.table) != "alltoallv"
    sets = ["run.threads=1", f"exchange.transport={'alltoallv' if shared else 'shared'}"]
    ranks = bench.ranks if bench.ranks > 1 else max(r for r in bench.divisors if r <= 4)
    other = bench.run_into(ranks, sets=sets)
    return bench.same_results("transport", bench.base(), other, TRANSPORT_KEYS)


def compare_own_devices(bench):
    """cluster.devices = 0 with a rank for each device."""
    other = bench.run_into(bench.case.devices(), sets=["run.threads=1", "cluster.devices=0"])
    return bench.same_results("a rank for each device", bench.base(), other)


def compare_again(bench):
    """The config.ini that a run wrote gives the same results."""
    name = os.path.basename(bench.base().folder)
    other = bench.run_into(bench.ranks, config=f"{name}/config.ini")
    return bench.same_results("config.ini again", bench.base(), other)


def settings_of(echo):
    """The lines of an echo that are settings; its remarks may tell how they came about."""
    return [line for line in echo.splitlines() if not line.startswith(";")]


def compare_echo(bench):
    """What --check prints is accepted by --check, and is printed again."""
    first = bench.run(0, "--check", "case.ini")
    found = bench.same_end("--check", bench.base(), first)
    if found:
        return found
    with open(os.path.join(bench.folder, "echo.ini"), "w", encoding="utf-8") as file:
        file.write(first.out)
    second = bench.run(0, "--check", "echo.ini")
    found = bench.same_end("--check of its own echo", first, second)
    a, b = settings_of(first.out), settings_of(second.out)
    if not found and a != b:
        changed = [f"{x} / {y}" for x, y in zip(a, b) if x != y]
        text = "; ".join(changed[:3]) or "one has more lines"
        return Finding("--check of its own echo", "another echo", text, first, second)
    return found


def compare_explain(bench):
    """Explaining changes no result, and its derivations agree."""
    words = ["--explain-step"]
    if bench.draw.random() < 0.7:
        words += ["--explain", "0"]
    sets = ["run.threads=1"]
    first = bench.run_into(bench.ranks, *words, sets=sets)
    found = bench.same_results("explain", bench.base(), first, more=("explain.json",))
    if found or len(bench.divisors) == 1 or first.code == 2:
        return found
    second = bench.run_into(bench.other_ranks(), *words, sets=sets)
    return bench.same_results("explain on other ranks", first, second)


# --- single and double precision ---


def steps_of(folder):
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def same_routing(first, second):
    """Whether both chose the same experts, and dropped the same pairs, as far as is written."""
    names = results(first) & {"topk_idx.npy", "kept.npy", "expert_load.npy"}
    pairs = [(os.path.join(first, n), os.path.join(second, n)) for n in names]
    return all(os.path.isfile(b) and _moesim.same_bytes(a, b) for a, b in pairs)


def losses_apart(first, second):
    for name, a in first.items():
        b = second.get(name)
        if (a is None) != (b is None):
            return f"loss_raw.{name}: {a} in float and {b} in double"
        if a is not None and abs(a - b) > DOUBLE_BOUND * max(1, abs(a), abs(b)):
            return f"loss_raw.{name}: {a} in float and {b} in double"
    return None


def compare_double(bench):
    payloads = [
        bench.case.get(f"exchange.{k}", bench.table) for k in ("payload", "combine_payload")
    ]
    if payloads + [bench.case.get("model.compute", bench.table)] != ["fp32"] * 3:
        return None  # the last bit of a float may decide which way a number is rounded
    program = os.environ.get("MOESIM_F64", _moesim.MOESIM + "-f64")
    sets = ["run.threads=1", "output.routing=yes", "run.gemm=auto"]  # oneDNN has no double
    if bench.case.trains():
        sets.append("run.steps=1")  # later steps may part where gradients are nearly 0
    first = bench.run_into(bench.ranks, sets=sets)
    second = bench.run_into(bench.ranks, sets=sets, program=program)
    found = bench.bad("float", first) or bench.same_end("double", first, second)
    if found or first.code == 2 or not same_routing(first.folder, second.folder):
        return found
    a, b = steps_of(first.folder)[-1], steps_of(second.folder)[-1]
    apart = losses_apart(a["loss_raw"], b["loss_raw"])
    return Finding("double", "a loss differs", apart, first, second) if apart else None


# --- training interrupted and resumed ---


def checkpoints(folder):
    path = os.path.join(folder, "checkpoints")
    names = os.listdir(path) if os.path.isdir(path) else []
    return sorted(os.path.join(path, n) for n in names if n.endswith(".moe"))


def may_resume(case, table):
    every = case.number("train.checkpoint_every", table)
    return case.trains() and every > 0 and case.number("run.steps", table) > 1


def compare_fewer_steps(bench):
    """Fewer steps first, then --resume up to all of them."""
    case, table = bench.case, bench.table
    steps = case.number("run.steps", table)
    if case.get("train.schedule", table) == "cosine":
        return compare_lost_checkpoint(bench)
    before = bench.draw.randint(1, steps - 1)
    first = bench.run_into(bench.ranks, sets=["run.threads=1", f"run.steps={before}"])
    found = bench.same_end("fewer steps", bench.base(), first)
    if found or first.code == 2:
        return found
    every = case.number("train.validation_every", table)
    keys = EXTENDED_KEYS if every > 0 and before % every != 0 else RUN_KEYS
    return resume(bench, bench.base(), first, "resume", ["--set", f"run.steps={steps}"], keys)


def compare_lost_checkpoint(bench):
    """The newest checkpoint is lost or cut off: the run goes on from the one before."""
    first = bench.run_into(bench.ranks, sets=["run.threads=1"])
    found = bench.same_end("training", bench.base(), first)
    kept = checkpoints(first.folder)
    if found or first.code == 2 or len(kept) < 2:
        return found
    newest = kept[-1]
    if bench.draw.random() < 0.5:
        os.remove(newest)
    else:
        os.truncate(newest, bench.draw.randrange(os.path.getsize(newest)))
    os.remove(os.path.join(first.folder, "summary.json"))
    return resume(bench, bench.base(), first, "resume after a lost checkpoint", [])


def compare_killed(bench):
    """SIGKILL after the first checkpoint of a longer run, then --resume."""
    every = bench.draw.randint(1, 20)
    sets = ["run.threads=1", "run.steps=60", f"train.checkpoint_every={every}"]
    whole = bench.run_into(bench.ranks, sets=sets)
    if whole.code == 3 and bench.failed_checks(whole) == "finite":
        return None  # so many more steps may diverge, without a norm or with a large learning rate
    found = bench.bad("training", whole)
    if found or whole.code == 2:
        return found
    bench.runs += 1
    name = f"run-{bench.runs}"
    folder = os.path.join(bench.folder, name)
    options = [word for s in sets for word in ("--set", s)]
    words = [_moesim.MOESIM, "--quiet", "--out", name, *options, "case.ini"]
    with subprocess.Popen(
        words,
        cwd=bench.folder,
        env=_moesim.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        end = time.monotonic() + bench.options.timeout
        while child.poll() is None and not checkpoints(folder) and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(bench.draw.random() * 0.01)
        child.send_signal(signal.SIGKILL)
    if not checkpoints(folder):
        return None
    killed = Outcome(0, "", "", folder, shlex.join(words) + "  # killed after a checkpoint")
    return resume(bench, whole, killed, "resume after SIGKILL", [])


def resume(bench, whole, first, comparison, more, keys=RUN_KEYS):
    name = os.path.basename(first.folder)
    ranks = bench.draw.choice([r for r in bench.divisors if r <= 4])
    second = bench.run(ranks, "--quiet", "--resume", name, *more)
    second.folder = first.folder
    second.command = f"{first.command}\n    {second.command}"
    return bench.same_results(comparison, whole, second, keys)


# --- text from a model that was trained ---


def may_generate(case, table):
    keeps = case.number("train.checkpoint_every", table) > 0
    keeps |= case.get("train.save_final", table) == "yes"
    return case.trains() and keeps and case.get("data.source", table) == "text"


def generated(bench, model, ranks, threads, sets):
    """The run's folder named, with --resume, and another for the results."""
    bench.runs += 1
    name = f"run-{bench.runs}"
    sets = ["run.mode=generate", f"run.threads={threads}", *sets]
    options = [word for s in sets for word in ("--set", s)]
    done = bench.run(ranks, "--quiet", "--resume", model, "--out", name, *options)
    done.folder = os.path.join(bench.folder, name)
    return done


def compare_generate(bench):
    """A short training, then the same text and figures on other ranks and with other threads, and
    again from the config.ini of what was generated.
    """
    model = bench.run_into(bench.ranks, sets=["run.threads=1"])
    found = bench.same_end("training", bench.base(), model)
    if found or model.code == 2 or not checkpoints(model.folder):
        return found
    folder = os.path.basename(model.folder)
    prompt = bench.draw.choice(["a", "to\\sbe", "0123456789", "\\n\\n"])
    sets = [f"generate.prompt={prompt}", f"generate.max_new_tokens={bench.draw.randint(1, 9)}"]
    if bench.draw.random() < 0.5:
        sets.append(f"generate.temperature={bench.draw.choice(['0', '0.5', '2'])}")
    if bench.draw.random() < 0.5:
        sets.append(f"generate.sequences_per_device={bench.draw.choice([2, 3])}")
    first = generated(bench, folder, bench.ranks, 1, sets)
    found = bench.bad("generate", first)
    if found:
        return found
    ranks = bench.other_ranks() if len(bench.divisors) > 1 else bench.ranks
    second = generated(bench, folder, ranks, 2, sets)
    found = bench.same_results("generate", first, second) or same_text(first, second)
    if found or first.code == 2:
        return found
    again = bench.run_into(bench.ranks, config=f"{os.path.basename(first.folder)}/config.ini")
    return bench.same_results("generate again", first, again) or same_text(first, again)


def same_text(first, second):
    if first.code != 0:
        return None
    paths = [os.path.join(o.folder, "generated.txt") for o in (first, second)]
    if _moesim.same_bytes(*paths):
        return None
    return Finding("generate", "another text", "generated.txt differs", first, second)


# --- what is not a run: placements, dialects, parameters ---

PLACEMENT_KEYS = RUN_KEYS | {"seconds_to_decide", "seconds_per_step"}


def same_folders(comparison, first, second, keys):
    """Arrays and JSON of two folders and of their placements."""
    for part in ("", "placements"):
        a, b = (os.path.join(o.folder, part) for o in (first, second))
        if results(a) != results(b):
            text = f"files {sorted(results(a) ^ results(b))} are written by one of them only"
            return Finding(comparison, "other files", text, first, second)
        for name in sorted(results(a)):
            different = different_file(a, b, name, keys)
            if different:
                return Finding(comparison, f"{name} differs", different, first, second)
    return None


def compare_placements(bench):
    """Every balancer decides the same on any number of ranks, by tokens or by loads alone."""
    sets = ["run.mode=forward", "run.threads=1"]
    loads = os.path.join(bench.base().folder or "", "expert_load.npy")
    if os.path.isfile(loads) and bench.draw.random() < 0.4:
        sets.append(f"placement.load={loads}")
    else:
        sets.append(f"run.steps={bench.draw.randint(1, 3)}")
        if bench.draw.random() < 0.5:
            sets += ["placement.fit=1", "placement.score=1"]
    first = bench.run_into(bench.ranks, "--placements", sets=sets)
    found = bench.bad("placements", first)
    if found:
        return found
    second = bench.run_into(bench.other_ranks(), "--placements", sets=sets)
    found = bench.same_end("placements", first, second)
    if found or first.code == 2:
        return found
    return same_folders("placements", first, second, PLACEMENT_KEYS)


def compare_dialects(bench):
    """The table of presets is the same on any number of ranks."""
    words = ["--dialects", "--set", "run.threads=1", "--set", "run.mode=forward", "case.ini"]
    first = bench.run(bench.ranks, *words)
    found = bench.bad("dialects", first)
    if found:
        return found
    second = bench.run(bench.other_ranks(), *words)
    found = bench.same_end("dialects", first, second)
    if found or first.out == second.out:
        return found
    pairs = zip(first.out.splitlines(), second.out.splitlines())
    text = next((f"{a} / {b}" for a, b in pairs if a != b), "one has more lines")
    return Finding("dialects", "another table", text, first, second)


def export_parameters(bench, ranks):
    bench.runs += 1
    name = f"run-{bench.runs}"
    done = bench.run(ranks, "--export-parameters", name, "case.ini")
    done.folder = os.path.join(bench.folder, name)
    return done


def compare_export(bench):
    """The weights that a run starts from are the same on any number of ranks."""
    first = export_parameters(bench, bench.ranks)
    found = bench.bad("export", first)
    if found:
        return found
    second = export_parameters(bench, bench.other_ranks())
    found = bench.same_end("export", first, second)
    if found or first.code == 2:
        return found
    return same_folders("export", first, second, RUN_KEYS)


COMPARISONS = {
    "ranks": compare_ranks,
    "threads": compare_threads,
    "mode": compare_mode,
    "transport": compare_transport,
    "own devices": compare_own_devices,
    "again": compare_again,
    "echo": compare_echo,
    "explain": compare_explain,
    "double": compare_double,
    "fewer steps": compare_fewer_steps,
    "lost checkpoint": compare_lost_checkpoint,
    "killed": compare_killed,
    "generate": compare_generate,
    "placements": compare_placements,
    "dialects": compare_dialects,
    "export": compare_export,
}
RESUMES = ("fewer steps", "lost checkpoint", "killed")


def applicable(bench):
    """Comparisons that say something about this case, once its first run has ended."""
    if bench.base().code == 2:
        return [n for n in ("ranks",) if len(bench.divisors) > 1]
    names = [n for n in COMPARISONS if n not in (*RESUMES, "generate")]
    if len(bench.divisors) == 1:
        for name in ("ranks", "transport", "placements", "dialects", "export"):
            names.remove(name)
    if str(bench.case.get("exchange.chunks", bench.table)) != "1" and "transport" in names:
        names.remove("transport")  # chunks need MPI
    if bench.case.devices() > 4:
        names.remove("own devices")
    if may_resume(bench.case, bench.table):
        names += RESUMES
    if may_generate(bench.case, bench.table):
        names.append("generate")
    return names


WEIGHTS = {
    "ranks": 3,
    "again": 3,
    "echo": 2,
    "fewer steps": 4,
    "lost checkpoint": 3,
    "killed": 1,
    "generate": 8,
}


def choose(bench, count):
    """Which comparisons a case gets, drawn by weight."""
    names, chosen = applicable(bench), []
    while names and len(chosen) < count:
        name = bench.draw.choices(names, [WEIGHTS.get(n, 2) for n in names])[0]
        names.remove(name)
        chosen.append(name)
    return chosen


def perform(bench, name):
    """One comparison; what it draws depends on the seed and on its name only."""
    found = bench.bad("run", bench.base())
    if found or name == "run" or name not in applicable(bench):
        return found
    bench.draw = random.Random(f"{name} {bench.case.seed}")
    try:
        return COMPARISONS[name](bench)
    except (OSError, ValueError, LookupError, TypeError, struct.error) as error:
        # a file that is missing or cannot be read, or a fault of this test
        what = f"{type(error).__name__} while comparing"
        return Finding(name, what, traceback.format_exc(limit=4), bench.base())
