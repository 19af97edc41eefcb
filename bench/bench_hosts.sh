#!/bin/bash
# bench_hosts.sh NP: the modes of the exchange between two hosts whose link is ten times slower than
# what is inside of them, against the time that the bytes between them need on that link.
# bench: np=2,4
#
# The hosts are network namespaces (tests/support/hosts). First the ranks exchange rows on one host:
# a tenth of what each rank moves in a second there is what tbf lets through for each rank of a
# host. Then the modes run in turns, ten rounds of a few steps; measured is the median of the
# rounds, each of which is the median of its steps' dispatch + combine. "bare" divides the bytes
# that cross by the rate, and adds those inside of a host divided by ten times the rate. The last
# lines compare modes: the ratio of their times with that of their bytes. Where a host has several
# ranks, the modes run with shared memory inside of it, too.
set -eu
np=$1
hosts=$MOESIM_SOURCE_DIR/tests/support/hosts
rounds=${MOESIM_BENCH_ROUNDS:-10}
work=${MOESIM_BENCH_WORK:-$(mktemp -d)}

sets=()
for setting in run.steps=4 model.hidden_size=1024 model.moe_intermediate_size=16 \
    model.num_experts=64 model.num_shared_experts=0 router.top_k=8 router.group_limit=none \
    router.topk_group=0 cluster.devices=8 data.tokens_per_device=256 data.skew=0; do
    sets+=(--set "$setting")
done

# run MODE[+shared] FOLDER mpirun's options...
run() {
    local mode=${1%+*} transport=alltoallv out=$2
    case $1 in *+shared) transport=shared ;; esac
    shift 2
    if ! $MPIRUN "$np" "$@" "$MOESIM" --quiet --force --out "$out" "${sets[@]}" \
        --set "exchange.mode=$mode" --set "exchange.transport=$transport" \
        "$MOESIM_SOURCE_DIR/configs/quickstart.ini" > "$work/log" 2>&1
    then
        cat "$work/log"
        exit 1
    fi
}

# figures FOLDER: the median seconds of dispatch + combine, and the bytes of a step by level
figures() {
    python3 - "$1" << 'END'
import json, statistics, sys
folder = sys.argv[1]
steps = [json.loads(line)["time"]["phases"] for line in open(f"{folder}/metrics.jsonl")]
seconds = statistics.median(step["dispatch"] + step["combine"] for step in steps[1:])
volume = json.load(open(f"{folder}/summary.json"))["volume"]
def total(level):
    levels = [volume[way]["by_level"][level] for way in ("dispatch", "combine")]
    return sum(one["bytes"] + one["metadata_bytes"] for one in levels)
print(seconds, total("same_node"), total("across_nodes"))
END
}

if [ -z "${MOESIM_HOSTFILE:-}" ]; then
    trap 'rm -rf "$work"' EXIT
    "$hosts" 2 true || exit 0 # it has said why
    for ((i = 0; i < 3; i++)); do
        run token "$work/inside"
        figures "$work/inside"
    done | sort -g > "$work/inside.txt"
    # bytes a second of a host over the link, as bits
    rate=$(awk -v np="$np" 'NR == 2 { printf "%d", $2 / $1 / np / 10 * np / 2 * 8 }' \
        "$work/inside.txt")
    MOESIM_BENCH_WORK=$work MOESIM_BENCH_RATE=$rate \
        "$hosts" 2 --rate "${rate}bit" bash "$0" "$np"
    exit
fi

modes="selection token two_level"
[ "$np" = 2 ] || modes="$modes token+shared two_level+shared"
for ((i = 0; i < rounds; i++)); do
    for mode in $modes; do
        run "$mode" "$work/$mode" --hostfile "$MOESIM_HOSTFILE" \
            --map-by "ppr:$((np / 2)):node"
        figures "$work/$mode" >> "$work/$mode.txt"
    done
done
python3 - "$work" "$MOESIM_BENCH_RATE" "$np" $modes << 'END'
import statistics, sys
work, rate, np, modes = sys.argv[1], int(sys.argv[2]) / 8, int(sys.argv[3]), sys.argv[4:]
found = {}
print(f"between the hosts {rate / 1e6:.0f} MB/s each way, a tenth of what ranks move inside")
for mode in modes:
    rows = [list(map(float, line.split())) for line in open(f"{work}/{mode}.txt")]
    times, inside, across = sorted(row[0] for row in rows), *rows[0][1:]
    bare = across / 2 / rate + inside / 2 / (10 * rate)
    ratios = [bare / seconds for seconds in times]
    low, _, high = statistics.quantiles(ratios, n=4)
    found[mode] = statistics.median(times), across, bare
    # all ranks of a host exchange with all of the other, but with two_level each with one
    message = across / 4 / (np // 2 if mode.startswith("two_level") else (np // 2) ** 2)
    what = f"{mode}, {across / 2**20:.1f} MiB across, messages {message / 2**20:.1f} MiB"
    print(what, f"{found[mode][0] * 1e3:.1f}", f"{bare * 1e3:.1f}", "ms",
          f"{statistics.median(ratios):.2f}", f"{low:.2f}-{high:.2f}", "-", sep="\t")
pairs = ("selection", "token"), ("token", "two_level"), ("selection", "two_level")
if "token+shared" in modes:
    pairs += (("token+shared", "two_level+shared"),)
for slow, fast in pairs:
    by_time, *by_bytes = (found[slow][i] / found[fast][i] for i in range(3))
    for what, share in zip(("bytes across", "bytes of both links"), by_bytes):
        print(f"{slow} / {fast}: by time, by {what}", f"{by_time:.2f}", f"{share:.2f}", "x",
              f"{by_time / share:.2f}", "-", "0.85", sep="\t")
END
