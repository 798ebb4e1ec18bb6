//! The figures of a run: what the conductor noted and the threads found, as a report.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use crate::beside;
use crate::cli::{Scenario, SlowArgs};
use crate::conductor::{Moment, Stages};
use crate::engine::{Finished, Wave};
use crate::failure::{Failure, Failures};
use crate::host::{Environment, Slab, Slabs, Usage};
use crate::measure::Latency;
use crate::plan::Slow;
use crate::report::{
    Closing, FORMAT, Opening, Parameters, Process, Raw, Report, Timeline, Traffic, Verdict,
};
use crate::sections::{self, Beside, Cache, Heartbeat, Hold, Kernel, Sections};
use crate::shared::Totals;

/// The main class of load; those beside it follow.
const MAIN: usize = 0;
/// Caches of kernel objects in a report: those beyond hardly grow.
const CACHES_MAX: usize = 12;
/// A cache that grew by less has nothing of every connection: the rest of the host moves, too.
const OBJECTS_PER_CONNECTION_MIN: f64 = 0.5;

/// What all threads found, added up.
#[derive(Debug, Default)]
pub struct Found {
    waves: Vec<Wave>,
    latency: Latency,
    to_last: Latency,
    lost: u64,
    slow_ended: Failures,
    slow_open: u64,
}

impl Found {
    /// Adds what one thread found.
    pub fn add(&mut self, finished: Finished) {
        let Finished { waves, outcome, slow_ended, slow_open } = finished;
        let len = waves.len().max(self.waves.len());
        self.waves.resize_with(len, Wave::default);
        for (sum, wave) in self.waves.iter_mut().zip(waves) {
            sum.handshake.merge(&wave.handshake);
            sum.failed.merge(&wave.failed);
            sum.dropped += wave.dropped;
        }
        self.latency.merge(&outcome.latency);
        self.to_last.merge(&outcome.to_last);
        self.lost += outcome.lost;
        self.slow_ended.merge(&slow_ended);
        self.slow_open += slow_open;
    }

    /// The failures of the whole run.
    fn failed(&self) -> Failures {
        let mut failed = Failures::default();
        for wave in &self.waves {
            failed.merge(&wave.failed);
        }
        failed
    }

    /// The handshakes of the whole run.
    fn handshake(&self) -> Latency {
        let mut handshake = Latency::default();
        for wave in &self.waves {
            handshake.merge(&wave.handshake);
        }
        handshake
    }
}

/// Everything that the figures are made of.
pub struct Facts<'c> {
    /// What was asked for.
    pub scenario: &'c Scenario,
    /// The moments in between.
    pub stages: Stages,
    /// After the closing.
    pub end: Moment,
    /// What the threads of each class found: of the main one, and of those beside it.
    pub found: [Found; 1 + beside::NAMES.len()],
    /// What happened when.
    pub timeline: Timeline,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
}

impl Facts<'_> {
    /// The report of the run that began at `started`, to be written into `folder`, and what its
    /// pictures are made of.
    #[must_use]
    pub fn report(self, started: SystemTime, threads: u32, folder: PathBuf) -> (Report, Raw) {
        let (scenario, common) = (self.scenario, self.scenario.common());
        let delivers = scenario.load().is_some();
        let report = Report {
            format: FORMAT,
            scenario: scenario.name().to_owned(),
            started: humantime::format_rfc3339_millis(started).to_string(),
            interrupted: self.interrupted,
            parameters: Parameters::of(scenario),
            environment: Environment::read(common.pid),
            threads,
            opening: self.opening(),
            traffic: delivers.then(|| self.traffic(MAIN)),
            closing: self.closing(),
            generator: self.process(|moment| moment.generator),
            server: common.pid.map(|_| self.process(|moment| moment.server)),
            sections: self.sections(),
            sources: Vec::new(),
            slab_bytes_per_connection: self.slab_per_connection(&self.stages.open),
            verdict: self.verdict(),
            folder,
        };
        let handshake = self.found[MAIN].handshake();
        let [Found { latency, to_last, .. }, beside @ ..] = self.found;
        // The round trips of pings are no deliveries.
        let latency = if delivers { latency } else { Latency::default() };
        let beside = beside.map(|found| found.latency);
        (report, Raw { handshake, latency, to_last, beside, timeline: self.timeline })
    }

    fn window_seconds(&self) -> f64 {
        seconds(&self.stages.measure_from, &self.stages.measure_until)
    }

    /// What was counted in the measured window, by one class.
    fn window(&self, class: usize, count: fn(&Totals) -> u64) -> u64 {
        let Stages { measure_from, measure_until, .. } = &self.stages;
        count(&measure_until.classes[class]) - count(&measure_from.classes[class])
    }

    fn opening(&self) -> Opening {
        let seconds = self.stages.opening_seconds;
        let handshake = &self.found[MAIN].waves[0].handshake;
        let ready = handshake.count();
        Opening {
            asked: self.scenario.common().connections,
            ready,
            failed: self.found[MAIN].failed().by_name(),
            seconds,
            per_second: ratio(ready as f64, seconds),
            handshake: handshake.into(),
        }
    }

    fn traffic(&self, class: usize) -> Traffic {
        let (totals, found) = (&self.end.classes[class], &self.found[class]);
        let seconds = self.window_seconds();
        let delivered = self.window(class, |totals| totals.delivered);
        Traffic {
            seconds,
            published: self.window(class, |totals| totals.published),
            delivered,
            deliveries_per_second: ratio(delivered as f64, seconds),
            latency: (&found.latency).into(),
            to_last: (found.to_last.count() > 0).then(|| (&found.to_last).into()),
            lost: found.lost,
            duplicated: totals.duplicated,
            reordered: totals.reordered,
            foreign: totals.foreign,
            stalled: totals.stalled,
            late_share: ratio(totals.late as f64, totals.published as f64),
        }
    }

    fn closing(&self) -> Closing {
        let Totals { ready, ended, .. } = self.stages.closing.totals;
        let clean = self.end.totals.closed_clean;
        Closing { clean, unclean: ready.saturating_sub(ended).saturating_sub(clean) }
    }

    fn process(&self, usage: fn(&Moment) -> Usage) -> Process {
        let Stages { before, open, measure_from, measure_until, .. } = &self.stages;
        let cpus = cpus(measure_from, measure_until, usage);
        let delivered = (measure_until.totals.delivered - measure_from.totals.delivered) as f64;
        let cpu_us = cpus * self.window_seconds() * 1e6;
        let connections = open.totals.ready as f64;
        let (before, open, after) = (usage(before), usage(open), usage(measure_until));
        let grown = open.rss_kib.saturating_sub(before.rss_kib) as f64 * 1024.0;
        Process {
            cpus,
            cpu_us_per_delivery: self.scenario.load().map(|_| ratio(cpu_us, delivered)),
            before,
            open,
            after,
            rss_bytes_per_connection: ratio(grown, connections),
        }
    }

    /// The growth of all slabs until `moment`.
    fn slab_per_connection(&self, moment: &Moment) -> Option<f64> {
        let grown = moment.slab_kib?.saturating_sub(self.stages.before.slab_kib?) as f64;
        Some(ratio(grown * 1024.0, self.stages.open.totals.ready as f64))
    }

    fn sections(&self) -> Sections {
        let rss = self.timeline.samples.iter().filter_map(|sample| sample.server_rss_kib);
        Sections {
            holds: self.stages.holds.iter().map(|(from, until)| self.hold(from, until)).collect(),
            heartbeat: self.heartbeat(),
            storm: matches!(self.scenario, Scenario::Storm(_)).then(|| self.storm()),
            slow: match self.scenario {
                Scenario::Slow(args) => Some(self.slow(args)),
                _ => None,
            },
            beside: self.beside(),
            kernel: self.kernel(),
            server_rss_kib_max: rss.max(),
        }
    }

    fn hold(&self, from: &Moment, until: &Moment) -> Hold {
        let server = self.scenario.common().pid;
        Hold {
            seconds: seconds(from, until),
            generator_cpus: cpus(from, until, |moment| moment.generator),
            server_cpus: server.map(|_| cpus(from, until, |moment| moment.server)),
            server: server.map(|_| until.server),
            slab_bytes_per_connection: self.slab_per_connection(until),
            pings_received: until.totals.pings_received - from.totals.pings_received,
            pings_answered: until.totals.pings_answered - from.totals.pings_answered,
        }
    }

    fn heartbeat(&self) -> Option<Heartbeat> {
        let Totals { pings_received, pings_answered, pings_sent, pongs_received, .. } =
            self.end.totals;
        let round_trip = (pongs_received > 0).then(|| (&self.found[MAIN].latency).into());
        (pings_received + pings_sent > 0).then_some(Heartbeat {
            pings_received,
            pings_answered,
            pings_sent,
            pongs_received,
            round_trip,
        })
    }

    fn storm(&self) -> sections::Storm {
        let waves = self.found[MAIN].waves.iter().skip(1).zip(&self.stages.waves);
        let wave = |(wave, back): (&Wave, &crate::conductor::Back)| sections::Wave {
            dropped: wave.dropped,
            back: wave.handshake.count(),
            missing: back.missing,
            seconds: back.seconds,
            per_second: ratio(wave.handshake.count() as f64, back.seconds),
            handshake: (&wave.handshake).into(),
            failed: wave.failed.by_name(),
        };
        sections::Storm {
            handshake: (&self.found[MAIN].handshake()).into(),
            waves: waves.map(wave).collect(),
        }
    }

    fn slow(&self, args: &SlowArgs) -> sections::Slow {
        let slow = Slow::of(args);
        let numbers = 0..args.fanout.common.connections;
        sections::Slow {
            connections: numbers.filter(|&number| slow.has(number)).count() as u64,
            open: self.found[MAIN].slow_open,
            ended: self.found[MAIN].slow_ended.by_name(),
            bytes_under_load: self.stages.measure_until.totals.slow_bytes,
            bytes: self.end.totals.slow_bytes,
        }
    }

    fn beside(&self) -> BTreeMap<String, Beside> {
        let Some(main) = self.scenario.fanout() else { return BTreeMap::new() };
        let classes = beside::NAMES.into_iter().zip(beside::classes(main)).enumerate();
        let class = |(index, (name, args)): (usize, (&str, Option<_>))| {
            args?;
            let class = MAIN + 1 + index;
            let connections = self.found[class].handshake().count();
            Some((name.to_owned(), Beside { connections, traffic: self.traffic(class) }))
        };
        classes.filter_map(class).collect()
    }

    /// Not where the memory of connections is mostly data, or of ends that nobody has any more.
    fn kernel(&self) -> Option<Kernel> {
        if matches!(self.scenario, Scenario::Slow(_) | Scenario::Storm(_)) {
            return None;
        }
        let (before, open) = self.stages.slabs.as_ref()?;
        let Totals { ready, ended, .. } = self.stages.closing.totals;
        let connections = ready.saturating_sub(ended) as f64;
        Some(kernel(before, open, self.stages.vanished.as_ref(), connections))
    }

    fn verdict(&self) -> Verdict {
        let mut problems = self.stages.problems.clone();
        problems.extend(self.failed_in(MAIN));
        for (index, name) in beside::NAMES.into_iter().enumerate() {
            let failed = self.failed_in(MAIN + 1 + index).into_iter();
            problems.extend(failed.map(|problem| format!("{problem} ({name} beside)")));
        }
        if !self.interrupted {
            let mut check = |count: u64, what: &str| problems.extend(problem(count, what));
            check(self.stages.open.totals.awaited, "connections never opened");
            for (index, back) in self.stages.waves.iter().enumerate() {
                check(back.missing, &format!("connections not back in wave {}", index + 1));
            }
            if let Some(args) = self.scenario.fanout()
                && let Some(messages) = args.messages
            {
                let asked = u64::from(messages) * u64::from(args.publishers);
                let published = self.end.classes[MAIN].published;
                check(asked.saturating_sub(published), "messages never published");
            }
        }
        Verdict { passed: problems.is_empty(), problems }
    }

    /// What went wrong with the connections and deliveries of one class.
    fn failed_in(&self, class: usize) -> Vec<String> {
        let (found, totals) = (&self.found[class], &self.end.classes[class]);
        let is_storm = matches!(self.scenario, Scenario::Storm(_));
        // In a storm an attempt may fail: what counts is who is back in time.
        let fatal = |failure: Failure| {
            failure.is_disconnection() || failure == Failure::Protocol || !is_storm
        };
        let failed = found.failed();
        let failed = failed.iter().filter(|&(failure, _)| fatal(failure));
        let failed =
            failed.map(|(failure, count)| (count, format!("connections failed: {failure}")));
        let deliveries = [
            (found.lost, "deliveries lost"),
            (totals.duplicated, "deliveries duplicated"),
            (totals.reordered, "deliveries reordered"),
            (totals.foreign, "messages that are not ours"),
        ];
        let deliveries = deliveries.into_iter().map(|(count, what)| (count, what.to_owned()));
        failed.chain(deliveries).filter_map(|(count, what)| problem(count, &what)).collect()
    }
}

/// `count` of something that should not be, if it is.
fn problem(count: u64, what: &str) -> Option<String> {
    (count > 0).then(|| format!("{count} {what}"))
}

/// What `connections` take: from `before` them, to all being `open`, to the generator's ends having
/// `vanished`, if they did.
fn kernel(
    before: &Slabs,
    open: &Slabs,
    vanished: Option<&(Slabs, bool)>,
    connections: f64,
) -> Kernel {
    let cache = |(name, slab): (&str, Slab)| {
        let grown = |now: &Slabs| ratio(now.objects(name) - before.objects(name), connections);
        Cache {
            name: name.to_owned(),
            object_bytes: slab.object_bytes,
            objects_per_connection: grown(open),
            server_objects_per_connection: vanished.map(|(slabs, _)| grown(slabs)),
        }
    };
    let mut caches: Vec<_> = open
        .caches()
        .map(cache)
        .filter(|cache| cache.objects_per_connection >= OBJECTS_PER_CONNECTION_MIN)
        .collect();
    let bytes = |cache: &Cache| cache.objects_per_connection * cache.object_bytes;
    let left = |cache: &Cache| Some(cache.server_objects_per_connection? * cache.object_bytes);
    let both = caches.iter().map(bytes).sum();
    let server = vanished.map(|_| caches.iter().filter_map(left).sum::<f64>());
    caches.sort_by(|a, b| bytes(b).total_cmp(&bytes(a)));
    caches.truncate(CACHES_MAX);
    Kernel {
        both_bytes_per_connection: both,
        server_bytes_per_connection: server,
        generator_bytes_per_connection: server.map(|server| both - server),
        settled: vanished.map(|&(_, settled)| settled),
        caches,
    }
}

fn seconds(from: &Moment, until: &Moment) -> f64 {
    let passed = until.at.zip(from.at).map(|(until, from)| until - from);
    passed.unwrap_or_default().as_secs_f64()
}

/// CPUs a process kept busy.
fn cpus(from: &Moment, until: &Moment, usage: fn(&Moment) -> Usage) -> f64 {
    let cpu_ns = usage(until).cpu_ns.saturating_sub(usage(from).cpu_ns);
    ratio(cpu_ns as f64 / 1e9, seconds(from, until))
}

/// 0 rather than nonsense where nothing was counted.
fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_memory_is_split_by_what_is_left_when_our_ends_are_gone() {
        let slabs = |tcp: u32, epi: u32, buffers: u32| {
            let text = format!(
                "slabinfo - version: 2.1\n\
                 # name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>\n\
                 TCP {tcp} 9999 2432 13 8 : tunables 0 0 0 : slabdata 1 1 0\n\
                 eventpoll_epi {epi} 9999 128 32 1 : tunables 0 0 0 : slabdata 1 1 0\n\
                 buffer_head {buffers} 9999 104 39 1 : tunables 0 0 0 : slabdata 1 1 0\n"
            );
            Slabs::parse(&text, 4096)
        };
        let (before, open) = (slabs(100, 50, 5000), slabs(2100, 3050, 5400));
        let vanished = (slabs(1100, 50, 100), true);
        let tcp = 8.0 * 4096.0 / 13.0;
        let kernel = kernel(&before, &open, Some(&vanished), 1000.0);
        let near = |value: Option<f64>, expected: f64| {
            assert!((value.expect("measured") - expected).abs() < 1e-6, "{value:?} {expected}");
        };
        near(Some(kernel.both_bytes_per_connection), 2.0 * tcp + 3.0 * 128.0);
        near(kernel.server_bytes_per_connection, tcp);
        near(kernel.generator_bytes_per_connection, tcp + 3.0 * 128.0);
        let names: Vec<_> = kernel.caches.iter().map(|cache| cache.name.as_str()).collect();
        assert_eq!(names, ["TCP", "eventpoll_epi"], "buffers have nothing to do with us");
    }
}
