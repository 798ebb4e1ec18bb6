"""Tests of conformance.py, on made-up reports: scripts/conformance.sh runs them first."""

import io
import json
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import conformance

ALL_OK = {"1.1.1": "OK", "2.10": "OK", "7.1.6": "INFORMATIONAL"}


class Comparison(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.report = Path(directory.name, "index.json")
        self.baseline = Path(directory.name, "baseline.json")

    def judge(self, cases, *flags):
        """Exit code and everything said about a run with these behaviors."""
        close = {"FAILED": "UNCLEAN"}  # for one row: the two may differ
        entries = {
            case: {"behavior": behavior, "behaviorClose": close.get(behavior, behavior)}
            for case, behavior in cases.items()
        }
        self.report.write_text(json.dumps({"fanwire": entries}))
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            code = conformance.main([*flags, str(self.report), str(self.baseline)])
        return code, said.getvalue()

    def check(self, baseline, cases, expected):
        """A run with `cases` against a recorded `baseline` fails and says `expected`."""
        self.judge(baseline, "--record")
        recorded = self.baseline.read_text()
        code, said = self.judge(cases)
        self.assertEqual(code, 1, said)
        self.assertIn(f"FAILED: {expected}", said)
        self.assertIn("--record", said)
        self.assertEqual(self.baseline.read_text(), recorded, "only --record writes")

    def test_the_same_is_fine(self):
        self.assertEqual(self.judge(ALL_OK, "--record")[0], 0)
        self.assertEqual(self.judge(dict(reversed(ALL_OK.items())))[0], 0)

    def test_worse_fails(self):
        worse = "2.10 is worse: OK in the baseline, NON-STRICT now"
        self.check(ALL_OK, ALL_OK | {"2.10": "NON-STRICT"}, worse)
        worse = "1.1.1 is worse: OK in the baseline, FAILED, close UNCLEAN now"
        self.check(ALL_OK, ALL_OK | {"1.1.1": "FAILED"}, worse)
        worse = "1.1.1 is worse: OK in the baseline, NEVER HEARD OF now"
        self.check(ALL_OK, ALL_OK | {"1.1.1": "NEVER HEARD OF"}, worse)

    def test_better_asks_to_be_recorded(self):
        better = "2.10 is better: FAILED, close UNCLEAN in the baseline, OK now"
        self.check(ALL_OK | {"2.10": "FAILED"}, ALL_OK, better)

    def test_a_missing_and_a_new_case_fail(self):
        fewer = {case: "OK" for case in ("1.1.1", "2.10")}
        self.check(ALL_OK, fewer, "7.1.6 is missing, the baseline says INFORMATIONAL")
        self.check(fewer, ALL_OK, "7.1.6 is new and INFORMATIONAL")
        self.check(ALL_OK, {}, "1.1.1 is missing, the baseline says OK")

    def test_without_a_baseline_every_case_is_new(self):
        code, said = self.judge(ALL_OK)
        self.assertEqual((code, self.baseline.exists()), (1, False))
        self.assertIn("FAILED: 1.1.1 is new and OK", said)

    def test_what_is_not_ok_fails_even_when_it_is_recorded(self):
        for bad in ({"2.10": "NON-STRICT"}, {"2.10": "INFORMATIONAL"}):
            code, said = self.judge(ALL_OK | bad, "--record")
            self.assertEqual(code, 1, said)
            code, said = self.judge(ALL_OK | bad)
            self.assertEqual(code, 1, said)
            self.assertNotIn("baseline", said.replace("baseline.json", ""), "it does not differ")

    def test_recording_says_what_it_changes_and_is_what_is_compared_with(self):
        self.judge(ALL_OK | {"2.10": "FAILED"}, "--record")
        code, said = self.judge(ALL_OK, "--record")
        self.assertEqual(code, 0, said)
        self.assertIn("2.10 is better", said)
        self.assertEqual(json.loads(self.baseline.read_text())["cases"], ALL_OK)
        self.assertEqual(self.judge(ALL_OK)[0], 0)


if __name__ == "__main__":
    unittest.main()
