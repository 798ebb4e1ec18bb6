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
//! | [`connection`]  | one connection's state, and its rooms                              |
//! | [`census`]      | what all shards count together: connections, also by address        |
//! | `accept`        | listeners, and how many opening handshakes are under way           |
//! | `admission`     | who may come in, and whose connection it is                        |
//! | `meter`         | how fast connections may send                                      |
//! | [`rate`]        | so many per second                                                 |
//! | `input`         | completions and received bytes: handshakes, messages, commands     |
//! | `output`        | sends and short sends                                              |
//! | `closing`       | the end of connections, from either side                           |
//! | `membership`    | who is a member of which room: joining, leaving                    |
//! | `fanout`        | publishing, the mailboxes between shards, sweeps                   |
//! | [`direct`]      | from one connection to all connections of a user                   |
//! | [`drain`]       | the end: says goodbye to everybody, at an even pace                |
//! | `slow`          | members that do not keep up: skipping, telling, disconnecting      |
//! | `authority`     | who connections are and what they may do: tokens                   |
//! | [`deadlines`]   | what must have happened by when                                    |
//! | `heartbeat`     | pings, and the end of peers that have vanished                     |
//! | `ending`        | the end of connections on record: names, close codes, the log line |
//! | [`metrics`]     | what a shard counts; [`histogram`]: how long things take           |
//! | `ends`          | what connects a shard to the others and to the control thread      |
//! | [`message`]     | what shards and the control thread say to each other               |
//! | [`calls`]       | what the control thread hands in, each answered once               |
//! | [`publisher`]   | calls to publish                                                   |
//! | [`question`]    | calls to say who is here, and to disconnect them                   |
//! | [`thread`]      | real shards on real threads                                        |
//! | `residue`       | what tests and fuzzers see of a shard                              |
//!
//! Every step is bounded (the constants below), so nothing on a shard waits for long, whatever
//! one peer or one room does.

mod accept;
mod admission;
mod authority;
pub mod calls;
pub mod census;
mod closing;
pub mod connection;
pub mod deadlines;
pub mod direct;
pub mod drain;
mod ending;
mod ends;
mod fanout;
pub(crate) mod heartbeat;
pub mod histogram;
mod input;
mod membership;
pub mod message;
mod meter;
pub mod metrics;
pub mod outbox;
mod output;
pub mod publisher;
pub mod question;
pub mod rate;
#[cfg(any(test, fuzzing))]
mod residue;
mod slow;
pub mod thread;

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::config::Limits;
use crate::id::ShardId;
use crate::io::{Completion, Io, Operation, Socket, Wait};
use crate::logging::Limiter;
use crate::protocol::PartialBudget;
use crate::room::home::HomeTable;
use crate::room::segment::SEGMENT_BYTES;
use crate::room::{RoomTable, SegmentPool};
use crate::slab::{Key, Slab};

pub use ends::{ControlEnds, Ends};
#[cfg(any(test, fuzzing))]
pub(crate) use residue::Residue;

use admission::Clients;
use authority::Authority;
use connection::{Connection, Phases};
use deadlines::Deadlines;
use direct::Users;
use drain::Drain;
use fanout::OwedAck;
use heartbeat::Hand;
use membership::Waiting;
use message::{Control, Request};
use meter::Meters;
use metrics::{Sent, ShardMetrics};
use output::Staged;
use question::Asked;

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
pub(crate) const MESSAGES_PER_MAILBOX: usize = bound(256, 5);
/// Acknowledgements that wait until their publishes are with every shard: some 100 bytes each, and
/// a look at each in every tick. With so many no more requests are taken in, as with a backlog.
pub(crate) const ACKS_MAX: usize = bound(16_384, 3);
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
/// A tick that comes so much later than it was due finds that the shard was stopped, or had no CPU.
/// Then it was not the peers who were late: as long again no deadline expires, and the shard reads
/// what they have sent meanwhile.
const ABSENCE: Duration = Duration::from_secs(1);

/// A bound on what one tick does; `in_tests` is small, so that the simulation reaches it.
const fn bound(usual: usize, in_tests: usize) -> usize {
    if cfg!(test) { in_tests } else { usual }
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
    /// No other shard shares its CPU.
    has_cpu: bool,
    /// Connections that had come in and were opened by the last tick.
    comers: u64,
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
    /// Rooms that keep messages for members that are behind, which may become too old.
    aging: Vec<Key>,
    /// When they are to be looked at.
    ages_at: Option<Instant>,
    /// Connections whose request has to wait.
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
    /// Accepted when as many handshakes as allowed were under way; oldest first.
    parked: VecDeque<Socket>,
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
    /// When the next tick is due at the latest; `None`: when something happens.
    due: Option<Instant>,
    /// Before that no deadline expires: see [`ABSENCE`].
    lenient_until: Instant,
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
    /// Acknowledgements that are owed to publishers, in the order of their publishes; at most
    /// [`ACKS_MAX`].
    acks: Vec<OwedAck>,
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
            has_cpu: true,
            comers: 0,
            tick: 0,
            completions: Vec::with_capacity(COMPLETIONS_USUAL),
            staged: Vec::new(),
            replies: BytesMut::new(),
            scratch: BytesMut::new(),
            readable: VecDeque::with_capacity(BURST_USUAL),
            owed: VecDeque::with_capacity(BURST_USUAL),
            active: VecDeque::new(),
            aging: Vec::new(),
            ages_at: None,
            stalled: Vec::new(),
            links: VecDeque::new(),
            policies_due: u32::MAX,
            rung: vec![false; ends.homes.shards()],
            congested: false,
            accepts: vec![Accepting::No; listeners],
            parked: VecDeque::new(),
            accept_at: None,
            accept_warnings: Limiter::new(),
            phases: Phases::default(),
            members: 0,
            start: now,
            due: None,
            lenient_until: now,
            sweep_lag: 0,
            sent: Sent::default(),
            finished: Vec::new(),
            drain: None,
            users: Users::default(),
            directed: 0,
            direct_lane: 0,
            fences: Vec::new(),
            acks: Vec::new(),
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
        self.has_cpu = shards <= 1;
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
        if self.due.is_some_and(|due| now > due + ABSENCE) {
            self.lenient_until = now + ABSENCE;
        }

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
        self.send_acks();
        self.answer_fences();
        self.renew_policies();
        self.visit_some(now);
        self.age_rooms(now);
        self.send_owed();
        self.sweep_rooms();
        self.stage_receives();
        // Behind the last step that may free a descriptor: after a failure that ends the wait.
        self.accept_or_pause(now);
        self.wake_others();
        self.report();

        if self.has_drained(now) {
            self.answer_publishes();
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
        self.due = match wait {
            Wait::No => Some(now),
            Wait::Until(at) => Some(at.max(now)),
            Wait::Forever => None,
        };
        if wait == Wait::No {
            self.io.enter(Wait::No);
            return self.time_tick(now, self.io.now());
        }
        self.time_tick(now, self.io.clock());
        self.expect_more();
        self.ends.sleepers.fall_asleep(self.ends.shard);
        self.io.enter(if self.has_mail() { Wait::No } else { wait });
    }

    /// Where connections have come in or were opened in this tick, more follow: not even the
    /// requests of all of them are there yet.
    fn expect_more(&mut self) {
        let comers = self.metrics.accepted.value() + self.metrics.opened.value();
        if mem::replace(&mut self.comers, comers) != comers && self.has_cpu {
            self.io.look_out();
        }
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
            || !self.acks.is_empty()
            || self.home.is_waiting();
        let times = [
            stuck.then_some(now + MAILBOX_RETRY),
            self.accept_at,
            self.next_drain(now),
            self.deadlines.next().map(|next| next.max(self.lenient_until)),
            self.authority.next(),
            self.next_visit(),
            self.ages_at,
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
}
