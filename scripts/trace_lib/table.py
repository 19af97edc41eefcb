"""A CSV with one line for each choice: token, expert, and where there are any weight, layer and step,
in any order of columns (named in the first line) and lines. A token's experts are put in the order of
their weights; without weights they stay as they come."""

import csv
import re

from trace_lib.guard import (
    LARGEST_NUMBER,
    MOST_EXPERTS,
    MOST_STEPS,
    MOST_TOKENS,
    Refused,
    few,
    name_of,
    shown,
)
from trace_lib.trace import Layer, Trace

COLUMNS = {
    "token": ("token", "token_id", "token_idx", "token_index"),
    "expert": ("expert", "expert_id", "expert_idx", "expert_index"),
    "weight": ("weight", "gate", "prob", "probability", "score"),
    "layer": ("layer", "layer_id", "layer_idx", "layer_index"),
    "step": ("step", "step_id", "iteration", "iter", "forward_pass_id", "batch"),
}
WHOLE = re.compile(r"-?[0-9]{1,20}", re.ASCII)
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?", re.ASCII)
LONGEST_FIELD = 1000
MOST_COLUMNS = 1000


def rows(path, intake):
    """(line, cells) of each line that has any; quotes do not reach over the end of a line."""
    name = shown(path)
    for number, line in intake.lines(path):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        if "\0" in line or "\r" in line:
            raise Refused(
                f"{name}:{number}: a NUL or a carriage return stands in the line; expected is a"
                " text with one choice a line"
            )
        cells = line.split(",")
        if len(cells) > MOST_COLUMNS or (
            len(line) > LONGEST_FIELD and max(map(len, cells)) > LONGEST_FIELD
        ):
            raise Refused(
                f"{name}:{number}: a column is longer than {LONGEST_FIELD} letters, or there are"
                f" more than {MOST_COLUMNS} of them"
            )
        yield number, cells if '"' not in line else quoted_cells(line, f"{name}:{number}")


def quoted_cells(line, where):
    """The cells of a line with quotes in it."""
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise Refused(f"{where}: {shown(error, 80)}; expected are cells between commas") from None


def parse_whole(text, least, most, where, name):
    """A cell that holds a whole number in plain digits."""
    text = text.strip()
    if not WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise Refused(
            f"{where}: {name} is {shown(text, 60) or 'empty'}; allowed are whole numbers from"
            f" {least} to {most}"
        )
    return int(text)


def parse_number(text, where):
    """A weight."""
    text = text.strip()
    if not NUMBER.fullmatch(text) or not abs(float(text)) <= LARGEST_NUMBER:
        raise Refused(
            f"{where}: weight is {shown(text, 60) or 'empty'}; allowed are numbers from"
            f" {-LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}"
        )
    return float(text)


def columns_of(first, where):
    """(name -> position, whether the first line names them); a first line of numbers is data:
    token, expert[, weight[, layer]]."""
    names = [cell.strip().lower() for cell in first]
    if names and all(NUMBER.fullmatch(cell) for cell in names):
        if not 2 <= len(names) <= 5:
            raise Refused(
                f"{where}: {len(names)} columns without names; expected are"
                " token,expert[,weight[,layer[,step]]]"
            )
        return dict(zip(COLUMNS, range(len(names)))), False
    places = {}
    for meaning, known in COLUMNS.items():
        found = [place for place, name in enumerate(names) if name in known]
        if len(found) > 1:
            raise Refused(
                f"{where}: columns {few(first[place] for place in found)} both say the {meaning};"
                " expected is one of them"
            )
        if found:
            places[meaning] = found[0]
    if not {"token", "expert"} <= set(places):
        raise Refused(
            f"{where}: the columns are {few(names, 12) or 'none'}; expected are token, expert and,"
            " where there are any, weight, layer and step"
        )
    return places, True


def choices(path, intake, trace):
    """(place, layer, (step, token), expert, weight or None) for each line."""
    places, width, name = None, 0, shown(path)
    for number, row in rows(path, intake):
        where = f"{name}:{number}"
        if places is None:
            places, named = columns_of(row, where)
            width = len(row)
            used = [row[place].strip() for place in places.values()] if named else list(places)
            trace.saw([cell.strip() for cell in row] if named else used, used)
            if named:
                continue
        if len(row) != width:
            raise Refused(
                f"{where}: {shown(','.join(row), 80)}: expected are {width} columns, as in the"
                " first line"
            )
        token = parse_whole(row[places["token"]], 0, MOST_TOKENS - 1, where, "token")
        expert = parse_whole(row[places["expert"]], 0, MOST_EXPERTS - 1, where, "expert")
        layer, step = (
            parse_whole(row[places[name]], 0, MOST_STEPS, where, name) if name in places else 0
            for name in ("layer", "step")
        )
        weight = parse_number(row[places["weight"]], where) if "weight" in places else None
        yield where, layer, (step, token), expert, weight
    if places is None:
        columns_of([], f"{shown(path)}:1")


def read_file(path, intake, trace, layers, base):
    """Adds one file's choices behind the base[step] tokens of a step that are there; returns
    (number of its tokens by step, number of its choices)."""
    tokens, count = {}, 0
    for where, layer, (step, token), expert, weight in choices(path, intake, trace):
        place = step, base.get(step, 0) + token
        chosen = layers.setdefault(layer, {}).setdefault(place, {})
        if expert in chosen:
            raise Refused(f"{where}: token {token} has expert {expert} twice; allowed is once")
        chosen[expert] = weight
        tokens[step] = max(tokens.get(step, 0), token + 1)
        count += 1
    return tokens, count


def add_layer(trace, name, tokens, top_k, places):
    """One layer's tokens at their places (step, token); with weights the largest first, of equal ones the lower expert."""
    here = trace.layers[str(name)] = Layer(top_k)
    weighted = all(weight is not None for chosen in tokens.values() for weight in chosen.values())
    for place in places:
        chosen = list(tokens.get(place, {}).items())
        if weighted:
            chosen.sort(key=lambda choice: (-choice[1], choice[0]))
        here.add(
            [expert for expert, _ in chosen], [weight for _, weight in chosen] if weighted else None
        )


def read(paths, intake, _options):
    """Files one behind the other: the tokens of each, and of each step, are counted from 0."""
    layers, base, trace = {}, {}, Trace(name_of(paths[0]))
    for path in paths:
        tokens, count = read_file(path, intake, trace, layers, base)
        trace.notes.append(f"{name_of(path)}: {count} choices of {sum(tokens.values())} tokens")
        for step, size in tokens.items():
            base[step] = base.get(step, 0) + size
    trace.step_tokens, total = [base[step] for step in sorted(base)], sum(base.values())
    top_k = max(
        (len(chosen) for tokens in layers.values() for chosen in tokens.values()), default=1
    )
    intake.room(
        len(layers) * total * top_k,
        f"{trace.source}: {len(layers)} layers of {total} tokens with {top_k} experts each",
    )
    places = [(step, token) for step in sorted(base) for token in range(base[step])]
    for name in sorted(layers):
        add_layer(trace, name, layers[name], top_k, places)
    seen = set().union(*layers.values()) if layers else set()
    if total > len(seen):
        trace.notes.append(
            f"{total - len(seen)} tokens have no line: they are kept, without an expert"
        )
    return trace
