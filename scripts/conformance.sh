#!/usr/bin/env bash
# The Autobahn test cases, sections 1 to 10, against /echo of the real server.
#
# usage: scripts/conformance.sh            runs and compares with results/conformance.json
#        scripts/conformance.sh --record   runs and writes results/conformance.json
#
# Fails when a case is not OK (NON-STRICT is not OK; three cases are informational by design), and
# when anything differs from the committed baseline: worse, missing, or better or new, which wants to
# be recorded. Case by case reports with wire logs: target/conformance/reports/index.html. Takes half
# a minute.
#
# FANWIRE_BIN   the binary to test (default: built here with cargo build --release)
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

record=()
case ${1-} in
  '') ;;
  --record) record=(--record) ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac
cd "$root"

python3 scripts/test_conformance.py --quiet

kosoku=0.1.0 # runs Autobahn's own case files on Python 3
work=$target/conformance
venv=$work/venv
mkdir -p "$work"
if [[ $(cat "$venv/kosoku-version" 2>/dev/null) != "$kosoku" ]]; then
  rm -rf "$venv"
  python3 -m venv "$venv" || die 'python3 cannot make a virtual environment (Debian: apt install python3-venv)'
  "$venv/bin/pip" install --quiet --disable-pip-version-check "kosoku==$kosoku"
  echo "$kosoku" >"$venv/kosoku-version"
fi

binary=${FANWIRE_BIN-}
if [[ -z $binary ]]; then
  cargo build --locked --release
  binary=$target/release/fanwire
fi

forget_settings
: >"$work/server.log"
"$binary" serve --listen 127.0.0.1:0 --admin off --shards 2 --echo 2>"$work/server.log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
await_server "$work/server.log"

# Sections 12 and 13 are about compression (8 and 11 are empty). The runner takes NON-STRICT for a
# pass; the verdict that counts is made from its report.
rm -rf "$work/reports"
"$venv/bin/kosoku" --exclude '12.*' --exclude '13.*' --outdir "$work/reports" "ws://$address/echo" >"$work/runner.log" 2>&1 ||
  tail -n 20 "$work/runner.log" >&2 # it ends with 1 when a case failed: the report tells which
kill -0 "$server" 2>/dev/null || { cat "$work/server.log" >&2; die 'the server died'; }

[[ -f $work/reports/index.json ]] || die "the runner left no report, see $work/runner.log"

"$venv/bin/python" scripts/conformance.py "${record[@]}" "$work/reports/index.json" results/conformance.json
