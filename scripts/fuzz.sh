#!/usr/bin/env bash
# Fuzzing: inputs that grow by what they reach, against the functions of src/fuzz.
#
# usage: scripts/fuzz.sh [--seconds N] [TARGET...]   fuzzes the targets, one after the other
#        scripts/fuzz.sh --keep [TARGET...]          renews fuzz/corpus from what was reached
#        scripts/fuzz.sh --list                      names the targets
#
#   --seconds N   for each target (default 600)
#
# Without a TARGET: all of them. src/fuzz/mod.rs says what each reads and what it is held against.
# Needs cargo-fuzz (cargo install cargo-fuzz) and the nightly toolchain (rustup toolchain install
# nightly); where that is missing it takes the usual one and lets it have nightly's options.
#
# A run begins with fuzz/corpus/TARGET and with what earlier runs have reached, which stays in the
# target folder. What finds something is left in fuzz/artifacts/TARGET, and
#
#   cargo +nightly fuzz run TARGET fuzz/artifacts/TARGET/FILE
#
# plays it again. Once it is mended it belongs into fuzz/found/TARGET: `cargo test` replays all in
# there, and all of fuzz/corpus. --keep takes of all inputs the fewest that reach as much, and of
# these, from the smallest to the largest, 100 of no more than 100 KiB in all.
#
# Exit code: 0 nothing was found; 1 something was; 2 not a command line of this script.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

wrong() {
  usage >&2
  exit 2
}

cd "$root"
mapfile -t all < <(sed -n 's|^path = "fuzz_targets/\(.*\)\.rs"$|\1|p' fuzz/Cargo.toml)
seconds=600 keep='' targets=()
while (($#)); do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --list) printf '%s\n' "${all[@]}"; exit 0 ;;
    --keep) keep=1; shift ;;
    --seconds) [[ ${2-} =~ ^[1-9][0-9]*$ ]] || wrong; seconds=$2; shift 2 ;;
    --seconds=*) set -- --seconds "${1#*=}" "${@:2}" ;;
    -*) wrong ;;
    *) targets+=("$1"); shift ;;
  esac
done
for name in ${targets[@]+"${targets[@]}"}; do
  [[ " ${all[*]} " == *" $name "* ]] || { echo "no target $name; there are: ${all[*]}" >&2; wrong; }
done
((${#targets[@]})) || targets=("${all[@]}")

cargo fuzz --version >/dev/null 2>&1 || die 'cargo-fuzz is missing: cargo install cargo-fuzz'
if cargo +nightly --version >/dev/null 2>&1; then
  cargo=(cargo +nightly fuzz)
else
  echo 'no nightly toolchain: the usual one, with RUSTC_BOOTSTRAP=1'
  cargo=(env RUSTC_BOOTSTRAP=1 cargo fuzz)
fi
work=$target/fuzz
mkdir -p "$work"

# fuzz_run TARGET ARGUMENT...: cargo fuzz run.
fuzz_run() {
  "${cargo[@]}" run --target-dir "$work/build" "$@"
}

section "Build: ${targets[*]}"
for name in "${targets[@]}"; do
  "${cargo[@]}" build --target-dir "$work/build" "$name"
done

# keep TARGET: fuzz/corpus/TARGET becomes what is worth keeping of all inputs.
keep() {
  local name=$1 merged=$work/merged/$1 bytes=0 sorted i step size file
  rm -rf "$merged"
  mkdir -p "$merged" "$work/corpus/$name"
  fuzz_run "$name" "$merged" "fuzz/corpus/$name" "$work/corpus/$name" -- -merge=1 \
    >"$work/$name.log" 2>&1 || { tail -n 20 "$work/$name.log" >&2; die "$name: cannot merge"; }
  rm -rf "fuzz/corpus/$name"
  mkdir -p "fuzz/corpus/$name"
  mapfile -t sorted < <(find "$merged" -type f -printf '%s %f\n' | sort -n)
  step=$(((${#sorted[@]} + 99) / 100))
  for ((i = 0; i < ${#sorted[@]}; i += step)); do
    read -r size file <<<"${sorted[i]}"
    ((bytes + size <= 100 * 1024)) || break
    ((bytes += size))
    cp "$merged/$file" "fuzz/corpus/$name/"
  done
  echo "$name: $(find "fuzz/corpus/$name" -type f | wc -l) of ${#sorted[@]} inputs kept, $bytes bytes"
}

if [[ -n $keep ]]; then
  for name in "${targets[@]}"; do keep "$name"; done
  exit 0
fi

# The last line in which the fuzzer says how far it is.
pulse() {
  grep -a 'cov: ' "$work/$1.log" | tail -n 1 | sed 's/ ft:.*corp:/ corp:/; s/ L: .*//' || true
}

failed=()
for name in "${targets[@]}"; do
  section "$name, $seconds s"
  mkdir -p "$work/corpus/$name"
  options=("-max_total_time=$seconds" -timeout=20 -print_final_stats=1)
  [[ ! -f fuzz/dict/$name.dict ]] || options+=("-dict=fuzz/dict/$name.dict")
  fuzz_run "$name" "$work/corpus/$name" "fuzz/corpus/$name" -- "${options[@]}" >"$work/$name.log" 2>&1 &
  fuzzer=$!
  trap 'kill "$fuzzer" 2>/dev/null' EXIT
  for ((second = 1; ; second++)); do
    kill -0 "$fuzzer" 2>/dev/null || break
    sleep 1
    ((second % 30)) || pulse "$name"
  done
  trap - EXIT
  if wait "$fuzzer"; then
    pulse "$name"
    echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$name.log") executions, nothing found"
  else
    failed+=("$name")
    tail -n 40 "$work/$name.log" >&2
    echo "$name FOUND SOMETHING, or does not run: see above, and fuzz/artifacts/$name"
  fi
done
((${#failed[@]} == 0)) || die "something was found by: ${failed[*]}"
section "Nothing found in $((seconds * ${#targets[@]})) s"
