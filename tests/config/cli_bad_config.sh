#!/usr/bin/env bash
# ctest: timeout=180
# Every bad configuration ends all ranks with exit status 2 in seconds and exactly one sentence on
# standard error, from rank 0. Environment: MOESIM (program), MPIRUN ("mpirun ... -np"),
# MOESIM_SOURCE_DIR (for configs/).
set -u
source_dir=${MOESIM_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
read -ra mpirun <<<"${MPIRUN:-mpirun --oversubscribe -np}"
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
cd "$folder" || exit 1
failures=0 cases=0

fail() {
    failures=$((failures + 1))
    echo "FAILED: $*" >&2
}

# run NP ARGUMENTS: leaves the status in $status, what the ranks themselves say on standard error in
# ./stderr, and the time in $ms.
run() {
    local np=$1 start
    shift
    : >stderr
    start=$(date +%s%N)
    "${mpirun[@]}" "$np" sh -c 'exec "$0" "$@" 2>>stderr' "$MOESIM" "$@" \
        >stdout 2>mpirun.log </dev/null
    status=$?
    ms=$((($(date +%s%N) - start) / 1000000))
}

# refused NP TEXT ARGUMENTS: demands status 2, one sentence with TEXT in it, and nothing that ran.
refused() {
    local np=$1 text=$2
    shift 2
    run "$np" "$@"
    cases=$((cases + 1))
    [ "$status" = 2 ] || fail "$* at np $np: status $status, expected 2: $(cat stderr)"
    [ "$(wc -l <stderr)" = 1 ] || fail "$* at np $np: not one line on standard error: $(cat stderr)"
    grep -qF -- "$text" stderr || fail "$* at np $np: said '$(cat stderr)', expected '$text'"
    [ "$ms" -lt 8000 ] || fail "$* at np $np: took $ms ms"
    [ -z "$(find runs out -name 'summary.json' 2>/dev/null)" ] ||
        fail "$* at np $np: left results behind"
}

# file NAME LINES...
file() {
    local name=$1
    shift
    printf '%s\n' "$@" >"$name"
}

quick=$source_dir/configs/quickstart.ini
[ -r "$quick" ] || fail "$quick is missing"

# A good configuration passes, so that the rest is not refused for another reason.
run 2 --check "$quick"
[ "$status" != 0 ] || fail "quickstart at np 2: 3 of 2 groups were accepted"
run 4 --check "$quick"
[ "$status" = 0 ] || fail "quickstart --check at np 4: status $status: $(cat stderr)"
grep -q '^num_groups = 4$' stdout ||
    fail "quickstart --check at np 4 does not print num_groups = 4"
[ -s stderr ] && fail "quickstart --check at np 4 says on standard error: $(cat stderr)"
cp stdout echo.ini
run 4 --check echo.ini
[ "$status" = 0 ] || fail "the echo of --check is refused: $(cat stderr)"
diff <(grep -v '^;' echo.ini) <(grep -v '^;' stdout) >/dev/null ||
    fail "the echo of --check is not a fixed point"

# Files.
refused 2 "missing.ini" missing.ini
file section.ini '[run]' 'steps = 1' '[ruoter]' 'top_k = 2'
refused 2 "section.ini:3: [ruoter]: there is no such section, did you mean [router]?" section.ini
file key.ini '; comment' '[router]' '  topk = 2'
refused 2 "key.ini:3: router.topk: there is no such key, did you mean router.top_k?" key.ini
file value.ini '[router]' 'score_func = sofmax'
refused 2 "value.ini:2: router.score_func = sofmax: allowed is one of \
softmax, sigmoid, sqrtsoftplus, softmax_topk (nearest is softmax)" value.ini
file range.ini '[model]' 'num_experts = 0'
refused 2 "range.ini:2: model.num_experts = 0: allowed is a whole number from 1 to 1048576" \
    range.ini
file number.ini '[data]' 'skew = 1x'
refused 2 "number.ini:2: data.skew = 1x: allowed is a number from 0 to 100" number.ini
file nan.ini '[balance]' 'alpha_expert = nan'
refused 2 "nan.ini:2: balance.alpha_expert = nan" nan.ini
file twice.ini '[run]' 'steps = 1' 'steps = 2'
refused 2 "twice.ini:3: run.steps is given twice, first in line 2" twice.ini
file outside.ini 'steps = 1'
refused 2 "outside.ini:1: steps = 1: a key has to stand in a [section]" outside.ini
file noise.ini '[run]' 'this is not a key'
refused 2 "noise.ini:2: this is not a key: this is neither a [section], nor key = value, \
nor a comment" noise.ini
printf '[run]\nste\0ps = 1\n' >nul.ini
refused 2 "nul.ini:2: the line contains a NUL byte" nul.ini
{ echo '[data]' && printf 'path = %02000d\n' 0; } >long.ini
refused 2 "long.ini:2: the line is too long" long.ini
printf '\001\377\376{"a": 1}\n' >binary.ini
refused 2 "binary.ini:1: " binary.ini
file preset.ini '[router]' 'preset = deepseek_v22'
refused 2 "(nearest is deepseek_v2)" preset.ini

# Combinations, on top of the quickstart.
refused 4 "--set: router.top_k = 200: router.top_k may be at most model.num_experts \
(here 200 and 128)" --set router.top_k=200 "$quick"
refused 3 "model.num_experts has to be a multiple of cluster.devices (here 128 and 3)" "$quick"
refused 4 "--set: cluster.devices = 6: it has to be a multiple of the number of ranks (here 4)" \
    --set cluster.devices=6 "$quick"
refused 4 "--set: router.topk_group = 5: at most router.num_groups = 4 is allowed \
(0 = all; each device is a group)" --set router.topk_group=5 "$quick"
refused 8 "router.top_k experts have to fit in router.topk_group groups \
(here 17 in 1 of 16 experts each)" --set router.topk_group=1 --set router.top_k=17 "$quick"
refused 4 "it has to stay below 2^40" --set data.tokens_per_device=1000000000000 "$quick"
refused 4 "data.path has to name the file to read" --set data.source=logits "$quick"
refused 4 "--set: rooter.top_k" --set rooter.top_k "$quick"
refused 4 "--set: [rooter]: there is no such section, did you mean [router]?" \
    --set rooter.top_k=1 "$quick"
refused 2 "--set: cluster.devices_per_node = 3: it has to divide cluster.devices = 4" \
    --set exchange.mode=two_level --set cluster.devices=4 --set cluster.devices_per_node=3 "$quick"
# What model.load reads is one layer and its input, so that nothing else may be silently unused.
file loaded.ini '[model]' 'load = d'
refused 1 "--set: model.num_layers = 2: it does not go with model.load = d: the folder holds the \
weights of one layer" --set model.num_layers=2 loaded.ini
refused 2 "--set: run.mode = train: it does not go with model.load = d: the folder holds the input \
of one layer and no target to learn" --set run.mode=train loaded.ini
refused 1 "--set: data.source = text: it does not go with model.load = d: the folder holds the \
input, x.npy" --set data.source=text --set data.path=p loaded.ini

echo "$cases bad configurations, $failures failures"
[ "$failures" = 0 ]
