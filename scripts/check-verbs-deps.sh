#!/bin/bash
# Says whether this machine can build and run the feature `verbs`, and what to install when it can't.
#   scripts/check-verbs-deps.sh
# Exit status: 0 when a build is possible, 1 when something is missing. A missing device is told but is no failure.
set -uo pipefail

missing=()
need() { # need PACKAGE WHAT COMMAND…: COMMAND succeeds when PACKAGE is here
    local package=$1 what=$2
    shift 2
    if "$@" >/dev/null 2>&1; then
        echo "ok       $what"
    else
        echo "missing  $what ($package)"
        missing+=("$package")
    fi
}
libclang() {
    [[ -n ${LIBCLANG_PATH:-} ]] && return 0
    ldconfig -p | grep -q libclang || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null
}

need pkg-config "pkg-config" command -v pkg-config
need gcc "a C compiler" command -v cc
need libclang-dev "libclang, for the bindings of rdma-sys" libclang
need libibverbs-dev "libibverbs 1.8.28 or later, with headers" pkg-config --atleast-version=1.8.28 libibverbs
need librdmacm-dev "librdmacm 1.2.28 or later, with headers (rdma-sys asks for it)" \
    pkg-config --atleast-version=1.2.28 librdmacm
need ibverbs-providers "the user-space drivers of the devices" test -d /etc/libibverbs.d

if compgen -G '/sys/class/infiniband/*' >/dev/null; then
    echo "devices  $(ls /sys/class/infiniband | tr '\n' ' ')"
else
    echo "devices  none here: scripts/rdma-vm.sh runs a command in a virtual machine that has one"
fi
echo "memlock  $(ulimit -l) KiB may be registered by one process (ulimit -l)"

if ((${#missing[@]})); then
    echo "apt-get install ${missing[*]}" >&2
    exit 1
fi
