//! Violations of RFC 6455 on an open connection: each has its close code, and the code arrives.
//!
//! Each row is sent to `/echo`, `/ws` and `/raw/ROOM`, whole, byte by byte, behind the upgrade
//! request, and with a load of further bytes behind it. Whatever happens, the client reads the
//! close frame and then the end of the stream, never a reset, and a witness on another connection
//! of the same server keeps working.

pub mod support;

use std::{io::Read, net::TcpStream, time::Duration};

use socket2::{Domain, Socket, Type};
use support::{
    Client, PATIENCE, Server, Wire, close_frame, frame, masked, row, rows, upgrade_request,
    wait_until,
};
use tungstenite::Message;

const PROTOCOL_ERROR: u16 = 1002;
const INVALID_PAYLOAD: u16 = 1007;
const TOO_BIG: u16 = 1009;

/// What the client sends, and the close code it must get for it.
struct Violation {
    name: String,
    bytes: Vec<u8>,
    code: u16,
}

fn violation(name: impl Into<String>, frames: &[Vec<u8>], code: u16) -> Violation {
    Violation { name: name.into(), bytes: frames.concat(), code }
}

/// A header with an explicit length field, then a masked payload.
fn with_length(first: u8, length: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, 0x80 | length[0]];
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&masked(payload));
    bytes
}

fn framing() -> Vec<Violation> {
    let two = |len: u16| [&[126][..], &len.to_be_bytes()].concat();
    let eight = |len: u64| [&[127][..], &len.to_be_bytes()].concat();
    let mut table = vec![
        violation("unmasked text", &[vec![0x81, 2, b'h', b'i']], PROTOCOL_ERROR),
        violation("unmasked empty text", &[vec![0x81, 0]], PROTOCOL_ERROR),
        violation("unmasked ping", &[vec![0x89, 0]], PROTOCOL_ERROR),
        violation("unmasked close", &[vec![0x88, 2, 3, 232]], PROTOCOL_ERROR),
        violation(
            "unmasked continuation",
            &[frame(0x01, b"a"), vec![0x80, 1, b'b']],
            PROTOCOL_ERROR,
        ),
        violation("RSV1", &[frame(0xc1, b"x")], PROTOCOL_ERROR),
        violation("RSV2", &[frame(0xa1, b"x")], PROTOCOL_ERROR),
        violation("RSV3", &[frame(0x91, b"x")], PROTOCOL_ERROR),
        violation("RSV on a ping", &[frame(0xc9, b"x")], PROTOCOL_ERROR),
        violation("RSV on a close", &[frame(0xf8, &[3, 232])], PROTOCOL_ERROR),
        violation("RSV on a continuation", &[frame(0x01, b"a"), frame(0xc0, b"b")], PROTOCOL_ERROR),
        violation("a fragmented ping", &[frame(0x09, b"x")], PROTOCOL_ERROR),
        violation("a fragmented pong", &[frame(0x0a, b"x")], PROTOCOL_ERROR),
        violation("a fragmented close", &[frame(0x08, &[3, 232])], PROTOCOL_ERROR),
        violation("a ping of 126", &[frame(0x89, &[0; 126])], PROTOCOL_ERROR),
        violation("a pong of 126", &[frame(0x8a, &[0; 126])], PROTOCOL_ERROR),
        violation("a close of 126", &[frame(0x88, &[3, 232].repeat(63))], PROTOCOL_ERROR),
        violation("a ping of 65536", &[frame(0x89, &[0; 65_536])], PROTOCOL_ERROR),
        violation("a ping of 2 in 16 bits", &[with_length(0x89, &two(2), b"hi")], PROTOCOL_ERROR),
        violation("0 in 16 bits", &[with_length(0x81, &two(0), b"")], PROTOCOL_ERROR),
        violation("125 in 16 bits", &[with_length(0x81, &two(125), &[b'x'; 125])], PROTOCOL_ERROR),
        violation("0 in 64 bits", &[with_length(0x82, &eight(0), b"")], PROTOCOL_ERROR),
        violation("125 in 64 bits", &[with_length(0x82, &eight(125), &[1; 125])], PROTOCOL_ERROR),
        violation("126 in 64 bits", &[with_length(0x82, &eight(126), &[1; 126])], PROTOCOL_ERROR),
        violation(
            "65535 in 64 bits",
            &[with_length(0x82, &eight(65_535), &[1; 65_535])],
            PROTOCOL_ERROR,
        ),
        violation("the top bit of 64", &[with_length(0x82, &eight(1 << 63), b"x")], PROTOCOL_ERROR),
        violation("all 64 bits", &[with_length(0x82, &eight(u64::MAX), b"x")], PROTOCOL_ERROR),
        violation("a continuation of nothing", &[frame(0x80, b"x")], PROTOCOL_ERROR),
        violation("an open continuation of nothing", &[frame(0x00, b"x")], PROTOCOL_ERROR),
        violation(
            "a continuation after the end",
            &[frame(0x02, b"a"), frame(0x80, b"b"), frame(0x80, b"c")],
            PROTOCOL_ERROR,
        ),
        violation("text within fragments", &[frame(0x01, b"a"), frame(0x81, b"b")], PROTOCOL_ERROR),
        violation(
            "binary within fragments",
            &[frame(0x01, b"a"), frame(0x02, b"b")],
            PROTOCOL_ERROR,
        ),
        violation(
            "text within binary fragments, a ping between",
            &[frame(0x02, b"a"), frame(0x89, b""), frame(0x81, b"b")],
            PROTOCOL_ERROR,
        ),
    ];
    for opcode in [3_u8, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        table.push(violation(
            format!("opcode {opcode}"),
            &[frame(0x80 | opcode, b"")],
            PROTOCOL_ERROR,
        ));
        table.push(violation(
            format!("opcode {opcode}, more to come"),
            &[frame(opcode, b"x")],
            PROTOCOL_ERROR,
        ));
    }
    table
}

fn closing() -> Vec<Violation> {
    let mut table = vec![
        violation("a close of one byte", &[frame(0x88, &[3])], PROTOCOL_ERROR),
        violation("bad UTF-8 in the reason", &[frame(0x88, &[3, 232, 0xff])], INVALID_PAYLOAD),
        violation(
            "half a character in the reason",
            &[frame(0x88, &[3, 232, b'a', 0xc3])],
            INVALID_PAYLOAD,
        ),
    ];
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65_535] {
        table.push(violation(
            format!("close code {code}"),
            &[close_frame(code, "")],
            PROTOCOL_ERROR,
        ));
    }
    table
}

fn utf8() -> Vec<Violation> {
    let bad: [(&str, &[u8]); 12] = [
        ("a stray continuation", &[0x80]),
        ("0xff", &[b'a', 0xff]),
        ("overlong slash", &[0xc0, 0xaf]),
        ("overlong, three bytes", &[0xe0, 0x80, 0xaf]),
        ("overlong, four bytes", &[0xf0, 0x80, 0x80, 0xaf]),
        ("a surrogate", &[0xed, 0xa0, 0x80]),
        ("beyond U+10FFFF", &[0xf4, 0x90, 0x80, 0x80]),
        ("five bytes", &[0xf8, 0x88, 0x80, 0x80, 0x80]),
        ("a character cut by another", &[0xc3, b'x']),
        ("Latin-1", b"J\xf6rg"),
        ("half a character", &[b'x', 0xc3]),
        ("three quarters of a character", &[0xf0, 0x9f, 0x91]),
    ];
    let mut table = Vec::new();
    for (name, bytes) in bad {
        table.push(violation(format!("text: {name}"), &[frame(0x81, bytes)], INVALID_PAYLOAD));
        let long = [vec![b'x'; 1000], bytes.to_vec()].concat();
        table.push(violation(
            format!("text: {name} after 1000"),
            &[frame(0x81, &long)],
            INVALID_PAYLOAD,
        ));
        let split: Vec<Vec<u8>> = [frame(0x01, b"")]
            .into_iter()
            .chain(bytes.iter().map(|byte| frame(0x00, &[*byte])))
            .chain([frame(0x80, b"")])
            .collect();
        table.push(violation(format!("fragments: {name}"), &split, INVALID_PAYLOAD));
    }
    // It must not wait for the end of the message, which here never comes.
    let early = frame(0x01, &[b'x', 0xf4, 0x90]);
    table.push(violation("in an unfinished message", &[early], INVALID_PAYLOAD));
    let mut unfinished = frame(0x81, &[&[b'x', 0xff][..], &[b'y'; 500]].concat());
    unfinished.truncate(100);
    table.push(violation("in an unfinished frame", &[unfinished], INVALID_PAYLOAD));
    table
}

/// Rows for a server whose messages may have 4096 bytes.
fn sizes() -> Vec<Violation> {
    let declared = |len: u64| {
        let mut header = frame(0x82, &vec![0; 70_000]);
        header.truncate(14);
        header[2..10].copy_from_slice(&len.to_be_bytes());
        header
    };
    vec![
        violation("4097 in one frame", &[frame(0x82, &[0; 4097])], TOO_BIG),
        violation("4097 of text", &[frame(0x81, &[b'x'; 4097])], TOO_BIG),
        violation("4097 in two fragments", &[frame(0x02, &[0; 4096]), frame(0x80, &[0])], TOO_BIG),
        violation("4097 with more to come", &[frame(0x02, &[0; 4096]), frame(0x00, &[0])], TOO_BIG),
        violation("a declaration of 64 GiB", &[declared(1 << 36)], TOO_BIG),
        violation("a declaration of all but the top bit", &[declared(u64::MAX >> 1)], TOO_BIG),
        violation(
            "4096 fragments of 2 bytes",
            &[vec![frame(0x02, &[0, 0])], vec![frame(0x00, &[0, 0]); 4096]].concat(),
            TOO_BIG,
        ),
    ]
}

/// Sends the row in one way after another; each time the code and then the end must arrive.
fn check(server: &Server, path: &str, violation: &Violation) {
    let expect = |wire: &mut Wire| {
        assert_eq!(wire.expect_close(), Some(violation.code));
        // Answers as a client would; the server may have hung up by then.
        let _ = wire.try_send(&close_frame(violation.code, ""));
        wire.expect_eof();
    };
    row(&format!("{path} whole"), || {
        let mut wire = Wire::open(server.address(), path);
        wire.send(&violation.bytes);
        expect(&mut wire);
    });
    row(&format!("{path} in pieces"), || {
        let mut wire = Wire::open(server.address(), path);
        let piece = if violation.bytes.len() < 2000 { 1 } else { 1001 };
        wire.send_pieces(&violation.bytes, piece);
        expect(&mut wire);
    });
    row(&format!("{path} behind the request"), || {
        let mut wire = Wire::connect(server.address());
        wire.send(&[upgrade_request(path), violation.bytes.clone()].concat());
        assert_eq!(wire.response().status, 101);
        expect(&mut wire);
    });
    row(&format!("{path} with a load behind it"), || {
        let mut wire = Wire::open(server.address(), path);
        wire.send(&violation.bytes);
        // Unread input at the moment of closing turns into a reset that eats the close frame.
        wire.send_pieces(&vec![0x55; 128 * 1024], 16 * 1024);
        expect(&mut wire);
    });
}

/// Runs a table against the three endpoints, with a witness that must not notice.
fn check_all(server: &Server, table: Vec<Violation>) {
    let mut witness = Client::connect(server.address(), "/raw/witness");
    let mut native = Client::join(server.address(), "witness", "witness");
    rows(
        table,
        |violation| violation.name.clone(),
        |violation| {
            for path in ["/echo", "/ws", "/raw/room"] {
                check(server, path, violation);
            }
        },
    );
    witness.send_text("all the same");
    assert_eq!(witness.receive_text(), "all the same");
    let reply = native.ask(r#"{"type":"broadcast","room_id":"witness","content":1}"#);
    assert_eq!(reply.offset, Some(1), "{reply:?}");
}

#[test]
fn bad_frames_are_protocol_errors() {
    check_all(&Server::start(&["--shards", "2", "--echo"]), framing());
}

#[test]
fn bad_closes_have_their_code() {
    check_all(&Server::start(&["--shards", "2", "--echo"]), closing());
}

#[test]
fn bad_text_is_refused_at_the_first_bad_byte() {
    check_all(&Server::start(&["--shards", "2", "--echo"]), utf8());
}

#[test]
fn messages_over_the_limit_are_too_big() {
    let server = Server::start(&[
        "--shards",
        "2",
        "--echo",
        "--ws-message-bytes-max",
        "4096",
        "--raw-message-bytes-max",
        "4096",
        "--echo-message-bytes-max",
        "4KiB",
    ]);
    for path in ["/echo", "/raw/exact"] {
        let mut wire = Wire::open(server.address(), path);
        wire.send(&frame(0x82, &[7; 4096]));
        assert_eq!(wire.expect_frame().payload.len(), 4096, "{path}: exactly the limit is fine");
    }
    check_all(&server, sizes());
}

#[test]
fn the_default_limits_are_one_and_sixteen_mebibytes() {
    let server = Server::start(&["--shards", "1", "--echo"]);
    for (path, limit) in [("/ws", 1_u64 << 20), ("/raw/r", 1 << 20), ("/echo", 16 << 20)] {
        let mut wire = Wire::open(server.address(), path);
        let mut header = vec![0x82, 0xff];
        header.extend_from_slice(&(limit + 1).to_be_bytes());
        header.extend_from_slice(&[0; 4]);
        wire.send(&header);
        assert_eq!(wire.expect_close(), Some(TOO_BIG), "{path}");
    }
}

#[test]
fn peers_that_never_finish_the_close_are_cut() {
    let server = Server::start(&["--shards", "2", "--echo", "--close-timeout", "300ms"]);
    let before = idle_descriptors(&server);
    // All of these stay open on the client's side until the server has let go of them.
    let mut held = Vec::new();
    for path in ["/echo", "/ws", "/raw/r"] {
        let mut open = |bytes: &[u8]| {
            let mut wire = Wire::open(server.address(), path);
            wire.send(bytes);
            held.push(wire);
        };
        open(&frame(0x83, b"a violation, and then silence"));
        open(&close_frame(1000, "closed, and then silence"));
        open(&[close_frame(1000, ""), vec![0; 100_000]].concat());
    }
    server.wait_descriptors(before, "peers that stay after the close");
    for wire in &mut held {
        wire.expect_close();
    }
    // The refusal of a handshake is a close as well.
    let mut refused = Wire::connect(server.address());
    refused.send(b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n");
    server.wait_descriptors(before, "a peer that stays after a refusal");
    assert_eq!(refused.response().status, 404);
}

#[test]
fn peers_that_half_close_are_cut() {
    let server = Server::start(&["--shards", "2", "--echo", "--close-timeout", "300ms"]);
    let before = idle_descriptors(&server);
    let mut held = Vec::new();
    for path in ["/echo", "/ws", "/raw/r"] {
        for sent in [
            Vec::new(),
            frame(0x82, b"whole"),
            frame(0x82, b"cut short")[..7].to_vec(),
            frame(0x02, b"fragment"),
        ] {
            let mut wire = Wire::open(server.address(), path);
            wire.send(&sent);
            wire.half_close();
            held.push(wire);
        }
    }
    server.wait_descriptors(before, "peers that half-closed");
    for wire in &mut held {
        wire.read_to_end_of_life();
    }
}

#[test]
fn a_message_that_is_not_finished_in_time_is_closed_with_1008() {
    let server = Server::start(&["--shards", "2", "--echo", "--message-timeout", "1s"]);
    for path in ["/echo", "/ws", "/raw/r"] {
        let whole = frame(0x82, b"cut short");
        for begun in [&whole[..1], &whole[..7], &frame(0x02, b"fragment")] {
            let mut wire = Wire::open(server.address(), path);
            wire.send(begun);
            // Neither a ping nor a further byte buys time.
            if begun[0] == 0x02 {
                wire.send(&frame(0x89, b"alive"));
                assert_eq!(wire.expect_frame().payload, b"alive");
            }
            assert_eq!(wire.expect_close(), Some(1008), "{path} after {} bytes", begun.len());
            wire.expect_eof();
        }
    }
    // A message in time takes the deadline away.
    let mut patient = Client::connect(server.address(), "/echo");
    let whole = frame(0x82, b"in two parts");
    let mut wire = Wire::open(server.address(), "/echo");
    wire.send(&whole[..5]);
    wire.send(&whole[5..]);
    assert_eq!(wire.expect_frame().payload, b"in two parts");
    let mut late = Wire::open(server.address(), "/echo");
    late.send(&whole[..5]);
    assert_eq!(late.expect_close(), Some(1008), "by now a second has passed");
    wire.send(&frame(0x89, b"still here"));
    assert_eq!(wire.expect_frame().payload, b"still here");
    patient.send_text("idle all the while");
    assert_eq!(patient.receive_text(), "idle all the while");
}

#[test]
fn peers_that_vanish_are_forgotten() {
    let server = Server::start(&["--shards", "2", "--echo"]);
    let before = idle_descriptors(&server);
    for path in ["/echo", "/ws", "/raw/r"] {
        for turn in 0..20 {
            let mut wire = Wire::open(server.address(), path);
            wire.send(&frame(0x02, b"an unfinished message")[..4 + turn % 8]);
            if turn % 2 == 0 {
                let socket = socket2::SockRef::from(wire.stream());
                socket.set_linger(Some(Duration::ZERO)).expect("the option can be set");
            }
        }
    }
    server.wait_descriptors(before, "peers that vanished");
}

#[test]
fn an_echo_peer_that_never_reads_is_cut_and_costs_bounded_memory() {
    let server = Server::start(&["--shards", "1", "--echo", "--send-timeout", "1s"]);
    let before = idle_descriptors(&server);
    let mut wire = Wire::open(server.address(), "/echo");
    let mut witness = Client::connect(server.address(), "/echo");
    let message = frame(0x82, &vec![1; 1 << 20]);
    wire.stream()
        .set_write_timeout(Some(Duration::from_millis(200)))
        .expect("a timeout can be set");
    // 256 MiB in, nothing taken out: a server that reads on for ever would hold all of it.
    let mut sent = 0;
    while sent < 256 && wire.try_send(&message).is_ok() {
        sent += 1;
    }
    let rss = server.rss_bytes();
    assert!(rss < 128 << 20, "{sent} MiB in, RSS is {} MiB", rss >> 20);
    witness.send_text("not held up");
    assert_eq!(witness.receive_text(), "not held up");
    witness.close();
    server.wait_descriptors(before, "a peer that takes nothing for send_timeout");
}

#[test]
fn a_slow_consumer_is_disconnected_and_the_others_keep_receiving() {
    const MESSAGES: u32 = 600;
    let server = Server::start(&[
        "--shards",
        "2",
        "--ws-message-bytes-max",
        "64KiB",
        "--raw-message-bytes-max",
        "64KiB",
        "--high-water-mark",
        "256KiB",
    ]);
    let address = server.address();
    let mut publisher = Client::connect(address, "/raw/all");
    let mut healthy: Vec<Client> = (0..3).map(|_| Client::connect(address, "/raw/all")).collect();
    let before = server.descriptors();
    let mut slow = narrow_member(&server, "/raw/all");
    let mut slow_native = narrow_member(&server, "/ws");
    let mut native = Client::join(address, "room", "publisher");
    slow_native.send(&frame(0x81, br#"{"type":"join","room_id":"room","user_id":"slow"}"#));
    let joined = slow_native.expect_frame();
    assert!(joined.payload.starts_with(b"{\"type\":\"joined\""), "{joined:?}");

    // Closed loop: whoever reads keeps up by construction, whoever does not falls behind.
    let mut payload = vec![b'x'; 60_000];
    for number in 0..MESSAGES {
        payload[..4].copy_from_slice(&number.to_be_bytes());
        publisher.send_binary(&payload);
        for member in healthy.iter_mut().chain([&mut publisher]) {
            let Message::Binary(received) = member.receive() else { panic!("not binary") };
            assert!(received == payload, "message {number} as the others got it");
        }
        let text = format!(
            "{{\"type\":\"broadcast\",\"room_id\":\"room\",\"content\":\"{}\"}}",
            "x".repeat(60_000)
        );
        assert_eq!(native.ask(&text).offset, Some(u64::from(number) + 1));
    }
    // One more than before: the native publisher, which came after the count.
    server.wait_descriptors(before + 1, "slow consumers of 36 MB each");
    for (name, wire) in [("raw", &mut slow), ("native", &mut slow_native)] {
        let read = wire.read_to_end_of_life();
        assert!(read < MESSAGES as usize * 60_000, "{name}: it cannot have had everything");
    }
}

#[test]
fn a_slow_consumer_below_the_mark_catches_up() {
    const MESSAGES: u32 = 48;
    let server = Server::start(&["--shards", "2"]);
    let mut publisher = Client::connect(server.address(), "/raw/all");
    let mut slow = narrow_member(&server, "/raw/all");
    // 3 MB against a mark of 4 MiB: it reads nothing while they are published, and loses nothing.
    for number in 0..MESSAGES {
        let payload = [&number.to_be_bytes()[..], &vec![7; 64_000]].concat();
        publisher.send_binary(&payload);
        assert_eq!(publisher.receive().len(), payload.len());
    }
    for number in 0..MESSAGES {
        let frame = slow.expect_frame();
        assert_eq!((frame.opcode, frame.payload.len()), (2, 64_004), "message {number}");
        assert_eq!(frame.payload[..4], number.to_be_bytes());
    }
    publisher.send_text("now");
    assert_eq!(slow.expect_frame().payload, b"now");
}

#[test]
fn a_message_that_never_ends_costs_its_own_connection_alone() {
    let server = Server::start(&["--shards", "1", "--echo", "--partial-bytes-max", "64MiB"]);
    let before = idle_descriptors(&server);
    let mut witness = Client::connect(server.address(), "/raw/witness");
    // Ten times 15 MiB begun and never finished, against 64 MiB: some are closed with 1013.
    let chunk = frame(0x02, &vec![1; 1 << 20]);
    let more = frame(0x00, &vec![1; 1 << 20]);
    let mut wires: Vec<Wire> = Vec::new();
    for _ in 0..10 {
        let mut wire = Wire::open(server.address(), "/echo");
        let _ = wire.try_send(&chunk);
        for _ in 1..15 {
            if wire.try_send(&more).is_err() {
                break;
            }
        }
        wires.push(wire);
    }
    let mut refused = 0;
    wait_until("some are closed", || {
        refused = wires.iter_mut().filter_map(|wire| wire.has_input().then_some(())).count();
        refused > 0
    });
    for wire in wires.iter_mut() {
        if wire.has_input() {
            assert_eq!(wire.expect_close(), Some(1013));
        }
    }
    witness.send_text("never noticed");
    assert_eq!(witness.receive_text(), "never noticed");
    drop(wires);
    witness.close();
    server.wait_descriptors(before, "all have gone");
    // What they held is free again.
    let mut client = Client::connect(server.address(), "/echo");
    client.send_binary(&vec![9; 15 << 20]);
    assert_eq!(client.receive().len(), 15 << 20);
}

/// A member that takes little into its socket: what it does not read stays with the server.
fn narrow_member(server: &Server, path: &str) -> Wire {
    let socket =
        Socket::new(Domain::for_address(server.address()), Type::STREAM, None).expect("a socket");
    // Before connect, else the window has been announced already.
    socket.set_recv_buffer_size(4096).expect("the option can be set");
    socket.connect(&server.address().into()).expect("the server accepts");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let mut wire = Wire::from_stream(stream.try_clone().expect("a second handle"));
    wire.send(&upgrade_request(path));
    // Not a byte more than the answer.
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the answer to the upgrade");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    wire
}

/// The descriptors of a server without connections, after it has served one.
///
/// The first connection may make it open something that it keeps.
fn idle_descriptors(server: &Server) -> usize {
    let mut client = Client::connect(server.address(), "/echo");
    client.send_text("warm");
    client.receive();
    client.close();
    server.settled_descriptors()
}
