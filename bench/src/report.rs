//! What a run found, and the folder it is kept in.
//!
//! `report.json` has everything needed to judge or repeat a run: parameters, environment, figures
//! with their units in their names, and the verdict. `latency.hlog` and `timeline.json` are what
//! the figures were made of, for programs; `latency.hgrm` and the two pictures are the same for
//! people.
//!
//! Reading is tolerant: what a later version adds is passed over. [`FORMAT`] changes when what is
//! there changes its meaning, and then the older version says so instead of reading it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::beside;
use crate::cli::Scenario;
use crate::host::{Environment, Usage};
use crate::measure::{self, HlogError, Latency};
use crate::plot;
use crate::sections::Sections;

/// Version of `report.json` that is written and read here.
pub const FORMAT: u32 = 1;

const REPORT: &str = "report.json";
const HISTOGRAMS: &str = "latency.hlog";
const TIMELINE: &str = "timeline.json";
/// Tags of the classes beside the main load, in the order of their names.
const BESIDE: [&str; beside::NAMES.len()] = ["beside_rooms", "beside_echoes"];

/// Why the folder could not be written.
#[derive(Debug, Error)]
#[error("cannot write {path}: {cause}")]
pub struct WriteError {
    path: PathBuf,
    cause: Box<dyn std::error::Error>,
}

impl WriteError {
    /// `path` could not be written because of `cause`.
    pub fn new(path: &Path, cause: impl Into<Box<dyn std::error::Error>>) -> Self {
        Self { path: path.to_owned(), cause: cause.into() }
    }
}

/// Why the folder of a run could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A file is not there, or may not be read.
    #[error("cannot read {path}: {cause}; name the folder of a finished run, or its report.json")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// It is no JSON, or not the JSON of a run.
    #[error("{path} is no report or is cut off: {cause}; restore the file or repeat the run")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where reading ended.
        cause: serde_json::Error,
    },
    /// Another version wrote it.
    #[error(
        "{path} has format {found}, this fanwire-bench reads format {FORMAT}; \
         read it with the version that wrote it, or repeat the run"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it says its format is; `null` if it does not say.
        found: Value,
    },
    /// The histograms are not readable.
    #[error("cannot use {path}: {cause}; restore the file or repeat the run")]
    Histograms {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: HlogError,
    },
}

/// `report.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format.
    pub format: u32,
    /// Name of the scenario.
    pub scenario: String,
    /// RFC 3339, UTC, to the millisecond.
    pub started: String,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
    /// The command line, defaults filled in.
    pub parameters: Parameters,
    /// The host.
    pub environment: Environment,
    /// Worker threads.
    pub threads: u32,
    /// How the connections opened.
    pub opening: Opening,
    /// What was sent and delivered; absent in `idle` and `storm`.
    pub traffic: Option<Traffic>,
    /// How the connections ended.
    pub closing: Closing,
    /// The generator itself: is it the bottleneck?
    pub generator: Process,
    /// The process of `--pid`.
    pub server: Option<Process>,
    /// Kernel slab per connection in bytes: both ends when the server is on this host.
    pub slab_bytes_per_connection: Option<f64>,
    /// What only some runs have.
    #[serde(flatten)]
    pub sections: Sections,
    /// The runs that this one was merged from; absent in others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<Source>,
    /// Whether all went well.
    pub verdict: Verdict,
    /// Where it was written.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// The command line of a run, defaults filled in: the scenario, and every option by its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parameters(BTreeMap<String, Map<String, Value>>);

/// A run that went into a merged one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Source {
    /// Name of its host.
    pub host: String,
    /// Its folder, as it was named to `merge`.
    pub folder: PathBuf,
    /// RFC 3339, UTC.
    pub started: String,
    /// Connections it asked for.
    pub connections: u32,
    /// CPUs its generator kept busy.
    pub generator_cpus: f64,
}

/// How the connections opened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opening {
    /// Connections that were asked for.
    pub asked: u32,
    /// Connections that opened (and joined).
    pub ready: u64,
    /// Failed attempts to connect, and connections that ended while they were needed, by cause,
    /// over the whole run.
    pub failed: BTreeMap<String, u64>,
    /// From the first connect to the last join.
    pub seconds: f64,
    /// Mean rate.
    pub per_second: f64,
    /// From before connect(2) to ready.
    pub handshake: Distribution,
}

/// What was sent and delivered. Rates, latencies and CPU are of the measured window; counts of
/// what went wrong are of the whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Closing {
    /// With a close frame from both sides.
    pub clean: u64,
    /// Otherwise, of those that were open until then.
    pub unclean: u64,
}

/// What a process used.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// CPUs it kept busy in the measured window (in `idle` the first hold, in `storm` all waves):
    /// 1.0 is one CPU.
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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// Exit code 0.
    pub passed: bool,
    /// What did not.
    pub problems: Vec<String>,
}

/// A latency distribution in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Sample {
    /// Since the start.
    pub seconds: f64,
    /// Open connections.
    pub connections: u64,
    /// Since the sample before.
    pub deliveries_per_second: f64,
    /// The worst latency since the sample before, in milliseconds.
    pub worst_ms: f64,
    /// Resident memory of the process of `--pid` in KiB.
    #[serde(default)]
    pub server_rss_kib: Option<u64>,
}

/// When a stage began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Since the start.
    pub seconds: f64,
    /// `open`, `wait`, `hold`, `warm up`, `measure`, `stay`, `wave`, `drain`, `close`, `settle`.
    pub stage: String,
}

/// What happened when: `timeline.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Timeline {
    /// The stages, in their order.
    pub marks: Vec<Mark>,
    /// About ten per second.
    pub samples: Vec<Sample>,
}

/// What the figures and the pictures are made of.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    /// Handshakes.
    pub handshake: Latency,
    /// Deliveries.
    pub latency: Latency,
    /// Last deliveries.
    pub to_last: Latency,
    /// Deliveries of the classes beside the main load, in the order of their names.
    pub beside: [Latency; beside::NAMES.len()],
    /// What happened when.
    pub timeline: Timeline,
}

impl Raw {
    /// The histograms with their tags in `latency.hlog`.
    fn histograms(&self) -> Vec<(&'static str, &Latency)> {
        let main =
            [("delivery", &self.latency), ("last", &self.to_last), ("handshake", &self.handshake)];
        main.into_iter().chain(BESIDE.into_iter().zip(&self.beside)).collect()
    }

    /// What the latency of the run is, by name: `idle` delivers nothing, so it is handshakes.
    #[must_use]
    pub fn main(&self) -> (&'static str, &Latency) {
        match self.latency.count() {
            0 => ("handshake", &self.handshake),
            _ => ("delivery", &self.latency),
        }
    }

    /// Reads the histograms of the run in `folder`, without its timeline.
    ///
    /// # Errors
    /// [`ReadError::File`] and [`ReadError::Histograms`].
    pub fn read_histograms(folder: &Path) -> Result<Self, ReadError> {
        let path = folder.join(HISTOGRAMS);
        let read = measure::from_hlog(&read(&path)?);
        let mut raw = Self::default();
        for (tag, latency) in read.map_err(|cause| ReadError::Histograms { path, cause })? {
            match tag.as_str() {
                "delivery" => raw.latency.merge(&latency),
                "last" => raw.to_last.merge(&latency),
                "handshake" => raw.handshake.merge(&latency),
                other => {
                    if let Some(index) = BESIDE.iter().position(|tag| *tag == other) {
                        raw.beside[index].merge(&latency);
                    }
                }
            }
        }
        Ok(raw)
    }

    /// Reads everything.
    ///
    /// # Errors
    /// As [`Raw::read_histograms`], and [`ReadError::Json`] for the timeline.
    pub fn read(folder: &Path) -> Result<Self, ReadError> {
        let path = folder.join(TIMELINE);
        let timeline = serde_json::from_slice(&read(&path)?);
        let timeline = timeline.map_err(|cause| ReadError::Json { path, cause })?;
        Ok(Self { timeline, ..Self::read_histograms(folder)? })
    }
}

impl Timeline {
    /// When the figures were taken, in seconds since the start: from the mark `measure`, or without
    /// one from the first `hold`, to the one that follows; in a storm from its first wave to the
    /// closing.
    #[must_use]
    pub fn window(&self) -> Option<Range<f64>> {
        let first = |stage| self.marks.iter().position(|mark| mark.stage == stage);
        let measured = first("measure").or_else(|| first("hold")).map(|from| (from, from + 1));
        let (from, until) = measured.or_else(|| first("wave").zip(first("close")))?;
        Some(self.marks[from].seconds..self.marks.get(until)?.seconds)
    }
}

impl Parameters {
    /// Those of `scenario`.
    #[must_use]
    pub fn of(scenario: &Scenario) -> Self {
        let json = serde_json::to_value(scenario).and_then(serde_json::from_value);
        Self(json.expect("a scenario is an object of its options"))
    }

    /// Every option with its value, in the order of their names.
    pub fn options(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.values().flatten().map(|(name, value)| (name.as_str(), value))
    }

    /// As [`Parameters::options`], to change them.
    pub fn options_mut(&mut self) -> impl Iterator<Item = (&str, &mut Value)> {
        self.0.values_mut().flatten().map(|(name, value)| (name.as_str(), value))
    }

    /// The value of an option.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&Value> {
        self.options().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// The words of `--label`; may be empty.
    #[must_use]
    pub fn label(&self) -> &str {
        self.option("label").and_then(Value::as_str).unwrap_or_default()
    }
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
    /// Reads the report of the run in `folder`; `folder` may also name the file itself.
    ///
    /// # Errors
    /// [`ReadError`]; a report of another [`FORMAT`] is not read.
    pub fn read(folder: &Path) -> Result<Self, ReadError> {
        let folder = match folder.parent() {
            Some(parent) if folder.ends_with(REPORT) => parent,
            _ => folder,
        };
        let path = folder.join(REPORT);
        let json: Value = match serde_json::from_slice(&read(&path)?) {
            Ok(json) => json,
            Err(cause) => return Err(ReadError::Json { path, cause }),
        };
        if json["format"] != FORMAT {
            return Err(ReadError::Format { path, found: json["format"].clone() });
        }
        let report = serde_json::from_value(json);
        let report: Self = report.map_err(|cause| ReadError::Json { path, cause })?;
        Ok(Self { folder: folder.to_owned(), ..report })
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> SystemTime {
        humantime::parse_rfc3339(&self.started).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Writes the folder.
    ///
    /// # Errors
    /// When it cannot be made or a file in it not be written.
    pub fn write(&self, raw: &Raw) -> Result<(), WriteError> {
        let folder = &self.folder;
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let path = folder.join(REPORT);
        let json = serde_json::to_string_pretty(&self).map_err(|error| failed(&path)(error.into()));
        fs::write(&path, json? + "\n").map_err(failed(&path))?;
        let path = folder.join(TIMELINE);
        let json = serde_json::to_vec(&raw.timeline).map_err(|error| failed(&path)(error.into()));
        fs::write(&path, json?).map_err(failed(&path))?;
        let path = folder.join(HISTOGRAMS);
        let seconds = raw.timeline.samples.last().map_or(0.0, |sample| sample.seconds);
        let length = Duration::from_secs_f64(seconds);
        let text = measure::to_hlog(self.started(), length, &raw.histograms());
        fs::write(&path, text).map_err(failed(&path))?;
        let (name, latency) = raw.main();
        let path = folder.join("latency.hgrm");
        fs::write(&path, latency.to_hgrm()).map_err(failed(&path))?;
        let path = folder.join("latency.svg");
        let title = self.title("latency");
        let [rooms, echoes] = &raw.beside;
        let beside = [("rooms beside", rooms), ("echoes beside", echoes)];
        let curves = [&[(name, latency), ("last delivery", &raw.to_last)][..], &beside].concat();
        plot::latency(&path, &title, &curves).map_err(|cause| WriteError::new(&path, cause))?;
        let path = folder.join("timeline.svg");
        let title = self.title("timeline");
        plot::timeline(&path, &title, &raw.timeline).map_err(|cause| WriteError::new(&path, cause))
    }
}

impl Report {
    fn title(&self, picture: &str) -> String {
        let words = [&self.scenario, self.parameters.label(), picture];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", ")
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    fs::read(path).map_err(|cause| ReadError::File { path: path.to_owned(), cause })
}

fn failed(path: &Path) -> impl Fn(io::Error) -> WriteError {
    move |error| WriteError::new(path, error)
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
        write!(f, "{}", self.sections)?;
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
