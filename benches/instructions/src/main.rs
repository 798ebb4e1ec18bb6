//! Fixed small scenarios whose instructions are counted: what `scripts/perf-guard.sh` runs.
//!
//! The real [`Shard`] runs over an [`Io`] without a kernel: sockets take everything at once, time
//! stands still, and bytes go nowhere. So a count is the server's own work, decoding, rooms,
//! cursors and sends, and it is the same whenever it is repeated. What the kernel does for a send
//! is not in it, nor are caches; for those there is the load generator.
//!
//! `--list` names the scenarios. A name sets that one up, makes a round that is not counted (so
//! that memory has grown to its size), then those inside the function [`measured`], and prints how
//! many units of what they did. The allocator is the system's, since mimalloc asks the clock when
//! to give memory back.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use fanwire::config;
use fanwire::id::HomeHasher;
use fanwire::io::buffers::{Lease, RECEIVE_BYTES_MAX, ReceivePool};
use fanwire::io::{Completion, Errno, Io, Operation, Socket, Token, Wait};
use fanwire::shard::metrics::ShardMetrics;
use fanwire::shard::{Ends, Shard};

/// What is counted, and per what.
struct Scenario {
    name: &'static str,
    /// One of what a round does many of.
    unit: &'static str,
    rounds: u32,
    /// Opens the connections.
    set_up: fn() -> Bench,
    /// Does `units` of them, and checks that they have been done.
    round: fn(&mut Bench) -> u64,
}

const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "fanout-1",
        unit: "delivery",
        rounds: 50,
        set_up: || Bench::with_members(1000, |_| "/raw/room".to_owned()),
        round: |bench| fan_out(bench, 1),
    },
    Scenario {
        name: "fanout-16",
        unit: "delivery",
        rounds: 50,
        set_up: || Bench::with_members(1000, |_| "/raw/room".to_owned()),
        round: |bench| fan_out(bench, 16),
    },
    Scenario {
        name: "rooms",
        unit: "delivery",
        rounds: 10,
        set_up: || Bench::with_members(2000, |member| format!("/raw/room-{}", member / 2)),
        round: publish_into_each,
    },
    Scenario {
        name: "handshake",
        unit: "handshake",
        rounds: 1,
        set_up: Bench::new,
        round: open_many,
    },
    Scenario {
        name: "echo-48",
        unit: "message",
        rounds: 10,
        set_up: || Bench::with_members(1, |_| "/echo".to_owned()),
        round: |bench| echo(bench, 48),
    },
    Scenario {
        name: "echo-16k",
        unit: "message",
        rounds: 1,
        set_up: || Bench::with_members(1, |_| "/echo".to_owned()),
        round: |bench| echo(bench, 16 * 1024),
    },
    Scenario {
        name: "native",
        unit: "publish",
        rounds: 10,
        set_up: join_native,
        round: publish_native,
    },
];

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    if argument == "--list" {
        SCENARIOS.iter().for_each(|scenario| println!("{}", scenario.name));
    } else if let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == argument) {
        run(scenario);
    } else {
        eprintln!("usage: fanwire-instructions --list | NAME");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

fn run(scenario: &Scenario) {
    let mut bench = (scenario.set_up)();
    (scenario.round)(&mut bench);
    let units = measured(&mut bench, scenario);
    println!("{} {} {units}", scenario.name, scenario.unit);
}

/// Counting begins when this is entered and ends when it is left.
#[inline(never)]
fn measured(bench: &mut Bench, scenario: &Scenario) -> u64 {
    (0..scenario.rounds).map(|_| (scenario.round)(bench)).sum()
}

/// Member 0 publishes so many messages that come in one receive, and every member gets them.
fn fan_out(bench: &mut Bench, messages: usize) -> u64 {
    let members = bench.connections();
    let frames = masked(&[b'x'; 48]).repeat(messages);
    bench.feed(0, &frames);
    let sent = bench.run();
    // A frame of a server has a header of 2 bytes.
    assert_eq!(sent, Sent { sends: members, bytes: members * messages * 50 });
    (members * messages) as u64
}

/// One member of each room publishes one message.
fn publish_into_each(bench: &mut Bench) -> u64 {
    let members = bench.connections();
    let frame = masked(&[b'x'; 48]);
    (0..members).step_by(2).for_each(|member| bench.feed(member, &frame));
    let sent = bench.run();
    assert_eq!(sent, Sent { sends: members, bytes: members * 50 });
    members as u64
}

/// A thousand more connections open.
fn open_many(bench: &mut Bench) -> u64 {
    let before = bench.metrics.opened.value();
    (0..1000).for_each(|_| bench.open("/raw/room"));
    bench.run();
    assert_eq!(bench.metrics.opened.value() - before, 1000);
    1000
}

/// A hundred round trips, one after the other.
fn echo(bench: &mut Bench, payload_bytes: usize) -> u64 {
    let frame = masked(&vec![b'x'; payload_bytes]);
    // The mask has 4 bytes and does not come back.
    let expected = frame.len() - 4;
    for _ in 0..100 {
        bench.feed(0, &frame);
        assert_eq!(bench.run().bytes, expected);
    }
    100
}

/// Ten members of a native room.
fn join_native() -> Bench {
    let mut bench = Bench::with_members(10, |_| "/ws".to_owned());
    for member in 0..10 {
        let join = format!(r#"{{"type":"join","room_id":"lobby","user_id":"user {member}"}}"#);
        bench.feed(member, &masked(join.as_bytes()));
        bench.run();
    }
    bench
}

/// A hundred broadcasts that ask for an acknowledgement, one after the other.
fn publish_native(bench: &mut Bench) -> u64 {
    let message = br#"{"type":"broadcast","id":7,"room_id":"lobby","content":{"text":"hello"}}"#;
    let frame = masked(message);
    for _ in 0..100 {
        let before = bench.metrics.published.value();
        bench.feed(0, &frame);
        // To each of the ten, and the acknowledgement.
        assert_eq!(bench.run().sends, 11);
        assert_eq!(bench.metrics.published.value() - before, 1);
    }
    100
}

/// A text frame as a client sends it.
fn masked(payload: &[u8]) -> Vec<u8> {
    const KEY: [u8; 4] = [1, 2, 3, 4];
    let mut frame = vec![0x81];
    match payload.len() {
        len @ ..126 => frame.push(0x80 | len as u8),
        len => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(len).expect("64 KiB at most").to_be_bytes());
        }
    }
    frame.extend(KEY);
    frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A shard and the world it believes in.
struct Bench {
    shard: Shard<Null>,
    world: Rc<RefCell<World>>,
    metrics: Arc<ShardMetrics>,
}

impl Bench {
    /// Without connections, with the usual settings.
    fn new() -> Self {
        let arguments = ["fanwire", "serve", "--echo"].map(OsString::from);
        let settings = config::load(arguments, []).expect("the defaults and --echo").settings;
        let limits = settings.limits(1, 1_000_000);
        let world = Rc::new(RefCell::new(World::default()));
        let metrics = Arc::new(ShardMetrics::default());
        // A fixed key, so that rooms lie in their tables as they did the last time.
        let (mesh, _control) = Ends::mesh(&HomeHasher::with_key(1, 0), &limits);
        let ends = mesh.into_iter().next().expect("one shard");
        let io = Null { world: Rc::clone(&world), now: Instant::now() };
        let shard = Shard::new(io, 1, ends, Arc::new(limits), Arc::clone(&metrics));
        Self { shard, world, metrics }
    }

    /// With connections open, each at its path.
    fn with_members(count: usize, path: impl Fn(usize) -> String) -> Self {
        let mut bench = Self::new();
        (0..count).for_each(|member| bench.open(&path(member)));
        bench.run();
        assert_eq!(bench.metrics.opened.value(), count as u64);
        bench
    }

    fn connections(&self) -> usize {
        self.world.borrow().sockets.len()
    }

    /// A client connects and asks for the upgrade.
    fn open(&mut self, path: &str) {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let mut world = self.world.borrow_mut();
        let socket = Socket(world.sockets.len() as u32);
        world.sockets.push(Peer { input: request.into_bytes(), received: 0, poll: None });
        let accepted = Completion::Accepted { listener: 0, result: Ok(socket), more: true };
        world.completions.push_back(accepted);
    }

    /// Bytes arrive at a socket whose last ones have been received.
    fn feed(&mut self, socket: usize, bytes: &[u8]) {
        self.world.borrow_mut().feed(socket, bytes);
    }

    /// Lets the shard turn until it would wait, and says what it has sent.
    fn run(&mut self) -> Sent {
        loop {
            self.shard.tick();
            let world = &mut *self.world.borrow_mut();
            if world.idle && world.completions.is_empty() {
                return std::mem::take(&mut world.sent);
            }
        }
    }
}

/// What has been sent to all sockets together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sent {
    sends: usize,
    bytes: usize,
}

#[derive(Default)]
struct World {
    pool: ReceivePool,
    sockets: Vec<Peer>,
    completions: VecDeque<Completion<Lease>>,
    sent: Sent,
    /// The shard would have waited.
    idle: bool,
}

/// The other end of a connection.
struct Peer {
    input: Vec<u8>,
    received: usize,
    /// The poll that waits for more.
    poll: Option<Token>,
}

impl World {
    fn feed(&mut self, socket: usize, bytes: &[u8]) {
        let peer = &mut self.sockets[socket];
        assert_eq!(peer.received, peer.input.len(), "all before it has been received");
        peer.input.clear();
        peer.input.extend_from_slice(bytes);
        peer.received = 0;
        if let Some(token) = peer.poll.take() {
            self.completions.push_back(Completion::Readable(token));
        }
    }

    fn receive(&mut self, socket: Socket, token: Token) {
        let peer = &mut self.sockets[socket.0 as usize];
        let rest = &peer.input[peer.received..];
        let len = rest.len().min(RECEIVE_BYTES_MAX);
        let received = if len == 0 {
            Err(Errno::AGAIN)
        } else {
            let mut lease = self.pool.lend();
            lease[..len].copy_from_slice(&rest[..len]);
            lease.truncate(len);
            Ok(lease)
        };
        peer.received += len;
        self.completions.push_back(Completion::Received(token, received));
    }
}

/// An [`Io`] without a kernel.
struct Null {
    world: Rc<RefCell<World>>,
    now: Instant,
}

impl Io for Null {
    type Lease = Lease;

    fn now(&self) -> Instant {
        self.now
    }

    fn receives_left(&self) -> usize {
        self.world.borrow().pool.left()
    }

    fn receive_bytes_max(&self) -> usize {
        RECEIVE_BYTES_MAX
    }

    fn submit(&mut self, operation: Operation<'_>) {
        let world = &mut *self.world.borrow_mut();
        match operation {
            Operation::PollReadable { socket, token } => {
                let peer = &mut world.sockets[socket.0 as usize];
                if peer.received < peer.input.len() {
                    world.completions.push_back(Completion::Readable(token));
                } else {
                    peer.poll = Some(token);
                }
            }
            Operation::Receive { socket, token } => world.receive(socket, token),
            Operation::Send { bytes, from, .. } => {
                world.sent.sends += 1;
                world.sent.bytes += bytes.len() - from;
            }
            Operation::Accept { .. } => {}
            other => panic!("no scenario ends a connection: {other:?}"),
        }
    }

    fn enter(&mut self, wait: Wait) {
        self.world.borrow_mut().idle = wait != Wait::No;
    }

    fn reap(&mut self, completions: &mut Vec<Completion<Lease>>) {
        completions.extend(self.world.borrow_mut().completions.drain(..));
    }
}
