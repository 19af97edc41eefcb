#!/bin/bash
# scripts/run: which mpirun line it makes of its arguments, from any folder, with spaces in paths,
# and that the exit status comes through; and moesim --ranks, which it asks for the number of ranks.
# A copy of the scripts stands in a scratch tree with the built program, which counts as up to date;
# mpirun is a stand-in that prints its arguments.
set -u
unset OMPI_MCA_mca_base_param_files
source=${MOESIM_SOURCE_DIR:-$(cd "$(dirname "$0")/../.." && pwd)}
program=$(realpath "${MOESIM_BUILD_DIR:-$source/build}/moesim")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tree="$scratch/a tree"
mkdir -p "$tree"/{build,configs,src,cmake,bin} "$scratch/else where"
cp -r "$source/scripts" "$tree/"
(cd "$source" && cp --parents src/*/*.def "$tree/") # the lists that scripts/names.py reads
touch -d '-1 hour' "$tree"/src/*/*.def
touch "$tree/CMakeLists.txt"
ln -s "$program" "$tree/build/moesim"
cat > "$tree/bin/mpirun" << 'END'
#!/bin/sh
if [ -n "$FAKE_PID" ]; then
    [ -z "$FAKE_DEAF" ] || trap '' TERM HUP
    echo $$ > "$FAKE_PID"
    [ -z "$FAKE_DEAF" ] || while :; do sleep 1; done
    exec sleep 60
fi
for a; do printf "[%s]" "$a"; done
echo
[ -n "$OMPI_MCA_mca_base_param_files" ] || exit 99
exit ${FAKE_STATUS:-0}
END
printf '#!/bin/sh\necho "cmake must not run" >&2\nexit 98\n' > "$tree/bin/cmake"
chmod +x "$tree"/bin/*
touch "$tree/build/.built"
PATH="$tree/bin:$PATH"
printf '[cluster]\ndevices = 0\n' > "$tree/configs/quickstart.ini"
printf '[run]\nsteps = 3 \n[cluster] ; here\n devices=20 ;twenty\n[data]\nskew = 1\n' \
    > "$scratch/else where/twen ty.ini"
printf '[cluster]\r\ndevices = 12\r\n' > "$scratch/twelve.ini"
printf '[cluster]\ndevices = 7 # seven\n' > "$scratch/seven.ini"
printf '[cluster]\ndevices = many\n' > "$scratch/many.ini"
many='cluster.devices = many: allowed is a whole number from 0 to 65536'
failures=0 checks=0

fail() {
    echo "$*"
    failures=$((failures + 1))
}

# expect FOLDER "[words][of][mpirun]" arguments...   Compares the last line. The scratch folder is
# written as @, the program in the tree there as @moesim.
expect() {
    local folder=$1 wanted=$2 got
    shift 2
    got=$(cd "$folder" && "$tree/scripts/run" "$@" 2>&1 | tail -n 1)
    got=${got//$scratch/@}
    got=${got//@\/a tree\/build\//@}
    checks=$((checks + 1))
    [ "$got" = "$wanted" ] || fail "scripts/run $* in $folder: wanted $wanted, got $got"
}
status() {
    local wanted=$1 got=0
    shift
    (cd "$scratch" && "$tree/scripts/run" "$@" > /dev/null 2>&1) || got=$?
    checks=$((checks + 1))
    [ "$got" = "$wanted" ] || fail "scripts/run $*: wanted status $wanted, got $got"
}

# ranks WANTED arguments...   Compares all that moesim --ranks prints.
ranks() {
    local wanted=$1 got
    shift
    got=$(cd "$scratch" && "$program" --ranks "$@" 2>&1)
    checks=$((checks + 1))
    [ "$got" = "$wanted" ] || fail "moesim --ranks $*: wanted $wanted, got $got"
}

# the largest divisor of the devices up to the cores of a machine that hwloc describes
export HWLOC_SYNTHETIC='package:1 core:8 pu:2'
ranks 8 "$tree/configs/quickstart.ini"
ranks 6 twelve.ini
ranks 7 seven.ini
ranks 5 "else where/twen ty.ini"
ranks 8 --set cluster.devices=64 seven.ini
ranks 1 seven.ini --set cluster.devices=11
ranks 8 --set cluster.devices=0 seven.ini
HWLOC_SYNTHETIC='package:2 core:12 pu:1' ranks 16 --set cluster.devices=64 seven.ini
HWLOC_SYNTHETIC='package:2 core:12 pu:1' ranks 12 twelve.ini
HWLOC_SYNTHETIC='package:1 core:2 pu:1' ranks 2 twelve.ini
HWLOC_SYNTHETIC='package:1 core:2 pu:1' ranks 1 seven.ini
HWLOC_SYNTHETIC='package:1 core:2 pu:1' ranks 8 "$tree/configs/quickstart.ini"
ranks 6 --check --quiet --out x twelve.ini
ranks 8 --verify
ranks "moesim: many.ini:2: $many" many.ini
ranks "moesim: --set: $many" twelve.ini --set cluster.devices=many
ranks 'moesim: no configuration is given: mpirun -np D moesim CONFIG.ini (moesim --help)'

expect "$tree" '[-np][8][build/moesim][configs/quickstart.ini]'
expect / '[-np][8][@moesim][@/a tree/configs/quickstart.ini]'
expect "$scratch/else where" '[-np][5][@moesim][twen ty.ini]' "twen ty.ini"
expect "$scratch" '[-np][6][@moesim][twelve.ini]' twelve.ini
expect "$scratch" '[-np][7][@moesim][seven.ini]' seven.ini
expect "$scratch" "moesim: many.ini:2: $many" many.ini
expect "$scratch" '[-np][2][@moesim][many.ini]' -np 2 many.ini
expect "$scratch" 'moesim: missing.ini cannot be read: No such file or directory' missing.ini
expect "$scratch" 'moesim: unknown option --chek: moesim --help lists them' twelve.ini --chek
expect "$scratch" '[-np][3][@moesim][twelve.ini]' -np 3 twelve.ini
expect "$scratch" '[-np][3][@moesim][--check][twelve.ini]' --check twelve.ini -np 3
expect "$scratch" '[-np][4][@moesim][--set][cluster.devices=4][--out][o ut][twelve.ini]' \
    --set cluster.devices=4 twelve.ini --out "o ut"
expect "$scratch" '[-np][5][@moesim][--set=cluster.devices=5][twelve.ini]' \
    --set=cluster.devices=5 twelve.ini
expect "$scratch" '[-np][2][@moesim][--set][run.steps=2][twelve.ini]' \
    twelve.ini --set run.steps=2 -n 2
expect "$scratch" '[-np][1][@moesim][--keys]' --keys
expect "$scratch" '[-np][1][@moesim][--version]' --version
expect "$scratch" '[-np][2][@moesim][--verify]' --verify -np 2
expect "$scratch" '[-np][8][@moesim][--verify]' --verify
expect "$scratch" '[-np][1][@moesim][--ranks][twelve.ini]' --ranks twelve.ini
expect "$scratch" '[-np][6][@moesim][--explain][17][--explain-step][twelve.ini]' \
    --explain 17 --explain-step twelve.ini
expect "$scratch" '[-np][6][@moesim][--explain-step][--explain=17][twelve.ini]' \
    --explain-step twelve.ini --explain=17
mkdir -p "$scratch/old run" && cp "$scratch/twelve.ini" "$scratch/old run/config.ini"
expect "$scratch" '[-np][6][@moesim][--resume][old run]' --resume "old run"
expect "$scratch" '[-np][6][@moesim][--resume=old run]' "--resume=old run"
expect "$scratch" '[-np][8][@moesim][--resume][no run]' --resume "no run"
status 2 many.ini
status 2 -np 0 twelve.ini
status 2 -np x
status 2 twelve.ini -np
status 2 twelve.ini seven.ini
FAKE_STATUS=3
export FAKE_STATUS
status 3 twelve.ini
unset FAKE_STATUS
# what would keep mpirun from working, and a standard output that takes nothing, get one sentence
sentence() {
    local wanted=$1 got=0
    shift
    "$@" 2> "$scratch/said" || got=$?
    checks=$((checks + 1))
    if [ $got != 1 ] || [ "$(wc -l < "$scratch/said")" != 1 ] ||
        ! grep -q "^scripts/run: .*$wanted" "$scratch/said"; then
        fail "$*: wanted $wanted, got status $got, $(cat "$scratch/said")"
    fi
}
run_here() { "$tree/scripts/run" "$scratch/twelve.ini"; }
limited() { (ulimit -f "$1" && run_here > /dev/null); }
onto_full() { run_here > /dev/full; }
onto_closed() { run_here >&-; }
sentence 'ulimit -f' limited 16
sentence 'ulimit -f' limited 16383
sentence 'standard output' onto_full
sentence 'standard output' onto_closed
# ended by a signal, it ends what it runs, also what does not listen; and it needs no standard input
ended_by() {
    local signal=$1 expected=$2 deaf=${3:-} got=0
    rm -f "$scratch/pid"
    FAKE_DEAF=$deaf FAKE_PID=$scratch/pid "$tree/scripts/run" "$scratch/twelve.ini" \
        > /dev/null 2>&1 <&- &
    script=$!
    for _ in $(seq 200); do [ -s "$scratch/pid" ] && break; sleep 0.05; done
    kill "-$signal" $script
    { wait $script || got=$?; } 2> /dev/null
    for _ in $(seq 40); do kill -0 "$(cat "$scratch/pid")" 2> /dev/null || break; sleep 0.05; done
    checks=$((checks + 1))
    if [ $got != "$expected" ] || kill -0 "$(cat "$scratch/pid")" 2> /dev/null; then
        fail "scripts/run ended by SIG$signal $deaf: status $got, or what it ran is still there"
    fi
}
ended_by TERM 143
ended_by HUP 129
ended_by HUP 129 deaf
if setpriv --pdeathsig TERM true 2> /dev/null; then ended_by KILL 137; fi
# with a newer source it has to build, and a build that fails is a failure
touch -d '+1 hour' "$tree/src/new.c"
status 1 twelve.ini

# sourced by hand, from bash and from plain sh
for shell in bash sh; do
    files=$(cd "$tree/src" && $shell -c '. ../scripts/env && echo "$OMPI_MCA_mca_base_param_files"')
    checks=$((checks + 1))
    case $files in
    *"$tree/scripts/openmpi.conf"*) ;;
    *) fail "$shell: scripts/env gave '$files'" ;;
    esac
done

echo "$checks checks, $failures failed"
[ $failures = 0 ]
