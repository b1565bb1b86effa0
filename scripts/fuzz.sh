#!/usr/bin/env bash
# Runs the fuzz bodies of tests/fuzz guided by coverage, with libFuzzer on stable Rust (clang++ or g++ builds libFuzzer).
#
#   scripts/fuzz.sh [--keep] SECONDS [TARGET…]    SECONDS for each target; all targets without names
#
# Starts from the seeds and the corpus in tests/fuzz/corpus; --keep puts what is worth it (small inputs that reach new code) back
# there. An input that fails is left in target/fuzz/TARGET/ and named; the exit status is 1 then.
set -euo pipefail
cd "$(dirname "$0")/.."
keep=
[[ ${1:-} == --keep ]] && keep=yes && shift
[[ ${1:-} =~ ^[0-9]+$ ]] || { sed -n '2,7s/^# \?//p' "$0" >&2; exit 2; }
seconds=$1
shift
root=$PWD/target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$root"

# The instrumentation that libFuzzer needs; --target keeps it off build scripts.
flags='-Cpasses=sancov-module -Ccodegen-units=1'
for pass in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$pass"
done
RUSTFLAGS=$flags cargo build --quiet --release --manifest-path tests/fuzz/guided/Cargo.toml --target-dir "$root/build" --target "$host"
guided=$root/build/$host/release/guided

# Runs the program for something other than fuzzing. What libFuzzer says when it starts is only of interest when that fails.
manage() {
    env "$@" "$guided" 2>"$root/said.$BASHPID" || { cat "$root/said.$BASHPID" >&2; exit 1; }
}

if [[ $# -eq 0 ]]; then
    names=$(manage FUZZ_LIST=1)
    mapfile -t names <<<"$names"
    set -- "${names[@]}"
fi

# Fuzzes one target in its folder, where `failed` stays unless all went well.
guide() {
    local work=$root/$1 status=0 runs
    rm -rf "$work/inputs" "$work/kept" "$work/failed" "$work/runs"
    mkdir -p "$work/inputs" "$work/kept"
    touch "$work/failed"
    export FUZZ_TARGET=$1
    manage FUZZ_UNPACK="$work/inputs"
    "$guided" -max_total_time="$seconds" -max_len=1024 -timeout=10 -print_final_stats=1 \
        -artifact_prefix="$work/" "$work/inputs" >"$work/log" 2>&1 || status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log")
    echo "${runs:=0}" >"$work/runs"
    echo "fuzz: $1: $runs executions, $(grep -o 'cov: [0-9]*' "$work/log" | tail -1)"
    if ((status)); then
        sed -n '/panicked at/,+1p; /ERROR: libFuzzer/p; /Test unit written/p' "$work/log"
        return
    fi
    if [[ $keep ]]; then
        "$guided" -merge=1 -use_counters=0 -max_len=512 "$work/kept" "$work/inputs" >>"$work/log" 2>&1
        manage FUZZ_PACK="$work/kept"
    fi
    rm "$work/failed"
}

# As many at a time as there are cores.
for target in "$@"; do
    while (($(jobs -rp | wc -l) >= $(nproc))); do
        wait -n || true
    done
    guide "$target" &
done
wait
failed=0 total=0
for target in "$@"; do
    total=$((total + $(cat "$root/$target/runs" || echo 0)))
    if [[ -e $root/$target/failed ]]; then
        echo "fuzz: $target FAILED" >&2
        failed=1
    fi
done
echo "fuzz: $total executions in all"
exit $failed
