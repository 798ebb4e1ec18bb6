"""Judges a report of the Autobahn cases and compares it with the committed results.

usage: conformance.py [--update] REPORT RESULTS   (scripts/conformance.sh calls it)

The results hold no times and no versions of ours: the same behaviour is the same file.
"""

import json
import sys
from collections import Counter
from pathlib import Path

CASES = 301
# 7.1.6 sends data after close, 7.13.* use close codes that no one has defined: the suite judges
# neither, it only looks.
INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}


def by_number(case: str) -> list[int]:
    return [int(part) for part in case.split(".")]


def listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {behavior}" for behavior, count in counts.most_common())


def main() -> int:
    arguments = sys.argv[1:]
    update = "--update" in arguments
    report, results = [Path(argument) for argument in arguments if argument != "--update"]

    (reported,) = json.loads(report.read_text()).values()  # one agent: our server
    cases = {}
    for case in sorted(reported, key=by_number):
        message, close = reported[case]["behavior"], reported[case]["behaviorClose"]
        cases[case] = message if message == close else f"{message}, close {close}"
    counts = Counter(cases.values())
    for section in range(1, 11):
        behaviors = Counter(cases[case] for case in cases if by_number(case)[0] == section)
        if behaviors:
            print(f"section {section:2}: {listed(behaviors)}")
    print(f"all {len(cases)} cases: {listed(counts)}")

    failures = [
        f"{case} is {behavior}"
        for case, behavior in cases.items()
        if behavior != "OK" and not (case in INFORMATIONAL and behavior == "INFORMATIONAL")
    ]
    if len(cases) != CASES:
        failures.append(f"{len(cases)} cases ran, {CASES} were due")

    text = json.dumps(
        {
            "suite": "Autobahn cases, sections 1 to 10, run by kosoku 0.1.0 (scripts/conformance.sh)",
            "endpoint": "/echo",
            "counts": dict(counts.most_common()),
            "cases": cases,
        },
        indent=1,
    )
    if update:
        results.write_text(text + "\n")
        print(f"wrote {results}")
    elif not results.exists():
        failures.append(f"no {results} to compare with: run with --update")
    else:
        before = json.loads(results.read_text())["cases"]
        for case in sorted(before.keys() | cases.keys(), key=by_number):
            was, now = before.get(case, "not run"), cases.get(case, "not run")
            if was != now:
                failures.append(f"{case} was {was} in {results}, is {now}")

    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
