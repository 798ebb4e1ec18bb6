#!/usr/bin/env bash
# The simulation: whole servers in one thread, faults and time from a seed.
#
# usage: scripts/sim.sh [--dev]                  the usual seeds, and an hour of 1000 connections
#        scripts/sim.sh [--dev] --seeds N        N seeds, from 0 on
#        scripts/sim.sh [--dev] --seconds N      as many seeds as that brings, behind the usual ones
#        scripts/sim.sh [--dev] --hours N        the quiet world of 1000 connections, so long
#        scripts/sim.sh [--dev] [--seed] N       one seed, with its trace
#
# --from N begins with another seed. --seeds and --seconds together: whichever ends first. --dev
# runs what `cargo test` builds, with debug assertions and overflow checks, at a quarter of the
# speed. Prints simulated hours and steps per second. Without --dev the quiet world must come to an
# hour per second, on a core of its own, or fails.
#
# A failure prints its seed: scripts/sim.sh --seed N plays the same run again, with --dev if it was
# found so.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

wrong() {
  usage >&2
  exit 2
}

profile=(--release)
tests=(sim_keeps_its_promises sim_of_a_thousand_quiet_connections)
export FANWIRE_SIM_MINUTES=60 FANWIRE_SIM_HOURS_PER_SECOND=1
while [[ $# -gt 0 ]]; do
  option=$1
  case $option in
    -h | --help) usage; exit 0 ;;
    # With the whole workspace, as `cargo test` builds it: with other features all is built again.
    --dev) profile=(--workspace); unset FANWIRE_SIM_HOURS_PER_SECOND; shift; continue ;;
    --seed | --seeds | --seconds | --hours | --from) shift ;;
    *) option=--seed ;;
  esac
  [[ ${1-} =~ ^[0-9]+$ ]] || wrong
  case $option in
    --hours) FANWIRE_SIM_MINUTES=$((60 * $1)) tests=(sim_of_a_thousand_quiet_connections) ;;
    *)
      name=${option#--}
      export "FANWIRE_SIM_${name^^}=$1"
      ;;
  esac
  [[ $option == --hours || $option == --from ]] || tests=(sim_keeps_its_promises)
  shift
done
# The usual seeds run in every `cargo test`.
[[ -z ${FANWIRE_SIM_SECONDS-} || -n ${FANWIRE_SIM_SEEDS-} ]] || export FANWIRE_SIM_FROM=${FANWIRE_SIM_FROM:-200}
cd "$root"
cargo test --locked "${profile[@]}" --lib -- "${tests[@]}" --nocapture --test-threads=1
