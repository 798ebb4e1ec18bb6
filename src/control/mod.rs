//! The control thread: admin HTTP and signals, async on monoio, away from the shards.
//!
//! [`serve`] is the life of the server. On the main thread it checks the host, starts the shards
//! and this thread, says so in one line, and waits for the shards to end. This thread hands what is
//! published over HTTP to the shards and takes part in no delivery: if it is slow, nothing else is.
//!
//! ```text
//! check host -> watch signals -> probe addresses -> start shards -> start control -> "ready"
//!    first SIGTERM or SIGINT -> not ready; after drain_delay: drain shards -> they end, after
//!                               drain_timeout at the latest -> 0
//!    second one              -> exit at once, 128 + signal
//!    SIGHUP, POST /v1/reload -> read the configuration again, apply what can change at once
//! ```
//!
//! Async code lives in this module alone.

mod admin;
mod api;
mod desk;
mod drain;
mod failure;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod guard;
mod keys;
mod metrics;
mod monitor;
mod operator;
mod page;
mod profile;
mod publish;
mod questions;
mod refusal;
mod reload;
mod rooms;
mod signals;
mod startup;

use std::io;
use std::net::TcpListener;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use monoio::{FusionDriver, RuntimeBuilder};
use tracing::{info, warn};

use crate::config::{Conflict, Loaded, Switch};
use crate::io::host::{self, HostError, ListenError};
use crate::logging::Threshold;
use crate::shard::thread::{Publishing, ShardPanicked, Shards, StartError, Totals};

use api::{Api, Health, LiveLimits};
use desk::Desk;
use guard::Guard;
use keys::Keys;
use monitor::Monitor;
use refusal::Refusals;
use reload::{Reloader, SharedReloader};
use signals::{EndSignal, Signal, Signals};
use startup::Startup;

#[cfg(any(test, fuzzing))]
pub use fuzz::fuzz_admin;
pub use keys::KeyError;
pub use reload::Load;

/// Runs the server with `loaded` until it is told to stop; returns when every shard has ended. To
/// read the configuration again it calls `load`, and sets the level of `log`.
///
/// # Errors
/// [`ServeError`]: what could not be started and the remedy, or that a shard failed.
pub fn serve(loaded: Loaded, load: Load, log: Threshold) -> Result<(), ServeError> {
    let settings = &loaded.settings;
    // Before any other thread exists: from here on a signal is ours, whichever thread receives it.
    let signals = Signals::register().map_err(ServeError::Signals)?;
    if let Err(error) = host::refuse_huge_pages() {
        warn!(
            "transparent huge pages cannot be refused: {error}; where the host gives them to every \
             process an idle connection may cost six times the memory; allow \
             prctl(PR_SET_THP_DISABLE) in the sandbox, or write madvise to \
             /sys/kernel/mm/transparent_hugepage/enabled"
        );
    }
    let startup = Startup::check(settings)?;
    let admin = match settings.admin {
        Switch::Off => None,
        Switch::On(address) => Some(host::listen(address, admin::BACKLOG)?),
    };
    let admin_address = admin.as_ref().and_then(|listener| listener.local_addr().ok());
    let keys = Keys::read(&settings.admin_key_file)?;
    let is_open = settings.admin_key_file == Switch::Off;
    if let Some(address) = admin_address.filter(|it| is_open && !it.ip().is_loopback()) {
        warn!(
            "the admin interface on {address} needs no key and is not on a loopback address: \
             whoever reaches it can publish to every room and disconnect everybody"
        );
    }

    if let Some(address) = settings.open_to_all() {
        warn!(
            "listening on {address} without authentication (--insecure): whoever reaches it can \
             join every room and publish to it; give auth_keys to change that"
        );
    }

    let announcement = startup.announcement(admin_address);
    let limits = LiveLimits::new(startup.plan.limits.clone());
    let shard_count = startup.plan.shards;
    let (shards, publishing) = Shards::start(startup.plan)?;
    let controls = shards.controls();
    let (opens, level) = (keys.clone(), log.clone());
    let reloader = SharedReloader::new(Reloader {
        load,
        loaded,
        log,
        keys: opens,
        controls,
        shards: shard_count,
        limits: limits.clone(),
    });
    let monitor = Monitor::new(shards.observed());
    let admin = admin.zip(admin_address).map(|(listener, address)| Interface {
        listener,
        guard: Guard::new(keys, address),
        limits,
        publishing,
        monitor,
        reloader: reloader.clone(),
        log: level,
    });
    start_control(admin, signals, reloader, shards.totals()).map_err(ServeError::Control)?;
    info!("{announcement}");
    shards.join()?;
    info!("stopped");
    Ok(())
}

/// Starts the control thread, and returns once its runtime stands.
///
/// The thread ends with the process: it answers `/health` as long as there is a shard.
fn start_control(
    admin: Option<Interface>,
    signals: Signals,
    reloader: SharedReloader,
    totals: Totals,
) -> io::Result<()> {
    let (started, outcome) = mpsc::sync_channel(1);
    thread::Builder::new().name("fanwire-control".into()).spawn(move || {
        let runtime =
            RuntimeBuilder::<FusionDriver>::new().with_entries(RING_ENTRIES).enable_timer().build();
        let mut runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        runtime.block_on(async {
            let health = Health::default();
            monoio::spawn(give_back_memory());
            let listening = admin.map_or(Ok(()), |admin| admin.open(health.clone()));
            // Nobody waits for it only if the main thread is gone, and the process with it.
            let _ = started.send(listening);
            control(signals, health, reloader, totals).await
        });
    })?;
    outcome.recv().unwrap_or_else(|_| Err(io::Error::other("the control thread panicked")))
}

/// What the admin interface needs, if there is one.
struct Interface {
    listener: TcpListener,
    guard: Guard,
    limits: LiveLimits,
    publishing: Publishing,
    monitor: Monitor,
    reloader: SharedReloader,
    log: Threshold,
}

impl Interface {
    /// Begins to serve it, on the runtime of the calling thread.
    fn open(self, health: Health) -> io::Result<()> {
        let Self { listener, guard, limits, publishing, monitor, reloader, log } = self;
        let (desk, questions) = Desk::open(publishing)?;
        monoio::spawn(monitor.clone().watch());
        let refusals = Refusals::default();
        let api = Api { health, desk, questions, limits, monitor, reloader, log, refusals };
        api.start(listener, guard)
    }
}

async fn control(signals: Signals, health: Health, reloader: SharedReloader, totals: Totals) {
    let why = match first_end(signals, &reloader).await {
        Ok(signal) => signal.to_string(),
        Err(error) => {
            tracing::error!("signals can no longer be watched: {error}");
            "no signals".into()
        }
    };
    let (delay, limits, controls) = {
        let reloader = reloader.lock();
        let delay = reloader.loaded.settings.drain_delay;
        (delay, reloader.limits.clone(), reloader.controls.clone())
    };
    drain::drain(&why, delay, &limits, &health, &controls, &totals).await
}

/// Gives memory back that nobody needs any more, once per second, for ever.
async fn give_back_memory() {
    loop {
        monoio::time::sleep(Duration::from_secs(1)).await;
        host::give_back_memory();
    }
}

/// Waits for the first SIGTERM or SIGINT, and reloads at every SIGHUP before it.
async fn first_end(signals: Signals, reloader: &SharedReloader) -> io::Result<EndSignal> {
    let mut signals = signals.watch()?;
    loop {
        match signals.next().await? {
            // It has said what came of it.
            Signal::Reload => drop(reloader.lock().reload("SIGHUP")),
            Signal::End(signal) => return Ok(signal),
        }
    }
}

/// Operations the control thread may have waiting for submission: a few per admin connection.
const RING_ENTRIES: u32 = 256;

/// Why the server could not start, or stopped otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// An address cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The settings do not fit this host.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The admin interface has no keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// No handlers for SIGTERM, SIGINT and SIGHUP.
    #[error("cannot watch for signals: {0}")]
    Signals(io::Error),
    /// The shards did not start.
    #[error(transparent)]
    Shards(#[from] StartError),
    /// The control thread did not start.
    #[error("cannot start the control thread: {0}")]
    Control(io::Error),
    /// A shard failed; its connections are lost, and a server without one of its shards would
    /// refuse a part of its clients and rooms for no reason they can see.
    #[error("{0}; the server stops")]
    Panicked(#[from] ShardPanicked),
}
