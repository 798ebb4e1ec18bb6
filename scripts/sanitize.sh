#!/usr/bin/env bash
# Memory errors and data races: the end-to-end tests against a server with AddressSanitizer, and the
# pure parts under Miri.
#
# usage: scripts/sanitize.sh [address|miri]     one of them (default: both)
#
#   address   builds server and tests with -Zsanitizer=address and runs the end-to-end tests. The
#             server then has the system's allocator, since mimalloc would hide what is done to the
#             heap. Leaks are reported when a server ends by itself. Needs the nightly toolchain, or
#             takes the usual one and lets it have nightly's options.
#   miri      interprets the unit and property tests of protocol, dialect, room, slab, pattern and
#             the mailboxes between threads. Needs the component miri of the nightly toolchain
#             (rustup toolchain install nightly --component miri,rust-src).
#
# On two cores a quarter of an hour for address, most of it for builds, which stay in the target
# folder; for miri half an hour. Tests that would take it minutes each say so, and are left out.
#
# Exit code: 0 nothing was found; 1 something was; 2 not a command line of this script; 3 nothing was
# found, but not all of it was run: the last line says what was not, and why.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

case ${1-both} in
  -h | --help) usage; exit 0 ;;
  both | address | miri) what=${1-both} ;;
  *) usage >&2; exit 2 ;;
esac
(($# <= 1)) || { usage >&2; exit 2; }
cd "$root"
forget_settings
nightly=''
if cargo +nightly --version >/dev/null 2>&1; then nightly=+nightly; fi

address() {
  section 'AddressSanitizer: end-to-end tests'
  if [[ -z $nightly ]]; then
    echo 'no nightly toolchain: the usual one, with RUSTC_BOOTSTRAP=1'
    export RUSTC_BOOTSTRAP=1
  fi
  local host reports=$target/asan
  host=$(rustc -vV | sed -n 's/^host: //p')
  rm -rf "$reports"
  mkdir -p "$reports"
  # With a target named, build scripts and macros are built without it.
  RUSTFLAGS='-Zsanitizer=address --cfg asan' ASAN_OPTIONS="log_path=$reports/report" \
    cargo ${nightly:+"$nightly"} test --locked --target "$host" --test '*' --no-fail-fast || failed+=(address)
  if compgen -G "$reports/report*" >/dev/null; then
    head -n 40 "$reports"/report* >&2
    failed+=("reports in $reports")
  fi
}

miri() {
  section 'Miri: pure parts'
  if [[ -z $nightly ]] || ! cargo +nightly miri --version >/dev/null 2>&1; then
    not_run='miri, since the nightly toolchain or its component miri is missing'
    return
  fi
  # Few cases of each property: it is a hundred times slower than the processor.
  MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=3 PROPTEST_DISABLE_FAILURE_PERSISTENCE=1 \
    cargo +nightly miri test --locked --lib -- protocol:: dialect:: room:: slab:: pattern:: \
    io::mailbox::tests --skip any_bytes || failed+=(miri)
}

failed=() not_run=''
[[ $what == miri ]] || address
[[ $what == address ]] || miri
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
if [[ -n $not_run ]]; then
  section "NOT RUN: $not_run"
  exit 3
fi
section 'Nothing found'
