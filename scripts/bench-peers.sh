#!/usr/bin/env bash
# Compares Trunkline with nats-server and Redis, as Debian has them, on this machine: relays on loopback, on free ports, which
# take turns. Needs no root, unless they have to be installed. Writes docs/benchmarks.md and its plots.
#   scripts/bench-peers.sh                 all workloads; some 20 minutes, and ten to build. Nothing else should be at work meanwhile
#   scripts/bench-peers.sh --only NAME     that workload only (may be given several times); writes nothing without --out
#   scripts/bench-peers.sh --list          the names of the workloads
#   scripts/bench-peers.sh --rounds N      how often each relay has its turn (5)
#   scripts/bench-peers.sh --seconds N     how long to measure at a time (4)
#   scripts/bench-peers.sh --out DIR       where to write to (docs)
# Trunkline is as scripts/build.sh builds it; TRUNKLINE_BIN=FILE measures another build.
# All traffic stays on loopback, and all processes end with this script.
# shellcheck disable=SC2317 # some functions are called by traps only
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

usage() {
    echo "usage: scripts/bench-peers.sh [--list] [--only NAME]… [--rounds N] [--seconds N] [--out DIR]" >&2
    exit 64
}

only=()
rounds=5
seconds=4
out=""
list=""
while (($# > 0)); do
    if [[ "$1" == --list ]]; then
        list=yes
        shift
        continue
    fi
    (($# > 1)) || usage
    case "$1" in
        --only) only+=(--only "$2") ;;
        --rounds | --seconds)
            [[ "$2" =~ ^[1-9][0-9]{0,2}$ ]] || die "$1 is '$2', not a number from 1 to 999"
            declare "${1#--}=$2"
            ;;
        --out) out="$2" ;;
        *) usage ;;
    esac
    shift 2
done
((seconds <= 600)) || die "--seconds is '$seconds', more than 600"
((${#only[@]} > 0)) || out="${out:-docs}"

# Debian has nats-server where only root looks.
PATH="$PATH:/usr/sbin"
if [[ -z "$list" ]]; then
    for server in nats-server redis-server; do
        command -v "$server" >/dev/null || install_server "$server"
    done
fi
need_rust

own_what_runs

if [[ -z "$list" && -z "${TRUNKLINE_BIN:-}" ]]; then
    scripts/build.sh
fi
trunkline="${TRUNKLINE_BIN:-${CARGO_TARGET_DIR:-target}/guided/trunkline}"
build_tools
if [[ -n "$list" ]]; then
    heading "Workloads"
    "$tools/trunkline-lab-peers" --list
    exit
fi

heading "Compare"
# Some twice of what it takes where all is well.
limit=$((rounds * (600 + 60 * seconds)))
# Jobs are process groups in this mode.
set -m
TMPDIR="$temp" timeout --foreground "$limit" "$tools/trunkline-lab-peers" --trunkline "$trunkline" --rounds "$rounds" \
    --seconds "$seconds" --table "$temp/table" --plots "$temp/plots" "${only[@]}" </dev/null &
run_pid=$!
set +m
wait "$run_pid" && failed=0 || failed=$?
end_run
((failed != 124)) || die "not done within $limit s"

if [[ -n "$out" ]] && ((failed == 0)); then
    mkdir -p "$out"
    redis="$(redis-server --version | grep -oE 'v=[0-9.]+')"
    write_figures docs/benchmarks.md "$temp/table" "$(facts), UDP buffers of up to $(cat /proc/sys/net/core/rmem_max) bytes
- Versions: $("$trunkline" --version), $(nats-server --version), redis-server: ${redis#v=}
- Rounds: $rounds, each relay $seconds s in each" "$out/benchmarks.md"
    cp "$temp"/plots/*.svg "$out/"
fi
exit "$failed"
