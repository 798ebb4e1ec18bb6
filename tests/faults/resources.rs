//! A host that runs out: of descriptors, of room for the log.

use std::{fs, io, process::Command, thread};

use crate::{
    promises::{Rooms, endure},
    serve, serve_through,
    support::{Client, Server, Wire, run, skipped, upgrade_request, wait_until, wrapped},
};

/// Sets how many descriptors a running server may have per table.
#[expect(unsafe_code, reason = "std has no prlimit")]
fn limit_descriptors(server: &Server, soft: u64) {
    let hard = libc::RLIM_INFINITY;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: hard };
    let (pid, resource) = (server.pid(), libc::RLIMIT_NOFILE);
    // SAFETY: prlimit(2) writes one rlimit, which outlives the call.
    let result = unsafe { libc::prlimit(pid, resource, std::ptr::null(), &raw mut limit) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    limit.rlim_cur = soft.min(limit.rlim_max);
    // SAFETY: prlimit(2) reads one rlimit, which outlives the call.
    let result = unsafe { libc::prlimit(pid, resource, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// The limit sinks below what is open: nobody can be accepted, at either address, and everybody
/// who is there goes on. Who came meanwhile is served once there are descriptors again.
#[test]
fn without_descriptors_nobody_comes_in_and_everybody_else_goes_on() {
    // An accept keeps to the limit of when it was armed: with one handshake at a time each
    // connection makes its shard arm another.
    let server = serve(&["--shards", "2", "--handshakes-max", "1"]);
    let address = server.address();
    let connect = || {
        let mut wire = Wire::connect(address);
        wire.send(&upgrade_request("/raw/room"));
        wire
    };
    let says = |who: &str| {
        let log = server.log();
        log.lines().any(|line| line.contains(who) && line.contains("Too many open files"))
    };
    let mut rooms = Rooms::near("room", address);
    // One round: they say that they cannot accept every ten seconds, and no sooner.
    endure(&server, 1, |_| {
        limit_descriptors(&server, 3);
        let mut waiting = Vec::new();
        wait_until("no shard can accept", || {
            waiting.push(connect());
            says("shard=0") && says("shard=1")
        });
        // One more than the control thread has accepts armed.
        let mut asking: Vec<Wire> = (0..65).map(|_| Wire::connect(server.admin())).collect();
        for wire in &mut asking {
            wire.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        }
        wait_until("the control thread cannot either", || says("admin"));
        let mut last = connect();
        rooms.talk(200, 200);
        assert!(!last.has_input(), "there is no descriptor for it");
        limit_descriptors(&server, u64::MAX);
        for wire in waiting.iter_mut().chain([&mut last]) {
            assert_eq!(wire.response().status, 101);
        }
        asking.iter_mut().for_each(|wire| assert_eq!(wire.response().status, 200));
    });
}

/// The server knows beforehand how many connections it has descriptors for.
#[test]
fn a_server_with_few_descriptors_holds_as_many_connections_as_it_says() {
    let script = "ulimit -n 100 && exec \"$@\"";
    let server = serve_through(&["sh", "-c", script, "sh"], &["--shards", "1"]);
    let held = || {
        (0..).map(|_| {
            let mut wire = Wire::connect(server.address());
            wire.send(&upgrade_request("/raw/room"));
            let status = wire.response().status;
            (wire, status)
        })
    };
    let log = server.wait_log("holds up to ");
    let (_, said) = log.split_once("holds up to ").expect("the line of the start");
    let said = said.split_once(' ').and_then(|(count, _)| count.parse::<usize>().ok());
    endure(&server, 2, |_| {
        let held: Vec<_> = held().take_while(|(_, status)| *status == 101).collect();
        assert_eq!(Some(held.len()), said, "{log}");
    });
}

/// A log on a disk that is full from the first line on.
#[test]
fn a_log_that_cannot_be_written_harms_nobody() {
    let script = r#"exec "$@" 2>/dev/full"#;
    let flags = ["--shards", "2", "--log-level", "debug"];
    let mut server = serve_through(&["sh", "-c", script, "sh"], &flags);
    come_and_go(&server);
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}

/// Talks, while others come and go so that there is something to log.
fn come_and_go(server: &Server) {
    let address = server.address();
    let mut rooms = Rooms::near("room", address);
    endure(server, 2, |_| {
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..1000 {
                    drop(Wire::open(address, "/raw/passing"));
                }
            });
            rooms.talk(100, 200);
        });
    });
}

/// A disk that is full after a while, and has room again later.
#[test]
fn a_log_on_a_full_disk_harms_nobody_and_goes_on_when_there_is_room() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().display().to_string();
    // In a mount namespace of its own, which ends with the server.
    let script = format!("mount -t tmpfs -o size=64k none {path} && exec \"$@\" 2>>{path}/log");
    let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let trial = run(wrapped(&wrapper, Command::new("true")));
    if trial.code != Some(0) {
        return skipped(&format!("no mounts to test with: {}", trial.stderr.trim()));
    }
    let server = serve_through(&wrapper, &["--shards", "2", "--log-level", "debug"]);
    let log = format!("/proc/{}/root{path}/log", server.pid());
    come_and_go(&server);
    assert_eq!(fs::metadata(&log).expect("the log is there").len(), 64 << 10, "the disk is full");
    // As logrotate's copytruncate does it.
    fs::File::options().write(true).open(&log).and_then(|it| it.set_len(0)).expect("it is ours");
    Client::connect(server.address(), "/raw/passing").close();
    wait_until("there is a line again, and what is missing before it is said", || {
        let log = fs::read_to_string(&log).expect("the log is there");
        log.contains("log lines are missing here") && log.contains("connection ends")
    });
}

/// A pipe that nobody reads: a log collector that hangs.
#[test]
fn a_log_that_nobody_reads_harms_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let pipe = directory.path().join("log").display().to_string();
    let mut mkfifo = Command::new("mkfifo");
    mkfifo.arg(&pipe);
    assert_eq!(run(mkfifo).code, Some(0));
    // For both directions, so that it opens before there is a writer.
    let _reader = fs::File::options().read(true).write(true).open(&pipe).expect("a pipe");
    let script = format!(r#"exec "$@" 2>{pipe}"#);
    let flags = ["--shards", "2", "--log-level", "debug"];
    let mut server = serve_through(&["sh", "-c", &script, "sh"], &flags);
    come_and_go(&server);
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0));
}
