//! Bugs on purpose: the simulation must find each of them.
//!
//! A test that has never failed proves little. Every [`Bug`] is a mistake that could well be made
//! at the place that asks for it, and some were. `src/tests/sim.rs` plants one after the other and
//! shows that a bounded number of seeds finds it, and that the same seeds pass without it.
//!
//! Bugs can be planted in test builds alone, and there in one thread. In every other build
//! [`planted`] is a constant, asserted below, and no code is generated for what depends on it.

/// What may go wrong. Each is asked for at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A home hands frames to a shard that sleeps, and does not wake it.
    LostWakeUp,
    /// A full mailbox takes a message, and loses it.
    MailboxOverrun,
    /// A key that is stale names whatever is in its slot now.
    StaleGeneration,
    /// A member begins at the message before it joined.
    CursorOffByOne,
    /// After a short send the frame that was cut is sent whole behind its rest.
    RemainderSentTwice,
    /// Of a reply that was cut the rest begins one byte too late.
    RemainderOffByOne,
    /// A room that is not through with its sweep goes on before all others.
    UnfairSweep,
    /// An accept that has ended is not submitted again.
    AcceptNotReArmed,
    /// Once made: a burst of connections comes in at once, however many handshakes that is.
    BurstLetIn,
    /// After a receive that found no memory nobody watches the socket any more.
    PollNotReArmed,
    /// A connection whose socket takes bytes again is not put on the list of those to send to.
    WritableForgotten,
    /// The buffer of a receive stays lent when its connection is dead by then.
    LeakedBuffer,
    /// What was received of an incomplete message counts on when its connection is gone.
    LeakedBudget,
    /// A deadline that was met stays.
    DeadlineNotCleared,
    /// A seat is not given back by a member that leaves.
    LeakedSeat,
    /// A publish is acknowledged while shards with members have not been handed it.
    AckedTooEarly,
    /// A room that is far behind with handing over is published to all the same.
    CongestionForgotten,
    /// Input is handled whatever the connection is owed.
    HeardWhileOwed,
    /// Who is no member of a room may publish to it.
    StrangerPublishes,
    /// A shard has one connection more than it may.
    OneTooMany,
    /// A drain closes members without a look at what was handed over since the homes answered.
    ClosedUnlooked,
    /// A member is not told of the messages that it skips.
    SkippedSilently,
    /// A drain closes members before they have what they were owed.
    ClosedBeforeSent,
    /// A socket is closed while something is armed on it.
    ClosedWhileArmed,
    /// Once made: a join without a name does not take the name that was given last.
    NameForgotten,
    /// Once made: a publish that waits for a mailbox is overtaken by its member's unsubscription.
    PublishOvertaken,
    /// Once made: a drain waits no longer than a second for a shard that is behind.
    ImpatientDrain,
}

impl Bug {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Self; Self::ImpatientDrain as usize + 1] = [
        Self::LostWakeUp,
        Self::MailboxOverrun,
        Self::StaleGeneration,
        Self::CursorOffByOne,
        Self::RemainderSentTwice,
        Self::RemainderOffByOne,
        Self::UnfairSweep,
        Self::AcceptNotReArmed,
        Self::BurstLetIn,
        Self::PollNotReArmed,
        Self::WritableForgotten,
        Self::LeakedBuffer,
        Self::LeakedBudget,
        Self::DeadlineNotCleared,
        Self::LeakedSeat,
        Self::AckedTooEarly,
        Self::CongestionForgotten,
        Self::HeardWhileOwed,
        Self::StrangerPublishes,
        Self::OneTooMany,
        Self::ClosedUnlooked,
        Self::SkippedSilently,
        Self::ClosedBeforeSent,
        Self::ClosedWhileArmed,
        Self::NameForgotten,
        Self::PublishOvertaken,
        Self::ImpatientDrain,
    ];
}

/// Whether `bug` is planted: never outside of test builds.
#[cfg(not(test))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

#[cfg(not(test))]
const _: () = assert!(!planted(Bug::LostWakeUp));

#[cfg(test)]
pub(crate) use switch::{plant, planted};

#[cfg(test)]
mod switch {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether `bug` is planted in this thread.
    pub(crate) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Runs `run` with `bug` planted in this thread.
    pub(crate) fn plant<T>(bug: Bug, run: impl FnOnce() -> T) -> T {
        // It is taken out again also when what it breaks panics.
        struct Planted;
        impl Drop for Planted {
            fn drop(&mut self) {
                PLANTED.set(None);
            }
        }
        PLANTED.set(Some(bug));
        let _planted = Planted;
        run()
    }
}
