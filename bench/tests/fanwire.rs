//! The generator against the real server, where one has been built beside it.
//!
//! The two are separate packages on purpose, so cargo does not build the server for this: without
//! a `fanwire` binary in the same target folder, or in `FANWIRE_BIN`, these tests say that they
//! were skipped.

mod support;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::{Bench, Run, free_address};

/// A server of our own, ended when dropped.
struct Fanwire {
    process: Child,
    address: SocketAddr,
}

impl Fanwire {
    fn start() -> Option<Self> {
        let Some(binary) = binary() else {
            eprintln!("skipped: no fanwire binary; cargo build it or set FANWIRE_BIN");
            return None;
        };
        let address = free_address();
        let process = Command::new(binary)
            .args(["serve", "--shards", "1", "--echo", "--admin", "off"])
            .args(["--listen", &address.to_string()])
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

fn binary() -> Option<PathBuf> {
    if let Some(binary) = std::env::var_os("FANWIRE_BIN") {
        return Some(binary.into());
    }
    let beside = Path::new(env!("CARGO_BIN_EXE_fanwire-bench")).with_file_name("fanwire");
    beside.exists().then_some(beside)
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
fn echoes_large_messages() {
    let Some(server) = Fanwire::start() else { return };
    let options = ["-c", "4", "--window", "2", "--payload", "100000"];
    let run = server.run("echo", &[&options[..], &["--warmup", "0", "-d", "300ms"]].concat());
    assert_eq!(run.exit_code, 0, "{}", run.output);
    assert!(run.report["traffic"]["delivered"].as_u64() > Some(4), "{}", run.output);
}
