#!/usr/bin/env bash
# Measures `windlass bench` over loopback TCP beside iperf3 (one stream, 1 MiB writes, the same congestion control), in turns,
# and prints the rows of the README's table: median and range of GB/s, and the median of the ratios of each turn.
#
#   scripts/bench-tcp.sh [--rounds N] [--seconds S] [--congestion NAME] [--windlass PROGRAM] [--row 'OP FLAGS']...
#
# A --row is measured as `windlass bench OP --bytes 1048576 --seconds S FLAGS`; without one: write, push, pull (also with
# a window of 2) and push-pull.
# Exit codes: 2 wrong usage or a program that is missing, 1 a measurement that failed.
set -euo pipefail

rounds=5 seconds=2 congestion='' windlass=target/release/windlass
rows=()

fail() {
    echo "bench-tcp.sh: $2" >&2
    exit "$1"
}

while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || fail 2 "$1: expected a value (see the head of this file)"
    case $1 in
        --rounds) rounds=$2 ;;
        --seconds) seconds=$2 ;;
        --congestion) congestion=$2 ;;
        --windlass) windlass=$2 ;;
        --row) rows+=("$2") ;;
        *) fail 2 "$1: expected --rounds, --seconds, --congestion, --windlass or --row" ;;
    esac
    shift 2
done
[ ${#rows[@]} -gt 0 ] || rows=(write push pull 'pull --window 2' push-pull)
[[ $rounds =~ ^[1-9][0-9]*$ ]] || fail 2 "--rounds: expected a number from 1 up, found $rounds"
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail 2 "--seconds: expected a whole number from 1 up (iperf3 takes no other), found $seconds"
command -v iperf3 > /dev/null || fail 2 "iperf3: not found; on Debian: apt-get install iperf3"
command -v python3 > /dev/null || fail 2 "python3: not found"
[ -x "$windlass" ] || fail 2 "$windlass: not found; build it with cargo build --release, or name it with --windlass"

# What windlass itself would take: see src/transport/tcp/socket.rs.
if [ -z "$congestion" ]; then
    allowed=" $(cat /proc/sys/net/ipv4/tcp_available_congestion_control) "
    for wanted in cubic reno; do
        if [[ $allowed == *" $wanted "* ]]; then congestion=$wanted; break; fi
    done
    [ -n "$congestion" ] || congestion=$(cat /proc/sys/net/ipv4/tcp_congestion_control)
fi

scratch=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
iperf3 -s -B 127.0.0.1 -p "$port" --forceflush > "$scratch/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2> /dev/null || true; rm -rf "$scratch"' EXIT
until grep -q listening "$scratch/server.log"; do
    kill -0 "$server" 2> /dev/null || fail 1 "iperf3 -s: $(cat "$scratch/server.log")"
    sleep 0.1
done

iperf() {
    iperf3 -c 127.0.0.1 -p "$port" -l 1M -C "$congestion" -t "$seconds" -J > "$scratch/iperf.json" \
        || fail 1 "iperf3: $(cat "$scratch/iperf.json" "$scratch/server.log")"
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["end"]["sum_received"]["bits_per_second"] / 8e9)' \
        "$scratch/iperf.json" 2> /dev/null || fail 1 "iperf3: $(cat "$scratch/iperf.json")"
}

row() {
    local op flags
    read -r op flags <<< "$1"
    # shellcheck disable=SC2086 # flags are words
    "$windlass" bench "$op" --bytes 1048576 --seconds "$seconds" --json $flags > "$scratch/row.json" \
        || fail 1 "windlass bench $1: exit code $?"
    python3 -c 'import json, sys; print(json.loads(open(sys.argv[1]).readline())["gbytes_per_second"])' "$scratch/row.json"
}

for round in $(seq "$rounds"); do
    echo "round $round of $rounds" >&2
    figures=$(iperf)
    for r in "${rows[@]}"; do figures+=" $(row "$r")"; done
    echo "$figures" >> "$scratch/figures"
done

echo "$(date -u +%Y-%m-%d), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) CPUs, Linux $(uname -r)," \
    "load $(cut -d ' ' -f 1 /proc/loadavg) at the end, $rounds rounds in turns"
python3 - "$scratch/figures" "$seconds" "$congestion" "${rows[@]}" << 'END'
import statistics
import sys

path, seconds, congestion, *rows = sys.argv[1:]
rounds = [[float(figure) for figure in line.split()] for line in open(path)]
commands = [f"iperf3 -c 127.0.0.1 -l 1M -C {congestion} -t {seconds}"]
for row in rows:
    op, *flags = row.split()
    commands.append(" ".join([f"windlass bench {op} --bytes 1048576 --seconds {seconds}", *flags]))
print("\n| command | GB/s | of iperf3 |\n| --- | --- | --- |")
for i, command in enumerate(commands):
    column = [figures[i] for figures in rounds]
    ratio = statistics.median(figures[i] / figures[0] for figures in rounds)
    print(f"| `{command}` | {statistics.median(column):.1f} ({min(column):.1f}–{max(column):.1f}) | {'1' if i == 0 else f'{ratio:.2f}'} |")
END
