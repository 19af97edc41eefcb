"""timeline.json (trace events of the last step) as what the page draws: for each rank its spans
that have nothing inside them.
"""
from run_lib.fields import Found, Wrong
from run_lib.contents import MOST_DEVICES, SPAN, THREAD

WITH_PARTS = ("step", "backward")  # and the layers: what is inside them is drawn instead
MOST_RANKS = 128
MOST_KINDS = 100


def read(found, problems):
    """{"spans", "names": of threads}, or None; what is wrong becomes one of the problems. Spans of
    one thread are in the order in which they begin.
    """
    if found is None:
        return None
    try:
        events = found.get("traceEvents") if isinstance(found, dict) else None
        if not isinstance(events, list):
            raise Wrong("it has no list traceEvents")
        spans, names = [], {}
        for index, event in enumerate(events):
            take(event, index, spans, names)
        if not spans or any(span["tid"] not in names for span in spans):
            raise Wrong("spans without times or threads")
        if len({span["name"] for span in spans if is_part(span)}) > MOST_KINDS:
            raise Wrong(f"its spans have more than {MOST_KINDS} names")
        return {"spans": spans, "names": names}
    except Wrong as error:
        problems.append(f"timeline.json is damaged ({error}).")
        return None


def take(event, index, spans, names):
    """Adds one event to the spans or to the names of threads; other kinds of events are passed
    over.
    """
    found = Found("timeline.json", strict=True)
    found.path = ["traceEvents", index]
    if not isinstance(event, dict):
        found.wrong(event, "an object")
    if event.get("ph") == "X":
        spans.append(SPAN(event, found))
    elif event.get("name") == "thread_name":
        thread = THREAD(event, found)
        names[thread["tid"]] = thread["args"]["name"]
        if len(names) > MOST_DEVICES:
            raise Wrong(f"it has more than {MOST_DEVICES} threads")


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
        moved = [args.get(name) for name in ("rows_sent", "rows_received")]
        if "selections" in args:
            moved = [None, args.get("rows"), args["selections"]]
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
        "step": whole[0]["args"].get("step") if whole else None,
        "all": len(threads),
        "ranks": [timeline["names"][thread] for thread in shown],
        "kinds": list(kinds),
        "spans": spans,
    }
