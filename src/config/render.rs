//! The effective configuration as a commented TOML file.
//!
//! Every key carries what it is, what it accepts, its default and where its value came from. The
//! file means what it was made from: fed back with `--config` it gives the same configuration.

use std::fmt::Write;

use super::change::is_live;
use super::layers::{Loaded, settings_command};
use super::value::accepted;

impl Loaded {
    /// The effective configuration as TOML.
    pub fn to_toml(&self) -> String {
        let values = self.settings.to_table();
        let mut out = format!(
            "# Effective configuration of fanwire {}. Use it with: fanwire serve --config FILE\n\
             # Ranges include both ends. A bare number is seconds, or bytes.\n",
            env!("CARGO_PKG_VERSION"),
        );
        let mut heading = None;
        for arg in settings_command().get_arguments() {
            if arg.get_help_heading() != heading {
                heading = arg.get_help_heading();
                let _ = write!(out, "\n\n# ===== {} =====\n", heading.unwrap_or_default());
            }
            let key = arg.get_id().as_str();
            let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
            let default = arg.get_default_values().iter().map(|value| value.to_string_lossy());
            out.push('\n');
            // clap takes the last full stop off.
            comment(&mut out, &format!("{}.", help.unwrap_or_default()));
            comment(
                &mut out,
                &format!(
                    "Accepted: {}. Default: {}. Set by: {}.{}",
                    accepted(arg),
                    default.collect::<Vec<_>>().join(", "),
                    self.origin(key),
                    if is_live(key) { " Changes without a restart." } else { "" },
                ),
            );
            let _ = writeln!(out, "{key} = {}", values[key]);
        }
        out
    }
}

/// Appends `text` as comment lines of at most 100 columns, broken between words.
fn comment(out: &mut String, text: &str) {
    let mut column = usize::MAX;
    for word in text.split_whitespace() {
        if column.saturating_add(1 + word.len()) > COLUMNS {
            // The first line begins after a complete one, every other one ends the line before.
            let newline = if column == usize::MAX { "" } else { "\n" };
            let _ = write!(out, "{newline}#");
            column = 1;
        }
        let _ = write!(out, " {word}");
        column += 1 + word.len();
    }
    out.push('\n');
}

const COLUMNS: usize = 100;
