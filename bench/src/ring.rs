//! The ring of one generator thread, and the few system calls no safe crate makes.
//!
//! Owns the ring and all memory the kernel may touch: receive buffers are lent out of a pool,
//! bytes to send are moved in, and both come back with their completion. Sends and receives are
//! `MSG_DONTWAIT`, so they finish inside the enter that submits them; only polls stay armed, and
//! those name no memory. An idle connection therefore costs one armed poll in the kernel and
//! nothing here.
//!
//! - Readable is a multishot poll: edge-triggered, so the caller receives until a short read.
//! - `MSG_WAITALL` makes the kernel try the whole send before it reports a short one.
//! - A broadcast ([`Ring::send_to_all`]) completes for those alone that did not take all of it
//!   (`IOSQE_CQE_SKIP_SUCCESS`), with the flags that Fanwire's shards give ring and sends.
//! - A thread takes a private descriptor table first: `RLIMIT_NOFILE` counts per table.
//!
//! Never: interprets bytes, knows connections (a slot is a name that comes back). This is the
//! only file of the generator with unsafe code.
//!
//! Sources: io_uring_enter(2), io_uring_setup(2), close_range(2), ip(7), tcp(7).
#![allow(unsafe_code, reason = "the one file that talks to the kernel directly")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

/// Bytes one receive may bring.
pub const RECEIVE_BYTES_MAX: usize = 16 * 1024;
/// Receives in one enter: enough to spread its cost, few enough that one time stamp fits them all.
pub const RECEIVES_MAX: usize = 64;

/// Submission queue entries; a burst beyond it enters once more.
const SUBMISSIONS: u32 = 512;
/// Completion queue entries. A private table holds at most 20,000 sockets on the hosts we know,
/// and one broadcast makes them all readable; beyond it the kernel keeps the rest.
const COMPLETIONS: u32 = 32 * 1024;
/// Completions after which an enter runs no more deferred task work.
const COMPLETIONS_PER_ENTER: usize = 1024;

/// Whom an operation is for. A completion may come when its socket is long gone and the place is
/// another's: then the generation differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The connection, as its thread counts.
    pub index: u32,
    /// Which of the sockets that this connection has had; starts over after 256.
    pub generation: u8,
}

/// What the kernel says, per slot.
#[derive(Debug)]
pub enum Completion {
    /// Something can be received (or the peer is gone). `armed` says whether the poll goes on.
    Readable {
        /// The watched slot.
        slot: Slot,
        /// False: call [`Ring::watch`] again to hear more.
        armed: bool,
        /// The peer sends nothing more.
        hung_up: bool,
    },
    /// Output fits again, or a connect has finished.
    Writable {
        /// The watched slot.
        slot: Slot,
    },
    /// A receive is done. Hand the buffer back with [`Ring::give_back`].
    Received {
        /// The slot it was for.
        slot: Slot,
        /// Bytes at the start of `buffer`; 0 at the end of the stream; or an errno.
        result: Result<usize, i32>,
        /// The buffer that was lent.
        buffer: Box<[u8]>,
    },
    /// A send is done.
    Sent {
        /// The slot it was for.
        slot: Slot,
        /// Bytes taken (0 when the socket is full), or an errno.
        result: Result<usize, i32>,
        /// The bytes that were moved in.
        bytes: Vec<u8>,
    },
    /// A send of [`Ring::send_to_all`] failed, or the socket did not take all of it.
    SentShort {
        /// The slot it was for.
        slot: Slot,
    },
    /// Another thread rang the bell.
    Bell,
}

/// Wakes a thread that waits in [`Ring::enter`]. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Bell {
    file: Arc<File>,
}

impl Bell {
    /// Makes a bell.
    ///
    /// # Errors
    /// What eventfd(2) says: `EMFILE`.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd(2) touches no memory of ours.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { file: Arc::new(File::from(fd)) })
    }

    fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Wakes whoever waits on it.
    pub fn ring(&self) {
        // A non-blocking eventfd refuses only when its counter is full: then it has rung already.
        let _ = (&*self.file).write(&1_u64.to_ne_bytes());
    }
}

/// See the module documentation.
pub struct Ring {
    ring: IoUring,
    bell: Bell,
    free: Vec<Box<[u8]>>,
    /// Buffers the kernel receives into and bytes it sends from, by the index in the user data;
    /// emptied only by the completion.
    receiving: InFlight<Box<[u8]>>,
    sending: InFlight<Vec<u8>>,
    /// What staged sends to all point into, until the enter that consumes them has returned.
    sending_to_all: Vec<Arc<[u8]>>,
    /// Completions taken out to make room while submitting.
    overflow: Vec<cqueue::Entry>,
}

/// Flags of every send: it takes what fits now, all of it if that fits, and raises no SIGPIPE.
const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

/// What a completion belongs to: the upper byte of its user data.
mod kind {
    pub(super) const READABLE: u8 = 1;
    pub(super) const WRITABLE: u8 = 2;
    pub(super) const RECEIVE: u8 = 3;
    pub(super) const SEND: u8 = 4;
    pub(super) const UNWATCH: u8 = 5;
    pub(super) const BELL: u8 = 6;
    pub(super) const SEND_TO_ALL: u8 = 7;
}

impl Ring {
    /// Sets up the ring of the calling thread, which alone may use it, woken by `bell`.
    ///
    /// # Errors
    /// What io_uring_setup(2) says: `EPERM` in a sandbox, `EINVAL` before Linux 6.1.
    pub fn new(bell: Bell) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .dontfork();
        // 6.6: no indirection array between the queue and its entries. Older kernels say EINVAL.
        let ring = builder.clone().setup_no_sqarray().build(SUBMISSIONS);
        let mut ring = Self {
            ring: ring.or_else(|_| builder.build(SUBMISSIONS))?,
            bell,
            free: Vec::new(),
            receiving: InFlight::default(),
            sending: InFlight::default(),
            sending_to_all: Vec::new(),
            overflow: Vec::new(),
        };
        ring.watch_bell();
        Ok(ring)
    }

    /// Reports every time `socket` becomes readable, until [`unwatch`](Self::unwatch).
    pub fn watch(&mut self, socket: RawFd, slot: Slot) {
        let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let poll = opcode::PollAdd::new(Fd(socket), events).multi(true).build();
        self.push(poll.user_data(slot_data(kind::READABLE, slot)));
    }

    /// Ends [`watch`](Self::watch): without it a closed socket would live on in the armed poll.
    pub fn unwatch(&mut self, slot: Slot) {
        self.remove_poll(slot_data(kind::READABLE, slot));
    }

    /// Reports once that `socket` is writable.
    pub fn watch_writable(&mut self, socket: RawFd, slot: Slot) {
        let poll = opcode::PollAdd::new(Fd(socket), libc::POLLOUT as u32).build();
        self.push(poll.user_data(slot_data(kind::WRITABLE, slot)));
    }

    /// Ends [`watch_writable`](Self::watch_writable) early, for the same reason.
    pub fn unwatch_writable(&mut self, slot: Slot) {
        self.remove_poll(slot_data(kind::WRITABLE, slot));
    }

    fn remove_poll(&mut self, poll: u64) {
        let remove = opcode::PollRemove::new(poll).build().flags(squeue::Flags::SKIP_SUCCESS);
        self.push(remove.user_data(user_data(kind::UNWATCH, 0)));
    }

    /// How many more receives this enter may carry.
    #[must_use]
    pub fn receives_left(&self) -> usize {
        RECEIVES_MAX - self.receiving.len()
    }

    /// Receives up to `bytes_max` bytes, at most [`RECEIVE_BYTES_MAX`], that are there already.
    pub fn receive(&mut self, socket: RawFd, slot: Slot, bytes_max: usize) {
        let mut buffer =
            self.free.pop().unwrap_or_else(|| vec![0; RECEIVE_BYTES_MAX].into_boxed_slice());
        let len = buffer.len().min(bytes_max) as u32;
        let receive = opcode::Recv::new(Fd(socket), buffer.as_mut_ptr(), len)
            .flags(libc::MSG_DONTWAIT)
            .build();
        let index = self.receiving.insert(slot, buffer);
        self.push(receive.user_data(user_data(kind::RECEIVE, index)));
    }

    /// Takes a receive buffer back into the pool.
    pub fn give_back(&mut self, buffer: Box<[u8]>) {
        self.free.push(buffer);
    }

    /// Sends as much of `bytes` as the socket takes now. One send per slot at a time: a second
    /// one would follow a short first one and corrupt the stream.
    pub fn send(&mut self, socket: RawFd, slot: Slot, bytes: Vec<u8>) {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX >> 1);
        let send = opcode::Send::new(Fd(socket), bytes.as_ptr(), len).flags(SEND_FLAGS).build();
        let index = self.sending.insert(slot, bytes);
        self.push(send.user_data(user_data(kind::SEND, index)));
    }

    /// Sends `bytes` to each of `members`, and returns when the kernel has done so. Only who did
    /// not take all of it completes, with [`Completion::SentShort`].
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    ///
    /// # Panics
    /// From 2 GiB up, which the kernel would cut short.
    pub fn send_to_all(&mut self, members: &[(RawFd, Slot)], bytes: Arc<[u8]>) -> io::Result<()> {
        let len = i32::try_from(bytes.len()).expect("below 2 GiB").cast_unsigned();
        let pointer = bytes.as_ptr();
        self.sending_to_all.push(bytes);
        for &(socket, slot) in members {
            let send = opcode::Send::new(Fd(socket), pointer, len).flags(SEND_FLAGS).build();
            let send = send.flags(squeue::Flags::SKIP_SUCCESS);
            self.push(send.user_data(slot_data(kind::SEND_TO_ALL, slot)));
        }
        self.submit_staged()?;
        self.sending_to_all.clear();
        Ok(())
    }

    /// Submits everything and, unless completions are there already, waits for one or for
    /// `wait` to pass.
    ///
    /// # Errors
    /// What io_uring_enter(2) says beyond interruptions and lack of room, which are dealt with.
    pub fn enter(&mut self, wait: Duration) -> io::Result<()> {
        let nothing_yet = self.overflow.is_empty() && self.ring.completion().is_empty();
        let result = if nothing_yet && !wait.is_zero() {
            let timeout = Timespec::from(wait);
            self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timeout))
        } else {
            self.ring.submit()
        };
        self.check(result)?;
        self.submit_staged()?;
        self.run_deferred()
    }

    /// The next completion, if there is one.
    pub fn reap(&mut self) -> Option<Completion> {
        loop {
            let entry = self.overflow.pop().or_else(|| self.ring.completion().next())?;
            if let Some(completion) = self.translate(&entry) {
                return Some(completion);
            }
        }
    }

    fn watch_bell(&mut self) {
        // Multishot polls are edge-triggered: nobody needs to read the counter back to zero.
        let poll = opcode::PollAdd::new(Fd(self.bell.descriptor()), libc::POLLIN as u32);
        self.push(poll.multi(true).build().user_data(user_data(kind::BELL, 0)));
    }

    fn push(&mut self, entry: squeue::Entry) {
        if self.ring.submission().is_full() {
            // What is wrong with the ring now is still wrong in the next `enter`, which says so.
            let _ = self.submit_staged();
        }
        // SAFETY: the descriptor is a plain number (a stale one fails with EBADF); the memory is
        // owned by `receiving` or `sending` until the completion, or by `sending_to_all` until
        // all entries are consumed, when a send that does not wait is done; others name none.
        // Boxed memory does not move when its box does.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("submit_staged leaves the queue empty, or the ring is beyond help");
    }

    fn submit_staged(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            let result = self.ring.submit();
            self.check(result)?;
        }
        Ok(())
    }

    /// Lets the kernel run deferred work as long as that brings completions: it runs some twenty
    /// items per enter, and its flag may stay up when nothing is left (seen on 6.18).
    fn run_deferred(&mut self) -> io::Result<()> {
        let mut before = 0;
        loop {
            let len = self.ring.completion().len();
            if len <= before || len >= COMPLETIONS_PER_ENTER || !self.ring.submission().taskrun() {
                return Ok(());
            }
            before = len;
            let result = self.ring.submit();
            self.check(result)?;
        }
    }

    fn check(&mut self, result: io::Result<usize>) -> io::Result<()> {
        let Err(error) = result else { return Ok(()) };
        match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME) => Ok(()),
            // The kernel wants completions taken out, or memory: take them and try again.
            Some(libc::EBUSY | libc::EAGAIN | libc::ENOMEM) => {
                let taken: Vec<_> = self.ring.completion().collect();
                // Popped from the end, so the oldest goes last.
                self.overflow.splice(0..0, taken.into_iter().rev());
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn translate(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let (kind, number) = ((entry.user_data() >> 56) as u8, entry.user_data() as u32);
        let slot = Slot { index: number, generation: (entry.user_data() >> 32) as u8 };
        let result = match entry.result() {
            result if result < 0 => Err(-result),
            result => Ok(result.cast_unsigned() as usize),
        };
        let armed = cqueue::more(entry.flags());
        match kind {
            kind::READABLE | kind::WRITABLE if result == Err(libc::ECANCELED) => None,
            kind::READABLE => {
                let ends = (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) as usize;
                let hung_up = result.is_ok_and(|events| events & ends != 0);
                Some(Completion::Readable { slot, armed, hung_up })
            }
            kind::WRITABLE => Some(Completion::Writable { slot }),
            kind::RECEIVE => {
                let (slot, buffer) = self.receiving.remove(number);
                Some(Completion::Received { slot, result, buffer })
            }
            kind::SEND => {
                let (slot, bytes) = self.sending.remove(number);
                let result = match result {
                    Err(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => Ok(0),
                    other => other,
                };
                Some(Completion::Sent { slot, result, bytes })
            }
            kind::BELL => {
                if !armed {
                    self.watch_bell();
                }
                Some(Completion::Bell)
            }
            kind::SEND_TO_ALL => Some(Completion::SentShort { slot }),
            // The poll was gone already.
            kind::UNWATCH => None,
            _ => unreachable!("every entry carries one of our kinds"),
        }
    }
}

/// Memory in the kernel's hands, by a dense index.
#[derive(Debug)]
struct InFlight<T> {
    places: Vec<Option<(Slot, T)>>,
    free: Vec<u32>,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> InFlight<T> {
    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn insert(&mut self, slot: Slot, memory: T) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() as u32 - 1
        });
        self.places[index as usize] = Some((slot, memory));
        index
    }

    fn remove(&mut self, index: u32) -> (Slot, T) {
        self.free.push(index);
        self.places[index as usize].take().expect("one completion per operation")
    }
}

const fn user_data(kind: u8, number: u32) -> u64 {
    (kind as u64) << 56 | number as u64
}

const fn slot_data(kind: u8, slot: Slot) -> u64 {
    user_data(kind, slot.index) | (slot.generation as u64) << 32
}

/// Gives the calling thread a descriptor table of its own that holds the standard streams and
/// `bells` under their numbers, and nothing else. All bells that it may ever ring must be among
/// them: under the number of another one there may be one of its sockets later.
///
/// # Errors
/// What close_range(2) says; `EPERM` where a sandbox forbids it.
pub fn take_private_descriptor_table<'b>(bells: impl Iterator<Item = &'b Bell>) -> io::Result<()> {
    let mut keep: Vec<_> = bells.map(|bell| bell.descriptor().cast_unsigned()).collect();
    keep.sort_unstable();
    // The first call also unshares the table; an empty range (MAX..=MAX) does just that.
    close_range(u32::MAX, u32::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    let mut from = 3;
    for fd in keep.into_iter().filter(|&fd| fd >= 3) {
        if fd > from {
            close_range(from, fd - 1, 0)?;
        }
        from = fd + 1;
    }
    close_range(from, u32::MAX, 0)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: close_range touches no memory of ours. The descriptors it closes are those of this
    // thread's private table: `take_private_descriptor_table` unshares before it closes.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets `connect` choose the port, when it knows the whole address pair, instead of `bind`: one
/// source address then serves as many connections as it has ports *per target*, and the search
/// stays short (ip(7), `IP_BIND_ADDRESS_NO_PORT`). Works for IPv6 sockets, too.
///
/// # Errors
/// What setsockopt(2) says.
pub fn choose_port_at_connect(socket: RawFd) -> io::Result<()> {
    switch_on(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT)
}

/// Makes closing `socket` silent: no FIN and no RST, so that the other end stays as it was and
/// knows nothing of it, as after a power cut (tcp(7), `TCP_REPAIR`).
///
/// # Errors
/// What setsockopt(2) says: `EPERM` without CAP_NET_ADMIN.
pub fn close_silently(socket: RawFd) -> io::Result<()> {
    switch_on(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR)
}

fn switch_on(socket: RawFd, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option value is a live c_int and its length is given.
    let result = unsafe { libc::setsockopt(socket, level, option, (&raw const on).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes this thread's timeouts as exact as the hardware allows: the default slack of 50 us would
/// be a lateness of every open-loop send (prctl(2), `PR_SET_TIMERSLACK`).
pub fn set_exact_timers() {
    // SAFETY: this prctl takes a number and touches no memory. It cannot fail for slack 1.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64) };
}

/// Blocks all signals on the calling thread: the handlers write to descriptors that a private
/// table does not have.
pub fn block_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset(3) only writes the set it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` was initialised above; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    const SLOT: Slot = Slot { index: 7, generation: 3 };

    fn next(ring: &mut Ring) -> Completion {
        loop {
            if let Some(completion) = ring.reap() {
                return completion;
            }
            ring.enter(Duration::from_secs(5)).expect("enter");
        }
    }

    #[test]
    fn memory_comes_back_with_its_completion() {
        let mut ring = Ring::new(Bell::new().expect("bell")).expect("ring");
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        ring.watch(ours.as_raw_fd(), SLOT);
        ring.send(ours.as_raw_fd(), SLOT, b"ping".to_vec());
        let Completion::Sent { slot: SLOT, result: Ok(4), bytes } = next(&mut ring) else {
            panic!("the send comes first")
        };
        assert_eq!(bytes, b"ping");
        let mut read = [0; 4];
        theirs.read_exact(&mut read).expect("read");
        theirs.write_all(b"pong!").expect("write");
        let readable = next(&mut ring);
        assert!(
            matches!(readable, Completion::Readable { slot: SLOT, armed: true, hung_up: false }),
            "{readable:?}"
        );
        for (bytes_max, expected) in [(2, &b"po"[..]), (RECEIVE_BYTES_MAX, b"ng!")] {
            ring.receive(ours.as_raw_fd(), SLOT, bytes_max);
            let Completion::Received { slot: SLOT, result: Ok(len), buffer } = next(&mut ring)
            else {
                panic!("there is something to receive")
            };
            assert_eq!(&buffer[..len], expected);
            ring.give_back(buffer);
        }
        assert_eq!(ring.receives_left(), RECEIVES_MAX);
        drop(theirs);
        assert!(matches!(next(&mut ring), Completion::Readable { hung_up: true, .. }));
    }

    #[test]
    fn a_bell_rings_more_than_once_and_an_unwatched_socket_closes() {
        let bell = Bell::new().expect("bell");
        let mut ring = Ring::new(bell.clone()).expect("ring");
        for _ in 0..3 {
            bell.ring();
            assert!(matches!(next(&mut ring), Completion::Bell));
        }
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        ring.watch(ours.as_raw_fd(), SLOT);
        // One that is writable at once would have fired: this one waits.
        fill(&ours);
        ring.watch_writable(ours.as_raw_fd(), SLOT);
        ring.enter(Duration::ZERO).expect("enter");
        ring.unwatch(SLOT);
        ring.unwatch_writable(SLOT);
        drop(ours);
        ring.enter(Duration::ZERO).expect("enter");
        // The poll lets go of its socket in deferred work, which the next wait runs.
        ring.enter(Duration::from_millis(1)).expect("enter");
        theirs.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        theirs.read_to_end(&mut Vec::new()).expect("the end, not a timeout");
    }

    #[test]
    fn threads_with_tables_of_their_own_ring_each_others_bells() {
        let bells: Vec<_> = (0..3).map(|_| Bell::new().expect("bell")).collect();
        for bell in &bells {
            let other = std::thread::scope(|scope| {
                let ringer = || {
                    take_private_descriptor_table(bells.iter()).expect("a table");
                    // What takes the lowest free numbers must not be what is rung.
                    let sockets: Vec<_> =
                        (0..4).map(|_| UnixStream::pair().expect("pair")).collect();
                    bell.ring();
                    sockets.iter().all(|(ours, _)| {
                        ours.set_nonblocking(true).expect("an option");
                        (&mut &*ours).read(&mut [0]).is_err()
                    })
                };
                scope.spawn(ringer).join().expect("no panic")
            });
            assert!(other, "nothing was written to a socket");
            let mut count = [0; 8];
            (&*bell.file).read_exact(&mut count).expect("it has rung");
            assert_eq!(u64::from_ne_bytes(count), 1);
        }
    }

    fn fill(socket: &UnixStream) {
        socket.set_nonblocking(true).expect("an option");
        while (&*socket).write(&[0; 4096]).is_ok() {}
    }
}
