//! Fan-out state, pure: which connections are members of which room, and what they are owed.
//!
//! A room exists twice. Its *home* ([`home`]) is on one shard, chosen by a hash of its name: it
//! numbers and encodes every publish. A [`Room`] is on every shard that has members: it keeps the
//! frames in a [`RoomLog`] and a [`Sweep`] brings them to its [`Member`]s.
//!
//! ```text
//!   any shard           home shard                every shard with members
//!   ─────────           ──────────                ────────────────────────
//!   Publish ──────▶ Home: number, encode once ──▶ Room: log ──▶ sweep ──▶ members
//!   Subscribe ────▶ Home: subscribers         ──▶ Subscribed { offset }
//! ```
//!
//! Knows connections by their slots, never sockets; never reads the clock, never logs.

pub mod home;
pub mod log;
pub mod members;
pub mod policy;
pub mod segment;
pub mod sweep;

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::Instant;

use crate::config::{Policy, SlowConsumer};
use crate::id::{NameSpace, RoomName, ShardId};
use crate::planted::{Bug, planted};
use crate::slab::{Key, Slab};

pub use log::RoomLog;
pub use members::Members;
pub use segment::SegmentPool;
pub use sweep::{Delivered, Floor, Sweep, Visit};

/// A connection in a room: its slot and how far it has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The connection's slot. A connection leaves its rooms before its slot is freed.
    pub connection: u32,
    /// Who brings it further.
    pub standing: Standing,
    /// Position in the room's log, always at the start of a frame; but see
    /// [`Standing::Overtaken`].
    pub cursor: u64,
}

/// Whether sweeps serve a member. Kept here, so that a sweep need not look at the connections of
/// those whom it passes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Sweeps do.
    Current,
    /// Its socket is or was full: it catches up by itself.
    Behind,
    /// The same, and what it waits for is not kept any more. Its cursor is no position but the
    /// offset of the first message that it is not sent.
    Overtaken,
}

impl Member {
    /// A member that sweeps serve from `cursor` on.
    #[must_use]
    pub const fn new(connection: u32, cursor: u64) -> Self {
        Self { connection, standing: Standing::Current, cursor }
    }
}

/// A room on one shard that has members, or is about to. `W` is what the shard remembers of a
/// connection that waits for the room's home to answer.
#[derive(Debug)]
pub struct Room<W> {
    /// The room's full name.
    pub name: RoomName,
    /// Its home shard.
    pub home: ShardId,
    /// The room's key at its home; `None` until the home has answered.
    pub home_key: Option<Key>,
    /// How far its members may fall behind, and what becomes of those that do. Changed by
    /// [`Room::set_policy`].
    pub policy: Policy,
    /// The frames.
    pub log: RoomLog,
    /// How far they have been brought to the members.
    pub sweep: Sweep,
    /// Whether each member needs a seat, which its home gives; known when the home has answered.
    pub few_seats: bool,
    /// Connections that join as soon as the home has answered; in a room of few seats once for
    /// each of them, in this order.
    pub waiting: VecDeque<W>,
    /// Whether the shard has it on its list of rooms to sweep.
    pub active: bool,
    /// Whether the shard has it on its list of rooms in which messages are getting too old.
    pub ages: bool,
    members: Members,
}

impl<W> Room<W> {
    /// Its members, in no particular order.
    #[must_use]
    pub const fn members(&self) -> &Members {
        &self.members
    }

    /// Adds a connection, from the head of the log on. Returns its index among the members.
    pub fn join(&mut self, connection: u32) -> u32 {
        let mut cursor = self.log.head();
        if planted(Bug::CursorOffByOne) {
            cursor = self.log.newest();
        }
        self.members.push(Member::new(connection, cursor)) as u32
    }

    /// Removes the member at `index` and tells `moved` which connections have which index now.
    /// Constant time; at most two members move.
    pub fn leave(&mut self, index: u32, mut moved: impl FnMut(u32, u32)) {
        let index = index as usize;
        let hole = self.sweep.leave(index);
        if hole != index {
            self.members[index] = self.members[hole];
            moved(self.members[index].connection, index as u32);
        }
        self.members.swap_remove(hole);
        self.settle();
        if let Some(member) = self.members.get(hole) {
            moved(member.connection, hole as u32);
        }
    }

    /// A member has left, or has caught up by itself: what only it needed may go. The room may be
    /// due afterwards.
    fn settle(&mut self) {
        if !self.log.is_empty() {
            self.sweep.again();
        }
    }

    /// Changes the policy. The room may be due afterwards: others may be slow consumers now.
    /// Whoever was overtaken has lost what it has lost, and goes on with the oldest that is kept if
    /// slow consumers are disconnected from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        if self.policy != policy {
            self.policy = policy;
            // What this round has seen was seen with another floor: it is no reason to trim.
            self.sweep.rewind(0);
            self.settle();
        }
    }

    /// The member at `index`.
    #[must_use]
    pub fn member(&self, index: u32) -> Member {
        self.members[index as usize]
    }

    /// Sets how far the member at `index` has got.
    pub fn set_cursor(&mut self, index: u32, cursor: u64) {
        self.members[index as usize].cursor = cursor;
    }

    /// A send to the member at `index` was short: it goes on at `cursor`, by itself.
    pub fn fall_behind(&mut self, index: u32, cursor: u64) {
        let member = &mut self.members[index as usize];
        member.standing = Standing::Behind;
        member.cursor = cursor;
        self.sweep.rewind(cursor);
    }

    /// Whether the member at `index` has to catch up by itself with those whom sweeps serve.
    #[must_use]
    pub fn is_behind(&self, index: u32) -> bool {
        let member = self.member(index);
        match member.standing {
            Standing::Current => false,
            Standing::Behind => member.cursor < self.sweep.swept(),
            Standing::Overtaken => true,
        }
    }

    /// The member at `index` has caught up: sweeps serve it again. The room may be due afterwards.
    pub fn catch_up(&mut self, index: u32) {
        self.members[index as usize].standing = Standing::Current;
        self.settle();
    }

    /// Bytes of the log that the member at `index` has still to be sent; for one that has been
    /// overtaken, all that is kept.
    #[must_use]
    pub fn behind_bytes(&self, index: u32) -> u64 {
        let member = self.member(index);
        match member.standing {
            Standing::Current | Standing::Behind => self.log.head() - member.cursor,
            Standing::Overtaken => self.log.len(),
        }
    }

    /// Whether the member at `index` is to be disconnected as a slow consumer.
    #[must_use]
    pub fn is_too_slow(&self, index: u32, now: Instant) -> bool {
        let member = self.member(index);
        self.policy.slow_consumer == SlowConsumer::Disconnect
            && member.standing == Standing::Behind
            && member.cursor < self.floor(now)
    }

    /// Moves the member at `index` to where it goes on if it is a slow consumer that skips. Returns
    /// the offsets of the messages that it is not sent; an empty range: it skips none.
    pub fn skip(&mut self, index: u32, now: Instant) -> Range<u64> {
        let floor = self.floor(now);
        let skips = self.policy.slow_consumer != SlowConsumer::Disconnect;
        let member = &mut self.members[index as usize];
        let from = match member.standing {
            Standing::Overtaken => member.cursor,
            Standing::Behind if skips && member.cursor < floor => self.log.offset_at(member.cursor),
            Standing::Behind | Standing::Current => return 0..0,
        };
        // Not before what it has got: the floor may have fallen, with a new policy.
        let position = policy::goes_on_at(&self.policy, &self.log, floor);
        let position = position.max(self.log.position_of(from));
        member.standing = Standing::Behind;
        member.cursor = position;
        from..self.log.offset_at(position)
    }

    fn floor(&self, now: Instant) -> u64 {
        policy::floor(&self.policy, &self.log, now)
    }

    /// Sweeps on; see [`Sweep::advance`]. Adds to `too_slow` the connections that are to be
    /// disconnected as slow consumers.
    pub fn advance(
        &mut self,
        segments: &mut SegmentPool,
        budget: usize,
        now: Instant,
        too_slow: &mut Vec<u32>,
        visit: impl FnMut(&Member, &bytes::Bytes, usize) -> Visit,
    ) -> Delivered {
        let floor = Floor { position: self.floor(now), policy: &self.policy, too_slow };
        self.sweep.advance(&mut self.members, &mut self.log, segments, budget, floor, visit)
    }

    /// When the next of what is kept for members that are behind will be too old: in an eighth of
    /// the age at the soonest. `None`: nothing is, or it may be as old as it likes.
    #[must_use]
    pub fn ages_at(&self, now: Instant) -> Option<Instant> {
        let age_max = self.policy.age_max?;
        Some((self.log.oldest()? + age_max).max(now + age_max / 8))
    }

    /// Time has passed: a round finds out who is too far behind by now. The room may be due
    /// afterwards.
    pub fn age(&mut self) {
        self.settle();
    }

    /// Whether the sweep has anything to do.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.sweep.is_due(&self.log)
    }

    /// Whether its members here are so far behind that whoever publishes here should wait for
    /// them: by a quarter of what a slow consumer may be.
    #[must_use]
    pub const fn is_late(&self) -> bool {
        self.lag() > self.policy.high_water_mark / 4
    }

    /// Whether nothing more should be taken in: then a member whose socket is full for a moment is
    /// no slow consumer yet.
    #[must_use]
    pub const fn is_far_behind(&self) -> bool {
        self.lag() > self.policy.high_water_mark / 2
    }

    /// Bytes that members who are not blocked have still to be sent.
    #[must_use]
    pub const fn lag(&self) -> u64 {
        self.log.head() - self.sweep.swept()
    }
}

/// The rooms of one shard, by key and by name.
#[derive(Debug)]
pub struct RoomTable<W> {
    rooms: Slab<Room<W>>,
    /// By name, for each name space: looked up with a borrowed name, for every native publish.
    by_name: [HashMap<Box<str>, Key>; NameSpace::COUNT],
}

impl<W> Default for RoomTable<W> {
    fn default() -> Self {
        Self { rooms: Slab::new(), by_name: Default::default() }
    }
}

impl<W> RoomTable<W> {
    /// The key of the room called `name` in `space`.
    #[must_use]
    pub fn find(&self, space: NameSpace, name: &str) -> Option<Key> {
        self.by_name[space as usize].get(name).copied()
    }

    /// Adds a room whose home has not answered yet.
    pub fn insert(&mut self, name: RoomName, home: ShardId, policy: Policy) -> Key {
        let key = self.rooms.insert(Room {
            name: name.clone(),
            home,
            home_key: None,
            policy,
            log: RoomLog::default(),
            sweep: Sweep::default(),
            few_seats: false,
            waiting: VecDeque::new(),
            active: false,
            ages: false,
            members: Members::default(),
        });
        self.by_name[name.space as usize].insert(name.name, key);
        key
    }

    /// Takes a room out; frames that are still on their way to it find nothing.
    pub fn remove(&mut self, key: Key) -> Option<Room<W>> {
        let room = self.rooms.remove(key)?;
        self.by_name[room.name.space as usize].remove(&room.name.name);
        Some(room)
    }

    /// The room of `key`.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&Room<W>> {
        self.rooms.get(key)
    }

    /// The room of `key`.
    #[must_use]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut Room<W>> {
        self.rooms.get_mut(key)
    }

    /// The key of the room in `slot`, if there is one.
    #[must_use]
    pub fn key_at(&self, slot: u32) -> Option<Key> {
        self.rooms.key_at(slot)
    }

    /// One past the highest slot ever used: the bound for a walk with [`RoomTable::key_at`].
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.rooms.slots()
    }

    /// The room in `slot`, if there is one.
    #[must_use]
    pub fn at(&self, slot: u32) -> Option<&Room<W>> {
        self.rooms.get(self.rooms.key_at(slot)?)
    }

    /// The rooms, in no particular order.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Room<W>> {
        self.by_name.iter().flat_map(HashMap::values).filter_map(|&key| self.rooms.get(key))
    }

    /// How many rooms have members here.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }
}

#[cfg(test)]
mod tests;
