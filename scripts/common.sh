# shellcheck shell=bash
# What the scripts share. To be sourced, from bash, with `set -euo pipefail`.

# Prints a heading.
heading() {
    printf '\n=== %s\n' "$*"
}

# Says what is wrong, and ends the script.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Runs a command as root, by sudo if need be.
as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo "$@"
    fi
}

# Installs Debian packages as root, or by sudo; where neither can be, says what to install.
#   install_packages WHY PACKAGE…
install_packages() {
    local why="$1"
    shift
    command -v apt-get >/dev/null || die "$why; install what Debian calls: $*"
    ((EUID == 0)) || command -v sudo >/dev/null || die "$why; as root: apt-get install -y $*"
    heading "Installing $*: $why"
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

# Makes sure that Rust code can be built here.
need_rust() {
    if ! command -v cargo >/dev/null && [[ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]]; then
        export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    command -v cargo >/dev/null \
        || die "cargo is missing. Get Rust 1.95 or later as https://rustup.rs says, open a new shell, and run this again"
    # Rust links with it, and the cryptography is partly C.
    command -v cc >/dev/null || install_packages "a C compiler is missing" gcc libc6-dev
}

# Makes sure that cargo has a command, from the package of that name.
#   need_cargo_command NAME [OPTION…]
need_cargo_command() {
    local name="$1"
    shift
    cargo "$name" --version >/dev/null 2>&1 || install_program "cargo-$name" "$@"
}

# Installs a program from its package.
#   install_program PACKAGE [OPTION…]
install_program() {
    heading "Installing $1"
    # Not optimised, it is built in less than half of the time, and what it does here takes a second either way.
    CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        cargo install "$1" --locked "${@:2}"
}

# Installs a server from the package of its name. A service that the package has started is ended: it was not there before.
install_server() {
    install_packages "$1 is missing" "$1"
    if [[ -d /run/systemd/system ]]; then
        as_root systemctl disable --now "$1"
    elif [[ -x "/etc/init.d/$1" ]]; then
        as_root "/etc/init.d/$1" stop
    fi
}

# Makes sure that the programs are there which the tests talk to nodes with, and the Redis that they start.
need_test_programs() {
    # The tests talk to nodes as people do: with the real programs.
    if ! command -v nc >/dev/null || ! { nc -h 2>&1 || true; } | grep -q OpenBSD || ! command -v telnet >/dev/null; then
        install_packages "OpenBSD's nc or telnet is missing" netcat-openbsd telnet
    fi
    # Started by the tests, on ports of their own.
    if ! command -v redis-server >/dev/null; then
        install_server redis-server
    fi
}

# Runs the tests with whole nodes, and has CARRIER join those (`tests/it/support/carrier.rs` says what there is); with
# NAMEs only those whose names contain one.
#   test_over CARRIER [NAME…]
test_over() {
    local carrier="$1" runner=(cargo test --workspace --test it --locked --)
    shift
    if cargo nextest --version >/dev/null 2>&1; then
        runner=(cargo nextest run --workspace --test it --locked)
    fi
    TRUNKLINE_TEST_CARRIER="$carrier" "${runner[@]}" "$@"
}

# Waits until a command succeeds. Fails when DEADLINE seconds are over, or at once when a process is gone.
#   await PID COMMAND…
await() {
    local pid="$1" end=$((SECONDS + DEADLINE))
    shift
    until "$@"; do
        if ! kill -0 "$pid" 2>/dev/null; then
            # What it wrote last may be what is waited for.
            "$@"
            return
        fi
        ((SECONDS < end)) || return 1
        sleep 0.05
    done
}

# Ends a process group that was started here, if there is one, by the process that leads it.
end_group() {
    [[ -n "$1" ]] || return 0
    kill -TERM -- "-$1" 2>/dev/null
    wait "$1" 2>/dev/null
    kill -KILL -- "-$1" 2>/dev/null
}

# What led the process group of `run_pid` has ended, maybe because the system killed it: ends what it has left behind.
end_run() {
    end_group "$run_pid" || true
    run_pid=""
}

# Has this script end with all that it starts: `run_pid` is a process group that is ended, `temp` a folder that is removed.
own_what_runs() {
    run_pid=""
    temp="$(mktemp -d)"
    trap end_what_runs EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
}

end_what_runs() {
    local code=$?
    set +e
    trap '' HUP INT TERM
    end_group "$run_pid"
    rm -rf "$temp"
    exit "$code"
}

# Builds the program, and the programs that measure it: `$bin` and `$tools` are where they are then. Options say which of the latter.
#   build_to_measure [--bin NAME]…
build_to_measure() {
    heading "Build"
    cargo build --release --locked --bin trunkline
    # shellcheck disable=SC2034 # for the scripts that source this
    bin="${CARGO_TARGET_DIR:-target}/release"
    build_tools "$@"
}

# Builds the latter alone.
#   build_tools [--bin NAME]…
build_tools() {
    local which=("$@")
    ((${#which[@]} > 0)) || which=(--bins)
    cargo build --profile lab --locked -p trunkline-lab "${which[@]}"
    # shellcheck disable=SC2034 # for the scripts that source this
    tools="${CARGO_TARGET_DIR:-target}/lab"
}

# Writes the figures in a document anew: those lines of facts, and a table, between its two marks; to another file if one is given.
#   write_figures DOCUMENT TABLE FACTS [TO]
write_figures() {
    local to="${4:-$1}"
    {
        sed '/^<!-- figures -->$/q' "$1"
        printf '\n%s\n\n' "$3"
        cat "$2"
        printf '\n'
        sed -n '/^<!-- end of figures -->$/,$p' "$1"
    } >"$temp/document"
    cat "$temp/document" >"$to"
    heading "Written: $to"
}

# The facts that each document states.
facts() {
    local cpu
    cpu="$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)"
    printf -- '- Date: %s\n- Machine: %s cores, %s, Linux %s' "$(date -u +%F)" "$(nproc)" "${cpu:-$(uname -m)}" \
        "$(uname -r | cut -d. -f1-2)"
}
