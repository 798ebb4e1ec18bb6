//! A simulated peer: well-behaved, lazy or hostile, and strict about every answer.
//!
//! A peer knows at any time what the server owes it. Answers come in the order of the requests;
//! acks and deliveries come in between, in their own order. Whatever a peer did to deserve it, a
//! close has exactly one legal code, and the stream ends between two frames, unless the peer kept
//! the server waiting beyond a deadline.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::check::{Checker, Room};
use super::net::{Net, Read};
use super::wire::{self, BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT};
use super::world::{Plan, SIM_USER};
use crate::config::Limits;

/// What a peer connects for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Native,
    Raw(usize),
    Echo,
    /// Its request is to be answered with this status.
    Refused(u16),
    /// Its request never ends.
    Unfinished,
}

/// How it ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    Close,
    HalfClose,
    Reset,
    Violation,
}

/// What the server owes, in order.
#[derive(Debug)]
enum Owed {
    Joined { room: usize, id: Option<u64> },
    Left { room: usize, id: Option<u64> },
    Pong { id: Option<u64> },
    Authenticated { id: Option<u64> },
    Error { code: &'static str, id: Option<u64> },
    ControlPong(Vec<u8>),
    Echo { opcode: u8, payload: Vec<u8> },
}

/// A native room as this peer sees it.
#[derive(Debug, Default)]
struct Seat {
    /// A member once everything it has sent is handled.
    wanted: bool,
    name: Option<String>,
    /// A member as far as it has been told.
    session: Option<usize>,
    published: u64,
}

#[derive(Debug)]
pub(super) struct Peer {
    number: usize,
    link: usize,
    kind: Kind,
    /// It reads everything at once, always: nothing excuses the server.
    eager: bool,
    /// It does not answer closes and never ends the connection.
    lingers: bool,
    read_max: usize,
    write_max: usize,
    name: Option<String>,
    /// The one it gave last.
    last_name: Option<String>,

    out: VecDeque<u8>,
    input: Vec<u8>,
    /// When it knocked.
    since: Duration,
    /// The status of the HTTP answer.
    status: Option<u16>,
    body_left: usize,
    offered: bool,
    stalled_until: Duration,
    long_stall: bool,
    seats: BTreeMap<usize, Seat>,
    /// The membership of a raw peer.
    raw_session: Option<usize>,
    raw_published: u64,
    owed: VecDeque<Owed>,
    acks: BTreeMap<u64, usize>,
    direct_acks: BTreeMap<u64, usize>,
    next_id: u64,

    told_of_drain: bool,
    departing: bool,
    sent_close: Option<Option<u16>>,
    violated: Option<u16>,
    /// Half-closes as soon as everything is written.
    ends: bool,
    half_closed: bool,
    got_close: bool,
    closed_at: Duration,
    got_end: bool,
    ended_at: Duration,
    /// The server had much to receive then.
    unread: bool,
    /// When its host lost its power, without a word.
    vanished_at: Option<Duration>,
    pub(super) done: bool,
}

/// Messages of the server's native protocol.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message<'m> {
    #[serde(rename = "type")]
    kind: &'m str,
    room_id: Option<String>,
    sender: Option<String>,
    offset: Option<u64>,
    from: Option<u64>,
    to: Option<u64>,
    #[serde(borrow)]
    content: Option<&'m RawValue>,
    id: Option<Value>,
    code: Option<String>,
    message: Option<String>,
    event: Option<String>,
    delivered: Option<u64>,
    reconnect_in_ms: Option<u64>,
    expires_in_s: Option<u64>,
}

/// How long a close may be on its way to a peer that reads at once.
const SLACK: Duration = Duration::from_millis(100);

/// A step of the hand, two units of the deadlines' wheel, and the ticks for it.
const HAND_SLACK: Duration = Duration::from_millis(300);

/// Within this time the server sees an end, even if polls come late.
const PROMPT: Duration = Duration::from_millis(300);

/// Those whose word about their clients is taken in some worlds.
pub(super) const PROXIES: &str = "192.0.2.0/31";

pub(super) const ROOM_NAMES: [&str; 4] = ["lobby", "a b/c", "é\"\\x", "z"];

impl Peer {
    pub(super) fn new(number: usize, plan: &Plan, net: &mut Net) -> Self {
        let kind = match net.rng.random_range(0..100) {
            0..55 => Kind::Native,
            55..85 => Kind::Raw(net.rng.random_range(0..plan.rooms)),
            85..90 => Kind::Echo,
            90..97 => Kind::Refused(0),
            _ => Kind::Unfinished,
        };
        let eager = net.chance(plan.eager);
        let lingers = !eager && net.chance(0.1);
        let small = [1, 16, 100, 1000, 10_000];
        let to_client_max = if eager { usize::MAX } else { pick(net, &[64, 256, 1024, 8192]) };
        let habits = super::net::LinkHabits {
            to_server_max: pick(net, &[64, 512, 4096, 65_536]),
            to_client_max,
            unreliable: !eager || plan.roomy,
        };
        let shard = net.rng.random_range(0..plan.shards);
        let mut peer = Self {
            number,
            link: net.connect(shard, habits),
            kind,
            eager,
            lingers,
            read_max: if eager { usize::MAX } else { (to_client_max / 8).max(pick(net, &small)) },
            write_max: pick(net, &small[1..]),
            name: net.chance(0.8).then(|| plan.peer_name(number)),
            last_name: None,
            out: VecDeque::new(),
            input: Vec::new(),
            since: net.clock,
            status: None,
            body_left: 0,
            offered: net.chance(0.5),
            stalled_until: Duration::ZERO,
            long_stall: false,
            seats: BTreeMap::new(),
            raw_session: None,
            raw_published: 0,
            owed: VecDeque::new(),
            acks: BTreeMap::new(),
            direct_acks: BTreeMap::new(),
            next_id: 0,
            told_of_drain: false,
            departing: false,
            sent_close: None,
            violated: None,
            ends: false,
            half_closed: false,
            got_close: false,
            closed_at: Duration::ZERO,
            got_end: false,
            ended_at: Duration::ZERO,
            unread: false,
            vanished_at: None,
            done: false,
        };
        let request = peer.request(plan, net);
        if plan.proxies && number.is_multiple_of(2) && is_proxy(peer.link) {
            let header = format!("PROXY TCP4 203.0.113.{} 192.0.2.9 1 2\r\n", number % 3);
            peer.out.extend(header.into_bytes());
        }
        peer.out.extend(request);
        net.note("connect", &[number as u64, peer.link as u64, shard as u64, u64::from(eager)]);
        peer
    }

    /// The upgrade request.
    fn request(&mut self, plan: &Plan, net: &mut Net) -> Vec<u8> {
        let path = match self.kind {
            Kind::Native => "/ws".to_owned(),
            Kind::Raw(room) => format!("/raw/{}", percent_encode(ROOM_NAMES[room])),
            Kind::Echo => "/echo?x=1".to_owned(),
            Kind::Refused(_) | Kind::Unfinished => "/ws".to_owned(),
        };
        let protocol = if self.offered { "Sec-WebSocket-Protocol: x, fanwire.v1\r\n" } else { "" };
        let token = plan.token.as_ref();
        let token = token.map_or("".into(), |token| format!("Authorization: Bearer {token}\r\n"));
        // Taken from proxies, and from nobody else.
        let client = format!("X-Forwarded-For: 198.51.100.{}\r\n", self.number % 3);
        let client = if plan.proxies { &client } else { "" };
        let good = format!(
            "GET {path} HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             {protocol}{token}{client}\r\n"
        );
        match self.kind {
            Kind::Refused(_) => {
                let long = "x".repeat(3000);
                let rows = [
                    (good.replace("/ws", "/nothing"), 404),
                    (good.replace("GET", "POST"), 405),
                    (good.replace("Version: 13", "Version: 8"), 426),
                    (good.replace("Upgrade: websocket\r\n", ""), 426),
                    (good.replace("Host: sim\r\n", ""), 400),
                    (good.replace("HTTP/1.1", "HTTP/1.0"), 400),
                    (good.replace("Host: sim", "Host: sim\r\nContent-Length: 5"), 400),
                    (good.replace("/ws", &format!("/raw/{long}")), 414),
                    (good.replace("Host: sim", &format!("Host: sim\r\nX: {long}")), 431),
                    ("\0\u{1}garbage\r\n".repeat(9), 400),
                    (good.replace("/ws", "/"), 200),
                ];
                let (request, status) = rows[net.rng.random_range(0..rows.len())].clone();
                self.kind = Kind::Refused(status);
                request.into_bytes()
            }
            Kind::Unfinished => {
                let len = net.rng.random_range(0..good.len());
                good.as_bytes()[..len].to_vec()
            }
            _ => good.into_bytes(),
        }
    }

    /// What its request was answered with.
    pub(super) fn status(&self) -> Option<u16> {
        self.status
    }

    /// Who it is to the server, once that has handled all it has said.
    fn user(&self, plan: &Plan) -> Option<String> {
        plan.token.as_ref().map(|_| SIM_USER.to_owned()).or(self.last_name.clone())
    }

    /// Whether it is connected, has got everything through and wants to stay.
    pub(super) fn is_intact(&self) -> bool {
        self.status == Some(101)
            && self.out.is_empty()
            && self.violated.is_none()
            && self.sent_close.is_none()
            && !(self.ends || self.got_close || self.got_end || self.done)
    }

    /// Whether a step would do something at once.
    pub(super) fn has_work(&self, net: &Net) -> bool {
        if self.done {
            return false;
        }
        let writes = !self.out.is_empty() && net.can_write(self.link);
        let ends = self.out.is_empty() && self.ends && !self.half_closed;
        let reads = !self.got_end && net.clock >= self.stalled_until && net.can_read(self.link);
        writes || ends || reads || (self.got_end && net.is_closed_by_server(self.link))
    }

    /// When it goes on reading.
    pub(super) fn next_time(&self, net: &Net) -> Option<Duration> {
        (!self.done && self.stalled_until > net.clock).then_some(self.stalled_until)
    }

    /// Goes on reading now.
    pub(super) fn resume(&mut self) {
        self.stalled_until = Duration::ZERO;
    }

    /// Moves some bytes.
    pub(super) fn step(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        if self.done {
            return;
        }
        if !self.out.is_empty() {
            let len = self.write_max.min(self.out.len());
            let len = net.rng.random_range(1..=len);
            let bytes: Vec<u8> = self.out.iter().take(len).copied().collect();
            let written = net.write(self.link, &bytes);
            self.out.drain(..written);
        } else if self.ends && !self.half_closed {
            self.half_closed = true;
            net.finish(self.link);
        }
        if self.got_end {
            if net.is_closed_by_server(self.link) {
                // It lets go as soon as both have ended, not when time is up.
                let excused = self.lingers || self.unread || plan.shard_stalls > 0.0;
                let prompt = net.clock < self.ended_at + PROMPT;
                assert!(prompt || excused, "peer {} has long ended", self.number);
                self.done = true;
            }
            return;
        }
        if net.clock < self.stalled_until {
            return;
        }
        let max = if self.eager { usize::MAX } else { net.rng.random_range(1..=self.read_max) };
        match net.read(self.link, max) {
            Read::Nothing => {}
            Read::Bytes(bytes) => {
                self.input.extend(bytes);
                self.handle_input(plan, net, check);
            }
            Read::Eof => self.handle_end(plan, net, check),
            Read::Reset => {
                let over = plan.drain_is_over(net.clock);
                let fair = self.may_be_cut(plan, net) || self.lingers || over;
                assert!(
                    fair || (plan.draining && self.status.is_none()),
                    "peer {} is reset: {self:?}",
                    self.number
                );
                net.note("reset", &[self.number as u64]);
                self.is_over(check);
                self.done = true;
            }
        }
    }

    fn handle_input(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        if self.status.is_none() {
            let Some(head) = wire::take_head(&mut self.input) else { return };
            self.handle_head(&head, plan, net, check);
        }
        if self.status != Some(101) {
            assert!(self.input.len() <= self.body_left, "more than the HTTP answer");
            return;
        }
        while let Some(frame) = wire::take_frame(&mut self.input) {
            assert!(!self.got_close, "a frame after the close: {frame:?}");
            self.handle_frame(frame, plan, net, check);
        }
    }

    fn handle_head(&mut self, head: &wire::Head, plan: &Plan, net: &mut Net, check: &mut Checker) {
        net.note("status", &[self.number as u64, u64::from(head.status)]);
        self.status = Some(head.status);
        self.body_left =
            head.field("content-length").map_or(0, |len| len.parse().expect("a length"));
        let (expected, may_be_full) = match self.kind {
            Kind::Native | Kind::Echo => (101, plan.crowded || plan.draining),
            Kind::Raw(_) => (101, plan.crowded || plan.draining || plan.joins_may_fail()),
            Kind::Refused(status) => (status, plan.crowded || plan.draining),
            Kind::Unfinished => (408, plan.crowded || plan.draining),
        };
        // A raw room's home may take longer than the deadline to answer the join (seed 11178), and
        // a token may wait for as long to be verified.
        let waits = matches!(self.kind, Kind::Raw(_)) || plan.token.is_some();
        let fair = head.status == expected
            || (head.status == 503 && may_be_full)
            || (head.status == 429 && plan.addresses_scarce)
            || (net.clock >= self.since + plan.handshake_timeout
                && (head.status == 408 || (head.status == 503 && waits)));
        assert!(fair, "peer {} is answered {head:?}, expected {expected}", self.number);
        if head.status == 101 {
            let accept = head.field("sec-websocket-accept");
            assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "RFC 6455 §1.3");
            let protocol = head.field("sec-websocket-protocol");
            let native = self.offered && self.kind == Kind::Native;
            assert_eq!(protocol, native.then_some("fanwire.v1"));
            if let Some(user) = self.user(plan).filter(|_| self.kind == Kind::Native) {
                check.directs.claim(self.number, &user);
                check.directs.know(self.number, &user);
            }
            if let Kind::Raw(room) = self.kind {
                let session = check.join(Room { raw: true, number: room }, None);
                self.raw_session = Some(session);
                if self.departing {
                    check.cut(session);
                }
            }
        }
    }

    fn handle_frame(
        &mut self,
        frame: wire::Frame,
        plan: &Plan,
        net: &mut Net,
        check: &mut Checker,
    ) {
        match frame.opcode {
            CLOSE => self.handle_close(&frame.payload, plan, net, check),
            PONG => match self.owed.pop_front() {
                Some(Owed::ControlPong(payload)) => assert_eq!(payload, frame.payload),
                owed => panic!("a pong, owed {owed:?}"),
            },
            PING => self.handle_ping(&frame.payload, plan, net),
            opcode => match self.kind {
                Kind::Native => {
                    assert_eq!(opcode, TEXT, "JSON is text");
                    self.handle_native(&frame.payload, plan, net, check);
                }
                Kind::Raw(_) => {
                    let id = raw_id(opcode, &frame.payload);
                    let publish = check.publishes.get(id).expect("an id of ours");
                    assert_eq!(publish.binary, opcode == BINARY, "publish {id}: the opcode");
                    assert_eq!(publish.body, frame.payload, "publish {id}: the payload");
                    check.deliver(self.raw_session.expect("after the 101"), id, None);
                    net.note("raw", &[self.number as u64, id as u64]);
                }
                _ => match self.owed.pop_front() {
                    Some(Owed::Echo { opcode, payload }) => {
                        assert_eq!((opcode, payload), (frame.opcode, frame.payload));
                    }
                    owed => panic!("an echo, owed {owed:?}"),
                },
            },
        }
    }

    fn handle_ping(&mut self, payload: &[u8], plan: &Plan, net: &mut Net) {
        assert!(plan.heartbeats.is_some(), "a ping although nobody wants any");
        net.note("ping", &[self.number as u64]);
        if self.sent_close.is_none() && self.violated.is_none() && !self.ends {
            self.out.extend(wire::frame(true, PONG, payload, net.rng.random()));
        }
    }

    fn handle_native(&mut self, payload: &[u8], plan: &Plan, net: &mut Net, check: &mut Checker) {
        let message: Message<'_> = serde_json::from_slice(payload).unwrap_or_else(|error| {
            panic!("{error}: {}", payload.escape_ascii());
        });
        let id = message.id.as_ref().map(id_number);
        let room = message.room_id.as_deref().map(|name| {
            ROOM_NAMES.iter().position(|other| *other == name).expect("a room of ours")
        });
        net.note(message.kind, &[self.number as u64, message.offset.unwrap_or(0)]);
        match (message.kind, room, message.offset) {
            ("broadcast", Some(room), Some(offset)) => {
                let content = message.content.expect("content").get();
                let value: Value = serde_json::from_str(content).expect("JSON");
                let id = value["p"].as_u64().expect("an id") as usize;
                let publish = &check.publishes[id];
                assert_eq!(publish.body, content.as_bytes(), "publish {id}: the content");
                assert_eq!(Some(&publish.sender), message.sender.as_ref(), "publish {id}");
                let session = self.seats.get(&room).and_then(|seat| seat.session);
                let session = session.expect("delivers to one who is no member");
                check.deliver(session, id, Some(offset));
            }
            ("ack", None, None) => {
                let direct = self.direct_acks.remove(&id.expect("acks have an id"));
                let delivered = message.delivered.expect("how many");
                check.directs.acknowledge(direct.expect("acks something else"), delivered);
            }
            ("direct", None, None) => {
                let content = message.content.expect("content").get();
                let value: Value = serde_json::from_str(content).expect("JSON");
                let number = value["d"].as_u64().expect("a number") as usize;
                let (user, sender) = (self.user(plan), message.sender.expect("a sender"));
                check.directs.deliver(self.number, user.as_deref(), number, &sender, content);
            }
            ("ack", None, Some(offset)) => {
                let publish = self.acks.remove(&id.expect("acks have an id"));
                check.acknowledge(publish.expect("acks something else"), offset);
            }
            ("skipped", Some(room), None) => {
                assert!(!self.eager, "peer {} reads at once, and misses something", self.number);
                let session = self.seats.get(&room).and_then(|seat| seat.session);
                let session = session.expect("skips for one who is no member");
                check.skip(session, message.from.expect("from"), message.to.expect("to"));
            }
            ("joined", Some(room), Some(offset)) => match self.owed.pop_front() {
                Some(Owed::Joined { room: owed, id: owed_id }) => {
                    assert_eq!((room, id), (owed, owed_id));
                    // Names do not change in worlds where it counts.
                    if let Some(user) = self.user(plan).filter(|_| plan.directs) {
                        check.directs.know(self.number, &user);
                    }
                    let seat = self.seats.entry(room).or_default();
                    if seat.session.is_none() {
                        let session = check.join(Room { raw: false, number: room }, Some(offset));
                        seat.session = Some(session);
                        if self.departing {
                            check.cut(session);
                        } else if !seat.wanted {
                            check.end(session);
                        }
                    }
                }
                owed => panic!("joined, owed {owed:?}"),
            },
            ("left", Some(room), None) => match self.owed.pop_front() {
                Some(Owed::Left { room: owed, id: owed_id }) => {
                    assert_eq!((room, id), (owed, owed_id));
                    let seat = self.seats.get_mut(&room).expect("left a room of ours");
                    check.end(seat.session.take().expect("left once"));
                }
                owed => panic!("left, owed {owed:?}"),
            },
            ("system", None, None) => {
                assert_eq!(message.event.as_deref(), Some("draining"));
                assert!(plan.draining && !self.told_of_drain, "once, and when it is so");
                assert!(message.reconnect_in_ms.is_some());
                self.told_of_drain = true;
            }
            ("pong", None, None) => match self.owed.pop_front() {
                Some(Owed::Pong { id: owed_id }) => assert_eq!(id, owed_id),
                owed => panic!("pong, owed {owed:?}"),
            },
            ("authenticated", None, None) => match self.owed.pop_front() {
                Some(Owed::Authenticated { id: owed_id }) => {
                    assert_eq!(id, owed_id);
                    assert!(message.expires_in_s.is_some_and(|s| (80_000..=86_400).contains(&s)));
                }
                owed => panic!("authenticated, owed {owed:?}"),
            },
            ("error", None, None) => {
                assert!(message.message.is_some_and(|message| !message.is_empty()));
                let code = message.code.expect("a code");
                match self.owed.pop_front() {
                    Some(Owed::Error { code: owed, id: owed_id }) => {
                        assert_eq!((code.as_str(), id), (owed, owed_id));
                    }
                    Some(Owed::Joined { room, id: owed_id }) if plan.joins_may_fail() => {
                        assert_eq!(id, owed_id);
                        match code.as_str() {
                            "room_full" => {
                                assert!(plan.seats_scarce);
                                check.rooms_full += 1;
                            }
                            code => assert!(plan.rooms_scarce && code == "server_busy", "{code}"),
                        }
                        self.seats.remove(&room);
                    }
                    owed => panic!("error {code}, owed {owed:?}"),
                }
            }
            _ => panic!("not of the protocol: {}", payload.escape_ascii()),
        }
    }

    fn handle_close(&mut self, payload: &[u8], plan: &Plan, net: &mut Net, check: &mut Checker) {
        let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        let reason = std::str::from_utf8(payload.get(2..).unwrap_or_default()).expect("UTF-8");
        net.note("closed", &[self.number as u64, code.map_or(0, u64::from)]);
        let answers = self.sent_close == Some(code) || (code.is_some() && self.violated == code);
        let fair = match code {
            _ if answers => true,
            Some(1001) => plan.draining,
            Some(1013) if reason.starts_with("slow") => {
                !self.eager && !plan.roomy && (plan.disconnects() || plan.directs)
            }
            Some(1013) => plan.partial_scarce,
            _ => false,
        };
        assert!(fair, "peer {} is closed with {code:?} {reason:?}: {self:?}", self.number);
        // It has handled everything that came before.
        assert!(
            !answers || self.owed.is_empty() || code == Some(1001),
            "peer {} is closed and still owed {:?}",
            self.number,
            self.owed
        );
        if code == Some(1001) && !answers {
            let told = self.told_of_drain || self.kind != Kind::Native;
            assert!(told, "peer {} is closed and was not told", self.number);
            let sessions = self.seats.values().filter_map(|seat| seat.session);
            sessions.chain(self.raw_session).for_each(|session| check.check_farewell(session));
        }
        self.got_close = true;
        self.closed_at = net.clock;
        self.is_over(check);
        if self.sent_close.is_none() && self.violated.is_none() && !self.lingers && !self.ends {
            self.out.extend(wire::frame(true, CLOSE, payload, net.rng.random()));
        }
        self.departing = true;
    }

    fn handle_end(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        net.note("end", &[self.number as u64]);
        let whole = match self.status {
            None => false,
            Some(101) => self.input.is_empty() && (self.got_close || self.ends),
            Some(_) => self.input.len() == self.body_left,
        };
        assert!(
            whole
                || (self.ends && self.status.is_none())
                || self.may_be_cut(plan, net)
                || plan.drain_is_over(net.clock),
            "peer {} is cut: {self:?}",
            self.number
        );
        self.is_over(check);
        self.got_end = true;
        self.ended_at = net.clock;
        self.unread = net.has_much_unread(self.link);
        self.out.clear();
        if !self.lingers {
            net.close(self.link);
            self.half_closed = true;
            self.ends = true;
        }
    }

    /// Whether the server may end the connection in the middle of something: only after a deadline.
    fn may_be_cut(&self, plan: &Plan, net: &Net) -> bool {
        let ending = self.departing || self.got_close || plan.draining;
        // The page is long, and the time for it is short; that for any other answer can be over,
        // too.
        let page = self.kind == Kind::Refused(200);
        let refused = matches!(self.kind, Kind::Refused(_))
            || self.status.is_some_and(|status| matches!(status, 429 | 503));
        let answered = refused && net.clock >= self.since + plan.close_timeout;
        // A slow consumer has only so long to take the close that tells it so.
        // Nor has it long to answer a ping in some worlds.
        let hasty = plan.heartbeats.is_some_and(|it| it.pong_timeout < 6 * SLACK);
        let slow = !self.eager && (ending || page || answered || hasty || !plan.roomy);
        // What it had written before its own close was too much for the time it has.
        let late = self.got_close && net.clock + SLACK >= self.closed_at + plan.close_timeout;
        self.long_stall || self.lingers || slow || late
    }

    /// What it is not delivered from now on does not count.
    fn is_over(&mut self, check: &mut Checker) {
        let sessions = self.seats.values().filter_map(|seat| seat.session);
        sessions.chain(self.raw_session).for_each(|session| check.cut(session));
    }

    /// Ends the connection in some way, as soon as there is one.
    pub(super) fn depart(&mut self, how: Departure, net: &mut Net, check: &mut Checker) {
        if self.departing || self.done {
            return;
        }
        if self.status != Some(101) && !matches!(how, Departure::HalfClose | Departure::Reset) {
            return;
        }
        net.note("depart", &[self.number as u64, how as u64]);
        self.departing = true;
        self.is_over(check);
        match how {
            Departure::Close => {
                let code = pick(net, &[None, Some(1000_u16), Some(3999)]);
                let payload = code.map_or(Vec::new(), |code| {
                    [&code.to_be_bytes()[..], "bye é".as_bytes()].concat()
                });
                self.sent_close = Some(code);
                self.out.extend(wire::frame(true, CLOSE, &payload, net.rng.random()));
            }
            Departure::HalfClose => self.ends = true,
            Departure::Reset => {
                net.reset(self.link);
                self.done = true;
            }
            Departure::Violation => self.violate(net),
        }
    }

    /// Breaks the protocol in one of many ways.
    fn violate(&mut self, net: &mut Net) {
        let key = net.rng.random();
        let mut reserved = wire::frame(true, TEXT, b"{}", key);
        reserved[0] |= 0x40;
        let begun = wire::frame(false, TEXT, b"{", key);
        let rows: [(Vec<u8>, u16); 13] = [
            (vec![0x81, 2, b'{', b'}'], 1002),
            (reserved, 1002),
            (wire::frame(true, 3, b"", key), 1002),
            (wire::frame(false, PING, b"", key), 1002),
            (vec![0x89, 0x80 | 126, 0, 126], 1002),
            (wire::frame(true, CONTINUATION, b"x", key), 1002),
            ([begun, wire::frame(true, TEXT, b"}", key)].concat(), 1002),
            (vec![0x82, 0x80 | 126, 0, 5, 1, 2, 3, 4, 0, 0, 0, 0, 0], 1002),
            (vec![0x82, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], 1002),
            (wire::frame(true, CLOSE, b"\x03", key), 1002),
            (wire::frame(true, CLOSE, &1005_u16.to_be_bytes(), key), 1002),
            (wire::frame(true, TEXT, b"ab\xFF", key), 1007),
            (vec![0x82, 0x80 | 127, 0, 0, 0, 0, 0x10, 0, 0, 0, 1, 2, 3, 4], 1009),
        ];
        let (bytes, code) = rows[net.rng.random_range(0..rows.len())].clone();
        self.violated = Some(code);
        self.out.extend(bytes);
        // What comes after it does not matter.
        if net.rng.random_bool(0.5) {
            let after: Vec<u8> = (0..net.rng.random_range(0..3000)).map(|n| n as u8).collect();
            self.out.extend(after);
        }
    }

    /// Does something of its own accord.
    pub(super) fn act(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        if self.done || self.departing || self.got_end || self.out.len() > 4096 {
            return;
        }
        if net.chance(plan.churn) {
            let how = pick(
                net,
                &[Departure::Close, Departure::HalfClose, Departure::Reset, Departure::Violation],
            );
            return self.depart(how, net, check);
        }
        if plan.heartbeats.is_some() && net.chance(0.02) {
            return self.vanish(net, check);
        }
        if !self.eager && net.chance(0.02) {
            return self.stall(plan, net);
        }
        // An impatient peer does not wait for the 101.
        if self.status.is_some_and(|status| status != 101)
            || (self.status.is_none() && !net.chance(0.05))
        {
            return;
        }
        match self.kind {
            Kind::Native => self.act_native(plan, net, check),
            Kind::Raw(room) => self.publish_raw(room, plan, net, check),
            Kind::Echo => {
                let opcode = pick(net, &[TEXT, BINARY]);
                let payload = padding(net, plan.message_max);
                let answer = Owed::Echo { opcode, payload: payload.clone() };
                self.say(opcode, &payload, Some(answer), net);
            }
            Kind::Refused(_) | Kind::Unfinished => {}
        }
    }

    /// Its host is gone, and nobody says so; everything it has said is handled. (Not in the middle
    /// of a message: that has a deadline of its own, and in this world it is far away.)
    fn vanish(&mut self, net: &mut Net, check: &mut Checker) {
        if self.is_intact() && self.owed.is_empty() && net.has_all(self.link) {
            net.note("vanish", &[self.number as u64]);
            self.is_over(check);
            self.vanished_at = Some(net.clock);
            self.done = true;
        }
    }

    /// By when the server must have found out that the peer has vanished, if it has not yet.
    pub(super) fn must_be_cut_by(
        &self,
        plan: &Plan,
        limits: &Limits,
        net: &Net,
    ) -> Option<Duration> {
        let heartbeats = plan.heartbeats.as_ref()?;
        let at = self.vanished_at.filter(|_| !net.is_closed_by_server(self.link))?;
        let silence = heartbeats.ping_interval.expect("they are on") + heartbeats.pong_timeout;
        // What waits for a socket that is full, and then for the answer to a close.
        let full = limits.send_timeout + limits.close_timeout;
        let mut by = at + silence + HAND_SLACK;
        if !self.eager {
            by += full;
        }
        // Stalls that follow on each other cost the hand time. A poll that completes for nothing
        // looks like an answer, and so does a socket that was full for nothing.
        let full_for_nothing = net.faults.short_send > 0.0 && (!self.eager || plan.roomy);
        if plan.shard_stalls > 0.0 || net.faults.spurious > 0.0 || full_for_nothing {
            by += 20 * (silence + full);
        }
        Some(by)
    }

    fn stall(&mut self, plan: &Plan, net: &mut Net) {
        let long = net.chance(plan.long_stalls);
        let millis =
            if long { net.rng.random_range(200..3000) } else { net.rng.random_range(0..80) };
        self.stalled_until = net.clock + Duration::from_millis(millis);
        self.long_stall |= long;
    }

    fn act_native(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        // Whether a join goes well is not known beforehand when rooms or seats are scarce.
        let joins = self.owed.iter().any(|owed| matches!(owed, Owed::Joined { .. }));
        if plan.joins_may_fail() && joins {
            return;
        }
        let room = net.rng.random_range(0..plan.rooms);
        let name = serde_json::to_string(ROOM_NAMES[room]).expect("JSON");
        let id = net.rng.random_bool(0.7).then_some(self.next_id);
        self.next_id += u64::from(id.is_some());
        let id_json = match id {
            Some(id) if id % 2 == 0 => format!(",\"id\":{id}"),
            Some(id) => format!(", \"id\" : \"{id}\""),
            None => String::new(),
        };
        if plan.directs && net.chance(0.3) {
            return self.send_direct(id, &id_json, plan, net, check);
        }
        let wanted = self.seats.values().filter(|seat| seat.wanted).count();
        let is_member = self.seats.get(&room).is_some_and(|seat| seat.wanted);
        let (text, answer) = match net.rng.random_range(0..100) {
            0..60 if is_member => {
                let burst = if net.chance(plan.bursts) { net.rng.random_range(2..30) } else { 1 };
                for _ in 1..burst {
                    self.publish_native(room, None, "", plan, net, check);
                }
                return self.publish_native(room, id, &id_json, plan, net, check);
            }
            0..75 => {
                let rename = is_member && net.rng.random_bool(0.3) && !plan.directs;
                let user_id = if rename {
                    Some(format!("n{}", net.clock.as_micros()))
                } else {
                    self.name.clone()
                };
                let user = user_id.as_ref().map_or(String::new(), |user| {
                    format!(",\"user_id\":{}", serde_json::to_string(user).expect("JSON"))
                });
                let answer = if !is_member && wanted >= plan.rooms_per_connection_max {
                    Owed::Error { code: "too_many_rooms", id }
                } else {
                    self.last_name = user_id.clone().or(self.last_name.take());
                    if let Some(user) = self.user(plan) {
                        check.directs.claim(self.number, &user);
                    }
                    let seat = self.seats.entry(room).or_default();
                    let kept = if is_member { &seat.name } else { &self.last_name };
                    seat.name = match plan.token {
                        Some(_) => Some(SIM_USER.to_owned()),
                        None => user_id.or_else(|| kept.clone()),
                    };
                    seat.wanted = true;
                    Owed::Joined { room, id }
                };
                (format!("{{\"type\":\"join\",\"room_id\":{name}{user}{id_json}}}"), answer)
            }
            75..83 => {
                let answer = if is_member {
                    let seat = self.seats.get_mut(&room).expect("a member");
                    seat.wanted = false;
                    seat.session.into_iter().for_each(|session| check.end(session));
                    Owed::Left { room, id }
                } else {
                    Owed::Error { code: "not_member", id }
                };
                (format!("{{\"type\":\"leave\",\"room_id\":{name}{id_json}}}"), answer)
            }
            83..90 => (format!("{{\"type\":\"ping\"{id_json}}}"), Owed::Pong { id }),
            90..95 => {
                let payload = padding(net, 125);
                return self.ping(payload, net);
            }
            95..97 if plan.token.is_some() => {
                let token = plan.token.as_deref().unwrap_or_default();
                let good = net.rng.random_bool(0.5);
                let (token, answer) = match good {
                    true => (token, Owed::Authenticated { id }),
                    false => ("a.b.c", Owed::Error { code: "invalid_token", id }),
                };
                (format!("{{\"type\":\"auth\",\"token\":\"{token}\"{id_json}}}"), answer)
            }
            95..97 => {
                let answer = Owed::Error { code: "unknown_type", id };
                (format!("{{\"type\":\"fly\"{id_json}}}"), answer)
            }
            _ => ("{".to_owned(), Owed::Error { code: "invalid_json", id: None }),
        };
        self.say(TEXT, text.as_bytes(), Some(answer), net);
    }

    /// To somebody who is, was, or is not yet there.
    fn send_direct(
        &mut self,
        id: Option<u64>,
        id_json: &str,
        plan: &Plan,
        net: &mut Net,
        check: &mut Checker,
    ) {
        let to = match plan.token {
            Some(_) if net.chance(0.9) => SIM_USER.to_owned(),
            _ => plan.peer_name(net.rng.random_range(0..=self.number + 2)),
        };
        let padding = padding(net, plan.message_max - 200);
        let padding = std::str::from_utf8(&padding).expect("ASCII");
        let sender = self.user(plan).unwrap_or("anonymous".to_owned());
        let content = |number| format!("{{\"d\": {number} ,\"x\":\"{padding}\"}}");
        let (number, content) = check.directs.send(self.number, &sender, &to, content);
        let to = serde_json::to_string(&to).expect("JSON");
        let text =
            format!("{{\"type\":\"direct\",\"user_id\":{to},\"content\":{content}{id_json}}}");
        if let Some(id) = id {
            self.direct_acks.insert(id, number);
        }
        self.say(TEXT, text.as_bytes(), None, net);
    }

    fn publish_native(
        &mut self,
        room: usize,
        id: Option<u64>,
        id_json: &str,
        plan: &Plan,
        net: &mut Net,
        check: &mut Checker,
    ) {
        let seat = self.seats.get_mut(&room).expect("a member");
        seat.published += 1;
        let publish = check.publish(Room { raw: false, number: room }, self.number, seat.published);
        let padding = padding(net, plan.message_max - 200);
        let padding = std::str::from_utf8(&padding).expect("ASCII");
        let content = format!("{{ \"p\" :{publish},\"x\":\"{padding}\" }}");
        check.publishes[publish].sender = seat.name.clone().unwrap_or("anonymous".to_owned());
        check.publishes[publish].body = content.clone().into_bytes();
        if let Some(id) = id {
            self.acks.insert(id, publish);
        }
        let name = serde_json::to_string(ROOM_NAMES[room]).expect("JSON");
        let text =
            format!("{{\"type\":\"broadcast\",\"room_id\":{name},\"content\":{content}{id_json}}}");
        self.say(TEXT, text.as_bytes(), None, net);
    }

    fn publish_raw(&mut self, room: usize, plan: &Plan, net: &mut Net, check: &mut Checker) {
        self.raw_published += 1;
        let id = check.publish(Room { raw: true, number: room }, self.number, self.raw_published);
        let binary = net.rng.random_bool(0.5);
        let mut body = if binary {
            (id as u64).to_be_bytes().to_vec()
        } else {
            format!("{id:08}").into_bytes()
        };
        body.extend(padding(net, plan.message_max - 8));
        check.publishes[id].body = body.clone();
        check.publishes[id].binary = binary;
        self.say(if binary { BINARY } else { TEXT }, &body, None, net);
    }

    /// Writes a message, in one frame or several, perhaps with a ping in between. `answer` is owed
    /// for it, if anything.
    fn say(&mut self, opcode: u8, payload: &[u8], answer: Option<Owed>, net: &mut Net) {
        if net.trace.print {
            println!("{:>12.3?} {} says {}", net.clock, self.number, payload.escape_ascii());
        }
        let (mut rest, mut opcode) = (payload, opcode);
        while net.rng.random_bool(0.1) {
            let (part, behind) = rest.split_at(net.rng.random_range(0..=rest.len()));
            self.out.extend(wire::frame(false, opcode, part, net.rng.random()));
            (rest, opcode) = (behind, CONTINUATION);
            if net.rng.random_bool(0.2) {
                // Answered before the message is complete.
                self.ping(b"mid".to_vec(), net);
            }
        }
        self.out.extend(wire::frame(true, opcode, rest, net.rng.random()));
        self.owed.extend(answer);
    }

    fn ping(&mut self, payload: Vec<u8>, net: &mut Net) {
        self.out.extend(wire::frame(true, PING, &payload, net.rng.random()));
        self.owed.push_back(Owed::ControlPong(payload));
    }

    /// All is quiet: nothing may be owed any more.
    pub(super) fn check_quiet(&self) {
        if self.is_intact() {
            let (owed, acks) = (&self.owed, &self.acks);
            assert!(owed.is_empty(), "peer {} is still owed {owed:?}", self.number);
            assert!(acks.is_empty(), "peer {} is still owed acks {acks:?}", self.number);
            let acks = &self.direct_acks;
            assert!(acks.is_empty(), "peer {} is still owed acks {acks:?}", self.number);
            assert!(self.input.is_empty(), "peer {} has half a frame", self.number);
        }
    }

    pub(super) fn has_vanished(&self) -> bool {
        self.vanished_at.is_some()
    }

    pub(super) fn is_eager(&self) -> bool {
        self.eager
    }
}

/// One of `values`.
pub(super) fn pick<T: Copy>(net: &mut Net, values: &[T]) -> T {
    values[net.rng.random_range(0..values.len())]
}

/// Up to `max` letters; mostly few.
pub(super) fn padding(net: &mut Net, max: usize) -> Vec<u8> {
    let max = if net.rng.random_bool(0.9) { max.min(60) } else { max };
    let len = net.rng.random_range(0..=max);
    let first = net.rng.random_range(b'a'..=b'z');
    (0..len).map(|n| b'a' + (first - b'a' + (n % 26) as u8) % 26).collect()
}

fn id_number(id: &Value) -> u64 {
    match id {
        Value::String(id) => id.parse().expect("an id of ours"),
        id => id.as_u64().expect("an id of ours"),
    }
}

fn raw_id(opcode: u8, payload: &[u8]) -> usize {
    let id = payload.first_chunk::<8>().expect("at least an id");
    match opcode {
        BINARY => u64::from_be_bytes(*id) as usize,
        _ => std::str::from_utf8(id).expect("digits").parse().expect("digits"),
    }
}

/// Whether a connection comes from a proxy.
fn is_proxy(link: usize) -> bool {
    let proxies: ipnet::IpNet = PROXIES.parse().expect("it is a network");
    proxies.contains(&super::net::client_address(link).ip())
}

fn percent_encode(name: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(encode).collect()
}
