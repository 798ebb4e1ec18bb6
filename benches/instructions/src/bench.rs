//! A real [`Shard`] over an [`Io`] without a kernel: what the scenarios and their tests run on.
//!
//! Sockets take everything at once, time stands still, and bytes go nowhere.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use fanwire::config;
use fanwire::id::HomeHasher;
use fanwire::io::buffers::{Lease, RECEIVE_BYTES_MAX, ReceivePool};
use fanwire::io::{Completion, Errno, Io, Operation, Pressure, Socket, Token, Wait};
use fanwire::shard::metrics::ShardMetrics;
use fanwire::shard::{Ends, Shard};

/// A shard and the world it believes in.
pub(crate) struct Bench {
    shard: Shard<Null>,
    world: Rc<RefCell<World>>,
    pub(crate) metrics: Arc<ShardMetrics>,
}

impl Bench {
    /// Without connections, with the usual settings.
    pub(crate) fn new() -> Self {
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
    pub(crate) fn with_members(count: usize, path: impl Fn(usize) -> String) -> Self {
        let mut bench = Self::new();
        (0..count).for_each(|member| bench.open(&path(member)));
        bench.run();
        assert_eq!(bench.metrics.opened.value(), count as u64);
        bench
    }

    pub(crate) fn connections(&self) -> usize {
        self.world.borrow().sockets.len()
    }

    /// A client connects and asks for the upgrade.
    pub(crate) fn open(&mut self, path: &str) {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let mut world = self.world.borrow_mut();
        let socket = Socket(world.sockets.len() as u32);
        let input = request.into_bytes();
        world.sockets.push(Peer { input, received: 0, gone: false, poll: None });
        let accepted = Completion::Accepted { listener: 0, result: Ok(socket), more: true };
        world.completions.push_back(accepted);
    }

    /// Bytes arrive at a socket whose last ones have been received.
    pub(crate) fn feed(&mut self, socket: usize, bytes: &[u8]) {
        self.world.borrow_mut().feed(socket, bytes);
    }

    /// The client of a socket is gone.
    #[cfg(test)]
    pub(crate) fn hang_up(&mut self, socket: usize) {
        self.world.borrow_mut().hang_up(socket);
    }

    /// Lets the shard turn until it would wait, and says what it has sent.
    pub(crate) fn run(&mut self) -> Sent {
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
pub(crate) struct Sent {
    pub(crate) sends: usize,
    pub(crate) bytes: usize,
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
    /// It has hung up behind its input.
    gone: bool,
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
        self.wake(socket);
    }

    #[cfg(test)]
    fn hang_up(&mut self, socket: usize) {
        self.sockets[socket].gone = true;
        self.wake(socket);
    }

    fn wake(&mut self, socket: usize) {
        if let Some(token) = self.sockets[socket].poll.take() {
            self.completions.push_back(Completion::Readable(token));
        }
    }

    fn receive(&mut self, socket: Socket, token: Token) {
        let peer = &mut self.sockets[socket.0 as usize];
        let rest = &peer.input[peer.received..];
        let len = rest.len().min(RECEIVE_BYTES_MAX);
        let received = if len == 0 && !peer.gone {
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

    fn clock(&self) -> Instant {
        self.now
    }

    fn peer_address(&self, _: Socket) -> Option<SocketAddr> {
        None
    }

    fn unix_time(&self) -> u64 {
        0
    }

    fn pressure(&self) -> Pressure {
        Pressure::default()
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
                if peer.gone || peer.received < peer.input.len() {
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
            Operation::Accept { .. } | Operation::Close { .. } => {}
            other => panic!("nothing here asks for that: {other:?}"),
        }
    }

    fn enter(&mut self, wait: Wait) {
        self.world.borrow_mut().idle = wait != Wait::No;
    }

    fn reap(&mut self, completions: &mut Vec<Completion<Lease>>) {
        completions.extend(self.world.borrow_mut().completions.drain(..));
    }
}

/// A text frame as a client sends it.
pub(crate) fn masked(payload: &[u8]) -> Vec<u8> {
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
