//! `/echo` from a client's side: each message back to its sender, when it is switched on.

pub mod support;

use support::{Client, Frame, Server, Wire, close_frame, frame, rows, upgrade_request};
use tungstenite::Message;

#[test]
fn echo_is_off_by_default() {
    let server = Server::start(&["--shards", "1"]);
    let mut wire = Wire::connect(server.address());
    wire.send(&upgrade_request("/echo"));
    assert_eq!(wire.response().status, 404);
    wire.expect_eof();
}

#[test]
fn messages_come_back_as_they_were_sent() {
    let table = vec![
        ("text", Message::text("hello")),
        ("empty text", Message::text("")),
        ("unicode", Message::text("é 日本 👋 \u{0}")),
        ("binary", Message::binary(vec![0, 255, 128])),
        ("empty binary", Message::binary(Vec::new())),
        ("125", Message::binary(vec![1; 125])),
        ("126", Message::binary(vec![2; 126])),
        ("127", Message::binary(vec![3; 127])),
        ("65535", Message::binary(vec![4; 65_535])),
        ("65536", Message::binary(vec![5; 65_536])),
        ("1 MiB text", Message::text("é".repeat(1 << 19))),
        ("16 MiB", Message::binary((0..16_u32 << 20).map(|n| (n % 253) as u8).collect::<Vec<_>>())),
    ];
    let server = Server::start(&["--shards", "2", "--echo"]);
    rows(
        table,
        |row| row.0.to_owned(),
        |(_, message)| {
            let mut client = Client::connect(server.address(), "/echo");
            client.send(message.clone());
            assert!(client.receive() == *message, "the echo differs");
            client.send_text("still there");
            assert_eq!(client.receive_text(), "still there");
        },
    );
}

#[test]
fn many_messages_come_back_in_order() {
    let server = Server::start(&["--shards", "1", "--echo"]);
    let mut client = Client::connect(server.address(), "/echo");
    for turn in 0..200 {
        let texts: Vec<String> = (0..50).map(|number| format!("{turn}/{number}")).collect();
        for text in &texts {
            client.queue(Message::text(text.as_str()));
        }
        client.flush();
        for text in &texts {
            assert_eq!(client.receive_text(), *text);
        }
    }
}

#[test]
fn fragments_come_back_as_one_message_and_pings_are_answered_between() {
    let server = Server::start(&["--shards", "1", "--echo"]);
    let mut wire = Wire::open(server.address(), "/echo");
    wire.send(&frame(0x01, b"Hel"));
    wire.send(&frame(0x89, b"are you there"));
    let pong = Frame { fin: true, opcode: 10, payload: b"are you there".to_vec() };
    assert_eq!(wire.expect_frame(), pong, "the pong does not wait for the message to end");
    wire.send(&frame(0x8a, b"a pong nobody asked for"));
    wire.send(&frame(0x80, b"lo"));
    let message = Frame { fin: true, opcode: 1, payload: b"Hello".to_vec() };
    assert_eq!(wire.expect_frame(), message);
}

#[test]
fn a_message_of_many_fragments_comes_back() {
    const FRAGMENTS: usize = 65_536;
    let server = Server::start(&["--shards", "1", "--echo"]);
    let mut wire = Wire::open(server.address(), "/echo");
    let mut bytes = frame(0x02, &[0; 64]);
    for number in 1..FRAGMENTS {
        let first = if number + 1 == FRAGMENTS { 0x80 } else { 0x00 };
        bytes.extend_from_slice(&frame(first, &[(number % 256) as u8; 64]));
    }
    wire.send(&bytes);
    let message = wire.expect_frame();
    assert_eq!((message.fin, message.opcode), (true, 2));
    assert_eq!(message.payload.len(), FRAGMENTS * 64);
    let whole = message.payload.chunks(64).enumerate();
    let wrong =
        whole.filter(|(number, chunk)| chunk.iter().any(|byte| *byte != (number % 256) as u8));
    assert_eq!(wrong.count(), 0, "fragments with wrong bytes");
}

#[test]
fn frames_that_arrive_byte_by_byte_are_understood() {
    let server = Server::start(&["--shards", "1", "--echo"]);
    let mut wire = Wire::open(server.address(), "/echo");
    let long = "é".repeat(400);
    for payload in ["", "x", "hello", &long] {
        wire.send_pieces(&frame(0x81, payload.as_bytes()), 1);
        assert_eq!(wire.expect_frame().payload, payload.as_bytes());
    }
}

#[test]
fn a_flood_of_single_bytes_does_not_stop_a_shard() {
    // A shard that waits for its ring wrongly after one of very many tiny receives stands still,
    // with all of its connections. More clients than CPUs, so that they interrupt each other.
    let server = Server::start(&["--shards", "2", "--echo"]);
    let payload = "é".repeat(10_000);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut wire = Wire::open(server.address(), "/echo");
                wire.send_pieces(&frame(0x81, payload.as_bytes()), 1);
                assert!(wire.expect_frame().payload == payload.as_bytes(), "the echo differs");
            });
        }
    });
}

#[test]
fn a_close_is_answered_with_its_code() {
    let codes = vec![
        Some(1000),
        Some(1001),
        Some(1002),
        Some(1003),
        Some(1007),
        Some(1008),
        Some(1009),
        Some(1010),
        Some(1011),
        Some(1012),
        Some(1013),
        Some(1014),
        Some(3000),
        Some(3999),
        Some(4000),
        Some(4999),
        None,
    ];
    let server = Server::start(&["--shards", "1", "--echo"]);
    for path in ["/echo", "/ws", "/raw/r"] {
        rows(
            codes.clone(),
            |code| format!("{path} {code:?}"),
            |code| {
                let mut wire = Wire::open(server.address(), path);
                let bytes =
                    code.map_or_else(|| frame(0x88, b""), |code| close_frame(code, "good bye é"));
                wire.send(&bytes);
                assert_eq!(wire.expect_frame().close_code(), *code);
                wire.expect_eof();
            },
        );
    }
}

#[test]
fn nothing_behind_a_close_is_read() {
    let server = Server::start(&["--shards", "1", "--echo"]);
    let mut wire = Wire::open(server.address(), "/echo");
    let behind = frame(0x81, b"too late");
    wire.send(&[frame(0x81, b"in time"), close_frame(1000, ""), behind].concat());
    assert_eq!(wire.expect_frame().payload, b"in time");
    assert_eq!(wire.expect_frame().close_code(), Some(1000));
    wire.expect_eof();
}
