#!/usr/bin/env bash
# Measures what slow, stopped and flooding clients cost the others, on this machine: two nodes on loopback, on free ports.
# Needs no root, unless nc has to be installed. docs/slow-readers.md has figures.
#   scripts/slow.sh                   all scenarios; some six minutes
#   scripts/slow.sh SCENARIO [FLAG]…  one of: stopped pipe flood throughput; flags as `trunkline-lab-slow --help` has them
# TRUNKLINE_BIN="FILE …" measures other builds of it; several take turns, which makes them comparable.
# All traffic stays on loopback, and all processes end with this script.
# shellcheck disable=SC2317 # some functions are called by traps only
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

scenarios=(stopped pipe flood throughput)
if (($# > 0)); then
    [[ " ${scenarios[*]} " == *" $1 "* ]] || die "no scenario is called $1; there are: ${scenarios[*]}"
    scenarios=("$1")
    shift
fi

if [[ " ${scenarios[*]} " == *" pipe "* ]] \
    && { ! command -v nc >/dev/null || ! { nc -h 2>&1 || true; } | grep -q OpenBSD; }; then
    install_packages "OpenBSD's nc is missing" netcat-openbsd
fi
need_rust

own_what_runs

build_to_measure
read -ra builds <<<"${TRUNKLINE_BIN:-$bin/trunkline}"

for scenario in "${scenarios[@]}"; do
    heading "$scenario"
    flags=("$@")
    case "$scenario" in
        pipe) flags=(--rounds 1 "$@") ;;
        throughput) flags=(--pairs 16 "$@") ;;
    esac
    # Jobs are process groups in this mode.
    set -m
    TMPDIR="$temp" "$tools/trunkline-lab-slow" "$scenario" "${builds[@]/#/--trunkline=}" "${flags[@]}" </dev/null &
    run_pid=$!
    set +m
    wait "$run_pid"
    run_pid=""
done
