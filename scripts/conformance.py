"""Judges a report of the Autobahn cases and holds it against the committed baseline.

usage: conformance.py [--record] REPORT BASELINE   (scripts/conformance.sh calls it)

Fails (exit code 1) when a case is not OK, and when anything differs from the baseline: a case that
is worse, one that is missing, and also one that is better or new, so that the baseline never says
less than what the server can do. --record writes the baseline and says what it changes in it; a
case that is not OK fails even then.

The baseline holds no times and no versions of ours: the same behaviour is the same file.
"""

import json
import sys
from collections import Counter
from pathlib import Path

# What the suite says of messages and closes, from best to worst. What is not here is worst of all.
BEHAVIORS = ["OK", "INFORMATIONAL", "NON-STRICT", "UNCLEAN", "WRONG CODE", "FAILED"]
# 7.1.6 sends data after close, 7.13.* use close codes that no one has defined: the suite judges
# neither, it only looks.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}

Cases = dict[str, str]


def by_number(case: str) -> list[int]:
    return [int(part) for part in case.split(".")]


def read_report(report: Path) -> Cases:
    """Each case with its behavior, and that of the closing handshake where it is another one."""
    (reported,) = json.loads(report.read_text()).values()  # one agent: our server
    cases = {}
    for case in sorted(reported, key=by_number):
        message, close = reported[case]["behavior"], reported[case]["behaviorClose"]
        cases[case] = message if message == close else f"{message}, close {close}"
    return cases


def not_ok(cases: Cases) -> list[str]:
    return [
        f"{case} is {behavior}"
        for case, behavior in cases.items()
        if behavior != "OK" and not (case in INFORMATIONAL and behavior == "INFORMATIONAL")
    ]


def badness(behavior: str) -> list[int]:
    """Compares greater for what is worse; the message counts before the close."""
    parts = behavior.split(", close ")
    ranks = [BEHAVIORS.index(part) if part in BEHAVIORS else len(BEHAVIORS) for part in parts]
    return [ranks[0], ranks[-1]]


def differences(baseline: Cases, cases: Cases) -> list[str]:
    found = []
    for case in sorted(baseline.keys() | cases.keys(), key=by_number):
        was, now = baseline.get(case), cases.get(case)
        if was == now:
            continue
        if now is None:
            found.append(f"{case} is missing, the baseline says {was}")
        elif was is None:
            found.append(f"{case} is new and {now}")
        else:
            change = "worse" if badness(now) > badness(was) else "better"
            found.append(f"{case} is {change}: {was} in the baseline, {now} now")
    return found


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {behavior}" for behavior, count in counts.most_common())


def baseline_text(cases: Cases) -> str:
    baseline = {
        "suite": "Autobahn cases, sections 1 to 10, run by kosoku 0.1.0 (scripts/conformance.sh)",
        "endpoint": "/echo",
        "counts": dict(Counter(cases.values()).most_common()),
        "cases": cases,
    }
    return json.dumps(baseline, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    """Judges as the head of this file says; gives the exit code."""
    record = "--record" in arguments
    report, path = [Path(argument) for argument in arguments if argument != "--record"]

    cases = read_report(report)
    for section in range(1, 11):
        behaviors = Counter(cases[case] for case in cases if by_number(case)[0] == section)
        if behaviors:
            print(f"section {section:2}: {listed(behaviors)}")
    print(f"all {len(cases)} cases: {listed(Counter(cases.values()))}")

    failures = not_ok(cases)
    baseline = json.loads(path.read_text())["cases"] if path.exists() else {}
    changes = differences(baseline, cases)
    if record:
        path.write_text(baseline_text(cases))
        print(*changes, f"wrote {path}", sep="\n")
    elif changes:
        failures += changes
        failures.append(f"{path} differs: if that is meant, run scripts/conformance.sh --record")

    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
