//! `peers`: the same load for other servers, side by side.
//!
//! ```text
//! mod -> catalog     who takes part, and how each is installed
//!     -> field       the runs, round by round
//!     -> table       medians, ratios, the table and the bars
//! ```
//!
//! A round runs every peer once per window, one after the other, each in a fresh process pinned to
//! the same CPUs, and where asked for once more at a rate that the round has found; the next round
//! begins with the next peer. So what disturbs the host for a while
//! disturbs everybody, and nobody always runs first. The load comes from this very binary as a
//! child process (`fanout`), pinned elsewhere. What cannot be installed is skipped and says why;
//! who loses a message gets no figure.
//!
//! Never: installs anything on the host, leaves a process behind, or shows a figure without its
//! ratio to Fanwire from the same rounds.

pub mod catalog;
pub mod field;
pub mod table;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use thiserror::Error;

use self::catalog::{InstallError, PEERS, Peer, Workshop};
use self::field::Field;
use self::table::{Entrant, Row, Run};
use crate::cli::{Cpus, parse_duration, seconds};
use crate::host::Environment;
use crate::plot;

/// Options of `peers`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct PeersArgs {
    /// Peers to run [default: all].
    #[arg(long, value_delimiter = ',')]
    #[arg(value_parser = PossibleValuesParser::new(PEERS.iter().map(|peer| peer.name)))]
    pub only: Vec<String>,
    /// Say who the peers are, and nothing else.
    #[arg(long)]
    #[serde(skip)]
    pub list: bool,
    /// Install them, and nothing else.
    #[arg(long, conflicts_with = "list")]
    #[serde(skip)]
    pub install_only: bool,
    /// Rounds; a figure is the median over them.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Members, in one room each.
    #[arg(long, short, default_value_t = 10_000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    pub connections: u32,
    /// Rooms. Into more than one it is published at random (see fanout --roam), by publishers that
    /// come to the members and speak JSON; who has no server for that here is skipped.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    pub rooms: u32,
    /// Publishers; at most as many as rooms, if there are several.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub publishers: u32,
    /// Messages of each publisher under way at once, one run for each.
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub windows: Vec<u32>,
    /// Also run everybody in an open loop at half of the deliveries/s that this peer had in the
    /// round, with the window that was best for it.
    #[arg(long, value_name = "PEER")]
    #[arg(value_parser = PossibleValuesParser::new(PEERS.iter().map(|peer| peer.name)))]
    pub half_rate_of: Option<String>,
    /// Size of a message in bytes; of what is in the JSON, where there is some.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub payload: u32,
    /// Run before figures are taken.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub warmup: Duration,
    /// Run that figures are taken from.
    #[arg(long, short, default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// CPUs that every server is pinned to, as in 0-3,8.
    #[arg(long, default_value = "0")]
    pub server_cpus: Cpus,
    /// CPUs that the generator is pinned to, a thread for each.
    #[arg(long, default_value = "1")]
    pub cpus: Cpus,
    /// Binary of Fanwire [default: a release build of this source tree].
    #[arg(long)]
    pub fanwire: Option<PathBuf>,
    /// Folder that peers are installed into.
    #[arg(long, default_value = "target/peers")]
    pub work: PathBuf,
    /// Folder for the results [default: results/peers-TIME].
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Keep the folder of every run, below the results.
    #[arg(long)]
    pub keep: bool,
}

impl PeersArgs {
    /// Who is where, in words.
    fn members(&self) -> String {
        let Self { connections, rooms, publishers, .. } = self;
        match rooms {
            1 => format!("{connections} members of one room"),
            _ => format!(
                "{connections} members of {rooms} rooms with {publishers} roaming publishers"
            ),
        }
    }
}

/// Why there is no table.
#[derive(Debug, Error)]
pub enum PeersError {
    /// A CPU that this process may not use.
    #[error("CPU {0} of --server-cpus or --cpus cannot be used; nproc counts those that can")]
    Cpu(usize),
    /// What cannot be meant.
    #[error("--half-rate-of {0}: it takes no part; name it in --only, too")]
    NotChosen(String),
    /// More publishers than there is something to publish into.
    #[error("--publishers is more than there are rooms, or with one room members")]
    Publishers,
    /// Signals, the binary itself.
    #[error("cannot start: {0}")]
    Start(io::Error),
    /// A folder or file.
    #[error("cannot write {path}: {cause}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: Box<dyn std::error::Error>,
    },
}

impl PeersError {
    /// Whether the command line is to blame.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Cpu(_) | Self::NotChosen(_) | Self::Publishers)
    }
}

/// What came of it, for standard output and the exit code.
#[derive(Debug)]
pub struct Peers {
    text: String,
    /// Whether every run there was went well, and there was one; or all was installed that was
    /// only to be installed.
    pub passed: bool,
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `peers.json`.
#[derive(Debug, Serialize)]
struct Record<'r> {
    /// Version of this format.
    format: u32,
    /// RFC 3339, UTC.
    started: String,
    interrupted: bool,
    parameters: &'r PeersArgs,
    environment: Environment,
    peers: &'r [Entrant],
    table: &'r [Row],
    runs: &'r [Run],
}

/// Installs the peers, runs them and writes the folder.
///
/// # Errors
/// [`PeersError`]; what goes wrong with one peer is no error but stands in the table.
pub fn peers(args: &PeersArgs) -> Result<Peers, PeersError> {
    let chosen = |peer: &&Peer| args.only.is_empty() || args.only.iter().any(|n| n == peer.name);
    let chosen: Vec<_> = PEERS.iter().filter(chosen).collect();
    if args.list {
        let line = |peer: &&Peer| format!("{:12} {}\n", peer.name, peer.about);
        return Ok(Peers { text: chosen.iter().map(line).collect(), passed: true });
    }
    if let Some(name) = &args.half_rate_of
        && !chosen.iter().any(|peer| peer.name == name)
    {
        return Err(PeersError::NotChosen(name.clone()));
    }
    if args.publishers > if args.rooms > 1 { args.rooms } else { args.connections } {
        return Err(PeersError::Publishers);
    }
    // Who cannot use a CPU is told now and not by every single run.
    let usable = core_affinity::get_core_ids().unwrap_or_default();
    let unusable = |cpu: &&usize| !usable.iter().any(|core| core.id == **cpu);
    if let Some(&cpu) = args.server_cpus.0.iter().chain(&args.cpus.0).find(unusable) {
        return Err(PeersError::Cpu(cpu));
    }
    // The servers inherit it.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(PeersError::Start)?;
    }
    fs::create_dir_all(&args.work).map_err(failed(&args.work))?;
    let work = fs::canonicalize(&args.work).map_err(failed(&args.work))?;
    let workshop = Workshop {
        folder: &work,
        fanwire: args.fanwire.as_deref(),
        server_cpus: &args.server_cpus.0,
        interrupted: &interrupted,
    };
    let (mut entrants, mut ready) = (Vec::new(), Vec::new());
    for peer in chosen {
        let installed = match args.rooms {
            2.. if !peer.speaks_json => Err(InstallError::NoJson),
            _ => peer.install(&workshop),
        };
        let (version, skipped) = match installed {
            Ok(installed) => {
                eprintln!("ready    {}: {}", peer.name, installed.version);
                let version = installed.version.clone();
                ready.push((peer.name, installed));
                (Some(version), None)
            }
            Err(error) => {
                eprintln!("skipped  {}: {error}", peer.name);
                (None, Some(error.to_string()))
            }
        };
        entrants.push(Entrant { name: peer.name, about: peer.about, version, skipped });
    }
    if args.install_only {
        let passed = entrants.iter().all(|entrant| entrant.skipped.is_none());
        return Ok(Peers { text: who(&entrants), passed });
    }
    let started = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("results/peers-{}", started.replace(':', "-"))));
    let runs_folder = if args.keep { out.join("runs") } else { work.join("runs") };
    let field = Field { args, work: &work, runs_folder, interrupted: &interrupted };
    let runs = field.run_all(&ready)?;
    let record = Record {
        format: 1,
        started,
        interrupted: interrupted.load(Ordering::Relaxed),
        parameters: args,
        environment: Environment::read(None),
        peers: &entrants,
        table: &table::rows(&entrants, &runs, &args.windows),
        runs: &runs,
    };
    let text = record.write(&out)?;
    let passed = !runs.is_empty() && runs.iter().all(|run| run.problems.is_empty());
    Ok(Peers { text, passed })
}

/// Who takes part with what, and who does not and why.
fn who(entrants: &[Entrant]) -> String {
    let line = |entrant: &Entrant| {
        let Entrant { name, about, version, skipped } = entrant;
        let state = match (version, skipped) {
            (Some(version), _) => version.clone(),
            (None, reason) => format!("skipped: {}", reason.as_deref().unwrap_or("not installed")),
        };
        format!("- **{name}**, {about}: {state}\n")
    };
    entrants.iter().map(line).collect()
}

impl Record<'_> {
    /// Writes the folder and returns the text of `peers.md`.
    fn write(&self, out: &Path) -> Result<String, PeersError> {
        fs::create_dir_all(out).map_err(failed(out))?;
        let path = out.join("peers.json");
        let json = serde_json::to_string_pretty(self).map_err(io::Error::from);
        fs::write(&path, json.map_err(failed(&path))? + "\n").map_err(failed(&path))?;
        let panels = table::panels(self.peers, self.table);
        if !panels.is_empty() {
            let path = out.join("peers.svg");
            let title = format!("{}, in brackets the ratio to fanwire", self.parameters.members());
            plot::bar_panels(&path, &title, &panels)
                .map_err(|cause| PeersError::Write { path: path.clone(), cause })?;
        }
        let path = out.join("peers.md");
        let text = self.text();
        fs::write(&path, &text).map_err(failed(&path))?;
        Ok(format!("{text}\nresults     {}\n", out.display()))
    }

    fn text(&self) -> String {
        let Self { parameters, environment, .. } = self;
        let PeersArgs { payload, rounds, duration, server_cpus, half_rate_of, .. } = parameters;
        let Environment { cpu, cpus, kernel, .. } = environment;
        let mut text = format!(
            "# Peers, {}\n\n\
             {}, {payload} bytes a message, closed loop; server on CPU {}, generator on CPU {}, of \
             {cpus} ({cpu}), Linux {kernel}. Median of {rounds} interleaved rounds of {} s \
             (lowest..highest), then the ratio to Fanwire: the median of the ratios of single \
             rounds.\n\n",
            self.started,
            parameters.members(),
            list(server_cpus),
            list(&parameters.cpus),
            duration.as_secs_f64(),
        );
        if let Some(name) = half_rate_of {
            text += &format!(
                "Half rate: an open loop at half of the highest deliveries/s of {name} in the same \
                 round.\n\n"
            );
        }
        text += &table::markdown(self.peers, self.table);
        text += "\n";
        text += &who(self.peers);
        let failed: Vec<_> = self.runs.iter().filter(|run| !run.problems.is_empty()).collect();
        if !failed.is_empty() {
            text += "\nWhat failed, and so has no valid figures:\n\n";
            for run in failed {
                text += &format!("- round {}, {run}\n", run.round);
            }
        }
        if self.interrupted {
            text += "\nInterrupted: the figures are of the rounds until then.\n";
        }
        text
    }
}

/// CPUs as `taskset` and our own options take them.
fn list(Cpus(cpus): &Cpus) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn failed(path: &Path) -> impl Fn(io::Error) -> PeersError {
    move |cause| PeersError::Write { path: path.to_owned(), cause: cause.into() }
}
