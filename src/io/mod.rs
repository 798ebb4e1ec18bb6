//! The boundary between a shard and the kernel, as plain data: operations in, completions out.
//!
//! A [`crate::shard::Shard`] is generic over [`Io`]. [`uring::Uring`] is the real one: one
//! io_uring per shard. The simulation (`src/tests/sim.rs`) is the other: the same operations
//! against a world that a seed makes up, with no kernel at all.
//!
//! This module and its children hold the only `unsafe` code, the only system calls, the only
//! descriptors and the only clock of the data plane. Its interface is sound whatever the caller
//! does: memory that the kernel may touch is owned by the `Io` until the kernel is done with it.
//!
//! ```text
//!              submit(Operation)              enter(Wait)
//!   shard  ───────────────────────▶  Io  ───────────────────▶  kernel
//!          ◀───────────────────────      ◀───────────────────
//!              reap(Completion)
//! ```
//!
//! Two promises keep the shard simple:
//! - *A send or receive is resolved by the next [`Io::reap`].* Both are non-blocking: what the
//!   socket takes or has at once is all there is, so nothing is in flight across a tick and
//!   buffers are needed for the length of one tick only.
//! - *A poll completes once* ([`Operation::PollReadable`], [`Operation::PollWritable`]), also when
//!   the socket is shut down under it; the shard closes a socket only with no poll armed.

pub mod buffers;
pub mod host;
pub mod mailbox;
pub mod readings;
pub mod sampler;
pub mod socket;
pub mod stderr;
pub mod thread;
pub mod uring;

use std::net::SocketAddr;
use std::ops::DerefMut;
use std::time::Instant;

use bytes::Bytes;

use crate::id::ShardId;

/// What a shard needs from the world. See the module documentation.
pub trait Io {
    /// A buffer with received bytes; back in its pool when dropped.
    type Lease: DerefMut<Target = [u8]>;

    /// The time, read once per [`Io::enter`].
    fn now(&self) -> Instant;

    /// What it has to work with, for the metrics.
    fn pressure(&self) -> Pressure;

    /// The address and port of the socket's other end, as the kernel knows it: of a proxy, if one
    /// is in between. `None` once the connection is broken, or when the socket is closed.
    ///
    /// Cost: a system call. Only for what is rare, or asked for by a setting.
    fn peer_address(&self, socket: Socket) -> Option<SocketAddr>;

    /// The time, read now.
    fn clock(&self) -> Instant;

    /// The time of the host's clock, in seconds since 1970: what tokens are held against. Read when
    /// asked for.
    fn unix_time(&self) -> u64;

    /// How many more [`Operation::Receive`] may be submitted before the next [`Io::enter`].
    fn receives_left(&self) -> usize;

    /// The size of one receive buffer in bytes; a receive that fills it may have left more.
    fn receive_bytes_max(&self) -> usize;

    /// Stages one operation. Enters the kernel only when the submission queue is full.
    fn submit(&mut self, operation: Operation<'_>);

    /// Says that more is about to come: before the next [`Io::enter`] sleeps it may look out for it
    /// for some microseconds. A hint: it changes nothing but how soon that is taken in.
    fn look_out(&mut self) {}

    /// Hands everything staged to the kernel and waits as `wait` says.
    fn enter(&mut self, wait: Wait);

    /// Moves what has completed, oldest first, to the end of `completions`, a bounded number.
    fn reap(&mut self, completions: &mut Vec<Completion<Self::Lease>>);
}

/// What an [`Io`] has to work with.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Receive buffers made so far, lent or free.
    pub receive_buffers: usize,
    /// How often the kernel had to keep completions back because their queue was full.
    pub overflows: u64,
}

/// One thing to do. Operations on one socket take effect in the order they are submitted.
#[derive(Debug, Clone, Copy)]
pub enum Operation<'a> {
    /// Accepts connections until a completion says `more: false`.
    Accept {
        /// Index of the listener.
        listener: usize,
    },
    /// Ends an armed accept: its last completion says [`Errno::CANCELED`]. Connections wait in the
    /// backlog until the next [`Operation::Accept`].
    PauseAccept {
        /// Index of the listener.
        listener: usize,
    },
    /// Stops listening; an armed accept ends.
    CloseListener {
        /// Index of the listener.
        listener: usize,
    },
    /// Completes once when there is something to receive, or the peer is gone.
    PollReadable {
        /// The socket to watch.
        socket: Socket,
        /// Comes back with the completion.
        token: Token,
    },
    /// Completes once when the socket takes bytes again, or the peer is gone.
    PollWritable {
        /// The socket to watch.
        socket: Socket,
        /// Comes back with the completion.
        token: Token,
    },
    /// Receives what is there, up to one buffer. Only while [`Io::receives_left`] is not 0.
    Receive {
        /// The socket to read.
        socket: Socket,
        /// Comes back with the completion.
        token: Token,
    },
    /// Sends `bytes[from..]`. Completes only if not everything was taken. At most one per socket
    /// between two reaps: the next one would follow a gap if this one falls short.
    Send {
        /// The socket to write.
        socket: Socket,
        /// Comes back with the completion.
        token: Token,
        /// What to send; kept alive by the `Io` as long as the kernel reads it.
        bytes: &'a Bytes,
        /// Where in `bytes` to begin.
        from: usize,
    },
    /// Half-closes the socket, or ends it in both directions; takes effect after all sends
    /// submitted before it. Never completes, but completes polls armed on the socket.
    Shutdown {
        /// The socket to end.
        socket: Socket,
        /// Which directions.
        how: Shutdown,
    },
    /// Closes the socket. Nothing may be armed on it. Never completes.
    Close {
        /// The socket to close.
        socket: Socket,
    },
    /// Wakes another shard that said that it sleeps.
    Wake {
        /// The shard to wake.
        shard: ShardId,
    },
    /// Wakes the control thread that said that it sleeps.
    WakeControl,
}

/// Which directions a [`Operation::Shutdown`] ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// We send no more: the peer reads end of file.
    Write,
    /// Nothing passes any more.
    Both,
}

/// How long [`Io::enter`] may wait for a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: there is more to do.
    No,
    /// Until something completes or this time is reached.
    Until(Instant),
    /// Until something completes.
    Forever,
}

/// What has become of an operation.
#[derive(Debug)]
pub enum Completion<L> {
    /// A listener has a new connection, or could not accept one.
    Accepted {
        /// Index of the listener.
        listener: usize,
        /// The new socket, or why there is none.
        result: Result<Socket, Errno>,
        /// Whether the accept goes on; if not it must be submitted again.
        more: bool,
    },
    /// A [`Operation::PollReadable`] came true.
    Readable(Token),
    /// A [`Operation::PollWritable`] came true.
    Writable(Token),
    /// A receive is done; an empty lease means end of file.
    Received(Token, Result<L, Errno>),
    /// A send took only so many bytes (0 when the socket is full), or failed.
    SentShort(Token, Result<usize, Errno>),
    /// Another thread rang: mailboxes may have something.
    Woken,
}

/// A number of the shard's own that comes back with the completion; below 2^56.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(u64);

impl Token {
    /// Wraps a number.
    ///
    /// # Panics
    /// From 2^56 up; the upper byte belongs to the `Io`.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        assert!(number >> 56 == 0);
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A connected socket of this shard: a number in its private descriptor table, not a descriptor
/// that owns anything. Using a closed one harms the shard's own connections, never memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Socket(pub u32);

/// An error number of the kernel, see errno(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The socket has nothing to receive, or takes nothing, just now.
    pub const AGAIN: Self = Self(libc::EAGAIN);
    /// No memory for buffers in the kernel just now.
    pub const NO_BUFFERS: Self = Self(libc::ENOBUFS);
    /// No memory in the kernel just now.
    pub const NO_MEMORY: Self = Self(libc::ENOMEM);
    /// The descriptor table of the shard is full.
    pub const TOO_MANY_DESCRIPTORS: Self = Self(libc::EMFILE);
    /// The operation was ended before anything came of it.
    pub const CANCELED: Self = Self(libc::ECANCELED);
    /// The peer reset the connection.
    pub const RESET: Self = Self(libc::ECONNRESET);

    /// Whether trying again later may work: the host is short, nobody is at fault.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::AGAIN | Self::NO_BUFFERS | Self::NO_MEMORY)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}
