//! The runs: each peer in turn under every load, in a fresh process, and what its report says.
//!
//! What the load is follows from the options alone; only the rate of an open loop is found by the
//! runs of the round before it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use thiserror::Error;

use super::catalog::Installed;
use super::table::{Load, Run};
use super::{PeersArgs, PeersError, list};
use crate::child::{Owned, Waited, bound, free_address, said};

/// How long a run may wait for what is under way at its end. What has not arrived by then counts as
/// lost, so this must be longer than a slow server takes for a window; it ends with the last
/// delivery.
const DRAIN: &str = "60s";
/// Handshakes under way at once: less than the shortest backlog among the peers (511), or a SYN is
/// lost, its retransmission takes a second, and the rate of opening is that of chance.
const OPENING: &str = "256";
/// How a connection joins one of several rooms, and publishes into one.
const JOIN: &str = r#"{"type":"join","room_id":"{room}"}"#;
const MESSAGE: &str =
    r#"{"type":"broadcast","room_id":"{room}","content":"{sequence}{timestamp}{padding}"}"#;
/// What is around the content of such a message when the room has as many digits as it may.
const AROUND: usize = r#"{"type":"broadcast","room_id":"15999999","content":""}"#.len();

/// Where the runs are made.
#[derive(Debug)]
pub struct Field<'f> {
    /// What is asked for.
    pub args: &'f PeersArgs,
    /// The work folder, absolute.
    pub work: &'f Path,
    /// Where the folders of the runs are made.
    pub runs_folder: PathBuf,
    /// Set by Ctrl-C.
    pub interrupted: &'f AtomicBool,
}

/// Why a run has no report.
#[derive(Debug, Error)]
enum RunError {
    #[error("cannot start {what}: {cause}")]
    Start { what: &'static str, cause: io::Error },
    #[error("it did not start: {0}")]
    Ended(String),
    #[error("it did not listen in time")]
    TimedOut,
    #[error("the generator failed: {0}")]
    Generator(String),
    #[error("interrupted")]
    Interrupted,
}

impl Field<'_> {
    /// All rounds, or those until Ctrl-C.
    ///
    /// # Errors
    /// [`PeersError::Start`]; what goes wrong in a run is a problem of that run.
    pub fn run_all(&self, ready: &[(&'static str, Installed)]) -> Result<Vec<Run>, PeersError> {
        let binary = std::env::current_exe().map_err(PeersError::Start)?;
        let windows: Vec<_> =
            self.args.windows.iter().map(|&window| Load::Window(window)).collect();
        let mut runs = Vec::new();
        for round in 1..=self.args.rounds {
            // Rotated, so that nobody is always the first or always after the same one.
            let first = (round as usize - 1) % ready.len().max(1);
            let ready: Vec<_> = ready[first..].iter().chain(&ready[..first]).collect();
            let from = runs.len();
            if self.run_each(&binary, &ready, round, &windows, &mut runs).is_none() {
                break;
            }
            if let Some(rate) = half_rate(self.args, &runs[from..])
                && self.run_each(&binary, &ready, round, &[Load::Rate(rate)], &mut runs).is_none()
            {
                break;
            }
        }
        Ok(runs)
    }

    /// One run of everybody with each of `loads`; `None` after Ctrl-C.
    fn run_each(
        &self,
        binary: &Path,
        ready: &[&(&'static str, Installed)],
        round: u32,
        loads: &[Load],
        runs: &mut Vec<Run>,
    ) -> Option<()> {
        for (name, installed) in ready {
            for &load in loads {
                let (report, problems) = match self.run(binary, name, installed, round, load) {
                    Err(RunError::Interrupted) => return None,
                    Err(error) => (Value::Null, vec![error.to_string()]),
                    Ok(report) => {
                        let problems = problems(&report);
                        (report, problems)
                    }
                };
                let run = Run { round, peer: name, load, problems, report };
                eprintln!("round {round}/{}  {run}", self.args.rounds);
                runs.push(run);
            }
        }
        Some(())
    }

    /// Starts the server, loads it, ends it.
    fn run(
        &self,
        binary: &Path,
        name: &'static str,
        installed: &Installed,
        round: u32,
        load: Load,
    ) -> Result<Value, RunError> {
        let args = self.args;
        let cannot = |what| move |cause| RunError::Start { what, cause };
        let address = free_address().map_err(cannot("on a free port"))?;
        let log = self.work.join(name).join("server.log");
        let command = &mut installed.command(address, &list(&args.server_cpus));
        let mut server =
            Owned::start(command, &log).map_err(cannot("it (with setpriv and taskset)"))?;
        let waited = server.wait_until_listening(address, self.interrupted);
        match waited.map_err(cannot("it"))? {
            Waited::Done => {}
            Waited::Failed => return Err(RunError::Ended(said(&log))),
            Waited::TimedOut => return Err(RunError::TimedOut),
            Waited::Interrupted => return Err(RunError::Interrupted),
        }
        let (option, value, suffix) = match load {
            Load::Window(window) => ("--window", window.to_string(), window.to_string()),
            Load::Rate(rate) => ("--rate", rate.to_string(), "half-rate".to_owned()),
        };
        let folder = self.runs_folder.join(format!("{round}-{name}-{suffix}"));
        let report = folder.join("report.json");
        // That of an earlier call would be taken for this one's.
        let _ = fs::remove_file(&report);
        let mut command = bound(binary);
        let options = [
            ("--target", address.to_string()),
            ("--pid", server.id().to_string()),
            ("--publishers", args.publishers.to_string()),
            (option, value),
            ("--warmup", humantime::format_duration(args.warmup).to_string()),
            ("--duration", humantime::format_duration(args.duration).to_string()),
            ("--drain", DRAIN.to_owned()),
            ("--opening", OPENING.to_owned()),
            ("--cpus", list(&args.cpus)),
            ("--label", format!("{name}, {load}, round {round}")),
        ];
        command.arg("fanout").arg("--out").arg(&folder);
        let options = options.into_iter().chain(rooms(args));
        command.args(options.flat_map(|(option, value)| [option.to_owned(), value]));
        if args.rooms > 1 {
            command.arg("--roam");
        }
        let log = self.work.join("generator.log");
        let mut generator = Owned::start(&mut command, &log).map_err(cannot("the generator"))?;
        // Its exit code tells no more than its report.
        if generator.wait(self.interrupted).map_err(cannot("the generator"))? == Waited::Interrupted
        {
            return Err(RunError::Interrupted);
        }
        let text = fs::read(&report).map_err(|_| RunError::Generator(said(&log)))?;
        let mut value: Value = serde_json::from_slice(&text)
            .map_err(|error| RunError::Generator(error.to_string()))?;
        if let Some(fields) = value.as_object_mut() {
            // The same for all runs, and in peers.json already.
            fields.remove("parameters");
            fields.remove("environment");
        }
        if !args.keep {
            let _ = fs::remove_dir_all(&folder);
        }
        Ok(value)
    }
}

/// The options that say who is in which room, and what is published there.
fn rooms(args: &PeersArgs) -> Vec<(&'static str, String)> {
    if args.rooms == 1 {
        return vec![
            ("--connections", args.connections.to_string()),
            ("--payload", args.payload.to_string()),
        ];
    }
    vec![
        ("--connections", (args.connections + args.publishers).to_string()),
        ("--payload", (AROUND + args.payload as usize).to_string()),
        ("--rooms", args.rooms.to_string()),
        ("--path", "/ws".to_owned()),
        ("--join", JOIN.to_owned()),
        ("--message", MESSAGE.to_owned()),
    ]
}

/// Messages per second that make half of the deliveries/s that the peer of `--half-rate-of` had in
/// the best of `runs`, if it had any.
fn half_rate(args: &PeersArgs, runs: &[Run]) -> Option<f64> {
    let name = args.half_rate_of.as_ref()?;
    let good = runs.iter().filter(|run| run.peer == name && run.problems.is_empty());
    let most = good.filter_map(Run::deliveries_per_second).max_by(f64::total_cmp)?;
    // Roaming publishers are members, too; each room is as likely as any other.
    let publisher = f64::from(u8::from(args.rooms > 1));
    let members = f64::from(args.connections) / f64::from(args.rooms) + publisher;
    Some(most / 2.0 / members).filter(|&rate| rate > 0.0)
}

/// What the report of a run complains of.
pub(crate) fn problems(report: &Value) -> Vec<String> {
    let passed = report.pointer("/verdict/passed").and_then(Value::as_bool) == Some(true);
    let found = report.pointer("/verdict/problems").and_then(Value::as_array);
    let texts = found.into_iter().flatten().filter_map(Value::as_str);
    let mut problems: Vec<_> = texts.map(str::to_owned).collect();
    if !passed && problems.is_empty() {
        problems.push("the run did not pass".to_owned());
    }
    problems
}
