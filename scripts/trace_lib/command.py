"""scripts/import-trace: from files that others recorded to a folder that moesim replays. Exit status: 0 written; 2 a sentence says what
could not be read; 1 anything else."""
import argparse
import json
import os
import sys

from trace_lib import megatron, output, responses, sglang, table
from trace_lib.trace import Refused, finish, keep_layers

HELP = """Turns what other systems record about their routing into files that moesim replays (data.source = routing or logits).
Several FILEs are ranks, or parts, of one recording: their tokens stand one behind the other. docs/traces.md describes the formats."""
EPILOG = """formats:
  megatron   Megatron-Core's router trace: a folder, or router_trace_rank*.jsonl; logits too where they were captured
  sglang     SGLang's expert distribution recorder: a folder, or expert_distribution_recorder_*.pt (mode per_token; others give loads only)
  responses  answers of vLLM or SGLang with routed_experts: JSON, or one answer a line
  npy        arrays [tokens, layers, K], as vLLM's Python interface returns them
  csv        one line for each choice: token,expert[,weight[,layer]]

examples:
  scripts/import-trace traces/ --out runs/mixtral
  scripts/import-trace answers.jsonl --shape 48,8 --experts 128 --out runs/qwen
  scripts/run runs/qwen/routing.ini --set cluster.devices=16
"""
READERS = {"megatron": megatron.read, "sglang": sglang.read, "sglang-csv": sglang.read_counts_csv, "responses": responses.read,
           "npy": responses.read_arrays, "csv": table.read}
ENDLESS = 1 << 62


def pair(text, separator, least):
    """Two whole numbers, for argparse."""
    try:
        first, second = (int(part) for part in text.split(separator))
    except ValueError:
        first = second = least - 1
    if first < least or second < least:
        raise argparse.ArgumentTypeError(f"{text}: expected are two whole numbers from {least} on, as in {least + 1}{separator}{least + 2}")
    return first, second


def arguments(words):
    parser = argparse.ArgumentParser(prog="scripts/import-trace", description=HELP, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the .npy files and the configuration that replays them")
    parser.add_argument("--format", choices=[name for name in READERS if name != "sglang-csv"], help="default: seen from the files")
    parser.add_argument("--experts", type=int, default=0, metavar="N", help="routed experts of the model; default: what the source says, or the largest id + 1")
    parser.add_argument("--layers", type=lambda text: pair(text, ":", 0), metavar="A:B", help="keep only layers A to B, counted from 0")
    parser.add_argument("--steps", type=lambda text: pair(text, ":", 0), default=(0, ENDLESS), metavar="A:B", help="megatron: only steps A to B")
    parser.add_argument("--block", choices=["decoder", "mtp"], default="decoder", help="megatron: the decoder's layers, or those of multi-token prediction")
    parser.add_argument("--shape", type=lambda text: pair(text, ",", 1), metavar="LAYERS,K", help="SGLang's answers: they do not say it themselves")
    parser.add_argument("--force", action="store_true", help="replace an earlier import in DIR")
    options = parser.parse_args(words)
    options.first_step, options.last_step = options.steps
    return options


def first_object(path):
    """The first line of a file as JSON; {} where it is none."""
    with open(path, encoding="utf-8", errors="replace") as file:
        try:
            found = json.loads(file.readline(1 << 26))
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}


def seen(path):
    """The format of a file or folder, by its name and its first line."""
    if os.path.isdir(path):
        names = os.listdir(path)
        if any(name.startswith("router_trace_rank") for name in names):
            return "megatron"
        if any(name.endswith(".pt") for name in names):
            return "sglang"
        raise Refused(f"{path} has neither router_trace_rank*.jsonl (Megatron-Core) nor *.pt (SGLang) in it")
    ending = os.path.splitext(path)[1].lower()
    if ending == ".csv":
        return "sglang-csv" if sglang.is_counts_csv(path) else "csv"
    if ending in (".jsonl", ".json"):
        return "megatron" if "top_indices" in first_object(path) else "responses"
    kinds = {".pt": "sglang", ".npy": "npy"}
    if ending not in kinds:
        raise Refused(f"{path}: what it is cannot be seen from its name; say --format")
    return kinds[ending]


def read(kind, options):
    """The trace; a file that is damaged in a way that its reader does not foresee gets a sentence too."""
    try:
        return READERS[kind](options.files, options)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Refused(f"{options.files[0]} is damaged, or not what it seems: {type(error).__name__}: {error}") from None


def convert(options):
    """Reads, checks, writes; returns the lines that say what was done."""
    kinds = {options.format or seen(path) for path in options.files}
    if len(kinds) > 1:
        raise Refused(f"the files are of several formats ({', '.join(sorted(kinds))}): give those of one recording")
    trace = read(kinds.pop(), options)
    if trace.counts:
        output.new_folder(options.out, options.force)
        written = output.write_counts(options.out, trace)
        said = [f"{trace.source}: loads of {len(trace.counts)} steps, {len(trace.counts[0])} layers, {trace.num_experts} experts",
                "loads cannot be replayed, since they do not say which token went where; SGLang's mode per_token does"]
    else:
        if options.layers:
            keep_layers(trace, *options.layers)
        finish(trace, options.experts)
        output.new_folder(options.out, options.force)
        written = output.write(options.out, trace)
        layer = next(iter(trace.layers.values()))
        said = [f"{trace.source}: {len(trace.layers)} layers ({', '.join(map(str, trace.layers))}), {layer.tokens} tokens, "
                f"top {layer.top_k} of {trace.num_experts} experts"]
    said += trace.notes + [os.path.join(options.out, name) for name in written]
    return said + [output.replay(options.out, name, trace.num_experts) for name in written if name.endswith(".ini")]


def main(words):
    options = arguments(words)
    try:
        print("\n".join(convert(options)))
    except Refused as error:
        print(f"scripts/import-trace: {error}", file=sys.stderr)
        return 2
    except (OSError, UnicodeDecodeError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else f"a file is no text ({error.reason})"
        print(f"scripts/import-trace: {what}", file=sys.stderr)
        return 2
    return 0
