//! `echo`: every connection keeps a window of messages under way to a server that sends them back.
//!
//! A message that comes back is checked against the connection's own sequence and makes room for
//! the next. A lost one therefore narrows the window for good, which the report shows as lost.

use std::sync::Arc;

use super::{Outbox, Outcome, Place, Script};
use crate::measure::Latency;
use crate::sequence::{Arrival, Streams};
use crate::shared::{Counters, Shared, Stage, add};
use crate::template::{Stamp, Template, Values};

/// What is sent.
#[derive(Debug)]
pub struct Rules {
    /// The message.
    pub message: Template,
    /// Its size in bytes.
    pub bytes: usize,
    /// Messages under way per connection.
    pub window: u32,
    /// For `{room}`.
    pub rooms: u32,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Echo {
    rules: Arc<Rules>,
    shared: Arc<Shared>,
    place: Place,
    sent: Vec<u32>,
    streams: Streams,
    /// Connections with room in their window, once for each message.
    due: Vec<u32>,
    ready: Vec<bool>,
    running: bool,
    latency: Latency,
}

impl Echo {
    /// The script of thread `place` with `connections` connections of its own.
    #[must_use]
    pub fn new(rules: Arc<Rules>, shared: Arc<Shared>, place: Place, connections: usize) -> Self {
        Self {
            rules,
            shared,
            place,
            sent: vec![0; connections],
            streams: Streams::new(connections),
            due: Vec::new(),
            ready: vec![false; connections],
            running: false,
            latency: Latency::default(),
        }
    }

    fn counters(&self) -> &Counters {
        &self.shared.workers[self.place.thread as usize].counters
    }
}

impl Script for Echo {
    fn ready(&mut self, connection: u32) {
        self.ready[connection as usize] = true;
    }

    fn gone(&mut self, connection: u32) {
        self.ready[connection as usize] = false;
    }

    fn enter(&mut self, stage: Stage, _now: u64, _outbox: &mut Outbox) {
        self.running = stage == Stage::Running;
        self.due.clear();
        if self.running {
            for _ in 0..self.rules.window {
                self.due.extend((0..self.ready.len() as u32).filter(|&c| self.ready[c as usize]));
            }
        }
    }

    fn message(&mut self, connection: u32, payload: &[u8], now: u64) {
        let stamp = Stamp::find(payload);
        let own = self.place.number(connection);
        let Some(stamp) = stamp.filter(|stamp| stamp.line == own) else {
            return add(&self.counters().foreign, 1);
        };
        match self.streams.arrive(connection as usize, stamp.sequence) {
            Arrival::Duplicate => return add(&self.counters().duplicated, 1),
            Arrival::Reordered => add(&self.counters().reordered, 1),
            Arrival::InOrder => {}
        }
        add(&self.counters().delivered, 1);
        let latency = now.saturating_sub(stamp.intended_ns);
        self.counters().worst(latency);
        if self.shared.measures(stamp.intended_ns) {
            self.latency.record(latency);
        }
        if self.running {
            self.due.push(connection);
        }
    }

    fn act(&mut self, now: u64, outbox: &mut Outbox) -> Option<u64> {
        let mut due = std::mem::take(&mut self.due);
        for connection in due.drain(..) {
            let index = connection as usize;
            if !self.ready[index] {
                continue;
            }
            let number = self.place.number(connection);
            let stamp = Stamp { line: number, sequence: self.sent[index], intended_ns: now };
            let values = Values { room: number % self.rules.rooms, connection: number, stamp };
            outbox.send(connection, self.rules.message.render(values, self.rules.bytes));
            self.sent[index] += 1;
            add(&self.counters().published, 1);
            add(&self.counters().expected, 1);
        }
        self.due = due;
        None
    }

    fn finish(self: Box<Self>) -> Outcome {
        let sent = self.sent.iter().enumerate();
        let lost = sent.map(|(stream, &sent)| self.streams.missing(stream, sent)).sum();
        Outcome { latency: self.latency, to_last: Latency::default(), lost }
    }
}
