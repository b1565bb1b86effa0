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
    env "$@" "$guided" 2>"$root/said.$$" || { cat "$root/said.$$" >&2; exit 1; }
}

if [[ $# -eq 0 ]]; then
    names=$(manage FUZZ_LIST=1)
    mapfile -t names <<<"$names"
    set -- "${names[@]}"
fi
failed=0 total=0
for target in "$@"; do
    work=$root/$target
    rm -rf "$work/inputs" "$work/kept"
    mkdir -p "$work/inputs" "$work/kept"
    export FUZZ_TARGET=$target
    manage FUZZ_UNPACK="$work/inputs"
    status=0
    "$guided" -max_total_time="$seconds" -max_len=1024 -timeout=10 -print_final_stats=1 \
        -artifact_prefix="$work/" "$work/inputs" >"$work/log" 2>&1 || status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log")
    total=$((total + ${runs:-0}))
    echo "fuzz: $target: ${runs:-?} executions, $(grep -o 'cov: [0-9]*' "$work/log" | tail -1)"
    if ((status)); then
        failed=1
        tail -20 "$work/log"
        continue
    fi
    [[ $keep ]] || continue
    "$guided" -merge=1 -use_counters=0 -max_len=512 "$work/kept" "$work/inputs" >>"$work/log" 2>&1
    manage FUZZ_PACK="$work/kept"
done
echo "fuzz: $total executions in all"
exit $failed
