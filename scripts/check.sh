#!/usr/bin/env bash
# Format, lints and documentation; every warning is an error.
#
# usage: scripts/check.sh
#
# Runs cargo fmt --check, cargo clippy --all-targets and cargo doc, and shellcheck over the scripts
# where it is installed. Changes nothing; `cargo fmt` mends what the first one finds.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

no_arguments "$@"
cd "$root"

section 'Format'
cargo fmt --all --check

section 'Clippy'
cargo clippy --locked --workspace --all-targets -- -D warnings

section 'Documentation'
# With private items: the module heads are the map of the inside, and link into it.
RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items

section 'Shell scripts'
if command -v shellcheck >/dev/null; then
  shellcheck -x scripts/*.sh bench/peers/*/*.sh .ci/run
else
  for script in scripts/*.sh bench/peers/*/*.sh .ci/run; do bash -n "$script"; done
  echo 'syntax only: shellcheck is not installed'
fi
