//! Real shards on real threads: pinned, each with a descriptor table and a ring of its own.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tracing::{info, warn};

use super::message::Control;
use super::metrics::ShardMetrics;
use super::publisher::Publisher;
use super::question::Inquirer;
use super::{ControlEnds, Ends, Shard, Status};
use crate::config::Limits;
use crate::id::HomeHasher;
use crate::io::host::{self, HostError, ListenError};
use crate::io::thread::{CpuClock, block_signals, take_private_descriptor_table};
use crate::io::uring::{Bells, Uring};

/// What to start.
#[derive(Debug)]
pub struct Plan {
    /// How many shards.
    pub shards: usize,
    /// The CPUs they are dealt to in turn; at least one.
    pub cpus: Vec<usize>,
    /// The addresses every shard listens on; no port is 0.
    pub listen: Vec<SocketAddr>,
    /// What each of them may use.
    pub limits: Limits,
}

/// Why the shards did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No descriptors for the bells.
    #[error("cannot make the eventfds that wake shards: {0}; raise RLIMIT_NOFILE (ulimit -n)")]
    Bells(io::Error),
    /// No thread.
    #[error(
        "cannot start the thread of shard {shard}: {error}; raise the limit of processes \
             (ulimit -u) or give fewer --shards"
    )]
    Thread {
        /// Which one.
        shard: usize,
        /// Why.
        error: io::Error,
    },
    /// No descriptor table.
    #[error(
        "cannot give shard {shard} a descriptor table of its own: {error}; allow the \
             close_range system call in the sandbox (seccomp)"
    )]
    Descriptors {
        /// Which one.
        shard: usize,
        /// Why.
        error: io::Error,
    },
    /// No ring.
    #[error(
        "cannot set up the io_uring of shard {shard}: {error}; free memory, raise \
             RLIMIT_MEMLOCK (ulimit -l), or give fewer --shards"
    )]
    Ring {
        /// Which one.
        shard: usize,
        /// Why.
        error: io::Error,
    },
    /// No listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The host refused something else.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A shard ended otherwise than asked: a bug of ours.
#[derive(Debug, thiserror::Error)]
#[error("shard {shard} panicked, see the message above")]
pub struct ShardPanicked {
    /// Which one.
    pub shard: usize,
}

/// Running shards.
#[derive(Debug)]
pub struct Shards {
    threads: Vec<JoinHandle<()>>,
    controls: Controls,
    /// The first shard that ends, and whether it panicked.
    ended: mpsc::Receiver<(usize, bool)>,
    observed: Vec<Observed>,
}

/// What can be seen of a running shard from outside.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The CPU that it is pinned to.
    pub cpu: usize,
    /// What it counts.
    pub metrics: Arc<ShardMetrics>,
    /// The CPU time it takes; `None` where that cannot be asked for.
    pub clock: Option<CpuClock>,
}

/// How one thread publishes to the rooms of all shards: the control thread.
#[derive(Debug)]
pub struct Publishing {
    /// The queues to and from the shards.
    pub publisher: Publisher,
    /// The same for questions; its owner sleeps and wakes with the publisher's.
    pub inquirer: Inquirer,
    /// Wakes the shards that [`Publisher::wake_shards`] names.
    pub bells: Bells,
    /// Readable when a shard wakes the thread that has said [`Publisher::fall_asleep`]; what it
    /// reads has no meaning. Non-blocking.
    pub bell: UnixStream,
}

/// Speaks to every shard. Cloning speaks to the same shards.
#[derive(Debug, Clone)]
pub struct Controls {
    producers: Arc<Mutex<Vec<rtrb::Producer<Control>>>>,
    bells: Bells,
}

impl Controls {
    /// Puts commands into these mailboxes, by shard, and rings these bells.
    #[must_use]
    pub fn new(producers: Vec<rtrb::Producer<Control>>, bells: Bells) -> Self {
        Self { producers: Arc::new(Mutex::new(producers)), bells }
    }

    /// Tells every shard to close its listeners and connections, and to end.
    pub fn drain(&self) {
        // Full only if this was said many times already: the last place is kept for it.
        let _ = self.tell(&Control::Drain, 0);
    }

    /// Tells every shard to keep to `limits` from now on.
    ///
    /// # Errors
    /// [`ShardBusy`] when one has not yet taken in what it was told before; then none is told.
    pub fn set_limits(&self, limits: Arc<Limits>) -> Result<(), ShardBusy> {
        self.tell(&Control::Limits(limits), 1)
    }

    /// Puts `control` into every shard's mailbox, or into none if that would leave fewer than
    /// `spare` places free in one of them.
    fn tell(&self, control: &Control, spare: usize) -> Result<(), ShardBusy> {
        let mut producers = self.producers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(shard) = producers.iter().position(|producer| producer.slots() <= spare) {
            return Err(ShardBusy { shard });
        }
        for (shard, producer) in producers.iter_mut().enumerate() {
            producer.push(control.clone()).expect("nobody else puts anything in");
            self.bells.ring(shard);
        }
        Ok(())
    }
}

/// The counters of all shards. Cloning counts the same.
#[derive(Debug, Clone)]
pub struct Totals(Vec<Arc<ShardMetrics>>);

impl Totals {
    /// The sum of one count over the shards.
    pub fn of(&self, count: impl Fn(&ShardMetrics) -> u64) -> u64 {
        self.0.iter().map(|metrics| count(metrics)).sum()
    }
}

/// A shard has not taken in what it was told for a long time.
#[derive(Debug, thiserror::Error)]
#[error("shard {shard} is too busy to be told; try again")]
pub struct ShardBusy {
    /// Which one.
    pub shard: usize,
}

impl Shards {
    /// Starts the shards and returns when all of them accept connections, with the way to publish
    /// to their rooms.
    ///
    /// # Errors
    /// The first thing that could not be had; the others are told to end.
    pub fn start(plan: Plan) -> Result<(Self, Publishing), StartError> {
        let Plan { shards, cpus, listen, limits } = plan;
        let (bells, bell) = Bells::new(shards).map_err(StartError::Bells)?;
        let limits = Arc::new(limits);
        let (started, outcomes) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let (ends, control_ends) = Ends::mesh(&HomeHasher::new(shards), &limits);
        let ControlEnds { controls, publisher, inquirer } = control_ends;
        let controls = Controls::new(controls, bells.clone());
        let (mut threads, mut observed) = (Vec::new(), Vec::new());
        for (index, ends) in ends.into_iter().enumerate() {
            let metrics = Arc::new(ShardMetrics::default());
            let cpu = cpus[index % cpus.len()];
            let seat = Seat {
                index,
                cpu,
                listen: listen.clone(),
                limits: Arc::clone(&limits),
                bells: bells.clone(),
                metrics: Arc::clone(&metrics),
                shards_on_cpu: shards.div_ceil(cpus.len()),
            };
            let (started, end) = (started.clone(), end.clone());
            let thread = thread::Builder::new()
                .name(format!("fanwire-shard-{index}"))
                .spawn(move || {
                    let _end = SayEnded { index, end };
                    seat.run(ends, &started);
                })
                .map_err(|error| StartError::Thread { shard: index, error })?;
            observed.push(Observed { cpu, metrics, clock: CpuClock::of(&thread) });
            threads.push(thread);
        }
        drop(started);
        let first_error = outcomes.iter().take(shards).find_map(Result::err);
        match first_error {
            None => {
                let shards = Self { threads, controls, ended, observed };
                Ok((shards, Publishing { publisher, inquirer, bells, bell }))
            }
            Some(error) => {
                controls.drain();
                Err(error)
            }
        }
    }

    /// What they count.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals(self.observed.iter().map(|shard| Arc::clone(&shard.metrics)).collect())
    }

    /// A handle that speaks to the shards.
    #[must_use]
    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// The shards as they can be seen from outside, in their order.
    #[must_use]
    pub fn observed(&self) -> Vec<Observed> {
        self.observed.clone()
    }

    /// Waits until every shard has ended.
    ///
    /// # Errors
    /// As soon as one of them has panicked.
    pub fn join(self) -> Result<(), ShardPanicked> {
        for (shard, panicked) in self.ended.iter().take(self.threads.len()) {
            if panicked {
                return Err(ShardPanicked { shard });
            }
        }
        let totals = self.totals();
        for (shard, thread) in self.threads.into_iter().enumerate() {
            thread.join().map_err(|_| ShardPanicked { shard })?;
        }
        let total = |count: fn(&ShardMetrics) -> u64| totals.of(count);
        let cut = total(|m| m.connections.value());
        if cut > 0 {
            warn!("drain_timeout is over: {cut} connections are cut");
        }
        info!(
            connections = total(|m| m.accepted.value()),
            opened = total(|m| m.opened.value()),
            refused = total(ShardMetrics::refused),
            messages = total(|m| m.messages.value()),
            published = total(|m| m.published.value()),
            sends = total(|m| m.sends.value()),
            sends_short = total(|m| m.sends_short.value()),
            slow_consumers = total(ShardMetrics::slow_consumers),
            skipped_to_newest = total(|m| m.skipped_to_newest.value()),
            dropped_oldest = total(|m| m.dropped_oldest.value()),
            pings_sent = total(|m| m.pings_sent.value()),
            pongs = total(|m| m.pongs.value()),
            pong_timeouts = total(ShardMetrics::pong_timeouts),
            drained = total(ShardMetrics::drained),
            cut,
            "drained"
        );
        Ok(())
    }
}

/// Says that the thread has ended, also when it unwinds.
struct SayEnded {
    index: usize,
    end: mpsc::Sender<(usize, bool)>,
}

impl Drop for SayEnded {
    fn drop(&mut self) {
        // Nobody listens when the start has failed.
        let _ = self.end.send((self.index, thread::panicking()));
    }
}

/// Where one shard sits and what it is given.
struct Seat {
    index: usize,
    cpu: usize,
    listen: Vec<SocketAddr>,
    limits: Arc<Limits>,
    bells: Bells,
    metrics: Arc<ShardMetrics>,
    /// How many share the CPU. They take turns tick by tick, not by the kernel's time slices of
    /// several milliseconds: with six shards on one CPU, all in a sweep over 100,000 members, the
    /// p99 of a room of two is 15 ms; it was 154 ms with ticks of 512 sends and without yielding.
    shards_on_cpu: usize,
}

impl Seat {
    fn run(self, ends: Ends, started: &mpsc::Sender<Result<(), StartError>>) {
        let uring = match self.set_up() {
            Ok(uring) => uring,
            Err(error) => return drop(started.send(Err(error))),
        };
        let Self { listen, limits, bells, metrics, shards_on_cpu, .. } = self;
        let mut shard = Shard::new(uring, listen.len(), ends, limits, metrics);
        shard.share_cpu(shards_on_cpu);
        // Nobody listens when another shard has failed to start: then the drain comes soon.
        let _ = started.send(Ok(()));
        while shard.tick() == Status::Running {
            if shards_on_cpu > 1 {
                thread::yield_now();
            }
        }
        drop(shard);
        // Publishes that came too late for it have their answer now.
        bells.ring_control();
    }

    fn set_up(&self) -> Result<Uring, StartError> {
        let shard = self.index;
        block_signals();
        if let Err(error) = host::pin(self.cpu) {
            warn!("{error}; shard {shard} runs wherever the kernel puts it");
        }
        take_private_descriptor_table(&self.bells.descriptors())
            .map_err(|error| StartError::Descriptors { shard, error })?;
        let mut uring = Uring::new(self.bells.clone(), shard)
            .map_err(|error| StartError::Ring { shard, error })?;
        for &address in &self.listen {
            uring.listen(address).map_err(|error| ListenError::new(address, error))?;
        }
        Ok(uring)
    }
}
