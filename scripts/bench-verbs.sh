#!/bin/bash
# Measures windlass over verbs beside perftest: the same device, size, MTU, queue depth and one queue pair, in turns.
#
#   scripts/bench-verbs.sh [ROUNDS [SECONDS]]        in scripts/rdma-vm.sh, with target/release/windlass (default: 3 rounds of 2 s)
#   scripts/bench-verbs.sh --here DEVICE GID WINDLASS ROUNDS SECONDS      on this machine's DEVICE, with GID index GID
#   scripts/bench-verbs.sh --judge FOLDER                                 what was measured before: a file for each measure, a figure in each line
#
# Needs perftest (apt-get install perftest) and cargo build --release --features verbs. Prints every round, then the medians and the
# ratios with their aims; ends with 1 when one of them misses its aim. In the emulated machine the ratios count instructions; only on real devices do they tell of hardware.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
    exit
fi
cd "$(dirname "$0")/.."

# judge FOLDER: the medians, the ratios, and whether all keep their aims.
judge() {
    awk -v ibw="$(median "$1/ib_write_bw")" -v w="$(median "$1/write")" -v ibr="$(median "$1/ib_read_bw")" -v r="$(median "$1/read")" \
        -v lat="$(median "$1/ib_write_lat")" -v trip="$(median "$1/round_trip")" -v push="$(median "$1/push")" -v add="$(median "$1/add")" '
    function ratio(ours, theirs) { return theirs > 0 ? ours / theirs : 0 }
    function kept(well) { if (!well) missed = 1; return well ? "" : ": missed" }
    BEGIN {
        printf "| measure | ours | perftest | ratio | aim |\n| --- | --- | --- | --- | --- |\n"
        x = ratio(w, ibw)
        printf "| write, 1 MiB, GB/s | %.4f | %.4f | %.2f | 0.8 or more%s |\n", w, ibw, x, kept(x >= 0.8)
        x = ratio(r, ibr)
        printf "| read, 1 MiB, GB/s | %.4f | %.4f | %.2f | 0.8 or more%s |\n", r, ibr, x, kept(x >= 0.8)
        x = ratio(trip, 2 * lat)
        printf "| write of 64 bytes with a number, and another back, µs | %.1f | 2 × %.1f | %.2f | 2.5 or less%s |\n", trip, lat, x, kept(x > 0 && x <= 2.5)
        part = w > 0 && add > 0 ? 1 / (1 / w + 1 / add) : 0
        x = ratio(push, part)
        printf "| push with sum, 1 MiB, GB/s | %.4f | %.4f (write, then add) | %.2f | 0.8 or more%s |\n", push, part, x, kept(x >= 0.8)
        exit missed
    }'
}

median() {
    sort -g "$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

if [[ ${1:-} == --judge ]]; then
    judge "$2"
    exit
fi
if [[ ${1:-} != --here ]]; then
    command -v ib_write_bw >/dev/null || { echo "bench-verbs: missing: apt-get install perftest" >&2; exit 1; }
    exec scripts/rdma-vm.sh "$PWD/scripts/bench-verbs.sh" --here rxe0 1 "$PWD/target/release/windlass" "${1:-3}" "${2:-2}"
fi
device=$2 gid=$3 windlass=$4 rounds=$5 seconds=$6
bytes=1048576 depth=64 mtu=4096
figures=$(mktemp -d)
trap 'rm -r "$figures"' EXIT

# perftest TOOL SIZE ARGUMENT…: its result line. The server ends with its client.
perftest() {
    local tool=$1 size=$2 port=$((18000 + RANDOM % 1000)) server
    shift 2
    "$tool" -d "$device" -x "$gid" -p "$port" -m "$mtu" -s "$size" -F "$@" >"$figures/server" 2>&1 &
    server=$!
    # It listens on TCP before it serves.
    until grep -qi ":$(printf %04x "$port") .* 0A " /proc/net/tcp /proc/net/tcp6; do
        kill -0 "$server" || { cat "$figures/server" >&2; return 1; }
        sleep 0.1
    done
    "$tool" -d "$device" -x "$gid" -p "$port" -m "$mtu" -s "$size" -F "$@" localhost >"$figures/client" 2>&1 ||
        { cat "$figures/client" >&2; return 1; }
    wait "$server" || true
    grep -E "^ *$size " "$figures/client"
}

# windlass OP ARGUMENT…: one field of its JSON.
measured() {
    local field=$1
    shift
    "$windlass" bench "$@" --transport verbs --rdma-device "=$device" --rdma-gid-index "$gid" --rdma-mtu "$mtu" \
        --rdma-queue-depth "$depth" --table-bytes 16M --seconds "$seconds" --json |
        sed -n "s/.*\"$field\":\([0-9.e+-]*\).*/\1/p"
}

note() { # note NAME VALUE; where perftest divides by nothing it prints no number
    [[ $2 == inf ]] || echo "$2" >>"$figures/$1"
    echo "$1 $2"
}

iterations=$((40 * seconds))
for ((round = 0; round < rounds; round++)); do
    # MB of perftest are 2^20 bytes.
    note ib_write_bw "$(perftest ib_write_bw "$bytes" -q 1 -t "$depth" -n "$iterations" | awk '{ print $4 * 1.048576e-3 }')"
    note write "$(measured gbytes_per_second write --bytes "$bytes" --window "$depth")"
    note ib_read_bw "$(perftest ib_read_bw "$bytes" -q 1 -t "$depth" -n "$iterations" | awk '{ print $4 * 1.048576e-3 }')"
    note read "$(measured gbytes_per_second read --bytes "$bytes" --window "$depth")"
    note ib_write_lat "$(perftest ib_write_lat 64 -n 1000 | awk '{ print $5 }')"
    # perftest never sleeps.
    note round_trip "$(measured p50_us write --bytes 64 --window 1 --poll spin)"
    note push "$(measured gbytes_per_second push --bytes "$bytes" --window "$depth")"
    note add "$(measured gbytes_per_second add --bytes "$bytes")"
done

judge "$figures"
