#!/usr/bin/env bash
# Builds Trunkline for use in earnest, guided by a profile (https://doc.rust-lang.org/rustc/profile-guided-optimization.html): builds
# a program that counts which way it goes, has nodes of it pass on messages, and builds the program anew from those counts.
#   scripts/build.sh     ten minutes on two cores, or seconds if nothing has changed; the last line names the program
# docs/benchmarks.md says what it gains over `cargo build --release`, and is measured with it.
# The nodes are on free ports of 127.0.0.1, and all processes end with this script.
# shellcheck disable=SC2317 # some functions are called by traps and by `await` only
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

(($# == 0)) || { echo "usage: scripts/build.sh" >&2 && exit 64; }

# How many seconds anything that is waited for may take, and how long each load lasts.
readonly DEADLINE=20 SECONDS_EACH=3

# --- tools ------------------------------------------------------------------------------------------------------------

# Puts into `profdata` a program that reads counts as rustc has them written: of the same LLVM, whose formats change.
find_profdata() {
    local candidate
    for candidate in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" "llvm-profdata-$llvm" llvm-profdata; do
        if "$candidate" --version 2>/dev/null | grep -q "LLVM version $llvm\."; then
            profdata="$candidate"
            return
        fi
    done
    return 1
}

# Makes sure that there is one.
need_profdata() {
    find_profdata && return
    heading "Installing llvm-profdata"
    if command -v rustup >/dev/null && rustup component add llvm-tools && find_profdata; then
        return
    fi
    install_packages "llvm-profdata of LLVM $llvm is missing" "llvm-$llvm"
    find_profdata || die "llvm-profdata is not of LLVM $llvm, as rustc is; with rustup: rustup component add llvm-tools"
}

# Builds the program with an option of rustc, in a folder of its own.
#   build FOLDER OPTION
build() {
    local flags
    read -ra flags <<<"${RUSTFLAGS:-}"
    flags+=("$2")
    # Spaces may be in the path. With a target, build scripts and macros, which run here, are built as ever.
    CARGO_ENCODED_RUSTFLAGS="$(IFS=$'\x1f' && echo "${flags[*]}")" CARGO_TARGET_DIR="$guided/$1" \
        cargo build --release --locked --bin trunkline --target "$host"
}

# --- what the nodes do to be counted ----------------------------------------------------------------------------------

logged() {
    grep -q -- "$2" "$1" 2>/dev/null
}

# Starts a node, and waits until it says PATTERN; its id goes to `nodes`.
#   start_node NAME PATTERN [FLAG…]
start_node() {
    local log="$temp/log" name="$1" pattern="$2"
    log="$(mktemp "$temp/node-XXXXXX")"
    shift 2
    # Through the pipe that a service's log goes through.
    "$counting" node --tcp 127.0.0.1:0 --quic 127.0.0.1:0 --link 127.0.0.1:0 --advertise "$name" --certs "$temp/certs" \
        --log-format json --max-clients 12000 --max-per-source 12000 "$@" > >(cat >"$log") 2>&1 &
    nodes+=("$!")
    if ! await "$!" logged "$log" "$pattern"; then
        cat "$log" >&2
        die "a node did not come up"
    fi
    started="$log"
}

# Where a node listens.
#   port_of tcp|quic|link LOG
port_of() {
    sed -n "s/.*\"node up\".*\"$1\":\"\([^\"]*\)\".*/\1/p" "$2"
}

# Ends the nodes, each of which writes down its counts then.
stop_nodes() {
    local pid
    kill -TERM "${nodes[@]}"
    for pid in "${nodes[@]}"; do
        wait "$pid" || die "a node did not end as it should"
    done
    nodes=()
}

# Two nodes that are joined in one way or the other; FLAGs are for both.
#   start_two [FLAG…]
start_two() {
    local peers=("$@") first
    start_node 127.0.0.1:1 '"node up"' "$@"
    first="$started"
    (($# > 0)) || peers=(--peer "127.0.0.1:1=$(port_of link "$first")")
    start_node 127.0.0.1:2 '"link up' "${peers[@]}"
    tcp=("tcp://$(port_of tcp "$first")" "tcp://$(port_of tcp "$started")")
    quic=("quic://$(port_of quic "$first")" "quic://$(port_of quic "$started")")
}

load() {
    echo "bench $*"
    "$counting" bench --duration "$SECONDS_EACH" --warm-up 0 --certs "$temp/certs" "$@" >"$temp/bench" 2>&1 \
        || { cat "$temp/bench" >&2 && die "the load failed"; }
}

# What `bench` does not ask for: lines with ids of a client that has chosen JSON, and is told of each how it ended.
#   receipts COUNT SENDER'S-URL RECEIVER'S-URL
receipts() {
    local count="$1" sender="${2#tcp://}" receiver="${3#tcp://}" address lines=()
    echo "$count lines with receipts"
    exec 3<>"/dev/tcp/${sender%:*}/${sender##*:}" 4<>"/dev/tcp/${receiver%:*}/${receiver##*:}"
    read -r address <&4
    address="${address#you is  : }"
    address="${address%$'\r'}"
    timeout "$DEADLINE" head -n "$count" <&4 >/dev/null &
    lines+=("$!")
    awk -v count="$count" -v to="$address" 'BEGIN {
        print "{\"cmd\":\"hello\",\"format\":\"json\"}"
        for (i = 1; i <= count; i++)
            printf "{\"to\":\"%s\",\"body\":\"number %d of as many as are worth a \\\"profile\\\"\",\"id\":\"%d\",\"cmd\":\"sendMsg\"}\n", to, i, i
    }' >&3 &
    lines+=("$!")
    timeout "$DEADLINE" grep -m "$count" '"status":"delivered"' <&3 >"$temp/receipts" || true
    (($(wc -l <"$temp/receipts") == count)) || die "$count lines were not answered within $DEADLINE s"
    wait "${lines[@]}"
    exec 3>&- 4>&-
}

# A redis-server on a port that is free.
start_redis() {
    local attempt port
    for attempt in {1..20}; do
        port=$((10000 + RANDOM % 20000))
        redis-server --port "$port" --bind 127.0.0.1 --save "" --appendonly no --dir "$temp" \
            --client-output-buffer-limit "pubsub 0 0 0" >"$temp/redis-$attempt" 2>&1 &
        redis="$!"
        if await "$redis" logged "$temp/redis-$attempt" "Ready to accept"; then
            url="redis://127.0.0.1:$port"
            return
        fi
    done
    cat "$temp/redis-$attempt" >&2
    die "redis-server did not come up"
}

train() {
    local nodes=() started tcp quic url redis
    "$counting" certs --certs "$temp/certs" 127.0.0.1:1 127.0.0.1:2 >/dev/null

    start_two
    load "${tcp[@]}"
    load "${tcp[@]}" --pairs 1000 --window 64
    load "${tcp[@]}" --size 16384 --window 64
    load "${tcp[@]}" --pairs 50 --rate 5000
    load "${quic[@]}"
    load "${tcp[0]}"
    receipts 20000 "${tcp[@]}"
    receipts 20000 "${tcp[0]}" "${tcp[0]}"
    stop_nodes

    start_redis
    start_two --redis "$url"
    load "${tcp[@]}"
    load "${tcp[@]}" --pairs 50 --rate 5000
    stop_nodes
    kill -TERM "$redis"
    wait "$redis"
}

# --- build, count, build ----------------------------------------------------------------------------------------------

need_rust
command -v redis-server >/dev/null || install_server redis-server
host="$(rustc -vV | sed -n 's/^host: //p')"
llvm="$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')"
need_profdata

target="${CARGO_TARGET_DIR:-target}"
mkdir -p "$target"
guided="$(cd "$target" && pwd)/guided"
own_what_runs

heading "The program that counts"
build counting -Cprofile-generate
counting="$guided/counting/$host/release/trunkline"

# Named by what it is of, because cargo builds anew only where the option is another one.
profile="$guided/$(sha256sum "$counting" | cut -c1-16).profdata"
if [[ ! -f "$profile" ]]; then
    heading "Counting"
    # A file a process.
    export LLVM_PROFILE_FILE="$temp/counts/%p.profraw"
    set -m
    (set +m && train) </dev/null &
    run_pid=$!
    set +m
    wait "$run_pid" || die "no profile; what is above says why"
    end_run
    rm -f "$guided"/*.profdata
    "$profdata" merge -o "$temp/profile" "$temp"/counts/*.profraw
    mv "$temp/profile" "$profile"
fi

heading "The program"
build release "-Cprofile-use=$profile"
cp "$guided/release/$host/release/trunkline" "$guided/trunkline"
heading "Built: ${guided#"$PWD/"}/trunkline"
