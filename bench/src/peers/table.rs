//! What the runs add up to: one figure per measure and peer, as a table and as bars.
//!
//! A figure is the median over the rounds with its lowest and highest value. Absolute values depend
//! on the host and on what else it does, so each stands beside its ratio to Fanwire: the median of
//! the ratios of single rounds, in which both ran within minutes of each other. A figure from runs
//! of which one failed is no figure.

use std::fmt::{self, Write};

use serde::Serialize;
use serde_json::Value;

use super::catalog::FANWIRE;
use crate::compare::Spread;
use crate::plot::BarPanel;

/// One run of one peer.
#[derive(Debug, Serialize)]
pub struct Run {
    /// From 1.
    pub round: u32,
    /// Who.
    pub peer: &'static str,
    /// How much load.
    #[serde(flatten)]
    pub load: Load,
    /// What went wrong; none if the run is good.
    pub problems: Vec<String>,
    /// `report.json` of the run less what all runs have in common; null if there was none.
    pub report: Value,
}

/// The load of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// Closed loop: messages of each publisher under way.
    Window(u32),
    /// Open loop: messages per second, the same for everybody in the round.
    Rate(f64),
}

impl Run {
    /// Mean rate in the measured window, if it has a report.
    #[must_use]
    pub fn deliveries_per_second(&self) -> Option<f64> {
        self.report.pointer("/traffic/deliveries_per_second").and_then(Value::as_f64)
    }
}

/// What is measured.
#[derive(Debug)]
struct Measure {
    name: &'static str,
    unit: &'static str,
    /// Where it is in a report.
    pointer: &'static str,
    runs: Runs,
    lower_is_better: bool,
}

/// Which runs have a figure for a measure.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Runs {
    /// Those with a window, each window for itself.
    Windows,
    /// Those with a rate.
    Rate,
    /// All.
    All,
}

const MEASURES: [Measure; 7] = [
    Measure {
        name: "deliveries",
        unit: "/s",
        pointer: "/traffic/deliveries_per_second",
        runs: Runs::Windows,
        lower_is_better: false,
    },
    Measure {
        name: "server CPU per delivery",
        unit: "us",
        pointer: "/server/cpu_us_per_delivery",
        runs: Runs::Windows,
        lower_is_better: true,
    },
    Measure {
        name: "latency p99",
        unit: "ms",
        pointer: "/traffic/latency/p99_ms",
        runs: Runs::Windows,
        lower_is_better: true,
    },
    Measure {
        name: "latency p99 at half rate",
        unit: "ms",
        pointer: "/traffic/latency/p99_ms",
        runs: Runs::Rate,
        lower_is_better: true,
    },
    Measure {
        name: "time to the last member p50",
        unit: "ms",
        pointer: "/traffic/to_last/p50_ms",
        runs: Runs::Windows,
        lower_is_better: true,
    },
    Measure {
        name: "connections opened",
        unit: "/s",
        pointer: "/opening/per_second",
        runs: Runs::All,
        lower_is_better: false,
    },
    Measure {
        name: "RSS per idle connection",
        unit: "B",
        pointer: "/server/rss_bytes_per_connection",
        runs: Runs::All,
        lower_is_better: true,
    },
];

/// A row of the table.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub measure: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// The window, where it matters.
    pub window: Option<u32>,
    /// One per peer, in their order.
    pub cells: Vec<Cell>,
    #[serde(skip)]
    lower_is_better: bool,
}

/// What one peer did in one measure.
#[derive(Debug, Serialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// It did not run.
    Absent,
    /// A run failed.
    Invalid,
    /// A run was too short or too small: no message was published while figures were taken, or no
    /// page of memory more was used.
    Unmeasured,
    /// All runs were good.
    Valid(Figure),
}

/// See the module documentation.
#[derive(Debug, Clone, Copy, Serialize, PartialEq)]
pub struct Figure {
    /// Over the rounds.
    #[serde(flatten)]
    pub spread: Spread,
    /// Of the ratios to Fanwire, if it has the figure for the same rounds.
    pub ratio: Option<Spread>,
}

/// A peer as the table knows it.
#[derive(Debug, Clone, Serialize)]
pub struct Entrant {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// What was installed.
    pub version: Option<String>,
    /// Why it does not take part.
    pub skipped: Option<String>,
}

/// Makes the rows from the runs of `entrants`.
#[must_use]
pub fn rows(entrants: &[Entrant], runs: &[Run], windows: &[u32]) -> Vec<Row> {
    let row = |measure: &Measure, window: Option<u32>| Row {
        measure: measure.name,
        unit: measure.unit,
        window,
        cells: entrants.iter().map(|entrant| cell(entrant.name, measure, window, runs)).collect(),
        lower_is_better: measure.lower_is_better,
    };
    let has_rate = runs.iter().any(|run| matches!(run.load, Load::Rate(_)));
    let mut rows = Vec::new();
    for measure in &MEASURES {
        match measure.runs {
            Runs::Windows => rows.extend(windows.iter().map(|&window| row(measure, Some(window)))),
            Runs::Rate if !has_rate => {}
            Runs::Rate | Runs::All => rows.push(row(measure, None)),
        }
    }
    rows
}

fn cell(peer: &str, measure: &Measure, window: Option<u32>, runs: &[Run]) -> Cell {
    let counts = |run: &&Run| match (measure.runs, run.load) {
        (Runs::All, _) | (Runs::Rate, Load::Rate(_)) => true,
        (Runs::Windows, Load::Window(own)) => Some(own) == window,
        (Runs::Windows, Load::Rate(_)) | (Runs::Rate, Load::Window(_)) => false,
    };
    let of = |name| runs.iter().filter(counts).filter(move |run| run.peer == name);
    if of(peer).next().is_none() {
        return Cell::Absent;
    }
    if of(peer).any(|run| !run.problems.is_empty()) {
        return Cell::Invalid;
    }
    let Some(values) = of(peer).map(|run| measure.value(run)).collect::<Option<Vec<_>>>() else {
        return Cell::Unmeasured;
    };
    let same = |run: &Run, base: &Run| run.round == base.round && run.load == base.load;
    let ratios = of(peer).map(|run| {
        let base = of(FANWIRE).find(|base| same(run, base) && base.problems.is_empty())?;
        Some(measure.value(run)? / measure.value(base)?)
    });
    let ratio = ratios.collect::<Option<Vec<_>>>().map(Spread::of);
    Cell::Valid(Figure { spread: Spread::of(values), ratio })
}

impl Measure {
    /// Its value in one run, if there is one. Nothing that is measured here can be 0: that is what
    /// a report says where nothing was counted.
    fn value(&self, run: &Run) -> Option<f64> {
        run.report.pointer(self.pointer)?.as_f64().filter(|&value| value > 0.0)
    }
}

/// The table in Markdown, aligned so that it reads as plain text, too.
#[must_use]
pub fn markdown(entrants: &[Entrant], rows: &[Row]) -> String {
    let mut lines = vec![vec![String::new()]];
    lines[0].extend(entrants.iter().map(|entrant| entrant.name.to_owned()));
    for row in rows {
        let window = row.window.map_or(String::new(), |window| format!(", window {window}"));
        let mut line = vec![format!("{} ({}){window}", row.measure, row.unit)];
        line.extend(row.cells.iter().zip(entrants).map(|(cell, entrant)| match cell {
            Cell::Absent if entrant.skipped.is_some() => "skipped".to_owned(),
            Cell::Absent => "no run".to_owned(),
            Cell::Invalid => "INVALID".to_owned(),
            Cell::Unmeasured => "no figure".to_owned(),
            Cell::Valid(figure) => figure.to_string(),
        }));
        lines.push(line);
    }
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<_> = (0..=entrants.len()).map(|column| width(column).unwrap_or(0)).collect();
    lines.insert(1, widths.iter().map(|&width| "-".repeat(width.max(3))).collect());
    let mut text = String::new();
    for line in lines {
        for (cell, width) in line.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(text, "| {cell:width$} ", width = (*width).max(3));
        }
        text.push_str("|\n");
    }
    text
}

/// The bars: a panel per row, without those who have no figure.
#[must_use]
pub fn panels(entrants: &[Entrant], rows: &[Row]) -> Vec<BarPanel> {
    let panel = |row: &Row| {
        let bars = entrants.iter().zip(&row.cells).filter_map(|(entrant, cell)| match cell {
            Cell::Valid(figure) => Some((named(entrant.name, figure.ratio), figure.spread.median)),
            Cell::Absent | Cell::Invalid | Cell::Unmeasured => None,
        });
        let window = row.window.map_or(String::new(), |window| format!(", window {window}"));
        BarPanel {
            title: format!("{}{window}", row.measure),
            unit: row.unit.to_owned(),
            rows: bars.collect(),
            lower_is_better: row.lower_is_better,
        }
    };
    rows.iter().map(panel).filter(|panel| !panel.rows.is_empty()).collect()
}

/// A name with the ratio to Fanwire, which has none to itself.
fn named(name: &str, ratio: Option<Spread>) -> String {
    match ratio.filter(|_| name != FANWIRE) {
        Some(ratio) => format!("{name} ({}x)", digits(ratio.median)),
        None => name.to_owned(),
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window(window) => write!(f, "window {window}"),
            Self::Rate(rate) => write!(f, "half rate, {rate:.1} messages/s"),
        }
    }
}

/// One line.
impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, load, problems, .. } = self;
        let rate = self.deliveries_per_second();
        let rate = rate.map_or("no figures".to_owned(), |rate| format!("{rate:.0} deliveries/s"));
        let failed = if problems.is_empty() { "" } else { "; FAILED: " };
        write!(f, "{peer:12} {:10} {rate}{failed}{}", load.to_string(), problems.join(", "))
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, min, max } = self.spread;
        write!(f, "{} ({}..{})", digits(median), digits(min), digits(max))?;
        match self.ratio {
            Some(ratio) => write!(f, " {}x", digits(ratio.median)),
            None => f.write_str(" no ratio"),
        }
    }
}

/// Three digits, which is more than any of it can be trusted for.
fn digits(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 999_500.0 => (value / 1e6, "M"),
        value if value >= 9_995.0 => (value / 1e3, "k"),
        value => (value, ""),
    };
    match value {
        value if value >= 99.95 => format!("{value:.0}{unit}"),
        value if value >= 9.995 => format!("{value:.1}{unit}"),
        value if value >= 0.9995 => format!("{value:.2}{unit}"),
        value => format!("{value:.3}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entrant(name: &'static str) -> Entrant {
        Entrant { name, about: "", version: Some("1".to_owned()), skipped: None }
    }

    /// A run with all figures there are; `rate` is that of deliveries.
    fn run(peer: &'static str, round: u32, window: u32, rate: f64) -> Run {
        let report = serde_json::json!({
            "traffic": {
                "deliveries_per_second": rate,
                "latency": { "p99_ms": 2.0 },
                "to_last": { "p50_ms": 1.0 },
            },
            "opening": { "per_second": rate / 10.0 },
            "server": { "cpu_us_per_delivery": 0.5, "rss_bytes_per_connection": 152.0 },
        });
        Run { round, peer, load: Load::Window(window), problems: Vec::new(), report }
    }

    fn figure(row: &Row, peer: usize) -> Figure {
        let Cell::Valid(figure) = row.cells[peer] else { panic!("{:?}", row.cells[peer]) };
        figure
    }

    #[test]
    fn a_ratio_is_of_one_round_and_window() {
        let peers = [entrant(FANWIRE), entrant("bun")];
        // The host is three times as fast in round 2: the ratio does not mind.
        let runs = [
            run(FANWIRE, 1, 1, 100.0),
            run("bun", 1, 1, 50.0),
            run("bun", 2, 1, 150.0),
            run(FANWIRE, 2, 1, 300.0),
            run("bun", 3, 1, 80.0),
            run(FANWIRE, 3, 1, 100.0),
            run(FANWIRE, 1, 16, 1000.0),
            run("bun", 1, 16, 2000.0),
        ];
        let rows = rows(&peers, &runs, &[1, 16]);
        let bun = figure(&rows[0], 1);
        assert_eq!(bun.spread, Spread { median: 80.0, min: 50.0, max: 150.0 });
        assert_eq!(bun.ratio, Some(Spread { median: 0.5, min: 0.5, max: 0.8 }));
        let ratio = |row: &Row, peer| figure(row, peer).ratio.expect("a ratio").median;
        assert_eq!(ratio(&rows[0], 0), 1.0, "to itself");
        assert_eq!(ratio(&rows[1], 1), 2.0, "window 16");
        let opened = rows.iter().find(|row| row.measure == "connections opened").expect("a row");
        assert_eq!(opened.window, None);
        assert_eq!(ratio(opened, 1), 0.65, "of 0.5, 0.5, 0.8 and 2");
    }

    #[test]
    fn a_run_at_a_rate_is_beside_those_with_windows() {
        let peers = [entrant(FANWIRE), entrant("bun")];
        let at_rate = |peer, round, p99: f64| {
            let mut run = run(peer, round, 0, 1.0);
            run.load = Load::Rate(90.5);
            run.report["traffic"]["latency"]["p99_ms"] = p99.into();
            run
        };
        let mut runs = vec![run(FANWIRE, 1, 1, 100.0), run("bun", 1, 1, 90.0)];
        let name = "latency p99 at half rate";
        assert!(rows(&peers, &runs, &[1]).iter().all(|row| row.measure != name), "nobody asked");
        runs.extend([at_rate(FANWIRE, 1, 4.0), at_rate("bun", 1, 5.0)]);
        let rows = rows(&peers, &runs, &[1]);
        let row = rows.iter().find(|row| row.measure == name).expect("a row");
        assert_eq!((row.window, figure(row, 1).spread.median), (None, 5.0));
        assert_eq!(figure(row, 1).ratio.expect("a ratio").median, 1.25);
        assert_eq!(figure(&rows[0], 1).spread.median, 90.0, "windows mind no rate");
        let json = |run: &Run| serde_json::to_value(run).expect("JSON");
        assert_eq!((&json(&runs[0])["window"], &json(&runs[2])["rate"]), (&1.into(), &90.5.into()));
    }

    #[test]
    fn a_failed_run_makes_its_figures_invalid_and_ratios_to_it_impossible() {
        let peers = [entrant(FANWIRE), entrant("bun")];
        let mut failed = run("bun", 1, 1, 1e9);
        failed.problems.push("1 deliveries lost".to_owned());
        let runs = [run(FANWIRE, 1, 1, 10.0), failed, run("bun", 2, 1, 10.0)];
        let table = rows(&peers, &runs, &[1]);
        assert!(table.iter().all(|row| row.cells[1] == Cell::Invalid), "{table:?}");
        assert!(markdown(&peers, &table).contains("INVALID"));
        assert!(panels(&peers, &table).iter().all(|panel| panel.rows.len() == 1));

        let mut failed = run(FANWIRE, 1, 1, 10.0);
        failed.problems.push("1 deliveries lost".to_owned());
        let table = rows(&peers, &[failed, run("bun", 1, 1, 10.0)], &[1]);
        assert_eq!(figure(&table[0], 1).ratio, None);
        assert!(markdown(&peers, &table).contains("10.0 (10.0..10.0) no ratio"));
    }

    #[test]
    fn a_run_too_short_for_a_figure_has_none() {
        let peers = [entrant(FANWIRE)];
        let mut short = run(FANWIRE, 1, 1, 10.0);
        // What a report says when no message was published while figures were taken.
        short.report["traffic"]["latency"]["p99_ms"] = 0.0.into();
        short.report["traffic"]["to_last"] = Value::Null;
        let table = rows(&peers, &[short, run(FANWIRE, 2, 1, 10.0)], &[1]);
        let unmeasured = table.iter().filter(|row| row.cells[0] == Cell::Unmeasured);
        let names: Vec<_> = unmeasured.map(|row| row.measure).collect();
        assert_eq!(names, ["latency p99", "time to the last member p50"]);
        assert!(markdown(&peers, &table).contains("| no figure"));
    }

    #[test]
    fn the_table_has_a_column_for_everybody() {
        let mut bun = entrant("bun");
        bun.skipped = Some("there is no npm on this host".to_owned());
        let peers = [entrant(FANWIRE), bun, entrant("ws")];
        let runs = [run(FANWIRE, 1, 16, 1_300_000.0)];
        let table = rows(&peers, &runs, &[16]);
        let text = markdown(&peers, &table);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2 + table.len());
        let widths = lines.iter().map(|line| line.chars().count());
        assert!(widths.clone().all(|width| Some(width) == widths.clone().next()), "{text}");
        let cells: Vec<_> = lines[2].split('|').map(str::trim).collect();
        let expected = ["deliveries (/s), window 16", "1.30M (1.30M..1.30M) 1.00x"];
        assert_eq!(cells[1..5], [expected[0], expected[1], "skipped", "no run"]);
    }

    #[test]
    fn figures_have_three_digits() {
        for (value, expected) in [
            (0.0, "0.000"),
            (0.5678, "0.568"),
            (0.9996, "1.00"),
            (9.996, "10.0"),
            (152.4, "152"),
            (9_994.0, "9994"),
            (9_996.0, "10.0k"),
            (113_456.0, "113k"),
            (999_600.0, "1.00M"),
        ] {
            assert_eq!(digits(value), expected, "{value}");
        }
    }
}
