//! What must hold, whatever happens: the order of every room, seen through its members.
//!
//! Peers report what they publish and what they are delivered. Each publish has an id that is
//! unique in the world. All members of a room must agree on what follows what: so a publish has
//! one predecessor and one successor, the same for everybody, and in a native room one offset. A
//! chain ends when its room does; a new room of the same name begins another one.
//!
//! In a room whose policy lets slow consumers skip messages, a native member may miss those that it
//! is told of, no other. A raw member is not told: there, order is all that members must agree on.

use std::collections::{BTreeMap, BTreeSet};

use super::directs::Directs;
use super::peer::ROOM_NAMES;
use crate::config::SlowConsumer;
use crate::id::{NameSpace, RoomName};

/// A room: its name space and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Room {
    pub(super) raw: bool,
    pub(super) number: usize,
}

impl Room {
    /// What the server calls it.
    pub(super) fn name(self) -> RoomName {
        let space = if self.raw { NameSpace::Raw } else { NameSpace::Native };
        RoomName::new(space, ROOM_NAMES[self.number])
    }
}

/// One message handed in once.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) room: Room,
    pub(super) publisher: usize,
    /// Counts the publishes of its publisher to this room.
    pub(super) sequence: u64,
    /// Exactly what members must be delivered: the message, or the `content`.
    pub(super) body: Vec<u8>,
    pub(super) binary: bool,
    pub(super) sender: String,
    /// How many memberships had begun in this world when it was handed in.
    at: usize,
    offset: Option<u64>,
    /// The server must not deliver it: it is refused, and its publisher is told so.
    refused: bool,
    /// It is certain that everybody who was there gets it: the how manieth of which that was said.
    acknowledged: Option<u64>,
    before: Option<usize>,
    after: Option<usize>,
}

/// One stay of one peer in one room.
#[derive(Debug)]
pub(super) struct Session {
    room: Room,
    peer: usize,
    /// The offset of the next delivery; native rooms only.
    expected: Option<u64>,
    /// The last delivery, if nothing was skipped since.
    last: Option<usize>,
    /// Offsets that it was told it misses.
    told: BTreeSet<u64>,
    seen: BTreeSet<usize>,
    /// Sequence number of the last publish of each publisher.
    sequences: BTreeMap<usize, u64>,
    /// It is a member still, and reads.
    active: bool,
    /// It did not see its end: what it missed then, nobody knows.
    cut: bool,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// By the number of the room.
    policies: Vec<SlowConsumer>,
    pub(super) publishes: Vec<Publish>,
    sessions: Vec<Session>,
    /// Publishes that were acknowledged so far, and those of them that nobody has looked at yet,
    /// with their offsets.
    pub(super) acknowledged: u64,
    fresh: Vec<(usize, u64)>,
    /// Those of peers that were refused.
    pub(super) refused: u64,
    pub(super) delivered: u64,
    /// Messages that native members were told they miss.
    pub(super) told: u64,
    /// Members that were closed by a drain with all they were owed.
    pub(super) farewells: u64,
    /// Connections that were cut although their peers did all they should.
    pub(super) overdue: u64,
    /// Joins that found no seat.
    pub(super) rooms_full: u64,
    /// Connections closed because there was no memory for what they had begun to say.
    pub(super) messages_without_room: u64,
    pub(super) directs: Directs,
    /// Somebody has ended who may have been a member without knowing it.
    pub(super) unseen: bool,
    /// In rooms where raw members may miss some: what came before what.
    order: BTreeSet<(usize, usize)>,
}

impl Checker {
    pub(super) fn new(policies: Vec<SlowConsumer>) -> Self {
        Self { policies, ..Self::default() }
    }

    fn skips(&self, room: Room) -> bool {
        self.policies[room.number] != SlowConsumer::Disconnect
    }

    /// A peer hands a message in; returns its id.
    pub(super) fn publish(&mut self, room: Room, publisher: usize, sequence: u64) -> usize {
        self.publishes.push(Publish {
            room,
            publisher,
            sequence,
            body: Vec::new(),
            binary: false,
            sender: String::new(),
            at: self.sessions.len(),
            offset: None,
            refused: false,
            acknowledged: None,
            before: None,
            after: None,
        });
        self.publishes.len() - 1
    }

    /// A peer hands in what is refused; returns its id.
    pub(super) fn publish_in_vain(&mut self, room: Room, publisher: usize) -> usize {
        let id = self.publish(room, publisher, 0);
        self.publishes[id].refused = true;
        id
    }

    /// A peer has been told that it is a member, from behind `offset` on.
    pub(super) fn join(&mut self, room: Room, peer: usize, offset: Option<u64>) -> usize {
        self.sessions.push(Session {
            room,
            peer,
            expected: offset.map(|offset| offset + 1),
            last: None,
            told: BTreeSet::new(),
            seen: BTreeSet::new(),
            sequences: BTreeMap::new(),
            active: true,
            cut: false,
        });
        self.sessions.len() - 1
    }

    /// The peer leaves: what it is not delivered from now on does not count.
    pub(super) fn end(&mut self, session: usize) {
        self.sessions[session].active = false;
    }

    /// The peer ends, or is about to: nor is it told any more what it misses.
    pub(super) fn cut(&mut self, session: usize) {
        self.end(session);
        self.sessions[session].cut = true;
    }

    /// The server says that the member does not get these offsets.
    pub(super) fn skip(&mut self, session: usize, from: u64, to: u64) {
        let session = &mut self.sessions[session];
        assert_ne!(self.policies[session.room.number], SlowConsumer::Disconnect, "nothing skips");
        assert_eq!(session.expected, Some(from), "{from} to {to}: a gap or a repetition");
        assert!(to >= from, "{from} to {to} is nothing");
        session.expected = Some(to + 1);
        session.last = None;
        session.told.extend(from..=to);
        self.told += to - from + 1;
    }

    pub(super) fn deliver(&mut self, session: usize, id: usize, offset: Option<u64>) {
        self.delivered += 1;
        let number = session;
        let skips = self.skips(self.sessions[session].room);
        let session = &mut self.sessions[session];
        let publish = self.publishes.get_mut(id).expect("delivers what nobody published");
        assert_eq!(publish.room, session.room, "publish {id} comes to the wrong room");
        assert!(!publish.refused, "publish {id} was refused, and comes");
        assert!(session.seen.insert(id), "publish {id} comes twice to session {number}");

        assert_eq!(offset, session.expected, "publish {id}: a gap or a repetition");
        session.expected = session.expected.map(|offset| offset + 1);
        if let Some(offset) = offset {
            let agreed = *publish.offset.get_or_insert(offset);
            assert_eq!(agreed, offset, "publish {id} has two offsets");
        }
        let last = session.sequences.insert(publish.publisher, publish.sequence);
        if let Some(last) = last {
            let publisher = publish.publisher;
            let follows = publish.sequence == last + 1 || (skips && publish.sequence > last);
            assert!(follows, "publisher {publisher}: a gap or a repetition");
        }
        if skips && publish.room.raw {
            self.order.extend(session.last.replace(id).map(|before| (before, id)));
            return;
        }
        if let Some(before) = session.last.replace(id) {
            let agreed = *publish.before.get_or_insert(before);
            assert_eq!(agreed, before, "members disagree on what comes before publish {id}");
            let agreed = *self.publishes[before].after.get_or_insert(id);
            assert_eq!(agreed, id, "members disagree on what comes after publish {before}");
        }
    }

    /// The server says which offset a publish got.
    pub(super) fn acknowledge(&mut self, id: usize, offset: u64) {
        let publish = &mut self.publishes[id];
        let agreed = *publish.offset.get_or_insert(offset);
        assert_eq!(agreed, offset, "publish {id} has another offset than its ack says");
        self.fresh.push((id, offset));
        self.note_acknowledged(id);
    }

    /// The server says that nobody was in the room: whoever was there all the time disagrees.
    pub(super) fn publish_to_nobody(&mut self, id: usize) {
        self.note_acknowledged(id);
    }

    fn note_acknowledged(&mut self, id: usize) {
        self.acknowledged += 1;
        let twice = self.publishes[id].acknowledged.replace(self.acknowledged);
        assert_eq!(twice, None, "publish {id} is acknowledged twice");
    }

    /// A publish that was acknowledged since this was last asked, and its offset.
    pub(super) fn take_acknowledged(&mut self) -> Option<(usize, u64)> {
        self.fresh.pop()
    }

    /// The peers that were told, before the publish was handed in, that they are members of its
    /// room, and are ever since, as far as they know.
    pub(super) fn witnesses(&self, id: usize) -> impl Iterator<Item = usize> {
        let publish = &self.publishes[id];
        let before = self.sessions[..publish.at].iter();
        before.filter(|it| it.active && it.room == publish.room).map(|session| session.peer)
    }

    /// All is quiet: of the direct messages nothing is missing, nothing was counted that was not.
    pub(super) fn check_directs(&self, intact: impl Fn(usize) -> bool) {
        self.directs.check(intact);
    }

    /// The server has drained a member's connection, which has read all: that is what had been
    /// acknowledged when it was closed, at least, and `acknowledged` publishes had been.
    pub(super) fn check_farewell(&mut self, number: usize, acknowledged: u64) {
        let session = &self.sessions[number];
        let Session { room, active, .. } = *session;
        if !active || (room.raw && self.skips(room)) {
            return;
        }
        self.farewells += 1;
        for (id, publish) in self.publishes.iter().enumerate() {
            let owed = publish.room == room
                && publish.at > number
                && publish.acknowledged.is_some_and(|at| at <= acknowledged);
            let told = publish.offset.is_some_and(|offset| session.told.contains(&offset));
            assert!(
                !owed || told || session.seen.contains(&id),
                "publish {id} was acknowledged before {number} was closed and never came to it"
            );
        }
    }

    /// All is quiet: every member must have everything that was published since it joined, or know
    /// what it misses. `intact` says which publishers are connected and got everything through.
    pub(super) fn check_complete(&self, intact: impl Fn(usize) -> bool) {
        for (number, session) in self.sessions.iter().enumerate().filter(|(_, s)| s.active) {
            if let Some(last) = session.last {
                let after = self.publishes[last].after;
                assert_eq!(after, None, "session {number} was left behind publish {last}");
            }
            let room = session.room;
            let others = self.sessions.iter().filter(|other| other.active && other.room == room);
            let furthest = others.clone().map(|other| other.expected).max().flatten();
            assert_eq!(session.expected, furthest, "session {number} was left behind others");
            if room.raw && self.policies[room.number] == SlowConsumer::SkipToNewest {
                let last = others
                    .filter_map(|other| other.last)
                    .all(|last| session.last.is_none_or(|own| own == last));
                assert!(last, "session {number} has not got the newest");
            }
            for (id, publish) in self.publishes.iter().enumerate() {
                let owed = publish.room == session.room
                    && publish.at > number
                    && !publish.refused
                    && (publish.acknowledged.is_some() || intact(publish.publisher));
                let told = self.skips(room)
                    && publish
                        .offset
                        .is_none_or(|offset| room.raw || session.told.contains(&offset));
                assert!(
                    !owed || told || session.seen.contains(&id),
                    "publish {id} of {} never came to session {number}",
                    publish.publisher
                );
            }
        }
        self.check_order();
    }

    /// Raw members that skip messages must agree on an order: what comes before what has no circle.
    fn check_order(&self) {
        let mut order = self.order.clone();
        loop {
            let behind: BTreeSet<usize> = order.iter().map(|&(_, after)| after).collect();
            let edges = order.len();
            // Takes out what nothing comes before.
            order.retain(|(before, _)| behind.contains(before));
            if order.len() == edges {
                break;
            }
        }
        assert!(order.is_empty(), "members disagree on the order of {order:?}");
    }

    /// All is quiet: the server has counted as skipped what members have missed. Returns whether
    /// that is known of all of them, and something was.
    ///
    /// Of what was published while a raw member joined nobody knows whether it came before, and of
    /// what somebody published who is gone, whether it came at all.
    pub(super) fn check_skipped(&self, counted: u64, intact: impl Fn(usize) -> bool) -> bool {
        let (mut missed, mut perhaps) = (self.told, 0);
        for (number, session) in self.sessions.iter().enumerate() {
            if session.active && session.room.raw && self.skips(session.room) {
                let all = self.publishes.iter().enumerate();
                let lost = all.filter(|(id, publish)| {
                    publish.room == session.room && !publish.refused && !session.seen.contains(id)
                });
                let (surely, others): (Vec<_>, Vec<_>) =
                    lost.partition(|(_, publish)| publish.at > number && intact(publish.publisher));
                missed += surely.len() as u64;
                perhaps += others.len() as u64;
            }
        }
        let known = !self.unseen && self.sessions.iter().all(|session| !session.cut);
        assert!(counted >= self.told, "{counted} are counted, {} were told", self.told);
        assert!(
            !known || (missed..=missed + perhaps).contains(&counted),
            "{counted} are counted, {missed} and perhaps {perhaps} more are missed"
        );
        known && counted > 0
    }
}
