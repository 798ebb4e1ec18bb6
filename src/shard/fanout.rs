//! The rooms of a shard: joining, leaving, publishing, the mailboxes, the sweeps.
//!
//! A join is answered at once when the room has members on this shard already. Otherwise the
//! room's home is asked, and the connection's input waits until it has answered; as requests and
//! deliveries keep their order, no publish after the answered offset can be missed. In a room of
//! few seats (`members_per_room_max`) the home is asked at every join.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::connection::{Accept, Membership, Memberships, Phase};
use super::message::{self, Ack, Delivery, Request};
use super::output::{Source, Staged};
use super::{MESSAGES_PER_MAILBOX, Shard};
use crate::dialect::native::{self, ErrorCode};
use crate::id::{NameSpace, RoomName, ShardId};
use crate::io::{Io, Operation, Token};
use crate::protocol::{HandshakeError, Opcode};
use crate::room::Visit;
use crate::room::home::Message;
use crate::slab::Key;

/// A connection that joins as soon as the room's home has answered.
#[derive(Debug)]
pub(super) struct Waiting {
    connection: Key,
    joining: Joining,
}

/// How a connection joins, and with it how it is told.
#[derive(Debug)]
pub(super) enum Joining {
    /// At the upgrade: the 101 tells it.
    Raw(Accept),
    /// By a `join` message.
    Native { user_id: Option<Rc<str>>, id: Option<Box<str>> },
}

impl<I: Io> Shard<I> {
    /// Makes the connection a member of the room called `name` in `space`, now or when the room's
    /// home has answered.
    pub(super) fn join(&mut self, key: Key, space: NameSpace, name: &str, joining: Joining) {
        let room_key = match self.rooms.find(space, name) {
            Some(room_key) => room_key,
            None => {
                let name = RoomName::new(space, name);
                let home = self.ends.homes.home(&name);
                let policy = self.limits.policies.of(&name.name);
                let room = self.rooms.insert(name.clone(), home, policy);
                self.link(home, Request::Subscribe { name: Box::new(name), room });
                room
            }
        };
        let Some(room) = self.rooms.get_mut(room_key) else {
            return;
        };
        let (home, home_key) = (room.home, room.home_key);
        if home_key.is_some() && !room.few_seats {
            return self.complete_join(key, room_key, joining);
        }
        room.waiting.push_back(Waiting { connection: key, joining });
        if let Some(connection) = self.connections.get_mut(key) {
            connection.waiting = true;
        }
        if let Some(home_key) = home_key {
            self.link(home, Request::TakeSeat { home_key, room: room_key });
        }
    }

    /// The connection becomes a member from the head of the room's log on, and is told so.
    fn complete_join(&mut self, key: Key, room_key: Key, joining: Joining) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let Some(room) = self.rooms.get_mut(room_key) else {
            return;
        };
        connection.waiting = false;
        let index = room.join(key.slot());
        self.members += 1;
        match joining {
            Joining::Raw(accept) => {
                connection.memberships = Memberships::One { room: room_key, index };
                self.accept_upgrade(key, &accept);
            }
            Joining::Native { user_id, id } => {
                connection.memberships.add(Membership { room: room_key, index, user_id });
                let (name, offset) = (room.name.name.clone(), room.log.offset());
                self.reply_native(|out| native::joined(&name, offset, id.as_deref(), out));
            }
        }
    }

    /// `join` of the native protocol.
    pub(super) fn join_native(
        &mut self,
        key: Key,
        room_id: &str,
        user_id: Option<&str>,
        id: Option<&str>,
    ) -> Result<(), ErrorCode> {
        // With a token it is the token that says who it is.
        let user_id = match self.authority.grant(key) {
            Some(grant) => Some(Rc::clone(&grant.user_id)),
            None => user_id.map(Rc::from),
        };
        let Some(connection) = self.connections.get_mut(key) else {
            return Ok(());
        };
        if let Some(room) = self.rooms.find(NameSpace::Native, room_id)
            && connection.memberships.index_in(room).is_some()
        {
            // Once more: answered again, perhaps with a new name.
            if user_id.is_some() {
                let user_id = self.name_user(key, user_id);
                if let Some(connection) = self.connections.get_mut(key)
                    && let Some(membership) = connection.memberships.named(room)
                {
                    membership.user_id = user_id;
                }
            }
            let offset = self.rooms.get(room).map_or(0, |room| room.log.offset());
            self.reply_native(|out| native::joined(room_id, offset, id, out));
            return Ok(());
        }
        if connection.memberships.len() >= self.limits.rooms_per_connection_max {
            return Err(ErrorCode::TooManyRooms);
        }
        let user_id = self.name_user(key, user_id);
        let joining = Joining::Native { user_id, id: id.map(Into::into) };
        self.join(key, NameSpace::Native, room_id, joining);
        Ok(())
    }

    /// `leave` of the native protocol. What was published before still arrives first.
    pub(super) fn leave_native(
        &mut self,
        key: Key,
        room_id: &str,
        id: Option<&str>,
    ) -> Result<(), ErrorCode> {
        let (room, index) = self.membership(key, room_id).ok_or(ErrorCode::NotMember)?;
        self.queue_replies(key);
        self.owe_room(key, room, index);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.memberships.remove(room);
        }
        self.leave(room, index);
        self.reply_native(|out| native::left(room_id, id, out));
        Ok(())
    }

    fn membership(&self, key: Key, room_id: &str) -> Option<(Key, u32)> {
        let room = self.rooms.find(NameSpace::Native, room_id)?;
        let index = self.connections.get(key)?.memberships.index_in(room)?;
        Some((room, index))
    }

    /// The connection is no member of anything any more, and nobody's.
    pub(super) fn leave_rooms(&mut self, key: Key) {
        self.forget_user(key);
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let memberships = std::mem::replace(&mut connection.memberships, Memberships::None);
        // What it has published goes first: with its last member a room may end.
        if let Some((shard, request)) = connection.take_stalled() {
            if let Request::Direct(direct) = &request {
                for other in (shard.index() + 1..self.rung.len()).map(ShardId::from) {
                    self.link(other, Request::Direct(Arc::clone(direct)));
                }
            }
            self.link(shard, request);
        }
        for (room, index) in memberships.iter() {
            self.leave(room, index);
        }
    }

    fn leave(&mut self, room_key: Key, index: u32) {
        self.count_skipped(room_key, index);
        self.members -= 1;
        let Some(room) = self.rooms.get_mut(room_key) else {
            return;
        };
        let connections = &mut self.connections;
        room.leave(index, |slot, index| {
            if let Some(connection) = connections.at_mut(slot) {
                connection.memberships.moved(room_key, index);
            }
        });
        if room.few_seats
            && let (home, Some(home_key)) = (room.home, room.home_key)
        {
            self.link(home, Request::FreeSeat { home_key });
        }
        self.drop_room_if_empty(room_key);
        self.activate(room_key);
    }

    /// Puts the room on the list of those to sweep, if there is anything to do for it.
    pub(super) fn activate(&mut self, room_key: Key) {
        if let Some(room) = self.rooms.get_mut(room_key)
            && !room.active
            && room.is_due()
        {
            room.active = true;
            self.active.push_back(room_key);
        }
    }

    /// A room without members here ends here.
    fn drop_room_if_empty(&mut self, room_key: Key) {
        let Some(room) = self.rooms.get(room_key) else {
            return;
        };
        if let Some(home_key) = room.home_key
            && room.members().is_empty()
            && room.waiting.is_empty()
        {
            let home = room.home;
            self.rooms.remove(room_key);
            self.link(home, Request::Unsubscribe { home_key });
        }
    }

    /// Publishes a message of a raw connection to its room.
    pub(super) fn publish_raw(&mut self, key: Key, opcode: Opcode, payload: Bytes) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let Some((room, _)) = connection.memberships.iter().next() else {
            return;
        };
        self.publish(key, room, Message { opcode, payload, offset_at: None }, None);
    }

    /// `broadcast` of the native protocol.
    pub(super) fn publish_native(
        &mut self,
        key: Key,
        room_id: &str,
        content: &str,
        id: Option<&str>,
    ) -> Result<(), ErrorCode> {
        let (room, _) = self.membership(key, room_id).ok_or(ErrorCode::NotMember)?;
        let Some(connection) = self.connections.get_mut(key) else {
            return Ok(());
        };
        let user_id = connection.memberships.named(room).and_then(|named| named.user_id.as_deref());
        let sender = user_id.unwrap_or(native::ANONYMOUS);
        let message = message::broadcast(&mut self.segments, room_id, sender, content);
        let ack = id
            .map(|id| Box::new(Ack { connection: key, id: Bytes::copy_from_slice(id.as_bytes()) }));
        self.publish(key, room, message, ack);
        Ok(())
    }

    /// Sends a publish to its room's home; if the mailbox is full the connection waits with it.
    fn publish(&mut self, key: Key, room: Key, message: Message, ack: Option<Box<Ack>>) {
        let Some(room) = self.rooms.get(room) else {
            return;
        };
        let home_key = room.home_key.expect("a room with members has been answered for");
        let home = room.home;
        let request = Request::Publish { home_key, message, ack };
        if let Err(request) = self.request(home, request) {
            self.stall(key, home, request);
        }
    }

    /// The connection waits with a request that found the mailbox full.
    pub(super) fn stall(&mut self, key: Key, shard: ShardId, request: Request) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.extra().stalled = Some((shard, request));
            self.stalled.push(key);
        }
    }

    /// Tries again with the requests that found a mailbox full.
    pub(super) fn retry_stalled(&mut self) {
        while let Some((home, request)) = self.links.pop_front() {
            if let Err(request) = self.request(home, request) {
                self.links.push_front((home, request));
                break;
            }
        }
        for key in std::mem::take(&mut self.stalled) {
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            let Some((shard, request)) = connection.take_stalled() else {
                continue;
            };
            connection.trim();
            let direct = match &request {
                Request::Direct(direct) => Some(Arc::clone(direct)),
                _ => None,
            };
            match self.request(shard, request) {
                Ok(()) => {
                    if let Some(direct) = direct {
                        self.send_direct(key, shard.index() + 1, &direct);
                    }
                    self.resume(key);
                }
                Err(request) => self.stall(key, shard, request),
            }
        }
    }

    /// Sends what must keep its place: a subscription, its end, the last publish of a member that
    /// goes, a question; behind those that wait already.
    pub(super) fn link(&mut self, home: ShardId, request: Request) {
        if !self.links.is_empty() {
            self.links.push_back((home, request));
        } else if let Err(request) = self.request(home, request) {
            self.links.push_back((home, request));
        }
    }

    pub(super) fn request(&mut self, home: ShardId, request: Request) -> Result<(), Request> {
        self.ends.requests.send(home, request)?;
        self.rung[home.index()] = true;
        Ok(())
    }

    /// Takes in what the homes of this shard's rooms have sent, but not frames for a room whose
    /// sweep is far behind already: then the home waits, and with it the publishers.
    pub(super) fn take_deliveries(&mut self) {
        for from in (0..self.rung.len()).map(ShardId::from) {
            for _ in 0..MESSAGES_PER_MAILBOX {
                if let Some(Delivery::Frames { room, .. }) = self.ends.deliveries.peek(from)
                    && let Some(room) = self.rooms.get(*room)
                    && room.lag() > room.policy.high_water_mark / 2
                {
                    self.congested = true;
                    break;
                }
                let Some(delivery) = self.ends.deliveries.receive(from) else {
                    break;
                };
                self.handle_delivery(delivery);
            }
        }
    }

    fn handle_delivery(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Subscribed { room: room_key, home_key, offset, few_seats } => {
                let room = self.rooms.get_mut(room_key).expect("a room waits for its answer");
                room.home_key = Some(home_key);
                room.few_seats = few_seats;
                room.log.begin(offset);
                if few_seats {
                    let home = room.home;
                    for _ in 0..room.waiting.len() {
                        self.link(home, Request::TakeSeat { home_key, room: room_key });
                    }
                    return;
                }
                let mut joined = Vec::new();
                for Waiting { connection: key, joining } in std::mem::take(&mut room.waiting) {
                    if self.still_waits(key) {
                        self.complete_join(key, room_key, joining);
                        self.queue_replies(key);
                        joined.push(key);
                    }
                }
                self.drop_room_if_empty(room_key);
                // Not before all of them are in: one that goes on may leave and end the room.
                joined.into_iter().for_each(|key| self.resume(key));
            }
            Delivery::Seat { room, taken } => self.handle_seat(room, taken),
            Delivery::Refused { room } => {
                let room = self.rooms.remove(room).expect("a room waits for its answer");
                for Waiting { connection: key, joining } in room.waiting {
                    if self.still_waits(key) {
                        let why = (HandshakeError::RoomsFull, ErrorCode::ServerBusy);
                        self.refuse_join(key, joining, why);
                    }
                }
            }
            Delivery::Frames { room: room_key, frames } => {
                // The last member may have left while they were on their way.
                let Some(room) = self.rooms.get_mut(room_key) else {
                    return;
                };
                room.log.append(frames.bytes, frames.offset, frames.at);
                self.activate(room_key);
            }
            Delivery::Directed(direct) => self.acknowledge_direct(&direct),
            Delivery::Fence { step } => self.handle_fence(step),
            Delivery::Acknowledged { ack, offset } => {
                let Some(connection) = self.connections.get(ack.connection) else {
                    return;
                };
                if connection.phase == Phase::Open {
                    let id = std::str::from_utf8(&ack.id).expect("an id is a part of valid JSON");
                    self.reply_native(|out| native::ack(id, offset, out));
                    self.queue_replies(ack.connection);
                }
            }
        }
    }

    /// The home of a room of few seats has answered whoever has waited longest.
    fn handle_seat(&mut self, room_key: Key, taken: bool) {
        let room = self.rooms.get_mut(room_key).expect("a room waits for its answer");
        let waiting = room.waiting.pop_front().expect("one answer for each that waits");
        let Waiting { connection: key, joining } = waiting;
        let (home, home_key) = (room.home, room.home_key.expect("it has answered"));
        if !self.still_waits(key) {
            if taken {
                self.link(home, Request::FreeSeat { home_key });
            }
        } else if taken {
            self.complete_join(key, room_key, joining);
            self.queue_replies(key);
            self.resume(key);
        } else {
            let why = (HandshakeError::RoomFull, ErrorCode::RoomFull);
            self.refuse_join(key, joining, why);
        }
        self.drop_room_if_empty(room_key);
    }

    fn still_waits(&self, key: Key) -> bool {
        self.connections.get(key).is_some_and(|connection| connection.waiting)
    }

    /// Tells a connection, as it has asked, why it cannot join.
    fn refuse_join(&mut self, key: Key, joining: Joining, why: (HandshakeError, ErrorCode)) {
        let (error, code) = why;
        match joining {
            Joining::Raw(_) => self.refuse(key, error),
            Joining::Native { id, .. } => {
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.waiting = false;
                }
                self.reply_native(|out| {
                    native::error(code, id.as_deref(), out);
                });
                self.queue_replies(key);
                self.resume(key);
            }
        }
    }

    /// Takes in what other shards ask of the rooms whose home is here, as long as what they are
    /// told in return gets through.
    pub(super) fn take_requests(&mut self) {
        let lanes = self.rung.len();
        let first = std::mem::take(&mut self.direct_lane);
        self.directed = 0;
        for from in (0..lanes).map(|lane| ShardId::from((first + lane) % lanes)) {
            for _ in 0..MESSAGES_PER_MAILBOX {
                if self.direct_waits(from) {
                    break;
                }
                // Each request is answered with one delivery at most.
                if self.home.is_congested() || self.ends.deliveries.room(from) == 0 {
                    self.congested = true;
                    break;
                }
                let Some(request) = self.ends.requests.receive(from) else {
                    break;
                };
                if let Some(answer) = self.handle_request(from, request) {
                    self.ends.deliveries.send(from, answer).expect("there was room for one");
                    self.rung[from.index()] = true;
                }
            }
        }
    }

    fn handle_request(&mut self, from: ShardId, request: Request) -> Option<Delivery> {
        match request {
            Request::Subscribe { name, room } => {
                let few_seats = self.limits.members_per_room_max.of(&name.name).is_some();
                Some(match self.home.subscribe(*name, from, room, few_seats) {
                    Ok((home_key, offset, few_seats)) => {
                        Delivery::Subscribed { room, home_key, offset, few_seats }
                    }
                    Err(_) => Delivery::Refused { room },
                })
            }
            Request::TakeSeat { home_key, room } => {
                let limits = &self.limits.members_per_room_max;
                let taken = self.home.take_seat(home_key, |name| limits.of(&name.name));
                Some(Delivery::Seat { room, taken })
            }
            Request::FreeSeat { home_key } => {
                self.home.free_seat(home_key);
                None
            }
            Request::Unsubscribe { home_key } => {
                self.home.unsubscribe(home_key, from);
                None
            }
            Request::Publish { home_key, message, ack } => {
                let offset = self.home.publish(home_key, &message, self.io.now());
                self.metrics.published.add(1);
                ack.map(|ack| Delivery::Acknowledged { ack, offset })
            }
            Request::Direct(direct) => self.deliver_direct(direct),
            Request::Fence { step } => {
                self.fences.push((from, step));
                None
            }
        }
    }

    /// Hands the frames that were encoded to every shard with members.
    pub(super) fn flush_home(&mut self) {
        let Self { home, ends, rung, .. } = self;
        home.flush(|shard, room, frames| {
            let sent = ends.deliveries.send(shard, Delivery::Frames { room, frames }).is_ok();
            rung[shard.index()] |= sent;
            sent
        });
    }

    /// Brings every active room a bounded step further.
    pub(super) fn sweep_rooms(&mut self) {
        let mut budget = self.sends_per_tick;
        // Small rooms do not wait for a large one.
        let per_room = if self.active.len() > 1 { budget.div_ceil(2) } else { budget };
        let mut too_slow = Vec::new();
        self.sweep_lag = 0;
        for _ in 0..self.active.len() {
            if budget == 0 {
                break;
            }
            let Some(room_key) = self.active.pop_front() else {
                break;
            };
            budget -= self.sweep_room(room_key, budget.min(per_room), &mut too_slow);
            let Some(room) = self.rooms.get_mut(room_key) else {
                continue;
            };
            room.active = room.is_due();
            if room.active {
                self.sweep_lag = self.sweep_lag.max(room.lag());
                self.active.push_back(room_key);
            }
        }
        self.close_too_slow(too_slow);
    }

    /// Returns how many sends it made.
    fn sweep_room(&mut self, room_key: Key, budget: usize, too_slow: &mut Vec<u32>) -> usize {
        let now = self.io.now();
        let Self { rooms, connections, io, staged, segments, tick, owed, sent, .. } = self;
        let Some(room) = rooms.get_mut(room_key) else {
            return 0;
        };
        let delivered = room.advance(segments, budget, now, too_slow, |member, bytes, from| {
            let key = connections.key_at(member.connection).expect("members are there");
            let connection = connections.at_mut(member.connection).expect("members are there");
            if connection.poll_writable || connection.behind {
                connection.behind = true;
                return Visit::Blocked;
            }
            if connection.sent_tick == *tick || connection.owes() {
                if !connection.gather(&bytes[from..]) {
                    return Visit::Later;
                }
                connection.queue(key, owed);
                return Visit::Sent;
            }
            connection.sent_tick = *tick;
            let socket = connection.socket;
            let token = Token::new(staged.len() as u64);
            io.submit(Operation::Send { socket, token, bytes, from });
            let len = (bytes.len() - from) as u32;
            sent.bytes += i64::from(len);
            let source = Source::Room { room: room_key, cursor: member.cursor, len };
            staged.push(Staged { connection: key, source });
            Visit::Sent
        });
        self.sent.deliveries += delivered.messages as i64;
        self.metrics.sends.add(delivered.sends as u64);
        self.finished.extend(delivered.finished);
        delivered.sends
    }
}
