"""scripts/import-trace: from files that others recorded to a folder that moesim replays. Exit
status: 0 written; 2 a sentence says what could not be read."""

import argparse
import os

from trace_lib import cli, megatron, output, responses, sglang, table
from trace_lib.guard import (
    MOST_EXPERTS,
    MOST_LAYERS,
    MOST_STEPS,
    Intake,
    NoJson,
    Refused,
    names_of,
    parse_json,
    shown,
)
from trace_lib.trace import finish, keep_counts, keep_layers, settle_steps

HELP = """Turns what other systems record about their routing into files that moesim replays
(data.source = routing or logits). Several FILEs are ranks, or parts, of one recording: their tokens
stand one behind the other. docs/traces.md describes the formats."""
EPILOG = """formats:
  megatron   Megatron-Core's router trace: a folder, or router_trace_rank*.jsonl;
             logits too where they were captured
  sglang     SGLang's expert distribution recorder: a folder, or
             expert_distribution_recorder_*.pt (mode per_token; others give loads only)
  responses  answers of vLLM or SGLang with routed_experts: JSON, or one answer a line
  npy        arrays [tokens, layers, K], as vLLM's Python interface returns them
  csv        one line for each choice: token,expert[,weight[,layer[,step]]]

examples:
  scripts/import-trace traces/ --out runs/mixtral
  scripts/import-trace answers.jsonl --shape 48,8 --experts 128 --out runs/qwen
  scripts/run runs/qwen/routing.ini --set cluster.devices=16
"""
# Each format's reader, and which of the options below it looks at. --layers and --experts act
# on all of them.
READERS = {
    "megatron": (megatron.read, ("steps", "block", "distinct", "one_step")),
    "sglang": (sglang.read, ("steps", "one_step")),
    "sglang-csv": (sglang.read_counts_csv, ()),
    "sglang-json": (sglang.read_json, ()),
    "responses": (responses.read, ("shape",)),
    "npy": (responses.read_arrays, ()),
    "csv": (table.read, ("one_step",)),
}
# Options of some formats only, and what stands for one that was not given.
DEFAULTS = {
    "steps": (0, MOST_STEPS),
    "block": "decoder",
    "distinct": False,
    "shape": None,
    "one_step": False,
}
PARQUET = (
    "parquet is not read (it needs pyarrow): the lines under FLAME-MoE in docs/traces.md turn these"
    " files into topk_idx.npy and topk_weight.npy, which moesim reads as they are"
)
ENDINGS = {".pt": "sglang", ".npy": "npy"}


def arguments(words):
    """The command line; options that were not given are None, so that idle ones are found."""
    parser = cli.Parser(
        prog="scripts/import-trace",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE")
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for the .npy files and the configuration that replays them",
    )
    add(
        "--format",
        choices=[name for name in READERS if not name.startswith("sglang-")],
        help="default: seen from the files",
    )
    add(
        "--experts",
        type=cli.whole_number(1, MOST_EXPERTS),
        default=0,
        metavar="N",
        help="routed experts of the model; default: what the source says, or the largest id + 1",
    )
    add(
        "--layers",
        type=cli.pair(":", 0, MOST_STEPS),
        metavar="A:B",
        help="keep only layers A to B, counted from 0 in the order of the source",
    )
    add(
        "--steps",
        type=cli.pair(":", 0, MOST_STEPS),
        metavar="A:B",
        help="megatron, sglang: only steps (forward passes) A to B",
    )
    add(
        "--block",
        choices=["decoder", "mtp"],
        help="megatron: the decoder's layers, or those of multi-token prediction",
    )
    add(
        "--distinct",
        action="store_const",
        const=True,
        help=(
            "megatron: leave out records of a step and layer that were there before, and files with"
            " the same tokens"
        ),
    )
    add(
        "--shape",
        type=cli.pair(",", 1, max(MOST_LAYERS, MOST_EXPERTS)),
        metavar="LAYERS,K",
        help="SGLang's answers: they do not say it themselves",
    )
    add(
        "--one-step",
        dest="one_step",
        action="store_const",
        const=True,
        help="megatron, sglang, csv: the tokens of all steps in one; default: a step for each",
    )
    add("--force", action="store_true", help="replace an earlier import in DIR")
    return parser.parse_args(words)


def first_object(path, intake):
    """The first line of a file as JSON; {} where it is none."""
    for number, line in intake.lines(path):
        try:
            found = parse_json(line, f"{shown(path)}:{number}")
        except NoJson:
            return {}
        return found if isinstance(found, dict) else {}
    return {}


def seen(path, intake):
    """The format of a file or folder, by its name and its first line."""
    if os.path.isdir(path):
        names = os.listdir(path)
        if any(megatron.NAME.fullmatch(name) for name in names):
            return "megatron"
        if any(name.endswith(".pt") for name in names):
            return "sglang"
        if any(name.endswith(".parquet") for name in names):
            raise Refused(f"{shown(path)}: {PARQUET}")
        raise Refused(
            f"{shown(path)} has neither router_trace_rank*.jsonl (Megatron-Core) nor *.pt (SGLang)"
            " in it"
        )
    ending = os.path.splitext(path)[1].lower()
    if ending == ".parquet":
        raise Refused(f"{shown(path)}: {PARQUET}")
    if ending == ".csv":
        return "sglang-csv" if sglang.is_counts_csv(path, intake) else "csv"
    if ending in (".jsonl", ".json"):
        found = first_object(path, intake)
        return (
            "sglang-json"
            if "logical_count" in found
            else "megatron"
            if "top_indices" in found
            else "responses"
        )
    if ending not in ENDINGS:
        raise Refused(f"{shown(path)}: what it is cannot be seen from its name; say --format")
    return ENDINGS[ending]


def kind_of(options, intake):
    """The one format of all files; options that this format does not look at are refused."""
    kinds = (
        {seen(path, intake) for path in options.files} if not options.format else {options.format}
    )
    if len(kinds) > 1:
        raise Refused(
            f"the files are of several formats ({', '.join(sorted(kinds))}): give those of one"
            " recording"
        )
    kind = kinds.pop()
    if (
        kind == "csv"
        and options.format
        and all(sglang.is_counts_csv(path, intake) for path in options.files)
    ):
        kind = "sglang-csv"
    for name, value in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
        elif name not in READERS[kind][1]:
            raise Refused(
                f"--{name.replace('_', '-')} does nothing for files of the format"
                f" {'loads' if kind.startswith('sglang-') else kind}: leave it out"
            )
    return kind


def convert(options):
    """Reads, checks, writes; returns the lines that say what was seen and done."""
    output.check_folder(options.out, options.force)
    intake = Intake(guarded=True)
    intake.limit()
    trace = READERS[kind_of(options, intake)][0](options.files, intake, options)
    if options.layers:
        keep_layers(trace, *options.layers)
    if trace.counts:
        keep_counts(trace, intake, options.experts)
        names, experts = trace.count_names, trace.num_experts
        said = (
            f"{trace.source}: loads of {len(trace.counts)} steps, {len(names)} layers"
            f" ({names_of(names)}), {experts} experts"
        )
        trace.notes.append(
            "loads cannot be replayed, since they do not say which token went where; SGLang's mode"
            " per_token does"
        )
    else:
        finish(trace, intake, options.experts)
        settle_steps(trace, intake, options.one_step)
        layer, experts = next(iter(trace.layers.values())), trace.num_experts
        said = (
            f"{trace.source}: {len(trace.layers)} layers ({names_of(trace.layers)}),"
            f" {layer.tokens} tokens, top {layer.top_k} of {experts} experts"
        )
    write = output.write_counts if trace.counts else output.write
    written = output.written(options.out, options.force, lambda: write(options.out, trace))
    replays = [
        output.replay(options.out, name, experts) for name in written if name.endswith(".ini")
    ]
    return [
        said,
        *trace.fields(),
        *trace.notes,
        *(os.path.join(options.out, name) for name in written),
        *replays,
    ]


def main(words):
    """Exit status of the tool."""
    options = arguments(words)
    return cli.run("scripts/import-trace", lambda: convert(options))
