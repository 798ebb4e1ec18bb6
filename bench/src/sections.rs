//! The parts of a report that only some runs have.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::host::Usage;
use crate::report::{Distribution, Traffic};

/// See the module documentation. In `report.json` these stand beside the other parts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sections {
    /// Each `--hold`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<Hold>,
    /// Pings and pongs over the whole run; absent where there were none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Heartbeat>,
    /// What a storm did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm: Option<Storm>,
    /// What became of the slow readers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow: Option<Slow>,
    /// The classes of load beside the main one, by name: `rooms`, `echoes`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<String, Beside>,
    /// Kernel memory by object, where /proc/slabinfo may be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
    /// The largest resident set of the process of `--pid` in the timeline, in KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_rss_kib_max: Option<u64>,
}

/// One hold of open connections.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hold {
    /// How long it was.
    pub seconds: f64,
    /// CPUs the generator kept busy.
    pub generator_cpus: f64,
    /// CPUs the process of `--pid` kept busy.
    pub server_cpus: Option<f64>,
    /// What that process used at the end.
    pub server: Option<Usage>,
    /// Kernel slab per connection in bytes at the end, of both ends if both are here.
    pub slab_bytes_per_connection: Option<f64>,
    /// The server's pings.
    pub pings_received: u64,
    /// Of these, how many were answered.
    pub pings_answered: u64,
}

/// Pings and pongs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The server's pings.
    pub pings_received: u64,
    /// Of these, how many were answered.
    pub pings_answered: u64,
    /// Our own pings (`--ping-interval`).
    pub pings_sent: u64,
    /// The answers to them.
    pub pongs_received: u64,
    /// From the time a ping was due to its pong.
    pub round_trip: Option<Distribution>,
}

/// What a storm did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Storm {
    /// Handshakes of the opening and all waves.
    pub handshake: Distribution,
    /// Wave by wave, without the opening.
    pub waves: Vec<Wave>,
}

/// One wave of a storm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wave {
    /// Connections that dropped at its start.
    pub dropped: u64,
    /// Handshakes that succeeded until the next wave.
    pub back: u64,
    /// Connections that were not back within `--back-within`.
    pub missing: u64,
    /// From the drop until all were back, or until that time was over.
    pub seconds: f64,
    /// Mean rate of successful handshakes.
    pub per_second: f64,
    /// From before connect(2) of the attempt that succeeded to ready.
    pub handshake: Distribution,
    /// Attempts that failed and were made again, and connections that ended while they stayed.
    pub failed: BTreeMap<String, u64>,
}

/// What became of the slow readers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Slow {
    /// How many there were.
    pub connections: u64,
    /// Of these, how many were still connected when they had read all that was left.
    pub open: u64,
    /// The others by what ended them: a close code, a reset, the end of the stream.
    pub ended: BTreeMap<String, u64>,
    /// Bytes that all of them read until the end of the measured window.
    pub bytes_under_load: u64,
    /// Bytes that all of them read, with what was left for them at the end.
    pub bytes: u64,
}

/// Small rooms, or echoes, beside the main load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Beside {
    /// Connections that opened (and joined).
    pub connections: u64,
    /// What was sent and delivered there.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Kernel memory by object: live objects times the share of a slab page that each takes, of the
/// caches that every connection has something in. Finer than `slab_bytes_per_connection`, which
/// counts whole pages, with what the rest of the host has in them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kernel {
    /// Per connection, of both ends if both are here.
    pub both_bytes_per_connection: f64,
    /// What was left per connection when the generator's ends had vanished (`--vanish`).
    pub server_bytes_per_connection: Option<f64>,
    /// The difference: the generator's own.
    pub generator_bytes_per_connection: Option<f64>,
    /// Whether the kernel had come to rest when that was read.
    pub settled: Option<bool>,
    /// The caches that grew most.
    pub caches: Vec<Cache>,
}

/// One cache of /proc/slabinfo.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cache {
    /// Its name; the kernel gives caches of like objects one name.
    pub name: String,
    /// Bytes an object takes, its share of the page included.
    pub object_bytes: f64,
    /// Objects per connection, of both ends if both are here.
    pub objects_per_connection: f64,
    /// What was left of these when the generator's ends had vanished.
    pub server_objects_per_connection: Option<f64>,
}

impl fmt::Display for Sections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for hold in &self.holds {
            let Hold { seconds, generator_cpus, pings_received, pings_answered, .. } = hold;
            write!(f, "held        {seconds:.1} s: generator {generator_cpus:.3} CPUs")?;
            if let Some(cpus) = hold.server_cpus {
                write!(f, ", server {cpus:.3} CPUs")?;
            }
            if let Some(Usage { rss_kib, .. }) = hold.server {
                write!(f, ", RSS {:.1} MiB", rss_kib as f64 / 1024.0)?;
            }
            writeln!(f, ", {pings_received} pings received, {pings_answered} answered")?;
        }
        if let Some(Heartbeat { pings_sent, pongs_received, round_trip: Some(time), .. }) =
            &self.heartbeat
        {
            writeln!(f, "pings       {pings_sent} sent, {pongs_received} answered")?;
            writeln!(f, "round trip  {time}")?;
        }
        for (index, wave) in self.storm.iter().flat_map(|storm| &storm.waves).enumerate() {
            let Wave { dropped, back, missing, seconds, per_second, handshake, failed } = wave;
            let (number, attempts) = (index + 1, failed.values().sum::<u64>());
            writeln!(
                f,
                "wave {number:<6} {dropped} dropped, {back} back in {seconds:.2} s, \
                 {per_second:.0}/s, {missing} missing, {attempts} attempts failed"
            )?;
            writeln!(f, "  handshake {handshake}")?;
        }
        if let Some(Slow { connections, open, ended, bytes_under_load, bytes }) = &self.slow {
            write!(f, "slow        {connections} connections: {open} still open")?;
            for (cause, count) in ended {
                write!(f, ", {count} {cause}")?;
            }
            writeln!(f, "; read {bytes_under_load} B under load, {bytes} B in all")?;
        }
        for (name, Beside { connections, traffic }) in &self.beside {
            let Traffic { published, delivered, latency, .. } = traffic;
            writeln!(
                f,
                "beside      {name}: {connections} connections, {published} messages \
                 {delivered} times"
            )?;
            writeln!(f, "  latency   {latency}")?;
        }
        if let Some(rss_kib) = self.server_rss_kib_max {
            writeln!(f, "server RSS  at most {:.1} MiB", rss_kib as f64 / 1024.0)?;
        }
        if let Some(kernel) = &self.kernel {
            let both = kernel.both_bytes_per_connection;
            write!(f, "kernel      {both:.0} B of objects per connection")?;
            let halves =
                kernel.server_bytes_per_connection.zip(kernel.generator_bytes_per_connection);
            if let Some((server, generator)) = halves {
                write!(f, ": server {server:.0} B, generator {generator:.0} B")?;
            }
            if kernel.settled == Some(false) {
                write!(f, " (the kernel had not come to rest)")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
