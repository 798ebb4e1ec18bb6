//! HTTP responses of the opening handshake (RFC 6455 §4.2.2, RFC 9112 §4).
//!
//! Every response but the 101 announces that the connection closes: what follows a refused or
//! plain request is never read as another one.

use bytes::{BufMut, BytesMut};
use http::StatusCode;

use super::Method;
use crate::protocol::error::HandshakeError;

/// Appends the 101 that opens the connection (RFC 6455 §4.2.2 item 5).
///
/// `accept` is [`super::Upgrade::accept`]; `subprotocol` is one the client offers, or none.
pub fn encode_accept(accept: &[u8; 28], subprotocol: Option<&str>, out: &mut BytesMut) {
    put_status(StatusCode::SWITCHING_PROTOCOLS, out);
    put_field("Upgrade", b"websocket", out);
    put_field("Connection", b"Upgrade", out);
    put_field("Sec-WebSocket-Accept", accept, out);
    if let Some(subprotocol) = subprotocol {
        put_field("Sec-WebSocket-Protocol", subprotocol.as_bytes(), out);
    }
    out.put_slice(CRLF);
}

/// Appends the whole response that refuses a handshake (RFC 6455 §4.2.2, RFC 9110 §15). Its body
/// is the error's message, and left out if the method was HEAD (RFC 9110 §9.3.2).
pub fn encode_refusal(error: HandshakeError, method: Method, out: &mut BytesMut) {
    let status = error.status();
    put_status(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), out);
    match error {
        HandshakeError::MethodNotAllowed => put_field("Allow", b"GET", out),
        HandshakeError::PageMethodNotAllowed => put_field("Allow", b"GET, HEAD", out),
        HandshakeError::TokenMissing => put_challenge("", out),
        HandshakeError::TokenRepeated => put_challenge(", error=\"invalid_request\"", out),
        HandshakeError::TokenInvalid => put_challenge(", error=\"invalid_token\"", out),
        HandshakeError::RoomForbidden => put_challenge(", error=\"insufficient_scope\"", out),
        _ => {}
    }
    if matches!(status, 429 | 503) {
        put_field("Retry-After", RETRY_AFTER_S, out);
    }
    if status == 426 {
        put_field("Upgrade", b"websocket", out);
        put_field("Sec-WebSocket-Version", b"13", out);
        put_field("Connection", b"Upgrade, close", out);
    } else {
        put_field("Connection", b"close", out);
    }
    put_field("Content-Type", b"text/plain; charset=utf-8", out);
    let body = error.message().as_bytes();
    put_content_length(body.len() + 1, out);
    out.put_slice(CRLF);
    if method != Method::Head {
        out.put_slice(body);
        out.put_u8(b'\n');
    }
}

/// Appends the head of a 200 whose body of `body_len` bytes the caller sends after it, or leaves
/// out if the method is HEAD (RFC 9110 §15.3.1).
///
/// `extra_fields` are names and values without line ends.
pub fn encode_page(
    content_type: &str,
    extra_fields: &[(&str, &str)],
    body_len: usize,
    out: &mut BytesMut,
) {
    put_status(StatusCode::OK, out);
    put_field("Content-Type", content_type.as_bytes(), out);
    put_content_length(body_len, out);
    for (name, value) in extra_fields {
        put_field(name, value.as_bytes(), out);
    }
    put_field("Connection", b"close", out);
    out.put_slice(CRLF);
}

fn put_status(status: StatusCode, out: &mut BytesMut) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(CRLF);
}

/// Says how to authenticate, and what was wrong with it (RFC 6750 §3).
fn put_challenge(error: &str, out: &mut BytesMut) {
    put_field("WWW-Authenticate", format!("Bearer realm=\"fanwire\"{error}").as_bytes(), out);
}

fn put_content_length(len: usize, out: &mut BytesMut) {
    put_field("Content-Length", itoa::Buffer::new().format(len).as_bytes(), out);
}

fn put_field(name: &str, value: &[u8], out: &mut BytesMut) {
    debug_assert!(!value.contains(&b'\r') && !value.contains(&b'\n'), "{name} would end its line");
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(CRLF);
}

const CRLF: &[u8] = b"\r\n";

/// When a refused client should come back, in seconds (RFC 9110 §10.2.3).
const RETRY_AFTER_S: &[u8] = b"5";
