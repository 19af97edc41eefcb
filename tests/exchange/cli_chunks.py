"""ctest: timeout=300
The exchange in chunks (exchange.chunks): for each number of chunks the same results, reports and
trained parameters at np 1 to 8, folded or not, with threads and in both modes of one hop, forward
and in training; the rows and bytes of one chunk, and all of its rows in the chunks of the
timeline; the losses of one chunk within a bound; shares of hidden time between 0 and 1 that add up.
What chunks do not go with is refused in a sentence.
"""
import json
import os

from _moesim import check, config, load, metrics, moesim, run, same_bytes, summary, verdict
from _same import arrays, compare

BASE = {
    "run.steps": 2,
    "run.threads": 1,
    "model.num_layers": 2,
    "model.hidden_size": 40,
    "model.num_experts": 24,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 12,
    "router.top_k": 3,
    "balance.alpha_expert": 0.003,
    "cluster.devices": 24,
    "cluster.devices_per_node": 4,
    "data.tokens_per_device": 15,
}
WAYS = {
    "forward": {"output.tensors": "yes", "exchange.payload": "fp8"},
    "train": {"run.mode": "train", "train.save_final": "yes", "train.accumulate": 2},
    "drop": {
        "capacity.policy": "expert",
        "capacity.overflow": "next_choice",
        "placement.policy": "lplb",
        "placement.redundant_experts": 24,
        "exchange.combine_payload": "bf16",
    },
}
SPANS = ("dispatch", "expert", "combine", "dispatch dy", "expert backward", "combine dx")
FLIGHTS = (
    "dispatch in flight",
    "combine in flight",
    "dispatch dy in flight",
    "combine dx in flight",
)


def events(folder):
    with open(os.path.join(folder, "timeline.json"), encoding="utf-8") as file:
        return [e for e in json.load(file)["traceEvents"] if e["ph"] == "X"]


def moved(folder, ranks, chunks):
    """{(rank, name, layer): {argument: its sum over chunks}} and the numbers of chunks."""
    total, seen = {}, {}
    for event in events(folder):
        if event["name"] not in (*SPANS, *FLIGHTS):
            continue
        threads = 1 if chunks == 1 else 3
        key = (event["tid"] - 1) // threads, event["name"], event["args"]["layer"]
        check(key[0] < ranks, f"{folder}: thread {event['tid']}")
        args = {k: v for k, v in event["args"].items() if k not in ("layer", "chunk")}
        seen.setdefault(key, []).append(event["args"].get("chunk", 0))
        for name, value in args.items():
            total.setdefault(key, {}).setdefault(name, 0)
            total[key][name] += value
    return total, seen


def check_timeline(label, whole, cut, ranks, chunks):
    """Rows of all chunks are those of one; those in flight are the ones that leave their rank."""
    one, _ = moved(whole, ranks, 1)
    many, seen = moved(cut, ranks, chunks)
    for key, rows in one.items():
        check(many.get(key) == rows, f"{label}: {key}: {many.get(key)}, expected {rows}")
        rank, name, layer = key
        times = len(seen[key]) // chunks
        check(seen[key] == list(range(chunks)) * times, f"{label}: {key}: chunks {seen[key]}")
        flight = many.get((rank, f"{name} in flight", layer))
        if name.startswith(("dispatch", "combine")) and ranks > 1:
            apart = {k: rows[k] - rows["rows_own"] for k in ("rows_sent", "rows_received")}
            check(flight == apart, f"{label}: {key}: {flight} in flight, {apart} leave the rank")
        else:
            check(flight is None, f"{label}: {key} is in flight")


def check_overlap(label, folder, ranks):
    overlap = summary(folder)["time"]["overlap"]
    check(len(overlap["ranks"]) == ranks, f"{label}: {overlap}")
    for one in (overlap, *overlap["ranks"]):
        share, flown = one["hidden_share"], one["in_flight"]
        if ranks == 1:
            check(share is None and flown == one["waited"] == one["hidden"] == 0, f"{label}: {one}")
            continue
        check(0 <= share <= 1 and flown > 0, f"{label}: {one}")
        check(abs(one["waited"] + one["hidden"] - flown) < 1e-9 * flown, f"{label}: {one}")
        check(abs(share * flown - one["hidden"]) < 1e-9 * flown, f"{label}: {one}")
    for name in ("in_flight", "waited", "hidden"):
        total = sum(one[name] for one in overlap["ranks"])
        check(abs(total - overlap[name]) <= 1e-9 * total, f"{label}: {name} {overlap}")


def check_near_one_chunk(label, whole, cut):
    """Rows, bytes and choices of the first step are the same; y and losses nearly."""
    for key in ("volume", "counts_per_expert", "dropped", "sent_rows", "received_rows"):
        one, many = (s["layers"][0][key] for s in (summary(whole), summary(cut)))
        check(one == many, f"{label}: {key}: {one} in one chunk, {many} in several")
    loss = [metrics(f)[-1]["loss_raw"]["expert"] for f in (whole, cut)]
    check(abs(loss[0] - loss[1]) < 1e-4 * loss[0], f"{label}: losses {loss}")
    if os.path.exists(f"{whole}/y_layer0.npy"):
        one, many = (load(f"{f}/y_layer0.npy").data for f in (whole, cut))
        apart, most = max(abs(a - b) for a, b in zip(one, many)), max(map(abs, one))
        check(apart < 1e-4 * most, f"{label}: y differs by {apart} of {most}")


def check_results():
    for way, settings in WAYS.items():
        whole = {np: run(f"{way}-1-{np}", np, {**BASE, **settings}) for np in (1, 4)}
        for chunks in (2, 3, 7) if way != "drop" else (2,):
            label = f"{way}-{chunks}"
            cut = {**BASE, **settings, "exchange.chunks": chunks}
            first = run(f"{label}-np1", 1, cut)
            check_overlap(label, first, 1)
            check_near_one_chunk(label, whole[1], first)
            check_timeline(label, whole[1], first, 1, chunks)
            for ranks in {2: (2, 4), 3: (3,), 7: (8,)}[chunks]:
                again = run(f"{label}-np{ranks}", ranks, {**cut, "run.threads": 1 + ranks % 2})
                compare(first, again, f"{label} at np {ranks}", "threads")
                check_overlap(label, again, ranks)
                if ranks == 4:
                    check_timeline(label, whole[4], again, 4, chunks)
        check_mode(way, settings, first)


def check_mode(way, settings, token):
    """Rows are others, what comes of them is the same where nothing is rounded on its way back."""
    if settings.get("exchange.combine_payload"):
        return
    cut = {**BASE, **settings, "exchange.chunks": 7, "exchange.mode": "selection"}
    other = run(f"{way}-selection", 2, cut)
    for name in arrays(token):
        if not name.startswith("comm_matrix"):
            check(same_bytes(f"{token}/{name}", f"{other}/{name}"), f"{way}: {name} by mode")
    losses = [[line["loss_raw"]["expert"] for line in metrics(f)] for f in (token, other)]
    check(losses[0] == losses[1], f"{way}: losses by mode {losses}")


def check_screen():
    done = moesim(
        2,
        config("screen", {**BASE, "exchange.chunks": 3, "exchange.transport": "auto"}),
        "--out",
        "screen-out",
    )
    for text in ("in 3 chunks", "by MPI_Alltoallv, which chunks need", "were hidden behind"):
        check(text in " ".join(done.out.split()), f"the screen does not say '{text}': {done.out}")
    alone = moesim(1, config("alone", {**BASE, "exchange.chunks": 3}), "--out", "alone-out")
    check("nothing to hide" in alone.out, f"on one rank: {alone.out}")


def check_refused():
    for more, sentence in (
        ({"exchange.chunks": 16}, "the tokens of a device are 15, and chunks may be at most that"),
        ({"exchange.chunks": 0}, "allowed is a whole number from 1 to 1024"),
        (
            {"exchange.chunks": 2, "exchange.mode": "two_level"},
            "exchange.chunks = 2: it does not go with exchange.mode = two_level",
        ),
        (
            {"exchange.chunks": 2, "exchange.transport": "shared"},
            "exchange.chunks = 2: it does not go with exchange.transport = shared",
        ),
    ):
        done = moesim(2, config("refused", {**BASE, **more}), "--check")
        check(done.code == 2 and sentence in done.err, f"{more}: {done.code} {done.err}")
        check(len(done.err.strip().splitlines()) <= 2, f"{more}: {done.err}")


check_results()
check_screen()
check_refused()
verdict()
