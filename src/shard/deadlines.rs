//! Which connections must be looked at when: one timing wheel per shard, no timer per connection.
//!
//! The wheel is a ring of [`BUCKETS`] lists, one per [`UNIT`] of time; a deadline is in the list of
//! its unit modulo the ring. The lists are threaded through the connections themselves, so setting,
//! moving and dropping a deadline is a handful of stores and never allocates, however many
//! connections come and go. Source: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels",
//! scheme 6.
//!
//! (Rejected: a map of buckets of keys, with stale keys found out when their time comes. A storm
//! of handshakes that all end in time left 8 bytes each behind for as long as the timeout.)
//!
//! Resolution: a deadline is never early, and at most one unit late.

use std::time::{Duration, Instant};

use super::Shard;
use super::closing::Reason;
use super::connection::{Connection, Phase};
use crate::io::Io;
use crate::planted::{Bug, planted};
use crate::protocol::{HandshakeError, ProtocolError};
use crate::slab::{Key, Slab};

/// The width of a bucket. 2^32 of them are eight years of uptime.
pub const UNIT: Duration = Duration::from_millis(64);

/// The length of the ring: 32 s, longer than all default timeouts. A deadline that is further away
/// is passed over once per turn.
const BUCKETS: usize = 512;

/// No connection: the end of a list.
const NONE: u32 = u32::MAX;

/// A connection's place in the wheel.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    /// The unit in which it comes, counted from the shard's start; 0: there is none.
    unit: u32,
    /// The slots of its neighbours in the list of its bucket.
    next: u32,
    previous: u32,
}

impl Deadline {
    /// Whether there is one.
    #[must_use]
    pub const fn is_set(&self) -> bool {
        self.unit != 0
    }
}

impl Default for Deadline {
    fn default() -> Self {
        Self { unit: 0, next: NONE, previous: NONE }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Deadlines {
    start: Instant,
    heads: Box<[u32; BUCKETS]>,
    /// The unit up to which everything has expired.
    expired: u32,
    len: usize,
}

impl Deadlines {
    /// No deadlines yet; time is counted from `start`.
    #[must_use]
    pub fn new(start: Instant) -> Self {
        Self { start, heads: Box::new([NONE; BUCKETS]), expired: 0, len: 0 }
    }

    /// Gives the connection the deadline `at`, in place of any it had.
    pub fn set(&mut self, key: Key, at: Instant, connections: &mut Slab<Connection>) {
        self.clear(key, connections);
        // The unit after the one it falls into: never early.
        let unit = self.unit(at).max(self.expired) + 1;
        let head = &mut self.heads[bucket(unit)];
        let Some(connection) = connections.get_mut(key) else { return };
        connection.deadline = Deadline { unit, next: *head, previous: NONE };
        let next = std::mem::replace(head, key.slot());
        if let Some(neighbour) = connections.at_mut(next) {
            neighbour.deadline.previous = key.slot();
        }
        self.len += 1;
    }

    /// When the deadline comes, to the unit: set for then, it is the same.
    #[must_use]
    pub fn time_of(&self, deadline: Deadline) -> Option<Instant> {
        Some(self.start + UNIT * deadline.unit.checked_sub(1)?)
    }

    /// Drops the connection's deadline. Must be done before its slot is freed.
    pub fn clear(&mut self, key: Key, connections: &mut Slab<Connection>) {
        let Some(connection) = connections.get_mut(key) else { return };
        let Deadline { unit, next, previous } = std::mem::take(&mut connection.deadline);
        if unit == 0 {
            return;
        }
        if let Some(neighbour) = connections.at_mut(next) {
            neighbour.deadline.previous = previous;
        }
        match connections.at_mut(previous) {
            Some(neighbour) => neighbour.deadline.next = next,
            None => self.heads[bucket(unit)] = next,
        }
        self.len -= 1;
    }

    /// The time at which [`Deadlines::expire`] may have something to do; it is due then if it has.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        if self.len == 0 {
            return None;
        }
        let units = self.expired + 1..=self.expired + BUCKETS as u32;
        let unit = units.into_iter().find(|&unit| self.heads[bucket(unit)] != NONE)?;
        Some(self.start + UNIT * unit)
    }

    /// Moves the connections whose deadline has come to `expired`, and drops their deadlines.
    pub fn expire(
        &mut self,
        now: Instant,
        connections: &mut Slab<Connection>,
        expired: &mut Vec<Key>,
    ) {
        let now = self.unit(now);
        let first = self.expired + 1;
        // After a long sleep one turn of the wheel is all there is.
        for unit in first..=now.min(self.expired + BUCKETS as u32) {
            let mut slot = self.heads[bucket(unit)];
            while let Some(connection) = connections.at_mut(slot) {
                let deadline = connection.deadline;
                if deadline.unit <= now
                    && let Some(key) = connections.key_at(slot)
                {
                    self.clear(key, connections);
                    expired.push(key);
                }
                slot = deadline.next;
            }
        }
        self.expired = now.max(self.expired);
    }

    fn unit(&self, at: Instant) -> u32 {
        (at.saturating_duration_since(self.start).as_millis() / UNIT.as_millis()) as u32
    }
}

const fn bucket(unit: u32) -> usize {
    unit as usize % BUCKETS
}

/// When a connection's one deadline comes, and what follows.
impl<I: Io> Shard<I> {
    pub(super) fn expire_deadlines(&mut self, now: Instant) {
        if now < self.lenient_until {
            return;
        }
        let mut expired = Vec::new();
        self.deadlines.expire(now, &mut self.connections, &mut expired);
        for key in expired {
            let Some(connection) = self.connections.get(key) else { continue };
            match connection.phase {
                // Its request is complete: it is we who are late.
                Phase::Opening if connection.waiting => self.refuse(key, HandshakeError::Busy),
                Phase::Preface | Phase::Opening => self.refuse(key, HandshakeError::Timeout),
                Phase::Joining => self.refuse(key, HandshakeError::Busy),
                Phase::Open => self.expire_open(key),
                Phase::Closing | Phase::Draining => self.retire(key, Reason::CloseTimeout),
                Phase::Dead => {}
            }
        }
    }

    /// An open connection's deadline is that of its sends while its socket is full (or of a sign of
    /// life, if that comes first), otherwise that of the message it has begun, otherwise that of
    /// the answer to a ping.
    fn expire_open(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.poll_writable && connection.send_by().is_none() {
            self.retire(key, Reason::SendTimeout);
        } else if !connection.decoder.is_idle() {
            self.fail(key, ProtocolError::MessageTimeout);
        } else {
            self.expire_ping(key);
        }
    }

    /// The socket of an open connection is full: from now on its deadline is that of its sends, or
    /// of the answer to a ping, if that is due before.
    pub(super) fn time_sends(&mut self, key: Key) {
        let at = self.io.now() + self.limits.send_timeout;
        let Some(connection) = self.connections.get_mut(key) else { return };
        let pong_by = self.deadlines.time_of(connection.deadline);
        if connection.decoder.is_idle() && pong_by.is_some_and(|pong_by| pong_by < at) {
            connection.extra().send_by = Some(at);
        } else {
            self.deadlines.set(key, at, &mut self.connections);
        }
    }

    /// The connection need not do anything by any time.
    pub(super) fn clear_deadline(&mut self, key: Key) {
        if !planted(Bug::DeadlineNotCleared) {
            self.deadlines.clear(key, &mut self.connections);
        }
    }

    /// Sets the connection's one deadline to `after` from now.
    pub(super) fn set_deadline(&mut self, key: Key, after: Duration) {
        let at = self.io.now() + after;
        self.deadlines.set(key, at, &mut self.connections);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::io::Socket;

    proptest! {
        /// Against a map: set, move, drop, and let time pass in small and in large steps.
        #[test]
        fn deadlines_come_once_and_in_time(
            steps in prop::collection::vec((0..12_usize, 0..4_u8, 0..100_000_u64), 1..200),
        ) {
            let start = Instant::now();
            let mut now = start;
            let mut deadlines = Deadlines::new(start);
            let mut connections = Slab::new();
            let keys: Vec<Key> =
                (0..12).map(|n| connections.insert(Connection::new(Socket(n), 0))).collect();
            let mut model = BTreeMap::new();
            for (n, what, ms) in steps {
                let key = keys[n];
                match what {
                    0 | 1 => {
                        let at = now + Duration::from_millis(ms);
                        deadlines.set(key, at, &mut connections);
                        model.insert(key, at);
                    }
                    2 => {
                        deadlines.clear(key, &mut connections);
                        model.remove(&key);
                    }
                    _ => now += Duration::from_millis(ms / 10),
                }
                let mut expired = Vec::new();
                deadlines.expire(now, &mut connections, &mut expired);
                for key in expired {
                    let at = model.remove(&key).expect("it had one, and it comes once");
                    prop_assert!(at <= now, "never early");
                }
                for &at in model.values() {
                    prop_assert!(at + 2 * UNIT > now, "nor late");
                    prop_assert!(deadlines.next().expect("there are some") <= at + 2 * UNIT);
                }
                prop_assert_eq!(deadlines.len, model.len());
                prop_assert_eq!(deadlines.next().is_some(), !model.is_empty());
            }
        }
    }
}
