//! A whole server, its network and its peers, from one seed.
//!
//! Three acts. *Mayhem*: peers come, talk, misbehave and go, while shards stall and the network
//! does what it may. *Calm*: nobody says anything new, everybody reads; then nothing may be owed
//! any more. *Departure*: everybody leaves; then nothing may be left. In some worlds the server is
//! told to drain in the middle of the first act instead.
//!
//! A shard that waits is ticked only when its wait is over, so a lost wake-up shows as something
//! that never happens. Time is a number that jumps to the next event when nobody has work.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;

use super::agenda::Agenda;
use super::backend::Backend;
use super::check::Checker;
use super::fairness::Fairness;
use super::net::{Fault, Happened, Net, SimIo};
use super::peer::{Departure, Peer, ROOM_NAMES, pick};
use super::plan::{NO_HEARTBEATS, Plan, SIM_USER};
use crate::config::{Heartbeats, Limits};
use crate::id::HomeHasher;
use crate::protocol::HandshakeError;
use crate::room::segment::SEGMENT_BYTES;
use crate::shard::message::Control;
use crate::shard::metrics::ShardMetrics;
use crate::shard::{ACKS_MAX, ControlEnds, Ends, MESSAGES_PER_MAILBOX, Residue, Shard, Status};

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) trace: u64,
    pub(super) steps: u64,
    pub(super) delivered: u64,
    pub(super) slow_consumers: u64,
    /// Messages that members did not get, per policy, and those that members were told of.
    pub(super) skipped_to_newest: u64,
    pub(super) dropped_oldest: u64,
    pub(super) told: u64,
    /// Acknowledgements after which every shard was asked whether it has been handed the message.
    pub(super) handed: u64,
    /// All that was skipped is accounted for, one by one.
    pub(super) accounted: bool,
    pub(super) drained: bool,
    /// Memberships that a drain ended.
    pub(super) farewells: u64,
    pub(super) pings: u64,
    /// Peers that vanished, and connections that were cut for it, or for a long stall.
    pub(super) vanished: u64,
    pub(super) pong_timeouts: u64,
    /// Connections refused for their address, and joins for want of seats.
    pub(super) addresses_full: u64,
    pub(super) rooms_full: u64,
    /// Connections refused because the server was full, and those closed because there was no
    /// memory for what they had begun to say.
    pub(super) full: u64,
    pub(super) messages_without_room: u64,
    /// Publishes that were refused.
    pub(super) refused: u64,
    /// Publishes by a backend that had members to go to, and those refused.
    pub(super) published: u64,
    pub(super) busy: u64,
    /// How often the policies of rooms changed.
    pub(super) reloads: u64,
    /// Members that it was told of.
    pub(super) listed: u64,
    /// Direct messages that came.
    pub(super) directs: u64,
    /// The most connections that were there at once.
    pub(super) connections: usize,
    /// The time that has passed in the world.
    pub(super) time: Duration,
    pub(super) happened: Happened,
}

struct World {
    net: Rc<RefCell<Net>>,
    /// Receive buffers that each shard has, or will get with its next reap.
    lent: Vec<Rc<Cell<usize>>>,
    plan: Plan,
    limits: Arc<Limits>,
    shards: Vec<Option<Shard<SimIo>>>,
    metrics: Vec<Arc<ShardMetrics>>,
    controls: Vec<rtrb::Producer<Control>>,
    stalled_until: Vec<Duration>,
    peers: Vec<Peer>,
    agenda: Agenda,
    /// Those of them that have vanished.
    vanished: Vec<usize>,
    /// When somebody talks in a quiet world.
    next_talk: Duration,
    connections: usize,
    /// Publishes from outside.
    backend: Option<Backend>,
    check: Checker,
    /// The largest high-water mark that any room has had.
    mark_max: u64,
    reloads: u64,
    /// Acknowledged publishes that every shard was asked for.
    handed: u64,
    steps: u64,
    ticks: u64,
    fairness: Vec<Fairness>,
    /// Nobody starts anything new.
    calm: bool,
    /// All that was skipped is accounted for, one by one.
    accounted: bool,
}

/// Builds the world of `seed`, runs it to its end and checks it all along.
///
/// # Panics
/// When the server breaks a promise.
pub(super) fn run(seed: u64, drain: Option<bool>, print: bool) -> Outcome {
    let mut net = Net::new(seed, print);
    let mut plan = Plan::new(seed, &mut net);
    plan.drains = drain.unwrap_or(plan.drains);
    World::new(plan, net).run()
}

/// The same for a quiet world, see [`Plan::quiet`].
///
/// # Panics
/// When the server breaks a promise.
pub(super) fn run_quiet(seed: u64, peers: usize, lasts: Duration) -> Outcome {
    let mut net = Net::new(seed, false);
    let plan = Plan::quiet(peers, lasts, &mut net);
    World::new(plan, net).run()
}

impl World {
    fn new(plan: Plan, mut net: Net) -> Self {
        let limits = Arc::new(plan.limits(&mut net));
        if plan.lasts.is_none() {
            plan.set_faults(&mut net, &limits);
        } else {
            Plan::set_few_faults(&mut net);
        }
        if net.trace.print {
            println!("{plan:#?}\n{limits:#?}\n{:#?}", net.faults);
        }
        let homes = HomeHasher::with_key(plan.shards, net.rng.random());
        let listeners = pick(&mut net, &[1, 2]);
        (0..plan.shards).for_each(|_| net.add_shard(listeners));
        let net = Rc::new(RefCell::new(net));
        let (mut shards, mut metrics, mut buffers) = (Vec::new(), Vec::new(), Vec::new());
        let (ends, ControlEnds { controls, publisher, inquirer }) = Ends::mesh(&homes, &limits);
        for (shard, ends) in ends.into_iter().enumerate() {
            let lent = Rc::new(Cell::new(0));
            let io = SimIo { net: Rc::clone(&net), shard, lent: Rc::clone(&lent) };
            let counted = Arc::new(ShardMetrics::default());
            let metric = Arc::clone(&counted);
            shards.push(Some(Shard::new(io, listeners, ends, Arc::clone(&limits), metric)));
            metrics.push(counted);
            buffers.push(lent);
        }
        Self {
            stalled_until: vec![Duration::ZERO; plan.shards],
            fairness: (0..plan.shards).map(|_| Fairness::default()).collect(),
            net,
            lent: buffers,
            shards,
            metrics,
            controls,
            peers: Vec::new(),
            agenda: Agenda::default(),
            vanished: Vec::new(),
            next_talk: Duration::ZERO,
            connections: 0,
            backend: plan.backend.then(|| Backend::new(publisher, inquirer)),
            check: Checker::new(
                ROOM_NAMES.iter().map(|name| limits.policies.of(name).slow_consumer).collect(),
            ),
            mark_max: plan.mark_max(&limits),
            plan,
            limits,
            reloads: 0,
            handed: 0,
            steps: 0,
            ticks: 0,
            calm: false,
            accounted: false,
        }
    }

    fn run(mut self) -> Outcome {
        self.mayhem();
        if self.plan.drains {
            self.drain();
        } else {
            self.calm_down();
            self.depart();
        }
        let total = |count| self.total(count);
        let (cut, overdue) = (total(deadlines_missed), self.check.overdue);
        assert!(overdue <= cut, "{overdue} peers were cut, {cut} of them at a deadline");
        let backend = self.backend.as_ref();
        let net = self.net.borrow();
        Outcome {
            trace: net.trace.hash,
            steps: self.steps,
            delivered: self.check.delivered,
            slow_consumers: total(ShardMetrics::slow_consumers),
            skipped_to_newest: total(|metrics| metrics.skipped_to_newest.value()),
            dropped_oldest: total(|metrics| metrics.dropped_oldest.value()),
            told: self.check.told,
            handed: self.handed,
            accounted: self.accounted,
            drained: self.plan.drains,
            farewells: self.check.farewells,
            pings: total(|metrics| metrics.pings_sent.value()),
            vanished: self.vanished.len() as u64,
            pong_timeouts: total(ShardMetrics::pong_timeouts),
            addresses_full: self.peers.iter().filter(|it| it.status() == Some(429)).count() as u64,
            rooms_full: self.check.rooms_full,
            full: total(|metrics| metrics.refused[HandshakeError::Full as usize].value()),
            messages_without_room: self.check.messages_without_room,
            refused: self.check.refused,
            published: backend.map_or(0, |backend| backend.published),
            busy: backend.map_or(0, |backend| backend.busy),
            reloads: self.reloads,
            listed: backend.map_or(0, |backend| backend.listed),
            directs: self.check.directs.delivered,
            connections: self.connections,
            time: net.clock,
            happened: net.happened,
        }
    }

    fn mayhem(&mut self) {
        let (steps, lasts) = (self.plan.steps, self.plan.lasts);
        while lasts.map_or(self.steps < steps, |lasts| self.net.borrow().clock < lasts) {
            let missing = self.peers.len() < self.plan.peers
                && self.agenda.present() < self.plan.peers_at_once;
            if missing && self.net.borrow_mut().chance(self.plan.arrivals) {
                self.add_peer();
            }
            self.interfere();
            self.step();
            self.connections = self.connections.max(self.agenda.present());
        }
    }

    fn add_peer(&mut self) {
        let mut net = self.net.borrow_mut();
        let number = self.peers.len();
        let peer = Peer::new(number, &self.plan, &mut net);
        if peer.shows_token(&self.plan) {
            self.check.directs.claim(number, SIM_USER);
        }
        self.agenda.add(&peer, &net);
        self.peers.push(peer);
    }

    /// What happens to the whole host, or to one of its threads.
    fn interfere(&mut self) {
        let mut net = self.net.borrow_mut();
        if net.chance(self.plan.shard_stalls) {
            net.happened.note(Fault::ShardStalled);
            let shard = net.rng.random_range(0..self.plan.shards);
            let stall = Duration::from_millis(net.rng.random_range(1..100));
            self.stalled_until[shard] = net.clock + stall;
        }
        if net.chance(self.plan.clock_sets) {
            net.happened.note(Fault::ClockSet);
            net.clock_set = net.rng.random_range(-CLOCK_SET_MAX..=CLOCK_SET_MAX);
        }
        if net.chance(self.plan.jumps) {
            net.happened.note(Fault::ClockJumped);
            net.note("jump", &[]);
            let later = net.rng.random_range(10..60_000);
            net.clock += Duration::from_millis(later);
            self.peers.iter_mut().for_each(|peer| peer.outlast_jump(&self.plan, &net));
        }
        drop(net);
        if self.plan.reloads && self.net.borrow_mut().chance(0.001) {
            self.change_policies();
        }
    }

    /// Rooms get other marks and ages. What becomes of slow consumers stays: the checker knows it
    /// by the room.
    fn change_policies(&mut self) {
        // A shard that stalls may not have heard of the last change.
        if self.controls.iter().any(|controls| controls.slots() < 2) {
            return;
        }
        let mut limits = (*self.limits).clone();
        let mut net = self.net.borrow_mut();
        for rule in &mut limits.policies.rules {
            rule.policy.high_water_mark = self.plan.mark_min() * pick(&mut net, &[1, 2, 8]);
            rule.policy.age_max =
                pick(&mut net, &[None, Some(20), Some(300)]).map(Duration::from_millis);
        }
        drop(net);
        self.mark_max = self.mark_max.max(self.plan.mark_max(&limits));
        self.set_limits(limits);
        self.reloads += 1;
    }

    fn calm_down(&mut self) {
        self.calm = true;
        self.net.borrow_mut().note("calm", &[]);
        for (number, peer) in self.peers.iter_mut().enumerate() {
            peer.resume();
            self.agenda.update(number, peer, &self.net.borrow());
        }
        self.outlive_the_vanished();
        let start = self.net.borrow().clock;
        let mut moved = 0;
        while std::mem::replace(&mut moved, self.net.borrow().moved) != self.net.borrow().moved {
            self.ticks = 0;
            self.run_for(CALM);
            let passed = self.net.borrow().clock - start;
            assert!(passed < Duration::from_secs(1200), "it never becomes quiet");
        }
        // Deadlines, looking into the backlog now and then, and a last change of policies.
        let ticks_max = (100 + if self.plan.reloads { 256 } else { 100 }) * self.plan.shards as u64;
        assert!(self.ticks < ticks_max, "{} ticks although nothing moved", self.ticks);
        self.peers.iter().for_each(Peer::check_quiet);
        let peers = &self.peers;
        let intact = |peer: usize| peers.get(peer).is_some_and(Peer::is_intact);
        self.check.check_complete(intact);
        self.check.check_directs(intact);
        let left = self.backend.as_ref().map_or(0, Backend::waits_for);
        assert_eq!(left, 0, "publishes and questions from outside without an answer");
        let skipped = self.total(|m| m.skipped_to_newest.value() + m.dropped_oldest.value());
        self.accounted = self.check.check_skipped(skipped, intact);
        for (shard, running) in self.shards.iter().enumerate() {
            let net = self.net.borrow();
            let places = net.faults.descriptors_max > net.sockets(shard);
            assert!(!places || net.backlog(shard) == 0, "shard {shard} does not accept");
            let residue = running.as_ref().expect("running").residue();
            let work = residue.owed + residue.active + residue.stalled + residue.links;
            assert_eq!(work + residue.mail + residue.unflushed, 0, "shard {shard}: {residue:?}");
            assert_eq!(residue.log_bytes_max, 0, "shard {shard} keeps what everybody has");
            assert_eq!(residue.parked, 0, "shard {shard} lets them wait for nothing");
        }
    }

    /// Whoever has vanished goes, whoever has nothing to say stays. Then nobody is pinged any more:
    /// pings would never let the world become quiet.
    fn outlive_the_vanished(&mut self) {
        if self.plan.heartbeats.is_none() {
            return;
        }
        while self.vanished.iter().any(|&peer| self.must_be_cut_by(peer).is_some()) {
            self.run_for(Duration::from_millis(50));
        }
        self.set_heartbeats(NO_HEARTBEATS);
        self.run_for(CALM);
        let pings = self.total(|metrics| metrics.pings_sent.value());
        self.run_for(CALM);
        assert_eq!(pings, self.total(|metrics| metrics.pings_sent.value()), "off is off");
    }

    fn must_be_cut_by(&self, peer: usize) -> Option<Duration> {
        self.peers[peer].must_be_cut_by(&self.plan, &self.limits, &self.net.borrow())
    }

    fn set_heartbeats(&mut self, heartbeats: Heartbeats) {
        self.set_limits(Limits { heartbeats, ..(*self.limits).clone() });
    }

    /// As a reload does.
    fn set_limits(&mut self, limits: Limits) {
        self.limits = Arc::new(limits);
        for shard in 0..self.plan.shards {
            let told = self.controls[shard].push(Control::Limits(Arc::clone(&self.limits)));
            told.expect("all that was said was heard long ago");
            self.net.borrow_mut().wake(shard);
        }
    }

    fn total(&self, count: fn(&ShardMetrics) -> u64) -> u64 {
        self.metrics.iter().map(|metrics| count(metrics)).sum()
    }

    /// Everybody leaves, and later nothing of them is left. A shard without connections rests,
    /// whether there are heartbeats or not.
    fn depart(&mut self) {
        self.net.borrow_mut().note("depart", &[]);
        if let Some(heartbeats) = self.plan.heartbeats {
            self.set_heartbeats(heartbeats);
        }
        // In a crowd that finds few places most come in only when others have gone.
        let mut rounds = 8;
        while rounds > 0 {
            let present = self.agenda.present();
            for (number, peer) in self.peers.iter_mut().enumerate().filter(|(_, it)| !it.done) {
                let mut net = self.net.borrow_mut();
                let how =
                    pick(&mut net, &[Departure::Close, Departure::HalfClose, Departure::Reset]);
                peer.depart(how, &mut net, &mut self.check);
                self.agenda.update(number, peer, &net);
            }
            self.run_for(Duration::from_secs(2));
            rounds -= usize::from(self.agenda.present() == present);
        }
        for peer in &self.peers {
            assert!(peer.done, "not gone: {peer:?}");
        }
        for (shard, running) in self.shards.iter().enumerate() {
            let running = running.as_ref().expect("running");
            assert_eq!(running.residue(), Residue::default(), "shard {shard} has not let go");
            let net = self.net.borrow();
            assert_eq!((net.sockets(shard), net.armed(shard)), (0, 0), "shard {shard}");
            assert!(net.waits_for_ever(shard), "shard {shard} does not rest");
        }
    }

    /// The server ends in the middle of everything.
    fn drain(&mut self) {
        self.plan.draining = true;
        self.plan.drain_until = self.net.borrow().clock + self.limits.drain_timeout;
        self.plan.drain_patience = self.limits.drain_timeout / 2;
        // It may wait for seconds while everybody talks on: not microsecond by microsecond.
        self.plan.step_max = self.plan.step_max.max(Duration::from_micros(200));
        self.net.borrow_mut().note("drain", &[]);
        for shard in 0..self.plan.shards {
            self.controls[shard].push(Control::Drain).expect("nothing was said before");
            self.net.borrow_mut().wake(shard);
            let steps = pick(&mut self.net.borrow_mut(), &[0, 0, 10, 100]);
            for _ in 0..steps {
                self.step();
            }
        }
        let deadline = self.net.borrow().clock + self.limits.drain_timeout;
        while self.shards.iter().any(Option::is_some) {
            self.step();
            let late = self.net.borrow().clock.saturating_sub(deadline);
            assert!(late < Duration::from_millis(200), "the drain does not end");
        }
        let clock = self.net.borrow().clock;
        if let Some(backend) = &mut self.backend {
            backend.step(&self.plan, &mut self.net.borrow_mut(), &mut self.check);
            assert_eq!(backend.waits_for(), 0, "no answer, and nobody to give one");
        }
        // Whoever does not answer is cut after `close_timeout`, twice at most.
        // Where there is no end to what slow readers are owed they may need all of the time.
        let slow = self.plan.is_busy() || self.plan.roomy;
        assert!(clock < deadline || slow, "the drain took all the time it had");
        self.run_for(Duration::from_secs(4));
        for peer in self.peers.iter().filter(|peer| peer.is_eager()) {
            assert!(peer.done, "not gone: {peer:?}");
        }
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.net.borrow().clock + time;
        let steps = self.steps;
        while self.net.borrow().clock < end {
            self.step_until(Some(end));
            assert!(self.steps - steps < 1_000_000, "somebody is busy with nothing");
        }
    }

    fn step(&mut self) {
        self.step_until(None);
    }

    /// One thing happens: a shard's tick, a peer's step, or, if nobody has work, time passes.
    fn step_until(&mut self, end: Option<Duration>) {
        self.steps += 1;
        let net = Rc::clone(&self.net);
        let mut net = net.borrow_mut();
        let passed = net.rng.random_range(0..=self.plan.step_max.as_nanos() as u64);
        net.clock += Duration::from_nanos(passed);
        if !self.calm {
            net.surprise();
            self.talk(&mut net);
        }
        self.note_touched(&mut net);
        let due = (0..self.plan.shards).filter(|&shard| self.is_due(shard, &net)).count();
        let busy = self.agenda.busy();
        let backend = net.control_woken && self.backend.is_some();
        if due + busy.len() + usize::from(backend) == 0 {
            return self.pass_time(&mut net, end);
        }
        let chosen = net.rng.random_range(0..due + busy.len() + usize::from(backend));
        if chosen < due {
            let shard = (0..self.plan.shards).filter(|&shard| self.is_due(shard, &net)).nth(chosen);
            let shard = shard.expect("so many are due");
            net.begin_tick(shard);
            drop(net);
            self.tick(shard);
        } else if let Some(&number) = busy.get(chosen - due) {
            let peer = &mut self.peers[number];
            peer.step(&self.plan, &mut net, &mut self.check);
            self.agenda.update(number, peer, &net);
            self.check_handed(&net);
        } else if let Some(backend) = &mut self.backend {
            backend.step(&self.plan, &mut net, &mut self.check);
            self.check_handed(&net);
        }
    }

    /// What was acknowledged has been handed to every shard with members.
    fn check_handed(&mut self, net: &Net) {
        while let Some((id, offset)) = self.check.take_acknowledged() {
            let room = self.check.publishes[id].room.name();
            // Only as long as somebody stays is it the same room. (Peers may not know yet that they
            // are not there any more.)
            let stays = |peer: usize| {
                let place = net.place(peer);
                place.is_some_and(|(shard, socket)| {
                    self.shards[shard].as_ref().is_some_and(|it| it.is_member(socket, &room))
                })
            };
            if !self.check.witnesses(id).any(stays) || self.plan.ended {
                continue;
            }
            self.handed += 1;
            for (number, shard) in self.shards.iter_mut().flatten().enumerate() {
                let lacks = shard.lacks(&room, offset);
                assert!(!lacks, "publish {id} is acknowledged, and not with shard {number}");
            }
        }
    }

    /// Whether the shard has its turn.
    fn is_due(&self, shard: usize, net: &Net) -> bool {
        let runs = self.shards[shard].is_some() && net.clock >= self.stalled_until[shard];
        runs && net.is_due(shard)
    }

    /// Perhaps somebody does something of their own accord.
    fn talk(&mut self, net: &mut Net) {
        let talks = match self.plan.pace {
            None => net.chance(self.plan.talk),
            Some(_) if net.clock < self.next_talk => false,
            Some(pace) => {
                self.next_talk = net.clock + pace.mul_f64(net.rng.random_range(0.0..2.0));
                true
            }
        };
        if talks && !self.peers.is_empty() {
            // The young ones: most of the old are gone.
            let from = self.peers.len().saturating_sub(2 * self.plan.peers_at_once);
            let number = net.rng.random_range(from..self.peers.len());
            let peer = &mut self.peers[number];
            peer.act(&self.plan, net, &mut self.check);
            self.agenda.update(number, peer, net);
            if peer.has_vanished() && !self.vanished.contains(&number) {
                self.vanished.push(number);
            }
        }
        if let Some(backend) = &mut self.backend
            && net.chance(self.plan.talk)
        {
            backend.act(&self.plan, net, &mut self.check);
        }
    }

    /// Finds out what those peers have to do whose connections have changed, or whose time has
    /// come.
    fn note_touched(&mut self, net: &mut Net) {
        let mut touched = std::mem::take(&mut net.touched);
        touched.extend(std::iter::from_fn(|| self.agenda.take(net.clock)));
        for number in touched.drain(..) {
            self.agenda.update(number, &self.peers[number], net);
        }
        net.touched = touched;
    }

    /// Nobody has work: it is later until somebody has, at most until `end`.
    fn pass_time(&self, net: &mut Net, end: Option<Duration>) {
        let running = (0..self.plan.shards).filter(|&shard| self.shards[shard].is_some());
        let shards = running.filter_map(|shard| {
            let next = if net.is_due(shard) { Some(net.clock) } else { net.next_time(shard) };
            next.map(|next| next.max(self.stalled_until[shard]))
        });
        let next = shards.chain(self.agenda.next_time()).min();
        // Without an end, peers may still think of something to do.
        let idle = match self.plan.pace {
            None => net.clock + Duration::from_millis(5),
            Some(_) => self.next_talk,
        };
        let limit = end.unwrap_or(idle);
        net.clock = next.unwrap_or(limit).min(limit).max(net.clock);
    }

    /// Nobody who has vanished stays longer than promised.
    fn check_vanished(&self) {
        let clock = self.net.borrow().clock;
        for &peer in &self.vanished {
            let late = self.must_be_cut_by(peer).is_some_and(|by| clock > by);
            assert!(!late || self.plan.draining, "still there: {:?}", self.peers[peer]);
        }
    }

    /// No room has more members than it may, over all shards.
    fn check_members(&self) {
        let mut members = HashMap::new();
        for shard in self.shards.iter().flatten() {
            for (name, len) in shard.members() {
                *members.entry(name).or_insert(0) += len;
            }
        }
        for (name, len) in members {
            let max = self.limits.members_per_room_max.of(&name.name);
            assert!(max.is_none_or(|max| len <= max), "{len} members of {name:?}, {max:?} allowed");
        }
    }

    /// A shard that drains has closed some: what was acknowledged by now, they are to get.
    fn note_drained(&mut self, shard: usize) {
        let net = self.net.borrow();
        let ending = self.shards[shard].iter().flat_map(Shard::ending);
        for peer in ending.filter_map(|socket| net.behind(shard, socket)) {
            self.peers[peer].note_drained(self.check.acknowledged);
        }
    }

    fn tick(&mut self, shard: usize) {
        self.ticks += 1;
        self.net.borrow_mut().note("tick", &[shard as u64]);
        self.check_vanished();
        let running = self.shards[shard].as_mut().expect("running");
        let metrics = &self.metrics[shard];
        let before = self.plan.crowded.then(|| Crowd::of(running, metrics));
        let drained = self.plan.draining.then(|| metrics.drained());
        let status = running.tick();
        if let Some(before) = before {
            Crowd::of(running, metrics).check_since(&before, &self.limits);
        }
        if drained.is_some_and(|drained| metrics.drained() > drained) {
            self.note_drained(shard);
        }
        let running = self.shards[shard].as_ref().expect("running");
        let mut net = self.net.borrow_mut();
        assert_eq!(self.lent[shard].get(), net.received(shard), "buffers that are not given back");
        if shard == 0 && !self.plan.slow_shard.is_zero() {
            net.happened.note(Fault::ShardSlow);
            let late = self.plan.slow_shard.mul_f64(net.rng.random());
            self.stalled_until[shard] = net.clock + late;
        }
        if running.waits_for_mailboxes() {
            net.happened.note(Fault::MailboxFull);
        }
        if status == Status::Ended {
            assert!(self.plan.draining, "shard {shard} ends without being told to");
            self.plan.ended = true;
            self.shards[shard] = None;
            net.end_shard(shard);
        }
        drop(net);
        if self.plan.seats_scarce {
            self.check_members();
        }
        let Some(running) = &self.shards[shard] else { return };
        self.fairness[shard].check(running);
        let (handshakes, max) = (running.handshakes(), self.limits.handshakes_max);
        assert!(handshakes <= max, "{handshakes} handshakes on shard {shard}, {max} allowed");
        let often = 16.max(self.plan.peers_at_once as u64);
        if self.steps.is_multiple_of(often) {
            self.check_bounds(&running.residue(), shard);
        }
    }

    /// What a shard holds is bounded by the configuration.
    fn check_bounds(&self, residue: &Residue, shard: usize) {
        let Self { limits, plan, .. } = self;
        let net = self.net.borrow();
        let partial = residue.partial_bytes;
        assert!(partial <= limits.partial_bytes_max, "shard {shard}: {partial} incomplete bytes");
        let acks = residue.acks;
        assert!(acks <= ACKS_MAX, "{acks} acknowledgements wait on shard {shard}");
        let mail_max = 2 * plan.shards * limits.mailbox_len_max + limits.publish_queue_len_max;
        let mail = self.metrics[shard].mailbox_depth.value();
        assert!(mail <= mail_max as u64, "shard {shard}: {mail} messages in its mailboxes");
        assert!(residue.admitted <= limits.connections_per_shard_max, "shard {shard}: {residue:?}");
        assert!(residue.census.0 <= limits.connections_max, "all shards: {residue:?}");
        // The rest of what was received, and the echo of that and of a message begun before. A
        // request may have come with it, and a close goes behind it.
        let echoes_max = limits.handshake_bytes_max
            + limits.echo_message_bytes_max
            + 2 * net.faults.receive_bytes_max
            + 512;
        let echoes = residue.echo_bytes_max;
        assert!(echoes <= echoes_max, "{echoes} bytes, {echoes_max} allowed, on shard {shard}");
        if plan.roomy {
            return;
        }
        // What the slowest member may be behind, and what comes in before it is closed.
        let bytes_max = 2 * self.mark_max + 2 * SEGMENT_BYTES as u64;
        let bytes = residue.log_bytes_max;
        assert!(bytes <= bytes_max, "a log of {bytes} bytes on shard {shard}");
        // What comes in with one tick, from each shard and from the control thread.
        let message_max = limits.ws_message_bytes_max + 200;
        let tick_max = (plan.shards + 1) * MESSAGES_PER_MAILBOX * message_max;
        let backlog_max = limits.policies.default.high_water_mark + tick_max as u64;
        let backlog = residue.backlog_bytes_max;
        assert!(backlog <= backlog_max, "shard {shard}: {backlog} bytes to hand over");
        // What it is owed by each of its rooms, by others directly, and as answers.
        let rooms_max = limits.rooms_per_connection_max as u64 + 1;
        let answers_max = 20 * net.faults.receive_bytes_max + message_max + echoes_max;
        let waiting_max = rooms_max * bytes_max + (answers_max + GATHERED_BYTES) as u64;
        let waiting = residue.waiting_bytes_max as u64;
        assert!(waiting <= waiting_max, "{waiting} bytes wait for a connection of shard {shard}");
    }
}

/// How many are with a shard, and how many count with all of them; how many came here, began their
/// handshake, and were refused until now.
struct Crowd {
    here: u64,
    all: u64,
    came: u64,
    begun: u64,
    refused: u64,
}

impl Crowd {
    fn of(shard: &Shard<SimIo>, metrics: &ShardMetrics) -> Self {
        let parked = shard.parked_len() as u64;
        Self {
            here: metrics.connections.value() + parked,
            all: shard.admitted() as u64,
            came: metrics.accepted.value() + parked,
            begun: metrics.accepted.value(),
            refused: metrics.refused[HandshakeError::Full as usize].value(),
        }
    }

    /// In a tick that began with so many `before` nobody was refused but for want of a place.
    fn check_since(&self, before: &Self, limits: &Limits) {
        let (came, begun) = (self.came - before.came, self.begun - before.begun);
        let full = before.here + came > limits.connections_per_shard_max as u64
            || before.all + begun > limits.connections_max as u64;
        assert!(full || self.refused == before.refused, "a server that is not full refuses");
    }
}

/// What may wait for a connection that is a member of several rooms, to leave together.
const GATHERED_BYTES: usize = 128 * 1024;

/// How far the host's clock is set forward or back at most, in seconds.
pub(super) const CLOCK_SET_MAX: i64 = 3600;

/// When nothing has moved for so long, nothing will.
const CALM: Duration = Duration::from_secs(2);

/// Open connections that ended because something did not come, or go, in time.
fn deadlines_missed(metrics: &ShardMetrics) -> u64 {
    let ends = metrics.disconnects();
    let missed = ends.filter(|(reason, ..)| matches!(*reason, "send_timeout" | "pong_timeout"));
    missed.map(|(.., count)| count).sum()
}
