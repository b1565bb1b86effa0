#!/usr/bin/env bash
# Measures Windlass beside bare loops that do the same with nothing around them (benches/reference), and beside other programs, in
# turns on this machine: median and range of each figure, the median of the ratios of each turn, and which bars are met. Where a bare
# loop can block or spin, the faster way has the bar. All TCP runs under one congestion control; latencies are medians.
#
#   scripts/bench.sh [--rounds N] [--seconds S] [--only REGEX]... [--peers] [--sweep] [--record] [--smoke] [--list]
#
#   --rounds N    turns of each of them, 5 unless said, and for how long it is measured in each: --seconds S, 2
#   --only REGEX  measures and sweeps in whose name it is found (shm, ^push$, allreduce 16M, …); without it all
#   --peers       beside Open MPI, gloo, torch.distributed.rpc, MXNet's kvstore and redis, too (benches/peers)
#   --sweep       throughput and latency by size, by workers and servers, by wire and consistency, too
#   --record      writes benches/record/DATE-CPU.json and .md, too, and plots of the sweeps; with --only DATE-CPU-part
#   --smoke       everything once and short, into target/smoke, to see that it runs: the figures mean nothing
#   --list        says what would be measured, with its bars, and how long that would take
#
# It says at its start how long it will take: some 25 minutes for the bars of ours, an hour and a half with --peers --sweep.
# A C compiler and python3 are needed. Other programs that are missing, or fail, are left out, and the record says why:
#   apt-get install iperf3 openmpi-bin libopenmpi-dev redis-server python3-torch python3-matplotlib
# MXNet comes from PyPI, into target/peers, with --peers. Nothing else should run meanwhile. Exit codes: 2 wrong usage, 1 a
# measurement of ours, or of a bare loop, that failed.
set -euo pipefail
cd "$(dirname "$0")/.."

# What has peers under our congestion control, Open MPI's program, and MXNet with the numpy that it was made for: what can't be had is left out, and bench.py names it.
prepare_peers() {
    mkdir -p target/peers
    cc -O2 -shared -fPIC -o target/peers/congestion.so benches/peers/congestion.c
    if command -v mpicc > /dev/null; then
        mpicc -O3 -march=native -o target/peers/allreduce benches/peers/allreduce.c
    fi
    if [[ ! -e target/peers/mxnet/ready ]]; then
        python3 -m venv target/peers/mxnet &&
            target/peers/mxnet/bin/pip -q install --no-deps mxnet==1.9.1 &&
            target/peers/mxnet/bin/pip -q install 'numpy<1.24' 'graphviz<0.9' requests &&
            touch target/peers/mxnet/ready || echo "bench.sh: MXNet can't be installed" >&2
    fi
}

for program in cc cargo python3; do
    command -v "$program" > /dev/null || { echo "bench.sh: $program: not found" >&2; exit 1; }
done
# Wrong usage ends here, before anything is built.
listed=$(python3 scripts/bench.py --list "$@")
if [[ " $* " == *" --list "* || " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    printf '%s\n' "$listed"
    exit
fi
cargo build --locked --release
cargo bench --locked --bench kernels --no-run
cargo test --locked --release --test many_workers --no-run
mkdir -p target/reference
for source in benches/reference/*.c; do
    program=target/reference/$(basename "$source" .c)
    [[ $program -nt $source && $program -nt benches/reference/bare.h ]] || cc -O3 -march=native -o "$program" "$source"
done
if [[ " $* " == *" --peers "* || " $* " == *" --smoke "* ]]; then
    prepare_peers
fi
exec python3 scripts/bench.py "$@"
