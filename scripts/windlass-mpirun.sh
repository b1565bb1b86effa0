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
flags=() passes_on=1
case $("$mpirun" --version 2>&1 | head -n 1) in
    *"(Open MPI) 4"* | *"(OpenRTE) 4"*) # under other names than mpirun it calls itself by that of its runtime
        # Few ranks are bound to one core each otherwise; a host that is cut off is noticed; and ranks that were told to end have time for
        # a last checkpoint.
        flags=(--bind-to none --mca odls_base_sigkill_timeout 5
            --mca oob_tcp_keepalive_time 3 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 3)
        passes_on=0 ;;
    *"Open MPI"* | *OpenRTE*) flags=(--bind-to none) ;;
    *) ;; # Hydra: MPICH and Intel MPI
esac
# shellcheck disable=SC2206 # several words
command=("$mpirun" "${flags[@]}" ${MPIRUN_FLAGS:-} -n "$ranks" "${WINDLASS:-windlass}" run "$@")
((passes_on)) && exec "${command[@]}"

# Open MPI 4 passes SIGTERM on as late as it would kill (5 s here), and SIGUSR1, which asks the job for the same, at once.
"${command[@]}" <&0 &
trap 'kill -USR1 $!' TERM
trap : INT # the terminal tells mpirun, too
code=0
until wait $! && code=0 || { code=$?; ! kill -0 $! 2>/dev/null; }; do :; done
exit "$code"
