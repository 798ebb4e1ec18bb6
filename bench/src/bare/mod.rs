//! `bare`: the sends of a fan-out and nothing else, as the limit that a server is measured against.
//!
//! Measuring equipment, never a server: no rooms, no queues, no deadlines, no backpressure, no
//! care for a peer that misbehaves, loopback only. It speaks just enough WebSocket that `fanout`
//! runs against it as it runs against a server: whatever any member sends goes to all of them, in
//! one send each, out of one flat array of descriptors. The flags of the ring and of its sends, and
//! the options of the sockets, are those of Fanwire's shards ([`crate::ring`] says which), so what
//! a server of this design costs beyond the bare loop is its own.
//!
//! ```text
//! mod -> hub -> wire     hub: one thread; its members, its turns
//!         |              wire: the server's side of the protocol, pure
//!         +-> ring
//! ```
//!
//! A thread has its own listener (`SO_REUSEPORT`), descriptor table and members, as a shard has. It
//! hands the frames that it received to the other threads over a channel and rings their bells.

mod hub;
mod wire;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use self::hub::Hub;
use crate::cli::Cpus;
use crate::ring::{self, Bell};

/// Options of `bare`.
#[derive(Debug, Clone, Args)]
pub struct BareArgs {
    /// Where to listen: a loopback address; port 0 takes a free one and says which.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Threads, each with its own descriptor table, listener and members.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: u32,
    /// CPUs the threads are pinned to in turn, as in 0-3,8 [default: not pinned].
    #[arg(long)]
    pub cpus: Option<Cpus>,
    /// Connections over all threads; one more is closed at once, without an answer.
    #[arg(long, default_value_t = 1_000_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    pub connections_max: u32,
}

/// Why the loop does not run.
#[derive(Debug, Error)]
pub enum BareError {
    /// Others could reach it.
    #[error("{0} is no loopback address: this is measuring equipment, not a server")]
    NotLoopback(SocketAddr),
    /// The address.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    /// Something that a thread needs, or its ring.
    #[error("{0}")]
    Thread(io::Error),
}

impl BareError {
    /// Whether the command line is to blame.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NotLoopback(_))
    }
}

/// What the loop did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary {
    /// Connections that were opened.
    pub opened: u64,
    /// Of these, those that were closed because a send fell short or failed: the loop keeps
    /// nothing to send later.
    pub cut: u64,
    /// Connections that were closed at once, beyond the bound.
    pub refused: u64,
    /// Messages received.
    pub messages: u64,
    /// Times that all members of a thread were sent what had come.
    pub broadcasts: u64,
    /// Sends to members.
    pub sends: u64,
    /// CPU time of the threads within these broadcasts, kernel included.
    pub sending: Duration,
}

impl Summary {
    fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.cut += other.cut;
        self.refused += other.refused;
        self.messages += other.messages;
        self.broadcasts += other.broadcasts;
        self.sends += other.sends;
        self.sending += other.sending;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { opened, cut, refused, messages, broadcasts, sends, sending } = self;
        writeln!(f, "opened      {opened} connections, {cut} cut, {refused} refused")?;
        write!(f, "sent        {messages} messages in {broadcasts} broadcasts, {sends} sends")?;
        if *sends > 0 {
            let each = sending.as_secs_f64() * 1e6 / *sends as f64;
            write!(f, ": {each:.3} us of CPU each")?;
        }
        writeln!(f)
    }
}

/// Frames on their way to all members, as they are sent.
type Frames = Arc<[u8]>;

/// What a thread knows of the others.
struct Seat {
    inbox: Receiver<Frames>,
    /// Of all threads, this one included.
    outboxes: Vec<Sender<Frames>>,
    bells: Arc<[Bell]>,
    index: usize,
    /// Connections of all threads.
    census: Arc<AtomicU32>,
    connections_max: u32,
    stop: Arc<AtomicBool>,
}

/// What the main thread waits for.
enum Event {
    Ready,
    Signal,
    Ended(io::Result<Summary>),
}

/// Runs the loop until Ctrl-C or SIGTERM.
///
/// # Errors
/// [`BareError`]; also what ended a thread while it ran, such as too few descriptors.
pub fn bare(args: &BareArgs) -> Result<Summary, BareError> {
    if !args.listen.ip().is_loopback() {
        return Err(BareError::NotLoopback(args.listen));
    }
    // Best effort: a thread that runs out of descriptors says so.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let (events, received) = mpsc::channel();
    watch_signals(events.clone()).map_err(BareError::Thread)?;
    // Bound and never listening: it keeps the port until every thread has its own listener there.
    let listening = |error| BareError::Listen(args.listen, error);
    let reserved = bind(args.listen).map_err(listening)?;
    let address = reserved.local_addr().map_err(listening)?;
    let address = address.as_socket().expect("bound to an internet address");

    let bells = (0..args.threads).map(|_| Bell::new()).collect::<io::Result<_>>();
    let bells: Arc<[Bell]> = bells.map_err(BareError::Thread)?;
    let (outboxes, inboxes): (Vec<_>, Vec<_>) = bells.iter().map(|_| mpsc::channel()).unzip();
    let (stop, census) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let cpus = args.cpus.as_ref().map_or(&[][..], |cpus| &cpus.0);
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let seat = Seat {
            inbox,
            outboxes: outboxes.clone(),
            bells: Arc::clone(&bells),
            index,
            census: Arc::clone(&census),
            connections_max: args.connections_max,
            stop: Arc::clone(&stop),
        };
        let (cpu, events) = (cpus.get(index % cpus.len().max(1)).copied(), events.clone());
        let run = move || {
            let run = AssertUnwindSafe(|| seat.run(address, cpu, &events));
            let ended = panic::catch_unwind(run)
                .unwrap_or_else(|_| Err(io::Error::other("a thread panicked, see above")));
            // The main thread waits for all of them, or has ended.
            let _ = events.send(Event::Ended(ended));
        };
        let builder = thread::Builder::new().name(format!("bare-{index}"));
        builder.spawn(run).map_err(BareError::Thread)?;
    }

    let (mut ready, mut ended) = (0, 0);
    let mut summary = Summary::default();
    let mut failure = None;
    while ended < args.threads {
        match received.recv().expect("a thread that ends says so") {
            Event::Ready => {
                ready += 1;
                if ready == args.threads {
                    eprintln!("bare loop of sends, no server: listening on {address}");
                }
                continue;
            }
            Event::Signal => {}
            Event::Ended(outcome) => {
                ended += 1;
                match outcome {
                    Ok(own) => summary.add(&own),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        // One that ends, ends all.
        stop.store(true, Relaxed);
        bells.iter().for_each(Bell::ring);
    }
    failure.map_or(Ok(summary), |error| Err(BareError::Thread(error)))
}

/// Reports Ctrl-C and SIGTERM from a thread of its own, since the others may not be interrupted.
fn watch_signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let watch = move || {
        for _ in signals.forever() {
            // The main thread has ended.
            if events.send(Event::Signal).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("bare-signals".to_owned()).spawn(watch).map(drop)
}

impl Seat {
    fn run(
        self,
        address: SocketAddr,
        cpu: Option<usize>,
        events: &Sender<Event>,
    ) -> io::Result<Summary> {
        if let Some(id) = cpu
            && !core_affinity::set_for_current(core_affinity::CoreId { id })
        {
            return Err(io::Error::other("a CPU of --cpus cannot be used"));
        }
        ring::block_signals();
        ring::take_private_descriptor_table(self.bells.iter())?;
        let listener = bind(address)?;
        listener.set_tcp_nodelay(true)?;
        listener.listen(BACKLOG)?;
        listener.set_nonblocking(true)?;
        let hub = Hub::new(self, listener)?;
        // The main thread waits for it, or has ended.
        let _ = events.send(Event::Ready);
        hub.run()
    }
}

/// Connections the kernel may complete ahead of us; capped by `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}
