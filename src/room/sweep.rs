//! Visits the members of a room and gives each everything from its cursor to the head.
//!
//! A sweep goes round and round the member list, a bounded step per tick of the shard, so that a
//! large room never holds up a small one. Whoever is visited gets everything up to the head, also
//! what has come since the round began; those before it get that in the next round. So a message
//! is with the last member once everybody was visited, wherever in a round it came, and when
//! publishing is faster than sending each visit simply carries more: batching grows by itself with
//! the load.
//!
//! ```text
//!          ┌──── head > swept: somebody has not got everything ────┐
//!          ▼                                                       │
//!   idle ─────▶ round: members[next..], a step at a time ─▶ end: swept, trim
//!    ▲  append            │ ▲                                      │
//!    │                    └─┘ append: coalesce from the next       │
//!    │                        member's cursor on                   │
//!    └──────────────── all are at the head, or busy ───────────────┘
//! ```
//!
//! A member that is *busy* (its socket is full, or it got something else in this tick) is passed
//! by. A full socket catches up by itself when it is writable again; until it has, sweeps know it
//! by its [`Standing`] and do no more than see whether the [`Floor`] has risen above it.
//!
//! (Rejected: rounds that carry only what was there when they began. They copy slices together less
//! often, but what comes meanwhile waits for the next round. 10,000 members, 100 messages/s, three
//! pairs: the median delivery took 55 ms instead of 41, the last one 80 ms instead of 63; with 16
//! messages under way rounds were 1.02 times as fast, within the noise.)
//!
//! Invariants: `members[..next]` have been visited in this round; `slowest` is the lowest position
//! seen in it at which a member may go on; nothing below `slowest` of the last finished round is
//! needed any more.

use std::time::Instant;

use bytes::Bytes;

use super::log::RoomLog;
use super::segment::SegmentPool;
use super::{Member, Members, Standing};
use crate::config::{Policy, SlowConsumer};

/// What a visited member did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// It took the slice (as far as we know now; a short send comes back through
    /// [`Sweep::rewind`]).
    Sent,
    /// It already got something in this tick: come again in the next round.
    Later,
    /// Its socket is full: it will catch up by itself.
    Blocked,
}

/// What a step of a sweep has done.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Delivered {
    /// Members that were sent something.
    pub sends: usize,
    /// What that took of the budget, and those that fell below the floor.
    pub cost: usize,
    /// Messages that they were sent, all together.
    pub messages: u64,
    /// Every member that is not blocked has got more now; since this time, when the oldest message
    /// of that was numbered, they have been waiting for it.
    pub finished: Option<Instant>,
}

/// Bytes of a send that count as one in the budget of a step. The kernel takes some 5 us for a
/// short send on loopback and twice as long for one of so many.
pub const BYTES_PER_UNIT: usize = 16 * 1024;

/// What lies at one cursor. Nearly all members have the same, so it is looked up once for them.
struct Piece<'l> {
    cursor: u64,
    bytes: &'l Bytes,
    from: usize,
    messages: u64,
    cost: usize,
}

impl<'l> Piece<'l> {
    fn at(cursor: u64, log: &'l RoomLog) -> Option<Self> {
        let (bytes, from) = log.at(cursor)?;
        let len = bytes.len() - from;
        let messages = log.messages(cursor..cursor + len as u64);
        Some(Self { cursor, bytes, from, messages, cost: len.div_ceil(BYTES_PER_UNIT) })
    }

    fn end(&self) -> u64 {
        self.cursor + (self.bytes.len() - self.from) as u64
    }
}

/// Below it, nothing is kept for members that are behind. See [`super::policy`].
#[derive(Debug)]
pub struct Floor<'a> {
    /// Position in the log.
    pub position: u64,
    /// What sets it.
    pub policy: &'a Policy,
    /// Where the connections of members below it go if they are to be disconnected; until they are
    /// the log is kept for them. Other members below it stay, and are overtaken.
    pub too_slow: &'a mut Vec<u32>,
}

impl Floor<'_> {
    /// Deals with a member that is behind. Returns whether that was any work.
    fn overtake(&mut self, member: &mut Member, log: &RoomLog) -> bool {
        if member.standing != Standing::Behind || member.cursor >= self.position {
            return false;
        }
        if self.policy.slow_consumer == SlowConsumer::Disconnect {
            self.too_slow.push(member.connection);
        } else {
            member.cursor = log.offset_at(member.cursor);
            member.standing = Standing::Overtaken;
        }
        true
    }
}

/// Where the sweep of one room stands. See the module documentation.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Index of the next member to visit; 0 between rounds.
    next: usize,
    /// Lowest position seen in this round at which a member may go on.
    slowest: u64,
    /// Lowest cursor that a visited member that is not blocked has now.
    reached: u64,
    /// The head when slices were coalesced last.
    gathered: u64,
    /// One more round is due, whatever comes.
    again: bool,
    /// The log may be trimmed to here as soon as the sends of this tick are resolved.
    trim: Option<u64>,
    /// Every member that is not blocked has got everything up to here.
    swept: u64,
    /// Some member was sent something since `swept` rose.
    served: bool,
}

impl Sweep {
    /// Position up to which every member that is not blocked has been served.
    #[must_use]
    pub const fn swept(&self) -> u64 {
        self.swept
    }

    /// Whether there is anything to do: a round to begin or to finish, a log to trim.
    #[must_use]
    pub fn is_due(&self, log: &RoomLog) -> bool {
        self.next > 0 || self.again || self.trim.is_some() || log.head() > self.swept
    }

    /// Visits members until one round is over, or `budget` is used up, and calls `visit` with each
    /// current member that is not at the head, the slice at its cursor and where in it the cursor
    /// is. A send of up to [`BYTES_PER_UNIT`] costs one of `budget`, and so does a member that fell
    /// below the floor; a longer send costs as many as it has times so many bytes, and the last one
    /// may go past the budget.
    pub fn advance(
        &mut self,
        members: &mut Members,
        log: &mut RoomLog,
        segments: &mut SegmentPool,
        budget: usize,
        mut floor: Floor<'_>,
        mut visit: impl FnMut(&Member, &Bytes, usize) -> Visit,
    ) -> Delivered {
        let mut delivered = Delivered::default();
        if let Some(position) = self.trim.take() {
            log.trim(position);
        }
        if self.next == 0 {
            if !self.again && log.head() <= self.swept {
                return delivered;
            }
            log.compact();
            (self.again, self.gathered) = (false, 0);
            (self.slowest, self.reached) = (u64::MAX, u64::MAX);
        }
        if let Some(member) = members.get(self.next)
            && log.head() > self.gathered
        {
            // Whoever comes behind it has got as much as it has, or more.
            let is_current = member.standing == Standing::Current;
            log.coalesce(if is_current { member.cursor } else { self.swept }, segments);
            self.gathered = log.head();
        }
        let log = &*log;
        let mut piece = None::<Piece<'_>>;
        while self.next < members.len() {
            if delivered.cost >= budget {
                self.served |= delivered.sends > 0;
                return delivered;
            }
            let member = &mut members[self.next];
            if member.standing == Standing::Current && member.cursor < log.head() {
                if piece.as_ref().is_none_or(|piece| piece.cursor != member.cursor) {
                    piece = Piece::at(member.cursor, log);
                }
                let piece = piece.as_ref().expect("something lies before the head");
                match visit(member, piece.bytes, piece.from) {
                    Visit::Sent => {
                        delivered.sends += 1;
                        delivered.cost += piece.cost;
                        delivered.messages += piece.messages;
                        member.cursor = piece.end();
                    }
                    Visit::Later => {}
                    Visit::Blocked => member.standing = Standing::Behind,
                }
            }
            delivered.cost += usize::from(floor.overtake(member, log));
            let position = match member.standing {
                Standing::Current | Standing::Behind => member.cursor,
                Standing::Overtaken => floor.position,
            };
            self.slowest = self.slowest.min(position);
            if member.standing == Standing::Current {
                self.reached = self.reached.min(position);
            }
            self.next += 1;
        }
        self.next = 0;
        self.trim = Some(self.slowest.min(log.head()));
        self.served |= delivered.sends > 0;
        let reached = self.reached.min(log.head());
        if reached > self.swept {
            let since = log.time_at(self.swept);
            delivered.finished = since.filter(|_| std::mem::take(&mut self.served));
            self.swept = reached;
        }
        delivered
    }

    /// A send was short: the member's cursor went back to `cursor`, and the log must keep what
    /// lies there.
    pub fn rewind(&mut self, cursor: u64) {
        self.slowest = self.slowest.min(cursor);
        self.trim = self.trim.map(|position| position.min(cursor));
    }

    /// A member that was blocked has caught up or left: one more round finds out what is not
    /// needed any more.
    pub fn again(&mut self) {
        self.again = true;
    }

    /// Makes a hole for the member at `index` to leave: returns the index whose member must be
    /// moved into `index` first, so that afterwards `swap_remove` of the returned index neither
    /// skips an unvisited member nor visits one twice.
    pub(super) fn leave(&mut self, index: usize) -> usize {
        if index < self.next {
            self.next -= 1;
            self.next
        } else {
            index
        }
    }
}
