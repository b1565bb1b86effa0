#!/bin/bash
# Below mpirun, whichever it is:
#   scripts/windlass-mpirun.sh RANKS RUN-FLAGS… -- CMD…
#   scripts/windlass-mpirun.sh 6 --servers 2 -- windlass train lr
# MPIRUN chooses another mpirun, MPIRUN_FLAGS adds to what it needs (hosts: `--hostfile hosts`).
set -euo pipefail
[[ $# -ge 3 ]] || { echo "usage: $0 RANKS RUN-FLAGS… -- CMD…" >&2; exit 2; }
ranks=$1
shift
mpirun=${MPIRUN:-mpirun}
flags=()
case $("$mpirun" --version 2>&1 | head -n 1) in
    *"(Open MPI) 4"*)
        # Few ranks are bound to one core each otherwise; a host that is cut off is noticed; and after SIGTERM there is time for a
        # last checkpoint.
        flags=(--bind-to none --mca odls_base_sigkill_timeout 40
            --mca oob_tcp_keepalive_time 3 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 3) ;;
    *"(Open MPI)"* | *"Open MPI"*) flags=(--bind-to none) ;;
    *) flags=() ;; # Hydra: MPICH and Intel MPI
esac
# shellcheck disable=SC2086 # several words
exec "$mpirun" "${flags[@]}" ${MPIRUN_FLAGS:-} -n "$ranks" "${WINDLASS:-windlass}" run "$@"
