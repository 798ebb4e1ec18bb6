//! Questions of the control thread: who is here, and that some of them go.
//!
//! They are [`super::calls`]. A shard looks at a bounded number of slots per tick and goes on in
//! the next one, so that a question costs nobody a noticeable wait, however much there is to look
//! at; it works on one question at a time. Between two ticks everything may change: what was there
//! all the time is seen exactly once, because connections and rooms keep their slots; what came or
//! went meanwhile is seen or not. Answers are bounded, by what was asked for or by [`SIZES_MAX`].
//!
//! A question is answered also while the shard drains, until it ends.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::calls::{Calls, Inbox, Refused, Ticket};
use super::closing::Reason;
use super::connection::Connection;
use super::{LOOKS_PER_TICK, Shard};
use crate::id::{ConnectionId, HomeHasher, RoomName, ShardId};
use crate::io::Io;
use crate::io::mailbox::{Sleeper, Sleepers};
use crate::protocol::CloseCode;
use crate::protocol::close::REASON_LEN_MAX;
use crate::slab::Key;

pub use crate::room::home::Listing;

/// Questions that may be under way to one shard.
pub const QUESTIONS_MAX: usize = 64;

/// Sizes of rooms in one answer at most.
const SIZES_MAX: usize = 4096;

/// What the control thread asks one shard.
#[derive(Debug)]
pub enum Question {
    /// Rooms whose home is here: at most `limit` from slot `from` on, whose names begin with
    /// `prefix`.
    Rooms {
        /// The first slot to look at.
        from: u32,
        /// At least 1.
        limit: usize,
        /// Of the name; may be empty.
        prefix: Box<str>,
    },
    /// One room whose home is here.
    Room(RoomName),
    /// The rooms in these slots whose home is here.
    RoomsAt(Vec<u32>),
    /// How many members each of these rooms has here.
    Counts(Vec<Key>),
    /// How many members the rooms have here, all of them, from slot `from` on.
    Sizes {
        /// The first slot to look at.
        from: u32,
    },
    /// Members of a room here: at most `limit` from slot `from` on.
    Members {
        /// Its key here.
        room: Key,
        /// The first slot to look at.
        from: u32,
        /// At least 1.
        limit: usize,
    },
    /// The `limit` connections that are furthest behind, and those that have sent most messages.
    Busiest {
        /// At least 1.
        limit: usize,
    },
    /// Close connections.
    Disconnect {
        /// Which ones.
        whom: Whom,
        /// With what words.
        close: Arc<Close>,
    },
}

/// Which connections are to go.
#[derive(Debug)]
pub enum Whom {
    /// This one.
    Connection(Key),
    /// All of this user.
    User(Box<str>),
    /// All members of this room.
    Room(Key),
}

/// What the close frame says.
#[derive(Debug)]
pub struct Close {
    code: CloseCode,
    reason: Box<str>,
}

/// What an operator must not say in a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseError {
    /// Another code than 1000, 1001, 1008 and 3000 to 4999: the others say what is not so.
    Code,
    /// More than fits.
    Reason,
}

impl Close {
    /// A close with these words.
    ///
    /// # Errors
    /// See [`CloseError`].
    pub fn new(code: u16, reason: &str) -> Result<Self, CloseError> {
        if !matches!(code, 1000 | 1001 | 1008 | 3000..=4999) {
            return Err(CloseError::Code);
        }
        if reason.len() > REASON_LEN_MAX {
            return Err(CloseError::Reason);
        }
        Ok(Self { code: CloseCode(code), reason: reason.into() })
    }
}

/// What the shard says: of the same name as the question.
#[derive(Debug)]
pub enum Answer {
    /// The rooms, and the slot to go on from if there may be more.
    Rooms(Vec<Listing>, Option<u32>),
    /// The room, if there is one.
    Room(Option<Listing>),
    /// Those that are there.
    RoomsAt(Vec<Listing>),
    /// A number for each room; 0 for one that is gone.
    Counts(Vec<u32>),
    /// The rooms with members here, and the slot to go on from if there may be more.
    Sizes(Vec<Size>, Option<u32>),
    /// The members, and the slot to go on from if there may be more.
    Members(Vec<Peer>, Option<u32>),
    /// In no particular order: the numbers may have changed since they were compared.
    Busiest(Vec<Slow>, Vec<Busy>),
    /// How many were told to go; `None`: there is no such connection.
    Disconnect(Option<u64>),
}

/// How many members a room has on one shard.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// The room's home.
    pub home: ShardId,
    /// Its slot there.
    pub slot: u32,
    /// More than 0.
    pub members: u32,
}

/// A connection, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub id: ConnectionId,
    /// Who it is, as far as known.
    pub user_id: Option<Box<str>>,
    /// Where it comes from.
    pub address: Option<IpAddr>,
    /// Bytes that it has still to be sent of the room that was asked for; among the slow ones, of
    /// the room in which that is most.
    pub behind_bytes: u64,
}

/// A connection that is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slow {
    /// Which one.
    pub peer: Peer,
    /// The room in which it is furthest behind.
    pub room: RoomName,
}

/// A connection that sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// Which one.
    pub peer: Peer,
    /// How many since it was opened.
    pub messages: u32,
}

/// The control thread's side. See the module documentation.
#[derive(Debug)]
pub struct Inquirer {
    calls: Calls<Question, Answer>,
    homes: HomeHasher,
}

/// A shard's side.
pub(super) type Enquiries = Inbox<Question, Answer>;

impl Inquirer {
    /// The inquirer of the thread `own` to the shards over which `homes` spreads the rooms, and
    /// their sides of it.
    pub(super) fn new(
        homes: &HomeHasher,
        sleepers: &Sleepers,
        own: &Arc<Sleeper>,
    ) -> (Self, Vec<Enquiries>) {
        let (calls, enquiries) = Calls::new(homes.shards(), sleepers, own, QUESTIONS_MAX);
        (Self { calls, homes: homes.clone() }, enquiries)
    }

    /// How many shards there are.
    #[must_use]
    pub const fn shards(&self) -> usize {
        self.homes.shards()
    }

    /// The home shard of `room`.
    #[must_use]
    pub fn home(&self, room: &RoomName) -> ShardId {
        self.homes.home(room)
    }

    /// Asks `shard`; [`Inquirer::take_answers`] will name `ticket`. To be followed by
    /// [`Inquirer::wake_shards`].
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn ask(
        &mut self,
        shard: ShardId,
        question: Question,
        ticket: Ticket,
        now: Instant,
    ) -> Result<(), Refused> {
        self.calls.check(shard)?;
        self.calls.call(shard, question, ticket, now);
        Ok(())
    }

    /// Names, through `wake`, every shard that was asked and sleeps.
    pub fn wake_shards(&mut self, wake: impl FnMut(ShardId)) {
        self.calls.wake_shards(wake);
    }

    /// Tells, through `tell`, what shards have answered. Each ticket is named once, and makes room
    /// for another.
    pub fn take_answers(&mut self, tell: impl FnMut(Ticket, Result<Answer, Refused>)) {
        self.calls.take_answers(tell);
    }

    /// Whether answers wait to be taken.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        self.calls.has_answers()
    }
}

/// A question, and how far its answer has come.
#[derive(Debug)]
pub(super) struct Asked {
    /// The key for the answer.
    call: Key,
    question: Question,
    /// The next slot, or place in a list, to look at.
    next: u32,
    /// What has been found so far, of the kind that was asked for.
    rooms: Vec<Listing>,
    counts: Vec<u32>,
    sizes: Vec<Size>,
    members: Vec<Peer>,
    disconnected: u64,
    slow: Top,
    busy: Top,
}

impl Asked {
    fn new(call: Key, question: Question) -> Self {
        let (next, limit) = match question {
            Question::Rooms { from, .. } | Question::Sizes { from } => (from, 0),
            Question::Members { from, .. } => (from, 0),
            Question::Busiest { limit } => (0, limit),
            _ => (0, 0),
        };
        Self {
            call,
            question,
            next,
            rooms: Vec::new(),
            counts: Vec::new(),
            sizes: Vec::new(),
            members: Vec::new(),
            disconnected: 0,
            slow: Top::new(limit),
            busy: Top::new(limit),
        }
    }

    /// The next slot of so many, if there is one and `looks` are left.
    fn step(&mut self, slots: u32, looks: &mut usize) -> Option<u32> {
        if self.next >= slots || *looks == 0 {
            return None;
        }
        *looks -= 1;
        self.next += 1;
        Some(self.next - 1)
    }

    /// Where to go on, unless all of so many slots have been looked at.
    fn rest(&self, slots: u32) -> Option<u32> {
        (self.next < slots).then_some(self.next)
    }
}

/// The connections with the highest numbers above 0, a bounded number of them.
#[derive(Debug)]
struct Top {
    limit: usize,
    /// The lowest of them is on top.
    heap: BinaryHeap<Reverse<(u64, Key)>>,
}

impl Top {
    const fn new(limit: usize) -> Self {
        Self { limit, heap: BinaryHeap::new() }
    }

    fn push(&mut self, number: u64, key: Key) {
        if number == 0 {
            return;
        }
        if self.heap.len() < self.limit {
            self.heap.push(Reverse((number, key)));
        } else if let Some(mut lowest) = self.heap.peek_mut()
            && lowest.0.0 < number
        {
            *lowest = Reverse((number, key));
        }
    }

    fn keys(&mut self) -> impl Iterator<Item = Key> + use<> {
        std::mem::take(&mut self.heap).into_iter().map(|Reverse((_, key))| key)
    }
}

impl<I: Io> Shard<I> {
    /// Whether a question has no answer yet.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some() || self.ends.enquiries.has_input()
    }

    /// Brings the answers to what the control thread asks a bounded step further. May end
    /// connections.
    pub(super) fn answer_some(&mut self) {
        let mut looks = LOOKS_PER_TICK;
        while looks > 0 {
            let next =
                || self.ends.enquiries.take().map(|(call, it)| Box::new(Asked::new(call, it)));
            let Some(mut asked) = self.asked.take().or_else(next) else { return };
            // So that a queue of small questions is bounded, too.
            looks -= 1;
            match self.look(&mut asked, &mut looks) {
                Some(answer) => self.ends.enquiries.answer(asked.call, answer),
                None => self.asked = Some(asked),
            }
        }
    }

    /// Spends `looks`; gives the answer when it is complete.
    fn look(&mut self, asked: &mut Asked, looks: &mut usize) -> Option<Answer> {
        match &asked.question {
            Question::Rooms { .. } => self.look_for_rooms(asked, looks),
            Question::Room(name) => Some(Answer::Room(self.home.list(name))),
            Question::RoomsAt(_) => self.look_at_rooms(asked, looks),
            Question::Counts(_) => self.count_members(asked, looks),
            Question::Sizes { .. } => self.look_at_sizes(asked, looks),
            &Question::Members { room, limit, .. } => {
                self.look_for_members(asked, looks, room, limit)
            }
            Question::Busiest { .. } => self.look_for_busiest(asked, looks),
            Question::Disconnect { whom: Whom::Connection(key), close } => {
                let (key, close) = (*key, Arc::clone(close));
                Some(Answer::Disconnect(self.disconnect(key, &close).then_some(1)))
            }
            Question::Disconnect { .. } => self.disconnect_some(asked, looks),
        }
    }

    fn look_for_rooms(&self, asked: &mut Asked, looks: &mut usize) -> Option<Answer> {
        let slots = self.home.slots();
        while let Some(slot) = asked.step(slots, looks) {
            let Question::Rooms { limit, prefix, .. } = &asked.question else { return None };
            if self.home.name_at(slot).is_some_and(|name| name.name.starts_with(&**prefix))
                && let Some(room) = self.home.list_at(slot)
            {
                *looks = looks.saturating_sub(room.shards.len());
                asked.rooms.push(room);
                if asked.rooms.len() == *limit {
                    return Some(Answer::Rooms(
                        std::mem::take(&mut asked.rooms),
                        asked.rest(slots),
                    ));
                }
            }
        }
        let is_done = asked.rest(slots).is_none();
        is_done.then(|| Answer::Rooms(std::mem::take(&mut asked.rooms), None))
    }

    fn look_at_rooms(&self, asked: &mut Asked, looks: &mut usize) -> Option<Answer> {
        let Question::RoomsAt(slots) = &mut asked.question else { return None };
        let slots = std::mem::take(slots);
        let len = slots.len() as u32;
        while let Some(at) = asked.step(len, looks) {
            if let Some(room) = self.home.list_at(slots[at as usize]) {
                *looks = looks.saturating_sub(room.shards.len());
                asked.rooms.push(room);
            }
        }
        let is_done = asked.rest(len).is_none();
        asked.question = Question::RoomsAt(slots);
        is_done.then(|| Answer::RoomsAt(std::mem::take(&mut asked.rooms)))
    }

    fn count_members(&self, asked: &mut Asked, looks: &mut usize) -> Option<Answer> {
        let Question::Counts(rooms) = &mut asked.question else { return None };
        let rooms = std::mem::take(rooms);
        let len = rooms.len() as u32;
        while let Some(at) = asked.step(len, looks) {
            let room = self.rooms.get(rooms[at as usize]);
            asked.counts.push(room.map_or(0, |room| room.members().len() as u32));
        }
        let is_done = asked.rest(len).is_none();
        asked.question = Question::Counts(rooms);
        is_done.then(|| Answer::Counts(std::mem::take(&mut asked.counts)))
    }

    fn look_at_sizes(&self, asked: &mut Asked, looks: &mut usize) -> Option<Answer> {
        let slots = self.rooms.slots();
        while asked.sizes.len() < SIZES_MAX
            && let Some(slot) = asked.step(slots, looks)
        {
            if let Some(room) = self.rooms.at(slot)
                && let Some(home_key) = room.home_key
                && !room.members().is_empty()
            {
                let members = room.members().len() as u32;
                asked.sizes.push(Size { home: room.home, slot: home_key.slot(), members });
            }
        }
        let rest = asked.rest(slots);
        let is_done = rest.is_none() || asked.sizes.len() == SIZES_MAX;
        is_done.then(|| Answer::Sizes(std::mem::take(&mut asked.sizes), rest))
    }

    fn look_for_members(
        &self,
        asked: &mut Asked,
        looks: &mut usize,
        room_key: Key,
        limit: usize,
    ) -> Option<Answer> {
        let Some(room) = self.rooms.get(room_key) else {
            return Some(Answer::Members(std::mem::take(&mut asked.members), None));
        };
        let slots = self.connections.slots();
        while let Some(slot) = asked.step(slots, looks) {
            if let Some(key) = self.connections.key_at(slot)
                && let Some(connection) = self.connections.get(key)
                && let Some(index) = connection.memberships.index_in(room_key)
            {
                let name = connection.memberships.user_in(room_key);
                let peer = self.peer(key, name, room.behind_bytes(index));
                asked.members.push(peer);
                if asked.members.len() == limit {
                    let rest = asked.rest(slots);
                    return Some(Answer::Members(std::mem::take(&mut asked.members), rest));
                }
            }
        }
        let is_done = asked.rest(slots).is_none();
        is_done.then(|| Answer::Members(std::mem::take(&mut asked.members), None))
    }

    fn look_for_busiest(&self, asked: &mut Asked, looks: &mut usize) -> Option<Answer> {
        let slots = self.connections.slots();
        while let Some(slot) = asked.step(slots, looks) {
            if let Some(key) = self.connections.key_at(slot)
                && let Some(connection) = self.connections.get(key)
                && connection.is_open()
            {
                asked.busy.push(u64::from(connection.received), key);
                if connection.behind {
                    let behind = self.furthest_behind(connection);
                    asked.slow.push(behind.map_or(0, |(bytes, _)| bytes), key);
                }
            }
        }
        if asked.rest(slots).is_some() {
            return None;
        }
        let slow = asked.slow.keys().filter_map(|key| {
            let connection = self.connections.get(key)?;
            let (behind_bytes, room) = self.furthest_behind(connection)?;
            let room = self.rooms.get(room)?.name.clone();
            Some(Slow { peer: self.peer(key, None, behind_bytes), room })
        });
        let busy = asked.busy.keys().filter_map(|key| {
            let connection = self.connections.get(key)?;
            let peer = self.peer(key, None, 0);
            Some(Busy { peer, messages: connection.received })
        });
        Some(Answer::Busiest(slow.collect(), busy.collect()))
    }

    /// The room in which it has most still to be sent, and how much.
    fn furthest_behind(&self, connection: &Connection) -> Option<(u64, Key)> {
        let behind = |(room, index)| Some((self.rooms.get(room)?.behind_bytes(index), room));
        connection.memberships.iter().filter_map(behind).max()
    }

    /// A connection as it is told of, by the name it has in a room if it has one there.
    fn peer(&self, key: Key, name: Option<&str>, behind_bytes: u64) -> Peer {
        Peer {
            id: ConnectionId { shard: self.ends.shard, key },
            user_id: name.or(self.user_of(key)).map(Into::into),
            address: self.address_of(key),
            behind_bytes,
        }
    }

    fn disconnect_some(&mut self, asked: &mut Asked, looks: &mut usize) -> Option<Answer> {
        let slots = self.connections.slots();
        while let Some(slot) = asked.step(slots, looks) {
            let Question::Disconnect { whom, close } = &asked.question else { return None };
            if let Some(key) = self.connections.key_at(slot)
                && self.is_meant(whom, key)
            {
                *looks = looks.saturating_sub(1);
                let close = Arc::clone(close);
                asked.disconnected += u64::from(self.disconnect(key, &close));
            }
        }
        let is_done = asked.rest(slots).is_none();
        is_done.then_some(Answer::Disconnect(Some(asked.disconnected)))
    }

    fn is_meant(&self, whom: &Whom, key: Key) -> bool {
        match whom {
            Whom::Connection(whom) => *whom == key,
            Whom::User(user_id) => self.user_of(key) == Some(&**user_id),
            Whom::Room(room) => {
                let connection = self.connections.get(key);
                connection.is_some_and(|it| it.memberships.index_in(*room).is_some())
            }
        }
    }

    /// Closes an open connection; says whether it was one.
    fn disconnect(&mut self, key: Key, close: &Close) -> bool {
        let is_open = self.connections.get(key).is_some_and(Connection::is_open);
        if is_open {
            self.close(key, close.code, &close.reason, Reason::Operator(close.code));
        }
        is_open
    }
}
