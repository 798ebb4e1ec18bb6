//! The main thread during a run: moves it from stage to stage and watches the counters.
//!
//! What it notes at the borders of the stages is what the figures are made of. Ctrl-C shortens
//! every stage to its end: connections are still closed and the report still written.
//!
//! Never: touches a connection.

use std::io;
use std::ops::Add;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::beside;
use crate::cli::{Common, Scenario, StormArgs};
use crate::engine::Finished;
use crate::host::{self, Slabs, Usage};
use crate::progress::Progress;
use crate::report::{Mark, Sample, Timeline};
use crate::shared::{Shared, Stage, Totals};

/// How often the main thread looks at the counters.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two points of the timeline.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// After everything has arrived, how long to listen for what should not.
const GRACE: Duration = Duration::from_millis(200);
/// When a given number of messages is published: without any progress for this long, it never will
/// be. More than it takes to give up a window (two looks, 4 s).
const NO_PROGRESS: Duration = Duration::from_secs(5);
/// The kernel has come to rest when its slabs have hardly changed for this long..
const SETTLED_FOR: Duration = Duration::from_secs(1);
/// ..or it never will.
const SETTLED_WITHIN: Duration = Duration::from_secs(30);

/// What everything was at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment {
    /// When.
    pub at: Option<Instant>,
    /// The counters of all classes.
    pub totals: Totals,
    /// The counters of each: the main one, and those beside it.
    pub classes: [Totals; 1 + beside::NAMES.len()],
    /// This process.
    pub generator: Usage,
    /// The process of `--pid`.
    pub server: Usage,
    /// Slab memory of the host.
    pub slab_kib: Option<u64>,
}

/// The moments between the stages, and what else came up.
#[derive(Debug, Default)]
pub struct Stages {
    /// Before the first connection.
    pub before: Moment,
    /// From the first connect to the last connection ready.
    pub opening_seconds: f64,
    /// All connections open.
    pub open: Moment,
    /// Start and end of each hold.
    pub holds: Vec<(Moment, Moment)>,
    /// Start of the measured window.
    pub measure_from: Moment,
    /// Its end.
    pub measure_until: Moment,
    /// Each wave of a storm.
    pub waves: Vec<Back>,
    /// Just before the closing.
    pub closing: Moment,
    /// The kernel's objects before the first connection, and just before the closing.
    pub slabs: Option<(Slabs, Slabs)>,
    /// The kernel's objects once the generator's ends had vanished, and whether it had come to
    /// rest.
    pub vanished: Option<(Slabs, bool)>,
    /// What else went wrong.
    pub problems: Vec<String>,
}

/// How a wave came back.
#[derive(Debug, Clone, Copy)]
pub struct Back {
    /// From the drop until all were back, or until the time for it was over.
    pub seconds: f64,
    /// Connections that were not back by then.
    pub missing: u64,
}

/// See the module documentation.
pub struct Conductor<'c> {
    scenario: &'c Scenario,
    common: &'c Common,
    /// The main class.
    shared: Arc<Shared>,
    /// The classes beside it.
    beside: [Option<Arc<Shared>>; beside::NAMES.len()],
    interrupted: Arc<AtomicBool>,
    began: Instant,
    began_ns: u64,
    timeline: Timeline,
    sampled: Instant,
    sampled_delivered: u64,
    /// The threads, to notice when one fails.
    pub workers: Vec<JoinHandle<io::Result<Finished>>>,
}

impl<'c> Conductor<'c> {
    /// Before the first connection.
    #[must_use]
    pub fn new(
        scenario: &'c Scenario,
        shared: Arc<Shared>,
        beside: [Option<Arc<Shared>>; beside::NAMES.len()],
        interrupted: Arc<AtomicBool>,
    ) -> Self {
        let (began, began_ns) = (Instant::now(), shared.clock.now());
        Self {
            scenario,
            common: scenario.common(),
            shared,
            beside,
            interrupted,
            began,
            began_ns,
            timeline: Timeline::default(),
            sampled: began,
            sampled_delivered: 0,
            workers: Vec::new(),
        }
    }

    /// Takes the run through all its stages and joins the threads. `before` is the moment before
    /// any thread was there.
    ///
    /// # Errors
    /// What a thread failed with.
    pub fn conduct(
        &mut self,
        before: Moment,
        slabs_before: Option<Slabs>,
    ) -> io::Result<(Stages, Vec<Finished>)> {
        let mut stages = Stages { before, ..Stages::default() };
        self.open();
        let last_ready_ns = self.all().map(Shared::last_ready_ns).max().unwrap_or(0);
        let opened_ns = last_ready_ns.max(self.began_ns);
        stages.opening_seconds = (opened_ns - self.began_ns) as f64 / 1e9;
        stages.open = self.snapshot(true);
        stages.problems.extend(self.wait_for_start());
        if let Scenario::Idle(_) = self.scenario {
            self.enter(Stage::Running);
        }
        self.hold(&mut stages);
        match self.scenario {
            Scenario::Idle(_) => {
                let hold = stages.holds.first().copied().unwrap_or((stages.open, stages.open));
                (stages.measure_from, stages.measure_until) = hold;
            }
            Scenario::Fanout(_) | Scenario::Echo(_) | Scenario::Slow(_) => self.load(&mut stages),
            Scenario::Storm(args) => self.storm(args, &mut stages),
        }
        stages.closing = self.snapshot(false);
        stages.slabs = slabs_before.and_then(|before| Some((before, host::slabs()?)));
        self.enter(Stage::Closing);
        self.close(&stages.closing.totals);
        self.enter(Stage::Ended);
        let finished = self
            .workers
            .drain(..)
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let finished = finished.collect::<io::Result<_>>()?;
        // Only now: a ring keeps what its polls were made of until it goes.
        if self.common.vanish && stages.slabs.is_some() {
            stages.vanished = self.settle();
        }
        Ok((stages, finished))
    }

    /// Hands over the timeline, and whether Ctrl-C ended the run early.
    #[must_use]
    pub fn end(self) -> (Timeline, bool) {
        (self.timeline, self.interrupted.load(Ordering::Relaxed))
    }

    /// The main class and those beside it.
    fn all(&self) -> impl Iterator<Item = &Shared> {
        let beside = self.beside.iter().flatten();
        [&self.shared].into_iter().chain(beside).map(Arc::as_ref)
    }

    /// The counters of all classes.
    fn totals(&self) -> Totals {
        self.all().map(Shared::totals).fold(Totals::default(), Totals::add)
    }

    /// Moves all classes on.
    fn enter(&self, stage: Stage) {
        self.all().for_each(|shared| shared.enter(stage));
    }

    /// Waits until every connection is ready or has failed for good.
    fn open(&mut self) {
        self.mark("open");
        let beside = self.scenario.fanout().map_or(0, |args| args.beside.connections());
        let asked = u64::from(self.common.connections + beside);
        let mut progress = Progress::start("open", asked, "connections");
        let began = self.began;
        let message = |totals: &Totals| {
            let rate = totals.ready as f64 / began.elapsed().as_secs_f64();
            format!("{rate:.0}/s, {} failed", totals.failed)
        };
        // In a storm attempts are made again for as long as that leads anywhere.
        let patience = match self.scenario {
            Scenario::Storm(args) => args.back_within,
            _ => Duration::MAX,
        };
        let (mut ready, mut since) = (0, Instant::now());
        while !self.is_over() {
            let totals = self.look();
            progress.set(totals.ready, || message(&totals));
            if totals.ready > ready {
                (ready, since) = (totals.ready, Instant::now());
            }
            if totals.awaited == 0 || since.elapsed() > patience {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
        let totals = self.totals();
        progress.finish(totals.ready, &message(&totals));
    }

    /// Waits for `--start-at`; says if it was over before the connections were open.
    fn wait_for_start(&mut self) -> Option<String> {
        let start = self.common.start_at?.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Duration::from_nanos(self.shared.clock.now());
        let Some(left) = start.checked_sub(now) else {
            let late = (now - start).as_secs_f64();
            return Some(format!("started {late:.1} s after --start-at: opening took longer"));
        };
        self.pass("wait", left);
        None
    }

    fn hold(&mut self, stages: &mut Stages) {
        for (index, hold) in self.scenario.holds().into_iter().enumerate() {
            if self.is_over() {
                return;
            }
            if index > 0
                && let Some(command) = &self.common.hold_command
            {
                stages.problems.extend(run_command(command));
            }
            let from = self.snapshot(false);
            self.pass("hold", hold);
            stages.holds.push((from, self.snapshot(true)));
        }
    }

    fn load(&mut self, stages: &mut Stages) {
        if self.is_over() {
            let now = self.snapshot(false);
            (stages.measure_from, stages.measure_until) = (now, now);
            return;
        }
        let load = self.scenario.load().expect("the caller has looked");
        let fanout = self.scenario.fanout();
        let messages =
            fanout.and_then(|args| Some(u64::from(args.messages?) * u64::from(args.publishers)));
        if let Some(messages) = messages {
            // Before the first message, or its first deliveries would be missing in the figures.
            stages.measure_from = self.snapshot(false);
            let now = self.shared.clock.now();
            self.all().for_each(|shared| shared.measure_from(now));
            self.enter(Stage::Running);
            self.publish(messages);
        } else {
            let from = self.shared.clock.now() + load.warmup.as_nanos() as u64;
            for shared in self.all() {
                shared.measure_from(from);
                shared.measure_until(from + load.duration.as_nanos() as u64);
            }
            self.enter(Stage::Running);
            self.pass("warm up", load.warmup);
            stages.measure_from = self.snapshot(false);
            self.pass("measure", load.duration);
        }
        stages.measure_until = self.snapshot(false);
        self.enter(Stage::Draining);
        self.drain(load.drain);
    }

    /// Waits until `messages` are published and have reached everyone, or nothing moves any more.
    fn publish(&mut self, messages: u64) {
        self.mark("measure");
        let mut progress = Progress::start("publish", messages, "messages");
        let message = |totals: &Totals| format!("{} deliveries", totals.delivered);
        let (mut moved, mut since) = ((0, 0), Instant::now());
        while !self.is_over() && since.elapsed() < NO_PROGRESS {
            self.look();
            // Nobody waits for those beside: they go on for as long as this does.
            let totals = self.shared.totals();
            progress.set(totals.published, || message(&totals));
            if moved != (totals.published, totals.delivered) {
                (moved, since) = ((totals.published, totals.delivered), Instant::now());
            }
            if totals.published >= messages && totals.delivered >= totals.expected {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
        let totals = self.shared.totals();
        progress.finish(totals.published, &message(&totals));
    }

    fn storm(&mut self, args: &StormArgs, stages: &mut Stages) {
        stages.measure_from = self.snapshot(false);
        self.enter(Stage::Running);
        for _ in 0..args.waves {
            self.pass("stay", args.stay);
            if self.is_over() {
                break;
            }
            stages.waves.push(self.wave(args.back_within));
        }
        stages.measure_until = self.snapshot(false);
    }

    /// Lets a wave drop connections and waits until all are back.
    fn wave(&mut self, within: Duration) -> Back {
        self.mark("wave");
        let (began, began_ns) = (Instant::now(), self.shared.clock.now());
        let asked = u64::from(self.common.connections);
        let mut progress = Progress::start("wave", asked, "connections");
        let message = |totals: &Totals| format!("{} attempts failed so far", totals.failed);
        self.shared.next_wave();
        while !self.is_over() && began.elapsed() < within {
            // In this order: what has dropped is awaited once the wave has begun.
            let begun = self.shared.has_wave_begun();
            let totals = self.look();
            progress.set(asked.saturating_sub(totals.awaited), || message(&totals));
            if begun && totals.awaited == 0 {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
        let totals = self.shared.totals();
        progress.finish(asked.saturating_sub(totals.awaited), &message(&totals));
        let seconds = match totals.awaited {
            0 => self.shared.last_ready_ns().saturating_sub(began_ns) as f64 / 1e9,
            _ => began.elapsed().as_secs_f64(),
        };
        Back { seconds, missing: totals.awaited }
    }

    /// Lets `duration` pass.
    fn pass(&mut self, what: &'static str, duration: Duration) {
        self.mark(what);
        let (began, before) = (Instant::now(), self.totals());
        let mut progress = Progress::start(what, duration.as_millis() as u64, "ms");
        let loads = self.shared.stage() == Stage::Running;
        let message = |totals: &Totals| {
            let (open, failed) = (totals.ready.saturating_sub(totals.ended), totals.failed);
            let seconds = began.elapsed().as_secs_f64();
            let rate = (totals.delivered - before.delivered) as f64 / seconds;
            if loads {
                format!("{rate:.0} deliveries/s, {failed} failed")
            } else {
                format!("{open} open, {failed} failed")
            }
        };
        while began.elapsed() < duration && !self.is_over() {
            let totals = self.look();
            progress.set(began.elapsed().as_millis() as u64, || message(&totals));
            thread::sleep(LOOK_EVERY.min(duration.saturating_sub(began.elapsed())));
        }
        progress.finish(began.elapsed().as_millis() as u64, &message(&self.totals()));
    }

    /// Waits for what is still under way, and a little longer for what should not come; slow
    /// readers read meanwhile what was left for them.
    fn drain(&mut self, patience: Duration) {
        self.mark("drain");
        let deadline = Instant::now() + patience;
        let (mut complete_since, mut slow_bytes) = (None, 0);
        while Instant::now() < deadline && !self.has_failed() {
            let totals = self.look();
            if totals.delivered < totals.expected || totals.slow_bytes > slow_bytes {
                complete_since = None;
                slow_bytes = totals.slow_bytes;
            } else if complete_since.get_or_insert_with(Instant::now).elapsed() >= GRACE {
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn close(&mut self, before: &Totals) {
        self.mark("close");
        let open = before.ready.saturating_sub(before.ended);
        let mut progress = Progress::start("close", open, "connections");
        let (mut moved, mut since) = (0, Instant::now());
        loop {
            let totals = self.look();
            let closed = totals.ended - before.ended;
            let message = || format!("{} cleanly", totals.closed_clean);
            if closed > moved {
                (moved, since) = (closed, Instant::now());
            }
            let stuck = since.elapsed() > self.common.handshake_timeout * 2;
            if closed >= open || stuck || self.has_failed() {
                return progress.finish(closed, &message());
            }
            progress.set(closed, message);
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until the kernel has freed what it frees later (RCU), and reads its slabs.
    fn settle(&mut self) -> Option<(Slabs, bool)> {
        self.mark("settle");
        let began = Instant::now();
        let mut slabs = host::slabs()?;
        let mut since = Instant::now();
        while since.elapsed() < SETTLED_FOR {
            if began.elapsed() > SETTLED_WITHIN || self.is_over() {
                return Some((slabs, false));
            }
            thread::sleep(SAMPLE_EVERY);
            self.look();
            let now = host::slabs()?;
            // A thousandth: a host is never quite still.
            if (now.bytes() - slabs.bytes()).abs() > slabs.bytes() / 1000.0 {
                (slabs, since) = (now, Instant::now());
            }
        }
        Some((host::slabs()?, true))
    }

    /// Interrupted, or a worker has failed: the stages that follow are short.
    fn is_over(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.has_failed()
    }

    fn has_failed(&self) -> bool {
        self.workers.iter().any(JoinHandle::is_finished)
    }

    /// Reads the counters and adds to the timeline when it is time.
    fn look(&mut self) -> Totals {
        let totals = self.totals();
        let passed = self.sampled.elapsed();
        if passed >= SAMPLE_EVERY {
            self.sampled = Instant::now();
            let delivered = totals.delivered - self.sampled_delivered;
            self.sampled_delivered = totals.delivered;
            let worst_ns = self.all().map(Shared::take_worst_ns).max().unwrap_or(0);
            self.timeline.samples.push(Sample {
                seconds: self.began.elapsed().as_secs_f64(),
                connections: totals.ready.saturating_sub(totals.ended),
                deliveries_per_second: delivered as f64 / passed.as_secs_f64(),
                worst_ms: worst_ns as f64 / 1e6,
                server_rss_kib: self.common.pid.and_then(host::rss_kib),
            });
        }
        totals
    }

    /// Notes that a stage begins.
    fn mark(&mut self, stage: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.timeline.marks.push(Mark { seconds, stage: stage.to_owned() });
    }

    /// What everything is now. `with_pss`: the kernel walks the page tables for it.
    #[must_use]
    pub fn snapshot(&self, with_pss: bool) -> Moment {
        let read = if with_pss { host::usage_with_pss } else { host::usage };
        let mut classes = [Totals::default(); 1 + beside::NAMES.len()];
        classes[0] = self.shared.totals();
        for (totals, shared) in classes[1..].iter_mut().zip(&self.beside) {
            *totals = shared.as_ref().map_or(Totals::default(), |shared| shared.totals());
        }
        Moment {
            at: Some(Instant::now()),
            totals: classes.into_iter().fold(Totals::default(), Totals::add),
            classes,
            generator: read(std::process::id()).unwrap_or_default(),
            server: self.common.pid.and_then(read).unwrap_or_default(),
            slab_kib: host::slab_kib(),
        }
    }
}

/// Runs a shell command; says if that failed. What it prints goes to standard error, where our
/// own progress is.
fn run_command(command: &str) -> Option<String> {
    let shell =
        Command::new("sh").args(["-c", command]).stdin(Stdio::null()).stdout(io::stderr()).status();
    match shell {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("--hold-command ended with {status}")),
        Err(error) => Some(format!("--hold-command could not be run: {error}")),
    }
}
