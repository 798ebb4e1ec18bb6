//! Publishes of the control thread: by a room's name to its home shard, offsets back.
//!
//! ```text
//!                  publishes, at most `publish_queue_len_max`
//!   Publisher ─────────────────────────────────────────────▶ Inlet of the home shard
//!   tickets   ◀───────────────────────────────────────────── numbers them in that order
//!                  one offset for each
//! ```
//!
//! One pair of lock-free rings per shard. A shard answers in the order in which it was asked, so
//! an answer needs no name: the [`Publisher`] keeps a [`Ticket`] for each publish that has none
//! yet. It never has more of them under way to one shard than fit into a ring; so neither ring
//! can be full when something is put into it, and a shard waits for nobody. What does not fit is
//! [`Refused::Busy`].
//!
//! A shard whose rooms are congested leaves the publishes where they are, as it does with those of
//! other shards, and the ring fills up.
//!
//! Waking is that of [`crate::io::mailbox`], in both directions: one wake-up for all that was
//! published at once, and one for all that a tick has answered.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use bytes::Bytes;
use rtrb::{Consumer, Producer, RingBuffer};

use super::message::{self, Publish};
use super::{MESSAGES_PER_MAILBOX, Shard};
use crate::dialect::native;
use crate::dialect::publish::{Content, Publication};
use crate::id::{HomeHasher, NameSpace, RoomName, ShardId};
use crate::io::mailbox::{Sleeper, Sleepers};
use crate::io::{Io, Operation};
use crate::protocol::Opcode;
use crate::room::SegmentPool;
use crate::room::home::Message;
use crate::slab::Key;

/// Which publish of which request an answer belongs to: whatever the caller chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The request.
    pub request: Key,
    /// Which one of it.
    pub item: u32,
}

/// Why a publish was not taken. Nobody gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// As many as may are waiting for the room's home shard already.
    Busy,
    /// The shard has ended: the server is about to.
    Ended,
}

/// What became of a publish: its offset, or `None` when nobody was in the room.
pub type Answer = Result<Option<u64>, Refused>;

/// The control thread's side. See the module documentation.
#[derive(Debug)]
pub struct Publisher {
    lanes: Vec<Lane>,
    homes: HomeHasher,
    sleepers: Sleepers,
    /// Whether the thread that owns this sleeps.
    own: Arc<Sleeper>,
    segments: SegmentPool,
}

/// The rings to and from one shard.
#[derive(Debug)]
struct Lane {
    publishes: Producer<Publish>,
    offsets: Consumer<Option<u64>>,
    /// Of the publishes without an answer, oldest first.
    tickets: VecDeque<Ticket>,
    /// Something was published since the last wake-up.
    rung: bool,
}

/// A shard's side.
#[derive(Debug)]
pub(super) struct Inlet {
    publishes: Consumer<Publish>,
    offsets: Producer<Option<u64>>,
    publisher: Arc<Sleeper>,
    /// Something was answered since the last wake-up.
    rung: bool,
}

impl Publisher {
    /// The publisher to the shards over which `homes` spreads the rooms, and their sides of it;
    /// `len_max` publishes may be under way to each.
    pub(super) fn new(
        homes: &HomeHasher,
        sleepers: &Sleepers,
        len_max: usize,
    ) -> (Self, Vec<Inlet>) {
        let own = Arc::new(Sleeper::default());
        let (lanes, inlets) = (0..homes.shards())
            .map(|_| {
                let (to_shard, publishes) = RingBuffer::new(len_max);
                let (offsets, from_shard) = RingBuffer::new(len_max);
                let lane = Lane {
                    publishes: to_shard,
                    offsets: from_shard,
                    tickets: VecDeque::new(),
                    rung: false,
                };
                let publisher = Arc::clone(&own);
                (lane, Inlet { publishes, offsets, publisher, rung: false })
            })
            .unzip();
        let (homes, sleepers) = (homes.clone(), sleepers.clone());
        (Self { lanes, homes, sleepers, own, segments: SegmentPool::new() }, inlets)
    }

    /// Hands a publish to its room's home shard; [`Publisher::take_answers`] will name `ticket`.
    /// To be followed by [`Publisher::wake_shards`]. Publishes to one room keep their order.
    ///
    /// Cost: one copy of the message, one allocation for the room's name.
    ///
    /// # Errors
    /// See [`Refused`]; gives the publish back.
    pub fn publish<'m>(
        &mut self,
        publication: Publication<'m>,
        ticket: Ticket,
    ) -> Result<(), (Refused, Publication<'m>)> {
        let space = match publication.content {
            Content::Native { .. } => NameSpace::Native,
            Content::Text(_) | Content::Binary(_) => NameSpace::Raw,
        };
        let room = RoomName::new(space, &publication.room_id);
        let lane = &mut self.lanes[self.homes.home(&room).index()];
        if lane.publishes.is_abandoned() {
            return Err((Refused::Ended, publication));
        }
        if lane.tickets.len() == lane.publishes.buffer().capacity() {
            return Err((Refused::Busy, publication));
        }
        let Publication { room_id, content } = publication;
        let message = match content {
            Content::Native { content, user_id } => {
                let sender = user_id.as_deref().unwrap_or(native::ANONYMOUS);
                message::broadcast(&mut self.segments, &room_id, sender, content)
            }
            Content::Text(text) => verbatim(Opcode::Text, self.segments.copy(text.as_bytes())),
            Content::Binary(bytes) => verbatim(Opcode::Binary, Bytes::from(bytes)),
        };
        lane.publishes.push(Publish { room, message }).expect("no more are under way than fit");
        lane.tickets.push_back(ticket);
        lane.rung = true;
        Ok(())
    }

    /// Names, through `wake`, every shard that was published to and sleeps.
    pub fn wake_shards(&mut self, mut wake: impl FnMut(ShardId)) {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let shard = ShardId::from(index);
            if mem::take(&mut lane.rung) && self.sleepers.must_wake(shard) {
                wake(shard);
            }
        }
    }

    /// Tells, through `tell`, what became of publishes. Each ticket is named once, and makes room
    /// for another.
    pub fn take_answers(&mut self, mut tell: impl FnMut(Ticket, Answer)) {
        for lane in &mut self.lanes {
            // Looked at first: what the shard has answered before its end is there now.
            let has_ended = lane.offsets.is_abandoned();
            fence(Ordering::Acquire);
            while let Ok(offset) = lane.offsets.pop() {
                let ticket = lane.tickets.pop_front().expect("an answer to a publish");
                tell(ticket, Ok(offset));
            }
            if has_ended {
                lane.tickets.drain(..).for_each(|ticket| tell(ticket, Err(Refused::Ended)));
            }
        }
    }

    /// The thread is about to sleep until it is woken: from now on shards do that. Returns
    /// `false` when there are answers already; then it must not sleep.
    #[must_use]
    pub fn fall_asleep(&mut self) -> bool {
        self.own.fall_asleep();
        let may = self.lanes.iter().all(|lane| lane.offsets.is_empty());
        if !may {
            self.wake_up();
        }
        may
    }

    /// The thread is awake.
    pub fn wake_up(&mut self) {
        self.own.wake_up();
    }
}

fn verbatim(opcode: Opcode, payload: Bytes) -> Message {
    Message { opcode, payload, offset_at: None }
}

impl Inlet {
    /// How many publishes wait.
    pub(super) fn depth(&self) -> usize {
        self.publishes.slots()
    }

    /// Whether publishes wait.
    pub(super) fn has_input(&self) -> bool {
        !self.publishes.is_empty()
    }

    fn answer(&mut self, offset: Option<u64>) {
        self.offsets.push(offset).expect("no more are under way than fit");
        self.rung = true;
    }
}

impl<I: Io> Shard<I> {
    /// Takes in what the control thread publishes to rooms whose home is here, as long as no room
    /// is congested.
    pub(super) fn take_publishes(&mut self) {
        let now = self.io.now();
        for _ in 0..MESSAGES_PER_MAILBOX {
            if self.home.is_congested() {
                self.congested = true;
                return;
            }
            let Ok(Publish { room, message }) = self.ends.inlet.publishes.pop() else {
                return;
            };
            let offset = self.home.publish_to(&room, &message, now);
            self.metrics.published.add(u64::from(offset.is_some()));
            self.ends.inlet.answer(offset);
        }
    }

    /// Wakes the control thread if it waits for what was answered.
    pub(super) fn wake_publisher(&mut self) {
        let inlet = &mut self.ends.inlet;
        if mem::take(&mut inlet.rung) && inlet.publisher.must_wake() {
            self.io.submit(Operation::WakeControl);
        }
    }
}

#[cfg(test)]
mod tests;
