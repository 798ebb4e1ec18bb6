#!/usr/bin/env bash
# An hour of mixed load, and whether anything of the server grows in it.
#
# usage: scripts/soak.sh [--minutes N] [--shards N] [--out FOLDER]
#
#   --minutes N   how long (default 60; growth is judged from 20 on, 1 shows that everything works)
#   --shards N    shards of the server (default 2)
#   --out FOLDER  where the results go (default results/soak-TIME; a run of less than an hour leaves
#                 them in target/soak-results)
#
# It builds both programs and runs `fanwire-bench soak`, which starts the server and keeps some 2,000
# connections in all dialects busy: joins, leaves, publishes, storms, slow consumers, reloads.
# Memory, descriptors and pools are sampled every few seconds; a straight line through the second
# half of them must show no growth beyond noise, and when all have left, everything must be as before
# they came. Meanwhile every message is checked: order, gaps only with a notice, no duplicates. It
# takes about a fifth of a core. As root the server gets a control group, which tells the kernel's
# memory for it from that for others. Nothing of it outlives the run.
#
# Exit code 0: nothing grew, nothing was lost, duplicated or reordered, and the server drained and
# ended as it should.
#
# FANWIRE_BIN, FANWIRE_BENCH_BIN   the programs (default: built here with cargo build --release)
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

minutes=60 shards=2 out=
while (($#)); do
  option=${1%%=*}
  case $option in
    -h | --help) usage; exit 0 ;;
    --minutes | --shards | --out) ;;
    *) usage >&2; exit 2 ;;
  esac
  if [[ $1 == *=* ]]; then value=${1#*=}; else value=${2-}; shift; fi
  shift || die "$option needs a value"
  case $option in
    --minutes) minutes=$value ;;
    --shards) shards=$value ;;
    --out) out=$value ;;
  esac
done
[[ $minutes =~ ^[1-9][0-9]{0,4}$ && $shards =~ ^[1-9][0-9]{0,3}$ ]] || die 'minutes and shards are numbers from 1'
cd "$root"
# The report names them as a reader of the repository would.
target=${target#"$root/"}
if [[ -z $out ]]; then
  out=results/soak-$(date -u +%Y-%m-%dT%H-%M-%SZ)
  ((minutes >= 60)) || out=$target/soak-results
fi

if [[ -z ${FANWIRE_BIN-} || -z ${FANWIRE_BENCH_BIN-} ]]; then
  section 'Build'
  cargo build --locked --release --workspace
fi
fanwire=${FANWIRE_BIN:-$target/release/fanwire}
bench=${FANWIRE_BENCH_BIN:-$target/release/fanwire-bench}
forget_settings

section "$minutes minutes of mixed load"
exec "$bench" soak --minutes "$minutes" --shards "$shards" --fanwire "$fanwire" --work "$target/soak" --out "$out"
