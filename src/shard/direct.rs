//! Direct messages: from one connection to all connections of a user, on whatever shard they are.
//!
//! ```text
//!   origin ── the message, encoded once ──▶ every shard ──▶ the user's connections there
//!      ▲                                        │ adds how many
//!      └──────────── how many in all ───────────┘ the last one tells
//! ```
//!
//! A connection's user is `sub` of its token, or without authentication the display name it gave
//! last. Each shard has a table of its connections by user; the connections without one are not in
//! it. An entry is 8 bytes, so that a connection with a user costs 10 to 20, as full as the table
//! is; names are looked up where they are, at the connection.
//!
//! The message goes as a request, with the backpressure of a publish: where a mailbox is full the
//! sender's input waits, and goes on with the shard that had no room. So what one connection sends
//! to one user arrives in order. Nobody waits for the answer: it is counted in the message itself,
//! and whose origin has gone is forgotten with it.
//!
//! Bounds: [`USER_CONNECTIONS_MAX`] connections of one user per shard; some
//! `DIRECT_BYTES_PER_TICK` per tick, the others wait where they are; and what may wait for one
//! connection, `high_water_mark`, past which it is a slow consumer.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use hashbrown::HashTable;

use super::connection::Stalled;
use super::message::{Ack, Delivery, Request};
use super::output::Source;
use super::{DIRECT_BYTES_PER_TICK, Shard};
use crate::dialect::native::{self, ErrorCode};
use crate::id::ShardId;
use crate::io::Io;
use crate::planted::{Bug, planted};
use crate::protocol::{Opcode, encode_frame};
use crate::slab::Key;

/// Connections of one user that a shard knows; those that come later get no direct messages until
/// they come again.
pub const USER_CONNECTIONS_MAX: usize = 1024;

/// What a direct message counts for at least among those of a tick, in bytes: nobody may be there.
const DIRECT_BYTES_MIN: usize = 64;

/// A message for every connection of a user.
#[derive(Debug)]
pub struct Direct {
    user_id: Box<str>,
    /// The whole message as a frame.
    frame: Bytes,
    /// Who wants to be told how many got it.
    ack: Option<Ack>,
    /// How many it was handed to so far.
    delivered: AtomicUsize,
    /// Shards that have not seen it.
    left: AtomicUsize,
}

/// The connections of a shard by their user. See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Users(HashTable<Entry>);

#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: u32,
    /// Of the user's name: to move entries about without a look at names.
    hash: u32,
}

impl Users {
    /// Adds the connection in `slot`, unless there are enough with this hash.
    fn insert(&mut self, hash: u32, slot: u32) {
        if self.slots(hash).count() < USER_CONNECTIONS_MAX {
            self.0.insert_unique(spread(hash), Entry { slot, hash }, |entry| spread(entry.hash));
        }
    }

    /// Takes the connection in `slot` out, if it is there.
    fn remove(&mut self, hash: u32, slot: u32) {
        if let Ok(entry) = self.0.find_entry(spread(hash), |entry| entry.slot == slot) {
            entry.remove();
        }
        if self.0.is_empty() {
            self.0 = HashTable::new();
        }
    }

    /// The slots of the connections whose users have this hash.
    fn slots(&self, hash: u32) -> impl Iterator<Item = u32> {
        let all = self.0.iter_hash(spread(hash));
        all.filter(move |entry| entry.hash == hash).map(|entry| entry.slot)
    }

    /// How many connections it knows.
    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// All bits of a hash that the table looks at.
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl<I: Io> Shard<I> {
    /// Notes the connection's user if one is given, and returns the one that was given last.
    pub(super) fn name_user(&mut self, key: Key, user_id: Option<Rc<str>>) -> Option<Rc<str>> {
        let memberships = &mut self.connections.get_mut(key)?.memberships;
        let known = memberships.name(None);
        if user_id.is_none() && planted(Bug::NameForgotten) {
            return None;
        }
        let Some(new) = user_id.filter(|new| known.as_ref() != Some(new)) else { return known };
        if let Some(known) = known {
            self.users.remove(self.ends.homes.hash(&known), key.slot());
        }
        self.users.insert(self.ends.homes.hash(&new), key.slot());
        memberships.name(Some(new))
    }

    /// The connection has no user any more. Must be done before its slot is freed.
    pub(super) fn forget_user(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(user_id) = connection.memberships.name(None) {
            self.users.remove(self.ends.homes.hash(&user_id), key.slot());
        }
    }

    /// `direct` of the native protocol.
    pub(super) fn direct_native(
        &mut self,
        key: Key,
        user_id: &str,
        content: &str,
        id: Option<&str>,
    ) -> Result<(), ErrorCode> {
        let Some(connection) = self.connections.get_mut(key) else { return Ok(()) };
        let sender = connection.memberships.name(None);
        let sender = sender.as_deref().unwrap_or(native::ANONYMOUS);
        let mut payload = BytesMut::new();
        native::direct(sender, content, &mut payload);
        let mut frame = BytesMut::new();
        encode_frame(Opcode::Text, &payload, &mut frame);
        let ack = id.map(|id| Ack { connection: key, id: Bytes::copy_from_slice(id.as_bytes()) });
        let direct = Direct {
            user_id: user_id.into(),
            frame: frame.freeze(),
            ack,
            delivered: AtomicUsize::new(0),
            left: AtomicUsize::new(self.rung.len()),
        };
        self.metrics.directs.add(1);
        self.send_direct(key, 0, &Arc::new(direct));
        Ok(())
    }

    /// Sends a direct message to the shards from the one with that index on; if a mailbox is full
    /// the connection waits with it.
    pub(super) fn send_direct(&mut self, key: Key, from: usize, direct: &Arc<Direct>) {
        for shard in (from..self.rung.len()).map(ShardId::from) {
            if let Err(request) = self.request(shard, Request::Direct(Arc::clone(direct))) {
                return self.stall(key, Stalled { shard, request, room: None });
            }
        }
    }

    /// Hands a direct message to the user's connections here. Returns what its origin is told, if
    /// this was the last shard.
    pub(super) fn deliver_direct(&mut self, direct: Arc<Direct>) -> Option<Delivery> {
        let slots = self.users.slots(self.ends.homes.hash(&direct.user_id));
        let keys: Vec<Key> = slots.filter_map(|slot| self.connections.key_at(slot)).collect();
        let delivered = keys.into_iter().filter(|&key| self.hand_over(key, &direct)).count();
        self.metrics.directs_delivered.add(delivered as u64);
        self.directed += DIRECT_BYTES_MIN + delivered * direct.frame.len();
        direct.delivered.fetch_add(delivered, Ordering::Relaxed);
        let is_last = direct.left.fetch_sub(1, Ordering::AcqRel) == 1;
        (is_last && direct.ack.is_some()).then_some(Delivery::Directed(direct))
    }

    /// Returns whether the connection gets it: not if it is another user's, or a slow consumer.
    fn hand_over(&mut self, key: Key, direct: &Direct) -> bool {
        let Some(connection) = self.connections.get_mut(key) else { return false };
        let user_id = connection.memberships.name(None);
        // Who came in before tokens were asked for has said by itself who it is.
        let proven = self.limits.verifier.is_none() || self.authority.grant(key).is_some();
        if user_id.as_deref() != Some(&direct.user_id) || !proven || !connection.is_open() {
            return false;
        }
        let waiting = connection.extra.as_ref().map_or(0, |extra| extra.outbox.bytes());
        if (waiting + direct.frame.len()) as u64 > self.limits.policies.default.high_water_mark {
            self.close_slow(key);
            return false;
        }
        self.sent.replies += 1;
        if self.may_send(key) {
            self.send(key, &direct.frame, 0, Source::Outbox(direct.frame.clone()));
        } else {
            self.owe(key, direct.frame.clone());
        }
        true
    }

    /// Whether the next request of `from` is a direct message and has to wait for the next tick:
    /// there it comes first.
    pub(super) fn direct_waits(&mut self, from: ShardId) -> bool {
        let waits = self.directed >= DIRECT_BYTES_PER_TICK
            && matches!(self.ends.requests.peek(from), Some(Request::Direct(_)));
        if waits && self.direct_lane == 0 {
            self.direct_lane = from.index();
        }
        waits
    }

    /// Every shard has seen a direct message: tells its sender, if that is there.
    pub(super) fn acknowledge_direct(&mut self, direct: &Direct) {
        let Some(ack) = &direct.ack else { return };
        if self.connections.get(ack.connection).is_some_and(|connection| connection.is_open()) {
            let id = std::str::from_utf8(&ack.id).expect("an id is a part of valid JSON");
            let delivered = direct.delivered.load(Ordering::Relaxed);
            self.reply_native(|out| native::ack_direct(id, delivered, out));
            self.queue_replies(ack.connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn knows_the_connections_of_a_hash_and_no_other() {
        let mut users = Users::default();
        let mut model = BTreeSet::new();
        let mut state = 1_u64;
        for _ in 0..50_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (hash, slot) = ((state >> 33) as u32 % 200, (state >> 45) as u32 % 500);
            // One hash per slot, as a connection has one user.
            let hash = hash - hash % 10 + slot % 10;
            if state >> 63 == 0 {
                users.remove(hash, slot);
                model.remove(&(hash, slot));
            } else if model.insert((hash, slot)) {
                users.insert(hash, slot);
            }
            assert_eq!(users.len(), model.len());
        }
        for hash in 0..200 {
            let slots: BTreeSet<u32> = users.slots(hash).collect();
            let expected = model.range((hash, 0)..=(hash, u32::MAX)).map(|&(_, slot)| slot);
            assert_eq!(slots, expected.collect());
        }
    }

    #[test]
    fn one_user_has_so_many_connections_and_no_more() {
        let mut users = Users::default();
        (0..2000).for_each(|slot| users.insert(7, slot));
        users.insert(8, 5000);
        assert_eq!((users.len(), users.slots(7).count()), (USER_CONNECTIONS_MAX + 1, 1024));
        (0..2000).for_each(|slot| users.remove(7, slot));
        assert_eq!(users.slots(8).collect::<Vec<_>>(), [5000]);
        users.remove(8, 5000);
        assert_eq!(users.0.capacity(), 0, "it keeps nothing");
    }
}
