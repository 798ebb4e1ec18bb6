//! What an acknowledgement means: every shard with members has been handed the message, and will
//! deliver it to who reads, even if the server drains right then.
//!
//! The worlds of seeds tick their shards whenever something is due. Here each shard ticks when it
//! is told to, so that one of them can be late by as much as it takes.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::panic::catch_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rtrb::Producer;

use super::net::{LinkHabits, Net, Read, SimIo};
use super::wire::{self, CLOSE, TEXT};
use crate::config::Limits;
use crate::dialect::publish::{Content, Publication};
use crate::id::{HomeHasher, NameSpace, RoomName, ShardId};
use crate::planted::{Bug, plant};
use crate::shard::message::Control;
use crate::shard::metrics::ShardMetrics;
use crate::shard::publisher::{Publisher, Ticket};
use crate::shard::{ControlEnds, Ends, Shard};
use crate::slab::Slab;

/// Messages that fit into a mailbox, and those that are published.
const MAILBOX: usize = 2;
const COUNT: u64 = 6;
/// The home of the room, where the publisher is, and the shard of the other member.
const HOME: usize = 0;
const OTHER: usize = 1;

struct World {
    net: Rc<RefCell<Net>>,
    shards: Vec<Shard<SimIo>>,
    controls: Vec<Producer<Control>>,
    backend: Publisher,
    room: String,
    /// Another one, whose home is there as well, and where nobody is at first.
    own_room: String,
    publisher: Peer,
    member: Peer,
}

/// A client whose link takes everything at once.
struct Peer {
    shard: usize,
    link: usize,
    input: Vec<u8>,
}

impl World {
    /// Both have joined.
    fn new() -> Self {
        Self::with_limits(Limits { mailbox_len_max: MAILBOX, ..Limits::default() })
    }

    fn with_limits(limits: Limits) -> Self {
        let limits = Arc::new(limits);
        let homes = HomeHasher::with_key(2, 0);
        let mut net = Net::new(0, false);
        (net.faults.receives_max, net.faults.short_receives) = (16, false);
        let net = Rc::new(RefCell::new(net));
        let (ends, ControlEnds { controls, publisher: backend, .. }) = Ends::mesh(&homes, &limits);
        let shard = |(shard, ends): (usize, Ends)| {
            net.borrow_mut().add_shard(1);
            let io = SimIo { net: Rc::clone(&net), shard, lent: Rc::new(Cell::new(0)) };
            Shard::new(io, 1, ends, Arc::clone(&limits), Arc::new(ShardMetrics::default()))
        };
        let shards = ends.into_iter().enumerate().map(shard).collect();
        let is_at_home = |name: &String| {
            homes.home(&RoomName::new(NameSpace::Native, name)) == ShardId::from(HOME)
        };
        let mut rooms = (0..100).map(|n| format!("r{n}")).filter(is_at_home);
        let [room, own_room] = [(); 2].map(|()| rooms.next().expect("every second one"));
        let peer = |shard| Peer { shard, link: 0, input: Vec::new() };
        let (publisher, member) = (peer(HOME), peer(OTHER));
        let mut world = Self { net, shards, controls, backend, room, own_room, publisher, member };
        world.tick_all();
        world.publisher.link = world.connect(HOME);
        world.member.link = world.connect(OTHER);
        world.tick_all();
        let join = join(&world.room);
        for of in [Self::publisher, Self::member] {
            world.with(of, |peer, net| {
                peer.read(net);
                assert_eq!(wire::take_head(&mut peer.input).expect("an answer").status, 101);
                peer.say(&join, net);
            });
        }
        world.tick_all();
        for of in [Self::publisher, Self::member] {
            assert!(world.hear(of).iter().any(|text| text.contains(r#""type":"joined""#)));
        }
        world
    }

    fn publisher(&mut self) -> &mut Peer {
        &mut self.publisher
    }

    fn member(&mut self) -> &mut Peer {
        &mut self.member
    }

    fn with<T>(
        &mut self,
        of: fn(&mut Self) -> &mut Peer,
        act: impl FnOnce(&mut Peer, &mut Net) -> T,
    ) -> T {
        let net = Rc::clone(&self.net);
        act(of(self), &mut net.borrow_mut())
    }

    fn connect(&mut self, shard: usize) -> usize {
        let max = 1 << 16;
        let habits = LinkHabits { to_server_max: max, to_client_max: max, unreliable: false };
        let mut net = self.net.borrow_mut();
        let link = net.connect(shard, habits);
        net.write(link, REQUEST);
        link
    }

    fn tick(&mut self, shard: usize) {
        self.net.borrow_mut().begin_tick(shard);
        self.shards[shard].tick();
    }

    /// Often enough for everything that is under way.
    fn tick_all(&mut self) {
        for _ in 0..20 {
            (HOME..=OTHER).for_each(|shard| self.tick(shard));
        }
    }

    /// Publishes message `number`, and lets the home alone work on it.
    fn publish(&mut self, number: u64) {
        self.ask_to_publish(number);
        // Receives, numbers, hands over; then its own mailbox.
        (0..4).for_each(|_| self.tick(HOME));
    }

    fn ask_to_publish(&mut self, number: u64) {
        let room = self.room.clone();
        self.with(Self::publisher, |peer, net| {
            let text = format!(
                r#"{{"type":"broadcast","room_id":"{room}","content":{number},"id":{number}}}"#
            );
            peer.say(&text, net);
        });
    }

    /// The same from outside.
    fn publish_from_outside(&mut self, number: u64) {
        self.publish_to(self.room.clone(), number);
    }

    fn publish_to(&mut self, room: String, number: u64) {
        let content = number.to_string();
        let content = Content::Native { content: &content, user_id: None };
        let publication = Publication { room_id: Cow::from(room), content };
        let ticket = Ticket { request: Slab::new().insert(()), item: number as u32 };
        let now = self.net.borrow().base;
        self.backend.publish(publication, ticket, now).expect("the shard takes it");
        (0..4).for_each(|_| self.tick(HOME));
    }

    /// The numbers of the messages from outside that were answered since this was last asked.
    fn answered(&mut self) -> Vec<u64> {
        let mut answered = Vec::new();
        self.backend.take_answers(|ticket, answer| {
            assert_eq!(answer, Ok(Some(u64::from(ticket.item))), "offsets count as they do");
            answered.push(u64::from(ticket.item));
        });
        answered
    }

    /// The texts that have come to somebody; a close is the text `close`.
    fn hear(&mut self, of: fn(&mut Self) -> &mut Peer) -> Vec<String> {
        self.with(of, |peer, net| {
            peer.read(net);
            let frames = std::iter::from_fn(|| wire::take_frame(&mut peer.input));
            let text = |frame: wire::Frame| match frame.opcode {
                CLOSE => "close".to_owned(),
                _ => String::from_utf8(frame.payload).expect("UTF-8"),
            };
            frames.map(text).collect()
        })
    }

    /// The numbers of the messages that were acknowledged since this was last asked.
    fn acknowledged(&mut self) -> Vec<u64> {
        numbers(&self.hear(Self::publisher), r#"{"type":"ack","id":"#)
    }
}

impl Peer {
    fn say(&self, text: &str, net: &mut Net) {
        let frame = wire::frame(true, TEXT, text.as_bytes(), [7; 4]);
        assert_eq!(net.write(self.link, &frame), frame.len(), "shard {}", self.shard);
    }

    fn read(&mut self, net: &mut Net) {
        if let Read::Bytes(bytes) = net.read(self.link, usize::MAX) {
            self.input.extend(bytes);
        }
    }
}

fn join(room: &str) -> String {
    format!(r#"{{"type":"join","room_id":"{room}"}}"#)
}

/// The number behind `start` in each of the texts that begin with it.
fn numbers(texts: &[String], start: &str) -> Vec<u64> {
    let number = |text: &String| {
        let digits = text.strip_prefix(start)?.split([',', '}']).next()?;
        Some(digits.parse().expect("a number"))
    };
    texts.iter().filter_map(number).collect()
}

fn contents(texts: &[String]) -> Vec<u64> {
    let content = |text: &String| text.split(r#""content":"#).nth(1).map(str::to_owned);
    numbers(&texts.iter().filter_map(content).collect::<Vec<_>>(), "")
}

const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// How a message is published, and how it is told which are acknowledged.
type Way = (fn(&mut World, u64), fn(&mut World) -> Vec<u64>);

const WAYS: [Way; 2] =
    [(World::publish, World::acknowledged), (World::publish_from_outside, World::answered)];

#[test]
fn sim_acknowledged_is_handed_to_every_shard_with_members() {
    for (publish, acknowledged_by_now) in WAYS {
        let mut world = World::new();
        let mut acknowledged = Vec::new();
        for number in 1..=COUNT {
            publish(&mut world, number);
            acknowledged.extend(acknowledged_by_now(&mut world));
            // The other shard takes nothing: so many as its mailbox holds have been handed to it.
            let handed = number.min(MAILBOX as u64);
            assert_eq!(acknowledged, (1..=handed).collect::<Vec<_>>(), "after {number}");
        }
        world.tick_all();
        acknowledged.extend(acknowledged_by_now(&mut world));
        assert_eq!(acknowledged, (1..=COUNT).collect::<Vec<_>>(), "all of them, in order");
        assert_eq!(contents(&world.hear(World::member)), acknowledged);
    }
}

#[test]
fn sim_a_shard_that_is_behind_holds_up_no_answer_for_rooms_without_members_there() {
    let mut world = World::new();
    let own_room = world.own_room.clone();
    let join = join(&own_room);
    world.with(World::publisher, |peer, net| peer.say(&join, net));
    world.tick_all();
    (1..=MAILBOX as u64 + 1).for_each(|number| world.publish_from_outside(number));
    assert_eq!(world.answered(), (1..=MAILBOX as u64).collect::<Vec<_>>());
    world.publish_to(own_room, 1);
    assert_eq!(world.answered(), [1], "of its own");
}

#[test]
fn sim_acknowledged_before_a_member_is_closed_reaches_it_first() {
    let mut world = World::new();
    world.controls[OTHER].push(Control::Drain).expect("room");
    // It asks the homes, they answer, it may close from its next tick on.
    [OTHER, HOME, OTHER].into_iter().for_each(|shard| world.tick(shard));
    world.publish(1);
    assert_eq!(world.acknowledged(), [1], "in the middle of the drain");
    world.tick_all();
    let heard = world.hear(World::member);
    assert_eq!(contents(&heard), [1], "{heard:?}");
    assert_eq!(heard.last().map(String::as_str), Some("close"), "{heard:?}");
}

/// The home of a room is late by more than a moment: what came to the server before the drain began
/// goes first all the same.
#[test]
fn sim_a_drain_waits_for_a_home_that_is_late() {
    let close_late = || {
        let mut world = World::new();
        world.ask_to_publish(1);
        world.controls[OTHER].push(Control::Drain).expect("room");
        world.tick(OTHER);
        world.net.borrow_mut().clock += Duration::from_secs(2);
        world.tick(OTHER);
        world.tick_all();
        let heard = world.hear(World::member);
        assert_eq!(contents(&heard), [1], "{heard:?}");
        assert_eq!(heard.last().map(String::as_str), Some("close"), "{heard:?}");
    };
    close_late();
    assert!(catch_unwind(|| plant(Bug::ImpatientDrain, close_late)).is_err(), "that is found");
}

/// Somebody floods a room of very many with all that the server takes. Whoever publishes in a room
/// of two on the same shard is served within a few ticks.
#[test]
fn sim_a_flooded_room_holds_up_no_other() {
    const MEMBERS: usize = 400;
    let mut limits = Limits { mailbox_len_max: 64, ..Limits::default() };
    limits.policies.default.high_water_mark = 64 * 1024;
    let mut world = World::with_limits(limits);
    let large = join(&world.room);
    let small = join(&world.own_room);
    let mut peers: Vec<Peer> = (0..MEMBERS)
        .map(|_| Peer { shard: HOME, link: world.connect(HOME), input: Vec::new() })
        .collect();
    (0..MEMBERS).for_each(|_| world.tick(HOME));
    for (n, peer) in peers.iter_mut().enumerate() {
        let mut net = world.net.borrow_mut();
        peer.read(&mut net);
        assert_eq!(wire::take_head(&mut peer.input).expect("an answer").status, 101);
        peer.say(if n == 0 { &small } else { &large }, &mut net);
    }
    (0..MEMBERS).for_each(|_| world.tick(HOME));
    peers[0].read(&mut world.net.borrow_mut());
    peers[0].input.clear();
    let content = "7".repeat(1000);
    let flood = format!(r#"{{"type":"broadcast","room_id":"{}","content":{content}}}"#, world.room);
    let flood = wire::frame(true, TEXT, flood.as_bytes(), [7; 4]);
    let publish =
        format!(r#"{{"type":"broadcast","room_id":"{}","content":0,"id":0}}"#, world.own_room);
    let (mut left, mut flooded, mut since) = (Vec::new(), 0, 0);
    for tick in 0..2000_u32 {
        {
            let mut net = world.net.borrow_mut();
            if left.is_empty() {
                left.clone_from(&flood);
                flooded += 1;
            }
            let written = net.write(world.publisher.link, &left);
            left.drain(..written);
            for peer in &mut peers[1..] {
                peer.read(&mut net);
                peer.input.clear();
            }
            world.publisher.read(&mut net);
            world.publisher.input.clear();
            if tick == since {
                peers[0].say(&publish, &mut net);
            }
        }
        world.tick(HOME);
        peers[0].read(&mut world.net.borrow_mut());
        let got = std::iter::from_fn(|| wire::take_frame(&mut peers[0].input)).count();
        if got > 0 {
            since = tick + 1;
        }
        assert!(tick < since + 20, "{} ticks after a publish", tick - since);
    }
    assert!(flooded > 150, "it is served, too: {flooded}");
}
