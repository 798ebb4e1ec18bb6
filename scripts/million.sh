#!/usr/bin/env bash
# A million connections to one server on this host, and a folder that shows it.
#
# usage: scripts/million.sh [--connections N] [--broadcasts N] [--hold SECONDS]
#                           [--ping-interval SECONDS] [--out FOLDER]
#
#   --connections N     connections to open (default 1000000; 50000 make a two-minute smoke test)
#   --broadcasts N      messages to all of them, one after the other (default 20)
#   --hold SECONDS      how long to hold them idle without heartbeats (default 20)
#   --ping-interval S   heartbeats while they are held once more, for one and a half of these
#                       intervals (default 40)
#   --out FOLDER        where the results go (default results/million-TIME; a run with fewer than
#                       a million leaves them in target/million)
#
# It builds both programs; applies the host profile idle-million as far as it may (it takes root);
# lets a run of 50,000 tell the kernel memory of the two ends apart; starts the server with as many
# shards as the descriptor limit asks for; opens the connections, all of them members of one room;
# holds them, switches heartbeats on (SIGHUP) and holds them again; broadcasts, with heartbeats off
# again, so that each of the three is measured alone; closes them with closing handshakes. At the end, or when interrupted, it stops what it has started and puts the
# host's settings back.
#
# Exit code 0: all have opened, every broadcast has reached each exactly once, all have closed
# cleanly. Needs Linux 6.1, some 9 KB of free memory per connection (both ends of the sockets are
# here, and both programs), and for a million on two cores about eight minutes.
#
# FANWIRE_BIN, FANWIRE_BENCH_BIN   the programs (default: built here with cargo build --release)
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

wrong() {
  (($# == 0)) || printf '%s: %s\n\n' "${0##*/}" "$*" >&2
  usage >&2
  exit 2
}

connections=1000000 broadcasts=20 hold=20 ping_interval=40 out=
while (($#)); do
  option=${1%%=*}
  case $option in
    -h | --help) usage; exit 0 ;;
    --connections | --broadcasts | --hold | --ping-interval | --out) ;;
    *) wrong "unknown option $1" ;;
  esac
  if [[ $1 == *=* ]]; then value=${1#*=}; else value=${2-}; shift; fi
  shift || wrong "$option needs a value"
  [[ $option == --out || $value =~ ^[1-9][0-9]{0,7}$ ]] || wrong "$option takes a number from 1 to 99999999, not '$value'"
  case $option in
    --connections) connections=$value ;;
    --broadcasts) broadcasts=$value ;;
    --hold) hold=$value ;;
    --ping-interval) ping_interval=$value ;;
    --out) [[ -n $value ]] || wrong '--out needs a folder'; out=$value ;;
  esac
done
if [[ -z $out ]]; then
  out=$target/million
  ((connections < 1000000)) || out=$root/results/million-$(date -u +%Y-%m-%dT%H-%M-%SZ)
fi
mkdir -p "$out"
out=$(cd -- "$out" && pwd)
cd "$root"
# The report names them as a reader of the repository would.
out=${out#"$root/"} target=${target#"$root/"}
SECONDS=0

# Kernel and user memory of both ends together; measured, see results/README.md.
bytes_per_connection=9000
# Enough that the noise of the host vanishes in the kernel's memory for them, and no more.
split_connections=$((connections < 50000 ? connections : 50000))

available_kib=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)
fitting=$((available_kib * 1024 / bytes_per_connection))
((connections <= fitting)) ||
  die "$connections connections need about $((connections * bytes_per_connection >> 20)) MiB of free memory, and $((available_kib >> 10)) MiB are free: --connections $((fitting / 1000 * 1000)) would fit"

section 'Build'
if [[ -z ${FANWIRE_BIN-} || -z ${FANWIRE_BENCH_BIN-} ]]; then
  cargo build --locked --release --workspace
fi
fanwire=${FANWIRE_BIN:-$target/release/fanwire}
bench=${FANWIRE_BENCH_BIN:-$target/release/fanwire-bench}
forget_settings

work=$(mktemp -d)
server='' generator='' tuned=''

tune() {
  # The state outlives a killed run: the next one still restores what was found first.
  FANWIRE_TUNE_STATE=/run/fanwire/million.conf scripts/tune.sh "$@" --yes
}

# end VARIABLE SIGNAL: ends the process that the variable names, if it still runs.
end() {
  local -n process=$1
  [[ -n $process ]] || return 0
  kill -"$2" "$process" 2>/dev/null || true
  wait "$process" 2>/dev/null || true
  process=
}

# shellcheck disable=SC2317 # called by the trap
clean_up() {
  local code=$?
  trap - EXIT
  trap '' INT TERM HUP
  # The generator first: at a signal it closes its connections and writes the report so far.
  end generator INT
  end server TERM
  [[ -z $tuned ]] || tune revert || code=1
  rm -rf "$work"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# start_server CONNECTIONS: sets server and address. In a session of its own, as the generator is:
# Ctrl-C is for this script, which ends them in the right order.
start_server() {
  local limit shards
  limit=$(ulimit -H -n)
  # As many shards as hold them although they are dealt by a hash (host::shards_for).
  shards=$(awk -v n="$1" -v limit="$limit" -v cpus="$(nproc)" 'BEGIN {
    usable = limit == "unlimited" ? n : limit - 256; usable -= 5 * sqrt(usable)
    shards = int((n + usable - 1) / usable); print (shards > cpus ? shards : cpus) }')
  "$fanwire" check --connections "$1" --shards "$shards" >"$out/check.txt" || { cat "$out/check.txt" >&2; die 'this host does not hold them'; }
  printf 'ping_interval = "off"\n' >"$work/fanwire.toml"
  : >"$out/server.log"
  setsid "$fanwire" serve --config "$work/fanwire.toml" --listen 127.0.0.1:0 --admin off --shards "$shards" 2>"$out/server.log" &
  server=$!
  await_server "$out/server.log"
}

# generate FOLDER SCENARIO OPTION...: runs the generator; its report is in FOLDER/summary.txt, too.
generate() {
  local folder=$1 code=0
  mkdir -p "$folder"
  setsid "$bench" "${@:2}" --target "$address" --pid "$server" --path '/raw/million' --out "$folder" >"$folder/summary.txt" &
  generator=$!
  wait "$generator" || code=$?
  generator=
  cat "$folder/summary.txt"
  return "$code"
}

# Sockets that were closed give their memory back a moment later (RCU, and a worker for the files):
# what is measured next must not begin with it.
settle() {
  local slab=0 before
  for ((i = 0; i < 60; i++)); do
    before=$slab
    slab=$(sed -n 's/^Slab: *\([0-9]*\) kB/\1/p' /proc/meminfo)
    ((slab < before - 1024 || i == 0)) || return 0
    sleep 1
  done
}

section 'Host settings'
if [[ $(id -u) -eq 0 ]]; then
  tuned=1
  # It names what it cannot write; a million fits without most of it.
  tune apply --profile idle-million || true
else
  echo 'left as they are: not root (sudo scripts/tune.sh apply --profile idle-million)'
fi

section "Kernel memory of the two ends, over $split_connections connections"
# Closing one end without a word to the other takes CAP_NET_ADMIN, bit 12.
if ((0x$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status) >> 12 & 1)); then
  start_server "$split_connections"
  generate "$out/ends" idle --connections "$split_connections" --hold 1s --vanish \
    --label "$split_connections connections, then one end vanishes"
  # It still has the other ends of connections whose first ends have vanished: no use for a drain.
  end server KILL
  settle
else
  echo 'skipped: no CAP_NET_ADMIN (run it as root)'
fi

section "$connections connections, all in one room"
start_server "$connections"
# Off to on before the second hold, on to off before the third, short one.
cat >"$work/toggle" <<EOF
if grep -q '"off"' '$work/fanwire.toml'; then now=${ping_interval}s; else now=off; fi
sed -i "s/^ping_interval.*/ping_interval = \"\$now\"/" '$work/fanwire.toml'
kill -HUP $server
EOF
code=0
generate "$out" fanout --connections "$connections" --hold "${hold}s,$((ping_interval * 3 / 2))s,2s" \
  --hold-command "sh '$work/toggle'" --messages "$broadcasts" --drain 60s \
  --label "$connections members of one room" || code=$?
end server TERM
grep -q "closed      $connections cleanly, 0 otherwise" "$out/summary.txt" || {
  echo 'PROBLEM     not all connections were closed cleanly' >&2
  code=1
}

section "$( ((code == 0)) && echo Passed || echo FAILED) in $((SECONDS / 60)) min $((SECONDS % 60)) s: $out"
exit "$code"
