//! The queues between a publisher and shards that do not run: the tests play the shards.

use std::borrow::Cow;

use super::*;
use crate::slab::{Key, Slab};

/// As many publishes may be under way.
const LEN_MAX: usize = 4;

struct Bench {
    publisher: Publisher,
    inlets: Vec<Inlet>,
    sleepers: Sleepers,
    request: Key,
    now: Instant,
}

fn bench(shards: usize) -> Bench {
    let sleepers = Sleepers::new(shards);
    let homes = HomeHasher::with_key(shards, 7);
    let (publisher, inlets) = Publisher::new(&homes, &sleepers, Arc::default(), LEN_MAX);
    Bench { publisher, inlets, sleepers, request: Slab::new().insert(()), now: Instant::now() }
}

impl Bench {
    fn publish(&mut self, room_id: &str, item: u32) -> Result<(), Refused> {
        let content = Content::Text(Cow::from("text"));
        let publication = Publication { room_id: room_id.into(), content };
        let ticket = Ticket { request: self.request, item };
        self.publisher.publish(publication, ticket, self.now).map_err(|(refused, back)| {
            assert_eq!(back.room_id, room_id);
            refused
        })
    }

    fn answers(&mut self) -> Vec<(u32, Answer)> {
        let mut answers = Vec::new();
        self.publisher.take_answers(|ticket, answer| {
            assert_eq!(ticket.request, self.request);
            answers.push((ticket.item, answer));
        });
        answers
    }
}

#[test]
fn no_more_are_under_way_than_fit_into_both_rings() {
    let mut bench = bench(1);
    for round in 0..3 {
        for item in 0..LEN_MAX as u32 {
            assert_eq!(bench.publish("room", item), Ok(()), "round {round}");
        }
        assert_eq!(bench.publish("room", 99), Err(Refused::Busy));
        // The shard has taken them in and answered, but the answers still need their places.
        for offset in 1..=LEN_MAX as u64 {
            let (call, taken) = bench.inlets[0].take().expect("published");
            assert_eq!(taken.room, RoomName::new(NameSpace::Raw, "room"));
            bench.inlets[0].answer(call, Some(offset));
        }
        assert_eq!(bench.publish("room", 99), Err(Refused::Busy));
        let expected: Vec<_> = (0..LEN_MAX as u32).map(|n| (n, Ok(Some(n as u64 + 1)))).collect();
        assert_eq!(bench.answers(), expected);
        assert_eq!(bench.answers(), []);
    }
}

#[test]
fn a_shard_is_woken_once_and_only_if_it_sleeps() {
    let mut bench = bench(3);
    let woken = |bench: &mut Bench| {
        let mut woken = Vec::new();
        bench.publisher.wake_shards(|shard| woken.push(shard));
        woken
    };
    for item in 0..3 {
        bench.publish("room", item).expect("room for it");
    }
    assert_eq!(woken(&mut bench), [], "it is awake and will look");
    let home = bench.inlets.iter().position(Inlet::has_input).expect("it has a home");
    (0..3).map(ShardId::from).for_each(|shard| bench.sleepers.fall_asleep(shard));
    bench.publish("room", 3).expect("room for it");
    assert_eq!(woken(&mut bench), [ShardId::from(home)]);
    assert_eq!(woken(&mut bench), [], "nothing new");
}

#[test]
fn the_publisher_sleeps_only_when_it_has_all_answers() {
    let mut bench = bench(1);
    bench.publish("room", 0).expect("room for it");
    assert!(bench.publisher.fall_asleep());
    assert!(bench.publisher.own.must_wake(), "a shard that answers now must wake it");
    let (call, _) = bench.inlets[0].take().expect("published");
    bench.inlets[0].answer(call, None);
    assert!(!bench.publisher.fall_asleep());
    assert!(!bench.publisher.own.must_wake(), "it is awake");
    assert_eq!(bench.answers(), [(0, Ok(None))]);
}

#[test]
fn none_are_taken_while_one_has_waited_too_long() {
    let mut bench = bench(1);
    let start = bench.now;
    let answer = |bench: &mut Bench| {
        let (call, _) = bench.inlets[0].take().expect("published");
        bench.inlets[0].answer(call, None);
    };
    bench.publish("room", 0).expect("room for it");
    bench.now = start + PATIENCE / 2;
    bench.publish("room", 1).expect("room for it");
    bench.now = start + PATIENCE;
    assert_eq!(bench.publish("room", 2), Err(Refused::Behind));
    // What is answered waits no more, also when nobody has looked at the answer.
    answer(&mut bench);
    bench.publish("room", 2).expect("the first has its answer");
    assert_eq!(bench.answers().len(), 1);
    bench.publish("room", 3).expect("the second has not waited for so long");
    bench.now = start + PATIENCE * 3 / 2;
    assert_eq!(bench.publish("room", 4), Err(Refused::Behind), "now it has");
    for _ in 0..3 {
        answer(&mut bench);
    }
    assert_eq!(bench.answers().len(), 3);
    bench.now = start + PATIENCE * 9;
    bench.publish("room", 4).expect("nothing waits");
    bench.now += PATIENCE;
    assert_eq!(bench.publish("room", 5), Err(Refused::Behind));
    // Ended is ended.
    bench.inlets.clear();
    assert_eq!(bench.publish("room", 5), Err(Refused::Ended));
}

#[test]
fn a_shard_that_ends_has_answered_or_never_will() {
    let mut bench = bench(1);
    for item in 0..3 {
        bench.publish("room", item).expect("room for it");
    }
    let (first, second) = (bench.inlets[0].take(), bench.inlets[0].take());
    assert!(first.is_some());
    bench.inlets[0].answer(second.expect("published").0, Some(2));
    bench.inlets.clear();
    let expected = [(1, Ok(Some(2))), (0, Err(Refused::Ended)), (2, Err(Refused::Ended))];
    assert_eq!(bench.answers(), expected);
    assert_eq!(bench.publish("room", 3), Err(Refused::Ended));
}
