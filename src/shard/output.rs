//! The sending half of a shard.
//!
//! A connection gets at most one send per tick, from its outbox, from a sweep, or catching up
//! with its rooms, in this order. A send resolves by the next reap: silence means that all was
//! taken. If not, the socket is full: a poll tells when it is not, and until then the connection
//! is passed by.

use bytes::{BufMut, Bytes, BytesMut};

use super::closing::Reason;
use super::connection::Phase;
use super::{REPLIES_PER_TICK, Shard};
use crate::io::{Errno, Io, Operation, Token};
use crate::planted::{Bug, planted};
use crate::room::segment::SEGMENT_BYTES;
use crate::slab::Key;

/// What a send carried: what to do with the rest if it was short.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) connection: Key,
    pub(super) source: Source,
}

#[derive(Debug)]
pub(super) enum Source {
    /// From the outbox; the rest goes back to its front.
    Outbox(Bytes),
    /// From a room's log, from this cursor on so many bytes; the cursor goes back.
    Room { room: Key, cursor: u64, len: u32 },
    /// The same behind a notice; what is left of that goes to the front of the outbox.
    Noticed(Box<Noticed>),
}

/// What a member is sent when it goes on after it has skipped messages.
#[derive(Debug)]
pub(super) struct Noticed {
    pub(super) notice: Bytes,
    pub(super) room: Key,
    pub(super) cursor: u64,
    /// Bytes from the cursor on.
    pub(super) len: u32,
}

impl Source {
    /// Bytes that were to be sent.
    fn len(&self) -> usize {
        match self {
            Self::Outbox(bytes) => bytes.len(),
            Self::Room { len, .. } => *len as usize,
            Self::Noticed(noticed) => noticed.notice.len() + noticed.len as usize,
        }
    }
}

impl<I: Io> Shard<I> {
    /// Sends the replies that were written while handling input; if that cannot be now, they go to
    /// the connection's outbox.
    pub(super) fn queue_replies(&mut self, key: Key) {
        if self.replies.is_empty() {
            return;
        }
        // What is left behind a large echo would keep its memory alive.
        let large = self.replies.len() > SEGMENT_BYTES;
        let replies = self.replies.split().freeze();
        if large {
            self.replies = BytesMut::new();
        }
        if self.may_send(key) {
            self.send(key, &replies, 0, Source::Outbox(replies.clone()));
        } else {
            self.owe(key, replies);
        }
    }

    /// Whether something may be sent to the connection now: nothing was in this tick, and nothing
    /// waits.
    pub(super) fn may_send(&self, key: Key) -> bool {
        self.connections.get(key).is_some_and(|connection| {
            connection.sent_tick != self.tick
                && !connection.poll_writable
                && !connection.half_closed
                && !connection.owes()
                && connection.phase != Phase::Dead
        })
    }

    /// Puts `bytes`, if they are any, behind everything else in the connection's outbox.
    pub(super) fn owe(&mut self, key: Key, bytes: Bytes) {
        if let Some(connection) = self.connections.get_mut(key)
            && !bytes.is_empty()
            && connection.phase != Phase::Dead
            && !connection.half_closed
        {
            connection.extra().outbox.push_back(bytes);
            self.queue(key);
        }
    }

    /// Puts the connection on the list of those with something to be sent.
    pub(super) fn queue(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.queue(key, &mut self.owed);
        }
    }

    /// Sends to the connections on the list, one send each.
    pub(super) fn send_owed(&mut self) {
        for _ in 0..self.owed.len().min(REPLIES_PER_TICK) {
            let Some(key) = self.owed.pop_front() else {
                return;
            };
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            connection.queued = false;
            if connection.poll_writable || connection.phase == Phase::Dead {
                continue;
            }
            if connection.sent_tick == self.tick {
                self.queue(key);
                continue;
            }
            if connection.owes() {
                self.send_outbox(key);
            } else if connection.phase == Phase::Draining {
                self.half_close(key);
            } else if connection.behind {
                self.catch_up(key);
            }
        }
    }

    /// Sends what is first in the outbox, together with what is small behind it.
    fn send_outbox(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let Some(extra) = &mut connection.extra else {
            return;
        };
        let Some(mut bytes) = extra.outbox.pop_front() else {
            return;
        };
        let mut len = bytes.len();
        let small = |next: &&Bytes| {
            let fits = len + next.len() <= SEGMENT_BYTES;
            len += if fits { next.len() } else { 0 };
            fits
        };
        let together = extra.outbox.iter().take_while(small).count();
        if together > 0 {
            let segment = self.segments.open(len);
            segment.put_slice(&bytes);
            extra.outbox.drain(together).for_each(|next| segment.put_slice(&next));
            bytes = self.segments.cut();
        }
        // More to send, a half-close to make, or rooms to catch up with.
        let ends = connection.phase.is_ending();
        let again =
            !extra.outbox.is_empty() || connection.phase == Phase::Draining || connection.behind;
        connection.trim();
        self.send(key, &bytes, 0, Source::Outbox(bytes.clone()));
        if again {
            self.queue(key);
        }
        if ends {
            self.time_end(key);
        }
        self.resume(key);
    }

    /// Sends `bytes[from..]`, the only send to the connection in this tick.
    pub(super) fn send(&mut self, key: Key, bytes: &Bytes, from: usize, source: Source) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.sent_tick = self.tick;
        let socket = connection.socket;
        let token = Token::new(self.staged.len() as u64);
        self.sent.bytes += (bytes.len() - from) as i64;
        self.io.submit(Operation::Send { socket, token, bytes, from });
        self.staged.push(Staged { connection: key, source });
    }

    /// Sends the next slice of the first room in which the connection is behind. Sweeps have
    /// passed it by while its socket was full.
    fn catch_up(&mut self, key: Key) {
        let Some((room_key, index)) = self.room_behind(key) else {
            return self.caught_up(key);
        };
        let now = self.io.now();
        if self.rooms.get(room_key).is_some_and(|room| room.is_too_slow(index, now)) {
            return self.close_slow(key);
        }
        let notice = self.skip(key, room_key, index);
        let Some(room) = self.rooms.get_mut(room_key) else {
            return;
        };
        let cursor = room.member(index).cursor;
        let Some((bytes, from)) = room.log.at(cursor).map(|(bytes, from)| (bytes.clone(), from))
        else {
            // All that it waited for was too old.
            self.owe(key, notice);
            return self.queue(key);
        };
        let len = (bytes.len() - from) as u32;
        let next = cursor + u64::from(len);
        room.set_cursor(index, next);
        self.sent.deliveries += room.log.messages(cursor..next) as i64;
        self.metrics.sends.add(1);
        if notice.is_empty() {
            self.send(key, &bytes, from, Source::Room { room: room_key, cursor, len });
        } else {
            self.send_noticed(key, &bytes[from..], Noticed { notice, room: room_key, cursor, len });
        }
        self.queue(key);
    }

    /// It is where the others are in all its rooms: sweeps serve it again.
    fn caught_up(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.behind = false;
        for (room_key, index) in connection.memberships.iter().collect::<Vec<_>>() {
            if let Some(room) = self.rooms.get_mut(room_key) {
                room.catch_up(index);
            }
            self.activate(room_key);
        }
    }

    fn room_behind(&self, key: Key) -> Option<(Key, u32)> {
        let connection = self.connections.get(key)?;
        connection
            .memberships
            .iter()
            .find(|&(room, index)| self.rooms.get(room).is_some_and(|room| room.is_behind(index)))
    }

    /// Puts what a member has not been sent yet of its room's log into its outbox, as far as that
    /// is kept for it.
    pub(super) fn owe_room(&mut self, key: Key, room: Key, index: u32) {
        let notice = self.skip(key, room, index);
        self.owe(key, notice);
        let Some(room) = self.rooms.get_mut(room) else {
            return;
        };
        let cursor = room.member(index).cursor;
        room.set_cursor(index, room.log.head());
        self.sent.deliveries += room.log.messages(cursor..room.log.head()) as i64;
        for bytes in room.log.from(cursor).collect::<Vec<_>>() {
            self.owe(key, bytes);
        }
    }

    /// A send took only `taken` bytes, or failed.
    pub(super) fn handle_short_send(&mut self, staged: &Staged, taken: Result<usize, Errno>) {
        let key = staged.connection;
        self.sent.bytes -= (staged.source.len() - taken.unwrap_or(0)) as i64;
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if connection.phase == Phase::Dead {
            return;
        }
        let taken = match taken {
            Ok(taken) => taken,
            Err(errno) => return self.retire(key, Reason::Broken(errno)),
        };
        self.metrics.sends_short.add(1);
        match &staged.source {
            Source::Outbox(bytes) => {
                if taken < bytes.len() {
                    let from = taken + usize::from(planted(Bug::RemainderOffByOne));
                    let rest = bytes.slice(from..);
                    let rest = if bytes.is_unique() { rest } else { own(rest) };
                    connection.extra().outbox.push_front(rest);
                }
            }
            &Source::Room { room, cursor, len } => self.take_back(key, room, cursor, len, taken),
            Source::Noticed(noticed) => {
                let &Noticed { ref notice, room, cursor, len } = &**noticed;
                if taken < notice.len() {
                    connection.extra().outbox.push_front(notice.slice(taken..));
                }
                self.take_back(key, room, cursor, len, taken.saturating_sub(notice.len()));
            }
        }
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.behind |= !connection.memberships.is_empty();
        let socket = connection.socket;
        if !connection.poll_writable {
            connection.poll_writable = true;
            self.io.submit(Operation::PollWritable { socket, token: token(key) });
        }
        match connection.phase {
            Phase::Open => self.time_sends(key),
            phase if phase.is_ending() => self.time_end(key),
            _ => {}
        }
    }

    /// Of the `len` bytes that a member was sent from `cursor` on only `taken` went out: it keeps
    /// the rest of the frame that was cut, and goes on behind that.
    fn take_back(&mut self, key: Key, room: Key, cursor: u64, len: u32, taken: usize) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let index = connection.memberships.index_in(room);
        let index = index.expect("nobody leaves a room before its sends are resolved");
        let room = self.rooms.get_mut(room).expect("a room with a member exists");
        let (next, rest) = room.log.split(cursor, taken);
        self.sent.deliveries -= room.log.messages(next..cursor + u64::from(len)) as i64;
        room.fall_behind(index, if planted(Bug::RemainderSentTwice) { cursor } else { next });
        if !rest.is_empty() {
            connection.extra().outbox.push_front(own(rest));
        }
    }

    /// The socket takes bytes again.
    pub(super) fn handle_writable(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.poll_writable = false;
        connection.take_send_by();
        match connection.phase {
            Phase::Dead => self.free_if_idle(key),
            phase => {
                match phase {
                    Phase::Open => self.time_message(key, true),
                    phase if phase.is_ending() => self.time_end(key),
                    _ => {}
                }
                if !planted(Bug::WritableForgotten) {
                    self.queue(key);
                }
                self.resume(key);
            }
        }
    }
}

/// What is left of a frame, for as long as a socket is full: in memory of its own, or slow members
/// would each keep a segment alive for it. What is longer than a segment was not in one, but a
/// message by itself, which all that were cut in it share.
fn own(rest: Bytes) -> Bytes {
    if rest.len() <= SEGMENT_BYTES { Bytes::copy_from_slice(&rest) } else { rest }
}

/// A connection's key as the token of its polls and receives.
pub(super) const fn token(key: Key) -> Token {
    Token::new(key.to_bits())
}
