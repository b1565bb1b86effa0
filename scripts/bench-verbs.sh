#!/bin/bash
# Measures windlass over verbs beside perftest: the same device, size, MTU, queue depth and one queue pair, in turns.
#
#   scripts/bench-verbs.sh [ROUNDS [SECONDS]]        in scripts/rdma-vm.sh, with target/release/windlass (default: 3 rounds of 2 s)
#   scripts/bench-verbs.sh --here DEVICE GID WINDLASS ROUNDS SECONDS      on this machine's DEVICE, with GID index GID
#
# Needs perftest (apt-get install perftest) and cargo build --release --features verbs. Prints every round, then the medians and the
# ratios with their aims. In the emulated machine the ratios count instructions; only on real devices do they tell of hardware.
set -euo pipefail
cd "$(dirname "$0")/.."

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

median() {
    sort -g "$figures/$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}
awk -v ibw="$(median ib_write_bw)" -v w="$(median write)" -v ibr="$(median ib_read_bw)" -v r="$(median read)" \
    -v lat="$(median ib_write_lat)" -v trip="$(median round_trip)" -v push="$(median push)" -v add="$(median add)" 'BEGIN {
    printf "| measure | ours | perftest | ratio | aim |\n| --- | --- | --- | --- | --- |\n"
    printf "| write, 1 MiB, GB/s | %.4f | %.4f | %.2f | 0.8 or more |\n", w, ibw, w / ibw
    printf "| read, 1 MiB, GB/s | %.4f | %.4f | %.2f | 0.8 or more |\n", r, ibr, r / ibr
    printf "| write of 64 bytes with its answer, µs | %.1f | 2 × %.1f | %.2f | 2.5 or less |\n", trip, lat, trip / (2 * lat)
    part = 1 / (1 / w + 1 / add)
    printf "| push with sum, 1 MiB, GB/s | %.4f | %.4f (write, then add) | %.2f | 0.8 or more |\n", push, part, push / part
}'
