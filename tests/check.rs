//! `fanwire check` on the host the tests run on: exit codes, and that it wants what
//! `scripts/tune.sh` would change.

pub mod support;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn check(arguments: &str) -> Output {
    let arguments: Vec<&str> = ["check"].into_iter().chain(arguments.split_whitespace()).collect();
    support::fanwire(&arguments).output().expect("the fanwire binary starts")
}

#[test]
fn the_exit_code_says_whether_something_must_change() {
    // Whatever this host is tuned for: the other tests start servers on it.
    let output = check("");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("\nThis host holds about "), "{text}");

    let output = check("--connections-max 10 --connections 11");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("low, must change  raise connections_max"), "{text}");

    assert_eq!(check("--profile fastest").status.code(), Some(2));
    assert_eq!(check("--connections 0").status.code(), Some(2));
    let output = check("--shards 0");
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("shards = \"0\" is out of range"), "{complaint}");
}

#[test]
fn it_wants_what_the_script_would_change() {
    for profile in ["idle-million", "low-latency"] {
        let json = check(&format!("--profile {profile} --format json")).stdout;
        let json: Value = serde_json::from_slice(&json).unwrap();
        let status = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/tune.sh"))
            .args(["status", "--profile", profile])
            .env("FANWIRE_TUNE_STATE", "/nonexistent/tune.conf")
            .output()
            .unwrap();
        let status = String::from_utf8(status.stdout).unwrap();
        let mut seen = 0;
        for line in status.lines().filter(|line| line.contains('.')) {
            let key = line.split_whitespace().next().unwrap();
            let rows = json["settings"].as_array().unwrap();
            let row = rows.iter().find(|row| row["setting"] == key).expect(key);
            let verdict = row["verdict"].as_str().unwrap();
            if line.ends_with(" change") {
                assert!(["low", "high", "differs"].contains(&verdict), "{row} {line}");
                assert_eq!(row["must_change"], true, "{row}");
                // What the one writes is what the other tells to write.
                let value = row["remedy"].as_str().unwrap().split('=').nth(1).unwrap();
                assert!(line.contains(&format!(" {} ", value.trim_matches('\''))), "{row} {line}");
            } else if line.ends_with(" ok") {
                assert_eq!(verdict, "ok", "{line}");
            } else if line.contains("skipped") {
                assert_eq!(verdict, "missing", "{line}");
            } else {
                assert_eq!(verdict, "unreadable", "{line}");
            }
            seen += 1;
        }
        assert!(seen > 5, "{status}");
    }
}
