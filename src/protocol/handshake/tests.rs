use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use HandshakeError::*;

const LIMITS: HandshakeLimits = HandshakeLimits { handshake_bytes_max: 8192, target_bytes_max: 64 };

/// The request of RFC 6455 §1.3, with these lines added behind its own.
fn request(lines: &str) -> String {
    format!(
        "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\nOrigin: http://example.com\r\n{lines}\r\n"
    )
}

/// The same, with one of its lines replaced (or left out, by an empty one).
fn request_with(old: &str, new: &str) -> String {
    let line = format!("{old}\r\n");
    let whole = request("");
    assert!(whole.contains(&line), "{old}");
    whole.replace(&line, &if new.is_empty() { String::new() } else { format!("{new}\r\n") })
}

/// Parses in one piece and then byte by byte; both must come to the same.
fn parse<'h>(head: &'h [u8], limits: &HandshakeLimits) -> Result<Progress<'h>, HandshakeError> {
    let whole = parse_request(head, 0, limits);
    let result = (1..=head.len())
        .map(|len| parse_request(&head[..len], len - 1, limits))
        .find(|result| *result != Ok(Progress::Incomplete));
    match result {
        Some(result) => assert_eq!(result, whole, "{}", head.escape_ascii()),
        // A mistake may wait to be seen until the head ends or is as long as it may be.
        None => {
            assert!(!matches!(whole, Ok(Progress::Complete { .. })), "{}", head.escape_ascii());
            assert!(head.len() < limits.handshake_bytes_max, "{}", head.escape_ascii());
        }
    }
    whole
}

fn complete(head: &[u8]) -> Result<Request<'_>, HandshakeError> {
    match parse(head, &LIMITS)? {
        Progress::Complete { request, consumed } => {
            assert_eq!(consumed, head.len());
            Ok(request)
        }
        Progress::Incomplete => panic!("incomplete: {}", head.escape_ascii()),
    }
}

/// The first error of syntax or upgrade.
fn refusal(head: impl AsRef<[u8]>) -> Option<HandshakeError> {
    let head = head.as_ref();
    complete(head).and_then(|request| request.upgrade().map(|_| ())).err()
}

#[test]
fn the_example_of_the_rfc() {
    let head = request("Sec-WebSocket-Protocol: chat, superchat\r\n");
    let request = complete(head.as_bytes()).unwrap();
    assert_eq!((request.method, request.path, request.query), (Method::Get, "/chat", None));
    let upgrade = request.upgrade().unwrap();
    assert_eq!(&upgrade.accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");

    let mut out = BytesMut::new();
    encode_accept(&upgrade.accept, Some("chat"), &mut out);
    assert_eq!(
        out,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    );
}

#[test]
fn accepted() {
    #[rustfmt::skip]
    let rows = [
        request(""),
        format!("\r\n{}", request("")),                                  // RFC 9112 §2.2
        format!("\r\n\r\n{}", request("")),
        request("Content-Length: 0\r\n"),
        request("X-Empty:\r\nX-Latin: caf\u{e9}\r\nX-Tab:\ta\tb\t\r\n"),
        request("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"),
        request_with("Upgrade: websocket", "upgrade: h2c, WebSocket"),
        request_with("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: websocket"),
        request_with("Upgrade: websocket", "Upgrade:\t, ,websocket ,"),
        request_with("Connection: Upgrade", "connection: keep-alive, UPGRADE"),
        request_with("Connection: Upgrade", "Connection: keep-alive\r\nConnection: upgrade"),
        request_with("Connection: Upgrade", "Connection: upgrade\r\nConnection: keep-alive"),
        request_with("Host: server.example.com", "Host: server.example.com:8080"),
        request_with("Host: server.example.com", "HOST:[::1]:8080"),
        request_with("Host: server.example.com", "Host: 127.0.0.1"),
        request_with("Host: server.example.com", "Host: localhost:"),
        request_with("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version:  13 \t"),
    ];
    for head in rows {
        assert_eq!(refusal(&head), None, "{head}");
    }
}

#[test]
fn refused() {
    let with_target = |target: &str| request("").replace("/chat", target);
    #[rustfmt::skip]
    let rows: &[(String, HandshakeError)] = &[
        // The request line.
        (request("").replace("HTTP/1.1", "HTTP/1.0"), HttpVersion),
        (request("").replace("HTTP/1.1", "HTTP/1.2"), HttpVersion),
        (request("").replace("HTTP/1.1", "http/1.1"), HttpVersion),
        ("PRI * HTTP/2.0\r\n\r\n".into(), TargetMalformed),
        ("GET /chat\r\n\r\n".into(), NotHttp),                           // HTTP/0.9
        (request("").replace("GET ", "GET  "), NotHttp),
        (request("").replace("GET ", "G(T "), NotHttp),
        (request("").replace("HTTP/1.1", "HTTP/1.1 "), LineEnd),
        (format!("\r\n\r\n\r\n{}", request("")), NotHttp),
        (format!(" {}", request("")), NotHttp),
        ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".into(), Tls),
        (with_target("chat"), TargetMalformed),
        (with_target("*"), TargetMalformed),
        (with_target("example.com:80"), TargetMalformed),
        (with_target("/chat#top"), TargetMalformed),
        (with_target("/caf\u{e9}"), TargetMalformed),
        (with_target("ftp://example.com/chat"), TargetMalformed),
        (with_target("http:///chat"), TargetMalformed),
        (with_target("http://user@example.com/chat"), TargetMalformed),
        (with_target(&format!("/{}", "x".repeat(64))), TargetTooLong),
        // Lines.
        (request("").replace("\r\n", "\n"), LineEnd),
        (request("X: y\n"), LineEnd),
        (format!("G\nT {}", "x".repeat(100)), LineEnd),
        (request("X: y\r\n\n"), LineEnd),
        (request("X: a\rb\r\n"), FieldMalformed),
        (request("X : y\r\n"), FieldMalformed),
        (request(" X: y\r\n"), FieldMalformed),                          // folded
        (request("X: y\r\n\tz\r\n"), FieldMalformed),
        (request("X: a\0b\r\n"), FieldMalformed),
        (request("X: a\u{7f}b\r\n"), FieldMalformed),
        (request("X: a\u{1b}b\r\n"), FieldMalformed),
        (request(": y\r\n"), FieldMalformed),
        (request("no colon\r\n"), FieldMalformed),
        (request("X\u{e9}: y\r\n"), FieldMalformed),
        // Host.
        (request_with("Host: server.example.com", ""), HostMissing),
        (request("Host: server.example.com\r\n"), HostRepeated),
        (request("host:\r\n"), HostRepeated),
        (request_with("Host: server.example.com", "Host:"), HostMalformed),
        (request_with("Host: server.example.com", "Host: a b"), HostMalformed),
        (request_with("Host: server.example.com", "Host: a, b"), HostMalformed),
        (request_with("Host: server.example.com", "Host: a/b"), HostMalformed),
        (request_with("Host: server.example.com", "Host: http://a"), HostMalformed),
        (request_with("Host: server.example.com", "Host: user@a"), HostMalformed),
        (request_with("Host: server.example.com", "Host: @a"), HostMalformed),
        (request_with("Host: server.example.com", "Host: a:b"), HostMalformed),
        (request_with("Host: server.example.com", "Host: a:99999"), HostMalformed),
        (request_with("Host: server.example.com", "Host: a:+80"), HostMalformed),
        (request_with("Host: server.example.com", "Host: a:80:80"), HostMalformed),
        (request_with("Host: server.example.com", "Host: :80"), HostMalformed),
        (request_with("Host: server.example.com", "Host: ::1"), HostMalformed),
        (request_with("Host: server.example.com", "Host: [::1"), HostMalformed),
        (request_with("Host: server.example.com", "Host: [zz]"), HostMalformed),
        (request_with("Host: server.example.com", "Host: [::1]a"), HostMalformed),
        (request_with("Host: server.example.com", "Host: caf\u{e9}"), HostMalformed),
        // A body.
        (request("Content-Length: 5\r\n"), Body),
        (request("Content-Length: 0\r\nContent-Length: 0\r\n"), Body),
        (request("Content-Length: 0, 0\r\n"), Body),
        (request("Content-Length: -0\r\n"), Body),
        (request("Content-Length:\r\n"), Body),
        (request("Transfer-Encoding: chunked\r\n"), Body),
        (request("Transfer-Encoding: identity\r\n"), Body),
        // The upgrade.
        (request_with("Upgrade: websocket", ""), UpgradeRequired),
        (request_with("Upgrade: websocket", "Upgrade: h2c"), UpgradeRequired),
        (request_with("Upgrade: websocket", "Upgrade: websockets"), UpgradeRequired),
        (request_with("Connection: Upgrade", ""), ConnectionNotUpgrade),
        (request_with("Connection: Upgrade", "Connection: keep-alive"), ConnectionNotUpgrade),
        (request_with("Sec-WebSocket-Version: 13", ""), VersionMissing),
        (request_with("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"), VersionUnsupported),
        (request_with("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 013"), VersionUnsupported),
        (request_with("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version:"), VersionUnsupported),
        (request("Sec-WebSocket-Version: 13\r\n"), VersionRepeated),
        (request_with("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", ""), KeyMissing),
        (request("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), KeyRepeated),
    ];
    for (head, error) in rows {
        assert_eq!(refusal(head), Some(*error), "{head}");
    }
}

#[test]
fn keys() {
    for (key, good) in [
        ("AAAAAAAAAAAAAAAAAAAAAA==", true),
        ("AAAAAAAAAAAAAAAAAAAAAB==", false), // unused bits set
        ("AAAAAAAAAAAAAAAAAAAAAA", false),
        ("AAAAAAAAAAAAAAAAAAAAAA=", false),
        ("AAAAAAAAAAAAAAAAAAAAAA===", false),
        ("AAAAAAAAAAAAAAAAAAAAAAA=", false), // 17 bytes
        ("AAAAAAAAAAAAAAAAAAAAAAAA", false), // 18 bytes
        ("AAAAAAAAAAAAAAAAAAAAAAAAAAAA", false),
        ("AAAAAAAAAAAA AAAAAAAAAA==", false),
        ("-_AAAAAAAAAAAAAAAAAAAA==", false), // the alphabet for URLs
        ("", false),
    ] {
        let head = request_with(
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            &format!("Sec-WebSocket-Key: {key}"),
        );
        assert_eq!(refusal(head), (!good).then_some(KeyMalformed), "{key}");
    }
}

#[test]
fn targets() {
    #[rustfmt::skip]
    let rows = [
        ("/", "/", None),
        ("/raw/a%20b?token=x?y", "/raw/a%20b", Some("token=x?y")),
        ("/?", "/", Some("")),
        ("//ws", "//ws", None),
        ("http://example.com/ws", "/ws", None),
        ("WS://example.com:80/ws?q", "/ws", Some("q")),
        ("http://example.com", "/", None),
        ("http://[::1]?q", "/", Some("q")),
        ("/http://example.com", "/http://example.com", None),
    ];
    for (target, path, query) in rows {
        let head = request("").replace("/chat", target);
        let request = complete(head.as_bytes()).unwrap();
        assert_eq!((request.path, request.query), (path, query), "{target}");
    }
}

#[test]
fn methods() {
    for (method, expected) in [
        ("GET", Method::Get),
        ("HEAD", Method::Head),
        ("get", Method::Other),
        ("POST", Method::Other),
        ("GETS", Method::Other),
    ] {
        let head = request("").replace("GET", method);
        assert_eq!(complete(head.as_bytes()).unwrap().method, expected);
    }
}

#[test]
fn subprotocols() {
    #[rustfmt::skip]
    let rows = [
        ("", false),
        ("Sec-WebSocket-Protocol: fanwire.v1\r\n", true),
        ("sec-websocket-protocol:chat,fanwire.v1\r\n", true),
        ("Sec-WebSocket-Protocol: chat , , fanwire.v1 \t\r\n", true),
        ("Sec-WebSocket-Protocol: chat\r\nX: y\r\nSec-WebSocket-Protocol: fanwire.v1\r\n", true),
        ("Sec-WebSocket-Protocol: FANWIRE.V1\r\n", false),
        ("Sec-WebSocket-Protocol: fanwire.v12, xfanwire.v1\r\n", false),
        ("X-Sec-WebSocket-Protocol: fanwire.v1\r\n", false),
        ("X: Sec-WebSocket-Protocol: fanwire.v1\r\n", false),
    ];
    for (lines, expected) in rows {
        let head = request(lines);
        let upgrade = complete(head.as_bytes()).unwrap().upgrade().unwrap();
        assert_eq!(upgrade.offers("fanwire.v1"), expected, "{lines}");
        assert!(!upgrade.offers(""), "{lines}");
    }
}

#[test]
fn frames_behind_the_request_are_left() {
    let head = request("");
    // A line feed among them is theirs, not the head's.
    let stream = [head.as_bytes(), b"\x81\x85\n\n\r\n\r\n"].concat();
    let Ok(Progress::Complete { consumed, .. }) = parse(&stream, &LIMITS) else { panic!() };
    assert_eq!(consumed, head.len());
    let stream = [b"\r\n", &stream[..]].concat();
    let Ok(Progress::Complete { consumed, .. }) = parse(&stream, &LIMITS) else { panic!() };
    assert_eq!(consumed, 2 + head.len());
}

#[test]
#[cfg_attr(miri, ignore = "long heads, byte by byte, take minutes")]
fn limits() {
    let head = request("");
    let at = |handshake_bytes_max| HandshakeLimits { handshake_bytes_max, ..LIMITS };
    let target_at = |target_bytes_max| HandshakeLimits { target_bytes_max, ..LIMITS };
    let error = |limits| parse(head.as_bytes(), &limits).err();
    assert_eq!(error(at(head.len())), None);
    assert_eq!(error(at(head.len() - 1)), Some(HeadTooLong));
    assert_eq!(error(at("GET /chat HTTP/1.1\r\n".len())), Some(HeadTooLong));
    assert_eq!(error(at("GET /chat HTTP/1.1\r".len())), Some(TargetTooLong));
    assert_eq!(error(target_at("/chat".len())), None);
    assert_eq!(error(target_at("/chat".len() - 1)), Some(TargetTooLong));
    // An endless target is refused before it ends, an endless method at the limit of the head.
    let endless = format!("GET /{}", "x".repeat(64));
    assert_eq!(parse(endless.as_bytes(), &LIMITS), Err(TargetTooLong));
    assert_eq!(parse(&[b'G'; 8192], &LIMITS), Err(TargetTooLong));
    assert_eq!(parse(&[b'G'; 8191], &LIMITS), Ok(Progress::Incomplete));

    let fields = |count| {
        let own = request("").matches(": ").count();
        request(&"X: y\r\n".repeat(count - own))
    };
    assert_eq!(refusal(fields(FIELDS_MAX)), None);
    assert_eq!(refusal(fields(FIELDS_MAX + 1)), Some(TooManyFields));
}

#[test]
fn garbage_is_refused_at_once() {
    for (bytes, error) in [
        (&b"\x16"[..], Tls),
        (b"\x00", NotHttp),
        (b"\x81\x85", NotHttp),
        (b"GET\r", NotHttp),
        (b"\n", LineEnd),
        (b"{\"type\":\"join\"}", NotHttp),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", NotHttp),
    ] {
        assert_eq!(parse(bytes, &LIMITS), Err(error), "{}", bytes.escape_ascii());
    }
}

/// A head that trickles: nearly all calls look at the new byte only.
#[test]
fn most_calls_do_not_parse() {
    let head = request(&format!("X: {}\r\n", "y".repeat(7000)));
    let parses = (1..=head.len()).filter(|&len| parsing_pays(&head.as_bytes()[..len], len - 1));
    assert_eq!(parses.count(), 22); // 1, 2, 4 .. 4096, and the end of each line
}

#[test]
fn rooms() {
    for (segment, expected) in [
        ("lobby", Ok("lobby")),
        ("caf%C3%A9", Ok("café")),
        ("a%2Fb%2fc", Ok("a/b/c")),
        ("100%25", Ok("100%")),
        ("a+b", Ok("a+b")),
        ("%00", Ok("\0")),
        ("", Err(NotFound)),
        ("a/b", Err(NotFound)),
        ("%", Err(RoomMalformed)),
        ("%2", Err(RoomMalformed)),
        ("%2g", Err(RoomMalformed)),
        ("%%20", Err(RoomMalformed)),
        ("%ff", Err(RoomMalformed)),
        ("%C3", Err(RoomMalformed)),
        ("%ED%A0%80", Err(RoomMalformed)),
    ] {
        assert_eq!(percent_decode_room(segment).as_deref(), expected.as_ref().map(|s| *s));
    }
}

#[test]
fn refusals() {
    #[rustfmt::skip]
    let rows: &[(HandshakeError, &str, &[&str])] = &[
        (NotHttp, "400 Bad Request", &["Connection: close"]),
        (NotFound, "404 Not Found", &["Connection: close"]),
        (MethodNotAllowed, "405 Method Not Allowed", &["Connection: close", "Allow: GET"]),
        (PageMethodNotAllowed, "405 Method Not Allowed", &["Connection: close", "Allow: GET, HEAD"]),
        (Timeout, "408 Request Timeout", &["Connection: close"]),
        (TargetTooLong, "414 URI Too Long", &["Connection: close"]),
        (VersionUnsupported, "426 Upgrade Required",
            &["Connection: Upgrade, close", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]),
        (UpgradeRequired, "426 Upgrade Required",
            &["Connection: Upgrade, close", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]),
        (HeadTooLong, "431 Request Header Fields Too Large", &["Connection: close"]),
        (Full, "503 Service Unavailable", &["Connection: close", "Retry-After: 5"]),
        (Draining, "503 Service Unavailable", &["Connection: close", "Retry-After: 5"]),
    ];
    for (error, status, lines) in rows {
        let mut out = BytesMut::new();
        encode_refusal(*error, Method::Get, &mut out);
        let text = std::str::from_utf8(&out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut actual: Vec<&str> = head.split("\r\n").collect();
        let (status, length) =
            (format!("HTTP/1.1 {status}"), format!("Content-Length: {}", body.len()));
        let mut expected = vec![&status[..], &length, "Content-Type: text/plain; charset=utf-8"];
        expected.extend_from_slice(lines);
        actual.sort();
        expected.sort();
        assert_eq!(actual, expected);
        assert_eq!(body, format!("{}\n", error.message()));
    }
}

#[test]
fn page() {
    let mut out = BytesMut::new();
    encode_page("text/html; charset=utf-8", &[("Cache-Control", "no-cache")], 1234, &mut out);
    assert_eq!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 1234\r\n\
         Cache-Control: no-cache\r\nConnection: close\r\n\r\n"
    );
}

/// Requests that are mostly right, with a byte or a line that may not be.
fn heads() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        4 => "[A-Za-z-]{1,20}: [ -~]{0,40}\r\n",
        1 => Just("Host: again\r\n".to_string()),
        1 => Just("Transfer-Encoding: chunked\r\n".to_string()),
        1 => "\\PC{0,20}\r?\n",
    ];
    let lines = proptest::collection::vec(line, 0..8).prop_map(|lines| lines.concat());
    let target = prop_oneof![3 => "/[!-~]{0,40}", 1 => "[!-~]{1,100}"];
    let change = proptest::option::weighted(0.4, any::<(proptest::sample::Index, u8)>());
    (lines, target, change, "(\r\n){0,3}").prop_map(|(lines, target, change, before)| {
        let head = before + &request(&lines).replace("/chat", &target) + "\u{1}\n\n\r\n\r\n";
        let mut head = head.into_bytes();
        if let Some((at, byte)) = change {
            let at = at.index(head.len());
            head[at] = byte;
        }
        head
    })
}

proptest! {
    #[test]
    fn any_split_gives_the_same_result(
        head in heads(),
        pieces in proptest::collection::vec(1usize..100, 1..8),
        handshake_bytes_max in prop_oneof![Just(8192), 20usize..600],
    ) {
        let limits = HandshakeLimits { handshake_bytes_max, ..LIMITS };
        let whole = parse_request(&head, 0, &limits);
        let mut seen = 0;
        for piece in pieces.into_iter().cycle() {
            let next = (seen + piece).min(head.len());
            let result = parse_request(&head[..next], seen, &limits);
            if result != Ok(Progress::Incomplete) {
                prop_assert_eq!(result, whole);
                break;
            }
            if next == head.len() {
                let complete = matches!(whole, Ok(Progress::Complete { .. }));
                prop_assert!(!complete, "the end of the head went by");
                break;
            }
            seen = next;
        }
    }

    #[test]
    fn any_bytes_are_survived(data: Vec<u8>, head in heads(), piece: u8) {
        fuzz_handshake(&data);
        fuzz_handshake(&[&[piece], &head[..]].concat());
    }
}
