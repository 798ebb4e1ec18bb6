//! `peers` as a user calls it, without installing anything.
//!
//! Needs a `fanwire` binary in the same target folder, or in `FANWIRE_BIN`, as `fanwire.rs` does.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::fanwire_binary;
use tempfile::TempDir;

/// A call of `peers`.
struct Call {
    folder: TempDir,
    command: Command,
}

impl Call {
    /// With folders of its own.
    fn bare(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire-bench"));
        command.arg("peers").args(options).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.arg("--work").arg(folder.path().join("work"));
        command.arg("--out").arg(folder.path().join("out"));
        Self { folder, command }
    }

    /// With few connections, all on CPU 0, which every host has.
    fn new(duration: &str, options: &[&str]) -> Self {
        let load = ["--connections", "50", "--warmup", "0s", "--duration", duration];
        let pinned = ["--server-cpus", "0", "--cpus", "0"];
        Self::bare(&[&load[..], &pinned, options].concat())
    }

    fn run(&mut self) -> Output {
        self.command.output().expect("it starts")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("out").join(name)
    }

    fn record(&self) -> Value {
        let text = fs::read(self.path("peers.json")).expect("the file was written");
        serde_json::from_slice(&text).expect("JSON")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn lists_them() {
    let output = Call::bare(&["--list"]).run();
    assert!(output.status.success());
    let names: Vec<_> = text(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect();
    assert_eq!(names, ["fanwire", "bun", "ws", "gorilla", "tungstenite", "nchan"]);
}

#[test]
fn refuses_what_it_cannot_do_before_it_installs_anything() {
    for (options, word) in [
        (&["--only", "nobody"][..], "tungstenite"),
        (&["--server-cpus", "8191"], "CPU 8191"),
        (&["--half-rate-of", "bun", "--only", "fanwire"], "name it in --only"),
        (&["--rooms", "3", "--publishers", "4"], "--publishers"),
    ] {
        let mut call = Call::bare(options);
        let output = call.run();
        assert_eq!(output.status.code(), Some(2), "{options:?}");
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
        assert!(!call.folder.path().join("work").exists(), "{options:?}");
    }
}

#[test]
fn measures_one_and_says_why_another_is_skipped() {
    let Some(fanwire) = fanwire_binary() else { return };
    let options = ["--only", "fanwire,bun", "--rounds", "2", "--windows", "1,4", "--keep"];
    let mut call = Call::new("200ms", &options);
    // Without npm: nothing is installed by a test.
    let tools = call.folder.path().join("tools");
    fs::create_dir(&tools).expect("a folder");
    for tool in ["taskset", "setpriv"] {
        let places = [Path::new("/usr/bin").join(tool), Path::new("/bin").join(tool)];
        let found = places.iter().find(|path| path.exists()).expect("util-linux");
        std::os::unix::fs::symlink(found, tools.join(tool)).expect("a link");
    }
    call.command.env("PATH", &tools).arg("--fanwire").arg(fanwire);
    let output = call.run();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));

    let record = call.record();
    let runs = record["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 4, "two rounds, two windows, one peer");
    assert!(runs.iter().all(|run| run["report"]["traffic"]["delivered"].as_u64() > Some(50)));
    assert_eq!(record["peers"][1]["name"], "bun");
    let reason = record["peers"][1]["skipped"].as_str().expect("a reason");
    assert!(reason.contains("npm"), "{reason}");
    let table = record["table"].as_array().expect("rows");
    for row in table {
        assert_eq!(row["cells"][1], "absent", "{row}");
        // So few connections need not take a page of memory more.
        if row["measure"] != "RSS per idle connection" {
            assert_eq!(row["cells"][0]["valid"]["ratio"]["median"], 1.0, "{row}");
        }
    }
    let markdown = fs::read_to_string(call.path("peers.md")).expect("a table");
    assert!(markdown.contains("| skipped") && markdown.contains(reason), "{markdown}");
    assert!(text(&output.stdout).contains(&markdown), "it is printed, too");
    let picture = fs::read_to_string(call.path("peers.svg")).expect("a picture");
    assert!(picture.contains("<svg") && picture.contains("fanwire"));
    assert!(call.path("runs/2-fanwire-4/latency.hgrm").exists(), "--keep");
}

#[test]
fn many_rooms_and_half_of_the_rate_that_was_found() {
    let Some(fanwire) = fanwire_binary() else { return };
    let rooms = ["--rooms", "25", "--publishers", "4", "--half-rate-of", "fanwire"];
    let options = ["--only", "fanwire,gorilla", "--rounds", "1", "--windows", "1,4"];
    let mut call = Call::new("300ms", &[&rooms[..], &options].concat());
    let output = call.command.arg("--fanwire").arg(fanwire).output().expect("it starts");
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let record = call.record();
    let reason = record["peers"][1]["skipped"].as_str().expect("a reason");
    assert!(reason.contains("--rooms"), "{reason}");
    let runs = record["runs"].as_array().expect("runs");
    let windows: Vec<_> = runs.iter().map(|run| run["window"].as_u64()).collect();
    assert_eq!(windows, [Some(1), Some(4), None]);
    let rate = |run: &Value| {
        let rate = &run["report"]["traffic"]["deliveries_per_second"];
        rate.as_f64().expect("a number")
    };
    let most = rate(&runs[0]).max(rate(&runs[1]));
    // Two members of each room, and its publisher.
    assert_eq!(runs[2]["rate"], most / 2.0 / 3.0);
    let table = record["table"].as_array().expect("rows");
    let row = table.iter().find(|row| row["measure"] == "latency p99 at half rate");
    let ratio = &row.expect("a row")["cells"][0]["valid"]["ratio"];
    assert_eq!(ratio["median"], 1.0);
    let markdown = fs::read_to_string(call.path("peers.md")).expect("a table");
    assert!(markdown.contains("50 members of 25 rooms with 4 roaming publishers"), "{markdown}");
    assert!(markdown.contains("half of the highest deliveries/s of fanwire"), "{markdown}");
}

#[test]
fn a_server_that_ends_at_once_has_no_figures() {
    let mut call = Call::new("200ms", &["--only", "fanwire", "--rounds", "1", "--windows", "1"]);
    // It does tell its version, but nothing listens afterwards.
    call.command.args(["--fanwire", "/bin/true"]);
    let output = call.run();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let record = call.record();
    let problem = record["runs"][0]["problems"][0].as_str().expect("a problem");
    assert!(problem.contains("did not start"), "{problem}");
    let markdown = fs::read_to_string(call.path("peers.md")).expect("a table");
    assert!(markdown.contains("INVALID") && markdown.contains("did not start"), "{markdown}");
    assert!(!call.path("peers.svg").exists(), "there is nothing to draw");
}

/// Makes a call that takes an hour and sends it `signal` once server and generator run; returns it
/// when both have ended.
fn call_ended_by(signal: &str, fanwire: &Path) -> Call {
    let mut call = Call::new("1h", &["--only", "fanwire", "--windows", "1"]);
    let mut process = call.command.arg("--fanwire").arg(fanwire).spawn().expect("it starts");
    let path = format!("/proc/{0}/task/{0}/children", process.id());
    let children = wait_for(|| {
        let text = fs::read_to_string(&path).unwrap_or_default();
        // Not what wraps them, or us before we have become that.
        let is_wrapped = |child: &&str| {
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            let command = line.split(|&byte| byte == 0).nth(1);
            command == Some(b"serve") || command == Some(b"fanout")
        };
        let children: Vec<_> = text.split_whitespace().filter(is_wrapped).collect();
        (children.len() == 2).then(|| children.iter().map(ToString::to_string).collect::<Vec<_>>())
    });
    let pid = process.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().expect("kill").success());
    process.wait().expect("an end");
    for child in children {
        wait_for(|| {
            let stat = fs::read_to_string(format!("/proc/{child}/stat"));
            // Whoever adopted it may not have looked yet.
            stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
        });
    }
    call
}

fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(Instant::now() < deadline, "it never came");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn leaves_no_process_behind_when_interrupted_or_killed() {
    let Some(fanwire) = fanwire_binary() else { return };
    for signal in ["-INT", "-TERM"] {
        let record = call_ended_by(signal, &fanwire).record();
        assert_eq!(record["interrupted"], true, "{signal}");
        assert_eq!(record["runs"], Value::Array(Vec::new()), "{signal}");
    }
    call_ended_by("-KILL", &fanwire);
}
