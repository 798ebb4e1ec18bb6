//! Who connections are and what they may do: tokens at the handshake, on the open connection, and
//! their end.
//!
//! ```text
//!   upgrade request ─▶ origin ─▶ token ─┬─▶ verified ─▶ may join the room ─▶ 101
//!   `auth` message ─────────────────────┤       ▲
//!                                       ▼       │ a bounded number per tick, in order
//!                                    waiting ───┘
//!   once a second: grants that have ended ─▶ close 4401
//! ```
//!
//! What a token allows is looked at when a room is joined and with every publish, never during a
//! fan-out. Everything is in a table of its own that exists while some connection has a token, so
//! that the others pay nothing for it: 8 bytes per slot, the [`Grant`], and its place in the order
//! of the ends, one however often a token is renewed.
//!
//! (Rejected: the connection's own deadline, of which it has one and which is that of its sends,
//! messages and pings; the wheel would pass over a token of an hour a hundred times.)

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::debug;

use super::closing::Reason;
use super::connection::Phase;
use super::{Shard, bound};
use crate::auth::{Grant, TOKEN_BYTES_MAX, TokenError};
use crate::dialect::is_name;
use crate::dialect::native::{self, ErrorCode};
use crate::io::Io;
use crate::protocol::{CloseCode, HandshakeError, Request};
use crate::slab::Key;

/// Signatures that are checked in one tick, or twice as many if the tick before had nothing to
/// check: with ES256, the slowest, 12 take 2 ms. However many bad tokens come, what else the shard
/// does goes on between them.
const CHECKS_PER_TICK: usize = bound(12, 2);
/// Connections that are closed in one tick because their tokens have expired.
const EXPIRED_PER_TICK: usize = bound(512, 4);
/// How often a shard looks for tokens that have expired: an expired one is at most so late.
const LOOK: Duration = Duration::from_secs(1);

/// What the connections of a shard may do. See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Authority {
    /// By the slot of its connection. Empty while nobody has one.
    grants: Vec<Option<Box<Grant>>>,
    /// When each of them ends, in seconds since 1970, and its slot.
    ends: BTreeSet<(u32, u32)>,
    /// Whose tokens could not be verified in the tick in which they came: each at most once.
    waiting: VecDeque<Waiting>,
    /// Signatures that may still be checked before the next round.
    checks_left: usize,
    /// When to look for those that have ended; `None`: there are none.
    look_at: Option<Instant>,
}

/// A token that waits. The connection's input waits with it.
#[derive(Debug)]
enum Waiting {
    /// In the upgrade request, which is held back.
    Handshake(Key),
    /// In an `auth` message.
    Renewal { key: Key, token: Box<str>, id: Option<Box<str>> },
}

impl Authority {
    /// What the connection may do by its token, if it has one.
    pub(super) fn grant(&self, key: Key) -> Option<&Grant> {
        self.grants.get(key.slot() as usize)?.as_deref()
    }

    /// How many connections have a token, and how many wait for theirs to be verified.
    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.ends.len(), self.waiting.len())
    }

    /// The time at which there may be something to do; `None`: not of itself.
    pub(super) fn next(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether tokens wait for the next tick.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// From now on the connection may do this, and nothing else.
    pub(super) fn put(&mut self, key: Key, grant: Box<Grant>, now: Instant) {
        self.remove(key);
        let slot = key.slot() as usize;
        if self.grants.len() <= slot {
            self.grants.resize_with(slot + 1, || None);
        }
        self.ends.insert((grant.expires, key.slot()));
        self.grants[slot] = Some(grant);
        self.look_at.get_or_insert(now + LOOK);
    }

    /// The connection may do nothing any more. Must be done before its slot is freed.
    pub(super) fn remove(&mut self, key: Key) {
        let slot = key.slot() as usize;
        let Some(grant) = self.grants.get_mut(slot).and_then(Option::take) else { return };
        self.ends.remove(&(grant.expires, key.slot()));
        if self.ends.is_empty() {
            self.grants = Vec::new();
            self.look_at = None;
        }
    }

    /// The slot of a connection whose token has ended by `unix_time`.
    fn ended(&self, unix_time: u64) -> Option<u32> {
        let &(end, slot) = self.ends.first()?;
        (u64::from(end) <= unix_time).then_some(slot)
    }
}

/// What has become of an upgrade request.
pub(super) enum Admission {
    /// Its client may come in, with this token unless there is no authentication.
    Admitted(Option<Box<Grant>>),
    /// Its token can only be verified in a later tick.
    Later,
}

impl<I: Io> Shard<I> {
    /// Whether the client may open a connection, to `room` if it is for one.
    pub(super) fn authorise(
        &mut self,
        key: Key,
        request: &Request<'_>,
        room: Option<&str>,
    ) -> Result<Admission, HandshakeError> {
        let origins = &self.limits.origins;
        if !origins.is_any() && request.origin().is_some_and(|origin| !origins.allow(origin)) {
            return Err(HandshakeError::OriginForbidden);
        }
        if self.limits.verifier.is_none() {
            return Ok(Admission::Admitted(None));
        }
        let token = request.bearer_token()?.ok_or(HandshakeError::TokenMissing)?;
        if self.authority.checks_left == 0 {
            return Ok(Admission::Later);
        }
        let grant = self.verify(key, &token).map_err(|_| HandshakeError::TokenInvalid)?;
        if room.is_some_and(|room| !grant.may_join(room)) {
            self.note_forbidden(key);
            return Err(HandshakeError::RoomForbidden);
        }
        Ok(Admission::Admitted(Some(grant)))
    }

    /// Whose connection it is: `sub` of its token, or without one the display name it gave last.
    pub(super) fn user_of(&self, key: Key) -> Option<&str> {
        let user_id = self.authority.grant(key).map(|grant| &*grant.user_id);
        user_id.or_else(|| self.connections.get(key)?.memberships.user())
    }

    /// Whether the connection may do what `allows` looks for in its grant. Without authentication
    /// everybody may do everything; with it, who came in before it was switched on and has not
    /// shown a token since may do nothing.
    pub(super) fn may(&self, key: Key, allows: impl FnOnce(&Grant) -> bool) -> bool {
        let may = self.limits.verifier.is_none() || self.authority.grant(key).is_some_and(allows);
        if !may {
            self.note_forbidden(key);
        }
        may
    }

    /// The same for a native request.
    pub(super) fn permit(
        &self,
        key: Key,
        allows: impl FnOnce(&Grant) -> bool,
    ) -> Result<(), ErrorCode> {
        if self.may(key, allows) { Ok(()) } else { Err(ErrorCode::Forbidden) }
    }

    /// Whether a raw connection may publish to its room.
    pub(super) fn may_publish_raw(&self, key: Key) -> bool {
        if self.limits.verifier.is_none() {
            return true;
        }
        let room = self.connections.get(key).and_then(|it| it.memberships.iter().next());
        let room = room.and_then(|(room, _)| self.rooms.get(room));
        room.is_some_and(|room| self.may(key, |grant| grant.may_publish(&room.name.name)))
    }

    /// Checks a token, and counts and logs why it is refused.
    fn verify(&mut self, key: Key, token: &str) -> Result<Box<Grant>, TokenError> {
        let Some(verifier) = self.limits.verifier.as_ref().map(Arc::clone) else {
            return Err(TokenError::UnknownKey);
        };
        let left = &mut self.authority.checks_left;
        *left = left.saturating_sub(verifier.checks_max());
        let verdict = verifier.verify(token, self.io.unix_time()).and_then(|grant| {
            let is_user = is_name(&grant.user_id, self.limits.user_id_bytes_max);
            let own = self.authority.grant(key);
            match own {
                _ if !is_user => Err(TokenError::Claims),
                Some(own) if own.user_id != grant.user_id => Err(TokenError::OtherUser),
                _ => Ok(Box::new(grant)),
            }
        });
        if let Err(error) = verdict {
            self.note_refused(key, error);
        }
        verdict
    }

    fn note_refused(&self, key: Key, error: TokenError) {
        self.metrics.tokens_refused[error as usize].add(1);
        let socket = self.connections.get(key).map(|connection| connection.socket.0);
        debug!(shard = self.ends.shard.0, socket, reason = error.label(), "token refused: {error}");
    }

    fn note_forbidden(&self, key: Key) {
        self.metrics.forbidden.add(1);
        let socket = self.connections.get(key).map(|connection| connection.socket.0);
        debug!(shard = self.ends.shard.0, socket, "forbidden: its token does not allow it");
    }

    /// The token in the upgrade request, which is held back, is verified in a later tick.
    pub(super) fn verify_handshake_later(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.waiting = true;
            self.authority.waiting.push_back(Waiting::Handshake(key));
        }
    }

    /// `auth` of the native protocol. The token is verified in this tick or a later one; until
    /// then the connection's input waits, so that there is one of them per connection.
    pub(super) fn auth_native(
        &mut self,
        key: Key,
        token: &str,
        id: Option<&str>,
    ) -> Result<(), ErrorCode> {
        if self.limits.verifier.is_none() {
            return Err(ErrorCode::AuthOff);
        }
        // Before it is copied.
        if token.len() > TOKEN_BYTES_MAX {
            self.note_refused(key, TokenError::Malformed);
            return Err(ErrorCode::InvalidToken);
        }
        if let Some(connection) = self.connections.get_mut(key) {
            connection.waiting = true;
            let (token, id) = (token.into(), id.map(Into::into));
            self.authority.waiting.push_back(Waiting::Renewal { key, token, id });
        }
        Ok(())
    }

    /// Verifies some of the tokens that wait. What is left of the round is for those that come
    /// before the next one.
    pub(super) fn verify_some(&mut self) {
        self.authority.checks_left = CHECKS_PER_TICK;
        while self.authority.checks_left > 0 {
            match self.authority.waiting.pop_front() {
                Some(Waiting::Handshake(key)) => self.go_on_opening(key),
                Some(Waiting::Renewal { key, token, id }) => {
                    self.renew(key, &token, id.as_deref());
                }
                None => return,
            }
        }
    }

    fn go_on_opening(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.phase != Phase::Opening {
            return;
        }
        connection.waiting = false;
        let mut head = connection.take_held();
        self.handle_opening(key, &mut head);
        if let Some(connection) = self.connections.get(key)
            && connection.phase != Phase::Dead
            && connection.may_read()
        {
            self.watch_input(key);
        }
    }

    fn renew(&mut self, key: Key, token: &str, id: Option<&str>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        connection.waiting = false;
        match self.verify(key, token) {
            Ok(grant) => {
                let expires_in_s = u64::from(grant.expires).saturating_sub(self.io.unix_time());
                let user_id = Rc::clone(&grant.user_id);
                self.authority.put(key, grant, self.io.now());
                self.name_user(key, Some(user_id));
                self.reply_native(|out| native::authenticated(expires_in_s, id, out));
                self.leave_forbidden(key);
            }
            Err(_) => self.reply_error(key, ErrorCode::InvalidToken, id),
        }
        self.queue_replies(key);
        self.resume(key);
    }

    /// Leaves the rooms that the new token does not allow to join; `left` tells the client.
    fn leave_forbidden(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        let rooms = connection.memberships.iter().filter_map(|(room, _)| self.rooms.get(room));
        let names = rooms.map(|room| &room.name.name);
        let grant = self.authority.grant(key);
        let forbidden = names.filter(|name| grant.is_some_and(|grant| !grant.may_join(name)));
        for name in forbidden.cloned().collect::<Vec<_>>() {
            let left = self.leave_native(key, &name, None);
            debug_assert!(left.is_ok(), "it was in this room a moment ago");
        }
    }

    /// Once a second: closes connections whose tokens have expired, a bounded number per tick.
    pub(super) fn expire_tokens(&mut self, now: Instant) {
        if self.authority.look_at.is_none_or(|at| now < at) {
            return;
        }
        let unix_time = self.io.unix_time();
        for _ in 0..EXPIRED_PER_TICK {
            let Some(slot) = self.authority.ended(unix_time) else {
                self.authority.look_at = Some(now + LOOK);
                return;
            };
            let key = self.connections.key_at(slot).expect("a grant goes before its slot");
            let phase = self.connections.get(key).map(|connection| connection.phase);
            self.authority.remove(key);
            match phase {
                Some(Phase::Open) => {
                    let (code, words) = (CloseCode::TOKEN_EXPIRED, "token expired");
                    self.close_gracefully(key, code, words, Reason::TokenExpired);
                }
                Some(Phase::Joining) => {
                    self.note_refused(key, TokenError::Expired);
                    self.refuse(key, HandshakeError::TokenInvalid);
                }
                _ => {}
            }
            if self.authority.look_at.is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::auth::{Algorithm, Expected, Key as Secret, Verifier};

    /// A grant that ends then, by way of a token: there is no other.
    fn grant(end: u64) -> Box<Grant> {
        let secret = [b'x'; 32];
        let claims = serde_json::json!({"sub": "a", "exp": end});
        let key = jsonwebtoken::EncodingKey::from_secret(&secret);
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key);
        let key = Secret::read(None, Algorithm::Hs256, &secret).expect("long enough");
        let verifier = Verifier::new(vec![key], Expected::default());
        let grant = verifier.verify(&token.expect("it can be signed"), 0);
        Box::new(grant.expect("a good token"))
    }

    proptest! {
        /// Against a map: give, renew, take away, expire; and nothing is left in the end.
        #[test]
        fn grants_end_in_order_and_leave_nothing(
            steps in prop::collection::vec((0..20_u32, 0..3_u8, 1..50_u64), 1..100),
        ) {
            let now = Instant::now();
            let mut authority = Authority::default();
            let mut model = BTreeMap::new();
            for (slot, what, end) in steps {
                let key = Key::from_bits(u64::from(slot));
                match what {
                    0 => {
                        authority.put(key, grant(end), now);
                        model.insert(slot, end);
                    }
                    1 => {
                        authority.remove(key);
                        model.remove(&slot);
                    }
                    _ => while let Some(slot) = authority.ended(end) {
                        prop_assert!(model.remove(&slot).is_some_and(|own| own <= end));
                        authority.remove(Key::from_bits(u64::from(slot)));
                    },
                }
                if what == 2 {
                    prop_assert!(model.values().all(|&own| own > end));
                }
                let held = (0..20).filter(|&slot| {
                    authority.grant(Key::from_bits(u64::from(slot))).is_some()
                });
                prop_assert!(held.eq(model.keys().copied()));
                prop_assert_eq!(authority.next().is_some(), !model.is_empty());
                prop_assert_eq!(authority.grants.capacity() > 0, !model.is_empty());
            }
        }
    }
}
