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

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::backend::Backend;
use super::check::Checker;
use super::net::{Net, SimIo, UNIX_TIME};
use super::peer::{Departure, PROXIES, Peer, ROOM_NAMES, pick};
use crate::auth::{Algorithm, Expected, Key, Verifier};
use crate::config::{
    Heartbeats, Limits, MembersMax, MembersRule, Origins, Policies, Policy, ProxyProtocol, Rate,
    RoomAlphabet, RoomRule, SlowConsumer, TrustedProxies, TrustedProxy,
};
use crate::id::HomeHasher;
use crate::pattern::Pattern;
use crate::room::segment::SEGMENT_BYTES;
use crate::shard::message::Control;
use crate::shard::metrics::ShardMetrics;
use crate::shard::{ControlEnds, Ends, Residue, Shard, Status};

/// Whose token every peer has, where there are tokens.
pub(super) const SIM_USER: &str = "sim";

/// What kind of world the seed makes.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) shards: usize,
    pub(super) rooms: usize,
    pub(super) message_max: usize,
    pub(super) rooms_per_connection_max: usize,
    pub(super) handshake_timeout: Duration,
    pub(super) close_timeout: Duration,
    /// How many peers there are in all, and at once.
    peers: usize,
    peers_at_once: usize,
    steps: u64,
    step_max: Duration,
    /// Share of peers that read at once, always.
    pub(super) eager: f64,
    /// How readily peers talk, leave, stall for long, and publish many at once.
    talk: f64,
    pub(super) churn: f64,
    pub(super) long_stalls: f64,
    pub(super) bursts: f64,
    /// Shards stall.
    pub(super) shard_stalls: f64,
    /// The high-water mark is beyond everything that is ever published.
    pub(super) roomy: bool,
    /// There may be no place for a connection, a room, an incomplete message.
    pub(super) crowded: bool,
    pub(super) rooms_scarce: bool,
    pub(super) partial_scarce: bool,
    /// Vanished peers are looked for; some vanish.
    pub(super) heartbeats: Option<Heartbeats>,
    /// What every peer shows, where there is authentication: user [`SIM_USER`], all rooms.
    pub(super) token: Option<String>,
    /// Rooms whose slow consumers have a policy of their own.
    rules: Vec<RoomRule>,
    /// Peers send direct messages to each other, and never change their names.
    pub(super) directs: bool,
    /// Connections closed per second of a drain.
    drain_rate: Option<u32>,
    /// Now and then their marks and ages change.
    reloads: bool,
    /// An address may have few connections, and rooms few members; some addresses are proxies'.
    pub(super) addresses_scarce: bool,
    pub(super) seats_scarce: bool,
    pub(super) proxies: bool,
    drains: bool,
    /// The drain has begun.
    pub(super) draining: bool,
    /// When whoever is left may be cut.
    drain_until: Duration,
    /// The first shard has ended.
    pub(super) ended: bool,
}

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
    /// All that was skipped is accounted for, one by one.
    pub(super) accounted: bool,
    pub(super) sends_short: u64,
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
    /// Publishes by a backend that had members to go to, and those refused.
    pub(super) published: u64,
    pub(super) busy: u64,
    /// How often the policies of rooms changed.
    pub(super) reloads: u64,
    /// Members that it was told of.
    pub(super) listed: u64,
    /// Direct messages that came.
    pub(super) directs: u64,
}

struct World {
    net: Rc<RefCell<Net>>,
    plan: Plan,
    limits: Arc<Limits>,
    shards: Vec<Option<Shard<SimIo>>>,
    metrics: Vec<Arc<ShardMetrics>>,
    controls: Vec<rtrb::Producer<Control>>,
    stalled_until: Vec<Duration>,
    peers: Vec<Peer>,
    /// Publishes from outside.
    backend: Option<Backend>,
    check: Checker,
    /// The largest high-water mark that any room has had.
    mark_max: u64,
    reloads: u64,
    steps: u64,
    ticks: u64,
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
    let mut world = World::new(seed, drain, print);
    world.mayhem();
    if world.plan.drains {
        world.drain();
    } else {
        world.calm_down();
        world.depart();
    }
    let total = |count| world.total(count);
    Outcome {
        trace: world.net.borrow().trace.hash,
        steps: world.steps,
        delivered: world.check.delivered,
        slow_consumers: total(|metrics| metrics.slow_consumers.value()),
        skipped_to_newest: total(|metrics| metrics.skipped_to_newest.value()),
        dropped_oldest: total(|metrics| metrics.dropped_oldest.value()),
        told: world.check.told,
        accounted: world.accounted,
        sends_short: total(|metrics| metrics.sends_short.value()),
        drained: world.plan.drains,
        farewells: world.check.farewells,
        pings: total(|metrics| metrics.pings_sent.value()),
        vanished: world.peers.iter().filter(|peer| peer.has_vanished()).count() as u64,
        pong_timeouts: total(|metrics| metrics.pong_timeouts.value()),
        addresses_full: world.peers.iter().filter(|peer| peer.status() == Some(429)).count() as u64,
        rooms_full: world.check.rooms_full,
        published: world.backend.as_ref().map_or(0, |backend| backend.published),
        busy: world.backend.as_ref().map_or(0, |backend| backend.busy),
        reloads: world.reloads,
        listed: world.backend.as_ref().map_or(0, |backend| backend.listed),
        directs: world.check.directs.delivered,
    }
}

impl World {
    fn new(seed: u64, drain: Option<bool>, print: bool) -> Self {
        let mut net = Net::new(seed, print);
        let mut plan = Plan::new(&mut net);
        // By the number, so that the other seeds make what they made before there were heartbeats.
        if seed.is_multiple_of(4) {
            plan.heartbeats = Some(Heartbeats {
                ping_interval: Some(Duration::from_millis(pick(&mut net, &[400, 1000]))),
                pong_timeout: Duration::from_millis(pick(&mut net, &[100, 600, 1000])),
            });
        }
        // By the number, and from randomness of their own, for the same reason.
        if matches!(seed % 5, 2 | 4) && !plan.roomy {
            plan.draw_rules(&mut StdRng::seed_from_u64(!seed));
            plan.reloads = seed.is_multiple_of(3);
        }
        if seed % 7 == 3 {
            plan.token = Some(sign());
        }
        // The same.
        plan.addresses_scarce = matches!(seed % 7, 3 | 5);
        plan.proxies = plan.addresses_scarce && seed.is_multiple_of(2);
        plan.seats_scarce = matches!(seed % 9, 4 | 7);
        plan.directs = seed % 6 == 5;
        plan.drains = drain.unwrap_or(plan.drains);
        // By the number, again.
        plan.drain_rate = [None, Some(10), Some(60), Some(1000)][seed as usize / 2 % 4];
        let mut limits = plan.limits(&mut net);
        plan.draw_limits(&mut limits, &mut StdRng::seed_from_u64(seed << 32));
        let limits = Arc::new(limits);
        plan.set_faults(&mut net, &limits);
        if print {
            println!("{plan:#?}\n{limits:#?}\n{:#?}", net.faults);
        }
        let homes = HomeHasher::with_key(plan.shards, net.rng.random());
        let listeners = pick(&mut net, &[1, 2]);
        (0..plan.shards).for_each(|_| net.add_shard(listeners));
        let net = Rc::new(RefCell::new(net));
        let (mut shards, mut metrics) = (Vec::new(), Vec::new());
        let (ends, ControlEnds { controls, publisher, inquirer }) = Ends::mesh(&homes, &limits);
        for (shard, ends) in ends.into_iter().enumerate() {
            let io = SimIo { net: Rc::clone(&net), shard, lent: Rc::new(Cell::new(0)) };
            let counted = Arc::new(ShardMetrics::default());
            shards.push(Some(Shard::new(
                io,
                listeners,
                ends,
                Arc::clone(&limits),
                Arc::clone(&counted),
            )));
            metrics.push(counted);
        }
        let mark_max = plan.mark_max(&limits);
        Self {
            stalled_until: vec![Duration::ZERO; plan.shards],
            net,
            plan,
            shards,
            metrics,
            controls,
            peers: Vec::new(),
            // By the number, as with heartbeats.
            backend: (seed % 8 >= 6).then(|| Backend::new(publisher, inquirer)),
            check: Checker::new(
                ROOM_NAMES.iter().map(|name| limits.policies.of(name).slow_consumer).collect(),
            ),
            mark_max,
            limits,
            reloads: 0,
            steps: 0,
            ticks: 0,
            calm: false,
            accounted: false,
        }
    }

    fn mayhem(&mut self) {
        let steps = self.plan.steps;
        while self.steps < steps {
            let present = self.peers.iter().filter(|peer| !peer.done).count();
            if self.peers.len() < self.plan.peers
                && present < self.plan.peers_at_once
                && self.net.borrow_mut().chance(0.05)
            {
                let peer = Peer::new(self.peers.len(), &self.plan, &mut self.net.borrow_mut());
                self.peers.push(peer);
            }
            if self.net.borrow_mut().chance(self.plan.shard_stalls) {
                let mut net = self.net.borrow_mut();
                let shard = net.rng.random_range(0..self.plan.shards);
                let stall = Duration::from_millis(net.rng.random_range(1..100));
                self.stalled_until[shard] = net.clock + stall;
            }
            if self.plan.reloads && self.net.borrow_mut().chance(0.001) {
                self.change_policies();
            }
            self.step();
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
        self.peers.iter_mut().for_each(Peer::resume);
        self.outlive_the_vanished();
        let start = self.net.borrow().clock;
        let mut moved = 0;
        while std::mem::replace(&mut moved, self.net.borrow().moved) != self.net.borrow().moved {
            self.ticks = 0;
            self.run_for(CALM);
            let passed = self.net.borrow().clock - start;
            assert!(passed < Duration::from_secs(120), "it never becomes quiet");
        }
        // Deadlines, and looking into the backlog now and then.
        let ticks_max = 100 * self.plan.shards as u64;
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
        }
    }

    /// Whoever has vanished goes, whoever has nothing to say stays. Then nobody is pinged any more:
    /// pings would never let the world become quiet.
    fn outlive_the_vanished(&mut self) {
        if self.plan.heartbeats.is_none() {
            return;
        }
        while self.peers.iter().any(|peer| self.must_be_cut_by(peer).is_some()) {
            self.run_for(Duration::from_millis(50));
        }
        self.set_heartbeats(NO_HEARTBEATS);
        self.run_for(CALM);
        let pings = self.total(|metrics| metrics.pings_sent.value());
        self.run_for(CALM);
        assert_eq!(pings, self.total(|metrics| metrics.pings_sent.value()), "off is off");
    }

    fn must_be_cut_by(&self, peer: &Peer) -> Option<Duration> {
        peer.must_be_cut_by(&self.plan, &self.limits, &self.net.borrow())
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
        for _ in 0..8 {
            for peer in &mut self.peers {
                let mut net = self.net.borrow_mut();
                let how =
                    pick(&mut net, &[Departure::Close, Departure::HalfClose, Departure::Reset]);
                peer.depart(how, &mut net, &mut self.check);
            }
            self.run_for(Duration::from_secs(2));
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
        self.check.begin_drain();
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
        assert!(clock < deadline, "the drain took all the time it had");
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
        let mut net = self.net.borrow_mut();
        let passed = net.rng.random_range(0..=self.plan.step_max.as_nanos() as u64);
        net.clock += Duration::from_nanos(passed);
        net.refresh();
        let spurious = net.faults.spurious;
        if !self.calm && net.chance(spurious) {
            let shard = net.rng.random_range(0..self.plan.shards);
            net.wake(shard);
        }
        let due: Vec<usize> = (0..self.plan.shards)
            .filter(|&shard| self.shards[shard].is_some())
            .filter(|&shard| net.clock >= self.stalled_until[shard] && net.is_due(shard))
            .collect();
        let busy: Vec<usize> =
            (0..self.peers.len()).filter(|&peer| self.peers[peer].has_work(&net)).collect();
        if !self.calm && net.chance(self.plan.talk) && !self.peers.is_empty() {
            // The young ones: most of the old are gone.
            let from = self.peers.len().saturating_sub(2 * self.plan.peers_at_once);
            let peer = net.rng.random_range(from..self.peers.len());
            self.peers[peer].act(&self.plan, &mut net, &mut self.check);
        }
        let backend = self.backend.as_mut();
        if let Some(backend) = backend.filter(|_| !self.calm && net.chance(self.plan.talk)) {
            backend.act(&self.plan, &mut net, &mut self.check);
        }
        let backend = self.backend.as_mut().filter(|_| net.control_woken);
        if due.is_empty() && busy.is_empty() && backend.is_none() {
            return jump(&mut net, &self.shards, &self.stalled_until, &self.peers, end);
        }
        let others = due.len() + busy.len();
        let chosen = net.rng.random_range(0..others + usize::from(backend.is_some()));
        if let Some(&shard) = due.get(chosen) {
            net.begin_tick(shard);
            drop(net);
            self.tick(shard);
        } else if let Some(&peer) = busy.get(chosen - due.len()) {
            self.peers[peer].step(&self.plan, &mut net, &mut self.check);
        } else if let Some(backend) = backend {
            backend.step(&self.plan, &mut net, &mut self.check);
        }
    }

    /// Nobody who has vanished stays longer than promised.
    fn check_vanished(&self) {
        let clock = self.net.borrow().clock;
        for peer in self.peers.iter().filter(|peer| peer.has_vanished()) {
            let late = self.must_be_cut_by(peer).is_some_and(|by| clock > by);
            assert!(!late || self.plan.draining, "still there: {peer:?}");
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

    fn tick(&mut self, shard: usize) {
        self.ticks += 1;
        self.check_vanished();
        let running = self.shards[shard].as_mut().expect("running");
        if running.tick() == Status::Ended {
            assert!(self.plan.draining, "shard {shard} ends without being told to");
            self.plan.ended = true;
            self.shards[shard] = None;
            self.net.borrow_mut().end_shard(shard);
        }
        if self.plan.seats_scarce {
            self.check_members();
        }
        let Some(running) = &self.shards[shard] else { return };
        if self.steps.is_multiple_of(16) && !self.plan.roomy {
            // What the slowest member may be behind, and what comes in before it is closed.
            let bytes_max = 2 * self.mark_max + 2 * SEGMENT_BYTES as u64;
            let bytes = running.residue().log_bytes_max;
            assert!(bytes <= bytes_max, "a log of {bytes} bytes on shard {shard}");
        }
    }
}

const SECRET: &[u8] = b"what nobody outside of the simulation knows";

/// A token that is good for a day and all rooms.
fn sign() -> String {
    let claims = serde_json::json!({
        "sub": SIM_USER, "exp": UNIX_TIME + 86_400,
        "rooms": [{"pattern": "*", "join": true, "publish": true}], "direct": true,
    });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("it can be signed")
}

/// Two keys, so that a token takes as many signatures as are checked in one tick here.
fn verifier() -> Verifier {
    let key = |secret: &[u8]| Key::read(None, Algorithm::Hs256, secret).expect("long enough");
    Verifier::new(vec![key(&[b'x'; 32]), key(SECRET)], Expected::default())
}

/// Nobody has work: time passes until somebody has, at most until `end`.
fn jump(
    net: &mut Net,
    shards: &[Option<Shard<SimIo>>],
    stalled_until: &[Duration],
    peers: &[Peer],
    end: Option<Duration>,
) {
    let running = (0..shards.len()).filter(|&shard| shards[shard].is_some());
    let shards = running.filter_map(|shard| {
        let next = if net.is_due(shard) { Some(net.clock) } else { net.next_time(shard) };
        next.map(|next| next.max(stalled_until[shard]))
    });
    let peers = peers.iter().filter_map(|peer| peer.next_time(net));
    let next = shards.chain(peers).min();
    let later = net.clock + Duration::from_millis(5);
    // Without an end, peers may still think of something to do.
    let limit = end.unwrap_or(later);
    net.clock = next.unwrap_or(limit).min(limit).max(net.clock);
}

impl Plan {
    fn new(net: &mut Net) -> Self {
        let roomy = net.chance(0.4);
        let peers_at_once = pick(net, &[3, 8, 20, 40]);
        Self {
            shards: pick(net, &[1, 2, 2, 3, 4]),
            rooms: pick(net, &[1, 2, 4]),
            message_max: pick(net, &[300, 1000, 4000]),
            rooms_per_connection_max: pick(net, &[1, 2, 4]),
            handshake_timeout: Duration::from_secs(1),
            close_timeout: Duration::from_millis(pick(net, &[400, 1000])),
            peers: peers_at_once * pick(net, &[1, 2, 4]),
            peers_at_once,
            steps: pick(net, &[4_000, 8_000, 16_000]),
            step_max: Duration::from_micros(pick(net, &[1, 20, 200])),
            eager: pick(net, &[0.0, 0.5, 1.0]),
            talk: pick(net, &[0.02, 0.1, 0.3]),
            churn: pick(net, &[0.0, 0.01, 0.05]),
            long_stalls: pick(net, &[0.0, 0.3]),
            bursts: pick(net, &[0.0, 0.3]),
            shard_stalls: pick(net, &[0.0, 0.001, 0.01]),
            roomy,
            crowded: net.chance(0.2),
            rooms_scarce: net.chance(0.2),
            partial_scarce: net.chance(0.15),
            heartbeats: None,
            token: None,
            rules: Vec::new(),
            directs: false,
            drain_rate: None,
            reloads: false,
            addresses_scarce: false,
            seats_scarce: false,
            proxies: false,
            drains: net.chance(0.2),
            draining: false,
            drain_until: Duration::MAX,
            ended: false,
        }
    }

    /// The name of a peer; where there are direct messages, of two.
    pub(super) fn peer_name(&self, number: usize) -> String {
        let number = if self.directs { number / 2 } else { number };
        format!("peer \"{number}\"")
    }

    /// Whether whoever is left may be cut.
    pub(super) fn drain_is_over(&self, now: Duration) -> bool {
        now >= self.drain_until
    }

    /// What a member that takes a largest message may be behind by when the next one comes.
    fn mark_min(&self) -> u64 {
        2 * self.message_max as u64 + 600
    }

    /// The largest mark of any room.
    fn mark_max(&self, limits: &Limits) -> u64 {
        ROOM_NAMES.iter().map(|name| limits.policies.of(name).high_water_mark).max().unwrap_or(0)
    }

    /// A rule for most of the rooms. In some worlds nobody goes, so that all that is skipped can be
    /// accounted for.
    fn draw_rules(&mut self, rng: &mut StdRng) {
        if rng.random_bool(0.3) {
            (self.churn, self.long_stalls, self.drains) = (0.0, 0.0, false);
        }
        for name in ROOM_NAMES {
            let slow_consumer = match rng.random_range(0..7) {
                0 => continue,
                1 => SlowConsumer::Disconnect,
                2..5 => SlowConsumer::SkipToNewest,
                _ => SlowConsumer::DropOldest,
            };
            let skips = slow_consumer != SlowConsumer::Disconnect;
            // Also less than a message: the newest is kept.
            let least = if skips && rng.random_bool(0.5) { 200 } else { self.mark_min() };
            let policy = Policy {
                slow_consumer,
                high_water_mark: least * [1, 4, 16][rng.random_range(0..3)],
                age_max: [None, None, Some(20), Some(300)][rng.random_range(0..4)]
                    .map(Duration::from_millis),
            };
            let pattern = Pattern::new(name).expect("a room has a name");
            self.rules.push(RoomRule::new(pattern, policy));
        }
    }

    /// What there is few of for each address and room, and who is a proxy.
    fn draw_limits(&self, limits: &mut Limits, rng: &mut StdRng) {
        if self.addresses_scarce {
            limits.connections_per_address_max = Some(rng.random_range(1..5));
            let rate = Rate { per_second: 10, burst: rng.random_range(1..5) };
            limits.handshakes_per_second_per_address = rng.random_bool(0.3).then_some(rate);
            if self.proxies {
                limits.trusted_proxies = TrustedProxies::new(&[TrustedProxy::Network(
                    PROXIES.parse().expect("it is a network"),
                )]);
                limits.proxy_protocol = ProxyProtocol::Optional;
            }
        }
        if self.seats_scarce {
            for name in ROOM_NAMES {
                if rng.random_bool(0.3) {
                    continue;
                }
                let pattern = Pattern::new(name).expect("a name is a pattern");
                let members_max = rng.random_range(1..5);
                limits.members_per_room_max.0.push(MembersRule { pattern, members_max });
            }
        }
    }

    /// Whether a join may find no place.
    pub(super) fn joins_may_fail(&self) -> bool {
        self.rooms_scarce || self.seats_scarce
    }

    /// Whether slow consumers are disconnected in some room.
    pub(super) fn disconnects(&self) -> bool {
        let skips = |rule: &RoomRule| rule.policy.slow_consumer != SlowConsumer::Disconnect;
        self.rules.iter().filter(|rule| skips(rule)).count() < ROOM_NAMES.len()
    }

    fn limits(&self, net: &mut Net) -> Limits {
        let high_water_mark = self.mark_min();
        let scarce = |scarce: bool, few: usize| if scarce { few } else { 1_000_000 };
        Limits {
            verifier: self.token.as_ref().map(|_| Arc::new(verifier())),
            origins: Origins::default(),
            ready_rss_max: None,
            handshake_timeout: self.handshake_timeout,
            close_timeout: self.close_timeout,
            message_timeout: Duration::from_secs(3600),
            send_timeout: Duration::from_millis(pick(net, &[500, 1500])),
            drain_rate: self.drain_rate,
            drain_timeout: Duration::from_secs(20),
            heartbeats: self.heartbeats.unwrap_or(NO_HEARTBEATS),
            connections_per_address_max: None,
            handshakes_per_second: None,
            handshakes_per_second_per_address: None,
            trusted_proxies: TrustedProxies::default(),
            proxy_protocol: ProxyProtocol::Off,
            // With heartbeats by the number of the seed: listeners pause often.
            handshakes_max: if self.heartbeats.is_some() { 3 } else { 1_000_000 },
            handshake_bytes_max: 2048,
            target_bytes_max: 256,
            ws_message_bytes_max: self.message_max,
            raw_message_bytes_max: self.message_max,
            echo_message_bytes_max: self.message_max,
            frame_bytes_max: usize::MAX,
            messages_per_second: None,
            bytes_per_second: None,
            partial_bytes_max: scarce(self.partial_scarce, 2 * self.message_max) * 100,
            rooms_per_connection_max: self.rooms_per_connection_max,
            rooms_max: scarce(self.rooms_scarce, 2),
            members_per_room_max: MembersMax::default(),
            room_id_alphabet: RoomAlphabet::Any,
            room_id_bytes_max: 64,
            user_id_bytes_max: 64,
            policies: Policies {
                rules: self.rules.clone(),
                default: Policy {
                    slow_consumer: SlowConsumer::Disconnect,
                    high_water_mark: if self.roomy {
                        1 << 40
                    } else {
                        high_water_mark * pick(net, &[1, 4, 16])
                    },
                    age_max: None,
                },
            },
            mailbox_len_max: pick(net, &[1, 2, 4, 16]),
            publish_bytes_max: 1 << 20,
            publish_queue_len_max: 8,
            echo: true,
            connections_max: scarce(self.crowded, pick(net, &[4, 16])),
            connections_per_shard_max: scarce(self.crowded, pick(net, &[2, 8])),
        }
    }

    fn set_faults(&self, net: &mut Net, limits: &Limits) {
        net.faults.short_send = pick(net, &[0.0, 0.05, 0.5]);
        net.faults.spurious = pick(net, &[0.0, 0.0, 0.0005]);
        net.faults.transient = pick(net, &[0.0, 0.02]);
        net.faults.accept_fails = pick(net, &[0.0, 0.1]);
        net.faults.accept_ends = pick(net, &[0.0, 0.2]);
        net.faults.poll_delay_max = Duration::from_micros(pick(net, &[0, 100, 5000]));
        net.faults.receives_max = pick(net, &[1, 3, 64]);
        net.faults.receive_bytes_max = pick(net, &[16, 256, 4096, 16_384]);
        if self.crowded {
            net.faults.descriptors_max = limits.connections_per_shard_max + pick(net, &[0, 2, 100]);
        }
    }
}

/// Nobody is pinged.
const NO_HEARTBEATS: Heartbeats =
    Heartbeats { ping_interval: None, pong_timeout: Duration::from_secs(1) };

/// When nothing has moved for so long, nothing will.
const CALM: Duration = Duration::from_secs(2);
