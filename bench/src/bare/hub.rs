//! One thread of the bare loop: its members and its turns.
//!
//! A turn takes in whatever has come, sends all of it to every member in one send each, and
//! waits. A connection goes by its descriptor, which is small in a private table. One that takes
//! less than the whole of a send is closed: the loop keeps nothing to send later.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use socket2::Socket;

use super::wire::{self, NotWebSocket};
use super::{Frames, Seat, Summary};
use crate::ring::{Completion, RECEIVE_BYTES_MAX, Ring, Slot};

/// See the module documentation.
pub(super) struct Hub {
    seat: Seat,
    ring: Ring,
    listener: Socket,
    /// By descriptor.
    connections: Vec<Connection>,
    /// All that are open, in no order: what a broadcast goes through.
    members: Vec<(RawFd, Slot)>,
    /// Those with something to receive.
    readable: VecDeque<Slot>,
    /// Frames received in this turn, as they will be sent.
    frames: Vec<u8>,
    summary: Summary,
}

/// What has, or had, a descriptor.
#[derive(Default)]
struct Connection {
    socket: Option<Socket>,
    /// Tells sockets with the same descriptor apart.
    generation: u8,
    /// Where among the members; `None` until its handshake is done.
    place: Option<usize>,
    /// A request or frame that is incomplete.
    input: Vec<u8>,
    /// The end of the stream is behind what can be received.
    hung_up: bool,
}

/// A wait that nothing ends begins again: bells and sockets end it sooner.
const WAIT: Duration = Duration::from_secs(60);

impl Hub {
    pub(super) fn new(seat: Seat, listener: Socket) -> io::Result<Self> {
        let mut ring = Ring::new(seat.bells[seat.index].clone())?;
        ring.watch(listener.as_raw_fd(), slot(listener.as_raw_fd(), 0));
        Ok(Self {
            seat,
            ring,
            listener,
            connections: Vec::new(),
            members: Vec::new(),
            readable: VecDeque::new(),
            frames: Vec::new(),
            summary: Summary::default(),
        })
    }

    /// Turns until told to stop.
    pub(super) fn run(mut self) -> io::Result<Summary> {
        while !self.seat.stop.load(Relaxed) {
            self.ring.enter(if self.readable.is_empty() { WAIT } else { Duration::ZERO })?;
            while let Some(completion) = self.ring.reap() {
                self.handle(completion)?;
            }
            while let Ok(frames) = self.seat.inbox.try_recv() {
                self.send_to_members(&frames)?;
            }
            self.send_frames()?;
            self.stage_receives();
        }
        Ok(self.summary)
    }

    fn handle(&mut self, completion: Completion) -> io::Result<()> {
        match completion {
            Completion::Bell | Completion::Writable { .. } => {}
            Completion::Readable { slot, armed, .. } if self.is_listener(slot) => {
                if !armed {
                    self.ring.watch(self.listener.as_raw_fd(), slot);
                }
                return self.accept();
            }
            Completion::Readable { slot, armed, hung_up } => {
                let Some(connection) = self.find(slot) else { return Ok(()) };
                connection.hung_up |= hung_up;
                if !armed {
                    self.ring.watch(slot.index.cast_signed(), slot);
                }
                self.readable.push_back(slot);
            }
            Completion::Received { slot, result, buffer } => {
                let received = result.map(|len| &buffer[..len]);
                self.receive(slot, received);
                self.ring.give_back(buffer);
            }
            // Answers to handshakes; all else is sent to everyone.
            Completion::Sent { slot, result, bytes } => {
                if result != Ok(bytes.len()) {
                    self.cut(slot);
                }
            }
            Completion::SentShort { slot } => self.cut(slot),
        }
        Ok(())
    }

    fn is_listener(&self, slot: Slot) -> bool {
        slot.index.cast_signed() == self.listener.as_raw_fd()
    }

    /// The connection that `slot` names, unless its socket is gone.
    fn find(&mut self, slot: Slot) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(slot.index as usize)?;
        (connection.generation == slot.generation && connection.socket.is_some())
            .then_some(connection)
    }

    /// Accepts all that wait: the poll tells of them once.
    fn accept(&mut self) -> io::Result<()> {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(()),
                    // Gone before it was accepted.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => continue,
                    _ => {
                        let words = "more --threads have more descriptors";
                        return Err(io::Error::other(format!("cannot accept: {error}; {words}")));
                    }
                },
            };
            if self.seat.census.fetch_add(1, Relaxed) >= self.seat.connections_max {
                self.seat.census.fetch_sub(1, Relaxed);
                self.summary.refused += 1;
                continue;
            }
            let fd = socket.as_raw_fd();
            let index = fd as usize;
            if self.connections.len() <= index {
                self.connections.resize_with(index + 1, Connection::default);
            }
            let generation = self.connections[index].generation.wrapping_add(1);
            self.connections[index] =
                Connection { socket: Some(socket), generation, ..Connection::default() };
            self.ring.watch(fd, slot(fd, generation));
        }
    }

    fn receive(&mut self, slot: Slot, received: Result<&[u8], i32>) {
        let Some(connection) = self.find(slot) else { return };
        match received {
            Ok([]) => return self.end(slot),
            Ok(bytes) => connection.input.extend_from_slice(bytes),
            Err(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => return,
            Err(_) => return self.end(slot),
        }
        // The poll is edge-triggered: behind a full buffer there may be more, and after a hang-up
        // there is the end.
        if connection.hung_up || received.is_ok_and(|bytes| bytes.len() == RECEIVE_BYTES_MAX) {
            self.readable.push_back(slot);
        }
        if let Err(NotWebSocket) = self.take_input(slot) {
            self.end(slot);
        }
    }

    /// Deals with what a connection has sent so far, and keeps what is incomplete.
    fn take_input(&mut self, slot: Slot) -> Result<(), NotWebSocket> {
        let connection = &mut self.connections[slot.index as usize];
        if connection.place.is_none() {
            let Some((len, answer)) = wire::answer(&connection.input)? else { return Ok(()) };
            connection.input.drain(..len);
            connection.place = Some(self.members.len());
            let fd = slot.index.cast_signed();
            self.members.push((fd, slot));
            self.summary.opened += 1;
            // Before any broadcast: entries of one enter are taken in order.
            self.ring.send(fd, slot, answer.into_bytes());
        }
        let relayed = wire::relay(&connection.input, &mut self.frames)?;
        self.summary.messages += relayed.messages;
        connection.input.drain(..relayed.used);
        if connection.input.is_empty() {
            connection.input = Vec::new();
        }
        if relayed.closed {
            if let Some(socket) = &connection.socket {
                // At once, because the socket is gone after this; if it does not fit, so be it.
                let _ = socket.send(&wire::CLOSE);
            }
            self.end(slot);
        }
        Ok(())
    }

    /// Sends what came in this turn to all members, and has the other threads do the same.
    fn send_frames(&mut self) -> io::Result<()> {
        if self.frames.is_empty() {
            return Ok(());
        }
        let frames = Frames::from(&self.frames[..]);
        self.frames.clear();
        let others = self.seat.outboxes.iter().zip(self.seat.bells.iter()).enumerate();
        for (_, (outbox, bell)) in others.filter(|&(index, _)| index != self.seat.index) {
            // It has ended.
            let _ = outbox.send(Arc::clone(&frames));
            bell.ring();
        }
        self.send_to_members(&frames)
    }

    fn send_to_members(&mut self, frames: &Frames) -> io::Result<()> {
        let began = clock_gettime(ClockId::ThreadCPUTime);
        self.ring.send_to_all(&self.members, Arc::clone(frames))?;
        let took = clock_gettime(ClockId::ThreadCPUTime) - began;
        self.summary.sending += Duration::try_from(took).unwrap_or_default();
        self.summary.broadcasts += 1;
        self.summary.sends += self.members.len() as u64;
        Ok(())
    }

    fn stage_receives(&mut self) {
        while self.ring.receives_left() > 0
            && let Some(slot) = self.readable.pop_front()
        {
            if self.find(slot).is_some() {
                self.ring.receive(slot.index.cast_signed(), slot, RECEIVE_BYTES_MAX);
            }
        }
    }

    /// Ends a connection that did not take all of a send: its stream has a gap.
    fn cut(&mut self, slot: Slot) {
        if self.find(slot).is_some() {
            self.summary.cut += 1;
            self.end(slot);
        }
    }

    fn end(&mut self, slot: Slot) {
        let Some(connection) = self.find(slot) else { return };
        let (socket, place) = (connection.socket.take(), connection.place.take());
        connection.input = Vec::new();
        self.seat.census.fetch_sub(1, Relaxed);
        // Otherwise the armed poll would keep it open.
        self.ring.unwatch(slot);
        drop(socket);
        let Some(place) = place else { return };
        self.members.swap_remove(place);
        if let Some(&(fd, _)) = self.members.get(place) {
            self.connections[fd as usize].place = Some(place);
        }
    }
}

fn slot(fd: RawFd, generation: u8) -> Slot {
    Slot { index: fd.cast_unsigned(), generation }
}
