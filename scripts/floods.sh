#!/usr/bin/env bash
# Measures what floods cost the others, on this machine: two nodes on loopback, on free ports, 16 conversations between them,
# and a process that floods one of the nodes from 127.0.0.2. Needs no root. docs/floods.md has figures.
#   scripts/floods.sh                all floods; some nine minutes
#   scripts/floods.sh FLOOD [FLAG]…  one of: silent initials greetings slow-lines rate guesses long-line streams; flags as
#                                    `trunkline-lab-floods run --help` has them
# With all floods the table of docs/floods.md is written anew. TRUNKLINE_BIN=FILE measures another build of it.
# All traffic stays on loopback, and all processes end with this script.
# shellcheck disable=SC2317 # some functions are called by traps only
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

document="docs/floods.md"
flags=()
if (($# > 0)); then
    flags=(--flood "$@")
    document=""
fi
need_rust

own_what_runs

build_to_measure

heading "Floods"
# Ten thousand connections are two descriptors each on one machine.
ulimit -n "$(ulimit -Hn)"
# Jobs are process groups in this mode.
set -m
TMPDIR="$temp" "$tools/trunkline-lab-floods" run --trunkline "${TRUNKLINE_BIN:-$bin/trunkline}" --table "$temp/table" \
    "${flags[@]}" </dev/null &
run_pid=$!
set +m
wait "$run_pid" && failed=0 || failed=$?
end_run

if [[ -n "$document" && -s "$temp/table" ]] && ((failed == 0)); then
    write_figures "$document" "$temp/table" "$(facts)"
fi
exit "$failed"
