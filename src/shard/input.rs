//! The receiving half of a shard: completions, opening handshakes, messages, commands.
//!
//! Input is handled strictly in order. Where it has to wait (for a room's home to answer, for
//! room in a mailbox, for the peer to take its replies), the rest is held back and the socket is
//! not read, so that TCP slows the peer down; [`Shard::resume`] goes on where it stopped.

use std::borrow::Cow;
use std::mem;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use tracing::debug;

use super::authority::Admission;
use super::closing::Reason;
use super::connection::{Accept, Connection, Heard, Phase};
use super::membership::Joining;
use super::output::token;
use super::{REPLIES_USUAL, Shard};
use crate::auth::Grant;
use crate::dialect::native::{self, Command, ErrorCode};
use crate::dialect::{self, Endpoint, PAGE, PAGE_POLICY, Route};
use crate::id::NameSpace;
use crate::io::{Completion, Errno, Io, Operation, Token};
use crate::planted::{Bug, planted};
use crate::protocol::handshake;
use crate::protocol::{
    CloseCode, Event, HandshakeError, HandshakeLimits, Method, Opcode, Payload, PayloadLimits,
    Progress, Request, encode_close, encode_frame, is_proxy_header, parse_request,
};
use crate::slab::Key;

/// What to do with a good request.
enum Answer<'h> {
    Page {
        with_body: bool,
    },
    Upgrade {
        endpoint: Endpoint,
        room: Option<Cow<'h, str>>,
        accept: Accept,
        grant: Option<Box<Grant>>,
    },
    /// Nothing yet: its token waits to be verified.
    Later,
}

impl<I: Io> Shard<I> {
    /// Reaps everything that has completed, and deals with the sends of the last tick, so that
    /// everybody's cursor is true.
    pub(super) fn resolve_sends(&mut self) {
        let mut completions = mem::take(&mut self.completions);
        self.io.reap(&mut completions);
        // What was sent, by the numbers in the tokens.
        let mut staged = mem::take(&mut self.staged);
        for completion in &completions {
            if let Completion::SentShort(token, taken) = completion {
                self.handle_short_send(&staged[token.number() as usize], *taken);
            }
        }
        staged.clear();
        self.staged = staged;
        // Nothing holds the replies of the last tick any more: this takes their memory back.
        self.replies.reserve(REPLIES_USUAL);
        self.completions = completions;
    }

    /// Deals with the rest that has completed, in order.
    pub(super) fn handle_completions(&mut self) {
        let mut completions = mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            match completion {
                Completion::Accepted { listener, result, more } => {
                    self.handle_accepted(listener, result, more);
                }
                Completion::Readable(token) => self.handle_readable(key(token)),
                Completion::Writable(token) => self.handle_writable(key(token)),
                Completion::Received(token, result) => self.handle_received(key(token), result),
                Completion::SentShort(..) | Completion::Woken => {}
            }
        }
        self.completions = completions;
    }

    /// Asks to be told when there is input, unless that is under way.
    pub(super) fn watch_input(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if !connection.poll_readable && !connection.receiving && !connection.end_of_file {
            connection.poll_readable = true;
            let socket = connection.socket;
            self.io.submit(Operation::PollReadable { socket, token: token(key) });
        }
    }

    fn handle_readable(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.poll_readable = false;
        match connection.phase {
            Phase::Dead => self.free_if_idle(key),
            Phase::Draining => self.queue_receive(key),
            // Otherwise `resume` goes on when it may.
            _ if connection.may_read() => self.queue_receive(key),
            _ => {}
        }
    }

    fn queue_receive(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key)
            && !connection.receiving
        {
            connection.receiving = true;
            self.readable.push_back(key);
        }
    }

    /// Starts as many receives as there are buffers.
    pub(super) fn stage_receives(&mut self) {
        while self.io.receives_left() > 0 {
            let Some(key) = self.readable.pop_front() else {
                return;
            };
            let Some(connection) = self.connections.get_mut(key) else {
                continue;
            };
            if connection.phase == Phase::Dead {
                connection.receiving = false;
                self.free_if_idle(key);
                continue;
            }
            let socket = connection.socket;
            self.io.submit(Operation::Receive { socket, token: token(key) });
        }
    }

    fn handle_received(&mut self, key: Key, result: Result<I::Lease, Errno>) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.receiving = false;
        if connection.phase == Phase::Dead {
            if planted(Bug::LeakedBuffer) {
                mem::forget(result);
            }
            return self.free_if_idle(key);
        }
        match result {
            Ok(lease) if lease.is_empty() => self.handle_end_of_file(key),
            Ok(mut lease) => {
                self.metrics.bytes_received.add(lease.len() as u64);
                self.handle_input(key, &mut lease);
                let more = lease.len() == self.io.receive_bytes_max();
                drop(lease);
                let Some(connection) = self.connections.get(key) else {
                    return;
                };
                let reads = connection.may_read() || connection.phase == Phase::Draining;
                // Who must take what it is owed first is watched all the same: it says whether it
                // lives.
                if reads && more {
                    self.queue_receive(key);
                } else if reads || connection.owes() {
                    self.watch_input(key);
                }
            }
            Err(Errno::NO_MEMORY) if planted(Bug::PollNotReArmed) => {}
            Err(errno) if errno.is_transient() => self.watch_input(key),
            Err(errno) => self.retire(key, Reason::Broken(errno)),
        }
    }

    /// Goes on with a connection that had to wait: first with what was held back, then with what
    /// the socket has.
    pub(super) fn resume(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        if matches!(connection.phase, Phase::Preface | Phase::Opening) || !connection.may_read() {
            return;
        }
        let mut held = connection.take_held();
        if !held.is_empty() {
            self.handle_input(key, &mut held);
        }
        if let Some(connection) = self.connections.get(key)
            && connection.phase != Phase::Dead
            && connection.may_read()
        {
            self.watch_input(key);
        }
    }

    /// Handles bytes of the peer, or holds them back if that has to wait.
    fn handle_input(&mut self, key: Key, input: &mut [u8]) {
        match self.connections.get(key).map(|connection| connection.phase) {
            Some(Phase::Preface) => self.handle_preface(key, input),
            Some(Phase::Opening) => self.handle_opening(key, input),
            Some(Phase::Joining) => self.hold(key, input),
            Some(Phase::Open | Phase::Closing) => self.handle_frames(key, input),
            Some(Phase::Draining | Phase::Dead) | None => {}
        }
    }

    pub(super) fn hold(&mut self, key: Key, input: &[u8]) {
        if let Some(connection) = self.connections.get_mut(key)
            && !input.is_empty()
        {
            connection.extra().held.extend_from_slice(input);
        }
    }

    /// The opening handshake (RFC 6455 §4.2).
    pub(super) fn handle_opening(&mut self, key: Key, input: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let mut held = connection.take_held();
        let seen = held.len();
        let head = if held.is_empty() {
            input
        } else {
            held.extend_from_slice(input);
            held.as_mut_slice()
        };
        let limits = HandshakeLimits {
            handshake_bytes_max: self.limits.handshake_bytes_max,
            target_bytes_max: self.limits.target_bytes_max,
        };
        let answer = match parse_request(head, seen, &limits) {
            Ok(Progress::Incomplete) => return self.hold(key, head),
            Ok(Progress::Complete { request, consumed }) => {
                let method = request.method;
                self.identify(key, &request)
                    .and_then(|()| self.answer(key, &request))
                    .map(|answer| (answer, consumed))
                    .map_err(|error| (method, error))
            }
            Err(_) if is_proxy_header(head) => {
                Err((Method::Other, HandshakeError::ProxyHeaderUnexpected))
            }
            Err(error) => Err((Method::Other, error)),
        };
        match answer {
            Err((method, error)) => self.refuse_method(key, method, error),
            Ok((Answer::Page { with_body }, _)) => self.send_page(key, with_body),
            Ok((Answer::Later, _)) => {
                self.hold(key, head);
                self.verify_handshake_later(key);
            }
            Ok((Answer::Upgrade { endpoint, room, accept, grant }, consumed)) => {
                if let Some(grant) = grant {
                    self.authority.put(key, grant, self.io.now());
                }
                self.upgrade(key, endpoint, room.as_deref(), accept);
                self.handle_input(key, &mut head[consumed..]);
            }
        }
    }

    fn answer<'h>(
        &mut self,
        key: Key,
        request: &Request<'h>,
    ) -> Result<Answer<'h>, HandshakeError> {
        let route = dialect::route(request.method, request.path, &self.limits)?;
        let (endpoint, room) = match route {
            Route::Page => {
                return Ok(Answer::Page { with_body: request.method == Method::Get });
            }
            Route::Native => (Endpoint::Native, None),
            Route::Echo => (Endpoint::Echo, None),
            Route::Raw(room) => (Endpoint::Raw, Some(room)),
        };
        let grant = match self.authorise(key, request, room.as_deref())? {
            Admission::Admitted(grant) => grant,
            Admission::Later => return Ok(Answer::Later),
        };
        let upgrade = request.upgrade()?;
        let subprotocol = endpoint.subprotocol().filter(|name| upgrade.offers(name));
        let accept = Accept { key: upgrade.accept, subprotocol };
        Ok(Answer::Upgrade { endpoint, room, accept, grant })
    }

    fn send_page(&mut self, key: Key, with_body: bool) {
        let fields = [
            ("Content-Security-Policy", PAGE_POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-cache"),
        ];
        handshake::encode_page("text/html; charset=utf-8", &fields, PAGE.len(), &mut self.replies);
        self.queue_replies(key);
        if with_body {
            self.owe(key, Bytes::from_static(PAGE.as_bytes()));
        }
        self.finish(key, Reason::Answered);
    }

    fn upgrade(&mut self, key: Key, endpoint: Endpoint, room: Option<&str>, accept: Accept) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.endpoint = endpoint;
        match room {
            Some(room) => {
                self.enter_phase(key, Phase::Joining);
                self.join(key, NameSpace::Raw, room, Joining::Raw(accept));
            }
            None => self.accept_upgrade(key, &accept),
        }
    }

    /// Sends the 101: from here on, frames.
    pub(super) fn accept_upgrade(&mut self, key: Key, accept: &Accept) {
        self.enter_phase(key, Phase::Open);
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.heard = Heard::Message;
        let is_native = connection.endpoint == Endpoint::Native;
        if let Some(grant) = self.authority.grant(key).filter(|_| is_native) {
            let user_id = Some(Rc::clone(&grant.user_id));
            self.name_user(key, user_id);
        }
        self.begin_metering(key);
        self.clear_deadline(key);
        self.note_opened(key);
        handshake::encode_accept(&accept.key, accept.subprotocol, &mut self.replies);
        self.queue_replies(key);
    }

    /// Frames of an open connection, one event at a time.
    fn handle_frames(&mut self, key: Key, input: &mut [u8]) {
        if self.connections.get(key).is_some_and(Connection::is_open) {
            self.note_life(key);
        }
        let mut begins = self.connections.get(key).is_some_and(|c| c.decoder.is_idle());
        let mut at = 0;
        while at < input.len() {
            let Some(connection) = self.connections.get_mut(key) else {
                break;
            };
            if !matches!(connection.phase, Phase::Open | Phase::Closing) {
                break;
            }
            if !connection.may_read() {
                self.hold(key, &input[at..]);
                break;
            }
            let phase = connection.phase;
            let limits = PayloadLimits {
                frame_bytes_max: self.limits.frame_bytes_max,
                message_bytes_max: connection.endpoint.message_bytes_max(&self.limits),
            };
            let step = connection.decoder.decode(&mut input[at..], limits, &mut self.budget);
            match step {
                Ok(step) => {
                    at += step.consumed;
                    if phase == Phase::Open
                        && let Err(error) = self.meter(key, step.consumed, step.event.as_ref())
                    {
                        self.fail(key, error);
                        break;
                    }
                    if let Some(event) = step.event {
                        begins |= matches!(event, Event::Message { .. });
                        self.handle_event(key, event);
                    }
                }
                Err(error) => {
                    self.fail(key, error);
                    break;
                }
            }
        }
        self.queue_replies(key);
        self.time_message(key, begins);
    }

    /// Gives what has been received of a message a deadline if the message `begins` just now, and
    /// takes it away if there is none any more. While the socket is full the deadline is that of
    /// the sends.
    pub(super) fn time_message(&mut self, key: Key, begins: bool) {
        let Some(connection) = self.connections.get(key) else {
            return;
        };
        if connection.phase != Phase::Open || connection.poll_writable {
            return;
        }
        if connection.decoder.is_idle() {
            self.clear_deadline(key);
        } else if begins {
            self.set_deadline(key, self.limits.message_timeout);
        }
    }

    fn handle_event(&mut self, key: Key, event: Event<'_>) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let (phase, endpoint) = (connection.phase, connection.endpoint);
        let heard = if matches!(event, Event::Pong(_)) { Heard::Pong } else { Heard::Message };
        connection.heard = connection.heard.max(heard);
        match event {
            Event::Close(frame) => {
                let code = frame.map(|frame| frame.code);
                if phase == Phase::Open {
                    encode_close(code, "", &mut self.replies);
                    self.queue_replies(key);
                }
                self.finish(key, Reason::PeerClosed(code));
            }
            // After our own close the peer's messages do not count any more (RFC 6455 §1.4).
            _ if phase != Phase::Open => {}
            Event::Ping(payload) => encode_frame(Opcode::Pong, &payload, &mut self.replies),
            Event::Pong(_) => self.metrics.pongs.add(1),
            Event::Message { opcode, payload } => {
                self.metrics.messages.add(1);
                connection.received = connection.received.saturating_add(1);
                match endpoint {
                    Endpoint::Echo => {
                        self.sent.replies += 1;
                        encode_frame(opcode, &payload, &mut self.replies);
                    }
                    Endpoint::Raw => self.handle_raw(key, opcode, payload),
                    Endpoint::Native => self.handle_native(key, opcode, &payload),
                }
            }
        }
    }

    fn handle_raw(&mut self, key: Key, opcode: Opcode, payload: Payload<'_>) {
        if !self.may_publish_raw(key) {
            let words = "the token does not allow to publish here";
            return self.close(key, CloseCode::FORBIDDEN, words, Reason::Forbidden);
        }
        let payload = match payload {
            Payload::Borrowed(bytes) => self.segments.copy(bytes),
            Payload::Owned(bytes) => Bytes::from(bytes),
        };
        self.publish_raw(key, opcode, payload);
    }

    fn handle_native(&mut self, key: Key, opcode: Opcode, message: &[u8]) {
        if opcode != Opcode::Text {
            return self.reply_error(key, ErrorCode::InvalidMessage, None);
        }
        let request = match native::parse(message, &self.limits) {
            Ok(request) => request,
            Err(refusal) => return self.reply_error(key, refusal.code, refusal.id),
        };
        let id = request.id;
        let done = match request.command {
            Command::Ping => {
                self.reply_native(|out| native::pong(id, out));
                Ok(())
            }
            Command::Join { room_id, user_id } => {
                let allowed = self.permit(key, |grant| grant.may_join(&room_id));
                allowed.and_then(|()| self.join_native(key, &room_id, user_id.as_deref(), id))
            }
            Command::Leave { room_id } => self.leave_native(key, &room_id, id),
            Command::Broadcast { room_id, content } => {
                let allowed = self.permit(key, |grant| grant.may_publish(&room_id));
                allowed.and_then(|()| self.publish_native(key, &room_id, content, id))
            }
            Command::Direct { user_id, content } => {
                let allowed = self.permit(key, |grant| grant.direct);
                allowed.and_then(|()| self.direct_native(key, &user_id, content, id))
            }
            Command::Auth { token } => self.auth_native(key, &token, id),
        };
        if let Err(code) = done {
            self.reply_error(key, code, id);
        }
    }

    /// Answers that it cannot be done, counts it and says so in the log.
    pub(super) fn reply_error(&mut self, key: Key, code: ErrorCode, id: Option<&str>) {
        self.metrics.errors[code as usize].add(1);
        let socket = self.connections.get(key).map(|connection| connection.socket.0);
        debug!(shard = self.ends.shard.0, socket, code = code.code(), "request refused");
        self.reply_native(|out| native::error(code, id, out));
    }

    /// Writes one text message to the connection whose input is being handled.
    pub(super) fn reply_native(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let mut payload = mem::take(&mut self.scratch);
        write(&mut payload);
        self.sent.replies += 1;
        encode_frame(Opcode::Text, &payload, &mut self.replies);
        payload.clear();
        self.scratch = payload;
    }
}

fn key(token: Token) -> Key {
    Key::from_bits(token.number())
}
