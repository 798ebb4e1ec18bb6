//! The server in simulation: all shards in one thread, no kernel, everything from a seed.
//!
//! [`net`] is the world below the shards, [`peer`] and [`backend`] those outside, [`check`] what
//! must hold, and [`world`] plays them together. Equal seeds make equal runs, byte for byte.
//!
//! `scripts/sim.sh --seed N` replays one run and prints its trace; `scripts/sim.sh --seeds N` runs
//! the first N. A seed that found something stays in [`FOUND`].

mod backend;
mod check;
mod directs;
mod net;
mod peer;
mod quiet;
mod wire;
mod world;

use std::panic::catch_unwind;

use world::{Outcome, run};

/// How many seeds run when nothing else is asked for.
const SEEDS: u64 = 200;

/// Seeds that found a bug, with what it was. A change to what worlds are made of changes what
/// every seed makes: then look for new ones, by breaking the server again.
const FOUND: &[(u64, &str)] = &[
    (13, "a join without user_id did not take the name that was given last"),
    (81, "a publish that waited for a mailbox was overtaken by its member's unsubscription"),
    (210, "congestion that began with an unsubscription was not counted"),
    (2323, "a member too slow in two rooms at once got two closes"),
    (1020, "a peer was cut for a pong that had come and waited to be read"),
];

/// Runs the seeds and returns what each came to.
///
/// # Panics
/// When some failed, after all have run.
fn run_all(seeds: impl Iterator<Item = u64>, drain: Option<bool>) -> Vec<Outcome> {
    let (mut outcomes, mut failed) = (Vec::new(), Vec::new());
    for seed in seeds {
        match catch_unwind(|| run(seed, drain, false)) {
            Ok(outcome) => outcomes.push(outcome),
            Err(_) => {
                let with = if drain == Some(true) { "FANWIRE_SIM_DRAIN=1 " } else { "" };
                eprintln!("seed {seed} failed; replay it: {with}scripts/sim.sh --seed {seed}");
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "failed seeds: {failed:?}");
    outcomes
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
    let outcomes = run_all(0..number("FANWIRE_SIM_SEEDS").unwrap_or(SEEDS), None);
    // The worlds reach what they are made for.
    let total = |count: fn(&Outcome) -> u64| outcomes.iter().map(count).sum::<u64>();
    let steps = total(|outcome| outcome.steps);
    let delivered = total(|outcome| outcome.delivered);
    let (slow, short) = (total(|o| o.slow_consumers), total(|o| o.sends_short));
    let (to_newest, oldest) = (total(|o| o.skipped_to_newest), total(|o| o.dropped_oldest));
    let (told, accounted) = (total(|o| o.told), total(|o| u64::from(o.accounted)));
    let drained = total(|outcome| u64::from(outcome.drained));
    let farewells = total(|outcome| outcome.farewells);
    let (pings, vanished, cut) =
        (total(|o| o.pings), total(|o| o.vanished), total(|o| o.pong_timeouts));
    let (addresses_full, rooms_full) = (total(|o| o.addresses_full), total(|o| o.rooms_full));
    let (published, busy) = (total(|o| o.published), total(|o| o.busy));
    let (reloads, listed, directs) =
        (total(|o| o.reloads), total(|o| o.listed), total(|o| o.directs));
    println!(
        "{} seeds: {steps} steps, {delivered} deliveries, {short} short sends, \
         {slow} slow consumers, {to_newest} skipped to the newest, {oldest} dropped as the oldest, \
         {told} of them told, {accounted} worlds accounted for, \
         {drained} drains of {farewells} members, {pings} pings, \
         {vanished} vanished, {cut} cut, {addresses_full} addresses full, {rooms_full} rooms full, \
         {published} published by backends, {busy} refused, {listed} members listed, \
         {reloads} reloads, {directs} direct messages",
        outcomes.len()
    );
    if outcomes.len() >= 100 {
        assert!(delivered > 100 * SEEDS && slow > 0 && short > SEEDS && drained > 0);
        assert!(farewells > SEEDS / 2);
        assert!(to_newest > SEEDS && oldest > SEEDS && told > SEEDS && accounted > 0);
        assert!(pings > SEEDS && vanished > SEEDS / 4 && cut > SEEDS / 8);
        assert!(addresses_full > SEEDS && rooms_full > SEEDS);
        assert!(published > SEEDS && busy > SEEDS && listed > SEEDS);
        assert!(reloads > SEEDS / 4);
        assert!(directs > 10 * SEEDS);
    }
}

#[test]
fn sim_seeds_that_found_something() {
    run_all(FOUND.iter().map(|&(seed, _)| seed), None);
}

#[test]
fn sim_is_deterministic() {
    for seed in 0..5 {
        assert_eq!(run(seed, None, false), run(seed, None, false), "seed {seed}");
    }
}

#[test]
fn sim_drains_in_the_middle_of_traffic() {
    run_all(1000..1020, Some(true));
}
