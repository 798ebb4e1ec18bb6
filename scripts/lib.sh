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
