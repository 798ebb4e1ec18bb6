//! What a shard counts. One writer per counter, any number of readers.
//!
//! The shard adds with a relaxed load and store (no locked instruction, nothing shared on the
//! way); readers on other threads see a value that is at most a moment old.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Shard;
use super::closing::Reason;
use super::ending::{ENDINGS, endings};
use super::histogram::Histogram;
use crate::auth::TokenError;
use crate::dialect::native::ErrorCode;
use crate::io::Io;
use crate::protocol::HandshakeError;

/// A number that one thread writes.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Zero.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

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
///
/// What is called "now" is what the shard's tables held at the end of its last tick.
#[derive(Debug)]
#[repr(align(128))]
pub struct ShardMetrics {
    /// Connections now, in whatever phase.
    pub connections: Counter,
    /// Opening handshakes under way now.
    pub handshakes: Counter,
    /// Open WebSocket connections now.
    pub open: Counter,
    /// Rooms now whose home is here.
    pub rooms: Counter,
    /// Members of rooms now; a connection is one in each of its rooms.
    pub members: Counter,
    /// Messages of other threads, and its own, that a tick left in the mailboxes.
    pub mailbox_depth: Counter,
    /// How far the sweep that is furthest behind, of those of the last tick, has still to go, in
    /// bytes.
    pub sweep_lag: Counter,
    /// Memory for messages of which only a part has arrived, in bytes.
    pub partial_bytes: Counter,
    /// Segments that wait to be used again.
    pub segments: Counter,
    /// Receive buffers made so far.
    pub receive_buffers: Counter,

    /// How often the completion queue was full.
    pub ring_overflows: Counter,
    /// Connections accepted.
    pub accepted: Counter,
    /// Opening handshakes answered with 101.
    pub opened: Counter,
    /// Opening handshakes refused, by error.
    pub refused: [Counter; HandshakeError::ALL.len()],
    /// Requests answered with the page.
    pub answered: Counter,
    /// Connections that ended before their opening handshake was over.
    pub abandoned: Counter,
    /// Ends of open connections; [`ShardMetrics::disconnects`] names them.
    pub(super) disconnects: [Counter; ENDINGS],
    /// From accept to the 101.
    pub handshake_time: Histogram,
    /// Tokens that were refused, at a handshake or on an open connection, by [`TokenError`].
    pub tokens_refused: [Counter; TokenError::ALL.len()],
    /// Joins and publishes that a token did not allow.
    pub forbidden: Counter,
    /// Native requests that were answered with an error, by [`ErrorCode`].
    pub errors: [Counter; ErrorCode::ALL.len()],
    /// Messages received.
    pub messages: Counter,
    /// Publishes numbered here, as the home of their room.
    pub published: Counter,
    /// Messages of rooms that were sent to members: one per message and member.
    pub deliveries: Counter,
    /// Other messages sent: answers, acknowledgements, echoes, notices.
    pub replies: Counter,
    /// Bytes received.
    pub bytes_received: Counter,
    /// Bytes sent, as the sockets took them.
    pub bytes_sent: Counter,
    /// From the numbering of a publish, the oldest that a sweep carries, to the end of that sweep:
    /// every member that takes its messages has been sent them. One per sweep.
    pub publish_time: Histogram,
    /// Sends to members; one send may carry many messages.
    pub sends: Counter,
    /// Sends that found the socket full.
    pub sends_short: Counter,
    /// Messages that slow members were not sent because they went on with the newest one: one per
    /// message and member.
    pub skipped_to_newest: Counter,
    /// The same for members that lost their oldest messages.
    pub dropped_oldest: Counter,
    /// Direct messages handed in.
    pub directs: Counter,
    /// Connections that were handed a direct message: one per message and connection.
    pub directs_delivered: Counter,

    /// Pings sent to see whether a peer is there.
    pub pings_sent: Counter,
    /// Pongs received.
    pub pongs: Counter,

    /// The length of ticks, the sends they make included, waiting not.
    pub tick_time: Histogram,
}

impl Default for ShardMetrics {
    fn default() -> Self {
        Self {
            connections: Counter::new(),
            handshakes: Counter::new(),
            open: Counter::new(),
            rooms: Counter::new(),
            members: Counter::new(),
            mailbox_depth: Counter::new(),
            sweep_lag: Counter::new(),
            partial_bytes: Counter::new(),
            segments: Counter::new(),
            receive_buffers: Counter::new(),
            ring_overflows: Counter::new(),
            accepted: Counter::new(),
            opened: Counter::new(),
            refused: [const { Counter::new() }; HandshakeError::ALL.len()],
            answered: Counter::new(),
            abandoned: Counter::new(),
            disconnects: [const { Counter::new() }; ENDINGS],
            handshake_time: Histogram::default(),
            tokens_refused: [const { Counter::new() }; TokenError::ALL.len()],
            forbidden: Counter::new(),
            errors: [const { Counter::new() }; ErrorCode::ALL.len()],
            messages: Counter::new(),
            published: Counter::new(),
            deliveries: Counter::new(),
            replies: Counter::new(),
            bytes_received: Counter::new(),
            bytes_sent: Counter::new(),
            publish_time: Histogram::default(),
            sends: Counter::new(),
            sends_short: Counter::new(),
            skipped_to_newest: Counter::new(),
            dropped_oldest: Counter::new(),
            directs: Counter::new(),
            directs_delivered: Counter::new(),
            pings_sent: Counter::new(),
            pongs: Counter::new(),
            tick_time: Histogram::default(),
        }
    }
}

impl ShardMetrics {
    /// Opening handshakes answered with an error.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.iter().map(Counter::value).sum()
    }

    /// Open connections that ended.
    #[must_use]
    pub fn closed(&self) -> u64 {
        self.disconnects.iter().map(Counter::value).sum()
    }

    /// Connections closed because they did not keep up.
    #[must_use]
    pub fn slow_consumers(&self) -> u64 {
        self.ended(Reason::SlowConsumer)
    }

    /// Connections cut because no sign of life followed a ping.
    #[must_use]
    pub fn pong_timeouts(&self) -> u64 {
        self.ended(Reason::PongTimeout)
    }

    /// Connections closed because the server drains.
    #[must_use]
    pub fn drained(&self) -> u64 {
        self.ended(Reason::Drain)
    }

    fn ended(&self, reason: Reason) -> u64 {
        reason.ending().map_or(0, |ending| self.disconnects[ending].value())
    }

    /// Messages sent, of whatever kind.
    #[must_use]
    pub fn messages_sent(&self) -> u64 {
        self.deliveries.value() + self.replies.value()
    }

    /// How often open connections ended for which reason and with which close code, as labels.
    pub fn disconnects(&self) -> impl Iterator<Item = (&'static str, String, u64)> {
        let counts = self.disconnects.iter().map(Counter::value);
        endings().zip(counts).map(|((reason, code), count)| (reason, code, count))
    }
}

/// What was sent since it was counted last. Negative where sockets gave back, when they were full,
/// more than was sent since: that is sent again, and must not be counted twice.
#[derive(Debug, Default)]
pub(super) struct Sent {
    pub(super) deliveries: i64,
    pub(super) replies: u64,
    pub(super) bytes: i64,
}

impl Sent {
    /// Counts what may be counted: counters never go down. What was given back stays.
    pub(super) fn count(&mut self, metrics: &ShardMetrics) {
        metrics.deliveries.add(take_positive(&mut self.deliveries));
        metrics.replies.add(mem::take(&mut self.replies));
        metrics.bytes_sent.add(take_positive(&mut self.bytes));
    }
}

fn take_positive(number: &mut i64) -> u64 {
    let positive = (*number).max(0);
    *number -= positive;
    positive.cast_unsigned()
}

impl<I: Io> Shard<I> {
    /// Brings up to date what the metrics say about now.
    pub(super) fn report(&mut self) {
        self.sent.count(&self.metrics);
        let metrics = &self.metrics;
        metrics.connections.set(self.connections.len() as u64);
        metrics.handshakes.set(self.phases.handshakes() as u64);
        metrics.open.set(self.phases.open() as u64);
        metrics.rooms.set(self.home.len() as u64);
        metrics.members.set(self.members as u64);
        metrics.mailbox_depth.set(self.ends.depth() as u64);
        metrics.sweep_lag.set(self.sweep_lag);
        metrics.partial_bytes.set(self.budget.used() as u64);
        metrics.segments.set((self.segments.retired() + self.home.segments_retired()) as u64);
        let pressure = self.io.pressure();
        metrics.receive_buffers.set(pressure.receive_buffers as u64);
        metrics.ring_overflows.set(pressure.overflows);
    }

    /// The tick that began at `now` has done its work, and its sweeps have sent what they send, at
    /// `end`.
    pub(super) fn time_tick(&mut self, now: Instant, end: Instant) {
        self.metrics.tick_time.record(end.saturating_duration_since(now));
        for since in self.finished.drain(..) {
            self.metrics.publish_time.record(end.saturating_duration_since(since));
        }
    }
}
