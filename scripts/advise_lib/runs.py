"""Runs the program: what a configuration resolves to, and what each choice costs."""
import concurrent.futures
import json
import os
import subprocess
import tempfile

import keys_table
from advise_lib.judge import Choice, Outcome
from command_line import Refused
from run_lib.record import at

RECORDED = ("routing", "logits")
TOY = {"model.hidden_size": "16", "model.moe_intermediate_size": "8"}
# Files beside a recording that losses read and placements do not.
UNUSED = ("data.scores", "data.weights", "data.boundaries")


class Failed(Exception):
    """The program ended with another status than 0 and 2, as a sentence."""


def words(settings):
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def sentence(text):
    """The program's own sentence, without its name in front."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line[8:] for line in lines if line.startswith("moesim: ")), None)
    return said or (lines[-1] if lines else "moesim said nothing")


class Program:
    """moesim on one rank, without mpirun: its figures do not depend on the ranks."""

    def __init__(self, path, environment):
        self.path = path
        self.environment = {**keys_table.alone(environment), "OMP_NUM_THREADS": "1"}

    def ask(self, *arguments):
        """What it prints; Refused with its sentence where it ends with 2."""
        # MPI's own files in a folder for each run: of two that share one, the first to end may take
        # it away while the other begins.
        with tempfile.TemporaryDirectory(prefix="moesim-") as folder:
            done = subprocess.run(
                [self.path, *arguments],
                env={**self.environment, "OMPI_MCA_orte_tmpdir_base": folder},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        if done.returncode == 2:
            raise Refused(sentence(done.stderr))
        if done.returncode:
            raise Failed(f"moesim ended with status {done.returncode}: {sentence(done.stderr)}")
        return done.stdout

    def resolved(self, config, settings):
        """{section.key: value} of every key."""
        found, section = {}, ""
        for line in self.ask("--check", *words(settings), config).splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith(";"):
                key, _, value = line.partition(" =")
                found[f"{section}.{key}"] = value.strip()
        return found

    def accepts(self, config, settings):
        """Nothing, or what it says against the settings."""
        try:
            self.ask("--placements", "--check", "--quiet", *words(settings), config)
        except Refused as error:
            return str(error)
        return ""


class Bench:
    """Costs of choices on one configuration, each run once. `base` are the settings of all runs,
    `config` what they resolve to with all devices.
    """

    def __init__(self, program, path, base, config, devices):
        self.program, self.path, self.config = program, path, config
        self.given, self.base = dict(base), base  # base: with what a sample of layers needs
        self.devices, self.per_node = devices, int(config["cluster.devices_per_node"])
        self.recording, self.folder, self.known, self.replayed = None, "", {}, {}
        self.layers, self.num_steps, self.fit = 1, 2, 1

    # --- what is run ---

    def replay(self, group):
        """Settings of the tokens and steps for groups of so many devices."""
        if not self.recording:
            return {
                "run.steps": str(self.num_steps),
                "model.num_layers": str(self.layers),
                "model.first_dense_layers": "0",
            }
        if group not in self.replayed:
            folder = os.path.join(self.folder, f"group{group}")
            os.makedirs(folder, exist_ok=True)
            self.replayed[group] = {
                **self.recording.write(folder, group),
                **{key: "" for key in UNUSED},
                **TOY,
                "model.num_layers": str(self.layers),
            }
        return self.replayed[group]

    def groups(self, group):
        """Steps that one step becomes."""
        return self.devices // group if self.recording else 1

    def settings(self, choice):
        """Of --set for the runs of a choice."""
        each = self.groups(choice.group)
        settings = {
            **self.base,
            **self.replay(choice.group),
            "cluster.devices": str(choice.group),
            "cluster.devices_per_node": str(min(choice.group, self.per_node)),
            "router.num_groups": self.config["router.num_groups"],
            "placement.redundant_experts": str(choice.redundant),
            "placement.fit": str(self.fit * each),
            "placement.score": str((self.num_steps - self.fit) * each),
            "run.mode": "forward",
            "run.threads": "1",
        }
        if choice.limit:
            rule = self.config["router.group_limit"]
            settings["router.group_limit"] = "max" if rule == "none" else rule
            settings["router.topk_group"] = str(choice.limit)
        if choice.mode:
            settings["exchange.mode"] = choice.mode
        if choice.payload:
            settings["exchange.payload"] = choice.payload
        return settings

    def refused(self, choice):
        """Nothing, or why the program does not run a choice."""
        return self.program.accepts(self.path, self.settings(choice))

    # --- running ---

    def _run(self, choice):
        out = os.path.join(self.folder, f"run{len(os.listdir(self.folder))}-{abs(hash(choice))}")
        settings = words(self.settings(choice))
        self.program.ask("--placements", "--quiet", "--out", out, *settings, self.path)
        with open(os.path.join(out, "placements.json"), encoding="utf-8") as file:
            return json.load(file)

    def measure(self, choices):
        """{choice with its policy: Outcome} of every placement of these choices."""
        for group in {choice.group for choice in choices}:
            self.replay(group)
        new = [choice for choice in choices if choice not in self.known]
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for choice, found in zip(new, pool.map(self._run, new)):
                self.known[choice] = list(self._outcomes(choice, found))
        return [one for choice in choices for one in self.known[choice]]

    def _outcomes(self, choice, found):
        each = self.groups(choice.group)
        for policy, figures in at(found, "policies").items():
            if figures["left_out"] is not None:
                continue
            steps = figures["predicted_step_us_by_step"]
            yield Outcome(
                Choice(**{**vars(choice), "policy": policy}),
                [sum(steps[i : i + each]) / each / 1e6 for i in range(0, len(steps), each)],
                figures["balanced_step_us"] / 1e6,
                figures["remote_bytes"],
                self.tokens(choice.group),
                figures["weights_moved"],
                figures["device_max_over_mean"],
                figures["decides"],
            )

    def tokens(self, group):
        """Of a step of a group of devices."""
        if self.recording:
            halves = 2 if self.recording.halves else 1
            return self.recording.tokens // halves * group
        return int(self.config["data.tokens_per_device"]) * group

    def phases(self, choice):
        """summary.json of a plain run of a choice: its phases and what takes the longest."""
        out = os.path.join(self.folder, "plain")
        settings = self.settings(choice)
        for key in ("placement.fit", "placement.score"):
            settings.pop(key)
        settings["run.steps"] = "1" if not self.recording else settings["run.steps"]
        self.program.ask("--quiet", "--out", out, *words(settings), self.path)
        with open(os.path.join(out, "summary.json"), encoding="utf-8") as file:
            return json.load(file)["time"]
