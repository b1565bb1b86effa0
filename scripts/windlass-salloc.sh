#!/bin/bash
# An interactive job: gets an allocation, and runs the command line in it, once for each task.
#   scripts/windlass-salloc.sh -N 2 -n 6 -- --servers 2 -- windlass train lr
# The first `--` ends the flags of salloc. Inside an allocation that you have already, type what stands behind `salloc` alone:
#   srun --mpi=pmix windlass run --servers 2 -- windlass train lr
set -euo pipefail
allocation=()
while [[ $# -gt 0 && $1 != -- ]]; do allocation+=("$1"); shift; done
[[ $# -gt 1 ]] || { echo "usage: $0 SALLOC-FLAGS… -- RUN-FLAGS… -- CMD" >&2; exit 2; }
shift
# pmix or pmi2, whichever `srun --mpi=list` has; with none, ranks meet at a file in the current folder.
mpi=${WINDLASS_MPI:-$(srun --mpi=list 2>&1 | grep -owE 'pmix|pmi2' | head -n 1 || true)}
exec salloc -Q "${allocation[@]}" srun --mpi="${mpi:-none}" --overlap "${WINDLASS:-windlass}" run "$@"
