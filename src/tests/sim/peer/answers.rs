//! What a peer makes of what it gets: is it owed that, now, and in these bytes?

use rand::RngExt;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::check::{Checker, Room};
use super::super::net::Net;
use super::super::plan::{Plan, SIM_USER, TOKEN_TIME};
use super::super::wire::{self, BINARY, CLOSE, PING, PONG, TEXT};
use super::super::world::CLOCK_SET_MAX;
use super::{Kind, Owed, Peer, ROOM_NAMES, SLACK};

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

impl Peer {
    pub(super) fn handle_input(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
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
        if matches!(head.status, 429 | 503) {
            let later = head.field("retry-after").and_then(|seconds| seconds.parse::<u32>().ok());
            assert!(later.is_some_and(|seconds| seconds > 0), "when to come back: {head:?}");
        }
        if head.status == 101 {
            let accept = head.field("sec-websocket-accept");
            assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "RFC 6455 §1.3");
            let protocol = head.field("sec-websocket-protocol");
            let native = self.offered && self.kind == Kind::Native;
            assert_eq!(protocol, native.then_some("fanwire.v1"));
            // Without a token it has no user before its join is handled.
            if self.shows_token(plan) {
                check.directs.know(self.number, SIM_USER);
            }
            if let Kind::Raw(room) = self.kind {
                let session = check.join(Room { raw: true, number: room }, self.number, None);
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
                        let number = room;
                        let room = Room { raw: false, number };
                        let session = check.join(room, self.number, Some(offset));
                        seat.session = Some(session);
                        // It may have left meanwhile, and joined once more.
                        let leaves =
                            |it: &Owed| matches!(it, Owed::Left { room, .. } if *room == number);
                        if self.departing {
                            check.cut(session);
                        } else if self.owed.iter().any(leaves) {
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
                    let left = message.expires_in_s.expect("how long") as i64;
                    let left_max = TOKEN_TIME as i64 + CLOCK_SET_MAX;
                    assert!((left_max - 2 * CLOCK_SET_MAX - 600..=left_max).contains(&left));
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
                        self.seats.entry(room).or_default().wanted = false;
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
                // So many direct messages may come in one tick that one who reads at once is
                // behind.
                !plan.roomy && ((!self.eager && plan.disconnects()) || plan.directs)
            }
            Some(1013) => {
                check.messages_without_room += 1;
                plan.partial_scarce
            }
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
            // A server that is too busy for that has half of the time.
            if net.clock < plan.drain_until - plan.drain_patience {
                let sessions = sessions.chain(self.raw_session);
                let acknowledged = self.drained_behind.expect("it was seen to be closed");
                sessions.for_each(|session| check.check_farewell(session, acknowledged));
            }
        }
        self.got_close = true;
        self.closed_at = net.clock;
        self.is_over(check);
        if self.sent_close.is_none() && self.violated.is_none() && !self.lingers && !self.ends {
            self.out.extend(wire::frame(true, CLOSE, payload, net.rng.random()));
        }
        self.departing = true;
    }

    pub(super) fn handle_end(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
        net.note("end", &[self.number as u64]);
        let whole = match self.status {
            None => false,
            Some(101) => self.input.is_empty() && (self.got_close || self.ends),
            Some(_) => self.input.len() == self.body_left,
        };
        assert!(
            whole
                || (self.ends && self.status.is_none())
                || plan.drain_is_over(net.clock)
                || self.may_be_cut(plan, net, check),
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
    pub(super) fn may_be_cut(&self, plan: &Plan, net: &Net, check: &mut Checker) -> bool {
        let ending = self.departing || self.got_close || plan.draining;
        // The page is long, and the time for it is short; that for any other answer can be over,
        // too.
        let page = self.kind == Kind::Refused(200);
        // It may have come in part: then nobody knows yet what it is.
        let answered = self.status != Some(101) && net.clock >= self.since + plan.close_timeout;
        // It has not long to answer a ping in some worlds.
        let hasty = plan.heartbeats.is_some_and(|it| it.pong_timeout < 6 * SLACK);
        // A slow reader has all the time it needs, if it takes something now and then.
        let slow = plan.is_busy() && (ending || page || answered || !plan.roomy);
        let slow = slow || hasty && (!self.eager || plan.is_busy());
        // What it had written before its own close was too much for the time it has.
        let late = self.got_close && net.clock + SLACK >= self.closed_at + plan.close_timeout;
        // A shard that stalls for as long, or again and again, does not hear the pong in time, or
        // has no time left for the rest of its answer (seed 1000707).
        let stalled = plan.has_slow_shards() && (hasty || answered);
        if self.long_stall || self.lingers || slow || late || stalled {
            return true;
        }
        // Where there is more to do than there is time, an answer to a ping may come too late, and
        // so may the news that there is room for the rest of what was sent in part. The server
        // counts such ends: nothing else is excused by them.
        check.overdue += u64::from(plan.is_busy());
        plan.is_busy()
    }
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
