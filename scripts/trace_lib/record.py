"""scripts/record-trace: the router logits of a real model of Hugging Face transformers. The part
that needs torch is `load` and the hooks of `Recorder`; what is found in a model (models.py), how
its configuration becomes ours and what is written works on anything that behaves alike."""

import argparse
import array
import os

from trace_lib import cli, models, npy, output
from trace_lib.guard import Intake, Refused, shown
from trace_lib.trace import check_numbers

HELP = """Runs a Mixture-of-Experts model of Hugging Face transformers over a text and writes the
logits of its routers, with a configuration that routes them anew: under another number of devices,
a group limit, another K. It needs torch and transformers, and the model's weights."""
EPILOG = """examples:
  scripts/record-trace allenai/OLMoE-1B-7B-0924 book.txt --tokens 8192 --out runs/olmoe
  scripts/run runs/olmoe/logits.ini --set cluster.devices=16 --set router.group_limit=max \\
      --set router.topk_group=3
"""
MOST_TOKENS = 1 << 27


class Recorder:
    """Keeps what each router computes: hidden vector times weight, as float32. Its hooks are called
    as the model runs."""

    def __init__(self, found):
        self.layers = [array.array("f") for _ in found]
        self.handles = [
            module.register_forward_hook(self.hook(i)) for i, (_, module) in enumerate(found)
        ]

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
    return [ids[begin : begin + length] for begin in range(0, len(ids), length)]


def record(model, ids, length, run, by_hand=None):
    """(routers, N, logits of each router); `run` passes one sequence of ids through the model."""
    config = models.text_config(model)
    row = models.router_of(config, by_hand or {})
    num_experts = models.one_number(config, models.COUNTS, "the number of experts")
    found = models.find_routers(model, num_experts, row)
    recorder = Recorder(found)
    try:
        for sequence in blocks(ids, length):
            run(sequence)
    finally:
        recorder.remove()
    for (name, _), layer in zip(found, recorder.layers):
        if len(layer) != len(ids) * num_experts:
            raise Refused(
                f"router {shown(name)} saw {len(layer) // num_experts} tokens of {len(ids)}"
            )
        check_numbers(layer, num_experts, f"logits of router {shown(name)}")
    return found, num_experts, recorder.layers


def numbers_of(bias, num_experts):
    """A selection bias [N] or [1, N] as float32."""
    numbers = bias.detach().float().cpu().tolist()
    while len(numbers) == 1 and isinstance(numbers[0], list):
        numbers = numbers[0]
    if len(numbers) != num_experts:
        raise Refused(f"a selection bias has {len(numbers)} numbers; expected are {num_experts}")
    return array.array("f", numbers)


def write_bias(folder, biases, num_experts):
    """bias.npy [layers, N], or [N] of one layer; returns (files, settings)."""
    if not biases:
        return [], {}
    parts = [numbers_of(bias, num_experts) for bias in biases]
    for i, part in enumerate(parts):
        check_numbers(part, num_experts, f"selection bias of router {i}")
    path = os.path.join(folder, "bias.npy")
    npy.save(path, "<f4", output.shape_of(len(parts), num_experts), parts)
    return ["bias.npy"], {"router.bias_file": output.quoted(path)}


def write(folder, model, result, tokens, length, title, by_hand=None):
    """logits.npy, logits.ini and the selection bias of models that have one; returns (files,
    notes)."""
    found, num_experts, layers = result
    config = models.text_config(model)
    row = models.router_of(config, by_hand or {})
    settings = {**models.settings_of(config, by_hand), "data.sequence_length": length}
    biases = models.find_biases(model, found, row)
    bias_files, more = write_bias(folder, biases, num_experts)
    if more and settings.get("router.score_func") == "softmax_topk":
        raise Refused(
            "the model has a selection bias, which router.score_func = softmax_topk does not take"
        )
    settings.update(more)
    shape = output.shape_of(len(layers), tokens, num_experts)
    files = output.write_logits(folder, layers, shape, settings, shown(title))
    notes = [router_note(config, row, settings), *output.sizes_note(len(layers), num_experts)]
    return [*files, *bias_files], notes


def router_note(config, row, settings):
    """How the model routes, and where that was read."""
    keys = ", ".join(
        f"{key} = {value}"
        for key, value in settings.items()
        if key.startswith("router.") and key != "router.bias_file"
    )
    if row is None:
        return f"router, as set by hand: {keys}"
    remark = f"; {row.remark}" if row.remark else ""
    return f"router of {config.model_type}: {keys} (transformers, {row.source}){remark}"


def arguments(words):
    """The command line."""
    parser = cli.Parser(
        prog="scripts/record-trace",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="name on the Hugging Face hub, or a folder")
    add("text", metavar="TEXT", help="file of the text to run over")
    add("--out", required=True, metavar="DIR", help="folder for logits.npy and logits.ini")
    number = cli.whole_number(1, MOST_TOKENS)
    add("--tokens", type=number, default=4096, metavar="T", help="tokens to record (default 4096)")
    add(
        "--sequence-length",
        type=number,
        default=512,
        metavar="S",
        help="tokens that the model sees at once (default 512)",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the router, for models that docs/traces.md does not list; repeatable",
    )
    add("--device", default="cpu", help="cpu, cuda, ... (default cpu)")
    add("--force", action="store_true", help="replace an earlier recording in DIR")
    return parser.parse_args(words)


def load(options, text):
    """(model, ids of the text's first tokens, function that runs one sequence); needs torch and
    transformers."""
    try:
        import torch  # noqa: PLC0415  (only here)
        import transformers  # noqa: PLC0415
    except ImportError as error:
        raise Refused(f"{error.name} is not installed: pip install torch transformers") from None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        model = transformers.AutoModelForCausalLM.from_pretrained(options.model, torch_dtype="auto")
        model = model.to(options.device).eval()
    except (ValueError, RuntimeError, ImportError, LookupError) as error:
        raise Refused(f"{shown(options.model)} cannot be loaded: {shown(error)}") from None
    ids = tokenizer(text)["input_ids"][: options.tokens]

    def run(sequence):
        with torch.no_grad():
            model(torch.tensor([sequence], device=options.device), use_cache=False)

    return model, ids, run


def work(options):
    """Everything; returns the lines that say what was done."""
    by_hand = dict(models.parse_setting(text) for text in options.set)
    output.check_folder(options.out, options.force)
    model, ids, run = load(options, Intake().text(options.text))
    if not ids:
        raise Refused(f"{shown(options.text)} has no tokens")
    models.settings_of(models.text_config(model), by_hand)  # refused before the model runs
    result = record(model, ids, options.sequence_length, run, by_hand)
    title = f"The router logits of {shown(options.model)}, and its router."
    length = options.sequence_length
    written, notes = output.written(
        options.out,
        options.force,
        lambda: write(options.out, model, result, len(ids), length, title, by_hand),
    )
    said = (
        f"{shown(options.model)}: {len(result[0])} routers, {len(ids)} tokens, {result[1]} experts"
    )
    files = [os.path.join(options.out, name) for name in written]
    return [said, *notes, *files, output.replay(options.out, "logits.ini", result[1])]


def main(words):
    """Exit status of the tool."""
    options = arguments(words)
    return cli.run("scripts/record-trace", lambda: work(options))
