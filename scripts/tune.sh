#!/usr/bin/env bash
# Host settings for Fanwire: shows, applies and takes back a profile of tuning/.
#
# usage: scripts/tune.sh status [--profile NAME]          what is found, what is wanted
#        scripts/tune.sh apply  [--profile NAME] [--yes]  makes it so, until the next boot
#        scripts/tune.sh revert [--yes]                   writes back what was found
#
# NAME is idle-million (the default) or low-latency. Both apply and revert show what they are about
# to change and ask; --yes answers for you. A value that is better already is left alone; "better"
# is defined beside each key, in tuning/NAME.conf.
#
# Before the first value is changed, all values that were found go into a state file, and they stay
# there until revert: apply twice, or another profile on top (which takes back what it does not want
# itself), and revert still restores the host as it was found. An apply that was interrupted is finished by the next one, or undone by revert. The
# state file is in /run because it means nothing after a boot, which undoes all of it as well.
#
# Exit code: 0 done; 1 some key could not be read or written (the others were), or the answer was
# no; 2 not a command line of this script.
#
# FANWIRE_TUNE_STATE   the state file (default /run/fanwire/tune.conf)
# FANWIRE_TUNE_PROC    another /proc, to try it out (default /proc)
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

proc=${FANWIRE_TUNE_PROC:-/proc}
state=${FANWIRE_TUNE_STATE:-/run/fanwire/tune.conf}

wrong() {
  usage >&2
  exit 2
}

command=${1-}
profile=idle-million
yes=
case $command in
  status | apply | revert) shift ;;
  -h | --help) usage; exit 0 ;;
  *) wrong ;;
esac
while (($#)); do
  case $1 in
    --profile) profile=${2-}; shift 2 || wrong ;;
    --profile=*) profile=${1#*=}; shift ;;
    --yes) yes=1; shift ;;
    -h | --help) usage; exit 0 ;;
    *) wrong ;;
  esac
done
[[ $profile == idle-million || $profile == low-latency ]] || wrong

# Filled by read_profile: the keys in their order, and by key the value and how it is meant.
keys=()
declare -A wanted=() want=() ceiling=()
# Filled by read_state: by key the value that was found first, byte for byte.
declare -A saved=()
# Filled by plan_apply and plan_revert: what to write, in this order.
changes=()
declare -A found=() target=()

failures=0
fail() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  failures=$((failures + 1))
}

# The profile's lines: comments, of which "want:" and "ceiling:" are ours, and "[-]key = value".
read_profile() {
  local line key want_next='' ceiling_next=''
  while IFS= read -r line; do
    case $line in
      '# want: '*) want_next=${line#'# want: '} ;;
      '# ceiling: '*) ceiling_next=${line#'# ceiling: '} ;;
      '#'* | '') ;;
      *)
        key=${line%% = *}
        key=${key#-}
        keys+=("$key")
        wanted[$key]=${line#* = }
        want[$key]=$want_next
        ceiling[$key]=$ceiling_next
        want_next=
        ceiling_next=
        ;;
    esac
  done <"$root/tuning/$profile.conf"
}

read_state() {
  local line
  [[ -f $state ]] || return 0
  while IFS= read -r line; do
    [[ $line == '#'* ]] || saved[${line%% = *}]=${line#* = }
  done <"$state"
}

saved_keys() {
  printf '%s\n' "${!saved[@]}" | sort
}

# Replaces the state file as a whole, so that there is never half of one.
write_state() {
  local key
  {
    echo '# Values from before scripts/tune.sh changed them; "scripts/tune.sh revert" restores them.'
    for key in $(saved_keys); do printf '%s = %s\n' "$key" "${saved[$key]}"; done
  } >"$state.new"
  sync "$state.new"
  mv "$state.new" "$state"
}

file_of() {
  printf '%s' "$proc/sys/${1//.//}"
}

# The value without its last newline; inner tabs and all.
read_key() {
  cat "$(file_of "$1")" 2>/dev/null
}

# Numbers apart by one space, as in the profiles: the kernel prints tabs.
spaced() {
  local words
  read -ra words <<<"$1"
  printf '%s' "${words[*]}"
}

# The wanted value of a key on this host: as in the profile, or shrunk to its ceiling.
wanted_here() {
  local numbers pages
  read -ra numbers <<<"${wanted[$1]}"
  if [[ ${ceiling[$1]} == 'a quarter of memory' ]]; then
    pages=$(awk -v page="$(getconf PAGESIZE)" '/^MemTotal:/ { print int($2 * 1024 / page / 4) }' "$proc/meminfo")
    local last=${numbers[-1]} i
    if ((pages < last)); then
      for i in "${!numbers[@]}"; do numbers[i]=$((numbers[i] * pages / last)); done
    fi
  fi
  printf '%s' "${numbers[*]}"
}

# What a key should become: number by number the better one of $2 (found) and $3 (wanted), where $1
# says which is better.
better() {
  local a b i
  read -ra a <<<"$2"
  read -ra b <<<"$3"
  for i in "${!b[@]}"; do
    case $1 in
      at-least) ((${a[i]:-0} > b[i])) && b[i]=${a[i]} ;;
      at-most) ((${a[i]:-b[i]} < b[i])) && b[i]=${a[i]} ;;
    esac
  done
  printf '%s' "${b[*]}"
}

row() {
  printf '%-36s %-26s %-26s %s\n' "$@"
}

# Adds a change and shows it.
change() {
  changes+=("$1")
  target[$1]=$2
  row "$1" "$(spaced "${found[$1]}")" "$(spaced "$2")" "$3"
}

plan_apply() {
  local key here value
  row KEY FOUND WANTED ''
  for key in "${keys[@]}"; do
    here=$(wanted_here "$key")
    if [[ ! -e $(file_of "$key") ]]; then
      row "$key" - "$here" 'skipped: not on this kernel, or not in this container'
    elif ! found[$key]=$(read_key "$key"); then
      row "$key" '?' "$here" 'cannot be read'
      fail "cannot read $key"
    else
      value=$(better "${want[$key]}" "${found[$key]}" "$here")
      if [[ $(spaced "${found[$key]}") == "$value" ]]; then
        row "$key" "$value" "${want[$key]} $here" ok
      else
        change "$key" "$value" change
      fi
    fi
  done
  # What another profile changed and this one does not want goes back to what it was.
  for key in $(saved_keys); do
    [[ -v wanted[$key] ]] || plan_restore "$key"
  done
}

plan_revert() {
  local key
  row KEY FOUND 'FOUND AT FIRST' ''
  for key in $(saved_keys); do plan_restore "$key"; done
}

plan_restore() {
  if [[ ! -e $(file_of "$1") ]]; then
    row "$1" - "$(spaced "${saved[$1]}")" 'skipped: this kernel has it no more'
  elif ! found[$1]=$(read_key "$1"); then
    fail "cannot read $1"
  elif [[ ${found[$1]} != "${saved[$1]}" ]]; then
    change "$1" "${saved[$1]}" restore
  fi
}

# Asks before anything is written; ends the script when the answer is no.
agreed() {
  [[ -n $yes ]] && return
  local answer
  printf 'Change %d value(s) of this host? [y/N] ' "${#changes[@]}" >&2
  read -r answer || answer=
  [[ $answer == [yY] || $answer == yes ]] || die 'nothing was changed'
}

# Writes all changes; those that fail are told and counted, the others are made.
write_changes() {
  local key error now
  for key in "${changes[@]}"; do
    if ! error=$({ printf '%s\n' "${target[$key]}" >"$(file_of "$key")"; } 2>&1); then
      fail "cannot write $key: ${error##*: } (are you root, and is /proc/sys writable here?)"
    elif now=$(read_key "$key") && [[ $(spaced "$now") != $(spaced "${target[$key]}") ]]; then
      fail "$key was set to $(spaced "${target[$key]}"), and the kernel made it $(spaced "$now")"
    fi
  done
}

# One apply or revert at a time: the second would take half-changed values for the host's own.
lock() {
  local folder
  folder=$(dirname -- "$state")
  if ! mkdir -p "$folder" 2>/dev/null || [[ ! -w $folder ]]; then
    die "cannot write to $folder: run as root, or set FANWIRE_TUNE_STATE"
  fi
  exec 9<"$folder"
  flock -n 9 || die 'another tune.sh is at work'
}

case $command in
  status)
    read_profile
    read_state
    plan_apply
    if ((${#saved[@]})); then echo "${#saved[@]} value(s) to revert to are in $state"; fi
    ;;
  apply)
    lock
    read_profile
    read_state
    plan_apply
    if ((${#changes[@]})); then
      agreed
      for key in "${changes[@]}"; do
        [[ -v saved[$key] ]] || saved[$key]=${found[$key]}
      done
      write_state
      write_changes
      if ((failures)); then die "not all could be changed; what was is in $state, for revert"; fi
      echo "changed until the next boot, or until scripts/tune.sh revert (from $state)"
    else
      echo "nothing to change for $profile"
    fi
    ;;
  revert)
    lock
    read_state
    if ((${#saved[@]} == 0)); then
      echo "nothing to revert: there is no $state"
      exit 0
    fi
    plan_revert
    if ((${#changes[@]})); then
      agreed
      write_changes
    fi
    if ((failures)); then die "not all is as it was; $state is kept, run revert again"; fi
    rm "$state"
    echo 'all values are as they were found'
    ;;
esac
((failures == 0))
