"""What an import leaves in its folder: moesim's .npy files, and configurations that replay them."""

import array
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
    "mask.npy",
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


def spread(numbers, width, tokens, most, fill):
    """Rows of a step of `tokens` tokens on `most` places, padding between them, so that every block
    of places has as many tokens as any other."""
    if tokens == most:
        return numbers
    rows = array.array(numbers.typecode, [fill]) * (most * width)
    for token in range(tokens):
        place = token * most // tokens
        rows[place * width : (place + 1) * width] = numbers[token * width : (token + 1) * width]
    return rows


def planes(arrays, width, sizes, fill):
    """The parts of an array [steps][layers][tokens, width], made of the layers' arrays that have
    one step behind the other; without sizes the layers as they are."""
    if not sizes:
        yield from arrays
        return
    begin = 0
    for tokens in sizes:
        for numbers in arrays:
            step = numbers[begin * width : (begin + tokens) * width]
            yield spread(step, width, tokens, max(sizes), fill)
        begin += tokens


def shape_in_steps(trace, layers, tokens, width):
    """The shape of `planes`: [steps, layers, tokens, width] where there are steps."""
    sizes = trace.step_tokens
    return (len(sizes), layers, max(sizes), width) if sizes else shape_of(layers, tokens, width)


def write_mask(folder, trace):
    """mask.npy [steps, T] where steps have different numbers of tokens; returns the file's names
    and the settings that name it."""
    sizes = trace.step_tokens
    if not sizes or min(sizes) == max(sizes):
        return [], {}
    path, ones = os.path.join(folder, "mask.npy"), array.array("B", [1]) * sum(sizes)
    npy.save(path, "|u1", (len(sizes), max(sizes)), planes([ones], 1, sizes, 0))
    return ["mask.npy"], {"data.mask": quoted(path), "data.padding": "dropped"}


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


def write_logits(folder, layers, shape, settings, title):
    """logits.npy of that shape, which ends with the number of experts, made of the parts `layers`;
    and the configuration that routes them anew. Returns the files' names."""
    path, num_experts = os.path.join(folder, "logits.npy"), shape[-1]
    npy.save(path, "<f4", shape, layers)
    num_layers = shape[-3] if len(shape) > 2 else 1
    settings = {**model_of(num_layers, num_experts), **settings, "data.source": "logits"}
    settings.update({"data.path": quoted(path), "output.routing": "yes"})
    write_text(folder, "logits.ini", configuration(title, settings))
    return ["logits.npy", "logits.ini"]


def write_routing(folder, trace, masked):
    """topk_idx.npy and, where weights were recorded, topk_weight.npy, with the configuration that
    replays them."""
    layers = list(trace.layers.values())
    tokens, top_k = layers[0].tokens, layers[0].top_k
    shape = shape_in_steps(trace, len(layers), tokens, top_k)
    path = os.path.join(folder, "topk_idx.npy")
    settings = {
        **model_of(len(layers), trace.num_experts),
        "router.top_k": top_k,
        "data.source": "routing",
        "data.path": quoted(path),
        **masked,
    }
    ids = [layer.ids for layer in layers]
    npy.save(path, "<i4", shape, planes(ids, top_k, trace.step_tokens, -1))
    written = ["topk_idx.npy"]
    if all(len(layer.weights) == len(layer.ids) for layer in layers):
        weights = os.path.join(folder, "topk_weight.npy")
        parts = planes([layer.weights for layer in layers], top_k, trace.step_tokens, 0)
        npy.save(weights, "<f4", shape, parts)
        settings["data.weights"] = quoted(weights)
        written.append("topk_weight.npy")
    settings["data.sequence_length"] = 0
    title = f"The routing of {trace.source}, as it was recorded."
    write_text(folder, "routing.ini", configuration(title, settings))
    return [*written, "routing.ini"]


def write(folder, trace):
    """All that the trace holds; returns the files' names."""
    written, masked = write_mask(folder, trace)
    written += write_routing(folder, trace, masked)
    layers = list(trace.layers.values())
    trace.notes += sizes_note(len(layers), trace.num_experts)
    if all(len(layer.logits) == layer.tokens * trace.num_experts for layer in layers):
        settings = {"router.top_k": layers[0].top_k, "data.sequence_length": 0, **masked}
        title = (
            f"The logits of {trace.source}; the router is yours to choose: --set"
            " router.score_func=... and so on."
        )
        shape = shape_in_steps(trace, len(layers), layers[0].tokens, trace.num_experts)
        arrays = [layer.logits for layer in layers]
        logits = planes(arrays, trace.num_experts, trace.step_tokens, 0)
        written += write_logits(folder, logits, shape, settings, title)
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
