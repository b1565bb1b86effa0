#!/bin/bash
# hosts-down.sh PREFIX N: ends what hosts-up.sh made.
for i in $(seq 1 "${2:?number}"); do ip netns del "${1:?prefix}-n$i" 2>/dev/null; done
ip netns del "$1-head" 2>/dev/null
exit 0
