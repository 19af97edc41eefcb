#!/bin/bash
# bench_text.sh NP: how long a new user waits with configs/training_quickstart.ini (8 devices, 300
# steps on text).
# bench: np=2
#
# Two times are measured, in seconds of training:
#   until the experts are visibly balanced: MaxVio of the experts, as the mean of 10 steps, is
#   below a third of the highest such mean before
#   until the validation loss is clearly below the unigram entropy of the text: less than 0.8 of it
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
config=$MOESIM_SOURCE_DIR/configs/training_quickstart.ini
if ! $MPIRUN "$1" "$MOESIM" --quiet --out "$work/out" "$config" > "$work/log" 2>&1; then
    cat "$work/log"
    exit 1
fi
python3 - "$work/out" <<'END'
import json
import sys

folder = sys.argv[1]
steps = [json.loads(line) for line in open(f"{folder}/metrics.jsonl")]
unigram = json.load(open(f"{folder}/summary.json"))["training"]["unigram_entropy"]
maxvio = [step["balance"]["expert"]["maxvio"] for step in steps]
means = [sum(maxvio[max(0, i - 9) : i + 1]) / min(i + 1, 10) for i in range(len(steps))]
seconds, total = [], 0
for step in steps:
    total += step["time"]["step"]
    seconds.append(total)


def balanced(i):
    return means[i] < max(means[9 : i + 1]) / 3


def learned(i):
    validation = steps[i].get("validation_loss")
    return bool(validation) and validation < 0.8 * unigram


def row(what, reached, aim):
    """A line of the table: the seconds until the first step for which `reached` holds."""
    found = next((i for i in range(9, len(steps)) if reached(i)), None)
    value = "never"
    if found is not None:
        what += f" (step {found + 1})"
        value = f"{seconds[found]:.1f}"
    print(f"{what}\t{value}\t-\ts\t-\t-\t{aim}")


row("until MaxVio of the experts is a third of its highest", balanced, 30)
row(f"until validation is below 0.8 of the unigram entropy, {unigram:.2f}", learned, 120)
last = f"MaxVio {means[-1]:.2f}, validation loss {steps[-1]['validation_loss']:.2f} nats"
print(f"all {len(steps)} steps: {last}\t{total:.1f}\t-\ts\t-\t-\t-")
END
