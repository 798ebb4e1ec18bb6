//! What a shard counts. One writer per counter, any number of readers.
//!
//! The shard adds with a relaxed load and store (no locked instruction, nothing shared on the
//! way); readers on other threads see a value that is at most a moment old.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread writes.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only for the thread that owns the counter.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets it to `n`. Only for the thread that owns the counter.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The value now, or a moment ago.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The counters of one shard.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardMetrics {
    /// Connections now, in whatever phase.
    pub connections: Counter,
    /// Connections accepted.
    pub accepted: Counter,
    /// Opening handshakes answered with 101.
    pub opened: Counter,
    /// Opening handshakes answered with an error.
    pub refused: Counter,
    /// Messages received.
    pub messages: Counter,
    /// Publishes numbered here, as the home of their room.
    pub published: Counter,
    /// Sends to members; one send may carry many messages.
    pub sends: Counter,
    /// Sends that found the socket full.
    pub sends_short: Counter,
    /// Connections closed because they did not keep up.
    pub slow_consumers: Counter,
    /// Messages that slow members were not sent because they went on with the newest one: one per
    /// message and member.
    pub skipped_to_newest: Counter,
    /// The same for members that lost their oldest messages.
    pub dropped_oldest: Counter,
    /// Pings sent to see whether a peer is there.
    pub pings_sent: Counter,
    /// Pongs received.
    pub pongs: Counter,
    /// Connections cut because no sign of life followed a ping.
    pub pong_timeouts: Counter,
}
