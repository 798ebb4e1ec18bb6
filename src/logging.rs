//! Log lines: one line each, to standard error, as text for people or JSON for machines.
//!
//! Standard output stays free for what a command prints. Colours only on a terminal. Only `control`
//! and `shard` log; `protocol`, `dialect` and `room` return values instead.
//!
//! Nobody waits for the log: a line that standard error does not take at once is left out, and
//! before the next that it takes is one that says how many are missing.

use std::io::{self, IsTerminal, Write, stderr as standard_error};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{LogFormat, LogLevel};
use crate::io::stderr;

/// Which lines are written; can change at any time. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Threshold {
    filter: reload::Handle<LevelFilter, Registry>,
    level: Arc<Mutex<LogLevel>>,
}

/// Starts logging for the whole process; a second call changes nothing.
pub fn start(format: LogFormat, level: LogLevel) -> Threshold {
    let (filter, handle) = reload::Layer::new(LevelFilter::from(level));
    let lines = fmt::layer()
        .with_writer(move || Lines { format })
        .with_ansi(standard_error().is_terminal())
        .with_target(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // The only error is that logging has been started already.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Threshold { filter: handle, level: Arc::new(Mutex::new(level)) }
}

/// Takes whole lines, one per call of `write_all`, and never waits.
struct Lines {
    format: LogFormat,
}

/// What standard error has not taken since the last line that it took.
struct Gap {
    lines: u64,
    /// Of the first of them it has taken the beginning.
    cut: bool,
}

static GAP: Mutex<Gap> = Mutex::new(Gap { lines: 0, cut: false });

impl Gap {
    /// Whether standard error has taken all of `line`.
    fn put(&mut self, line: &[u8]) -> bool {
        let mut rest = line;
        while !rest.is_empty() {
            let Ok(written) = stderr::write_at_once(rest) else {
                self.cut |= rest.len() < line.len();
                return false;
            };
            rest = &rest[written..];
        }
        true
    }

    /// The line that stands for what is missing.
    fn line(&self, format: LogFormat) -> String {
        let Self { lines, cut } = self;
        let begin = if *cut { "\n" } else { "" };
        let mut time = String::new();
        // As in the lines around it; a string takes everything.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        let message = "log lines are missing here: standard error did not take them";
        match format {
            LogFormat::Text => format!("{begin}{time}  WARN {lines} {message}\n"),
            LogFormat::Json => format!(
                r#"{begin}{{"timestamp":"{time}","level":"WARN","message":"{message}","missing":{lines}}}{}"#,
                '\n'
            ),
        }
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut gap = GAP.lock().unwrap_or_else(PoisonError::into_inner);
        if gap.lines > 0 {
            let line = gap.line(self.format);
            if gap.put(line.as_bytes()) {
                *gap = Gap { lines: 0, cut: false };
            }
        }
        if !gap.put(line) {
            gap.lines += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Threshold {
    /// From now on writes lines of `level` and of what is more important.
    pub fn set(&self, level: LogLevel) {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = level;
        // It fails only without a subscriber: then nobody writes lines.
        let _ = self.filter.reload(LevelFilter::from(level));
    }

    /// The level that was set last.
    #[must_use]
    pub fn level(&self) -> LogLevel {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets one line of a kind through per [`Limiter::PAUSE`] and counts the others: for what may
/// happen a thousand times per second as long as its cause lasts.
#[derive(Debug, Default)]
pub struct Limiter {
    next: Option<Instant>,
    left_out: u64,
}

impl Limiter {
    /// Between two lines.
    pub const PAUSE: Duration = Duration::from_secs(10);

    /// One that lets the first line through.
    #[must_use]
    pub const fn new() -> Self {
        Self { next: None, left_out: 0 }
    }

    /// Whether a line may be written now; if so, how many were left out since the last one.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.left_out += 1;
            return None;
        }
        self.next = Some(now + Self::PAUSE);
        Some(std::mem::take(&mut self.left_out))
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> LevelFilter {
        match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_one_line_in_either_format() {
        let line = |cut, format| Gap { lines: 3, cut }.line(format);
        let text = line(false, LogFormat::Text);
        let (time, rest) = text.split_once("  ").expect("a time and two spaces");
        assert!(time.len() == 27 && time.ends_with('Z'), "{time}");
        assert!(rest.starts_with("WARN 3 log lines are missing") && rest.ends_with("them\n"));
        let json = line(true, LogFormat::Json);
        // It ends the line of which only the beginning was written.
        let json = json.strip_prefix('\n').and_then(|json| json.strip_suffix('\n'));
        let json: serde_json::Value = serde_json::from_str(json.expect("a line")).expect("JSON");
        assert!(json["timestamp"].as_str().is_some_and(|time| time.len() == 27), "{json}");
        assert_eq!((&json["level"], &json["missing"]), (&"WARN".into(), &3.into()));
    }

    #[test]
    fn one_line_per_pause_says_how_many_were_left_out() {
        let (mut limiter, start) = (Limiter::new(), Instant::now());
        let mut admit = |ms| limiter.admit(start + Duration::from_millis(ms));
        assert_eq!([0, 1, 9_999].map(&mut admit), [Some(0), None, None]);
        assert_eq!([10_000, 10_001, 30_000].map(&mut admit), [Some(2), None, Some(1)]);
    }
}
