#!/usr/bin/env bash
# Plays faults to two nodes and their clients, all real processes on this machine, and judges what the clients saw:
# nothing lost, repeated, out of order, misdelivered or left without an answer. docs/faults.md says more.
#   scripts/faults.sh                 200 faults; about ten minutes
#   scripts/faults.sh --faults N      so many
#   scripts/faults.sh --seed S        the faults of an earlier run, which printed its seed
#   scripts/faults.sh --out FILE      writes the table to a file as well
# TRUNKLINE_BIN=FILE has nodes of another build.
# All traffic stays on loopback, and all processes end with this script. Ends with 1 if a promise was broken; then the
# logs are kept, and it says where.
# shellcheck disable=SC2317 # some functions are called by traps only
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

usage() {
    echo "usage: scripts/faults.sh [--faults N] [--seed S] [--out FILE]" >&2
    exit 64
}

faults=200
more=()
while (($# > 0)); do
    (($# > 1)) || usage
    case "$1" in
        --faults)
            [[ "$2" =~ ^[1-9][0-9]{0,3}$ ]] || die "--faults is '$2', not a number from 1 to 9999"
            faults="$2"
            ;;
        --seed)
            [[ "$2" =~ ^[0-9]{1,15}$ ]] || die "--seed is '$2', not a number"
            more+=(--seed "$2")
            ;;
        --out) more+=(--out "$2") ;;
        *) usage ;;
    esac
    shift 2
done

# How many seconds the run may take: some for each fault, and what the slowest answer and the end may take.
readonly DEADLINE=$((faults * 10 + 600))

run_pid=""
logs="$(mktemp -d)"
keep=yes

# The run has a process group of its own, with all that it starts: so what is ended here was started here.
clean_up() {
    local code=$?
    set +e
    trap '' HUP INT TERM
    end_group "$run_pid"
    if [[ "$keep" == no ]]; then
        rm -rf "$logs"
    elif ((code != 0)); then
        echo "the logs are kept in $logs" >&2
    fi
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

need_rust

build_to_measure --bin trunkline-lab-client --bin trunkline-lab-faults

heading "$faults faults"
# Jobs are process groups in this mode.
set -m
timeout --foreground --kill-after=30 "$DEADLINE" "$tools/trunkline-lab-faults" --node "${TRUNKLINE_BIN:-$bin/trunkline}" \
    --client "$tools/trunkline-lab-client" --faults "$faults" --logs "$logs" "${more[@]}" &
run_pid=$!
set +m
code=0
wait "$run_pid" || code=$?
if ((code == 0)); then
    keep=no
fi
exit "$code"
