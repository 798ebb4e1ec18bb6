//! `fanout`: publishers publish into rooms, and every member checks what it hears.
//!
//! Publisher `p` is connection `p` and publishes into its own room, or, roaming, into one of its
//! rooms at random; [`Rooms`] knows which those are. In a closed loop it keeps a window of messages
//! under way, each until its last member has it; in an open loop it publishes at set times, whether
//! or not anything comes back, and latency counts from those times: a server (or generator) that
//! stalls cannot hide it by slowing us down.
//!
//! Deliveries of one message are spread over all threads. Each thread tallies what it saw in a
//! turn and takes it off the [`Flights`] at the end of the turn; who takes off the last one records
//! the time to the last member and wakes the publisher's thread.
//!
//! Source: G. Tene, "How NOT to measure latency" (coordinated omission).

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::flight::Flights;
use super::{Outbox, Outcome, Place, Script};
use crate::measure::Latency;
use crate::random::Xorshift;
use crate::rooms::Rooms;
use crate::sequence::{Arrival, Streams};
use crate::shared::{Counters, LATE_NS, Shared, Stage, add};
use crate::template::{Stamp, Template, Values};

/// A window in which nothing has arrived between two looks, this far apart, is given up, or a lost
/// delivery would end the run. However long all deliveries of one message take, they keep it alive.
const STALL_NS: u64 = 2_000_000_000;
/// When a publisher that has nobody to publish to, or nothing left to say, looks again.
const RETRY_NS: u64 = 10_000_000;

/// When publishers publish.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// Closed loop: so many messages of each publisher under way.
    Window(u32),
    /// Open loop: so many messages per second, all publishers together.
    Rate(f64),
}

/// What is published.
#[derive(Debug)]
pub struct Rules {
    /// The message.
    pub message: Template,
    /// Its size in bytes.
    pub bytes: usize,
    /// Who publishes into which rooms.
    pub rooms: Rooms,
    /// When.
    pub load: Load,
    /// Each publisher ends after so many messages; `None`: when the run does.
    pub messages: Option<u32>,
    /// Whether a publisher hears itself.
    pub sender_receives: bool,
}

/// A publisher of this thread.
#[derive(Debug)]
struct Publisher {
    number: u32,
    connection: u32,
    /// Chooses the room.
    random: Xorshift,
    published: u64,
    /// Messages of a closed loop by line and sequence number: all that are under way, and some that
    /// have finished.
    under_way: Vec<(u32, u32)>,
    /// Messages no longer waited for although they did not reach everyone.
    given_up: u64,
    /// When its window last moved.
    moved: u64,
    finished: u64,
    /// Deliveries to come when that was last looked at.
    left: u64,
}

/// See the module documentation.
pub struct Fanout {
    rules: Arc<Rules>,
    shared: Arc<Shared>,
    flights: Arc<Flights>,
    place: Place,
    publishers: Vec<Publisher>,
    /// One for each line that a connection hears, connection after connection.
    streams: Streams,
    /// Connections of this thread that hear many lines: the first ones.
    roaming: usize,
    /// Streams of each of these.
    streams_roaming: usize,
    /// Streams of each of the others.
    streams_each: usize,
    /// Members that were there when publishing began.
    members: Vec<bool>,
    /// Deliveries of this turn: sequence number and count per slot of all flights.
    tally: Vec<(u32, u32)>,
    tallied: Vec<u32>,
    worst_ns: u64,
    running: bool,
    started: u64,
    latency: Latency,
    to_last: Latency,
}

impl Fanout {
    /// The script of thread `place` with `connections` connections of its own.
    #[must_use]
    pub fn new(
        rules: Arc<Rules>,
        shared: Arc<Shared>,
        flights: Arc<Flights>,
        place: Place,
        connections: usize,
    ) -> Self {
        let publisher = |number| {
            let connection = place.index(number)?;
            Some(Publisher {
                number,
                connection,
                random: Xorshift::new(number),
                published: 0,
                under_way: Vec::new(),
                given_up: 0,
                moved: 0,
                finished: 0,
                left: 0,
            })
        };
        let rooms = rules.rooms;
        let roaming = if rooms.roaming { place.share(rooms.publishers) as usize } else { 0 };
        let streams_roaming = rooms.lines().div_ceil(rooms.publishers) as usize;
        let streams_each = rooms.lines().div_ceil(rooms.count) as usize;
        let streams = roaming * streams_roaming + (connections - roaming) * streams_each;
        Self {
            publishers: (0..rooms.publishers).filter_map(publisher).collect(),
            streams: Streams::new(streams),
            roaming,
            streams_roaming,
            streams_each,
            members: vec![false; connections],
            tally: vec![(0, 0); flights.slots()],
            tallied: Vec::new(),
            worst_ns: 0,
            running: false,
            started: 0,
            latency: Latency::default(),
            to_last: Latency::default(),
            rules,
            shared,
            flights,
            place,
        }
    }

    fn counters(&self) -> &Counters {
        &self.shared.workers[self.place.thread as usize].counters
    }

    /// The first stream of a connection.
    fn first_stream(&self, connection: usize) -> usize {
        let before = connection.min(self.roaming);
        before * self.streams_roaming + (connection - before) * self.streams_each
    }

    /// Takes this turn's deliveries off their flights and wakes publishers elsewhere.
    fn settle(&mut self) {
        let mut tallied = std::mem::take(&mut self.tallied);
        for index in tallied.drain(..) {
            self.settle_one(index as usize);
        }
        self.tallied = tallied;
        let worst_ns = std::mem::take(&mut self.worst_ns);
        if worst_ns > 0 {
            self.counters().worst(worst_ns);
        }
    }

    fn settle_one(&mut self, index: usize) {
        let (sequence, count) = std::mem::take(&mut self.tally[index]);
        if count == 0 {
            return;
        }
        let publisher = self.rules.rooms.publisher(self.flights.line(index));
        let last = self.flights.deliver(publisher, index, sequence, count);
        let Some(intended_ns) = last else { return };
        if self.shared.measures(intended_ns) {
            let now = self.shared.clock.now();
            self.to_last.record(now.saturating_sub(intended_ns));
        }
        let owner = publisher % self.place.threads;
        if owner != self.place.thread {
            self.shared.workers[owner as usize].bell.ring();
        }
    }

    fn tally(&mut self, stamp: Stamp) {
        let index = self.flights.slot(stamp.line, stamp.sequence);
        if self.tally[index].1 > 0 && self.tally[index].0 != stamp.sequence {
            self.settle_one(index);
        }
        if self.tally[index].1 == 0 {
            self.tallied.push(index as u32);
            self.tally[index].0 = stamp.sequence;
        }
        self.tally[index].1 += 1;
    }

    /// Publishes one message of publisher `index` and returns its line and sequence number; `None`
    /// if nobody would hear it, or all are out.
    fn publish(
        &mut self,
        index: usize,
        intended_ns: u64,
        outbox: &mut Outbox,
    ) -> Option<(u32, u32)> {
        let rooms = self.rules.rooms;
        let publisher = &mut self.publishers[index];
        let mut lines = rooms.lines_of(publisher.number);
        let line = lines.nth(publisher.random.draw() as usize % lines.len())?;
        let room = rooms.room(line);
        let members = self.shared.rooms[room as usize].load(Relaxed);
        let hearers = members.saturating_sub(u32::from(!self.rules.sender_receives));
        let most = self.rules.messages.map_or(u64::MAX, u64::from);
        let done = publisher.published >= most;
        if hearers == 0 || done || !self.members[publisher.connection as usize] {
            return None;
        }
        publisher.published += 1;
        let sequence = self.flights.publish(line, intended_ns, hearers);
        let stamp = Stamp { line, sequence, intended_ns };
        let values = Values { room, connection: publisher.number, stamp };
        outbox.send(publisher.connection, self.rules.message.render(values, self.rules.bytes));
        let late = self.shared.clock.now().saturating_sub(intended_ns) > LATE_NS;
        let counters = self.counters();
        add(&counters.published, 1);
        add(&counters.expected, u64::from(hearers));
        add(&counters.late, u64::from(late));
        Some((line, sequence))
    }

    fn fill_window(&mut self, index: usize, window: u32, now: u64, outbox: &mut Outbox) {
        let flights = &self.flights;
        let publisher = &mut self.publishers[index];
        let finished = flights.finished(publisher.number);
        if finished != publisher.finished {
            publisher.finished = finished;
            publisher.moved = now;
        }
        let mut under_way = publisher.published - finished - publisher.given_up;
        let stalls = under_way > 0 && now > publisher.moved + STALL_NS;
        if stalls || publisher.under_way.len() > 2 * window as usize {
            publisher.under_way.retain(|&(line, sequence)| flights.left(line, sequence) > 0);
        }
        if stalls {
            let left = publisher.under_way.iter();
            let left = left.map(|&(line, sequence)| u64::from(flights.left(line, sequence))).sum();
            publisher.moved = now;
            if std::mem::replace(&mut publisher.left, left) == left {
                let all = publisher.under_way.drain(..);
                let given_up = all.filter(|&(line, sequence)| flights.give_up(line, sequence));
                let given_up = given_up.count() as u64;
                publisher.given_up += given_up;
                under_way = under_way.saturating_sub(given_up);
                add(&self.counters().stalled, 1);
            }
        }
        for _ in under_way..u64::from(window) {
            let Some(message) = self.publish(index, now, outbox) else { return };
            self.publishers[index].under_way.push(message);
        }
    }

    /// Publishes what is due and returns when the next message is.
    fn keep_rate(&mut self, index: usize, rate: f64, now: u64, outbox: &mut Outbox) -> u64 {
        loop {
            let Publisher { number, published, .. } = self.publishers[index];
            let turn =
                published as f64 * f64::from(self.rules.rooms.publishers) + f64::from(number);
            let intended_ns = self.started + (turn / rate * 1e9) as u64;
            if intended_ns > now {
                return intended_ns;
            }
            if self.publish(index, intended_ns, outbox).is_none() {
                // Nobody hears it, and nothing that happens without us changes that.
                return now + RETRY_NS;
            }
        }
    }
}

impl Script for Fanout {
    fn ready(&mut self, connection: u32) {
        self.members[connection as usize] = true;
    }

    fn gone(&mut self, connection: u32) {
        // Who leaves while messages are published has lost the rest of them.
        let publishing = self.started > 0;
        self.members[connection as usize] &= publishing;
    }

    fn enter(&mut self, stage: Stage, now: u64, _outbox: &mut Outbox) {
        self.running = stage == Stage::Running;
        if self.running {
            self.started = now;
            for publisher in &mut self.publishers {
                publisher.moved = now;
            }
        }
    }

    fn message(&mut self, connection: u32, payload: &[u8], now: u64) {
        let number = self.place.number(connection);
        let found = Stamp::find(payload)
            .and_then(|stamp| Some((stamp, self.rules.rooms.place(number, stamp.line)?)));
        let Some((stamp, place)) = found else {
            return add(&self.counters().foreign, 1);
        };
        let stream = self.first_stream(connection as usize) + place as usize;
        match self.streams.arrive(stream, stamp.sequence) {
            Arrival::Duplicate => return add(&self.counters().duplicated, 1),
            Arrival::Reordered => add(&self.counters().reordered, 1),
            Arrival::InOrder => {}
        }
        add(&self.counters().delivered, 1);
        let latency = now.saturating_sub(stamp.intended_ns);
        self.worst_ns = self.worst_ns.max(latency);
        if self.shared.measures(stamp.intended_ns) {
            self.latency.record(latency);
        }
        self.tally(stamp);
    }

    fn act(&mut self, now: u64, outbox: &mut Outbox) -> Option<u64> {
        self.settle();
        if !self.running {
            return None;
        }
        let mut next = None;
        for index in 0..self.publishers.len() {
            let due = match self.rules.load {
                Load::Window(window) => {
                    self.fill_window(index, window, now, outbox);
                    continue;
                }
                Load::Rate(rate) => self.keep_rate(index, rate, now, outbox),
            };
            next = Some(next.map_or(due, |next: u64| next.min(due)));
        }
        next
    }

    fn finish(mut self: Box<Self>) -> Outcome {
        self.settle();
        let rooms = self.rules.rooms;
        let mut lost = 0;
        for connection in (0..self.members.len()).filter(|&index| self.members[index]) {
            let number = self.place.number(connection as u32);
            let first = self.first_stream(connection);
            for (place, line) in rooms.heard_by(number).enumerate() {
                if self.rules.sender_receives || rooms.publisher(line) != number {
                    lost += self.streams.missing(first + place, self.flights.published(line));
                }
            }
        }
        Outcome { latency: self.latency, to_last: self.to_last, lost }
    }
}
