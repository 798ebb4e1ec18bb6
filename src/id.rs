//! Plain values that any layer may name: which shard, which room name.
//!
//! Connections and rooms inside a shard are named by [`crate::slab::Key`]; a key means nothing
//! outside the shard that made it, so it always travels together with a [`ShardId`].

use std::fmt;
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::str::FromStr;

use crate::slab::Key;

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

/// One connection of this process, for people: prints as `SHARD-SLOT-GENERATION`, `0-17-3`, and
/// reads back from that. A connection that is gone keeps its name; no other gets it before its
/// slot was used 2^24 times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// The shard that holds it.
    pub shard: ShardId,
    /// Its key there.
    pub key: Key,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.shard.0, self.key.slot(), self.key.generation())
    }
}

impl FromStr for ConnectionId {
    type Err = NotAConnectionId;

    fn from_str(text: &str) -> Result<Self, NotAConnectionId> {
        let read = || {
            let mut parts = text.splitn(3, '-');
            let shard = ShardId(parts.next()?.parse().ok()?);
            let slot: u32 = parts.next()?.parse().ok()?;
            let generation: u32 = parts.next()?.parse().ok()?;
            let key = Key::from_bits(u64::from(generation) << 32 | u64::from(slot));
            Some(Self { shard, key })
        };
        // Only what was printed: one connection has one name.
        read().filter(|id| id.to_string() == text).ok_or(NotAConnectionId)
    }
}

/// Not three numbers with `-` in between, as [`ConnectionId`] prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAConnectionId;

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

    /// Its name for people and backends.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Raw => "raw",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Native, Self::Raw].into_iter().find(|space| space.name() == name)
    }
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

    /// A hash of `name`, the same on every shard.
    #[must_use]
    pub fn hash(&self, name: &str) -> u32 {
        let mut hasher = DefaultHasher::new();
        self.key.hash(&mut hasher);
        name.hash(&mut hasher);
        hasher.finish() as u32
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_one_name() {
        for (shard, bits) in [(0, 0), (17, 3 << 32 | 4_000_000_000), (1023, (1 << 56) - 1)] {
            let id = ConnectionId { shard: ShardId(shard), key: Key::from_bits(bits) };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in ["", "0-1", "0-1-2-3", "-1-2", "00-1-2", "+0-1-2", "0-1-16777216", "0-1-2 "] {
            assert_eq!(text.parse::<ConnectionId>(), Err(NotAConnectionId), "{text}");
        }
        for text in ["65536-1-2", "0-4294967296-2", "a-b-c", "0-1-\u{0661}"] {
            assert_eq!(text.parse::<ConnectionId>(), Err(NotAConnectionId), "{text}");
        }
    }
}
