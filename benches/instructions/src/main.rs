//! Fixed small scenarios whose instructions are counted: what `scripts/perf-guard.sh` runs.
//!
//! They run on a [`Bench`], a real shard without a kernel. So a count is the server's own work,
//! decoding, rooms, cursors and sends, and it is the same whenever it is repeated. What the kernel
//! does for a send is not in it, nor are caches; for those there is the load generator.
//!
//! `--list` names the scenarios. A name sets that one up, makes a round that is not counted (so
//! that memory has grown to its size), then those inside the function [`measured`], and prints how
//! many units of what they did. The allocator is the system's, since mimalloc asks the clock when
//! to give memory back.

#[cfg(test)]
mod allocations;
mod bench;

use std::process::ExitCode;

use bench::{Bench, Sent, masked};

/// What is counted, and per what.
struct Scenario {
    name: &'static str,
    /// One of what a round does many of.
    unit: &'static str,
    rounds: u32,
    /// Opens the connections.
    set_up: fn() -> Bench,
    /// Does `units` of them, and checks that they have been done.
    round: fn(&mut Bench) -> u64,
}

const SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "fanout-1",
        unit: "delivery",
        rounds: 50,
        set_up: || Bench::with_members(1000, |_| "/raw/room".to_owned()),
        round: |bench| fan_out(bench, 1),
    },
    Scenario {
        name: "fanout-16",
        unit: "delivery",
        rounds: 50,
        set_up: || Bench::with_members(1000, |_| "/raw/room".to_owned()),
        round: |bench| fan_out(bench, 16),
    },
    Scenario {
        name: "rooms",
        unit: "delivery",
        rounds: 10,
        set_up: || Bench::with_members(2000, |member| format!("/raw/room-{}", member / 2)),
        round: publish_into_each,
    },
    Scenario {
        name: "handshake",
        unit: "handshake",
        rounds: 1,
        set_up: Bench::new,
        round: open_many,
    },
    Scenario {
        name: "echo-48",
        unit: "message",
        rounds: 10,
        set_up: || Bench::with_members(1, |_| "/echo".to_owned()),
        round: |bench| echo(bench, 48),
    },
    Scenario {
        name: "echo-16k",
        unit: "message",
        rounds: 1,
        set_up: || Bench::with_members(1, |_| "/echo".to_owned()),
        round: |bench| echo(bench, 16 * 1024),
    },
    Scenario {
        name: "native",
        unit: "publish",
        rounds: 10,
        set_up: join_native,
        round: publish_native,
    },
];

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    if argument == "--list" {
        SCENARIOS.iter().for_each(|scenario| println!("{}", scenario.name));
    } else if let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == argument) {
        run(scenario);
    } else {
        eprintln!("usage: fanwire-instructions --list | NAME");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

fn run(scenario: &Scenario) {
    let mut bench = (scenario.set_up)();
    (scenario.round)(&mut bench);
    let units = measured(&mut bench, scenario);
    println!("{} {} {units}", scenario.name, scenario.unit);
}

/// Counting begins when this is entered and ends when it is left.
#[inline(never)]
fn measured(bench: &mut Bench, scenario: &Scenario) -> u64 {
    (0..scenario.rounds).map(|_| (scenario.round)(bench)).sum()
}

/// Member 0 publishes so many messages that come in one receive, and every member gets them.
fn fan_out(bench: &mut Bench, messages: usize) -> u64 {
    let members = bench.connections();
    let frames = masked(&[b'x'; 48]).repeat(messages);
    bench.feed(0, &frames);
    let sent = bench.run();
    // A frame of a server has a header of 2 bytes.
    assert_eq!(sent, Sent { sends: members, bytes: members * messages * 50 });
    (members * messages) as u64
}

/// One member of each room publishes one message.
fn publish_into_each(bench: &mut Bench) -> u64 {
    let members = bench.connections();
    let frame = masked(&[b'x'; 48]);
    (0..members).step_by(2).for_each(|member| bench.feed(member, &frame));
    let sent = bench.run();
    assert_eq!(sent, Sent { sends: members, bytes: members * 50 });
    members as u64
}

/// A thousand more connections open.
fn open_many(bench: &mut Bench) -> u64 {
    let before = bench.metrics.opened.value();
    (0..1000).for_each(|_| bench.open("/raw/room"));
    bench.run();
    assert_eq!(bench.metrics.opened.value() - before, 1000);
    1000
}

/// A hundred round trips, one after the other.
fn echo(bench: &mut Bench, payload_bytes: usize) -> u64 {
    let frame = masked(&vec![b'x'; payload_bytes]);
    // The mask has 4 bytes and does not come back.
    let expected = frame.len() - 4;
    for _ in 0..100 {
        bench.feed(0, &frame);
        assert_eq!(bench.run().bytes, expected);
    }
    100
}

/// Ten members of a native room.
fn join_native() -> Bench {
    let mut bench = Bench::with_members(10, |_| "/ws".to_owned());
    for member in 0..10 {
        let join = format!(r#"{{"type":"join","room_id":"lobby","user_id":"user {member}"}}"#);
        bench.feed(member, &masked(join.as_bytes()));
        bench.run();
    }
    bench
}

/// A hundred broadcasts that ask for an acknowledgement, one after the other.
fn publish_native(bench: &mut Bench) -> u64 {
    let message = br#"{"type":"broadcast","id":7,"room_id":"lobby","content":{"text":"hello"}}"#;
    let frame = masked(message);
    for _ in 0..100 {
        let before = bench.metrics.published.value();
        bench.feed(0, &frame);
        // To each of the ten, and the acknowledgement.
        assert_eq!(bench.run().sends, 11);
        assert_eq!(bench.metrics.published.value() - before, 1);
    }
    100
}
