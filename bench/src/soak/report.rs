//! What a soak has found: soak.json, samples.csv, soak.svg, and the lines on standard output.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::line::Trend;
use super::sample::{FIGURES, Figure, Sample, to_csv};
use super::{Load, SoakArgs};
use crate::host::Environment;
use crate::plot::{number, trend};
use crate::report::WriteError;

/// Version of `soak.json`.
pub const FORMAT: u32 = 1;
/// Minutes from which growth is judged: in less time pools still fill.
const JUDGED_FROM: f64 = 20.0;

/// `soak.json`.
#[derive(Debug, Serialize)]
pub struct Record {
    /// Version of this format.
    pub format: u32,
    /// RFC 3339, UTC.
    pub started: String,
    /// The command line, defaults filled in.
    pub parameters: SoakArgs,
    /// The host.
    pub environment: Environment,
    /// CPUs that the server kept busy.
    pub server_cpus: f64,
    /// What it had to do.
    pub load: Load,
    /// What grew, and what did not.
    pub figures: Vec<Judged>,
    /// Whether all went well.
    pub passed: bool,
    /// What did not.
    pub problems: Vec<String>,
    /// `samples.csv`.
    #[serde(skip)]
    pub samples: Vec<Sample>,
    /// Where it is written.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// A figure with the line through the second half of its samples.
#[derive(Debug, Serialize)]
pub struct Judged {
    /// Which.
    #[serde(flatten)]
    pub figure: Figure,
    /// Absent where it could not be read.
    pub trend: Option<Trend>,
    /// Whether it grows beyond noise; never in a run that is too short to judge.
    pub grows: bool,
}

impl Judged {
    /// All figures of a run of so many minutes.
    #[must_use]
    pub fn all(samples: &[Sample], minutes: f64) -> Vec<Self> {
        let half = samples.last().map_or(0.0, |sample| sample.seconds) / 2.0;
        let judge = |(index, figure): (usize, Figure)| {
            let second_half = samples.iter().filter(|sample| sample.seconds >= half);
            let point = |sample: &Sample| Some((sample.seconds, sample.values[index]?));
            let trend = Trend::of(&second_half.filter_map(point).collect::<Vec<_>>());
            let grows = minutes >= JUDGED_FROM && trend.is_some_and(|trend| trend.grows());
            Self { figure, trend, grows }
        };
        FIGURES.into_iter().enumerate().map(judge).collect()
    }

    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let is_wrong = self.figure.judged && self.grows;
        is_wrong.then(|| format!("{} grows: {}", self.figure.name, self.words()))
    }

    /// What the line says.
    fn words(&self) -> String {
        let Some(trend) = self.trend else { return "not known here".to_owned() };
        let Trend { level, growth, growth_low, growth_high, .. } = trend;
        if level == 0.0 {
            return "always 0".to_owned();
        }
        let percent = |growth: f64| format!("{:+.2} %", 100.0 * growth / level);
        format!(
            "{} and {} in the second half ({} to {})",
            number(level),
            percent(growth),
            percent(growth_low),
            percent(growth_high)
        )
    }

    fn panel(&self, index: usize, samples: &[Sample]) -> trend::Panel {
        let point = |sample: &Sample| Some((sample.seconds, sample.values[index]?));
        let points: Vec<_> = samples.iter().filter_map(point).collect();
        let ends = self.trend.zip(points.last()).map(|(trend, last)| {
            let (from, until) = trend.ends();
            [(last.0 / 2.0, from), (last.0, until)]
        });
        trend::Panel {
            title: format!("{}: {}", self.figure.about, self.words()),
            points,
            line: ends,
        }
    }
}

impl Record {
    /// Writes the folder.
    ///
    /// # Errors
    /// [`WriteError`]
    pub fn write(&self) -> Result<(), WriteError> {
        let failed = |path: &PathBuf| {
            let path = path.clone();
            move |cause: io::Error| WriteError::new(&path, cause)
        };
        fs::create_dir_all(&self.folder).map_err(failed(&self.folder))?;
        let path = self.folder.join("soak.json");
        let json = serde_json::to_string_pretty(self).map_err(io::Error::from);
        json.and_then(|json| fs::write(&path, json + "\n")).map_err(failed(&path))?;
        let path = self.folder.join("samples.csv");
        fs::write(&path, to_csv(&self.samples)).map_err(failed(&path))?;
        let path = self.folder.join("soak.svg");
        let is_any = |judged: &Judged| judged.trend.is_some_and(|trend| trend.level > 0.0);
        let known = self.figures.iter().enumerate().filter(|(_, judged)| is_any(judged));
        let panels: Vec<_> =
            known.map(|(index, judged)| judged.panel(index, &self.samples)).collect();
        let title = format!("fanwire, {} minutes of mixed load", self.parameters.minutes);
        trend::panels(&path, &title, &panels).map_err(|cause| WriteError::new(&path, cause))
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parameters, server_cpus, load, figures, .. } = self;
        let Load { generators, wanderers, backend, reloads } = load;
        let minutes = parameters.minutes;
        writeln!(f, "soaked      {minutes} min, server {server_cpus:.2} CPUs, {reloads} reloads")?;
        writeln!(
            f,
            "came        {} connections in {} waves of storms and otherwise",
            number((generators.opened + wanderers.connections) as f64),
            generators.waves
        )?;
        writeln!(
            f,
            "checked     {} messages published, {} delivered; {} joins and leaves",
            number((generators.published + wanderers.published + backend) as f64),
            number((generators.delivered + wanderers.delivered) as f64),
            number(wanderers.visits as f64)
        )?;
        writeln!(
            f,
            "slow        {} skipped with a notice, {} disconnected",
            number(wanderers.skipped as f64),
            generators.slow_ended
        )?;
        for judged in figures {
            let note = if judged.figure.judged { "" } else { ", not judged" };
            writeln!(f, "{:16} {}{note}", judged.figure.name, judged.words())?;
        }
        if minutes < JUDGED_FROM {
            writeln!(f, "growth is not judged: less than {JUDGED_FROM} minutes, pools still fill")?;
        }
        for problem in &self.problems {
            writeln!(f, "PROBLEM     {problem}")?;
        }
        writeln!(f, "verdict     {}", if self.passed { "passed" } else { "FAILED" })?;
        writeln!(f, "results     {}", self.folder.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rss: impl Fn(f64) -> f64) -> Vec<Sample> {
        let sample = |n: u32| {
            let seconds = f64::from(n) * 5.0;
            let mut values = [Some(10.0); FIGURES.len()];
            values[0] = Some(rss(seconds));
            values[2] = None;
            Sample { seconds, values }
        };
        (0..720).map(sample).collect()
    }

    #[test]
    fn only_what_grows_in_the_second_half_is_a_problem() {
        let problems = |samples: &[Sample], minutes| {
            let figures = Judged::all(samples, minutes);
            figures.iter().filter_map(Judged::problem).collect::<Vec<_>>()
        };
        let warms_up = samples(|at| at.min(1500.0));
        assert_eq!(problems(&warms_up, 60.0), Vec::<String>::new());
        let leaks = samples(|at| 1000.0 + at / 10.0);
        let found = problems(&leaks, 60.0);
        assert!(matches!(&found[..], [only] if only.starts_with("rss_kib grows")), "{found:?}");
        assert_eq!(problems(&leaks, 1.0), Vec::<String>::new(), "too short to tell");
        assert_eq!(Judged::all(&leaks, 60.0)[2].words(), "not known here");
    }
}
