//! Who comes in: accepting connections, and how many opening handshakes are under way.
//!
//! As many opening handshakes are under way as `handshakes_max` allows. Then listeners pause, and
//! connections wait in the kernel's backlog. But an accept that is armed brings all of the backlog
//! before the shard can say so, thousands in a storm: those that are too many wait as bare sockets,
//! without a connection's memory, unread, and go first when there is room. They count among the
//! connections that a shard may hold. (Rejected: accepts for one connection each, as many as there
//! are places. They never bring too many, but cost an operation each also where there is room for
//! all.)

use std::mem;
use std::time::Instant;

use tracing::warn;

use super::connection::{Connection, Phase};
use super::{ACCEPT_RETRY, Accepting, Shard};
use crate::io::{Errno, Io, Operation, Socket};
use crate::planted::{Bug, planted};
use crate::protocol::HandshakeError;

impl<I: Io> Shard<I> {
    /// A listener has a new connection, or could not accept one.
    pub(super) fn handle_accepted(
        &mut self,
        listener: usize,
        result: Result<Socket, Errno>,
        more: bool,
    ) {
        if !more && !planted(Bug::AcceptNotReArmed) {
            self.accepts[listener] = Accepting::No;
        }
        match result {
            Ok(socket) => self.open_or_park(socket),
            // We have paused it.
            Err(Errno::CANCELED) => {}
            // Full of descriptors or memory: those that knock wait in the backlog for a while.
            Err(errno) => {
                let now = self.io.now();
                self.accept_at = Some(now + ACCEPT_RETRY);
                if let Some(left_out) = self.accept_warnings.admit(now) {
                    let shard = self.ends.shard.0;
                    warn!(shard, left_out, "cannot accept a connection: {errno}; they wait");
                }
            }
        }
    }

    /// Lets those in that wait, and arms and pauses the listeners: connections wait in the backlog
    /// while as many handshakes as allowed are under way, and for a while after a failure.
    pub(super) fn accept_or_pause(&mut self, now: Instant) {
        self.accept_at = self.accept_at.filter(|&at| at > now);
        if self.drain.is_some() {
            return;
        }
        while self.may_open()
            && let Some(socket) = self.parked.pop_front()
        {
            self.open(socket);
        }
        let full = !self.may_open();
        for (listener, accepting) in self.accepts.iter_mut().enumerate() {
            match accepting {
                Accepting::Yes if full => {
                    *accepting = Accepting::Pausing;
                    self.io.submit(Operation::PauseAccept { listener });
                }
                Accepting::No if !full && self.accept_at.is_none() => {
                    *accepting = Accepting::Yes;
                    self.io.submit(Operation::Accept { listener });
                }
                _ => {}
            }
        }
    }

    /// Whether one more handshake may be under way.
    fn may_open(&self) -> bool {
        self.phases.handshakes() < self.limits.handshakes_max
    }

    /// Begins the handshake of a connection, if it may be under way and none has waited for longer.
    /// Who could not even wait is refused, and so are all in a drain.
    fn open_or_park(&mut self, socket: Socket) {
        let held = self.connections.len() + self.parked.len();
        let may_wait = self.drain.is_none() && held < self.limits.connections_per_shard_max;
        let must_wait = !self.parked.is_empty() || !self.may_open();
        if may_wait && must_wait && !planted(Bug::BurstLetIn) {
            self.parked.push_back(socket);
        } else {
            self.open(socket);
        }
    }

    /// The shard drains: nobody waits any more, and everybody who does gets an answer.
    pub(super) fn refuse_parked(&mut self) {
        for socket in mem::take(&mut self.parked) {
            self.open(socket);
        }
    }

    fn open(&mut self, socket: Socket) {
        self.metrics.accepted.add(1);
        self.phases.enter(Phase::Opening);
        let since = self.micros();
        let key = self.connections.insert(Connection::new(socket, since));
        if self.drain.is_some() {
            return self.refuse(key, HandshakeError::Draining);
        }
        if let Err(error) = self.admit(key) {
            return self.refuse(key, error);
        }
        self.set_deadline(key, self.limits.handshake_timeout);
        self.watch_input(key);
    }
}
