//! One worker thread: its connections, their life, and the loop that drives them.
//!
//! Owns a ring, a private descriptor table and every connection of the thread. A [`Script`] says
//! what the scenario does; the engine opens, joins, receives, sends, answers pings and closes.
//! One turn: reap what came, let the script act, stage sends and receives, enter the ring.
//!
//! ```text
//! Absent -> Connecting -> Upgrading -> Joining -> Ready -> Closing -> Gone
//!    ^          |             |           |         |         |        |
//!    |          +-------------+-----------+---------+---------+--> Gone (a Failure, or the end)
//!    +-------------------------- in a storm only ----------------------+
//! ```
//!
//! An idle connection is a `Connection` of 16 bytes here and an armed poll in the kernel;
//! everything else (`Busy`) exists only while it opens, is in the middle of a frame, or has
//! bytes to send.
//!
//! In a storm the place of a connection is used again. Two things keep the old socket away from
//! the new one: completions carry the generation of their socket, and a socket is closed only
//! after the enter that submits what still names its descriptor.
//!
//! Source: the server keeps its connections idle the same way; nothing else is shared.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tungstenite::protocol::frame::coding::OpCode;

use crate::failure::{Failure, Failures};
use crate::measure::Latency;
use crate::plan::{Farewell, Plan};
use crate::random::Xorshift;
use crate::ring::{self, Completion, RECEIVE_BYTES_MAX, Ring, Slot};
use crate::scenario::{Item, Outbox, Outcome, Place, Script};
use crate::shared::{Counters, Shared, Stage, add};
use crate::slow::SlowReaders;
use crate::template::Values;
use crate::window::Window;
use crate::wire::{self, Control, WireError};

/// Connects made between two enters, so that answers are not kept waiting.
const CONNECTS_PER_TURN: usize = 32;
/// Closing handshakes under way at once, all threads together: a server should not be judged by
/// its behaviour when everybody leaves in the same millisecond; `storm` is for that.
const CLOSING_MAX: u32 = 2048;
/// SO_RCVBUF of slow readers once they may read everything.
const WIDE_BUFFER_BYTES: usize = 1 << 20;
/// The longest sleep: an upper bound for noticing anything that rings no bell.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// What a worker hands back.
#[derive(Debug)]
pub struct Finished {
    /// The opening, and each wave of a storm after it.
    pub waves: Vec<Wave>,
    /// What the script found.
    pub outcome: Outcome,
    /// How slow readers ended that did.
    pub slow_ended: Failures,
    /// Slow readers that were still connected when the closing began.
    pub slow_open: u64,
}

/// What happened between two drops.
#[derive(Debug, Default)]
pub struct Wave {
    /// From before connect(2) to the 101, or to the answer of the join.
    pub handshake: Latency,
    /// Attempts that failed, and connections that ended while they were needed.
    pub failed: Failures,
    /// Connections that dropped at its start, on purpose.
    pub dropped: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Absent,
    Connecting,
    Upgrading,
    Joining,
    Ready,
    Closing,
    Gone,
}

#[derive(Debug)]
struct Connection {
    socket: Option<Socket>,
    busy: Option<Box<Busy>>,
    phase: Phase,
    /// In `readable`, waiting for a receive.
    queued: bool,
    /// A send is in the kernel's hands, or the socket is full: what comes waits in `output`.
    sending: bool,
    /// Sockets it has had before, modulo 256; see [`Slot`].
    generation: u8,
}

const ABSENT: Connection = Connection {
    socket: None,
    busy: None,
    phase: Phase::Absent,
    queued: false,
    sending: false,
    generation: 0,
};

/// The idle connection's share of the memory budget (250 bytes).
const _: () = assert!(size_of::<Connection>() <= 16);

/// What a connection has only while something is going on.
#[derive(Debug, Default)]
struct Busy {
    /// When it began to connect, or to close.
    started: u64,
    accept: String,
    /// Answers of joins to come.
    joins_left: u32,
    /// The start of a frame or response head whose rest has not come.
    input: Vec<u8>,
    /// The fragments of a message so far.
    fragments: Vec<u8>,
    output: Vec<u8>,
    /// The peer sends nothing more: what it left is read to the end.
    hung_up: bool,
}

/// See the module documentation.
pub struct Engine {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    place: Place,
    ring: Ring,
    script: Box<dyn Script>,
    connections: Vec<Connection>,
    stage: Stage,
    /// Connections begun so far.
    begun: u32,
    open_from: u64,
    /// Openings under way, oldest first, and when each began; may name some that are done.
    opening: VecDeque<(u32, u64)>,
    opening_count: usize,
    window: Window,
    /// Connections that are still to become ready.
    awaited: u64,
    /// Those that come back in a storm, by the time when.
    returning: BinaryHeap<Reverse<(u64, u32)>>,
    waves: Vec<Wave>,
    slow: SlowReaders,
    slow_open: u64,
    /// Sockets to close once everything that names them is submitted.
    ended: Vec<Socket>,
    /// The next connection to close, and how many are closing.
    close_next: u32,
    closing_count: usize,
    closing_max: usize,
    readable: VecDeque<u32>,
    /// Connections with output to stage.
    dirty: Vec<u32>,
    outbox: Outbox,
    random: Xorshift,
}

impl Engine {
    /// Makes the calling thread worker number `place.thread`: its descriptor table becomes
    /// private, its signals are blocked, its ring is set up.
    ///
    /// # Errors
    /// What close_range(2) and io_uring_setup(2) say.
    pub fn new(
        plan: Arc<Plan>,
        shared: Arc<Shared>,
        place: Place,
        script: Box<dyn Script>,
    ) -> io::Result<Self> {
        let bell = shared.workers[place.thread as usize].bell.clone();
        ring::block_signals();
        ring::take_private_descriptor_table(shared.workers.iter().map(|worker| &worker.bell))?;
        ring::set_exact_timers();
        let share = place.share(plan.connections);
        let slow = SlowReaders::new(&plan, place, share);
        let window = match plan.open_rate {
            None => Window::adaptive(plan.opening_max, place.threads),
            Some(_) => Window::fixed(plan.opening_max),
        };
        Ok(Self {
            ring: Ring::new(bell)?,
            script,
            connections: std::iter::repeat_with(|| ABSENT).take(share as usize).collect(),
            stage: Stage::Opening,
            begun: 0,
            open_from: shared.clock.now(),
            opening: VecDeque::new(),
            opening_count: 0,
            window,
            awaited: u64::from(share),
            returning: BinaryHeap::new(),
            waves: vec![Wave::default()],
            slow,
            slow_open: 0,
            ended: Vec::new(),
            close_next: 0,
            closing_count: 0,
            closing_max: (CLOSING_MAX / place.threads).max(1) as usize,
            readable: VecDeque::new(),
            dirty: Vec::new(),
            outbox: Outbox::default(),
            random: Xorshift::new(place.thread),
            plan,
            shared,
            place,
        })
    }

    /// Runs until the run has ended.
    ///
    /// # Errors
    /// What io_uring_enter(2) says when the ring is beyond help.
    pub fn run(mut self) -> io::Result<Finished> {
        loop {
            let now = self.shared.clock.now();
            let stage = self.shared.stage();
            if stage != self.stage {
                self.stage = stage;
                self.script.enter(stage, now, &mut self.outbox);
                self.enter_slow(stage);
            }
            match stage {
                Stage::Opening | Stage::Running => self.open_more(now),
                Stage::Draining => {}
                Stage::Closing => self.close_more(),
                Stage::Ended => break,
            }
            self.expire(now);
            if self.slow.is_due(now) {
                self.queue_slow();
            }
            let wanted = self.script.act(now, &mut self.outbox);
            self.stage_messages();
            self.stage_receives();
            // Late in the turn: the descriptors of those who drop are free after the enter.
            self.begin_wave(now);
            let wait = self.sleep(wanted);
            self.ring.enter(wait)?;
            self.ended.clear();
            let now = self.shared.clock.now();
            while let Some(completion) = self.ring.reap() {
                self.handle(completion, now);
            }
        }
        Ok(Finished {
            waves: self.waves,
            outcome: self.script.finish(),
            slow_ended: self.slow.ended,
            slow_open: self.slow_open,
        })
    }

    fn counters(&self) -> &Counters {
        &self.shared.workers[self.place.thread as usize].counters
    }

    /// How long the ring may wait for something to happen.
    fn sleep(&self, wanted: Option<u64>) -> Duration {
        // The send that was just staged may have taken a while: ask the clock again.
        let now = self.shared.clock.now();
        let opening = self.opens() && (self.begun as usize) < self.connections.len();
        let closing =
            self.stage == Stage::Closing && (self.close_next as usize) < self.connections.len();
        let ready_to_go = !self.readable.is_empty()
            || !self.ended.is_empty()
            || opening && self.opening_count < self.window.size() && self.plan.open_rate.is_none()
            || closing && self.closing_count < self.closing_max;
        if ready_to_go {
            return Duration::ZERO;
        }
        let returning = self.returning.peek().map(|&Reverse((due, _))| due);
        let wanted = [wanted, returning, self.slow.next()].into_iter().flatten().min();
        let mut wait = wanted.map_or(SLEEP_MAX, |at| Duration::from_nanos(at.saturating_sub(now)));
        if opening && self.plan.open_rate.is_some() {
            wait = wait.min(Duration::from_millis(1));
        }
        if self.opening_count + self.closing_count > 0 {
            wait = wait.min(Duration::from_millis(50));
        }
        wait.min(SLEEP_MAX)
    }

    /// Whether connections are opened for the first time in this stage.
    fn opens(&self) -> bool {
        self.stage == Stage::Opening || self.stage == Stage::Running && self.plan.storm.is_some()
    }

    fn open_more(&mut self, now: u64) {
        for _ in 0..CONNECTS_PER_TURN {
            let Some(index) = self.next_to_open(now) else { return };
            self.open(index, self.shared.clock.now());
        }
    }

    fn next_to_open(&mut self, now: u64) -> Option<u32> {
        // Who comes back asks for no window: a storm is one because nobody waits for anybody.
        if let Some(&Reverse((due, index))) = self.returning.peek()
            && due <= now
        {
            self.returning.pop();
            return Some(index);
        }
        let allowed = match self.plan.open_rate {
            None => u32::MAX,
            Some(rate) => {
                let seconds = now.saturating_sub(self.open_from) as f64 / 1e9;
                (seconds * rate / f64::from(self.place.threads)) as u32 + 1
            }
        };
        let all = self.begun as usize == self.connections.len();
        let waits = self.opening_count >= self.window.size() || self.begun >= allowed;
        if !self.opens() || all || waits {
            return None;
        }
        self.begun += 1;
        Some(self.begun - 1)
    }

    fn open(&mut self, index: u32, now: u64) {
        let number = self.place.number(index);
        let (socket, connected) = match connect(&self.plan, number) {
            Ok(begun) => begun,
            Err(error) => return self.fail_attempt(index, connect_failure(&error)),
        };
        let fd = socket.as_raw_fd();
        let connection = &mut self.connections[index as usize];
        let slot = connection.slot(index);
        connection.socket = Some(socket);
        connection.phase = Phase::Connecting;
        connection.busy = Some(Box::new(Busy { started: now, ..Busy::default() }));
        self.opening.push_back((index, now));
        self.opening_count += 1;
        if connected {
            self.upgrade(index);
        } else {
            self.ring.watch_writable(fd, slot);
        }
    }

    /// The TCP connection stands: asks for the upgrade and begins to listen.
    fn upgrade(&mut self, index: u32) {
        let number = self.place.number(index);
        let room = self.plan.rooms.of(number).next().expect("everybody is in a room");
        let values = Values { room, connection: number, ..<_>::default() };
        let path = self.plan.path.render(values, 0);
        let opening = self.plan.upgrade.open(&path).expect("the first path was tried at start-up");
        let connection = &mut self.connections[index as usize];
        let Some(socket) = &connection.socket else { return };
        connection.phase = Phase::Upgrading;
        let busy = connection.busy.get_or_insert_default();
        busy.accept = opening.accept;
        busy.output = opening.request;
        self.ring.watch(socket.as_raw_fd(), connection.slot(index));
        self.flush(index);
    }

    fn handle(&mut self, completion: Completion, now: u64) {
        match completion {
            // Nobody sends to all here.
            Completion::Bell | Completion::SentShort { .. } => {}
            Completion::Readable { slot, armed, hung_up } => {
                self.handle_readable(slot, armed, hung_up);
            }
            Completion::Writable { slot } => self.handle_writable(slot),
            Completion::Received { slot, result, buffer } => {
                self.handle_received(slot, result, &buffer, now);
                self.ring.give_back(buffer);
            }
            Completion::Sent { slot, result, bytes } => self.handle_sent(slot, result, bytes),
        }
    }

    /// The connection that `slot` names, unless its socket is gone.
    fn find(&mut self, slot: Slot) -> Option<&mut Connection> {
        let connection = &mut self.connections[slot.index as usize];
        (connection.generation == slot.generation && connection.socket.is_some())
            .then_some(connection)
    }

    fn handle_readable(&mut self, slot: Slot, armed: bool, hung_up: bool) {
        let Some(connection) = self.find(slot) else { return };
        if hung_up {
            connection.busy.get_or_insert_default().hung_up = true;
        }
        if !armed && let Some(socket) = &connection.socket {
            let fd = socket.as_raw_fd();
            self.ring.watch(fd, slot);
        }
        if self.reading_limit(slot.index).is_none() {
            self.queue(slot.index);
        }
    }

    /// Lets a connection receive in its turn.
    fn queue(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        if !connection.queued {
            connection.queued = true;
            self.readable.push_back(index);
        }
    }

    fn handle_received(&mut self, slot: Slot, result: Result<usize, i32>, buffer: &[u8], now: u64) {
        if self.find(slot).is_none() {
            return;
        }
        let index = slot.index;
        match result {
            Ok(0) => self.end(index, Failure::Disconnected),
            Ok(len) => {
                if self.plan.is_slow(self.place.number(index)) {
                    add(&self.counters().slow_bytes, len as u64);
                }
                self.receive(index, &buffer[..len], now);
                let Some(connection) = self.find(slot) else { return };
                let hung_up = connection.busy.as_ref().is_some_and(|busy| busy.hung_up);
                // The poll is edge-triggered: a full buffer means that there may be more, and
                // after a hang-up there is: the end itself.
                if len == RECEIVE_BYTES_MAX || hung_up {
                    self.queue(index);
                }
            }
            Err(errno) if is_transient(errno) => {}
            Err(_) => self.end(index, Failure::Reset),
        }
    }

    fn handle_writable(&mut self, slot: Slot) {
        let Some(connection) = self.find(slot) else { return };
        let Some(socket) = &connection.socket else { return };
        if connection.phase == Phase::Connecting {
            match socket.take_error() {
                Ok(None) => self.upgrade(slot.index),
                Ok(Some(error)) | Err(error) => self.end(slot.index, connect_failure(&error)),
            }
        } else {
            connection.sending = false;
            self.flush(slot.index);
        }
    }

    fn handle_sent(&mut self, slot: Slot, result: Result<usize, i32>, mut bytes: Vec<u8>) {
        let index = slot.index;
        let Some(connection) = self.find(slot) else { return };
        let Some(socket) = &connection.socket else { return };
        match result {
            // Receiving says so, too, and before that what the server still had to say.
            Err(_) => {
                connection.busy.get_or_insert_default().hung_up = true;
                self.queue(index);
            }
            Ok(taken) if taken < bytes.len() => {
                bytes.drain(..taken);
                let fd = socket.as_raw_fd();
                let busy = connection.busy.get_or_insert_default();
                bytes.append(&mut busy.output);
                busy.output = bytes;
                self.ring.watch_writable(fd, slot);
            }
            Ok(_) => {
                connection.sending = false;
                self.flush(index);
                self.rest(index);
            }
        }
    }

    /// Hands the connection's output to the ring unless a send is on its way.
    fn flush(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        let slot = connection.slot(index);
        let (Some(socket), Some(busy)) = (&connection.socket, &mut connection.busy) else { return };
        if !connection.sending && !busy.output.is_empty() {
            connection.sending = true;
            self.ring.send(socket.as_raw_fd(), slot, std::mem::take(&mut busy.output));
        }
    }

    /// Gives up what a connection needs only while it is busy.
    fn rest(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        let open = connection.phase == Phase::Ready;
        if open && connection.busy.as_ref().is_some_and(|busy| busy.is_idle()) {
            connection.busy = None;
        }
    }

    fn stage_receives(&mut self) {
        while self.ring.receives_left() > 0 {
            let Some(index) = self.readable.pop_front() else { return };
            let bytes_max = self.reading_limit(index).unwrap_or(RECEIVE_BYTES_MAX);
            let connection = &mut self.connections[index as usize];
            connection.queued = false;
            if let Some(socket) = &connection.socket
                && bytes_max > 0
            {
                self.ring.receive(socket.as_raw_fd(), connection.slot(index), bytes_max);
            }
        }
    }

    /// How much a connection may read at a time, if it is a slow reader that is held back: from
    /// when it is ready until the load is over, or the server has ended it.
    fn reading_limit(&self, index: u32) -> Option<usize> {
        if !self.plan.is_slow(self.place.number(index)) || self.stage >= Stage::Draining {
            return None;
        }
        let connection = &self.connections[index as usize];
        let hung_up = connection.busy.as_ref().is_some_and(|busy| busy.hung_up);
        (connection.phase == Phase::Ready && !hung_up).then(|| self.slow.reading_bytes())
    }

    fn enter_slow(&mut self, stage: Stage) {
        match stage {
            // The load is over: they read all that is left, to see what became of them.
            Stage::Draining => {
                self.widen_slow();
                self.queue_slow();
            }
            Stage::Closing => {
                let phase = |&index: &u32| self.connections[index as usize].phase;
                let open = self.slow.indexes.iter().map(phase).filter(|&p| p == Phase::Ready);
                self.slow_open = open.count() as u64;
            }
            Stage::Opening | Stage::Running | Stage::Ended => {}
        }
    }

    /// Gives slow readers room for whole segments: with little, reading on takes minutes.
    fn widen_slow(&self) {
        for &index in &self.slow.indexes {
            if let Some(socket) = &self.connections[index as usize].socket {
                // As far as net.core.rmem_max allows.
                let _ = socket.set_recv_buffer_size(WIDE_BUFFER_BYTES);
            }
        }
    }

    fn queue_slow(&mut self) {
        for at in 0..self.slow.indexes.len() {
            let index = self.slow.indexes[at];
            if self.connections[index as usize].phase == Phase::Ready {
                self.queue(index);
            }
        }
    }

    /// Turns what the script wants sent into frames and stages one send per connection.
    fn stage_messages(&mut self) {
        let mut items = self.outbox.take();
        for (index, item) in items.drain(..) {
            let key = self.masking_key();
            let connection = &mut self.connections[index as usize];
            if connection.phase == Phase::Ready {
                let output = &mut connection.busy.get_or_insert_default().output;
                match item {
                    Item::Text(text) => wire::write_text(text, key, output),
                    Item::Ping(payload) => wire::write_ping(&payload, key, output),
                }
                self.dirty.push(index);
            }
        }
        self.outbox.give_back(items);
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            self.flush(index);
        }
        self.dirty = dirty;
    }

    /// Unpredictable is not needed against our own server; different is (RFC 6455 section 10.3).
    fn masking_key(&mut self) -> [u8; 4] {
        self.random.draw().to_ne_bytes()
    }

    /// Deals with received bytes: completes what was begun, keeps what is incomplete.
    fn receive(&mut self, index: u32, bytes: &[u8], now: u64) {
        let connection = &mut self.connections[index as usize];
        let kept = match &mut connection.busy {
            Some(busy) if !busy.input.is_empty() => {
                busy.input.extend_from_slice(bytes);
                Some(std::mem::take(&mut busy.input))
            }
            _ => None,
        };
        let input = kept.as_deref().unwrap_or(bytes);
        let mut used = 0;
        while used < input.len() && self.connections[index as usize].socket.is_some() {
            match self.receive_one(index, &input[used..], now) {
                Ok(0) => break,
                Ok(len) => used += len,
                Err(error) => {
                    let failure = match error {
                        WireError::Status(status) => Failure::Status(Some(status)),
                        WireError::Handshake | WireError::Frame => Failure::Protocol,
                    };
                    return self.end(index, failure);
                }
            }
        }
        let connection = &mut self.connections[index as usize];
        if connection.socket.is_none() {
            return;
        }
        if used < input.len() {
            let rest = input[used..].to_vec();
            connection.busy.get_or_insert_default().input = rest;
        }
        self.flush(index);
        self.rest(index);
    }

    /// Handles what `input` begins with; returns its length, 0 if it is incomplete.
    fn receive_one(&mut self, index: u32, input: &[u8], now: u64) -> Result<usize, WireError> {
        let connection = &mut self.connections[index as usize];
        if connection.phase == Phase::Upgrading {
            let accept = connection.busy.as_ref().map_or("", |busy| &busy.accept);
            let Some(len) = wire::read_response(input, accept)? else { return Ok(0) };
            self.upgraded(index, now);
            return Ok(len);
        }
        let Some(frame) = wire::read_frame(input)? else { return Ok(0) };
        match frame.opcode {
            OpCode::Control(Control::Ping) => {
                add(&self.counters().pings_received, 1);
                if self.plan.pong {
                    add(&self.counters().pings_answered, 1);
                    let key = self.masking_key();
                    let busy = self.connections[index as usize].busy.get_or_insert_default();
                    wire::write_pong(frame.payload, key, &mut busy.output);
                }
            }
            OpCode::Control(Control::Close) => self.handle_close(index, frame.payload),
            OpCode::Control(Control::Pong) => self.script.pong(index, frame.payload, now),
            OpCode::Control(_) => {}
            OpCode::Data(_) => self.handle_data(index, &frame, now),
        }
        Ok(frame.len)
    }

    fn handle_data(&mut self, index: u32, frame: &wire::Received<'_>, now: u64) {
        let connection = &mut self.connections[index as usize];
        let begun = connection.busy.as_ref().is_some_and(|busy| !busy.fragments.is_empty());
        if frame.is_final && !begun {
            return self.message(index, frame.payload, now);
        }
        let busy = connection.busy.get_or_insert_default();
        busy.fragments.extend_from_slice(frame.payload);
        if frame.is_final {
            let message = std::mem::take(&mut busy.fragments);
            self.message(index, &message, now);
        }
    }

    fn message(&mut self, index: u32, payload: &[u8], now: u64) {
        match self.connections[index as usize].phase {
            Phase::Joining => self.joined(index, now),
            // What slow readers hear, and when, is not judged.
            Phase::Ready if self.plan.is_slow(self.place.number(index)) => {}
            Phase::Ready => self.script.message(index, payload, now),
            // Late ones while closing are nobody's business.
            _ => {}
        }
    }

    /// The 101 is here: joins its rooms, or is ready.
    fn upgraded(&mut self, index: u32, now: u64) {
        let Some(join) = &self.plan.join else { return self.ready(index, now) };
        let number = self.place.number(index);
        let connection = &mut self.connections[index as usize];
        let busy = connection.busy.get_or_insert_default();
        for room in self.plan.rooms.of(number) {
            let values = Values { room, connection: number, ..<_>::default() };
            let key = self.random.draw().to_ne_bytes();
            wire::write_text(join.render(values, 0), key, &mut busy.output);
            busy.joins_left += 1;
        }
        connection.phase = Phase::Joining;
        if !self.plan.join_answered {
            self.ready(index, now);
        }
    }

    /// A join is answered: the last one makes the connection ready.
    fn joined(&mut self, index: u32, now: u64) {
        let busy = self.connections[index as usize].busy.get_or_insert_default();
        busy.joins_left = busy.joins_left.saturating_sub(1);
        if busy.joins_left == 0 {
            self.ready(index, now);
        }
    }

    fn ready(&mut self, index: u32, now: u64) {
        let connection = &mut self.connections[index as usize];
        connection.phase = Phase::Ready;
        if let Some(busy) = &mut connection.busy {
            let took = now.saturating_sub(busy.started);
            busy.accept = String::new();
            self.window.answered(took, now);
            self.waves.last_mut().expect("the opening is one").handshake.record(took);
        }
        self.opening_count -= 1;
        self.awaited -= 1;
        let counters = self.counters();
        add(&counters.ready, 1);
        counters.awaited.store(self.awaited, Relaxed);
        counters.ready_ns.store(now, Relaxed);
        if !self.plan.is_slow(self.place.number(index)) {
            for room in self.rooms(index) {
                room.fetch_add(1, Relaxed);
            }
            self.script.ready(index);
        }
    }

    /// The ready members of each of a connection's rooms.
    fn rooms(&self, index: u32) -> impl Iterator<Item = &AtomicU32> {
        let rooms = self.plan.rooms.of(self.place.number(index));
        rooms.map(|room| &self.shared.rooms[room as usize])
    }

    /// A close frame has come: answers it if it is the first, and ends the connection.
    fn handle_close(&mut self, index: u32, payload: &[u8]) {
        let key = self.masking_key();
        let connection = &self.connections[index as usize];
        if connection.phase == Phase::Closing {
            if self.stage == Stage::Closing {
                add(&self.counters().closed_clean, 1);
            }
        } else if let Some(socket) = &connection.socket {
            let mut close = Vec::new();
            wire::write_close(key, &mut close);
            // At once, because the socket is gone after this; if it does not fit, so be it.
            let _ = socket.send(&close);
        }
        self.end(index, Failure::Closed(Some(wire::close_code(payload))));
    }

    /// Begins the wave that a storm is in, if that has not been done: some connections drop.
    fn begin_wave(&mut self, now: u64) {
        let wave = self.shared.wave();
        let Some(storm) = self.plan.storm.filter(|_| self.waves.len() as u32 <= wave) else {
            return;
        };
        let mut dropped = 0;
        self.waves.push(Wave::default());
        for index in 0..self.connections.len() as u32 {
            let ready = self.connections[index as usize].phase == Phase::Ready;
            if ready && storm.has(self.place.number(index)) {
                self.awaited += 1;
                dropped += 1;
                self.dismiss(index, storm.how, now);
            }
        }
        self.waves.last_mut().expect("just pushed").dropped = dropped;
        self.counters().awaited.store(self.awaited, Relaxed);
        self.shared.workers[self.place.thread as usize].wave.store(wave, Release);
    }

    fn close_more(&mut self) {
        for _ in 0..self.closing_max {
            let index = self.close_next;
            let Some(connection) = self.connections.get(index as usize) else { return };
            if self.closing_count >= self.closing_max {
                return;
            }
            self.close_next += 1;
            match connection.phase {
                Phase::Ready => {
                    self.dismiss(index, self.plan.farewell, self.shared.clock.now());
                }
                // Only after Ctrl-C: nobody waits for it any more.
                Phase::Connecting | Phase::Upgrading | Phase::Joining => {
                    self.end(index, Failure::HandshakeCut);
                }
                Phase::Absent | Phase::Closing | Phase::Gone => {}
            }
        }
    }

    /// Begins to end a ready connection from our side, or does so at once.
    fn dismiss(&mut self, index: u32, how: Farewell, now: u64) {
        let key = self.masking_key();
        let connection = &mut self.connections[index as usize];
        let Some(socket) = &connection.socket else { return };
        connection.phase = Phase::Closing;
        self.closing_count += 1;
        match how {
            Farewell::Close => {
                let busy = connection.busy.get_or_insert_default();
                busy.started = now;
                wire::write_close(key, &mut busy.output);
                self.opening.push_back((index, now));
                return self.flush(index);
            }
            Farewell::Reset => socket.set_linger(Some(Duration::ZERO)),
            Farewell::Vanish => ring::close_silently(socket.as_raw_fd()),
        }
        .expect("options of a TCP socket; the permission was tried at start-up");
        self.end(index, Failure::Disconnected);
    }

    /// Ends openings and closings that take too long.
    fn expire(&mut self, now: u64) {
        let timeout = self.plan.handshake_timeout.as_nanos() as u64;
        while let Some(&(index, began)) = self.opening.front() {
            let connection = &self.connections[index as usize];
            let pending = match connection.phase {
                // The place may be that of a later attempt by now.
                Phase::Connecting | Phase::Upgrading | Phase::Joining | Phase::Closing => {
                    connection.busy.as_ref().is_some_and(|busy| busy.started == began)
                }
                Phase::Absent | Phase::Ready | Phase::Gone => false,
            };
            if pending && now < began + timeout {
                return;
            }
            self.opening.pop_front();
            if pending {
                self.end(index, Failure::Timeout);
            }
        }
    }

    /// Ends a connection from any phase. `failure` counts where it was still needed.
    fn end(&mut self, index: u32, failure: Failure) {
        let connection = &mut self.connections[index as usize];
        let slot = connection.slot(index);
        let Some(socket) = connection.socket.take() else { return };
        let phase = std::mem::replace(&mut connection.phase, Phase::Gone);
        let sending = std::mem::take(&mut connection.sending);
        connection.busy = None;
        connection.generation = connection.generation.wrapping_add(1);
        if phase != Phase::Connecting {
            self.ring.unwatch(slot);
        }
        if phase == Phase::Connecting || sending {
            self.ring.unwatch_writable(slot);
        }
        self.ended.push(socket);
        let needed = self.stage < Stage::Closing;
        match phase {
            Phase::Connecting | Phase::Upgrading | Phase::Joining => {
                self.opening_count -= 1;
                let cut = failure.is_disconnection();
                self.fail_attempt(index, if cut { Failure::HandshakeCut } else { failure });
            }
            Phase::Ready => {
                self.leave(index);
                if needed && self.plan.is_slow(self.place.number(index)) {
                    self.slow.ended.count(failure);
                } else if needed {
                    self.count_failure(failure);
                }
                if needed && let Some(storm) = self.plan.storm {
                    self.awaited += 1;
                    self.counters().awaited.store(self.awaited, Relaxed);
                    self.come_back(index, storm.retry_after);
                }
            }
            Phase::Closing => {
                self.closing_count -= 1;
                self.leave(index);
                if needed && let Some(storm) = self.plan.storm {
                    let part = f64::from(self.random.draw()) / f64::from(u32::MAX);
                    self.come_back(index, storm.within.mul_f64(part));
                }
            }
            Phase::Absent | Phase::Gone => unreachable!("those have no socket"),
        }
    }

    /// An attempt to open a connection has failed: the last one, but in a storm.
    fn fail_attempt(&mut self, index: u32, failure: Failure) {
        self.window.trouble(self.shared.clock.now());
        if self.stage >= Stage::Closing {
            return;
        }
        self.count_failure(failure);
        if let Some(storm) = self.plan.storm {
            return self.come_back(index, storm.retry_after);
        }
        self.awaited -= 1;
        self.counters().awaited.store(self.awaited, Relaxed);
    }

    fn come_back(&mut self, index: u32, after: Duration) {
        let due = self.shared.clock.now() + after.as_nanos() as u64;
        self.returning.push(Reverse((due, index)));
    }

    fn leave(&mut self, index: u32) {
        add(&self.counters().ended, 1);
        if !self.plan.is_slow(self.place.number(index)) {
            for room in self.rooms(index) {
                room.fetch_sub(1, Relaxed);
            }
            self.script.gone(index);
        }
    }

    fn count_failure(&mut self, failure: Failure) {
        add(&self.counters().failed, 1);
        self.waves.last_mut().expect("the opening is one").failed.count(failure);
    }
}

impl Connection {
    fn slot(&self, index: u32) -> Slot {
        Slot { index, generation: self.generation }
    }
}

impl Busy {
    fn is_idle(&self) -> bool {
        let empty = self.input.is_empty() && self.fragments.is_empty() && self.output.is_empty();
        empty && !self.hung_up
    }
}

/// Begins to connect; also says whether that is done already, as it mostly is over loopback.
fn connect(plan: &Plan, number: u32) -> io::Result<(Socket, bool)> {
    let domain = Domain::for_address(plan.target);
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new_raw(domain, kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    if let Some(slow) = plan.slow.filter(|slow| slow.has(number)) {
        // Before the connect, which offers the window that follows from it.
        socket.set_recv_buffer_size(slow.buffer as usize)?;
    }
    if let Some(source) = plan.source(number) {
        ring::choose_port_at_connect(socket.as_raw_fd())?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    match socket.connect(&plan.target.into()) {
        Ok(()) => Ok((socket, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok((socket, false)),
        Err(error) => Err(error),
    }
}

fn connect_failure(error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Failure::Refused,
        Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE) => Failure::NoPort,
        Some(libc::EMFILE | libc::ENFILE) => Failure::NoDescriptor,
        Some(libc::ETIMEDOUT) => Failure::Timeout,
        _ => Failure::Connect,
    }
}

fn is_transient(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM)
}
