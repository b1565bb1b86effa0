#!/usr/bin/env bash
# Measures Windlass beside bare loops that do the same with nothing around them (benches/reference), and beside other programs, in
# turns on this machine: median and range of each figure, and the median of the ratios of each turn.
#
#   scripts/bench.sh [--rounds N] [--seconds S] [--only WORD]... [--record] [--smoke]
#
#   --only WORD   measures whose name has the word, of: kernels, push, pull, push-pull, latency, shm, …; without it all
#   --record      writes benches/record/DATE-CPU.json and .md, too
#   --smoke       everything once and short, to see that it runs: the figures mean nothing
#
# Programs that are missing are named and left out (apt-get install iperf3 openmpi-bin libopenmpi-dev); a C compiler and python3 are needed. Nothing
# else should run meanwhile. Exit codes: 2 wrong usage, 1 a measurement that failed.
set -euo pipefail
cd "$(dirname "$0")/.."

for program in cc cargo python3; do
    command -v "$program" > /dev/null || { echo "bench.sh: $program: not found" >&2; exit 1; }
done
cargo build --locked --release
mkdir -p target/reference
for source in benches/reference/*.c; do
    program=target/reference/$(basename "$source" .c)
    compiler=cc
    if [[ $source == */allreduce.c ]]; then
        compiler=mpicc
        command -v mpicc > /dev/null || continue
    fi
    [[ $program -nt $source && $program -nt benches/reference/bare.h ]] || "$compiler" -O3 -march=native -o "$program" "$source"
done
exec python3 scripts/bench.py "$@"
