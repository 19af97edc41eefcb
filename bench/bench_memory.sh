#!/bin/bash
# bench_memory.sh NP: how much memory a run needs. The largest resident memory of a run, less that
# of a bare MPI program, stands against the weights and the live activations.
# bench: np=2,8
#
# Both are computed from the shapes, in numbers of one rank (all ranks together hold the experts
# once). S = T K are the selections and R = T min(K, devices, M) the rows of a balanced load.
#   weights      gate [N,H]; N / ranks experts and every shared expert, each three of [H,F]
#   activations  x and y [T,H]; logits [T,N]; rows sent and rows received, [R - R / ranks, H] each;
#                outputs of the experts [S,H]; rows to return [R,H]; output of the shared experts
#                [T,H]
# Left out are the lists of the plan, statistics, scratch of the GEMMs, and libraries beyond those
# of the bare program.
#
# The line "sum" is over all ranks, which an uneven load hardly moves. The line "fullest" is the
# rank with most, against the same balanced share. A small problem on many ranks is mostly the
# program itself, so the first line shows apart what a run of 8 tokens of width 16 has more than
# the bare program: pages of OpenBLAS and hwloc, and buffers of MPI.
set -eu
np=$1
config=$MOESIM_SOURCE_DIR/configs/quickstart.ini
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# peaks NAME COMMAND...: KiB of each rank, one a line, in $work/NAME
peaks() {
    local name=$1
    shift
    rm -rf "$work/ranks"
    mkdir "$work/ranks"
    if ! $MPIRUN "$np" "$MOESIM_BENCH_DIR/peak" "$work/ranks" "$@" > "$work/log" 2>&1; then
        cat "$work/log"
        exit 1
    fi
    cat "$work/ranks/"* > "$work/$name"
}

# peaks_of_both SETTING...: a bare program, with Open MPI as moesim sets it, and moesim
peaks_of_both() {
    local settings=() setting
    for setting in "$@" run.threads=1; do
        settings+=(--set "$setting")
    done
    OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader peaks bare "$MOESIM_BENCH_DIR/bare_mpi"
    peaks full "$MOESIM" --quiet --force --out "$work/out" "${settings[@]}" "$config"
}

# fixed: the sum over ranks that has nothing to do with the problem
fixed() {
    peaks_of_both run.steps=1 data.tokens_per_device=8 model.hidden_size=16 \
        model.moe_intermediate_size=16 router.topk_group="$m"
    paste "$work/full" "$work/bare" | awk '
        { full += $1; bare += $2 }
        END {
            printf "8 tokens of width 16: sum over ranks, and that of bare"
            printf "\t%.1f\t%.1f\tMiB\t-\t-\t-\n", full / 1024, bare / 1024
        }'
}

# compare WHAT T H F N K M SHARED SETTING...: T tokens of each rank, one device on each, one thread
compare() {
    local what=$1 t=$2 h=$3 f=$4 n=$5 k=$6 m=$7 shared=$8
    shift 8
    peaks_of_both "$@" data.tokens_per_device="$t" model.hidden_size="$h" \
        model.moe_intermediate_size="$f" model.num_experts="$n" router.top_k="$k" \
        router.topk_group="$m" model.num_shared_experts="$shared"
    paste "$work/full" "$work/bare" | awk -v what="$what" -v p="$np" -v t="$t" -v h="$h" \
        -v f="$f" -v n="$n" -v k="$k" -v m="$m" -v s="$shared" '
        {
            more = $1 - $2
            sum += more
            if (more > most) {
                most = more
            }
        }
        function row(name, kib, share) {
            printf "%s: %s\t%.1f\t%.1f\t", what, name, kib / 1024, share / 1048576
            printf "MiB\t%.2f\t-\t1.3\n", kib * 1024 / share
        }
        END {
            r = t * (k < m ? k : m)
            weights = n * h + 3 * h * f * (n / p + s)
            live = 2 * t * h + t * n + 2 * (r - r / p) * h + t * k * h + r * h
            live += s > 0 ? t * h : 0
            row("sum over ranks", sum, 4 * p * (weights + live))
            row("fullest rank", most, 4 * (weights + live))
        }'
}

m=$((np < 3 ? np : 3))
fixed
compare "quickstart" 512 256 128 128 6 $m 1
if [ "$np" -le 2 ]; then
    compare "T 2048, H 1024, F 1024, N 64, K 6" 2048 1024 1024 64 6 $m 0 run.steps=2
fi
