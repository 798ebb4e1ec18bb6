//! The end of a connection on record: what it is called, which close code went with it, and the
//! counters and the log line that say so.
//!
//! Every connection that was open ends for exactly one [`Reason`], which is noted when it leaves
//! the phase `Open`, whichever side began. A connection whose opening handshake comes to nothing
//! counts as the outcome of a handshake instead.

use std::time::Duration;

use tracing::{Level, debug, enabled};

use super::Shard;
use super::closing::Reason;
use super::connection::{Connection, Phase};
use crate::io::{Errno, Io};
use crate::protocol::{CloseCode, ProtocolError};
use crate::slab::Key;

/// How many ways there are in which an open connection can end, as counters tell them apart.
pub(super) const ENDINGS: usize = PEER_CODES.len() + ProtocolError::ALL.len() + OTHERS.len();

/// The codes with which peers close: those of RFC 6455 and its registry that may stand in a close,
/// the two ranges for everybody's own, and none. So labels are few whatever peers send.
const PEER_CODES: [&str; 15] = [
    "1000", "1001", "1002", "1003", "1007", "1008", "1009", "1010", "1011", "1012", "1013", "1014",
    "3xxx", "4xxx", NO_CODE,
];

/// Says that a connection ended without a close code.
const NO_CODE: &str = "none";

/// The reasons that are neither the peer's close nor its violation of the protocol.
const OTHERS: [Reason; 13] = [
    Reason::PeerGone,
    Reason::Broken(Errno::RESET),
    Reason::TokenExpired,
    Reason::Forbidden,
    Reason::SlowConsumer,
    Reason::SendTimeout,
    Reason::PongTimeout,
    Reason::Drain,
    Reason::Operator(CloseCode::NORMAL),
    Reason::Operator(CloseCode::GOING_AWAY),
    Reason::Operator(CloseCode::POLICY_VIOLATION),
    Reason::Operator(CloseCode(3000)),
    Reason::Operator(CloseCode(4000)),
];

impl Reason {
    /// The name in metrics and logs, snake_case.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::PeerClosed(_) => "peer_closed",
            Self::PeerGone => "peer_gone",
            Self::Broken(_) => "broken",
            Self::Violation(error) => error.label(),
            Self::Refused(error) => error.label(),
            Self::Answered => "answered",
            Self::TokenExpired => "token_expired",
            Self::Forbidden => "forbidden",
            Self::SlowConsumer => "slow_consumer",
            Self::SendTimeout => "send_timeout",
            Self::PongTimeout => "pong_timeout",
            Self::CloseTimeout => "close_timeout",
            Self::Drain => "drain",
            Self::Operator(_) => "operator",
        }
    }

    /// The code of the close frame that was sent; `None` where there was none, or one without code.
    pub(super) const fn close_code(self) -> Option<CloseCode> {
        match self {
            Self::PeerClosed(code) => code,
            Self::Violation(error) => Some(error.close_code()),
            Self::TokenExpired => Some(CloseCode::TOKEN_EXPIRED),
            Self::Forbidden => Some(CloseCode::FORBIDDEN),
            Self::SlowConsumer => Some(CloseCode::TRY_AGAIN_LATER),
            Self::Drain => Some(CloseCode::GOING_AWAY),
            Self::Operator(code) => Some(code),
            Self::PeerGone
            | Self::Broken(_)
            | Self::Refused(_)
            | Self::Answered
            | Self::SendTimeout
            | Self::PongTimeout
            | Self::CloseTimeout => None,
        }
    }

    /// Its place among the [`ENDINGS`]; `None` for what ends no open connection.
    pub(super) fn ending(self) -> Option<usize> {
        let others = PEER_CODES.len() + ProtocolError::ALL.len();
        match self {
            Self::PeerClosed(code) => Some(peer_code(code)),
            Self::Violation(error) => Some(PEER_CODES.len() + error as usize),
            _ => {
                let own = (self.name(), self.close_code().map(class));
                let is_it = |it: &Reason| (it.name(), it.close_code().map(class)) == own;
                OTHERS.iter().position(is_it).map(|at| others + at)
            }
        }
    }
}

const fn peer_code(code: Option<CloseCode>) -> usize {
    match code {
        Some(CloseCode(code @ 1000..=1003)) => code as usize - 1000,
        Some(CloseCode(code @ 1007..=1014)) => code as usize - 1007 + 4,
        Some(CloseCode(3000..=3999)) => 12,
        Some(CloseCode(4000..=4999)) => 13,
        _ => PEER_CODES.len() - 1,
    }
}

/// What is counted together: the codes of applications by the thousand.
const fn class(CloseCode(code): CloseCode) -> CloseCode {
    CloseCode(if code < 3000 { code } else { code / 1000 * 1000 })
}

/// The name and the close code of each of the [`ENDINGS`], in their order.
pub(super) fn endings() -> impl Iterator<Item = (&'static str, String)> {
    let peer = PEER_CODES.map(|code| (Reason::PeerClosed(None).name(), code.to_owned()));
    let ours = ProtocolError::ALL.into_iter().map(Reason::Violation).chain(OTHERS);
    let label = |code: CloseCode| match class(code) {
        CloseCode(thousand @ 3000..) => format!("{}xxx", thousand / 1000),
        code => code.to_string(),
    };
    let ours = ours.map(move |it| (it.name(), it.close_code().map_or(NO_CODE.into(), label)));
    peer.into_iter().chain(ours)
}

/// In which the age of an open connection is counted: 2^32 of them are eight years.
pub(super) const UNIT: Duration = Duration::from_millis(64);

impl<I: Io> Shard<I> {
    /// Microseconds, modulo 2^32, since the shard began: enough for opening handshakes, which have
    /// a minute at most.
    pub(super) fn micros(&self) -> u32 {
        self.io.now().saturating_duration_since(self.start).as_micros() as u32
    }

    /// Notes that the opening handshake is over, and how long it took.
    pub(super) fn note_opened(&mut self, key: Key) {
        let (now, age) = (self.micros(), self.io.now().saturating_duration_since(self.start));
        let Some(connection) = self.connections.get_mut(key) else { return };
        let took = Duration::from_micros(u64::from(now.wrapping_sub(connection.since)));
        connection.since = (age.as_millis() / UNIT.as_millis()) as u32;
        self.metrics.handshake_time.record(took);
        self.metrics.opened.add(1);
    }

    /// Notes that the connection, not yet closing, ends for this reason.
    pub(super) fn note_end(&self, key: Key, reason: Reason) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.phase == Phase::Open {
            let ending = reason.ending().expect("what ends an open connection has a place");
            self.metrics.disconnects[ending].add(1);
        } else {
            match reason {
                Reason::Refused(error) => self.metrics.refused[error as usize].add(1),
                Reason::Answered => self.metrics.answered.add(1),
                _ => self.metrics.abandoned.add(1),
            }
        }
        if enabled!(Level::DEBUG) {
            self.log_end(key, connection, reason);
        }
    }
}

impl<I: Io> Shard<I> {
    /// One line per connection. Names of users are told, what they say is not: no payload, no
    /// request target, no token. How much a connection was sent is not counted: it would cost every
    /// delivery, and every idle connection 8 bytes, as its slot has no padding; and the room's log
    /// knows what its members get.
    fn log_end(&self, key: Key, connection: &Connection, reason: Reason) {
        let age = self.io.now().saturating_duration_since(self.start);
        let is_open = connection.phase == Phase::Open;
        let since = if is_open {
            UNIT * connection.since
        } else {
            // Of its microseconds only those of a handshake are known.
            let took = (age.as_micros() as u32).wrapping_sub(connection.since);
            age.saturating_sub(Duration::from_micros(u64::from(took)))
        };
        debug!(
            shard = self.ends.shard.0,
            reason = reason.name(),
            code = reason.close_code().map(|code| code.0),
            errno = if let Reason::Broken(errno) = reason { Some(errno.0) } else { None },
            duration_ms = age.saturating_sub(since).as_millis() as u64,
            messages_received = connection.received,
            rooms = connection.memberships.len(),
            endpoint = is_open.then(|| connection.endpoint.name()),
            user = self.user_of(key),
            address = self.address_of(key).map(tracing::field::display),
            "connection ends"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_ending_has_a_place_of_its_own_under_its_labels() {
        let labels: Vec<_> = endings().collect();
        assert_eq!(labels.len(), ENDINGS);
        assert_eq!(labels.iter().collect::<BTreeSet<_>>().len(), ENDINGS, "{labels:?}");
        let codes = [1000, 1003, 1007, 1014, 3000, 3999, 4000, 4999].map(CloseCode).map(Some);
        let peer = codes.into_iter().chain([None]).map(Reason::PeerClosed);
        let ours = ProtocolError::ALL.into_iter().map(Reason::Violation).chain(OTHERS);
        let mut places = BTreeSet::new();
        for reason in peer.chain(ours) {
            let (name, code) = &labels[reason.ending().expect("it ends open connections")];
            assert_eq!(*name, reason.name());
            let own = reason.close_code().map_or(NO_CODE.into(), |code| code.to_string());
            assert!(*code == own || (code.ends_with("xxx") && code[..1] == own[..1]), "{reason:?}");
            places.insert(reason.ending());
        }
        assert_eq!(places.len(), 7 + ENDINGS - PEER_CODES.len());
    }
}
