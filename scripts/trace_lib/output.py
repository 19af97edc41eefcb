"""What an import leaves in its folder: moesim's .npy files, and configurations that replay them."""
import os

from trace_lib import npy
from trace_lib.trace import Refused

FILES = ("topk_idx.npy", "topk_weight.npy", "logits.npy", "expert_load.npy", "routing.ini", "logits.ini")


def new_folder(path, force):
    """Makes the folder; files of an earlier import are replaced only with --force."""
    there = [name for name in FILES if os.path.exists(os.path.join(path, name))]
    if there and not force:
        raise Refused(f"{path} holds {there[0]} already: give another --out, or --force")
    os.makedirs(path, exist_ok=True)
    for name in there:
        os.remove(os.path.join(path, name))


def shape_of(layers, *inner):
    """[T, ...] for one layer, [layers, T, ...] for several: what moesim reads."""
    return inner if layers == 1 else (layers, *inner)


def configuration(title, settings):
    """INI text of {"section.key": value}."""
    sections = {}
    for key, value in settings.items():
        section, name = key.split(".")
        sections.setdefault(section, []).append(f"{name} = {value}\n")
    return f"; {title}\n" + "".join(f"\n[{section}]\n{''.join(lines)}" for section, lines in sections.items())


def quoted(path):
    """An absolute path, so that the configuration runs from any folder. INI has no way to write ; or # in a value."""
    whole = os.path.abspath(path)
    if any(letter in whole for letter in ";#\n"):
        raise Refused(f"{whole}: the path has a ; or # in it, which a configuration cannot name; give another --out")
    return whole


def write_text(folder, name, text):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(text)


def write_logits(folder, layers, tokens, num_experts, settings, title):
    """logits.npy [layers, T, N] of the layers' arrays, and the configuration that routes them anew; returns the files' names."""
    path = os.path.join(folder, "logits.npy")
    npy.save(path, "<f4", shape_of(len(layers), tokens, num_experts), layers)
    write_text(folder, "logits.ini", configuration(title, {
        "model.num_layers": len(layers), "model.num_experts": num_experts, **settings, "data.source": "logits", "data.path": quoted(path),
        "output.routing": "yes"}))
    return ["logits.npy", "logits.ini"]


def write_routing(folder, trace):
    """topk_idx.npy and, where weights were recorded, topk_weight.npy, with the configuration that replays them."""
    layers = list(trace.layers.values())
    tokens, top_k = layers[0].tokens, layers[0].top_k
    shape = shape_of(len(layers), tokens, top_k)
    settings = {"model.num_layers": len(layers), "model.num_experts": trace.num_experts, "router.top_k": top_k, "data.source": "routing",
                "data.path": quoted(os.path.join(folder, "topk_idx.npy"))}
    npy.save(os.path.join(folder, "topk_idx.npy"), "<i4", shape, [layer.ids for layer in layers])
    written = ["topk_idx.npy"]
    if all(len(layer.weights) == len(layer.ids) for layer in layers):
        npy.save(os.path.join(folder, "topk_weight.npy"), "<f4", shape, [layer.weights for layer in layers])
        settings["data.weights"] = quoted(os.path.join(folder, "topk_weight.npy"))
        written.append("topk_weight.npy")
    settings["data.sequence_length"] = 0
    write_text(folder, "routing.ini", configuration(f"The routing of {trace.source}, as it was recorded.", settings))
    return [*written, "routing.ini"]


def write(folder, trace):
    """All that the trace holds; returns the files' names."""
    written = write_routing(folder, trace)
    layers = list(trace.layers.values())
    if all(len(layer.logits) == layer.tokens * trace.num_experts for layer in layers):
        settings = {"router.top_k": layers[0].top_k, "data.sequence_length": 0}
        written += write_logits(folder, [layer.logits for layer in layers], layers[0].tokens, trace.num_experts, settings,
                                f"The logits of {trace.source}; the router is yours to choose: --set router.score_func=... and so on.")
    return written


def replay(folder, name, num_experts):
    """The command that runs a configuration: here, or where moesim is installed; on as many devices, up to 8, as share the experts evenly."""
    devices = next(count for count in range(8, 0, -1) if num_experts % count == 0)
    repository = os.path.exists(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "run"))
    few = f" -np {devices}" if devices < 8 else ""
    return f"replay: {f'scripts/run{few}' if repository else f'mpirun -np {devices} moesim'} {os.path.join(folder, name)}"


def write_counts(folder, trace):
    """Loads [steps, layers, experts], the shape of a run's own expert_load.npy."""
    steps, layers = len(trace.counts), len(trace.counts[0])
    flat = [count for step in trace.counts for layer in step for count in layer]
    npy.save(os.path.join(folder, "expert_load.npy"), "<i8", (steps, layers, trace.num_experts), [flat])
    return ["expert_load.npy"]
