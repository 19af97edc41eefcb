"""What an import leaves in its folder: moesim's .npy files, and configurations that replay them."""

import os

from trace_lib import npy
from trace_lib.guard import Refused, shown

FILES = (
    "topk_idx.npy",
    "topk_weight.npy",
    "logits.npy",
    "expert_load.npy",
    "routing.ini",
    "logits.ini",
    "bias.npy",
)
LONGEST_PATH = 1023  # of the program's paths, in bytes
LARGEST_MODEL = 32768  # experts in all layers at the program's default widths: about 12 GiB


def check_folder(path, force):
    """Finds out before anything is read whether results can go to this folder."""
    for name in FILES:
        quoted(os.path.join(path, name))
    there = [name for name in FILES if os.path.lexists(os.path.join(path, name))]
    if there and not force:
        raise Refused(f"{shown(path)} holds {there[0]} already: give another --out, or --force")
    folders = [
        name
        for name in there
        if os.path.isdir(os.path.join(path, name)) and not os.path.islink(os.path.join(path, name))
    ]
    if folders:
        raise Refused(f"{shown(path)}: {folders[0]} is a folder in it: give another --out")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise Refused(f"{shown(path)} is no folder: give another --out")


def new_folder(path, force):
    """Makes the folder; files of an earlier import are replaced only with --force. Links are
    removed, not followed."""
    check_folder(path, force)
    os.makedirs(path, exist_ok=True)
    for name in FILES:
        if os.path.lexists(os.path.join(path, name)):
            os.remove(os.path.join(path, name))


def written(folder, force, write_files):
    """Makes the folder and lets `write_files` fill it; after a fault nothing stays in it."""
    new_folder(folder, force)
    try:
        return write_files()
    except BaseException as error:
        for name in FILES:
            if os.path.lexists(os.path.join(folder, name)):
                os.remove(os.path.join(folder, name))
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, folder) from None
        raise


def shape_of(layers, *inner):
    """[T, ...] for one layer, [layers, T, ...] for several: what moesim reads."""
    return inner if layers == 1 else (layers, *inner)


def configuration(title, settings):
    """INI text of {"section.key": value}."""
    sections = {}
    for key, value in settings.items():
        section, name = key.split(".")
        sections.setdefault(section, []).append(f"{name} = {value}\n")
    body = "".join(f"\n[{section}]\n{''.join(lines)}" for section, lines in sections.items())
    return f"; {title}\n{body}"


def quoted(path):
    """An absolute path, so that the configuration runs from any folder, if a configuration can
    name it."""
    whole = os.path.abspath(path)
    try:
        size = len(whole.encode("utf-8"))
    except UnicodeEncodeError:
        raise Refused(
            f"{shown(whole)}: the path is no UTF-8, which a configuration cannot name; give another"
            " --out"
        ) from None
    if size > LONGEST_PATH:
        raise Refused(
            f"{shown(whole)}: the path has {size} bytes; a configuration can name up to"
            f" {LONGEST_PATH}: give another --out"
        )
    if not whole.isprintable() or " ;" in whole or " #" in whole:
        raise Refused(
            f"{shown(whole)}: the path has ' ;', ' #' or an unprintable letter in it, which a"
            " configuration cannot name; give another --out"
        )
    return whole


def write_text(folder, name, text):
    """A text file."""
    with open(os.path.join(folder, name), "x", encoding="utf-8") as file:
        file.write(text)


def model_of(layers, num_experts):
    """Keys of the model; where the default widths would take too much memory, smaller ones."""
    settings = {"model.num_layers": layers, "model.num_experts": num_experts}
    if layers * num_experts > LARGEST_MODEL:
        settings.update({"model.hidden_size": 16, "model.moe_intermediate_size": 8})
    return settings


def sizes_note(layers, num_experts):
    """Says that the widths are smaller than the program's default."""
    if layers * num_experts <= LARGEST_MODEL:
        return []
    return [
        f"model.hidden_size = 16 and moe_intermediate_size = 8 are set, since {layers} layers of"
        f" {num_experts} experts would not fit in memory otherwise: bytes are those of 16 numbers a"
        " token"
    ]


def write_logits(folder, layers, tokens, num_experts, settings, title):
    """logits.npy [layers, T, N] of the layers' arrays, and the configuration that routes them anew;
    returns the files' names."""
    path = os.path.join(folder, "logits.npy")
    npy.save(path, "<f4", shape_of(len(layers), tokens, num_experts), layers)
    settings = {**model_of(len(layers), num_experts), **settings, "data.source": "logits"}
    settings.update({"data.path": quoted(path), "output.routing": "yes"})
    write_text(folder, "logits.ini", configuration(title, settings))
    return ["logits.npy", "logits.ini"]


def write_routing(folder, trace):
    """topk_idx.npy and, where weights were recorded, topk_weight.npy, with the configuration that
    replays them."""
    layers = list(trace.layers.values())
    tokens, top_k = layers[0].tokens, layers[0].top_k
    shape, path = shape_of(len(layers), tokens, top_k), os.path.join(folder, "topk_idx.npy")
    settings = {
        **model_of(len(layers), trace.num_experts),
        "router.top_k": top_k,
        "data.source": "routing",
        "data.path": quoted(path),
    }
    npy.save(path, "<i4", shape, [layer.ids for layer in layers])
    written = ["topk_idx.npy"]
    if all(len(layer.weights) == len(layer.ids) for layer in layers):
        weights = os.path.join(folder, "topk_weight.npy")
        npy.save(weights, "<f4", shape, [layer.weights for layer in layers])
        settings["data.weights"] = quoted(weights)
        written.append("topk_weight.npy")
    settings["data.sequence_length"] = 0
    title = f"The routing of {trace.source}, as it was recorded."
    write_text(folder, "routing.ini", configuration(title, settings))
    return [*written, "routing.ini"]


def write(folder, trace):
    """All that the trace holds; returns the files' names."""
    written = write_routing(folder, trace)
    layers = list(trace.layers.values())
    trace.notes += sizes_note(len(layers), trace.num_experts)
    if all(len(layer.logits) == layer.tokens * trace.num_experts for layer in layers):
        settings = {"router.top_k": layers[0].top_k, "data.sequence_length": 0}
        title = (
            f"The logits of {trace.source}; the router is yours to choose: --set"
            " router.score_func=... and so on."
        )
        logits = [layer.logits for layer in layers]
        written += write_logits(
            folder, logits, layers[0].tokens, trace.num_experts, settings, title
        )
    return written


def replay(folder, name, num_experts):
    """The command that runs a configuration: here, or where moesim is installed; on as many
    devices, up to 8, as share the experts evenly."""
    devices = next(count for count in range(8, 0, -1) if num_experts % count == 0)
    scripts = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    program = f"mpirun -np {devices} moesim"
    if os.path.exists(os.path.join(scripts, "run")):
        program = "scripts/run" + (f" -np {devices}" if devices < 8 else "")
    return f"replay: {program} {os.path.join(folder, name)}"


def write_counts(folder, trace):
    """Loads [steps, layers, experts], the shape of a run's own expert_load.npy."""
    steps, layers = len(trace.counts), len(trace.counts[0])
    flat = [count for step in trace.counts for layer in step for count in layer]
    path = os.path.join(folder, "expert_load.npy")
    npy.save(path, "<i8", (steps, layers, trace.num_experts), [flat])
    return ["expert_load.npy"]
