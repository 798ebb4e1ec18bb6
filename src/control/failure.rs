//! Why the shards did not do what a request asked of them, and how many may ask at once.

use crate::dialect::publish::PublishError;
use crate::shard::publisher::Refused;

/// Requests that are carried out at once, and those that wait for shards, with publishes or with
/// questions.
pub(super) const REQUESTS_MAX: usize = 64;

/// Why a publish was not published, or a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It is wrong.
    Invalid(PublishError),
    /// Its room's shard is behind.
    Busy,
    /// A shard has not answered what it was asked, in all the time that it may take.
    Behind,
    /// The server is about to end.
    Draining,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Busy | Refused::Behind => Self::Busy,
            Refused::Ended => Self::Draining,
        }
    }
}
