//! Heap allocations of a real shard: none per handshake, per idle connection or per delivery.
//!
//! Only the shard's turns are measured, not what the tests themselves prepare. Counts are exact, so
//! the tests say what each allocation that remains is for. The sizes of what a member keeps are in
//! the table at the head of the server's `shard::connection`.

use std::ops::Range;

use allocation_counter::{AllocationInfo, measure};

use crate::bench::{Bench, masked};

/// As many connections as make up whole chunks: slots of connections and places of members come in
/// chunks of 256.
const STORM: usize = 4 * CHUNK;
const CHUNK: usize = 256;

/// Opens a storm of connections, each at its path; also returns their sockets.
fn open(bench: &mut Bench, path: impl Fn(usize) -> String) -> (AllocationInfo, Range<usize>) {
    let first = bench.connections();
    (0..STORM).for_each(|number| bench.open(&path(number)));
    let before = bench.metrics.opened.value();
    let allocations = run(bench);
    assert_eq!(bench.metrics.opened.value() - before, STORM as u64);
    (allocations, first..bench.connections())
}

fn hang_up(bench: &mut Bench, sockets: Range<usize>) {
    let before = bench.metrics.connections.value();
    let count = sockets.len() as u64;
    sockets.for_each(|socket| bench.hang_up(socket));
    bench.run();
    assert_eq!(before - bench.metrics.connections.value(), count);
}

fn run(bench: &mut Bench) -> AllocationInfo {
    measure(|| {
        bench.run();
    })
}

#[test]
fn a_second_storm_opens_without_an_allocation() {
    // Small rooms, which the first one leaves with room for the second.
    let path = |number: usize| format!("/raw/room-{}", number % 16);
    let mut bench = Bench::with_members(16, path);
    let (first, sockets) = open(&mut bench, path);
    assert!(first.count_total > 0, "the first one finds nothing, or nothing is counted");
    hang_up(&mut bench, sockets);
    let (second, _) = open(&mut bench, path);
    assert_eq!(second.count_total, 0, "{second:?}");
}

#[test]
fn a_storm_on_one_room_takes_its_chunks_of_members_and_no_more() {
    let path = |_| "/raw/room".to_owned();
    let mut bench = Bench::with_members(CHUNK, path);
    let (_, sockets) = open(&mut bench, path);
    hang_up(&mut bench, sockets);
    let (second, _) = open(&mut bench, path);
    // The room has given back those of the first storm: they are as large as it was.
    assert_eq!(second.count_total, (STORM / CHUNK) as u64, "{second:?}");
}

#[test]
fn idle_members_hold_the_bytes_of_the_table_in_chunks() {
    let path = |_| "/raw/room".to_owned();
    let mut bench = Bench::new();
    open(&mut bench, path);
    let (held, _) = open(&mut bench, path);
    // A chunk of connections and one of members for each 256 of them.
    assert_eq!(held.count_current, 2 * (STORM / CHUNK) as i64, "{held:?}");
    assert_eq!(per_connection(held), 80 + 16, "{held:?}");
    let idle = run(&mut bench);
    assert_eq!(idle.count_total, 0, "{idle:?}");
}

#[test]
fn idle_native_members_hold_the_bytes_of_the_table() {
    let mut bench = Bench::new();
    join_native(&mut bench);
    let (opened, joined) = join_native(&mut bench);
    assert_eq!(per_connection(opened), 80, "{opened:?}");
    assert_eq!(per_connection(joined), 16 + 40 + 32 + (16 + 8), "{joined:?}");
    // Its rooms and name, the list of its rooms, its name; and the chunks of members.
    assert_eq!(joined.count_current, (3 * STORM + STORM / CHUNK) as i64, "{joined:?}");
}

/// A storm of native connections opens, and all of them join one room.
fn join_native(bench: &mut Bench) -> (AllocationInfo, AllocationInfo) {
    let join = masked(br#"{"type":"join","room_id":"lobby","user_id":"8 bytes!"}"#);
    let (opened, sockets) = open(bench, |_| "/ws".to_owned());
    sockets.for_each(|socket| bench.feed(socket, &join));
    (opened, run(bench))
}

/// The tables of chunks grow, too, by less than a byte per connection.
fn per_connection(held: AllocationInfo) -> i64 {
    held.bytes_current / STORM as i64
}

#[test]
fn deliveries_allocate_nothing() {
    let mut bench = Bench::with_members(1000, |_| "/raw/room".to_owned());
    let frame = masked(&[b'x'; 48]);
    let mut publish = || {
        bench.feed(0, &frame);
        measure(|| assert_eq!(bench.run().sends, 1000)).count_total
    };
    // Until the segments that frames are written to have come round.
    let first: u64 = (0..10_000).map(|_| publish()).sum();
    assert!(first > 0, "the first ones find nothing, or nothing is counted");
    assert_eq!((0..1000).map(|_| publish()).sum::<u64>(), 0);
}
