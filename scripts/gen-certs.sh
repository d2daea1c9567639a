#!/usr/bin/env bash
# Makes what is missing in certs/, for the nodes named or the three of the examples:
#   scripts/gen-certs.sh [NODE…]
# TRUNKLINE_BIN names a binary to use instead of building one.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ -n "${TRUNKLINE_BIN:-}" ]]; then
    exec "$TRUNKLINE_BIN" certs --certs "$here/certs" "$@"
fi
exec cargo run --manifest-path "$here/Cargo.toml" --release --locked --quiet -- certs --certs "$here/certs" "$@"
