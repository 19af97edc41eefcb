"""ctest: labels=long timeout=300
64 ranks, one device each, on however few cores there are: it ends, its self-checks pass, and the
report is that of 64 devices on 4 ranks.
"""
from _moesim import QUICKSTART, check, moesim, same_bytes, sets, summary, verdict

SETTINGS = sets(
    {
        "cluster.devices": 64,
        "cluster.devices_per_node": 8,
        "run.steps": 2,
        "data.tokens_per_device": 16,
        "output.tensors": "yes",
        "output.routing": "yes",
    }
)

done = {ranks: moesim(ranks, QUICKSTART, *SETTINGS, "--out", f"np{ranks}") for ranks in (64, 4)}
for ranks, one in done.items():
    check(one.code == 0, f"np {ranks}: status {one.code}: {one.err}")
    check(
        "passed" in one.out and len(one.out.splitlines()) < 300,
        f"np {ranks}: {len(one.out.splitlines())} lines",
    )
    print(f"np {ranks}: {one.seconds:.1f} s")
if all(one.code == 0 for one in done.values()):
    alone, folded = summary("np64"), summary("np4")
    check(all(passed is not False for passed in alone["checks"].values()), "a self-check failed")
    check(
        alone["layers"] == folded["layers"] and alone["volume"] == folded["volume"],
        "64 ranks and 4 ranks report other figures",
    )
    for name in ("y.npy", "topk_idx.npy", "topk_weight.npy", "comm_matrix.npy", "expert_load.npy"):
        check(same_bytes(f"np64/{name}", f"np4/{name}"), f"{name} differs")
verdict()
