//! `compare` and `merge`, over real short runs and over reports whose answer is known.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{Bench, Hub, Lie};
use tempfile::TempDir;

/// What a command without a run said.
struct Said {
    exit_code: i32,
    output: String,
}

/// Runs the generator in `folder`.
fn bench(folder: &Path, arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_fanwire-bench"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("it starts");
    let text = [output.stdout, output.stderr].concat();
    Said {
        exit_code: output.status.code().expect("no signal"),
        output: String::from_utf8(text).expect("text"),
    }
}

/// A real run of 4 members against a hub of our own.
fn real_run(more: &[&str]) -> support::Run {
    let hub = Hub::start(Lie::None);
    let options = ["-c", "4", "--threads", "2", "--window", "2", "--warmup", "0", "-d", "300ms"];
    let run = Bench::run("fanout", hub.address(), &[&options[..], more].concat());
    assert_eq!(run.exit_code, 0, "{}", run.output);
    run
}

/// Copies of one real report in which `change` differs, by name, in a folder of their own.
struct Made {
    folder: TempDir,
    report: Value,
    hlog: String,
    timeline: String,
}

impl Made {
    fn new() -> Self {
        let run = real_run(&[]);
        let mut report = run.report.clone();
        report["traffic"]["deliveries_per_second"] = json!(1000.0);
        report["traffic"]["latency"]["p50_ms"] = json!(2.0);
        report["traffic"]["latency"]["p99_ms"] = json!(10.0);
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            report,
            hlog: run.read("latency.hlog"),
            timeline: run.read("timeline.json"),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let mut report = self.report.clone();
        change(&mut report);
        let folder = self.path().join(name);
        fs::create_dir(&folder).expect("a new folder");
        let write = |file: &str, text: &str| fs::write(folder.join(file), text).expect("written");
        write("report.json", &report.to_string());
        write("latency.hlog", &self.hlog);
        write("timeline.json", &self.timeline);
        folder
    }

    /// Like the base, with this many deliveries per second.
    fn rate(&self, name: &str, rate: f64) {
        self.write(name, |report| report["traffic"]["deliveries_per_second"] = json!(rate));
    }

    fn compare(&self, arguments: &[&str]) -> Said {
        bench(self.path(), &[&["compare"], arguments].concat())
    }
}

#[test]
fn two_real_runs_are_compared() {
    let (a, b) = (real_run(&["--label", "first"]), real_run(&["--label", "second"]));
    let folder = tempfile::tempdir().expect("a folder");
    let report = b.path().join("report.json");
    let paths = [a.path().to_str().expect("text"), report.to_str().expect("text")];
    // Two runs of 300 ms differ by what they like, but neither lost anything.
    let more = ["--judge", "lost", "--out", "new/folder"];
    let said = bench(folder.path(), &[&["compare"], &paths[..], &more].concat());
    assert_eq!(said.exit_code, 0, "{}", said.output);
    for text in ["deliveries/s", "latency p50, ms", "lost *", "handshake p99, ms"] {
        assert!(said.output.contains(text), "{text}: {}", said.output);
    }
    assert!(said.output.contains("picture  new/folder/compare.svg"), "{}", said.output);
    assert!(!said.output.contains('\x1b'), "no colours where there is no terminal");
    let svg = fs::read_to_string(folder.path().join("new/folder/compare.svg")).expect("drawn");
    assert!(svg.contains("A first") && svg.contains("B second") && svg.contains("99.9 %"));
}

#[test]
fn the_tolerance_decides() {
    let made = Made::new();
    for (name, rate) in [("a", 1000.0), ("b3", 970.0), ("b10", 900.0), ("better", 1500.0)] {
        made.rate(name, rate);
    }
    made.write("slow", |report| report["traffic"]["latency"]["p99_ms"] = json!(11.0));
    made.write("tail", |report| report["traffic"]["latency"]["max_ms"] = json!(99_000.0));
    made.write("lossy", |report| report["traffic"]["lost"] = json!(1));
    let check = |arguments: &[&str], exit_code: i32, text: &str| {
        let said = made.compare(arguments);
        assert_eq!(said.exit_code, exit_code, "{arguments:?}: {}", said.output);
        assert!(said.output.contains(text), "{arguments:?}: {}", said.output);
    };
    check(&["a", "b3"], 0, "0.970");
    check(&["a", "b10"], 1, "WORSE by more than 5 %: deliveries_per_second");
    check(&["a", "b10", "--tolerance", "10%"], 0, "0.900");
    check(&["a", "b3", "--tolerance", "2"], 1, "WORSE by more than 2 %");
    check(&["a", "better"], 0, "1.500  better");
    check(&["a", "b3", "b10"], 1, "C worse");
    check(&["a", "slow"], 1, "p99");
    check(&["a", "slow", "--judge", "p50,deliveries_per_second"], 0, "1.100  worse");
    check(&["a", "tail"], 0, "latency max, ms");
    check(&["a", "tail", "--judge", "max"], 1, "max");
    check(&["a", "lossy"], 1, "from 0  worse");
}

#[test]
fn repeats_are_judged_by_the_median_of_pairs() {
    let made = Made::new();
    // The host was slow in the second pair, and something happened to b3.
    for (name, rate) in [("a1", 1000.0), ("a2", 500.0), ("a3", 1000.0)] {
        made.rate(name, rate);
    }
    for (name, rate) in [("b1", 1010.0), ("b2", 505.0), ("b3", 600.0)] {
        made.rate(name, rate);
    }
    let said = made.compare(&["a1,a2,a3", "b1,b2,b3", "--json"]);
    assert_eq!(said.exit_code, 0, "{}", said.output);
    let json: Value = serde_json::from_str(&said.output).expect("JSON");
    let rows = json["rows"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["key"] == "deliveries_per_second").expect("there");
    assert_eq!(row["ratios"][0], json!({"median": 1.01, "min": 0.6, "max": 1.01}));
    assert_eq!(row["values"][0], json!({"median": 1000.0, "min": 500.0, "max": 1000.0}));
    assert_eq!(json["passed"], true);
    let said = made.compare(&["a1,a2", "b1"]);
    assert_eq!(said.exit_code, 2, "{}", said.output);
    assert!(said.output.contains("the number of repeats differs"), "{}", said.output);
}

#[test]
fn what_makes_a_comparison_doubtful_is_said() {
    let made = Made::new();
    made.write("a", |_| {});
    made.write("b", |report| {
        report["parameters"]["fanout"]["payload"] = json!(4096);
        report["environment"]["kernel"] = json!("7.0");
        report["interrupted"] = json!(true);
        report["verdict"] = json!({"passed": false, "problems": ["5 deliveries lost"]});
    });
    let same = made.compare(&["a", "a"]);
    assert!(same.exit_code == 0 && !same.output.contains("WARNING"), "{}", same.output);
    fs::remove_file(made.path().join("b/latency.hlog")).expect("there");
    let said = made.compare(&["a", "b"]);
    assert_eq!(said.exit_code, 0, "{}", said.output);
    for warning in [
        "B: --payload is 4096, the base has 48",
        "B: kernel is \"7.0\"",
        "B: b was interrupted",
        "B: b failed: 5 deliveries lost",
        "B: not in the picture: cannot read b/latency.hlog",
    ] {
        assert!(said.output.contains(&format!("WARNING  {warning}")), "{warning}: {}", said.output);
    }
}

#[test]
fn what_cannot_be_read_or_judged_is_refused_with_a_reason() {
    let made = Made::new();
    made.write("a", |_| {});
    made.write("future", |report| report["format"] = json!(2));
    let cut = made.write("cut", |_| {});
    fs::write(cut.join("report.json"), "{\"format\": 1, \"scen").expect("written");
    made.write("idle", |report| report["traffic"] = Value::Null);
    let check = |arguments: &[&str], text: &str| {
        let said = made.compare(arguments);
        assert_eq!(said.exit_code, 2, "{arguments:?}: {}", said.output);
        assert!(said.output.contains(text), "{arguments:?}: {}", said.output);
    };
    check(&["a"], "Usage");
    check(&["a", "nowhere"], "cannot read nowhere/report.json");
    check(&["a", "future"], "has format 2, this fanwire-bench reads format 1");
    check(&["a", "cut"], "is no report or is cut off");
    check(&["a", "a", "--judge", "p98"], "--judge p98: no such figure");
    check(&["a", "idle", "--judge", "p50"], "not all runs have this figure");
    check(&["a", "a", "--tolerance", "some"], "a percentage");
}

#[test]
fn merged_runs_are_the_sum_of_their_parts() {
    let made = Made::new();
    made.write("one", |report| report["environment"]["host"] = json!("host-1"));
    made.write("two", |report| report["environment"]["host"] = json!("host-2"));
    let said = bench(made.path(), &["merge", "one", "two", "--out", "both"]);
    assert_eq!(said.exit_code, 0, "{}", said.output);
    assert!(!said.output.contains("WARNING"), "{}", said.output);
    let read = |name: &str| fs::read_to_string(made.path().join(name)).expect("written");
    let both: Value = serde_json::from_str(&read("both/report.json")).expect("JSON");
    let one = &made.report;
    let number = |report: &Value, pointer: &str| {
        report.pointer(pointer).and_then(Value::as_f64).expect("a number")
    };
    for pointer in [
        "/opening/asked",
        "/opening/ready",
        "/opening/handshake/count",
        "/traffic/published",
        "/traffic/delivered",
        "/traffic/deliveries_per_second",
        "/traffic/latency/count",
        "/traffic/to_last/count",
        "/closing/clean",
        "/generator/cpus",
        "/parameters/fanout/connections",
    ] {
        assert_eq!(number(&both, pointer), 2.0 * number(one, pointer), "{pointer}");
    }
    // Twice the same values: the percentiles are those of either half, as they were measured.
    assert_eq!(both["traffic"]["latency"]["max_ms"], one["traffic"]["latency"]["max_ms"]);
    assert_eq!(both["traffic"]["latency"]["p90_ms"], one["traffic"]["latency"]["p90_ms"]);
    assert_eq!(both["traffic"]["seconds"], one["traffic"]["seconds"]);
    assert_eq!(both["sources"][1]["host"], "host-2");
    assert_eq!(both["verdict"]["passed"], true);
    for file in ["latency.hgrm", "latency.svg", "timeline.svg"] {
        assert!(!read(&format!("both/{file}")).is_empty(), "{file}");
    }
    // And it is a run like any other.
    let said = made.compare(&["both", "both"]);
    assert_eq!(said.exit_code, 0, "{}", said.output);
}

#[test]
fn runs_that_do_not_belong_together_are_not_merged() {
    let made = Made::new();
    made.write("one", |_| {});
    made.write("payload", |report| report["parameters"]["fanout"]["payload"] = json!(4096));
    made.write("echo", |report| report["scenario"] = json!("echo"));
    made.write("failed", |report| {
        report["verdict"] = json!({"passed": false, "problems": ["5 deliveries lost"]});
    });
    made.write("later", |report| report["started"] = json!("2040-01-01T00:00:00.000Z"));
    let check = |run: &str, out: &str, exit_code: i32, text: &str| {
        let said = bench(made.path(), &["merge", "one", run, "--out", out]);
        assert_eq!(said.exit_code, exit_code, "{run}: {}", said.output);
        assert!(said.output.contains(text), "{run}: {}", said.output);
    };
    check("payload", "x", 2, "its --payload is 4096, there 48");
    check("echo", "x", 2, "its scenario is \"echo\", there \"fanout\"");
    check("nowhere", "x", 2, "cannot read nowhere/report.json");
    check("payload", "one", 2, "--out one is one of the runs");
    assert!(!made.path().join("x").exists(), "nothing is written");
    check("failed", "y", 1, "(failed): 5 deliveries lost");
    check("later", "z", 0, "overlaps that of the first run by 0 % only");
}
