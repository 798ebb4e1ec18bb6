//! Heartbeats: finds the peers that have vanished without a word.
//!
//! A host that loses its power or its network sends no FIN, and TCP asks nobody who has nothing to
//! say: an idle connection to it would stay for ever. So an open connection from which nothing has
//! come for a while is sent a ping (RFC 6455 §5.5.2), and from then on has a deadline,
//! `pong_timeout`, like any other; any bytes take it away. When it comes, the connection is cut:
//! nobody is there to read a close.
//!
//! *Who is pinged when.* A hand goes round the slots of the shard at an even pace, once in half a
//! `ping_interval`. What it does depends on what has been heard since it was there last:
//!
//! | Heard     | The hand                                                                        |
//! |-----------|---------------------------------------------------------------------------------|
//! | a message | goes on; if it finds nothing next time, it pings then                           |
//! | a pong    | pings when it is the slot's turn: even slots in even rounds, odd in odd rounds  |
//! | nothing   | pings                                                                           |
//!
//! So who falls silent is pinged after half an interval at the earliest and one interval at the
//! latest, and is gone `pong_timeout` later ([`STEP`] and two units of the deadlines' wheel may
//! come on top). Who stays silent is pinged once per interval, half of the slots in each round:
//! however the connections came, together or one by one, their pings are spread evenly.
//!
//! *In which order.* A round is [`STRIPES`] equal times; in each the hand visits every so many-th
//! pair of slots. Which pairs these are is the number of the stripe with its bits reversed (van der
//! Corput's sequence): so a handful of slots is spread as evenly as a million, and a slot keeps its
//! time when more come. (Rejected: from the first slot to the last. When the table of connections
//! grows, everybody's time moves, and who was visited a moment ago is visited again.)
//!
//! *What it costs.* No timer, no list and no allocation: one byte per connection, and a place in
//! the wheel only from a ping to its pong. The hand moves at most every [`STEP`], so that the
//! pings of a step leave in a few system calls; a shard without connections sleeps.
//!
//! *Who is not pinged.* Whoever has a deadline already: for its handshake, its close, the rest of
//! a message. A full socket asks by itself: what waits there is as good as a ping, and taking some
//! of it as good as an answer, for which the peer has `pong_timeout`, too, if `send_timeout` is not
//! over before. So who vanishes is gone in the same time, however much is published to it. And
//! nobody is cut for an answer that may have come and was not read yet.
//!
//! (Rejected: one ping per connection and interval, whatever was heard. It pings peers that have
//! just said something. And a timer from the last sign of life: whoever was heard together, after
//! one publish to all, would be pinged together ever after.)

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::closing::Reason;
use super::connection::Heard;
use super::output::Source;
use super::{SLOTS_PER_TICK, Shard};
use crate::io::Io;
use crate::slab::Key;

/// How long the hand stands still at least.
pub(crate) const STEP: Duration = Duration::from_millis(100);

/// How much the hand makes up for when it comes later than it asked to. What is lost beyond that
/// is lost: when the whole process was stopped, nobody is to be pinged twice for it.
const LATE_MAX: Duration = Duration::from_millis(250);

/// A ping without payload; one for all.
static PING: Bytes = Bytes::from_static(&[0x89, 0]);

/// Parts of a round; a power of two.
const STRIPES: u32 = 1024;

/// The hand: what is to be visited when. See the module documentation.
#[derive(Debug)]
pub(super) struct Hand {
    /// How long it takes to go round.
    round: Duration,
    /// How long it has gone in this round.
    gone: Duration,
    /// When it moved last.
    moved: Instant,
    /// The next stripe to visit.
    next: u32,
    /// Whether this round is the odd slots' turn.
    odd: bool,
}

impl Hand {
    fn new(now: Instant, round: Duration) -> Self {
        Self { round, gone: Duration::ZERO, moved: now, next: 0, odd: false }
    }

    /// Goes round in `round` from now on, from where it is.
    fn pace(&mut self, round: Duration) {
        self.gone = round.mul_f64(self.gone.div_duration_f64(self.round));
        self.round = round;
    }

    /// Stands still until now: there is nobody to visit.
    fn rest(&mut self, now: Instant) {
        self.moved = now;
    }

    /// Moves on to where it should be by now.
    fn advance(&mut self, now: Instant) {
        let step = self.moved + STEP;
        if now >= step {
            self.gone += now.min(self.next().max(step) + LATE_MAX) - self.moved;
            self.moved = now;
        }
    }

    /// Takes the next stripe it has come past, with whether it is the odd slots' turn.
    fn take(&mut self) -> Option<(u32, bool)> {
        if self.next == STRIPES && self.gone >= self.round {
            self.gone -= self.round;
            self.next = 0;
            self.odd = !self.odd;
        }
        let stripe = self.next;
        (self.passed() > stripe).then(|| {
            self.next += 1;
            (stripe, self.odd)
        })
    }

    /// When there will be something to take; not later than now if there is already.
    fn next(&self) -> Instant {
        if self.passed() > self.next || self.gone >= self.round {
            return self.moved;
        }
        let reached = self.round * (self.next + 1).min(STRIPES) / STRIPES;
        self.moved + reached.saturating_sub(self.gone).max(STEP)
    }

    /// How many stripes it has come past in this round.
    fn passed(&self) -> u32 {
        let share = self.gone.min(self.round).as_nanos() * u128::from(STRIPES);
        (share / self.round.as_nanos()) as u32
    }
}

/// The slots of a stripe, up to `slots` and perhaps one more.
fn slots_of(stripe: u32, slots: u32) -> impl Iterator<Item = u32> {
    let pair = stripe.reverse_bits() >> (u32::BITS - STRIPES.ilog2());
    (2 * pair..slots).step_by(2 * STRIPES as usize).flat_map(|even| [even, even + 1])
}

/// Whether the peer in `slot` is to be pinged, from which `heard` is all since the last visit.
fn wants_ping(heard: Heard, slot: u32, odd_round: bool) -> bool {
    match heard {
        Heard::Nothing => true,
        Heard::Pong => odd_round == (slot % 2 == 1),
        Heard::Message => false,
    }
}

impl<I: Io> Shard<I> {
    /// Applies what the limits say from now on. Peers that were pinged must still answer.
    pub(super) fn set_heartbeats(&mut self, now: Instant) {
        let round = self.limits.heartbeats.ping_interval.map(|interval| interval / 2);
        match (&mut self.hand, round) {
            (Some(hand), Some(round)) => hand.pace(round),
            (hand, round) => *hand = round.map(|round| Hand::new(now, round)),
        }
    }

    /// Visits the slots whose time has come, a bounded number; the rest in the next tick.
    pub(super) fn visit_some(&mut self, now: Instant) {
        let Some(hand) = &mut self.hand else { return };
        if self.connections.is_empty() {
            return hand.rest(now);
        }
        hand.advance(now);
        let mut visits = 0;
        while visits < SLOTS_PER_TICK
            && let Some((stripe, odd)) = self.hand.as_mut().and_then(Hand::take)
        {
            for slot in slots_of(stripe, self.connections.slots()) {
                self.visit(slot, odd);
                visits += 1;
            }
        }
    }

    /// When [`Shard::visit_some`] will have something to do.
    pub(super) fn next_visit(&self) -> Option<Instant> {
        self.hand.as_ref().filter(|_| !self.connections.is_empty()).map(Hand::next)
    }

    fn visit(&mut self, slot: u32, odd_round: bool) {
        let Some(connection) = self.connections.at_mut(slot) else { return };
        let heard = std::mem::replace(&mut connection.heard, Heard::Nothing);
        if !wants_ping(heard, slot, odd_round) || !connection.is_open() {
            return;
        }
        let (full, timed) = (connection.poll_writable, connection.deadline.is_set());
        let Some(key) = self.connections.key_at(slot) else { return };
        if full {
            self.await_taking(key);
        } else if !timed {
            self.ping(key);
        }
    }

    /// The socket is full, and nothing has come from the peer: that it takes something is awaited
    /// as an answer to a ping is.
    fn await_taking(&mut self, key: Key) {
        let at = self.io.now() + self.limits.heartbeats.pong_timeout;
        if let Some(connection) = self.connections.get_mut(key)
            // Otherwise it has said something, or has begun to.
            && connection.poll_readable
            && connection.decoder.is_idle()
            && connection.send_by().is_none()
            && let Some(send_by) = self.deadlines.time_of(connection.deadline)
            && at < send_by
        {
            connection.extra().send_by = Some(send_by);
            self.deadlines.set(key, at, &mut self.connections);
        }
    }

    /// Something has come from a peer whose socket is full: it lives, and has the time that it had
    /// before it was asked.
    pub(super) fn note_life(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key)
            && let Some(send_by) = connection.take_send_by()
        {
            self.deadlines.set(key, send_by, &mut self.connections);
        }
    }

    fn ping(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.owes() || connection.sent_tick == self.tick {
            self.owe(key, PING.clone());
        } else {
            self.send(key, &PING, 0, Source::Outbox(PING.clone()));
        }
        self.set_deadline(key, self.limits.heartbeats.pong_timeout);
        self.metrics.pings_sent.add(1);
    }

    /// The time for an answer to a ping is over: cuts the connection. While no poll is armed there
    /// may be input that was not read yet, for whatever reason of ours; then it has as long again.
    pub(super) fn expire_ping(&mut self, key: Key) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.poll_readable {
            self.retire(key, Reason::PongTimeout);
        } else if connection.send_by().is_some() {
            self.note_life(key);
        } else {
            self.set_deadline(key, self.limits.heartbeats.pong_timeout);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Heartbeats, Limits};
    use crate::fuzz::wire::Wires;

    proptest! {
        /// Every stripe is visited once per round, in order, and never late by more than the ticks
        /// are, however early and late these come and however few visits each of them makes.
        #[test]
        fn every_stripe_is_visited_once_per_round(
            ticks in prop::collection::vec((0..250_u64, 1..700_u32), 1..400),
            round_ms in 500..5000_u64,
        ) {
            let round = Duration::from_millis(round_ms);
            let start = Instant::now();
            let (mut hand, mut now, mut expected) = (Hand::new(start, round), start, (0, false));
            let mut visited = [start; STRIPES as usize];
            for (passed, max) in ticks {
                now += Duration::from_millis(passed);
                // As a shard does it: again at once as long as there is something to do.
                while hand.next() <= now {
                    hand.advance(now);
                    for (stripe, odd) in std::iter::from_fn(|| hand.take()).take(max as usize) {
                        prop_assert_eq!((stripe, odd), expected, "in order, none left out");
                        let end = stripe + 1 == STRIPES;
                        expected = if end { (0, !odd) } else { (stripe + 1, odd) };
                        let since = now - std::mem::replace(&mut visited[stripe as usize], now);
                        prop_assert!(since <= round + STEP + LATE_MAX, "{stripe} after {since:?}");
                    }
                }
            }
        }

        /// In equal times it visits equally many, and it sleeps between its steps.
        #[test]
        fn visits_are_spread_evenly(round_ms in 500..2_000_000_u64) {
            let round = Duration::from_millis(round_ms);
            let mut hand = Hand::new(Instant::now(), round);
            let (start, mut visits) = (hand.moved, 0);
            for _ in 0..500 {
                let now = hand.next();
                prop_assert!(now >= hand.moved + STEP);
                hand.advance(now);
                visits += std::iter::from_fn(|| hand.take()).count();
                let even = (now - start).div_duration_f64(round) * f64::from(STRIPES);
                prop_assert!((visits as f64 - even).abs() <= 1.5, "{visits} visits, not {even}");
            }
        }

        /// Every slot is in one stripe, and keeps it when more come.
        #[test]
        fn every_slot_has_one_stripe(slots in 0..10_000_u32, more in 0..10_000_u32) {
            let stripes = |slots| {
                let mut stripes = vec![Vec::new(); slots as usize + 1];
                for stripe in 0..STRIPES {
                    slots_of(stripe, slots).for_each(|slot| stripes[slot as usize].push(stripe));
                }
                stripes.truncate(slots as usize);
                stripes
            };
            let before = stripes(slots);
            prop_assert!(before.iter().all(|stripes| stripes.len() == 1));
            prop_assert_eq!(&stripes(slots + more)[..slots as usize], &before[..]);
        }
    }

    #[test]
    fn time_in_which_nothing_ran_does_not_count() {
        let start = Instant::now();
        let mut hand = Hand::new(start, Duration::from_secs(1024));
        hand.advance(start + Duration::from_secs(1_000_000));
        // The one that was due next, and nothing for the time that was lost.
        assert_eq!((hand.take(), hand.take()), (Some((0, false)), None));
    }

    #[test]
    fn a_new_pace_holds_from_where_the_hand_is() {
        let start = Instant::now();
        let mut hand = Hand::new(start, STEP * STRIPES / 100);
        let taken = |hand: &mut Hand, step| {
            hand.advance(start + STEP * step);
            std::iter::from_fn(|| hand.take()).count()
        };
        assert_eq!(taken(&mut hand, 1), 100);
        hand.pace(STEP * STRIPES / 10);
        assert_eq!(taken(&mut hand, 2), 10);
        hand.pace(STEP * STRIPES / 100);
        assert_eq!(taken(&mut hand, 3), 100);
    }

    /// A member of a busy room whose socket is full from the beginning: whether it is there after
    /// so long, if every second its socket takes a byte, or it says something.
    fn stays(after: Duration, takes: bool, says: bool) -> bool {
        let heartbeats = Heartbeats {
            ping_interval: Some(Duration::from_secs(10)),
            pong_timeout: Duration::from_secs(2),
        };
        let send_timeout = Duration::from_secs(60);
        let limits = Limits { heartbeats, send_timeout, ..Limits::default() };
        let (mut wires, _control) = Wires::new(1, &limits);
        let [member, publisher] = [1000, usize::MAX].map(|space| wires.connect(0, space));
        [member, publisher].iter().for_each(|client| wires.send(*client, REQUEST, 1000));
        let message = [&[0x82, 0xfe, 0x10, 0, 0, 0, 0, 0][..], &[b'x'; 0x1000]].concat();
        let pong = [0x8a, 0x80, 0, 0, 0, 0];
        wires.pass(Duration::from_secs(1));
        wires.send(publisher, &message, 1000);
        let mut left = after;
        while left > Duration::ZERO {
            wires.pass(Duration::from_secs(1));
            left = left.saturating_sub(Duration::from_secs(1));
            wires.send(publisher, &pong, 1000);
            if takes {
                wires.make_space(member, 1);
            }
            if says {
                wires.send(member, &pong, 1000);
            }
        }
        let connections = wires.residues()[0].connections;
        assert!((1..=2).contains(&connections), "the publisher is there");
        connections == 2
    }

    const REQUEST: &[u8] = b"GET /raw/r HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    #[test]
    fn who_has_vanished_behind_a_full_socket_is_gone_like_any_other() {
        assert!(stays(Duration::from_secs(5), false, false));
        // Interval and timeout, and the second before.
        assert!(!stays(Duration::from_secs(13), false, false));
    }

    #[test]
    fn whatever_is_taken_or_said_is_a_sign_of_life() {
        assert!(stays(Duration::from_secs(600), true, false));
        assert!(stays(Duration::from_secs(58), false, true));
        // What it says does not excuse it from taking what it is owed.
        assert!(!stays(Duration::from_secs(63), false, true));
    }

    /// Peers that answer at once, as the hand finds them: the slots pinged in each of `steps`.
    fn pings(
        slots: u32,
        round: Duration,
        steps: u32,
        says: impl Fn(u32, u32) -> bool,
    ) -> Vec<Vec<u32>> {
        let start = Instant::now();
        let mut hand = Hand::new(start, round);
        let mut heard = vec![Heard::Message; slots as usize + 1];
        let step = |step: u32| {
            let mut pinged = Vec::new();
            hand.advance(start + step * STEP);
            while let Some((stripe, odd)) = hand.take() {
                for slot in slots_of(stripe, slots) {
                    let heard = &mut heard[slot as usize];
                    if wants_ping(std::mem::replace(heard, Heard::Nothing), slot, odd) {
                        pinged.push(slot);
                        *heard = Heard::Pong;
                    }
                }
            }
            for slot in (0..slots).filter(|&slot| says(slot, step)) {
                heard[slot as usize] = Heard::Message;
            }
            pinged
        };
        (1..=steps).map(step).collect()
    }

    #[test]
    fn pings_to_peers_that_came_together_are_spread_evenly() {
        // An interval of 40 steps.
        for slots in [40, 400, 1000, 4000, 40_000] {
            let pings = pings(slots, 20 * STEP, 400, |_, _| false);
            assert!(pings[..20].iter().all(Vec::is_empty), "nobody in the first round");
            let even = slots / 40;
            for (step, pinged) in pings.iter().enumerate().skip(60) {
                let off = (pinged.len() as u32).abs_diff(even);
                assert!(off <= 2 + even / 20, "{} of {slots} in step {step}", pinged.len());
            }
            for interval in pings[20..].chunks_exact(40) {
                let mut pinged: Vec<u32> = interval.iter().flatten().copied().collect();
                pinged.sort_unstable();
                pinged.dedup();
                assert_eq!(pinged.len(), slots as usize, "everybody in every interval");
            }
        }
    }

    #[test]
    fn who_falls_silent_is_pinged_within_half_an_interval_and_one() {
        // Each says something once, at some step.
        let last = |slot: u32| 50 + slot * 7 % 113;
        let pings = pings(300, 20 * STEP, 300, |slot, step| step == last(slot));
        for slot in 0..300 {
            // `says` comes after the visits of its step, and steps are counted from 1.
            let after = pings.iter().skip(last(slot) as usize).position(|p| p.contains(&slot));
            let silence = after.expect("it is pinged") + 1;
            assert!((20..=41).contains(&silence), "slot {slot} after {silence} steps");
        }
    }

    #[test]
    fn who_talks_is_not_pinged() {
        assert!(pings(300, 20 * STEP, 300, |_, step| step % 19 == 0).iter().all(Vec::is_empty));
    }
}
