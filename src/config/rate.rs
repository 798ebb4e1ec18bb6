//! Rates: so many per second, and how many at once.
//!
//! A rate is `RATE` or `RATE/BURST`, such as `100/500` or `256KiB/4MiB`: after a time of silence
//! BURST may come at once, and RATE per second in the long run. Without a BURST it is what comes in
//! a second.

use std::fmt;

use serde::{Serialize, Serializer};

use super::value::{self, COUNTS, SIZES, Size, ValueError};

/// How many per second a setting allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimit<T> {
    /// Any number.
    Off,
    /// No more than this.
    At {
        /// In the long run.
        per_second: T,
        /// At once, if it is said.
        burst: Option<T>,
    },
}

/// What the data plane gets of a [`RateLimit`]: both at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u64,
    /// At once, after a time of silence.
    pub burst: u64,
}

impl<T: Copy + Into<u64>> RateLimit<T> {
    /// The rate, with a burst of a second's worth, but at least `burst_min`, if none is said.
    pub(super) fn rate(&self, burst_min: u64) -> Option<Rate> {
        match *self {
            RateLimit::Off => None,
            RateLimit::At { per_second, burst } => {
                let per_second = per_second.into();
                let burst = burst.map_or(per_second.max(burst_min), Into::into);
                Some(Rate { per_second, burst })
            }
        }
    }
}

impl<T: fmt::Display> Serialize for RateLimit<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            RateLimit::Off => serializer.serialize_str("off"),
            RateLimit::At { per_second, burst: None } => serializer.collect_str(per_second),
            RateLimit::At { per_second, burst: Some(burst) } => {
                serializer.collect_str(&format_args!("{per_second}/{burst}"))
            }
        }
    }
}

/// A number of events per second, with or without a burst, or "off".
pub(super) fn counts(text: &str, _accepted: &str) -> Result<RateLimit<Count>, ValueError> {
    read(text, |text| {
        let count = value::count(text, COUNTS).map_err(|_| ValueError::NotARateOfCounts)?;
        Ok(Count(count as u64))
    })
}

/// A number of bytes per second, with or without a burst, or "off".
pub(super) fn sizes(text: &str, _accepted: &str) -> Result<RateLimit<Size>, ValueError> {
    read(text, |text| value::size(text, SIZES).map_err(|_| ValueError::NotARateOfSizes))
}

fn read<T>(
    text: &str,
    value: impl Fn(&str) -> Result<T, ValueError>,
) -> Result<RateLimit<T>, ValueError> {
    if text == "off" {
        return Ok(RateLimit::Off);
    }
    let (per_second, burst) = match text.split_once('/') {
        Some((per_second, burst)) => (per_second, Some(burst)),
        None => (text, None),
    };
    let burst = burst.map(|burst| value(burst.trim())).transpose()?;
    Ok(RateLimit::At { per_second: value(per_second.trim())?, burst })
}

/// A number of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(u64);

impl From<Count> for u64 {
    fn from(count: Count) -> u64 {
        count.0
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_read_and_print() {
        for (text, expected, printed) in [
            ("off", None, "off"),
            ("1", Some((1, 1)), "1"),
            (" 1_000 / 5000 ", Some((1000, 5000)), "1000/5000"),
            ("1000000/1000000", Some((1_000_000, 1_000_000)), "1000000/1000000"),
        ] {
            let read = counts(text, "").unwrap();
            let rate = expected.map(|(per_second, burst)| Rate { per_second, burst });
            assert_eq!(read.rate(0), rate, "{text}");
            let text = toml::Value::try_from(read).unwrap();
            assert_eq!(text.as_str(), Some(printed));
            assert_eq!(counts(printed, ""), Ok(read));
        }
        for (text, per_second, burst, printed) in [
            ("1KiB", 1024, 4000, "1KiB"),
            ("64 KiB/1 MiB", 65536, 1 << 20, "64KiB/1MiB"),
            ("8000", 8000, 8000, "8000B"),
        ] {
            let read = sizes(text, "").unwrap();
            assert_eq!(read.rate(4000), Some(Rate { per_second, burst }), "{text}");
            assert_eq!(toml::Value::try_from(read).unwrap().as_str(), Some(printed));
            assert_eq!(sizes(printed, ""), Ok(read));
        }
    }

    #[test]
    fn wrong_rates() {
        for text in ["", "0", "1000001", "1/0", "1/", "/1", "1/2/3", "1KiB", "on", "-1"] {
            assert_eq!(counts(text, ""), Err(ValueError::NotARateOfCounts), "{text:?}");
        }
        for text in ["", "1023", "1025MiB", "1KiB/1", "1KiB/", "x", "1KiB/1KiB/1KiB"] {
            assert_eq!(sizes(text, ""), Err(ValueError::NotARateOfSizes), "{text:?}");
        }
    }
}
