//! The server in simulation: all shards in one thread, no kernel, everything from a seed.
//!
//! [`net`] is the world below the shards, [`peer`] and [`backend`] those outside, [`check`] what
//! must hold, and [`world`] plays them together. Equal seeds make equal runs, byte for byte.
//!
//! `scripts/sim.sh --seed N` replays one run and prints its trace; `scripts/sim.sh --seeds N` runs
//! the first N. A seed that found something stays in [`FOUND`].

mod agenda;
mod backend;
mod check;
mod directs;
mod fairness;
mod handed;
mod net;
mod peer;
mod plan;
mod quiet;
mod wire;
mod world;

use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use crate::planted::{Bug, plant};
use net::Fault;
use world::{Outcome, run, run_quiet};

/// How many seeds run when nothing else is asked for.
const SEEDS: u64 = 200;

/// Seeds that find a bug that was made once and can be planted again, or one that few others find.
/// A change to what worlds are made of changes what every seed makes: then look for new ones, with
/// `FANWIRE_SIM_SEEDS` as in [`sim_finds_what_is_planted`].
const FOUND: &[(u64, Bug)] =
    &[(15, Bug::NameForgotten), (83, Bug::PublishOvertaken), (444, Bug::CongestionForgotten)];

/// Runs seeds until there are no more, or time is over, and returns what each came to.
///
/// # Panics
/// When some failed, after all have run.
fn run_all(
    seeds: impl Iterator<Item = u64>,
    drain: Option<bool>,
    time: Option<Duration>,
) -> Vec<Outcome> {
    let (mut outcomes, mut failed) = (Vec::new(), Vec::new());
    let start = Instant::now();
    for seed in seeds.take_while(|_| time.is_none_or(|time| start.elapsed() < time)) {
        match catch_unwind(|| run(seed, drain, false)) {
            Ok(outcome) => outcomes.push(outcome),
            Err(_) => {
                let with = if drain == Some(true) { "FANWIRE_SIM_DRAIN=1 " } else { "" };
                let dev = if cfg!(debug_assertions) { "--dev " } else { "" };
                let replay = format!("{with}scripts/sim.sh {dev}--seed {seed}");
                eprintln!("seed {seed} failed; replay it: {replay}");
                failed.push(seed);
            }
        }
    }
    let total: Duration = outcomes.iter().map(|outcome| outcome.time).sum();
    let steps: u64 = outcomes.iter().map(|outcome| outcome.steps).sum();
    speed(total, steps, start.elapsed());
    assert!(failed.is_empty(), "failed seeds: {failed:?}");
    outcomes
}

/// Prints and returns how many hours were simulated in a second.
fn speed(simulated: Duration, steps: u64, took: Duration) -> f64 {
    let (hours, seconds) = (simulated.as_secs_f64() / 3600.0, took.as_secs_f64());
    println!(
        "{hours:.2} simulated hours in {seconds:.2} s: {:.2} hours/s, {:.0} steps/s",
        hours / seconds,
        steps as f64 / seconds
    );
    hours / seconds
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is no number: {value}")))
}

#[test]
fn sim_keeps_its_promises() {
    if let Some(seed) = number("FANWIRE_SIM_SEED") {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG);
        let _ = subscriber.with_test_writer().without_time().try_init();
        let drain = number("FANWIRE_SIM_DRAIN").map(|drain| drain != 0);
        println!("{:#?}", run(seed, drain, true));
        return;
    }
    let from = number("FANWIRE_SIM_FROM").unwrap_or(0);
    let time = number("FANWIRE_SIM_SECONDS").map(Duration::from_secs);
    let seeds = number("FANWIRE_SIM_SEEDS").or(time.map(|_| u64::MAX)).unwrap_or(SEEDS);
    let outcomes = run_all(from..from.saturating_add(seeds), None, time);
    check_reach(&outcomes);
}

/// The worlds reach what they are made for.
fn check_reach(outcomes: &[Outcome]) {
    let total = |count: fn(&Outcome) -> u64| outcomes.iter().map(count).sum::<u64>();
    let counts = [
        ("deliveries", total(|o| o.delivered), 500),
        ("slow consumers", total(|o| o.slow_consumers), 0),
        ("messages skipped to the newest", total(|o| o.skipped_to_newest), 1),
        ("messages dropped as the oldest", total(|o| o.dropped_oldest), 0),
        ("of them told", total(|o| o.told), 0),
        ("acknowledged, and looked for", total(|o| o.handed), 10),
        ("worlds accounted for", total(|o| u64::from(o.accounted)), 0),
        ("drains in the middle", total(|o| u64::from(o.drained)), 0),
        ("members that they closed", total(|o| o.farewells), 0),
        ("pings", total(|o| o.pings), 1),
        ("vanished", total(|o| o.vanished), 0),
        ("cut for silence", total(|o| o.pong_timeouts), 0),
        ("addresses full", total(|o| o.addresses_full), 1),
        ("rooms full", total(|o| o.rooms_full), 1),
        ("refused by a full server", total(|o| o.full), 1),
        ("messages that there was no room for", total(|o| o.messages_without_room), 0),
        ("publishes refused", total(|o| o.refused), 1),
        ("published by backends", total(|o| o.published), 100),
        ("refused to them", total(|o| o.busy), 1),
        ("members listed", total(|o| o.listed), 0),
        ("reloads", total(|o| o.reloads), 0),
        ("direct messages", total(|o| o.directs), 2),
    ];
    let faults = Fault::ALL.map(|fault| {
        (format!("{fault:?}"), outcomes.iter().map(|it| it.happened.times(fault)).sum::<u64>())
    });
    let crowd = outcomes.iter().map(|outcome| outcome.connections).max().unwrap_or(0);
    println!("{} seeds, up to {crowd} connections; {counts:?}; {faults:?}", outcomes.len());
    if outcomes.len() as u64 >= SEEDS {
        // Several times in every world, on average, or at least in some.
        for (what, times, per_world) in counts {
            assert!(times > per_world * outcomes.len() as u64, "{times} {what}");
        }
        for (fault, times) in faults {
            assert!(times > 10, "{fault}: {times}");
        }
        assert!(crowd >= 1000, "at most {crowd} connections");
    }
}

#[test]
fn sim_seeds_that_found_something() {
    run_all(FOUND.iter().map(|&(seed, _)| seed), None, None);
    for &(seed, bug) in FOUND {
        assert!(finds(seed, bug), "seed {seed} does not find {bug:?} any more: look for another");
    }
}

/// Whether the seed finds a bug that is planted.
fn finds(seed: u64, bug: Bug) -> bool {
    catch_unwind(|| plant(bug, || run(seed, None, false))).is_err()
}

/// So many seeds find any bug, but for those of [`FOUND`], which are rarer. None of the first
/// [`SEEDS`] finds anything where nothing is planted.
const SEEDS_TO_FIND: u64 = 60;

#[test]
fn sim_finds_what_is_planted() {
    const { assert!(SEEDS_TO_FIND <= SEEDS) };
    // Where more are asked for, all.
    let more = number("FANWIRE_SIM_SEEDS");
    let from = number("FANWIRE_SIM_FROM").unwrap_or(0);
    // A home that is late by seconds has a world of its own, in `handed`.
    let rare =
        |bug: &Bug| *bug == Bug::ImpatientDrain || FOUND.iter().any(|(_, found)| found == bug);
    let mut missed = Vec::new();
    for bug in Bug::ALL.into_iter().filter(|bug| more.is_some() || !rare(bug)) {
        let mut seeds = from..from + more.unwrap_or(SEEDS_TO_FIND);
        let found = seeds.find(|&seed| finds(seed, bug));
        println!("{bug:?}: found by seed {found:?}");
        missed.extend(found.is_none().then_some(bug));
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// Connections of a quiet world, and the minutes that it lasts when nothing else is asked for.
const QUIET_PEERS: usize = 1000;
const QUIET_MINUTES: u64 = 5;

#[test]
fn sim_of_a_thousand_quiet_connections() {
    let minutes = number("FANWIRE_SIM_MINUTES").unwrap_or(QUIET_MINUTES);
    let start = Instant::now();
    let outcome = run_quiet(1, QUIET_PEERS, Duration::from_secs(60 * minutes));
    let speed = speed(outcome.time, outcome.steps, start.elapsed());
    println!("{} connections: {outcome:?}", outcome.connections);
    assert_eq!(outcome.connections, QUIET_PEERS);
    let rounds = (60 * minutes / 40).saturating_sub(1);
    assert!(outcome.pings >= rounds * QUIET_PEERS as u64 * 3 / 4, "everybody is pinged");
    assert!(outcome.delivered > 0, "and something is said");
    for fault in [Fault::LatePoll, Fault::AcceptEnded, Fault::AcceptWithoutMemory] {
        assert!(outcome.happened.times(fault) > 0, "{fault:?}");
    }
    // Only where it is asked for: `cargo test` has no core of its own.
    if let Some(least) = number("FANWIRE_SIM_HOURS_PER_SECOND") {
        assert!(speed >= least as f64, "{speed:.2} simulated hours per second, not {least}");
    }
}

#[test]
fn sim_is_deterministic() {
    // The last one is a crowd.
    for seed in [0, 1, 2, 3, 4, 49] {
        assert_eq!(run(seed, None, false), run(seed, None, false), "seed {seed}");
    }
}

#[test]
fn sim_drains_in_the_middle_of_traffic() {
    run_all(1000..1020, Some(true), None);
}
