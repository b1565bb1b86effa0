#!/bin/bash
# hosts-up.sh PREFIX N: hosts n1 to nN in network namespaces PREFIX-n1…, on a bridge of their own. Host i is 10.77.0.(10+i) and
# fd77::(10+i), PREFIX-head .1. Needs root; nothing is added to the machine's own network.
set -euo pipefail
P=${1:?prefix} N=${2:?number}
ip netns add "$P-head"
ip -n "$P-head" link add br0 type bridge
ip -n "$P-head" addr add 10.77.0.1/24 dev br0
ip -n "$P-head" addr add fd77::1/64 dev br0 nodad
ip -n "$P-head" link set br0 up
ip -n "$P-head" link set lo up
for i in $(seq 1 "$N"); do
    ip netns add "$P-n$i"
    ip -n "$P-n$i" link set lo up
    ip link add "v$i" netns "$P-head" type veth peer name eth0 netns "$P-n$i"
    ip -n "$P-head" link set "v$i" master br0 up
    ip -n "$P-n$i" addr add "10.77.0.$((10 + i))/24" dev eth0
    ip -n "$P-n$i" addr add "fd77::$((10 + i))/64" dev eth0 nodad
    ip -n "$P-n$i" link set eth0 up
done
