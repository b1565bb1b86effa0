#!/usr/bin/env bash
# install.sh PREFIX [CARGO FLAGS…]: builds the program and puts it, its man pages, completions and module file below PREFIX. Nothing in
# there knows where it is: the folder can be moved.
#
#   scripts/install.sh "$HOME/windlass" --features verbs
set -euo pipefail
[[ $# -ge 1 && $1 != -* ]] || { echo "usage: $0 PREFIX [CARGO FLAGS…]" >&2; exit 2; }
prefix=$1
shift
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$prefix"
prefix=$(cd "$prefix" && pwd)
cd "$here"
cargo build --locked --release "$@"
target=${CARGO_TARGET_DIR:-target}
install -D -m 0755 "$target/release/windlass" "$prefix/bin/windlass"
"$prefix/bin/windlass" pages "$prefix/share"
version=$("$prefix/bin/windlass" --version | cut -d' ' -f2)
install -D -m 0644 scripts/windlass.module "$prefix/share/modulefiles/windlass/$version"
for licence in LICENSE-APACHE LICENSE-MIT; do
    install -D -m 0644 "$licence" "$prefix/share/doc/windlass/$licence"
done
echo "windlass $version is in $prefix; module use $prefix/share/modulefiles && module load windlass"
