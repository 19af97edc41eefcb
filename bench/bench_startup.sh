#!/bin/bash
# bench_startup.sh NP: seconds from mpirun to the prompt: moesim --version and a run of one tiny step, against a bare MPI program with the same settings of
# Open MPI (as moesim sets them: shared memory only), in turns.   bench: np=2,8
# The aim is a difference: at most 0.2 s more than bare.
set -eu
np=$1 repeats=${MOESIM_BENCH_STARTS:-9}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tiny=(--quiet --force --out "$work/out" --set run.steps=1 --set model.hidden_size=64 --set model.moe_intermediate_size=32 --set model.num_experts=16
      --set router.top_k=2 --set router.topk_group=2 --set data.tokens_per_device=64 "$MOESIM_SOURCE_DIR/configs/quickstart.ini")

# timed NAME COMMAND...: appends the microseconds of one run to $work/NAME
timed() {
    local name=$1 start=${EPOCHREALTIME/./}
    shift
    $MPIRUN "$np" "$@" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    echo $((${EPOCHREALTIME/./} - start)) >> "$work/$name"
}
bare() { OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader timed bare "$MOESIM_BENCH_DIR/bare_mpi"; }
for ((i = 0; i <= repeats; i++)); do
    [ "$i" = 1 ] && rm -f "$work/bare" "$work/version" "$work/step"   # the first round warms up
    bare
    timed version "$MOESIM" --version
    timed step "$MOESIM" "${tiny[@]}"
done

at() { sort -n "$work/$1" | awk -v share="$2" '{ x[NR] = $1 } END { print x[int(share * (NR - 1) + 1.5)] }'; }
for name in version step; do
    what="moesim --version"
    [ $name = step ] && what="one tiny step, results written"
    paste "$work/$name" "$work/bare" | awk '{ print $1 - $2 }' > "$work/more"
    awk -v what="$what" -v a="$(at $name 0.5)" -v b="$(at bare 0.5)" -v more="$(at more 0.5)" -v low="$(at more 0.25)" -v high="$(at more 0.75)" \
        'BEGIN { printf "%s: seconds, and more than bare\t%.3f\t%.3f\ts\t%+.3f\t%.2f-%.2f\t0.2\n", what, a / 1e6, b / 1e6, more / 1e6, low / 1e6, high / 1e6 }'
done
