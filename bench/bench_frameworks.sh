#!/bin/bash
# bench_frameworks.sh NP: the steps of bench_peers.c in NumPy and PyTorch, where they are installed
# (Debian: python3-numpy, python3-torch), beside moesim's in the same run; frameworks.py says what
# they do. The Python is Debian's, since that is where these packages are.
# bench: np=1,2,4,8
set -eu
python=${MOESIM_BENCH_PYTHON:-/usr/bin/python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! $MPIRUN "$1" "$MOESIM_BENCH_DIR/peers" > "$work/peers" 2> "$work/log"; then
    cat "$work/log"
    exit 1
fi
"$python" "$MOESIM_SOURCE_DIR/bench/frameworks.py" "$1" < "$work/peers"
