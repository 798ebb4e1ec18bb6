//! Drain: closes every connection, at an even pace, and ends the shard.
//!
//! ```text
//!  told to ──▶ listeners close ──▶ native clients hear of it ──▶ steps ──▶ nobody is left ──▶ end
//!                                                              ┌───┐ ▲
//!                     ask the rooms' homes ─▶ all have answered │   │ │ rest
//!                                                  close some ──▼───┴─┘
//! ```
//!
//! *How fast.* `drain_rate` connections are closed per second, over all shards; a shard's share is
//! that of its connections, so that all are done at the same time. They come back elsewhere at that
//! rate, and not all at once: a native client is told how long to wait once it is closed, each
//! another time, spread evenly over as long as closing all of them takes. Whoever has not left by
//! `drain_timeout` is cut.
//!
//! *What they get.* All that was published before: a step begins with a question to the home of
//! every room, and the answers come behind everything that was numbered before the question. Right
//! before it closes somebody, a shard takes in all that it has been handed since; and publishes are
//! acknowledged when every shard has been handed them. So who has heard of its publish before
//! another member is closed can rely on that one having got it. A home that does not answer in half
//! of `drain_timeout`, and not within [`PATIENCE`] either, is behind by more than can be waited
//! for.
//!
//! A shard without connections stays as long as others have some: it may be the home of their
//! rooms.

use std::time::{Duration, Instant};

use super::closing::Reason;
use super::connection::{Connection, Phase};
use super::message::{Delivery, Request};
use super::{DRAINED_PER_TICK, Shard};
use crate::dialect::{Endpoint, native};
use crate::id::ShardId;
use crate::io::{Io, Operation};
use crate::planted::{Bug, planted};
use crate::protocol::{CloseCode, HandshakeError};
use crate::slab::Key;

/// Connections that are closed per second, at least, where the settings leave it open: fewer need
/// no sparing.
pub const RATE_MIN: f64 = 1000.0;

/// The shortest time over which clients come back.
const WINDOW_MIN: Duration = Duration::from_secs(1);

/// The time between two steps, and as much more for each shard that has to be asked.
const STEP: Duration = Duration::from_millis(10);
const STEP_PER_SHARD: Duration = Duration::from_millis(1);

/// How long a step waits for answers, at least.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many connections per second a server closes that has so many, over all shards.
#[must_use]
pub fn rate(drain_rate: Option<u32>, drain_timeout: Duration, connections: usize) -> f64 {
    let in_half = connections as f64 / (drain_timeout.as_secs_f64() / 2.0);
    drain_rate.map_or(in_half.max(RATE_MIN), f64::from)
}

/// A shard that drains. See the module documentation.
#[derive(Debug)]
pub(super) struct Drain {
    /// When it ends, whoever is left.
    until: Instant,
    /// Until then a step waits for answers, however long that takes.
    patient_until: Instant,
    /// Connections to close per second, here.
    rate: f64,
    /// Over how long those that are closed come back.
    window: Duration,
    /// The next slot whose connection is to be told, and the next one to be closed.
    told: u32,
    next: u32,
    /// When the first one was closed, and how many have been.
    since: Option<Instant>,
    closed: u64,
    /// Counts the steps: an answer to an earlier one counts no more.
    step: u32,
    turn: Turn,
}

/// Where a step stands.
#[derive(Debug)]
enum Turn {
    /// So many homes have not answered.
    Asks { left: usize, give_up_at: Instant },
    /// Some may be closed, once all is taken in that was handed over, or no later than this.
    Closes { give_up_at: Instant },
    /// None may be closed before.
    Rests { until: Instant },
}

impl Drain {
    /// How many more may be closed by now.
    fn allowance(&mut self, now: Instant) -> u64 {
        let since = *self.since.get_or_insert(now);
        let due = 1 + ((now - since).as_secs_f64() * self.rate) as u64;
        due - self.closed
    }

    /// When the next one may be closed.
    fn next_due(&self, now: Instant) -> Instant {
        let after = Duration::try_from_secs_f64(self.closed as f64 / self.rate);
        // What is too far away is behind the end in any case.
        self.since.unwrap_or(now) + after.unwrap_or(Duration::MAX).min(self.until - now)
    }
}

impl<I: Io> Shard<I> {
    /// Closes the listeners and begins to close the connections.
    pub(super) fn begin_drain(&mut self, now: Instant) {
        if self.drain.is_some() {
            return;
        }
        for listener in 0..self.accepts.len() {
            self.io.submit(Operation::CloseListener { listener });
        }
        self.accept_at = None;
        let own = self.connections.len();
        let all = self.ends.census.count().max(own).max(1);
        let rate = rate(self.limits.drain_rate, self.limits.drain_timeout, all);
        self.drain = Some(Drain {
            until: now + self.limits.drain_timeout,
            patient_until: now + self.limits.drain_timeout / 2,
            rate: rate * own.max(1) as f64 / all as f64,
            window: Duration::from_secs_f64(all as f64 / rate).max(WINDOW_MIN),
            told: 0,
            next: 0,
            since: None,
            closed: 0,
            step: 0,
            turn: Turn::Rests { until: now },
        });
        self.refuse_parked();
    }

    /// Tells some more connections of the drain, and goes on with its step.
    pub(super) fn drain_some(&mut self, now: Instant) {
        let slots = self.connections.slots();
        let Some(drain) = &mut self.drain else { return };
        let untold = drain.told..slots.min(drain.told + DRAINED_PER_TICK);
        drain.told = untold.end;
        let window = drain.window;
        for key in untold.filter_map(|slot| self.connections.key_at(slot)).collect::<Vec<_>>() {
            self.tell_of_drain(key, window);
        }
        let Some(drain) = &mut self.drain else { return };
        match drain.turn {
            Turn::Rests { until } if now >= until && drain.next < slots => self.ask_homes(now),
            Turn::Asks { give_up_at, .. } if now >= give_up_at => self.close_some(now),
            Turn::Closes { give_up_at } => {
                let all = planted(Bug::ClosedUnlooked) || self.take_all_deliveries();
                if all || now >= give_up_at {
                    self.close_some(now);
                }
            }
            Turn::Rests { .. } | Turn::Asks { .. } => {}
        }
    }

    /// Says when to come back, and refuses those who have not come in yet.
    fn tell_of_drain(&mut self, key: Key, window: Duration) {
        let Some(connection) = self.connections.get(key) else { return };
        match (connection.phase, connection.endpoint) {
            (Phase::Preface | Phase::Opening | Phase::Joining, _) => {
                self.refuse(key, HandshakeError::Draining);
            }
            (Phase::Open, Endpoint::Native) => {
                let shards = self.ends.homes.shards() as u32;
                let spread = spread(key.slot(), u32::from(self.ends.shard.0), shards);
                let reconnect_in = window.mul_f64(spread).as_millis() as u64;
                self.reply_native(|out| native::draining(reconnect_in, out));
                self.queue_replies(key);
            }
            _ => {}
        }
    }

    /// Begins a step: what the homes have numbered so far is to be here before anybody is closed.
    fn ask_homes(&mut self, now: Instant) {
        let Some(drain) = &mut self.drain else { return };
        drain.step += 1;
        let step = drain.step;
        let patient_until = Some(drain.patient_until).filter(|_| !planted(Bug::ImpatientDrain));
        let give_up_at = patient_until.unwrap_or(now).max(now + PATIENCE);
        drain.turn = Turn::Asks { left: self.rung.len(), give_up_at };
        for home in (0..self.rung.len()).map(ShardId::from) {
            self.link(home, Request::Fence { step });
        }
    }

    /// A home has answered.
    pub(super) fn handle_fence(&mut self, step: u32) {
        let Some(drain) = &mut self.drain else { return };
        if let Turn::Asks { left, give_up_at } = &mut drain.turn
            && drain.step == step
        {
            *left -= 1;
            if *left == 0 {
                drain.turn = Turn::Closes { give_up_at: *give_up_at };
            }
        }
    }

    /// Answers the shards to which everything has been handed that was numbered before they asked.
    pub(super) fn answer_fences(&mut self) {
        let Self { fences, home, ends, rung, .. } = self;
        fences.retain(|&(shard, step)| {
            let answered =
                !home.owes(shard) && ends.deliveries.send(shard, Delivery::Fence { step }).is_ok();
            rung[shard.index()] |= answered;
            !answered
        });
    }

    /// Says goodbye to as many as may go by now.
    fn close_some(&mut self, now: Instant) {
        let Some(drain) = &mut self.drain else { return };
        let allowance = drain.allowance(now);
        let slots = drain.next..drain.told.min(drain.next + DRAINED_PER_TICK);
        let mut keys = Vec::new();
        for slot in slots {
            if keys.len() as u64 == allowance {
                break;
            }
            drain.next = slot + 1;
            let open = |key: &Key| self.connections.get(*key).is_some_and(Connection::is_open);
            keys.extend(self.connections.key_at(slot).filter(open));
        }
        let closed = keys.len() as u64;
        drain.closed += closed;
        drain.turn = if closed < allowance && drain.next < drain.told {
            // The next tick goes on with the step.
            Turn::Closes { give_up_at: drain.patient_until.max(now + PATIENCE) }
        } else {
            let step = STEP.max(STEP_PER_SHARD * self.rung.len() as u32);
            Turn::Rests { until: drain.next_due(now).max(now + step) }
        };
        for key in keys {
            self.close_gracefully(key, CloseCode::GOING_AWAY, "", Reason::Drain);
        }
    }

    /// Whether the shard ends.
    pub(super) fn has_drained(&self, now: Instant) -> bool {
        let Some(drain) = &self.drain else { return false };
        now >= drain.until || (self.connections.is_empty() && self.ends.census.count() == 0)
    }

    /// When [`Shard::drain_some`] or [`Shard::has_drained`] will have something to do.
    pub(super) fn next_drain(&self, now: Instant) -> Option<Instant> {
        let drain = self.drain.as_ref()?;
        let slots = self.connections.slots();
        let next = match drain.turn {
            _ if drain.told < slots => now,
            Turn::Closes { .. } => now,
            Turn::Asks { give_up_at, .. } => give_up_at,
            Turn::Rests { until } if drain.next < slots => until,
            // Others will have closed their last ones at some time.
            Turn::Rests { .. } if self.connections.is_empty() => now + STEP,
            Turn::Rests { .. } => drain.until,
        };
        Some(next.min(drain.until))
    }
}

/// Where in 0..1 the connection in `slot` of a shard comes: neighbours far from each other, and
/// however many there are, spread evenly (the golden ratio's multiples; Knuth, TAOCP 6.4).
fn spread(slot: u32, shard: u32, shards: u32) -> f64 {
    let shift = (u64::from(shard) << 32) / u64::from(shards.max(1));
    let place = slot.wrapping_mul(2_654_435_769).wrapping_add(shift as u32);
    f64::from(place) / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_it_takes_half_of_the_time_and_few_need_no_sparing() {
        let ten = Duration::from_secs(10);
        for (drain_rate, timeout, connections, expected) in [
            (None, ten, 1_000_000, 200_000.0),
            (None, ten, 5_000, 1_000.0),
            (None, ten, 3, RATE_MIN),
            (Some(7), ten, 1_000_000, 7.0),
            (None, Duration::ZERO, 0, RATE_MIN),
        ] {
            assert_eq!(rate(drain_rate, timeout, connections), expected, "{connections}");
        }
        assert!(rate(None, Duration::ZERO, 1) > 1e9, "no time is no pace");
    }

    #[test]
    fn everybody_is_told_another_time_and_all_of_them_are_spread_evenly() {
        for (shards, slots) in [(1, 1000_u32), (4, 250), (7, 3000)] {
            let mut places: Vec<f64> = (0..shards)
                .flat_map(|shard| (0..slots).map(move |slot| spread(slot, shard, shards)))
                .collect();
            places.sort_by(f64::total_cmp);
            let even = 1.0 / places.len() as f64;
            assert!(places[0] >= 0.0 && places[places.len() - 1] < 1.0);
            for pair in places.windows(2) {
                let gap = pair[1] - pair[0];
                assert!(gap > 0.0 && gap < 4.0 * even, "{gap} of {even} with {shards} shards");
            }
        }
    }
}
