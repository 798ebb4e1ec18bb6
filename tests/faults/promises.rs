//! What must hold whatever happens: rooms whose members hold what they hear against the promises,
//! and a server that ends up with the connections, the descriptors and the memory it had.

use std::{net::SocketAddr, thread};

use tungstenite::Message;

use crate::support::{Client, Reply, Server, wait_until};

/// How much more memory may be resident after the first round of a fault: what is made once and
/// stays, as receive buffers (up to 1 MiB a shard) and segments (up to 2 MiB a shard), and what the
/// allocator keeps of what three rooms have held for a member that was cut off, 1.3 MB each on both
/// shards. With a bound of 8 MiB one run of five failed.
const STAYS: u64 = 16 << 20;
/// How much more after each further round than after the first: a burst may be deeper than those
/// before it. Whoever leaves something behind leaves it for each of hundreds of connections.
const GROWS: u64 = 4 << 20;
/// Messages that a member publishes before it waits for their acknowledgements.
const BURST: usize = 16;

/// What every server of these tests is told, for the rooms that skip.
pub(crate) const POLICY: &str = "--room-policy=*-skipping=skip-to-newest/64KiB";

/// A room of each kind, with members that all publish and all listen.
pub(crate) struct Rooms {
    rooms: Vec<Room>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of `/ws`: every message, or the end of the connection.
    Native,
    /// Of `/ws` under [`POLICY`]: a member may miss messages, and is told which.
    Skipping,
    /// Of `/raw`: messages without offsets. What a member said is acknowledged by coming back.
    Raw,
}

struct Room {
    kind: Kind,
    name: String,
    members: Vec<Member>,
}

/// A member of one of them.
struct Member {
    client: Client,
    /// The room's offset when it joined.
    joined: u64,
    /// The content of every message since, in the order in which they came; `None` for one that it
    /// has missed, and was told so.
    heard: Vec<Option<String>>,
    /// What it has published, in that order, with the offset that was acknowledged.
    said: Vec<(String, Option<u64>)>,
    acknowledged: usize,
}

impl Rooms {
    /// Rooms called after `name`; `open` opens the connections of each, to the path it is given.
    pub(crate) fn of(name: &str, mut open: impl FnMut(&str) -> Vec<Client>) -> Rooms {
        let rooms = [
            Room::join(Kind::Native, name.to_owned(), open("/ws")),
            Room::join(Kind::Skipping, format!("{name}-skipping"), open("/ws")),
            Room::join(Kind::Raw, name.to_owned(), open(&format!("/raw/{name}"))),
        ];
        Rooms { rooms: rooms.into() }
    }

    /// Rooms with two members each on this host.
    pub(crate) fn near(name: &str, address: SocketAddr) -> Rooms {
        Rooms::of(name, |path| [(); 2].map(|()| Client::connect(address, path)).into())
    }

    /// How many connections their members are.
    pub(crate) fn connections(&self) -> usize {
        self.rooms.iter().map(|room| room.members.len()).sum()
    }

    /// Everybody publishes `each` messages of about `len` bytes, and has to get all that everybody
    /// publishes.
    pub(crate) fn talk(&mut self, each: usize, len: usize) {
        self.talk_while(each, len, || {});
    }

    /// The same, while the calling thread runs `meanwhile`.
    pub(crate) fn talk_while(&mut self, each: usize, len: usize, meanwhile: impl FnOnce()) {
        thread::scope(|scope| {
            for Room { kind, name, members } in &mut self.rooms {
                let talks = (members.len() * each) as u64;
                let end = members[0].offset() + talks;
                let (kind, name) = (*kind, &**name);
                for (number, member) in members.iter_mut().enumerate() {
                    scope.spawn(move || member.talk(kind, name, number, each, len, end));
                }
            }
            meanwhile();
        });
        self.rooms.iter().for_each(Room::check);
    }
}

impl Room {
    fn join(kind: Kind, name: String, clients: Vec<Client>) -> Room {
        let join = |(number, mut client): (usize, Client)| {
            let user = number.to_string();
            // A raw member has joined when it hears itself, below.
            let joined = if kind == Kind::Raw { 0 } else { client.join_room(&name, &user) };
            Member { client, joined, heard: Vec::new(), said: Vec::new(), acknowledged: 0 }
        };
        let mut members: Vec<_> = clients.into_iter().enumerate().map(join).collect();
        if kind == Kind::Raw {
            for number in 0..members.len() {
                let hello = Message::text(format!("hello from {number}"));
                members[number].client.send(hello.clone());
                for member in &mut members[..=number] {
                    while member.client.receive() != hello {}
                }
            }
        }
        Room { kind, name, members }
    }

    /// One order for all, without duplicate, without a gap that nobody was told of, and in it what
    /// was acknowledged, where it was said to be.
    fn check(&self) {
        let name = &self.name;
        let first = self.members.iter().min_by_key(|member| member.joined).expect("a member");
        for (number, member) in self.members.iter().enumerate() {
            let common = &first.heard[(member.joined - first.joined) as usize..];
            assert_eq!(member.heard.len(), common.len(), "{name}: member {number} and another");
            assert!(matches!(member.heard.last(), None | Some(Some(_))), "{name}: not the newest");
            for (mine, theirs) in member.heard.iter().zip(common) {
                let same = mine == theirs || mine.is_none() || theirs.is_none();
                assert!(same, "{name}: member {number} heard {mine:?}, another {theirs:?}");
            }
            let mut last = 0;
            for (content, offset) in &member.said {
                let offset = offset.expect("everything is acknowledged");
                assert!(offset > last, "member {number}: {content} before what it said earlier");
                last = offset;
                if let Some(heard) = &first.heard[(offset - first.joined - 1) as usize] {
                    assert_eq!(heard, content, "at offset {offset}, as member {number} was told");
                }
            }
        }
    }
}

impl Member {
    /// The offset of the last message that it heard, or was told that it missed.
    fn offset(&self) -> u64 {
        self.joined + self.heard.len() as u64
    }

    fn talk(&mut self, kind: Kind, name: &str, number: usize, each: usize, len: usize, end: u64) {
        let padding = "x".repeat(len);
        let goal = self.said.len() + each;
        while self.offset() < end || self.acknowledged < goal {
            if self.acknowledged == self.said.len() && self.said.len() < goal {
                for _ in 0..BURST.min(goal - self.said.len()) {
                    let id = self.said.len();
                    let content = format!(r#""{number}/{id} {padding}""#);
                    self.client.queue(Message::text(match kind {
                        Kind::Raw => content.clone(),
                        Kind::Native | Kind::Skipping => format!(
                            r#"{{"type":"broadcast","room_id":"{name}","id":{id},"content":{content}}}"#
                        ),
                    }));
                    self.said.push((content, None));
                }
                self.client.flush();
            }
            self.take(kind);
        }
    }

    /// Takes the next message: one of the room with the next offset, an acknowledgement of
    /// something it has published and that was not acknowledged before, or a ping.
    fn take(&mut self, kind: Kind) {
        let text = match self.client.receive() {
            Message::Text(text) => text,
            Message::Ping(_) => return,
            other => panic!("neither a message nor an acknowledgement: {other:?}"),
        };
        if kind == Kind::Raw {
            self.heard.push(Some(text.as_str().to_owned()));
            let offset = self.offset();
            // Its own come in the order in which they were said: others in between.
            if let Some((said, at)) = self.said.get_mut(self.acknowledged)
                && *said == text.as_str()
            {
                *at = Some(offset);
                self.acknowledged += 1;
            }
            return;
        }
        let reply = Reply::parse(text.as_str());
        match reply.kind.as_str() {
            "broadcast" => {
                assert_eq!(reply.offset, Some(self.offset() + 1), "the next offset");
                self.heard.push(Some(reply.content.expect("a broadcast has content")));
            }
            "skipped" => {
                assert_eq!(kind, Kind::Skipping, "{reply:?}");
                assert_eq!(reply.from, Some(self.offset() + 1), "{reply:?}");
                let missed = reply.to.expect("skipped says to where") - self.offset();
                assert!(missed > 0, "{reply:?}");
                self.heard.extend((0..missed).map(|_| None));
            }
            "ack" => {
                let id = reply.id.as_deref().and_then(|id| id.parse::<usize>().ok());
                assert_eq!(id, Some(self.acknowledged), "acknowledgements come in order");
                self.said[self.acknowledged].1 = reply.offset;
                self.acknowledged += 1;
            }
            _ => panic!("neither a message nor an acknowledgement: {reply:?}"),
        }
    }
}

/// Puts the server through `fault` so many times. After each it must hold the connections, rooms
/// and descriptors that it held before, and give back the memory: all but [`STAYS`], and further
/// ones all but [`GROWS`].
pub(crate) fn endure(server: &Server, rounds: usize, mut fault: impl FnMut(usize)) {
    // The first connection makes it open something that it keeps.
    Client::connect(server.address(), "/raw/warm").close();
    let holds = || server.metrics(HELD);
    let descriptors = server.settled_descriptors();
    let held = holds();
    let mut most = server.settled_rss_bytes() + STAYS;
    for round in 0..rounds {
        fault(round);
        let again = format!("it holds {held:?} of {HELD:?} after round {round}");
        wait_until(&again, || holds() == held);
        let [buffers, segments] = server.metrics(["fanwire_receive_buffers", "fanwire_segments"]);
        assert!(buffers * (16 << 10) + segments * (64 << 10) <= STAYS, "{buffers} {segments}");
        server.wait_descriptors(descriptors, &format!("after round {round}"));
        wait_until(&format!("at most {most} bytes are resident after round {round}"), || {
            server.rss_bytes() <= most
        });
        if round == 0 {
            most = server.rss_bytes() + GROWS;
        }
    }
}

/// What a fault leaves as it was.
const HELD: [&str; 4] =
    ["fanwire_connections", "fanwire_rooms", "fanwire_members", "fanwire_partial_bytes"];
