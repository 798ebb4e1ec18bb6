//! `fanout`: publishers publish into rooms, and every member checks what it hears.
//!
//! Publisher `p` is connection `p` and publishes into its own room, `p % rooms`. In a closed loop
//! it keeps a window of messages under way, each until its last member has it; in an open loop it
//! publishes at set times, whether or not anything comes back, and latency counts from those
//! times: a server (or generator) that stalls cannot hide it by slowing us down.
//!
//! Deliveries of one message are spread over all threads. Each thread tallies what it saw in a
//! turn and takes it off the publisher's [`Flight`] at the end of the turn; who takes off the last
//! one records the time to the last member and wakes the publisher's thread.
//!
//! Source: G. Tene, "How NOT to measure latency" (coordinated omission).

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::{Outbox, Outcome, Place, Script};
use crate::measure::Latency;
use crate::sequence::{Arrival, Streams};
use crate::shared::{Counters, LATE_NS, Shared, Stage, add};
use crate::template::{Stamp, Template, Values};

/// A window in which nothing has arrived between two looks, this far apart, is given up, or a lost
/// delivery would end the run. However long all deliveries of one message take, they keep it alive.
const STALL_NS: u64 = 2_000_000_000;
/// When a publisher that has nobody to publish to, or nothing left to say, looks again.
const RETRY_NS: u64 = 10_000_000;
/// Messages of all publishers that can be under way at once in an open loop, about: bounds a
/// thread's tally.
const UNDER_WAY_MAX: u32 = 1 << 18;

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
    /// Publishers.
    pub publishers: u32,
    /// Rooms.
    pub rooms: u32,
    /// When.
    pub load: Load,
    /// Each publisher ends after so many messages; `None`: when the run does.
    pub messages: Option<u32>,
    /// Whether a publisher hears itself.
    pub sender_receives: bool,
}

/// Messages of one publisher that are under way, shared by all threads.
#[derive(Debug)]
pub struct Flight {
    slots: Box<[Slot]>,
    /// Messages that have reached every member.
    finished: AtomicU64,
    /// Messages published.
    published: AtomicU32,
}

#[derive(Debug, Default)]
struct Slot {
    /// Sequence number in the upper half, deliveries to come in the lower.
    state: AtomicU64,
    intended_ns: AtomicU64,
}

impl Flight {
    /// One flight per publisher.
    #[must_use]
    pub fn all(rules: &Rules) -> Arc<[Self]> {
        let share = UNDER_WAY_MAX / rules.publishers.max(1);
        let len = match rules.load {
            Load::Window(window) => window.next_power_of_two(),
            Load::Rate(_) => share.clamp(64, 1 << 14).next_power_of_two(),
        };
        let flight = |_| Self {
            slots: (0..len).map(|_| Slot::default()).collect(),
            finished: AtomicU64::new(0),
            published: AtomicU32::new(0),
        };
        (0..rules.publishers).map(flight).collect()
    }

    fn slot(&self, sequence: u32) -> &Slot {
        &self.slots[sequence as usize & (self.slots.len() - 1)]
    }

    fn publish(&self, sequence: u32, intended_ns: u64, members: u32) {
        let slot = self.slot(sequence);
        slot.intended_ns.store(intended_ns, Relaxed);
        slot.state.store(u64::from(sequence) << 32 | u64::from(members), Release);
        self.published.store(sequence + 1, Relaxed);
    }

    /// Takes `count` deliveries off; returns the intended time if they were the last ones.
    fn deliver(&self, sequence: u32, count: u32) -> Option<u64> {
        let slot = self.slot(sequence);
        let before = slot.state.fetch_update(AcqRel, Acquire, |state| {
            let (current, left) = ((state >> 32) as u32, state as u32);
            // Another sequence number: given up, and the slot used again.
            (current == sequence && left > 0).then(|| state - u64::from(count.min(left)))
        });
        let last = before.is_ok_and(|state| state as u32 <= count);
        last.then(|| {
            self.finished.fetch_add(1, Release);
            slot.intended_ns.load(Relaxed)
        })
    }

    /// Deliveries to come of the message `sequence`.
    fn left(&self, sequence: u32) -> u32 {
        let state = self.slot(sequence).state.load(Acquire);
        if (state >> 32) as u32 == sequence { state as u32 } else { 0 }
    }

    /// Stops waiting for a message; false if it has just finished.
    fn give_up(&self, sequence: u32) -> bool {
        self.slot(sequence).state.swap(u64::from(sequence) << 32, AcqRel) as u32 > 0
    }
}

/// A publisher of this thread.
#[derive(Debug, Default)]
struct Publisher {
    number: u32,
    connection: u32,
    next: u32,
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
    flights: Arc<[Flight]>,
    place: Place,
    publishers: Vec<Publisher>,
    streams: Streams,
    /// Streams per member: publishers in its room.
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
        flights: Arc<[Flight]>,
        place: Place,
        connections: usize,
    ) -> Self {
        let publisher = |number| {
            let connection = place.index(number)?;
            Some(Publisher { number, connection, ..Publisher::default() })
        };
        let streams_each = rules.publishers.div_ceil(rules.rooms) as usize;
        let slots: usize = flights.iter().map(|flight| flight.slots.len()).sum();
        Self {
            publishers: (0..rules.publishers).filter_map(publisher).collect(),
            streams: Streams::new(streams_each * connections),
            streams_each,
            members: vec![false; connections],
            tally: vec![(0, 0); slots],
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
        let publisher = index / self.flights[0].slots.len();
        let Some(intended_ns) = self.flights[publisher].deliver(sequence, count) else { return };
        if self.shared.measures(intended_ns) {
            let now = self.shared.clock.now();
            self.to_last.record(now.saturating_sub(intended_ns));
        }
        let owner = publisher as u32 % self.place.threads;
        if owner != self.place.thread {
            self.shared.workers[owner as usize].bell.ring();
        }
    }

    fn tally(&mut self, stamp: Stamp) {
        let len = self.flights[0].slots.len();
        let index = stamp.publisher as usize * len + (stamp.sequence as usize & (len - 1));
        if self.tally[index].1 > 0 && self.tally[index].0 != stamp.sequence {
            self.settle_one(index);
        }
        if self.tally[index].1 == 0 {
            self.tallied.push(index as u32);
            self.tally[index].0 = stamp.sequence;
        }
        self.tally[index].1 += 1;
    }

    /// Publishes one message of publisher `index`; false if nobody would hear it, or all are out.
    fn publish(&mut self, index: usize, intended_ns: u64, outbox: &mut Outbox) -> bool {
        let publisher = &mut self.publishers[index];
        let room = publisher.number % self.rules.rooms;
        let members = self.shared.rooms[room as usize].load(Relaxed);
        let hearers = members.saturating_sub(u32::from(!self.rules.sender_receives));
        let done = self.rules.messages.is_some_and(|messages| publisher.next >= messages);
        if hearers == 0 || done || !self.members[publisher.connection as usize] {
            return false;
        }
        let (publisher_number, sequence) = (publisher.number, publisher.next);
        publisher.next += 1;
        let connection = publisher.connection;
        let stamp = Stamp { publisher: publisher_number, sequence, intended_ns };
        self.flights[publisher_number as usize].publish(sequence, intended_ns, hearers);
        let values = Values { room, connection: publisher_number, stamp };
        outbox.send(connection, self.rules.message.render(values, self.rules.bytes));
        let late = self.shared.clock.now().saturating_sub(intended_ns) > LATE_NS;
        let counters = self.counters();
        add(&counters.published, 1);
        add(&counters.expected, u64::from(hearers));
        add(&counters.late, u64::from(late));
        true
    }

    fn fill_window(&mut self, index: usize, window: u32, now: u64, outbox: &mut Outbox) {
        let publisher = &mut self.publishers[index];
        let flight = &self.flights[publisher.number as usize];
        let finished = flight.finished.load(Acquire);
        if finished != publisher.finished {
            publisher.finished = finished;
            publisher.moved = now;
        }
        let mut under_way = u64::from(publisher.next) - finished - publisher.given_up;
        if under_way > 0 && now > publisher.moved + STALL_NS {
            // Only what is still in a slot can be unfinished: at most the last `window`.
            let last = publisher.next.saturating_sub(window)..publisher.next;
            let left = last.clone().map(|sequence| u64::from(flight.left(sequence))).sum();
            publisher.moved = now;
            if std::mem::replace(&mut publisher.left, left) == left {
                let given_up = last.filter(|&sequence| flight.give_up(sequence)).count() as u64;
                publisher.given_up += given_up;
                under_way = under_way.saturating_sub(given_up);
                add(&self.counters().stalled, 1);
            }
        }
        for _ in under_way..u64::from(window) {
            if !self.publish(index, now, outbox) {
                return;
            }
        }
    }

    /// Publishes what is due and returns when the next message is.
    fn keep_rate(&mut self, index: usize, rate: f64, now: u64, outbox: &mut Outbox) -> u64 {
        loop {
            let Publisher { number, next, .. } = self.publishers[index];
            let turn = f64::from(next) * f64::from(self.rules.publishers) + f64::from(number);
            let intended_ns = self.started + (turn / rate * 1e9) as u64;
            if intended_ns > now {
                return intended_ns;
            }
            if !self.publish(index, intended_ns, outbox) {
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
        let room = self.place.number(connection) % self.rules.rooms;
        let ours = |stamp: &Stamp| {
            stamp.publisher < self.rules.publishers && stamp.publisher % self.rules.rooms == room
        };
        let Some(stamp) = Stamp::find(payload).filter(ours) else {
            return add(&self.counters().foreign, 1);
        };
        let stream =
            connection as usize * self.streams_each + (stamp.publisher / self.rules.rooms) as usize;
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
        let mut lost = 0;
        for connection in (0..self.members.len()).filter(|&index| self.members[index]) {
            let number = self.place.number(connection as u32);
            let room = number % self.rules.rooms;
            for each in 0..self.streams_each {
                let publisher = each as u32 * self.rules.rooms + room;
                let silent = publisher == number && !self.rules.sender_receives;
                if publisher < self.rules.publishers && !silent {
                    let published = self.flights[publisher as usize].published.load(Relaxed);
                    let stream = connection * self.streams_each + each;
                    lost += self.streams.missing(stream, published);
                }
            }
        }
        Outcome { latency: self.latency, to_last: self.to_last, lost }
    }
}
