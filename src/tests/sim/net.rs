//! A network of the seed's making: a clock, sockets, listeners, and an [`Io`] for every shard.
//!
//! A connection is two byte queues of bounded length. What TCP and io_uring may do to it happens
//! here: sends that take a part or nothing, receives that stop at any byte, resets that throw away
//! what was not read, polls that complete late or for nothing, accepts that end or fail. What they
//! promise is kept: bytes in order, sends and receives resolved by the next reap, the lowest free
//! descriptor for the next socket (so that a stale one soon names somebody else).
//!
//! The other half of the boundary is asserted here: what a shard must never submit.
//!
//! Never: looks inside the bytes. That is for the peers ([`super::peer`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::io::{Completion, Errno, Io, Operation, Pressure, Shutdown, Socket, Token, Wait};

/// When every run begins, in seconds since 1970: tokens know no other time.
pub(super) const UNIX_TIME: u64 = 1_800_000_000;

/// How unkind the network is.
#[derive(Debug, Clone)]
pub(super) struct Faults {
    /// A send takes less than would fit.
    pub(super) short_send: f64,
    /// A poll completes for nothing, per step.
    pub(super) spurious: f64,
    /// The kernel has no memory to receive just now.
    pub(super) transient: f64,
    /// An accept fails for want of descriptors although there are some.
    pub(super) accept_fails: f64,
    /// An accept that went well is the last one.
    pub(super) accept_ends: f64,
    /// How late polls complete at most.
    pub(super) poll_delay_max: Duration,
    /// Sockets one shard may have open.
    pub(super) descriptors_max: usize,
    /// Receives between two enters.
    pub(super) receives_max: usize,
    /// Bytes of one receive.
    pub(super) receive_bytes_max: usize,
    /// A receive may take less than there is.
    pub(super) short_receives: bool,
}

/// What happened, as a number that two equal runs share; printed when asked for.
#[derive(Debug)]
pub(super) struct Trace {
    pub(super) hash: u64,
    pub(super) print: bool,
}

impl Trace {
    pub(super) fn note(&mut self, clock: Duration, what: &str, numbers: &[u64]) {
        // FNV-1a.
        let words = what.bytes().map(u64::from).chain(numbers.iter().copied());
        for word in words.chain([clock.as_nanos() as u64]) {
            self.hash = (self.hash ^ word).wrapping_mul(0x0100_0000_01b3);
        }
        if self.print {
            println!("{:>12.3?} {what} {numbers:?}", clock);
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) rng: StdRng,
    /// The time since the world began.
    pub(super) clock: Duration,
    pub(super) faults: Faults,
    pub(super) trace: Trace,
    /// Bytes that went from one end to the other.
    pub(super) moved: u64,
    /// A shard has woken the thread that publishes from outside.
    pub(super) control_woken: bool,
    base: Instant,
    links: Vec<Link>,
    sides: Vec<Side>,
}

/// One connection.
#[derive(Debug)]
struct Link {
    to_server: VecDeque<u8>,
    to_server_max: usize,
    to_client: VecDeque<u8>,
    to_client_max: usize,
    /// Whether sends may be short although there is room.
    unreliable: bool,
    client_fin: bool,
    client_closed: bool,
    client_reset: bool,
    /// Whether the reset threw away what the server had not received yet.
    purged: bool,
    server_fin: bool,
    server_shut: bool,
    server_closed: bool,
    server_reset: bool,
}

/// What one shard has of the network.
#[derive(Debug)]
struct Side {
    now: Duration,
    wait: Wait,
    woken: bool,
    listeners: Vec<Listener>,
    /// The connection behind each descriptor.
    table: Vec<Option<usize>>,
    polls: Vec<Poll>,
    staged: Vec<Staged>,
    done: Vec<Completion<Lease>>,
    /// Sockets that were sent to since the last reap.
    sent: BTreeSet<u32>,
    /// Sockets that are received from until the next reap.
    receiving: BTreeSet<u32>,
    send_tokens: BTreeSet<u64>,
    effort: Effort,
}

/// What a shard asked of the kernel.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Effort {
    pub(super) enters: u64,
    pub(super) operations: u64,
}

#[derive(Debug, Default)]
struct Listener {
    closed: bool,
    armed: bool,
    backlog: VecDeque<usize>,
}

#[derive(Debug)]
struct Poll {
    socket: Socket,
    token: Token,
    writable: bool,
    ready_at: Option<Duration>,
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

/// What a peer finds when it reads.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    Nothing,
    Bytes(Vec<u8>),
    Eof,
    Reset,
}

impl Net {
    pub(super) fn new(seed: u64, print: bool) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            clock: Duration::ZERO,
            faults: Faults {
                short_send: 0.0,
                spurious: 0.0,
                transient: 0.0,
                accept_fails: 0.0,
                accept_ends: 0.0,
                poll_delay_max: Duration::ZERO,
                descriptors_max: usize::MAX,
                receives_max: 64,
                receive_bytes_max: 16 * 1024,
                short_receives: true,
            },
            trace: Trace { hash: 0xcbf2_9ce4_8422_2325, print },
            moved: 0,
            control_woken: false,
            base: Instant::now(),
            links: Vec::new(),
            sides: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, what: &str, numbers: &[u64]) {
        self.trace.note(self.clock, what, numbers);
    }

    /// Whether something of probability `p` happens now.
    pub(super) fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.rng.random_bool(p)
    }

    // What peers do.

    /// Knocks at one shard's listener.
    pub(super) fn connect(&mut self, shard: usize, habits: LinkHabits) -> usize {
        let listeners = self.sides[shard].listeners.len();
        let listener = self.rng.random_range(0..listeners);
        let link = self.links.len();
        let closed = self.sides[shard].listeners[listener].closed;
        self.links.push(Link {
            to_server: VecDeque::new(),
            to_server_max: habits.to_server_max,
            to_client: VecDeque::new(),
            to_client_max: habits.to_client_max,
            unreliable: habits.unreliable,
            client_fin: false,
            client_closed: false,
            client_reset: false,
            purged: false,
            server_fin: false,
            server_shut: false,
            server_closed: closed,
            server_reset: closed,
        });
        if !closed {
            self.sides[shard].listeners[listener].backlog.push_back(link);
        }
        link
    }

    /// Writes what fits and returns how much that was.
    pub(super) fn write(&mut self, link: usize, bytes: &[u8]) -> usize {
        let link = &mut self.links[link];
        assert!(!link.client_fin && !link.client_reset, "a peer writes after its end");
        if link.server_closed {
            link.reset_by_server();
            return bytes.len();
        }
        let len = bytes.len().min(link.to_server_max.saturating_sub(link.to_server.len()));
        link.to_server.extend(&bytes[..len]);
        len
    }

    pub(super) fn can_write(&self, link: usize) -> bool {
        let link = &self.links[link];
        link.server_closed || link.to_server.len() < link.to_server_max
    }

    pub(super) fn read(&mut self, link: usize, max: usize) -> Read {
        let link = &mut self.links[link];
        if link.server_reset {
            return Read::Reset;
        }
        if link.to_client.is_empty() {
            return if link.server_fin { Read::Eof } else { Read::Nothing };
        }
        let len = max.min(link.to_client.len());
        self.moved += len as u64;
        Read::Bytes(link.to_client.drain(..len).collect())
    }

    pub(super) fn can_read(&self, link: usize) -> bool {
        let link = &self.links[link];
        link.server_reset || link.server_fin || !link.to_client.is_empty()
    }

    /// Whether the server has to receive more than a few times until it sees the end.
    pub(super) fn has_much_unread(&self, link: usize) -> bool {
        self.links[link].to_server.len() > 2 * self.faults.receive_bytes_max
    }

    /// Whether the server has received everything.
    pub(super) fn has_all(&self, link: usize) -> bool {
        self.links[link].to_server.is_empty()
    }

    /// The peer sends no more.
    pub(super) fn finish(&mut self, link: usize) {
        self.links[link].client_fin = true;
    }

    /// The peer sends no more and does not read any more.
    pub(super) fn close(&mut self, link: usize) {
        let link = &mut self.links[link];
        link.client_fin = true;
        link.client_closed = true;
        // Bytes it has not read: that is a reset.
        link.client_reset |= !link.to_client.is_empty();
    }

    pub(super) fn reset(&mut self, link: usize) {
        let purged = self.rng.random_bool(0.5);
        let link = &mut self.links[link];
        link.client_reset = true;
        if purged {
            link.purged = true;
            link.to_server.clear();
        }
    }

    /// Whether the server has closed its end.
    pub(super) fn is_closed_by_server(&self, link: usize) -> bool {
        self.links[link].server_closed
    }

    // What the world does.

    pub(super) fn add_shard(&mut self, listeners: usize) {
        self.sides.push(Side {
            now: Duration::ZERO,
            wait: Wait::No,
            woken: false,
            listeners: (0..listeners).map(|_| Listener::default()).collect(),
            table: Vec::new(),
            polls: Vec::new(),
            staged: Vec::new(),
            done: Vec::new(),
            sent: BTreeSet::new(),
            receiving: BTreeSet::new(),
            send_tokens: BTreeSet::new(),
            effort: Effort::default(),
        });
    }

    /// Wakes a shard, as another thread would.
    pub(super) fn wake(&mut self, shard: usize) {
        self.sides[shard].woken = true;
    }

    /// Finds out which polls have come true, and when the shard will learn it.
    pub(super) fn refresh(&mut self) {
        let (clock, delay_max) = (self.clock, self.faults.poll_delay_max);
        for side in &mut self.sides {
            for poll in side.polls.iter_mut().filter(|poll| poll.ready_at.is_none()) {
                let link = side.table[poll.socket.0 as usize].expect("asserted when it was armed");
                let link = &self.links[link];
                let spurious =
                    self.faults.spurious > 0.0 && self.rng.random_bool(self.faults.spurious);
                if spurious || if poll.writable { link.takes() } else { link.has() } {
                    let late = self.rng.random_bool(0.5);
                    let delay =
                        if late { self.rng.random_range(0..=delay_max.as_micros()) } else { 0 };
                    poll.ready_at = Some(clock + Duration::from_micros(delay as u64));
                }
            }
        }
    }

    /// Whether the shard's wait is over.
    pub(super) fn is_due(&self, shard: usize) -> bool {
        let side = &self.sides[shard];
        let time_is_up = match side.wait {
            Wait::No => true,
            Wait::Until(at) => at <= self.base + self.clock,
            Wait::Forever => false,
        };
        time_is_up
            || side.woken
            || !side.done.is_empty()
            || side.polls.iter().any(|poll| poll.ready_at.is_some_and(|at| at <= self.clock))
            || side.listeners.iter().any(|listener| listener.armed && !listener.backlog.is_empty())
    }

    pub(super) fn waits_for_ever(&self, shard: usize) -> bool {
        self.sides[shard].wait == Wait::Forever
    }

    /// When the shard's wait will be over at the latest, as far as can be known.
    pub(super) fn next_time(&self, shard: usize) -> Option<Duration> {
        let side = &self.sides[shard];
        let until = match side.wait {
            Wait::Until(at) => Some(at.saturating_duration_since(self.base)),
            Wait::No | Wait::Forever => None,
        };
        side.polls.iter().filter_map(|poll| poll.ready_at).chain(until).min()
    }

    /// The shard's wait is over: it reads the clock.
    pub(super) fn begin_tick(&mut self, shard: usize) {
        self.sides[shard].now = self.clock;
    }

    /// The shard's thread has ended: everything it had open goes with it.
    pub(super) fn end_shard(&mut self, shard: usize) {
        self.control_woken = true;
        let side = &mut self.sides[shard];
        side.polls.clear();
        let backlogs = side.listeners.iter_mut().flat_map(|listener| listener.backlog.drain(..));
        let links: Vec<usize> = side.table.drain(..).flatten().chain(backlogs).collect();
        for link in links {
            self.links[link].server_closed = true;
            self.links[link].reset_by_server();
        }
    }

    /// Open sockets of a shard.
    pub(super) fn sockets(&self, shard: usize) -> usize {
        self.sides[shard].table.iter().flatten().count()
    }

    pub(super) fn backlog(&self, shard: usize) -> usize {
        self.sides[shard].listeners.iter().map(|listener| listener.backlog.len()).sum()
    }

    pub(super) fn effort(&self, shard: usize) -> Effort {
        self.sides[shard].effort
    }

    pub(super) fn armed(&self, shard: usize) -> usize {
        self.sides[shard].polls.len()
    }

    // What a shard does.

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
        for staged in std::mem::take(&mut self.sides[shard].staged) {
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
                    self.link_of(shard, socket);
                    let side = &mut self.sides[shard];
                    let twice = side.polls.iter().any(|poll| {
                        (poll.socket == socket && poll.writable == writable)
                            || (poll.socket != socket && poll.token == token)
                    });
                    assert!(!twice, "two polls of one kind on {socket:?}, or under {token:?}");
                    side.polls.push(Poll { socket, token, writable, ready_at: None });
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
                    self.sides[target].woken = true;
                }
                Staged::WakeControl => self.control_woken = true,
            }
        }
        // As the real one does it: what was closed behind its shutdown is gone by now.
        for (socket, how) in shutdowns {
            if let Some(link) = self.sides[shard].table[socket.0 as usize] {
                self.note("shutdown", &[link as u64]);
                let link = &mut self.links[link];
                link.server_fin = true;
                link.server_shut |= how == Shutdown::Both;
            }
        }
        self.sides[shard].wait = wait;
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
            self.links[link].server_closed = true;
            self.links[link].reset_by_server();
        }
    }

    fn receive(&mut self, shard: usize, socket: Socket, mut lease: Lease) -> Result<Lease, Errno> {
        let number = self.link_of(shard, socket);
        let transient = self.chance(self.faults.transient);
        let link = &mut self.links[number];
        if transient {
            return Err(Errno::NO_MEMORY);
        }
        if link.client_reset && (link.purged || link.to_server.is_empty()) {
            return Err(Errno::RESET);
        }
        if link.to_server.is_empty() {
            return if link.client_fin || link.server_shut { Ok(lease) } else { Err(Errno::AGAIN) };
        }
        let max = link.to_server.len().min(self.faults.receive_bytes_max);
        let whole = !self.faults.short_receives || self.rng.random_bool(0.5);
        let len = if whole { max } else { self.rng.random_range(1..=max) };
        lease.bytes.extend(link.to_server.drain(..len));
        self.moved += len as u64;
        self.note("receive", &[shard as u64, number as u64, len as u64]);
        Ok(lease)
    }

    fn send(&mut self, shard: usize, socket: Socket, bytes: &[u8]) -> Result<usize, Errno> {
        let number = self.link_of(shard, socket);
        let link = &mut self.links[number];
        assert!(!link.server_fin, "sends to {socket:?} after its own half-close");
        if link.client_reset {
            return Err(Errno::RESET);
        }
        if link.client_closed {
            // The kernel takes the bytes; the answer to them is a reset.
            link.client_reset = true;
            return Ok(bytes.len());
        }
        let mut len = bytes.len().min(link.to_client_max.saturating_sub(link.to_client.len()));
        if link.unreliable && self.rng.random_bool(self.faults.short_send) {
            len = self.rng.random_range(0..=len);
        }
        link.to_client.extend(&bytes[..len]);
        self.note("send", &[shard as u64, number as u64, len as u64, bytes.len() as u64]);
        Ok(len)
    }

    fn close_socket(&mut self, shard: usize, socket: Socket) {
        let number = self.link_of(shard, socket);
        self.note("close", &[shard as u64, number as u64]);
        let side = &mut self.sides[shard];
        assert!(
            side.polls.iter().all(|poll| poll.socket != socket)
                && !side.receiving.contains(&socket.0),
            "closes {socket:?} with something armed on it"
        );
        side.table[socket.0 as usize] = None;
        let link = &mut self.links[number];
        link.server_closed = true;
        link.server_fin = true;
        if !link.to_server.is_empty() {
            link.reset_by_server();
        }
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
        let clock = self.clock;
        side.polls.retain(|poll| {
            let ready = poll.ready_at.is_some_and(|at| at <= clock);
            if ready {
                completions.push(if poll.writable {
                    Completion::Writable(poll.token)
                } else {
                    Completion::Readable(poll.token)
                });
            }
            !ready
        });
        completions[first..].shuffle(&mut self.rng);
        for listener in 0..self.sides[shard].listeners.len() {
            self.accept(shard, listener, completions);
        }
    }

    fn accept(&mut self, shard: usize, listener: usize, completions: &mut Vec<Completion<Lease>>) {
        while self.sides[shard].listeners[listener].armed
            && !self.sides[shard].listeners[listener].backlog.is_empty()
        {
            let full = self.sockets(shard) >= self.faults.descriptors_max;
            if full || self.chance(self.faults.accept_fails) {
                self.sides[shard].listeners[listener].armed = false;
                let result = Err(Errno::TOO_MANY_DESCRIPTORS);
                completions.push(Completion::Accepted { listener, result, more: false });
                return;
            }
            let more = !self.chance(self.faults.accept_ends);
            let side = &mut self.sides[shard];
            side.listeners[listener].armed = more;
            let link = side.listeners[listener].backlog.pop_front().expect("looked at above");
            let free = side.table.iter().position(Option::is_none);
            let index = free.unwrap_or_else(|| {
                side.table.push(None);
                side.table.len() - 1
            });
            side.table[index] = Some(link);
            let result = Ok(Socket(index as u32));
            completions.push(Completion::Accepted { listener, result, more });
            self.note("accept", &[shard as u64, link as u64]);
        }
    }
}

impl Link {
    /// Whether there is something to receive, be it an end.
    fn has(&self) -> bool {
        !self.to_server.is_empty() || self.client_fin || self.client_reset || self.server_shut
    }

    /// Whether it takes bytes, be it to refuse them.
    fn takes(&self) -> bool {
        let free = self.to_client_max.saturating_sub(self.to_client.len());
        free > self.to_client_max / 3 || self.client_reset || self.client_closed || self.server_fin
    }

    /// The server's kernel says that nobody is there; what was not read is lost.
    fn reset_by_server(&mut self) {
        self.server_reset = true;
        self.to_client.clear();
        self.to_server.clear();
    }
}

/// Where a connection comes from: one of a few hosts, so that some have several.
pub(super) fn client_address(link: usize) -> SocketAddr {
    let host = link % CLIENT_HOSTS;
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, host as u8), 1024 + (link / CLIENT_HOSTS) as u16))
}

/// Hosts that connections come from.
const CLIENT_HOSTS: usize = 7;

/// What kind of connection a peer has.
#[derive(Debug, Clone, Copy)]
pub(super) struct LinkHabits {
    pub(super) to_server_max: usize,
    pub(super) to_client_max: usize,
    pub(super) unreliable: bool,
}

/// One shard's [`Io`].
#[derive(Debug)]
pub(super) struct SimIo {
    pub(super) net: Rc<RefCell<Net>>,
    pub(super) shard: usize,
    pub(super) lent: Rc<Cell<usize>>,
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
        UNIX_TIME + self.net.borrow().sides[self.shard].now.as_secs()
    }

    fn pressure(&self) -> Pressure {
        Pressure::default()
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
pub(super) struct Lease {
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
