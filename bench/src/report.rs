//! What a run found, and the folder it is kept in.
//!
//! `report.json` has everything needed to judge or repeat a run: parameters, environment, figures
//! with their units in their names, and the verdict. `latency.hgrm` and the two pictures are the
//! same run for people.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use crate::cli::Scenario;
use crate::host::{Environment, Usage};
use crate::measure::Latency;
use crate::plot;

/// Why the folder could not be written.
#[derive(Debug, Error)]
#[error("cannot write {path}: {cause}")]
pub struct WriteError {
    path: PathBuf,
    cause: Box<dyn std::error::Error>,
}

/// `report.json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of this format.
    pub format: u32,
    /// Name of the scenario.
    pub scenario: &'static str,
    /// RFC 3339, UTC.
    pub started: String,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
    /// The command line, defaults filled in.
    pub parameters: Scenario,
    /// The host.
    pub environment: Environment,
    /// Worker threads.
    pub threads: u32,
    /// How the connections opened.
    pub opening: Opening,
    /// What was sent and delivered; absent in `idle`.
    pub traffic: Option<Traffic>,
    /// How the connections ended.
    pub closing: Closing,
    /// The generator itself: is it the bottleneck?
    pub generator: Process,
    /// The process of `--pid`.
    pub server: Option<Process>,
    /// Kernel slab per connection in bytes: both ends when the server is on this host.
    pub slab_bytes_per_connection: Option<f64>,
    /// Whether all went well.
    pub verdict: Verdict,
    /// Where it was written.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// How the connections opened.
#[derive(Debug, Serialize)]
pub struct Opening {
    /// Connections that were asked for.
    pub asked: u32,
    /// Connections that opened (and joined).
    pub ready: u64,
    /// Failed connections by cause, over the whole run.
    pub failed: BTreeMap<&'static str, u64>,
    /// From the first connect to the last join.
    pub seconds: f64,
    /// Mean rate.
    pub per_second: f64,
    /// From before connect(2) to ready.
    pub handshake: Distribution,
}

/// What was sent and delivered. Rates, latencies and CPU are of the measured window; counts of
/// what went wrong are of the whole run.
#[derive(Debug, Serialize)]
pub struct Traffic {
    /// Length of the measured window.
    pub seconds: f64,
    /// Messages sent in it.
    pub published: u64,
    /// Messages that arrived in it.
    pub delivered: u64,
    /// Mean rate.
    pub deliveries_per_second: f64,
    /// From the intended time of a message to each delivery.
    pub latency: Distribution,
    /// From the intended time of a message to its last delivery.
    pub to_last: Option<Distribution>,
    /// Deliveries that never came.
    pub lost: u64,
    /// Deliveries that came again.
    pub duplicated: u64,
    /// Deliveries that came after a later one.
    pub reordered: u64,
    /// Messages that are not ours or were for another room.
    pub foreign: u64,
    /// Windows given up.
    pub stalled: u64,
    /// Share of messages sent more than 1 ms after their intended time, over the whole run.
    pub late_share: f64,
}

/// How the connections ended.
#[derive(Debug, Serialize)]
pub struct Closing {
    /// With a close frame from both sides.
    pub clean: u64,
    /// Otherwise.
    pub unclean: u64,
}

/// What a process used.
#[derive(Debug, Serialize)]
pub struct Process {
    /// CPUs it kept busy in the measured window (or while idle): 1.0 is one CPU.
    pub cpus: f64,
    /// CPU time per delivery in the measured window, in microseconds.
    pub cpu_us_per_delivery: Option<f64>,
    /// Before the first connection.
    pub before: Usage,
    /// With all connections open.
    pub open: Usage,
    /// At the end of the measured window.
    pub after: Usage,
    /// Resident memory per connection in bytes: `open` less `before`.
    pub rss_bytes_per_connection: f64,
}

/// Whether all went well.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// Exit code 0.
    pub passed: bool,
    /// What did not.
    pub problems: Vec<String>,
}

/// A latency distribution in milliseconds.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "a table of well-known names")]
pub struct Distribution {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub p9999_ms: f64,
    pub max_ms: f64,
}

/// One moment of the timeline.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Since the start.
    pub seconds: f64,
    /// Open connections.
    pub connections: u64,
    /// Since the sample before.
    pub deliveries_per_second: f64,
    /// The worst latency since the sample before, in milliseconds.
    pub worst_ms: f64,
}

/// What the pictures and the percentile text are drawn from.
#[derive(Debug, Default)]
pub struct Raw {
    /// Handshakes.
    pub handshake: Latency,
    /// Deliveries.
    pub latency: Latency,
    /// Last deliveries.
    pub to_last: Latency,
    /// The timeline.
    pub samples: Vec<Sample>,
}

impl From<&Latency> for Distribution {
    fn from(latency: &Latency) -> Self {
        let at = |quantile| latency.quantile(quantile) as f64 / 1e6;
        Self {
            count: latency.count(),
            mean_ms: latency.mean() / 1e6,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            p9999_ms: at(0.9999),
            max_ms: latency.max() as f64 / 1e6,
        }
    }
}

impl Report {
    /// Writes the folder.
    ///
    /// # Errors
    /// When it cannot be made or a file in it not be written.
    pub fn write(&self, raw: &Raw) -> Result<(), WriteError> {
        let folder = &self.folder;
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let path = folder.join("report.json");
        let json = serde_json::to_string_pretty(&self).map_err(|error| failed(&path)(error.into()));
        fs::write(&path, json? + "\n").map_err(failed(&path))?;
        // `idle` delivers nothing: its latency is that of handshakes.
        let (name, latency) = match self.traffic {
            Some(_) => ("delivery", &raw.latency),
            None => ("handshake", &raw.handshake),
        };
        let path = folder.join("latency.hgrm");
        fs::write(&path, latency.to_hgrm()).map_err(failed(&path))?;
        let path = folder.join("latency.svg");
        let title = self.title("latency");
        let curves = [(name, latency), ("last delivery", &raw.to_last)];
        plot::latency(&path, &title, &curves)
            .map_err(|cause| WriteError { path: path.clone(), cause })?;
        let path = folder.join("timeline.svg");
        let title = self.title("timeline");
        plot::timeline(&path, &title, &raw.samples)
            .map_err(|cause| WriteError { path: path.clone(), cause })
    }
}

impl Report {
    fn title(&self, picture: &str) -> String {
        let words = [self.scenario, &self.parameters.common().label, picture];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", ")
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> WriteError {
    move |error| WriteError { path: path.to_owned(), cause: error.into() }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = self;
        write!(
            f,
            "p50 {p50_ms:.3}  p90 {p90_ms:.3}  p99 {p99_ms:.3}  p99.9 {p999_ms:.3}  \
             max {max_ms:.3} ms"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Opening { asked, ready, seconds, per_second, handshake, .. } = &self.opening;
        writeln!(f, "opened      {ready} of {asked} in {seconds:.2} s, {per_second:.0}/s")?;
        writeln!(f, "handshake   {handshake}")?;
        if let Some(traffic) = &self.traffic {
            let Traffic { deliveries_per_second, delivered, seconds, published, .. } = traffic;
            writeln!(
                f,
                "delivered   {published} messages {delivered} times in {seconds:.2} s: \
                 {deliveries_per_second:.0} deliveries/s"
            )?;
            writeln!(f, "latency     {}", traffic.latency)?;
            if let Some(to_last) = &traffic.to_last {
                writeln!(f, "to the last {to_last}")?;
            }
            let Traffic { lost, duplicated, reordered, foreign, .. } = traffic;
            writeln!(
                f,
                "checked     {lost} lost, {duplicated} duplicated, {reordered} reordered, \
                 {foreign} foreign"
            )?;
        }
        let late = self.traffic.as_ref().map_or(0.0, |traffic| traffic.late_share * 100.0);
        writeln!(
            f,
            "generator   {:.2} CPUs, {late:.3} % of sends late, {:.0} B per connection",
            self.generator.cpus, self.generator.rss_bytes_per_connection
        )?;
        if let Some(server) = &self.server {
            write!(f, "server      {:.2} CPUs", server.cpus)?;
            if let Some(cpu) = server.cpu_us_per_delivery {
                write!(f, ", {cpu:.3} us per delivery")?;
            }
            let Usage { rss_kib, pss_kib, .. } = server.open;
            write!(f, ", RSS {:.1} MiB", rss_kib as f64 / 1024.0)?;
            if let Some(pss_kib) = pss_kib {
                write!(f, ", PSS {:.1} MiB", pss_kib as f64 / 1024.0)?;
            }
            writeln!(f, ", {:.0} B per connection", server.rss_bytes_per_connection)?;
        }
        if let Some(slab) = self.slab_bytes_per_connection {
            writeln!(f, "kernel slab {slab:.0} B per connection (both ends if both are here)")?;
        }
        let Closing { clean, unclean } = self.closing;
        writeln!(f, "closed      {clean} cleanly, {unclean} otherwise")?;
        for problem in &self.verdict.problems {
            writeln!(f, "PROBLEM     {problem}")?;
        }
        if self.interrupted {
            writeln!(f, "interrupted: the figures are of the time until then")?;
        }
        writeln!(f, "report      {}", self.folder.display())
    }
}
