#!/usr/bin/env bash
# Instructions per delivery, handshake and message, held against the previous commit's.
#
# usage: scripts/perf-guard.sh [--base REVISION]   counts, compares, fails at +3 %
#        scripts/perf-guard.sh --record            counts, writes benches/instructions/recorded.txt
#
#   --base REVISION   what to compare with (default HEAD~1, or HEAD when files are changed that
#                     are not committed)
#
# The scenarios of benches/instructions run under valgrind's callgrind, for this tree and for the
# base, both built here, with the same compiler and the same scenarios. One that takes over 3 % more
# than the base fails, unless its figure in benches/instructions/recorded.txt is raised with it and
# a commit since the base says why, in a line of its message such as
#
#   Instructions: fanout-1 looks at the age of what it sends, which the policies need
#
# Each scenario that is raised needs its line; "all" in place of a name is for a new compiler. A
# raise excuses as much as it says, and 3 % more. A figure that is over its recorded one by more than
# 3 % fails as well, so that many small steps do not pass unseen; one that is under it by as much is
# worth recording. A scenario that is recorded and not counted fails; so does one whose record is
# taken out without a line. Recorded figures hold for the compiler and valgrind named in the file:
# with others they are shown and not judged. Without a base (a shallow clone, the first commit), or
# when it has no scenarios or cannot be built with these, only recorded figures are compared.
#
# Counts do not depend on the load or the CPU of the host: callgrind emulates one, and between two
# runs they differ by less than 0.2 %. What the kernel does is not in them. It takes ten seconds,
# and the time to build the library twice.
#
# Exit code: 0 nothing is dearer; 1 something is, or could not be counted; 2 not a command line of
# this script.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

wrong() {
  usage >&2
  exit 2
}

record='' base=''
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --record) record=1; shift ;;
    --base) base=${2-}; [[ -n $base ]] || wrong; shift 2 ;;
    --base=?*) base=${1#*=}; shift ;;
    *) wrong ;;
  esac
done
[[ -z $record || -z $base ]] || wrong
cd "$root"
command -v valgrind >/dev/null || die 'valgrind is missing: install it (Debian: apt install valgrind)'
tolerance=3 # percent

scenarios=benches/instructions
recorded=$scenarios/recorded.txt
work=$target/perf-guard
mkdir -p "$work"
toolchain="$(rustc --version), $(valgrind --version), $(uname -m)"

# build FOLDER TARGET: builds the scenarios from the sources in FOLDER. Never two trees in one
# target folder: cargo takes what the one has built for the other's, and so would whoever builds next.
build() {
  # The whole workspace: with the features of its usual build, or dependencies are built again.
  cargo build --locked --release --workspace --bin fanwire-instructions \
    --manifest-path "$1/Cargo.toml" --target-dir "$2"
}

# count TARGET: prints a line per scenario: name, unit, instructions per unit.
count() {
  local name binary=$1/release/fanwire-instructions
  for name in $("$binary" --list); do
    # One thread and a fixed clock: what is counted is what `measured` does.
    valgrind --tool=callgrind --toggle-collect='*measured*' --callgrind-out-file=/dev/null \
      "$binary" "$name" >"$work/run" 2>"$work/valgrind" || { cat "$work/valgrind" >&2; die "$name failed under valgrind"; }
    awk -v name="$name" '/Collected :/ { collected = $NF } FNR != NR { unit = $2; units = $3 }
      END { if (!collected || !units) exit 1; printf "%s %s %.2f\n", name, unit, collected / units }' \
      "$work/valgrind" "$work/run" || die "$name counted nothing, see $work/valgrind"
  done
}

# figures: the figures in a recorded file, without its comments.
figures() {
  sed '/^#/d; /^$/d'
}

section 'Instructions of this tree'
build . "$target"
count "$target" >"$work/mine"

if [[ -n $record ]]; then
  {
    echo '# Instructions per unit of the scenarios in benches/instructions, as'
    echo '# scripts/perf-guard.sh --record found them. Raised by over 3 % only by a commit that says'
    echo '# why: its head tells how.'
    echo "# with: $toolchain"
    awk '{ printf "%-12s %-10s %10.2f\n", $1, $2, $3 }' "$work/mine"
  } >"$recorded"
  cat "$recorded"
  exit
fi

# What to compare with, and why there is nothing if there is not.
missing='' committed=1
[[ -z $(git status --porcelain --untracked-files=no 2>/dev/null) ]] || committed=0
if [[ -z $base ]]; then
  base=HEAD~1
  ((committed)) || base=HEAD
  revision=$(git rev-parse --quiet --verify "$base^{commit}" 2>/dev/null) ||
    missing="there is no $base here (a shallow clone, or the first commit)"
else
  revision=$(git rev-parse --quiet --verify "$base^{commit}") || die "$base is no revision of this repository"
fi

for file in base recorded-base recorded reasons; do : >"$work/$file"; done
if [[ -z $missing ]]; then
  section "Instructions of $base, ${revision:0:10}"
  sources=$work/base-sources theirs=$work/base-target
  if [[ $(cat "$sources/.revision" 2>/dev/null) != "$revision" ]]; then
    rm -rf "$sources"
    mkdir "$sources"
    # Times of now (-m): cargo looks at them to see what has changed.
    git archive "$revision" | tar -x -m -C "$sources"
    echo "$revision" >"$sources/.revision"
  fi
  git show "$revision:$recorded" 2>/dev/null | figures >"$work/recorded-base" || true
  git log --format=%B "$revision..HEAD" | sed -n 's/^Instructions: *//p' >"$work/reasons"
  if [[ ! -d $sources/$scenarios ]]; then
    missing="$base has no scenarios"
  else
    # The same ones, also where the base had others.
    diff -r "$scenarios" "$sources/$scenarios" >/dev/null || cp -r "$scenarios/." "$sources/$scenarios/"
    # Dependencies are the same, mostly: it begins with those that are built.
    if [[ ! -d $theirs ]]; then
      mkdir -p "$theirs/release"
      cp -a "$target"/release/{.fingerprint,build,deps} "$theirs/release/"
      rm -rf "$theirs"/release/.fingerprint/fanwire-*
    fi
    if build "$sources" "$theirs"; then
      count "$theirs" >"$work/base"
    else
      missing="these scenarios do not build with $base"
    fi
  fi
fi

section 'Compared'
[[ -z $missing ]] || echo "Only with recorded figures: $missing."
judged=1
if [[ ! -f $recorded ]]; then
  echo "Nothing is recorded: scripts/perf-guard.sh --record writes $recorded."
elif ! grep -qxF "# with: $toolchain" "$recorded"; then
  judged=0
  echo "Recorded figures are not judged: they were counted$(sed -n 's/^# with:/ with/p' "$recorded"), and this is $toolchain."
fi
[[ ! -f $recorded ]] || figures <"$recorded" >"$work/recorded"

awk -v tolerance="$tolerance" -v judged="$judged" -v base="$base" -v committed="$committed" \
  -f scripts/perf-judge.awk \
  "$work/base" "$work/recorded-base" "$work/recorded" "$work/reasons" "$work/mine"
