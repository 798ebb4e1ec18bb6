//! What the threads of a run share: the stage, the counters, the rooms, the bells.
//!
//! The classes of load (see [`beside`](crate::beside)) share nothing but the clock: each has all of
//! this for itself, and all are in the same stage.
//!
//! The main thread alone moves the run from stage to stage, and a storm from wave to wave; workers
//! read both every tick. Counters have one writer each (their worker) and are read by the main
//! thread for progress, timeline and figures, so relaxed order is enough: nothing else is published
//! through them. The one exception is [`Worker::wave`], which comes after the counters of the waves
//! before.

use std::ops::Add;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
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

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one worker, which alone writes them.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
            /// The worst latency since the main thread last took it, in nanoseconds.
            pub worst_ns: AtomicU64,
            /// When a connection last became ready, on the clock.
            pub ready_ns: AtomicU64,
        }

        /// The counters of all workers added up.
        #[derive(Debug, Clone, Copy, Default)]
        pub struct Totals {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Add for Totals {
            type Output = Self;

            fn add(self, other: Self) -> Self {
                Self { $($name: self.$name + other.$name,)* }
            }
        }

        impl Shared {
            /// Adds up all workers' counters.
            #[must_use]
            pub fn totals(&self) -> Totals {
                let mut totals = Totals::default();
                for worker in &self.workers {
                    $(totals.$name += worker.counters.$name.load(Relaxed);)*
                }
                totals
            }
        }
    };
}

counters! {
    /// Connections that are still to become ready. A worker begins with all of its own.
    awaited,
    /// Connections that were opened and, where they join, have joined.
    ready,
    /// Of these, how many ended again, by whomever.
    ended,
    /// Failed attempts to connect, and connections that ended while they were needed.
    failed,
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
    /// The server's pings.
    pings_received,
    /// Of these, how many were answered.
    pings_answered,
    /// Our own pings.
    pings_sent,
    /// The answers to them.
    pongs_received,
    /// Bytes that slow readers have taken.
    slow_bytes,
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
    /// The wave it has begun: its connections that are to drop have begun to.
    pub wave: AtomicU32,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Shared {
    /// The clock of the run, the same in all classes.
    pub clock: Clock,
    /// All workers.
    pub workers: Vec<Worker>,
    /// Ready members per room.
    pub rooms: Vec<AtomicU32>,
    stage: AtomicU8,
    wave: AtomicU32,
    measure_from: AtomicU64,
    measure_until: AtomicU64,
}

impl Shared {
    /// The state at the start of a run.
    #[must_use]
    pub fn new(bells: Vec<Bell>, rooms: u32, clock: Clock) -> Self {
        let worker = |bell| Worker { counters: Counters::default(), bell, wave: AtomicU32::new(0) };
        Self {
            clock,
            workers: bells.into_iter().map(worker).collect(),
            rooms: (0..rooms).map(|_| AtomicU32::new(0)).collect(),
            stage: AtomicU8::new(Stage::Opening as u8),
            wave: AtomicU32::new(0),
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
        self.wake();
    }

    /// The wave a storm is in; 0 is the opening.
    #[must_use]
    pub fn wave(&self) -> u32 {
        self.wave.load(Relaxed)
    }

    /// Begins the next wave: connections drop and come back.
    pub fn next_wave(&self) {
        self.wave.fetch_add(1, Relaxed);
        self.wake();
    }

    /// Whether every worker has begun the wave that was asked for. What it counted before that
    /// is counted.
    #[must_use]
    pub fn has_wave_begun(&self) -> bool {
        let wave = self.wave();
        self.workers.iter().all(|worker| worker.wave.load(Acquire) == wave)
    }

    fn wake(&self) {
        for worker in &self.workers {
            worker.bell.ring();
        }
    }

    /// When a connection last became ready, on the clock.
    #[must_use]
    pub fn last_ready_ns(&self) -> u64 {
        let last = self.workers.iter().map(|worker| worker.counters.ready_ns.load(Relaxed));
        last.max().unwrap_or(0)
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
