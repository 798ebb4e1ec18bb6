//! The slow readers of one thread: when they may read, and what became of them.
//!
//! They all read a little ten times a second, or never. Once the server has ended one (its FIN or
//! RST is here), it reads all that is left, to learn why: a close frame may be at the end.

use crate::failure::Failures;
use crate::plan::Plan;
use crate::scenario::Place;

/// Readings per second.
const READINGS: u32 = 10;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct SlowReaders {
    /// Their indexes in the thread.
    pub indexes: Vec<u32>,
    /// How they ended, of those that did while they were needed.
    pub ended: Failures,
    reading_bytes: usize,
    next_ns: u64,
}

impl SlowReaders {
    /// Those among the `connections` connections of thread `place`.
    #[must_use]
    pub fn new(plan: &Plan, place: Place, connections: u32) -> Self {
        let Some(slow) = plan.slow else { return Self::default() };
        let indexes = (0..connections).filter(|&index| slow.has(place.number(index))).collect();
        let reading_bytes = slow.bytes_per_second.div_ceil(READINGS) as usize;
        Self { indexes, reading_bytes, ..Self::default() }
    }

    /// Whether a round of readings is due at `now`.
    pub fn is_due(&mut self, now: u64) -> bool {
        let due = self.next().is_some_and(|at| at <= now);
        if due {
            self.next_ns = now + 1_000_000_000 / u64::from(READINGS);
        }
        due
    }

    /// When the next round is due.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        (self.reading_bytes > 0 && !self.indexes.is_empty()).then_some(self.next_ns)
    }

    /// Bytes of one reading; 0: they never read.
    #[must_use]
    pub fn reading_bytes(&self) -> usize {
        self.reading_bytes
    }
}
