#!/bin/bash
# host.sh PREFIX HOST COMMAND…: runs it on a host of hosts-up.sh (n1, …, head), which knows the others by name. As ssh does it joins the
# words, and a shell reads them. What it mounts goes with its last process.
prefix=${1:?prefix} host=${2:?host}
shift 2
exec ip netns exec "$prefix-$host" unshare --uts --mount bash -c '
    hostname "$0"
    mount -t tmpfs none /mnt
    { echo 127.0.0.1 localhost; echo 10.77.0.1 head; for i in 1 2 3 4 5 6 7 8 9; do echo "10.77.0.$((10 + i)) n$i"; done; } > /mnt/hosts
    mount --bind /mnt/hosts /etc/hosts
    umount -l /mnt
    exec bash -c "$1"' "$host" "$*"
