//! Plain values that any layer may name: which shard, which room name.
//!
//! Connections and rooms inside a shard are named by [`crate::slab::Key`]; a key means nothing
//! outside the shard that made it, so it always travels together with a [`ShardId`].

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};

/// One shard of this process, counted from 0; also its index in every table of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The index of this shard in a table of all shards.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl From<usize> for ShardId {
    /// # Panics
    /// Past 65,535; the configuration ends at 1,024 shards.
    fn from(index: usize) -> Self {
        Self(u16::try_from(index).expect("the configuration allows at most 1,024 shards"))
    }
}

/// The name spaces of rooms: one per way of encoding a publish.
///
/// A room's frames are encoded once for all members, so members that expect different encodings
/// can never share a room: `/raw/lobby` and the native room `lobby` are two rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NameSpace {
    /// JSON frames of the native protocol.
    Native,
    /// Messages verbatim.
    Raw,
}

impl NameSpace {
    /// How many there are; `as usize` is less.
    pub const COUNT: usize = 2;
}

/// The full name of a room: its name space and the name the clients use.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoomName {
    /// Which encoding its members expect.
    pub space: NameSpace,
    /// The name on the wire: UTF-8, at most `room_id_bytes_max` bytes.
    pub name: Box<str>,
}

impl RoomName {
    /// A room name; the caller has checked its length.
    #[must_use]
    pub fn new(space: NameSpace, name: &str) -> Self {
        Self { space, name: name.into() }
    }
}

/// Says which shard is a room's home: the same answer on every shard of this process.
///
/// Keyed per process, so that nobody outside can pick names that all land on one shard.
#[derive(Debug, Clone)]
pub struct HomeHasher {
    key: u64,
    shards: usize,
}

impl HomeHasher {
    /// A hasher for `shards` shards, with a fresh random key; clones agree with each other.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self::with_key(shards, RandomState::new().hash_one(()))
    }

    /// A hasher that places rooms the same way in every run: for the simulation.
    #[must_use]
    pub const fn with_key(shards: usize, key: u64) -> Self {
        Self { key, shards }
    }

    /// How many shards it spreads rooms over.
    #[must_use]
    pub const fn shards(&self) -> usize {
        self.shards
    }

    /// The home shard of `room`.
    #[must_use]
    pub fn home(&self, room: &RoomName) -> ShardId {
        let mut hasher = DefaultHasher::new();
        self.key.hash(&mut hasher);
        room.hash(&mut hasher);
        ShardId::from((hasher.finish() % self.shards as u64) as usize)
    }
}
