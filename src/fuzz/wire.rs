//! Shards without a kernel and without chance: connections are bytes in memory, and time goes on
//! when it is told to. The simulation of the tests is the unkind one; here the input decides.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Limits;
use crate::id::HomeHasher;
use crate::io::{Completion, Errno, Io, Operation, Pressure, Shutdown, Socket, Token, Wait};
use crate::shard::metrics::ShardMetrics;
use crate::shard::{ControlEnds, Ends, Residue, Shard, Status};

/// Receives between two enters; few, so that connections wait for their turn.
const RECEIVES_MAX: usize = 4;
/// Bytes of one receive.
const RECEIVE_BYTES_MAX: usize = 1024;

/// All the shards of a server, and who is connected to them.
pub(crate) struct Wires {
    net: Rc<RefCell<Net>>,
    shards: Vec<Option<Shard<Wire>>>,
    metrics: Vec<Arc<ShardMetrics>>,
}

struct Net {
    base: Instant,
    clock: Duration,
    sides: Vec<Side>,
}

/// What one shard has of the world.
#[derive(Default)]
struct Side {
    accepting: bool,
    /// Connections that were not accepted yet.
    backlog: VecDeque<usize>,
    connections: Vec<Connection>,
    polls: Vec<Poll>,
    completions: Vec<Completion<Vec<u8>>>,
    receiving: usize,
    woken: bool,
    wait: Option<Wait>,
}

struct Poll {
    connection: usize,
    token: Token,
    writable: bool,
}

/// A client's end of a connection.
struct Connection {
    /// What it has sent, in the pieces that are received.
    to_server: VecDeque<Vec<u8>>,
    to_client: Vec<u8>,
    /// Bytes that its socket still takes.
    space: usize,
    fin: bool,
    reset: bool,
    /// The server sends no more, has cut it, has let go of it.
    ended: bool,
    cut: bool,
    closed: bool,
}

/// A connection from outside: its shard, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client {
    shard: usize,
    number: usize,
}

impl Wires {
    /// A server of `shards` shards, and what its control thread has.
    pub(crate) fn new(shards: usize, limits: &Limits) -> (Self, ControlEnds) {
        let sides = (0..shards).map(|_| Side::default()).collect();
        let net = Net { base: Instant::now(), clock: Duration::ZERO, sides };
        let net = Rc::new(RefCell::new(net));
        let (ends, control) = Ends::mesh(&HomeHasher::with_key(shards, 7), limits);
        let limits = Arc::new(limits.clone());
        let metrics: Vec<Arc<ShardMetrics>> = ends.iter().map(|_| Arc::default()).collect();
        let shard = |(ends, metrics): (Ends, &Arc<ShardMetrics>)| {
            let wire = Wire { net: Rc::clone(&net), shard: ends.shard.index() };
            Some(Shard::new(wire, 1, ends, Arc::clone(&limits), Arc::clone(metrics)))
        };
        let shards = ends.into_iter().zip(&metrics).map(shard).collect();
        (Self { net, shards, metrics }, control)
    }

    /// Connects a client to a shard; its socket takes so many bytes.
    pub(crate) fn connect(&mut self, shard: usize, space: usize) -> Client {
        let mut net = self.net.borrow_mut();
        let side = &mut net.sides[shard];
        let number = side.connections.len();
        side.backlog.push_back(number);
        side.connections.push(Connection {
            to_server: VecDeque::new(),
            to_client: Vec::new(),
            space,
            fin: false,
            reset: false,
            ended: false,
            cut: false,
            closed: false,
        });
        Client { shard, number }
    }

    fn with<R>(&self, client: Client, use_it: impl FnOnce(&mut Connection) -> R) -> R {
        let mut net = self.net.borrow_mut();
        use_it(&mut net.sides[client.shard].connections[client.number])
    }

    /// Sends `bytes`, to be received in pieces of at most so many.
    pub(crate) fn send(&self, client: Client, bytes: &[u8], piece: usize) {
        let pieces = bytes.chunks(piece.clamp(1, RECEIVE_BYTES_MAX)).map(<[u8]>::to_vec);
        self.with(client, |connection| connection.to_server.extend(pieces));
    }

    /// Sends nothing more.
    pub(crate) fn finish(&self, client: Client) {
        self.with(client, |connection| connection.fin = true);
    }

    /// Breaks the connection.
    pub(crate) fn reset(&self, client: Client) {
        self.with(client, |connection| connection.reset = true);
    }

    /// Makes room for so many more bytes.
    pub(crate) fn make_space(&self, client: Client, bytes: usize) {
        self.with(client, |connection| connection.space = connection.space.saturating_add(bytes));
    }

    /// Everything it was sent so far, and whether that is all there will be.
    pub(crate) fn received(&self, client: Client) -> (Vec<u8>, bool) {
        self.with(client, |connection| (connection.to_client.clone(), connection.ended))
    }

    /// Rings all the bells.
    pub(crate) fn wake_all(&self) {
        self.net.borrow_mut().sides.iter_mut().for_each(|side| side.woken = true);
    }

    /// Lets all shards work until none has anything to do at this time.
    ///
    /// # Panics
    /// When they never come to rest.
    pub(crate) fn settle(&mut self) {
        for _ in 0..TICKS_MAX {
            let mut rests = true;
            for (index, slot) in self.shards.iter_mut().enumerate() {
                let Some(shard) = slot else { continue };
                if self.net.borrow().sides[index].rests(self.net.borrow().now()) {
                    continue;
                }
                rests = false;
                if shard.tick() == Status::Ended {
                    *slot = None;
                }
            }
            if rests {
                return;
            }
        }
        panic!("the shards never come to rest");
    }

    /// Lets time pass, and the shards do what is due, each thing at its time.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.net.borrow().clock + time;
        loop {
            self.settle();
            let mut net = self.net.borrow_mut();
            let due = net.sides.iter().filter_map(|side| match side.wait {
                Some(Wait::Until(at)) => Some(at.saturating_duration_since(net.base)),
                _ => None,
            });
            match due.min().filter(|due| *due <= end) {
                Some(due) => net.clock = due,
                None => {
                    net.clock = end;
                    return;
                }
            }
        }
    }

    /// What each shard counts.
    pub(crate) fn metrics(&self) -> impl Iterator<Item = Arc<ShardMetrics>> {
        self.metrics.iter().cloned()
    }

    /// What the shards hold that are still there.
    pub(crate) fn residues(&self) -> Vec<Residue> {
        self.shards.iter().flatten().map(Shard::residue).collect()
    }
}

/// Far more than any input needs that ends.
const TICKS_MAX: usize = 100_000;

impl Net {
    fn now(&self) -> Instant {
        self.base + self.clock
    }
}

impl Side {
    /// Whether its shard waits, and rightly so.
    fn rests(&self, now: Instant) -> bool {
        let waits = match self.wait {
            None | Some(Wait::No) => false,
            Some(Wait::Until(at)) => at > now,
            Some(Wait::Forever) => true,
        };
        let comes_in = self.accepting && !self.backlog.is_empty();
        waits
            && !self.woken
            && !comes_in
            && self.completions.is_empty()
            && !self.polls.iter().any(|poll| self.connections[poll.connection].is_ready(poll))
    }
}

impl Connection {
    fn is_ready(&self, poll: &Poll) -> bool {
        let over = self.reset || self.cut;
        match poll.writable {
            true => over || self.space > 0,
            false => over || self.fin || !self.to_server.is_empty(),
        }
    }

    fn receive(&mut self) -> Result<Vec<u8>, Errno> {
        if self.reset {
            return Err(Errno::RESET);
        }
        let over = self.fin || self.cut;
        self.to_server.pop_front().or(over.then(Vec::new)).ok_or(Errno::AGAIN)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        assert!(!self.ended, "a send after the last one");
        if self.reset {
            return Err(Errno::RESET);
        }
        let len = bytes.len().min(self.space);
        self.space -= len;
        self.to_client.extend_from_slice(&bytes[..len]);
        Ok(len)
    }
}

/// A shard's end of all its connections.
pub(crate) struct Wire {
    net: Rc<RefCell<Net>>,
    shard: usize,
}

impl Io for Wire {
    type Lease = Vec<u8>;

    fn now(&self) -> Instant {
        self.net.borrow().now()
    }

    fn pressure(&self) -> Pressure {
        Pressure::default()
    }

    fn peer_address(&self, socket: Socket) -> Option<SocketAddr> {
        Some((Ipv4Addr::new(192, 0, 2, self.shard as u8), socket.0 as u16).into())
    }

    fn clock(&self) -> Instant {
        self.now()
    }

    fn unix_time(&self) -> u64 {
        super::token::NOW + self.net.borrow().clock.as_secs()
    }

    fn receives_left(&self) -> usize {
        RECEIVES_MAX - self.net.borrow().sides[self.shard].receiving
    }

    fn receive_bytes_max(&self) -> usize {
        RECEIVE_BYTES_MAX
    }

    fn submit(&mut self, operation: Operation<'_>) {
        let mut net = self.net.borrow_mut();
        if let Operation::Wake { shard } = operation {
            net.sides[shard.index()].woken = true;
            return;
        }
        let side = &mut net.sides[self.shard];
        match operation {
            Operation::Accept { .. } => side.accepting = true,
            Operation::PauseAccept { listener } => {
                side.accepting = false;
                let result = Err(Errno::CANCELED);
                side.completions.push(Completion::Accepted { listener, result, more: false });
            }
            Operation::CloseListener { .. } => side.accepting = false,
            Operation::PollReadable { socket, token } => {
                side.polls.push(Poll { connection: socket.0 as usize, token, writable: false });
            }
            Operation::PollWritable { socket, token } => {
                side.polls.push(Poll { connection: socket.0 as usize, token, writable: true });
            }
            Operation::Receive { socket, token } => {
                side.receiving += 1;
                let received = side.connections[socket.0 as usize].receive();
                side.completions.push(Completion::Received(token, received));
            }
            Operation::Send { socket, token, bytes, from } => {
                let taken = side.connections[socket.0 as usize].send(&bytes[from..]);
                if taken != Ok(bytes.len() - from) {
                    side.completions.push(Completion::SentShort(token, taken));
                }
            }
            Operation::Shutdown { socket, how } => {
                let connection = &mut side.connections[socket.0 as usize];
                connection.ended = true;
                connection.cut |= how == Shutdown::Both;
            }
            Operation::Close { socket } => {
                let number = socket.0 as usize;
                let armed = side.polls.iter().any(|poll| poll.connection == number);
                let connection = &mut side.connections[number];
                assert!(!armed && !connection.closed, "closes {socket:?} too soon, or twice");
                (connection.ended, connection.closed) = (true, true);
            }
            Operation::Wake { .. } | Operation::WakeControl => {}
        }
    }

    fn enter(&mut self, wait: Wait) {
        self.net.borrow_mut().sides[self.shard].wait = Some(wait);
    }

    fn reap(&mut self, completions: &mut Vec<Completion<Vec<u8>>>) {
        let mut net = self.net.borrow_mut();
        let side = &mut net.sides[self.shard];
        side.receiving = 0;
        completions.append(&mut side.completions);
        if std::mem::take(&mut side.woken) {
            completions.push(Completion::Woken);
        }
        let connections = &side.connections;
        side.polls.retain(|poll| {
            let ready = connections[poll.connection].is_ready(poll);
            if ready {
                completions.push(match poll.writable {
                    true => Completion::Writable(poll.token),
                    false => Completion::Readable(poll.token),
                });
            }
            !ready
        });
        while side.accepting
            && let Some(number) = side.backlog.pop_front()
        {
            let result = Ok(Socket(number as u32));
            completions.push(Completion::Accepted { listener: 0, result, more: true });
        }
    }
}
