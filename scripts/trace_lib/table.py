"""A CSV with one line for each choice: token, expert, and where there are any weight and layer, in any order of columns (named in the first
line) and lines. A token's experts are put in the order of their weights; without weights they stay as they come."""
import csv
import math

from trace_lib.trace import Layer, Refused, Trace, name_of

COLUMNS = {"token": ("token", "token_id", "token_idx", "token_index"), "expert": ("expert", "expert_id", "expert_idx", "expert_index"),
           "weight": ("weight", "gate", "prob", "probability", "score"), "layer": ("layer", "layer_id", "layer_idx", "layer_index")}
MOST_TOKENS = 1 << 27


def columns_of(first, path):
    """Name -> position; a first line of numbers is data: token, expert[, weight[, layer]]."""
    names = [cell.strip().lower() for cell in first]
    if names and all(cell.replace(".", "", 1).replace("-", "", 1).isdigit() for cell in names):
        return dict(zip(("token", "expert", "weight", "layer"), range(len(names)))), False
    places = {}
    for meaning, known in COLUMNS.items():
        place = next((names.index(name) for name in known if name in names), None)
        if place is not None:
            places[meaning] = place
    if not {"token", "expert"} <= set(places):
        raise Refused(f"{path}:1: the columns are {', '.join(names) or 'none'}; expected are token, expert and, where there are any, weight and layer")
    return places, True


def choices(path):
    """(line, layer, token, expert, weight or None) for each line."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        first = next(reader, [])
        places, named = columns_of(first, path)
        lines = reader if named else [first, *reader]
        for number, row in enumerate(lines, 2 if named else 1):
            if not row:
                continue
            try:
                token, expert = int(row[places["token"]]), int(row[places["expert"]])
                layer = int(row[places["layer"]]) if "layer" in places else 0
                weight = float(row[places["weight"]]) if "weight" in places else None
            except (ValueError, IndexError):
                raise Refused(f"{path}:{number}: {','.join(row)}: expected are whole numbers for token, expert and layer, and a number for weight") from None
            if not 0 <= token < MOST_TOKENS or expert < 0 or (weight is not None and not math.isfinite(weight)):
                raise Refused(f"{path}:{number}: {','.join(row)}: tokens from 0 to {MOST_TOKENS - 1}, experts from 0 on and finite weights are allowed")
            yield number, layer, token, expert, weight


def read(paths, _options):
    """Files one behind the other: the tokens of each are counted from 0."""
    layers, base = {}, 0
    for path in paths:
        most = -1
        for number, layer, token, expert, weight in choices(path):
            chosen = layers.setdefault(layer, {}).setdefault(base + token, [])
            if any(expert == other for other, _ in chosen):
                raise Refused(f"{path}:{number}: token {token} has expert {expert} twice")
            chosen.append((expert, weight))
            most = max(most, token)
        base += most + 1
    trace = Trace(name_of(paths[0]))
    top_k = max((len(chosen) for tokens in layers.values() for chosen in tokens.values()), default=1)
    for name in sorted(layers):
        here = trace.layers[name] = Layer(top_k)
        weighted = all(weight is not None for chosen in layers[name].values() for _, weight in chosen)
        for token in range(base):
            chosen = layers[name].get(token, [])
            if weighted:
                chosen = sorted(chosen, key=lambda choice: (-choice[1], choice[0]))
            here.add([expert for expert, _ in chosen], [weight for _, weight in chosen] if weighted else None)
    empty = sum(all(token not in tokens for tokens in layers.values()) for token in range(base))
    if empty:
        trace.notes.append(f"{empty} tokens have no line: they are kept, without an expert")
    return trace
