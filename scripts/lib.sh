# shellcheck shell=bash
# Shared by the scripts: sourced, never run.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# Where cargo builds: the environment may put it elsewhere.
# shellcheck disable=SC2034
target=${CARGO_TARGET_DIR:-$root/target}

# A heading that stands out in a long log.
section() {
  printf '\n==> %s\n' "$*"
}

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# Runs a command as root: as it is for root, through sudo for a user.
as_root() {
  if [[ $(id -u) -eq 0 ]]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "needs root for: $* (and there is no sudo)"
  fi
}

# Prints the comment at the head of the calling script: its usage.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"
}

# For a script without arguments: no_arguments "$@" answers -h, and refuses all else.
no_arguments() {
  case ${1-} in
    '') ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
}

# A run that states every setting itself: no FANWIRE_ variable of the caller may change one.
forget_settings() {
  local variable
  for variable in "${!FANWIRE_@}"; do unset "$variable"; done
}

# await_server LOG: waits until the process $server says in its log that it is ready, and sets
# address to where it listens. The log must exist.
await_server() {
  local i
  for ((i = 0; i < 100; i++)); do
    address=$(sed -n 's/.*listening on \([0-9.:]*\);.*ready$/\1/p' "$1")
    [[ -z $address ]] || return 0
    # shellcheck disable=SC2154 # the caller started it
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  cat "$1" >&2
  die 'the server does not start'
}
