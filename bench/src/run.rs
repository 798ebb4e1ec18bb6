//! A run from the command line to the report: the main thread.
//!
//! Starts the workers, moves the run from stage to stage, watches the counters meanwhile and puts
//! the figures together. Ctrl-C shortens every stage to its end: connections are still closed and
//! the report still written. A second Ctrl-C ends at once.
//!
//! Never: touches a connection.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use thiserror::Error;

use crate::cli::{Common, LoadArgs, Scenario};
use crate::engine::{Engine, Finished, Place, Plan, Script};
use crate::host::{self, Environment, Usage};
use crate::progress::Progress;
use crate::report::{Closing, Opening, Process, Raw, Report, Sample, Traffic, Verdict, WriteError};
use crate::ring::Bell;
use crate::scenario::{echo, fanout, idle};
use crate::shared::{FAILURES, Shared, Stage, Totals};
use crate::template::{PUBLISHERS_MAX, Template, TemplateError, Values};
use crate::wire::Upgrade;

/// How often the main thread looks at the counters.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two points of the timeline.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// Descriptors of a thread's table that are no connections: streams, bell, ring, spare ones.
const DESCRIPTORS_OTHER: u64 = 16;
/// After everything has arrived, how long to listen for what should not.
const GRACE: Duration = Duration::from_millis(200);

/// Why there is no report.
#[derive(Debug, Error)]
pub enum RunError {
    /// A template is wrong.
    #[error("--{option}: {cause}")]
    Template {
        /// The option it came from.
        option: &'static str,
        /// What is wrong.
        cause: TemplateError,
    },
    /// A path that is no request target.
    #[error("--path or --subprotocol makes no request: {0}")]
    Request(Box<tungstenite::Error>),
    /// More publishers than connections, or more rooms.
    #[error("there must be at least as many connections as rooms and publishers")]
    TooFew,
    /// A rate that is none.
    #[error("a rate must be more than 0")]
    Rate,
    /// A thread could not be set up.
    #[error("cannot start a worker: {0}; io_uring needs Linux 6.1 and must not be disabled")]
    Start(io::Error),
    /// A thread failed.
    #[error("a worker failed: {0}")]
    Worker(io::Error),
    /// The report could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl RunError {
    /// Whether the command line is to blame.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Start(_) | Self::Worker(_) | Self::Write(_))
    }
}

/// Makes one run and writes its folder.
///
/// # Errors
/// [`RunError`]; what goes wrong between the generator and the server is no error but a figure.
pub fn run(scenario: &Scenario) -> Result<Report, RunError> {
    // Best effort: a thread that runs out of descriptors says so.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let common = scenario.common();
    let threads = threads(common);
    let plan = Arc::new(plan(scenario, threads)?);
    let scripts = Scripts::new(scenario)?;
    let interrupted = interrupt_flag().map_err(RunError::Start)?;
    let bells = (0..threads).map(|_| Bell::new()).collect::<io::Result<_>>();
    let shared = Arc::new(Shared::new(bells.map_err(RunError::Start)?, common.rooms));
    let started = SystemTime::now();
    let mut conductor = Conductor {
        common,
        shared: Arc::clone(&shared),
        interrupted,
        began: Instant::now(),
        samples: Vec::new(),
        sampled: Instant::now(),
        sampled_delivered: 0,
        workers: Vec::new(),
    };
    let before = conductor.snapshot(true);
    for thread in 0..threads {
        let place = Place { thread, threads };
        let worker = Worker {
            place,
            plan: Arc::clone(&plan),
            shared: Arc::clone(&shared),
            scripts: scripts.clone(),
            cpu: common.cpus.get(thread as usize % common.cpus.len().max(1)).copied(),
        };
        let builder = thread::Builder::new().name(format!("bench-{thread}"));
        conductor.workers.push(builder.spawn(|| worker.run()).map_err(RunError::Start)?);
    }
    let stages = conductor.conduct(scenario);
    shared.enter(Stage::Ended);
    let Conductor { workers, samples, interrupted, .. } = conductor;
    let mut raw = Raw { samples, ..Raw::default() };
    let mut lost = 0;
    for worker in workers {
        let finished = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let Finished { handshake, outcome } = finished.map_err(RunError::Worker)?;
        raw.handshake.merge(&handshake);
        raw.latency.merge(&outcome.latency);
        raw.to_last.merge(&outcome.to_last);
        lost += outcome.lost;
    }
    let time = humantime::format_rfc3339_seconds(started).to_string();
    let folder = common.out.clone().unwrap_or_else(|| {
        PathBuf::from(format!("results/{}-{}", scenario.name(), time.replace(':', "-")))
    });
    let facts = Facts { before, stages, totals: shared.totals(), lost };
    let interrupted = interrupted.load(Ordering::Relaxed);
    let report = Report {
        format: 1,
        scenario: scenario.name(),
        started: time,
        interrupted,
        parameters: scenario.clone(),
        environment: Environment::read(common.pid),
        threads,
        opening: facts.opening(common, &raw),
        traffic: scenario.load().map(|_| facts.traffic(&raw)),
        closing: facts.closing(),
        generator: facts.process(scenario, |moment| moment.generator),
        server: common.pid.map(|_| facts.process(scenario, |moment| moment.server)),
        slab_bytes_per_connection: facts.slab_per_connection(),
        verdict: facts.verdict(common, interrupted),
        folder,
    };
    report.write(&raw)?;
    Ok(report)
}

/// As many as there are CPUs to use, or as the descriptor limit of each table asks for.
fn threads(common: &Common) -> u32 {
    let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(1024);
    let per_thread = limit.saturating_sub(DESCRIPTORS_OTHER).max(1);
    let needed = u64::from(common.connections).div_ceil(per_thread) as u32;
    let cpus = match common.cpus.len() {
        0 => thread::available_parallelism().map_or(1, usize::from),
        len => len,
    };
    common.threads.unwrap_or((cpus as u32).min(common.connections).max(needed))
}

fn plan(scenario: &Scenario, threads: u32) -> Result<Plan, RunError> {
    let common = scenario.common();
    let publishers = if let Scenario::Fanout(args) = scenario { args.publishers } else { 1 };
    if common.rooms.max(publishers) > common.connections {
        return Err(RunError::TooFew);
    }
    if common.open_rate.is_some_and(|rate| !is_rate(rate)) {
        return Err(RunError::Rate);
    }
    let plan = Plan {
        target: common.target,
        sources: common.source.clone(),
        upgrade: Upgrade {
            host: common.target.to_string(),
            subprotocol: common.subprotocol.clone(),
        },
        path: template("path", scenario.path())?,
        join: common.join.as_deref().map(|text| template("join", text)).transpose()?,
        join_answered: !common.join_unanswered,
        connections: common.connections,
        rooms: common.rooms,
        open_rate: common.open_rate,
        opening_max: common.opening.div_ceil(threads).max(1) as usize,
        handshake_timeout: common.handshake_timeout,
        pong: !common.no_pong,
    };
    let values = Values { room: PUBLISHERS_MAX, connection: PUBLISHERS_MAX, ..Values::default() };
    let tried = plan.upgrade.open(&plan.path.render(values, 0));
    tried.map_err(|error| RunError::Request(Box::new(error)))?;
    Ok(plan)
}

fn template(option: &'static str, text: &str) -> Result<Template, RunError> {
    Template::parse(text).map_err(|cause| RunError::Template { option, cause })
}

fn is_rate(rate: f64) -> bool {
    rate.is_finite() && rate > 0.0
}

/// Set by the first Ctrl-C; the second one ends the process.
fn interrupt_flag() -> io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Order matters: the first of these looks at the flag before the second sets it.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// Makes the script of each thread.
#[derive(Clone)]
enum Scripts {
    Idle,
    Fanout(Arc<fanout::Rules>, Arc<[fanout::Flight]>),
    Echo(Arc<echo::Rules>),
}

impl Scripts {
    fn new(scenario: &Scenario) -> Result<Self, RunError> {
        let message = |load: &LoadArgs| -> Result<_, RunError> {
            let message = template("message", &load.message)?;
            let bytes = load.payload as usize;
            let checked = message.check_published(bytes);
            checked.map_err(|cause| RunError::Template { option: "message", cause })?;
            Ok((message, bytes))
        };
        Ok(match scenario {
            Scenario::Idle(_) => Self::Idle,
            Scenario::Fanout(args) => {
                let (message, bytes) = message(&args.load)?;
                let load = match args.rate {
                    Some(rate) if is_rate(rate) => fanout::Load::Rate(rate),
                    Some(_) => return Err(RunError::Rate),
                    None => fanout::Load::Window(args.window.unwrap_or(1)),
                };
                let rules = fanout::Rules {
                    message,
                    bytes,
                    publishers: args.publishers,
                    rooms: args.common.rooms,
                    load,
                    sender_receives: !args.sender_excluded,
                };
                let flights = fanout::Flight::all(&rules);
                Self::Fanout(Arc::new(rules), flights)
            }
            Scenario::Echo(args) => {
                let (message, bytes) = message(&args.load)?;
                let (window, rooms) = (args.window, args.common.rooms);
                Self::Echo(Arc::new(echo::Rules { message, bytes, window, rooms }))
            }
        })
    }

    fn script(self, shared: Arc<Shared>, place: Place, connections: usize) -> Box<dyn Script> {
        match self {
            Self::Idle => Box::new(idle::Idle),
            Self::Fanout(rules, flights) => {
                Box::new(fanout::Fanout::new(rules, shared, flights, place, connections))
            }
            Self::Echo(rules) => Box::new(echo::Echo::new(rules, shared, place, connections)),
        }
    }
}

/// Everything a worker thread is given.
struct Worker {
    place: Place,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    scripts: Scripts,
    cpu: Option<usize>,
}

impl Worker {
    fn run(self) -> io::Result<Finished> {
        if let Some(id) = self.cpu
            && !core_affinity::set_for_current(core_affinity::CoreId { id })
        {
            return Err(io::Error::other("a CPU of --cpus cannot be used"));
        }
        let connections = self.place.share(self.plan.connections) as usize;
        let script = self.scripts.script(Arc::clone(&self.shared), self.place, connections);
        Engine::new(self.plan, self.shared, self.place, script)?.run()
    }
}

/// What everything was at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    at: Option<Instant>,
    totals: Totals,
    generator: Usage,
    server: Usage,
    slab_kib: Option<u64>,
}

/// The moments between the stages.
#[derive(Debug, Default)]
struct Stages {
    opening_seconds: f64,
    open: Moment,
    measure_from: Moment,
    measure_until: Moment,
}

struct Conductor<'c> {
    common: &'c Common,
    shared: Arc<Shared>,
    interrupted: Arc<AtomicBool>,
    began: Instant,
    samples: Vec<Sample>,
    sampled: Instant,
    sampled_delivered: u64,
    workers: Vec<JoinHandle<io::Result<Finished>>>,
}

impl Conductor<'_> {
    fn conduct(&mut self, scenario: &Scenario) -> Stages {
        let mut stages = Stages::default();
        self.open();
        stages.opening_seconds = self.began.elapsed().as_secs_f64();
        stages.open = self.snapshot(true);
        match scenario {
            Scenario::Idle(args) => {
                stages.measure_from = stages.open;
                self.pass("hold", args.hold);
                stages.measure_until = self.snapshot(false);
            }
            Scenario::Fanout(_) | Scenario::Echo(_) => {
                let load = scenario.load().expect("both of these have one");
                let from = self.shared.clock.now() + load.warmup.as_nanos() as u64;
                self.shared.measure_from(from);
                self.shared.measure_until(from + load.duration.as_nanos() as u64);
                self.shared.enter(Stage::Running);
                self.pass("warm up", load.warmup);
                stages.measure_from = self.snapshot(false);
                self.pass("measure", load.duration);
                stages.measure_until = self.snapshot(false);
                self.shared.enter(Stage::Draining);
                self.drain(load.drain);
            }
        }
        self.shared.enter(Stage::Closing);
        self.close();
        stages
    }

    /// Waits until every connection is ready or has failed.
    fn open(&mut self) {
        let asked = u64::from(self.common.connections);
        let mut progress = Progress::start("open", asked, "connections");
        // Who was ready and ended since is among the failed, too.
        let done = |totals: &Totals| totals.ready + failed(totals) >= asked + totals.ended;
        let began = self.began;
        let message = |totals: &Totals| {
            let rate = totals.ready as f64 / began.elapsed().as_secs_f64();
            format!("{rate:.0}/s, {} failed", failed(totals))
        };
        while !self.is_over() {
            let totals = self.look();
            progress.set(totals.ready, || message(&totals));
            if done(&totals) {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
        let totals = self.shared.totals();
        progress.finish(totals.ready, &message(&totals));
    }

    /// Lets `duration` pass.
    fn pass(&mut self, what: &'static str, duration: Duration) {
        let (began, before) = (Instant::now(), self.shared.totals());
        let mut progress = Progress::start(what, duration.as_millis() as u64, "ms");
        let message = |totals: &Totals| {
            let seconds = began.elapsed().as_secs_f64();
            let rate = (totals.delivered - before.delivered) as f64 / seconds;
            format!("{rate:.0} deliveries/s, {} failed", failed(totals))
        };
        while began.elapsed() < duration && !self.is_over() {
            let totals = self.look();
            progress.set(began.elapsed().as_millis() as u64, || message(&totals));
            thread::sleep(LOOK_EVERY.min(duration.saturating_sub(began.elapsed())));
        }
        progress.finish(began.elapsed().as_millis() as u64, &message(&self.shared.totals()));
    }

    /// Waits for what is still under way, and a little longer for what should not come.
    fn drain(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut complete_since = None;
        while Instant::now() < deadline && !self.workers.iter().any(JoinHandle::is_finished) {
            let totals = self.look();
            if totals.delivered < totals.expected {
                complete_since = None;
            } else if complete_since.get_or_insert_with(Instant::now).elapsed() >= GRACE {
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn close(&mut self) {
        let ready = self.shared.totals().ready;
        let mut progress = Progress::start("close", ready, "connections");
        let deadline = Instant::now() + self.common.handshake_timeout * 2;
        loop {
            let totals = self.look();
            let over = self.workers.iter().any(JoinHandle::is_finished);
            if totals.ended >= totals.ready || Instant::now() > deadline || over {
                return progress.finish(totals.ended, "closed");
            }
            progress.set(totals.ended, || format!("{} cleanly", totals.closed_clean));
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Interrupted, or a worker has failed: the stages that follow are short.
    fn is_over(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.workers.iter().any(JoinHandle::is_finished)
    }

    /// Reads the counters and adds to the timeline when it is time.
    fn look(&mut self) -> Totals {
        let totals = self.shared.totals();
        let passed = self.sampled.elapsed();
        if passed >= SAMPLE_EVERY {
            self.sampled = Instant::now();
            let delivered = totals.delivered - self.sampled_delivered;
            self.sampled_delivered = totals.delivered;
            self.samples.push(Sample {
                seconds: self.began.elapsed().as_secs_f64(),
                connections: totals.ready.saturating_sub(totals.ended),
                deliveries_per_second: delivered as f64 / passed.as_secs_f64(),
                worst_ms: self.shared.take_worst_ns() as f64 / 1e6,
            });
        }
        totals
    }

    fn snapshot(&self, with_pss: bool) -> Moment {
        let read = if with_pss { host::usage_with_pss } else { host::usage };
        Moment {
            at: Some(Instant::now()),
            totals: self.shared.totals(),
            generator: host::usage(std::process::id()).unwrap_or_default(),
            server: self.common.pid.and_then(read).unwrap_or_default(),
            slab_kib: host::slab_kib(),
        }
    }
}

fn failed(totals: &Totals) -> u64 {
    totals.failed.iter().sum()
}

/// What the figures are made of.
struct Facts {
    before: Moment,
    stages: Stages,
    totals: Totals,
    lost: u64,
}

impl Facts {
    fn window_seconds(&self) -> f64 {
        let Stages { measure_from, measure_until, .. } = &self.stages;
        let passed = measure_until.at.zip(measure_from.at).map(|(until, from)| until - from);
        passed.unwrap_or_default().as_secs_f64()
    }

    fn window(&self, count: fn(&Totals) -> u64) -> u64 {
        count(&self.stages.measure_until.totals) - count(&self.stages.measure_from.totals)
    }

    fn opening(&self, common: &Common, raw: &Raw) -> Opening {
        let names = FAILURES.iter().map(|&(_, name)| name);
        let failed = names.zip(self.totals.failed).filter(|&(_, count)| count > 0);
        let seconds = self.stages.opening_seconds;
        Opening {
            asked: common.connections,
            ready: self.totals.ready,
            failed: failed.collect::<BTreeMap<_, _>>(),
            seconds,
            per_second: ratio(self.totals.ready as f64, seconds),
            handshake: (&raw.handshake).into(),
        }
    }

    fn traffic(&self, raw: &Raw) -> Traffic {
        let (seconds, totals) = (self.window_seconds(), &self.totals);
        let delivered = self.window(|totals| totals.delivered);
        Traffic {
            seconds,
            published: self.window(|totals| totals.published),
            delivered,
            deliveries_per_second: ratio(delivered as f64, seconds),
            latency: (&raw.latency).into(),
            to_last: (raw.to_last.count() > 0).then(|| (&raw.to_last).into()),
            lost: self.lost,
            duplicated: totals.duplicated,
            reordered: totals.reordered,
            foreign: totals.foreign,
            stalled: totals.stalled,
            late_share: ratio(totals.late as f64, totals.published as f64),
        }
    }

    fn closing(&self) -> Closing {
        let clean = self.totals.closed_clean;
        Closing { clean, unclean: self.totals.ready.saturating_sub(clean) }
    }

    fn process(&self, scenario: &Scenario, usage: fn(&Moment) -> Usage) -> Process {
        let Stages { open, measure_from, measure_until, .. } = &self.stages;
        let (before, open) = (usage(&self.before), usage(open));
        let after = usage(measure_until);
        let cpu_ns = after.cpu_ns.saturating_sub(usage(measure_from).cpu_ns) as f64;
        let delivered = self.window(|totals| totals.delivered) as f64;
        let grown = open.rss_kib.saturating_sub(before.rss_kib) as f64 * 1024.0;
        Process {
            cpus: ratio(cpu_ns / 1e9, self.window_seconds()),
            cpu_us_per_delivery: scenario.load().map(|_| ratio(cpu_ns / 1e3, delivered)),
            before,
            open,
            after,
            rss_bytes_per_connection: ratio(grown, self.stages.open.totals.ready as f64),
        }
    }

    fn slab_per_connection(&self) -> Option<f64> {
        let grown = self.stages.open.slab_kib?.saturating_sub(self.before.slab_kib?) as f64;
        Some(ratio(grown * 1024.0, self.stages.open.totals.ready as f64))
    }

    fn verdict(&self, common: &Common, interrupted: bool) -> Verdict {
        let totals = &self.totals;
        let mut problems = Vec::new();
        let mut check = |count: u64, what: &str| {
            if count > 0 {
                problems.push(format!("{count} {what}"));
            }
        };
        for (&(_, name), &count) in FAILURES.iter().zip(&totals.failed) {
            check(count, &format!("connections failed: {name}"));
        }
        check(self.lost, "deliveries lost");
        check(totals.duplicated, "deliveries duplicated");
        check(totals.reordered, "deliveries reordered");
        check(totals.foreign, "messages that are not ours");
        let missing = u64::from(common.connections).saturating_sub(totals.ready + failed(totals));
        if !interrupted {
            check(missing, "connections never opened");
        }
        Verdict { passed: problems.is_empty(), problems }
    }
}

/// 0 rather than nonsense where nothing was counted.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}
