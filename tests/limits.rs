//! Limits at their edges: the last that is allowed and the first that is refused, with the answer
//! each refusal is documented to have. Clients come from addresses of 127.0.0.0/8 as they like.
//!
//! A rate fills up again while a test runs, so here it is its burst that is tried; what comes in
//! which time, the unit tests of `shard::rate` say.

pub mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use socket2::{Domain, Socket, Type};
use support::{
    Client, PATIENCE, Response, Server, Wire, close_frame, frame, head_of, row, upgrade_request,
    wait_until,
};

const PROXY: u8 = 2;

/// A connection from 127.0.0.`host`.
fn connect(server: &Server, host: u8) -> Wire {
    let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&source.into()).expect("every address of 127.0.0.0/8 is ours");
    socket.connect_timeout(&server.address().into(), PATIENCE).expect("the server listens");
    Wire::from_stream(socket.into())
}

/// What an upgrade request on `/ws` with these fields, behind `preface`, is answered.
fn ask(server: &Server, host: u8, preface: &[u8], fields: &[(&str, &str)]) -> (Wire, Response) {
    let mut wire = connect(server, host);
    wire.send(&[preface, &head_of("GET /ws HTTP/1.1", fields)].concat());
    let response = wire.response();
    (wire, response)
}

/// The same without a preface; keeps the connection if it is open.
fn open(server: &Server, host: u8, fields: &[(&str, &str)]) -> Result<Wire, u16> {
    let (wire, response) = ask(server, host, b"", fields);
    let comes_back = matches!(response.status, 429 | 503);
    assert_eq!(response.field("retry-after"), comes_back.then_some("5"), "{response:?}");
    if response.status == 101 { Ok(wire) } else { Err(response.status) }
}

/// Says goodbye; when this returns the server has counted it out, or will in its next turn.
fn close(mut wire: Wire) {
    wire.send(&close_frame(1000, ""));
    assert_eq!(wire.expect_close(), Some(1000));
    wire.expect_eof();
}

#[test]
fn an_address_has_as_many_connections_as_allowed() {
    let flags = ["--shards=3", "--connections-per-address-max=2", "--log-level=debug"];
    let server = Server::start(&flags);
    let first = open(&server, 2, &[]).expect("the first");
    let _second = open(&server, 2, &[]).expect("the last that is allowed");
    assert_eq!(open(&server, 2, &[]).err(), Some(429));
    let _other = open(&server, 3, &[]).expect("another address");
    close(first);
    let mut third = None;
    wait_until("there is a place again", || {
        third = open(&server, 2, &[]).ok();
        third.is_some()
    });
    assert_eq!(open(&server, 2, &[]).err(), Some(429));
    wait_until("the refusal is in the log", || {
        let log = server.log();
        log.lines().any(|line| line.contains("address_full") && line.contains("127.0.0.2"))
    });
}

/// However they come, over all shards, never more than allowed.
#[test]
fn an_address_is_counted_exactly_over_all_shards() {
    let server = Server::start(&["--shards=4", "--connections-per-address-max=7"]);
    let opened: usize = std::thread::scope(|scope| {
        let crowd = || (0..8).map(|_| open(&server, 2, &[])).collect::<Vec<_>>();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(crowd)).collect();
        let crowds: Vec<_> = threads.into_iter().map(|t| t.join().expect("it is served")).collect();
        crowds.iter().flatten().filter(|opened| opened.is_ok()).count()
    });
    assert_eq!(opened, 7);
}

#[test]
fn handshakes_have_a_rate_in_all_and_per_address() {
    for (flag, status, other) in [
        ("--handshakes-per-second=1/5", 503, None),
        ("--handshakes-per-second-per-address=1/5", 429, Some(3)),
    ] {
        row(flag, || {
            let server = Server::start(&["--shards=2", flag]);
            let begin = Instant::now();
            let mut opened = 0;
            let refused = loop {
                match open(&server, 2, &[]) {
                    Ok(_) => opened += 1,
                    Err(status) => break status,
                }
            };
            assert_eq!(refused, status);
            let came_meanwhile = begin.elapsed().as_secs() + 1;
            assert!((5..=5 + came_meanwhile).contains(&opened), "{opened} of 5");
            if let Some(host) = other {
                assert!(open(&server, host, &[]).is_ok(), "another address");
            }
        });
    }
}

#[test]
fn a_trusted_proxy_says_whom_it_connects_for() {
    let server = Server::start(&[
        "--shards=2",
        "--trusted-proxies=127.0.0.2,10.0.0.0/8",
        "--connections-per-address-max=1",
    ]);
    let mut held = Vec::new();
    let mut check = |host, fields: &[(&str, &str)], expected: u16| {
        let status = match open(&server, host, fields) {
            Ok(wire) => {
                held.push(wire);
                101
            }
            Err(status) => status,
        };
        assert_eq!(status, expected, "from 127.0.0.{host}: {fields:?}");
    };
    const XFF: &str = "X-Forwarded-For";
    const RFC: &str = "Forwarded";
    check(PROXY, &[(XFF, "198.51.100.7")], 101);
    check(PROXY, &[(XFF, "198.51.100.7")], 429);
    check(PROXY, &[(XFF, "192.0.2.1, 198.51.100.7:4711, 10.0.0.1")], 429);
    check(PROXY, &[(XFF, "198.51.100.7, 198.51.100.8")], 101);
    check(PROXY, &[(RFC, "for=198.51.100.8;proto=https")], 429);
    check(PROXY, &[(RFC, "for=\"[2001:db8::1]:80\"")], 101);
    check(PROXY, &[(XFF, "2001:db8::ffff")], 429);
    check(PROXY, &[(XFF, "2001:db8:0:1::1")], 101);
    check(PROXY, &[(RFC, "for=198.51.100.9"), (XFF, "198.51.100.9")], 101);
    check(PROXY, &[(RFC, "for=198.51.100.9"), (XFF, "198.51.100.10")], 400);
    check(PROXY, &[(XFF, "198.51.100.7, someone")], 400);
    check(PROXY, &[(RFC, "for=\"198.51.100.7")], 400);
    // A proxy that does not say is counted itself.
    check(PROXY, &[], 101);
    check(PROXY, &[(RFC, "for=unknown")], 429);
    // Nobody else is believed, whatever they write.
    check(3, &[(XFF, "198.51.100.77")], 101);
    check(3, &[(XFF, "198.51.100.78")], 429);
    check(4, &[(XFF, "garbage"), (RFC, "garbage")], 101);
}

/// A PROXY header of version 2: its command, its family, and what follows.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = u16::try_from(rest.len()).expect("16 bits").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[0x20 | command, family][..], &len, rest].concat()
}

#[test]
fn a_proxy_header_says_whom_the_connection_is_for() {
    let server = Server::start(&[
        "--trusted-proxies=127.0.0.2",
        "--proxy-protocol=optional",
        "--connections-per-address-max=1",
    ]);
    let v1 = |address: &str| format!("PROXY TCP4 {address} 192.0.2.1 4711 443\r\n").into_bytes();
    let v4 = [198, 51, 100, 8, 192, 0, 2, 1, 0, 1, 0, 2];
    let mut held = Vec::new();
    let mut check = |host, preface: &[u8], fields: &[(&str, &str)], expected: u16| {
        let (wire, response) = ask(&server, host, preface, fields);
        assert_eq!(response.status, expected, "{}: {response:?}", preface.escape_ascii());
        held.push(wire);
    };
    check(PROXY, &v1("198.51.100.7"), &[], 101);
    check(PROXY, &v1("198.51.100.7"), &[], 429);
    check(PROXY, &v2(1, 0x11, &v4), &[], 101);
    check(PROXY, &v2(1, 0x11, &[&v4[..], &[4; 100]].concat()), &[], 429);
    check(PROXY, &v1("198.51.100.8"), &[], 429);
    // Whom the header names is no proxy: what it writes is its own.
    check(PROXY, &v1("198.51.100.9"), &[("X-Forwarded-For", "198.51.100.10")], 101);
    check(PROXY, b"", &[("X-Forwarded-For", "198.51.100.9")], 429);
    // The proxy itself; one place is all it has.
    check(PROXY, &v2(0, 0, &[]), &[], 101);
    check(PROXY, b"PROXY UNKNOWN\r\n", &[], 429);
    check(PROXY, &v2(1, 0, &[]), &[], 429);
    check(PROXY, b"", &[], 429);
    check(PROXY, b"PROXY TCP4 198.51.100.11\r\n", &[], 400);
    check(PROXY, &v2(1, 0x11, &v4[..11]), &[], 400);
    check(3, &v1("198.51.100.12"), &[], 400);
    check(4, &v2(1, 0x11, &v4), &[], 400);
    check(5, b"", &[], 101);
}

#[test]
fn a_proxy_header_comes_in_any_pieces() {
    let flags =
        ["--trusted-proxies=127.0.0.2", "--proxy-protocol=required", "--handshake-timeout=30s"];
    let server = Server::start(&flags);
    let v4 = [198, 51, 100, 8, 192, 0, 2, 1, 0, 1, 0, 2];
    for header in [b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 443\r\n".to_vec(), v2(1, 0x11, &v4)] {
        for piece in [1, 7, header.len() - 1, header.len() + 1, 1000] {
            let mut wire = connect(&server, PROXY);
            let ping = frame(0x89, b"early");
            wire.send_pieces(&[&header[..], &upgrade_request("/ws"), &ping].concat(), piece);
            assert_eq!(wire.response_head().status, 101, "in pieces of {piece}");
            assert_eq!(wire.expect_frame().payload, b"early");
        }
    }
}

#[test]
fn a_proxy_header_that_must_come_and_one_that_must_not() {
    let flags =
        ["--trusted-proxies=127.0.0.2", "--proxy-protocol=required", "--handshake-timeout=200ms"];
    let server = Server::start(&flags);
    assert_eq!(open(&server, PROXY, &[]).err(), Some(400), "none");
    let mut late = connect(&server, PROXY);
    late.send(b"PROXY TCP4 198.51");
    assert_eq!(late.response().status, 408, "it takes too long");
    let mut long = connect(&server, PROXY);
    long.send(&[b"PROXY UNKNOWN ", &[b'x'; 93][..]].concat());
    assert_eq!(long.response().status, 400, "107 bytes and no end");
    assert!(open(&server, 3, &[]).is_ok(), "clients may come without the proxy");

    let off = Server::start(&["--trusted-proxies=127.0.0.2"]);
    for header in [b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), v2(0, 0, &[])] {
        let (_, response) = ask(&off, PROXY, &header, &[]);
        let body = String::from_utf8_lossy(&response.body).into_owned();
        assert!(response.status == 400 && body.contains("proxy_protocol"), "{response:?}");
    }
}

#[test]
fn a_connection_sends_as_many_messages_as_allowed() {
    let server = Server::start(&["--messages-per-second=1/4", "--echo"]);
    let pings: Vec<u8> = (0..200).flat_map(|_| frame(0x89, b"x")).collect();
    let pongs: Vec<u8> = (0..200).flat_map(|_| frame(0x8a, b"x")).collect();
    let texts: Vec<u8> = (0..200).flat_map(|_| frame(0x81, b"x")).collect();
    for (name, flood, answer) in
        [("pings", pings, Some(10)), ("pongs", pongs, None), ("texts", texts, Some(1))]
    {
        row(name, || {
            let begin = Instant::now();
            let mut wire = Wire::open(server.address(), "/echo");
            wire.send(&flood);
            let mut answers = 0;
            let close = loop {
                let frame = wire.expect_frame();
                if frame.opcode == 8 {
                    break frame;
                }
                assert_eq!(Some(frame.opcode), answer);
                answers += 1;
            };
            assert_eq!(close.close_code(), Some(1008));
            assert_eq!(&close.payload[2..], b"more messages than messages_per_second");
            let most = 4 + begin.elapsed().as_secs() + 1;
            assert!(answer.is_none() || (4..=most).contains(&answers), "{answers} of 4");
        });
    }
    // A close is free: whoever has sent all it may can go.
    let mut wire = Wire::open(server.address(), "/echo");
    wire.send(&[(0..4).flat_map(|_| frame(0x81, b"x")).collect(), close_frame(1000, "")].concat());
    assert_eq!(wire.expect_close(), Some(1000));
}

#[test]
fn a_connection_sends_as_many_bytes_as_allowed() {
    let server = Server::start(&[
        "--ws-message-bytes-max=1KiB",
        "--raw-message-bytes-max=1KiB",
        "--echo-message-bytes-max=1KiB",
        "--bytes-per-second=1KiB/2064",
        "--echo",
    ]);
    // 8 bytes of header: two of them are all there is.
    let message = frame(0x82, &[7; 1024]);
    assert_eq!(message.len(), 1032);
    let mut wire = Wire::open(server.address(), "/echo");
    wire.send(&[&message[..], &message, &message, &message].concat());
    for _ in 0..2 {
        assert_eq!(wire.expect_frame().payload.len(), 1024, "allowed");
    }
    let close = loop {
        // Whatever has come in again meanwhile is less than a message per second.
        let frame = wire.expect_frame();
        if frame.opcode == 8 {
            break frame;
        }
    };
    assert_eq!(close.close_code(), Some(1008));
    assert_eq!(&close.payload[2..], b"more bytes than bytes_per_second");
    // Empty fragments are no message, and cost their headers.
    let mut wire = Wire::open(server.address(), "/echo");
    let fragments: Vec<u8> = (0..2000).flat_map(|_| frame(0x00, b"")).collect();
    wire.send(&frame(0x02, b""));
    let _ = wire.try_send(&fragments);
    assert_eq!(wire.expect_close(), Some(1008));
}

#[test]
fn a_frame_has_a_limit_of_its_own() {
    let server = Server::start(&["--frame-bytes-max=125", "--echo"]);
    let mut wire = Wire::open(server.address(), "/echo");
    wire.send(&frame(0x82, &[1; 125]));
    assert_eq!(wire.expect_frame().payload.len(), 125);
    wire.send(&[frame(0x02, &[1; 125]), frame(0x80, &[1; 125])].concat());
    assert_eq!(wire.expect_frame().payload.len(), 250);
    wire.send(&frame(0x82, &[1; 126]));
    assert_eq!(wire.expect_close(), Some(1009));
}

#[test]
fn a_room_has_as_many_members_as_allowed() {
    let server = Server::start(&["--shards=3", "--members-per-room-max=vip:*=2,all=3"]);
    let address = server.address();
    let join = |room: &str| {
        let mut client = Client::connect(address, "/ws");
        let reply = client.ask(&format!(r#"{{"type":"join","room_id":"{room}","id":7}}"#));
        assert_eq!(reply.id.as_deref(), Some("7"));
        (client, reply.code.unwrap_or(reply.kind))
    };
    let (mut first, said) = join("vip:1");
    assert_eq!(said, "joined");
    let (_second, said) = join("vip:1");
    assert_eq!(said, "joined", "the last that is allowed");
    let (mut third, said) = join("vip:1");
    assert_eq!(said, "room_full");
    // Members may join again, whoever was refused may join another room, and other rooms of the
    // pattern are rooms of their own.
    assert_eq!(first.join_room("vip:1", "again"), 0);
    assert_eq!(third.join_room("vip:2", "x"), 0);
    let _crowd: Vec<_> = (0..5).map(|_| Client::join(address, "open", "x")).collect();
    // So is the raw room of that name.
    let _raw = ["/raw/vip:1"; 2].map(|path| Client::connect(address, path));
    let mut full = Wire::connect(address);
    full.send(&upgrade_request("/raw/vip:1"));
    let response = full.response();
    assert_eq!((response.status, response.field("retry-after")), (503, Some("5")), "{response:?}");

    assert_eq!(first.ask(r#"{"type":"leave","room_id":"vip:1"}"#).kind, "left");
    wait_until("there is a seat again", || {
        let reply = third.ask(r#"{"type":"join","room_id":"vip:1"}"#);
        assert!(reply.kind == "joined" || reply.code.as_deref() == Some("room_full"), "{reply:?}");
        reply.kind == "joined"
    });
    assert_eq!(join("vip:1").1, "room_full");
}

/// All at once, over all shards: exactly as many as there are seats, again and again.
#[test]
fn seats_are_counted_exactly_over_all_shards() {
    let server = Server::start(&["--shards=4", "--members-per-room-max=*=5"]);
    let address = server.address();
    for round in 0..3 {
        let room = format!("room {round}");
        let joined: usize = std::thread::scope(|scope| {
            let join = || {
                let mut clients: Vec<_> = (0..4).map(|_| Client::connect(address, "/ws")).collect();
                let message = format!(r#"{{"type":"join","room_id":"{room}"}}"#);
                clients.iter_mut().for_each(|client| client.send_text(&message));
                let replies = clients.iter_mut().map(Client::receive_reply);
                let joined = replies.filter(|reply| reply.kind == "joined").count();
                (clients, joined)
            };
            let threads: Vec<_> = (0..6).map(|_| scope.spawn(join)).collect();
            let all: Vec<_> = threads.into_iter().map(|t| t.join().expect("served")).collect();
            all.iter().map(|(_, joined)| joined).sum()
        });
        assert_eq!(joined, 5, "in round {round}");
    }
}

#[test]
fn rooms_are_called_by_the_characters_that_are_allowed() {
    let server = Server::start(&["--room-id-alphabet=token"]);
    let mut client = Client::join(server.address(), "a-z.A_Z~0:9", "é");
    for room in ["a b", "a/b", "é"] {
        let reply = client.ask(&format!(r#"{{"type":"join","room_id":"{room}"}}"#));
        assert_eq!(reply.code.as_deref(), Some("invalid_room_id"), "{room}");
    }
    drop(Wire::open(server.address(), "/raw/a%3Ab"));
    let mut wire = Wire::connect(server.address());
    wire.send(&upgrade_request("/raw/a%20b"));
    assert_eq!(wire.response().status, 400);

    let publish = |room: &str| {
        let body = format!(r#"{{"room_id":"{room}","content":1}}"#);
        let mut wire = Wire::connect(server.admin());
        wire.send(
            format!(
                "POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
            .as_bytes(),
        );
        let response = wire.response();
        (response.status, String::from_utf8_lossy(&response.body).contains("invalid_room_id"))
    };
    assert_eq!(publish("a:b"), (200, false));
    assert_eq!(publish("a b"), (400, true));
}
