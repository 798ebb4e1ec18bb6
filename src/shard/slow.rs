//! Slow consumers: what becomes of members that are further behind than their room allows.
//!
//! A sweep notices, and does nothing but remember it: that costs it no look at the connection. A
//! member that skips messages skips them at the moment when it can be sent something again, so that
//! it goes on with what is best then, and what it missed is one range however long it was away. A
//! member whose room disconnects slow consumers goes when a sweep notices it, or when it comes back
//! too late.

use std::mem;
use std::ops::Range;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::closing::Reason;
use super::connection::Connection;
use super::output::{Noticed, Source};
use super::{POLICIES_PER_TICK, Shard};
use crate::config::SlowConsumer;
use crate::dialect::Endpoint;
use crate::dialect::native;
use crate::io::Io;
use crate::planted::{Bug, planted};
use crate::protocol::{CloseCode, Opcode, encode_frame};
use crate::slab::Key;

impl<I: Io> Shard<I> {
    /// Gives some more rooms the policy that the limits say, if these have changed.
    pub(super) fn renew_policies(&mut self) {
        let slots = self.policies_due..self.rooms.slots();
        for slot in slots.take(POLICIES_PER_TICK) {
            self.policies_due = slot + 1;
            if let Some(key) = self.rooms.key_at(slot)
                && let Some(room) = self.rooms.get_mut(key)
            {
                room.set_policy(self.limits.policies.of(&room.name.name));
                self.activate(key);
            }
        }
    }

    /// Remembers a room whose sweep has nothing to do when what it keeps will be too old. Only what
    /// members wait for whose sockets are full is kept that long.
    pub(super) fn await_age(&mut self, room_key: Key) {
        let now = self.io.now();
        if let Some(room) = self.rooms.get_mut(room_key)
            && let Some(at) = room.ages_at(now)
        {
            if !mem::replace(&mut room.ages, true) {
                self.aging.push(room_key);
            }
            // Sooner than thought before, if the policy is another one by now.
            self.ages_at = Some(self.ages_at.map_or(at, |before| before.min(at)));
        }
    }

    /// Sweeps the rooms in which messages may be too old by now, whether or not any more come: slow
    /// consumers are found, and what nobody may have any more goes.
    pub(super) fn age_rooms(&mut self, now: Instant) {
        if self.ages_at.is_none_or(|at| at > now) {
            return;
        }
        self.ages_at = None;
        for room_key in mem::take(&mut self.aging) {
            if let Some(room) = self.rooms.get_mut(room_key) {
                room.ages = false;
                room.age();
                self.activate(room_key);
            }
        }
    }

    /// Closes the connections that sweeps found too slow.
    pub(super) fn close_too_slow(&mut self, slots: Vec<u32>) {
        for slot in slots {
            // It may be too slow in several rooms; one close is all it gets. One that has just been
            // sent something is catching up, and will find out by itself.
            if let Some(key) = self.connections.key_at(slot)
                && let Some(connection) = self.connections.get(key)
                && connection.is_open()
                && connection.sent_tick != self.tick
            {
                self.close_slow(key);
            }
        }
    }

    /// Closes a connection that is too slow for one of its rooms.
    pub(super) fn close_slow(&mut self, key: Key) {
        let words = "slow consumer: further behind than its room allows";
        self.close(key, CloseCode::TRY_AGAIN_LATER, words, Reason::SlowConsumer);
    }

    /// Lets the member skip what its room does not keep for it. Returns the frame that tells it so,
    /// to be sent before the next message of that room; empty if it skips nothing, or if its
    /// dialect has no words for it.
    pub(super) fn skip(&mut self, key: Key, room_key: Key, index: u32) -> Bytes {
        let skipped = self.count_skipped(room_key, index);
        let native = |it: &Connection| it.endpoint == Endpoint::Native;
        let mut notice = BytesMut::new();
        if !skipped.is_empty()
            && !planted(Bug::SkippedSilently)
            && self.connections.get(key).is_some_and(native)
            && let Some(room) = self.rooms.get(room_key)
        {
            let mut payload = BytesMut::new();
            native::skipped(&room.name.name, skipped.start, skipped.end - 1, &mut payload);
            self.sent.replies += 1;
            encode_frame(Opcode::Text, &payload, &mut notice);
        }
        notice.freeze()
    }

    /// Sends the notice and the messages behind it as one. Apart, a member that goes on with the
    /// oldest messages could be overtaken again in between, and hear of nothing but notices.
    pub(super) fn send_noticed(&mut self, key: Key, messages: &[u8], noticed: Noticed) {
        let mut bytes = BytesMut::with_capacity(noticed.notice.len() + messages.len());
        bytes.put_slice(&noticed.notice);
        bytes.put_slice(messages);
        self.send(key, &bytes.freeze(), 0, Source::Noticed(Box::new(noticed)));
    }

    /// Lets the member skip and counts what it is not sent; for one that ends, too. Returns the
    /// offsets.
    pub(super) fn count_skipped(&mut self, room_key: Key, index: u32) -> Range<u64> {
        let now = self.io.now();
        let Some(room) = self.rooms.get_mut(room_key) else { return 0..0 };
        let skipped = room.skip(index, now);
        let count = skipped.end - skipped.start;
        match room.policy.slow_consumer {
            SlowConsumer::SkipToNewest => self.metrics.skipped_to_newest.add(count),
            SlowConsumer::DropOldest | SlowConsumer::Disconnect => {
                self.metrics.dropped_oldest.add(count)
            }
        }
        skipped
    }
}
