//! A network of the seed's making: a clock, sockets, listeners, and an [`Io`] for every shard.
//!
//! A connection is two byte queues of bounded length. What TCP and io_uring may do to it happens
//! here: sends that take a part or nothing, receives that stop at any byte, resets that throw away
//! what was not read, polls that complete late or for nothing, accepts that end or fail, a full
//! completion queue. What they promise is kept: bytes in order, sends and receives resolved by the
//! next reap, the lowest free descriptor for the next socket (so that a stale one soon names
//! somebody else).
//!
//! Nothing is looked for: whatever changes a connection says whose poll comes true
//! ([`Net::settle`]) and which peer has something to do ([`Net::touched`]). So a step costs the
//! same in a world of thousands, and an hour in which little happens is over in a second.
//!
//! | File     | What it does                                                     |
//! |----------|------------------------------------------------------------------|
//! | here     | what peers do, and the world                                     |
//! | `kernel` | what shards ask of it: [`SimIo`]; asserts what they must never do |
//! | `link`   | one connection                                                   |
//! | `fault`  | what may go wrong, and what has                                  |
//!
//! Never: looks inside the bytes. That is for the peers ([`super::peer`]).
//!
//! [`Io`]: crate::io::Io

mod fault;
mod kernel;
mod link;

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::io::{Errno, Socket, Wait};

pub(super) use fault::{Fault, Faults, Happened};
pub(super) use kernel::SimIo;
use kernel::{Effort, Side};
use link::Link;
pub(super) use link::{LinkHabits, client_address};

/// When every run begins, in seconds since 1970: tokens know no other time.
pub(super) const UNIX_TIME: u64 = 1_800_000_000;

/// What a server is told of a connection that is broken.
const BREAKS: [Errno; 4] =
    [Errno::RESET, Errno::RESET, Errno(libc::ETIMEDOUT), Errno(libc::EHOSTUNREACH)];

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
    /// How far the host's clock has been set forward, or back, in seconds.
    pub(super) clock_set: i64,
    pub(super) faults: Faults,
    pub(super) happened: Happened,
    pub(super) trace: Trace,
    /// Bytes that went from one end to the other.
    pub(super) moved: u64,
    /// A shard has woken the thread that publishes from outside.
    pub(super) control_woken: bool,
    /// Connections that look different to their peers since somebody asked.
    pub(super) touched: Vec<usize>,
    /// What the clock says in the beginning.
    pub(super) base: Instant,
    links: Vec<Link>,
    sides: Vec<Side>,
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
            clock_set: 0,
            faults: Faults::NONE,
            happened: Happened::default(),
            trace: Trace { hash: 0xcbf2_9ce4_8422_2325, print },
            moved: 0,
            control_woken: false,
            touched: Vec::new(),
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

    /// Whether a fault of probability `p` happens now.
    fn suffers(&mut self, fault: Fault, p: f64) -> bool {
        let happens = self.chance(p);
        if happens {
            self.happened.note(fault);
        }
        happens
    }

    // What peers do.

    /// Knocks at one shard's listener. Connections count from 0.
    pub(super) fn connect(&mut self, shard: usize, habits: LinkHabits) -> usize {
        let listeners = self.sides[shard].listeners.len();
        let listener = self.rng.random_range(0..listeners);
        let link = self.links.len();
        let closed = self.sides[shard].listeners[listener].closed;
        self.links.push(Link::new(habits, closed));
        if !closed {
            self.sides[shard].listeners[listener].backlog.push_back(link);
        }
        link
    }

    /// Writes what fits and returns how much that was.
    pub(super) fn write(&mut self, number: usize, bytes: &[u8]) -> usize {
        let link = &mut self.links[number];
        assert!(!link.client_fin && !link.client_reset, "a peer writes after its end");
        if link.server_closed {
            link.reset_by_server();
            return bytes.len();
        }
        let len = bytes.len().min(link.to_server_max.saturating_sub(link.to_server.len()));
        link.to_server.extend(&bytes[..len]);
        self.settle(number);
        len
    }

    pub(super) fn can_write(&self, link: usize) -> bool {
        let link = &self.links[link];
        link.server_closed || link.to_server.len() < link.to_server_max
    }

    pub(super) fn read(&mut self, number: usize, max: usize) -> Read {
        let link = &mut self.links[number];
        if link.server_reset {
            return Read::Reset;
        }
        if link.to_client.is_empty() {
            return if link.server_fin { Read::Eof } else { Read::Nothing };
        }
        let len = max.min(link.to_client.len());
        self.moved += len as u64;
        let bytes = link.to_client.drain(..len).collect();
        self.settle(number);
        Read::Bytes(bytes)
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
        self.happened.note(Fault::HalfClose);
        self.links[link].client_fin = true;
        self.settle(link);
    }

    /// The peer sends no more and does not read any more.
    pub(super) fn close(&mut self, number: usize) {
        let link = &mut self.links[number];
        link.client_fin = true;
        link.client_closed = true;
        // Bytes it has not read: that is a reset.
        if !link.to_client.is_empty() {
            link.reset_by_client(Errno::RESET);
        }
        self.settle(number);
    }

    /// The peer resets the connection, or the way to it is gone for good.
    pub(super) fn reset(&mut self, number: usize) {
        self.happened.note(Fault::Reset);
        let purged = self.rng.random_bool(0.5);
        let errno = *BREAKS.choose(&mut self.rng).expect("there are some");
        let link = &mut self.links[number];
        link.reset_by_client(errno);
        if purged {
            link.purged = true;
            link.to_server.clear();
        }
        self.settle(number);
    }

    /// Whether the server has closed its end.
    pub(super) fn is_closed_by_server(&self, link: usize) -> bool {
        self.links[link].server_closed
    }

    // What the world does.

    /// The shard that has accepted the connection, and what it calls it, while it is open there.
    pub(super) fn place(&self, link: usize) -> Option<(usize, Socket)> {
        let shard = self.links[link].shard?;
        let index = self.sides[shard].table.iter().position(|it| *it == Some(link))?;
        Some((shard, Socket(index as u32)))
    }

    /// The connection that a shard calls so, if it is open.
    pub(super) fn behind(&self, shard: usize, socket: Socket) -> Option<usize> {
        *self.sides[shard].table.get(socket.0 as usize)?
    }

    pub(super) fn add_shard(&mut self, listeners: usize) {
        self.sides.push(Side::new(listeners));
    }

    /// Wakes a shard, as another thread would.
    pub(super) fn wake(&mut self, shard: usize) {
        self.sides[shard].woken = true;
    }

    /// Now and then a poll completes, or a shard is woken, for nothing.
    pub(super) fn surprise(&mut self) {
        if self.chance(self.faults.spurious) {
            self.happened.note(Fault::SpuriousWake);
            let shard = self.rng.random_range(0..self.sides.len());
            self.wake(shard);
        }
        if self.chance(self.faults.spurious) && !self.links.is_empty() {
            let number = self.rng.random_range(0..self.links.len());
            let writable = self.rng.random_bool(0.5);
            let armed = self.links[number].polls[usize::from(writable)].as_ref();
            if armed.is_some_and(|poll| poll.ready_at.is_none()) {
                self.happened.note(Fault::SpuriousPoll);
                self.complete(number, writable);
            }
        }
    }

    /// Completes the polls on a connection that come true, and lets its peer look at it.
    fn settle(&mut self, number: usize) {
        self.touched.push(number);
        for writable in [false, true] {
            let link = &self.links[number];
            let poll = link.polls[usize::from(writable)].as_ref();
            if poll.is_some_and(|poll| poll.ready_at.is_none()) && link.is_ready(writable) {
                self.complete(number, writable);
            }
        }
    }

    /// The poll has come true; the shard learns it now or later.
    fn complete(&mut self, number: usize, writable: bool) {
        let delay_max = self.faults.poll_delay_max.as_micros() as u64;
        let mut at = self.clock;
        if delay_max > 0 && self.suffers(Fault::LatePoll, 0.5) {
            at += Duration::from_micros(self.rng.random_range(0..=delay_max));
        }
        let link = &mut self.links[number];
        let poll = link.polls[usize::from(writable)].as_mut().expect("it is armed");
        poll.ready_at = Some(at);
        let shard = link.shard.expect("polls are armed on what was accepted");
        self.sides[shard].ready.insert((at, number, writable));
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
            || side.ready.first().is_some_and(|ready| ready.0 <= self.clock)
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
        side.ready.first().map(|ready| ready.0).into_iter().chain(until).min()
    }

    /// The shard's wait is over: it reads the clock.
    pub(super) fn begin_tick(&mut self, shard: usize) {
        self.sides[shard].now = self.clock;
    }

    /// The shard's thread has ended: everything it had open goes with it.
    pub(super) fn end_shard(&mut self, shard: usize) {
        self.control_woken = true;
        let side = &mut self.sides[shard];
        side.ready.clear();
        side.tokens.clear();
        side.free.clear();
        let backlogs = side.listeners.iter_mut().flat_map(|listener| listener.backlog.drain(..));
        let links: Vec<usize> = side.table.drain(..).flatten().chain(backlogs).collect();
        for link in links {
            self.hang_up(link);
        }
    }

    /// The server closes the connection and throws away what was not read.
    fn hang_up(&mut self, number: usize) {
        let link = &mut self.links[number];
        link.server_closed = true;
        link.polls = [None, None];
        link.reset_by_server();
        self.touched.push(number);
    }

    /// Open sockets of a shard.
    pub(super) fn sockets(&self, shard: usize) -> usize {
        self.sides[shard].table.len() - self.sides[shard].free.len()
    }

    pub(super) fn backlog(&self, shard: usize) -> usize {
        self.sides[shard].listeners.iter().map(|listener| listener.backlog.len()).sum()
    }

    pub(super) fn effort(&self, shard: usize) -> Effort {
        self.sides[shard].effort
    }

    /// Polls that are armed.
    pub(super) fn armed(&self, shard: usize) -> usize {
        self.sides[shard].tokens.values().map(|&(_, polls)| polls).sum()
    }

    /// Receive buffers that are to have bytes in them for the shard's next reap.
    pub(super) fn received(&self, shard: usize) -> usize {
        self.sides[shard].received()
    }
}
