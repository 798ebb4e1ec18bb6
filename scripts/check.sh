#!/usr/bin/env bash
# Format, lints and documentation; every warning is an error.
#
# usage: scripts/check.sh
#
# Runs cargo fmt --check, cargo clippy --all-targets, cargo check over the programs of fuzz/, cargo
# doc, and where they are installed cargo-deny over the dependencies and shellcheck over the scripts.
# Changes nothing; `cargo fmt` mends what the first one finds.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

no_arguments "$@"
cd "$root"

section 'Format'
cargo fmt --all --check

section 'Clippy'
cargo clippy --locked --workspace --all-targets -- -D warnings

section 'Fuzz programs'
# Only fuzzers build them. To check them, the fuzzer's own library, in C++, is not needed.
CUSTOM_LIBFUZZER_PATH=/left-out/libfuzzer.a RUSTFLAGS='--cfg fuzzing -D warnings' \
  cargo check --locked --manifest-path fuzz/Cargo.toml --target-dir "$target/fuzz/check"

section 'Documentation'
# With private items: the module heads are the map of the inside, and link into it.
RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items

section 'Dependencies'
# Licences, bans, second versions and sources are held in every `cargo test`, too (src/tests/supply.rs).
if ! command -v cargo-deny >/dev/null; then
  echo 'SKIPPED: cargo-deny is not installed (cargo install --locked cargo-deny; it takes minutes)'
else
  deny=(cargo deny --locked --workspace --log-level error)
  "${deny[@]}" check --deny unmatched-skip licenses bans sources
  if "${deny[@]}" fetch db 2>/dev/null; then
    "${deny[@]}" check --disable-fetch advisories
  else
    echo 'SKIPPED: advisories; their database (github.com/RustSec/advisory-db) is out of reach'
  fi
fi

section 'Shell scripts'
if command -v shellcheck >/dev/null; then
  shellcheck -x scripts/*.sh bench/peers/*/*.sh .ci/run
else
  for script in scripts/*.sh bench/peers/*/*.sh .ci/run; do bash -n "$script"; done
  echo 'syntax only: shellcheck is not installed'
fi
