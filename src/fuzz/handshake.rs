//! Opening requests, held against a second reading, line by line.

use std::sync::LazyLock;

use bytes::BytesMut;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::config::Limits;
use crate::dialect::{Route, is_name, route};
use crate::protocol::handshake::fuzz_handshake;
use crate::protocol::{
    HandshakeLimits, Method, Progress, Request, encode_accept, encode_refusal, parse_request,
};

/// The first byte is the length of the pieces that the request comes in, the rest is the request.
///
/// # Panics
/// When the verdict depends on the pieces, when a request is taken that two readers could read in
/// two ways, or when it is answered with something that is no answer.
pub fn handshake(data: &[u8]) {
    static LIMITS: LazyLock<Limits> =
        LazyLock::new(|| Limits { echo: true, room_id_bytes_max: 32, ..Limits::default() });
    fuzz_handshake(data);
    let head = data.get(1..).unwrap_or_default();
    let limits = HandshakeLimits { handshake_bytes_max: 1024, target_bytes_max: 128 };
    let refusal = match parse_request(head, 0, &limits) {
        Ok(Progress::Incomplete) => None,
        Ok(Progress::Complete { request, consumed }) => {
            check_lines(&head[..consumed], &request);
            answer(&request, &LIMITS).err()
        }
        Err(error) => Some(error),
    };
    if let Some(error) = refusal {
        for method in [Method::Get, Method::Head] {
            let mut out = BytesMut::new();
            encode_refusal(error, method, &mut out);
            check_response(&out, error.status(), method);
        }
    }
}

/// Does what a shard does with a request.
fn answer(request: &Request<'_>, limits: &Limits) -> Result<(), crate::protocol::HandshakeError> {
    let route = route(request.method, request.path, limits)?;
    if let Route::Raw(name) = &route {
        assert!(is_name(name, limits.room_id_bytes_max));
        // The name alone says which room it is, however it was encoded.
        let path = format!("/raw/{}", utf8_percent_encode(name, NON_ALPHANUMERIC));
        assert_eq!(crate::dialect::route(Method::Get, &path, limits).as_ref(), Ok(&route));
    }
    let token = request.bearer_token()?;
    assert!(token.is_none_or(|token| token.len() <= 1024));
    assert!(request.origin().is_none_or(|origin| !origin.contains(['\r', '\n'])));
    let upgrade = request.upgrade()?;
    let subprotocol = upgrade.offers("fanwire.v1").then_some("fanwire.v1");
    let mut out = BytesMut::new();
    encode_accept(&upgrade.accept, subprotocol, &mut out);
    check_response(&out, 101, request.method);
    Ok(())
}

/// What every reader of the lines must find in a request that was taken (RFC 9112 §2, §3.2, §6).
fn check_lines(head: &[u8], request: &Request<'_>) {
    let text = head.strip_suffix(b"\r\n\r\n").expect("it ends with a blank line");
    let text = text.strip_prefix(b"\r\n").unwrap_or(text);
    let text = text.strip_prefix(b"\r\n").unwrap_or(text);
    let mut lines = text.split(|byte| *byte == b'\n');
    let start = lines.next().unwrap_or_default();
    let words: Vec<&[u8]> = start.trim_ascii_end().split(|byte| *byte == b' ').collect();
    assert_eq!((words.len(), words.get(2)), (3, Some(&&b"HTTP/1.1"[..])), "{start:?}");
    let method = match words[0] {
        b"GET" => Method::Get,
        b"HEAD" => Method::Head,
        _ => Method::Other,
    };
    assert_eq!(request.method, method);
    assert!(request.path.starts_with('/') && !request.path.contains(['?', '#', ' ']));
    let (mut hosts, mut lengths) = (0, 0);
    for line in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        assert!(!line.contains(&b'\r') && !line.contains(&b'\0'), "{}", line.escape_ascii());
        let colon = line.iter().position(|byte| *byte == b':').expect("a field has a name");
        let (name, value) = (line[..colon].to_ascii_lowercase(), line[colon + 1..].trim_ascii());
        assert!(!name.is_empty() && name.iter().all(u8::is_ascii_graphic), "{name:?}");
        match &name[..] {
            b"host" => hosts += 1,
            b"content-length" => {
                lengths += 1;
                assert_eq!(value, b"0", "a body");
            }
            b"transfer-encoding" => panic!("a body"),
            _ => {}
        }
    }
    assert!(hosts == 1 && lengths <= 1, "{}", text.escape_ascii());
}

/// Whether `response` is one of this status, with a body as long as it says.
fn check_response(response: &[u8], status: u16, method: Method) {
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = parsed.parse(response) else {
        panic!("no response: {}", response.escape_ascii());
    };
    assert_eq!(parsed.code, Some(status));
    let length = parsed.headers.iter().find(|field| field.name == "Content-Length");
    let length = length.map(|field| String::from_utf8_lossy(field.value).parse::<usize>());
    match method {
        Method::Head => assert_eq!(response.len(), head),
        _ => assert_eq!(length.unwrap_or(Ok(0)), Ok(response.len() - head)),
    }
}
