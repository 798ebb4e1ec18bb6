#!/usr/bin/env bash
# WebSocket clients that others wrote, against the real server: ws, Node.js, Chromium, and of Python
# websockets, aiohttp and websocket-client.
#
# usage: scripts/clients.sh
#
# Each joins, publishes, receives, and closes in both directions: tests/clients/clients.test.js says
# what in detail, one line for each client and step. Installs the clients, in the versions that
# tests/clients pins, and takes about ten seconds then. Needs Node.js 20.10 or newer, Chromium and
# Python 3.11 or newer.
#
# FANWIRE_BIN       the binary to test (default: built here with cargo build --release)
# FANWIRE_CHROMIUM  the browser (default /usr/bin/chromium)
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

no_arguments "$@"
cd "$root"

venv=$target/clients/venv
if ! cmp --silent tests/clients/requirements.txt "$venv/installed.txt"; then
  rm -rf "$venv"
  python3 -m venv "$venv" || die 'python3 cannot make a virtual environment (Debian: apt install python3-venv)'
  "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: --requirement tests/clients/requirements.txt
  cp tests/clients/requirements.txt "$venv/installed.txt"
fi
for directory in tests/browser tests/clients; do
  [[ $directory/node_modules/.package-lock.json -nt $directory/package-lock.json ]] ||
    (cd "$directory" && npm ci --silent --ignore-scripts --no-audit --no-fund)
done

if [[ -z ${FANWIRE_BIN-} ]]; then
  cargo build --locked --release
  export FANWIRE_BIN=$target/release/fanwire
fi
cd tests/clients
FANWIRE_PYTHON=$venv/bin/python npm --silent test
