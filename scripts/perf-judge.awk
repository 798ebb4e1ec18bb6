# Judges what scripts/perf-guard.sh has counted; it says what is wrong and what helps.
#
# usage: awk -v tolerance=PERCENT -v judged=0|1 -v base=NAME -v committed=0|1 -f perf-judge.awk \
#          base recorded-base recorded reasons mine
#
# Each file has lines of name, unit and figure, but "reasons": name, and why. "mine" is what this tree
# takes, and the last one. judged=0: the recorded figures are another compiler's.

function percent(new, old) { return old ? (new / old - 1) * 100 : 0 }
function shown(new, old) { return old ? sprintf("%+9.2f %%", percent(new, old)) : sprintf("%11s", "-") }
function fail(text) { problems = problems text "\n"; failed = 1 }
FILENAME ~ /(^|\/)base$/ { before[$1] = $3; next }
FILENAME ~ /(^|\/)recorded-base$/ { recorded_before[$1] = $3; next }
FILENAME ~ /(^|\/)recorded$/ { recorded[$1] = $3; next }
FILENAME ~ /(^|\/)reasons$/ { if (NF > 1) reason[$1] = 1; next }
FNR == 1 { printf "%-12s %14s %-12s %11s %11s\n", "", "instructions", "per", "to base", "to recorded" }
{
  name = $1
  counted[name] = 1
  # Asked before anything reads them, which would make them.
  is_recorded = name in recorded
  was_recorded = name in recorded_before
  printf "%-12s %14.2f %-12s %s %s\n", name, $3, $2, shown($3, before[name]), shown($3, recorded[name])
  line = "a line \"Instructions: " name " ...\" in the message of the commit that says why"
  remedy = "Make it cheaper; or, if it is worth it, scripts/perf-guard.sh --record and " line "."
  figure = sprintf("%s: %.2f instructions per %s, ", name, $3, $2)
  # Files that are not committed have no message yet.
  explained = reason[name] || reason["all"] || !committed
  raised = percent(recorded[name], recorded_before[name])
  if (raised > tolerance && !explained)
    fail(sprintf("%s: the recorded figure is raised by %.2f %%, and no commit since %s says why. It takes %s (git commit --amend).", name, raised, base, line))
  if (raised > tolerance && !committed)
    notes = notes name ": the recorded figure is raised; that takes " line ".\n"
  # A new record excuses all, a raised one what it covers.
  excused = explained && is_recorded && (!was_recorded ||
    raised > 0 && $3 / recorded[name] <= before[name] / recorded_before[name] * (1 + tolerance / 100))
  if (percent($3, before[name]) > tolerance && !excused)
    fail(figure sprintf("%+.2f %% to %s (%.2f). ", percent($3, before[name]), base, before[name]) remedy)
  else if (judged && percent($3, recorded[name]) > tolerance)
    fail(figure sprintf("%+.2f %% to the recorded figure (%.2f). ", percent($3, recorded[name]), recorded[name]) remedy)
  if (judged && recorded[name] && percent($3, recorded[name]) < -tolerance)
    notes = notes name ": better than recorded; scripts/perf-guard.sh --record keeps it so.\n"
  if (!is_recorded)
    notes = notes name ": not recorded; scripts/perf-guard.sh --record does it.\n"
}
END {
  for (name in recorded)
    if (!(name in counted))
      fail(name ": recorded, and not counted any more. Bring the scenario back, or take its record out and say why.")
  for (name in recorded_before)
    if (!(name in counted) && !(name in recorded) && !reason[name] && committed)
      fail(name ": its record is taken out, and no commit since " base " says why. It takes a line \"Instructions: " name " ...\" in a message.")
  if (notes) printf "\n%s", notes
  if (failed) { printf "\n%s", problems > "/dev/stderr"; exit 1 }
}
