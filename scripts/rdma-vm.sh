#!/bin/bash
# Runs a command inside a small virtual machine that has a soft-RoCE device, or in two that are joined by a network, for the
# tests of the verbs transport.
#
#   scripts/rdma-vm.sh [--timeout SECONDS] [--mtu BYTES] [--guests 1|2] [--rails 1|2] COMMAND [ARGUMENT…]
#   scripts/rdma-vm.sh --check      say what is missing
#   scripts/rdma-vm.sh --install    apt-get update, then install what is missing (as root, on Debian)
#   scripts/rdma-vm.sh --help       print this
#
# COMMAND runs as root in the caller's directory with the caller's PATH, WINDLASS_* and RUST_* variables. It sees the
# host's files at their own paths, read-only; /tmp and /run are its own. Its standard output and error come out here, and
# its exit status is ours. What it leaves in $WINDLASS_VM_OUT is found in target/rdma-vm/out afterwards.
# The device is rxe0 (10.9.0.1, GID index 1 is RoCE v2 over IPv4), on the network interface $WINDLASS_VM_INTERFACE.
# With --guests 2 the same command runs in both at once: WINDLASS_VM_NODE is 1 or 2, the addresses are 10.9.0.1 and 10.9.0.2,
# $WINDLASS_VM_OUT is one folder for both, and the exit status is the first that is not 0.
# With --rails 2 the one guest has a second device, rxe1 (10.9.1.1), and two NUMA nodes of one CPU and half of the memory each.
#
# Exit status: the command's; 124 after the timeout (--timeout or WINDLASS_VM_TIMEOUT, 600 s); 125 when the machine
# could not be started or ended without a result.
#
# Time: the first run downloads and unpacks a kernel, up to a minute; the machine boots in 10 to 15 s. What runs in it is
# emulated, and much slower than outside.
#
# How: QEMU without hardware virtualisation starts Debian's stock kernel (downloaded once, never installed) with an
# initramfs that only mounts the host's file system over 9p and changes its root to it. The kernel speaks to a log, the
# command to two virtio ports, so that nothing mixes. The exit status comes back as a file on a small writable share.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd -P)
cache=$root/target/rdma-vm
packages=(qemu-system-x86 busybox-static iproute2 rdma-core ibverbs-providers kmod cpio)
# In the order in which they need each other; what a kernel has built in is skipped.
boot_modules=(virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_console
    netfs fscache 9pnet 9pnet_virtio 9p)

fail() {
    echo "rdma-vm: $*" >&2
    exit 125
}

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
    done
}

# Debian's kernel, unpacked in $cache/kernel.
fetch_kernel() {
    [[ -e $cache/kernel/ready ]] && return
    local work package
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-[0-9]/ { print $2; exit }')
    [[ $package ]] || fail "apt knows no kernel that linux-image-amd64 depends on: run apt-get update (Debian is needed)"
    work=$(mktemp -d "$cache/kernel.XXXXXX")
    (cd "$work" && apt-get download "$package" >download.log 2>&1) ||
        fail "apt-get download $package failed: $(tail -n 1 "$work/download.log")"
    dpkg -x "$work/$package"_*.deb "$work"
    rm "$work/$package"_*.deb
    # Where /lib is a link to /usr/lib newer packages ship only the latter.
    [[ -d $work/lib ]] || ln -s usr/lib "$work/lib"
    depmod -b "$work" "$(ls "$work/lib/modules")"
    touch "$work/ready"
    # Another run may have been faster: its copy is as good.
    mv -T "$work" "$cache/kernel" 2>/dev/null || rm -rf "$work"
}

# The initramfs: busybox, the modules for 9p and the virtio ports, and an init that changes its root to the host's.
build_initramfs() {
    local image=$cache/initramfs.gz work name file
    [[ $image -nt $0 && $image -nt $cache/kernel/ready ]] && return
    work=$(mktemp -d "$cache/initramfs.XXXXXX")
    mkdir -p "$work"/{bin,dev,proc,sys,host,modules}
    cp "$(command -v busybox)" "$work/bin/busybox"
    for name in "${boot_modules[@]}"; do
        file=$(find "$cache/kernel/lib/modules" -name "$name.ko*" -print -quit)
        case $file in
            *.xz) xz -dc "$file" >"$work/modules/$name.ko" ;;
            *.zst) zstd -dqc "$file" >"$work/modules/$name.ko" ;;
            ?*) cp "$file" "$work/modules/$name.ko" ;;
        esac
    done
    cat >"$work/init" <<INIT
#!/bin/busybox sh
B=/bin/busybox
\$B mount -t proc proc /proc; \$B mount -t sysfs sys /sys; \$B mount -t devtmpfs dev /dev
for m in ${boot_modules[*]}; do [ -e /modules/\$m.ko ] && \$B insmod /modules/\$m.ko; done
\$B mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host /host &&
\$B mount -t proc proc /host/proc && \$B mount -t sysfs sys /host/sys && \$B mount -t devtmpfs dev /host/dev &&
\$B mount -t tmpfs run /host/run && \$B mkdir /host/run/vm /host/run/out &&
\$B mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=none run /host/run/vm &&
\$B chroot /host /bin/bash /run/vm/guest\$(\$B sed 's/.*windlass_node=\([12]\).*/\1/' /proc/cmdline).sh
\$B sync; \$B poweroff -f
INIT
    chmod +x "$work/init"
    (cd "$work" && find . | cpio -o -H newc --quiet | gzip -1) >"$work.gz"
    mv "$work.gz" "$image"
    rm -rf "$work"
}

# What the guest runs: bring the device up, then the command, then tell its exit status.
write_guest_script() { # write_guest_script NODE COMMAND…
    local name node=$1
    shift
    cat <<GUEST
exec 2>/dev/ttyS0 >&2
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p /dev/shm /dev/pts /run/host-tmp
mount -t tmpfs shm /dev/shm
mount --bind /tmp /run/host-tmp
mount -t tmpfs tmp /tmp
# The caller's directory and the repository stay visible even when they lie in /tmp.
for d in $(printf '%q ' "$PWD" "$root"); do
    case \$d in /tmp/?*) mkdir -p "\$d" && mount --bind "/run/host-tmp/\${d#/tmp/}" "\$d" ;; esac
done
ip link set lo up
# rxe computes its checksums with crc32_generic and does not ask for it by itself.
for m in crc32_generic ib_uverbs rdma_ucm rdma_rxe veth; do modprobe -d $(printf %q "$cache/kernel") \$m; done
if [[ $guests == 1 ]]; then
    nic=veth0
    ip link add veth0 type veth peer name veth1
    ip link set veth1 mtu $mtu up
    if [[ $rails == 2 ]]; then
        modprobe -d $(printf %q "$cache/kernel") bridge
        ip link add veth2 type veth peer name veth3
        ip link set veth3 mtu $mtu up
        ip link set veth2 mtu $mtu up
        ip addr add 10.9.1.$node/24 dev veth2
    fi
else
    modprobe -d $(printf %q "$cache/kernel") virtio_net
    for nic in \$(ls /sys/class/net); do [[ \$nic == lo ]] || break; done
fi
ip link set \$nic mtu $mtu up
ip addr add 10.9.0.$node/24 dev \$nic
rdma link add rxe0 type rxe netdev \$nic || { echo device >/run/vm/failed; exit; }
[[ $rails == 1 ]] || rdma link add rxe1 type rxe netdev veth2 || { echo device >/run/vm/failed; exit; }
# The GID table fills a moment after the device appears.
for device in /sys/class/infiniband/rxe*; do
    for i in \$(seq 100); do
        grep -qs '[1-9a-f]' \$device/ports/1/gids/1 && break
        sleep 0.1
    done
done
ulimit -l unlimited
ulimit -c 0
for p in /sys/class/virtio-ports/vport*; do
    case \$(cat \$p/name) in stdout) out=/dev/\${p##*/} ;; stderr) err=/dev/\${p##*/} ;; esac
done
cd $(printf %q "$PWD")
(
$(for name in $(compgen -e | grep -E '^(WINDLASS_|RUST_)' || true); do printf 'export %s=%q\n' "$name" "${!name}"; done)
export WINDLASS_VM=1 WINDLASS_VM_NODE=$node WINDLASS_VM_INTERFACE=\$nic WINDLASS_VM_OUT=/run/vm/out HOME=/tmp TMPDIR=/tmp
export PATH=$(printf %q "$PATH")
exec $(printf '%q ' "$@")
) </dev/null >\$out 2>\$err
echo \$? >/run/vm/status$node
GUEST
}

start_guest() { # start_guest NODE
    local kernel node=$1 network=(-net none) cpus=2
    if [[ $guests == 2 ]]; then
        local server=on
        if [[ $node == 2 ]]; then
            server=off
            until [[ -S $run/network ]]; do
                kill -0 "${running[0]}" 2>/dev/null || return 0
                sleep 0.1
            done
        fi
        network=(-netdev "stream,id=net,server=$server,addr.type=unix,addr.path=$run/network"
            -device "virtio-net-pci,netdev=net,mac=52:54:00:00:00:0$node")
        cpus=1
    fi
    local memory=()
    if [[ $rails == 2 ]]; then
        memory=(-object memory-backend-ram,id=near,size=1G -numa node,nodeid=0,cpus=0,memdev=near
            -object memory-backend-ram,id=far,size=1G -numa node,nodeid=1,cpus=1,memdev=far)
    fi
    kernel=$(ls "$cache"/kernel/boot/vmlinuz-*)
    # When this script is killed outright, timeout gets a TERM and takes QEMU with it.
    setpriv --pdeathsig TERM timeout -k 5 "$timeout" qemu-system-x86_64 \
        -accel tcg,thread=multi -cpu max -smp $cpus -m 2048 -display none -nodefaults -no-reboot "${network[@]}" "${memory[@]}" \
        -kernel "$kernel" -initrd "$cache/initramfs.gz" \
        -append "console=ttyS0 quiet panic=-1 tsc=unstable windlass_node=$node" \
        -serial "file:$run/console$node.log" \
        -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
        -virtfs "local,path=$run/share,mount_tag=run,security_model=none" \
        -device virtio-serial-pci \
        -chardev "file,id=stdout,path=$run/stdout$node" -device virtserialport,chardev=stdout,name=stdout \
        -chardev "file,id=stderr,path=$run/stderr$node" -device virtserialport,chardev=stderr,name=stderr \
        </dev/null >"$run/qemu$node.log" 2>&1 &
    running+=($!)
}

# On every way out: nothing stays behind, and the log is kept where the last run's log is looked for.
running=() run=''
finish() {
    local status=$?
    trap - EXIT
    if ((${#running[@]})); then
        kill "${running[@]}" 2>/dev/null || true
        wait "${running[@]}" 2>/dev/null || true
    fi
    if [[ $run ]]; then
        cat "$run"/console*.log >"$cache/console.log" 2>/dev/null || true
        [[ -d $run/share/out ]] && cp -rf "$run/share/out/." "$cache/out/" 2>/dev/null
        rm -rf "$run"
    fi
    exit "$status"
}

timeout=${WINDLASS_VM_TIMEOUT:-600} mtu=4200 guests=1 rails=1
while [[ ${1:-} == --* ]]; do
    case $1 in
        --help)
            sed -n '2,/^[^#]/{s/^# \?//p}' "$0"
            exit 0
            ;;
        --check)
            missing=$(missing_packages)
            [[ $missing ]] && fail "missing: apt-get install" $missing
            echo "rdma-vm: all packages are here"
            exit 0
            ;;
        --install)
            missing=$(missing_packages)
            [[ $missing ]] || exit 0
            apt-get update -q || fail "apt-get update failed (root and a network are needed)"
            exec apt-get install -y --no-install-recommends $missing
            ;;
        --timeout) timeout=${2:?seconds} && shift 2 ;;
        --mtu) mtu=${2:?bytes} && shift 2 ;;
        --guests) guests=${2:?1 or 2} && shift 2 ;;
        --rails) rails=${2:?1 or 2} && shift 2 ;;
        --) shift && break ;;
        *) fail "unknown option $1" ;;
    esac
done
[[ $guests == [12] ]] || fail "--guests: expected 1 or 2, found $guests"
[[ $rails == [12] && $((guests * rails)) != 4 ]] || fail "--rails: expected 1, or 2 in one guest, found $rails"
[[ $# -gt 0 ]] || fail "usage: $0 [--timeout SECONDS] [--mtu BYTES] [--guests 1|2] [--rails 1|2] COMMAND… | --check | --install | --help"
missing=$(missing_packages)
[[ $missing ]] && fail "missing: apt-get install" $missing

mkdir -p "$cache/out"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
fetch_kernel
build_initramfs
run=$(mktemp -d "$cache/run.XXXXXX")
mkdir -p "$run/share/out"
readers=()
for ((node = 1; node <= guests; node++)); do
    write_guest_script "$node" "$@" >"$run/share/guest$node.sh"
    mkfifo "$run/stdout$node" "$run/stderr$node"
    cat "$run/stdout$node" &
    readers+=($!)
    cat "$run/stderr$node" >&2 &
    readers+=($!)
done
for ((node = 1; node <= guests; node++)); do start_guest "$node"; done
ended=0
for guest in "${running[@]}"; do wait "$guest" || ended=$?; done
running=()
# QEMU may have failed before it opened them: a reader must not wait for a writer that never comes.
for ((node = 1; node <= guests; node++)); do : 3<>"$run/stdout$node" 4<>"$run/stderr$node"; done
wait "${readers[@]}" || true

status=0
for ((node = 1; node <= guests; node++)); do
    if [[ ! -s $run/share/status$node ]]; then
        if [[ $ended == 124 || $ended == 137 ]]; then
            echo "rdma-vm: no result within $timeout s" >&2
            exit 124
        fi
        tail -n 20 "$run"/qemu*.log "$run"/console*.log >&2 || true
        fail "guest $node ended without a result (log: $cache/console.log)"
    fi
    [[ $status != 0 ]] || status=$(<"$run/share/status$node")
done
exit "$status"
