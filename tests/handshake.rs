//! The opening handshake against odd and hostile requests: every refusal is an answer.
//!
//! Each row is sent whole, in two halves, in small pieces and byte by byte, and each time the same
//! answer must come and then the end of the stream, never a reset (RFC 6455 §4, RFC 9112).

pub mod support;

use std::time::Duration;

use support::{
    Client, Response, Server, Wire, frame, head_of, row, rows, upgrade_request, wait_until,
};

/// RFC 6455 §1.3's example, which is the key every request here sends.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// What a request must be answered with.
struct Case {
    name: String,
    request: Vec<u8>,
    status: u16,
    fields: &'static [(&'static str, &'static str)],
}

fn case(name: &str, request: impl Into<Vec<u8>>, status: u16) -> Case {
    Case { name: name.to_owned(), request: request.into(), status, fields: &[] }
}

/// A row that changes fields of the good upgrade on `/ws`; see [`head_of`].
fn fields(name: &str, changes: &[(&str, &str)], status: u16) -> Case {
    case(name, head_of("GET /ws HTTP/1.1", changes), status)
}

/// A row that replaces the request line of the good upgrade.
fn line(request_line: &str, status: u16) -> Case {
    case(&request_line.chars().take(60).collect::<String>(), head_of(request_line, &[]), status)
}

impl Case {
    fn with(mut self, fields: &'static [(&'static str, &'static str)]) -> Case {
        self.fields = fields;
        self
    }
}

/// Requests that must be accepted.
fn accepted() -> Vec<Case> {
    let many: Vec<(String, &str)> = (0..95).map(|number| (format!("X-{number}"), "v")).collect();
    let many: Vec<(&str, &str)> =
        many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let cookie = "c".repeat(6000);
    let mut leading = b"\r\n".to_vec();
    leading.extend_from_slice(&upgrade_request("/ws"));
    let lower = String::from_utf8(upgrade_request("/ws"))
        .expect("ASCII")
        .replace("Host", "host")
        .replace("Upgrade: ", "upgrade: ")
        .replace("Connection", "connection")
        .replace("Sec-WebSocket", "sec-websocket");
    let upper = lower
        .replace("host", "HOST")
        .replace("sec-websocket", "SEC-WEBSOCKET")
        .replace("upgrade: ", "UPGRADE: ");
    let padded = String::from_utf8(upgrade_request("/ws"))
        .expect("ASCII")
        .replace(": ", ":\t  ")
        .replace("13\r", "13 \t \r");
    let tight = String::from_utf8(upgrade_request("/ws")).expect("ASCII").replace(": ", ":");
    vec![
        case("the plain request", upgrade_request("/ws"), 101),
        case("raw", upgrade_request("/raw/room"), 101),
        case("lower case names", lower, 101),
        case("upper case names", upper, 101),
        case("padded values", padded, 101),
        case("no space behind colons", tight, 101),
        case("an empty line before the request", leading, 101),
        fields("Connection in capitals", &[("Connection", "UPGRADE")], 101),
        fields("Connection in a list", &[("Connection", "keep-alive, Upgrade")], 101),
        fields("Connection with empty elements", &[("Connection", ",, ,upgrade\t,")], 101),
        fields(
            "two Connection fields",
            &[("Connection", "keep-alive"), ("Connection", "upgrade")],
            101,
        ),
        fields("Upgrade in mixed case", &[("Upgrade", "WebSocket")], 101),
        fields("Upgrade in a list", &[("Upgrade", "h2c, websocket")], 101),
        fields("two Upgrade fields", &[("Upgrade", "h2c"), ("Upgrade", "websocket")], 101),
        fields("Content-Length 0", &[("Content-Length", "0")], 101),
        fields("Host with a port", &[("Host", "example.org:8080")], 101),
        fields("Host IPv6", &[("Host", "[::1]:8080")], 101),
        fields("Host IPv4", &[("Host", "127.0.0.1")], 101),
        fields(
            "an unknown extension",
            &[("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")],
            101,
        ),
        fields("an unknown subprotocol", &[("Sec-WebSocket-Protocol", "mqtt")], 101),
        fields("an Origin", &[("Origin", "https://example.org")], 101),
        fields("100 fields", &many, 101),
        fields("a cookie of 6000 bytes", &[("Cookie", &cookie)], 101),
        fields("bytes above ASCII in a value", &[("X-Name", "J\u{f6}rg")], 101),
        line("GET /ws?token=1 HTTP/1.1", 101),
        line("GET /raw/caf%C3%A9?x=%zz HTTP/1.1", 101),
        line("GET http://example.org/ws HTTP/1.1", 101),
        line("GET http://example.org:80/ws?x=1 HTTP/1.1", 101),
        line("GET ws://example.org/raw/room HTTP/1.1", 101),
        line("GET HTTP://EXAMPLE.org/ws HTTP/1.1", 101),
    ]
}

/// Requests that must be refused, by status.
fn refused() -> Vec<Case> {
    let mut cases = bad_syntax();
    cases.extend(bad_framing());
    cases.extend(bad_upgrades());
    cases.extend(bad_targets());
    cases.extend(too_large());
    cases
}

fn bad_syntax() -> Vec<Case> {
    let text = |from: &str, to: &str| {
        let good = String::from_utf8(upgrade_request("/ws")).expect("ASCII");
        assert!(good.contains(from), "nothing to replace");
        good.replacen(from, to, 1)
    };
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x8a\x01".to_vec();
    vec![
        case("TLS", tls_hello, 400),
        case("binary noise", vec![0_u8; 64], 400),
        case("bytes above ASCII", vec![0xff_u8; 64], 400),
        case("SSH", "SSH-2.0-OpenSSH_9.6\r\n", 400),
        case("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        case("no version", text(" HTTP/1.1", ""), 400),
        case("HTTP/1.0", text("HTTP/1.1", "HTTP/1.0"), 400),
        case("HTTP/1.2", text("HTTP/1.1", "HTTP/1.2"), 400),
        case("HTTP/2.0", text("HTTP/1.1", "HTTP/2.0"), 400),
        case("http/1.1", text("HTTP/1.1", "http/1.1"), 400),
        case("two spaces", text("GET /ws", "GET  /ws"), 400),
        case("a tab for a space", text("GET /ws", "GET\t/ws"), 400),
        case("a space before the method", text("GET", " GET"), 400),
        case("a control byte in the target", text("/ws", "/w\u{1}s"), 400),
        case("bare LF after the request line", text("HTTP/1.1\r\n", "HTTP/1.1\n"), 400),
        case("bare LF after a field", text("localhost\r\n", "localhost\n"), 400),
        case("bare LF everywhere", text("", "").replace("\r\n", "\n"), 400),
        case("bare CR in a value", text("localhost", "local\rhost"), 400),
        case("a space before the colon", text("Host:", "Host :"), 400),
        case("a tab before the colon", text("Upgrade:", "Upgrade\t:"), 400),
        case("no colon", text("Upgrade: websocket", "Upgrade websocket"), 400),
        case("an empty field name", text("Upgrade: websocket", ": websocket"), 400),
        case("a space in a field name", text("Upgrade:", "Up grade:"), 400),
        case("a folded field", text("localhost\r\n", "localhost\r\n  more\r\n"), 400),
        case("a folded field, tab", text("websocket\r\n", "websocket\r\n\tmore\r\n"), 400),
        case("a space before the first field", text("Host", " Host"), 400),
        case("NUL in a value", text("localhost", "local\0host"), 400),
        case("a control byte in a value", text("localhost", "local\u{7}host"), 400),
        case("DEL in a value", text("Upgrade: websocket", "Upgrade: web\u{7f}socket"), 400),
        case("NUL in a name", text("Host:", "Ho\0st:"), 400),
    ]
}

fn bad_framing() -> Vec<Case> {
    vec![
        fields("no Host", &[("Host", "")], 400),
        fields("two Hosts", &[("Host", "a"), ("Host", "b")], 400),
        fields("two equal Hosts", &[("Host", "a"), ("Host", "a")], 400),
        fields("empty Host", &[("Host", " ")], 400),
        fields("Host with a space", &[("Host", "a b")], 400),
        fields("Host with user info", &[("Host", "user@example.org")], 400),
        fields("Host with a path", &[("Host", "example.org/x")], 400),
        fields("Host with a scheme", &[("Host", "http://example.org")], 400),
        fields("Host with a bad port", &[("Host", "example.org:99999")], 400),
        fields("Host list", &[("Host", "a, b")], 400),
        fields("Content-Length 5", &[("Content-Length", "5")], 400),
        fields("Content-Length +0", &[("Content-Length", "+0")], 400),
        fields("Content-Length -0", &[("Content-Length", "-0")], 400),
        fields("Content-Length 0x0", &[("Content-Length", "0x0")], 400),
        fields("Content-Length word", &[("Content-Length", "none")], 400),
        fields("Content-Length 0, 0", &[("Content-Length", "0, 0")], 400),
        fields("two Content-Lengths", &[("Content-Length", "0"), ("Content-Length", "0")], 400),
        fields("Transfer-Encoding chunked", &[("Transfer-Encoding", "chunked")], 400),
        fields("Transfer-Encoding identity", &[("Transfer-Encoding", "identity")], 400),
        fields("both framings", &[("Content-Length", "0"), ("Transfer-Encoding", "chunked")], 400),
    ]
}

fn bad_upgrades() -> Vec<Case> {
    const UPGRADE: &[(&str, &str)] = &[("upgrade", "websocket"), ("sec-websocket-version", "13")];
    let key = |name: &str, key: &str| fields(name, &[("Sec-WebSocket-Key", key)], 400);
    let version = |version: &str, status| {
        fields(&format!("version {version}"), &[("Sec-WebSocket-Version", version)], status)
    };
    vec![
        fields("no Connection", &[("Connection", "")], 400),
        fields("Connection keep-alive", &[("Connection", "keep-alive")], 400),
        fields("Connection upgrades", &[("Connection", "upgrades")], 400),
        fields("Connection in quotes", &[("Connection", "\"upgrade\"")], 400),
        fields("no key", &[("Sec-WebSocket-Key", "")], 400),
        fields(
            "two keys",
            &[
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ],
            400,
        ),
        key("a key that is not base64", "dGhlIHNhbXBsZSBub25j!Q=="),
        key("a key of 15 bytes", "dGhlIHNhbXBsZSBub25j"),
        key("a key of 17 bytes", "dGhlIHNhbXBsZSBub25jZWU="),
        key("a key without padding", "dGhlIHNhbXBsZSBub25jZQ"),
        key("a key with stray bits", "dGhlIHNhbXBsZSBub25jZR=="),
        key("a key in URL base64", "_-hlIHNhbXBsZSBub25jZQ=="),
        fields("no version", &[("Sec-WebSocket-Version", "")], 400),
        fields(
            "two versions",
            &[("Sec-WebSocket-Version", "13"), ("Sec-WebSocket-Version", "13")],
            400,
        ),
        version("8", 426).with(UPGRADE),
        version("14", 426).with(UPGRADE),
        version("013", 426).with(UPGRADE),
        version("x", 426).with(UPGRADE),
        fields("no Upgrade", &[("Upgrade", "")], 426).with(UPGRADE),
        fields("Upgrade h2c", &[("Upgrade", "h2c")], 426).with(UPGRADE),
        fields("Upgrade websockets", &[("Upgrade", "websockets")], 426).with(UPGRADE),
        case("a plain GET of an endpoint", "GET /ws HTTP/1.1\r\nHost: localhost\r\n\r\n", 426)
            .with(UPGRADE),
        case("a plain GET of a room", "GET /raw/r HTTP/1.1\r\nHost: localhost\r\n\r\n", 426)
            .with(UPGRADE),
    ]
}

fn bad_targets() -> Vec<Case> {
    vec![
        line("GET /nothing HTTP/1.1", 404),
        line("GET /ws/ HTTP/1.1", 404),
        line("GET /WS HTTP/1.1", 404),
        line("GET //ws HTTP/1.1", 404),
        line("GET /%77s HTTP/1.1", 404),
        line("GET /raw HTTP/1.1", 404),
        line("GET /raw/ HTTP/1.1", 404),
        line("GET /echo HTTP/1.1", 404),
        line("POST /nothing HTTP/1.1", 404),
        line("GET ws HTTP/1.1", 400),
        line("GET ?x HTTP/1.1", 400),
        line("GET /raw/%zz HTTP/1.1", 400),
        line("GET /raw/%f HTTP/1.1", 400),
        line("GET /raw/% HTTP/1.1", 400),
        line("GET /raw/%ff HTTP/1.1", 400),
        line("GET /raw/%C3 HTTP/1.1", 400),
        line("GET /raw/%ED%A0%80 HTTP/1.1", 400),
        line("GET /raw/%00 HTTP/1.1", 400),
        line("GET /raw/a%0Ab HTTP/1.1", 400),
        line("GET /raw/%C2%85 HTTP/1.1", 400),
        line("POST /ws HTTP/1.1", 405).with(&[("allow", "GET")]),
        line("HEAD /ws HTTP/1.1", 405).with(&[("allow", "GET")]),
        line("get /ws HTTP/1.1", 405).with(&[("allow", "GET")]),
        line("DELETE /raw/r HTTP/1.1", 405).with(&[("allow", "GET")]),
        line("POST / HTTP/1.1", 405).with(&[("allow", "GET, HEAD")]),
        line("BREW / HTTP/1.1", 405).with(&[("allow", "GET, HEAD")]),
    ]
}

fn too_large() -> Vec<Case> {
    let long = "x".repeat(2049);
    let longer = "x".repeat(20_000);
    let cookie = "c".repeat(9000);
    let many: Vec<(String, &str)> = (0..96).map(|number| (format!("X-{number}"), "v")).collect();
    let many: Vec<(&str, &str)> =
        many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    vec![
        line(&format!("GET /raw/{long} HTTP/1.1"), 414),
        line(&format!("GET /raw/{longer} HTTP/1.1"), 414),
        line(&format!("GET /ws?{long} HTTP/1.1"), 414),
        case("a request line without end", format!("GET /{longer}"), 414),
        fields("a cookie of 9000 bytes", &[("Cookie", &cookie)], 431),
        fields("101 fields", &many, 431),
        case(
            "a head without end",
            format!("GET /ws HTTP/1.1\r\nHost: a\r\n{}", "X: y\r\n".repeat(3000)),
            431,
        ),
    ]
}

/// Checks a refusal: its status, its fields, its body, and that the stream then ends.
fn check_refusal(wire: &mut Wire, case: &Case) {
    let is_head = case.request.starts_with(b"HEAD");
    let response = if is_head { wire.response_head() } else { wire.response() };
    assert_eq!(response.status, case.status, "{response:?}");
    for (name, value) in case.fields {
        assert_eq!(response.field(name), Some(*value), "the field {name} of {response:?}");
    }
    check_is_final(&response);
    if !is_head {
        let body = String::from_utf8(response.body.clone()).expect("the body is text");
        assert!(body.trim().len() > 5, "the body explains the refusal: {body:?}");
        assert_eq!(body.trim().lines().count(), 1, "in one line: {body:?}");
    }
    wire.expect_eof();
}

/// Checks what every answer but a 101 carries.
fn check_is_final(response: &Response) {
    let connection = response.field("connection").unwrap_or_default().to_ascii_lowercase();
    assert!(connection.split(',').any(|token| token.trim() == "close"), "{response:?}");
    assert!(response.field("content-length").is_some(), "{response:?}");
    if response.status != 200 {
        assert_eq!(response.field("content-type"), Some("text/plain; charset=utf-8"));
    }
}

/// Checks a 101 and that the connection then works.
fn check_accepted(wire: &mut Wire) {
    let response = wire.response();
    assert_eq!(response.status, 101, "{:?}", String::from_utf8_lossy(&response.body));
    assert_eq!(response.field("sec-websocket-accept"), Some(ACCEPT));
    assert!(response.field("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")));
    assert!(
        response.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade"))
    );
    assert_eq!(response.field("sec-websocket-extensions"), None);
    assert_eq!(response.field("sec-websocket-protocol"), None);
    wire.send(&frame(0x89, b"alive"));
    assert_eq!(wire.expect_frame().payload, b"alive");
    wire.send(&frame(0x88, &1000_u16.to_be_bytes()));
    assert_eq!(wire.expect_close(), Some(1000));
    wire.expect_eof();
}

/// The ways in which each request is sent: the size of the pieces.
fn pieces(request: &[u8]) -> [(&'static str, usize); 4] {
    let half = request.len().div_ceil(2);
    [("whole", request.len()), ("in two halves", half), ("in sevens", 7), ("byte by byte", 1)]
}

#[test]
fn good_requests_are_accepted_however_they_arrive() {
    let server = Server::start(&["--shards", "2"]);
    rows(
        accepted(),
        |case| case.name.clone(),
        |case| {
            assert_eq!(case.status, 101);
            for (how, piece) in pieces(&case.request) {
                row(how, || {
                    let mut wire = Wire::connect(server.address());
                    wire.send_pieces(&case.request, piece);
                    check_accepted(&mut wire);
                });
            }
        },
    );
}

#[test]
fn bad_requests_are_refused_however_they_arrive() {
    let server = Server::start(&["--shards", "2"]);
    let mut witness = Client::connect(server.address(), "/raw/witness");
    rows(
        refused(),
        |case| case.name.clone(),
        |case| {
            for (how, piece) in pieces(&case.request) {
                row(how, || {
                    let mut wire = Wire::connect(server.address());
                    wire.send_pieces(&case.request, piece);
                    check_refusal(&mut wire, case);
                });
            }
        },
    );
    witness.send_text("never noticed");
    assert_eq!(witness.receive_text(), "never noticed");
}

#[test]
fn a_refusal_survives_a_large_body_sent_before_it_is_read() {
    let body = vec![b'x'; 1 << 20];
    let head = |request_line: &str| head_of(request_line, &[("Content-Length", "1048576")]);
    let table = vec![
        case("POST of an endpoint", head("POST /ws HTTP/1.1"), 0),
        case("POST elsewhere", head("POST /upload HTTP/1.1"), 0),
        case("GET with a body", head("GET /ws HTTP/1.1"), 400),
        case("not HTTP", "\x16\x03\x01", 400),
        case("too long", format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000)), 414),
    ];
    let server = Server::start(&["--shards", "1"]);
    rows(
        table,
        |case| case.name.clone(),
        |case| {
            let mut wire = Wire::connect(server.address());
            wire.send(&case.request);
            // All of it, before a byte of the answer is read. A server that closes with unread input
            // sends a reset, and the answer is lost on the way.
            wire.send_pieces(&body, 64 * 1024);
            let response = wire.response();
            // Whether framing or method is looked at first is the server's own business.
            let plausible = case.status == response.status
                || case.status == 0 && matches!(response.status, 400 | 404 | 405);
            assert!(plausible, "{response:?}");
            wire.expect_eof();
        },
    );
}

#[test]
fn the_answer_to_a_client_that_half_closes_arrives() {
    let table = vec![
        case("a complete bad request", head_of("GET /nothing HTTP/1.1", &[]), 404),
        case("a page request", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    ];
    let server = Server::start(&["--shards", "1"]);
    rows(
        table,
        |case| case.name.clone(),
        |case| {
            let mut wire = Wire::connect(server.address());
            wire.send(&case.request);
            wire.half_close();
            assert_eq!(wire.response().status, case.status);
            wire.expect_eof();
        },
    );
    // Nothing can complete these; they must not linger.
    for request in [&b""[..], b"GET /ws HTT", b"GET /ws HTTP/1.1\r\nHost: a\r\n"] {
        let mut wire = Wire::connect(server.address());
        wire.send(request);
        wire.half_close();
        wire.read_to_end_of_life();
    }
}

#[test]
fn frames_pipelined_behind_the_request_are_processed() {
    let server = Server::start(&["--shards", "2"]);
    let join = frame(0x81, br#"{"type":"join","room_id":"r","id":1}"#);
    let ping = frame(0x89, b"ping");
    let request = [upgrade_request("/ws"), join, ping].concat();
    for (how, piece) in pieces(&request) {
        row(how, || {
            let mut wire = Wire::connect(server.address());
            wire.send_pieces(&request, piece);
            assert_eq!(wire.response().status, 101);
            // A pong may overtake the answer of another shard, both must come.
            let frames = [wire.expect_frame(), wire.expect_frame()];
            let joined = frames.iter().find(|frame| frame.opcode == 1).expect("joined");
            let text = String::from_utf8_lossy(&joined.payload);
            assert!(text.contains("\"joined\""), "{text}");
            assert!(frames.iter().any(|frame| frame.opcode == 10 && frame.payload == b"ping"));
        });
    }
}

#[test]
fn pipelined_frames_do_not_count_as_part_of_the_head() {
    let server = Server::start(&[
        "--shards",
        "2",
        "--handshake-bytes-max",
        "512",
        "--target-bytes-max",
        "256",
        "--echo",
    ]);
    let payload = vec![7; 100_000];
    let request = [upgrade_request("/echo"), frame(0x82, &payload), frame(0x81, b"end")].concat();
    let mut wire = Wire::connect(server.address());
    wire.send(&request);
    assert_eq!(wire.response().status, 101);
    assert!(wire.expect_frame().payload == payload, "the large frame behind the request");
    assert_eq!(wire.expect_frame().payload, b"end");
}

#[test]
fn the_limits_of_a_head_are_settings() {
    let server = Server::start(&[
        "--shards",
        "1",
        "--handshake-bytes-max",
        "512",
        "--target-bytes-max",
        "64",
    ]);
    let target = |len: usize| format!("GET /raw/{} HTTP/1.1", "x".repeat(len - "/raw/".len()));
    let padded = |len: usize| {
        let without = head_of("GET /ws HTTP/1.1", &[("X", "y")]).len() - 1;
        head_of("GET /ws HTTP/1.1", &[("X", &"y".repeat(len - without))])
    };
    let table = vec![
        line(&target(64), 101),
        line(&target(65), 414),
        case("a head of 512 bytes", padded(512), 101),
        case("a head of 513 bytes", padded(513), 431),
    ];
    rows(
        table,
        |case| case.name.clone(),
        |case| {
            for (how, piece) in pieces(&case.request) {
                row(how, || {
                    let mut wire = Wire::connect(server.address());
                    wire.send_pieces(&case.request, piece);
                    let response = wire.response();
                    assert_eq!(response.status, case.status, "{response:?}");
                });
            }
        },
    );
}

#[test]
fn a_room_name_over_the_limit_is_refused() {
    let server = Server::start(&["--shards", "1", "--room-id-bytes-max", "16"]);
    for (name, accepted) in [
        ("r".repeat(16), true),
        ("%61".repeat(16), true),
        ("r".repeat(17), false),
        ("%61".repeat(17), false),
    ] {
        let mut wire = Wire::connect(server.address());
        wire.send(&upgrade_request(&format!("/raw/{name}")));
        let response = wire.response();
        if accepted {
            assert_eq!(response.status, 101, "{name}");
        } else {
            assert!((400..500).contains(&response.status), "{name}: {response:?}");
            wire.expect_eof();
        }
    }
}

#[test]
fn an_unfinished_handshake_is_answered_408() {
    let server = Server::start(&["--shards", "2", "--handshake-timeout", "300ms"]);
    let request = upgrade_request("/ws");
    let table = vec![
        ("silence", &request[..0]),
        ("an empty line", b"\r\n"),
        ("one byte", &request[..1]),
        ("half a request line", &request[..9]),
        ("half a head", &request[..60]),
        ("all but the last byte", &request[..request.len() - 1]),
    ];
    rows(
        table,
        |row| row.0.to_owned(),
        |(name, sent)| {
            let mut wire = Wire::connect(server.address());
            wire.send(sent);
            check_refusal(&mut wire, &case(name, *sent, 408));
        },
    );
}

#[test]
fn bytes_that_trickle_do_not_extend_the_deadline() {
    let server = Server::start(&["--shards", "1", "--handshake-timeout", "300ms"]);
    // Endless by itself: were the deadline moved by each byte, this would go on until the head
    // limit and be answered 431.
    let head = b"GET /ws HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".iter().copied();
    let mut bytes = head.chain(std::iter::repeat_n(b'x', 8000));
    let mut wire = Wire::connect(server.address());
    while !wire.has_input() {
        let byte = bytes.next().expect("the answer comes before the bytes run out");
        if wire.try_send(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(wire.response().status, 408);
    wire.expect_eof();
}

#[test]
fn silent_connections_are_all_closed_in_the_end() {
    let server = Server::start(&[
        "--shards",
        "2",
        "--handshake-timeout",
        "300ms",
        "--close-timeout",
        "300ms",
    ]);
    // The first connection may make the server open something it keeps.
    drop(Client::connect(server.address(), "/ws"));
    let before = server.settled_descriptors();
    let mut silent: Vec<Wire> = (0..200).map(|_| Wire::connect(server.address())).collect();
    // Whoever only counted descriptors could look before they are accepted.
    silent.iter_mut().for_each(|wire| assert_eq!(wire.response().status, 408));
    // They are still held by the client and never closed.
    server.wait_descriptors(before, "200 silent connections");
    drop(silent);
}

#[test]
fn handshakes_beyond_the_bound_wait_their_turn() {
    let server = Server::start(&["--shards", "1", "--handshakes-max", "2"]);
    let request = upgrade_request("/ws");
    let mut slow: Vec<Wire> = (0..2).map(|_| Wire::connect(server.address())).collect();
    slow.iter_mut().for_each(|wire| wire.send(&request[..9]));
    let before = server.settled_descriptors();
    let mut third = Wire::connect(server.address());
    third.send(&request);
    // Nothing happens to it, for as long as it takes to say so with some confidence.
    assert_eq!(server.settled_descriptors(), before, "the third waits in the backlog");
    assert!(!third.has_input(), "the third is not answered");
    slow[0].send(&request[9..]);
    assert_eq!(slow[0].response().status, 101);
    assert_eq!(third.response().status, 101, "one is over, so the next one comes in");
}

/// Connections in the opening handshake, as the server counts them.
fn handshakes(server: &Server) -> usize {
    let mut wire = Wire::connect(server.admin());
    wire.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let metrics = String::from_utf8(wire.response().body).expect("metrics are text");
    let is_it =
        |line: &&str| line.starts_with("fanwire_connections{") && line.contains("handshake");
    let line = metrics.lines().find(is_it).expect("the gauge is there");
    let value = line.split_whitespace().last().expect("a value");
    value.parse().expect("a number of connections")
}

#[test]
fn a_burst_beyond_the_bound_waits_its_turn_and_is_answered_when_the_server_drains() {
    const MAX: usize = 8;
    let flags = ["--shards", "1", "--handshakes-max", "8", "--handshake-timeout", "60s"];
    let mut server = Server::start(&flags);
    // All at once: the server finds them in the backlog when it goes on.
    server.signal(libc::SIGSTOP);
    let mut burst: Vec<Wire> = (0..200).map(|_| Wire::connect(server.address())).collect();
    server.signal(libc::SIGCONT);
    let within = |server: &Server| {
        let handshakes = handshakes(server);
        assert!(handshakes <= MAX, "{handshakes} handshakes are under way");
        handshakes
    };
    wait_until("as many as may have come in", || within(&server) == MAX);

    // In whatever order they speak, each comes in when its turn has come.
    let request = upgrade_request("/ws");
    let mut rest = burst.split_off(150);
    burst.iter_mut().for_each(|wire| wire.send(&request));
    within(&server);
    burst.iter_mut().for_each(|wire| assert_eq!(wire.response().status, 101));
    wait_until("the next ones have come in", || within(&server) == MAX);

    // Those who were never looked at are told that the server ends, like all others.
    server.signal(libc::SIGTERM);
    let draining = case("draining", request, 503).with(&[("retry-after", "5")]);
    rest.iter_mut().for_each(|wire| check_refusal(wire, &draining));
    drop((burst, rest));
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
}

#[test]
fn a_full_server_answers_503_and_accepts_again_when_one_leaves() {
    let server = Server::start(&["--shards", "1", "--connections-max", "2"]);
    let first = Client::connect(server.address(), "/ws");
    let mut second = Client::connect(server.address(), "/ws");
    for _ in 0..5 {
        let mut third = Wire::connect(server.address());
        third.send(&upgrade_request("/ws"));
        let full = case("full", upgrade_request("/ws"), 503).with(&[("retry-after", "5")]);
        check_refusal(&mut third, &full);
    }
    first.close();
    wait_until("a place becomes free", || {
        let mut wire = Wire::connect(server.address());
        wire.send(&upgrade_request("/ws"));
        wire.response().status == 101
    });
    second.expect_silence();
}

#[test]
fn the_page_is_served_and_closed() {
    let server = Server::start(&["--shards", "1"]);
    let ask = |method: &str, target: &str| {
        let mut wire = Wire::connect(server.address());
        wire.send(format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let response = if method == "HEAD" { wire.response_head() } else { wire.response() };
        wire.expect_eof();
        response
    };
    let page = ask("GET", "/");
    assert_eq!(page.status, 200);
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
    check_is_final(&page);
    let body = std::str::from_utf8(&page.body).expect("the page is UTF-8");
    assert!(body.to_ascii_lowercase().starts_with("<!doctype html>"), "{:.100}", body);
    assert!(body.trim_end().ends_with("</html>"), "the page is whole");

    let policy = page.field("content-security-policy").expect("a content security policy");
    for directive in ["default-src 'none'", "connect-src"] {
        assert!(policy.contains(directive), "{directive} in {policy}");
    }
    assert!(!policy.contains("unsafe-eval"), "{policy}");
    assert_eq!(page.field("x-content-type-options"), Some("nosniff"));

    let head = ask("HEAD", "/");
    assert_eq!(head.status, 200);
    assert_eq!(head.field("content-length"), page.field("content-length"));
    assert_eq!(head.field("content-type"), page.field("content-type"));
    assert_eq!(ask("GET", "/?room=lobby").body, page.body, "the query is the page's own");
    assert_eq!(ask("GET", "http://localhost/").body, page.body, "absolute form");
}

#[test]
fn a_subprotocol_is_selected_from_the_offers_alone() {
    let server = Server::start(&["--shards", "1"]);
    let table = vec![
        (vec!["chat"], None),
        (vec!["fanwire.v2"], None),
        (vec!["fanwire.v11"], None),
        (vec!["FANWIRE.V1"], None),
        (vec!["chat", "fanwire.v1"], Some("fanwire.v1")),
        (vec!["chat, fanwire.v1 "], Some("fanwire.v1")),
    ];
    rows(
        table,
        |row| format!("{:?}", row.0),
        |(offers, selected)| {
            let offers: Vec<_> =
                offers.iter().map(|offer| ("Sec-WebSocket-Protocol", *offer)).collect();
            let mut wire = Wire::connect(server.address());
            wire.send(&head_of("GET /ws HTTP/1.1", &offers));
            let response = wire.response();
            assert_eq!(response.status, 101);
            assert_eq!(response.field("sec-websocket-protocol"), *selected);
        },
    );
}
