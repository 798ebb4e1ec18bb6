//! What must hold, whatever happens: the order of every room, seen through its members.
//!
//! Peers report what they publish and what they are delivered. Each publish has an id that is
//! unique in the world. All members of a room must agree on what follows what: so a publish has
//! one predecessor and one successor, the same for everybody, and in a native room one offset. A
//! chain ends when its room does; a new room of the same name begins another one.

use std::collections::{BTreeMap, BTreeSet};

/// A room: its name space and its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Room {
    pub(super) raw: bool,
    pub(super) number: usize,
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
    /// It is certain that everybody who was there gets it.
    acknowledged: bool,
    before: Option<usize>,
    after: Option<usize>,
}

/// One stay of one peer in one room.
#[derive(Debug)]
pub(super) struct Session {
    room: Room,
    /// The offset of the next delivery; native rooms only.
    expected: Option<u64>,
    last: Option<usize>,
    seen: BTreeSet<usize>,
    /// Sequence number of the last publish of each publisher.
    sequences: BTreeMap<usize, u64>,
    /// It is a member still, and reads.
    active: bool,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Checker {
    pub(super) publishes: Vec<Publish>,
    sessions: Vec<Session>,
    pub(super) delivered: u64,
}

impl Checker {
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
            acknowledged: false,
            before: None,
            after: None,
        });
        self.publishes.len() - 1
    }

    /// A peer has been told that it is a member, from behind `offset` on.
    pub(super) fn join(&mut self, room: Room, offset: Option<u64>) -> usize {
        self.sessions.push(Session {
            room,
            expected: offset.map(|offset| offset + 1),
            last: None,
            seen: BTreeSet::new(),
            sequences: BTreeMap::new(),
            active: true,
        });
        self.sessions.len() - 1
    }

    /// The peer left, or is about to end: what it misses from now on does not count.
    pub(super) fn end(&mut self, session: usize) {
        self.sessions[session].active = false;
    }

    pub(super) fn deliver(&mut self, session: usize, id: usize, offset: Option<u64>) {
        self.delivered += 1;
        let number = session;
        let session = &mut self.sessions[session];
        let publish = self.publishes.get_mut(id).expect("delivers what nobody published");
        assert_eq!(publish.room, session.room, "publish {id} comes to the wrong room");
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
            assert_eq!(publish.sequence, last + 1, "publisher {publisher}: a gap or a repetition");
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
        assert!(!publish.acknowledged, "publish {id} is acknowledged twice");
        publish.acknowledged = true;
    }

    /// The server says that nobody was in the room: whoever was there all the time disagrees.
    pub(super) fn publish_to_nobody(&mut self, id: usize) {
        self.publishes[id].acknowledged = true;
    }

    /// All is quiet: every member must have everything that was published since it joined.
    /// `intact` says which publishers are connected and have got everything through.
    pub(super) fn check_complete(&self, intact: impl Fn(usize) -> bool) {
        for (number, session) in self.sessions.iter().enumerate().filter(|(_, s)| s.active) {
            if let Some(last) = session.last {
                let after = self.publishes[last].after;
                assert_eq!(after, None, "session {number} was left behind publish {last}");
            }
            for (id, publish) in self.publishes.iter().enumerate() {
                let owed = publish.room == session.room
                    && publish.at > number
                    && (publish.acknowledged || intact(publish.publisher));
                assert!(
                    !owed || session.seen.contains(&id),
                    "publish {id} of {} never came to session {number}",
                    publish.publisher
                );
            }
        }
    }
}
