//! One total order per room: 8 publishers at once, members on 4 shards, 100,000 messages.
//!
//! Every member writes down what it received. All members of a room must have written the same
//! list, each publisher's own numbers must appear in it in order and completely, and in the native
//! protocol the offsets must count without a gap. Publishers are closed loops (they wait for their
//! own messages to come back), so nobody becomes a slow consumer by the test's own doing.

pub mod support;

use std::{net::SocketAddr, sync::Barrier};

use support::{Broadcast, Client, Server};
use tungstenite::Message;

const PUBLISHERS: u32 = 8;
const RECEIVERS: u32 = 4;
const ROOM_MESSAGES: u32 = 50_000;
const EACH: u32 = ROOM_MESSAGES / PUBLISHERS;
/// Messages a publisher has outstanding.
const WINDOW: u32 = 50;

/// Publisher and sequence number in one value.
fn stamp(publisher: u32, sequence: u32) -> u32 {
    publisher * EACH + sequence
}

/// What both dialects need: publish one number, read the next one.
trait Member: Send {
    fn open(address: SocketAddr) -> Self;
    fn publish(&mut self, number: u32);
    fn flush(&mut self);
    /// The number of the next message, `received` having come before it.
    fn next(&mut self, received: usize) -> u32;
}

/// A member of one native room; checks the offsets.
struct Native(Client);

impl Member for Native {
    fn open(address: SocketAddr) -> Native {
        Native(Client::join(address, "order", "member"))
    }

    fn publish(&mut self, number: u32) {
        self.0.queue(Message::text(format!(
            r#"{{"type":"broadcast","room_id":"order","content":{number}}}"#
        )));
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn next(&mut self, received: usize) -> u32 {
        let Message::Text(text) = self.0.receive() else { panic!("not text") };
        let broadcast: Broadcast<'_> = serde_json::from_str(text.as_str())
            .unwrap_or_else(|error| panic!("not a broadcast: {text}: {error}"));
        assert_eq!(broadcast.room_id, "order");
        assert_eq!(broadcast.offset, received as u64 + 1, "offsets count without a gap");
        broadcast.content
    }
}

/// A member of one raw room.
struct Raw(Client);

impl Member for Raw {
    fn open(address: SocketAddr) -> Raw {
        Raw(Client::connect(address, "/raw/order"))
    }

    fn publish(&mut self, number: u32) {
        self.0.queue(Message::binary(number.to_be_bytes().to_vec()));
    }

    fn flush(&mut self) {
        self.0.flush();
    }

    fn next(&mut self, _received: usize) -> u32 {
        let Message::Binary(payload) = self.0.receive() else { panic!("not binary") };
        u32::from_be_bytes(payload[..].try_into().expect("four bytes, as published"))
    }
}

/// Publishes this publisher's share and receives everything; gives the list of numbers received.
fn publish_and_receive<M: Member>(member: &mut M, publisher: u32) -> Vec<u32> {
    let mut received = Vec::with_capacity(ROOM_MESSAGES as usize);
    let (mut sent, mut own) = (0, 0);
    while received.len() < ROOM_MESSAGES as usize {
        // Refill when half of the window has come back, so that sends carry several messages.
        if sent < EACH && sent - own <= WINDOW / 2 {
            while sent < EACH && sent - own < WINDOW {
                member.publish(stamp(publisher, sent));
                sent += 1;
            }
            member.flush();
        }
        let number = member.next(received.len());
        own += u32::from(number / EACH == publisher);
        received.push(number);
    }
    received
}

/// Runs the whole scene with one dialect and gives each member's list.
fn run<M: Member>(address: SocketAddr) -> Vec<Vec<u32>> {
    let all_joined = Barrier::new((PUBLISHERS + RECEIVERS) as usize);
    std::thread::scope(|scope| {
        let members: Vec<_> = (0..PUBLISHERS + RECEIVERS)
            .map(|number| {
                let all_joined = &all_joined;
                let body = move || {
                    let mut member = M::open(address);
                    all_joined.wait();
                    if number < PUBLISHERS {
                        publish_and_receive(&mut member, number)
                    } else {
                        (0..ROOM_MESSAGES as usize).map(|count| member.next(count)).collect()
                    }
                };
                scope.spawn(body)
            })
            .collect();
        members
            .into_iter()
            .map(|member| member.join().expect("the member's own message says what went wrong"))
            .collect()
    })
}

/// Checks that all lists are one list, complete and in each publisher's order.
fn check_order(lists: &[Vec<u32>]) {
    for (number, list) in lists.iter().enumerate() {
        let differs = list.iter().zip(&lists[0]).position(|(one, other)| one != other);
        assert_eq!(differs, None, "member {number} and member 0 disagree from that message on");
        assert_eq!(list.len(), ROOM_MESSAGES as usize, "member {number}");
    }
    let mut next = vec![0; PUBLISHERS as usize];
    for (position, number) in lists[0].iter().enumerate() {
        let (publisher, sequence) = (number / EACH, number % EACH);
        let expected = &mut next[publisher as usize];
        assert_eq!(sequence, *expected, "publisher {publisher} at position {position}");
        *expected += 1;
    }
    assert!(next.iter().all(|count| *count == EACH), "messages per publisher: {next:?}");
}

#[test]
fn native_and_raw_rooms_have_one_order_under_concurrent_publishers() {
    let server = Server::start(&["--shards", "4"]);
    check_order(&run::<Native>(server.address()));
    check_order(&run::<Raw>(server.address()));
}

#[test]
fn rooms_of_one_connection_are_each_in_order() {
    const ROOMS: u64 = 3;
    const MESSAGES: u64 = 2_000;
    let server = Server::start(&["--shards", "4"]);
    let address = server.address();
    let open = || {
        let mut client = Client::connect(address, "/ws");
        (0..ROOMS).for_each(|room| {
            client.join_room(&format!("room-{room}"), "member");
        });
        client
    };
    let mut members: Vec<Client> = (0..4).map(|_| open()).collect();
    std::thread::scope(|scope| {
        for (number, client) in members.iter_mut().enumerate() {
            scope.spawn(move || {
                // The first two publish, in all rooms in turn; everybody checks what comes.
                let publishes = if number < 2 { MESSAGES / 2 } else { 0 };
                let mut next = [1; ROOMS as usize];
                let mut received = 0;
                for turn in 0..publishes {
                    for room in 0..ROOMS {
                        client.queue(Message::text(format!(
                            r#"{{"type":"broadcast","room_id":"room-{room}","content":{turn}}}"#
                        )));
                    }
                    client.flush();
                    for _ in 0..ROOMS {
                        take_one(client, &mut next);
                        received += 1;
                    }
                }
                while received < ROOMS * MESSAGES {
                    take_one(client, &mut next);
                    received += 1;
                }
                assert_eq!(next, [MESSAGES + 1; ROOMS as usize], "member {number}");
            });
        }
    });
}

/// Receives one broadcast and checks that it is the next of its room.
fn take_one(client: &mut Client, next: &mut [u64]) {
    let text = client.receive_text();
    let broadcast: Broadcast<'_> = serde_json::from_str(&text).expect("a broadcast");
    let room: usize = broadcast.room_id["room-".len()..].parse().expect("room-N");
    assert_eq!(broadcast.offset, next[room], "{text}");
    next[room] += 1;
}
