//! How much of a room's log is kept for members that are behind, and where they go on.
//!
//! A member whose socket is full stays where it is in the log. That costs nothing but the log, so
//! the log is what has to be bounded, not the number of slow members. The *floor* of a room is the
//! lowest position at which a member may wait. A member below it is a *slow consumer*: it is
//! disconnected, or it skips messages when it goes on. Only whole frames are skipped: what a member
//! has got a part of, it gets the rest of.
//!
//! ```text
//!   disconnect, drop-oldest             skip-to-newest
//!
//!        │◀── mark, age ──▶│                 │◀── mark, age ──▶│
//!   ─────┬─────────────────┬ head      ──────┬───────────────┬─┬ head
//!   gone │ kept            │           gone  │ kept          │ │
//!        └ floor: here drop-oldest           └ floor         └ newest: here a member goes on
//!          goes on                                             that was below the floor
//! ```
//!
//! Invariant: a room's floor never falls while its policy stays, so what was trimmed below it is
//! not asked for again. When it falls with a new policy, whoever goes on there gets what is kept.
//! Never: knows connections, counts, tells anybody; that is the shard's.

use std::time::Instant;

use super::RoomLog;
use crate::config::{Policy, SlowConsumer};

/// The lowest position at which a member may wait. The newest message is above it, however large
/// it is, unless it is too old; for a member that skips to the newest it never is.
#[must_use]
pub fn floor(policy: &Policy, log: &RoomLog, now: Instant) -> u64 {
    let far = log.head().saturating_sub(policy.high_water_mark);
    let since = policy.age_max.and_then(|age_max| now.checked_sub(age_max));
    let old = since.map_or(0, |since| log.since(since));
    match policy.slow_consumer {
        SlowConsumer::Disconnect => far.max(old),
        SlowConsumer::SkipToNewest => log.at_most_newest(far.max(old)),
        SlowConsumer::DropOldest => log.at_most_newest(far).max(old),
    }
}

/// Where a member goes on that was below `floor`, unless it is disconnected: one that was overtaken
/// before the room's policy became that is not.
#[must_use]
pub fn goes_on_at(policy: &Policy, log: &RoomLog, floor: u64) -> u64 {
    match policy.slow_consumer {
        SlowConsumer::SkipToNewest => log.newest(),
        SlowConsumer::DropOldest | SlowConsumer::Disconnect => log.frame_from(floor),
    }
}
