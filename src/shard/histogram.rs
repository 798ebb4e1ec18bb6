//! How often which times were seen: a histogram with one writer and any number of readers.
//!
//! Buckets are spaced by their logarithm: [`STEPS`] of equal width in every doubling from
//! [`SHORTEST_LOG2`] to [`LONGEST_LOG2`], and one at either end. So a time costs a few
//! instructions to count, whatever it is, and comes back from a quantile within an eighth of its
//! value. Counts only grow: what happened in a while is the difference of two [`Counts`].
//!
//! Source: Tene, HdrHistogram, with less precision and thus less memory (848 bytes).

use std::ops::Sub;
use std::time::Duration;

use super::metrics::Counter;

/// Shorter times than 2^10 ns, a microsecond, are all in the first bucket.
const SHORTEST_LOG2: u32 = 10;
/// Longer times than 2^36 ns, some 69 s, are all in the last bucket.
const LONGEST_LOG2: u32 = 36;
/// Buckets per doubling; a power of two.
const STEPS: usize = 4;
const BUCKETS: usize = (LONGEST_LOG2 - SHORTEST_LOG2) as usize * STEPS + 2;

/// See the module documentation.
#[derive(Debug)]
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    sum_ns: Counter,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [const { Counter::new() }; BUCKETS], sum_ns: Counter::new() }
    }
}

impl Histogram {
    /// Counts one time. Only for the thread that owns the histogram.
    pub fn record(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)].add(1);
        self.sum_ns.add(ns);
    }

    /// What was counted until now, or a moment ago.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { sum_ns: self.sum_ns.value(), ..Counts::default() };
        for (count, bucket) in counts.buckets.iter_mut().zip(&self.buckets) {
            *count = bucket.value();
        }
        counts
    }
}

/// How often which times were seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    buckets: [u64; BUCKETS],
    sum_ns: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], sum_ns: 0 }
    }
}

impl Counts {
    /// How many times were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together, in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// The time that a share of `quantile` (0 to 1) did not exceed, within the width of its bucket;
    /// the upper end of the last bucket with anything in it for 1; `None` when there is nothing.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let rank = (quantile * total as f64).clamp(f64::MIN_POSITIVE, total as f64);
        let mut below = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            if count > 0 && (below + count) as f64 >= rank {
                let share = (rank - below as f64) / count as f64;
                let (from, to) = (lower_ns(index) as f64, lower_ns(index + 1) as f64);
                return Some(Duration::from_nanos((from + (to - from) * share) as u64));
            }
            below += count;
        }
        unreachable!("the counts of all buckets reach the total");
    }

    /// How many of them were at most so long, for each of `bounds`, which are `2^n` ns and in
    /// ascending order: what an exporter of cumulative buckets wants.
    pub fn at_most_log2(&self, bounds: impl IntoIterator<Item = u32>) -> impl Iterator<Item = u64> {
        bounds.into_iter().map(|log2| {
            let end = bucket(1 << log2.clamp(SHORTEST_LOG2, LONGEST_LOG2));
            self.buckets[..end].iter().sum()
        })
    }

    /// Adds what another histogram has counted.
    pub fn merge(&mut self, other: &Counts) {
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += more;
        }
        self.sum_ns += other.sum_ns;
    }
}

impl Sub<&Counts> for &Counts {
    type Output = Counts;

    /// What was counted since `earlier`, an earlier reading of the same.
    fn sub(self, earlier: &Counts) -> Counts {
        let mut counts = self.clone();
        for (count, less) in counts.buckets.iter_mut().zip(&earlier.buckets) {
            *count = count.saturating_sub(*less);
        }
        counts.sum_ns = counts.sum_ns.saturating_sub(earlier.sum_ns);
        counts
    }
}

/// In which bucket so many nanoseconds are.
const fn bucket(ns: u64) -> usize {
    let log2 = match ns.checked_ilog2() {
        Some(log2) if log2 >= SHORTEST_LOG2 => log2,
        _ => return 0,
    };
    if log2 >= LONGEST_LOG2 {
        return BUCKETS - 1;
    }
    let step = ns >> (log2 - STEPS.ilog2()) & (STEPS as u64 - 1);
    1 + (log2 - SHORTEST_LOG2) as usize * STEPS + step as usize
}

/// The shortest time in a bucket, in nanoseconds; for the one after the last, twice that of it.
const fn lower_ns(bucket: usize) -> u64 {
    match bucket {
        0 => 0,
        bucket if bucket >= BUCKETS => 1 << (LONGEST_LOG2 + 1),
        bucket => {
            let log2 = SHORTEST_LOG2 as usize + (bucket - 1) / STEPS;
            ((STEPS + (bucket - 1) % STEPS) as u64) << (log2 - STEPS.ilog2() as usize)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_the_bucket_that_it_belongs_to() {
        for index in 0..BUCKETS {
            let (from, to) = (lower_ns(index), lower_ns(index + 1));
            assert!(from < to, "bucket {index}");
            assert_eq!((bucket(from), bucket(to - 1)), (index, index), "{from}..{to}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let histogram = Histogram::default();
        assert_eq!(histogram.counts().quantile(0.5), None);
        let times: Vec<_> = (1..=10_000).map(|n| Duration::from_micros(n * n / 100)).collect();
        times.iter().for_each(|&time| histogram.record(time));
        let counts = histogram.counts();
        assert_eq!(counts.total(), 10_000);
        let sum: Duration = times.iter().sum();
        assert!((counts.sum_seconds() - sum.as_secs_f64()).abs() < 1e-6);
        for quantile in [0.1, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let truth = times[(quantile * 10_000.0) as usize - 1].as_secs_f64();
            let found = counts.quantile(quantile).expect("there are some").as_secs_f64();
            assert!((0.8..=1.25).contains(&(found / truth)), "{quantile}: {found} for {truth}");
        }
    }

    #[test]
    fn a_while_is_the_difference_of_two_readings() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_millis(1));
        let before = histogram.counts();
        [0, 3, 3_000_000].map(Duration::from_millis).iter().for_each(|&it| histogram.record(it));
        let while_ = &histogram.counts() - &before;
        assert_eq!((while_.total(), while_.sum_seconds()), (3, 3000.003));
        // Of 0 s, 3 ms and 50 min: 2^21 ns are 2.1 ms, 2^22 ns 4.2 ms.
        assert_eq!(while_.at_most_log2([0, 21, 22, 36]).collect::<Vec<_>>(), [1, 1, 2, 2]);
        let mut both = before.clone();
        both.merge(&while_);
        assert_eq!(both, histogram.counts());
    }
}
