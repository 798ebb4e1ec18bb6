//! `soak`: a server under mixed load for an hour, and whether anything of it grows.
//!
//! ```text
//! mod -> server      the server, and its reloads
//!     -> load        generators of this binary: rooms of all dialects, storms, slow consumers
//!     -> wanderer    clients that join, publish, leave, fall behind and come back
//!     -> backend     publishes over HTTP
//!     -> sample      memory, descriptors and pools, every few seconds, with help of cgroup
//!     -> line        a straight line through the second half of them
//! ```
//!
//! The first half is for warming up: pools fill, caches grow, the allocator takes what it keeps.
//! Over the second the load is the same from minute to minute, so what still grows would grow for
//! ever. When all have left, descriptors, connections, rooms and members must be what they were
//! before the first came. Meanwhile everybody checks what it hears, as in any other run.
//!
//! Never: measures speed. The load is modest, so that it can run beside other work.

pub mod backend;
pub mod cgroup;
pub mod line;
pub mod load;
pub mod report;
pub mod sample;
pub mod server;
pub mod wanderer;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use thiserror::Error;

use self::cgroup::Cgroup;
use self::load::{Found, Generator};
use self::report::{Judged, Record};
use self::sample::{Sample, Sampler};
use self::server::{Server, ServerError};
use self::wanderer::{Habits, Tally};
use crate::cli::Target;
use crate::host::{self, Environment};
use crate::http::HttpError;
use crate::report::WriteError;

/// Clients that go from room to room, and those that sleep in one and fall behind.
const WANDERS: Habits = Habits {
    prefix: "soak-wander-",
    rooms: 6,
    publishes: 8,
    pause: Duration::from_millis(150),
    skips: false,
};
const SLEEPS: Habits = Habits {
    prefix: "soak-skip",
    rooms: 1,
    publishes: 1,
    pause: Duration::from_secs(10),
    skips: true,
};
/// How many of each.
const CLIENTS: [(Habits, u32); 2] = [(WANDERS, 12), (SLEEPS, 4)];

/// Between two reloads.
const RELOAD_EVERY: Duration = Duration::from_secs(10);
/// When the first round of slow consumers begins.
const SLOW_FROM: Duration = Duration::from_secs(10);
/// Samples of a run, no matter how long it is..
const SAMPLES: u32 = 720;
/// ..but for this.
const SAMPLE_EVERY_MIN: Duration = Duration::from_millis(500);
/// How often the main thread looks whether something is due.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long generators may take beyond their time, and the server until nobody is there.
const END_MAX: Duration = Duration::from_secs(300);

/// Options of `soak`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct SoakArgs {
    /// How long the load lasts, in minutes, half of one at least. With less than 20 nothing is
    /// judged by its growth: pools still fill.
    #[arg(long, default_value = "60", value_parser = parse_minutes)]
    pub minutes: f64,
    /// Binary of the server [default: fanwire beside this binary].
    #[arg(long)]
    pub fanwire: Option<PathBuf>,
    /// Its shards.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub shards: u32,
    /// Folder for logs and the reports of the generators.
    #[arg(long, default_value = "target/soak")]
    pub work: PathBuf,
    /// Folder for the results [default: results/soak-TIME].
    #[arg(long)]
    pub out: Option<PathBuf>,
}

fn parse_minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().ok().filter(|minutes| (0.5..=10_080.0).contains(minutes));
    minutes.ok_or_else(|| "name minutes, from 0.5 to 10080".to_owned())
}

/// Why there is no record.
#[derive(Debug, Error)]
pub enum SoakError {
    /// Signals, the binary itself, a generator.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Its HTTP API.
    #[error("the server's metrics: {0}")]
    Metrics(#[from] HttpError),
    /// The results could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What all of them did together.
#[derive(Debug, Default, Serialize)]
pub struct Load {
    /// The generators.
    pub generators: Found,
    /// The clients that go from room to room.
    pub wanderers: Tally,
    /// Messages that the backend published.
    pub backend: u64,
    /// Configurations that the server went over to.
    pub reloads: u32,
}

/// Soaks a server and writes the folder.
///
/// # Errors
/// [`SoakError`]; what goes wrong under load is no error but a problem of the record.
pub fn soak(args: &SoakArgs) -> Result<Record, SoakError> {
    // The server inherits it.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let beside = || Ok::<_, io::Error>(std::env::current_exe()?.with_file_name("fanwire"));
    let binary = args.fanwire.clone().map_or_else(beside, Ok)?;
    // What is left there of a run before would be taken for this one's.
    let _ = fs::remove_dir_all(&args.work);
    fs::create_dir_all(&args.work)?;
    let started = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let server = Server::start(&binary, args.shards, &args.work, &interrupted)?;
    let environment = Environment::read(Some(server.id()));
    let mut soak = Soak::new(args, server, &interrupted)?;
    let before = soak.rest(None)?;
    let cpu_ns = soak.cpu_ns();
    soak.load()?;
    let cpus = (soak.cpu_ns() - cpu_ns) as f64 / soak.began.elapsed().as_nanos() as f64;
    let after = soak.rest(Some(&before))?;
    for ((name, before), (_, after)) in before.at_rest().into_iter().zip(after.at_rest()) {
        if before != after {
            soak.problems.push(format!("{name} at rest: {before:?} before, {after:?} after"));
        }
    }
    let Soak { server, sampler, samples, mut problems, mut load, .. } = soak;
    load.reloads = server.reloads();
    if let Err(error) = server.end() {
        problems.push(error.to_string());
    }
    // With the last process in it, its group may go.
    drop(sampler);
    let interrupted = interrupted.load(Ordering::Relaxed);
    problems.extend(interrupted.then(|| "interrupted".to_owned()));
    problems.append(&mut load.generators.problems);
    problems.extend(load.missing());
    let figures = Judged::all(&samples, args.minutes);
    problems.extend(figures.iter().filter_map(Judged::problem));
    let folder = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("results/soak-{}", started.replace(':', "-"))));
    let record = Record {
        format: report::FORMAT,
        started,
        parameters: args.clone(),
        environment,
        server_cpus: cpus,
        load,
        figures,
        passed: problems.is_empty(),
        problems,
        samples,
        folder,
    };
    record.write()?;
    Ok(record)
}

/// A server under soak.
struct Soak<'s> {
    work: &'s Path,
    duration: Duration,
    interrupted: &'s AtomicBool,
    server: Server,
    sampler: Sampler,
    samples: Vec<Sample>,
    /// Those that run all the time.
    steady: Vec<Generator>,
    /// The round of slow consumers that is under way.
    slow: Option<Generator>,
    load: Load,
    problems: Vec<String>,
    began: Instant,
}

impl<'s> Soak<'s> {
    fn new(
        args: &'s SoakArgs,
        server: Server,
        interrupted: &'s AtomicBool,
    ) -> Result<Self, SoakError> {
        let cgroup = Cgroup::of(server.id()).inspect_err(|error| {
            eprintln!(
                "kernel memory of the server alone is not sampled, no control group: {error}"
            );
        });
        let sampler =
            Sampler { pid: server.id(), admin: server.admin.clone(), cgroup: cgroup.ok() };
        Ok(Self {
            work: &args.work,
            duration: Duration::from_secs_f64(60.0 * args.minutes),
            interrupted,
            server,
            sampler,
            samples: Vec::new(),
            steady: Vec::new(),
            slow: None,
            load: Load::default(),
            problems: Vec::new(),
            began: Instant::now(),
        })
    }

    /// A sample once nobody is connected, and things are as `before`, or as they stay otherwise.
    fn rest(&self, before: Option<&Sample>) -> Result<Sample, SoakError> {
        let began = Instant::now();
        loop {
            let sample = self.sampler.take(0.0)?;
            let is_rest = match before {
                Some(before) => sample.at_rest() == before.at_rest(),
                None => sample.value("connections") == Some(0.0),
            };
            if is_rest || began.elapsed() > END_MAX {
                return Ok(sample);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// CPU time of the server so far.
    fn cpu_ns(&self) -> u64 {
        host::usage(self.server.id()).map_or(0, |usage| usage.cpu_ns)
    }

    /// All of the load, from the first connection to the last. What goes wrong is a problem.
    fn load(&mut self) -> Result<(), SoakError> {
        let target = Target { host: self.server.address.to_string(), address: self.server.address };
        let (admin, over) = (self.server.admin.clone(), AtomicBool::new(false));
        self.began = Instant::now();
        for (name, words) in load::steady(self.duration) {
            let generator = Generator::start(name, &words, self.server.address, self.work)?;
            self.steady.push(generator);
        }
        thread::scope(|scope| {
            let (target, over) = (&target, &over);
            let one = |habits, count| {
                move |number| {
                    scope.spawn(move || wanderer::wander(target, habits, number, count, over))
                }
            };
            let many =
                CLIENTS.iter().flat_map(|&(habits, count)| (0..count).map(one(habits, count)));
            let wanderers: Vec<_> = many.collect();
            let backend = scope.spawn(|| backend::publish(&admin, over));
            let all_there =
                || !backend.is_finished() && !wanderers.iter().any(ScopedJoinHandle::is_finished);
            let kept = self.keep(all_there);
            over.store(true, Ordering::Relaxed);
            for wanderer in wanderers {
                match wanderer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                    Ok(tally) => self.load.wanderers += tally,
                    Err(problem) => self.problems.push(problem),
                }
            }
            match backend.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
                Ok(published) => self.load.backend = published,
                Err(problem) => self.problems.push(problem),
            }
            kept
        })?;
        self.finish()
    }

    /// Samples, reloads and sends in slow consumers until the time is over, or somebody has ended
    /// too early.
    fn keep(&mut self, all_there: impl Fn() -> bool) -> Result<(), SoakError> {
        let sample_every = (self.duration / SAMPLES).max(SAMPLE_EVERY_MIN);
        let (mut sample_at, mut reload_at, mut slow_at) = (Duration::ZERO, RELOAD_EVERY, SLOW_FROM);
        let mut rounds = 0;
        while self.began.elapsed() < self.duration && !self.interrupted.load(Ordering::Relaxed) {
            let now = self.began.elapsed();
            if now >= sample_at {
                sample_at += sample_every;
                self.samples.push(self.sampler.take(now.as_secs_f64())?);
            }
            if now >= reload_at {
                reload_at += RELOAD_EVERY;
                self.server.reload()?;
            }
            if self.slow.is_none() && now >= slow_at {
                slow_at += load::SLOW_EVERY;
                let words = load::slow(rounds);
                let slow = Generator::start("slow", &words, self.server.address, self.work)?;
                self.slow = Some(slow);
                rounds += 1;
            }
            self.collect_slow()?;
            let mut is_over = !all_there() || !self.server.lives()?;
            for generator in &mut self.steady {
                is_over |= generator.has_ended()?;
            }
            if is_over {
                let minutes = now.as_secs_f64() / 60.0;
                self.problems.push(format!("somebody has ended early, after {minutes:.1} min"));
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Reads the report of a round of slow consumers that is over.
    fn collect_slow(&mut self) -> io::Result<()> {
        if let Some(slow) = &mut self.slow
            && slow.has_ended()?
            && let Some(slow) = self.slow.take()
        {
            slow.finish(&mut self.load.generators);
        }
        Ok(())
    }

    /// Waits for the generators, which end by themselves when it is time, and reads their reports.
    fn finish(&mut self) -> Result<(), SoakError> {
        let (began, is_early) = (Instant::now(), self.began.elapsed() < self.duration);
        for mut generator in self.steady.drain(..).chain(self.slow.take()) {
            if is_early {
                generator.interrupt();
            }
            while !generator.has_ended()? && began.elapsed() < END_MAX {
                thread::sleep(LOOK_EVERY);
            }
            generator.finish(&mut self.load.generators);
        }
        Ok(())
    }
}

impl Load {
    /// What a soak must have seen to say anything.
    fn missing(&self) -> Vec<String> {
        let Self { generators, wanderers, backend, reloads } = self;
        let seen = [
            (generators.delivered, "deliveries"),
            (generators.waves, "waves of storms"),
            (generators.slow_ended, "slow consumers that were disconnected"),
            (wanderers.visits, "joins and leaves"),
            (wanderers.skipped, "messages skipped with a notice"),
            (wanderers.directs, "direct messages"),
            (*backend, "publishes over HTTP"),
            (u64::from(*reloads / 2), "reloads of both kinds"),
        ];
        let missing = seen.into_iter().filter(|(count, _)| *count == 0);
        missing.map(|(_, what)| format!("there were no {what}")).collect()
    }
}
