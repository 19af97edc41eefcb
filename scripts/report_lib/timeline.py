"""timeline.json (trace events of the last step) as what the page draws: for each rank its spans
that have nothing inside them.
"""
import json

WITH_PARTS = ("step", "backward")  # and the layers: what is inside them is drawn instead
MOST_RANKS = 128


def number(value):
    return value if isinstance(value, (int, float)) and abs(value) < 1e15 else None


def read(text, problems):
    """{"spans", "names": of threads}, or None; what is wrong becomes one of the problems. Spans of
    one thread are in the order in which they begin.
    """
    if text is None:
        return None
    try:
        events = json.loads(text)["traceEvents"]
        spans = [event for event in events if event["ph"] == "X"]
        names = {
            event["tid"]: str(event["args"]["name"])
            for event in events
            if event["name"] == "thread_name"
        }
        whole = all(
            None not in (number(span["ts"]), number(span["dur"]))
            and isinstance(span["args"], dict)
            and span["tid"] in names
            for span in spans
        )
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        problems.append(f"timeline.json is damaged ({type(error).__name__}: {error}).")
        return None
    if not spans or not whole:
        problems.append("timeline.json is damaged (spans without times or threads).")
        return None
    return {"spans": spans, "names": names}


def is_part(span):
    return span["name"] not in WITH_PARTS and not span["name"].startswith("layer ")


def spread(values, most):
    """At most `most` of the values, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(place * (len(values) - 1) / max(most - 1, 1))] for place in range(most)]


def digest(timeline, room):
    """{"step", "seconds": of the step, "ranks": [its name], "all": ranks there are, "kinds":
    [name], "spans": [[index of rank, index of kind, layer or -1, begin and duration in
    microseconds, and where it moves rows: sent, received, selections]]}.
    """
    if timeline is None:
        return None
    parts = [span for span in timeline["spans"] if is_part(span)]
    threads = sorted(timeline["names"])
    shown = spread(
        threads, min(max(room.spans * len(threads) // max(len(parts), 1), 1), MOST_RANKS)
    )
    kinds, rank_of, spans = {}, {thread: index for index, thread in enumerate(shown)}, []
    for span in parts:
        if span["tid"] not in rank_of:
            continue
        args, kind = span["args"], kinds.setdefault(span["name"], len(kinds))
        moved = [number(args.get(name)) for name in ("rows_sent", "rows_received")]
        if "selections" in args:
            moved = [None, number(args.get("rows")), number(args["selections"])]
        layer = args.get("layer")
        spans.append(
            [
                rank_of[span["tid"]],
                kind,
                layer if isinstance(layer, int) else -1,
                span["ts"],
                span["dur"],
                *(moved if any(value is not None for value in moved) else []),
            ]
        )
    whole = [span for span in timeline["spans"] if span["name"] == "step"]
    return {
        "step": number(whole[0]["args"].get("step")) if whole else None,
        "all": len(threads),
        "ranks": [timeline["names"][thread] for thread in shown],
        "kinds": list(kinds),
        "spans": spans,
    }
