//! Half a minute of the soak against the real server, where one has been built beside it.

mod support;

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use support::fanwire_binary;

fn soak(options: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    Command::new(env!("CARGO_BIN_EXE_fanwire-bench"))
        .args(["soak", "--minutes", "0.5", "--work"])
        .arg(folder.path())
        .args(options)
        .output()
        .expect("the generator runs")
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn half_a_minute_has_everything_in_it_and_leaves_the_server_at_rest() {
    let Some(fanwire) = fanwire_binary() else { return };
    let out = tempfile::tempdir().expect("a folder");
    let folder = out.path().display().to_string();
    let output = soak(&["--fanwire", &fanwire.display().to_string(), "--out", &folder]);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let read = |file: &str| fs::read_to_string(out.path().join(file)).expect("it was written");
    let record: Value = serde_json::from_str(&read("soak.json")).expect("JSON");
    assert_eq!(record["passed"], true, "{said}");
    let load = &record["load"];
    let rows = [
        (&load["generators"]["slow_ended"], 30),
        (&load["generators"]["waves"], 2),
        (&load["generators"]["opened"], 2000),
        (&load["wanderers"]["visits"], 12),
        (&load["wanderers"]["skipped"], 1),
        (&load["reloads"], 2),
    ];
    for (count, at_least) in rows {
        assert!(count.as_u64() >= Some(at_least), "{count}, not {at_least}: {load:#}");
    }
    let samples = read("samples.csv");
    let seen = |line: &str| line.split(',').nth(2).and_then(|d| d.parse().ok()) > Some(1500.0);
    assert!(samples.lines().filter(|line| seen(line)).count() > 20, "{samples}");
    assert!(read("soak.svg").contains("resident memory"), "a picture");
}

#[test]
fn a_server_that_is_none_is_said() {
    let output = soak(&["--fanwire", "/bin/false"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("the server does not start"), "{said}");
}
