//! What tests and fuzzers see of a shard: what it holds, and how far its rooms are.

use super::Shard;
use super::connection::{Connection, Phases};
#[cfg(test)]
use super::message::Delivery;
use crate::dialect::Endpoint;
#[cfg(test)]
use crate::id::RoomName;
use crate::io::Io;
#[cfg(test)]
use crate::io::Socket;

/// What a shard holds, see [`Shard::residue`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Residue {
    pub(crate) connections: usize,
    /// Those that wait for their opening handshake to begin; they do not count as connections.
    pub(crate) parked: usize,
    /// Those of them that count.
    pub(crate) admitted: usize,
    /// Of all shards together, in all and counted by address.
    pub(crate) census: (usize, usize),
    pub(crate) proxied: usize,
    pub(crate) rooms: usize,
    pub(crate) homes: usize,
    /// Of the room that holds the most.
    pub(crate) log_bytes_max: u64,
    pub(crate) unflushed: usize,
    /// Of the room at its home that has most to hand over.
    pub(crate) backlog_bytes_max: u64,
    /// What the connection to which most is owed has waiting for it, sent and received, and the
    /// same of one that is sent nothing but echoes.
    pub(crate) waiting_bytes_max: usize,
    pub(crate) echo_bytes_max: usize,
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
    fn all_connections(&self) -> impl Iterator<Item = &Connection> {
        let keys = (0..self.connections.slots()).filter_map(|slot| self.connections.key_at(slot));
        keys.filter_map(|key| self.connections.get(key))
    }

    /// What the shard holds: all zero when every peer has left and every deadline has passed.
    pub(crate) fn residue(&self) -> Residue {
        let members: usize = self.rooms.iter().map(|room| room.members().len()).sum();
        assert_eq!(self.members, members, "members are counted as they are");
        let mut phases = Phases::default();
        self.all_connections().for_each(|connection| phases.enter(connection.phase));
        assert_eq!(self.phases, phases, "connections are counted as they are");
        Residue {
            connections: self.connections.len(),
            parked: self.parked.len(),
            admitted: self.all_connections().filter(|it| it.admitted).count(),
            census: self.ends.census.totals(),
            proxied: self.proxied_len(),
            rooms: self.rooms.len(),
            homes: self.home.len(),
            log_bytes_max: self.rooms.iter().map(|room| room.log.len()).max().unwrap_or(0),
            unflushed: usize::from(self.home.is_waiting() || self.home.is_congested()),
            backlog_bytes_max: self.home.backlog_bytes_max(),
            waiting_bytes_max: self.all_connections().map(waiting_bytes).max().unwrap_or(0),
            echo_bytes_max: {
                let echo = |it: &&Connection| it.endpoint == Endpoint::Echo;
                self.all_connections().filter(echo).map(waiting_bytes).max().unwrap_or(0)
            },
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

    /// Whether it has members in the room and has not been handed what has that offset there.
    #[cfg(test)]
    pub(crate) fn lacks(&mut self, name: &RoomName, offset: u64) -> bool {
        let Some(key) = self.rooms.find(name.space, &name.name) else { return false };
        let Some(room) = self.rooms.get(key) else { return false };
        let is_it = |delivery: &Delivery| match delivery {
            Delivery::Frames { room, frames } => *room == key && frames.offset >= offset,
            _ => false,
        };
        !room.members().is_empty()
            && room.log.offset() < offset
            && !self.ends.deliveries.has(room.home, is_it)
    }

    /// Whether the connection on that socket is open and in the room.
    #[cfg(test)]
    pub(crate) fn is_member(&self, socket: Socket, name: &RoomName) -> bool {
        let Some(room) = self.rooms.find(name.space, &name.name) else { return false };
        let mut open = self.all_connections().filter(|connection| connection.is_open());
        open.any(|it| it.socket == socket && it.memberships.index_in(room).is_some())
    }

    /// How many connections wait for their handshake to begin.
    #[cfg(test)]
    pub(crate) fn parked_len(&self) -> usize {
        self.parked.len()
    }

    /// How many connections count, of all shards together.
    #[cfg(test)]
    pub(crate) fn admitted(&self) -> usize {
        self.ends.census.count()
    }

    /// The sockets of connections that are no longer open, but have been.
    #[cfg(test)]
    pub(crate) fn ending(&self) -> impl Iterator<Item = Socket> {
        let ending = |it: &&Connection| !it.phase.is_handshake() && !it.is_open();
        self.all_connections().filter(ending).map(|connection| connection.socket)
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

/// What waits for a connection to be sent, and of what it has sent.
fn waiting_bytes(connection: &Connection) -> usize {
    connection.extra.as_ref().map_or(0, |extra| extra.held.len() + extra.outbox.bytes())
}
