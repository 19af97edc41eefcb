#!/bin/bash
# bench_memory.sh NP: largest resident memory, less that of a bare MPI program, against weights + live activations.   bench: np=2,8
# Computed from the shapes, S = T K selections and R rows of a balanced load (bytes of one rank; all ranks together N experts once):
#   weights      gate [N,H], N / ranks experts and every shared expert of three [H,F]
#   activations  x, y [T,H], logits [T,N]; rows sent and received [R - R / ranks, H] each; outputs of the experts [S,H]; rows to return [R,H];
#                shared experts' output [T,H]
# R = T min(K, devices, M). Not counted: lists of the plan, statistics, scratch of the GEMMs, libraries beyond those of the bare program.
# `sum`: over all ranks, which an uneven load hardly moves; `fullest`: the rank with most, against the same balanced share. A small problem on many ranks is
# mostly the program itself: what a run of 8 tokens of width 16 has more than the bare program (pages of OpenBLAS and hwloc, buffers of MPI) is shown apart.
set -eu
np=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# peaks NAME COMMAND...: KiB of each rank, one a line, in $work/NAME
peaks() {
    local name=$1
    shift
    rm -rf "$work/ranks"
    mkdir "$work/ranks"
    $MPIRUN "$np" "$MOESIM_BENCH_DIR/peak" "$work/ranks" "$@" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    cat "$work/ranks/"* > "$work/$name"
}

# fixed: the sum over ranks that has nothing to do with the problem
fixed() {
    OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader peaks bare "$MOESIM_BENCH_DIR/bare_mpi"
    peaks full "$MOESIM" --quiet --force --out "$work/out" --set run.steps=1 --set run.threads=1 --set data.tokens_per_device=8 --set model.hidden_size=16 \
        --set model.moe_intermediate_size=16 --set router.topk_group="$m" "$MOESIM_SOURCE_DIR/configs/quickstart.ini"
    paste "$work/full" "$work/bare" | awk '{ full += $1; bare += $2 }
        END { printf "8 tokens of width 16: sum over ranks, and that of bare\t%.1f\t%.1f\tMiB\t-\t-\t-\n", full / 1024, bare / 1024 }'
}

# compare WHAT T H F N K M SHARED SETTINGS...: T tokens of each rank, one device on each, one thread
compare() {
    local what=$1 t=$2 h=$3 f=$4 n=$5 k=$6 m=$7 shared=$8 settings=()
    shift 8
    for setting in "$@" data.tokens_per_device="$t" model.hidden_size="$h" model.moe_intermediate_size="$f" model.num_experts="$n" router.top_k="$k" \
        router.topk_group="$m" model.num_shared_experts="$shared" run.threads=1; do
        settings+=(--set "$setting")
    done
    OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader peaks bare "$MOESIM_BENCH_DIR/bare_mpi"
    peaks full "$MOESIM" --quiet --force --out "$work/out" "${settings[@]}" "$MOESIM_SOURCE_DIR/configs/quickstart.ini"
    paste "$work/full" "$work/bare" | awk -v what="$what" -v p="$np" -v t="$t" -v h="$h" -v f="$f" -v n="$n" -v k="$k" -v m="$m" -v s="$shared" '
        { more = $1 - $2; sum += more; if (more > most) most = more }
        function row(name, kib, share) { printf "%s: %s\t%.1f\t%.1f\tMiB\t%.2f\t-\t1.3\n", what, name, kib / 1024, share / 1048576, kib * 1024 / share }
        END {
            r = t * (k < m ? k : m)
            weights = n * h + 3 * h * f * (n / p + s)
            live = 2 * t * h + t * n + 2 * (r - r / p) * h + t * k * h + r * h + (s > 0 ? t * h : 0)
            row("sum over ranks", sum, 4 * p * (weights + live))
            row("fullest rank", most, 4 * (weights + live))
        }'
}

m=$((np < 3 ? np : 3))
fixed
compare "quickstart" 512 256 128 128 6 $m 1
[ "$np" -gt 2 ] || compare "T 2048, H 1024, F 1024, N 64, K 6" 2048 1024 1024 64 6 $m 0 run.steps=2
