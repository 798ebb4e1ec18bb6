//! The real [`Io`]: one io_uring, driven by one thread.
//!
//! Owns the ring, the shard's listeners and every piece of memory the kernel may touch. Requests
//! are inline wherever the kernel allows it: `MSG_DONTWAIT` sends and receives finish inside the
//! enter that submits them, so their memory is in use for the length of one enter. Only accepts
//! and polls stay armed, and those name no memory at all; that is why this file is short.
//!
//! - A full send completes without a word (`IOSQE_CQE_SKIP_SUCCESS`); `MSG_WAITALL` makes a short
//!   one say how much it took. Without it a short send would be silent and corrupt the stream.
//! - Deferred task work (`IORING_SETUP_DEFER_TASKRUN`) runs some twenty items per enter; we
//!   enter again as long as more is pending, that brings completions, and the batch is small.
//! - The completion queue is far larger than what one tick can post (bounded sends, bounded
//!   receives, bounded re-entry), so it does not overflow; if it did, the kernel keeps the
//!   rest (`IORING_FEAT_NODROP`) and the next enter brings it.
//!
//! **Waking.** A shard wakes another by writing to its eventfd ([`Bells`]), on which that one has a
//! multishot poll. It does so only if the other sleeps ([`super::mailbox`]): under load nobody
//! does, and how it is done does not matter. (Rejected: `IORING_OP_MSG_RING`, a completion posted
//! into the other's ring. A ping-pong of two shards that sleep in between takes 0.86 times the
//! CPU that way on one CPU, but a room over four shards on two CPUs is no faster, 0.97 times with
//! one message under way and 0.98 with 16: the entry waits in the queue behind all sends of the
//! tick, where the write goes ahead of them. For that, every shard would keep every ring's
//! descriptor, no table could become private before the last ring is there, and the control
//! thread, which has no ring, would need the eventfds still.)
//!
//! **Waiting.** An enter waits only when there is nothing to do, and then for one completion. So
//! batches find their size by themselves: a tick takes in what has come during the last one. When
//! little comes that is one message, answered at once; when much comes ticks are longer, each
//! brings more, and system calls and wake-ups are shared by more messages. (Rejected: a minimum
//! wait, `min_wait_usec` of Linux 6.12, for 16 completions or 50 us, or 64 or 200 us. A sleeping
//! shard is rung once, so more completions do not come: rooms with one message under way are 0.47
//! and 0.21 times as fast, for 1.6 and 1.7 times the CPU. With 16 it saves nothing, since a shard
//! that is busy does not wait.)
//!
//! **Looking out.** A thread that sleeps has to be woken by whoever brings it work, and on a
//! virtual CPU that has halted this takes the other side several microseconds. So where the shard
//! expects more at once ([`Io::look_out`]: connections are being opened), an enter looks for it for
//! up to [`LOOK_OUT`] before it sleeps; while that is in vain it is tried less and less often. A
//! storm of connections is opened 1.15 times as fast that way. (Rejected: to do so always. Ticks
//! get shorter then and share less: in many rooms of two 0.93 times the deliveries.)
//!
//! Figures are from results/README.md, "Waking and waiting".
//!
//! Sources: io_uring_enter(2), io_uring_setup(2), Axboe, "Efficient IO with io_uring".

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::buffers::{Lease, RECEIVE_BYTES_MAX, RECEIVES_MAX, ReceivePool};
use super::{Completion, Errno, Io, Operation, Pressure, Shutdown, Socket, Token, Wait, socket};

/// Submission queue entries: a tick's sends fit, a burst beyond it enters once more.
const SUBMISSIONS: u32 = 1024;
/// Completion queue entries; see the module documentation.
const COMPLETIONS: u32 = 32 * 1024;
/// How long an enter looks out before it sleeps.
const LOOK_OUT: Duration = Duration::from_micros(50);
/// Enters that at most pass without it, after it was in vain.
const LOOK_OUT_REST_MAX: u32 = 63;
/// Completions after which one `enter` runs no more deferred task work.
const COMPLETIONS_PER_ENTER: usize = 1024;

/// One eventfd per shard, by which others wake it, and a socket for the control thread. Cloning
/// shares them.
#[derive(Debug, Clone)]
pub struct Bells {
    files: Arc<[File]>,
    control: Arc<UnixStream>,
}

impl Bells {
    /// One bell for each of `shards` shards and one for the control thread, which hears it as
    /// bytes in the socket that comes with them: its runtime can wait for sockets only.
    ///
    /// # Errors
    /// What eventfd(2) and socketpair(2) say: `EMFILE` when the descriptors do not suffice.
    pub fn new(shards: usize) -> io::Result<(Self, UnixStream)> {
        let files = (0..shards).map(|_| eventfd()).collect::<io::Result<_>>()?;
        let (control, heard) = UnixStream::pair()?;
        control.set_nonblocking(true)?;
        heard.set_nonblocking(true)?;
        Ok((Self { files, control: Arc::new(control) }, heard))
    }

    /// Their descriptors: a shard's private table must keep them.
    #[must_use]
    pub fn descriptors(&self) -> Vec<RawFd> {
        let control = self.control.as_raw_fd();
        self.files.iter().map(AsRawFd::as_raw_fd).chain([control]).collect()
    }

    /// Wakes shard number `index`.
    pub fn ring(&self, index: usize) {
        // A non-blocking eventfd refuses only when its counter is full: then it has rung already.
        let _ = (&self.files[index]).write(&1_u64.to_ne_bytes());
    }

    /// Wakes the control thread.
    pub fn ring_control(&self) {
        // Refused only when the socket is full of rings, or there is nobody to hear them.
        let _ = (&*self.control).write(&[1]);
    }
}

/// See the module documentation.
pub struct Uring {
    ring: IoUring,
    now: Instant,
    listeners: Vec<Option<socket2::Socket>>,
    bells: Bells,
    bell: usize,
    pool: ReceivePool,
    /// Buffers the kernel is receiving into, by the index in their user data.
    receiving: Vec<Option<(Token, Lease)>>,
    receiving_free: Vec<u8>,
    /// What staged sends point into, until the enter that consumes them has returned.
    sending: Vec<Bytes>,
    /// `shutdown(2)` calls to make once everything staged before them has gone.
    shutdowns: Vec<(Socket, Shutdown)>,
    /// Completions taken out of the ring to make room while submitting.
    overflow: VecDeque<cqueue::Entry>,
    /// How often the kernel said that the completion queue is full.
    overflows: u64,
    look_out: LookOut,
}

/// What a completion belongs to: the upper byte of its user data.
mod kind {
    pub(super) const ACCEPT: u8 = 1;
    pub(super) const READABLE: u8 = 2;
    pub(super) const WRITABLE: u8 = 3;
    pub(super) const RECEIVE: u8 = 4;
    pub(super) const SEND: u8 = 5;
    pub(super) const CLOSE: u8 = 6;
    pub(super) const BELL: u8 = 7;
    pub(super) const CANCEL: u8 = 8;
}

impl Uring {
    /// Sets up the ring of the calling thread, which alone may use it from then on, woken by
    /// `bells` number `bell`.
    ///
    /// # Errors
    /// What io_uring_setup(2) says. [`super::host`] has checked beforehand and explains better.
    pub fn new(bells: Bells, bell: usize) -> io::Result<Self> {
        let mut uring = Self {
            ring: build_ring(SUBMISSIONS, COMPLETIONS)?,
            now: Instant::now(),
            listeners: Vec::new(),
            bells,
            bell,
            pool: ReceivePool::default(),
            receiving: (0..RECEIVES_MAX).map(|_| None).collect(),
            receiving_free: (0..RECEIVES_MAX as u8).rev().collect(),
            sending: Vec::new(),
            shutdowns: Vec::new(),
            overflow: VecDeque::new(),
            overflows: 0,
            look_out: LookOut::default(),
        };
        uring.watch_bell();
        Ok(uring)
    }

    /// Adds a listener on `address`; listeners count from 0.
    ///
    /// # Errors
    /// See [`socket::listen`].
    pub fn listen(&mut self, address: SocketAddr) -> io::Result<()> {
        self.listeners.push(Some(socket::listen(address)?));
        Ok(())
    }

    fn watch_bell(&mut self) {
        let bell = self.bells.files[self.bell].as_raw_fd();
        // Multishot polls are edge-triggered: nobody needs to read the counter back to zero.
        let poll = opcode::PollAdd::new(Fd(bell), libc::POLLIN as u32).multi(true).build();
        self.push(poll.user_data(user_data(kind::BELL, 0)));
    }

    fn accept(&mut self, listener: usize) {
        let Some(Some(socket)) = self.listeners.get(listener) else {
            return;
        };
        let accept = opcode::AcceptMulti::new(Fd(socket.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
            .build();
        self.push(accept.user_data(user_data(kind::ACCEPT, listener as u64)));
    }

    fn pause_accept(&mut self, listener: usize) {
        let cancel = opcode::AsyncCancel::new(user_data(kind::ACCEPT, listener as u64)).build();
        self.push(cancel.user_data(user_data(kind::CANCEL, 0)));
    }

    fn close_listener(&mut self, listener: usize) {
        if let Some(socket) = self.listeners.get_mut(listener).and_then(Option::take) {
            self.submit_staged();
            // Ends the armed accept; closing alone would leave it armed and the port open.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    fn poll(&mut self, kind: u8, socket: Socket, events: i16, token: Token) {
        let poll = opcode::PollAdd::new(fd(socket), events as u32).build();
        self.push(poll.user_data(user_data(kind, token.number())));
    }

    fn receive(&mut self, socket: Socket, token: Token) {
        let mut lease = self.pool.lend();
        let index = self.receiving_free.pop().expect("as many places as buffers");
        let receive = opcode::Recv::new(fd(socket), lease.as_mut_ptr(), RECEIVE_BYTES_MAX as u32)
            .flags(libc::MSG_DONTWAIT)
            .build();
        self.receiving[usize::from(index)] = Some((token, lease));
        self.push(receive.user_data(user_data(kind::RECEIVE, u64::from(index))));
    }

    fn send(&mut self, socket: Socket, token: Token, bytes: &Bytes, from: usize) {
        let rest = &bytes[from..];
        // A sweep sends the same bytes to thousands: one reference for all of them.
        if self.sending.last().is_none_or(|last| last.as_ptr_range() != bytes.as_ptr_range()) {
            self.sending.push(bytes.clone());
        }
        let len = u32::try_from(rest.len()).unwrap_or(u32::MAX >> 1);
        let flags = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let mut send = opcode::Send::new(fd(socket), rest.as_ptr(), len).flags(flags).build();
        if rest.len() == len as usize {
            send = send.flags(squeue::Flags::SKIP_SUCCESS);
        }
        self.push(send.user_data(user_data(kind::SEND, token.number())));
    }

    fn close(&mut self, socket: Socket) {
        // A close does what they would have done; later the number may be another connection's.
        self.shutdowns.retain(|&(other, _)| other != socket);
        let close = opcode::Close::new(fd(socket)).build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(close.user_data(user_data(kind::CLOSE, 0)));
    }

    /// Puts one entry into the submission queue, and makes room first if there is none.
    fn push(&mut self, entry: squeue::Entry) {
        if self.ring.submission().is_full() {
            self.submit_staged();
        }
        // SAFETY: the entry's descriptor is a plain number (a stale one fails with EBADF), and
        // the memory it names is owned by `self` until the kernel is done with it: sends by
        // `sending`, receives by `receiving`; both finish inside the enter that consumes them
        // (MSG_DONTWAIT), and `submit_staged` releases nothing before. Other entries name none.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("submit_staged leaves the queue empty");
    }

    /// Hands everything staged to the kernel without waiting; then makes the shutdowns that were
    /// asked for behind it.
    fn submit_staged(&mut self) {
        while !self.ring.submission().is_empty() {
            let result = self.ring.submit();
            self.check(result);
        }
        self.release();
        for (socket, how) in self.shutdowns.drain(..) {
            let how = match how {
                Shutdown::Write => libc::SHUT_WR,
                Shutdown::Both => libc::SHUT_RDWR,
            };
            // SAFETY: shutdown(2) touches no memory of ours; the number is a socket of this
            // thread's private table, or the call fails. ENOTCONN means the peer was first.
            unsafe { libc::shutdown(socket.0.cast_signed(), how) };
        }
    }

    /// The kernel has consumed every send: what they pointed into may go.
    fn release(&mut self) {
        debug_assert!(self.ring.submission().is_empty());
        self.sending.clear();
    }

    /// Lets the kernel run what it has deferred and not got round to, as long as that brings
    /// completions. The flag alone proves nothing: the kernel may raise it just after it has run
    /// the work it was raised for, and then it stays up until there is more (seen on 6.18).
    fn run_deferred(&mut self) {
        let mut before = 0;
        loop {
            let len = self.ring.completion().len();
            let came = len > before;
            if !came || len >= COMPLETIONS_PER_ENTER || !self.ring.submission().taskrun() {
                return;
            }
            before = len;
            let result = self.ring.submit();
            self.check(result);
        }
    }

    fn has_nothing(&mut self) -> bool {
        self.overflow.is_empty() && self.ring.completion().is_empty()
    }

    /// Submits, and looks for something to come until it is there or has not come in time. What
    /// was deferred counts: the enter that follows runs it.
    fn watch(&mut self) {
        let result = self.ring.submit();
        self.check(result);
        let end = Instant::now() + LOOK_OUT;
        let came = loop {
            if !self.has_nothing() || self.ring.submission().taskrun() {
                break true;
            }
            if Instant::now() >= end {
                break false;
            }
            std::hint::spin_loop();
        };
        self.look_out.learn(came);
    }

    /// Deals with what an enter can say; everything else is a bug of ours.
    fn check(&mut self, result: io::Result<usize>) {
        let Err(error) = result else { return };
        match error.raw_os_error() {
            // A signal, the timeout: nothing to do, the caller looks at the queues.
            Some(libc::EINTR | libc::ETIME) => {}
            // The kernel wants completions taken out, or memory: take them and try again.
            Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {
                self.overflow.extend(self.ring.completion());
            }
            _ => panic!("io_uring_enter failed: {error}"),
        }
    }

    fn translate(&mut self, entry: &cqueue::Entry) -> Option<Completion<Lease>> {
        let (kind, number) = ((entry.user_data() >> 56) as u8, entry.user_data() & NUMBER);
        let result = match entry.result() {
            result if result < 0 => Err(Errno(-result)),
            result => Ok(result.cast_unsigned()),
        };
        let more = cqueue::more(entry.flags());
        Some(match kind {
            kind::ACCEPT => {
                Completion::Accepted { listener: number as usize, result: result.map(Socket), more }
            }
            kind::READABLE => Completion::Readable(Token::new(number)),
            kind::WRITABLE => Completion::Writable(Token::new(number)),
            kind::RECEIVE => {
                let place = &mut self.receiving[number as usize];
                let (token, mut lease) = place.take().expect("one completion per receive");
                self.receiving_free.push(number as u8);
                Completion::Received(
                    token,
                    result.map(|len| {
                        lease.truncate(len as usize);
                        lease
                    }),
                )
            }
            kind::SEND => {
                let taken = match result {
                    Err(errno) if errno.is_transient() => Ok(0),
                    other => other.map(|len| len as usize),
                };
                Completion::SentShort(Token::new(number), taken)
            }
            kind::BELL => {
                if !more {
                    self.watch_bell();
                }
                Completion::Woken
            }
            // A close that fails has nothing to say to anyone: the descriptor was gone already.
            // What was to be cancelled says so itself, unless it had ended before.
            kind::CLOSE | kind::CANCEL => return None,
            _ => unreachable!("every entry carries one of our kinds"),
        })
    }
}

impl Io for Uring {
    type Lease = Lease;

    fn now(&self) -> Instant {
        self.now
    }

    fn peer_address(&self, socket: Socket) -> Option<SocketAddr> {
        socket::peer_address(socket)
    }

    fn clock(&self) -> Instant {
        Instant::now()
    }

    fn unix_time(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    fn pressure(&self) -> Pressure {
        Pressure { receive_buffers: self.pool.made(), overflows: self.overflows }
    }

    fn receives_left(&self) -> usize {
        self.pool.left()
    }

    fn receive_bytes_max(&self) -> usize {
        RECEIVE_BYTES_MAX
    }

    fn submit(&mut self, operation: Operation<'_>) {
        match operation {
            Operation::Accept { listener } => self.accept(listener),
            Operation::PauseAccept { listener } => self.pause_accept(listener),
            Operation::CloseListener { listener } => self.close_listener(listener),
            Operation::PollReadable { socket, token } => {
                self.poll(kind::READABLE, socket, libc::POLLIN | libc::POLLRDHUP, token);
            }
            Operation::PollWritable { socket, token } => {
                self.poll(kind::WRITABLE, socket, libc::POLLOUT, token);
            }
            Operation::Receive { socket, token } => self.receive(socket, token),
            Operation::Send { socket, token, bytes, from } => self.send(socket, token, bytes, from),
            Operation::Shutdown { socket, how } => self.shutdowns.push((socket, how)),
            Operation::Close { socket } => self.close(socket),
            Operation::Wake { shard } => self.bells.ring(shard.index()),
            Operation::WakeControl => self.bells.ring_control(),
        }
    }

    fn look_out(&mut self) {
        self.look_out.wanted = true;
    }

    fn enter(&mut self, wait: Wait) {
        if !self.shutdowns.is_empty() {
            self.submit_staged();
        }
        self.overflows += u64::from(self.ring.submission().cq_overflow());
        let looks_out = self.look_out.take();
        if looks_out && wait != Wait::No && self.has_nothing() {
            self.watch();
        }
        let nothing_yet = self.has_nothing();
        let result = match wait {
            Wait::Until(deadline) if nothing_yet => {
                let left = deadline.saturating_duration_since(Instant::now());
                let timeout = Timespec::from(left);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
            }
            Wait::Forever if nothing_yet => self.ring.submit_and_wait(1),
            _ => self.ring.submit(),
        };
        self.check(result);
        self.submit_staged();
        self.run_deferred();
        self.now = Instant::now();
    }

    fn reap(&mut self, completions: &mut Vec<Completion<Lease>>) {
        loop {
            let entry = match self.overflow.pop_front() {
                Some(entry) => entry,
                None => match self.ring.completion().next() {
                    Some(entry) => entry,
                    None => return,
                },
            };
            if let Some(completion) = self.translate(&entry) {
                completions.push(completion);
            }
        }
    }
}

/// Whether it is worth to look for what comes before sleeping.
#[derive(Debug, Default)]
struct LookOut {
    /// Asked for, since the last enter.
    wanted: bool,
    /// Calls to let pass before the next try.
    rest: u32,
    /// So many after the next one that is in vain.
    next_rest: u32,
}

impl LookOut {
    /// Whether to look out in this enter.
    fn take(&mut self) -> bool {
        let wanted = std::mem::take(&mut self.wanted);
        let due = wanted && self.rest == 0;
        self.rest -= u32::from(wanted && !due);
        due
    }

    /// Something `came`, or it was in vain: whoever should bring it may need this very CPU.
    fn learn(&mut self, came: bool) {
        if came {
            self.next_rest = 0;
        } else {
            self.rest = self.next_rest;
            self.next_rest = (2 * self.next_rest + 1).min(LOOK_OUT_REST_MAX);
        }
    }
}

/// A ring with the features every supported kernel has (6.1), and the optional ones it offers.
fn build_ring(submissions: u32, completions: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(completions)
        .dontfork();
    // 6.6: no indirection array between the queue and its entries. Older kernels say EINVAL.
    builder.clone().setup_no_sqarray().build(submissions).or_else(|_| builder.build(submissions))
}

fn eventfd() -> io::Result<File> {
    // SAFETY: eventfd(2) touches no memory of ours.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

const NUMBER: u64 = (1 << 56) - 1;

const fn user_data(kind: u8, number: u64) -> u64 {
    (kind as u64) << 56 | number
}

const fn fd(socket: Socket) -> Fd {
    Fd(socket.0.cast_signed())
}

#[cfg(test)]
mod tests;
