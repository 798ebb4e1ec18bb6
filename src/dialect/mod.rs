//! What messages mean: each dialect translates between messages and commands, purely.
//!
//! | Path        | Dialect      | A message is                                   |
//! |-------------|--------------|------------------------------------------------|
//! | `/ws`       | [`native`]   | a JSON object: join, leave, broadcast, ping    |
//! | `/raw/ROOM` | raw          | published verbatim to the room joined by path  |
//! | `/echo`     | echo         | sent back to its sender                        |
//! | `/`         | -            | no WebSocket: the chat page                    |
//!
//! Raw and echo have nothing to translate, so they have no file. A new client protocol is one
//! more file here and one more [`Endpoint`]. What backends post over HTTP is [`publish`].

pub mod native;
pub mod publish;

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::config::Limits;
use crate::protocol::handshake;
use crate::protocol::{HandshakeError, Method};

/// The chat page, served at `/`: one self-contained file.
pub const PAGE: &str = include_str!("page.html");

/// What may talk to and be fetched by the chat page: nothing but this server.
pub const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
    script-src 'unsafe-inline'; connect-src 'self' ws: wss:; img-src data:; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

/// The subprotocol of `/raw/ROOM`. A browser that offers a token as a subprotocol needs another
/// one beside it to be answered with, or it fails the connection.
pub const RAW_SUBPROTOCOL: &str = "fanwire.raw.v1";

/// The dialect of an open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/ws`
    Native,
    /// `/raw/ROOM`
    Raw,
    /// `/echo`
    Echo,
}

impl Endpoint {
    /// The subprotocol that it speaks (RFC 6455 §1.9), answered when a client offers it.
    #[must_use]
    pub const fn subprotocol(self) -> Option<&'static str> {
        match self {
            Self::Native => Some(native::SUBPROTOCOL),
            Self::Raw => Some(RAW_SUBPROTOCOL),
            Self::Echo => None,
        }
    }

    /// The name in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "ws",
            Self::Raw => "raw",
            Self::Echo => "echo",
        }
    }

    /// The longest message it takes, in bytes.
    #[must_use]
    pub fn message_bytes_max(self, limits: &Limits) -> usize {
        match self {
            Self::Native => limits.ws_message_bytes_max,
            Self::Raw => limits.raw_message_bytes_max,
            Self::Echo => limits.echo_message_bytes_max,
        }
    }
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<'p> {
    /// The chat page.
    Page,
    /// The native protocol.
    Native,
    /// A raw room.
    Raw(Cow<'p, str>),
    /// Echo.
    Echo,
}

/// Finds what `path` (as sent, percent-encoded, without its query) names.
///
/// # Errors
/// 404 for a path that names nothing, or `/echo` when it is off; 400 for a room name that is no
/// UTF-8, or has control characters or others than `room_id_alphabet`; 414 for one that is too
/// long; 405 for a method the path does not have.
pub fn route<'p>(
    method: Method,
    path: &'p str,
    limits: &Limits,
) -> Result<Route<'p>, HandshakeError> {
    let route = match path {
        "/" => Route::Page,
        "/ws" => Route::Native,
        "/echo" if limits.echo => Route::Echo,
        _ => match path.strip_prefix("/raw/") {
            Some(segment) if !segment.is_empty() && !segment.contains('/') => {
                let name = handshake::percent_decode_room(segment)?;
                if name.len() > limits.room_id_bytes_max {
                    return Err(HandshakeError::RoomTooLong);
                }
                if !is_name(&name, limits.room_id_bytes_max) {
                    return Err(HandshakeError::RoomMalformed);
                }
                if !limits.room_id_alphabet.allows(&name) {
                    return Err(HandshakeError::RoomAlphabet);
                }
                Route::Raw(name)
            }
            _ => return Err(HandshakeError::NotFound),
        },
    };
    match (method, &route) {
        (Method::Get, _) | (Method::Head, Route::Page) => Ok(route),
        (_, Route::Page) => Err(HandshakeError::PageMethodNotAllowed),
        _ => Err(HandshakeError::MethodNotAllowed),
    }
}

/// Whether `name` may name a room or a user: not empty, at most `bytes_max` bytes, no control
/// characters (they have no business in logs and terminals).
#[must_use]
pub fn is_name(name: &str, bytes_max: usize) -> bool {
    !name.is_empty() && name.len() <= bytes_max && !name.chars().any(char::is_control)
}

/// Whether `text` is JSON at all: for whoever could not read what was expected there. The kind of
/// error does not tell. What is no JSON may look like the wrong JSON at first, and a number that is
/// too large for every type (`1e400`) like none.
#[must_use]
pub fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RoomAlphabet;

    #[test]
    fn json() {
        for text in ["1e400", "{\"a\":1,\"a\":[-1e999]}", " null ", "\"\\ud800\""] {
            assert!(is_json(text.as_bytes()), "{text}");
        }
        for text in ["", "1e", "{\"a\":1,\"a\":}", "1 2", "\"\\x\"", "nul"] {
            assert!(!is_json(text.as_bytes()), "{text}");
        }
        assert!(!is_json(b"\"\xff\""));
    }

    #[test]
    fn routes() {
        let limits = Limits { echo: true, room_id_bytes_max: 8, ..Limits::default() };
        let raw = |name: &'static str| Ok(Route::Raw(Cow::from(name)));
        for (method, path, expected) in [
            (Method::Get, "/", Ok(Route::Page)),
            (Method::Head, "/", Ok(Route::Page)),
            (Method::Other, "/", Err(HandshakeError::PageMethodNotAllowed)),
            (Method::Get, "/ws", Ok(Route::Native)),
            (Method::Head, "/ws", Err(HandshakeError::MethodNotAllowed)),
            (Method::Get, "/ws/", Err(HandshakeError::NotFound)),
            (Method::Get, "/echo", Ok(Route::Echo)),
            (Method::Get, "/raw/all", raw("all")),
            (Method::Get, "/raw/a%20%C3%A9", raw("a é")),
            (Method::Get, "/raw/a%2Fb", raw("a/b")),
            (Method::Get, "/raw/12345678", raw("12345678")),
            (Method::Get, "/raw/123456789", Err(HandshakeError::RoomTooLong)),
            (Method::Get, "/raw/a%0A", Err(HandshakeError::RoomMalformed)),
            (Method::Get, "/raw/", Err(HandshakeError::NotFound)),
            (Method::Get, "/raw", Err(HandshakeError::NotFound)),
            (Method::Get, "/raw/a/b", Err(HandshakeError::NotFound)),
            (Method::Get, "/nothing", Err(HandshakeError::NotFound)),
            (Method::Other, "/nothing", Err(HandshakeError::NotFound)),
        ] {
            assert_eq!(route(method, path, &limits), expected, "{method:?} {path}");
        }
        let token = Limits { room_id_alphabet: RoomAlphabet::Token, ..limits.clone() };
        assert_eq!(route(Method::Get, "/raw/a%3Ab", &token), raw("a:b"));
        let refused = route(Method::Get, "/raw/a%20b", &token);
        assert_eq!(refused, Err(HandshakeError::RoomAlphabet));
        let off = Limits { echo: false, ..limits };
        assert_eq!(route(Method::Get, "/echo", &off), Err(HandshakeError::NotFound));
    }
}
