"""What is refused before anything runs: unknown keys, values that are not allowed, a configuration
that cannot be read, and values that no combination accepts. `moesim --check` is asked on one rank,
without mpirun: a few hundredths of a second for each combination.
"""
import configparser
import math
import re
import subprocess

import keys_table
from command_line import Refused
from run_lib import safe_files

MOST_RANKS = 8


def sentence(text, status):
    """The one sentence of a failed moesim, without its name in front."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line[len("moesim: ") :] for line in lines if line.startswith("moesim: ")), None)
    if said or lines:
        return said or lines[-1]
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def check_alone(options, table):
    """Every key and value by itself, against the table of keys."""
    given = [("--vary", key, values) for key, values in options.vary.items()] + [
        ("--set", key, [value]) for key, value in options.sets.items()
    ]
    given += [("--seeds", "run.seed", options.seeds)]
    for option, name, values in given:
        key = table.keys.get(name)
        if key is None:
            raise Refused(
                f"{option}: unknown key {name}; the nearest known one is {table.nearest(name)}"
            )
        wrong = next((value for value in values if not key.accepts(value)), None)
        if wrong is not None:
            raise Refused(f"{option}: {name} = {wrong}: allowed is {key.allowed}")


def devices_in(path):
    """[cluster] devices of the file as text; "" when it is not there. What is wrong with the file,
    moesim says.
    """
    reader = configparser.ConfigParser(
        inline_comment_prefixes=(";", "#"), strict=False, interpolation=None, allow_no_value=True
    )
    try:
        with open(safe_files.open_regular(path, links=True), encoding="utf-8") as file:
            reader.read_file(file)
        return (reader.get("cluster", "devices", fallback="") or "").strip()
    except (OSError, safe_files.Unfit, UnicodeDecodeError, configparser.Error):
        return ""


def all_devices(options, in_file):
    """Numbers of devices that the runs ask for; 0 = one for each rank."""
    texts = options.vary.get("cluster.devices") or [options.sets.get("cluster.devices", in_file)]
    return [int(text) if re.fullmatch("[0-9]{1,9}", text) else 0 for text in texts]


def default_ranks(devices):
    """On any machine the same: 8, or the largest number up to 8 that divides every number of devices."""
    common = math.gcd(*devices)
    return next(ranks for ranks in range(MOST_RANKS, 0, -1) if common % ranks == 0)


def ask(program, config, settings, ranks, in_file, environment):
    """What moesim says against one combination; "" when it would run."""
    given = dict(settings)
    if given.get("cluster.devices", in_file) in ("", "0"):
        given["cluster.devices"] = str(ranks)  # one for each rank, of which there is one here
    words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run(
        [program, "--check", "--quiet", *words, config],
        env=keys_table.alone(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return sentence(done.stderr, done.returncode) if done.returncode else ""


def check_together(options, waiting, finished, program, in_file, environment):
    """Combination -> what moesim says against it, for those of the waiting runs that it refuses.
    Raises Refused when nothing would run, or when a value would run in no combination; combinations
    that have finished earlier need no question.
    """
    said = {run.values: "" for run in finished}
    for run in waiting:
        if run.values not in said:
            said[run.values] = ask(
                program,
                options.config,
                [*options.sets.items(), *run.settings()],
                options.ranks,
                in_file,
                environment,
            )
    if said and all(said.values()):
        raise Refused(next(iter(said.values())))
    for key, values in options.vary.items():
        for value in values:
            answers = [
                answer for combination, answer in said.items() if (key, value) in combination
            ]
            if answers and all(answers):
                raise Refused(f"--vary {key}={value} runs in no combination: {answers[0]}")
    return {combination: answer for combination, answer in said.items() if answer}
