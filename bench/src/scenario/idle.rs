//! `idle`: holds connections and asks nothing of them but, if wanted, pongs.
//!
//! Pings are spread evenly over the interval: ping number `k` is due at `k / connections`
//! intervals after the start and goes to connection `k % connections`. One counter is all the
//! state there is. The round trip counts from the time the ping was due.

use std::sync::Arc;
use std::time::Duration;

use super::{Outbox, Outcome, Place, Script};
use crate::measure::Latency;
use crate::shared::{Counters, Shared, Stage, add};

/// See the module documentation.
#[derive(Debug)]
pub struct Idle {
    shared: Arc<Shared>,
    place: Place,
    /// Between two pings of the same connection; `None`: none are sent.
    ping_interval: Option<Duration>,
    ready: Vec<bool>,
    started: Option<u64>,
    /// Pings that were due so far.
    due: u64,
    latency: Latency,
}

impl Idle {
    /// The script of thread `place` with `connections` connections of its own.
    #[must_use]
    pub fn new(
        ping_interval: Option<Duration>,
        shared: Arc<Shared>,
        place: Place,
        connections: usize,
    ) -> Self {
        // Nothing per connection where nothing is sent.
        let ready = vec![false; if ping_interval.is_some() { connections } else { 0 }];
        let latency = Latency::default();
        Self { shared, place, ping_interval, ready, started: None, due: 0, latency }
    }

    fn counters(&self) -> &Counters {
        &self.shared.workers[self.place.thread as usize].counters
    }

    fn set_ready(&mut self, connection: u32, is_ready: bool) {
        if let Some(ready) = self.ready.get_mut(connection as usize) {
            *ready = is_ready;
        }
    }
}

impl Script for Idle {
    fn ready(&mut self, connection: u32) {
        self.set_ready(connection, true);
    }

    fn gone(&mut self, connection: u32) {
        self.set_ready(connection, false);
    }

    fn enter(&mut self, stage: Stage, now: u64, _outbox: &mut Outbox) {
        self.started = (stage == Stage::Running).then_some(now);
    }

    fn message(&mut self, _connection: u32, _payload: &[u8], _now: u64) {}

    fn pong(&mut self, _connection: u32, payload: &[u8], now: u64) {
        let Ok(due) = payload.try_into().map(u64::from_be_bytes) else { return };
        add(&self.counters().pongs_received, 1);
        let latency = now.saturating_sub(due);
        self.counters().worst(latency);
        self.latency.record(latency);
    }

    fn act(&mut self, now: u64, outbox: &mut Outbox) -> Option<u64> {
        let (started, interval) = (self.started?, self.ping_interval?);
        let len = self.ready.len() as u64;
        loop {
            let spread = interval.as_nanos() * u128::from(self.due) / u128::from(len.max(1));
            let due = started + spread as u64;
            if due > now || len == 0 {
                return Some(due);
            }
            let index = self.due % len;
            self.due += 1;
            if self.ready[index as usize] {
                outbox.ping(index as u32, due.to_be_bytes());
                add(&self.counters().pings_sent, 1);
            }
        }
    }

    fn finish(self: Box<Self>) -> Outcome {
        Outcome { latency: self.latency, ..Outcome::default() }
    }
}
