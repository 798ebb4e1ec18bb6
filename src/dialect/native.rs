//! The native protocol, version 1: one JSON object per text message.
//!
//! | Client sends                                    | Server answers                           |
//! |-------------------------------------------------|------------------------------------------|
//! | `{"type":"join","room_id":R,"user_id":U}`       | `{"type":"joined","room_id":R,"offset":N}` |
//! | `{"type":"leave","room_id":R}`                  | `{"type":"left","room_id":R}`            |
//! | `{"type":"broadcast","room_id":R,"content":C}`  | to every member: `{"type":"broadcast","room_id":R,"sender":U,"offset":N,"content":C}` |
//! | `{"type":"direct","user_id":U,"content":C}`     | to every connection of that user: `{"type":"direct","sender":U,"content":C}` |
//! | `{"type":"ping"}`                               | `{"type":"pong"}`                        |
//! | `{"type":"auth","token":T}`                     | `{"type":"authenticated","expires_in_s":N}` |
//!
//! A member that was too slow for a room that skips messages then is told so before the next
//! message of that room, `{"type":"skipped","room_id":R,"from":N,"to":M}`: the offsets of the first
//! and of the last message that it is not sent.
//!
//! Before the server closes the connection because it is about to end it says so,
//! `{"type":"system","event":"draining","reconnect_in_ms":N}`: each client is told another N, the
//! milliseconds to wait, once closed, before it comes back.
//!
//! With `"id":I` (a number or a string) the answer carries the same `id`, and a broadcast is
//! answered `{"type":"ack","id":I,"offset":N}`, a direct message `{"type":"ack","id":I,
//! "delivered":N}`: to so many connections. What cannot be done is answered
//! `{"type":"error","code":C,"message":M,"id":I}` and the connection stays open; the codes are
//! the closed list of [`ErrorCode`]. Unknown fields are ignored.
//!
//! `content` is any JSON value and passes through byte for byte: it is parsed once, to know where
//! it ends, and never serialised again.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{is_json, is_name};
use crate::config::Limits;

/// The subprotocol name.
pub const SUBPROTOCOL: &str = "fanwire.v1";

/// The longest `id` in bytes, as written in JSON.
pub const ID_BYTES_MAX: usize = 64;

/// The display name of a member that gave none.
pub const ANONYMOUS: &str = "anonymous";

/// A request, its names checked, its `id` and `content` as written.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'m> {
    /// The `id` of the request as JSON, if it has one.
    pub id: Option<&'m str>,
    /// What to do.
    pub command: Command<'m>,
}

/// What a client can ask for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'m> {
    /// Become a member.
    Join {
        /// The room.
        room_id: Cow<'m, str>,
        /// The display name in this room.
        user_id: Option<Cow<'m, str>>,
    },
    /// Be a member no more.
    Leave {
        /// The room.
        room_id: Cow<'m, str>,
    },
    /// Publish to all members.
    Broadcast {
        /// The room.
        room_id: Cow<'m, str>,
        /// The content as JSON.
        content: &'m str,
    },
    /// Send to all connections of a user.
    Direct {
        /// The user.
        user_id: Cow<'m, str>,
        /// The content as JSON.
        content: &'m str,
    },
    /// Answer `pong`.
    Ping,
    /// Go on with another token of the same user.
    Auth {
        /// The token, of any length and not looked into.
        token: Cow<'m, str>,
    },
}

/// Why a request is not carried out: a closed list, part of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The message is no JSON.
    InvalidJson,
    /// The message is no JSON object, is binary, repeats a field, or a field has a type that is
    /// not its own.
    InvalidMessage,
    /// `type` is none of the known ones.
    UnknownType,
    /// A field that the `type` needs is not there.
    MissingField,
    /// `room_id` is empty, too long, or has control characters or others that rooms have not here.
    InvalidRoomId,
    /// `user_id` is empty, too long, or has control characters.
    InvalidUserId,
    /// Only members may do that.
    NotMember,
    /// The connection is member of as many rooms as allowed.
    TooManyRooms,
    /// The token does not allow it.
    Forbidden,
    /// The new token is not accepted; the old one still counts.
    InvalidToken,
    /// This server asks nobody for a token.
    AuthOff,
    /// The room has as many members as it may.
    RoomFull,
    /// The server has no room for one more room now.
    ServerBusy,
}

impl ErrorCode {
    /// All of them; the place of each is its value `as usize`, for tables of counters.
    pub const ALL: [ErrorCode; 13] = [
        Self::InvalidJson,
        Self::InvalidMessage,
        Self::UnknownType,
        Self::MissingField,
        Self::InvalidRoomId,
        Self::InvalidUserId,
        Self::NotMember,
        Self::TooManyRooms,
        Self::Forbidden,
        Self::InvalidToken,
        Self::AuthOff,
        Self::RoomFull,
        Self::ServerBusy,
    ];

    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidMessage => "invalid_message",
            Self::UnknownType => "unknown_type",
            Self::MissingField => "missing_field",
            Self::InvalidRoomId => "invalid_room_id",
            Self::InvalidUserId => "invalid_user_id",
            Self::NotMember => "not_member",
            Self::TooManyRooms => "too_many_rooms",
            Self::Forbidden => "forbidden",
            Self::InvalidToken => "invalid_token",
            Self::AuthOff => "auth_off",
            Self::RoomFull => "room_full",
            Self::ServerBusy => "server_busy",
        }
    }

    /// What is wrong and what to do, for a person.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::InvalidJson => "The message is not valid JSON.",
            Self::InvalidMessage => {
                "Send one JSON object per text message, each field once; type, room_id, user_id \
                 and token are strings, id is a number or a string of at most 64 bytes."
            }
            Self::UnknownType => "type must be join, leave, broadcast, direct, ping or auth.",
            Self::MissingField => {
                "Every message needs type; join and leave need room_id; broadcast needs room_id \
                 and content, direct user_id and content; auth needs token."
            }
            Self::InvalidRoomId => {
                "room_id must not be empty, too long, or have characters that rooms have not here."
            }
            Self::InvalidUserId => {
                "user_id must not be empty, too long, or have control characters."
            }
            Self::NotMember => "Join the room first.",
            Self::TooManyRooms => "Leave another room first.",
            Self::Forbidden => "Your token does not allow this; get one whose claims do.",
            Self::InvalidToken => {
                "The token is not accepted: expired, malformed, or of another user; the one before \
                 it still counts."
            }
            Self::AuthOff => "This server asks nobody for a token; go on without.",
            Self::RoomFull => "The room has as many members as it may; try again later.",
            Self::ServerBusy => "The server cannot take this now; try again in a moment.",
        }
    }
}

/// A request that cannot be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal<'m> {
    /// The `id` of the request as JSON, if it has a good one.
    pub id: Option<&'m str>,
    /// Why.
    pub code: ErrorCode,
}

/// Reads one text message.
///
/// Cost: one pass over the JSON; allocates only for names with escapes.
///
/// # Errors
/// A [`Refusal`] to be answered with [`error`].
pub fn parse<'m>(message: &'m [u8], limits: &Limits) -> Result<Request<'m>, Refusal<'m>> {
    let fields: Fields<'_> = serde_json::from_slice(message).map_err(|_| {
        let is_json = is_json(message);
        let code = if is_json { ErrorCode::InvalidMessage } else { ErrorCode::InvalidJson };
        Refusal { id: None, code }
    })?;
    // An array of the right values would do for serde, but not for the protocol.
    if message.trim_ascii_start().first() != Some(&b'{') {
        return Err(Refusal { id: None, code: ErrorCode::InvalidMessage });
    }
    let id = match fields.id.map(RawValue::get) {
        None | Some("null") => None,
        Some(id) if is_id(id) => Some(id),
        Some(_) => {
            return Err(Refusal { id: None, code: ErrorCode::InvalidMessage });
        }
    };
    match fields.command(limits) {
        Ok(command) => Ok(Request { id, command }),
        Err(code) => Err(Refusal { id, code }),
    }
}

/// The known fields, each as written: types are checked one by one, so that a bad field gets its
/// own error code and the answer still carries the `id`.
#[derive(Deserialize)]
struct Fields<'m> {
    #[serde(borrow, default, rename = "type", deserialize_with = "present")]
    kind: Option<&'m RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    room_id: Option<&'m RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    user_id: Option<&'m RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    content: Option<&'m RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    token: Option<&'m RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'m RawValue>,
}

/// A field that is there, also when it is `null`: `"content":null` is content.
pub(super) fn present<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'m> Fields<'m> {
    fn command(&self, limits: &Limits) -> Result<Command<'m>, ErrorCode> {
        let name = |value, bytes_max, invalid| {
            name(value, bytes_max, [ErrorCode::MissingField, ErrorCode::InvalidMessage, invalid])
        };
        let room_id = || {
            let name = name(self.room_id, limits.room_id_bytes_max, ErrorCode::InvalidRoomId)?;
            let is_allowed = limits.room_id_alphabet.allows(&name);
            if is_allowed { Ok(name) } else { Err(ErrorCode::InvalidRoomId) }
        };
        let user_id = || name(self.user_id, limits.user_id_bytes_max, ErrorCode::InvalidUserId);
        let kind = self.kind.ok_or(ErrorCode::MissingField)?;
        match string(kind).ok_or(ErrorCode::InvalidMessage)?.as_ref() {
            "join" => {
                let user_id = match self.user_id.map(RawValue::get) {
                    None | Some("null") => None,
                    Some(_) => Some(user_id()?),
                };
                Ok(Command::Join { room_id: room_id()?, user_id })
            }
            "leave" => Ok(Command::Leave { room_id: room_id()? }),
            "broadcast" => {
                let content = self.content.ok_or(ErrorCode::MissingField)?;
                Ok(Command::Broadcast { room_id: room_id()?, content: content.get() })
            }
            "direct" => {
                let content = self.content.ok_or(ErrorCode::MissingField)?;
                Ok(Command::Direct { user_id: user_id()?, content: content.get() })
            }
            "ping" => Ok(Command::Ping),
            "auth" => {
                let token = self.token.ok_or(ErrorCode::MissingField)?;
                Ok(Command::Auth { token: string(token).ok_or(ErrorCode::InvalidMessage)? })
            }
            _ => Err(ErrorCode::UnknownType),
        }
    }
}

/// The text of `value` if it is a string.
pub(super) fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    /// A string borrowed from the JSON where it has no escapes.
    #[derive(Deserialize)]
    struct Text<'m>(#[serde(borrow)] Cow<'m, str>);
    serde_json::from_str(value.get()).ok().map(|Text(text)| text)
}

/// The name in `value`, or what is wrong with it: not there, no string, or no name (see
/// [`is_name`]).
pub(super) fn name<E>(
    value: Option<&RawValue>,
    bytes_max: usize,
    [missing, no_string, invalid]: [E; 3],
) -> Result<Cow<'_, str>, E> {
    let value = value.ok_or(missing)?;
    let name = string(value).ok_or(no_string)?;
    if is_name(&name, bytes_max) { Ok(name) } else { Err(invalid) }
}

fn is_id(id: &str) -> bool {
    let first = id.as_bytes().first().copied();
    id.len() <= ID_BYTES_MAX && first.is_some_and(|b| b == b'"' || b == b'-' || b.is_ascii_digit())
}

/// Writes `joined`.
pub fn joined(room_id: &str, offset: u64, id: Option<&str>, out: &mut BytesMut) {
    open("joined", id, out);
    string_field("room_id", room_id, out);
    number_field("offset", offset, out);
    out.put_u8(b'}');
}

/// Writes `left`.
pub fn left(room_id: &str, id: Option<&str>, out: &mut BytesMut) {
    open("left", id, out);
    string_field("room_id", room_id, out);
    out.put_u8(b'}');
}

/// Writes `ack`.
pub fn ack(id: &str, offset: u64, out: &mut BytesMut) {
    open("ack", Some(id), out);
    number_field("offset", offset, out);
    out.put_u8(b'}');
}

/// Writes the `ack` of a direct message: so many connections were handed it.
pub fn ack_direct(id: &str, delivered: usize, out: &mut BytesMut) {
    open("ack", Some(id), out);
    number_field("delivered", delivered as u64, out);
    out.put_u8(b'}');
}

/// Writes `direct`.
pub fn direct(sender: &str, content: &str, out: &mut BytesMut) {
    open("direct", None, out);
    string_field("sender", sender, out);
    out.put_slice(b",\"content\":");
    out.put_slice(content.as_bytes());
    out.put_u8(b'}');
}

/// Writes `skipped`: the member is not sent the messages from offset `from` to offset `to`.
pub fn skipped(room_id: &str, from: u64, to: u64, out: &mut BytesMut) {
    open("skipped", None, out);
    string_field("room_id", room_id, out);
    number_field("from", from, out);
    number_field("to", to, out);
    out.put_u8(b'}');
}

/// Writes `system` with the event `draining`: the connection is going to be closed; once it is, the
/// client had better wait so many milliseconds before it comes back.
pub fn draining(reconnect_in_ms: u64, out: &mut BytesMut) {
    open("system", None, out);
    string_field("event", "draining", out);
    number_field("reconnect_in_ms", reconnect_in_ms, out);
    out.put_u8(b'}');
}

/// Writes `pong`.
pub fn pong(id: Option<&str>, out: &mut BytesMut) {
    open("pong", id, out);
    out.put_u8(b'}');
}

/// Writes `authenticated`: the connection may stay for `expires_in_s` seconds.
pub fn authenticated(expires_in_s: u64, id: Option<&str>, out: &mut BytesMut) {
    open("authenticated", id, out);
    number_field("expires_in_s", expires_in_s, out);
    out.put_u8(b'}');
}

/// Writes `error`.
pub fn error(code: ErrorCode, id: Option<&str>, out: &mut BytesMut) {
    open("error", id, out);
    string_field("code", code.code(), out);
    string_field("message", code.message(), out);
    out.put_u8(b'}');
}

/// Writes `broadcast` without its offset and returns the place where the room's home puts it.
pub fn broadcast(room_id: &str, sender: &str, content: &str, out: &mut BytesMut) -> u32 {
    let start = out.len();
    open("broadcast", None, out);
    string_field("room_id", room_id, out);
    string_field("sender", sender, out);
    out.put_slice(b",\"offset\":");
    let offset_at = out.len() - start;
    out.put_slice(b",\"content\":");
    out.put_slice(content.as_bytes());
    out.put_u8(b'}');
    offset_at as u32
}

/// The longest [`broadcast`] of `content_len` bytes between names of the given lengths: every
/// byte of a name may become a `\u00XX`.
#[must_use]
pub const fn broadcast_len_max(room_id_len: usize, sender_len: usize, content_len: usize) -> usize {
    6 * (room_id_len + sender_len) + content_len + 96
}

fn open(kind: &str, id: Option<&str>, out: &mut BytesMut) {
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_u8(b'"');
    if let Some(id) = id {
        out.put_slice(b",\"id\":");
        out.put_slice(id.as_bytes());
    }
}

fn string_field(name: &str, value: &str, out: &mut BytesMut) {
    field(name, out);
    serde_json::to_writer(out.writer(), value).expect("a string is JSON, and memory never fails");
}

fn number_field(name: &str, value: u64, out: &mut BytesMut) {
    field(name, out);
    out.put_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn field(name: &str, out: &mut BytesMut) {
    out.put_slice(b",\"");
    out.put_slice(name.as_bytes());
    out.put_slice(b"\":");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RoomAlphabet;

    fn check(message: &str, expected: Result<Request<'_>, Refusal<'_>>) {
        let limits = Limits { room_id_bytes_max: 16, user_id_bytes_max: 8, ..Limits::default() };
        assert_eq!(parse(message.as_bytes(), &limits), expected, "{message}");
    }

    #[test]
    fn rooms_have_the_characters_that_are_allowed() {
        let limits = Limits { room_id_alphabet: RoomAlphabet::Token, ..Limits::default() };
        for (room_id, allowed) in [("a:b", true), ("a b", false), ("a\\u0062", true)] {
            let message = format!(r#"{{"type":"join","room_id":"{room_id}"}}"#);
            let refusal = Refusal { id: None, code: ErrorCode::InvalidRoomId };
            let read = parse(message.as_bytes(), &limits);
            assert_eq!(read.as_ref().err(), (!allowed).then_some(&refusal), "{message}");
        }
    }

    fn refused(code: ErrorCode, id: Option<&str>) -> Result<Request<'_>, Refusal<'_>> {
        Err(Refusal { id, code })
    }

    #[test]
    fn reads_every_command() {
        let lobby = || Cow::from("lobby");
        for (message, id, command) in [
            (
                r#"{"type":"join","room_id":"lobby","user_id":"alice"}"#,
                None,
                Command::Join { room_id: lobby(), user_id: Some("alice".into()) },
            ),
            (
                r#" { "room_id" : "lobby" , "id" : 7 , "type" : "join", "x": [1,{}] } "#,
                Some("7"),
                Command::Join { room_id: lobby(), user_id: None },
            ),
            (
                r#"{"type":"leave","room_id":"l\u006fbby","id":"a-1"}"#,
                Some(r#""a-1""#),
                Command::Leave { room_id: lobby() },
            ),
            (
                r#"{"type":"broadcast","room_id":"lobby","content": { "a" : 1e400 } }"#,
                None,
                Command::Broadcast { room_id: lobby(), content: r#"{ "a" : 1e400 }"# },
            ),
            (
                r#"{"type":"broadcast","room_id":"lobby","content":null,"id":null}"#,
                None,
                Command::Broadcast { room_id: lobby(), content: "null" },
            ),
            (
                r#"{"type":"direct","user_id":"bob","content": [1, 2] ,"id":1}"#,
                Some("1"),
                Command::Direct { user_id: "bob".into(), content: "[1, 2]" },
            ),
            (r#"{"type":"ping","id":-1.5e3}"#, Some("-1.5e3"), Command::Ping),
            (
                r#"{"token":"a.b\u002ec","type":"auth"}"#,
                None,
                Command::Auth { token: "a.b.c".into() },
            ),
        ] {
            check(message, Ok(Request { id, command }));
        }
    }

    #[test]
    fn every_error_has_its_place_and_is_in_the_readme() {
        for (place, code) in ErrorCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, place, "{code:?}");
            assert!(README.contains(&format!("`{}`", code.code())), "{code:?}");
        }
        // The last one of the list: none is forgotten.
        assert_eq!(ErrorCode::ServerBusy as usize + 1, ErrorCode::ALL.len());
    }

    const README: &str = include_str!("../../README.md");

    #[test]
    fn refuses_with_the_right_code_and_the_id() {
        let seventy = format!(r#"{{"type":"ping","id":"{}"}}"#, "x".repeat(70));
        for (message, code, id) in [
            ("", ErrorCode::InvalidJson, None),
            ("{", ErrorCode::InvalidJson, None),
            (r#"{"type":"ping"} x"#, ErrorCode::InvalidJson, None),
            (r#"{"type":"ping","type":1"#, ErrorCode::InvalidJson, None),
            ("1e400", ErrorCode::InvalidMessage, None),
            ("[]", ErrorCode::InvalidMessage, None),
            ("7", ErrorCode::InvalidMessage, None),
            (r#"{"type":"ping","type":"ping"}"#, ErrorCode::InvalidMessage, None),
            (r#"{"type":"ping","id":{}}"#, ErrorCode::InvalidMessage, None),
            (r#"{"type":"ping","id":true}"#, ErrorCode::InvalidMessage, None),
            (&seventy, ErrorCode::InvalidMessage, None),
            ("{}", ErrorCode::MissingField, None),
            (r#"{"type":"fly","id":1}"#, ErrorCode::UnknownType, Some("1")),
            (r#"{"type":5,"id":1}"#, ErrorCode::InvalidMessage, Some("1")),
            (r#"{"type":"join","id":1}"#, ErrorCode::MissingField, Some("1")),
            (r#"{"type":"direct","user_id":"a"}"#, ErrorCode::MissingField, None),
            (r#"{"type":"direct","content":1}"#, ErrorCode::MissingField, None),
            (r#"{"type":"direct","user_id":null,"content":1}"#, ErrorCode::InvalidMessage, None),
            (r#"{"type":"direct","user_id":"","content":1}"#, ErrorCode::InvalidUserId, None),
            (r#"{"type":"broadcast","room_id":"a"}"#, ErrorCode::MissingField, None),
            (r#"{"type":"auth","id":1}"#, ErrorCode::MissingField, Some("1")),
            (r#"{"type":"auth","token":7,"id":1}"#, ErrorCode::InvalidMessage, Some("1")),
            (r#"{"type":"join","room_id":5}"#, ErrorCode::InvalidMessage, None),
            (r#"{"type":"join","room_id":""}"#, ErrorCode::InvalidRoomId, None),
            (r#"{"type":"join","room_id":"a\n"}"#, ErrorCode::InvalidRoomId, None),
            (r#"{"type":"join","room_id":"12345678901234567"}"#, ErrorCode::InvalidRoomId, None),
            (r#"{"type":"join","room_id":"a","user_id":[]}"#, ErrorCode::InvalidMessage, None),
            (
                r#"{"type":"join","room_id":"a","user_id":"123456789"}"#,
                ErrorCode::InvalidUserId,
                None,
            ),
        ] {
            check(message, refused(code, id));
        }
    }

    #[test]
    fn writes_what_the_protocol_says() {
        let mut out = BytesMut::new();
        let mut written = |write: &dyn Fn(&mut BytesMut)| {
            out.clear();
            write(&mut out);
            String::from_utf8(out.to_vec()).expect("JSON is UTF-8")
        };
        assert_eq!(
            written(&|out| skipped("a\"b", 5, 17, out)),
            r#"{"type":"skipped","room_id":"a\"b","from":5,"to":17}"#
        );
        assert_eq!(
            written(&|out| joined("lobby", 17, None, out)),
            r#"{"type":"joined","room_id":"lobby","offset":17}"#
        );
        assert_eq!(
            written(&|out| left("a\"b", Some("7"), out)),
            r#"{"type":"left","id":7,"room_id":"a\"b"}"#
        );
        assert_eq!(written(&|out| ack("\"x\"", 18, out)), r#"{"type":"ack","id":"x","offset":18}"#);
        assert_eq!(
            written(&|out| ack_direct("1", 2, out)),
            r#"{"type":"ack","id":1,"delivered":2}"#
        );
        assert_eq!(
            written(&|out| direct("a\"b", "{ \"x\" : 1 }", out)),
            r#"{"type":"direct","sender":"a\"b","content":{ "x" : 1 }}"#
        );
        assert_eq!(
            written(&|out| draining(700, out)),
            r#"{"type":"system","event":"draining","reconnect_in_ms":700}"#
        );
        assert_eq!(written(&|out| pong(None, out)), r#"{"type":"pong"}"#);
        assert_eq!(
            written(&|out| authenticated(60, Some("7"), out)),
            r#"{"type":"authenticated","id":7,"expires_in_s":60}"#
        );
        assert_eq!(
            written(&|out| error(ErrorCode::NotMember, Some("3"), out)),
            r#"{"type":"error","id":3,"code":"not_member","message":"Join the room first."}"#
        );
        let mut at = 0;
        let mut out = BytesMut::new();
        at += broadcast("lobby", "alice", r#"{"a": 1}"#, &mut out) as usize;
        let text = String::from_utf8(out.to_vec()).expect("JSON is UTF-8");
        assert_eq!(
            format!("{}18{}", &text[..at], &text[at..]),
            r#"{"type":"broadcast","room_id":"lobby","sender":"alice","offset":18,"content":{"a": 1}}"#
        );
        let worst = "\u{1}".repeat(20);
        out.clear();
        broadcast(&worst, &worst, "1", &mut out);
        assert!(out.len() <= broadcast_len_max(20, 20, 1));
    }
}
