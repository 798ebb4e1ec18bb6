//! `compare`: runs beside each other, as ratios to the first one.
//!
//! A side of a comparison is one run, or several repeats of it: then a figure is the median of the
//! repeats, and what is judged is the median of the ratios of *pairs*, the first repeat of one
//! side to the first of the other and so on. Repeats that were made in turns (A, B, A, B) share
//! what the host did meanwhile, and their ratio does not see it. The spread is always shown.
//!
//! Only figures that all sides have are compared, and only those of `--judge` decide. The largest
//! values never do unless asked for: one hiccup of the host is one maximum. Counts of what went
//! wrong are left out where they are 0 everywhere, unless they decide.
//!
//! Never: says that runs compare well. What differs between them besides the figures is a warning.

mod figures;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use thiserror::Error;

pub use figures::{Better, Change, Spread};
use figures::{FIGURES, Figure, JUDGED, JUDGED_IDLE, ratios};

use crate::measure::Latency;
use crate::plot;
use crate::report::{Raw, ReadError, Report, WriteError};

/// Options of `compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    /// Runs: folders or their report.json. The first is the base. Repeats of one run are separated
    /// by commas and belong together in their order: A1,A2,A3 B1,B2,B3.
    #[arg(required = true, num_args = 2.., value_name = "RUN[,RUN..]")]
    pub runs: Vec<String>,
    /// How much worse than the base a judged figure may be, in percent.
    #[arg(long, default_value = "5%", value_parser = parse_percent)]
    pub tolerance: f64,
    /// Figures that decide, by the keys of --json [default: deliveries_per_second, p50, p99,
    /// server_cpu, lost, duplicated, reordered; of runs that deliver nothing opened_per_second,
    /// handshake_p99, storm_p99, server_rss].
    #[arg(long, value_delimiter = ',', value_name = "KEY")]
    pub judge: Vec<String>,
    /// The picture if it ends in .svg, or else the folder to put compare.svg into.
    #[arg(long, default_value = "compare.svg")]
    pub out: PathBuf,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub json: bool,
}

fn parse_percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.trim_end_matches('%').trim().parse().unwrap_or(f64::NAN);
    if (0.0..=1000.0).contains(&percent) {
        return Ok(percent / 100.0);
    }
    Err("a percentage from 0 to 1000 is needed, for example 5%".to_owned())
}

/// Why there is no comparison.
#[derive(Debug, Error)]
pub enum CompareError {
    /// A run could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Sides with different numbers of repeats make no pairs.
    #[error(
        "the number of repeats differs, {base} of the base and {count} of {side}: every side needs \
         as many, to make pairs"
    )]
    Pairs {
        /// The side.
        side: String,
        /// Its runs.
        count: usize,
        /// Runs of the base.
        base: usize,
    },
    /// A key of `--judge` that is none.
    #[error("--judge {key}: no such figure; the keys are {}", keys())]
    Key {
        /// The key.
        key: String,
    },
    /// A figure that is to decide is missing.
    #[error("--judge {key}: not all runs have this figure; judge others, or repeat the runs")]
    Missing {
        /// Its key.
        key: String,
    },
    /// No figure that could decide.
    #[error("the runs have none of the figures that are judged; name others with --judge")]
    Nothing,
    /// The picture could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl CompareError {
    /// Whether the command line is to blame.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Write(_))
    }
}

fn keys() -> String {
    FIGURES.map(|figure| figure.key).join(", ")
}

/// One side of a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Side {
    /// `A`, `B`, ..
    pub letter: String,
    /// The label of its runs, or the name of the first one's folder.
    pub label: String,
    /// Where its runs are.
    pub folders: Vec<PathBuf>,
    /// Commit that the first run was made at.
    pub commit: Option<String>,
    /// Command line of the server of the first run.
    pub server_command: Option<String>,
}

/// A figure of all sides.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name for `--judge`.
    pub key: &'static str,
    /// Its name in the table, with its unit.
    pub name: &'static str,
    /// Which value is the better one.
    pub better: Better,
    /// Whether it decides.
    pub judged: bool,
    /// Its values, side by side.
    pub values: Vec<Spread>,
    /// Ratios of all sides but the base to the base; `null` where the base has 0 and they do not.
    pub ratios: Vec<Spread>,
    /// What each ratio means.
    pub changes: Vec<Change>,
}

/// Runs beside each other.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Whether nothing judged is worse than the tolerance.
    pub passed: bool,
    /// 0.05 is 5 %.
    pub tolerance: f64,
    /// The sides; the first is the base.
    pub sides: Vec<Side>,
    /// The figures that all sides have.
    pub rows: Vec<Row>,
    /// What makes the comparison doubtful.
    pub warnings: Vec<String>,
    /// Where the picture is; there is none without histograms.
    pub picture: Option<PathBuf>,
    #[serde(skip)]
    json: bool,
}

/// A run as far as it is compared.
struct Run {
    report: Report,
    /// The report again, to look figures up in: scenarios add sections of their own.
    json: Value,
    raw: Result<Raw, ReadError>,
}

impl Run {
    fn read(path: &str) -> Result<Self, ReadError> {
        let report = Report::read(Path::new(path))?;
        let json = serde_json::to_value(&report).expect("it was JSON before");
        let raw = Raw::read_histograms(&report.folder);
        Ok(Self { report, json, raw })
    }

    fn figure(&self, figure: &Figure) -> Option<f64> {
        self.json.pointer(figure.pointer)?.as_f64()
    }
}

/// Compares the runs that `args` names, draws the picture, and judges.
///
/// # Errors
/// [`CompareError`]: runs that cannot be read or paired, figures that cannot be judged.
pub fn compare(args: &CompareArgs) -> Result<Comparison, CompareError> {
    let read = |paths: &String| paths.split(',').map(Run::read).collect();
    let sides = args.runs.iter().map(read).collect::<Result<Vec<Vec<Run>>, _>>()?;
    let names: Vec<_> = sides.iter().enumerate().map(|(index, runs)| side(index, runs)).collect();
    for (side, runs) in names.iter().zip(&sides).skip(1) {
        let (count, base) = (runs.len(), sides[0].len());
        if count != base {
            return Err(CompareError::Pairs { side: side.letter.clone(), count, base });
        }
    }
    let rows = rows(args, &sides)?;
    let mut warnings = warnings(&names, &sides);
    let picture = draw(args, &names, &sides, &mut warnings)?;
    let worse = |row: &Row| row.judged && row.changes.contains(&Change::Worse);
    Ok(Comparison {
        passed: !rows.iter().any(worse),
        tolerance: args.tolerance,
        sides: names,
        rows,
        warnings,
        picture,
        json: args.json,
    })
}

fn side(index: usize, runs: &[Run]) -> Side {
    let first = &runs[0].report;
    let folder = first.folder.file_name().unwrap_or(first.folder.as_os_str());
    let label = match first.parameters.label() {
        "" => folder.to_string_lossy().into_owned(),
        label => label.to_owned(),
    };
    Side {
        letter: letter(index),
        label,
        folders: runs.iter().map(|run| run.report.folder.clone()).collect(),
        commit: first.environment.commit.clone(),
        server_command: first.environment.server_command.clone(),
    }
}

/// A, B, .., Z, AA, BB, ..
fn letter(index: usize) -> String {
    char::from(b'A' + (index % 26) as u8).to_string().repeat(1 + index / 26)
}

fn rows(args: &CompareArgs, sides: &[Vec<Run>]) -> Result<Vec<Row>, CompareError> {
    let unknown = |key: &&String| !FIGURES.iter().any(|figure| figure.key == **key);
    if let Some(key) = args.judge.iter().find(unknown) {
        return Err(CompareError::Key { key: key.clone() });
    }
    let delivers = sides.iter().flatten().all(|run| run.report.traffic.is_some());
    let default: &[&str] = if delivers { &JUDGED } else { &JUDGED_IDLE };
    let judged = |key: &str| match args.judge.is_empty() {
        true => default.contains(&key),
        false => args.judge.iter().any(|judged| judged == key),
    };
    let mut rows = Vec::new();
    for figure in &FIGURES {
        let values = |runs: &Vec<Run>| runs.iter().map(|run| run.figure(figure)).collect();
        let Some(values) = sides.iter().map(values).collect::<Option<Vec<Vec<f64>>>>() else {
            if !args.judge.is_empty() && judged(figure.key) {
                return Err(CompareError::Missing { key: figure.key.to_owned() });
            }
            continue;
        };
        let none = values.iter().flatten().all(|&value| value == 0.0);
        if none && !judged(figure.key) {
            continue;
        }
        let ratios: Vec<_> = values[1..].iter().map(|side| ratios(side, &values[0])).collect();
        let change = |ratio: &Spread| Change::of(ratio.median, figure.better, args.tolerance);
        rows.push(Row {
            key: figure.key,
            name: figure.name,
            better: figure.better,
            judged: judged(figure.key),
            changes: ratios.iter().map(change).collect(),
            values: values.into_iter().map(Spread::of).collect(),
            ratios,
        });
    }
    if !rows.iter().any(|row| row.judged) {
        return Err(CompareError::Nothing);
    }
    Ok(rows)
}

/// What makes the comparison doubtful.
fn warnings(names: &[Side], sides: &[Vec<Run>]) -> Vec<String> {
    let mut warnings = Vec::new();
    for (side, runs) in names.iter().zip(sides) {
        for run in runs {
            let Report { folder, interrupted, verdict, .. } = &run.report;
            let (letter, folder) = (&side.letter, folder.display());
            if *interrupted {
                warnings.push(format!("{letter}: {folder} was interrupted"));
            }
            if !verdict.passed {
                let problems = verdict.problems.join(", ");
                warnings.push(format!("{letter}: {folder} failed: {problems}"));
            }
            if let Err(error) = &run.raw {
                warnings.push(format!("{letter}: not in the picture: {error}"));
            }
        }
    }
    let base = facts(&sides[0][0].report);
    let mut seen = BTreeSet::new();
    for (side, run) in
        names.iter().zip(sides).flat_map(|(side, runs)| runs.iter().map(move |run| (side, run)))
    {
        let facts = facts(&run.report);
        let names: BTreeSet<_> = base.keys().chain(facts.keys()).collect();
        for name in names {
            let text = |value: Option<&Value>| value.map_or("none".to_owned(), Value::to_string);
            let (ours, base) = (text(facts.get(name)), text(base.get(name)));
            let warning = format!("{}: {name} is {ours}, the base has {base}", side.letter);
            if ours != base && seen.insert(warning.clone()) {
                warnings.push(warning);
            }
        }
    }
    warnings
}

/// What should be the same in runs that are compared, by name.
fn facts(report: &Report) -> BTreeMap<String, Value> {
    let environment = &report.environment;
    let mut facts = BTreeMap::from([
        ("scenario".to_owned(), report.scenario.clone().into()),
        ("threads".to_owned(), report.threads.into()),
        ("host".to_owned(), environment.host.clone().into()),
        ("kernel".to_owned(), environment.kernel.clone().into()),
        ("CPU".to_owned(), environment.cpu.clone().into()),
        ("number of CPUs".to_owned(), environment.cpus.into()),
        ("memory in KiB".to_owned(), environment.memory_kib.into()),
        ("version of the generator".to_owned(), environment.generator.clone().into()),
    ]);
    let own = |name: &str| matches!(name, "label" | "out" | "pid" | "threads" | "start_at");
    let options = report.parameters.options().filter(|(name, _)| !own(name));
    facts.extend(
        options.map(|(name, value)| (format!("--{}", name.replace('_', "-")), value.clone())),
    );
    let sysctls = environment.sysctls.iter();
    facts.extend(sysctls.map(|(name, value)| (name.clone(), value.clone().into())));
    facts
}

/// Draws the pooled latencies of all sides over each other.
fn draw(
    args: &CompareArgs,
    names: &[Side],
    sides: &[Vec<Run>],
    warnings: &mut Vec<String>,
) -> Result<Option<PathBuf>, CompareError> {
    let delivers = |run: &Run| run.raw.as_ref().is_ok_and(|raw| raw.latency.count() > 0);
    let deliveries = sides.iter().flatten().any(delivers);
    let pooled = |runs: &Vec<Run>| {
        let mut pool = Latency::default();
        for raw in runs.iter().filter_map(|run| run.raw.as_ref().ok()) {
            pool.merge(if deliveries { &raw.latency } else { &raw.handshake });
        }
        pool
    };
    let pools: Vec<_> = sides.iter().map(pooled).collect();
    if pools.iter().all(|pool| pool.count() == 0) {
        warnings.push("no picture: no run has a histogram".to_owned());
        return Ok(None);
    }
    let named = |side: &Side| format!("{} {}", side.letter, side.label);
    let names: Vec<_> = names.iter().map(named).collect();
    let curves: Vec<_> = names.iter().map(String::as_str).zip(&pools).collect();
    let path = match args.out.extension() {
        Some(extension) if extension == "svg" => args.out.clone(),
        _ => args.out.join("compare.svg"),
    };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|cause| WriteError::new(folder, cause))?;
    }
    let what = if deliveries { "delivery" } else { "handshake" };
    let title = format!("{}, {what} latency", sides[0][0].report.scenario);
    plot::latency(&path, &title, &curves).map_err(|cause| WriteError::new(&path, cause))?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerances_are_percentages() {
        assert_eq!(parse_percent("5%"), Ok(0.05));
        assert_eq!(parse_percent("12.5"), Ok(0.125));
        for wrong in ["", "%", "-1%", "five", "NaN", "1001"] {
            assert!(parse_percent(wrong).is_err(), "{wrong}");
        }
    }
}
