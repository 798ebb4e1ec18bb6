#!/usr/bin/env bash
# The simulation: whole servers in one thread, faults and time from a seed.
#
# usage: scripts/sim.sh               the usual seeds, as in the tests
#        scripts/sim.sh --seeds N     the first N seeds
#        scripts/sim.sh [--seed] N    one seed, with its trace
#
# A failure prints its seed: scripts/sim.sh --seed N plays the same run again.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

wrong() {
  usage >&2
  exit 2
}

variable=
case ${1-} in
  '') ;;
  -h | --help) usage; exit 0 ;;
  --seeds) variable=FANWIRE_SIM_SEEDS; shift ;;
  --seed) variable=FANWIRE_SIM_SEED; shift ;;
  *) variable=FANWIRE_SIM_SEED ;;
esac
if [[ -n $variable ]]; then
  [[ $# -eq 1 && $1 =~ ^[0-9]+$ ]] || wrong
  export "$variable=$1"
fi
cd "$root"
cargo test --locked --release --lib sim_keeps_its_promises -- --nocapture
