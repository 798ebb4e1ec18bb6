//! A room against a model: whatever order of joins, leaves, publishes, sweeps, short sends and
//! blocked sockets, every member gets exactly the frames since it joined.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::protocol::frame::{Opcode, encode_frame};

#[derive(Debug, Clone)]
enum Step {
    Join,
    Leave(usize),
    Publish { bytes: usize, count: usize },
    Block(usize),
    Unblock(usize),
    Sweep { budget: usize, short: Option<(usize, usize)> },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Join),
        2 => any::<usize>().prop_map(Step::Leave),
        4 => (0..300_usize, 1..5_usize).prop_map(|(bytes, count)| Step::Publish { bytes, count }),
        1 => (70_000..90_000_usize).prop_map(|bytes| Step::Publish { bytes, count: 1 }),
        1 => any::<usize>().prop_map(Step::Block),
        1 => any::<usize>().prop_map(Step::Unblock),
        8 => (1..6_usize, prop::option::of((any::<usize>(), any::<usize>())))
            .prop_map(|(budget, short)| Step::Sweep { budget, short }),
    ]
}

/// A room, and for each member what it should have got and what it has got.
struct World {
    room: Room<()>,
    segments: SegmentPool,
    index: BTreeMap<u32, u32>,
    expected: BTreeMap<u32, Vec<u8>>,
    got: BTreeMap<u32, Vec<u8>>,
    blocked: BTreeSet<u32>,
    next: u32,
}

impl World {
    fn new() -> Self {
        let mut table = RoomTable::default();
        let name = RoomName::new(NameSpace::Raw, "room");
        let key = table.insert(name, ShardId(0));
        Self {
            room: table.remove(key).expect("just added"),
            segments: SegmentPool::new(),
            index: BTreeMap::new(),
            expected: BTreeMap::new(),
            got: BTreeMap::new(),
            blocked: BTreeSet::new(),
            next: 0,
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
                self.expected.insert(member, Vec::new());
                self.got.insert(member, Vec::new());
            }
            Step::Leave(n) => {
                let Some(member) = self.pick(n) else { return };
                let at = self.index.remove(&member).expect("picked");
                let index = &mut self.index;
                self.room.leave(at, |connection, to| {
                    index.insert(connection, to);
                });
                self.blocked.remove(&member);
            }
            Step::Publish { bytes, count } => {
                let mut out = BytesMut::new();
                for n in 0..count {
                    encode_frame(Opcode::Binary, &vec![n as u8; bytes], &mut out);
                }
                let frames = out.freeze();
                self.room.log.append(frames.clone());
                for member in self.index.keys() {
                    self.expected.get_mut(member).expect("joined").extend_from_slice(&frames);
                }
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
        }
        for (&member, &index) in &self.index {
            assert_eq!(self.room.member(index).connection, member, "the index is true");
        }
        assert_eq!(self.room.members().len(), self.index.len());
    }

    fn catch_up(&mut self, member: u32) {
        let index = self.index[&member];
        let cursor = self.room.member(index).cursor;
        for bytes in self.room.log.from(cursor).collect::<Vec<_>>() {
            self.got.get_mut(&member).expect("joined").extend_from_slice(&bytes);
        }
        self.room.set_cursor(index, self.room.log.head());
        self.room.settle();
    }

    /// One visit; `short` picks one of its sends and how much of it is taken: that socket is full
    /// from then on. Returns how many were sent to.
    fn sweep(&mut self, budget: usize, short: Option<(usize, usize)>) -> usize {
        let mut sent: Vec<(u32, u64, Bytes)> = Vec::new();
        let blocked = &self.blocked;
        let delivered = self.room.advance(&mut self.segments, budget, |member, bytes, from| {
            if blocked.contains(&member.connection) {
                return Visit::Blocked;
            }
            assert!(sent.iter().all(|(other, ..)| *other != member.connection), "once per visit");
            sent.push((member.connection, member.cursor, bytes.slice(from..)));
            Visit::Sent
        });
        assert_eq!(delivered, sent.len());
        assert!(delivered <= budget);
        let short = short.map(|(which, taken)| (which % sent.len().max(1), taken));
        for (n, (member, cursor, bytes)) in sent.into_iter().enumerate() {
            let got = self.got.get_mut(&member).expect("joined");
            match short {
                Some((which, taken)) if which == n => {
                    let taken = taken % bytes.len();
                    let (next, rest) = self.room.log.split(cursor, taken);
                    got.extend_from_slice(&bytes[..taken]);
                    got.extend_from_slice(&rest);
                    self.room.set_cursor(self.index[&member], next);
                    self.room.sweep.rewind(next);
                    self.blocked.insert(member);
                }
                _ => got.extend_from_slice(&bytes),
            }
        }
        delivered
    }
}

proptest! {
    #[test]
    fn every_member_gets_every_frame_once(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in &steps {
            world.play(step);
        }
        for member in std::mem::take(&mut world.blocked) {
            world.catch_up(member);
        }
        for _ in 0..10_000 {
            if !world.room.is_due() {
                break;
            }
            world.sweep(3, None);
        }
        prop_assert!(!world.room.is_due(), "the sweep comes to an end");
        prop_assert_eq!(world.room.lag(), 0);
        prop_assert!(world.room.log.is_empty(), "and keeps nothing");
        for member in world.index.keys() {
            prop_assert_eq!(&world.got[member], &world.expected[member]);
        }
    }
}
