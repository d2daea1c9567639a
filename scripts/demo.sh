#!/usr/bin/env bash
# Builds Trunkline, runs three linked nodes on this machine, and lets three clients on them talk to each other:
#   scripts/demo.sh          then keeps the nodes up until Ctrl-C, so that you can join in
#   scripts/demo.sh --once   ends after the talk; exit code 0 if all that was written came
# The nodes take the ports 1215 to 1217 (TCP and UDP) and 2215 to 2217 (UDP). TRUNKLINE_DEMO_PORT=N takes N to N+2 and
# N+1000 to N+1002 in their place.
# TRUNKLINE_DEMO_PROFILE=dev builds what the tests build too, in a fraction of the time.
# shellcheck disable=SC2317 # some functions are called by traps and by `await` only
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

once=false
case "$#:${1:-}" in
    0:) ;;
    1:--once) once=true ;;
    *)
        echo "usage: scripts/demo.sh [--once]" >&2
        exit 64
        ;;
esac
base="${TRUNKLINE_DEMO_PORT:-1215}"
if ! [[ "$base" =~ ^[1-9][0-9]{0,4}$ ]] || ((base > 64533)); then
    die "TRUNKLINE_DEMO_PORT is '$base', not a port from 1 to 64533"
fi

# How it is built: cargo's name of a profile.
profile="${TRUNKLINE_DEMO_PROFILE:-release}"

# How many seconds anything that is waited for may take.
readonly DEADLINE=20

nodes=("127.0.0.1:$base" "127.0.0.1:$((base + 1))" "127.0.0.1:$((base + 2))")
temp=""
node_pids=()
client_pids=()
started=""

# --- ending -----------------------------------------------------------------------------------------------------------

# Stops the nodes, and says whether each of them ended as it should.
stop_nodes() {
    local pid clean=true
    # A node delivers what it accepted before it ends. Ctrl-C while that is waited for ends them at once.
    trap 'kill -KILL "${node_pids[@]}" 2>/dev/null || true' INT TERM
    for pid in "${node_pids[@]}"; do
        kill -TERM "$pid" 2>/dev/null || true
    done
    for pid in "${node_pids[@]}"; do
        wait "$pid" 2>/dev/null || clean=false
    done
    node_pids=()
    $clean
}

stop_clients() {
    local pid
    for pid in "${client_pids[@]}"; do
        kill -TERM "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    client_pids=()
}

clean_up() {
    local code=$?
    set +e
    trap '' HUP
    stop_clients
    stop_nodes
    [[ -n "$temp" ]] && rm -rf "$temp"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# --- starting and waiting ---------------------------------------------------------------------------------------------

# Starts a program and puts its id into `started`. It gets a process group of its own: Ctrl-C is for this script alone,
# which then stops the programs in order.
start() {
    set -m
    "$@" &
    started=$!
    set +m
}

logged() {
    grep -q -- "$2" "$1" 2>/dev/null
}

# What a client has seen: its lines without their line ends.
seen() {
    tr -d '\r' <"$temp/$1.out"
}

saw_line() {
    grep -qxF -- "$2" <(seen "$1")
}

greeted() {
    grep -q '^you is  : .' <(seen "$1")
}

# --- certificates, build, nodes ---------------------------------------------------------------------------------------

need_rust
heading "Build"
cargo build --profile "$profile" --locked --bin trunkline
# As a path that can be typed in the project's directory.
bin="${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}/trunkline"

heading "Certificates (certs/; only what is missing is made)"
TRUNKLINE_BIN="$bin" scripts/gen-certs.sh "${nodes[@]}"

temp="$(mktemp -d)"

heading "Three nodes"
peers=()
for i in 0 1 2; do
    start "$bin" node --tcp "${nodes[i]}" --certs certs --grace 5 --log info "${peers[@]}" \
        </dev/null >"$temp/node-$i.log" 2>&1
    node_pids+=("$started")
    if ! await "$started" logged "$temp/node-$i.log" "node up"; then
        cat "$temp/node-$i.log" >&2
        if logged "$temp/node-$i.log" "can't bind"; then
            other=$((base < 60000 ? base + 2000 : 1215))
            die "a port is taken, as said above; is another demo running? TRUNKLINE_DEMO_PORT=$other scripts/demo.sh" \
                "takes the ports $other to $((other + 2)) and $((other + 1000)) to $((other + 1002))"
        fi
        die "the node ${nodes[i]} did not come up"
    fi
    peers+=(--peer "${nodes[i]}")
done
for i in 0 1 2; do
    for peer in "${nodes[@]}"; do
        [[ "$peer" == "${nodes[i]}" ]] && continue
        if ! await "${node_pids[i]}" logged "$temp/node-$i.log" "link up.*peer=$peer "; then
            cat "$temp/node-$i.log" >&2
            die "no link between ${nodes[i]} and $peer within $DEADLINE s"
        fi
    done
    echo "${nodes[i]} is up, linked to the other two"
done

# --- three clients ----------------------------------------------------------------------------------------------------

declare -A address input program client_pid

# A legacy client: nc, or bash's own TCP where there is no nc.
#   join_by_tcp NAME PORT
join_by_tcp() {
    local name="$1" port="$2" fd
    if command -v nc >/dev/null; then
        program[$name]="nc 127.0.0.1 $port"
        mkfifo "$temp/$name.in"
        exec {fd}<>"$temp/$name.in"
        start nc 127.0.0.1 "$port" <"$temp/$name.in" >"$temp/$name.out" 2>&1
    else
        program[$name]="bash, /dev/tcp/127.0.0.1/$port"
        exec {fd}<>"/dev/tcp/127.0.0.1/$port"
        start cat <&"$fd" >"$temp/$name.out" 2>&1
    fi
    joined "$name" "$started" "$fd"
}

#   join_by_quic NAME NODE
join_by_quic() {
    local name="$1" node="$2" fd
    program[$name]="$bin chat --node $node"
    mkfifo "$temp/$name.in"
    exec {fd}<>"$temp/$name.in"
    start "$bin" chat --node "$node" --certs certs <"$temp/$name.in" >"$temp/$name.out" 2>&1
    joined "$name" "$started" "$fd"
}

#   joined NAME PID FD
joined() {
    client_pids+=("$2")
    client_pid[$1]="$2"
    input[$1]="$3"
    if ! await "$2" greeted "$1"; then
        cat "$temp/$1.out" >&2
        die "$1 (${program[$1]}) was not greeted"
    fi
    address[$1]="$(seen "$1" | sed -n 's/^you is  : //p')"
    printf '%-6s is %s by %s\n' "$1" "${address[$1]}" "${program[$1]}"
}

# One client types a line.
#   types NAME LINE
types() {
    printf '%s\n' "$2" >&"${input[$1]}"
    printf '%-6s types  %s\n' "$1" "$2"
}

# One client must see a line.
#   sees NAME LINE
sees() {
    if ! await "${client_pid[$1]}" saw_line "$1" "$2"; then
        echo "What $1 saw:" >&2
        seen "$1" >&2
        die "within $DEADLINE s this did not come to $1: $2"
    fi
}

# A legacy client writes to another client.
#   line_to NAME TO TEXT [ID]
line_to() {
    local id="${4:+,\"id\":\"$4\"}"
    types "$1" "{\"to\":\"${address[$2]}\",\"body\":\"$3\",\"cmd\":\"sendMsg\"$id}"
    sees "$2" "${address[$1]} say : $3"
}

# The QUIC client writes to another client.
#   chat_to NAME TO TEXT
chat_to() {
    types "$1" "/to ${address[$2]}"
    types "$1" "$3"
    sees "$2" "${address[$1]} say : $3"
    sees "$1" "delivered : $3"
}

heading "Three clients, each on another node"
join_by_tcp alice "$base"
join_by_tcp bob "$((base + 1))"
join_by_quic carol "${nodes[2]}"

heading "Each writes to each"
line_to alice bob "hello bob" 1
sees alice '{"cmd":"receipt","id":"1","status":"delivered"}'
line_to alice carol "hello carol"
line_to bob alice "hello alice"
line_to bob carol "hi carol"
chat_to carol alice "good day alice"
chat_to carol bob "good day bob"

for name in alice bob carol; do
    heading "What $name saw"
    seen "$name"
done

heading "Check"
for name in alice bob carol; do
    count="$(seen "$name" | grep -c ' say : ' || true)"
    ((count == 2)) || die "$name saw $count messages, not 2: something came twice or from nowhere"
done
echo "all 6 messages came, each once, from whom they say"
stop_clients

if $once; then
    pids=("${node_pids[@]}")
    if ! stop_nodes; then
        tail -n 5 "$temp"/node-*.log >&2
        die "a node did not end as it should (${pids[*]})"
    fi
    echo "the nodes are stopped"
    exit 0
fi

# --- until Ctrl-C -----------------------------------------------------------------------------------------------------

heading "Your turn: the nodes stay up until Ctrl-C"
cat <<END
In other terminals, from this project's directory, join as one of these:

  nc 127.0.0.1 $base
  telnet 127.0.0.1 $((base + 1))
  $bin chat --node ${nodes[2]} --certs certs

Each is told its address (you is  : ADDRESS). From nc or telnet you write to one with a line of JSON:

  {"to":"ADDRESS","body":"hello","cmd":"sendMsg"}

In chat, type /to ADDRESS once, then what you want to say.
END
trap 'echo; echo "stopping the nodes"; exit 0' INT TERM
wait -n "${node_pids[@]}" || true
tail -n 5 "$temp"/node-*.log >&2
die "a node ended by itself"
