//! The generator against a server that lies: what it did is known, so the report must say so.
//!
//! The server is a hub on tungstenite and blocking sockets: everything a connection sends goes to
//! all connections of the same path. It numbers deliveries per connection and drops, duplicates,
//! holds back or delays some of them on purpose.

mod support;

use std::time::Duration;

use serde_json::json;
use support::{Bench, Hub, Lie};

/// A short closed loop over 5 members and a window of 4.
fn fanout(lie: Lie, more: &[&str]) -> support::Run {
    let hub = Hub::start(lie);
    let options = ["-c", "5", "--threads", "2", "--window", "4", "--warmup", "0", "-d", "500ms"];
    Bench::run("fanout", hub.address(), &[&options[..], &["--drain", "500ms"], more].concat())
}

#[test]
fn an_honest_server_passes() {
    let run = fanout(Lie::None, &[]);
    assert_eq!(run.exit_code, 0, "{}", run.output);
    let traffic = &run.report["traffic"];
    assert!(traffic["delivered"].as_u64() > Some(0));
    for count in ["lost", "duplicated", "reordered", "foreign", "stalled"] {
        assert_eq!(traffic[count], 0, "{count}");
    }
    assert_eq!(run.report["closing"], json!({"clean": 5, "unclean": 0}));
    assert_eq!(run.report["opening"]["ready"], 5);
    assert!(run.report["verdict"]["passed"] == true);
}

#[test]
fn lost_deliveries_are_found() {
    // Every member misses exactly one message: number 3 of its deliveries.
    let run = fanout(Lie::Drop { at: 3 }, &[]);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    assert_eq!(run.report["traffic"]["lost"], 5);
    assert_eq!(run.report["traffic"]["duplicated"], 0);
    assert_eq!(run.report["traffic"]["reordered"], 0);
    assert!(run.output.contains("PROBLEM     5 deliveries lost"), "{}", run.output);
}

#[test]
fn duplicated_deliveries_are_found() {
    let run = fanout(Lie::Duplicate { at: 3 }, &[]);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    assert_eq!(run.report["traffic"]["duplicated"], 5);
    assert_eq!(run.report["traffic"]["lost"], 0);
    assert_eq!(run.report["traffic"]["reordered"], 0);
}

#[test]
fn reordered_deliveries_are_found() {
    // Number 1 goes out after number 2: both are in the first window, so both exist.
    let run = fanout(Lie::Swap { at: 1 }, &[]);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    assert_eq!(run.report["traffic"]["reordered"], 5);
    assert_eq!(run.report["traffic"]["lost"], 0);
    assert_eq!(run.report["traffic"]["duplicated"], 0);
}

#[test]
fn a_stall_is_not_omitted_from_an_open_loop() {
    // 200 messages a second and one stall of 400 ms: some 80 messages, 16 % of half a second's
    // worth and more, were meant to be sent while nothing moved. A generator that waits for
    // answers would have counted one.
    let options = ["--rate", "200", "-c", "2", "--threads", "1", "--warmup", "0", "-d", "1s"];
    let stall = Lie::Delay { at: 20, by: Duration::from_millis(400) };
    let hub = Hub::start(stall);
    let run = Bench::run("fanout", hub.address(), &options);
    assert_eq!(run.exit_code, 0, "{}", run.output);
    let latency = &run.report["traffic"]["latency"];
    let p90 = latency["p90_ms"].as_f64().expect("a number");
    assert!(p90 > 100.0, "the stall shows at the 90th percentile: {latency}");
    let published = run.report["traffic"]["published"].as_u64().expect("a number");
    assert!((150..=201).contains(&published), "the rate was kept: {published}");
}

#[test]
fn a_refused_connection_is_a_failure_with_a_cause() {
    let run = Bench::run("idle", support::free_address(), &["-c", "3", "--hold", "0"]);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    assert_eq!(run.report["opening"]["failed"], json!({"refused": 3}));
}

#[test]
fn echoes_are_checked_the_same_way() {
    let run = |lie| {
        let hub = Hub::start(lie);
        let options = ["-c", "3", "--window", "4", "--warmup", "0", "-d", "300ms"];
        // A room for each connection: what it sends comes back to it alone.
        let room = ["--path", "/{connection}", "--drain", "300ms"];
        Bench::run("echo", hub.address(), &[&options[..], &room].concat())
    };
    let honest = run(Lie::None);
    assert_eq!(honest.exit_code, 0, "{}", honest.output);
    let lying = run(Lie::Drop { at: 2 });
    assert_eq!((lying.exit_code, &lying.report["traffic"]["lost"]), (1, &json!(3)));
}

#[test]
fn the_folder_is_complete() {
    let run = fanout(Lie::None, &[]);
    let hgrm = run.read("latency.hgrm");
    assert!(hgrm.contains("Percentile") && hgrm.contains("#[Max"), "{hgrm}");
    for picture in ["latency.svg", "timeline.svg"] {
        let svg = run.read(picture);
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{picture}");
        assert!(svg.contains("<polyline"), "{picture} shows a curve");
    }
    for part in ["kernel", "cpu", "sysctls", "descriptors"] {
        assert!(!run.report["environment"][part].is_null(), "{part}");
    }
    assert_eq!(run.report["parameters"]["fanout"]["window"], 4);
}

#[test]
fn ctrl_c_ends_with_the_report_so_far() {
    let hub = Hub::start(Lie::None);
    let bench = Bench::start("idle", hub.address(), &["-c", "4", "--hold", "10m"]);
    hub.wait_for_connections(4);
    bench.interrupt();
    let run = bench.finish();
    assert_eq!(run.report["interrupted"], true, "{}", run.output);
    assert_eq!(run.report["closing"]["clean"], run.report["opening"]["ready"]);
}

#[test]
fn a_bad_template_is_a_usage_error() {
    let address = support::free_address();
    for (option, text) in [("--message", "{sequence}"), ("--path", "/{romm}"), ("--rate", "0")] {
        let run = Bench::run("fanout", address, &[option, text]);
        assert_eq!(run.exit_code, 2, "{option} {text}: {}", run.output);
    }
}
