"""scripts/advise: from the command line to the page. Exit status: 0 done; 2 the user's mistake, one
sentence; 1 otherwise; 130 interrupted.
"""
import os
import sys
import tempfile
import time

import launch
from advise_lib import recording, runs, search, trained
from advise_lib.page import Page
from command_line import Parser, Refused, say
from run_lib import safe_files
from sweep_lib import check

NAME = "advise"
CHOICES = 2_200_000  # (token, expert) that a run looks at
MOST_STEPS = 16
STEPS = 9  # of tokens that are made
GIB = 1 << 30
HELP = """\
Answers on one page, from runs of moesim --placements and the times that they
predict for the cluster: is balance worth anything, which placement, how many
redundant experts, over how many devices to spread the experts, which M, mode
and payload, and what is on the front of time and traffic.

"Not worth it" and "not enough evidence" are answers. Experts are placed by a
first window of steps, a choice is made on a second and reported of a third.
"""
EPILOG = """\
examples:
  scripts/advise runs/mine/routing.ini --cluster configs/clusters/h200.ini \\
    --set cluster.devices=64 --set cluster.model_hidden_size=7168
  scripts/advise topk_idx.npy --cluster configs/clusters/h200.ini \\
    --set cluster.devices=16 --set model.num_experts=64

exit status: 0 done, 2 a mistake in the command or the files, 1 otherwise
"""


def _options(words):
    parser = Parser(
        NAME,
        description=HELP,
        epilog=EPILOG,
        usage="scripts/advise TRACE|CONFIG.ini --cluster FILE [options]",
    )
    add = parser.add_argument
    add(
        "source",
        nargs="*",
        metavar="TRACE|CONFIG.ini",
        help="a configuration, a folder with routing.ini, logits.ini or config.ini, or a recording"
        " .npy of experts or logits",
    )
    add("--cluster", metavar="FILE", help="a file of configs/clusters")
    add("--memory", metavar="GIB", type=float, help="of a device for the weights of experts")
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="for moesim; repeatable")
    add("--out", metavar="DIR", help="writes advice.txt and advice.json there")
    add("--all", action="store_true", help="looks at all layers, however long that takes")
    add(
        "--train",
        metavar="SEEDS",
        type=int,
        help="trains the configuration (run.mode = train) under each M with so many seeds",
    )
    add("--quiet", action="store_true", help="says nothing about how far it is")
    options = parser.parse(words)
    if len(options.source) != 1:
        raise Refused(
            "one trace or configuration is expected"
            + (f", {len(options.source)} are given" if options.source else "")
        )
    if not options.cluster:
        raise Refused("--cluster is missing: a file of configs/clusters")
    if options.train is not None and not 1 <= options.train <= 100:
        raise Refused(f"--train {options.train}: a number of seeds from 1 to 100")
    if options.memory is not None and not 0 < options.memory < 1e6:
        raise Refused(f"--memory {options.memory:g}: GiB of a device, above 0")
    return options


def _sets(options):
    found = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals or "." not in key:
            raise Refused(f"--set {text}: expected is --set section.key=value")
        found[key.strip()] = value.strip()
    return found


# --- what is advised on ---


def _config_in(folder):
    for name in ("routing.ini", "logits.ini", "config.ini"):
        path = os.path.join(folder, name)
        if safe_files.is_there(path):
            return path
    raise Refused(f"{folder} has none of routing.ini, logits.ini and config.ini")


def _config_of_array(path, folder):
    """A configuration that reads a recording: integers are experts, others logits."""
    if not path.isprintable():
        raise Refused(f"{path!a}: a name of printable characters is expected")
    array = recording.open_array(path)
    source = "logits" if array.descr[1] == "f" else "routing"
    layers = array.shape[-3] if len(array.shape) > 2 else 1
    out = os.path.join(folder, "recording.ini")
    with open(out, "w", encoding="utf-8") as file:
        file.write(
            f"[model]\nnum_layers = {layers}\n[data]\nsource = {source}\n"
            f"path = {os.path.abspath(path)}\n"
        )
    return out


def _config(source, folder):
    if os.path.isdir(source):
        return _config_in(source)
    if source.endswith(".npy"):
        return _config_of_array(source, folder)
    return source


def _open(options, program, folder):
    """The bench of a configuration."""
    given = _sets(options)
    path = _config(options.source[0], folder)
    if not safe_files.is_there(options.cluster):
        raise Refused(f"--cluster: {options.cluster} is not there")
    base = {"cluster.file": os.path.abspath(options.cluster), **given}
    devices = _devices(program, path, base)
    config = program.resolved(path, {**base, "cluster.devices": str(devices)})
    _check(config, path, options.train)
    bench = runs.Bench(program, path, base, config, devices)
    bench.folder = folder
    _choose_windows(bench, options)
    return bench


def _devices(program, path, base):
    """cluster.devices; where there is one for each rank, as many as scripts/run starts."""
    given = base.get("cluster.devices") or check.devices_in(path)
    if given not in ("", "0"):
        return int(program.resolved(path, {**base, "cluster.devices": given})["cluster.devices"])
    return int(program.ask("--ranks", *runs.words(base), path))


def _check(config, path, trains):
    if config["placement.policy"] == "file":
        raise Refused(f"{path}: placement.policy = file is not compared: set another one")
    if trains and config["run.mode"] != "train":
        raise Refused(f"{path}: --train goes with run.mode = train")
    if int(config["cluster.devices"]) < 2:
        raise Refused("a single device has nothing to exchange: set cluster.devices")


def _choose_windows(bench, options):
    config, most = bench.config, 1 << 62 if options.all else CHOICES
    if config["data.source"] in runs.RECORDED:
        bench.recording = recording.of_config(config, bench.devices, most, MOST_STEPS)
        bench.layers, bench.num_steps = len(bench.recording.layers), bench.recording.num_steps
        if bench.config["router.bias_file"]:
            bench.base["router.bias_file"] = recording.write_rows(
                bench.config["router.bias_file"], bench.recording.layers, bench.folder, "bias.npy"
            )
    else:
        bench.num_steps = min(MOST_STEPS, max(STEPS, int(config["run.steps"])))
        layers = int(config["model.num_layers"]) - int(config["model.first_dense_layers"])
        tokens = int(config["data.tokens_per_device"]) * bench.devices
        each = tokens * int(config["router.top_k"]) * bench.num_steps
        bench.layers = min(layers, max(2, most // each))
    bench.fit = max(1, bench.num_steps // 3)
    all_layers = search.layers_of(config)
    bench.base["cluster.model_layers"] = str(all_layers)
    for name, own in (
        ("cluster.model_hidden_size", "model.hidden_size"),
        ("cluster.model_intermediate_size", "model.moe_intermediate_size"),
    ):
        bench.base[name] = config[name] if int(config[name]) else config[own]


# --- together ---


def _write(page, folder):
    os.makedirs(folder, exist_ok=True)
    for name, text in (
        ("advice.txt", "\n".join(page.lines()) + "\n"),
        ("advice.json", page.json()),
    ):
        safe_files.write_whole(os.path.join(folder, name), text)


def _advise(options):
    path = launch.program()
    if path is None:
        raise Refused(launch.NOT_FOUND)
    program = runs.Program(path, launch.environment())
    begin = time.monotonic()

    def say_so(text):
        if not options.quiet and sys.stderr.isatty():
            print(f"scripts/{NAME}: {text}", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="moesim-advise-") as folder:
        bench = _open(options, program, folder)
        advice = search.advise(bench, (options.memory or 0) * GIB, say_so)
        times = bench.phases(search.plain(advice.now.choice))
        limits = [one.choice.limit for one in advice.limits]
        models = trained.train(bench, limits, options.train) if options.train and limits else []
        name = os.path.basename(os.path.normpath(options.source[0]))
        page = Page(
            advice,
            bench,
            times,
            (options.memory or 0) * GIB,
            f"Advice for {name} on {os.path.basename(options.cluster)}",
            models,
        )
        print("\n".join(page.lines()))
        if options.out:
            _write(page, options.out)
    say_so(f"{len(bench.known)} runs in {time.monotonic() - begin:.1f} s")


def main(words):
    try:
        _advise(_options(words))
    except (Refused, safe_files.Unfit) as error:
        return say(NAME, error)
    except runs.Failed as error:
        print(f"scripts/{NAME}: {error}", file=sys.stderr)
        return 1
    return 0
