//! Log lines: one line each, to standard error, as text for people or JSON for machines.
//!
//! Standard output stays free for what a command prints. Colours only on a terminal. Only `control`
//! and `shard` log; `protocol`, `dialect` and `room` return values instead.

use std::io::{IsTerminal, stderr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{LogFormat, LogLevel};

/// Which lines are written; can change at any time. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Threshold {
    filter: reload::Handle<LevelFilter, Registry>,
    level: Arc<Mutex<LogLevel>>,
}

/// Starts logging for the whole process; a second call changes nothing.
pub fn start(format: LogFormat, level: LogLevel) -> Threshold {
    let (filter, handle) = reload::Layer::new(LevelFilter::from(level));
    let lines =
        fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal()).with_target(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // The only error is that logging has been started already.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Threshold { filter: handle, level: Arc::new(Mutex::new(level)) }
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
    fn one_line_per_pause_says_how_many_were_left_out() {
        let (mut limiter, start) = (Limiter::new(), Instant::now());
        let mut admit = |ms| limiter.admit(start + Duration::from_millis(ms));
        assert_eq!([0, 1, 9_999].map(&mut admit), [Some(0), None, None]);
        assert_eq!([10_000, 10_001, 30_000].map(&mut admit), [Some(2), None, Some(1)]);
    }
}
