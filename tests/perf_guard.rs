//! How `scripts/perf-guard.sh` judges what it has counted, on made-up figures.

pub mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::rows;

/// What was counted and recorded, at the base and now: a scenario and its figure each.
#[derive(Default)]
struct Case {
    name: &'static str,
    base: &'static [(&'static str, f64)],
    recorded_base: &'static [(&'static str, f64)],
    recorded: &'static [(&'static str, f64)],
    mine: &'static [(&'static str, f64)],
    /// Scenarios of which a commit says why they changed.
    reasons: &'static [&'static str],
    /// The recorded figures are those of another compiler.
    foreign: bool,
    /// Words of what is wrong; empty: nothing is.
    wrong: &'static str,
}

const USUAL: &[(&str, f64)] = &[("echo", 100.0), ("rooms", 200.0)];

/// Everything as it was.
fn unchanged(name: &'static str) -> Case {
    let (base, recorded_base, recorded, mine) = (USUAL, USUAL, USUAL, USUAL);
    Case { name, base, recorded_base, recorded, mine, ..Case::default() }
}

fn check(case: &Case) {
    let folder = tempfile::tempdir().expect("a folder to write to");
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("the folder can be written to");
        path
    };
    let lines = |figures: &[(&str, f64)]| -> String {
        figures.iter().map(|(name, figure)| format!("{name} message {figure:.2}\n")).collect()
    };
    let reasons = case.reasons.iter().map(|name| format!("{name} does more\n")).collect();
    let files = [
        write("base", lines(case.base)),
        write("recorded-base", lines(case.recorded_base)),
        write("recorded", lines(case.recorded)),
        write("reasons", reasons),
        write("mine", lines(case.mine)),
    ];
    let judged = if case.foreign { "judged=0" } else { "judged=1" };
    let output = Command::new("awk")
        .args(["-v", "tolerance=3", "-v", judged, "-v", "base=HEAD~1", "-v", "committed=1", "-f"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/perf-judge.awk"))
        .args(files)
        .output()
        .expect("awk runs");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.success(), case.wrong.is_empty(), "{said}");
    assert!(said.contains(case.wrong), "{said:?} does not say {:?}", case.wrong);
}

#[test]
fn what_is_dearer_fails_unless_it_is_recorded_and_explained() {
    const DEARER: &[(&str, f64)] = &[("echo", 110.0), ("rooms", 200.0)];
    const RAISED_A_LITTLE: &[(&str, f64)] = &[("echo", 101.0), ("rooms", 200.0)];
    let dearer = |name| Case { mine: DEARER, ..unchanged(name) };
    let table = vec![
        unchanged("nothing changes"),
        Case { wrong: "echo: 110.00", ..dearer("not recorded") },
        Case { wrong: "echo", reasons: &["echo"], ..dearer("explained, not recorded") },
        Case { wrong: "echo", recorded: DEARER, ..dearer("recorded, not explained") },
        Case { recorded: DEARER, reasons: &["echo"], ..dearer("recorded and explained") },
        Case { recorded: DEARER, reasons: &["all"], ..dearer("a new compiler") },
        Case {
            recorded: RAISED_A_LITTLE,
            reasons: &["echo"],
            foreign: true,
            wrong: "echo: 110.00",
            ..dearer("raised by less than it takes")
        },
        Case { recorded: DEARER, reasons: &["echo"], foreign: true, ..dearer("raised enough") },
        Case { recorded_base: &[], reasons: &["echo"], recorded: DEARER, ..dearer("new record") },
    ];
    rows(table, |case| case.name.to_owned(), check);
}

#[test]
fn a_scenario_that_is_not_counted_any_more_fails() {
    const FEWER: &[(&str, f64)] = &[("rooms", 200.0)];
    let fewer = |name| Case { mine: FEWER, base: FEWER, ..unchanged(name) };
    let table = vec![
        Case { wrong: "echo: recorded", ..fewer("still recorded") },
        Case { wrong: "echo: recorded", reasons: &["echo"], ..fewer("explained") },
        Case { recorded: FEWER, wrong: "echo: its record", ..fewer("the record is gone, too") },
        Case { recorded: FEWER, reasons: &["echo"], ..fewer("and a commit says why") },
        Case { base: &[], recorded_base: FEWER, recorded: FEWER, ..unchanged("a new scenario") },
    ];
    rows(table, |case| case.name.to_owned(), check);
}
