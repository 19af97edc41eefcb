"""scripts/simulate: from the command line to time.simulated of summary.json. Exit status: 0 done; 2
the user's mistake, one sentence; 1 otherwise; 130 interrupted.
"""
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import time

import launch
from advise_lib import runs
from command_line import Parser, Refused, say
from export_lib import matrix
from run_lib import safe_files
from run_lib.record import at
from simulate_lib import cluster, online, simgrid

NAME = "simulate"
AGREES = 0.10
HELP = """\
Runs a configuration with its devices folded onto a few ranks, and replays what
they sent each other in the last step with SimGrid, on a cluster of N nodes of G
devices whose links are shared. The time of dispatch and combine with contention
stands beside that of the formula, on the screen and as time.simulated in
DIR/summary.json.
"""
EPILOG = """\
Rates and latencies are those of [cluster] in CONFIG.ini. The other phases of a
step are those of the formula; a step is forward.

example:
  scripts/simulate configs/deepseek_v3.ini --nodes 8 --gpus 8 \\
    --set cluster.file=configs/clusters/h200.ini

exit status: 0 done, 2 a mistake in the command or the files, 1 otherwise
"""


def _options(words):
    parser = Parser(
        NAME,
        description=HELP,
        epilog=EPILOG,
        usage="scripts/simulate CONFIG.ini --nodes N --gpus G [options]",
    )
    add = parser.add_argument
    add("config", nargs="*", metavar="CONFIG.ini", help="what is run")
    add("--nodes", metavar="N", help="nodes of the cluster")
    add("--gpus", metavar="G", help="devices of a node")
    add(
        "--online",
        action="store_true",
        help="also runs the program itself under SimGrid (up to 64 devices; smpicc builds it)",
    )
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="for moesim; repeatable")
    add("--out", metavar="DIR", help="of the run (default runs/simulate-CONFIG-NxG)")
    add("--force", action="store_true", help="replaces an earlier run there")
    options = parser.parse(words)
    if len(options.config) != 1:
        raise Refused("one configuration is expected")
    options.nodes, options.gpus = (_whole(options, name) for name in ("nodes", "gpus"))
    options.devices = options.nodes * options.gpus
    if not 2 <= options.devices <= cluster.MOST_DEVICES:
        raise Refused(
            f"--nodes {options.nodes} --gpus {options.gpus}: {options.devices} devices; 2 to"
            f" {cluster.MOST_DEVICES} are simulated"
        )
    if options.online:
        online.refuse(options.devices, {})
    name = os.path.splitext(os.path.basename(options.config[0]))[0]
    options.out = options.out or f"runs/simulate-{name}-{options.nodes}x{options.gpus}"
    return options


def _whole(options, name):
    text = getattr(options, name)
    if text is None:
        raise Refused(f"--{name} is missing")
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 6 or int(text) == 0:
        raise Refused(f"--{name} {text}: allowed is a whole number from 1 on")
    return int(text)


# --- the run ---


def _settings(options):
    """{key: value} of a run."""
    sets = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise Refused(f"--set {text}: expected is --set section.key=value")
        sets[key.strip()] = value.strip()
    sets["cluster.devices"] = str(options.devices)
    sets["cluster.devices_per_node"] = str(options.gpus)
    sets["run.mode"] = "forward"
    return sets


def _run(options, program, environment, sets):
    """Runs the configuration folded onto a few ranks."""
    path, alone = options.config[0], runs.Program(program, environment)
    config = alone.resolved(path, sets)
    chunks = config["exchange.chunks"]
    if chunks != "1":
        raise Refused(f"{path}: exchange.chunks = {chunks}: one exchange at a time is replayed")
    if options.online:
        online.refuse(options.devices, config)
    ranks = int(alone.ask("--ranks", *runs.words(sets), path))
    force = ["--force"] if options.force else []
    line = [*launch.mpirun(ranks), program, "--quiet", *force, "--out", options.out]
    done = subprocess.run(
        [*line, *runs.words(sets), path],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 2:
        raise Refused(runs.sentence(done.stderr))
    if done.returncode:
        raise simgrid.Failed(f"moesim ended with status {done.returncode}: {done.stderr[-200:]}")


# --- the replay ---


def _exchanges(folder, summary):
    """[(layer, phase, {(source, destination): bytes})] of the run's last step."""
    sent = matrix.read(folder)
    sizes = at(summary, "time.exchange.dispatch_row_bytes"), at(
        summary, "time.exchange.combine_row_bytes"
    )
    found = []
    for layer in range(len(sent.layers)):
        counts = sent.between(layer)
        there = {(s, d): round(count * sizes[0]) for s, d, count in counts}
        back = {(d, s): round(count * sizes[1]) for s, d, count in counts}
        found += [(layer, "dispatch", there), (layer, "combine", back)]
    return found


def _simulate(options, summary, replay):
    """{phase: seconds}, sums over layers, without latency."""
    exchanges = _exchanges(options.out, summary)
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        times = list(pool.map(replay, [pairs for _, _, pairs in exchanges]))
    sums = {"dispatch": 0.0, "combine": 0.0}
    for (_, phase, _), seconds in zip(exchanges, times):
        sums[phase] += seconds
    return sums


def _online(options, summary, cluster, sets, environment):
    """Runs the program under SimGrid, whose figures have to be those of the run."""
    out = os.path.join(cluster.scratch, "online")
    words = [*runs.words(sets), options.config[0]]
    online.run(online.program(), cluster.scratch, options.devices, out, words, environment)
    online.check_same(options.out, out)
    return online.compare(out, summary, cluster.replay, cluster.busiest_seconds)


def _result(summary, sums, window):
    """time.simulated: with the fixed cost of each exchange, and the other phases of the formula."""
    predicted, layers = summary["time"]["predicted"], len(summary["layers"])
    fixed = layers * at(summary, "time.exchange.fixed_us")
    wider = _model_layers(summary) / layers
    found = {f"{phase}_us": wider * (fixed + 1e6 * seconds) for phase, seconds in sums.items()}
    found["step_us"] = predicted["step_us"] + sum(
        found[name] - predicted[name] for name in ("dispatch_us", "combine_us")
    )
    found["contention"] = any(
        found[name] > (1 + AGREES) * predicted[name] for name in ("dispatch_us", "combine_us")
    )
    found["algorithm"] = f"SimGrid SMPI replay, {window} messages of a device under way"
    return found


def _model_layers(summary):
    return summary["config"]["cluster"]["model_layers"] or len(summary["layers"])


def _row(name, predicted, simulated):
    ratio = simulated / predicted if predicted else 1
    word = "agrees" if abs(ratio - 1) <= AGREES else "contention" if ratio > 1 else "less"
    return f"  {name:<10}{predicted:>14.1f}{simulated:>14.1f}{ratio:>9.3f}  {word}"


def _print(options, summary, found, seconds):
    predicted = summary["time"]["predicted"]
    print(
        f"Exchanges of the last step on {options.nodes} nodes of {options.gpus} devices,"
        f" {len(summary['layers'])} layer{'s' if len(summary['layers']) > 1 else ''}"
    )
    print(f"  {'':<10}{'formula, us':>14}{'replay, us':>14}{'ratio':>9}")
    for name in ("dispatch", "combine", "step"):
        print(_row(name, predicted[f"{name}_us"], found[f"{name}_us"]))
    print(f"  {found['algorithm']}; simulated in {seconds:.0f} s")


def _store(folder, summary, found):
    summary["time"]["simulated"] = found
    path = os.path.join(folder, "summary.json")
    safe_files.write_whole(path, json.dumps(summary, indent=2) + "\n")


def _print_online(found):
    """The same messages under SMPI, replayed and by the formula."""
    own, again = found["online_us"], found["online_replay_us"]
    ratio = again / own if own else 1
    print(f"Dispatch and combine as the program sends them, without latency: {own:.3f} us online,")
    print(
        f"  {again:.3f} us replayed (ratio {ratio:.4f}), {found['online_formula_us']:.3f} us formula"
    )
    if abs(ratio - 1) > online.AGREES:
        print("  the replay is not within 1 % of the program itself")
    print("  The figures of the run are the same under SimGrid, bit for bit.")


def _main(options):
    simgrid.program()
    program, environment, sets = launch.program(), launch.environment(), _settings(options)
    if program is None:
        raise Refused(launch.NOT_FOUND)
    _run(options, program, environment, sets)
    path = os.path.join(options.out, "summary.json")
    summary = safe_files.read_json(path, matrix.MOST_BYTES)
    begin, more = time.monotonic(), {}
    with tempfile.TemporaryDirectory(prefix="moesim-simulate-") as scratch:
        where = cluster.Cluster(options, summary["config"]["cluster"], scratch)
        found = _result(summary, _simulate(options, summary, where.replay), where.window)
        seconds = time.monotonic() - begin
        if options.online:
            more = _online(options, summary, where, sets, environment)
    _store(options.out, summary, {**found, **more})
    _print(options, summary, found, seconds)
    if more:
        _print_online(more)
    print(path)


def main(words):
    try:
        _main(_options(words))
    except (Refused, safe_files.Unfit) as error:
        return say(NAME, error)
    except (simgrid.Failed, runs.Failed) as error:
        print(f"scripts/{NAME}: {error}", file=sys.stderr)
        return 1
    return 0
