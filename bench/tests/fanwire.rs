//! The generator against the real server, where one has been built beside it.
//!
//! The two are separate packages on purpose, so cargo does not build the server for this: without
//! a `fanwire` binary in the same target folder, or in `FANWIRE_BIN`, these tests say that they
//! were skipped.

mod support;

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Bench, Run, fanwire_binary, free_address};

/// A server of our own, ended when dropped.
struct Fanwire {
    process: Child,
    address: SocketAddr,
}

impl Fanwire {
    fn start() -> Option<Self> {
        Self::start_with(&["--admin", "off"])
    }

    fn start_with(options: &[&str]) -> Option<Self> {
        let binary = fanwire_binary()?;
        let address = free_address();
        let process = Command::new(binary)
            .args(["serve", "--shards", "1", "--echo"])
            .args(["--listen", &address.to_string()])
            .args(options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the server never listened");
            thread::sleep(Duration::from_millis(10));
        }
        Some(Self { process, address })
    }

    /// Connections of the server in the state ESTABLISHED (proc_pid_net(5)).
    fn established(&self) -> usize {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("on every Linux");
        let port = format!(":{:04X}", self.address.port());
        let is_ours = |line: &&str| {
            let mut words = line.split_whitespace().skip(1);
            let (local, _remote) = (words.next(), words.next());
            local.is_some_and(|local| local.ends_with(&port)) && words.next() == Some("01")
        };
        table.lines().filter(is_ours).count()
    }

    fn run(&self, scenario: &str, options: &[&str]) -> Run {
        let pid = self.process.id().to_string();
        Bench::run(scenario, self.address, &[options, &["--pid", &pid]].concat())
    }
}

impl Drop for Fanwire {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn holds_idle_connections() {
    let Some(server) = Fanwire::start() else { return };
    let run = server.run("idle", &["-c", "500", "--hold", "200ms"]);
    assert_eq!(run.exit_code, 0, "{}", run.output);
    assert_eq!(run.report["closing"]["clean"], 500);
    assert!(run.report["server"]["open"]["rss_kib"].as_u64() > Some(0));
}

#[test]
fn delivers_exactly_once_in_order_in_raw_rooms() {
    let Some(server) = Fanwire::start() else { return };
    let rooms = ["-c", "60", "--rooms", "3", "--publishers", "6", "--threads", "3"];
    for load in [["--window", "8"], ["--rate", "500"]] {
        let times = ["--warmup", "0", "-d", "300ms"];
        let run = server.run("fanout", &[&rooms[..], &load, &times].concat());
        assert_eq!(run.exit_code, 0, "{load:?}: {}", run.output);
        let traffic = &run.report["traffic"];
        let published = traffic["to_last"]["count"].as_u64().expect("a number");
        assert_eq!(traffic["latency"]["count"], published * 20, "20 members a room: {load:?}");
    }
}

#[test]
fn speaks_the_native_protocol_by_templates_alone() {
    let Some(server) = Fanwire::start() else { return };
    let join = r#"{"type":"join","room_id":"r{room}","user_id":"u{connection}"}"#;
    let message = concat!(
        r#"{"type":"broadcast","room_id":"r{room}","#,
        r#""content":"{sequence}{timestamp}{padding}"}"#
    );
    let options = ["--path", "/ws", "--subprotocol", "fanwire.v1", "--join", join];
    let load = ["--message", message, "--payload", "200", "--window", "2"];
    let times = ["-c", "30", "--rooms", "2", "--publishers", "2", "--warmup", "0", "-d", "300ms"];
    let run = server.run("fanout", &[&options[..], &load, &times].concat());
    assert_eq!(run.exit_code, 0, "{}", run.output);
    assert!(run.report["traffic"]["delivered"].as_u64() > Some(30), "{}", run.output);
}

#[test]
fn roaming_publishers_reach_every_member_of_each_room() {
    let Some(server) = Fanwire::start() else { return };
    let join = r#"{"type":"join","room_id":"r{room}"}"#;
    let message = concat!(
        r#"{"type":"broadcast","room_id":"r{room}","#,
        r#""content":"{sequence}{timestamp}{padding}"}"#
    );
    let protocol = ["--path", "/ws", "--join", join, "--message", message, "--payload", "100"];
    // Two members of each room, and its publisher.
    let rooms = ["-c", "83", "--rooms", "40", "--publishers", "3", "--roam", "--threads", "2"];
    for load in [["--window", "5"], ["--rate", "2000"]] {
        let times = ["--warmup", "0", "-d", "300ms"];
        let run = server.run("fanout", &[&protocol[..], &rooms, &load, &times].concat());
        assert_eq!(run.exit_code, 0, "{load:?}: {}", run.output);
        let traffic = &run.report["traffic"];
        let published = traffic["to_last"]["count"].as_u64().expect("a number");
        assert!(published > 100, "{load:?}: {traffic}");
        assert_eq!(traffic["latency"]["count"], published * 3, "{load:?}");
        assert_eq!(traffic["stalled"], 0, "{load:?}");
    }
}

#[test]
fn small_rooms_and_echoes_beside_a_large_room_are_measured_apart() {
    let Some(server) = Fanwire::start() else { return };
    let beside = ["--beside-rooms", "5", "--beside-members", "3", "--beside-echoes", "7"];
    let rate = ["--beside-rate", "100", "--warmup", "0", "-d", "500ms"];
    let run = server.run("fanout", &[&["-c", "200", "--window", "4"][..], &beside, &rate].concat());
    assert_eq!(run.exit_code, 0, "{}", run.output);
    let (traffic, beside) = (&run.report["traffic"], &run.report["beside"]);
    let messages = |traffic: &serde_json::Value| traffic["to_last"]["count"].as_u64();
    for (traffic, members) in [(traffic, 200), (&beside["rooms"], 3), (&beside["echoes"], 1)] {
        let messages = messages(traffic).expect("a number");
        assert_eq!(traffic["latency"]["count"], messages * members, "{traffic}");
        assert_eq!((&traffic["lost"], &traffic["foreign"]), (&json!(0), &json!(0)), "{traffic}");
    }
    // At most what their rates make: it is an open loop.
    assert!((1..=251).contains(&messages(&beside["rooms"]).expect("a number")), "{beside}");
    assert!((1..=351).contains(&messages(&beside["echoes"]).expect("a number")), "{beside}");
    assert_eq!(
        (&beside["rooms"]["connections"], &beside["echoes"]["connections"]),
        (&json!(15), &json!(7))
    );
    assert_eq!(run.report["opening"]["ready"], 200);
    assert_eq!(run.report["closing"], json!({"clean": 222, "unclean": 0}));
    let tags = run.read("latency.hlog");
    assert!(tags.contains("beside_rooms") && tags.contains("beside_echoes"), "{tags}");
    assert!(run.output.contains("beside      echoes: 7 connections"), "{}", run.output);
}

#[test]
fn publishes_over_http_and_a_websocket_in_turn() {
    let admin = free_address().to_string();
    let Some(server) = Fanwire::start_with(&["--admin", &admin]) else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let publish = |admin: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire-bench"));
        command.args(["publish", "--batch", "50", "--batches", "4", "--rounds", "3"]);
        command.args(["--target", &server.address.to_string(), "--admin", admin]);
        command.args(["--pid", &server.process.id().to_string()]);
        command.arg("--out").arg(folder.path()).output().expect("it starts")
    };
    let output = publish(&admin);
    assert!(output.status.success(), "{output:?}");
    let record = std::fs::read(folder.path().join("publish.json")).expect("the file was written");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    let ways: Vec<_> = record["passes"].as_array().into_iter().flatten().collect();
    let ways: Vec<_> = ways.iter().map(|pass| (&pass["round"], &pass["way"])).collect();
    let (websocket, http) = (&json!("websocket"), &json!("http"));
    let (one, two, three) = (&json!(1), &json!(2), &json!(3));
    let turns = [(one, websocket), (one, http), (two, http), (two, websocket)];
    assert_eq!(ways, [&turns[..], &[(three, websocket), (three, http)]].concat());
    assert_eq!((&record["lost"], &record["passed"]), (&json!(0), &json!(true)));
    assert!(record["cpu_ratio"]["median"].as_f64() > Some(0.0), "{record}");
    // The address of the WebSockets has no API.
    let output = publish(&server.address.to_string());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("status 400") && error.contains("admin address"), "{error}");
}

#[test]
fn echoes_large_messages() {
    let Some(server) = Fanwire::start() else { return };
    let options = ["-c", "4", "--window", "2", "--payload", "100000"];
    let run = server.run("echo", &[&options[..], &["--warmup", "0", "-d", "300ms"]].concat());
    assert_eq!(run.exit_code, 0, "{}", run.output);
    assert!(run.report["traffic"]["delivered"].as_u64() > Some(4), "{}", run.output);
}

#[test]
fn a_storm_drops_connections_and_all_come_back() {
    let Some(server) = Fanwire::start() else { return };
    for how in ["reset", "close"] {
        let waves = ["--waves", "4", "--stay", "0", "--drop", "0.5", "--drop-how", how];
        let run = server.run("storm", &[&["-c", "400", "--threads", "3"][..], &waves].concat());
        assert_eq!(run.exit_code, 0, "{how}: {}", run.output);
        let waves = run.report["storm"]["waves"].as_array().expect("waves");
        assert_eq!(waves.len(), 4);
        for wave in waves {
            assert_eq!((&wave["dropped"], &wave["back"]), (&json!(200), &json!(200)), "{wave}");
            assert_eq!((&wave["missing"], &wave["failed"]), (&json!(0), &json!({})), "{wave}");
        }
        assert_eq!(run.report["closing"], json!({"clean": 400, "unclean": 0}), "{how}");
    }
}

#[test]
fn slow_readers_are_cut_off_and_nobody_else_notices() {
    let small = ["--raw-message-bytes-max", "16KiB", "--ws-message-bytes-max", "16KiB"];
    let options = [&small[..], &["--high-water-mark", "2MiB", "--admin", "off"]].concat();
    let Some(server) = Fanwire::start_with(&options) else { return };
    // 16 MB for everyone: more than the kernel keeps for those who read nothing, or 4 kB/s.
    let load = ["--rate", "800", "--payload", "10000", "--warmup", "0", "-d", "2s"];
    for rate in ["0", "4000"] {
        let slow = ["-c", "21", "--slow-share", "0.5", "--slow-rate", rate];
        let run = server.run("slow", &[&slow[..], &load].concat());
        assert_eq!(run.exit_code, 0, "{}", run.output);
        let slow = &run.report["slow"];
        assert_eq!((&slow["connections"], &slow["open"]), (&json!(10), &json!(0)), "{slow}");
        assert_eq!(slow["ended"], json!({"disconnected_1013": 10}), "{slow}");
        let traffic = &run.report["traffic"];
        assert_eq!((&traffic["lost"], &traffic["duplicated"]), (&json!(0), &json!(0)));
        let published = traffic["to_last"]["count"].as_u64().expect("a number");
        assert_eq!(traffic["latency"]["count"], published * 11, "the healthy ones");
        assert_eq!(run.report["opening"]["failed"], json!({}));
        assert!(run.report["server_rss_kib_max"].as_u64() > Some(0));
    }
}

#[test]
fn slow_readers_that_keep_up_stay() {
    let Some(server) = Fanwire::start() else { return };
    let load = ["--rate", "50", "--payload", "100", "--warmup", "0", "-d", "1s"];
    let slow = ["-c", "9", "--slow-share", "1", "--slow-rate", "20000"];
    let run = server.run("slow", &[&slow[..], &load].concat());
    assert_eq!(run.exit_code, 0, "{}", run.output);
    let slow = &run.report["slow"];
    assert_eq!((&slow["connections"], &slow["open"]), (&json!(8), &json!(8)), "{slow}");
    assert!(slow["bytes_under_load"].as_u64() > Some(0), "{slow}");
}

#[test]
fn vanished_connections_stay_open_at_the_server() {
    let Some(server) = Fanwire::start() else { return };
    let options = ["-c", "300", "--messages", "3", "--hold", "0,0", "--vanish"];
    let run = server.run("fanout", &options);
    if run.exit_code == 1 && run.output.contains("CAP_NET_ADMIN") {
        eprintln!("skipped: not permitted to close silently");
        return;
    }
    assert_eq!(run.exit_code, 0, "{}", run.output);
    assert_eq!(run.report["traffic"]["to_last"]["count"], 3);
    assert_eq!(run.report["holds"].as_array().map(Vec::len), Some(2));
    assert_eq!(server.established(), 300, "the generator is gone, and nobody has told the server");
    // How much memory that is shows only on a host where nothing else happens, and may not show in
    // a container.
    let kernel = &run.report["kernel"];
    for end in ["server", "generator", "both"].iter().filter(|_| !kernel.is_null()) {
        assert!(kernel[format!("{end}_bytes_per_connection")].is_f64(), "{end}: {kernel}");
    }
}

#[test]
fn an_idle_connection_costs_at_most_250_bytes() {
    let Some(server) = Fanwire::start() else { return };
    // The difference of two runs: what threads, rings and buffers take does not grow with them.
    let rss_kib = |connections: &str| {
        let options = ["-c", connections, "--threads", "2", "--hold", "0"];
        let run = server.run("idle", &options);
        assert_eq!(run.exit_code, 0, "{}", run.output);
        run.report["generator"]["open"]["rss_kib"].as_f64().expect("a number")
    };
    let grown = (rss_kib("15000") - rss_kib("3000")) * 1024.0;
    assert!(grown / 12_000.0 <= 250.0, "{:.0} B per connection", grown / 12_000.0);
}
