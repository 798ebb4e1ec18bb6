//! Slow consumers: what each policy makes of a member that does not read while others do.
//!
//! The member stops reading before more is published than both sockets and the room keep; only when
//! all of it is out does it read again. So what it gets first is what the sockets held, and what
//! comes then depends on the policy alone, not on the time that anything took.

pub mod support;

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::Duration,
};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::{PATIENCE, Server, Wire, beside_link, frame, upgrade_request, wait_until};

/// Bytes of the padding in each message.
const PADDING: usize = 60_000;

/// What a socket of the slow reader takes in before it reads.
const RECEIVE_BUFFER: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Native,
    Raw,
}

/// One thing that a member sees.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// A message, by its number and its length on the wire.
    Message(u64, u64),
    Skipped(u64, u64),
    Close(u16, String),
}

/// What a slow reader came to see, see [`Member::read_to`].
#[derive(Debug, Default)]
struct Reading {
    /// The last message.
    last: u64,
    /// Messages that it was not sent.
    skipped: u64,
    /// Bytes of messages since it last skipped some.
    bytes: u64,
    close: Option<(u16, String)>,
}

impl Reading {
    fn skip(&mut self, messages: u64) {
        self.skipped += messages;
        self.bytes = 0;
    }
}

/// A member of `room`.
struct Member {
    wire: Wire,
    dialect: Dialect,
    room: &'static str,
}

impl Member {
    fn join(address: SocketAddr, dialect: Dialect, room: &'static str) -> Member {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        // Set, it stays as it is: the slow reader's must not grow.
        socket.set_recv_buffer_size(RECEIVE_BUFFER).expect("the option can be set");
        socket.connect_timeout(&address.into(), PATIENCE).expect("the server listens");
        let mut wire = Wire::from_stream(TcpStream::from(socket));
        let path = match dialect {
            Dialect::Native => "/ws".to_owned(),
            Dialect::Raw => format!("/raw/{room}"),
        };
        wire.send(&upgrade_request(&path));
        assert_eq!(wire.response().status, 101);
        if dialect == Dialect::Native {
            let join = serde_json::json!({"type": "join", "room_id": room});
            wire.send(&frame(0x81, join.to_string().as_bytes()));
            let joined: Value = serde_json::from_slice(&wire.expect_frame().payload).expect("JSON");
            assert_eq!((&joined["type"], &joined["offset"]), (&"joined".into(), &0.into()));
        }
        Member { wire, dialect, room }
    }

    /// Publishes message `number`, counted from 1, and waits until it is here.
    fn publish(&mut self, number: u64) {
        let padding = "x".repeat(PADDING);
        let (first, payload) = match self.dialect {
            Dialect::Native => {
                let content = serde_json::json!({"number": number, "padding": padding});
                let message = serde_json::json!(
                    {"type": "broadcast", "room_id": self.room, "content": content}
                );
                (0x81, message.to_string().into_bytes())
            }
            Dialect::Raw => (0x82, [&number.to_be_bytes()[..], padding.as_bytes()].concat()),
        };
        self.wire.send(&frame(first, &payload));
        self.expect(number);
    }

    fn see(&mut self) -> Seen {
        let frame = self.wire.expect_frame();
        let payload = &frame.payload;
        if frame.opcode == 8 {
            let reason = String::from_utf8(payload[2..].to_vec()).expect("UTF-8");
            return Seen::Close(frame.close_code().expect("a code"), reason);
        }
        let header_len = if payload.len() > 125 { 4 } else { 2 };
        let len = header_len + payload.len() as u64;
        if self.dialect == Dialect::Raw {
            let number = payload.first_chunk().expect("a number");
            return Seen::Message(u64::from_be_bytes(*number), len);
        }
        let message: Value = serde_json::from_slice(payload).expect("JSON");
        assert_eq!(message["room_id"], self.room);
        let field = |name: &str| message[name].as_u64().expect("a number");
        match message["type"].as_str() {
            Some("skipped") => Seen::Skipped(field("from"), field("to")),
            Some("broadcast") => {
                assert_eq!(message["content"]["number"], message["offset"]);
                Seen::Message(field("offset"), len)
            }
            other => panic!("{other:?}"),
        }
    }

    /// The next thing must be message `number`.
    fn expect(&mut self, number: u64) {
        let seen = self.see();
        assert!(matches!(seen, Seen::Message(got, _) if got == number), "not {number}: {seen:?}");
    }

    /// Reads what there is up to message `last`, and holds it against the rules: no message twice,
    /// none before its turn, and on the native protocol a notice for each gap, of just what is
    /// missing.
    fn read_to(&mut self, last: u64) -> Reading {
        let mut reading = Reading::default();
        let mut next = 1;
        while next <= last {
            let told = match self.see() {
                Seen::Message(number, len) => {
                    let missing = number.checked_sub(next).expect("a message in its turn");
                    assert!(missing == 0 || self.dialect == Dialect::Raw, "{next} is missing");
                    if missing > 0 {
                        reading.skip(missing);
                    }
                    (reading.last, reading.bytes) = (number, reading.bytes + len);
                    number
                }
                Seen::Skipped(from, to) => {
                    assert_eq!(from, next, "{reading:?}");
                    reading.skip(to + 1 - from);
                    to
                }
                Seen::Close(code, reason) => {
                    reading.close = Some((code, reason));
                    break;
                }
            };
            next = told + 1;
        }
        reading
    }
}

/// How many messages are more than the sockets to one slow reader hold, and `more` bytes.
fn messages_past(more: usize) -> u64 {
    let limits = fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").expect("Linux has it");
    let largest = limits.split_whitespace().nth(2).and_then(|bytes| bytes.parse().ok());
    let send_buffer: usize = largest.expect("three numbers");
    ((send_buffer + 2 * RECEIVE_BUFFER + more) / PADDING + 20) as u64
}

/// A server with this one rule, and nothing that ends a slow reader but the rule.
fn server(rule: &str) -> Server {
    let patient = ["--send-timeout", "10m", "--close-timeout", "1m", "--ping-interval", "off"];
    Server::start(&[&["--shards", "2", "--room-policy", rule][..], &patient].concat())
}

/// Ends the server and gives the value of a field of the line that sums up what it did.
fn counted(mut server: Server, names: [&str; 3]) -> [u64; 3] {
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
    let log = server.log();
    let summary = log.lines().find(|line| line.contains("drained")).expect("a summary");
    names.map(|name| {
        let mut fields = summary.split_whitespace().filter_map(|field| field.split_once('='));
        let field = fields.find(|(field, _)| *field == name).expect("the field is there");
        field.1.parse().expect("a number")
    })
}

const COUNTERS: [&str; 3] = ["skipped_to_newest", "dropped_oldest", "slow_consumers"];

/// A slow reader, a healthy one, a publisher, and what the healthy one must get: everything.
struct Scene {
    slow: Member,
    healthy: Member,
    publisher: Member,
}

impl Scene {
    fn new(server: &Server, dialect: Dialect) -> Scene {
        let join = || Member::join(server.address(), dialect, "ticker:eu");
        Scene { slow: join(), healthy: join(), publisher: join() }
    }

    fn publish(&mut self, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            self.publisher.publish(number);
            self.healthy.expect(number);
        }
    }
}

#[test]
fn skip_to_newest_goes_on_with_the_newest_message() {
    for dialect in [Dialect::Native, Dialect::Raw] {
        let server = server("ticker:*=skip-to-newest/256KiB");
        let count = messages_past(256 * 1024);
        let mut scene = Scene::new(&server, dialect);
        scene.publish(1..=count);
        let seen = scene.slow.read_to(count);
        assert!(seen.skipped > 0, "the sockets held everything");
        assert_eq!(seen.last, count, "{seen:?}");
        (count + 1..=count + 3).for_each(|number| {
            scene.publish(number..=number);
            scene.slow.expect(number);
        });
        drop(scene);
        assert_eq!(counted(server, COUNTERS), [seen.skipped, 0, 0], "{dialect:?}");
    }
}

#[test]
fn drop_oldest_goes_on_with_the_oldest_message_within_the_mark() {
    const MARK: u64 = 300_000;
    for dialect in [Dialect::Native, Dialect::Raw] {
        let server = server(&format!("ticker:*=drop-oldest/{MARK}"));
        let count = messages_past(MARK as usize);
        let mut scene = Scene::new(&server, dialect);
        scene.publish(1..=count);
        let seen = scene.slow.read_to(count);
        assert!(seen.skipped > 0, "the sockets held everything");
        assert_eq!(seen.last, count, "{seen:?}");
        // As many as go into the mark.
        let len = PADDING as u64 + 200;
        assert!((MARK - len..=MARK).contains(&seen.bytes), "{seen:?}");
        drop(scene);
        assert_eq!(counted(server, COUNTERS), [0, seen.skipped, 0], "{dialect:?}");
    }
}

#[test]
fn disconnect_closes_with_1013_and_a_reason() {
    for dialect in [Dialect::Native, Dialect::Raw] {
        let server = server("ticker:*=disconnect/2MiB");
        let count = messages_past(2 * 1024 * 1024);
        let mut scene = Scene::new(&server, dialect);
        scene.publish(1..=count);
        let seen = scene.slow.read_to(count);
        let (code, reason) = seen.close.expect("a close before the last message");
        assert_eq!((code, seen.skipped), (1013, 0));
        assert!(reason.starts_with("slow consumer"), "{reason}");
        drop(scene);
        assert_eq!(counted(server, COUNTERS), [0, 0, 1], "{dialect:?}");
    }
}

/// The value of the series of `/metrics` whose line has all of `words`.
fn metric(server: &Server, words: &[&str]) -> f64 {
    let mut wire = Wire::connect(server.admin());
    wire.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let metrics = String::from_utf8(wire.response().body).expect("metrics are text");
    let mut series = metrics.lines().filter(|line| !line.starts_with('#'));
    let line = series.find(|line| words.iter().all(|word| line.contains(word)));
    let value = line.and_then(|line| line.split_whitespace().last()).map(str::parse);
    value.expect("the series is there").expect("a number")
}

#[test]
fn a_reader_that_pauses_for_longer_than_close_timeout_still_hears_why_it_was_closed() {
    const CLOSE_TIMEOUT: Duration = Duration::from_millis(100);
    for dialect in [Dialect::Native, Dialect::Raw] {
        let server = Server::start(
            &[
                &["--shards", "2", "--room-policy", "ticker:*=disconnect/2MiB"][..],
                &["--send-timeout", "10m", "--close-timeout", "100ms", "--ping-interval", "off"],
            ]
            .concat(),
        );
        let count = messages_past(2 * 1024 * 1024);
        let mut scene = Scene::new(&server, dialect);
        scene.publish(1..=count);
        let disconnected = ["fanwire_disconnects_total{", "reason=\"slow_consumer\""];
        wait_until("the slow reader is disconnected", || metric(&server, &disconnected) > 0.0);
        // Time is what it is about: the close waits behind what the socket holds.
        sleep(5 * CLOSE_TIMEOUT);
        let seen = scene.slow.read_to(count);
        assert!(matches!(seen.close, Some((1013, _))), "{dialect:?}: {seen:?}");
        // From then on it has `close_timeout` to answer, and it does not.
        scene.slow.wire.read_to_end_of_life();
    }
}

#[test]
fn messages_get_too_old_also_when_nothing_more_comes() {
    let server = server("ticker:*=disconnect/1GiB/1s");
    let count = messages_past(0);
    let mut scene = Scene::new(&server, Dialect::Native);
    scene.publish(1..=count);
    // Nobody publishes, and the slow one reads nothing.
    let disconnected = ["fanwire_disconnects_total{", "reason=\"slow_consumer\""];
    wait_until("the slow reader is disconnected", || metric(&server, &disconnected) > 0.0);
    let seen = scene.slow.read_to(count);
    assert!(matches!(seen.close, Some((1013, _))), "{seen:?}");
}

#[test]
fn what_is_older_than_the_age_counts_as_too_far_behind() {
    const AGE: Duration = Duration::from_secs(1);
    for (policy, dialect) in [
        ("skip-to-newest", Dialect::Native),
        ("skip-to-newest", Dialect::Raw),
        ("drop-oldest", Dialect::Native),
        ("disconnect", Dialect::Native),
        ("disconnect", Dialect::Raw),
    ] {
        // No number of bytes is too many.
        let server = server(&format!("ticker:*={policy}/1GiB/1s"));
        let count = messages_past(0);
        let mut scene = Scene::new(&server, dialect);
        scene.publish(1..=count);
        // Time is what it is about.
        sleep(AGE + AGE / 10);
        let seen = scene.slow.read_to(count);
        let counters = match policy {
            "skip-to-newest" => {
                // The newest is never too old.
                assert_eq!(seen.last, count, "{seen:?}");
                [seen.skipped, 0, 0]
            }
            "drop-oldest" => {
                assert!(seen.last < count, "{seen:?}");
                scene.publish(count + 1..=count + 1);
                scene.slow.expect(count + 1);
                [0, seen.skipped, 0]
            }
            _ => {
                assert!(matches!(seen.close, Some((1013, _))), "{seen:?}");
                [0, 0, 1]
            }
        };
        assert_eq!(seen.skipped > 0, policy != "disconnect", "the sockets held everything");
        drop(scene);
        assert_eq!(counted(server, COUNTERS), counters, "{policy} {dialect:?}");
    }
}

#[test]
fn the_first_rule_that_matches_counts_in_both_name_spaces() {
    let server = server("ticker:eu=skip-to-newest/256KiB,*=disconnect/2MiB");
    for dialect in [Dialect::Native, Dialect::Raw] {
        let count = messages_past(2 * 1024 * 1024);
        let join = |room| Member::join(server.address(), dialect, room);
        for (room, closes) in [("ticker:eu", false), ("ticker:us", true)] {
            let (mut slow, mut publisher) = (join(room), join(room));
            (1..=count).for_each(|number| publisher.publish(number));
            let seen = slow.read_to(count);
            assert_eq!(matches!(seen.close, Some((1013, _))), closes, "{room}: {seen:?}");
        }
    }
    assert_eq!(counted(server, COUNTERS)[2], 2);
}

#[test]
fn memory_is_bounded_by_the_mark_whoever_is_slow() {
    const MIB: u64 = 1024 * 1024;
    let server = server("ticker:*=drop-oldest/1MiB");
    let mut scene = Scene::new(&server, Dialect::Raw);
    // All that is needed in the long run is there already.
    scene.publish(1..=100);
    let slow: Vec<Member> =
        (0..6).map(|_| Member::join(server.address(), Dialect::Raw, "ticker:eu")).collect();
    let before = server.settled_rss_bytes();
    scene.publish(101..=101 + 64 * MIB / PADDING as u64);
    let grown = server.settled_rss_bytes().saturating_sub(before);
    assert!(grown < 8 * MIB, "{grown} bytes more after 64 MiB, with {} slow members", slow.len());
}

#[test]
fn memory_of_slow_members_is_that_of_one_cut_message_each() {
    const SLOW: usize = 400;
    const LEN: usize = 16_000;
    // In a network of its own, where sockets hold little, so that many can be full.
    beside_link(|_| {
        for (setting, sizes) in [("tcp_wmem", "4096 16384 16384"), ("tcp_rmem", "4096 16384 16384")]
        {
            let path = format!("/proc/sys/net/ipv4/{setting}");
            fs::write(path, sizes).expect("a network's own setting");
        }
        let patient = ["--send-timeout", "10m", "--ping-interval", "off"];
        let rule = ["--shards", "1", "--room-policy", "*=drop-oldest/1MiB"];
        let server = Server::start(&[rule, patient].concat());
        let mut publisher = Wire::open(server.address(), "/raw/room");
        let message = frame(0x82, &[b'x'; LEN]);
        let mut publish = |count: usize| {
            for _ in 0..count {
                publisher.send(&message);
                assert_eq!(publisher.expect_frame().payload.len(), LEN);
            }
        };
        publish(300);
        let before = server.settled_rss_bytes();
        // One after the other, so that each is cut in another message of another segment.
        let mut slow = Vec::new();
        for _ in 0..SLOW {
            slow.push(Wire::open(server.address(), "/raw/room"));
            publish(16);
        }
        let grown = server.settled_rss_bytes().saturating_sub(before);
        let short = metric(&server, &["fanwire_short_sends_total"]);
        assert!(short >= SLOW as f64, "{short} short sends: somebody is not slow");
        println!("{SLOW} slow members: {grown} bytes more");
        // The mark, segments that wait to be used again, and the messages. Segments would be 64 KiB
        // each.
        let max = 8 * 1024 * 1024 + SLOW * LEN;
        assert!(grown < max as u64, "{grown} bytes more for {SLOW} slow members");
    });
}
