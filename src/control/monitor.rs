//! What the shards count, over time: rates and recent times for `/v1/stats` and the live page.
//!
//! Shards only count ([`crate::shard::metrics`]); they know no rates. The control thread looks at
//! their counters once per [`INTERVAL`] and keeps the last [`SAMPLES`] looks. Whoever asks gets the
//! difference between now and one of them: the last that is not too fresh for a rate, the oldest
//! for quantiles. So an answer never waits for a sample, and a shard never for a reader.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::io::host;
use crate::shard::histogram::Counts;
use crate::shard::metrics::{Counter, ShardMetrics};
use crate::shard::thread::Observed;

/// Between two looks at the counters.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Looks that are kept: quantiles are those of the last ten seconds.
const SAMPLES: usize = 10;

/// The least time over which a rate is worth telling.
const RATE_MIN: Duration = Duration::from_millis(900);

/// See the module documentation. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Monitor {
    shards: Arc<[Observed]>,
    samples: Arc<Mutex<VecDeque<Sample>>>,
    /// In bytes; zero where the host does not tell.
    resident: Arc<AtomicU64>,
    started: Instant,
    started_at: SystemTime,
}

/// What all shards had counted at one moment.
#[derive(Debug)]
struct Sample {
    at: Instant,
    totals: Totals,
    publish_time: Counts,
    handshake_time: Counts,
    shards: Vec<ShardSample>,
}

#[derive(Debug)]
struct ShardSample {
    busy: Duration,
    messages_sent: u64,
    tick_time: Counts,
}

/// Counts since the start, or their rates, under the same names.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Totals<T = u64> {
    messages_received: T,
    messages_sent: T,
    publishes: T,
    bytes_received: T,
    bytes_sent: T,
    opened: T,
    closed: T,
}

impl Totals {
    fn add(&mut self, metrics: &ShardMetrics) {
        self.messages_received += metrics.messages.value();
        self.messages_sent += metrics.messages_sent();
        self.publishes += metrics.published.value();
        self.bytes_received += metrics.bytes_received.value();
        self.bytes_sent += metrics.bytes_sent.value();
        self.opened += metrics.opened.value();
        self.closed += metrics.closed();
    }

    fn per_second(&self, earlier: &Totals, over: Duration) -> Totals<f64> {
        let rate = |now, then| per_second(now, then, over);
        Totals {
            messages_received: rate(self.messages_received, earlier.messages_received),
            messages_sent: rate(self.messages_sent, earlier.messages_sent),
            publishes: rate(self.publishes, earlier.publishes),
            bytes_received: rate(self.bytes_received, earlier.bytes_received),
            bytes_sent: rate(self.bytes_sent, earlier.bytes_sent),
            opened: rate(self.opened, earlier.opened),
            closed: rate(self.closed, earlier.closed),
        }
    }
}

/// Zero over no time at all: nothing is known yet.
fn per_second(now: u64, then: u64, over: Duration) -> f64 {
    if over.is_zero() { 0.0 } else { rounded(now.saturating_sub(then) as f64 / over.as_secs_f64()) }
}

/// To three decimals: more mean nothing here, and make the answer unreadable.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

/// The answer of `GET /v1/stats`.
#[derive(Debug, Serialize)]
pub(super) struct Stats {
    version: &'static str,
    uptime_s: u64,
    state: &'static str,
    connections: u64,
    connections_max: usize,
    handshakes: u64,
    rooms: u64,
    members: u64,
    per_second: Totals<f64>,
    totals: Totals,
    latency_ms: Latency,
    shards: Vec<ShardStats>,
}

#[derive(Debug, Serialize)]
struct Latency {
    publish: Option<Quantiles>,
    handshake: Option<Quantiles>,
}

/// Milliseconds.
#[derive(Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct ShardStats {
    shard: usize,
    cpu: usize,
    connections: u64,
    rooms: u64,
    members: u64,
    load: f64,
    messages_sent_per_second: f64,
    mailbox_depth: u64,
    tick_p99_ms: Option<f64>,
}

impl Monitor {
    /// A monitor of `shards`, which [`Monitor::watch`] has to keep going.
    pub(super) fn new(shards: Vec<Observed>) -> Self {
        let shards: Arc<[Observed]> = shards.into();
        let first = Sample::take(&shards);
        let started = first.at;
        let monitor = Self {
            shards,
            samples: Arc::new(Mutex::new([first].into())),
            resident: Arc::default(),
            started,
            started_at: SystemTime::now(),
        };
        monitor.look_at_memory();
        monitor
    }

    /// The shards, in their order.
    pub(super) fn shards(&self) -> &[Observed] {
        &self.shards
    }

    /// The resident memory of the process at the last look, in bytes; zero if it is not known.
    pub(super) fn resident_bytes(&self) -> u64 {
        self.resident.load(Ordering::Relaxed)
    }

    /// When the server started, as seconds since 1970.
    pub(super) fn started_at(&self) -> f64 {
        let since = self.started_at.duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0.0, |since| since.as_secs_f64())
    }

    fn look_at_memory(&self) {
        self.resident.store(host::resident_bytes().unwrap_or(0), Ordering::Relaxed);
    }

    /// Looks at the counters once per [`INTERVAL`], for ever.
    pub(super) async fn watch(self) {
        loop {
            monoio::time::sleep(INTERVAL).await;
            self.look_at_memory();
            let sample = Sample::take(&self.shards);
            let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
            if samples.len() == SAMPLES {
                samples.pop_front();
            }
            samples.push_back(sample);
        }
    }

    /// What there is now and what has happened lately, by a server in this `state` that may hold
    /// `connections_max` connections.
    pub(super) fn stats(&self, state: &'static str, connections_max: usize) -> Stats {
        let now = Sample::take(&self.shards);
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = samples.front().expect("the first one is from the start");
        let is_old_enough = |sample: &&Sample| now.at - sample.at >= RATE_MIN;
        let recent = samples.iter().rfind(is_old_enough).unwrap_or(oldest);
        let over = now.at - recent.at;
        let sum = |count: fn(&ShardMetrics) -> &Counter| -> u64 {
            self.shards.iter().map(|shard| count(&shard.metrics).value()).sum()
        };
        let shard = |(index, shard): (usize, &Observed)| {
            let (now, recent) = (&now.shards[index], &recent.shards[index]);
            let busy = now.busy.saturating_sub(recent.busy);
            let ticks = &now.tick_time - &recent.tick_time;
            ShardStats {
                shard: index,
                cpu: shard.cpu,
                connections: shard.metrics.connections.value(),
                rooms: shard.metrics.rooms.value(),
                members: shard.metrics.members.value(),
                load: if over.is_zero() { 0.0 } else { rounded(busy.div_duration_f64(over)) },
                messages_sent_per_second: per_second(now.messages_sent, recent.messages_sent, over),
                mailbox_depth: shard.metrics.mailbox_depth.value(),
                tick_p99_ms: ticks.quantile(0.99).map(millis),
            }
        };
        Stats {
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: self.started.elapsed().as_secs(),
            state,
            connections: sum(|metrics| &metrics.connections),
            connections_max,
            handshakes: sum(|metrics| &metrics.handshakes),
            rooms: sum(|metrics| &metrics.rooms),
            members: sum(|metrics| &metrics.members),
            per_second: now.totals.per_second(&recent.totals, over),
            latency_ms: Latency {
                publish: Quantiles::of(&(&now.publish_time - &oldest.publish_time)),
                handshake: Quantiles::of(&(&now.handshake_time - &oldest.handshake_time)),
            },
            shards: self.shards.iter().enumerate().map(shard).collect(),
            totals: now.totals,
        }
    }
}

impl Sample {
    fn take(shards: &[Observed]) -> Self {
        let mut sample = Self {
            at: Instant::now(),
            totals: Totals::default(),
            publish_time: Counts::default(),
            handshake_time: Counts::default(),
            shards: Vec::with_capacity(shards.len()),
        };
        for Observed { metrics, clock, .. } in shards {
            sample.totals.add(metrics);
            sample.publish_time.merge(&metrics.publish_time.counts());
            sample.handshake_time.merge(&metrics.handshake_time.counts());
            sample.shards.push(ShardSample {
                busy: clock.map_or(Duration::ZERO, |clock| clock.read()),
                messages_sent: metrics.messages_sent(),
                tick_time: metrics.tick_time.counts(),
            });
        }
        sample
    }
}

impl Quantiles {
    fn of(counts: &Counts) -> Option<Self> {
        let at = |quantile| counts.quantile(quantile).map(millis);
        Some(Self { p50: at(0.5)?, p90: at(0.9)?, p99: at(0.99)?, max: at(1.0)? })
    }
}

fn millis(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1000.0)
}
