//! The home side of rooms: one total order per room, one encoding per publish.
//!
//! Whatever shard a publish enters by, it comes here, gets the room's next offset and is encoded
//! into a segment. At the end of the step [`HomeTable::flush`] hands the new frames to every
//! shard that has members: consecutive publishes to one room go as one slice.
//!
//! A subscriber is to the home what a member is to a room: a cursor into a log. When the mailbox
//! to a shard is full its cursor stays behind and the frames wait here; while any room holds more
//! than `backlog_bytes_max` for a shard, [`HomeTable::is_congested`] says so and the shard takes
//! in no further publishes, which fills the mailboxes towards it, which stops the publishers.
//!
//! A room lives here while some shard has members in it; its offsets begin at 1.
//!
//! A room may have few seats (`members_per_room_max`): then every member takes one here before it
//! joins, and gives it back when it has left. So the home knows how many members all shards have
//! together, and never lets one too many in; a seat that is on its way back still counts.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use bytes::{BufMut, Bytes};

use super::segment::SegmentPool;
use crate::id::{RoomName, ShardId};
use crate::protocol::frame::{self, Opcode};
use crate::slab::{Key, Slab};

/// What a publish carries: a payload, and where in it the offset is to be written.
///
/// The dialect builds it, so that the home needs to know nothing about the message inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Text or binary.
    pub opcode: Opcode,
    /// The payload, but for the offset.
    pub payload: Bytes,
    /// Index in `payload` before which the offset is written, in decimal; `None`: nowhere.
    pub offset_at: Option<u32>,
}

/// Frames for the members on one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frames {
    /// Whole frames, one or more.
    pub bytes: Bytes,
    /// Offset of the last one.
    pub offset: u64,
    /// When the first one was numbered.
    pub at: Instant,
}

/// As many rooms as allowed have their home here already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyRooms;

/// All rooms whose home is this shard. See the module documentation.
#[derive(Debug)]
pub struct HomeTable {
    rooms: Slab<Home>,
    by_name: HashMap<RoomName, Key>,
    rooms_max: usize,
    backlog_bytes_max: u64,
    segments: SegmentPool,
    /// Frames appended to the open segment and not cut off yet: all of one room.
    run: Option<Run>,
    /// Rooms with frames that some subscriber has not got.
    unflushed: Vec<Key>,
    congested: usize,
}

#[derive(Debug)]
struct Home {
    name: RoomName,
    offset: u64,
    subscribers: Vec<Subscriber>,
    /// How many seats are taken; `None`: nobody needs one.
    seats: Option<usize>,
    /// What some subscriber has not got yet; `first` is the number of the oldest.
    backlog: VecDeque<Frames>,
    first: u64,
    backlog_bytes: u64,
    /// The offset up to which every subscriber has got everything.
    handed: u64,
    unflushed: bool,
    congested: bool,
}

/// What the home knows of one room, for whoever lists rooms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Its name.
    pub name: RoomName,
    /// The newest offset: also how often was published to it since it exists.
    pub offset: u64,
    /// The shards that have members, or are about to, and the room's key there.
    pub shards: Vec<(ShardId, Key)>,
}

#[derive(Debug)]
struct Subscriber {
    shard: ShardId,
    /// The room's key on that shard.
    room: Key,
    /// Number of the next slice of the backlog to hand over.
    next: u64,
}

#[derive(Debug)]
struct Run {
    room: Key,
    offset: u64,
    at: Instant,
}

impl HomeTable {
    /// Room for `rooms_max` rooms. A room may hold some `backlog_bytes_max` bytes for a shard
    /// whose mailbox is full before the table counts as congested.
    #[must_use]
    pub fn new(rooms_max: usize, backlog_bytes_max: u64) -> Self {
        Self {
            rooms: Slab::new(),
            by_name: HashMap::new(),
            rooms_max,
            backlog_bytes_max,
            segments: SegmentPool::new(),
            run: None,
            unflushed: Vec::new(),
            congested: 0,
        }
    }

    /// Changes what [`HomeTable::new`] was told. Rooms beyond `rooms_max` stay.
    pub const fn set_limits(&mut self, rooms_max: usize, backlog_bytes_max: u64) {
        self.rooms_max = rooms_max;
        self.backlog_bytes_max = backlog_bytes_max;
    }

    /// How many rooms have their home here.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rooms.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Segments held for reuse.
    #[must_use]
    pub fn segments_retired(&self) -> usize {
        self.segments.retired()
    }

    /// Shard `shard` has members from now on, under the key `room`: it gets every later publish.
    /// Returns the room's key here, its newest offset, and whether its members need seats: that is
    /// decided when the room begins, by `few_seats`.
    ///
    /// # Errors
    /// [`TooManyRooms`] when it would be a new room past `rooms_max`.
    pub fn subscribe(
        &mut self,
        name: RoomName,
        shard: ShardId,
        room: Key,
        few_seats: bool,
    ) -> Result<(Key, u64, bool), TooManyRooms> {
        self.close_run();
        let key = match self.by_name.get(&name) {
            Some(&key) => key,
            None if self.rooms.len() >= self.rooms_max => return Err(TooManyRooms),
            None => {
                let key = self.rooms.insert(Home::new(name.clone(), few_seats));
                self.by_name.insert(name, key);
                key
            }
        };
        let home = self.rooms.get_mut(key).expect("found or made above");
        let next = home.first + home.backlog.len() as u64;
        home.subscribers.push(Subscriber { shard, room, next });
        Ok((key, home.offset, home.seats.is_some()))
    }

    /// Takes a seat, unless as many are taken as `seats_max` says of a room of that name.
    pub fn take_seat(
        &mut self,
        key: Key,
        seats_max: impl FnOnce(&RoomName) -> Option<usize>,
    ) -> bool {
        let home = self.rooms.get_mut(key).expect("a subscriber keeps the room alive");
        let seats = home.seats.as_mut().expect("its members need seats");
        let taken = seats_max(&home.name).is_none_or(|seats_max| *seats < seats_max);
        *seats += usize::from(taken);
        taken
    }

    /// Gives a seat back.
    pub fn free_seat(&mut self, key: Key) {
        let home = self.rooms.get_mut(key).expect("a subscriber keeps the room alive");
        let seats = home.seats.as_mut().expect("its members need seats");
        *seats = seats.checked_sub(1).expect("it was taken");
    }

    /// Shard `shard` has no members any more. The last one takes the room with it.
    pub fn unsubscribe(&mut self, key: Key, shard: ShardId) {
        self.close_run();
        let home = self.rooms.get_mut(key).expect("a subscriber keeps the room alive");
        home.subscribers.retain(|subscriber| subscriber.shard != shard);
        home.trim();
        home.count_congestion(self.backlog_bytes_max, &mut self.congested);
        if home.subscribers.is_empty() {
            let home = self.rooms.remove(key).expect("it was there");
            assert!(home.seats.is_none_or(|seats| seats == 0), "seats are given back before");
            self.by_name.remove(&home.name);
        }
    }

    /// Numbers and encodes one publish. Returns its offset. One copy of the payload.
    pub fn publish(&mut self, key: Key, message: &Message, now: Instant) -> u64 {
        let home = self.rooms.get_mut(key).expect("a room with members");
        home.offset += 1;
        let offset = home.offset;
        if !home.unflushed {
            home.unflushed = true;
            self.unflushed.push(key);
        }
        let mut digits = itoa::Buffer::new();
        let (before, digits, after) = match message.offset_at {
            Some(at) => {
                let (before, after) = message.payload.split_at(at as usize);
                (before, digits.format(offset).as_bytes(), after)
            }
            None => (&message.payload[..], &b""[..], &b""[..]),
        };
        let payload_len = before.len() + digits.len() + after.len();
        let len = frame::server_header_len(payload_len) + payload_len;
        if self.run.as_ref().is_some_and(|run| run.room != key) || !self.segments.fits(len) {
            self.close_run();
        }
        let segment = self.segments.open(len);
        let header = frame::FrameHeader {
            fin: true,
            opcode: message.opcode,
            masking_key: None,
            payload_len: payload_len as u64,
        };
        header.encode(segment);
        segment.put_slice(before);
        segment.put_slice(digits);
        segment.put_slice(after);
        let run = self.run.get_or_insert(Run { room: key, offset, at: now });
        run.offset = offset;
        offset
    }

    /// The room called `name`; `None` when nobody is in it.
    #[must_use]
    pub fn find(&self, name: &RoomName) -> Option<Key> {
        self.by_name.get(name).copied()
    }

    /// One past the highest slot ever used: the bound for a walk with [`HomeTable::name_at`].
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.rooms.slots()
    }

    /// The name of the room in `slot`, if there is one. A room keeps its slot.
    #[must_use]
    pub fn name_at(&self, slot: u32) -> Option<&RoomName> {
        Some(&self.rooms.get(self.rooms.key_at(slot)?)?.name)
    }

    /// What there is to say of the room in `slot`, if there is one.
    #[must_use]
    pub fn list_at(&self, slot: u32) -> Option<Listing> {
        Some(self.rooms.get(self.rooms.key_at(slot)?)?.list())
    }

    /// What there is to say of the room called `name`, if there is one.
    #[must_use]
    pub fn list(&self, name: &RoomName) -> Option<Listing> {
        Some(self.rooms.get(*self.by_name.get(name)?)?.list())
    }

    /// Hands new frames to every subscriber through `send`, which takes the shard and the room's
    /// key there and says whether the mailbox had room. Frames that do not get through wait.
    pub fn flush(&mut self, mut send: impl FnMut(ShardId, Key, Frames) -> bool) {
        self.close_run();
        let Self { rooms, unflushed, backlog_bytes_max, congested, .. } = self;
        // In place: its memory is used again.
        unflushed.retain(|&key| {
            let Some(home) = rooms.get_mut(key) else {
                return false;
            };
            home.flush(&mut send);
            home.count_congestion(*backlog_bytes_max, congested);
            home.unflushed = !home.backlog.is_empty();
            home.unflushed
        });
    }

    /// Whether something that was numbered has not been handed to `shard`.
    #[must_use]
    pub fn owes(&self, shard: ShardId) -> bool {
        let owes = |home: &Home| {
            let end = home.first + home.backlog.len() as u64;
            home.subscribers.iter().any(|to| to.shard == shard && to.next < end)
        };
        self.run.is_some() || self.unflushed.iter().filter_map(|&key| self.rooms.get(key)).any(owes)
    }

    /// Whether every shard with members has been handed what was numbered up to `offset`. A room
    /// that has ended owes nobody anything.
    #[must_use]
    pub fn has_handed(&self, key: Key, offset: u64) -> bool {
        self.rooms.get(key).is_none_or(|home| offset <= home.handed)
    }

    /// Whether frames wait for room in some mailbox.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.run.is_some() || !self.unflushed.is_empty()
    }

    /// Whether some shard is so far behind that no publish should be taken in now.
    #[must_use]
    pub const fn is_congested(&self) -> bool {
        self.congested > 0
    }

    /// What the room that is furthest behind has not handed over, in bytes.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn backlog_bytes_max(&self) -> u64 {
        let keys = (0..self.rooms.slots()).filter_map(|slot| self.rooms.key_at(slot));
        let rooms = keys.filter_map(|key| self.rooms.get(key));
        rooms.map(|room| room.backlog_bytes).max().unwrap_or(0)
    }

    /// Cuts the open run off and puts it into its room's backlog.
    fn close_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let bytes = self.segments.cut();
        if let Some(home) = self.rooms.get_mut(run.room) {
            home.backlog_bytes += bytes.len() as u64;
            home.backlog.push_back(Frames { bytes, offset: run.offset, at: run.at });
        }
    }
}

impl Home {
    fn new(name: RoomName, few_seats: bool) -> Self {
        Self {
            name,
            offset: 0,
            subscribers: Vec::new(),
            seats: few_seats.then_some(0),
            backlog: VecDeque::new(),
            first: 0,
            backlog_bytes: 0,
            handed: 0,
            unflushed: false,
            congested: false,
        }
    }

    fn list(&self) -> Listing {
        let shards = self.subscribers.iter().map(|subscriber| (subscriber.shard, subscriber.room));
        Listing { name: self.name.clone(), offset: self.offset, shards: shards.collect() }
    }

    fn flush(&mut self, send: &mut impl FnMut(ShardId, Key, Frames) -> bool) {
        let end = self.first + self.backlog.len() as u64;
        for subscriber in &mut self.subscribers {
            while subscriber.next < end {
                let frames = self.backlog[(subscriber.next - self.first) as usize].clone();
                if !send(subscriber.shard, subscriber.room, frames) {
                    break;
                }
                subscriber.next += 1;
            }
        }
        self.trim();
    }

    /// Brings `congested`, the number of congested rooms, up to date with this one.
    fn count_congestion(&mut self, backlog_bytes_max: u64, congested: &mut usize) {
        let is = self.backlog_bytes > backlog_bytes_max;
        let was = std::mem::replace(&mut self.congested, is);
        *congested = *congested + usize::from(is) - usize::from(was);
    }

    /// Forgets what every subscriber has got.
    fn trim(&mut self) {
        let end = self.first + self.backlog.len() as u64;
        let slowest = self.subscribers.iter().map(|subscriber| subscriber.next).min();
        while self.first < slowest.unwrap_or(end) {
            let frames = self.backlog.pop_front().expect("first..end is the backlog");
            self.backlog_bytes -= frames.bytes.len() as u64;
            self.handed = frames.offset;
            self.first += 1;
        }
    }
}
