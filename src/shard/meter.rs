//! How fast connections may send: messages and bytes per second, each a bucket per connection.
//!
//! Whoever sends more is closed with 1008, and the reason names the limit. (Rejected: to read more
//! slowly, so that TCP holds the peer back. Its pings and its close would wait behind the rest, so
//! it would look dead to whoever minds the rate, and its messages would come late instead of not at
//! all; every connection that is held back would need a timer. Whoever wants to be slowed down has
//! that already, where it is the server that is slow: what it cannot take in, it does not read.)
//!
//! The buckets are 8 bytes each in tables by slot, which exist only while their limit is set and as
//! far as there are connections that send.

use super::Shard;
use super::rate::Bucket;
use crate::config::Rate;
use crate::io::Io;
use crate::protocol::{Event, ProtocolError};
use crate::slab::Key;

/// The buckets of the connections, by slot.
#[derive(Debug, Default)]
pub(super) struct Meters {
    messages: Buckets,
    bytes: Buckets,
}

impl<I: Io> Shard<I> {
    /// A connection begins to send: whoever had its slot before does not matter.
    pub(super) fn begin_metering(&mut self, key: Key) {
        self.meters.messages.begin(key, self.limits.messages_per_second);
        self.meters.bytes.begin(key, self.limits.bytes_per_second);
    }

    /// Counts what an open connection has sent: `bytes`, and the message or control frame that
    /// they completed. A close is free.
    ///
    /// # Errors
    /// `ByteRate` or `MessageRate` when that is more than it may send.
    pub(super) fn meter(
        &mut self,
        key: Key,
        bytes: usize,
        event: Option<&Event<'_>>,
    ) -> Result<(), ProtocolError> {
        let (messages_max, bytes_max) =
            (self.limits.messages_per_second, self.limits.bytes_per_second);
        if messages_max.is_none() && bytes_max.is_none() {
            return Ok(());
        }
        let now = self.ends.census.nanoseconds(self.io.now());
        if bytes_max.is_some_and(|rate| !self.meters.bytes.take(key, now, bytes as u64, rate)) {
            return Err(ProtocolError::ByteRate);
        }
        let counts = event.is_some_and(|event| !matches!(event, Event::Close(_)));
        let rate = messages_max.filter(|_| counts);
        if rate.is_some_and(|rate| !self.meters.messages.take(key, now, 1, rate)) {
            return Err(ProtocolError::MessageRate);
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Buckets(Vec<Bucket>);

impl Buckets {
    fn begin(&mut self, key: Key, rate: Option<Rate>) {
        if rate.is_none() {
            self.0 = Vec::new();
        } else if let Some(bucket) = self.0.get_mut(key.slot() as usize) {
            *bucket = Bucket::default();
        }
    }

    fn take(&mut self, key: Key, now: u64, units: u64, rate: Rate) -> bool {
        let slot = key.slot() as usize;
        if self.0.len() <= slot {
            self.0.resize(slot + 1, Bucket::default());
        }
        self.0[slot].take(now, units, rate)
    }
}
