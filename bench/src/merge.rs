//! `merge`: the runs of several generators that loaded one server at the same time, as one run.
//!
//! Histograms are merged without loss, so percentiles are those of all deliveries, not means of
//! percentiles. Counts and rates are added; what is per connection or per delivery is weighted.
//! The server was watched from one host at most (`--pid`), and its CPU is divided by the
//! deliveries of all. Kernel memory is of a host, not of a run, and is left out.
//!
//! The generators must have done the same: every option is equal, except where a generator was
//! and which rooms it used (`OWN`) and how large its share was (`SHARES`, which are added).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Number, Value};
use thiserror::Error;

use crate::host::Usage;
use crate::report::{
    Closing, Mark, Opening, Parameters, Process, Raw, ReadError, Report, Sample, Source, Timeline,
    Traffic, Verdict, WriteError,
};
use crate::sections::{Sections, Slow};

/// Options that are a generator's own: where it ran, and which rooms it used.
const OWN: [&str; 11] = [
    "target",
    "source",
    "threads",
    "cpus",
    "pid",
    "label",
    "out",
    "path",
    "join",
    "start_at",
    "hold_command",
];
/// Options that say how much a generator took of the whole.
const SHARES: [&str; 6] = ["connections", "rooms", "publishers", "rate", "open_rate", "opening"];

/// Share of their measured windows that runs must have in common to be one load.
const OVERLAP_MIN: f64 = 0.9;

/// Options of `merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// Folders of the runs, or their report.json.
    #[arg(required = true, num_args = 2..)]
    pub runs: Vec<PathBuf>,
    /// Folder for the merged run.
    #[arg(long)]
    pub out: PathBuf,
}

/// Why there is no merged run.
#[derive(Debug, Error)]
pub enum MergeError {
    /// A run could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The runs did not do the same.
    #[error(
        "{folder} is no part of one run with the first: its {what} is {theirs}, there {ours}; \
         merge takes runs of one scenario with the same options"
    )]
    Different {
        /// Folder of the one that differs from the first.
        folder: PathBuf,
        /// What differs.
        what: String,
        /// Its value in the first.
        ours: Value,
        /// Its value in the other.
        theirs: Value,
    },
    /// The result would overwrite what it is made from.
    #[error("--out {0} is one of the runs; name a folder of its own")]
    Overwrites(PathBuf),
    /// The result could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl MergeError {
    /// Whether the command line is to blame.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Write(_))
    }
}

/// A merged run.
#[derive(Debug)]
pub struct Merged {
    /// Its report, as it was written.
    pub report: Report,
    /// What makes it doubtful.
    pub warnings: Vec<String>,
}

/// Merges the runs that `args` names and writes the folder.
///
/// # Errors
/// [`MergeError`]: runs that cannot be read, or that did not do the same.
pub fn merge(args: &MergeArgs) -> Result<Merged, MergeError> {
    let read = |path: &PathBuf| {
        let report = Report::read(path)?;
        let raw = Raw::read(&report.folder)?;
        Ok((report, raw))
    };
    let runs: Vec<(Report, Raw)> = args.runs.iter().map(read).collect::<Result<_, ReadError>>()?;
    let (reports, raws): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
    let out = args.out.canonicalize().ok();
    if out.is_some() && reports.iter().any(|report| report.folder.canonicalize().ok() == out) {
        return Err(MergeError::Overwrites(args.out.clone()));
    }
    for report in &reports[1..] {
        check_same(&reports[0], report)?;
    }
    let raw = merge_raw(&reports, &raws);
    let report = merge_reports(&reports, &raw, args.out.clone());
    let warnings = warnings(&reports, &raws);
    report.write(&raw)?;
    Ok(Merged { report, warnings })
}

fn check_same(one: &Report, other: &Report) -> Result<(), MergeError> {
    let facts = |report: &Report| -> BTreeMap<String, Value> {
        let same = |name: &str| !OWN.contains(&name) && !SHARES.contains(&name);
        let options = report.parameters.options().filter(|(name, _)| same(name));
        let options = options.map(|(name, value)| (format!("--{name}"), value.clone()));
        options.chain([("scenario".to_owned(), report.scenario.clone().into())]).collect()
    };
    let (ours, theirs) = (facts(one), facts(other));
    // Another scenario has other options: that is the reason to name.
    let scenario = "scenario".to_owned();
    let names = [&scenario].into_iter().chain(ours.keys()).chain(theirs.keys());
    for name in names {
        let value = |facts: &BTreeMap<String, Value>| facts.get(name).cloned().unwrap_or_default();
        let (ours, theirs) = (value(&ours), value(&theirs));
        if ours != theirs {
            let (folder, what) = (other.folder.clone(), name.replace('_', "-"));
            return Err(MergeError::Different { folder, what, ours, theirs });
        }
    }
    Ok(())
}

fn warnings(reports: &[Report], raws: &[Raw]) -> Vec<String> {
    let mut warnings = Vec::new();
    let parts: BTreeSet<_> = reports.iter().flat_map(left_out).collect();
    if !parts.is_empty() {
        let parts = parts.into_iter().collect::<Vec<_>>().join(", ");
        warnings.push(format!("left out, see the reports of the single runs: {parts}"));
    }
    let runs = reports.iter().zip(raws);
    let windows: Vec<_> = runs.map(|(report, raw)| window(report, raw)).collect();
    for (report, window) in reports.iter().zip(&windows) {
        let folder = report.folder.display();
        let (Some(window), Some(first)) = (window, &windows[0]) else {
            warnings.push(format!("{folder}: no measured window in its timeline"));
            continue;
        };
        let common = window.end.min(first.end) - window.start.max(first.start);
        let longer = (window.end - window.start).max(first.end - first.start);
        if common < longer * OVERLAP_MIN {
            let percent = (common / longer).max(0.0) * 100.0;
            warnings.push(format!(
                "{folder}: its measured window overlaps that of the first run by {percent:.0} % \
                 only, so the sums are of loads that were not there together; use --start-at"
            ));
        }
    }
    warnings
}

/// When the figures were taken, in seconds since the Unix epoch.
fn window(report: &Report, raw: &Raw) -> Option<Range<f64>> {
    let Range { start, end } = raw.timeline.window()?;
    let began = began(report);
    Some(began + start..began + end)
}

fn began(report: &Report) -> f64 {
    let since_epoch = report.started().duration_since(std::time::UNIX_EPOCH);
    since_epoch.unwrap_or_default().as_secs_f64()
}

fn merge_raw(reports: &[Report], raws: &[Raw]) -> Raw {
    let mut merged = Raw::default();
    for raw in raws {
        merged.handshake.merge(&raw.handshake);
        merged.latency.merge(&raw.latency);
        merged.to_last.merge(&raw.to_last);
    }
    merged.timeline = merge_timelines(reports, raws);
    merged
}

/// Adds the timelines up by the second of the wall clock: of each run the mean of that second's
/// samples, and of the worst the worst. A run that has no sample in a second adds nothing.
fn merge_timelines(reports: &[Report], raws: &[Raw]) -> Timeline {
    let origin = reports.iter().map(began).fold(f64::INFINITY, f64::min);
    let mut seconds: BTreeMap<u64, Sample> = BTreeMap::new();
    let mut marks: Vec<Mark> = Vec::new();
    for (report, Raw { timeline, .. }) in reports.iter().zip(raws) {
        let offset = began(report) - origin;
        let mut own: BTreeMap<u64, Vec<&Sample>> = BTreeMap::new();
        for sample in &timeline.samples {
            own.entry((offset + sample.seconds) as u64).or_default().push(sample);
        }
        for (second, samples) in own {
            let mean = |value: fn(&Sample) -> f64| {
                samples.iter().map(|sample| value(sample)).sum::<f64>() / samples.len() as f64
            };
            let sum = seconds.entry(second).or_insert(Sample {
                seconds: second as f64 + 0.5,
                connections: 0,
                deliveries_per_second: 0.0,
                worst_ms: 0.0,
                server_rss_kib: None,
            });
            sum.connections += mean(|sample| sample.connections as f64).round() as u64;
            sum.deliveries_per_second += mean(|sample| sample.deliveries_per_second);
            let worst = samples.iter().map(|sample| sample.worst_ms);
            sum.worst_ms = worst.fold(sum.worst_ms, f64::max);
            let rss = samples.iter().filter_map(|sample| sample.server_rss_kib).max();
            sum.server_rss_kib = sum.server_rss_kib.max(rss);
        }
        // Stages are those of the first run; the others' begin at about the same time.
        if marks.is_empty() {
            let later = |mark: &Mark| Mark { seconds: mark.seconds + offset, ..mark.clone() };
            marks = timeline.marks.iter().map(later).collect();
        }
    }
    Timeline { marks, samples: seconds.into_values().collect() }
}

fn merge_reports(reports: &[Report], raw: &Raw, folder: PathBuf) -> Report {
    let first = &reports[0];
    let traffic = merge_traffic(reports, raw);
    let delivered = traffic.as_ref().map_or(0, |traffic| traffic.delivered);
    let ready = reports.iter().map(|report| report.opening.ready).sum();
    Report {
        format: first.format,
        scenario: first.scenario.clone(),
        started: reports
            .iter()
            .map(|report| &report.started)
            .min()
            .unwrap_or(&first.started)
            .clone(),
        interrupted: reports.iter().any(|report| report.interrupted),
        parameters: merge_parameters(reports),
        environment: first.environment.clone(),
        threads: reports.iter().map(|report| report.threads).sum(),
        opening: merge_opening(reports, raw),
        closing: Closing {
            clean: reports.iter().map(|report| report.closing.clean).sum(),
            unclean: reports.iter().map(|report| report.closing.unclean).sum(),
        },
        generator: merge_generators(reports, delivered, ready),
        server: merge_server(reports, delivered, ready),
        slab_bytes_per_connection: None,
        sources: reports.iter().map(source).collect(),
        verdict: merge_verdicts(reports),
        sections: merge_sections(reports),
        traffic,
        folder,
    }
}

/// Counts of slow readers and the server's peak; see [`left_out`] for the rest.
fn merge_sections(reports: &[Report]) -> Sections {
    let slow: Option<Vec<_>> = reports.iter().map(|report| report.sections.slow.as_ref()).collect();
    let slow = slow.map(|all| {
        let mut ended = BTreeMap::new();
        for (cause, count) in all.iter().flat_map(|slow| &slow.ended) {
            *ended.entry(cause.clone()).or_default() += count;
        }
        Slow {
            connections: all.iter().map(|slow| slow.connections).sum(),
            open: all.iter().map(|slow| slow.open).sum(),
            ended,
            bytes_under_load: all.iter().map(|slow| slow.bytes_under_load).sum(),
            bytes: all.iter().map(|slow| slow.bytes).sum(),
        }
    });
    let peaks = reports.iter().filter_map(|report| report.sections.server_rss_kib_max);
    Sections { slow, server_rss_kib_max: peaks.max(), ..Sections::default() }
}

/// Parts of a report that do not add up: they have percentiles without their histograms.
fn left_out(report: &Report) -> Vec<&'static str> {
    let Sections { holds, heartbeat, storm, beside, .. } = &report.sections;
    let parts = [
        ("holds", !holds.is_empty()),
        ("heartbeat", heartbeat.is_some()),
        ("storm", storm.is_some()),
        ("beside", !beside.is_empty()),
    ];
    parts.into_iter().filter_map(|(name, there)| there.then_some(name)).collect()
}

/// The options of the first run, with the shares of all, and the label they have in common.
fn merge_parameters(reports: &[Report]) -> Parameters {
    let mut merged = reports[0].parameters.clone();
    for (name, value) in merged.options_mut() {
        let all = reports.iter().filter_map(|report| report.parameters.option(name));
        if SHARES.contains(&name) && value.is_number() {
            *value = match all.clone().map(Value::as_u64).sum::<Option<u64>>() {
                Some(sum) => sum.into(),
                None => Number::from_f64(all.filter_map(Value::as_f64).sum()).into(),
            };
        } else if name == "label" {
            let labels: BTreeSet<_> = all.filter_map(Value::as_str).collect();
            *value = labels.into_iter().collect::<Vec<_>>().join(" + ").into();
        }
    }
    merged
}

fn merge_opening(reports: &[Report], raw: &Raw) -> Opening {
    let openings = || reports.iter().map(|report| &report.opening);
    let mut failed = BTreeMap::new();
    for (cause, count) in openings().flat_map(|opening| &opening.failed) {
        *failed.entry(cause.clone()).or_default() += count;
    }
    Opening {
        asked: openings().map(|opening| opening.asked).sum(),
        ready: openings().map(|opening| opening.ready).sum(),
        failed,
        seconds: openings().map(|opening| opening.seconds).fold(0.0, f64::max),
        per_second: openings().map(|opening| opening.per_second).sum(),
        handshake: (&raw.handshake).into(),
    }
}

fn merge_traffic(reports: &[Report], raw: &Raw) -> Option<Traffic> {
    let all: Vec<_> =
        reports.iter().map(|report| report.traffic.as_ref()).collect::<Option<_>>()?;
    let sum = |count: fn(&Traffic) -> u64| all.iter().map(|traffic| count(traffic)).sum::<u64>();
    let published = sum(|traffic| traffic.published);
    let late = all.iter().map(|traffic| traffic.late_share * traffic.published as f64);
    Some(Traffic {
        seconds: all.iter().map(|traffic| traffic.seconds).fold(0.0, f64::max),
        published,
        delivered: sum(|traffic| traffic.delivered),
        deliveries_per_second: all.iter().map(|traffic| traffic.deliveries_per_second).sum(),
        latency: (&raw.latency).into(),
        to_last: (raw.to_last.count() > 0).then(|| (&raw.to_last).into()),
        lost: sum(|traffic| traffic.lost),
        duplicated: sum(|traffic| traffic.duplicated),
        reordered: sum(|traffic| traffic.reordered),
        foreign: sum(|traffic| traffic.foreign),
        stalled: sum(|traffic| traffic.stalled),
        late_share: ratio(late.sum(), published as f64),
    })
}

fn merge_generators(reports: &[Report], delivered: u64, ready: u64) -> Process {
    let all = || reports.iter().map(|report| &report.generator);
    let usage = |usage: fn(&Process) -> Usage| {
        let used = || all().map(usage);
        Usage {
            cpu_ns: used().map(|usage| usage.cpu_ns).sum(),
            rss_kib: used().map(|usage| usage.rss_kib).sum(),
            pss_kib: used().map(|usage| usage.pss_kib).sum(),
        }
    };
    let cpu_us = reports.iter().map(measured_cpu_us(|report| Some(&report.generator)));
    let cpu_us = cpu_us.sum::<Option<f64>>();
    let grown = |process: &Process| process.open.rss_kib.saturating_sub(process.before.rss_kib);
    Process {
        cpus: all().map(|process| process.cpus).sum(),
        cpu_us_per_delivery: cpu_us.map(|us| ratio(us, delivered as f64)),
        before: usage(|process| process.before),
        open: usage(|process| process.open),
        after: usage(|process| process.after),
        rss_bytes_per_connection: ratio(
            all().map(grown).sum::<u64>() as f64 * 1024.0,
            ready as f64,
        ),
    }
}

/// The server as the first host saw that watched it, for the deliveries and connections of all.
fn merge_server(reports: &[Report], delivered: u64, ready: u64) -> Option<Process> {
    let report = reports.iter().find(|report| report.server.is_some())?;
    let server = report.server.as_ref()?;
    let cpu_us = measured_cpu_us(|report| report.server.as_ref())(report);
    let grown = server.open.rss_kib.saturating_sub(server.before.rss_kib) as f64 * 1024.0;
    Some(Process {
        cpu_us_per_delivery: cpu_us.map(|us| ratio(us, delivered as f64)),
        rss_bytes_per_connection: ratio(grown, ready as f64),
        ..server.clone()
    })
}

/// CPU time of a process in the measured window in microseconds; `None` where nothing is delivered.
fn measured_cpu_us(
    process: impl Fn(&Report) -> Option<&Process>,
) -> impl Fn(&Report) -> Option<f64> {
    move |report| {
        let delivered = report.traffic.as_ref()?.delivered as f64;
        Some(process(report)?.cpu_us_per_delivery? * delivered)
    }
}

fn merge_verdicts(reports: &[Report]) -> Verdict {
    let problems = reports.iter().flat_map(|report| {
        let Report { environment, folder, verdict, .. } = report;
        let problem =
            move |problem| format!("{} ({}): {problem}", environment.host, folder.display());
        verdict.problems.iter().map(problem)
    });
    let passed = reports.iter().all(|report| report.verdict.passed);
    Verdict { passed, problems: problems.collect() }
}

fn source(report: &Report) -> Source {
    Source {
        host: report.environment.host.clone(),
        folder: report.folder.clone(),
        started: report.started.clone(),
        connections: report.opening.asked,
        generator_cpus: report.generator.cpus,
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Source { host, folder, started, connections, generator_cpus } in &self.report.sources {
            writeln!(
                f,
                "source      {host}, {}: {connections} connections, started {started}, generator \
                 {generator_cpus:.2} CPUs",
                folder.display()
            )?;
        }
        for warning in &self.warnings {
            writeln!(f, "WARNING     {warning}")?;
        }
        write!(f, "{}", self.report)
    }
}
