//! The load: generators as processes of their own, each a scenario of this very binary.
//!
//! Each checks what it hears as it always does: what was lost, duplicated or reordered is a problem
//! of its report, and so of the soak. They are modest on purpose: a soak asks whether anything
//! grows, not how much a server can do, and must fit beside other work on its host.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::child::{Owned, Signal, bound, said};
use crate::report::Report;

/// How often the connections of a storm come back.
const STORM_EVERY: Duration = Duration::from_secs(20);
/// How often a round of slow consumers begins.
pub const SLOW_EVERY: Duration = Duration::from_secs(60);

/// What native members say, as templates.
const JOIN: &str = r#"{"type":"join","room_id":"soak-{room}"}"#;
const MESSAGE: &str = concat!(
    r#"{"type":"broadcast","room_id":"soak-{room}","#,
    r#""content":"{sequence}{timestamp}{padding}"}"#
);

/// One of them.
#[derive(Debug)]
pub struct Generator {
    name: &'static str,
    child: Owned,
    folder: PathBuf,
    log: PathBuf,
}

/// What the generators did, added up, and what their reports complain of.
#[derive(Debug, Default, Serialize)]
pub struct Found {
    /// Messages published.
    pub published: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Opening handshakes that succeeded.
    pub opened: u64,
    /// Waves of storms.
    pub waves: u64,
    /// Slow consumers that the server has ended.
    pub slow_ended: u64,
    /// What was wrong, with the name of whoever noticed.
    pub problems: Vec<String>,
}

/// The generators that run all the time, by name, with their command lines: rooms of all dialects,
/// connections that do nothing, and storms on the rooms of the first.
#[must_use]
pub fn steady(duration: Duration) -> [(&'static str, String); 5] {
    let seconds = duration.as_secs();
    let waves = seconds.div_ceil(STORM_EVERY.as_secs());
    // Coming back takes a moment each time: a storm lasts a little longer than the rest.
    let stay = STORM_EVERY.as_secs();
    let storm = |connections: u32, how: &str| {
        format!(
            "storm --connections {connections} --rooms 20 --path /raw/soak-{{room}} \
             --waves {waves} --stay {stay}s --drop-how {how}"
        )
    };
    [
        (
            "raw",
            format!(
                "fanout --connections 500 --rooms 20 --publishers 10 --rate 60 --payload 200 \
                 --path /raw/soak-{{room}} --beside-rooms 50 --beside-members 3 --beside-echoes 20 \
                 --beside-rate 0.5 --warmup 0s --duration {seconds}s --drain 30s"
            ),
        ),
        (
            "native",
            format!(
                "fanout --connections 500 --rooms 60 --publishers 10 --roam --rate 60 \
                 --payload 300 --path /ws --subprotocol fanwire.v1 --join {JOIN} \
                 --message {MESSAGE} --warmup 0s --duration {seconds}s --drain 30s"
            ),
        ),
        (
            "idle",
            format!(
                "idle --connections 300 --rooms 30 --path /raw/soak-idle-{{room}} \
                 --ping-interval 30s --hold {seconds}s"
            ),
        ),
        ("storm-reset", storm(300, "reset")),
        ("storm-close", storm(200, "close")),
    ]
}

/// A round of slow consumers: half of the members never read. In a room of the round's own, which
/// comes and goes with it.
#[must_use]
pub fn slow(round: u32) -> String {
    format!(
        "slow --connections 61 --rate 50 --payload 4000 --slow-share 0.5 \
         --path /raw/soak-slow-{round} --warmup 0s --duration 20s --drain 30s"
    )
}

impl Generator {
    /// Starts one with a command line as above against the server at `target`; its report and log
    /// go below `work`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        name: &'static str,
        words: &str,
        target: SocketAddr,
        work: &Path,
    ) -> io::Result<Self> {
        let (folder, log) = (work.join(name), work.join(format!("{name}.log")));
        let mut command = bound(std::env::current_exe()?);
        command.args(words.split_whitespace()).args(["--threads", "1"]);
        command.args(["--target", &target.to_string()]).arg("--out").arg(&folder);
        let child = Owned::start(&mut command, &log)?;
        Ok(Self { name, child, folder, log })
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.child.poll()?.is_some())
    }

    /// Makes it close its connections and write its report, as Ctrl-C would.
    pub fn interrupt(&self) {
        self.child.signal(Signal::INT);
    }

    /// Reads what it has found. If it still runs, it is late, and ended.
    pub fn finish(mut self, found: &mut Found) {
        if !matches!(self.has_ended(), Ok(true)) {
            return found.problems.push(format!("{}: it has not ended in time", self.name));
        }
        let report = match Report::read(&self.folder) {
            Ok(report) => report,
            Err(error) => {
                let said = said(&self.log);
                return found.problems.push(format!("{}: {error} ({said})", self.name));
            }
        };
        let beside = report.sections.beside.values().map(|class| &class.traffic);
        for traffic in report.traffic.iter().chain(beside) {
            found.published += traffic.published;
            found.delivered += traffic.delivered;
        }
        found.opened += match &report.sections.storm {
            Some(storm) => storm.handshake.count,
            None => report.opening.ready,
        };
        found.waves += report.sections.storm.map_or(0, |storm| storm.waves.len() as u64);
        found.slow_ended += report.sections.slow.map_or(0, |slow| slow.ended.values().sum());
        let problems = report.verdict.problems.iter();
        found.problems.extend(problems.map(|problem| format!("{}: {problem}", self.name)));
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    #[test]
    fn every_command_line_is_one() {
        let minutes = [1, 60].map(|minutes| Duration::from_secs(60 * minutes));
        let all = minutes.into_iter().flat_map(steady).map(|(_, words)| words);
        for words in all.chain([slow(0)]) {
            let cli = Cli::try_parse_from(
                [&["fanwire-bench"], &*words.split(' ').collect::<Vec<_>>()].concat(),
            );
            let command = cli.unwrap_or_else(|error| panic!("{words}: {error}")).command;
            assert!(matches!(command, Command::Run(_)), "{words}");
        }
    }
}
