//! `/raw/ROOM` from a client's side: messages delivered verbatim to all members.

pub mod support;

use std::sync::Barrier;

use support::{Client, Frame, Server, Wire, frame, rows, upgrade_request};
use tungstenite::Message;

/// Opens `count` members of `/raw/ROOM`.
fn members(server: &Server, room: &str, count: usize) -> Vec<Client> {
    (0..count).map(|_| Client::connect(server.address(), &format!("/raw/{room}"))).collect()
}

#[test]
fn text_and_binary_reach_all_members_verbatim() {
    let server = Server::start(&["--shards", "4"]);
    let mut members = members(&server, "all", 32);
    let messages = [
        Message::text("hello"),
        Message::binary(vec![0, 255, 128, 1]),
        Message::text(""),
        Message::binary(Vec::new()),
        Message::text("é 日本 👋 \u{0} {\"type\":\"join\"}"),
        Message::text("x".repeat(125)),
        Message::text("x".repeat(126)),
        Message::binary(vec![7; 65_535]),
        Message::binary(vec![8; 65_536]),
    ];
    for (turn, message) in messages.iter().enumerate() {
        members[turn * 3].send(message.clone());
        for (number, member) in members.iter_mut().enumerate() {
            let received = member.receive();
            assert!(received == *message, "message {turn} as member {number} got it");
        }
    }
}

#[test]
fn members_of_all_shards_hear_each_other() {
    let server = Server::start(&["--shards", "4"]);
    let mut members = members(&server, "all", 40);
    // Who publishes sits on any shard, and the room has its home on one of them: every pair occurs.
    for publisher in 0..members.len() {
        let text = format!("from {publisher}");
        members[publisher].send_text(&text);
        for (number, member) in members.iter_mut().enumerate() {
            assert_eq!(member.receive_text(), text, "member {number}");
        }
    }
}

#[test]
fn rooms_are_separate_and_those_of_ws_too() {
    let server = Server::start(&["--shards", "4"]);
    let (mut a, mut b) = (members(&server, "a", 6), members(&server, "b", 6));
    let mut native = Client::join(server.address(), "a", "native");
    let reply = native.ask(r#"{"type":"broadcast","room_id":"a","content":"native"}"#);
    assert_eq!(reply.kind, "broadcast");
    a[0].send_text("for a");
    b[0].send_text("for b");
    for (member, expected) in
        a.iter_mut().map(|a| (a, "for a")).chain(b.iter_mut().map(|b| (b, "for b")))
    {
        assert_eq!(member.receive_text(), expected);
    }
    native.expect_silence();
    // The second message of each room comes next: nothing else was under way in between.
    a[5].send_text("again a");
    b[5].send_text("again b");
    for (member, expected) in
        a.iter_mut().map(|a| (a, "again a")).chain(b.iter_mut().map(|b| (b, "again b")))
    {
        assert_eq!(member.receive_text(), expected);
    }
}

#[test]
fn names_are_percent_decoded() {
    let server = Server::start(&["--shards", "4"]);
    let long = "r".repeat(128);
    let table = vec![
        ("plain", "plain"),
        ("all", "%61%6c%6C"),
        ("caf%C3%A9", "caf%c3%a9"),
        ("a%20b", "%61%20b"),
        ("a%2Fb", "a%2fb"),
        ("100%25", "1%300%25"),
        ("%F0%9F%91%8B", "%f0%9f%91%8b"),
        ("a+b", "a%2Bb"),
        ("room", "room?token=1&x=%zz"),
        ("~!$&'()*,;=:@-._", "%7E!$&'()*,;=:@-._"),
        (&long, &long),
    ];
    rows(
        table,
        |row| format!("{row:?}"),
        |(one, other)| {
            let mut one = Client::connect(server.address(), &format!("/raw/{one}"));
            // The query is not part of the name, and not checked.
            let mut other = Wire::open(server.address(), &format!("/raw/{other}"));
            one.send_text("same room");
            assert_eq!(one.receive_text(), "same room");
            assert_eq!(other.expect_frame().payload, b"same room");
        },
    );
}

#[test]
fn different_names_are_different_rooms() {
    let server = Server::start(&["--shards", "2"]);
    let names =
        ["a", "A", "a%20", "a%2Fb", "a+b", "a%20b", "caf%C3%A9", "cafe", "%2E", "%E2%80%A8"];
    let mut clients: Vec<Client> = names
        .iter()
        .map(|name| Client::connect(server.address(), &format!("/raw/{name}")))
        .collect();
    for (client, name) in clients.iter_mut().zip(names) {
        client.send_text(name);
    }
    for (client, name) in clients.iter_mut().zip(names) {
        assert_eq!(client.receive_text(), name);
        client.send_text("second");
        assert_eq!(client.receive_text(), "second", "{name} hears itself alone");
    }
}

#[test]
fn a_message_of_one_mebibyte_is_delivered_whole() {
    let server = Server::start(&["--shards", "4"]);
    let mut members = members(&server, "big", 8);
    let payload: Vec<u8> = (0..1 << 20).map(|index: u32| (index % 251) as u8).collect();
    for publisher in [0, 5] {
        members[publisher].send_binary(&payload);
        for (number, member) in members.iter_mut().enumerate() {
            match member.receive() {
                Message::Binary(received) => assert!(received == payload, "member {number}"),
                other => panic!("member {number} got {} bytes of another kind", other.len()),
            }
        }
    }
}

#[test]
fn fragments_are_delivered_as_one_message() {
    let table = vec![
        ("two", vec![frame(0x01, b"Hel"), frame(0x80, b"lo")], 1, b"Hello".to_vec()),
        ("binary", vec![frame(0x02, &[1]), frame(0x00, &[2]), frame(0x80, &[3])], 2, vec![1, 2, 3]),
        (
            "empty ends",
            vec![frame(0x01, b""), frame(0x00, b"x"), frame(0x80, b"")],
            1,
            b"x".to_vec(),
        ),
        ("all empty", vec![frame(0x01, b""), frame(0x80, b"")], 1, Vec::new()),
        (
            "ping between",
            vec![frame(0x01, b"a"), frame(0x89, b"p"), frame(0x80, b"b")],
            1,
            b"ab".to_vec(),
        ),
        (
            "split inside a character",
            vec![frame(0x01, &[0xf0, 0x9f]), frame(0x00, &[0x91]), frame(0x80, &[0x8b])],
            1,
            "👋".as_bytes().to_vec(),
        ),
        (
            "many",
            [frame(0x01, b"")]
                .into_iter()
                .chain((0..1000).map(|_| frame(0x00, b"xy")))
                .chain([frame(0x80, b"z")])
                .collect(),
            1,
            [b"xy".repeat(1000), b"z".to_vec()].concat(),
        ),
    ];
    let server = Server::start(&["--shards", "2"]);
    rows(
        table,
        |row| row.0.to_owned(),
        |(_, fragments, opcode, expected)| {
            let mut reader = Wire::open(server.address(), "/raw/fragments");
            let mut sender = Wire::open(server.address(), "/raw/fragments");
            for fragment in fragments {
                sender.send(fragment);
            }
            let expected = Frame { fin: true, opcode: *opcode, payload: expected.clone() };
            assert_eq!(reader.expect_frame(), expected);
            let received = std::iter::from_fn(|| sender.frame()).find(|frame| frame.opcode != 10);
            assert_eq!(received, Some(expected));
        },
    );
}

#[test]
fn a_member_hears_messages_from_its_answer_on() {
    let server = Server::start(&["--shards", "4"]);
    // The 101 is sent once the room knows the member: a message published after it must come.
    let mut publisher = Client::connect(server.address(), "/raw/live");
    for turn in 0..100 {
        let mut joined = Wire::open(server.address(), "/raw/live");
        let text = format!("turn {turn}");
        publisher.send_text(&text);
        assert_eq!(joined.expect_frame().payload, text.as_bytes());
        assert_eq!(publisher.receive_text(), text);
    }
}

#[test]
fn members_that_come_and_go_do_not_disturb_the_others() {
    const MESSAGES: u32 = 500;
    let server = Server::start(&["--shards", "4"]);
    let address = server.address();
    let mut stays = Client::connect(address, "/raw/churn");
    let started = Barrier::new(3);
    std::thread::scope(|scope| {
        for style in 0..2 {
            let started = &started;
            scope.spawn(move || {
                started.wait();
                for _ in 0..100 {
                    let client = Client::connect(address, "/raw/churn");
                    if style == 0 { client.close() } else { drop(client) }
                }
            });
        }
        started.wait();
        for number in 0..MESSAGES {
            stays.send_text(&number.to_string());
            assert_eq!(stays.receive_text(), number.to_string());
        }
    });
}

#[test]
fn frames_behind_the_request_are_delivered_too() {
    let server = Server::start(&["--shards", "4"]);
    let mut reader = Wire::open(server.address(), "/raw/early");
    let mut sender = Wire::connect(server.address());
    let early: Vec<u8> =
        (0..2000).flat_map(|n: u32| frame(0x81, n.to_string().as_bytes())).collect();
    sender.send(&[upgrade_request("/raw/early"), early].concat());
    assert_eq!(sender.response().status, 101);
    for wire in [&mut reader, &mut sender] {
        for number in 0..2000 {
            assert_eq!(wire.expect_frame().payload, number.to_string().as_bytes());
        }
    }
}
