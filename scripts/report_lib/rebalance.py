"""New placements by load: what each did to the devices, and who moved where."""
import math

import timeline
from run_lib.record import at, number, numbers, whole
from texts import bytes_text, count_text, real_text, seconds_text

MOST_DECISIONS = 100  # of one run, on a page
MOST_MOVES = 300  # rows of the table


def decided(folder):
    """[(step, what was decided before it, its seconds)]"""
    return [
        (line["step"], line["rebalance"], at(line, "time.rebalance") or {})
        for line in folder.metrics
        if isinstance(line.get("rebalance"), dict)
    ]


def loads(found, name):
    """[layer][device]; none where a layer or a device is missing."""
    rows = [numbers(row) for row in found.get(name) or []]
    return rows if rows and rows[0] and all(len(row) == len(rows[0]) for row in rows) else []


def shape(rows):
    return (len(rows), len(rows[0])) if rows else (0, 0)


def moves_of(found):
    """[(layer, expert, from, to)]"""
    moves = found.get("moves") or []
    return [move for move in moves if isinstance(move, list) and len(move) == 4]


def digest(folder, room):
    """[{"step", "before", "after": [layer][device], "moves"}] of some decisions, the last included;
    few enough that the lists fit the page.
    """
    kept = [
        {
            "step": step,
            "before": loads(found, "device_load_before"),
            "after": loads(found, "device_load_after"),
            "moves": moves_of(found),
        }
        for step, found, _ in decided(folder)
    ]
    kept = [one for one in kept if shape(one["before"]) == shape(one["after"]) != (0, 0)]
    cells = max(
        (4 * len(one["moves"]) + 2 * math.prod(shape(one["after"])) for one in kept), default=1
    )
    return timeline.spread(kept, min(MOST_DECISIONS, max(room.cells // (4 * cells), 1)))


def table(folder):
    """A row for each decision."""

    def ratio(value):
        return real_text(number(value), 4)

    return [
        [
            step,
            count_text(whole(found.get("experts_moved"))),
            bytes_text(number(found.get("bytes"))),
            bytes_text(number(found.get("cross_node_bytes"))),
            seconds_text(number(times.get("decide"))),
            seconds_text(number(times.get("move"))),
            ratio(found.get("device_max_over_mean_before")),
            ratio(found.get("device_max_over_mean_after")),
            count_text(whole(found.get("replicas_wasted"))),
        ]
        for step, found, times in timeline.spread(decided(folder), MOST_DECISIONS)
    ]


def moves(folder):
    """(rows, how many there are in all): each expert that came from another device."""
    rows = [
        [step, expert, layer, source, target]
        for step, found, _ in decided(folder)
        for layer, expert, source, target in moves_of(found)
    ]
    total = sum(whole(found.get("experts_moved")) or 0 for _, found, _ in decided(folder))
    return rows[:MOST_MOVES], max(total, len(rows))
