//! Publishes of the control thread: by a room's name to its home shard, offsets back.
//!
//! They are [`super::calls`]: a shard numbers them in the order in which they were handed in, and
//! answers each when all shards with members have been handed it; `publish_queue_len_max` may be
//! under way to it. A shard whose rooms are congested leaves the
//! publishes where they are, as it does with those of other shards, and the ring fills up. Before
//! it is full, when one has waited for [`PATIENCE`], no more are taken: whoever publishes one after
//! the other would fill it never, and wait for ever.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::calls::{Calls, Inbox};
use super::fanout::{AckTo, OwedAck};
use super::message::{self, Publish};
use super::{MESSAGES_PER_MAILBOX, Shard};
use crate::dialect::native;
use crate::dialect::publish::{Content, Publication};
use crate::id::{HomeHasher, NameSpace, RoomName, ShardId};
use crate::io::Io;
use crate::io::mailbox::{Sleeper, Sleepers};
use crate::protocol::Opcode;
use crate::room::SegmentPool;
use crate::room::home::Message;

pub use super::calls::{Refused, Ticket};

/// What became of a publish: its offset, or `None` when nobody was in the room.
pub type Answer = Result<Option<u64>, Refused>;

/// The control thread's side. See the module documentation.
#[derive(Debug)]
pub struct Publisher {
    calls: Calls<Publish, Option<u64>>,
    homes: HomeHasher,
    /// Whether the thread that owns this sleeps.
    own: Arc<Sleeper>,
    segments: SegmentPool,
    patience: Duration,
}

/// How long the oldest publish without an answer may wait before no more are handed to its shard.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// A shard's side.
pub(super) type Inlet = Inbox<Publish, Option<u64>>;

impl Publisher {
    /// The publisher of the thread `own` to the shards over which `homes` spreads the rooms, and
    /// their sides of it; `len_max` publishes may be under way to each.
    pub(super) fn new(
        homes: &HomeHasher,
        sleepers: &Sleepers,
        own: Arc<Sleeper>,
        len_max: usize,
    ) -> (Self, Vec<Inlet>) {
        let (calls, inlets) = Calls::new(homes.shards(), sleepers, &own, len_max);
        let (homes, segments) = (homes.clone(), SegmentPool::new());
        (Self { calls, homes, own, segments, patience: PATIENCE }, inlets)
    }

    /// The same with another patience, for tests that wait for nothing or for everything.
    #[cfg(test)]
    pub(crate) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Hands a publish to its room's home shard; [`Publisher::take_answers`] will name `ticket`.
    /// To be followed by [`Publisher::wake_shards`]. Publishes to one room keep their order. It is
    /// `now`.
    ///
    /// Cost: one copy of the message, one allocation for the room's name.
    ///
    /// # Errors
    /// See [`Refused`]; gives the publish back.
    pub fn publish<'m>(
        &mut self,
        publication: Publication<'m>,
        ticket: Ticket,
        now: Instant,
    ) -> Result<(), (Refused, Publication<'m>)> {
        let space = match publication.content {
            Content::Native { .. } => NameSpace::Native,
            Content::Text(_) | Content::Binary(_) => NameSpace::Raw,
        };
        let room = RoomName::new(space, &publication.room_id);
        let home = self.homes.home(&room);
        let taken = match self.calls.check(home) {
            Err(Refused::Ended) => Err(Refused::Ended),
            _ if self.calls.is_behind(home, now, self.patience) => Err(Refused::Behind),
            taken => taken,
        };
        if let Err(refused) = taken {
            return Err((refused, publication));
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
        self.calls.call(home, Publish { room, message }, ticket, now);
        Ok(())
    }

    /// Names, through `wake`, every shard that was published to and sleeps.
    pub fn wake_shards(&mut self, wake: impl FnMut(ShardId)) {
        self.calls.wake_shards(wake);
    }

    /// Tells, through `tell`, what became of publishes. Each ticket is named once, and makes room
    /// for another.
    pub fn take_answers(&mut self, tell: impl FnMut(Ticket, Answer)) {
        self.calls.take_answers(tell);
    }

    /// The thread is about to sleep until it is woken: from now on shards do that. Returns
    /// `false` when there are answers already; then it must not sleep.
    #[must_use]
    pub fn fall_asleep(&mut self) -> bool {
        self.own.fall_asleep();
        let may = !self.calls.has_answers();
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

impl<I: Io> Shard<I> {
    /// Takes in what the control thread publishes to rooms whose home is here, as long as no room
    /// is congested.
    pub(super) fn take_publishes(&mut self) {
        let now = self.io.now();
        for _ in 0..MESSAGES_PER_MAILBOX {
            if self.is_backed_up() {
                self.congested = true;
                return;
            }
            let Some((call, Publish { room, message })) = self.ends.inlet.take() else {
                return;
            };
            let Some(room) = self.home.find(&room) else {
                self.ends.inlet.answer(call, None);
                continue;
            };
            let offset = self.home.publish(room, &message, now);
            self.metrics.published.add(1);
            self.acks.push(OwedAck { room, offset, to: AckTo::Control(call) });
        }
    }
}

#[cfg(test)]
mod tests;
