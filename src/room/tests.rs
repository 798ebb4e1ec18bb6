//! A room against a model: whatever order of joins, leaves, publishes, sweeps, short sends, blocked
//! sockets and time, under whatever policy: every member gets exactly the frames since it joined,
//! in order, but for those that it is said not to get; and the log is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::segment::SEGMENT_BYTES;
use super::*;
use crate::protocol::frame::{Opcode, encode_frame, frame_len};

#[derive(Debug, Clone)]
enum Step {
    Join,
    Leave(usize),
    Publish { bytes: usize, count: usize },
    Block(usize),
    Unblock(usize),
    Sweep { budget: usize, short: Option<(usize, usize)> },
    Wait(u64),
    Policy(Policy),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Join),
        2 => any::<usize>().prop_map(Step::Leave),
        4 => (8..300_usize, 1..5_usize).prop_map(|(bytes, count)| Step::Publish { bytes, count }),
        1 => (70_000..90_000_usize).prop_map(|bytes| Step::Publish { bytes, count: 1 }),
        1 => any::<usize>().prop_map(Step::Block),
        1 => any::<usize>().prop_map(Step::Unblock),
        8 => (1..6_usize, prop::option::of((any::<usize>(), any::<usize>())))
            .prop_map(|(budget, short)| Step::Sweep { budget, short }),
        1 => (1..100_u64).prop_map(Step::Wait),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let slow_consumer = prop::sample::select(vec![
        SlowConsumer::Disconnect,
        SlowConsumer::SkipToNewest,
        SlowConsumer::DropOldest,
    ]);
    let mark = prop::sample::select(vec![100, 1000, 5000, 1 << 40]);
    let age_max = prop::option::of(Just(Duration::from_millis(50)));
    (slow_consumer, mark, age_max).prop_map(|(slow_consumer, high_water_mark, age_max)| Policy {
        slow_consumer,
        high_water_mark,
        age_max,
    })
}

/// A room, and for each member the offset that it must get next.
struct World {
    room: Room<()>,
    segments: SegmentPool,
    now: Instant,
    /// All frames; the first has the offset 1.
    frames: Vec<Bytes>,
    index: BTreeMap<u32, u32>,
    due: BTreeMap<u32, u64>,
    blocked: BTreeSet<u32>,
    next: u32,
    skipped: u64,
    disconnected: u64,
}

impl World {
    fn new(policy: Policy) -> Self {
        let mut table = RoomTable::default();
        let name = RoomName::new(NameSpace::Raw, "room");
        let key = table.insert(name, ShardId(0), policy);
        Self {
            room: table.remove(key).expect("just added"),
            segments: SegmentPool::new(),
            now: Instant::now(),
            frames: Vec::new(),
            index: BTreeMap::new(),
            due: BTreeMap::new(),
            blocked: BTreeSet::new(),
            next: 0,
            skipped: 0,
            disconnected: 0,
        }
    }

    fn pick(&self, n: usize) -> Option<u32> {
        self.index.keys().nth(n % self.index.len().max(1)).copied()
    }

    fn play(&mut self, step: &Step) {
        match *step {
            Step::Join => {
                let member = self.next;
                self.next += 1;
                self.index.insert(member, self.room.join(member));
                self.due.insert(member, self.room.log.offset() + 1);
            }
            Step::Leave(n) => {
                let Some(member) = self.pick(n) else { return };
                self.leave(member);
            }
            Step::Publish { bytes, count } => {
                let mut out = BytesMut::new();
                for _ in 0..count {
                    let mut frame = BytesMut::new();
                    let offset = self.frames.len() as u64 + 1;
                    let payload = [&offset.to_be_bytes()[..], &vec![7; bytes - 8]].concat();
                    encode_frame(Opcode::Binary, &payload, &mut frame);
                    out.extend_from_slice(&frame);
                    self.frames.push(frame.freeze());
                }
                self.room.log.append(out.freeze(), self.frames.len() as u64, self.now);
            }
            Step::Block(n) => self.blocked.extend(self.pick(n)),
            Step::Unblock(n) => {
                let Some(member) = self.pick(n) else { return };
                if self.blocked.remove(&member) {
                    self.catch_up(member);
                }
            }
            Step::Sweep { budget, short } => {
                self.sweep(budget, short);
            }
            Step::Policy(policy) => self.room.set_policy(policy),
            Step::Wait(ms) => self.now += Duration::from_millis(ms),
        }
        for (&member, &index) in &self.index {
            assert_eq!(self.room.member(index).connection, member, "the index is true");
        }
        assert_eq!(self.room.members().len(), self.index.len());
    }

    fn leave(&mut self, member: u32) {
        let at = self.index.remove(&member).expect("a member");
        let index = &mut self.index;
        self.room.leave(at, |connection, to| {
            index.insert(connection, to);
        });
        self.blocked.remove(&member);
    }

    /// A member takes whole frames.
    fn take(&mut self, member: u32, mut bytes: &[u8]) {
        let due = self.due.get_mut(&member).expect("joined");
        while !bytes.is_empty() {
            let (frame, rest) = bytes.split_at(frame_len(bytes).expect("a whole header"));
            assert_eq!(frame, self.frames[*due as usize - 1], "{member} gets offset {due} next");
            *due += 1;
            bytes = rest;
        }
    }

    fn catch_up(&mut self, member: u32) {
        let index = self.index[&member];
        if self.room.is_too_slow(index, self.now) {
            self.disconnected += 1;
            return self.leave(member);
        }
        let (due, newest) = (self.due[&member], self.frames.len() as u64);
        let missed = self.room.skip(index, self.now);
        if !missed.is_empty() {
            assert_eq!(missed.start, due, "what it misses is what it would get next");
            self.due.insert(member, missed.end);
            self.skipped += missed.end - missed.start;
            // With another policy before, the newest may have been too old.
            if self.room.policy.slow_consumer == SlowConsumer::SkipToNewest
                && !self.room.log.is_empty()
            {
                assert_eq!(missed.end, newest);
            }
        }
        let cursor = self.room.member(index).cursor;
        for bytes in self.room.log.from(cursor).collect::<Vec<_>>() {
            self.take(member, &bytes);
        }
        self.room.set_cursor(index, self.room.log.head());
        self.room.catch_up(index);
    }

    /// One visit; `short` picks one of its sends and how much of it is taken: that socket is full
    /// from then on. Returns how many were sent to.
    fn sweep(&mut self, budget: usize, short: Option<(usize, usize)>) -> usize {
        let mut sent: Vec<(u32, u64, Bytes)> = Vec::new();
        let mut too_slow = Vec::new();
        let (blocked, now) = (&self.blocked, self.now);
        let visit = |member: &Member, bytes: &Bytes, from| {
            if blocked.contains(&member.connection) {
                return Visit::Blocked;
            }
            assert!(sent.iter().all(|(other, ..)| *other != member.connection), "once per visit");
            sent.push((member.connection, member.cursor, bytes.slice(from..)));
            Visit::Sent
        };
        let delivered = self.room.advance(&mut self.segments, budget, now, &mut too_slow, visit);
        let messages = sent.iter().map(|(.., bytes)| frames_in(bytes)).sum::<u64>();
        assert_eq!((delivered.sends, delivered.messages), (sent.len(), messages));
        let delivered = delivered.sends;
        assert!(delivered + too_slow.len() <= budget);
        let short = short.map(|(which, taken)| (which % sent.len().max(1), taken));
        for (n, (member, cursor, bytes)) in sent.into_iter().enumerate() {
            match short {
                Some((which, taken)) if which == n => {
                    let taken = taken % bytes.len();
                    let (next, rest) = self.room.log.split(cursor, taken);
                    self.take(member, &[&bytes[..taken], &rest].concat());
                    self.room.fall_behind(self.index[&member], next);
                    self.blocked.insert(member);
                }
                _ => self.take(member, &bytes),
            }
        }
        for member in too_slow {
            assert!(self.blocked.contains(&member), "{member} takes what it is sent");
            self.disconnected += 1;
            self.leave(member);
        }
        delivered
    }

    /// Sweeps until there is nothing to do.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.room.is_due() {
                return;
            }
            self.sweep(3, None);
        }
        panic!("the sweep comes to an end");
    }

    /// What the log may hold while nobody is served: one slice may lie across the floor.
    fn check_bound(&self) {
        let largest = self.frames.iter().map(Bytes::len).max().unwrap_or(0);
        let bytes_max = self.room.policy.high_water_mark + largest.max(SEGMENT_BYTES) as u64;
        assert!(self.room.log.len() <= bytes_max, "{} bytes are kept", self.room.log.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn every_member_gets_every_frame_once_or_is_told(
        policy in policy(),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(policy);
        for step in &steps {
            world.play(step);
        }
        world.settle();
        world.check_bound();
        for member in std::mem::take(&mut world.blocked) {
            world.catch_up(member);
        }
        world.settle();
        prop_assert_eq!(world.room.lag(), 0);
        prop_assert!(world.room.log.is_empty(), "and keeps nothing");
        for member in world.index.keys() {
            prop_assert_eq!(world.due[member], world.frames.len() as u64 + 1);
        }
        let skips = policy.slow_consumer != SlowConsumer::Disconnect;
        prop_assert!(skips || world.skipped == 0);
        prop_assert!(!skips || world.disconnected == 0);
        let roomy = policy.high_water_mark == 1 << 40 && policy.age_max.is_none();
        prop_assert!(!roomy || world.skipped + world.disconnected == 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn a_policy_may_change_at_any_time(
        first in policy(),
        steps in prop::collection::vec(
            prop_oneof![8 => step(), 1 => policy().prop_map(Step::Policy)],
            1..120,
        ),
    ) {
        let mut world = World::new(first);
        for step in &steps {
            world.play(step);
        }
        world.settle();
        world.check_bound();
        for member in std::mem::take(&mut world.blocked) {
            world.catch_up(member);
        }
        world.settle();
        prop_assert!(world.room.log.is_empty(), "it keeps nothing");
        for member in world.index.keys() {
            prop_assert_eq!(world.due[member], world.frames.len() as u64 + 1);
        }
    }
}

/// Ten messages of 100 bytes on the wire, the first eight before a pause of 10 s, and one member
/// that has taken none of them.
#[track_caller]
fn skips(slow_consumer: SlowConsumer, mark: u64, age_s: Option<u64>, expected: Range<u64>) {
    let policy =
        Policy { slow_consumer, high_water_mark: mark, age_max: age_s.map(Duration::from_secs) };
    let mut world = World::new(policy);
    world.play(&Step::Join);
    world.play(&Step::Block(0));
    for number in 0..10 {
        if number == 8 {
            world.play(&Step::Wait(10_000));
        }
        world.play(&Step::Publish { bytes: 98, count: 1 });
        world.settle();
        world.check_bound();
    }
    assert_eq!(world.room.skip(0, world.now), expected, "{policy:?}");
}

#[test]
fn a_slow_consumer_skips_what_its_policy_says() {
    use SlowConsumer::{DropOldest, SkipToNewest};
    let nothing = 0..0;
    skips(DropOldest, 1000, None, nothing.clone());
    skips(DropOldest, 999, None, 1..2);
    skips(DropOldest, 500, None, 1..6);
    skips(DropOldest, 499, None, 1..7);
    // The newest message is kept even if it is larger than the mark.
    skips(DropOldest, 99, None, 1..10);
    skips(DropOldest, 1000, Some(11), nothing.clone());
    skips(DropOldest, 1000, Some(9), 1..9);
    skips(DropOldest, 150, Some(9), 1..10);
    skips(DropOldest, 150, Some(11), 1..10);
    skips(SkipToNewest, 1000, None, nothing.clone());
    skips(SkipToNewest, 999, None, 1..10);
    skips(SkipToNewest, 99, None, 1..10);
    skips(SkipToNewest, 1000, Some(11), nothing);
    skips(SkipToNewest, 1000, Some(9), 1..10);
}

#[test]
fn what_is_too_old_is_not_sent_but_for_the_newest() {
    for (slow_consumer, expected) in
        [(SlowConsumer::DropOldest, 1..4), (SlowConsumer::SkipToNewest, 1..3)]
    {
        let policy =
            Policy { slow_consumer, high_water_mark: 1000, age_max: Some(Duration::from_secs(5)) };
        let mut world = World::new(policy);
        world.play(&Step::Join);
        world.play(&Step::Block(0));
        world.play(&Step::Publish { bytes: 98, count: 3 });
        world.settle();
        // No sweep comes by meanwhile.
        world.play(&Step::Wait(5001));
        assert_eq!(world.room.skip(0, world.now), expected);
        assert_eq!(world.room.skip(0, world.now), 0..0, "once is enough");
    }
}

fn frames_in(mut bytes: &[u8]) -> u64 {
    let mut count = 0;
    while let Some(len) = frame_len(bytes) {
        bytes = &bytes[len..];
        count += 1;
    }
    count
}

#[test]
fn what_comes_in_the_middle_of_a_round_is_with_everybody_a_round_later() {
    let policy =
        Policy { slow_consumer: SlowConsumer::Disconnect, high_water_mark: 1 << 40, age_max: None };
    let mut world = World::new(policy);
    for _ in 0..10 {
        world.play(&Step::Join);
    }
    // While a message comes with every step, whoever is visited gets all of them in one send.
    let mut sends = 0;
    for _ in 0..50 {
        world.play(&Step::Publish { bytes: 20, count: 1 });
        sends += world.sweep(2, None);
        let newest = world.frames.len() as u64;
        let behind = world.due.values().map(|due| newest + 1 - due).max();
        assert!(behind <= Some(5), "{behind:?} messages wait for ten members");
    }
    assert_eq!(sends, 100);
    world.settle();
    assert_eq!(world.room.lag(), 0);
}

#[test]
fn what_is_kept_ages_although_nothing_more_comes() {
    const AGE: Duration = Duration::from_secs(8);
    for (slow_consumer, kept) in [
        (SlowConsumer::Disconnect, 0),
        (SlowConsumer::DropOldest, 0),
        // The newest is never too old.
        (SlowConsumer::SkipToNewest, 100),
    ] {
        let policy = Policy { slow_consumer, high_water_mark: 1 << 40, age_max: Some(AGE) };
        let mut world = World::new(policy);
        world.play(&Step::Join);
        world.play(&Step::Block(0));
        world.play(&Step::Publish { bytes: 98, count: 1 });
        world.settle();
        let due = world.room.ages_at(world.now);
        assert_eq!(due, Some(world.now + AGE));
        world.now += AGE + Duration::from_millis(1);
        assert!(!world.room.is_due(), "{policy:?}");
        world.room.age();
        world.settle();
        assert_eq!(world.room.log.len(), kept, "{policy:?}");
        let disconnects = slow_consumer == SlowConsumer::Disconnect;
        assert_eq!(
            (world.disconnected > 0, world.room.members().is_empty()),
            (disconnects, disconnects)
        );
        let again = world.room.ages_at(world.now);
        assert_eq!(again, (kept > 0).then_some(world.now + AGE / 8), "{policy:?}");
    }
}
