//! The bare loop of sends, and the generator against it, as for the figures.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use support::Bench;

/// A loop that runs; ended when dropped.
struct Bare {
    process: Child,
    /// What it says, behind the first line.
    log: BufReader<ChildStderr>,
    address: SocketAddr,
}

fn command(options: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwire-bench"));
    command.arg("bare").args(options).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Bare {
    /// On a free port.
    fn start(options: &[&str]) -> Self {
        let mut command = command(&["--listen", "127.0.0.1:0"]);
        let mut process = command.args(options).spawn().expect("it starts");
        let mut log = BufReader::new(process.stderr.take().expect("piped"));
        let mut line = String::new();
        log.read_line(&mut line).expect("text");
        let (_, address) = line.trim().rsplit_once(' ').expect("words");
        let address = address.parse().unwrap_or_else(|_| panic!("it says: {line}"));
        Self { process, log, address }
    }

    /// Ctrl-C: its exit code, and what it said.
    fn interrupt(mut self) -> (i32, String) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill").success());
        let mut text = String::new();
        self.process.stdout.take().expect("piped").read_to_string(&mut text).expect("text");
        self.log.read_to_string(&mut text).expect("text");
        let status = self.process.wait().expect("an end");
        (status.code().expect("no signal"), text)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn delivers_everything_once_and_in_order_across_threads() {
    for threads in ["1", "3"] {
        let bare = Bare::start(&["--threads", threads]);
        let options = ["-c", "200", "--threads", "2", "--window", "16", "--messages", "100"];
        let run = Bench::run("fanout", bare.address, &options);
        assert_eq!(run.exit_code, 0, "{}", run.output);
        assert_eq!(run.report["traffic"]["delivered"], 200 * 100);
        assert_eq!(run.report["closing"]["clean"], 200);
        let (code, said) = bare.interrupt();
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("opened      200 connections, 0 cut, 0 refused"), "{said}");
        assert!(said.contains("sent        100 messages in "), "{said}");
    }
}

#[test]
fn closes_connections_beyond_the_bound() {
    let bare = Bare::start(&["--connections-max", "5"]);
    let run = Bench::run("idle", bare.address, &["-c", "8", "--hold", "0"]);
    assert_eq!(run.exit_code, 1, "{}", run.output);
    assert_eq!(run.report["opening"]["ready"], 5);
    let (_, said) = bare.interrupt();
    assert!(said.contains("opened      5 connections, 0 cut, 3 refused"), "{said}");
}

#[test]
fn cuts_who_does_not_take_a_whole_send() {
    let bare = Bare::start(&[]);
    // All but the publisher never read, and 16 MiB fit into no socket.
    let options = ["-c", "10", "--slow-share", "1", "--messages", "16", "--payload", "1048576"];
    let run = Bench::run("slow", bare.address, &options);
    assert_eq!(run.report["opening"]["ready"], 10, "{}", run.output);
    let (_, said) = bare.interrupt();
    assert!(said.contains("opened      10 connections, 9 cut, 0 refused"), "{said}");
}

#[test]
fn listens_for_this_host_alone() {
    let Output { status, stderr, .. } =
        command(&["--listen", "0.0.0.0:0"]).output().expect("it starts");
    assert_eq!(status.code(), Some(2));
    assert!(String::from_utf8_lossy(&stderr).contains("is no loopback address"));
}
