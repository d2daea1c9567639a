#!/usr/bin/env bash
# Measures what links by Redis bear, on this machine: two nodes on loopback, joined by a redis-server or a cluster of them, 16
# conversations between them, and trouble with the servers. Needs no root, unless redis-server has to be installed.
# docs/redis.md has figures.
#   scripts/redis.sh                 each kind of trouble; some four minutes
#   scripts/redis.sh NAME [FLAG]…    one of: nothing restarted stopped disconnected moved taken-over; flags as
#                                    `trunkline-lab-redis --help` has them
# With all of them the table of docs/redis.md is written anew. TRUNKLINE_BIN=FILE measures another build.
# All traffic stays on loopback, and all processes end with this script.
# shellcheck disable=SC2317 # some functions are called by traps only
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

document="docs/redis.md"
flags=()
if (($# > 0)); then
    flags=(--trouble "$@")
    document=""
fi
need_rust
command -v redis-server >/dev/null || install_server redis-server

own_what_runs

build_to_measure --bin trunkline-lab-redis

heading "Trouble with Redis"
# Jobs are process groups in this mode.
set -m
TMPDIR="$temp" "$tools/trunkline-lab-redis" --trunkline "${TRUNKLINE_BIN:-$bin/trunkline}" "${flags[@]}" </dev/null \
    >"$temp/table" &
run_pid=$!
set +m
wait "$run_pid" && failed=0 || failed=$?
end_run
cat "$temp/table"

if [[ -n "$document" ]] && ((failed == 0)); then
    write_figures "$document" "$temp/table" "$(facts); redis-server $(redis-server --version | grep -oE 'v=[0-9.]+' | cut -c3-)"
fi
exit "$failed"
