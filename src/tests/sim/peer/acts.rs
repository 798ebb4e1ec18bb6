//! What a peer does of its own accord: talk, fall silent, misbehave, leave.

use std::time::Duration;

use rand::RngExt;

use super::super::check::{Checker, Room};
use super::super::net::Net;
use super::super::plan::{Plan, SIM_USER};
use super::super::wire::{self, BINARY, CLOSE, CONTINUATION, PING, TEXT};
use super::{Departure, Kind, Owed, Peer, ROOM_NAMES, padding, pick};

impl Peer {
    /// Ends the connection in some way, as soon as there is one.
    pub(in super::super) fn depart(&mut self, how: Departure, net: &mut Net, check: &mut Checker) {
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
    pub(in super::super) fn act(&mut self, plan: &Plan, net: &mut Net, check: &mut Checker) {
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
            0..6 if !is_member => {
                return self.publish_in_vain(room, id, &id_json, plan, net, check);
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

    /// Publishes where it is no member.
    fn publish_in_vain(
        &mut self,
        room: usize,
        id: Option<u64>,
        id_json: &str,
        plan: &Plan,
        net: &mut Net,
        check: &mut Checker,
    ) {
        let publish = check.publish_in_vain(Room { raw: false, number: room }, self.number);
        check.refused += 1;
        let padding = padding(net, plan.message_max - 200);
        let padding = std::str::from_utf8(&padding).expect("ASCII");
        let name = serde_json::to_string(ROOM_NAMES[room]).expect("JSON");
        let text = format!(
            "{{\"type\":\"broadcast\",\"room_id\":{name},\
             \"content\":{{\"p\":{publish},\"x\":\"{padding}\"}}{id_json}}}"
        );
        self.say(TEXT, text.as_bytes(), Some(Owed::Error { code: "not_member", id }), net);
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
}
