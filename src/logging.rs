//! Log lines: one line each, to standard error, as text for people or JSON for machines.
//!
//! Standard output stays free for what a command prints. Colours only on a terminal. Only `control`
//! and `shard` log; `protocol`, `dialect` and `room` return values instead.

use std::io::{IsTerminal, stderr};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

use crate::config::{LogFormat, LogLevel};

/// Which lines are written; can change at any time.
#[derive(Debug)]
pub struct Threshold(reload::Handle<LevelFilter, Registry>);

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
    Threshold(handle)
}

impl Threshold {
    /// From now on writes lines of `level` and of what is more important.
    pub fn set(&self, level: LogLevel) {
        // It fails only without a subscriber: then nobody writes lines.
        let _ = self.0.reload(LevelFilter::from(level));
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
