//! What shards say to each other, and what the control thread says to them.
//!
//! Two kinds in two sets of mailboxes, so that no two shards can ever wait for each other:
//! *requests* go towards a room's home, *deliveries* come from it. Taking in a delivery depends
//! on nothing but this shard's own sweeps; taking in a request may depend on deliveries getting
//! through; nothing depends on requests.

use std::sync::Arc;

use bytes::Bytes;

use super::direct::Direct;
use crate::config::Limits;
use crate::dialect::native;
use crate::id::RoomName;
use crate::protocol::Opcode;
use crate::room::SegmentPool;
use crate::room::home::{Frames, Message};
use crate::slab::Key;

/// To the home of a room.
#[derive(Debug)]
pub enum Request {
    /// The sender has a member, or is about to, and wants every publish from now on.
    Subscribe {
        /// The room.
        name: Box<RoomName>,
        /// Its key at the sender.
        room: Key,
    },
    /// Somebody wants to be a member of a room of few seats.
    TakeSeat {
        /// The room's key at its home.
        home_key: Key,
        /// Its key at the sender.
        room: Key,
    },
    /// A member of a room of few seats has left.
    FreeSeat {
        /// The room's key at its home.
        home_key: Key,
    },
    /// The sender has no members any more.
    Unsubscribe {
        /// The room's key at its home.
        home_key: Key,
    },
    /// A member of the sender publishes.
    Publish {
        /// The room's key at its home.
        home_key: Key,
        /// What.
        message: Message,
        /// Who wants to be told the offset.
        ack: Option<Box<Ack>>,
    },
    /// For the connections of a user.
    Direct(Arc<Direct>),
    /// The sender drains and wants to know when it has got everything that was numbered until now.
    Fence {
        /// For which step of its drain.
        step: u32,
    },
}

/// From the home of a room.
#[derive(Debug)]
pub enum Delivery {
    /// The answer to [`Request::Subscribe`]: every publish after `offset` will come.
    Subscribed {
        /// The room's key at the receiver.
        room: Key,
        /// Its key at its home.
        home_key: Key,
        /// The newest offset so far.
        offset: u64,
        /// Its members need seats.
        few_seats: bool,
    },
    /// The answer to [`Request::TakeSeat`], in the order of the requests.
    Seat {
        /// The room's key at the receiver.
        room: Key,
        /// Whether there was one.
        taken: bool,
    },
    /// The other answer to [`Request::Subscribe`]: the home has no room for the room.
    Refused {
        /// The room's key at the receiver.
        room: Key,
    },
    /// Publishes, encoded.
    Frames {
        /// The room's key at the receiver.
        room: Key,
        /// The frames.
        frames: Frames,
    },
    /// A publish was numbered, and handed to every shard with members.
    Acknowledged {
        /// Who asked.
        ack: Box<Ack>,
        /// The offset it got.
        offset: u64,
    },
    /// A direct message has come to every shard.
    Directed(Arc<Direct>),
    /// The answer to [`Request::Fence`], behind everything that was numbered before it.
    Fence {
        /// As asked.
        step: u32,
    },
}

/// Who wants to be told the offset of a publish.
#[derive(Debug)]
pub struct Ack {
    /// The connection at its shard.
    pub connection: Key,
    /// The `id` of its request, as JSON.
    pub id: Bytes,
}

/// From the control thread to the home of a room: a publish by whoever is no member.
///
/// Answered in order, see [`super::publisher`].
#[derive(Debug)]
pub struct Publish {
    /// The room; it need not exist.
    pub room: RoomName,
    /// What.
    pub message: Message,
}

/// From the control thread.
#[derive(Debug, Clone)]
pub enum Control {
    /// From now on, keep to these limits. What was fixed at the start stays as it was, whatever
    /// they say: the number of shards, the length of their mailboxes and queues.
    Limits(Arc<Limits>),
    /// Close the listeners and every connection, then end.
    Drain,
}

/// The `broadcast` of the native protocol as a message for a room's home, in a segment.
pub(super) fn broadcast(
    segments: &mut SegmentPool,
    room_id: &str,
    sender: &str,
    content: &str,
) -> Message {
    let len_max = native::broadcast_len_max(room_id.len(), sender.len(), content.len());
    let offset_at = native::broadcast(room_id, sender, content, segments.open(len_max));
    Message { opcode: Opcode::Text, payload: segments.cut(), offset_at: Some(offset_at) }
}
