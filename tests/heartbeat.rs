//! Heartbeats: who is pinged, who is cut, and what SIGHUP changes while connections stay.

pub mod support;

use std::{fs, os::fd::AsRawFd, path::PathBuf};

use support::{Client, PATIENCE, Server, Wire, beside_link, fanwire, frame, free_port, wait_until};
use tungstenite::Message;

const PING: u8 = 9;

/// The fastest heartbeats that can be set.
const FAST: [&str; 4] = ["--ping-interval", "1s", "--pong-timeout", "1s"];

/// The next frame, which must be a ping; gives its payload.
fn expect_ping(wire: &mut Wire) -> Vec<u8> {
    let frame = wire.expect_frame();
    assert!(frame.fin && frame.opcode == PING, "a ping: {frame:?}");
    frame.payload
}

/// Waits for a line of the log that contains `words`, behind the first `seen` bytes.
fn wait_log(server: &Server, seen: usize, words: &str) {
    wait_until(&format!("the log says {words:?}"), || server.log()[seen..].contains(words));
}

/// Ends the server and gives the line that sums up what it did.
fn summary(mut server: Server) -> String {
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
    let log = server.log();
    log.lines().find(|line| line.contains("drained")).expect("a summary").to_owned()
}

#[test]
fn a_client_that_answers_stays() {
    let server = Server::start(&[&["--shards", "2"][..], &FAST].concat());
    let mut wire = Wire::open(server.address(), "/ws");
    for _ in 0..4 {
        let payload = expect_ping(&mut wire);
        wire.send(&frame(0x8a, &payload));
    }
    wire.send(&frame(0x81, br#"{"type":"ping"}"#));
    assert_eq!(wire.expect_frame().payload, br#"{"type":"pong"}"#);
    drop(wire);
    let mut client = Client::join(server.address(), "room", "member");
    for _ in 0..3 {
        assert!(matches!(client.receive(), Message::Ping(_)), "tungstenite answers by itself");
    }
    let summary = summary(server);
    assert!(summary.contains("pong_timeouts=0"), "{summary}");
    assert!(!summary.contains("pongs=0"), "{summary}");
}

#[test]
fn any_message_is_as_good_as_a_pong() {
    let server = Server::start(&[&["--shards", "1"][..], &FAST].concat());
    let mut wire = Wire::open(server.address(), "/raw/room");
    for _ in 0..3 {
        expect_ping(&mut wire);
        wire.send(&frame(0x82, b"here"));
        assert_eq!(wire.expect_frame().payload, b"here");
    }
    let summary = summary(server);
    assert!(summary.contains("pong_timeouts=0") && summary.contains("pongs=0"), "{summary}");
}

#[test]
fn a_client_that_never_answers_is_cut() {
    let server = Server::start(&[&["--shards", "1"][..], &FAST].concat());
    let mut mute = Wire::open(server.address(), "/ws");
    let mut alive = Client::connect(server.address(), "/raw/room");
    let alive = std::thread::spawn(move || while matches!(alive.receive(), Message::Ping(_)) {});
    expect_ping(&mut mute);
    // No close: nobody who reads would have left the ping without an answer.
    mute.expect_eof();
    Client::connect(server.address(), "/raw/room").send_text("is anybody left?");
    alive.join().expect("whoever answers is still there");
    let summary = summary(server);
    assert!(summary.contains("pong_timeouts=1"), "{summary}");
}

/// From now on the kernel drops every segment for this socket, as if its host were gone: nothing
/// is acknowledged, nothing refused, and no end is ever sent.
#[expect(unsafe_code, reason = "std has no socket filters")]
fn vanish(wire: &Wire) {
    // A classic BPF program of one instruction: keep 0 bytes.
    let mut program = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which outlives the call, and checks it.
    let result = unsafe {
        libc::setsockopt(
            wire.stream().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "a filter: {}", std::io::Error::last_os_error());
}

#[test]
fn a_peer_that_has_vanished_is_gone_and_its_room_goes_on() {
    let flags = ["--shards", "1", "--log-level", "debug"];
    let server = Server::start(&[&flags[..], &FAST].concat());
    let vanished = Wire::open(server.address(), "/raw/room");
    let mut member = Client::connect(server.address(), "/raw/room");
    vanish(&vanished);
    member.send_text("anybody?");
    assert_eq!(member.receive_text(), "anybody?");
    let seen = server.log().len();
    // The member has to answer its own pings meanwhile.
    let deadline = std::time::Instant::now() + PATIENCE;
    while !server.log()[seen..].contains("PongTimeout") {
        assert!(std::time::Instant::now() < deadline, "the vanished peer is still there");
        assert!(matches!(member.receive(), Message::Ping(_)));
    }
    let summary = summary(server);
    assert!(summary.contains("pong_timeouts=1"), "{summary}");
    drop(vanished);
}

/// Two peers vanish, one without anything to say or hear and one in a busy room. The clock is a
/// member that is pinged once per interval, by the same hand: nothing here depends on how fast the
/// machine is.
#[test]
fn peers_behind_a_link_that_is_cut_are_gone_in_time_and_their_room_goes_on() {
    // What an address that is not loopback needs besides.
    const OPEN: [&str; 0] = [];
    // Interval and timeout are two intervals, with a quarter of a second on top: in that time a
    // peer is pinged three times at most.
    const PINGS_MAX: u32 = 3;
    beside_link(|link| {
        let flags = [&["--shards", "2", "--log-level", "debug"][..], &FAST, &OPEN].concat();
        let server = Server::start_at(&[link.address()], &flags);
        let mut member = Client::join(server.address(), "room", "near");
        let descriptors = server.settled_descriptors();
        let idle = link.beyond(|| Wire::open(server.address(), "/ws"));
        let mut busy = link.beyond(|| Client::join(server.address(), "room", "far"));
        let told = r#"{"type":"broadcast","room_id":"room","content":"is anybody there?"}"#;
        busy.send_text(told);
        while !matches!(member.receive(), Message::Text(_)) {}

        link.cut();
        let (mut pings, mut heard) = (0, 0);
        member.send_text(told);
        while server.descriptors() > descriptors {
            assert!(pings <= PINGS_MAX, "the vanished are still there:\n{}", server.log());
            match member.receive() {
                Message::Text(_) => heard += 1,
                Message::Ping(_) => {
                    pings += 1;
                    // A few, so that its socket never fills: that would be another timeout.
                    member.send_text(told);
                }
                other => panic!("neither a ping nor what was said: {other:?}"),
            }
        }
        assert!(heard > 0, "the room goes on");
        let log = server.log();
        assert_eq!(log.matches("PongTimeout").count(), 2, "no FIN, no RST: {log}");
        drop(member);
        let summary = summary(server);
        assert!(summary.contains("pong_timeouts=2"), "{summary}");
        drop((idle, busy));
    });
}

#[test]
fn off_sends_none() {
    let off = Server::start(&["--shards", "1", "--ping-interval", "off"]);
    let mut silent = Wire::open(off.address(), "/ws");
    // Another server is the clock: so many pings later there is still none here.
    let clock = Server::start(&[&["--shards", "1"][..], &FAST].concat());
    let mut ticks = Client::connect(clock.address(), "/ws");
    for _ in 0..3 {
        assert!(matches!(ticks.receive(), Message::Ping(_)));
    }
    assert!(!silent.has_input());
    let summary = summary(off);
    assert!(summary.contains("pings_sent=0"), "{summary}");
}

/// A server with a configuration file that the test rewrites.
struct Reloaded {
    server: Server,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Reloaded {
    fn start(text: &str) -> Reloaded {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("fanwire.toml");
        fs::write(&path, text).expect("the file can be written");
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = fanwire(&["serve", "--shards", "2", "--admin", "off"]);
        command.args(["--listen", &address.to_string(), "--config"]).arg(&path);
        Reloaded { server: Server::spawn(command, address, None), path, _directory: directory }
    }

    /// Writes the file, sends SIGHUP, and waits for a line of the log with each of `words`.
    fn reload(&self, text: &str, words: &[&str]) {
        let seen = self.server.log().len();
        fs::write(&self.path, text).expect("the file can be written");
        self.server.signal(libc::SIGHUP);
        for words in words {
            wait_log(&self.server, seen, words);
        }
    }
}

#[test]
fn sighup_turns_heartbeats_on_and_off_and_nobody_is_dropped() {
    let off = "ping_interval = \"off\"\npong_timeout = \"1s\"\n";
    let on = "ping_interval = \"1s\"\npong_timeout = \"1s\"\n";
    let reloaded = Reloaded::start(off);
    let address = reloaded.server.address();
    let mut wire = Wire::open(address, "/ws");
    for _ in 0..2 {
        reloaded.reload(on, &["SIGHUP: ping_interval off -> 1s"]);
        for _ in 0..2 {
            let payload = expect_ping(&mut wire);
            wire.send(&frame(0x8a, &payload));
        }
        reloaded.reload(off, &["SIGHUP: ping_interval 1s -> off"]);
        // Pings may have left before it was off; after its answer to this there are none.
        wire.send(&frame(0x89, b"off"));
        while wire.expect_frame().opcode == PING {
            wire.send(&frame(0x8a, b""));
        }
    }
    // Nobody answers a server that does not ask.
    let clock = Server::start(&[&["--shards", "1"][..], &FAST].concat());
    let mut ticks = Client::connect(clock.address(), "/ws");
    for _ in 0..3 {
        assert!(matches!(ticks.receive(), Message::Ping(_)));
    }
    assert!(!wire.has_input());
    reloaded.reload(off, &["SIGHUP: nothing has changed"]);
}

#[test]
fn a_broken_file_changes_nothing_at_sighup() {
    let good = "ping_interval = \"1s\"\npong_timeout = \"1s\"\nlog_level = \"info\"\n";
    let reloaded = Reloaded::start(good);
    let mut wire = Wire::open(reloaded.server.address(), "/ws");
    let path = reloaded.path.display().to_string();
    let table = [
        ("ping_interval = \"off\"\nlog_level = \"loud\"", "log_level = \"loud\" is not one of"),
        (
            "ping_interval = \"off\"\nshards = 0",
            "shards = \"0\" is out of range; accepted: 1..1024",
        ),
        ("ping_interval = \"off\"\npong_timeot = 3", "did you mean pong_timeout?"),
        ("ping_interval = \"off\"\nhigh_water_mark = \"1MiB\"", "must be at least twice"),
        ("ping_interval = off", "not TOML"),
    ];
    for (text, words) in table {
        reloaded.reload(text, &["ERROR", &path, words, "; nothing has changed"]);
    }
    // Still asked, so still on.
    for _ in 0..2 {
        let payload = expect_ping(&mut wire);
        wire.send(&frame(0x8a, &payload));
    }
    fs::remove_file(&reloaded.path).expect("it is there");
    reloaded.server.signal(libc::SIGHUP);
    wait_log(&reloaded.server, 0, "cannot read the configuration file");
    let payload = expect_ping(&mut wire);
    wire.send(&frame(0x8a, &payload));
}

#[test]
fn sighup_changes_the_log_level_and_names_what_needs_a_restart() {
    let reloaded = Reloaded::start("");
    let address = reloaded.server.address();
    let debug = "connection ends";
    Client::connect(address, "/ws").close();
    reloaded.reload("log_level = \"debug\"\n", &["SIGHUP: log_level info -> debug"]);
    let mark = reloaded.server.log().len();
    assert!(!reloaded.server.log()[..mark].contains(debug), "{}", reloaded.server.log());
    Client::connect(address, "/ws").close();
    wait_log(&reloaded.server, mark, debug);
    reloaded.reload(
        "log_level = \"error\"\necho = true\nlog_format = \"json\"\nmailbox_len_max = 17\n\
         ping_interval = \"90s\"\n",
        &[
            "SIGHUP: echo false -> true, ping_interval 1m -> 1m30s, log_level debug -> error",
            "SIGHUP: restart the server for mailbox_len_max 256 -> 17, log_format text -> json",
        ],
    );
    let mark = reloaded.server.log().len();
    Client::connect(address, "/ws").close();
    reloaded
        .reload("log_level = \"info\"\nping_interval = \"90s\"\n", &["log_level error -> info"]);
    let log = reloaded.server.log();
    assert!(!log[mark..].contains(debug), "{log}");
    assert!(!log[mark..].contains("restart"), "as at the start again: {log}");
}

#[test]
fn sighup_does_not_hide_the_end() {
    let mut reloaded = Reloaded::start("");
    let mut client = Client::connect(reloaded.server.address(), "/ws");
    for _ in 0..100 {
        reloaded.server.signal(libc::SIGHUP);
    }
    reloaded.server.signal(libc::SIGTERM);
    reloaded.server.signal(libc::SIGHUP);
    assert_eq!(client.expect_close(), Some(1001));
    assert_eq!(reloaded.server.wait_exit().code(), Some(0), "{}", reloaded.server.log());
}
