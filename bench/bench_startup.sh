#!/bin/bash
# bench_startup.sh NP: seconds from mpirun to the prompt.
# bench: np=2,8
#
# moesim --version, and a run of one tiny step, stand against a bare MPI program with the settings
# of Open MPI that moesim makes (shared memory only). The three run in turns. The aim is a
# difference: at most 0.2 s more than bare.
set -eu
np=$1
repeats=${MOESIM_BENCH_STARTS:-9}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tiny=(--quiet --force --out "$work/out")
for setting in run.steps=1 model.hidden_size=64 model.moe_intermediate_size=32 \
    model.num_experts=16 router.top_k=2 router.topk_group=2 data.tokens_per_device=64; do
    tiny+=(--set "$setting")
done
tiny+=("$MOESIM_SOURCE_DIR/configs/quickstart.ini")

# timed NAME COMMAND...: appends the microseconds of one run to $work/NAME
timed() {
    local name=$1 start=${EPOCHREALTIME/./}
    shift
    if ! $MPIRUN "$np" "$@" > "$work/log" 2>&1; then
        cat "$work/log"
        exit 1
    fi
    echo $((${EPOCHREALTIME/./} - start)) >> "$work/$name"
}

for ((i = 0; i <= repeats; i++)); do
    if [ "$i" = 1 ]; then # the first round only warms up
        rm -f "$work/bare" "$work/version" "$work/step"
    fi
    OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,vader timed bare "$MOESIM_BENCH_DIR/bare_mpi"
    timed version "$MOESIM" --version
    timed step "$MOESIM" "${tiny[@]}"
done

# quantile NAME SHARE: of the numbers in $work/NAME; share 0.5 is the median
quantile() {
    sort -n "$work/$1" | awk -v share="$2" '
        { x[NR] = $1 }
        END { print x[int(share * (NR - 1) + 1.5)] }'
}

# row WHAT NAME: a line of the table
row() {
    paste "$work/$2" "$work/bare" | awk '{ print $1 - $2 }' > "$work/more"
    awk -v what="$1" -v measured="$(quantile "$2" 0.5)" -v bare="$(quantile bare 0.5)" \
        -v more="$(quantile more 0.5)" -v low="$(quantile more 0.25)" \
        -v high="$(quantile more 0.75)" 'BEGIN {
            printf "%s: seconds, and more than bare", what
            printf "\t%.3f\t%.3f\ts\t%+.3f", measured / 1e6, bare / 1e6, more / 1e6
            printf "\t%.2f-%.2f\t0.2\n", low / 1e6, high / 1e6
        }'
}

row "moesim --version" version
row "one tiny step, results written" step
