//! The clock and the histograms.
//!
//! One clock for all threads: nanoseconds since the Unix epoch at start-up, monotonic from there
//! on, so that a step of the wall clock never shows up as latency. Histograms keep three digits
//! from a microsecond to an hour in constant memory; values are nanoseconds.

use std::fmt::Write;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;

const LOWEST_NS: u64 = 1_000;
const HIGHEST_NS: u64 = 3_600_000_000_000;
/// Lines per halving of the distance to 100 % in the percentile text, as HdrHistogram prints it.
const TICKS_PER_HALF: u32 = 5;

/// See the module documentation. Copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
    origin_ns: u64,
}

impl Clock {
    /// A clock that agrees with the wall clock now.
    #[must_use]
    pub fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { origin: Instant::now(), origin_ns: since_epoch.as_nanos() as u64 }
    }

    /// Nanoseconds since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.origin_ns + self.origin.elapsed().as_nanos() as u64
    }
}

/// Durations in nanoseconds, with their distribution.
#[derive(Debug, Clone)]
pub struct Latency {
    histogram: Histogram<u64>,
}

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(LOWEST_NS, HIGHEST_NS, 3);
        Self { histogram: histogram.expect("constant bounds, tested") }
    }
}

impl Latency {
    /// Counts one value; one beyond an hour counts as an hour.
    pub fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
    }

    /// Adds everything `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("all have the same bounds");
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// The value at quantile `q` (0.0 to 1.0) in nanoseconds; 0 when empty.
    #[must_use]
    pub fn quantile(&self, q: f64) -> u64 {
        if self.count() == 0 { 0 } else { self.histogram.value_at_quantile(q) }
    }

    /// The largest value in nanoseconds; 0 when empty.
    #[must_use]
    pub fn max(&self) -> u64 {
        if self.count() == 0 { 0 } else { self.histogram.max() }
    }

    /// The mean in nanoseconds.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.histogram.mean()
    }

    /// Quantiles and their values in nanoseconds, finer and finer towards 1.
    pub fn points(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.histogram
            .iter_quantiles(TICKS_PER_HALF)
            .map(|point| (point.quantile_iterated_to(), point.value_iterated_to().min(self.max())))
    }

    /// The percentile distribution as HdrHistogram prints it and its plotter reads it, values in
    /// milliseconds.
    #[must_use]
    pub fn to_hgrm(&self) -> String {
        let milliseconds = |ns: f64| ns / 1e6;
        let mut text = format!(
            "{:>12} {:>14} {:>10} {:>14}\n\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        );
        let mut total = 0;
        for point in self.histogram.iter_quantiles(TICKS_PER_HALF) {
            total += point.count_since_last_iteration();
            let value = milliseconds(point.value_iterated_to().min(self.max()) as f64);
            let quantile = point.quantile_iterated_to();
            // Writing to a String cannot fail.
            let _ = if quantile < 1.0 {
                let inverse = 1.0 / (1.0 - quantile);
                writeln!(text, "{value:12.6} {quantile:2.12} {total:10} {inverse:14.2}")
            } else {
                writeln!(text, "{value:12.6} {quantile:2.12} {total:10}")
            };
        }
        let deviation = self.histogram.stdev();
        let (mean, deviation) = (milliseconds(self.mean()), milliseconds(deviation));
        let max = milliseconds(self.max() as f64);
        let _ = writeln!(text, "#[Mean    = {mean:12.6}, StdDeviation   = {deviation:12.6}]");
        let _ = writeln!(text, "#[Max     = {max:12.6}, Total count    = {:12}]", self.count());
        let buckets = self.histogram.buckets();
        let _ = writeln!(text, "#[Buckets = {buckets:12}, SubBuckets     = {:12}]", 2048);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hgrm_text_has_every_value_and_ends_at_the_maximum() {
        let mut latency = Latency::default();
        for microseconds in 1..=1000 {
            latency.record(microseconds * 1000);
        }
        let mut other = Latency::default();
        other.record(5_000_000);
        latency.merge(&other);
        let text = latency.to_hgrm();
        assert!(text.starts_with("       Value     Percentile TotalCount 1/(1-Percentile)\n\n"));
        assert!(text.contains("1.000000000000       1001\n"), "{text}");
        assert!(text.contains("#[Max     =     5.00"), "{text}");
        assert_eq!(Latency::default().quantile(0.99), 0);
        assert!((latency.quantile(0.5) as f64 / 501_000.0 - 1.0).abs() < 0.002);
    }
}
