//! What a peer can do wrong, and the close code or HTTP status that answers it.
//!
//! Two closed lists: [`ProtocolError`] ends an open connection with a close frame (RFC 6455
//! §7.1.7), [`HandshakeError`] ends an opening one with an HTTP response (RFC 6455 §4.2.2).
//! Each has one table that holds, for every row, the code, the metric label and the words for the
//! peer, so that a new error is one variant and one row.
//!
//! Never: carries bytes of the peer; an error is a plain value that can be counted and compared.

use thiserror::Error;

use super::close::CloseCode;
use super::utf8::InvalidUtf8;

/// A violation on an open connection: it is answered with a close frame and the connection fails
/// (RFC 6455 §7.1.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[error("{}", self.reason())]
pub enum ProtocolError {
    /// A reserved bit is set although no extension was negotiated (RFC 6455 §5.2).
    ReservedBits,
    /// The opcode is a reserved one (RFC 6455 §5.2).
    UnknownOpcode,
    /// A client's frame without a masking key (RFC 6455 §5.1).
    Unmasked,
    /// A length in more bytes than it needs (RFC 6455 §5.2).
    LengthNotMinimal,
    /// A 64-bit length with its top bit set (RFC 6455 §5.2).
    LengthTooLarge,
    /// A control frame without FIN (RFC 6455 §5.5).
    FragmentedControl,
    /// A control frame of more than 125 bytes (RFC 6455 §5.5).
    ControlTooLong,
    /// A continuation while no message is in progress (RFC 6455 §5.4).
    UnexpectedContinuation,
    /// A new message before the last fragment of the one in progress (RFC 6455 §5.4).
    ExpectedContinuation,
    /// A close payload of one byte: half a code (RFC 6455 §5.5.1).
    ClosePayloadLength,
    /// A close code that must not be sent (RFC 6455 §7.4).
    CloseCodeInvalid,
    /// Text, or the reason of a close, that is not UTF-8 (RFC 6455 §8.1).
    InvalidUtf8,
    /// A message longer than the endpoint takes (RFC 6455 §7.4.1, 1009).
    MessageTooBig,
    /// A frame longer than `frame_bytes_max` (RFC 6455 §7.4.1, 1009).
    FrameTooBig,
    /// The shard's budget for incomplete messages, or memory itself, is used up: not the peer's
    /// fault, it may come back (close code 1013).
    NoRoom,
    /// A message that was begun and not finished within `message_timeout` (1008).
    MessageTimeout,
    /// More messages than `messages_per_second` (1008).
    MessageRate,
    /// More bytes than `bytes_per_second` (1008).
    ByteRate,
}

impl ProtocolError {
    /// All of them; the place of each is its value `as usize`, for tables of counters.
    pub const ALL: [ProtocolError; 18] = [
        Self::ReservedBits,
        Self::UnknownOpcode,
        Self::Unmasked,
        Self::LengthNotMinimal,
        Self::LengthTooLarge,
        Self::FragmentedControl,
        Self::ControlTooLong,
        Self::UnexpectedContinuation,
        Self::ExpectedContinuation,
        Self::ClosePayloadLength,
        Self::CloseCodeInvalid,
        Self::InvalidUtf8,
        Self::MessageTooBig,
        Self::FrameTooBig,
        Self::NoRoom,
        Self::MessageTimeout,
        Self::MessageRate,
        Self::ByteRate,
    ];

    /// The code of the close frame that answers it (RFC 6455 §7.4.1).
    pub const fn close_code(self) -> CloseCode {
        self.row().0
    }

    /// Short words for the peer in that close frame; ASCII, at most 123 bytes.
    pub const fn reason(self) -> &'static str {
        self.row().2
    }

    /// The name in metrics and logs, snake_case.
    pub const fn label(self) -> &'static str {
        self.row().1
    }

    #[rustfmt::skip]
    const fn row(self) -> (CloseCode, &'static str, &'static str) {
        const PROTOCOL: CloseCode = CloseCode::PROTOCOL_ERROR;
        match self {
            Self::ReservedBits => (PROTOCOL, "reserved_bits", "reserved bits set without an extension"),
            Self::UnknownOpcode => (PROTOCOL, "unknown_opcode", "unknown opcode"),
            Self::Unmasked => (PROTOCOL, "unmasked", "frames from a client must be masked"),
            Self::LengthNotMinimal => (PROTOCOL, "length_not_minimal", "payload length is not minimally encoded"),
            Self::LengthTooLarge => (PROTOCOL, "length_too_large", "payload length has its top bit set"),
            Self::FragmentedControl => (PROTOCOL, "fragmented_control", "control frames must not be fragmented"),
            Self::ControlTooLong => (PROTOCOL, "control_too_long", "control payload is longer than 125 bytes"),
            Self::UnexpectedContinuation => (PROTOCOL, "unexpected_continuation", "continuation without a message to continue"),
            Self::ExpectedContinuation => (PROTOCOL, "expected_continuation", "new message before the end of the last one"),
            Self::ClosePayloadLength => (PROTOCOL, "close_payload_length", "close payload of one byte"),
            Self::CloseCodeInvalid => (PROTOCOL, "close_code_invalid", "close code must not be sent"),
            Self::InvalidUtf8 => (CloseCode::INVALID_PAYLOAD, "invalid_utf8", "text is not valid UTF-8"),
            Self::MessageTooBig => (CloseCode::MESSAGE_TOO_BIG, "message_too_big", "message is longer than this endpoint takes"),
            Self::FrameTooBig => (CloseCode::MESSAGE_TOO_BIG, "frame_too_big", "frame is longer than frame_bytes_max"),
            Self::NoRoom => (CloseCode::TRY_AGAIN_LATER, "no_room", "no room for incomplete messages, try again later"),
            Self::MessageTimeout => (CloseCode::POLICY_VIOLATION, "message_timeout", "message was not complete in time"),
            Self::MessageRate => (CloseCode::POLICY_VIOLATION, "message_rate", "more messages than messages_per_second"),
            Self::ByteRate => (CloseCode::POLICY_VIOLATION, "byte_rate", "more bytes than bytes_per_second"),
        }
    }
}

impl From<InvalidUtf8> for ProtocolError {
    fn from(_: InvalidUtf8) -> Self {
        ProtocolError::InvalidUtf8
    }
}

/// A refused opening handshake: it is answered with an HTTP response (RFC 6455 §4.2.2, RFC 9110
/// §15) and the connection closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
#[error("{}", self.message())]
pub enum HandshakeError {
    /// The bytes are no HTTP/1.1 request line (RFC 9112 §3).
    NotHttp,
    /// The bytes are a TLS record: a `wss://` client at a plain port.
    Tls,
    /// An HTTP version other than 1.1 (RFC 6455 §4.2.1 item 1).
    HttpVersion,
    /// A request target that is neither a path nor an absolute URL (RFC 9112 §3.2).
    TargetMalformed,
    /// A header line that breaks the syntax, or is folded (RFC 9112 §5).
    FieldMalformed,
    /// A line that ends with CR or LF alone, which parsers read differently (RFC 9112 §2.2).
    LineEnd,
    /// No Host field (RFC 9112 §3.2).
    HostMissing,
    /// More than one Host field (RFC 9112 §3.2).
    HostRepeated,
    /// A Host that is not `host` or `host:port` (RFC 9112 §3.2, RFC 3986 §3.2).
    HostMalformed,
    /// A request with a body, whose bytes would be taken for frames (RFC 9112 §6).
    Body,
    /// `Upgrade: websocket` without `Connection: Upgrade` (RFC 6455 §4.2.1 item 4).
    ConnectionNotUpgrade,
    /// No Sec-WebSocket-Key (RFC 6455 §4.2.1 item 5).
    KeyMissing,
    /// More than one Sec-WebSocket-Key (RFC 6455 §11.3.1).
    KeyRepeated,
    /// A Sec-WebSocket-Key that is not 16 bytes in Base64 (RFC 6455 §4.2.1 item 5).
    KeyMalformed,
    /// No Sec-WebSocket-Version (RFC 6455 §4.2.1 item 6).
    VersionMissing,
    /// More than one Sec-WebSocket-Version (RFC 6455 §11.3.5).
    VersionRepeated,
    /// A room name with a broken percent-encoding or that is not UTF-8 (RFC 3986 §2.1).
    RoomMalformed,
    /// A room name with characters outside of `room_id_alphabet`.
    RoomAlphabet,
    /// What begins as a PROXY header is none that can be read, or is too long.
    ProxyHeaderMalformed,
    /// No PROXY header from a proxy that must send one.
    ProxyHeaderMissing,
    /// A PROXY header from a peer that may not send one.
    ProxyHeaderUnexpected,
    /// A Forwarded or X-Forwarded-For of a trusted proxy that cannot be read (RFC 7239 §4).
    ForwardedMalformed,
    /// Forwarded and X-Forwarded-For name different clients.
    ForwardedConflict,
    /// More than one token, or one in more than one place (RFC 6750 §2).
    TokenRepeated,
    /// A server with authentication was shown no token (RFC 6750 §3).
    TokenMissing,
    /// The token is not accepted, for whatever reason (RFC 6750 §3.1).
    TokenInvalid,
    /// The page's origin is not in `origins` (RFC 6455 §10.2).
    OriginForbidden,
    /// The token does not allow to join the room (RFC 6750 §3.1).
    RoomForbidden,
    /// No such endpoint, or a room without a name (RFC 9110 §15.5.5).
    NotFound,
    /// A WebSocket endpoint asked with another method than GET (RFC 9110 §15.5.6).
    MethodNotAllowed,
    /// The page asked with another method than GET or HEAD (RFC 9110 §15.5.6).
    PageMethodNotAllowed,
    /// The handshake was not complete in time (RFC 9110 §15.5.9).
    Timeout,
    /// The request target is longer than `target_bytes_max`, or the head reached its limit inside
    /// the request line (RFC 9110 §15.5.15).
    TargetTooLong,
    /// A room name longer than `room_id_bytes_max` (RFC 9110 §15.5.15).
    RoomTooLong,
    /// A plain request at a WebSocket endpoint (RFC 9110 §15.5.22).
    UpgradeRequired,
    /// A Sec-WebSocket-Version other than 13 (RFC 6455 §4.2.2 item 4, §4.4).
    VersionUnsupported,
    /// As many connections as one address may have (RFC 6585 §4).
    AddressFull,
    /// More opening handshakes than one address may begin per second (RFC 6585 §4).
    AddressTooFast,
    /// A head longer than `handshake_bytes_max` (RFC 6585 §5).
    HeadTooLong,
    /// More than [`super::handshake::FIELDS_MAX`] header fields (RFC 6585 §5).
    TooManyFields,
    /// As many connections as the server may hold (RFC 9110 §15.6.4).
    Full,
    /// More opening handshakes than the server takes per second (RFC 9110 §15.6.4).
    TooFast,
    /// The server is going down (RFC 9110 §15.6.4).
    Draining,
    /// As many rooms as the room's home may hold (RFC 9110 §15.6.4).
    RoomsFull,
    /// As many members as the room may have (RFC 9110 §15.6.4).
    RoomFull,
    /// The token could not be verified, or the room not be joined, within `handshake_timeout` (RFC
    /// 9110 §15.6.4).
    Busy,
}

impl HandshakeError {
    /// All of them; the place of each is its value `as usize`, for tables of counters.
    pub const ALL: [HandshakeError; 46] = [
        Self::NotHttp,
        Self::Tls,
        Self::HttpVersion,
        Self::TargetMalformed,
        Self::FieldMalformed,
        Self::LineEnd,
        Self::HostMissing,
        Self::HostRepeated,
        Self::HostMalformed,
        Self::Body,
        Self::ConnectionNotUpgrade,
        Self::KeyMissing,
        Self::KeyRepeated,
        Self::KeyMalformed,
        Self::VersionMissing,
        Self::VersionRepeated,
        Self::RoomMalformed,
        Self::RoomAlphabet,
        Self::ProxyHeaderMalformed,
        Self::ProxyHeaderMissing,
        Self::ProxyHeaderUnexpected,
        Self::ForwardedMalformed,
        Self::ForwardedConflict,
        Self::TokenRepeated,
        Self::TokenMissing,
        Self::TokenInvalid,
        Self::OriginForbidden,
        Self::RoomForbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::PageMethodNotAllowed,
        Self::Timeout,
        Self::TargetTooLong,
        Self::RoomTooLong,
        Self::UpgradeRequired,
        Self::VersionUnsupported,
        Self::AddressFull,
        Self::AddressTooFast,
        Self::HeadTooLong,
        Self::TooManyFields,
        Self::Full,
        Self::TooFast,
        Self::Draining,
        Self::RoomsFull,
        Self::RoomFull,
        Self::Busy,
    ];

    /// The HTTP status code that answers it (RFC 9110 §15).
    pub const fn status(self) -> u16 {
        self.row().0
    }

    /// What is wrong and the remedy, one line of ASCII: the body of the answer.
    pub const fn message(self) -> &'static str {
        self.row().2
    }

    /// The name in metrics and logs, snake_case.
    pub const fn label(self) -> &'static str {
        self.row().1
    }

    #[rustfmt::skip]
    const fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::NotHttp => (400, "not_http", "This is not an HTTP/1.1 request. Connect with a WebSocket client or a browser."),
            Self::Tls => (400, "tls", "This port speaks plain HTTP. Use ws:// or http://, or put a TLS proxy in front."),
            Self::HttpVersion => (400, "http_version", "Only HTTP/1.1 is spoken here. If a proxy is in between, let it forward with HTTP/1.1."),
            Self::TargetMalformed => (400, "target_malformed", "The request target is malformed. Send a path in ASCII, percent-encoded and without a fragment."),
            Self::FieldMalformed => (400, "field_malformed", "A header line is malformed. Send `name: value` lines, unfolded and without control characters."),
            Self::LineEnd => (400, "line_end", "A line does not end with CR LF. End every line of the head with both."),
            Self::HostMissing => (400, "host_missing", "The Host field is missing. Send exactly one."),
            Self::HostRepeated => (400, "host_repeated", "There is more than one Host field. Send exactly one."),
            Self::HostMalformed => (400, "host_malformed", "The Host field is malformed. Send `host` or `host:port`."),
            Self::Body => (400, "body", "A request body is not accepted here. Leave out Content-Length and Transfer-Encoding."),
            Self::ConnectionNotUpgrade => (400, "connection_not_upgrade", "The Connection field does not list Upgrade. If a proxy is in between, let it forward Connection: Upgrade."),
            Self::KeyMissing => (400, "key_missing", "The Sec-WebSocket-Key field is missing. Send exactly one."),
            Self::KeyRepeated => (400, "key_repeated", "There is more than one Sec-WebSocket-Key field. Send exactly one."),
            Self::KeyMalformed => (400, "key_malformed", "The Sec-WebSocket-Key field is malformed. Send 16 random bytes in Base64."),
            Self::VersionMissing => (400, "version_missing", "The Sec-WebSocket-Version field is missing. Send Sec-WebSocket-Version: 13."),
            Self::VersionRepeated => (400, "version_repeated", "There is more than one Sec-WebSocket-Version field. Send Sec-WebSocket-Version: 13 once."),
            Self::RoomMalformed => (400, "room_malformed", "The room name is malformed. Send it as percent-encoded UTF-8."),
            Self::RoomAlphabet => (400, "room_alphabet", "The room name has characters that rooms have not here. Choose another one."),
            Self::ProxyHeaderMalformed => (400, "proxy_header_malformed", "The PROXY header is malformed. Send one of version 1 or 2, of at most 107 or 4096 bytes."),
            Self::ProxyHeaderMissing => (400, "proxy_header_missing", "The PROXY header is missing. Let the proxy send one, or set proxy_protocol = optional."),
            Self::ProxyHeaderUnexpected => (400, "proxy_header_unexpected", "A PROXY header is not accepted from this address. Set proxy_protocol, and name the proxy in trusted_proxies."),
            Self::ForwardedMalformed => (400, "forwarded_malformed", "Forwarded or X-Forwarded-For is malformed. Let the proxy write addresses."),
            Self::ForwardedConflict => (400, "forwarded_conflict", "Forwarded and X-Forwarded-For name different clients. Let the proxy set one of them and remove the other."),
            Self::TokenRepeated => (400, "token_repeated", "There is more than one token. Send one: as Authorization: Bearer, as ?token=, or as a subprotocol bearer.TOKEN."),
            Self::TokenMissing => (401, "token_missing", "A token is needed. Send one as Authorization: Bearer, as ?token=, or as a subprotocol bearer.TOKEN."),
            Self::TokenInvalid => (401, "token_invalid", "The token is not accepted: expired, malformed, or not for this server. Get a new one; the server's log at debug says why."),
            Self::OriginForbidden => (403, "origin_forbidden", "Pages of this origin may not connect. If they should, add it to the server's origins."),
            Self::RoomForbidden => (403, "room_forbidden", "The token does not allow to join this room. Get one whose rooms claim does."),
            Self::NotFound => (404, "not_found", "There is nothing here. Endpoints are /ws and /raw/ROOM, the page is /."),
            Self::MethodNotAllowed => (405, "method_not_allowed", "This endpoint is opened with GET only."),
            Self::PageMethodNotAllowed => (405, "page_method_not_allowed", "This page is read with GET or HEAD only."),
            Self::Timeout => (408, "handshake_timeout", "The request was not complete in time. Send the whole head at once."),
            Self::TargetTooLong => (414, "target_too_long", "The request target is too long. Shorten the path or the query."),
            Self::RoomTooLong => (414, "room_too_long", "The room name is too long. Choose a shorter one."),
            Self::UpgradeRequired => (426, "upgrade_required", "This is a WebSocket endpoint. Connect with a WebSocket client."),
            Self::VersionUnsupported => (426, "version_unsupported", "Only WebSocket version 13 is spoken here. Send Sec-WebSocket-Version: 13."),
            Self::AddressFull => (429, "address_full", "Your address holds as many connections as one may. Close one, or try again later."),
            Self::AddressTooFast => (429, "address_too_fast", "Your address connects too often. Try again later."),
            Self::HeadTooLong => (431, "head_too_long", "The request head is too long. Send fewer or shorter header fields."),
            Self::TooManyFields => (431, "too_many_fields", "The request has more than 100 header fields. Send fewer."),
            Self::Full => (503, "full", "The server holds as many connections as it may. Try again later."),
            Self::TooFast => (503, "too_fast", "The server is asked for more connections per second than it takes. Try again later."),
            Self::Draining => (503, "draining", "The server is going down. Try again, another one may answer."),
            Self::RoomsFull => (503, "rooms_full", "The server holds as many rooms as it may. Try again later."),
            Self::RoomFull => (503, "room_full", "The room has as many members as it may. Try again later."),
            Self::Busy => (503, "busy", "The server is too busy to let the client in. Try again later."),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::close::REASON_LEN_MAX;
    use super::*;

    fn check_labels(labels: &[&str]) {
        let distinct: BTreeSet<_> = labels.iter().collect();
        assert_eq!(distinct.len(), labels.len());
        for label in labels {
            assert!(label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_' | b'0'..=b'9')));
        }
    }

    #[test]
    fn violations() {
        for (i, error) in ProtocolError::ALL.into_iter().enumerate() {
            assert_eq!(error as usize, i, "{error:?} is in its place");
            assert!(error.close_code().may_be_sent(), "{error:?}");
            assert!(error.reason().len() <= REASON_LEN_MAX, "{error:?}");
            assert!(error.reason().is_ascii(), "{error:?}");
            assert_eq!(error.to_string(), error.reason());
        }
        // The last one of the list: none is forgotten.
        assert_eq!(ProtocolError::ByteRate as usize + 1, ProtocolError::ALL.len());
        check_labels(&ProtocolError::ALL.map(ProtocolError::label));
    }

    #[test]
    fn refusals() {
        for (i, error) in HandshakeError::ALL.into_iter().enumerate() {
            assert_eq!(error as usize, i, "{error:?} is in its place");
            let status = http::StatusCode::from_u16(error.status()).unwrap();
            assert!(status.is_client_error() || status.is_server_error(), "{error:?}");
            assert!(status.canonical_reason().is_some(), "{error:?}");
            assert!(error.message().bytes().all(|byte| (0x20..0x7F).contains(&byte)), "{error:?}");
        }
        assert_eq!(HandshakeError::Busy as usize + 1, HandshakeError::ALL.len());
        check_labels(&HandshakeError::ALL.map(HandshakeError::label));
    }
}
