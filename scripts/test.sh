#!/usr/bin/env bash
# Everything that CI runs, after installing what it needs.
#
# usage: scripts/test.sh
#
# Format, lints and documentation (scripts/check.sh), unit, property, simulation and end-to-end
# tests (cargo test), the Autobahn cases (scripts/conformance.sh), WebSocket clients that others
# wrote (scripts/clients.sh), 50,000 connections at once (scripts/million.sh), the pages in headless
# Chromium (tests/browser), and the instructions that fixed scenarios take beside the previous
# commit's (scripts/perf-guard.sh). Stops at the first failure. On Debian and its kin it installs
# Chromium, Node.js, Python's venv, valgrind, iproute2 and curl where they are missing, as root or
# through sudo; elsewhere install them first. Rust is expected to be there. Some tests make networks,
# mounts or control groups of their own. Where a process may do that, none of them may be left out
# (SKIPPING_FAILS); where it may not (not as root, say) they say SKIPPED, and the end says how many.
#
# FANWIRE_CHROMIUM      the browser (default /usr/bin/chromium)
# FANWIRE_SCREENSHOTS   a directory where the browser tests leave their screenshots
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

no_arguments "$@"
cd "$root"
SECONDS=0
# Nothing here is built twice, so what would make that faster only costs time.
export CARGO_INCREMENTAL=0

# missing: what this host does not let tests make, a line each.
missing() {
  unshare --net ip tuntap add dev probe mode tun 2>/dev/null || echo 'networks with devices of /dev/net/tun'
  unshare --mount mount -t tmpfs none /mnt 2>/dev/null || echo 'mounts'
  memory_group || echo 'control groups with a limit of memory'
}

# memory_group: whether there can be one, where tests/faults/memory.rs would make it.
memory_group() {
  local parent limit=memory.limit_in_bytes group
  parent=$(sed -nE 's/^[0-9]+:([^:]*,)?memory(,[^:]*)?:(.*)/\/sys\/fs\/cgroup\/memory\3/p' /proc/self/cgroup)
  if [[ -z $parent ]]; then
    limit=memory.max
    parent=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
    until grep -qw memory "$parent/cgroup.subtree_control" 2>/dev/null; do
      [[ $parent != / ]] || return 1
      parent=$(dirname -- "$parent")
    done
  fi
  group=$parent/fanwire-probe-$$
  mkdir -- "$group" 2>/dev/null || return 1
  [[ -w $group/$limit ]] || limit=''
  rmdir -- "$group"
  [[ -n $limit ]]
}

section 'What the tests need'
command -v cargo >/dev/null || die 'cargo is missing: install Rust 1.88 or newer first'
packages=()
command -v cc >/dev/null || packages+=(gcc libc6-dev)
[[ -x ${FANWIRE_CHROMIUM:-/usr/bin/chromium} ]] || packages+=(chromium)
command -v npm >/dev/null || packages+=(nodejs npm)
python3 -c 'import venv, ensurepip' 2>/dev/null || packages+=(python3 python3-venv)
command -v valgrind >/dev/null || packages+=(valgrind)
command -v ip >/dev/null || packages+=(iproute2)
command -v curl >/dev/null || packages+=(curl)
if ((${#packages[@]})); then
  command -v apt-get >/dev/null || die "please install: ${packages[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)' || die "Node.js 20 or newer is needed, this is $(node --version)"
(cd tests/browser && npm ci --ignore-scripts --no-audit --no-fund)
lacks=$(missing)
if [[ -z $lacks ]]; then
  export SKIPPING_FAILS=1
else
  printf 'No test can make: %s\n' "${lacks//$'\n'/, }"
fi

scripts/check.sh

section 'Build of the tests'
# In the dev profile: with debug assertions and overflow checks, and sooner built than ten test
# binaries with link-time optimisation. Without our own variables: each test states its settings.
tests=(env -u FANWIRE_BIN -u FANWIRE_BENCH_BIN -u FANWIRE_CHROMIUM -u FANWIRE_SCREENSHOTS cargo test --locked --workspace)
"${tests[@]}" --no-run

# Tests wait for most of their time. Meanwhile the release is built, of the generator none, which
# would take a minute; and its instructions are counted, which other work does not change. All with
# the least priority, so that no test waits for it.
counted=$target/instructions.log
set -m # a group of its own, to be ended as one
(
  renice -n 19 "$BASHPID" >/dev/null
  section 'Build of the release'
  cargo build --locked --release --workspace --bin fanwire --bin fanwire-instructions
  section 'Instructions'
  scripts/perf-guard.sh
) >"$counted" 2>&1 &
counting=$!
set +m
trap 'kill -- "-$counting" 2>/dev/null || true' EXIT

section 'Unit, property, simulation and end-to-end tests'
tested=$target/tests.log
"${tests[@]}" 2>&1 | tee "$tested"
left_out=$(grep -c 'SKIPPED ' "$tested" || true)

section 'Simulation of more seeds'
# As many as that brings, behind those of `cargo test`, and the same ones with every commit: none
# fails for what it did not do. Others by hand: scripts/sim.sh --from N --seeds 10000.
scripts/sim.sh --dev --from 200 --seeds 10000 --seconds 30

# What the tests have built does for these, and looks closer: debug assertions, overflow checks.
export FANWIRE_BIN=$target/debug/fanwire FANWIRE_BENCH_BIN=$target/debug/fanwire-bench

section 'Clients that others wrote'
scripts/clients.sh

section 'The pages in Chromium'
(cd tests/browser && npm --silent test)

failed=''
wait "$counting" || failed=1
trap - EXIT
cat "$counted"
[[ -z $failed ]] || die 'the release, or its instructions: see above'
export FANWIRE_BIN=$target/release/fanwire

section 'Autobahn cases'
scripts/conformance.sh

section '50,000 connections'
scripts/million.sh --connections 50000 --hold 5 --ping-interval 10

((left_out == 0)) || echo "$left_out of the end-to-end tests LEFT OUT: this host does not let them run (SKIPPED, above)"
section "All passed in $((SECONDS / 60)) min $((SECONDS % 60)) s"
