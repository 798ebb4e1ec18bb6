//! One worker thread: its connections, their life, and the loop that drives them.
//!
//! Owns a ring, a private descriptor table and every connection of the thread. A [`Script`] says
//! what the scenario does; the engine opens, joins, receives, sends, answers pings and closes.
//! One turn: reap what came, let the script act, stage sends and receives, enter the ring.
//!
//! ```text
//! Absent -> Connecting -> Upgrading -> Joining -> Ready -> Closing -> Gone
//!               |             |           |         |         |
//!               +-------------+-----------+---------+---------+--> Gone (a Failure, or the end)
//! ```
//!
//! An idle connection is a `Connection` of 16 to 24 bytes here and an armed poll in the kernel;
//! everything else (`Busy`) exists only while it opens, is in the middle of a frame, or has
//! bytes to send.
//!
//! Source: the server keeps its connections idle the same way; nothing else is shared.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tungstenite::protocol::frame::coding::OpCode;

use crate::measure::Latency;
use crate::ring::{self, Completion, RECEIVE_BYTES_MAX, Ring};
use crate::shared::{Counters, Failure, Shared, Stage, add};
use crate::template::{Template, Values};
use crate::wire::{self, Control, Upgrade, WireError};

/// Connects made between two enters, so that answers are not kept waiting.
const CONNECTS_PER_TURN: usize = 32;
/// Closing handshakes under way at once in one thread: a server should not be judged by its
/// behaviour when everybody leaves in the same millisecond; `storm` is for that.
const CLOSING_MAX: usize = 256;
/// Connections per source address: few of its ports, so that finding a free one stays cheap.
const CONNECTIONS_PER_SOURCE: u32 = 10_000;
/// The longest sleep: an upper bound for noticing anything that rings no bell.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// What every thread must know to open its connections.
#[derive(Debug)]
pub struct Plan {
    /// The server.
    pub target: SocketAddr,
    /// Source addresses in turn; empty: spread over 127.0.0.0/8 if the target is there.
    pub sources: Vec<IpAddr>,
    /// The constant part of the upgrade request.
    pub upgrade: Upgrade,
    /// The path of each connection.
    pub path: Template,
    /// What each connection sends once it is open.
    pub join: Option<Template>,
    /// Whether the first message after `join` is its answer.
    pub join_answered: bool,
    /// Connections over all threads.
    pub connections: u32,
    /// Rooms; connection `n` is in room `n % rooms`.
    pub rooms: u32,
    /// Connections opened per second over all threads; `None`: as fast as the server answers.
    pub open_rate: Option<f64>,
    /// Handshakes under way at once in one thread.
    pub opening_max: usize,
    /// How long a handshake, join included, may take; also a closing handshake.
    pub handshake_timeout: Duration,
    /// Whether pings are answered.
    pub pong: bool,
}

impl Plan {
    /// The address connection `number` comes from, if it matters.
    #[must_use]
    pub fn source(&self, number: u32) -> Option<IpAddr> {
        if !self.sources.is_empty() {
            return Some(self.sources[number as usize % self.sources.len()]);
        }
        let loopback = matches!(self.target.ip(), IpAddr::V4(target) if target.is_loopback());
        loopback.then(|| {
            // 127.1.0.1 upwards: no address a server is likely to listen on.
            let index = number / CONNECTIONS_PER_SOURCE;
            let [_, _, c, _] = ((index / 254) << 8).to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(127, 1, c, (index % 254 + 1) as u8))
        })
    }
}

/// What a scenario does with connections that are open. Connections are named by their index in
/// the thread; see [`Place::number`].
pub trait Script {
    /// A connection has opened and joined.
    fn ready(&mut self, connection: u32);
    /// A ready connection is gone.
    fn gone(&mut self, connection: u32);
    /// The run has moved on.
    fn enter(&mut self, stage: Stage, now: u64, outbox: &mut Outbox);
    /// A message has arrived, complete.
    fn message(&mut self, connection: u32, payload: &[u8], now: u64);
    /// Once per turn, after all messages: send what is due. Returns when it wants the next turn,
    /// on the clock, if nothing else happens.
    fn act(&mut self, now: u64, outbox: &mut Outbox) -> Option<u64>;
    /// The end.
    fn finish(self: Box<Self>) -> Outcome;
}

/// What a script found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// From the intended time of a message to each of its deliveries.
    pub latency: Latency,
    /// From the intended time of a message to the last of its deliveries.
    pub to_last: Latency,
    /// Deliveries that never came.
    pub lost: u64,
}

/// Messages a script wants sent.
#[derive(Debug, Default)]
pub struct Outbox {
    messages: Vec<(u32, String)>,
}

impl Outbox {
    /// Sends `text` on `connection`. Messages of one turn to one connection leave together.
    pub fn send(&mut self, connection: u32, text: String) {
        self.messages.push((connection, text));
    }
}

/// Which thread this is, and so which connections it has.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The thread, from 0.
    pub thread: u32,
    /// Threads of the run.
    pub threads: u32,
}

impl Place {
    /// The number in the whole run of the thread's connection `index`: dealt like cards, so that
    /// every thread has a share of every room.
    #[must_use]
    pub fn number(self, index: u32) -> u32 {
        index * self.threads + self.thread
    }

    /// The index of connection `number` if this thread has it.
    #[must_use]
    pub fn index(self, number: u32) -> Option<u32> {
        (number % self.threads == self.thread).then_some(number / self.threads)
    }

    /// How many of `connections` this thread has.
    #[must_use]
    pub fn share(self, connections: u32) -> u32 {
        connections / self.threads + u32::from(self.thread < connections % self.threads)
    }
}

/// What a worker hands back.
#[derive(Debug)]
pub struct Finished {
    /// From before connect(2) to the 101, or to the answer of the join.
    pub handshake: Latency,
    /// What the script found.
    pub outcome: Outcome,
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
}

const ABSENT: Connection =
    Connection { socket: None, busy: None, phase: Phase::Absent, queued: false, sending: false };

/// The idle connection's share of the memory budget (250 bytes).
const _: () = assert!(size_of::<Connection>() <= 24);

/// What a connection has only while something is going on.
#[derive(Debug, Default)]
struct Busy {
    /// When it began to connect.
    started: u64,
    accept: String,
    /// The start of a frame or response head whose rest has not come.
    input: Vec<u8>,
    /// The fragments of a message so far.
    fragments: Vec<u8>,
    output: Vec<u8>,
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
    /// The next connection to close, and how many are closing.
    close_next: u32,
    closing_count: usize,
    readable: VecDeque<u32>,
    /// Connections with output to stage.
    dirty: Vec<u32>,
    outbox: Outbox,
    handshake: Latency,
    masking: u32,
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
        ring::take_private_descriptor_table(bell.descriptor())?;
        ring::set_exact_timers();
        let share = place.share(plan.connections) as usize;
        Ok(Self {
            ring: Ring::new(bell)?,
            script,
            connections: std::iter::repeat_with(|| ABSENT).take(share).collect(),
            stage: Stage::Opening,
            begun: 0,
            open_from: shared.clock.now(),
            opening: VecDeque::new(),
            opening_count: 0,
            close_next: 0,
            closing_count: 0,
            readable: VecDeque::new(),
            dirty: Vec::new(),
            outbox: Outbox::default(),
            handshake: Latency::default(),
            masking: 0x9e37_79b9 ^ place.thread,
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
            }
            match stage {
                Stage::Opening => self.open_more(now),
                Stage::Closing => self.close_more(),
                Stage::Ended => break,
                Stage::Running | Stage::Draining => {}
            }
            self.expire(now);
            let wanted = self.script.act(now, &mut self.outbox);
            self.stage_messages();
            self.stage_receives();
            let wait = self.sleep(wanted);
            self.ring.enter(wait)?;
            let now = self.shared.clock.now();
            while let Some(completion) = self.ring.reap() {
                self.handle(completion, now);
            }
        }
        Ok(Finished { handshake: self.handshake, outcome: self.script.finish() })
    }

    fn counters(&self) -> &Counters {
        &self.shared.workers[self.place.thread as usize].counters
    }

    /// How long the ring may wait for something to happen.
    fn sleep(&self, wanted: Option<u64>) -> Duration {
        let opening =
            self.stage == Stage::Opening && (self.begun as usize) < self.connections.len();
        let closing =
            self.stage == Stage::Closing && (self.close_next as usize) < self.connections.len();
        let ready_to_go = !self.readable.is_empty()
            || opening
                && self.opening_count < self.plan.opening_max
                && self.plan.open_rate.is_none()
            || closing && self.closing_count < CLOSING_MAX;
        if ready_to_go {
            return Duration::ZERO;
        }
        // The send that was just staged may have taken a while: ask the clock again.
        let now = self.shared.clock.now();
        let mut wait = wanted.map_or(SLEEP_MAX, |at| Duration::from_nanos(at.saturating_sub(now)));
        if opening && self.plan.open_rate.is_some() {
            wait = wait.min(Duration::from_millis(1));
        }
        if self.opening_count + self.closing_count > 0 {
            wait = wait.min(Duration::from_millis(50));
        }
        wait.min(SLEEP_MAX)
    }

    fn open_more(&mut self, now: u64) {
        let allowed = match self.plan.open_rate {
            None => u32::MAX,
            Some(rate) => {
                let seconds = now.saturating_sub(self.open_from) as f64 / 1e9;
                (seconds * rate / f64::from(self.place.threads)) as u32 + 1
            }
        };
        for _ in 0..CONNECTS_PER_TURN {
            let all = self.begun as usize == self.connections.len();
            if all || self.opening_count >= self.plan.opening_max || self.begun >= allowed {
                return;
            }
            let index = self.begun;
            self.begun += 1;
            self.open(index, self.shared.clock.now());
        }
    }

    fn open(&mut self, index: u32, now: u64) {
        let number = self.place.number(index);
        let (socket, connected) = match connect(&self.plan, number) {
            Ok(begun) => begun,
            Err(error) => return self.count_failure(connect_failure(&error)),
        };
        let fd = socket.as_raw_fd();
        let connection = &mut self.connections[index as usize];
        connection.socket = Some(socket);
        connection.phase = Phase::Connecting;
        connection.busy = Some(Box::new(Busy { started: now, ..Busy::default() }));
        self.opening.push_back((index, now));
        self.opening_count += 1;
        if connected {
            self.upgrade(index);
        } else {
            self.ring.watch_writable(fd, index);
        }
    }

    /// The TCP connection stands: asks for the upgrade and begins to listen.
    fn upgrade(&mut self, index: u32) {
        let number = self.place.number(index);
        let values =
            Values { room: number % self.plan.rooms, connection: number, ..<_>::default() };
        let path = self.plan.path.render(values, 0);
        let opening = self.plan.upgrade.open(&path).expect("the first path was tried at start-up");
        let connection = &mut self.connections[index as usize];
        let Some(socket) = &connection.socket else { return };
        connection.phase = Phase::Upgrading;
        let busy = connection.busy.get_or_insert_default();
        busy.accept = opening.accept;
        busy.output = opening.request;
        self.ring.watch(socket.as_raw_fd(), index);
        self.flush(index);
    }

    fn handle(&mut self, completion: Completion, now: u64) {
        match completion {
            Completion::Bell => {}
            Completion::Readable { slot, armed } => {
                let connection = &mut self.connections[slot as usize];
                let Some(socket) = &connection.socket else { return };
                if !armed {
                    self.ring.watch(socket.as_raw_fd(), slot);
                }
                if !connection.queued {
                    connection.queued = true;
                    self.readable.push_back(slot);
                }
            }
            Completion::Writable { slot } => self.handle_writable(slot),
            Completion::Received { slot, result, buffer } => {
                match result {
                    Ok(0) => self.end(slot, None),
                    Ok(len) => {
                        self.receive(slot, &buffer[..len], now);
                        let connection = &mut self.connections[slot as usize];
                        // The poll is edge-triggered: a full buffer means that there may be more.
                        if len == RECEIVE_BYTES_MAX && connection.socket.is_some() {
                            connection.queued = true;
                            self.readable.push_back(slot);
                        }
                    }
                    Err(errno) if is_transient(errno) => {}
                    Err(_) => self.end(slot, None),
                }
                self.ring.give_back(buffer);
            }
            Completion::Sent { slot, result, bytes } => self.handle_sent(slot, result, bytes),
        }
    }

    fn handle_writable(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        let Some(socket) = &connection.socket else { return };
        if connection.phase == Phase::Connecting {
            match socket.take_error() {
                Ok(None) => self.upgrade(slot),
                Ok(Some(error)) | Err(error) => self.end(slot, Some(connect_failure(&error))),
            }
        } else {
            connection.sending = false;
            self.flush(slot);
        }
    }

    fn handle_sent(&mut self, slot: u32, result: Result<usize, i32>, mut bytes: Vec<u8>) {
        let connection = &mut self.connections[slot as usize];
        let Some(socket) = &connection.socket else { return };
        match result {
            Err(_) => self.end(slot, None),
            Ok(taken) if taken < bytes.len() => {
                bytes.drain(..taken);
                let busy = connection.busy.get_or_insert_default();
                bytes.append(&mut busy.output);
                busy.output = bytes;
                self.ring.watch_writable(socket.as_raw_fd(), slot);
            }
            Ok(_) => {
                connection.sending = false;
                self.flush(slot);
                self.rest(slot);
            }
        }
    }

    /// Hands the connection's output to the ring unless a send is on its way.
    fn flush(&mut self, index: u32) {
        let connection = &mut self.connections[index as usize];
        let (Some(socket), Some(busy)) = (&connection.socket, &mut connection.busy) else { return };
        if !connection.sending && !busy.output.is_empty() {
            connection.sending = true;
            self.ring.send(socket.as_raw_fd(), index, std::mem::take(&mut busy.output));
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
            let connection = &mut self.connections[index as usize];
            connection.queued = false;
            if let Some(socket) = &connection.socket {
                self.ring.receive(socket.as_raw_fd(), index);
            }
        }
    }

    /// Turns what the script wants sent into frames and stages one send per connection.
    fn stage_messages(&mut self) {
        let mut messages = std::mem::take(&mut self.outbox.messages);
        for (index, text) in messages.drain(..) {
            let key = self.masking_key();
            let connection = &mut self.connections[index as usize];
            if connection.phase == Phase::Ready {
                let busy = connection.busy.get_or_insert_default();
                wire::write_text(text, key, &mut busy.output);
                self.dirty.push(index);
            }
        }
        self.outbox.messages = messages;
        let mut dirty = std::mem::take(&mut self.dirty);
        for index in dirty.drain(..) {
            self.flush(index);
        }
        self.dirty = dirty;
    }

    /// Unpredictable is not needed against our own server; different is (RFC 6455 section 10.3).
    fn masking_key(&mut self) -> [u8; 4] {
        // Xorshift (Marsaglia).
        self.masking ^= self.masking << 13;
        self.masking ^= self.masking >> 17;
        self.masking ^= self.masking << 5;
        self.masking.to_ne_bytes()
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
                        WireError::Status(_) => Failure::Status,
                        WireError::Handshake | WireError::Frame => Failure::Protocol,
                    };
                    return self.end(index, Some(failure));
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
                add(&self.counters().pings, 1);
                if self.plan.pong {
                    let key = self.masking_key();
                    let busy = self.connections[index as usize].busy.get_or_insert_default();
                    wire::write_pong(frame.payload, key, &mut busy.output);
                }
            }
            OpCode::Control(Control::Close) => self.handle_close(index),
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
            Phase::Joining => self.ready(index, now),
            Phase::Ready => self.script.message(index, payload, now),
            // Late ones while closing are nobody's business.
            _ => {}
        }
    }

    /// The 101 is here: joins, or is ready.
    fn upgraded(&mut self, index: u32, now: u64) {
        let Some(join) = &self.plan.join else { return self.ready(index, now) };
        let number = self.place.number(index);
        let values =
            Values { room: number % self.plan.rooms, connection: number, ..<_>::default() };
        let text = join.render(values, 0);
        let key = self.masking_key();
        let connection = &mut self.connections[index as usize];
        let busy = connection.busy.get_or_insert_default();
        wire::write_text(text, key, &mut busy.output);
        connection.phase = Phase::Joining;
        if !self.plan.join_answered {
            self.ready(index, now);
        }
    }

    fn ready(&mut self, index: u32, now: u64) {
        let connection = &mut self.connections[index as usize];
        connection.phase = Phase::Ready;
        if let Some(busy) = &mut connection.busy {
            self.handshake.record(now.saturating_sub(busy.started));
            busy.accept = String::new();
        }
        self.opening_count -= 1;
        let room = self.place.number(index) % self.plan.rooms;
        self.shared.rooms[room as usize].fetch_add(1, Relaxed);
        add(&self.counters().ready, 1);
        self.script.ready(index);
    }

    /// A close frame has come: answers it if it is the first, and ends the connection.
    fn handle_close(&mut self, index: u32) {
        let key = self.masking_key();
        let connection = &self.connections[index as usize];
        if connection.phase == Phase::Closing {
            add(&self.counters().closed_clean, 1);
        } else if let Some(socket) = &connection.socket {
            let mut close = Vec::new();
            wire::write_close(key, &mut close);
            // At once, because the socket is gone after this; if it does not fit, so be it.
            let _ = socket.send(&close);
        }
        self.end(index, None);
    }

    fn close_more(&mut self) {
        while self.closing_count < CLOSING_MAX {
            let Some(connection) = self.connections.get_mut(self.close_next as usize) else {
                return;
            };
            let index = self.close_next;
            self.close_next += 1;
            match connection.phase {
                Phase::Ready => {}
                // Only after Ctrl-C: nobody waits for it any more.
                Phase::Connecting | Phase::Upgrading | Phase::Joining => {
                    self.end(index, None);
                    continue;
                }
                Phase::Absent | Phase::Closing | Phase::Gone => continue,
            }
            connection.phase = Phase::Closing;
            self.closing_count += 1;
            let now = self.shared.clock.now();
            self.opening.push_back((index, now));
            let key = self.masking_key();
            let busy = self.connections[index as usize].busy.get_or_insert_default();
            wire::write_close(key, &mut busy.output);
            self.flush(index);
        }
    }

    /// Ends openings and closings that take too long.
    fn expire(&mut self, now: u64) {
        let timeout = self.plan.handshake_timeout.as_nanos() as u64;
        while let Some(&(index, began)) = self.opening.front() {
            let phase = self.connections[index as usize].phase;
            let pending = match phase {
                Phase::Connecting | Phase::Upgrading | Phase::Joining | Phase::Closing => true,
                Phase::Absent | Phase::Ready | Phase::Gone => false,
            };
            if pending && now < began + timeout {
                return;
            }
            self.opening.pop_front();
            if pending {
                self.end(index, Some(Failure::Timeout));
            }
        }
    }

    /// Ends a connection from any phase; `failure` where the phase does not say why.
    fn end(&mut self, index: u32, failure: Option<Failure>) {
        let connection = &mut self.connections[index as usize];
        let Some(socket) = connection.socket.take() else { return };
        let phase = std::mem::replace(&mut connection.phase, Phase::Gone);
        connection.busy = None;
        if phase != Phase::Connecting {
            self.ring.unwatch(index);
        }
        drop(socket);
        match phase {
            Phase::Connecting | Phase::Upgrading | Phase::Joining => {
                self.opening_count -= 1;
                if self.stage < Stage::Closing {
                    self.count_failure(failure.unwrap_or(Failure::HandshakeCut));
                }
            }
            Phase::Ready => {
                self.leave(index);
                if self.stage < Stage::Closing {
                    self.count_failure(failure.unwrap_or(Failure::Disconnected));
                }
            }
            Phase::Closing => {
                self.closing_count -= 1;
                self.leave(index);
            }
            Phase::Absent | Phase::Gone => unreachable!("those have no socket"),
        }
    }

    fn leave(&mut self, index: u32) {
        add(&self.counters().ended, 1);
        let room = self.place.number(index) % self.plan.rooms;
        self.shared.rooms[room as usize].fetch_sub(1, Relaxed);
        self.script.gone(index);
    }

    fn count_failure(&self, failure: Failure) {
        add(&self.counters().failed[failure as usize], 1);
    }
}

impl Busy {
    fn is_idle(&self) -> bool {
        self.input.is_empty() && self.fragments.is_empty() && self.output.is_empty()
    }
}

/// Begins to connect; also says whether that is done already, as it mostly is over loopback.
fn connect(plan: &Plan, number: u32) -> io::Result<(Socket, bool)> {
    let domain = Domain::for_address(plan.target);
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new_raw(domain, kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
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
