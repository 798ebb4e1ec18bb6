//! The end of connections: refusals, closes from either side, and what has to happen until a slot
//! is free. The picture is that of [`super::connection`].
//!
//! Every connection ends politely, by `finish`, or at once, by `retire`; `release` is the end of
//! both.

use std::time::Duration;

use super::Shard;
use super::connection::Phase;
use crate::io::{Errno, Io, Operation, Shutdown};
use crate::planted::{Bug, planted};
use crate::protocol::{CloseCode, HandshakeError, Method, ProtocolError, encode_close, handshake};
use crate::slab::Key;

/// Why a connection ended; exactly one for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The peer closed, with the closing handshake and perhaps a code.
    PeerClosed(Option<CloseCode>),
    /// The peer ended the connection without a closing handshake.
    PeerGone,
    /// The connection broke.
    Broken(Errno),
    /// The peer broke the protocol.
    Violation(ProtocolError),
    /// The opening handshake was refused.
    Refused(HandshakeError),
    /// An HTTP answer was given that was all there was to do.
    Answered,
    /// Its token has expired.
    TokenExpired,
    /// It published in a raw room that its token does not allow to publish in.
    Forbidden,
    /// It fell further behind than its room allows.
    SlowConsumer,
    /// It took nothing of what it was owed for `send_timeout`.
    SendTimeout,
    /// It showed no sign of life within `pong_timeout` after a ping.
    PongTimeout,
    /// It did not finish within `close_timeout`.
    CloseTimeout,
    /// The server shuts down.
    Drain,
    /// An operator wanted it so, and this close code.
    Operator(CloseCode),
}

impl<I: Io> Shard<I> {
    /// Answers an upgrade request with an error and ends the connection.
    pub(super) fn refuse(&mut self, key: Key, error: HandshakeError) {
        self.refuse_method(key, Method::Get, error);
    }

    /// The same for a request whose method is known.
    pub(super) fn refuse_method(&mut self, key: Key, method: Method, error: HandshakeError) {
        handshake::encode_refusal(error, method, &mut self.replies);
        self.queue_replies(key);
        self.finish(key, Reason::Refused(error));
    }

    /// The peer broke the protocol: says so and ends the connection (RFC 6455 §7.1.7).
    pub(super) fn fail(&mut self, key: Key, error: ProtocolError) {
        // One close is all a peer gets.
        if self.connections.get(key).is_some_and(|connection| connection.phase == Phase::Open) {
            encode_close(Some(error.close_code()), error.reason(), &mut self.replies);
        }
        self.queue_replies(key);
        self.finish(key, Reason::Violation(error));
    }

    /// Closes an open connection from our side, after everything it is owed by its rooms.
    pub(super) fn close_gracefully(
        &mut self,
        key: Key,
        code: CloseCode,
        words: &str,
        reason: Reason,
    ) {
        let rooms: Vec<_> = match self.connections.get(key) {
            Some(connection) => connection.memberships.iter().collect(),
            None => return,
        };
        for (room, index) in rooms.into_iter().filter(|_| !planted(Bug::ClosedBeforeSent)) {
            self.owe_room(key, room, index);
        }
        self.close(key, code, words, reason);
    }

    /// Closes an open connection from our side (RFC 6455 §7.1.2): sends a close and waits for the
    /// peer's.
    pub(super) fn close(&mut self, key: Key, code: CloseCode, words: &str, reason: Reason) {
        self.note_end(key, reason);
        self.leave_rooms(key);
        self.enter_phase(key, Phase::Closing);
        if let Some(connection) = self.connections.get_mut(key) {
            connection.waiting = false;
        }
        encode_close(Some(code), words, &mut self.replies);
        self.queue_replies(key);
        self.time_end(key);
        self.resume(key);
    }

    /// Gives a connection that ends its time, anew with every sign that it takes what it is owed:
    /// for that it has no less than an open one, or a slow consumer would never hear why it ends;
    /// then `close_timeout`, to answer a close or to end.
    pub(super) fn time_end(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let close_timeout = self.limits.close_timeout;
        let owes = connection.owes();
        let taking = if owes { self.limits.send_timeout } else { Duration::ZERO };
        self.set_deadline(key, close_timeout.max(taking));
    }

    /// The polite end: sends what is owed, half-closes, discards what still arrives. Nothing the
    /// peer says matters any more.
    pub(super) fn finish(&mut self, key: Key, reason: Reason) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        match connection.phase {
            Phase::Draining | Phase::Dead => return,
            Phase::Closing => {}
            Phase::Preface | Phase::Opening | Phase::Joining | Phase::Open => {
                self.note_end(key, reason);
            }
        }
        self.leave_rooms(key);
        self.enter_phase(key, Phase::Draining);
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.waiting = false;
        connection.decoder.reset(&mut self.budget);
        if let Some(extra) = &mut connection.extra {
            extra.held = Vec::new();
        }
        connection.trim();
        self.time_end(key);
        self.queue(key);
        self.watch_input(key);
    }

    /// All is sent: tells the peer so, and waits for its end.
    pub(super) fn half_close(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if connection.end_of_file {
            return self.release(key);
        }
        if !connection.half_closed {
            connection.half_closed = true;
            let socket = connection.socket;
            self.io.submit(Operation::Shutdown { socket, how: Shutdown::Write });
        }
    }

    /// The peer will send no more.
    pub(super) fn handle_end_of_file(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.end_of_file = true;
        match connection.phase {
            Phase::Draining if connection.half_closed => self.release(key),
            Phase::Draining => self.queue(key),
            _ => self.finish(key, Reason::PeerGone),
        }
    }

    /// Ends the connection at once, whatever it is owed.
    pub(super) fn retire(&mut self, key: Key, reason: Reason) {
        match self.connections.get(key).map(|connection| connection.phase) {
            Some(Phase::Preface | Phase::Opening | Phase::Joining | Phase::Open) => {
                self.note_end(key, reason);
            }
            Some(Phase::Closing | Phase::Draining) => {}
            Some(Phase::Dead) | None => return,
        }
        self.release(key);
    }

    /// Gives up everything but the slot, and that as soon as nothing is armed on the socket.
    fn release(&mut self, key: Key) {
        self.leave_rooms(key);
        self.clear_deadline(key);
        self.enter_phase(key, Phase::Dead);
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        // What it waits for may come before nothing is armed any more.
        connection.waiting = false;
        if !planted(Bug::LeakedBudget) {
            connection.decoder.reset(&mut self.budget);
        }
        connection.extra = None;
        if connection.is_armed() {
            // Completes what is armed. Closing alone would not even close the connection: what
            // is armed holds on to the socket.
            let socket = connection.socket;
            self.io.submit(Operation::Shutdown { socket, how: Shutdown::Both });
        }
        self.free_if_idle(key);
    }

    /// Closes the socket of a dead connection and frees its slot, once nothing is armed on it.
    pub(super) fn free_if_idle(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        let armed = connection.is_armed() && !planted(Bug::ClosedWhileArmed);
        if connection.phase == Phase::Dead && !armed {
            let socket = connection.socket;
            self.authority.remove(key);
            self.forget(key, connection.admitted);
            self.connections.remove(key);
            self.phases.leave(Phase::Dead);
            self.io.submit(Operation::Close { socket });
            // A descriptor is free: whoever waits in the backlog may come in.
            self.accept_at = None;
        }
    }

    /// Moves the connection on in its life; nothing else does.
    pub(super) fn enter_phase(&mut self, key: Key, phase: Phase) {
        if let Some(connection) = self.connections.get_mut(key) {
            let was = std::mem::replace(&mut connection.phase, phase);
            self.phases.change(was, phase);
        }
    }
}
