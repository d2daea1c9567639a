#!/usr/bin/env bash
# Measures Trunkline over a bad network, on this machine: two nodes in network namespaces, joined by a wire that delays,
# loses and is cut. Needs root.
#   scripts/lab.sh --peer nats      all rows of the table, for Trunkline and nats-server; ten minutes. Writes the figures to docs/lab.md,
#                                   and a plot to docs/lab.svg
#   scripts/lab.sh                  Trunkline alone; prints the figures, as without all rows, and writes nothing without --out
#   scripts/lab.sh --row NAME       that row only (may be given several times)
#   scripts/lab.sh --seconds N      how long to measure in rows without a cut (20)
#   scripts/lab.sh --flag FLAG      start the nodes of Trunkline with this flag too (may be given several times)
#   scripts/lab.sh --out DIR        where to write to
# TRUNKLINE_BIN=FILE measures another build of it; TRUNKLINE_LAB_LOGS=DIR keeps the logs of the relays.
# All traffic stays in the two namespaces, and they end with this script.
# shellcheck disable=SC2317 # some functions are called by traps and by `await` only
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

usage() {
    echo "usage: scripts/lab.sh [--peer nats] [--row NAME]… [--seconds N] [--flag FLAG]… [--out DIR]" >&2
    exit 64
}

targets=(trunkline)
rows=()
flags=()
seconds=20
out=""
while (($# > 0)); do
    (($# > 1)) || usage
    case "$1" in
        --peer)
            [[ "$2" == nats ]] || die "--peer is '$2'; the one that is known is nats"
            targets+=(nats)
            ;;
        --row) rows+=("$2") ;;
        --seconds)
            [[ "$2" =~ ^[1-9][0-9]{0,2}$ ]] || die "--seconds is '$2', not a number from 1 to 999"
            seconds="$2"
            ;;
        --flag) flags+=("$2") ;;
        --out) out="$2" ;;
        *) usage ;;
    esac
    shift 2
done

if ((${#rows[@]} == 0 && ${#targets[@]} > 1)); then
    out="${out:-docs}"
fi

# How many seconds anything that is waited for may take, and one row with one relay.
readonly DEADLINE=20
readonly ROW_DEADLINE=900

# Addresses of the two ends. No one else sees them.
readonly IP_A=10.77.0.1 IP_B=10.77.0.2

# The port of clients of the first relay; those of further links have the next ones.
readonly FIRST_PORT=1215

ns_a="trunkline-$$-a"
ns_b="trunkline-$$-b"
temp=""
wire_pid=""
load_pid=""
relay_pids=()
made=()

# --- ending -----------------------------------------------------------------------------------------------------------

stop_relays() {
    local pid
    for pid in "${relay_pids[@]}"; do
        kill -TERM "$pid" 2>/dev/null || true
    done
    for pid in "${relay_pids[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    relay_pids=()
}

clean_up() {
    local code=$? ns
    set +e
    trap '' HUP INT TERM
    end_group "$load_pid"
    stop_relays
    if [[ -n "$wire_pid" ]]; then
        kill -TERM "$wire_pid" 2>/dev/null
        wait "$wire_pid" 2>/dev/null
    fi
    for ns in "${made[@]}"; do
        ip netns delete "$ns"
    done
    [[ -n "$temp" ]] && rm -rf "$temp"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

logged() {
    grep -q -- "$2" "$1" 2>/dev/null
}

# --- what it needs ----------------------------------------------------------------------------------------------------

((EUID == 0)) || die "network namespaces need root; run: sudo scripts/lab.sh"
[[ -c /dev/net/tun ]] || die "there is no /dev/net/tun; load the kernel's module: modprobe tun"
command -v ip >/dev/null || install_packages "ip is missing" iproute2
if [[ " ${targets[*]} " == *" nats "* ]] && ! command -v nats-server >/dev/null; then
    install_packages "nats-server is missing" nats-server
fi
need_rust

build_to_measure
trunkline="${TRUNKLINE_BIN:-$bin/trunkline}"
mapfile -t all_rows < <("$tools/trunkline-lab-load" --rows)
((${#rows[@]} > 0)) || rows=("${all_rows[@]}")
for row in "${rows[@]}"; do
    [[ " ${all_rows[*]} " == *" $row "* ]] || die "no row is called $row; there are: ${all_rows[*]}"
done

# --- two namespaces and a wire ----------------------------------------------------------------------------------------

temp="$(mktemp -d)"
mkdir "$temp/json"
for ns in "$ns_a" "$ns_b"; do
    ip netns add "$ns"
    made+=("$ns")
    ip -n "$ns" link set lo up
done
nice -n -10 "$tools/trunkline-lab-wire" --a "$ns_a" --b "$ns_b" --control "$temp/wire.sock" >"$temp/wire.log" 2>&1 &
wire_pid=$!
if ! await "$wire_pid" test -S "$temp/wire.sock"; then
    cat "$temp/wire.log" >&2
    die "the wire did not come up"
fi
ip -n "$ns_a" addr add "$IP_A" peer "$IP_B" dev wire
ip -n "$ns_b" addr add "$IP_B" peer "$IP_A" dev wire
for ns in "$ns_a" "$ns_b"; do
    # A burst waits here while the wire is at work on another.
    ip -n "$ns" link set wire txqueuelen 10000 up
done

"$trunkline" certs --certs "$temp/certs" "$IP_A:$FIRST_PORT" "$IP_B:$FIRST_PORT" "$IP_A:$((FIRST_PORT + 1))" \
    "$IP_B:$((FIRST_PORT + 1))" >/dev/null

# --- the relays -------------------------------------------------------------------------------------------------------

#   start NAMESPACE LOG COMMAND…
start() {
    local ns="$1" log="$2"
    shift 2
    ip netns exec "$ns" "$@" </dev/null >"$log" 2>&1 &
    relay_pids+=("$!")
}

#   up LOG TEXT: waits for a relay that was started last
up() {
    if ! await "${relay_pids[-1]}" logged "$1" "$2"; then
        cat "$temp"/*.log >&2
        die "a relay did not come up"
    fi
}

#   start_trunkline PORT: two nodes, and a link between them
start_trunkline() {
    local port="$1" log_a="$temp/trunkline-a-$1.log" log_b="$temp/trunkline-b-$1.log"
    # Nobody else is in these namespaces.
    local open=(--insecure-open)
    start "$ns_b" "$log_b" "$trunkline" node --tcp "$IP_B:$port" --certs "$temp/certs" "${open[@]}" "${flags[@]}"
    up "$log_b" "node up"
    start "$ns_a" "$log_a" "$trunkline" node --tcp "$IP_A:$port" --certs "$temp/certs" --peer "$IP_B:$port" \
        "${open[@]}" "${flags[@]}"
    up "$log_a" "link up"
    up "$log_b" "link up"
    ports+=(--to-a "$IP_A:$port" --to-b "$IP_B:$port")
}

#   start_nats PORT: the same
start_nats() {
    local port="$1" log_a="$temp/nats-a-$1.log" log_b="$temp/nats-b-$1.log" cluster="nats://$IP_B:$((10000 + $1))"
    start "$ns_b" "$log_b" nats-server -a "$IP_B" -p "$port" --cluster_name "lab-$port" --cluster "$cluster"
    up "$log_b" "Server is ready"
    start "$ns_a" "$log_a" nats-server -a "$IP_A" -p "$port" --cluster_name "lab-$port" \
        --cluster "nats://$IP_A:$((10000 + port))" --routes "$cluster"
    up "$log_a" "Route connection created"
    up "$log_b" "Route connection created"
    ports+=(--to-a "$IP_A:$port" --to-b "$IP_B:$port")
}

# --- the rows ---------------------------------------------------------------------------------------------------------

heading "Rows: ${rows[*]}; relays: ${targets[*]}"
for row in "${rows[@]}"; do
    for target in "${targets[@]}"; do
        ports=()
        for ((link = 0; link < $("$tools/trunkline-lab-load" --links "$row"); link++)); do
            "start_$target" "$((FIRST_PORT + link))"
        done
        # Jobs are process groups in this mode. A signal is followed while one is waited for.
        set -m
        nice -n -10 timeout --foreground "$ROW_DEADLINE" "$tools/trunkline-lab-load" --target "$target" --row "$row" \
            --seconds "$seconds" --a "$ns_a" --b "$ns_b" --wire "$temp/wire.sock" "${ports[@]}" \
            --json "$temp/json/$row-$target.json" </dev/null &
        load_pid=$!
        set +m
        wait "$load_pid"
        load_pid=""
        stop_relays
        if [[ -n "${TRUNKLINE_LAB_LOGS:-}" ]]; then
            mkdir -p "$TRUNKLINE_LAB_LOGS"
            for log in "$temp/$target"-?-*.log; do
                cp "$log" "$TRUNKLINE_LAB_LOGS/$row-${log##*/}"
            done
        fi
    done
done

heading "Report"
versions="$("$trunkline" --version)"
if [[ " ${targets[*]} " == *" nats "* ]]; then
    versions+=", $(nats-server --version)"
fi
"$tools/trunkline-lab-report" --figures "$temp/json" --table "$temp/table" --plot "$temp/plot"
cat "$temp/table"
if [[ -n "$out" ]]; then
    mkdir -p "$out"
    write_figures docs/lab.md "$temp/table" "$(facts)
- Versions: $versions
- Rows without a cut: $seconds s" "$out/lab.md"
    cp "$temp/plot" "$out/lab.svg"
fi
