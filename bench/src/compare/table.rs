//! A comparison in words: the table, the warnings, the verdict.
//!
//! A terminal also gets arrows and colours; what is piped is plain.

use std::fmt;
use std::io::{self, IsTerminal};

use crate::compare::figures::{Change, Spread};
use crate::compare::{Comparison, Row, Side, letter};
use crate::plot::number;

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.json {
            let json = serde_json::to_string_pretty(self).map_err(|_| fmt::Error)?;
            return writeln!(f, "{json}");
        }
        for (index, side) in self.sides.iter().enumerate() {
            let Side { letter, label, folders, commit, server_command } = side;
            write!(f, "{letter}  {label}")?;
            match (folders.len(), folders[0].display()) {
                (1, folder) => write!(f, ", {folder}")?,
                (count, folder) => write!(f, ", {count} runs, the first in {folder}")?,
            }
            if let Some(commit) = commit {
                write!(f, ", commit {commit:.12}")?;
            }
            if let Some(command) = server_command {
                write!(f, ", server `{command}`")?;
            }
            writeln!(f, "{}", if index == 0 { " (base)" } else { "" })?;
        }
        writeln!(f)?;
        self.table(f)?;
        writeln!(f)?;
        for warning in &self.warnings {
            writeln!(f, "WARNING  {warning}")?;
        }
        if let Some(picture) = &self.picture {
            writeln!(f, "picture  {}", picture.display())?;
        }
        let percent = number(self.tolerance * 100.0);
        match self.passed {
            true => writeln!(f, "verdict  no judged figure (*) is worse by more than {percent} %"),
            false => {
                let worse = self
                    .rows
                    .iter()
                    .filter(|row| row.judged && row.changes.contains(&Change::Worse));
                let worse: Vec<_> = worse.map(|row| row.key).collect();
                writeln!(f, "verdict  WORSE by more than {percent} %: {}", worse.join(", "))
            }
        }
    }
}

impl Comparison {
    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut header = vec![String::new()];
        header.extend(self.sides.iter().map(|side| side.letter.clone()));
        header.extend(self.sides[1..].iter().map(|side| format!("{}/A", side.letter)));
        let repeats = self.sides[0].folders.len() > 1;
        let mut lines = vec![header];
        for row in &self.rows {
            let star = if row.judged { " *" } else { "" };
            let mut line = vec![format!("{}{star}", row.name)];
            line.extend(row.values.iter().map(|value| spread(value, repeats, number)));
            line.extend(row.ratios.iter().map(|ratio| spread(ratio, repeats, ratio_text)));
            lines.push(line);
        }
        let column = |index: usize| lines.iter().map(move |line| line[index].chars().count());
        let widths: Vec<_> = (0..lines[0].len()).map(|i| column(i).max().unwrap_or(0)).collect();
        for (index, line) in lines.iter().enumerate() {
            write!(f, "{:width$}", line[0], width = widths[0])?;
            for (cell, width) in line.iter().zip(&widths).skip(1) {
                write!(f, "  {cell:>width$}")?;
            }
            if let Some(row) = index.checked_sub(1).map(|index| &self.rows[index]) {
                write!(f, "{}", Words(row, self.sides.len() > 2))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The middle, and the ends if there is more than one value.
fn spread(spread: &Spread, repeats: bool, text: fn(f64) -> String) -> String {
    let Spread { median, min, max } = *spread;
    match repeats {
        true => format!("{} ({}..{})", text(median), text(min), text(max)),
        false => text(median),
    }
}

fn ratio_text(ratio: f64) -> String {
    if ratio.is_finite() { format!("{ratio:.3}") } else { "from 0".to_owned() }
}

/// The words after a row: what changed for better or worse. A terminal also shows arrows and, as
/// long as `NO_COLOR` is not set (no-color.org), colours.
struct Words<'r>(&'r Row, bool);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(row, several) = self;
        let terminal = io::stdout().is_terminal();
        let colored = terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        for (index, (change, ratio)) in row.changes.iter().zip(&row.ratios).enumerate() {
            let (word, color) = match change {
                Change::Better => ("better", 32),
                Change::Worse => ("worse", 31),
                Change::Same => continue,
            };
            let side = if *several { letter(index + 1) + " " } else { String::new() };
            let arrow = match terminal {
                true if ratio.median > 1.0 => "↑ ",
                true => "↓ ",
                false => "",
            };
            match colored {
                true => write!(f, "  \x1b[{color}m{arrow}{side}{word}\x1b[0m")?,
                false => write!(f, "  {arrow}{side}{word}")?,
            }
        }
        Ok(())
    }
}
