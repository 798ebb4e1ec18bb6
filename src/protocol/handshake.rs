//! Opening handshake: the HTTP request that opens a connection (RFC 6455 §4, RFC 9112).
//!
//! ```text
//! bytes ── parse_request ──▶ Request ── the caller routes ──▶ Request::upgrade ──▶ Upgrade
//!               │            (method,    by method and path        │         (accept, offers)
//!               ▼             path, query)    │                    ▼                 │
//!         HandshakeError                      ▼              HandshakeError          ▼
//!               └───────────────────▶ encode_refusal ◀─────────────┘           encode_accept
//! ```
//!
//! Strict where laxness lets a proxy and this server read one request in two ways (RFC 9112 §11):
//! bare line feeds, folded lines, bodies, repeated fields. Lenient where clients differ harmlessly:
//! letter case, lists spread over several fields, empty list elements, unknown fields, a blank
//! line before the request.
//!
//! Stateless: the caller holds the bytes and calls again when there are more. The verdict on a
//! prefix is final, so any split of the bytes comes to the same result.
//! Never: routes, answers by itself, keeps or copies the request.

mod credentials;
mod response;

use std::borrow::Cow;
use std::net::Ipv6Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::percent_decode_str;
use sha1::{Digest, Sha1};

use super::error::HandshakeError;

pub use response::{encode_accept, encode_page, encode_refusal};

/// Most header fields in a request; more are refused with 431 (RFC 6585 §5).
pub const FIELDS_MAX: usize = 100;

/// Bounds of a request that is not trusted yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// Longest head, in bytes: request line, fields and the blank line.
    pub handshake_bytes_max: usize,
    /// Longest request target, in bytes (RFC 9112 §3).
    pub target_bytes_max: usize,
}

/// How far the bytes of a request have come.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress<'h> {
    /// The head is not complete, and nothing is wrong with it so far.
    Incomplete,
    /// The head is complete.
    Complete {
        /// What it says.
        request: Request<'h>,
        /// Its length in bytes; what follows are the first frames of an eager client.
        consumed: usize,
    },
}

/// The methods that are told apart (RFC 9110 §9.3). They are case-sensitive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `GET`: opens WebSocket connections (RFC 6455 §4.1), reads the page.
    Get,
    /// `HEAD`: the page's fields without the page.
    Head,
    /// Any other.
    Other,
}

/// A well-formed HTTP/1.1 request without a body (RFC 9112 §2.1).
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'h> {
    /// What is to be done.
    pub method: Method,
    /// The path as it was sent, percent-encoded, never empty (RFC 3986 §3.3).
    pub path: &'h str,
    /// What follows the first `?`, as it was sent (RFC 3986 §3.4).
    pub query: Option<&'h str>,
    fields: Fields<'h>,
}

/// A request that may become a WebSocket connection (RFC 6455 §4.2.1).
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade<'h> {
    /// The value of Sec-WebSocket-Accept that answers the client's key (RFC 6455 §4.2.2 item 5.4).
    pub accept: [u8; 28],
    field_lines: &'h [u8],
}

/// Parses the request at the start of `head`, everything received on the connection so far.
///
/// `already_seen` is the length of `head` at the previous call with it, 0 at the first: most calls
/// that bring a few bytes only look at these. The whole is parsed when a line has ended, at a
/// limit, and each time the length passes a power of two: a head that comes byte by byte is parsed
/// once per line (at most some hundred times), and garbage is noticed long before the end.
/// Allocates nothing but a short-lived copy of the Host value.
///
/// A blank line or two before the request are skipped (RFC 9112 §2.2).
///
/// # Errors
/// 400 for bad syntax, versions other than HTTP/1.1, a missing, repeated or malformed Host, and a
/// body; 414 and 431 when the head reaches a limit (RFC 9110 §15.5, RFC 6585 §5). The first error
/// in the order of the bytes is reported.
pub fn parse_request<'h>(
    head: &'h [u8],
    already_seen: usize,
    limits: &HandshakeLimits,
) -> Result<Progress<'h>, HandshakeError> {
    let at_limit = head.len() >= limits.handshake_bytes_max;
    let head = &head[..head.len().min(limits.handshake_bytes_max)];
    if !at_limit && !parsing_pays(head, already_seen) {
        return Ok(Progress::Incomplete);
    }
    let text = skip_blank_lines(head)?;
    if text.first() == Some(&TLS_HANDSHAKE) {
        return Err(HandshakeError::Tls);
    }
    let (stop, why) = find_stop(text, at_limit, limits.target_bytes_max);
    let mut storage = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut storage);
    let result = parsed.parse(&text[..stop]);

    // The earlier in the bytes, the earlier it is judged.
    let target = parsed.path.map(split_target).transpose()?;
    if parsed.version == Some(0) {
        return Err(HandshakeError::HttpVersion);
    }
    match (result, why) {
        (Err(error), _) => Err(syntax_error(error)),
        (Ok(_), Stop::Refuse(error)) => Err(error),
        (Ok(_), Stop::MoreNeeded) => Ok(Progress::Incomplete),
        (Ok(_), Stop::EndOfHead) => {
            // A complete head has a request line, and httparse has read it.
            let (path, query) = target.ok_or(HandshakeError::NotHttp)?;
            let method = match parsed.method {
                Some("GET") => Method::Get,
                Some("HEAD") => Method::Head,
                _ => Method::Other,
            };
            let fields = Fields::collect(parsed.headers, field_lines(&text[..stop]))?;
            let consumed = head.len() - text.len() + stop;
            Ok(Progress::Complete { request: Request { method, path, query, fields }, consumed })
        }
    }
}

/// Whether a full parse can tell something new about `head`; see [`parse_request`].
fn parsing_pays(head: &[u8], already_seen: usize) -> bool {
    let Some(already_seen_log2) = already_seen.checked_ilog2() else {
        return true;
    };
    head.len().checked_ilog2() != Some(already_seen_log2) || head[already_seen..].contains(&b'\n')
}

/// What follows the blank lines a client may send before its request (RFC 9112 §2.2).
fn skip_blank_lines(head: &[u8]) -> Result<&[u8], HandshakeError> {
    let mut text = head;
    for _ in 0..BLANK_LINES_MAX {
        text = text.strip_prefix(b"\r\n").unwrap_or(text);
    }
    if text.starts_with(b"\r\n") { Err(HandshakeError::NotHttp) } else { Ok(text) }
}

/// Why the parser is not to look behind a place in the head.
enum Stop {
    /// The blank line is there.
    EndOfHead,
    /// All that has come is good so far, or the parser finds the mistake.
    MoreNeeded,
    /// Unless the parser finds a mistake before this place, this is the first one.
    Refuse(HandshakeError),
}

/// Finds the first place in `text` behind which there is nothing to parse.
fn find_stop(text: &[u8], at_limit: bool, target_bytes_max: usize) -> (usize, Stop) {
    let mut stop = match at_limit {
        false => (text.len(), Stop::MoreNeeded),
        true if text.contains(&b'\n') => (text.len(), Stop::Refuse(HandshakeError::HeadTooLong)),
        true => (text.len(), Stop::Refuse(HandshakeError::TargetTooLong)),
    };
    for (i, _) in text.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        // httparse takes a line feed alone for the end of a line (RFC 9112 §2.2 lets it).
        if !text[..i].ends_with(b"\r") {
            stop = (i, Stop::Refuse(HandshakeError::LineEnd));
            break;
        }
        if text[..i].ends_with(b"\n\r") {
            stop = (i + 1, Stop::EndOfHead);
            break;
        }
    }
    if let Some(space) = text.iter().position(|byte| *byte == b' ') {
        let target = &text[space + 1..];
        let too_long = target.get(..=target_bytes_max).is_some_and(|start| !start.contains(&b' '));
        let limit = space + 1 + target_bytes_max;
        if too_long && limit < stop.0 {
            stop = (limit, Stop::Refuse(HandshakeError::TargetTooLong));
        }
    }
    stop
}

/// The lines between the request line and the blank line, each with its CR LF.
fn field_lines(head: &[u8]) -> &[u8] {
    let request_line_len = head.iter().position(|byte| *byte == b'\n').map_or(0, |i| i + 1);
    &head[request_line_len..head.len() - b"\r\n".len()]
}

fn syntax_error(error: httparse::Error) -> HandshakeError {
    use httparse::Error;
    match error {
        Error::Token | Error::Status => HandshakeError::NotHttp,
        Error::Version => HandshakeError::HttpVersion,
        Error::NewLine => HandshakeError::LineEnd,
        Error::HeaderName | Error::HeaderValue => HandshakeError::FieldMalformed,
        Error::TooManyHeaders => HandshakeError::TooManyFields,
    }
}

/// Path and query of a target in origin-form or absolute-form (RFC 9112 §3.2).
///
/// The authority of the absolute-form is checked and not used: there are no virtual hosts here.
fn split_target(target: &str) -> Result<(&str, Option<&str>), HandshakeError> {
    // No fragment (RFC 6455 §3); what is not ASCII must be percent-encoded (RFC 3986 §2).
    if !target.is_ascii() || target.contains('#') {
        return Err(HandshakeError::TargetMalformed);
    }
    let origin_form = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://").ok_or(HandshakeError::TargetMalformed)?;
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let known = ["http", "https", "ws", "wss"].iter().any(|s| scheme.eq_ignore_ascii_case(s));
        if !known || !is_host(authority.as_bytes()) {
            return Err(HandshakeError::TargetMalformed);
        }
        rest
    };
    let (path, query) = match origin_form.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (origin_form, None),
    };
    Ok((if path.is_empty() { "/" } else { path }, query))
}

/// Whether `value` is `host` or `host:port` (RFC 9110 §7.2, RFC 3986 §3.2), with a host, and
/// without user information or percent-encoding, which no name that is looked up has.
///
/// (Rejected: `http::uri::Authority`, which keeps a copy, an allocation for every handshake.)
fn is_host(value: &[u8]) -> bool {
    let Ok(value) = str::from_utf8(value) else {
        return false;
    };
    let (host_is_right, port) = match value.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((address, port))) => (address.parse::<Ipv6Addr>().is_ok(), port),
        Some(None) => return false,
        None => {
            let (name, port) = value.split_at(value.find(':').unwrap_or(value.len()));
            (!name.is_empty() && name.bytes().all(is_name_byte), port)
        }
    };
    let port_is_right = match port.strip_prefix(':') {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.is_empty() || digits.parse::<u16>().is_ok()
        }
        Some(_) => false,
        None => port.is_empty(),
    };
    host_is_right && port_is_right
}

/// Unreserved characters and sub-delimiters (RFC 3986 §2.2, §2.3).
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

/// What the header fields of a request say about things this server knows.
#[derive(Debug, PartialEq, Eq, Default)]
struct Fields<'h> {
    upgrade_lists_websocket: bool,
    connection_lists_upgrade: bool,
    key: Once<'h>,
    version: Once<'h>,
    /// All field lines, for lists that are looked at when the connection is about to open.
    lines: &'h [u8],
}

impl<'h> Fields<'h> {
    /// Goes over the fields once and checks what every request owes (RFC 9112 §3.2, §6).
    fn collect(
        headers: &[httparse::Header<'h>],
        lines: &'h [u8],
    ) -> Result<Fields<'h>, HandshakeError> {
        let mut fields = Fields { lines, ..Fields::default() };
        let (mut host, mut content_length) = (Once::Missing, Once::Missing);
        let mut transfer_encoding = false;
        for header in headers {
            let (name, value) = (header.name, header.value);
            if name.eq_ignore_ascii_case("host") {
                host.see(value);
            } else if name.eq_ignore_ascii_case("upgrade") {
                fields.upgrade_lists_websocket |= lists(value, "websocket");
            } else if name.eq_ignore_ascii_case("connection") {
                fields.connection_lists_upgrade |= lists(value, "upgrade");
            } else if name.eq_ignore_ascii_case("sec-websocket-key") {
                fields.key.see(value);
            } else if name.eq_ignore_ascii_case("sec-websocket-version") {
                fields.version.see(value);
            } else if name.eq_ignore_ascii_case("content-length") {
                content_length.see(value);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                transfer_encoding = true;
            }
        }
        let host = host.require(HandshakeError::HostMissing, HandshakeError::HostRepeated)?;
        if !is_host(host) {
            return Err(HandshakeError::HostMalformed);
        }
        // A body would be read as frames here and as a body by a proxy (RFC 9112 §11.2).
        if transfer_encoding || !matches!(content_length, Once::Missing | Once::Is(b"0")) {
            return Err(HandshakeError::Body);
        }
        Ok(fields)
    }
}

/// A field that must not come twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Once<'h> {
    #[default]
    Missing,
    Is(&'h [u8]),
    Repeated,
}

impl<'h> Once<'h> {
    fn see(&mut self, value: &'h [u8]) {
        *self = if *self == Once::Missing { Once::Is(value) } else { Once::Repeated };
    }

    fn require(
        self,
        missing: HandshakeError,
        repeated: HandshakeError,
    ) -> Result<&'h [u8], HandshakeError> {
        match self {
            Once::Missing => Err(missing),
            Once::Is(value) => Ok(value),
            Once::Repeated => Err(repeated),
        }
    }
}

impl<'h> Request<'h> {
    /// The values of all fields called `name`, in any letter case, in order (RFC 9110 §5.3).
    pub fn values(&self, name: &'static str) -> impl Iterator<Item = &'h [u8]> {
        credentials::values(self.fields.lines, name)
    }

    /// Checks that the client asks for a WebSocket connection in a way that can be answered
    /// (RFC 6455 §4.2.1); the method is the caller's to check.
    ///
    /// Cost: one SHA-1 of 60 bytes, no allocation.
    ///
    /// # Errors
    /// `UpgradeRequired` for a plain request, `ConnectionNotUpgrade`, `VersionUnsupported`, and
    /// what can be missing, repeated or malformed in version and key, in this order.
    pub fn upgrade(&self) -> Result<Upgrade<'h>, HandshakeError> {
        let fields = &self.fields;
        if !fields.upgrade_lists_websocket {
            return Err(HandshakeError::UpgradeRequired);
        }
        if !fields.connection_lists_upgrade {
            return Err(HandshakeError::ConnectionNotUpgrade);
        }
        let version = fields
            .version
            .require(HandshakeError::VersionMissing, HandshakeError::VersionRepeated)?;
        // Before the key: another version may have other rules for it.
        if version != b"13" {
            return Err(HandshakeError::VersionUnsupported);
        }
        let key = fields.key.require(HandshakeError::KeyMissing, HandshakeError::KeyRepeated)?;
        Ok(Upgrade { accept: accept(key)?, field_lines: fields.lines })
    }
}

/// The answer to a client's key (RFC 6455 §4.2.2 item 5.4).
fn accept(key: &[u8]) -> Result<[u8; 28], HandshakeError> {
    // The strict engine: padding must be there, and the unused bits zero (RFC 4648 §3.5).
    let mut nonce = [0; 18];
    if key.len() != 24 || BASE64.decode_slice(key, &mut nonce) != Ok(16) {
        return Err(HandshakeError::KeyMalformed);
    }
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    let mut accept = [0; 28];
    let len = BASE64.encode_slice(digest, &mut accept);
    assert_eq!(len, Ok(accept.len()), "20 bytes are 28 in Base64");
    Ok(accept)
}

impl Upgrade<'_> {
    /// Whether the client offers this subprotocol, in any of its fields (RFC 6455 §11.3.4).
    /// The names are case-sensitive.
    pub fn offers(&self, subprotocol: &str) -> bool {
        credentials::values(self.field_lines, "sec-websocket-protocol")
            .flat_map(list)
            .any(|offered| offered == subprotocol.as_bytes())
    }
}

/// Whether the list in `value` contains `token`, in any letter case (RFC 9110 §7.6.1, §7.8).
fn lists(value: &[u8], token: &str) -> bool {
    list(value).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

/// The elements of a comma-separated list; empty ones do not count (RFC 9110 §5.6.1).
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// The room that a path segment names (RFC 3986 §2.1, §3.3); its length is the caller's to check.
///
/// Allocates only if there is something to decode.
///
/// # Errors
/// `NotFound` for no name at all or for more than one segment, `RoomMalformed` for a `%` without
/// two hexadecimal digits or a name that is not UTF-8.
pub fn percent_decode_room(path_segment: &str) -> Result<Cow<'_, str>, HandshakeError> {
    if path_segment.is_empty() || path_segment.contains('/') {
        return Err(HandshakeError::NotFound);
    }
    // `percent_decode_str` lets a broken escape stand for itself: two readings of one name.
    let is_escape = |after_percent: &str| {
        after_percent.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2
    };
    if !path_segment.split('%').skip(1).all(is_escape) {
        return Err(HandshakeError::RoomMalformed);
    }
    percent_decode_str(path_segment).decode_utf8().map_err(|_| HandshakeError::RoomMalformed)
}

/// Blank lines accepted before the request (RFC 9112 §2.2): a client that ends a body with one too
/// many is old, one that sends more of them is no client.
const BLANK_LINES_MAX: usize = 2;

/// First byte of a TLS connection (RFC 8446 §5.1): no HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// What the key is hashed with (RFC 6455 §1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Feeds any bytes to the parser, whole and in pieces: the result must be the same.
///
/// The first byte of `data` is the length of the pieces, the rest is the request.
///
/// # Panics
/// When it is not, or when an invariant does not hold: that is a finding.
#[cfg(any(test, fuzzing))]
pub fn fuzz_handshake(data: &[u8]) {
    let Some((piece, head)) = data.split_first() else {
        return;
    };
    let limits = HandshakeLimits { handshake_bytes_max: 512, target_bytes_max: 64 };
    let whole = parse_request(head, 0, &limits);
    if let Ok(Progress::Complete { request, consumed }) = &whole {
        assert!(*consumed <= head.len().min(limits.handshake_bytes_max));
        assert!(request.path.len() <= limits.target_bytes_max);
        let _ = request.upgrade().map(|upgrade| upgrade.offers("fanwire.v1"));
        let _ = (request.bearer_token(), request.origin());
        let _ = percent_decode_room(request.path.trim_start_matches('/'));
    }
    let mut seen = 0;
    while seen < head.len() {
        let next = (seen + usize::from(*piece).max(1)).min(head.len());
        let result = parse_request(&head[..next], seen, &limits);
        if result != Ok(Progress::Incomplete) {
            assert_eq!(result, whole, "at {next} of {}", head.len());
            return;
        }
        seen = next;
    }
    // Nothing was found on the way: either it is incomplete, or it is wrong in a place that a
    // full parse at the next power of two, at the limit or at the end of the head would have seen.
    assert!(!matches!(whole, Ok(Progress::Complete { .. })));
}

#[cfg(test)]
mod tests;
