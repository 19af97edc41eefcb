"""scripts/export-placement and scripts/import-placement: a placement out to the systems that serve
models, and back into placement.file. Exit status: 0 written; 2 a sentence says what is wrong."""

import argparse
import configparser
import os

from trace_lib import cli, placement
from trace_lib.guard import MOST_LAYERS, Intake, Refused, few, shown

EXPORT = """Writes where experts live as a system that serves models reads it. RUN is a folder of
moesim --placements (--policy names one), a run's folder, or a .npy [layers, slots]."""
EXPORT_FORMS = """forms:
  eplb         a folder with phy2log.npy, log2phy.npy (-1 behind the last replica), logcnt.npy
  sglang       JSON for --init-expert-location: physical_to_logical_map
  trtllm       YAML for moe_config.load_balancer: initial_global_assignments, by layer
  vllm-ascend  JSON for expert_map_path: layer_list, device_list, device_expert
  csv          layer,device,slot,expert

example:
  scripts/export-placement runs/compared --policy joint --format sglang --out joint.json
"""
IMPORT = """Turns what scripts/export-placement writes, or what these systems have written, into the
.npy that placement.policy = file reads (placement.file). FILE ends in .json (SGLang, vllm-ascend),
.yaml (TensorRT-LLM), .csv or .npy, or is a folder with phy2log.npy."""


def parser(name, text, epilog=None):
    made = cli.Parser(
        prog=f"scripts/{name}",
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--first-layer",
        type=cli.whole_number(0, MOST_LAYERS),
        metavar="F",
        help="sglang, trtllm: dense layers of the model before the first one with experts;"
        " default 0",
    )
    made.add_argument("--force", action="store_true", help="replace what is there")
    return made


def check_out(path, force):
    if os.path.lexists(path) and not force:
        raise Refused(f"{shown(path)} is there already: give another --out, or --force")


# --- out ---


def file_of(folder, policy):
    """The placement's array in a folder of results."""
    inside = os.path.join(folder, "placements")
    if os.path.isdir(inside):
        there = sorted(name[:-4] for name in os.listdir(inside) if name.endswith(".npy"))
        if policy not in there:
            said = f"--policy {shown(policy)} is not there" if policy else "--policy is missing"
            raise Refused(f"{shown(folder)}: {said}; it has {few(there, 20)}")
        return os.path.join(inside, f"{policy}.npy")
    if policy:
        raise Refused(f"--policy: {shown(folder)} is no folder of moesim --placements")
    path = os.path.join(folder, "placement.npy")
    if not os.path.isfile(path):
        raise Refused(f"{shown(folder)} has neither placements/ nor placement.npy")
    return path


def cluster_of(folder, intake):
    """(experts, devices) of a folder's config.ini."""
    path = os.path.join(folder, "config.ini")
    reader = configparser.ConfigParser(
        interpolation=None, comment_prefixes=(";", "#"), inline_comment_prefixes=(";", "#")
    )
    try:
        reader.read_string(intake.text(path))
        return reader.getint("model", "num_experts"), reader.getint("cluster", "devices")
    except (configparser.Error, ValueError):
        raise Refused(f"{shown(path)} does not say model.num_experts and cluster.devices") from None


def export(options):
    intake = Intake(guarded=True)
    intake.limit()
    check_out(options.out, options.force)
    experts = devices = 0
    if os.path.isdir(options.run):
        path = file_of(options.run, options.policy)
        experts, devices = cluster_of(options.run, intake)
    elif options.policy:
        raise Refused(f"--policy: {shown(options.run)} is no folder of moesim --placements")
    else:
        path = options.run
    if options.devices and devices and options.devices != devices:
        raise Refused(f"--devices {options.devices}: {shown(options.run)} has {devices}")
    found = placement.read(path, intake)
    found.experts, found.devices = experts or found.experts, options.devices or devices
    placement.check(found, shown(path))
    if options.format in placement.NEEDS_DEVICES and not found.devices:
        raise Refused(f"--format {options.format} needs --devices D: a .npy does not say it")
    if options.first_layer and options.format not in placement.COUNTS_DENSE:
        raise Refused(f"--first-layer does nothing for --format {options.format}")
    placement.WRITERS[options.format](found, options.out, options.first_layer or 0)
    return [said(found), options.out]


def said(found):
    extra = found.slots - found.experts
    return (
        f"{len(found.rows)} layer{'s' if len(found.rows) != 1 else ''}, {found.experts} experts in"
        f" {found.slots} slots ({extra} redundant)"
        + (f" on {found.devices} devices" if found.devices else "")
    )


def export_main(words):
    made = parser("export-placement", EXPORT, EXPORT_FORMS)
    made.add_argument("run", metavar="RUN")
    made.add_argument("--format", required=True, choices=list(placement.WRITERS))
    made.add_argument("--out", required=True, metavar="FILE", help="file, or folder for eplb")
    made.add_argument("--policy", default="", metavar="NAME", help="of a folder of --placements")
    made.add_argument(
        "--devices", type=cli.whole_number(1, 1 << 20), default=0, metavar="D", help="of a .npy"
    )
    options = made.parse_args(words)
    return cli.run("scripts/export-placement", lambda: export(options))


# --- back ---


def take(options):
    intake = Intake(guarded=True)
    intake.limit()
    check_out(options.out, options.force)
    ending = os.path.splitext(options.file)[1].lower()
    if options.first_layer and ending != ".json":
        raise Refused(
            "--first-layer does nothing here: of these forms SGLang's alone has rows for dense"
            " layers"
        )
    found = placement.read(options.file, intake, options.first_layer or 0)
    placement.write_npy(found, options.out, 0)
    extra = found.slots - found.experts
    return [
        said(found),
        f"{options.out}: --set placement.policy=file --set placement.file={options.out} --set"
        f" placement.redundant_experts={extra}",
    ]


def import_main(words):
    made = parser("import-placement", IMPORT)
    made.add_argument("file", metavar="FILE")
    made.add_argument("--out", required=True, metavar="FILE.npy")
    options = made.parse_args(words)
    return cli.run("scripts/import-placement", lambda: take(options))
