#!/usr/bin/env bash
# Counts the instructions that the ways of every message through a node take, under callgrind, and fails where one takes more
# than its budget:
#   scripts/budgets.sh
# The budgets are in budgets/budgets.txt, the workloads in src/hot_paths.rs.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

(($# == 0)) || { echo "usage: scripts/budgets.sh" >&2 && exit 64; }

# A budget that is above the count by more than this many percent is to follow it.
SLACK=10

if [[ "$(uname -sm)" != "Linux x86_64" ]]; then
    echo "nothing is counted: the budgets are of Linux on x86_64"
    exit
fi

heading "What the counting needs"
need_rust
command -v valgrind >/dev/null || install_packages "valgrind is missing" valgrind
version="$(cargo pkgid --locked gungraun)"
version="${version##*@}"
# It runs what the library has built, of the same version and no other.
if [[ "$(gungraun-runner --version 2>/dev/null)" != *" $version" ]]; then
    install_program gungraun-runner --version "=$version"
fi
valgrind --version
rustc --version

heading "Counting"
export GUNGRAUN_HOME="${CARGO_TARGET_DIR:-$PWD/target}/gungraun"
# Counts do not depend on what runs beside.
GUNGRAUN_PARALLEL="$(nproc)"
export GUNGRAUN_PARALLEL
start="$(mktemp)"
trap 'rm -f "$start"' EXIT
counted=0
cargo bench --profile budgets --locked -p trunkline-budgets || counted=$?

heading "Budgets"
printf '%-26s %14s %14s\n' case instructions "of budget"
loose=()
while read -r case budget _; do
    [[ -n "$case" && "$case" != \#* ]] || continue
    file="$GUNGRAUN_HOME/trunkline-budgets/hot_paths/hot_paths/$case/callgrind.$case.out"
    # Left by an earlier run, it would hide that this one did not count.
    [[ "$file" -nt "$start" ]] || die "nothing was counted of $case: what is above may say why; is it still there?"
    count="$(sed -n 's/^totals: *//p' "$file")"
    [[ "$count" =~ ^[1-9][0-9]*$ ]] || die "$file has no count"
    share=$((1000 * count / budget))
    printf '%-26s %14d %12d.%d%%\n' "$case" "$count" "$((share / 10))" "$((share % 10))"
    ((100 * budget <= (100 + SLACK) * count)) || loose+=("$case")
done <budgets/budgets.txt
((${#loose[@]} == 0)) || echo "far below their budget, which may follow them (budgets/budgets.txt): ${loose[*]}"
((counted == 0)) || die "over budget; what is above says where, and CONTRIBUTING.md (\"Speed\") what to do"
