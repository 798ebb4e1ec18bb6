//! Calls of the control thread to shards: each is answered once, in whatever order.
//!
//! ```text
//!             calls, at most `len_max` without an answer
//!   Calls   ──────────────────────────────────────────────▶ Inbox of a shard
//!   tickets ◀────────────────────────────────────────────── takes them in that order
//!             one answer for each
//! ```
//!
//! One pair of lock-free rings per shard. A call has a key, and its answer names it: [`Calls`]
//! keeps a ticket for each call without an answer. It never has more of them under way to one shard
//! than fit into a ring; so neither ring can be full when something is put into it, and a shard
//! waits for nobody. What does not fit is [`Refused::Busy`].
//!
//! Waking is that of [`crate::io::mailbox`], in both directions: one wake-up for all that was
//! called at once, and one for all that a tick has answered.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rtrb::{Consumer, Producer, RingBuffer};

use crate::id::ShardId;
use crate::io::mailbox::{Sleeper, Sleepers};
use crate::slab::{Key, Slab};

/// Which part of which request an answer belongs to: whatever the caller chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The request.
    pub request: Key,
    /// Which part of it.
    pub item: u32,
}

/// Why a call was not taken, or has no answer. Nobody acts on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// As many as may are waiting for the shard already.
    Busy,
    /// One that waits has waited too long already: the shard is stuck, or far behind.
    Behind,
    /// The shard has ended: the server is about to.
    Ended,
}

/// The control thread's side. See the module documentation.
#[derive(Debug)]
pub(super) struct Calls<C, A> {
    lanes: Vec<Lane<C, A>>,
    sleepers: Sleepers,
}

/// The rings to and from one shard.
#[derive(Debug)]
struct Lane<C, A> {
    calls: Producer<(Key, C)>,
    answers: Consumer<(Key, A)>,
    /// Of the calls without an answer, and since when each waits.
    tickets: Slab<(Ticket, Instant)>,
    /// The one that waited longest when this was looked for; none of them waits longer.
    oldest: Option<(Key, Instant)>,
    /// Something was called since the last wake-up.
    rung: bool,
}

/// A shard's side.
#[derive(Debug)]
pub(super) struct Inbox<C, A> {
    calls: Consumer<(Key, C)>,
    answers: Producer<(Key, A)>,
    caller: Arc<Sleeper>,
    /// Something was answered since the last wake-up.
    rung: bool,
}

impl<C, A> Calls<C, A> {
    /// The rings between the calling thread, `caller`, and as many shards as there are `sleepers`;
    /// `len_max` calls may be under way to each.
    pub(super) fn new(
        shards: usize,
        sleepers: &Sleepers,
        caller: &Arc<Sleeper>,
        len_max: usize,
    ) -> (Self, Vec<Inbox<C, A>>) {
        let (lanes, inboxes) = (0..shards)
            .map(|_| {
                let (to_shard, calls) = RingBuffer::new(len_max);
                let (answers, from_shard) = RingBuffer::new(len_max);
                let lane = Lane {
                    calls: to_shard,
                    answers: from_shard,
                    tickets: Slab::new(),
                    oldest: None,
                    rung: false,
                };
                (lane, Inbox { calls, answers, caller: Arc::clone(caller), rung: false })
            })
            .unzip();
        (Self { lanes, sleepers: sleepers.clone() }, inboxes)
    }

    /// Whether the shard would take one more call now.
    ///
    /// # Errors
    /// See [`Refused`].
    pub(super) fn check(&self, shard: ShardId) -> Result<(), Refused> {
        let lane = &self.lanes[shard.index()];
        if lane.calls.is_abandoned() {
            return Err(Refused::Ended);
        }
        if lane.tickets.len() == lane.calls.buffer().capacity() {
            return Err(Refused::Busy);
        }
        Ok(())
    }

    /// Whether a call to the shard has waited for its answer for so long at `now`.
    ///
    /// Cost: one look nearly always. All calls without an answer are looked at when the oldest one
    /// of the last time is answered, and not before `patience` has passed since it came.
    pub(super) fn is_behind(&mut self, shard: ShardId, now: Instant, patience: Duration) -> bool {
        let lane = &mut self.lanes[shard.index()];
        let too_long = |since: Instant| now.saturating_duration_since(since) >= patience;
        let Some((oldest, since)) = lane.oldest else { return false };
        // What the shard has answered and nobody has looked at is not its fault.
        if !too_long(since) || !lane.answers.is_empty() {
            return false;
        }
        if lane.tickets.get(oldest).is_none() {
            let keys = (0..lane.tickets.slots()).filter_map(|slot| lane.tickets.key_at(slot));
            let since = |key| lane.tickets.get(key).map(|(_, since)| (key, *since));
            lane.oldest = keys.filter_map(since).min_by_key(|(_, since)| *since);
        }
        lane.oldest.is_some_and(|(_, since)| too_long(since))
    }

    /// Calls a shard that has passed [`Calls::check`]; [`Calls::take_answers`] will name `ticket`.
    /// To be followed by [`Calls::wake_shards`].
    ///
    /// # Panics
    /// When too many calls are under way to it.
    pub(super) fn call(&mut self, shard: ShardId, call: C, ticket: Ticket, now: Instant) {
        let lane = &mut self.lanes[shard.index()];
        let key = lane.tickets.insert((ticket, now));
        lane.oldest.get_or_insert((key, now));
        assert!(lane.calls.push((key, call)).is_ok(), "no more are under way than fit");
        lane.rung = true;
    }

    /// Names, through `wake`, every shard that was called and sleeps.
    pub(super) fn wake_shards(&mut self, mut wake: impl FnMut(ShardId)) {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let shard = ShardId::from(index);
            if mem::take(&mut lane.rung) && self.sleepers.must_wake(shard) {
                wake(shard);
            }
        }
    }

    /// Tells, through `tell`, what shards have answered. Each ticket is named once, and makes room
    /// for another.
    pub(super) fn take_answers(&mut self, mut tell: impl FnMut(Ticket, Result<A, Refused>)) {
        for lane in &mut self.lanes {
            // Looked at first: what the shard has answered before its end is there now.
            let has_ended = lane.answers.is_abandoned();
            fence(Ordering::Acquire);
            while let Ok((key, answer)) = lane.answers.pop() {
                let (ticket, _) = lane.tickets.remove(key).expect("a call is answered once");
                tell(ticket, Ok(answer));
            }
            if has_ended {
                for slot in 0..lane.tickets.slots() {
                    let left = lane.tickets.key_at(slot);
                    if let Some((ticket, _)) = left.and_then(|key| lane.tickets.remove(key)) {
                        tell(ticket, Err(Refused::Ended));
                    }
                }
            }
        }
    }

    /// Whether answers wait to be taken.
    pub(super) fn has_answers(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.answers.is_empty())
    }
}

impl<C, A> Inbox<C, A> {
    /// How many calls wait.
    pub(super) fn depth(&self) -> usize {
        self.calls.slots()
    }

    /// Whether calls wait.
    pub(super) fn has_input(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Takes the oldest call, with the key for its answer.
    pub(super) fn take(&mut self) -> Option<(Key, C)> {
        self.calls.pop().ok()
    }

    /// Answers a call that was taken and has no answer yet.
    pub(super) fn answer(&mut self, call: Key, answer: A) {
        assert!(self.answers.push((call, answer)).is_ok(), "no more are under way than fit");
        self.rung = true;
    }

    /// Whether the caller must be woken for what was answered since this was asked last.
    pub(super) fn must_wake_caller(&mut self) -> bool {
        mem::take(&mut self.rung) && self.caller.must_wake()
    }
}
