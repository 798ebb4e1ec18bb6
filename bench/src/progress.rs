//! Progress while a run is under way: a bar on a terminal, plain lines elsewhere.
//!
//! Goes to standard error, so that the report on standard output can be piped.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// See the module documentation.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    len: u64,
    unit: &'static str,
    started: Instant,
    last_line: Instant,
}

impl Progress {
    /// Begins a step called `what` that is done at `len` of `unit`.
    #[must_use]
    pub fn start(what: &'static str, len: u64, unit: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style =
                ProgressStyle::with_template("{prefix:8} [{bar:32}] {pos}/{len} {msg} (ETA {eta})");
            let bar = ProgressBar::new(len).with_prefix(what);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        let now = Instant::now();
        Self { bar, what, len, unit, started: now, last_line: now }
    }

    /// Says where the step is; `message` is made only when it is shown.
    pub fn set(&mut self, position: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            // In this order: each of them draws, and no new position stands by an old message.
            bar.set_message(message());
            bar.set_position(position);
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            self.line(position, &message());
        }
    }

    /// Ends the step, and says so in one line.
    pub fn finish(self, position: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.line(position, message);
    }

    fn line(&self, position: u64, message: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let Self { what, len, unit, .. } = self;
        eprintln!("{what:8} {position}/{len} {unit} in {seconds:.1} s: {message}");
    }
}
