//! Heartbeats: who is pinged, and who is cut.

pub mod support;

use std::os::fd::AsRawFd;

use support::{Client, PATIENCE, Server, Wire, beside_link, frame, wait_until};
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
    while !server.log()[seen..].contains("pong_timeout") {
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
    const OPEN: [&str; 1] = ["--insecure"];
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
        let timeouts = || server.log().matches("pong_timeout").count();
        wait_until("neither FIN nor RST, but two timeouts", || timeouts() == 2);
        drop(member);
        let summary = summary(server);
        assert!(summary.contains("pong_timeouts=2"), "{summary}");
        drop((idle, busy));
    });
}

/// The socket of a peer that vanishes fills up before anybody could ping it.
#[test]
fn a_peer_that_vanishes_from_a_busy_room_is_gone_as_soon_as_from_a_quiet_one() {
    let flags = ["--shards", "1", "--log-level", "debug", "--send-timeout", "10m"];
    let server = Server::start(&[&flags[..], &FAST].concat());
    let vanished = Wire::open(server.address(), "/raw/room");
    let mut member = Client::connect(server.address(), "/raw/room");
    vanish(&vanished);
    let deadline = std::time::Instant::now() + PATIENCE;
    let message = [b'x'; 10_000];
    // At most so many, so that it is no slow consumer.
    for _ in 0..100 {
        member.send_binary(&message);
        assert_eq!(member.receive().into_data().len(), message.len());
    }
    while !server.log().contains("reason=") {
        assert!(std::time::Instant::now() < deadline, "the vanished peer is still there");
        // It has to answer its own pings meanwhile.
        assert!(matches!(member.receive(), Message::Ping(_)));
    }
    let summary = summary(server);
    assert!(summary.contains("pong_timeouts=1"), "{summary}");
    drop(vanished);
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
