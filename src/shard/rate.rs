//! So many per second: the generic cell rate algorithm, in eight bytes for each that is metered.
//!
//! A bucket of `burst` units fills with `per_second` units a second. All that is kept is the time
//! at which it is full again: taking units moves that into the future, and no further than a whole
//! bucket takes to fill. (ITU-T I.371, "GCRA"; virtual scheduling.)
//!
//! Times are nanoseconds since an epoch that all who use a bucket share. A unit's time is rounded
//! down to whole nanoseconds: nobody is refused for less than their rate.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Rate;

/// One bucket; full at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// When it is full again.
    full_at: u64,
}

impl Bucket {
    /// Takes `units` at the time `now`; takes none and returns false if they are not there.
    pub fn take(&mut self, now: u64, units: u64, rate: Rate) -> bool {
        let full_at = full_after(self.full_at, now, units, rate);
        self.full_at = full_at.unwrap_or(self.full_at);
        full_at.is_some()
    }

    /// Whether it is as good as new.
    #[must_use]
    pub const fn is_full(self, now: u64) -> bool {
        self.full_at <= now
    }
}

/// One bucket for several threads.
#[derive(Debug, Default)]
pub struct SharedBucket(AtomicU64);

impl SharedBucket {
    /// As [`Bucket::take`].
    pub fn take(&self, now: u64, units: u64, rate: Rate) -> bool {
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.0.fetch_update(set, fetch, |full_at| full_after(full_at, now, units, rate)).is_ok()
    }
}

/// When the bucket is full again after `units` were taken; `None` if they are not there.
fn full_after(full_at: u64, now: u64, units: u64, rate: Rate) -> Option<u64> {
    let full_at = full_at.max(now).saturating_add(nanoseconds(units, rate));
    let bucket = (rate.burst * SECOND).div_ceil(rate.per_second);
    (full_at - now <= bucket).then_some(full_at)
}

/// How long `units` take to come.
const fn nanoseconds(units: u64, rate: Rate) -> u64 {
    units.saturating_mul(SECOND) / rate.per_second
}

const SECOND: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn rate(per_second: u64, burst: u64) -> Rate {
        Rate { per_second, burst }
    }

    /// The last that is allowed, the first that is not, and when the next is.
    #[test]
    fn a_burst_and_then_one_at_a_time() {
        for (per_second, burst) in [(1, 1), (3, 3), (10, 3), (3, 10), (7, 1000), (1_000_000, 1)] {
            let rate = rate(per_second, burst);
            let now = 5 * SECOND;
            let mut bucket = Bucket::default();
            assert!((0..burst).all(|_| bucket.take(now, 1, rate)), "{rate:?}");
            assert!(!bucket.take(now, 1, rate), "{rate:?}: one too many");
            let next = now + SECOND.div_ceil(per_second);
            assert!(!bucket.take(next - SECOND.div_ceil(per_second) / 2, 1, rate), "{rate:?}");
            assert!(bucket.take(next, 1, rate), "{rate:?}: one more");
            assert!(!bucket.take(next, 1, rate), "{rate:?}: and no more");
            // After a long silence as much as at first, no more.
            let later = next + 1000 * SECOND;
            assert!(bucket.is_full(later) && !bucket.is_full(next));
            assert!(bucket.take(later, burst, rate) && !bucket.take(later, 1, rate));
        }
    }

    #[test]
    fn what_does_not_fit_takes_nothing() {
        let (rate, mut bucket) = (rate(1000, 1000), Bucket::default());
        assert!(!bucket.take(0, 1001, rate));
        assert!(bucket.take(0, 1000, rate));
        assert!(!bucket.take(0, u64::MAX, rate));
    }

    #[test]
    fn all_threads_together_get_what_there_is() {
        let (rate, bucket) = (rate(10, 1000), SharedBucket::default());
        let taken: usize = std::thread::scope(|scope| {
            let take = || (0..1000).filter(|_| bucket.take(0, 1, rate)).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000);
    }

    proptest! {
        /// In any stretch of time no more than a burst and what comes meanwhile, nearly.
        #[test]
        fn never_more_than_the_rate(
            per_second in 1..10_000u64,
            burst in 1..1000u64,
            steps in prop::collection::vec((0..SECOND / 100, 1..20u64), 1..200),
        ) {
            let rate = rate(per_second, burst);
            let (mut bucket, mut now, mut taken) = (Bucket::default(), 0, 0);
            for (wait, units) in steps {
                now += wait;
                if bucket.take(now, units, rate) {
                    taken += units;
                }
                let most = burst + now * per_second / SECOND + 1;
                prop_assert!(taken <= most + taken / 10_000, "{taken} of {most}");
            }
        }
    }
}
