#!/usr/bin/env bash
# What is too long for every change, to be run each night; stops at the first failure:
#   scripts/nightly.sh                  a million schedules of the delivery machine; then 200 faults; then trouble with
#                                       Redis, and all tests with nodes that are joined by it or a cluster of it
#   scripts/nightly.sh --schedules N    that many schedules
#   scripts/nightly.sh --faults N       that many faults
#   scripts/nightly.sh --first SEED     the first schedule's seed, in place of one made of the time: each night plays others
# A schedule that fails prints its seed, and how to play it again.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

usage() {
    echo "usage: scripts/nightly.sh [--schedules N] [--faults N] [--first SEED]" >&2
    exit 64
}

schedules=1000000
faults=200
# Up to a million of them each second, none twice.
first="$(($(date +%s) * 1000000))"
while (($# > 0)); do
    (($# > 1)) || usage
    case "$1" in
        --schedules | --faults)
            [[ "$2" =~ ^[1-9][0-9]{0,9}$ ]] || die "$1 is '$2', not a number from 1 on"
            declare "${1#--}=$2"
            ;;
        --first)
            [[ "$2" =~ ^(0|[1-9][0-9]{0,17})$ ]] || die "--first is '$2', not a number"
            first="$2"
            ;;
        *) usage ;;
    esac
    shift 2
done

output="$(mktemp)"
trap 'rm -f "$output"' EXIT

heading "The delivery machine: $schedules schedules from seed $first on"
need_rust
simulation=(cargo test --release --locked --lib delivery::simulation -- --nocapture)
if ! TRUNKLINE_SIM_FIRST="$first" TRUNKLINE_SIM_SCHEDULES="$schedules" "${simulation[@]}" 2>&1 | tee "$output"; then
    die "the simulation failed; what is above says why, and how to play a schedule again"
fi
# A test that was renamed would pass by not being there.
grep -qw "$schedules schedules" "$output" || die "the schedules were not played: is delivery::simulation still there?"

heading "Faults: $faults of them, under whole nodes, of the build for use in earnest"
scripts/build.sh
TRUNKLINE_BIN="${CARGO_TARGET_DIR:-target}/guided/trunkline" scripts/faults.sh --faults "$faults"

need_test_programs
heading "Trouble with Redis"
for trouble in restarted stopped disconnected moved taken-over; do
    scripts/redis.sh "$trouble"
done
for carrier in redis redis-cluster; do
    heading "Tests with nodes that are joined by $carrier"
    test_over "$carrier" 2>&1 | tee -a "$output"
done

heading "All passed"
grep -ow "$schedules schedules: .*" "$output"
grep -E '^ *Summary |^test result: ' "$output"
