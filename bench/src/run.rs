//! A run from the command line to the report.
//!
//! Checks the command line, starts the workers of each class of load, lets the [`Conductor`] take
//! them through the run and has the [`Facts`] put the report together. Ctrl-C ends early; a second
//! one at once.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, SystemTime};

use socket2::{Domain, Socket, Type};
use thiserror::Error;

use crate::beside;
use crate::cli::{Common, LoadArgs, Scenario, SlowArgs};
use crate::conductor::Conductor;
use crate::engine::{Engine, Finished};
use crate::facts::{Facts, Found};
use crate::host;
use crate::measure::Clock;
use crate::plan::{Farewell, Plan, Slow, Storm};
use crate::report::{Report, WriteError};
use crate::ring::{self, Bell};
use crate::rooms::Rooms;
use crate::scenario::{Place, Script, echo, fanout, flight, idle};
use crate::shared::Shared;
use crate::template::{LINES_MAX, Template, TemplateError, Values};
use crate::wire::Upgrade;

/// Descriptors of a thread's table that are no connections, but for a bell per thread: streams and
/// ring, and the sockets that a storm opens in a turn before those that ended in it are closed.
const DESCRIPTORS_OTHER: u64 = 48;
/// As many threads as `--threads` accepts.
const THREADS_MAX: u64 = 4096;
/// The nice value of a thread that goes before others, the lowest there is.
const AHEAD: i32 = -20;

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
    /// Roaming publishers without a room for each.
    #[error(
        "--roam shares the rooms out among the publishers, so --rooms and --connections must be at \
         least --publishers"
    )]
    TooFewToRoam,
    /// Rooms beside the others that could not be told from them.
    #[error("--beside-rooms needs {{room}} in --path or --join, or they would be the same rooms")]
    NotApart,
    /// Roaming publishers that cannot say where.
    #[error("--roam needs {{room}} in --{0}, or all rooms would be one")]
    Roomless(&'static str),
    /// A rate that is none.
    #[error("a rate must be more than 0")]
    Rate,
    /// An interval that is none.
    #[error("--ping-interval must be more than 0")]
    PingInterval,
    /// `--start-at` is over.
    #[error("--start-at is in the past; name a time after all connections will be open")]
    StartAt,
    /// Silent closing is not permitted.
    #[error("--vanish and --drop-how vanish need CAP_NET_ADMIN (TCP_REPAIR: {0}); run as root")]
    Vanish(io::Error),
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
    let clock = Clock::start();
    let main = Class::new(scenario, threads(common), clock)?;
    let (threads, shared) = (main.threads, Arc::clone(&main.shared));
    let beside = Class::beside(scenario, clock)?;
    let shareds = beside.each_ref().map(|class| Some(Arc::clone(&class.as_ref()?.shared)));
    let interrupted = interrupt_flag().map_err(RunError::Start)?;
    let started = SystemTime::now();
    let mut conductor = Conductor::new(scenario, shared, shareds, interrupted);
    let (before, slabs_before) = (conductor.snapshot(true), host::slabs());
    let mut cpus = common.cpus.iter().flat_map(|cpus| &cpus.0).copied().cycle();
    let mut owners = Vec::new();
    let classes = [Some(main)].into_iter().chain(beside).enumerate();
    for (index, class) in classes.filter_map(|(index, class)| Some((index, class?))) {
        for thread in 0..class.threads {
            let worker = class.worker(thread, cpus.next(), index > 0);
            let name = format!("bench-{}", conductor.workers.len());
            let builder = thread::Builder::new().name(name);
            conductor.workers.push(builder.spawn(|| worker.run()).map_err(RunError::Start)?);
            owners.push(index);
        }
    }
    let conducted = conductor.conduct(before, slabs_before);
    let (stages, finished) = conducted.map_err(RunError::Worker)?;
    let end = conductor.snapshot(false);
    let (timeline, interrupted) = conductor.end();
    let mut found: [Found; 1 + beside::NAMES.len()] = Default::default();
    for (index, finished) in owners.into_iter().zip(finished) {
        found[index].add(finished);
    }
    let time = humantime::format_rfc3339_seconds(started).to_string().replace(':', "-");
    let folder = common
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("results/{}-{time}", scenario.name())));
    let facts = Facts { scenario, stages, end, found, timeline, interrupted };
    let (report, raw) = facts.report(started, threads, folder);
    report.write(&raw)?;
    Ok(report)
}

/// What connects and publishes by itself: the main load, and each of those beside it.
struct Class {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    scripts: Scripts,
    threads: u32,
}

impl Class {
    fn new(scenario: &Scenario, threads: u32, clock: Clock) -> Result<Self, RunError> {
        let plan = Arc::new(plan(scenario, threads)?);
        let scripts = Scripts::new(scenario)?;
        let bells = (0..threads).map(|_| Bell::new()).collect::<io::Result<_>>();
        let shared = Shared::new(bells.map_err(RunError::Start)?, plan.rooms.count, clock);
        Ok(Self { plan, shared: Arc::new(shared), scripts, threads })
    }

    /// Those beside the main load, in their order.
    fn beside(
        scenario: &Scenario,
        clock: Clock,
    ) -> Result<[Option<Self>; beside::NAMES.len()], RunError> {
        let mut classes = [const { None }; beside::NAMES.len()];
        let Some(main) = scenario.fanout() else { return Ok(classes) };
        let is_named = [Some(main.path.as_str()), main.common.join.as_deref()];
        if main.beside.beside_rooms > 0
            && !is_named.iter().flatten().any(|text| text.contains("{room}"))
        {
            return Err(RunError::NotApart);
        }
        for (class, args) in classes.iter_mut().zip(beside::classes(main)) {
            if let Some(args) = args {
                let threads = threads_needed(args.common.connections);
                *class = Some(Self::new(&Scenario::Fanout(args), threads, clock)?);
            }
        }
        Ok(classes)
    }

    /// One of its threads, on `cpu`.
    fn worker(&self, thread: u32, cpu: Option<usize>, is_ahead: bool) -> Worker {
        let place = Place { thread, threads: self.threads };
        let awaited = u64::from(place.share(self.plan.connections));
        self.shared.workers[thread as usize].counters.awaited.store(awaited, Relaxed);
        Worker {
            place,
            plan: Arc::clone(&self.plan),
            shared: Arc::clone(&self.shared),
            scripts: self.scripts.clone(),
            cpu,
            is_ahead,
        }
    }
}

/// As many as the descriptor limit of each table asks for.
fn threads_needed(connections: u32) -> u32 {
    let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(1024);
    let hold = |threads: u64| threads * limit.saturating_sub(DESCRIPTORS_OTHER + threads);
    // With hardly any descriptors no number is enough; a thread that runs out of them says so.
    let enough = |&threads: &u64| hold(threads) >= u64::from(connections);
    (1..=THREADS_MAX).find(enough).unwrap_or(1) as u32
}

/// As many as there are CPUs to use, or more if the descriptor limit asks for it.
fn threads(common: &Common) -> u32 {
    let needed = threads_needed(common.connections);
    let cpus = match &common.cpus {
        None => thread::available_parallelism().map_or(1, usize::from),
        Some(cpus) => cpus.0.len(),
    };
    common.threads.unwrap_or((cpus as u32).min(common.connections).max(needed))
}

fn plan(scenario: &Scenario, threads: u32) -> Result<Plan, RunError> {
    let common = scenario.common();
    let rooms = rooms(scenario)?;
    if common.open_rate.is_some_and(|rate| !is_rate(rate)) {
        return Err(RunError::Rate);
    }
    if common.start_at.is_some_and(|start| start.0 <= SystemTime::now()) {
        return Err(RunError::StartAt);
    }
    let storm = match scenario {
        Scenario::Storm(args) => Some(Storm {
            share: args.drop,
            how: args.drop_how,
            within: args.reconnect_within,
            retry_after: args.retry_after,
        }),
        _ => None,
    };
    let slow = match scenario {
        Scenario::Slow(args) => Some(Slow::of(args)),
        _ => None,
    };
    let farewell = if common.vanish { Farewell::Vanish } else { Farewell::Close };
    if farewell == Farewell::Vanish || storm.is_some_and(|storm| storm.how == Farewell::Vanish) {
        try_to_vanish(common.target.address).map_err(RunError::Vanish)?;
    }
    let plan = Plan {
        target: common.target.address,
        sources: common.source.clone(),
        upgrade: Upgrade {
            host: common.target.host.clone(),
            subprotocol: common.subprotocol.clone(),
        },
        path: template("path", scenario.path())?,
        join: common.join.as_deref().map(|text| template("join", text)).transpose()?,
        join_answered: !common.join_unanswered,
        connections: common.connections,
        rooms,
        open_rate: common.open_rate,
        opening_max: common.opening.div_ceil(threads).max(1) as usize,
        handshake_timeout: common.handshake_timeout,
        pong: !common.no_pong,
        farewell,
        storm,
        slow,
    };
    let values = Values { room: LINES_MAX, connection: LINES_MAX, ..Values::default() };
    let tried = plan.upgrade.open(&plan.path.render(values, 0));
    tried.map_err(|error| RunError::Request(Box::new(error)))?;
    Ok(plan)
}

/// Who is in which room and publishes where.
fn rooms(scenario: &Scenario) -> Result<Rooms, RunError> {
    let Common { connections, rooms: count, .. } = *scenario.common();
    let fanout = scenario.fanout();
    let publishers = fanout.map_or(1, |args| args.publishers);
    match fanout.filter(|args| args.roam) {
        None if count.max(publishers) > connections => Err(RunError::TooFew),
        Some(_) if publishers > count.min(connections) => Err(RunError::TooFewToRoam),
        None => Ok(Rooms { count, publishers, roaming: false }),
        Some(args) => {
            let join = args.common.join.as_deref().unwrap_or_default();
            for (option, text) in [("join", join), ("message", &args.load.message)] {
                if !text.contains("{room}") {
                    return Err(RunError::Roomless(option));
                }
            }
            Ok(Rooms { count, publishers, roaming: true })
        }
    }
}

/// Whether sockets may be closed silently: found out now, not when all are open.
fn try_to_vanish(target: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    ring::close_silently(socket.as_raw_fd())
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
    /// Of `storm`, too; with the interval of pings.
    Idle(Option<Duration>),
    /// Of `slow`, too.
    Fanout(Arc<fanout::Rules>, Arc<flight::Flights>),
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
            Scenario::Idle(args) => match args.ping_interval {
                Some(Duration::ZERO) => return Err(RunError::PingInterval),
                interval => Self::Idle(interval),
            },
            Scenario::Storm(_) => Self::Idle(None),
            Scenario::Fanout(args) | Scenario::Slow(SlowArgs { fanout: args, .. }) => {
                let (message, bytes) = message(&args.load)?;
                let load = match args.rate {
                    Some(rate) if is_rate(rate) => fanout::Load::Rate(rate),
                    Some(_) => return Err(RunError::Rate),
                    None => fanout::Load::Window(args.window.unwrap_or(1)),
                };
                let rules = fanout::Rules {
                    message,
                    bytes,
                    rooms: rooms(scenario)?,
                    load,
                    messages: args.messages,
                    sender_receives: !args.sender_excluded,
                };
                let flights = flight::Flights::new(rules.rooms, load);
                Self::Fanout(Arc::new(rules), Arc::new(flights))
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
            Self::Idle(ping) => Box::new(idle::Idle::new(ping, shared, place, connections)),
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
    /// Goes before other threads on its CPU, if that is permitted.
    is_ahead: bool,
}

impl Worker {
    fn run(self) -> io::Result<Finished> {
        if let Some(id) = self.cpu
            && !core_affinity::set_for_current(core_affinity::CoreId { id })
        {
            return Err(io::Error::other("a CPU of --cpus cannot be used"));
        }
        if self.is_ahead {
            // Needs CAP_SYS_NICE; without it what it measures includes the wait for the CPU.
            let _ = rustix::process::setpriority_process(None, AHEAD);
        }
        let connections = self.place.share(self.plan.connections) as usize;
        let script = self.scripts.script(Arc::clone(&self.shared), self.place, connections);
        Engine::new(self.plan, self.shared, self.place, script)?.run()
    }
}
