//! Why a connection failed, and how often.
//!
//! What a server says about it, an HTTP status or a close code, is part of the cause. A server
//! can say anything, so the distinct causes that are counted apart are bounded; what comes beyond
//! counts under the same cause without its number.

use std::collections::BTreeMap;
use std::fmt;

/// Distinct causes counted apart.
const CAUSES_MAX: usize = 64;

/// Why a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nobody listens.
    Refused,
    /// No free source port: more `--source` addresses or a wider port range.
    NoPort,
    /// `RLIMIT_NOFILE` of the thread's table: more `--threads`.
    NoDescriptor,
    /// Any other error of connect(2).
    Connect,
    /// No answer within the handshake timeout.
    Timeout,
    /// An HTTP status other than 101; `None` for those not counted apart.
    Status(Option<u16>),
    /// The peer reset or ended the connection before it was open.
    HandshakeCut,
    /// What came was not the protocol.
    Protocol,
    /// The stream ended while the connection was needed, without a close frame.
    Disconnected,
    /// The connection was reset while it was needed.
    Reset,
    /// A close frame came while the connection was needed, with this code (1005: without one);
    /// `None` for those not counted apart.
    Closed(Option<u16>),
}

impl Failure {
    /// Whether a connection that was open ended, or one that never was failed.
    #[must_use]
    pub fn is_disconnection(self) -> bool {
        matches!(self, Self::Disconnected | Self::Reset | Self::Closed(_))
    }

    fn without_number(self) -> Self {
        match self {
            Self::Status(_) => Self::Status(None),
            Self::Closed(_) => Self::Closed(None),
            other => other,
        }
    }
}

/// The name it has in reports.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::NoPort => f.write_str("no_source_port"),
            Self::NoDescriptor => f.write_str("no_descriptor"),
            Self::Connect => f.write_str("connect"),
            Self::Timeout => f.write_str("handshake_timeout"),
            Self::Status(Some(status)) => write!(f, "handshake_status_{status}"),
            Self::Status(None) => f.write_str("handshake_status_other"),
            Self::HandshakeCut => f.write_str("handshake_cut"),
            Self::Protocol => f.write_str("protocol"),
            Self::Disconnected => f.write_str("disconnected"),
            Self::Reset => f.write_str("disconnected_reset"),
            Self::Closed(Some(code)) => write!(f, "disconnected_{code}"),
            Self::Closed(None) => f.write_str("disconnected_other"),
        }
    }
}

/// Counts by cause.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failures {
    counts: BTreeMap<Failure, u64>,
}

impl Failures {
    /// Counts one.
    pub fn count(&mut self, failure: Failure) {
        self.add(failure, 1);
    }

    /// Adds what others have counted.
    pub fn merge(&mut self, others: &Self) {
        for (&failure, &count) in &others.counts {
            self.add(failure, count);
        }
    }

    /// Causes with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Failure, u64)> + '_ {
        self.counts.iter().map(|(&failure, &count)| (failure, count))
    }

    /// By name.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        self.iter().map(|(failure, count)| (failure.to_string(), count)).collect()
    }

    fn add(&mut self, failure: Failure, count: u64) {
        let room = self.counts.len() < CAUSES_MAX || self.counts.contains_key(&failure);
        let failure = if room { failure } else { failure.without_number() };
        *self.counts.entry(failure).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_apart_up_to_a_bound() {
        let mut failures = Failures::default();
        for status in 400..600 {
            failures.count(Failure::Status(Some(status)));
        }
        failures.count(Failure::Status(Some(400)));
        failures.count(Failure::Refused);
        let names = failures.by_name();
        assert_eq!(names["handshake_status_400"], 2);
        assert_eq!(names["handshake_status_other"], 200 - CAUSES_MAX as u64);
        assert_eq!(names["refused"], 1);
        assert_eq!(names.len(), CAUSES_MAX + 2);
        let mut others = Failures::default();
        others.count(Failure::Closed(Some(1013)));
        failures.merge(&others);
        assert_eq!(failures.by_name()["disconnected_other"], 1);
    }
}
