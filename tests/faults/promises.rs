//! What must hold whatever happens: a room whose members hold what they hear against the promises,
//! and a server that ends up with the descriptors and the memory it had.

use std::{net::SocketAddr, thread};

use tungstenite::Message;

use crate::support::{Client, Reply, Server, wait_until};

/// How much more memory may be resident after the first round of a fault: what is made once and
/// stays, as receive buffers (up to 1 MiB a shard) and segments.
const STAYS: u64 = 8 << 20;
/// How much more after each further round than after the first: a burst may be deeper than those
/// before it. Whoever leaves something behind leaves it for each of hundreds of connections.
const GROWS: u64 = 2 << 20;
/// Messages that a member publishes before it waits for their acknowledgements.
const BURST: usize = 16;

/// A room with members that all publish and all listen.
pub(crate) struct Room {
    members: Vec<Member>,
}

/// One of them, on `/ws`.
struct Member {
    client: Client,
    /// The room's offset when it joined.
    joined: u64,
    /// The content of every broadcast since, in the order in which they came.
    heard: Vec<String>,
    /// What it has published, in that order, with the offset that was acknowledged.
    said: Vec<(String, Option<u64>)>,
    acknowledged: usize,
}

impl Room {
    /// A room called `name`, to be joined by `clients`.
    pub(crate) fn of(name: &str, clients: impl IntoIterator<Item = Client>) -> Room {
        let join = |(number, mut client): (usize, Client)| {
            let joined = client.join_room(name, &number.to_string());
            Member { client, joined, heard: Vec::new(), said: Vec::new(), acknowledged: 0 }
        };
        Room { members: clients.into_iter().enumerate().map(join).collect() }
    }

    /// A room with two members on this host.
    pub(crate) fn near(name: &str, address: SocketAddr) -> Room {
        Room::of(name, [(); 2].map(|()| Client::connect(address, "/ws")))
    }

    /// Everybody publishes `each` messages of about `len` bytes, and has to get all that everybody
    /// publishes.
    pub(crate) fn talk(&mut self, name: &str, each: usize, len: usize) {
        self.talk_while(name, each, len, || {});
    }

    /// The same, while the calling thread runs `meanwhile`.
    pub(crate) fn talk_while(
        &mut self,
        name: &str,
        each: usize,
        len: usize,
        meanwhile: impl FnOnce(),
    ) {
        let talks = (self.members.len() * each) as u64;
        let end = self.members[0].offset() + talks;
        thread::scope(|scope| {
            for (number, member) in self.members.iter_mut().enumerate() {
                scope.spawn(move || member.talk(name, number, each, len, end));
            }
            meanwhile();
        });
        self.check();
    }

    /// One order for all, without gap or duplicate, and in it what was acknowledged, where it was
    /// said to be.
    fn check(&self) {
        let first = self.members.iter().min_by_key(|member| member.joined).expect("a member");
        for (number, member) in self.members.iter().enumerate() {
            let common = &first.heard[(member.joined - first.joined) as usize..];
            assert!(member.heard == common, "member {number} heard otherwise than the others");
            let mut last = 0;
            for (content, offset) in &member.said {
                let offset = offset.expect("everything is acknowledged");
                assert!(offset > last, "member {number}: {content} before what it said earlier");
                last = offset;
                let heard = &first.heard[(offset - first.joined - 1) as usize];
                assert_eq!(heard, content, "at offset {offset}, as member {number} was told");
            }
        }
    }
}

impl Member {
    /// The offset of the last broadcast that it heard.
    fn offset(&self) -> u64 {
        self.joined + self.heard.len() as u64
    }

    fn talk(&mut self, name: &str, number: usize, each: usize, len: usize, end: u64) {
        let padding = "x".repeat(len);
        let goal = self.said.len() + each;
        while self.offset() < end || self.acknowledged < goal {
            if self.acknowledged == self.said.len() && self.said.len() < goal {
                for _ in 0..BURST.min(goal - self.said.len()) {
                    let id = self.said.len();
                    let content = format!(r#""{number}/{id} {padding}""#);
                    self.client.queue(Message::text(format!(
                        r#"{{"type":"broadcast","room_id":"{name}","id":{id},"content":{content}}}"#
                    )));
                    self.said.push((content, None));
                }
                self.client.flush();
            }
            self.take();
        }
    }

    /// Takes the next message: a broadcast with the next offset, an acknowledgement of something it
    /// has published and that was not acknowledged before, or a ping.
    fn take(&mut self) {
        let reply = match self.client.receive() {
            Message::Text(text) => Reply::parse(text.as_str()),
            Message::Ping(_) => return,
            other => panic!("neither a broadcast nor an acknowledgement: {other:?}"),
        };
        match reply.kind.as_str() {
            "broadcast" => {
                assert_eq!(reply.offset, Some(self.offset() + 1), "the next offset");
                self.heard.push(reply.content.expect("a broadcast has content"));
            }
            "ack" => {
                let id = reply.id.as_deref().and_then(|id| id.parse::<usize>().ok());
                assert_eq!(id, Some(self.acknowledged), "acknowledgements come in order");
                self.said[self.acknowledged].1 = reply.offset;
                self.acknowledged += 1;
            }
            _ => panic!("neither a broadcast nor an acknowledgement: {reply:?}"),
        }
    }
}

/// Puts the server through `fault` so many times. After each it must hold the descriptors that it
/// held before, and give back the memory: all but [`STAYS`], and further ones all but [`GROWS`].
pub(crate) fn endure(server: &Server, rounds: usize, mut fault: impl FnMut(usize)) {
    // The first connection makes it open something that it keeps.
    Client::connect(server.address(), "/raw/warm").close();
    let descriptors = server.settled_descriptors();
    let mut most = server.settled_rss_bytes() + STAYS;
    for round in 0..rounds {
        fault(round);
        server.wait_descriptors(descriptors, &format!("after round {round}"));
        wait_until(&format!("at most {most} bytes are resident after round {round}"), || {
            server.rss_bytes() <= most
        });
        if round == 0 {
            most = server.rss_bytes() + GROWS;
        }
    }
}
