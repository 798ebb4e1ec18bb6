//! A simulated peer: well-behaved, lazy or hostile, and strict about every answer.
//!
//! A peer knows at any time what the server owes it. Answers come in the order of the requests;
//! acks and deliveries come in between, in their own order. Whatever a peer did to deserve it, a
//! close has exactly one legal code, and the stream ends between two frames, unless the peer kept
//! the server waiting beyond a deadline.
//!
//! What a peer does of its own accord is in `acts`, what it makes of what it gets in `answers`.

mod acts;
mod answers;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt;

use super::check::Checker;
use super::net::{Net, Read};
use super::plan::{Plan, SIM_USER};
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
    /// How many publishes were acknowledged when a drain closed it.
    drained_behind: Option<u64>,
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
            drained_behind: None,
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

    /// Whether it may get direct messages from the 101 on, even before it has read that.
    pub(super) fn shows_token(&self, plan: &Plan) -> bool {
        plan.token.is_some() && self.kind == Kind::Native
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

    /// It is much later: everything stood still. Deadlines that the server set have passed, and
    /// those that it has to keep begin anew.
    pub(super) fn outlast_jump(&mut self, plan: &Plan, net: &Net) {
        self.vanished_at = self.vanished_at.map(|_| net.clock);
        // While the completion queue is full the server does not know yet what has come in time.
        let seen = net.faults.completions_max == usize::MAX && plan.heartbeats.is_none();
        let is_safe = self.eager && seen && self.is_intact();
        self.long_stall |= !is_safe;
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
                let excused = self.lingers || self.unread || plan.has_slow_shards();
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
                assert!(
                    self.lingers
                        || plan.drain_is_over(net.clock)
                        || (plan.draining && self.status.is_none())
                        || self.may_be_cut(plan, net, check),
                    "peer {} is reset: {self:?}",
                    self.number
                );
                net.note("reset", &[self.number as u64]);
                self.is_over(check);
                self.done = true;
            }
        }
    }

    /// What it is not delivered from now on does not count.
    fn is_over(&mut self, check: &mut Checker) {
        let joins = self.owed.iter().any(|owed| matches!(owed, Owed::Joined { .. }));
        let upgrades = matches!(self.kind, Kind::Raw(_)) && self.status.is_none();
        check.unseen |= joins || upgrades;
        let sessions = self.seats.values().filter_map(|seat| seat.session);
        sessions.chain(self.raw_session).for_each(|session| check.cut(session));
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
        // Who was too slow, and is being closed, has as long to take what waits for a socket that
        // is full, and then to answer.
        let full = limits.send_timeout.max(limits.close_timeout) + limits.close_timeout;
        let mut by = at + silence + HAND_SLACK;
        if !self.eager && !plan.roomy {
            by += full;
        }
        // Stalls that follow on each other cost the hand time. A poll that completes for nothing
        // looks like an answer, and so does a socket that was full for nothing.
        let short = net.faults.short_send + net.faults.transient;
        let full_for_nothing = short > 0.0 && (!self.eager || plan.roomy);
        if plan.has_slow_shards() || net.faults.spurious > 0.0 || full_for_nothing {
            by += 20 * (silence + full);
        }
        Some(by)
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

    /// Its shard, which drains, has closed it, or it has ended before: `acknowledged` publishes
    /// were acknowledged by then.
    pub(super) fn note_drained(&mut self, acknowledged: u64) {
        self.drained_behind.get_or_insert(acknowledged);
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
