#!/bin/bash
# bench_text.sh NP: what a new user sees of configs/training_quickstart.ini (8 devices, 300 steps on text): seconds of training until the experts are
# visibly balanced, and until the validation loss is clearly below the unigram entropy of the text.   bench: np=2
# Balanced: MaxVio of the experts, mean of 10 steps, below a third of the highest such mean before. Clearly below: less than 0.8 of it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
$MPIRUN "$1" "$MOESIM" --quiet --out "$work/out" "$MOESIM_SOURCE_DIR/configs/training_quickstart.ini" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
python3 - "$work/out" <<'END'
import json
import sys

steps = [json.loads(line) for line in open(f"{sys.argv[1]}/metrics.jsonl")]
unigram = json.load(open(f"{sys.argv[1]}/summary.json"))["training"]["unigram_entropy"]
maxvio = [step["balance"]["expert"]["maxvio"] for step in steps]
means = [sum(maxvio[max(0, i - 9):i + 1]) / min(i + 1, 10) for i in range(len(steps))]
seconds, total = [], 0
for step in steps:
    total += step["time"]["step"]
    seconds.append(total)


def row(what, aim, reached):
    found = next((i for i in range(9, len(steps)) if reached(i)), None)
    value = "never" if found is None else f"{seconds[found]:.1f}"
    print(f"{what}{'' if found is None else f' (step {found + 1})'}\t{value}\t-\ts\t-\t-\t{aim}")


row("until MaxVio of the experts is a third of its highest", 30, lambda i: means[i] < max(means[9:i + 1]) / 3)
row(f"until validation is below 0.8 of the unigram entropy, {unigram:.2f}", 120, lambda i: (steps[i].get("validation_loss") or 99) < 0.8 * unigram)
print(f"all {len(steps)} steps: MaxVio {means[-1]:.2f}, validation loss {steps[-1]['validation_loss']:.2f} nats\t{total:.1f}\t-\ts\t-\t-\t-")
END
