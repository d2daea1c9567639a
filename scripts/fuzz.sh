#!/usr/bin/env bash
# Has a fuzzer look for input that breaks what the readers of bytes from outside promise:
#   scripts/fuzz.sh                  every target for a minute
#   scripts/fuzz.sh --seconds N      for N seconds each
#   scripts/fuzz.sh --runs N         N runs each
#   scripts/fuzz.sh … TARGET…        these targets alone
# A target is a function of src/fuzzing/mod.rs. What breaks one is kept in fuzz/artifacts/TARGET, and the script fails.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

usage() {
    echo "usage: scripts/fuzz.sh [--seconds N | --runs N] [TARGET…]" >&2
    exit 64
}

# The longest input, in bytes: as the tests have it.
LONGEST=2048
# More memory than this is a finding, in MB; and an input that takes longer than this, in seconds.
MEMORY=1024
PATIENCE=20

limit=(-max_total_time=60)
targets=()
while (($# > 0)); do
    case "$1" in
        --seconds | --runs)
            (($# > 1)) || usage
            [[ "$2" =~ ^[1-9][0-9]{0,11}$ ]] || die "$1 is '$2', not a number from 1 on"
            limit=("-runs=$2")
            [[ "$1" == --runs ]] || limit=("-max_total_time=$2")
            shift
            ;;
        -*) usage ;;
        *)
            [[ -f "fuzz/fuzz_targets/$1.rs" ]] || die "there is no target '$1'; those in fuzz/fuzz_targets are"
            targets+=("$1")
            ;;
    esac
    shift
done
if ((${#targets[@]} == 0)); then
    for file in fuzz/fuzz_targets/*.rs; do
        file="${file##*/}"
        targets+=("${file%.rs}")
    done
fi

heading "What the fuzzer needs"
need_rust
# libFuzzer is C++.
command -v c++ >/dev/null || install_packages "a C++ compiler is missing" g++
need_cargo_command fuzz
cargo fuzz --version

heading "Building the targets"
# A fuzzed build takes compiler flags that need no nightly Rust as long as no sanitizer is asked for. Without: there is no
# unsafe code here for one to watch, and what watches instead are the assertions, and overflow checks, that cargo-fuzz
# turns on.
build=(--sanitizer none)
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/fuzz"
cargo fuzz build "${build[@]}"

log="$(mktemp)"
trap 'rm -f "$log"' EXIT
table=()
failed=()
for target in "${targets[@]}"; do
    heading "$target"
    # The first folder is the one that what is found goes to; the corpus in git is for people to add to.
    found="$CARGO_TARGET_DIR/corpus/$target"
    mkdir -p "$found" "fuzz/artifacts/$target"
    findings=0
    cargo fuzz run "${build[@]}" "$target" "$found" "fuzz/corpus/$target" -- \
        "${limit[@]}" "-max_len=$LONGEST" "-rss_limit_mb=$MEMORY" "-timeout=$PATIENCE" \
        -verbosity=0 -print_funcs=0 -print_final_stats=1 2>&1 \
        | sed -u '/^###### Recommended/,/^###### End/d' | tee "$log" || findings=1
    runs="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
    table+=("$(printf '%-16s %14s %9s' "$target" "${runs:-?}" "$findings")")
    ((findings == 0)) || failed+=("$target")
done

heading "All targets"
printf '%-16s %14s %9s\n' target runs findings
printf '%s\n' "${table[@]}"
((${#failed[@]} == 0)) || die "findings in ${failed[*]}: what is above says what, and the input is in fuzz/artifacts"
