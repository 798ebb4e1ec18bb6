//! The report for people: two tables, a sentence between them, the verdict at the end.

use std::fmt::{self, Display, Formatter};

use super::{Report, Row, Verdict, grouped};

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let required = if self.profile_is_required { "required" } else { "as advice" };
        writeln!(
            f,
            "This host, compared with the profile {} ({required}):\n",
            self.profile.name()
        )?;
        let head = ["SETTING", "FOUND", "WANTED", "VERDICT", "REMEDY"].map(String::from);
        table(f, head, self.settings.iter().map(cells))?;

        let nearest = &self.limits[0];
        let connections = grouped(nearest.connections);
        write!(f, "\nThis host holds about {connections} idle connections, by {}", nearest.name)?;
        match self.limits.get(1) {
            Some(next) => {
                let connections = grouped(next.connections);
                writeln!(f, "; the next limit is {} ({connections}).\n", next.name)?;
            }
            None => writeln!(f, ".\n")?,
        }
        let verdict = match self.connections {
            Some(asked) => format!("FOR {}", grouped(asked)),
            None => String::new(),
        };
        let head =
            ["LIMIT".into(), "CONNECTIONS".into(), "FOUND".into(), verdict, "TO RAISE IT".into()];
        table(
            f,
            head,
            self.limits.iter().map(|limit| {
                let verdict = match (self.connections, limit.fits) {
                    (None, _) => "",
                    (Some(_), true) => "ok",
                    (Some(_), false) => MUST_LOW,
                };
                let connections = grouped(limit.connections);
                let found = limit.found.clone();
                [limit.name.into(), connections, found, verdict.into(), limit.remedy.clone()]
            }),
        )?;
        writeln!(f)?;
        for note in &self.notes {
            writeln!(f, "- {note}")?;
        }
        writeln!(f, "\n{}", self.verdict())
    }
}

impl Report {
    /// The last line: what must change, and what would be better.
    fn verdict(&self) -> String {
        let tune = format!("scripts/tune.sh apply --profile {}", self.profile.name());
        let better = |row: &&Row| {
            !row.must_change
                && matches!(row.verdict, Verdict::Low | Verdict::High | Verdict::Differs)
        };
        let better = self.settings.iter().filter(better).count();
        match (self.must_change, better) {
            (0, 0) => "Nothing must change.".into(),
            (0, better) => {
                format!(
                    "Nothing must change; {better} settings could be better. The sysctls: {tune}"
                )
            }
            (must, _) if self.profile_is_required => {
                format!("Must change: {must}. The sysctls: {tune}")
            }
            (must, _) => format!("Must change: {must}."),
        }
    }
}

const MUST_LOW: &str = "low, must change";

fn cells(row: &Row) -> [String; 5] {
    let must = if row.must_change { ", must change" } else { "" };
    let verdict = format!("{}{must}", row.verdict.name());
    [row.setting.clone(), row.found.clone(), row.wanted.clone(), verdict, row.remedy.clone()]
}

/// Writes rows with each column as wide as its widest cell; the last one is not padded.
fn table(
    f: &mut Formatter<'_>,
    head: [String; 5],
    rows: impl Iterator<Item = [String; 5]>,
) -> fmt::Result {
    let rows: Vec<_> = [head].into_iter().chain(rows).collect();
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths).filter(|(_, width)| *width > 0) {
            line.push_str(&format!("{cell:width$}  "));
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}
