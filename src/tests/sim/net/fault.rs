//! What a host and its network may do to a server, and how often they have done it.

use std::time::Duration;

/// How unkind the network is.
#[derive(Debug, Clone)]
pub(in super::super) struct Faults {
    /// A send takes less than would fit.
    pub(in super::super) short_send: f64,
    /// A poll completes for nothing, per step.
    pub(in super::super) spurious: f64,
    /// The kernel has no memory to receive or send just now.
    pub(in super::super) transient: f64,
    /// An accept fails for want of descriptors or memory although there are some.
    pub(in super::super) accept_fails: f64,
    /// An accept that went well is the last one.
    pub(in super::super) accept_ends: f64,
    /// How late polls complete at most.
    pub(in super::super) poll_delay_max: Duration,
    /// Polls and accepts that complete at once; the queue is full then, accepts end, and the rest
    /// comes with the next reap.
    pub(in super::super) completions_max: usize,
    /// Sockets one shard may have open.
    pub(in super::super) descriptors_max: usize,
    /// Receives between two enters.
    pub(in super::super) receives_max: usize,
    /// Bytes of one receive.
    pub(in super::super) receive_bytes_max: usize,
    /// A receive may take less than there is.
    pub(in super::super) short_receives: bool,
}

impl Faults {
    /// None.
    pub(in super::super) const NONE: Self = Self {
        short_send: 0.0,
        spurious: 0.0,
        transient: 0.0,
        accept_fails: 0.0,
        accept_ends: 0.0,
        poll_delay_max: Duration::ZERO,
        completions_max: usize::MAX,
        descriptors_max: usize::MAX,
        receives_max: 64,
        receive_bytes_max: 16 * 1024,
        short_receives: true,
    };
}

/// Something that went wrong below or around the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Fault {
    /// A send took a part, or nothing.
    ShortSend,
    /// A send found no memory (ENOBUFS, ENOMEM): it took nothing although there was room.
    SendWithoutMemory,
    /// A receive took a part of what was there.
    PartialRead,
    /// A receive found no memory (ENOMEM).
    ReceiveWithoutMemory,
    /// A receive found no buffers (ENOBUFS).
    ReceiveWithoutBuffers,
    /// An accept found no descriptor (EMFILE, ENFILE).
    AcceptWithoutDescriptors,
    /// An accept found no memory (ENOMEM, ENOBUFS).
    AcceptWithoutMemory,
    /// A multishot accept ended although it went well.
    AcceptEnded,
    /// The completion queue was full.
    QueueFull,
    /// A poll completed late.
    LatePoll,
    /// A poll completed for nothing.
    SpuriousPoll,
    /// A shard was woken for nothing.
    SpuriousWake,
    /// A peer reset the connection; what the server had not received was lost or not.
    Reset,
    /// A receive found that the way to the peer is gone (ETIMEDOUT, EHOSTUNREACH).
    PathBroken,
    /// A peer sent no more, and read on.
    HalfClose,
    /// A shard stood still for a while.
    ShardStalled,
    /// A shard had its turn late, as always in this world.
    ShardSlow,
    /// Everything stood still and then it was much later: the process was stopped.
    ClockJumped,
    /// The host's clock was set, forward or back.
    ClockSet,
    /// After a tick of a shard something waited for room in a mailbox.
    MailboxFull,
}

impl Fault {
    /// All of them.
    pub(in super::super) const ALL: [Self; Self::MailboxFull as usize + 1] = [
        Self::ShortSend,
        Self::SendWithoutMemory,
        Self::PartialRead,
        Self::ReceiveWithoutMemory,
        Self::ReceiveWithoutBuffers,
        Self::AcceptWithoutDescriptors,
        Self::AcceptWithoutMemory,
        Self::AcceptEnded,
        Self::QueueFull,
        Self::LatePoll,
        Self::SpuriousPoll,
        Self::SpuriousWake,
        Self::Reset,
        Self::PathBroken,
        Self::HalfClose,
        Self::ShardStalled,
        Self::ShardSlow,
        Self::ClockJumped,
        Self::ClockSet,
        Self::MailboxFull,
    ];
}

/// How often each of them has happened.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Happened([u64; Fault::ALL.len()]);

impl Happened {
    /// It has happened once more.
    pub(in super::super) fn note(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    /// How often it has happened.
    pub(in super::super) fn times(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }
}
