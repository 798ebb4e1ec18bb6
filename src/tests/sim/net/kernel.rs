//! The network as a shard sees it: operations in, completions out.
//!
//! The shard's half of the boundary is asserted here: what it must never submit.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};

use super::link::{Poll, client_address};
use super::{Fault, Net, UNIX_TIME};
use crate::io::{Completion, Errno, Io, Operation, Pressure, Shutdown, Socket, Token, Wait};

/// What one shard has of the network.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) now: Duration,
    pub(super) wait: Wait,
    pub(super) woken: bool,
    pub(super) listeners: Vec<Listener>,
    /// The connection behind each descriptor.
    pub(super) table: Vec<Option<usize>>,
    /// Descriptors that name nothing now.
    pub(super) free: BTreeSet<usize>,
    /// Under which tokens polls are armed, on which socket, and how many.
    pub(super) tokens: HashMap<u64, (Socket, usize)>,
    /// Polls that have come true: when the shard learns it, the connection, for output.
    pub(super) ready: BTreeSet<(Duration, usize, bool)>,
    staged: Vec<Staged>,
    pub(super) done: Vec<Completion<Lease>>,
    /// Sockets that were sent to since the last reap.
    sent: BTreeSet<u32>,
    /// Sockets that are received from until the next reap.
    receiving: BTreeSet<u32>,
    send_tokens: BTreeSet<u64>,
    overflows: u64,
    pub(super) effort: Effort,
}

/// What a shard asked of the kernel.
#[derive(Debug, Default, Clone, Copy)]
pub(in super::super) struct Effort {
    pub(in super::super) enters: u64,
    pub(in super::super) operations: u64,
}

#[derive(Debug, Default)]
pub(super) struct Listener {
    pub(super) closed: bool,
    pub(super) armed: bool,
    pub(super) backlog: VecDeque<usize>,
}

#[derive(Debug)]
enum Staged {
    Accept(usize),
    PauseAccept(usize),
    CloseListener(usize),
    Poll { socket: Socket, token: Token, writable: bool },
    Receive { socket: Socket, token: Token, lease: Lease },
    Send { socket: Socket, token: Token, bytes: Bytes, from: usize },
    Shutdown { socket: Socket, how: Shutdown },
    Close(Socket),
    Wake(usize),
    WakeControl,
}

impl Side {
    pub(super) fn new(listeners: usize) -> Self {
        Self {
            now: Duration::ZERO,
            wait: Wait::No,
            woken: false,
            listeners: (0..listeners).map(|_| Listener::default()).collect(),
            table: Vec::new(),
            free: BTreeSet::new(),
            tokens: HashMap::new(),
            ready: BTreeSet::new(),
            staged: Vec::new(),
            done: Vec::new(),
            sent: BTreeSet::new(),
            receiving: BTreeSet::new(),
            send_tokens: BTreeSet::new(),
            overflows: 0,
            effort: Effort::default(),
        }
    }

    pub(super) fn received(&self) -> usize {
        let received = |done: &&Completion<Lease>| matches!(done, Completion::Received(_, Ok(_)));
        self.done.iter().filter(received).count()
    }

    /// Takes note of a poll under `token`, or of its end.
    fn arm(&mut self, socket: Socket, token: Token) {
        let armed = self.tokens.entry(token.number()).or_insert((socket, 0));
        assert_eq!(armed.0, socket, "{token:?} names polls on two sockets");
        armed.1 += 1;
    }

    fn disarm(&mut self, token: Token) {
        let armed = self.tokens.get_mut(&token.number()).expect("it was armed");
        armed.1 -= 1;
        if armed.1 == 0 {
            self.tokens.remove(&token.number());
        }
    }
}

impl Net {
    fn link_of(&self, shard: usize, socket: Socket) -> usize {
        let link = self.sides[shard].table.get(socket.0 as usize).copied().flatten();
        link.unwrap_or_else(|| panic!("shard {shard} uses {socket:?}, which is not open"))
    }

    fn stage(&mut self, shard: usize, operation: Operation<'_>, lent: &Rc<Cell<usize>>) {
        let staged = match operation {
            Operation::Accept { listener } => Staged::Accept(listener),
            Operation::PauseAccept { listener } => Staged::PauseAccept(listener),
            Operation::CloseListener { listener } => Staged::CloseListener(listener),
            Operation::PollReadable { socket, token } => {
                Staged::Poll { socket, token, writable: false }
            }
            Operation::PollWritable { socket, token } => {
                Staged::Poll { socket, token, writable: true }
            }
            Operation::Receive { socket, token } => {
                assert!(lent.get() < self.faults.receives_max, "no receives are left");
                let fresh = self.sides[shard].receiving.insert(socket.0);
                assert!(fresh, "two receives from {socket:?} between two reaps");
                Staged::Receive { socket, token, lease: Lease::new(lent) }
            }
            Operation::Send { socket, token, bytes, from } => {
                assert!(from < bytes.len(), "sends nothing to {socket:?}");
                let side = &mut self.sides[shard];
                assert!(side.sent.insert(socket.0), "two sends to {socket:?} between two reaps");
                assert!(side.send_tokens.insert(token.number()), "{token:?} names two sends");
                Staged::Send { socket, token, bytes: bytes.clone(), from }
            }
            Operation::Shutdown { socket, how } => Staged::Shutdown { socket, how },
            Operation::Close { socket } => Staged::Close(socket),
            Operation::Wake { shard } => Staged::Wake(shard.index()),
            Operation::WakeControl => Staged::WakeControl,
        };
        self.sides[shard].staged.push(staged);
    }

    fn enter(&mut self, shard: usize, wait: Wait) {
        let side = &mut self.sides[shard];
        side.effort.enters += 1;
        side.effort.operations += side.staged.len() as u64;
        let mut shutdowns = Vec::new();
        let mut staged = std::mem::take(&mut side.staged);
        for staged in staged.drain(..) {
            match staged {
                Staged::Accept(listener) => {
                    let listener = &mut self.sides[shard].listeners[listener];
                    assert!(!listener.armed, "accepts twice from one listener");
                    listener.armed = !listener.closed;
                }
                Staged::PauseAccept(listener) => {
                    let side = &mut self.sides[shard];
                    if std::mem::take(&mut side.listeners[listener].armed) {
                        let result = Err(Errno::CANCELED);
                        side.done.push(Completion::Accepted { listener, result, more: false });
                    }
                }
                Staged::CloseListener(listener) => self.close_listener(shard, listener),
                Staged::Poll { socket, token, writable } => {
                    let number = self.link_of(shard, socket);
                    let poll = &mut self.links[number].polls[usize::from(writable)];
                    assert!(poll.is_none(), "two polls of one kind on {socket:?}");
                    *poll = Some(Poll { token, ready_at: None });
                    self.sides[shard].arm(socket, token);
                    self.settle(number);
                }
                Staged::Receive { socket, token, lease } => {
                    let result = self.receive(shard, socket, lease);
                    self.sides[shard].done.push(Completion::Received(token, result));
                }
                Staged::Send { socket, token, bytes, from } => {
                    let len = bytes.len() - from;
                    let taken = self.send(shard, socket, &bytes[from..]);
                    if taken != Ok(len) {
                        self.sides[shard].done.push(Completion::SentShort(token, taken));
                    }
                }
                Staged::Shutdown { socket, how } => {
                    self.link_of(shard, socket);
                    shutdowns.push((socket, how));
                }
                Staged::Close(socket) => self.close_socket(shard, socket),
                Staged::Wake(target) => {
                    assert_ne!(target, shard, "a shard wakes itself");
                    self.note("wake", &[shard as u64, target as u64]);
                    self.wake(target);
                }
                Staged::WakeControl => self.control_woken = true,
            }
        }
        // As the real one does it: what was closed behind its shutdown is gone by now.
        for (socket, how) in shutdowns {
            if let Some(number) = self.sides[shard].table[socket.0 as usize] {
                self.note("shutdown", &[number as u64]);
                let link = &mut self.links[number];
                link.server_fin = true;
                link.server_shut |= how == Shutdown::Both;
                self.settle(number);
            }
        }
        let side = &mut self.sides[shard];
        side.staged = staged;
        side.wait = wait;
    }

    fn close_listener(&mut self, shard: usize, listener: usize) {
        let side = &mut self.sides[shard];
        let listen = &mut side.listeners[listener];
        listen.closed = true;
        if std::mem::take(&mut listen.armed) {
            let result = Err(Errno(libc::EINVAL));
            side.done.push(Completion::Accepted { listener, result, more: false });
        }
        for link in std::mem::take(&mut listen.backlog) {
            self.hang_up(link);
        }
    }

    fn receive(&mut self, shard: usize, socket: Socket, mut lease: Lease) -> Result<Lease, Errno> {
        let number = self.link_of(shard, socket);
        if self.suffers(Fault::ReceiveWithoutMemory, self.faults.transient / 2.0) {
            return Err(Errno::NO_MEMORY);
        }
        if self.suffers(Fault::ReceiveWithoutBuffers, self.faults.transient / 2.0) {
            return Err(Errno::NO_BUFFERS);
        }
        let link = &mut self.links[number];
        if link.client_reset && (link.purged || link.to_server.is_empty()) {
            // It is said once; after that the connection has merely ended.
            let errno = std::mem::take(&mut link.errno);
            if errno.is_some_and(|errno| errno != Errno::RESET) {
                self.happened.note(Fault::PathBroken);
            }
            return errno.map_or(Ok(lease), Err);
        }
        if link.to_server.is_empty() {
            return if link.client_fin || link.server_shut { Ok(lease) } else { Err(Errno::AGAIN) };
        }
        let max = link.to_server.len().min(self.faults.receive_bytes_max);
        let whole = !self.faults.short_receives || self.rng.random_bool(0.5);
        let len = if whole { max } else { self.rng.random_range(1..=max) };
        if len < max {
            self.happened.note(Fault::PartialRead);
        }
        lease.bytes.extend(link.to_server.drain(..len));
        self.moved += len as u64;
        self.touched.push(number);
        self.note("receive", &[shard as u64, number as u64, len as u64]);
        Ok(lease)
    }

    fn send(&mut self, shard: usize, socket: Socket, bytes: &[u8]) -> Result<usize, Errno> {
        let number = self.link_of(shard, socket);
        let link = &mut self.links[number];
        assert!(
            !link.server_fin,
            "sends to {socket:?}, connection {number}, after its own half-close: {}",
            bytes.escape_ascii()
        );
        if link.client_reset {
            return Err(std::mem::take(&mut link.errno).unwrap_or(Errno(libc::EPIPE)));
        }
        if link.client_closed {
            // The kernel takes the bytes; the answer to them is a reset.
            link.reset_by_client(Errno::RESET);
            self.settle(number);
            return Ok(bytes.len());
        }
        let mut len = bytes.len().min(link.to_client_max.saturating_sub(link.to_client.len()));
        if link.unreliable {
            if self.suffers(Fault::SendWithoutMemory, self.faults.transient) {
                len = 0;
            } else if self.chance(self.faults.short_send) {
                len = self.rng.random_range(0..=len);
            }
        }
        if len < bytes.len() {
            self.happened.note(Fault::ShortSend);
        }
        if len > 0 {
            self.links[number].to_client.extend(&bytes[..len]);
            self.touched.push(number);
        }
        self.note("send", &[shard as u64, number as u64, len as u64, bytes.len() as u64]);
        Ok(len)
    }

    fn close_socket(&mut self, shard: usize, socket: Socket) {
        let number = self.link_of(shard, socket);
        self.note("close", &[shard as u64, number as u64]);
        let link = &mut self.links[number];
        let side = &mut self.sides[shard];
        assert!(
            link.polls.iter().all(Option::is_none) && !side.receiving.contains(&socket.0),
            "closes {socket:?} with something armed on it"
        );
        side.table[socket.0 as usize] = None;
        side.free.insert(socket.0 as usize);
        link.server_closed = true;
        link.server_fin = true;
        link.shard = None;
        if !link.to_server.is_empty() {
            link.reset_by_server();
        }
        self.touched.push(number);
    }

    fn reap(&mut self, shard: usize, completions: &mut Vec<Completion<Lease>>) {
        let first = completions.len();
        let side = &mut self.sides[shard];
        completions.append(&mut side.done);
        if std::mem::take(&mut side.woken) {
            completions.push(Completion::Woken);
        }
        side.sent.clear();
        side.receiving.clear();
        side.send_tokens.clear();
        let mut room = self.faults.completions_max;
        while let Some(&(at, number, writable)) = side.ready.first()
            && at <= self.clock
            && room > 0
        {
            room -= 1;
            side.ready.pop_first();
            let poll = self.links[number].polls[usize::from(writable)].take();
            let token = poll.expect("armed until it completes").token;
            side.disarm(token);
            completions.push(match writable {
                true => Completion::Writable(token),
                false => Completion::Readable(token),
            });
        }
        if side.ready.first().is_some_and(|ready| ready.0 <= self.clock) {
            side.overflows += 1;
            self.happened.note(Fault::QueueFull);
        }
        completions[first..].shuffle(&mut self.rng);
        let mut accepted = Vec::new();
        for listener in 0..self.sides[shard].listeners.len() {
            self.accept(shard, listener, &mut room, &mut accepted);
        }
        // In between the others, and in their order.
        let mut at = first;
        for completion in accepted {
            at = self.rng.random_range(at..=completions.len());
            completions.insert(at, completion);
            at += 1;
        }
    }

    /// Accepts whoever waits. Of a multishot accept that finds the completion queue full it is
    /// known what came of it, and it ends.
    fn accept(
        &mut self,
        shard: usize,
        listener: usize,
        room: &mut usize,
        completions: &mut Vec<Completion<Lease>>,
    ) {
        while self.sides[shard].listeners[listener].armed
            && !self.sides[shard].listeners[listener].backlog.is_empty()
        {
            if let Some(errno) = self.accept_error(shard) {
                self.note("accept fails", &[shard as u64, errno.0 as u64]);
                self.sides[shard].listeners[listener].armed = false;
                let result = Err(errno);
                completions.push(Completion::Accepted { listener, result, more: false });
                return;
            }
            *room = room.saturating_sub(1);
            let ended = *room == 0 || self.chance(self.faults.accept_ends);
            if ended {
                self.happened.note(Fault::AcceptEnded);
            }
            let side = &mut self.sides[shard];
            side.listeners[listener].armed = !ended;
            let link = side.listeners[listener].backlog.pop_front().expect("looked at above");
            let index = side.free.pop_first().unwrap_or_else(|| {
                side.table.push(None);
                side.table.len() - 1
            });
            side.table[index] = Some(link);
            self.links[link].shard = Some(shard);
            let result = Ok(Socket(index as u32));
            completions.push(Completion::Accepted { listener, result, more: !ended });
            self.note("accept", &[shard as u64, link as u64]);
        }
    }

    /// Why an accept fails now, if it does.
    fn accept_error(&mut self, shard: usize) -> Option<Errno> {
        const SHORTAGES: [(Errno, Fault); 4] = [
            (Errno::TOO_MANY_DESCRIPTORS, Fault::AcceptWithoutDescriptors),
            (Errno(libc::ENFILE), Fault::AcceptWithoutDescriptors),
            (Errno::NO_MEMORY, Fault::AcceptWithoutMemory),
            (Errno::NO_BUFFERS, Fault::AcceptWithoutMemory),
        ];
        let full = self.sockets(shard) >= self.faults.descriptors_max;
        if !full && !self.chance(self.faults.accept_fails) {
            return None;
        }
        let shortages = if full { &SHORTAGES[..1] } else { &SHORTAGES };
        let &(errno, fault) = shortages.choose(&mut self.rng).expect("there are some");
        self.happened.note(fault);
        Some(errno)
    }
}

/// One shard's [`Io`].
#[derive(Debug)]
pub(in super::super) struct SimIo {
    pub(in super::super) net: Rc<RefCell<Net>>,
    pub(in super::super) shard: usize,
    /// Receive buffers that the shard has, or will get with the next reap.
    pub(in super::super) lent: Rc<Cell<usize>>,
}

impl Io for SimIo {
    type Lease = Lease;

    fn now(&self) -> Instant {
        let net = self.net.borrow();
        net.base + net.sides[self.shard].now
    }

    fn peer_address(&self, socket: Socket) -> Option<SocketAddr> {
        let net = self.net.borrow();
        let link = net.link_of(self.shard, socket);
        (!net.links[link].client_reset).then(|| client_address(link))
    }

    fn clock(&self) -> Instant {
        let net = self.net.borrow();
        net.base + net.clock
    }

    fn unix_time(&self) -> u64 {
        let net = self.net.borrow();
        (UNIX_TIME + net.sides[self.shard].now.as_secs()).saturating_add_signed(net.clock_set)
    }

    fn pressure(&self) -> Pressure {
        let overflows = self.net.borrow().sides[self.shard].overflows;
        Pressure { receive_buffers: 0, overflows }
    }

    fn receives_left(&self) -> usize {
        self.net.borrow().faults.receives_max - self.lent.get()
    }

    fn receive_bytes_max(&self) -> usize {
        self.net.borrow().faults.receive_bytes_max
    }

    fn submit(&mut self, operation: Operation<'_>) {
        self.net.borrow_mut().stage(self.shard, operation, &self.lent);
    }

    fn enter(&mut self, wait: Wait) {
        self.net.borrow_mut().enter(self.shard, wait);
    }

    fn reap(&mut self, completions: &mut Vec<Completion<Lease>>) {
        self.net.borrow_mut().reap(self.shard, completions);
    }
}

/// Received bytes; counts as lent until dropped.
#[derive(Debug)]
pub(in super::super) struct Lease {
    bytes: Vec<u8>,
    lent: Rc<Cell<usize>>,
}

impl Lease {
    fn new(lent: &Rc<Cell<usize>>) -> Self {
        lent.set(lent.get() + 1);
        Self { bytes: Vec::new(), lent: Rc::clone(lent) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.lent.set(self.lent.get() - 1);
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}
