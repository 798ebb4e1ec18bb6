//! One connection: where it is in its life, what is armed on it, what it is owed.
//!
//! ```text
//!             refused, timed out (HTTP answer)
//!   Opening ───────────────────────────────────────────────┐
//!      │ request      ┌───────────────────────────────────┐│
//!      ▼              │ peer closes, errs, or is gone     ▼▼
//!   Joining ───▶ Open ┤                               Draining ───▶ Dead ───▶ slot freed
//!   (raw only)        │ we close     peer answers         ▲│  end of file,      nothing
//!                     └──▶ Closing ───────────────────────┘│  or time is up     armed
//!                             └────────────────────────────┘
//! ```
//!
//! (With `proxy_protocol` a connection of a trusted proxy is in *Preface* before it is *Opening*.)
//!
//! *Draining* is the polite end of everything: send what is owed, half-close, discard what still
//! arrives, so that no reset can overtake the last answer. It lasts `close_timeout` at most, once
//! all is sent; for that the peer has `send_timeout`, as always.
//!
//! # Size
//!
//! The struct is what a million idle connections pay for, so everything that most of them do not
//! need at any moment is in [`Extra`], which exists only while it holds something. Bytes of user
//! memory, held to by the compiler at the end of this file:
//!
//! | What an idle member needs                                      |   `/raw` |    `/ws` |
//! |----------------------------------------------------------------|---------:|---------:|
//! | its slot of the shard's [`Slab`], a [`Connection`] in it        |       80 |       80 |
//! | its place in the room, a [`Member`]                             |       16 |       16 |
//! | [`Named`]: its rooms and its name                               |          |       40 |
//! | for each room a [`Membership`]                                  |          |       32 |
//! | its display name, counted by reference: 16 and as long as it is |          |   16 + n |
//! | **in all**                                                      |   **96** | **184 + n** |
//!
//! Of the 72 bytes of a [`Connection`] the socket takes 4, the links of the deadlines' wheel 12,
//! the tick of the last send 4, twelve states and flags a byte each, the idle decoder 8, the rooms
//! 16, the pointer to [`Extra`] 8, and what operators want to know of a connection that ends (since
//! when it was there, how many messages came from it) 8; the slot adds its generation and the link
//! of the free ones, 8. Slots and places come in chunks of 256, so nothing on `/raw` is an
//! allocation of its own; the chunks' own addresses come to less than a byte. On `/ws` there are
//! three, each rounded up to 16 bytes by the allocator; the second room makes the list of rooms
//! grow to four. Nothing else grows with members: names of rooms are kept per room.
//! (`benches/instructions` counts the allocations and their bytes on a running shard.)
//!
//! Beside them a connection with a name, or a token's user, has an entry of 10 to 20 bytes in the
//! shard's table of users ([`super::direct`]), as full as that is.
//!
//! At times: [`Extra`], 160 bytes and what it holds, for what is owed or had to wait; what was
//! received of a message that is not complete, in the decoder.
//!
//! Measured, resident: 112 bytes per member with a million, 147 with 10,000 (results/README.md).
//! The difference is mostly per shard, not per connection: receive buffers, lists of work as long
//! as a storm, rings. None of it is in huge pages ([`crate::io::host::refuse_huge_pages`]). And
//! none of it is the kernel's memory, which is the larger part by far: some 4,085 bytes per
//! connection at the server's end.

mod memberships;

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::deadlines::Deadline;
use super::message::Request;
use super::outbox::Outbox;
use crate::dialect::Endpoint;
use crate::id::ShardId;
use crate::io::Socket;
use crate::planted::{Bug, planted};
use crate::protocol::Decoder;
use crate::room::Member;
use crate::room::segment::SEGMENT_BYTES;
use crate::slab::{Key, Slab};

pub use memberships::{Membership, Memberships, Named};

/// See the module documentation.
#[derive(Debug)]
pub struct Connection {
    /// Its socket.
    pub socket: Socket,
    /// When something must have happened; belongs to the shard's `Deadlines`.
    pub deadline: Deadline,
    /// The last tick in which something was sent to it: at most one send per tick.
    pub sent_tick: u32,
    /// Since when: microseconds (modulo 2^32) of the shard's time while the opening handshake is
    /// under way, [`super::ending::UNIT`]s from then on.
    pub since: u32,
    /// Messages received; no more than fit.
    pub received: u32,
    /// Where it is in its life.
    pub phase: Phase,
    /// What its messages mean; means nothing before `Open`.
    pub endpoint: Endpoint,
    /// It counts among the connections that the server may hold.
    pub admitted: bool,
    /// A poll for input is armed.
    pub poll_readable: bool,
    /// A poll for output is armed: the socket is full, nothing may be sent.
    pub poll_writable: bool,
    /// A receive is in flight, or it is queued for one.
    pub receiving: bool,
    /// It is on the shard's list of connections to send to.
    pub queued: bool,
    /// It waits for a room's home to answer a join; its input waits, too.
    pub waiting: bool,
    /// Sweeps have passed it by while its socket was full: it must catch up by itself.
    pub behind: bool,
    /// The peer sends no more.
    pub end_of_file: bool,
    /// We have half-closed.
    pub half_closed: bool,
    /// What has come since the heartbeats' last visit.
    pub heard: Heard,
    /// What it has received of a frame or message that is not complete.
    pub decoder: Decoder,
    /// The rooms it is in.
    pub memberships: Memberships,
    /// What only some connections need, and only at times.
    pub extra: Option<Box<Extra>>,
}

/// Where a connection is in its life; the picture is in the module documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Receiving the PROXY header of a trusted proxy.
    Preface,
    /// Receiving the upgrade request.
    Opening,
    /// The request is good; the 101 goes out when the room is joined.
    Joining,
    /// Messages pass.
    Open,
    /// We have sent a close and wait for the peer's.
    Closing,
    /// Sending what is owed, then half-closing, then waiting for the peer's end.
    Draining,
    /// Shut down; waiting for what is armed to complete.
    Dead,
}

impl Phase {
    /// Whether the opening handshake is not over.
    #[must_use]
    pub const fn is_handshake(self) -> bool {
        (self as usize) < Self::Open as usize
    }

    /// Whether the connection ends, and what it is owed is still sent.
    #[must_use]
    pub const fn is_ending(self) -> bool {
        matches!(self, Self::Closing | Self::Draining)
    }

    /// How many phases there are.
    const COUNT: usize = Self::Dead as usize + 1;
}

/// How many connections of a shard are in which phase: the table of connections by phase.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Phases([usize; Phase::COUNT]);

impl Phases {
    /// A connection begins, in `phase`.
    pub fn enter(&mut self, phase: Phase) {
        self.0[phase as usize] += 1;
    }

    /// A connection ends, in `phase`.
    pub fn leave(&mut self, phase: Phase) {
        self.0[phase as usize] -= 1;
    }

    /// A connection goes on from one phase to another.
    pub fn change(&mut self, from: Phase, to: Phase) {
        self.leave(from);
        self.enter(to);
    }

    /// Opening handshakes under way.
    #[must_use]
    pub fn handshakes(&self) -> usize {
        // The phases of the handshake stand before the others.
        self.0[..Phase::Open as usize].iter().sum()
    }

    /// Connections on which messages pass.
    #[must_use]
    pub const fn open(&self) -> usize {
        self.0[Phase::Open as usize]
    }
}

/// What has come from a peer lately; the greatest counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heard {
    /// Nothing.
    Nothing,
    /// Pongs and nothing else: it lives and has nothing to say.
    Pong,
    /// The upgrade request, a message, a ping.
    Message,
}

/// What the 101 will say, once it may be said.
#[derive(Debug)]
pub struct Accept {
    /// The value of Sec-WebSocket-Accept.
    pub key: [u8; 28],
    /// The subprotocol that was chosen.
    pub subprotocol: Option<&'static str>,
}

/// State that only some connections need, and only at times.
#[derive(Debug, Default)]
pub struct Extra {
    /// Input that cannot be handled yet: an incomplete upgrade request, or what lies behind a
    /// message that has to wait.
    pub held: Vec<u8>,
    /// What is to be sent before anything from a room: the rest of a frame that was cut,
    /// replies, the close.
    pub outbox: Outbox,
    /// A request that has to wait; until it is made nothing more is read.
    pub stalled: Option<Stalled>,
    /// Its socket is full, and by then it must take something; but its deadline is an earlier one,
    /// for a sign of life: see [`super::heartbeat`].
    pub send_by: Option<Instant>,
}

/// A request that found the mailbox full, or whose room is late.
#[derive(Debug)]
pub struct Stalled {
    /// Where it goes.
    pub shard: ShardId,
    /// What is asked.
    pub request: Request,
    /// Of a publish: the room.
    pub room: Option<Key>,
}

/// Messages of rooms that wait in the outbox of a connection at most.
const GATHERED_MAX: usize = 128;
/// The most bytes of one room that are copied to wait there; longer ones wait as they are.
const GATHERED_COPIED_MAX: usize = 1024;

impl Extra {
    fn is_empty(&self) -> bool {
        self.held.is_empty()
            && self.outbox.is_empty()
            && self.stalled.is_none()
            && self.send_by.is_none()
    }
}

impl Connection {
    /// A connection that has just been accepted, at this time.
    #[must_use]
    pub fn new(socket: Socket, since: u32) -> Self {
        Self {
            socket,
            deadline: Deadline::default(),
            sent_tick: 0,
            since,
            received: 0,
            phase: Phase::Opening,
            endpoint: Endpoint::Raw,
            admitted: false,
            poll_readable: false,
            poll_writable: false,
            receiving: false,
            queued: false,
            waiting: false,
            behind: false,
            end_of_file: false,
            half_closed: false,
            heard: Heard::Message,
            decoder: Decoder::default(),
            memberships: Memberships::None,
            extra: None,
        }
    }

    /// The rarely needed state, made if it is not there.
    pub fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Drops the rarely needed state if nothing is left in it.
    pub fn trim(&mut self) {
        if self.extra.as_ref().is_some_and(|extra| extra.is_empty()) {
            self.extra = None;
        }
    }

    /// Whether messages pass.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether its outbox holds something.
    #[must_use]
    pub fn owes(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| !extra.outbox.is_empty())
    }

    /// Whether its input may be handled now: it waits for no answer, for no room in a mailbox, and
    /// is owed nothing. (A peer that asks but does not listen is not heard: that bounds what it
    /// can make us owe it to the answers to one receive.)
    #[must_use]
    pub fn may_read(&self) -> bool {
        let stalled = self.extra.as_ref().is_some_and(|extra| extra.stalled.is_some());
        !self.waiting && !stalled && (!self.owes() || planted(Bug::HeardWhileOwed))
    }

    /// By when it must take something, while its deadline is that of a sign of life.
    #[must_use]
    pub fn send_by(&self) -> Option<Instant> {
        self.extra.as_ref().and_then(|extra| extra.send_by)
    }

    /// The same, and forgets it.
    pub fn take_send_by(&mut self) -> Option<Instant> {
        let send_by = self.extra.as_mut().and_then(|extra| extra.send_by.take());
        if send_by.is_some() {
            self.trim();
        }
        send_by
    }

    /// Whether the kernel may still complete something on its socket.
    #[must_use]
    pub const fn is_armed(&self) -> bool {
        self.poll_readable || self.poll_writable || self.receiving
    }

    /// Puts the messages `bytes[from..]` of a room behind what is in the outbox, to leave together
    /// with it: a member of many rooms that are all busy would otherwise be sent one message of one
    /// room per tick. Returns false if a lot waits there already.
    ///
    /// Small ones are copied, because they would keep their segment alive. Large ones do so: they
    /// wait only while no more waits there than one send takes. (Rejected: that they do not wait
    /// there at all. While other rooms had something small for the member in every tick, a large
    /// message never had its turn.)
    pub fn gather(&mut self, bytes: &Bytes, from: usize) -> bool {
        let (pieces, waiting) =
            self.extra.as_ref().map_or((0, 0), |it| (it.outbox.len(), it.outbox.bytes()));
        let small = bytes.len() - from <= GATHERED_COPIED_MAX;
        let large_may = waiting < SEGMENT_BYTES;
        let gathers = pieces < GATHERED_MAX
            && (small || large_may)
            && matches!(self.memberships, Memberships::Many(_));
        if gathers {
            let piece = match small {
                true => Bytes::copy_from_slice(&bytes[from..]),
                false => bytes.slice(from..),
            };
            self.extra().outbox.push_back(piece);
        }
        gathers
    }

    /// Puts it, under its `key`, on the list of those with something to be sent, once.
    pub fn queue(&mut self, key: Key, owed: &mut VecDeque<Key>) {
        if !std::mem::replace(&mut self.queued, true) {
            owed.push_back(key);
        }
    }

    /// Takes the request that waits.
    pub fn take_stalled(&mut self) -> Option<Stalled> {
        self.extra.as_mut().and_then(|extra| extra.stalled.take())
    }

    /// Takes the input that was held back.
    pub fn take_held(&mut self) -> Vec<u8> {
        let held = self.extra.as_mut().map(|extra| std::mem::take(&mut extra.held));
        self.trim();
        held.unwrap_or_default()
    }
}

// The table in the module documentation, row by row; growing is a decision, not an accident.
const _: () = assert!(Slab::<Connection>::SLOT_BYTES == 80);
const _: () = assert!(size_of::<Connection>() == 72);
const _: () = assert!(size_of::<Deadline>() == 12);
const _: () = assert!(size_of::<Decoder>() == 8);
const _: () = assert!(size_of::<Memberships>() == 16);
const _: () = assert!(size_of::<Option<Box<Extra>>>() == 8);
const _: () = assert!(size_of::<Member>() == 16);
const _: () = assert!(size_of::<Named>() == 40);
const _: () = assert!(size_of::<Membership>() == 32);
const _: () = assert!(size_of::<Extra>() == 160);
