//! What heartbeats cost a shard whose peers are quiet: system calls, operations, and who is pinged.
//!
//! The worlds of seeds are too loud to count in. In this one the network is kind, and there is
//! nothing but pings, pongs, and a few peers who talk.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::net::{LinkHabits, Net, Read, SimIo};
use super::wire::{self, PING, PONG, TEXT};
use crate::config::{Heartbeats, Limits};
use crate::id::HomeHasher;
use crate::shard::heartbeat::STEP;
use crate::shard::metrics::ShardMetrics;
use crate::shard::{Ends, SLOTS_PER_TICK, Shard};

const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How often those who talk say something: the hand, which comes every five seconds, always finds
/// that it has heard them.
const PAUSE: Duration = Duration::from_secs(4);

/// So many peers, and so many of them talk.
const PEERS: usize = 2000;
const TALKERS: usize = 100;

/// One shard and its peers, who answer every ping at once.
struct World {
    net: Rc<RefCell<Net>>,
    shard: Shard<SimIo>,
    peers: Vec<Peer>,
    talk_at: Duration,
}

struct Peer {
    link: usize,
    talks: bool,
    pings: u64,
    words: u64,
}

impl World {
    /// All connections are open, and everybody has been looked at twice.
    fn new() -> Self {
        let limits = Arc::new(Limits {
            heartbeats: Heartbeats {
                ping_interval: Some(PING_INTERVAL),
                pong_timeout: Duration::from_secs(1),
            },
            ..Limits::default()
        });
        let mut net = Net::new(0, false);
        net.faults.receives_max = PEERS;
        net.faults.short_receives = false;
        net.add_shard(1);
        let net = Rc::new(RefCell::new(net));
        let io = SimIo { net: Rc::clone(&net), shard: 0, lent: Rc::new(Cell::new(0)) };
        let (mut ends, _) = Ends::mesh(&HomeHasher::with_key(1, 0), &limits);
        let ends = ends.pop().expect("those of the one shard");
        let metrics = Arc::new(ShardMetrics::default());
        let mut shard = Shard::new(io, 1, ends, limits, Arc::clone(&metrics));
        shard.tick();
        let connect = |number| {
            let max = 1 << 16;
            let habits = LinkHabits { to_server_max: max, to_client_max: max, unreliable: false };
            let mut net = net.borrow_mut();
            let link = net.connect(0, habits);
            net.write(link, REQUEST);
            Peer { link, talks: number < TALKERS, pings: 0, words: 0 }
        };
        let peers = (0..PEERS).map(connect).collect();
        let mut world = Self { net: Rc::clone(&net), shard, peers, talk_at: Duration::ZERO };
        while metrics.opened.value() < PEERS as u64 || net.borrow().is_due(0) {
            world.tick();
        }
        for peer in &world.peers {
            let Read::Bytes(mut answer) = net.borrow_mut().read(peer.link, usize::MAX) else {
                panic!("no answer to a handshake");
            };
            assert_eq!(wire::take_head(&mut answer).expect("a whole head").status, 101);
        }
        world.run_for(2 * PING_INTERVAL);
        world.peers.iter_mut().for_each(|peer| (peer.pings, peer.words) = (0, 0));
        world
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.net.borrow().clock + time;
        while self.net.borrow().clock < end {
            if self.net.borrow().is_due(0) {
                self.tick();
                continue;
            }
            let mut net = self.net.borrow_mut();
            if net.clock >= self.talk_at {
                self.talk_at = net.clock + PAUSE;
                for peer in self.peers.iter_mut().filter(|peer| peer.talks) {
                    peer.words += 1;
                    net.write(peer.link, &wire::frame(true, TEXT, b"{}", [7; 4]));
                }
            }
            self.peers.iter_mut().for_each(|peer| peer.answer(&mut net));
            if !net.is_due(0) {
                let next = net.next_time(0).expect("it will visit somebody");
                net.clock = next.min(self.talk_at).min(end);
            }
        }
    }

    fn tick(&mut self) {
        self.net.borrow_mut().begin_tick(0);
        self.shard.tick();
    }
}

impl Peer {
    fn answer(&mut self, net: &mut Net) {
        let Read::Bytes(mut bytes) = net.read(self.link, usize::MAX) else { return };
        while let Some(frame) = wire::take_frame(&mut bytes) {
            if frame.opcode == PING {
                self.pings += 1;
                net.write(self.link, &wire::frame(true, PONG, &frame.payload, [7; 4]));
            }
        }
    }
}

const REQUEST: &[u8] = b"GET /ws HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn sim_pings_leave_together_and_to_the_silent_alone() {
    const INTERVALS: u32 = 3;
    let mut world = World::new();
    let before = world.net.borrow().effort(0);
    world.run_for(PING_INTERVAL * INTERVALS);
    let after = world.net.borrow().effort(0);

    let (mut pings, mut words) = (0, 0);
    for peer in &world.peers {
        // Who talks is not pinged, and everybody else is once per interval.
        assert_eq!(peer.pings, if peer.talks { 0 } else { u64::from(INTERVALS) });
        pings += peer.pings;
        words += peer.words;
    }
    // A send, a receive and a poll for each ping and its pong, and for each word and its answer:
    // nothing besides.
    assert_eq!(after.operations - before.operations, 3 * (pings + words));
    // In each step of the hand an enter for so many slots (it visits everybody twice per interval),
    // and two for all pongs together: to receive them, and to go to sleep again.
    let span = PING_INTERVAL * INTERVALS;
    let steps = (span.as_millis() / STEP.as_millis()) as u64;
    let visits = 2 * PEERS as u64 * u64::from(INTERVALS);
    let talks = span.div_duration_f64(PAUSE).ceil() as u64;
    let enters_max = visits / u64::from(SLOTS_PER_TICK) + 3 * steps + 3 * talks;
    let enters = after.enters - before.enters;
    assert!(enters <= enters_max, "{enters} enters for {pings} pings, at most {enters_max}");
    assert!(enters_max < pings / 2, "this would not show what it is to show");
}
