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
    // The two threads wake each other: a window waits for no timer (which would make it some ten).
    assert!(traffic["published"].as_u64() > Some(40), "{traffic}");
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
fn what_goes_wrong_beside_the_main_load_stands_apart() {
    let run = fanout(Lie::Drop { at: 3 }, &["--beside-rooms", "2", "--beside-rate", "100"]);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    assert_eq!(run.report["traffic"]["lost"], 5);
    assert_eq!(run.report["beside"]["rooms"]["lost"], 4);
    let problems = json!(["5 deliveries lost", "4 deliveries lost (rooms beside)"]);
    assert_eq!(run.report["verdict"]["problems"], problems);
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
fn what_the_server_says_about_a_failure_is_part_of_its_cause() {
    let hub = Hub::start(Lie::Refuse { from: 1, until: 4 });
    let run = Bench::run("idle", hub.address(), &["-c", "6", "--hold", "0"]);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    assert_eq!(run.report["opening"]["failed"], json!({"handshake_status_503": 3}));
    assert_eq!(run.report["opening"]["ready"], 3);
    let run = fanout(Lie::Close { at: 3, code: 1011 }, &[]);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    assert_eq!(run.report["opening"]["failed"], json!({"disconnected_1011": 5}));
}

#[test]
fn in_a_storm_failed_attempts_are_made_again() {
    // The first six open; of those that come back, the first three are refused once.
    let hub = Hub::start(Lie::Refuse { from: 6, until: 9 });
    let options = ["-c", "6", "--waves", "2", "--stay", "0", "--retry-after", "10ms"];
    let run = Bench::run("storm", hub.address(), &options);
    assert_eq!(run.exit_code, 0, "{}", run.output);
    let waves = &run.report["storm"]["waves"];
    for (wave, failed) in [(0, json!({"handshake_status_503": 3})), (1, json!({}))] {
        let wave = &waves[wave];
        assert_eq!((&wave["dropped"], &wave["back"]), (&json!(6), &json!(6)), "{wave}");
        assert_eq!((&wave["missing"], &wave["failed"]), (&json!(0), &failed), "{wave}");
        assert_eq!(wave["handshake"]["count"], 6, "{wave}");
    }
    assert_eq!(run.report["storm"]["handshake"]["count"], 18);
    assert_eq!(run.report["opening"]["ready"], 6);
    assert_eq!(run.report["closing"], json!({"clean": 6, "unclean": 0}));
}

#[test]
fn who_is_not_back_in_time_has_failed() {
    let hub = Hub::start(Lie::Refuse { from: 5, until: usize::MAX });
    let times = ["--stay", "0", "--retry-after", "20ms", "--back-within", "300ms"];
    let options = [&["-c", "5", "--waves", "1", "--drop", "0.6"][..], &times].concat();
    let run = Bench::run("storm", hub.address(), &options);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    let wave = &run.report["storm"]["waves"][0];
    assert_eq!((&wave["dropped"], &wave["back"]), (&json!(3), &json!(0)), "{wave}");
    assert_eq!(wave["missing"], 3);
    assert_eq!(run.report["verdict"]["problems"], json!(["3 connections not back in wave 1"]));
}

#[test]
fn a_window_lives_as_long_as_deliveries_come() {
    // The first message takes 4.5 s to reach all four, one each 1.5 s: longer than a window may
    // stand still, but it never does.
    let hub = Hub::start(Lie::Stagger { by: Duration::from_millis(1500) });
    let options = ["-c", "4", "--threads", "2", "--messages", "3"];
    let run = Bench::run("fanout", hub.address(), &options);
    assert_eq!(run.exit_code, 0, "{}", run.output);
    let traffic = &run.report["traffic"];
    assert_eq!((&traffic["to_last"]["count"], &traffic["stalled"]), (&json!(3), &json!(0)));
    assert_eq!(traffic["delivered"], 12);
}

#[test]
fn a_given_number_of_messages_ends_even_if_some_are_lost() {
    let hub = Hub::start(Lie::Drop { at: 1 });
    let options = ["-c", "4", "--threads", "2", "--messages", "4", "--drain", "100ms"];
    let run = Bench::run("fanout", hub.address(), &options);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    let traffic = &run.report["traffic"];
    assert_eq!((&traffic["published"], &traffic["lost"]), (&json!(4), &json!(4)), "{traffic}");
    assert_eq!(traffic["stalled"], 1);
}

#[test]
fn holds_are_reported_one_by_one() {
    let hub = Hub::start(Lie::None);
    let marker = tempfile::tempdir().expect("a folder").keep().join("between");
    let command = format!("echo x >> {}", marker.display());
    let holds = ["--hold", "50ms,0,0", "--hold-command", &command];
    let run = Bench::run("idle", hub.address(), &[&["-c", "3"][..], &holds].concat());
    assert_eq!(run.exit_code, 0, "{}", run.output);
    assert_eq!(run.report["holds"].as_array().map(Vec::len), Some(3));
    let ran = std::fs::read_to_string(&marker).expect("the command ran");
    assert_eq!(ran, "x\nx\n", "before each but the first");
    let failing = ["-c", "1", "--hold", "0,0", "--hold-command", "exit 3"];
    let run = Bench::run("idle", hub.address(), &failing);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    assert!(run.output.contains("--hold-command ended with exit status: 3"), "{}", run.output);
}

#[test]
fn pings_are_answered_and_timed() {
    let hub = Hub::start(Lie::None);
    let options = ["-c", "10", "--ping-interval", "100ms", "--hold", "500ms"];
    let run = Bench::run("idle", hub.address(), &options);
    assert_eq!(run.exit_code, 0, "{}", run.output);
    let heartbeat = &run.report["heartbeat"];
    assert!(heartbeat["pings_sent"].as_u64() >= Some(10), "each has sent one: {heartbeat}");
    assert!(heartbeat["pongs_received"].as_u64() > Some(0), "{heartbeat}");
    assert_eq!(heartbeat["round_trip"]["count"], heartbeat["pongs_received"]);
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
fn what_cannot_be_meant_is_a_usage_error() {
    let address = support::free_address();
    let wrong = [
        ("--message", "{sequence}"),
        ("--path", "/{romm}"),
        ("--rate", "0"),
        ("--cpus", "3-1"),
        ("--start-at", "2001-01-01T00:00:00Z"),
    ];
    for (option, text) in wrong {
        let run = Bench::run("fanout", address, &[option, text]);
        assert_eq!(run.exit_code, 2, "{option} {text}: {}", run.output);
    }
    let run = Bench::run("fanout", address, &["--path", "/one", "--beside-rooms", "1"]);
    assert_eq!(run.exit_code, 2, "{}", run.output);
    assert!(run.output.contains("{room} in --path"), "{}", run.output);
    let roam = ["--roam", "--publishers", "2", "--rooms"];
    for (more, says) in [
        (&["9"][..], "--join"),
        (&["1", "--join", "{room}"], "at least --publishers"),
        (&["9", "--join", "hello"], "{room} in --join"),
        (&["9", "--join", "{room}"], "{room} in --message"),
    ] {
        let run = Bench::run("fanout", address, &[&roam[..], more].concat());
        assert_eq!(run.exit_code, 2, "{more:?}: {}", run.output);
        assert!(run.output.contains(says), "{more:?}: {}", run.output);
    }
}
