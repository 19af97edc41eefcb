"""scripts/record-trace: the router logits of a real model of Hugging Face transformers. The part that needs torch is `load` and the loop of
`record`; what is found in a model, how its configuration becomes ours and what is written works on anything that behaves alike."""
import argparse
import array
import os
import sys

from trace_lib import npy, output
from trace_lib.trace import Refused

HELP = """Runs a Mixture-of-Experts model of Hugging Face transformers over a text and writes the logits of its routers, with a configuration that
routes them anew: under another number of devices, a group limit, another K. It needs torch and transformers, and the model's weights."""
EPILOG = """examples:
  scripts/record-trace allenai/OLMoE-1B-7B-0924 book.txt --tokens 8192 --out runs/olmoe
  scripts/run runs/olmoe/logits.ini --set cluster.devices=16 --set router.group_limit=max --set router.topk_group=3
"""
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def first_of(config, names, otherwise=None):
    """The first of these attributes that the configuration has."""
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), otherwise)


def text_config(model):
    """The configuration that names the experts: of models with several parts, that of the text."""
    config = model.config
    return config if first_of(config, COUNTS) else getattr(config, "text_config", config)


def routers(model, num_experts):
    """(name, module) of each router in order: a linear map named gate or router from the hidden size to the experts."""
    found = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name.split(".")[-1] in ("gate", "router", "wg") and weight is not None and len(weight.shape) == 2 and weight.shape[0] == num_experts:
            found.append((name, module))
    if not found:
        raise Refused(f"no router was found: no module named gate or router has a weight of {num_experts} rows")
    return found


def settings_of(config):
    """The router of a published configuration in our keys. What it does not say keeps our default."""
    kind = getattr(config, "model_type", "")
    settings = {"router.top_k": first_of(config, ("num_experts_per_tok", "moe_topk", "moe_k"), 1),
                "router.score_func": "sigmoid" if getattr(config, "scoring_func", "") == "sigmoid" or kind == "deepseek_v3" else "softmax",
                "router.norm_topk_prob": "yes" if getattr(config, "norm_topk_prob", kind == "mixtral") else "no",
                "router.routed_scaling_factor": getattr(config, "routed_scaling_factor", None) or 1}
    groups, kept = getattr(config, "n_group", None), getattr(config, "topk_group", None)
    if groups and kept and kept < groups:
        settings["router.group_limit"] = "top2_sum" if settings["router.score_func"] == "sigmoid" else "max"
        settings.update({"router.num_groups": groups, "router.topk_group": kept})
    return settings


class Recorder:
    """Keeps what each router computes: hidden vector times weight, as float32. Its hooks are called as the model runs."""

    def __init__(self, found):
        self.layers = [array.array("f") for _ in found]
        self.handles = [module.register_forward_hook(self.hook(i)) for i, (_, module) in enumerate(found)]

    def hook(self, i):
        def keep(module, inputs, _outputs):
            hidden = inputs[0].reshape(-1, module.weight.shape[1])
            logits = hidden.float() @ module.weight.float().T
            bias = getattr(module, "bias", None)
            if bias is not None:
                logits = logits + bias.float()
            self.layers[i].frombytes(logits.detach().cpu().numpy().astype("<f4").tobytes())
        return keep

    def remove(self):
        for handle in self.handles:
            handle.remove()


def blocks(ids, length):
    """The text's tokens in sequences of one length, the last may be shorter."""
    return [ids[begin:begin + length] for begin in range(0, len(ids), length)]


def record(model, ids, length, run):
    """Logits of each router, one array a layer; `run` passes one sequence of ids through the model."""
    config = text_config(model)
    num_experts = first_of(config, COUNTS)
    if not num_experts:
        raise Refused(f"the model's configuration says no number of experts ({', '.join(COUNTS)}): is it a Mixture of Experts?")
    found = routers(model, num_experts)
    recorder = Recorder(found)
    try:
        for sequence in blocks(ids, length):
            run(sequence)
    finally:
        recorder.remove()
    for (name, _), layer in zip(found, recorder.layers):
        if len(layer) != len(ids) * num_experts:
            raise Refused(f"router {name} saw {len(layer) // num_experts} tokens of {len(ids)}")
    return found, num_experts, recorder.layers


def write(folder, model, result, tokens, length, title):
    """logits.npy, logits.ini, and the selection bias of models that have one (DeepSeek-V3), a file for each layer."""
    found, num_experts, layers = result
    settings = {**settings_of(text_config(model)), "data.sequence_length": length}
    written = []
    for i, (_, module) in enumerate(found):
        bias = getattr(module, "e_score_correction_bias", None)
        if bias is not None:
            name = f"bias_{i}.npy"
            npy.save(os.path.join(folder, name), "<f4", (num_experts,), [array.array("f", bias.detach().float().cpu().tolist())])
            written.append(name)
    if written and len(found) == 1:
        settings["router.bias_file"] = output.quoted(os.path.join(folder, written[0]))
    return [*output.write_logits(folder, layers, tokens, num_experts, settings, title), *written]


def arguments(words):
    parser = argparse.ArgumentParser(prog="scripts/record-trace", description=HELP, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="name on the Hugging Face hub, or a folder")
    parser.add_argument("text", metavar="TEXT", help="file of the text to run over")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for logits.npy and logits.ini")
    parser.add_argument("--tokens", type=int, default=4096, metavar="T", help="tokens to record (default 4096)")
    parser.add_argument("--sequence-length", type=int, default=512, metavar="S", help="tokens that the model sees at once (default 512)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default cpu)")
    parser.add_argument("--force", action="store_true", help="replace an earlier recording in DIR")
    options = parser.parse_args(words)
    if options.tokens < 1 or options.sequence_length < 1:
        parser.error("--tokens and --sequence-length are whole numbers from 1 on")
    return options


def load(options):
    """(model, ids of the text's first tokens, function that runs one sequence); needs torch and transformers."""
    try:
        import torch   # noqa: PLC0415  (only here)
        import transformers   # noqa: PLC0415
    except ImportError as error:
        raise Refused(f"{error.name} is not installed: pip install torch transformers") from None
    with open(options.text, encoding="utf-8", errors="replace") as file:
        text = file.read()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, torch_dtype="auto").to(options.device).eval()
    ids = tokenizer(text)["input_ids"][:options.tokens]

    def run(sequence):
        with torch.no_grad():
            model(torch.tensor([sequence], device=options.device), use_cache=False)
    return model, ids, run


def main(words):
    options = arguments(words)
    try:
        model, ids, run = load(options)
        if not ids:
            raise Refused(f"{options.text} has no tokens")
        output.new_folder(options.out, options.force)
        result = record(model, ids, options.sequence_length, run)
        written = write(options.out, model, result, len(ids), options.sequence_length, f"The router logits of {options.model}, and its router.")
    except Refused as error:
        print(f"scripts/record-trace: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"scripts/record-trace: {error}", file=sys.stderr)
        return 2
    print(f"{options.model}: {len(result[0])} routers, {len(ids)} tokens, {result[1]} experts")
    print("\n".join(os.path.join(options.out, name) for name in written))
    print(output.replay(options.out, "logits.ini", result[1]))
    return 0
