//! The clock and the histograms.
//!
//! One clock for all threads: nanoseconds since the Unix epoch at start-up, monotonic from there
//! on, so that a step of the wall clock never shows up as latency. Histograms keep three digits
//! from a microsecond to an hour in constant memory; values are nanoseconds.
//!
//! `latency.hlog` keeps them without loss: an interval log of HdrHistogram, one tagged interval
//! for each, as long as the run. Its tools read it (HistogramLogProcessor's default ratio makes
//! milliseconds of it), and so do `compare` and `merge`.

use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::interval_log::{
    IntervalLogIterator, IntervalLogWriterBuilder, LogEntry, Tag,
};
use hdrhistogram::serialization::{Deserializer, V2DeflateSerializer};
use thiserror::Error;

const LOWEST_NS: u64 = 1_000;
const HIGHEST_NS: u64 = 3_600_000_000_000;
/// What makes a log ours; any other may be in any unit.
const UNIT: &str = "[Unit: nanoseconds]";
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

/// The text of `latency.hlog`: `histograms` by their tags, of a run that began at `started` and
/// took `length`. Empty ones are left out.
///
/// # Panics
/// When a tag has a comma, a space or a line break.
#[must_use]
pub fn to_hlog(started: SystemTime, length: Duration, histograms: &[(&str, &Latency)]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment(UNIT)
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut text, &mut serializer)
        .expect("a Vec takes all");
    for (tag, latency) in histograms.iter().filter(|(_, latency)| latency.count() > 0) {
        let tag = Tag::new(tag).expect("tags are words");
        log.write_histogram(&latency.histogram, Duration::ZERO, length, Some(tag))
            .expect("a Vec takes all, and memory is what bounds a histogram");
    }
    text
}

/// Why a log cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HlogError {
    /// Its values may be anything.
    #[error("it does not say that its values are nanoseconds, so it is not of this program")]
    Unit,
    /// It ends early or was damaged.
    #[error("it is damaged or cut off")]
    Damaged,
}

/// The histograms of a text that [`to_hlog`] made, by their tags.
///
/// # Errors
/// [`HlogError`]
pub fn from_hlog(text: &[u8]) -> Result<Vec<(String, Latency)>, HlogError> {
    let unit = format!("#{UNIT}");
    if !text.split(|&byte| byte == b'\n').any(|line| line == unit.as_bytes()) {
        return Err(HlogError::Unit);
    }
    let mut deserializer = Deserializer::new();
    let mut histograms = Vec::new();
    for entry in IntervalLogIterator::new(text) {
        let LogEntry::Interval(interval) = entry.map_err(|_| HlogError::Damaged)? else { continue };
        let bytes = STANDARD.decode(interval.encoded_histogram());
        let bytes = bytes.map_err(|_| HlogError::Damaged)?;
        let read: Histogram<u64> =
            deserializer.deserialize(&mut &bytes[..]).map_err(|_| HlogError::Damaged)?;
        let mut latency = Latency::default();
        latency.histogram.add(read).map_err(|_| HlogError::Damaged)?;
        histograms.push((interval.tag().map_or(String::new(), |tag| tag.to_string()), latency));
    }
    Ok(histograms)
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

    #[test]
    fn logs_lose_nothing() {
        let mut whole = Latency::default();
        let mut halves = [Latency::default(), Latency::default()];
        for n in 0..2000_u64 {
            let ns = 1000 + n * n * 777;
            whole.record(ns);
            halves[n as usize % 2].record(ns);
        }
        let text = |latency| to_hlog(UNIX_EPOCH, Duration::from_secs(1), &[("delivery", latency)]);
        let mut merged = Latency::default();
        for half in &halves {
            let read = from_hlog(&text(half)).expect("our own");
            assert_eq!(read.len(), 1);
            assert_eq!(read[0].0, "delivery");
            assert_eq!(read[0].1.histogram, half.histogram);
            merged.merge(&read[0].1);
        }
        assert_eq!(merged.histogram, whole.histogram);
        assert_eq!(merged.to_hgrm(), whole.to_hgrm());
    }

    #[test]
    fn logs_that_are_not_ours_or_not_whole_are_refused() {
        let mut latency = Latency::default();
        latency.record(5_000);
        let text = to_hlog(UNIX_EPOCH, Duration::from_secs(1), &[("delivery", &latency)]);
        let error = |text: &[u8]| from_hlog(text).map(|_| ()).expect_err("not whole");
        assert_eq!(error(&text[..text.len() - 9]), HlogError::Damaged);
        assert_eq!(error(b"#[StartTime: 0.000 (seconds since epoch)]\n"), HlogError::Unit);
        let empty = to_hlog(UNIX_EPOCH, Duration::ZERO, &[("delivery", &Latency::default())]);
        assert!(from_hlog(&empty).expect("no intervals").is_empty());
    }
}
