//! What the threads of a run share: the stage, the counters, the rooms, the bells.
//!
//! The main thread alone moves the run from stage to stage; workers read it every tick. Counters
//! have one writer each (their worker) and are read by the main thread for progress, timeline and
//! figures, so relaxed order is enough everywhere: nothing else is published through them.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

use crate::measure::Clock;
use crate::ring::Bell;

/// Where a run is. Stages only go forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Connections open and join.
    Opening,
    /// The scenario does what it is for.
    Running,
    /// Nothing new is sent; what is under way arrives.
    Draining,
    /// Connections close with a closing handshake.
    Closing,
    /// Workers end.
    Ended,
}

const STAGES: [Stage; 5] =
    [Stage::Opening, Stage::Running, Stage::Draining, Stage::Closing, Stage::Ended];

/// Why a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens.
    Refused,
    /// No free source port: more `--source` addresses or a wider port range.
    NoPort,
    /// `RLIMIT_NOFILE` of the thread's table: more `--threads`.
    NoDescriptor,
    /// Any other error of connect(2).
    Connect,
    /// No answer within the handshake timeout.
    Timeout,
    /// An HTTP status other than 101.
    Status,
    /// The peer reset or ended the connection before it was open.
    HandshakeCut,
    /// What came was not the protocol.
    Protocol,
    /// Closed by the server while it was needed.
    Disconnected,
}

/// All failures with the names they have in reports, in the order of their numbers.
pub const FAILURES: [(Failure, &str); 9] = [
    (Failure::Refused, "refused"),
    (Failure::NoPort, "no_source_port"),
    (Failure::NoDescriptor, "no_descriptor"),
    (Failure::Connect, "connect"),
    (Failure::Timeout, "handshake_timeout"),
    (Failure::Status, "handshake_status"),
    (Failure::HandshakeCut, "handshake_cut"),
    (Failure::Protocol, "protocol"),
    (Failure::Disconnected, "disconnected"),
];

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one worker, which alone writes them.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
            /// Failed connections, by [`Failure`].
            pub failed: [AtomicU64; FAILURES.len()],
            /// The worst latency since the main thread last took it, in nanoseconds.
            pub worst_ns: AtomicU64,
        }

        /// The counters of all workers added up.
        #[derive(Debug, Clone, Copy, Default)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)*
            /// Failed connections, by [`Failure`].
            pub failed: [u64; FAILURES.len()],
        }

        impl Shared {
            /// Adds up all workers' counters.
            #[must_use]
            pub fn totals(&self) -> Totals {
                let mut totals = Totals::default();
                for worker in &self.workers {
                    $(totals.$name += worker.counters.$name.load(Relaxed);)*
                    for (total, failed) in totals.failed.iter_mut().zip(&worker.counters.failed) {
                        *total += failed.load(Relaxed);
                    }
                }
                totals
            }
        }
    };
}

counters! {
    /// Connections that were opened and, where they join, have joined.
    ready,
    /// Of these, how many ended again, by whomever.
    ended,
    /// Connections that ended with a close frame from both sides.
    closed_clean,
    /// Messages handed to the kernel.
    published,
    /// Of these, how many later than [`LATE_NS`] after their intended time.
    late,
    /// Messages that arrived for the first time.
    delivered,
    /// Deliveries that are still to come once nothing more is sent.
    expected,
    /// Messages that had arrived before.
    duplicated,
    /// Messages that came after a later one of the same publisher.
    reordered,
    /// Deliveries without a mark, or of another room's publisher.
    foreign,
    /// Windows given up because deliveries did not come.
    stalled,
    /// Pings answered (or seen).
    pings,
}

impl Counters {
    /// Notes a latency for the timeline's worst.
    pub fn worst(&self, ns: u64) {
        if ns > self.worst_ns.load(Relaxed) {
            self.worst_ns.fetch_max(ns, Relaxed);
        }
    }
}

/// A send this much after its intended time is late: the generator, not the server, was slow.
pub const LATE_NS: u64 = 1_000_000;

/// One worker as the others see it.
#[derive(Debug)]
pub struct Worker {
    /// See [`Counters`].
    pub counters: Counters,
    /// Wakes it.
    pub bell: Bell,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Shared {
    /// The clock of the run.
    pub clock: Clock,
    /// All workers.
    pub workers: Vec<Worker>,
    /// Ready members per room.
    pub rooms: Vec<AtomicU32>,
    stage: AtomicU8,
    measure_from: AtomicU64,
    measure_until: AtomicU64,
}

impl Shared {
    /// The state at the start of a run.
    #[must_use]
    pub fn new(bells: Vec<Bell>, rooms: u32) -> Self {
        let worker = |bell| Worker { counters: Counters::default(), bell };
        Self {
            clock: Clock::start(),
            workers: bells.into_iter().map(worker).collect(),
            rooms: (0..rooms).map(|_| AtomicU32::new(0)).collect(),
            stage: AtomicU8::new(Stage::Opening as u8),
            measure_from: AtomicU64::new(u64::MAX),
            measure_until: AtomicU64::new(u64::MAX),
        }
    }

    /// Where the run is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        STAGES[usize::from(self.stage.load(Relaxed))]
    }

    /// Moves the run on and wakes every worker.
    pub fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Relaxed);
        for worker in &self.workers {
            worker.bell.ring();
        }
    }

    /// Sets when figures begin (nanoseconds on the clock).
    pub fn measure_from(&self, ns: u64) {
        self.measure_from.store(ns, Relaxed);
    }

    /// Sets when figures end.
    pub fn measure_until(&self, ns: u64) {
        self.measure_until.store(ns, Relaxed);
    }

    /// Whether something meant for `ns` belongs into the figures.
    #[must_use]
    pub fn measures(&self, ns: u64) -> bool {
        self.measure_from.load(Relaxed) <= ns && ns < self.measure_until.load(Relaxed)
    }

    /// Takes the worst latency since the last call.
    #[must_use]
    pub fn take_worst_ns(&self) -> u64 {
        let worst = self.workers.iter().map(|worker| worker.counters.worst_ns.swap(0, Relaxed));
        worst.max().unwrap_or(0)
    }
}

/// Adds to a counter that this thread alone writes: no locked instruction.
pub fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed) + more, Relaxed);
}
