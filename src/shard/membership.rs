//! Who is a member of which room: joining and leaving.
//!
//! A join is answered at once when the room has members on this shard already. Otherwise the
//! room's home is asked, and the connection's input waits until it has answered; as requests and
//! deliveries keep their order, no publish after the answered offset can be missed. In a room of
//! few seats (`members_per_room_max`) the home is asked at every join.

use std::rc::Rc;
use std::sync::Arc;

use super::Shard;
use super::connection::{Accept, Membership, Memberships, Stalled};
use super::message::Request;
use crate::dialect::native::{self, ErrorCode};
use crate::id::{NameSpace, RoomName, ShardId};
use crate::io::Io;
use crate::planted::{Bug, planted};
use crate::protocol::HandshakeError;
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

    /// The room's home has answered: whoever waits joins, or asks for a seat first.
    pub(super) fn handle_subscribed(
        &mut self,
        room_key: Key,
        home_key: Key,
        offset: u64,
        few_seats: bool,
    ) {
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

    /// The home of a room of few seats has answered whoever has waited longest.
    pub(super) fn handle_seat(&mut self, room_key: Key, taken: bool) {
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

    /// The room's home has no place for one more room.
    pub(super) fn handle_refused(&mut self, room: Key) {
        let room = self.rooms.remove(room).expect("a room waits for its answer");
        for Waiting { connection: key, joining } in room.waiting {
            if self.still_waits(key) {
                let why = (HandshakeError::RoomsFull, ErrorCode::ServerBusy);
                self.refuse_join(key, joining, why);
            }
        }
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
                self.reply_error(key, code, id.as_deref());
                self.queue_replies(key);
                self.resume(key);
            }
        }
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

    pub(super) fn membership(&self, key: Key, room_id: &str) -> Option<(Key, u32)> {
        let room = self.rooms.find(NameSpace::Native, room_id)?;
        let index = self.connections.get(key)?.memberships.index_in(room);
        index.or(planted(Bug::StrangerPublishes).then_some(0)).map(|index| (room, index))
    }

    /// The connection is no member of anything any more, and nobody's.
    pub(super) fn leave_rooms(&mut self, key: Key) {
        self.forget_user(key);
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let memberships = std::mem::replace(&mut connection.memberships, Memberships::None);
        // What it has published goes first: with its last member a room may end.
        let stalled = connection.take_stalled();
        if planted(Bug::PublishOvertaken) {
            memberships.iter().for_each(|(room, index)| self.leave(room, index));
            stalled.into_iter().for_each(|stalled| self.link(stalled.shard, stalled.request));
            return;
        }
        if let Some(Stalled { shard, request, .. }) = stalled {
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
            && !planted(Bug::LeakedSeat)
            && let (home, Some(home_key)) = (room.home, room.home_key)
        {
            self.link(home, Request::FreeSeat { home_key });
        }
        self.drop_room_if_empty(room_key);
        self.activate(room_key);
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
}
