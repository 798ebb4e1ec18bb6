//! The fan-out of a shard: publishing, the mailboxes between shards, the sweeps.
//!
//! A publish goes to the room's home as a request; the home numbers it and hands its frame to every
//! shard with members as a delivery; there a sweep sends it to each member. What finds a mailbox
//! full waits, in its place: a request with its connection, a delivery at the home.

use std::sync::Arc;

use bytes::Bytes;

use super::connection::{Phase, Stalled};
use super::message::{self, Ack, Delivery, Request};
use super::output::{Source, Staged};
use super::{ACKS_MAX, MESSAGES_PER_MAILBOX, Shard};
use crate::dialect::native::{self, ErrorCode};
use crate::id::ShardId;
use crate::io::{Io, Operation, Token};
use crate::planted::{Bug, planted};
use crate::protocol::Opcode;
use crate::room::home::Message;
use crate::room::{Room, Visit};
use crate::slab::Key;

/// An acknowledgement that waits until the frames are with every shard that has members.
#[derive(Debug)]
pub(super) struct OwedAck {
    /// The room at its home, and the offset that the publish has there.
    pub(super) room: Key,
    pub(super) offset: u64,
    pub(super) to: AckTo,
}

/// Who is told.
#[derive(Debug)]
pub(super) enum AckTo {
    /// The shard of the publisher; the acknowledgement is gone when it is sent.
    Client(ShardId, Option<Box<Ack>>),
    /// The control thread, by this key.
    Control(Key),
}

impl<I: Io> Shard<I> {
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

    /// Sends a publish to its room's home. The connection waits with it if the mailbox is full, or
    /// if the room is late: so whoever floods a room waits for its members, and nobody else does.
    fn publish(&mut self, key: Key, room_key: Key, message: Message, ack: Option<Box<Ack>>) {
        let Some(room) = self.rooms.get(room_key) else {
            return;
        };
        let home_key = room.home_key.expect("a room with members has been answered for");
        let (shard, is_late) = (room.home, room.is_late());
        let request = Request::Publish { home_key, message, ack };
        if let Err(request) = self.request_unless(is_late, shard, request) {
            self.stall(key, Stalled { shard, request, room: Some(room_key) });
        }
    }

    /// Makes a request that has waited, or lets the connection go on waiting with it. Returns
    /// whether it was made.
    fn retry(&mut self, key: Key, stalled: Stalled) -> bool {
        let Stalled { shard, request, room } = stalled;
        let is_late = room.and_then(|room| self.rooms.get(room)).is_some_and(Room::is_late);
        match self.request_unless(is_late, shard, request) {
            Ok(()) => true,
            Err(request) => {
                self.stall(key, Stalled { shard, request, room });
                false
            }
        }
    }

    fn request_unless(
        &mut self,
        is_late: bool,
        shard: ShardId,
        request: Request,
    ) -> Result<(), Request> {
        if is_late { Err(request) } else { self.request(shard, request) }
    }

    /// The connection waits with a request.
    pub(super) fn stall(&mut self, key: Key, stalled: Stalled) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.extra().stalled = Some(stalled);
            self.stalled.push(key);
        }
    }

    /// Tries again with the requests that wait.
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
            let Some(stalled) = connection.take_stalled() else {
                continue;
            };
            connection.trim();
            let shard = stalled.shard;
            let direct = match &stalled.request {
                Request::Direct(direct) => Some(Arc::clone(direct)),
                _ => None,
            };
            if self.retry(key, stalled) {
                if let Some(direct) = direct {
                    self.send_direct(key, shard.index() + 1, &direct);
                }
                self.resume(key);
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
    /// sweep is far behind already: then the home waits, and with it its other rooms. It comes to
    /// that only where publishers on other shards do not see that the room is late.
    pub(super) fn take_deliveries(&mut self) {
        for from in (0..self.rung.len()).map(ShardId::from) {
            self.take_deliveries_from(from, MESSAGES_PER_MAILBOX);
        }
    }

    /// Takes in all that has been handed over by now, however much that is; whether all went in.
    pub(super) fn take_all_deliveries(&mut self) -> bool {
        let mut all = true;
        for from in (0..self.rung.len()).map(ShardId::from) {
            let waiting = self.ends.deliveries.depth_from(from);
            all &= self.take_deliveries_from(from, waiting) == waiting;
        }
        all
    }

    /// Returns how many of `max` messages from shard `from` were there and could be taken in.
    fn take_deliveries_from(&mut self, from: ShardId, max: usize) -> usize {
        for taken in 0..max {
            if let Some(Delivery::Frames { room, .. }) = self.ends.deliveries.peek(from)
                && let Some(room) = self.rooms.get(*room)
                && room.is_far_behind()
            {
                self.congested = true;
                return taken;
            }
            let Some(delivery) = self.ends.deliveries.receive(from) else {
                return taken;
            };
            self.handle_delivery(delivery);
        }
        max
    }

    fn handle_delivery(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Subscribed { room, home_key, offset, few_seats } => {
                self.handle_subscribed(room, home_key, offset, few_seats);
            }
            Delivery::Seat { room, taken } => self.handle_seat(room, taken),
            Delivery::Refused { room } => self.handle_refused(room),
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
                if self.is_backed_up() || self.ends.deliveries.room(from) == 0 {
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

    /// Whether no more may be published to the rooms whose home is here: too much waits for a shard
    /// that is behind.
    pub(super) fn is_backed_up(&self) -> bool {
        let congested = self.home.is_congested() && !planted(Bug::CongestionForgotten);
        congested || self.acks.len() >= ACKS_MAX
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
                let to = |ack| AckTo::Client(from, Some(ack));
                self.acks.extend(ack.map(|ack| OwedAck { room: home_key, offset, to: to(ack) }));
                None
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
            let sent = sent || planted(Bug::MailboxOverrun);
            rung[shard.index()] |= sent && !planted(Bug::LostWakeUp);
            sent
        });
    }

    /// Acknowledges what every shard with members has been handed: behind the frames, so that who
    /// hears of it can rely on all members to get it. Those of one room stay in their order.
    pub(super) fn send_acks(&mut self) {
        let Self { acks, home, ends, rung, .. } = self;
        let mut full = Vec::new();
        acks.retain_mut(|OwedAck { room, offset, to }| {
            if !home.has_handed(*room, *offset) && !planted(Bug::AckedTooEarly) {
                return true;
            }
            let (to, ack) = match to {
                AckTo::Control(call) => {
                    ends.inlet.answer(*call, Some(*offset));
                    return false;
                }
                AckTo::Client(to, ack) => (*to, ack),
            };
            if full.contains(&to) {
                return true;
            }
            if ends.deliveries.room(to) == 0 {
                full.push(to);
                return true;
            }
            if let Some(ack) = ack.take() {
                let answer = Delivery::Acknowledged { ack, offset: *offset };
                ends.deliveries.send(to, answer).expect("there was room for one");
                rung[to.index()] = true;
            }
            false
        });
    }

    /// The shard ends: tells the control thread what was numbered, whoever could not be handed it
    /// any more. No answer would say that nothing was published.
    pub(super) fn answer_publishes(&mut self) {
        for OwedAck { offset, to, .. } in self.acks.drain(..) {
            if let AckTo::Control(call) = to {
                self.ends.inlet.answer(call, Some(offset));
            }
        }
    }

    /// Brings every active room a bounded step further.
    pub(super) fn sweep_rooms(&mut self) {
        let mut budget = self.sends_per_tick;
        // Small rooms do not wait for a large one.
        let per_room = if self.active.len() > 1 { budget.div_ceil(2) } else { budget };
        let mut too_slow = Vec::new();
        self.sweep_lag = 0;
        let mut all = true;
        for _ in 0..self.active.len() {
            if budget == 0 {
                all = false;
                break;
            }
            let Some(room_key) = self.active.pop_front() else {
                break;
            };
            let cost = self.sweep_room(room_key, budget.min(per_room), &mut too_slow);
            budget = budget.saturating_sub(cost);
            let Some(room) = self.rooms.get_mut(room_key) else {
                continue;
            };
            room.active = room.is_due();
            if room.active {
                self.sweep_lag = self.sweep_lag.max(room.lag());
                self.active.push_back(room_key);
                self.active.rotate_right(usize::from(planted(Bug::UnfairSweep)));
            } else if room.policy.age_max.is_some() {
                self.await_age(room_key);
            }
        }
        // Another one is the first next time: a member of several is sent to once per tick.
        if all && !self.active.is_empty() {
            self.active.rotate_left(1);
        }
        self.close_too_slow(too_slow);
    }

    /// Returns what it took of `budget`: see [`Sweep::advance`](crate::room::Sweep::advance).
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
                if !connection.gather(bytes, from) {
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
        delivered.cost
    }
}
