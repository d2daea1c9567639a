#!/usr/bin/env bash
# Everything that is checked before a change goes in; stops at the first failure:
#   scripts/test.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/common.sh
source scripts/common.sh

totals="$(mktemp)"
trap 'rm -f "$totals"' EXIT

# git may refuse a directory of another owner; here it only reads.
repo() {
    git -c safe.directory="$PWD" "$@"
}

heading "What the tests need"
need_rust
need_test_programs
for component in fmt clippy; do
    if ! cargo "$component" --version >/dev/null 2>&1; then
        name="${component/fmt/rustfmt}"
        command -v rustup >/dev/null || die "cargo $component is missing: install $name for your Rust"
        rustup component add "$name"
    fi
done
rustc --version
if cargo nextest --version >/dev/null 2>&1; then
    runner=(cargo nextest run --workspace --locked)
    echo "tests run with cargo-nextest"
else
    runner=(cargo test --workspace --lib --bins --tests --examples --locked)
    echo "tests run with cargo test (cargo-nextest is not there)"
fi

heading "The repository"
for script in scripts/*.sh .ci/run; do
    bash -n "$script"
done
echo "the scripts parse"
if command -v git >/dev/null && repo rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    if repo ls-files certs | grep -vxE 'certs/(README\.md|\.gitignore)'; then
        die "these are in git: certs/ keeps README.md and .gitignore, and nothing else"
    fi
    if repo grep --cached -lE '^-----BEGIN [A-Z ]*PRIVATE KEY-----'; then
        die "these files in git hold a private key"
    fi
    if repo log --all --diff-filter=A --format= --name-only -- '*.key' | grep .; then
        die "these keys are in git's history"
    fi
    echo "git holds no key, and of certs/ only what explains it"
else
    echo "not a git work tree: what is in git is not checked"
fi

heading "Dependencies: cargo deny"
need_cargo_command deny --no-default-features
cargo deny --locked --workspace check licenses bans sources
cargo deny --locked --manifest-path fuzz/Cargo.toml --config deny.toml check licenses bans sources

heading "Format"
cargo fmt --all --check
cargo fmt --manifest-path fuzz/Cargo.toml --check
echo "formatted"

heading "Clippy"
cargo clippy --workspace --all-targets --locked -- -D warnings

heading "Documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

heading "Tests: ${runner[*]}"
"${runner[@]}" 2>&1 | tee "$totals"

# Those in which much goes from node to node, or nodes come and go; scripts/nightly.sh runs all.
over_redis=(exchange:: legacy:: load:: kill:: slow_readers:: real_tools::
    shutdown::what_was_accepted shutdown::the_same_ports_can_be_bound_at_once_after_a_shutdown)
heading "Tests with nodes that are joined by Redis: ${over_redis[*]}"
test_over redis "${over_redis[@]}" 2>&1 | tee -a "$totals"

heading "Documentation's examples: cargo test --doc"
cargo test --doc --locked 2>&1 | tee -a "$totals"

heading "What a message costs: scripts/budgets.sh"
scripts/budgets.sh

heading "Hostile input: scripts/fuzz.sh --seconds 3"
scripts/fuzz.sh --seconds 3

heading "All passed"
grep -E '^ *Summary |^test result: ' "$totals"
