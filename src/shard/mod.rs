//! One per core: owns its connections, rooms and deadlines, and runs the tick.
//!
//! A shard is a state machine over an [`Io`]: completions in, operations out, one system call per
//! tick. It shares nothing with other shards but mailboxes, counters and frozen bytes, and waits
//! for nobody: what cannot go on now is put on a list and looked at again in the next tick.
//!
//! ```text
//!        ┌──────────────────────────── tick ─────────────────────────────┐
//!   reap │ resolve sends ▶ control ▶ input: decode, handle ▶ deadlines   │ submit
//!  ─────▶│ ▶ tokens ▶ mailboxes: deliveries, requests, publishes ▶ home: │────────▶
//!        │ flush ▶ pings ▶ owed ▶ sweep rooms ▶ receives ▶ wake others   │ and wait
//!        └────────────────────────────────────────────────────────────────┘
//! ```
//!
//! | File            | What it does                                                       |
//! |-----------------|--------------------------------------------------------------------|
//! | [`connection`]  | one connection's state                                             |
//! | [`census`]      | what all shards count together: connections, also by address        |
//! | `admission`     | who may come in, and whose connection it is                        |
//! | `meter`         | how fast connections may send                                      |
//! | [`rate`]        | so many per second                                                 |
//! | `input`         | completions and received bytes: handshakes, messages, commands     |
//! | `output`        | sends, short sends, and the end of connections                     |
//! | `fanout`        | rooms: join, leave, publish, mailboxes, sweeps                     |
//! | [`direct`]      | from one connection to all connections of a user                   |
//! | [`drain`]       | the end: says goodbye to everybody, at an even pace                |
//! | `slow`          | members that do not keep up: skipping, telling, disconnecting      |
//! | `authority`     | who connections are and what they may do: tokens                   |
//! | [`deadlines`]   | what must have happened by when                                    |
//! | `heartbeat`     | pings, and the end of peers that have vanished                     |
//! | `ending`        | the end of connections on record: names, close codes, the log line |
//! | [`metrics`]     | what a shard counts; [`histogram`]: how long things take           |
//! | [`message`]     | what shards and the control thread say to each other               |
//! | [`calls`]       | what the control thread hands in and is answered, in order         |
//! | [`publisher`]   | calls to publish                                                   |
//! | [`question`]    | calls to say who is here, and to disconnect them                   |
//! | [`thread`]      | real shards on real threads                                        |
//!
//! Every step is bounded (the constants below), so nothing on a shard waits for long, whatever
//! one peer or one room does.

mod admission;
mod authority;
pub mod calls;
pub mod census;
pub mod connection;
pub mod deadlines;
pub mod direct;
pub mod drain;
mod ending;
mod fanout;
pub(crate) mod heartbeat;
pub mod histogram;
mod input;
pub mod message;
mod meter;
pub mod metrics;
pub mod outbox;
mod output;
pub mod publisher;
pub mod question;
pub mod rate;
mod slow;
pub mod thread;

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::config::Limits;
#[cfg(test)]
use crate::id::RoomName;
use crate::id::{HomeHasher, ShardId};
use crate::io::mailbox::{Lanes, Sleeper, Sleepers};
use crate::io::{Completion, Io, Operation, Wait};
use crate::logging::Limiter;
use crate::protocol::{HandshakeError, PartialBudget, ProtocolError};
use crate::room::home::HomeTable;
use crate::room::segment::SEGMENT_BYTES;
use crate::room::{RoomTable, SegmentPool};
use crate::slab::{Key, Slab};

use admission::Clients;
use authority::Authority;
use census::Census;
use connection::{Connection, Phase, Phases};
use deadlines::Deadlines;
use direct::Users;
use drain::Drain;
use fanout::Waiting;
use heartbeat::Hand;
use message::{Control, Delivery, Request};
use meter::Meters;
use metrics::{Sent, ShardMetrics};
use output::{Reason, Staged};
use publisher::{Inlet, Publisher};
use question::{Asked, Enquiries, Inquirer};

/// Sends to members of rooms in one tick of a shard with a CPU of its own: some 2.5 ms of work.
/// With 128 a delivery took 1.16 times the CPU (10,000 members, 16 messages under way, 5 pairs).
const SENDS_PER_TICK: usize = bound(512, 8);
/// The same where up to seven shards share a CPU: a message passes three of them, and each of the
/// others may have its turn in between.
const SENDS_PER_TURN: usize = 24;
/// The same where more do. They are there to hold very many connections: with 27 on a CPU, turns of
/// 24 took 1.4 times the CPU that a bare loop takes for a broadcast to a million.
const SENDS_PER_TURN_OF_MANY: usize = 96;
/// Connections that are sent replies, remainders and closes in one tick.
const REPLIES_PER_TICK: usize = bound(1024, 6);
/// Bytes of direct messages that are handed to connections in one tick, and the last one may go
/// past it: no more than one send to one connection takes.
const DIRECT_BYTES_PER_TICK: usize = bound(SEGMENT_BYTES, 1);
/// Messages taken from one mailbox in one tick.
const MESSAGES_PER_MAILBOX: usize = bound(256, 5);
/// What a question may look at in one tick: slots, members, what is listed; a close counts twice.
const LOOKS_PER_TICK: usize = bound(1024, 5);
/// Slots that heartbeats visit in one tick, up to the end of a stripe: at most so many pings leave
/// together.
pub(crate) const SLOTS_PER_TICK: u32 = bound(1024, 7) as u32;
/// Rooms whose policy is looked up in one tick after the rules have changed.
const POLICIES_PER_TICK: usize = bound(1024, 1);
/// Slots whose connections are told of a drain, or closed, in one tick.
const DRAINED_PER_TICK: u32 = bound(512, 100) as u32;
/// Completions that one tick brings at most, usually: see `COMPLETIONS_PER_ENTER` of `io::uring`.
const COMPLETIONS_USUAL: usize = 2048;
/// Bytes of replies that one tick brings, usually: the handshakes of all its receives.
const REPLIES_USUAL: usize = 16 * 1024;
/// Connections that come or go in one burst, usually. The lists of work for them grow past it, but
/// do not have to, so that one storm leaves the memory as the other found it.
const BURST_USUAL: usize = 16 * 1024;
/// From so many sends on, some 5 us each, they are awaited apart from what comes next. It takes
/// one system call more.
const SENDS_TIMED: usize = 64;
/// How long a shard sleeps at most while something waits for room in a mailbox.
const MAILBOX_RETRY: Duration = Duration::from_millis(1);
/// How long it lets connections wait in the backlog when accepting failed for want of resources.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A bound on what one tick does; `in_tests` is small, so that the simulation reaches it.
const fn bound(usual: usize, in_tests: usize) -> usize {
    if cfg!(test) { in_tests } else { usual }
}

/// What connects a shard to the others; made for all of them by [`Ends::mesh`].
#[derive(Debug)]
pub struct Ends {
    /// Which one this is.
    pub shard: ShardId,
    requests: Lanes<Request>,
    deliveries: Lanes<Delivery>,
    sleepers: Sleepers,
    homes: HomeHasher,
    census: Census,
    control: rtrb::Consumer<Control>,
    inlet: Inlet,
    enquiries: Enquiries,
}

/// The control thread's ends of all shards, see [`Ends::mesh`].
#[derive(Debug)]
pub struct ControlEnds {
    /// The mailboxes for commands, by shard.
    pub controls: Vec<rtrb::Producer<Control>>,
    /// The queues for publishes.
    pub publisher: Publisher,
    /// The queues for questions.
    pub inquirer: Inquirer,
}

/// How many commands of the control thread may wait for a shard.
const CONTROLS_MAX: usize = 16;

impl Ends {
    /// The ends of the shards over which `homes` spreads the rooms, with mailboxes as long as
    /// `limits` says, and those of the control thread.
    #[must_use]
    pub fn mesh(homes: &HomeHasher, limits: &Limits) -> (Vec<Self>, ControlEnds) {
        let shards = homes.shards();
        let sleepers = Sleepers::new(shards);
        let census = Census::default();
        let own = Arc::new(Sleeper::default());
        let len_max = limits.publish_queue_len_max;
        let (publisher, inlets) = Publisher::new(homes, &sleepers, Arc::clone(&own), len_max);
        let (inquirer, enquiries) = Inquirer::new(homes, &sleepers, &own);
        let mut controls = Vec::with_capacity(shards);
        let ends = Lanes::mesh(shards, limits.mailbox_len_max)
            .into_iter()
            .zip(Lanes::mesh(shards, limits.mailbox_len_max))
            .zip(inlets.into_iter().zip(enquiries))
            .enumerate()
            .map(|(index, ((requests, deliveries), (inlet, enquiries)))| {
                let (producer, control) = rtrb::RingBuffer::new(CONTROLS_MAX);
                controls.push(producer);
                Self {
                    shard: ShardId::from(index),
                    requests,
                    deliveries,
                    sleepers: sleepers.clone(),
                    homes: homes.clone(),
                    census: census.clone(),
                    control,
                    inlet,
                    enquiries,
                }
            })
            .collect();
        (ends, ControlEnds { controls, publisher, inquirer })
    }

    /// How many messages, requests and publishes the mailboxes hold.
    fn depth(&self) -> usize {
        self.requests.depth() + self.deliveries.depth() + self.inlet.depth()
    }

    /// Whether a mailbox for messages, requests or publishes holds any.
    fn has_messages(&self) -> bool {
        self.requests.has_input() || self.deliveries.has_input() || self.inlet.has_input()
    }
}

/// Whether a shard goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Call [`Shard::tick`] again.
    Running,
    /// It has drained: every connection of every shard is closed, or `drain_timeout` is over.
    Ended,
}

/// See the module documentation.
pub struct Shard<I: Io> {
    io: I,
    ends: Ends,
    limits: Arc<Limits>,
    metrics: Arc<ShardMetrics>,

    connections: Slab<Connection>,
    clients: Clients,
    meters: Meters,
    deadlines: Deadlines,
    /// Goes round the connections while heartbeats are on.
    hand: Option<Hand>,
    authority: Authority,
    rooms: RoomTable<Waiting>,
    home: HomeTable,
    segments: SegmentPool,
    budget: PartialBudget,

    /// Sends to members of rooms in one tick.
    sends_per_tick: usize,
    /// Counts turns; marks who has been sent something in this one.
    tick: u32,
    completions: Vec<Completion<I::Lease>>,
    /// What the sends of this tick carried, by the number in their token.
    staged: Vec<Staged>,
    /// Replies to the connection whose input is being handled, framed.
    replies: BytesMut,
    /// One reply before it is framed.
    scratch: BytesMut,

    // Work lists: each connection or room is on a list at most once.
    /// Connections with input to receive.
    readable: VecDeque<Key>,
    /// Connections with something to be sent, other than by a sweep.
    owed: VecDeque<Key>,
    /// Rooms with something to sweep.
    active: VecDeque<Key>,
    /// Connections whose request found a mailbox full.
    stalled: Vec<Key>,
    /// Subscriptions, their ends, seats asked for and given back, and last publishes of members
    /// that have gone, that found a mailbox full; at most two per room, two per connection, and
    /// one per membership in a room of few seats. While draining, questions, too.
    links: VecDeque<(ShardId, Request)>,
    /// The next slot of the rooms' table whose policy may have changed; at its end: none.
    policies_due: u32,
    /// Shards that were sent something in this tick.
    rung: Vec<bool>,
    /// Something was left in a mailbox because taking it in has to wait.
    congested: bool,

    /// For each listener.
    accepts: Vec<Accepting>,
    /// Keeps the log short while accepting fails.
    accept_warnings: Limiter,
    /// Nobody accepts before: there were no descriptors, or no memory.
    accept_at: Option<Instant>,
    /// Of the connections; from it it follows whether more may come in.
    phases: Phases,
    /// Of all rooms together.
    members: usize,
    /// When it began.
    start: Instant,
    /// The furthest that a sweep of this tick has still to go, in bytes.
    sweep_lag: u64,
    /// What was sent and is not counted yet.
    sent: Sent,
    /// Sweeps that this tick has finished: when the oldest message that each carried was numbered.
    finished: Vec<Instant>,
    drain: Option<Drain>,
    /// Its connections by their users.
    users: Users,
    /// Bytes of direct messages that were handed over in this tick.
    directed: usize,
    /// The shard whose direct messages had to wait for this tick.
    direct_lane: usize,
    /// Shards that drain and want to know when they have got everything from here, and which step
    /// of theirs it is for.
    fences: Vec<(ShardId, u32)>,
    /// The question that is being answered.
    asked: Option<Box<Asked>>,
}

/// Whether a listener accepts connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    No,
    Yes,
    /// It was told to pause; what completed before still comes in.
    Pausing,
}

impl<I: Io> Shard<I> {
    /// A shard over `io` with `listeners` listeners, connected to the others by `ends`.
    pub fn new(
        io: I,
        listeners: usize,
        ends: Ends,
        limits: Arc<Limits>,
        metrics: Arc<ShardMetrics>,
    ) -> Self {
        let now = io.now();
        let mut shard = Self {
            deadlines: Deadlines::new(now),
            hand: None,
            connections: Slab::new(),
            authority: Authority::default(),
            clients: Clients::default(),
            meters: Meters::default(),
            rooms: RoomTable::default(),
            home: HomeTable::new(limits.rooms_max, limits.policies.default.high_water_mark),
            segments: SegmentPool::new(),
            budget: PartialBudget::new(limits.partial_bytes_max),
            sends_per_tick: SENDS_PER_TICK,
            tick: 0,
            completions: Vec::with_capacity(COMPLETIONS_USUAL),
            staged: Vec::new(),
            replies: BytesMut::new(),
            scratch: BytesMut::new(),
            readable: VecDeque::with_capacity(BURST_USUAL),
            owed: VecDeque::with_capacity(BURST_USUAL),
            active: VecDeque::new(),
            stalled: Vec::new(),
            links: VecDeque::new(),
            policies_due: u32::MAX,
            rung: vec![false; ends.homes.shards()],
            congested: false,
            accepts: vec![Accepting::No; listeners],
            accept_at: None,
            accept_warnings: Limiter::new(),
            phases: Phases::default(),
            members: 0,
            start: now,
            sweep_lag: 0,
            sent: Sent::default(),
            finished: Vec::new(),
            drain: None,
            users: Users::default(),
            directed: 0,
            direct_lane: 0,
            fences: Vec::new(),
            asked: None,
            io,
            ends,
            limits,
            metrics,
        };
        shard.set_heartbeats(now);
        shard.accept_or_pause(now);
        shard
    }

    /// This shard is one of `shards` on its CPU: its ticks are shorter, so that all of them have
    /// their turns often enough.
    pub fn share_cpu(&mut self, shards: usize) {
        self.sends_per_tick = match shards {
            0..=3 => SENDS_PER_TICK / shards.max(1),
            4..=7 => SENDS_PER_TURN,
            _ => SENDS_PER_TURN_OF_MANY,
        };
    }

    /// One turn of the loop; the picture is in the module documentation. Waits at its end until
    /// there is something to do.
    pub fn tick(&mut self) -> Status {
        self.ends.sleepers.wake_up(self.ends.shard);
        self.tick = self.tick.wrapping_add(1);
        self.congested = false;
        let now = self.io.now();

        // Whatever may end a connection comes before the sends: until they are resolved, nobody may
        // leave a room.
        self.resolve_sends();
        // Before what has come in: that was perhaps sent by somebody who knows of a reload.
        self.take_control(now);
        self.handle_completions();
        self.drain_some(now);
        self.answer_some();
        self.expire_deadlines(now);
        self.expire_tokens(now);
        self.verify_some();
        self.retry_stalled();
        self.take_deliveries();
        self.take_requests();
        self.take_publishes();
        self.flush_home();
        self.answer_fences();
        self.renew_policies();
        self.visit_some(now);
        self.send_owed();
        self.sweep_rooms();
        self.accept_or_pause(now);
        self.stage_receives();
        self.wake_others();
        self.report();

        if self.has_drained(now) {
            self.io.enter(Wait::No);
            return Status::Ended;
        }
        self.enter(now);
        Status::Running
    }

    /// Submits and waits, but not when there is work left, and not without a last look into the
    /// mailboxes once the others know that they have to wake us.
    fn enter(&mut self, now: Instant) {
        let wait = self.wait(now);
        if wait == Wait::No {
            self.io.enter(Wait::No);
            return self.time_tick(now, self.io.now());
        }
        self.time_tick(now, self.io.clock());
        self.ends.sleepers.fall_asleep(self.ends.shard);
        self.io.enter(if self.has_mail() { Wait::No } else { wait });
    }

    fn wait(&self, now: Instant) -> Wait {
        let more_to_do = !self.owed.is_empty()
            // How long they take counts, and can be told only if we do not wait behind them.
            || self.staged.len() >= SENDS_TIMED
            || !self.active.is_empty()
            || self.authority.has_waiting()
            || self.is_asked()
            || (!self.readable.is_empty() && self.io.receives_left() > 0)
            || self.policies_due < self.rooms.slots();
        if more_to_do {
            return Wait::No;
        }
        let stuck = self.congested
            || !self.stalled.is_empty()
            || !self.links.is_empty()
            || self.home.is_waiting();
        let times = [
            stuck.then_some(now + MAILBOX_RETRY),
            self.accept_at,
            self.next_drain(now),
            self.deadlines.next(),
            self.authority.next(),
            self.next_visit(),
        ];
        times.into_iter().flatten().min().map_or(Wait::Forever, Wait::Until)
    }

    /// Whether a mailbox holds something that could be taken in now.
    fn has_mail(&self) -> bool {
        !self.ends.control.is_empty()
            || self.ends.enquiries.has_input()
            || (!self.congested && self.ends.has_messages())
    }

    fn wake_others(&mut self) {
        for (index, rung) in self.rung.iter_mut().enumerate() {
            let shard = ShardId::from(index);
            // Our own mailboxes are looked at before we sleep.
            if mem::take(rung) && shard != self.ends.shard && self.ends.sleepers.must_wake(shard) {
                self.io.submit(Operation::Wake { shard });
            }
        }
        // Both are asked: each remembers what it has said since the last wake-up.
        let published = self.ends.inlet.must_wake_caller();
        let answered = self.ends.enquiries.must_wake_caller();
        if published || answered {
            self.io.submit(Operation::WakeControl);
        }
    }

    fn take_control(&mut self, now: Instant) {
        while let Ok(control) = self.ends.control.pop() {
            match control {
                Control::Limits(limits) => self.set_limits(limits, now),
                Control::Drain => self.begin_drain(now),
            }
        }
    }

    /// Keeps to `limits` from now on. What is under way keeps the deadline it has; rooms learn of a
    /// new policy slot by slot, see [`Shard::renew_policies`].
    fn set_limits(&mut self, limits: Arc<Limits>, now: Instant) {
        let was = mem::replace(&mut self.limits, limits);
        if was.heartbeats != self.limits.heartbeats {
            self.set_heartbeats(now);
        }
        let backlog_bytes_max = self.limits.policies.default.high_water_mark;
        self.home.set_limits(self.limits.rooms_max, backlog_bytes_max);
        self.budget.set_max(self.limits.partial_bytes_max);
        if was.policies != self.limits.policies {
            self.policies_due = 0;
        }
    }

    fn expire_deadlines(&mut self, now: Instant) {
        let mut expired = Vec::new();
        self.deadlines.expire(now, &mut self.connections, &mut expired);
        for key in expired {
            let Some(connection) = self.connections.get(key) else { continue };
            match connection.phase {
                // Its request is complete: it is we who are late.
                Phase::Opening if connection.waiting => self.refuse(key, HandshakeError::Busy),
                Phase::Preface | Phase::Opening => self.refuse(key, HandshakeError::Timeout),
                Phase::Joining => self.refuse(key, HandshakeError::Busy),
                Phase::Open => self.expire_open(key),
                Phase::Closing | Phase::Draining => self.retire(key, Reason::CloseTimeout),
                Phase::Dead => {}
            }
        }
    }

    /// What the shard holds: all zero when every peer has left and every deadline has passed.
    #[cfg(test)]
    pub(crate) fn residue(&self) -> Residue {
        let members: usize = self.rooms.iter().map(|room| room.members().len()).sum();
        assert_eq!(self.members, members, "members are counted as they are");
        let mut phases = Phases::default();
        let slots = 0..self.connections.slots();
        let keys = slots.filter_map(|slot| self.connections.key_at(slot));
        let connections = keys.filter_map(|key| self.connections.get(key));
        connections.for_each(|connection| phases.enter(connection.phase));
        assert_eq!(self.phases, phases, "connections are counted as they are");
        Residue {
            connections: self.connections.len(),
            census: self.ends.census.totals(),
            proxied: self.proxied_len(),
            rooms: self.rooms.len(),
            homes: self.home.len(),
            log_bytes_max: self.rooms.iter().map(|room| room.log.len()).max().unwrap_or(0),
            unflushed: usize::from(self.home.is_waiting() || self.home.is_congested()),
            partial_bytes: self.budget.used(),
            readable: self.readable.len(),
            owed: self.owed.len(),
            active: self.active.len(),
            stalled: self.stalled.len(),
            links: self.links.len(),
            mail: usize::from(self.ends.has_messages() || self.is_asked()),
            deadlines: usize::from(self.deadlines.next().is_some()),
            users: self.users.len(),
            tokens: self.authority.len(),
        }
    }

    /// How many members each of its rooms has here.
    #[cfg(test)]
    pub(crate) fn members(&self) -> impl Iterator<Item = (&RoomName, usize)> {
        self.rooms.iter().map(|room| (&room.name, room.members().len()))
    }

    /// An open connection's deadline is that of its sends while its socket is full, otherwise that
    /// of the message it has begun, otherwise that of the answer to a ping.
    fn expire_open(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.poll_writable {
            self.retire(key, Reason::SendTimeout);
        } else if !connection.decoder.is_idle() {
            self.fail(key, ProtocolError::MessageTimeout);
        } else {
            self.expire_ping(key);
        }
    }

    /// The connection need not do anything by any time.
    fn clear_deadline(&mut self, key: Key) {
        self.deadlines.clear(key, &mut self.connections);
    }

    /// Sets the connection's one deadline to `after` from now.
    fn set_deadline(&mut self, key: Key, after: Duration) {
        let at = self.io.now() + after;
        self.deadlines.set(key, at, &mut self.connections);
    }
}

/// What a shard holds, see [`Shard::residue`].
#[cfg(test)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Residue {
    pub(crate) connections: usize,
    /// Of all shards together, in all and counted by address.
    pub(crate) census: (usize, usize),
    pub(crate) proxied: usize,
    pub(crate) rooms: usize,
    pub(crate) homes: usize,
    /// Of the room that holds the most.
    pub(crate) log_bytes_max: u64,
    pub(crate) unflushed: usize,
    pub(crate) partial_bytes: usize,
    pub(crate) readable: usize,
    pub(crate) owed: usize,
    pub(crate) active: usize,
    pub(crate) stalled: usize,
    pub(crate) links: usize,
    pub(crate) mail: usize,
    pub(crate) deadlines: usize,
    pub(crate) users: usize,
    /// Connections with tokens, and those that wait for theirs to be verified.
    pub(crate) tokens: (usize, usize),
}
