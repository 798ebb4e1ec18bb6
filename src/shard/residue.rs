//! What tests and fuzzers see of a shard: what it holds, and how far its rooms are.

use super::Shard;
use super::connection::Phases;
#[cfg(test)]
use crate::id::RoomName;
use crate::io::Io;

/// What a shard holds, see [`Shard::residue`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Residue {
    pub(crate) connections: usize,
    /// Those that wait for their opening handshake to begin; they do not count as connections.
    pub(crate) parked: usize,
    /// Of all shards together, in all and counted by address.
    pub(crate) census: (usize, usize),
    pub(crate) proxied: usize,
    pub(crate) rooms: usize,
    pub(crate) homes: usize,
    /// Of the room that holds the most.
    pub(crate) log_bytes_max: u64,
    pub(crate) unflushed: usize,
    pub(crate) partial_bytes: usize,
    pub(crate) readable: usize,
    pub(crate) owed: usize,
    pub(crate) active: usize,
    pub(crate) stalled: usize,
    pub(crate) links: usize,
    pub(crate) acks: usize,
    pub(crate) mail: usize,
    pub(crate) deadlines: usize,
    pub(crate) users: usize,
    /// Connections with tokens, and those that wait for theirs to be verified.
    pub(crate) tokens: (usize, usize),
}

impl<I: Io> Shard<I> {
    /// What the shard holds: all zero when every peer has left and every deadline has passed.
    pub(crate) fn residue(&self) -> Residue {
        let members: usize = self.rooms.iter().map(|room| room.members().len()).sum();
        assert_eq!(self.members, members, "members are counted as they are");
        let mut phases = Phases::default();
        let slots = 0..self.connections.slots();
        let keys = slots.filter_map(|slot| self.connections.key_at(slot));
        let connections = keys.filter_map(|key| self.connections.get(key));
        connections.for_each(|connection| phases.enter(connection.phase));
        assert_eq!(self.phases, phases, "connections are counted as they are");
        Residue {
            connections: self.connections.len(),
            parked: self.parked.len(),
            census: self.ends.census.totals(),
            proxied: self.proxied_len(),
            rooms: self.rooms.len(),
            homes: self.home.len(),
            log_bytes_max: self.rooms.iter().map(|room| room.log.len()).max().unwrap_or(0),
            unflushed: usize::from(self.home.is_waiting() || self.home.is_congested()),
            partial_bytes: self.budget.used(),
            readable: self.readable.len(),
            owed: self.owed.len(),
            active: self.active.len(),
            stalled: self.stalled.len(),
            links: self.links.len(),
            acks: self.acks.len(),
            mail: usize::from(self.ends.has_messages() || self.is_asked()),
            deadlines: usize::from(self.deadlines.next().is_some()),
            users: self.users.len(),
            tokens: self.authority.len(),
        }
    }

    /// How many members each of its rooms has here.
    #[cfg(test)]
    pub(crate) fn members(&self) -> impl Iterator<Item = (&RoomName, usize)> {
        self.rooms.iter().map(|room| (&room.name, room.members().len()))
    }

    /// Of each of its rooms: up to where all members that take something have been served, what
    /// lies behind that, and how many members there are.
    #[cfg(test)]
    pub(crate) fn sweeps(&self) -> impl Iterator<Item = (&RoomName, u64, u64, usize)> {
        let rooms = self.rooms.iter();
        rooms.map(|room| (&room.name, room.sweep.swept(), room.lag(), room.members().len()))
    }

    /// Opening handshakes under way.
    #[cfg(test)]
    pub(crate) fn handshakes(&self) -> usize {
        self.phases.handshakes()
    }

    /// Whether something waits for room in a mailbox.
    #[cfg(test)]
    pub(crate) fn waits_for_mailboxes(&self) -> bool {
        !self.stalled.is_empty() || !self.links.is_empty() || self.home.is_waiting()
    }
}
