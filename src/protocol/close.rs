//! Close codes and the payload of close frames (RFC 6455 §5.5.1, §7.4).
//!
//! Knows which codes may stand on the wire and how code and reason are laid out.
//! When to send a close, and what follows it, is decided by whoever drives the connection.

use std::borrow::Cow;
use std::fmt;

use bytes::BytesMut;

use super::error::ProtocolError;
use super::frame::{CONTROL_PAYLOAD_LEN_MAX, Opcode, encode_frame};

/// Why a connection is closed (RFC 6455 §7.4). Any number: [`CloseCode::may_be_sent`] judges it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// The purpose of the connection is fulfilled (RFC 6455 §7.4.1).
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// The server goes down, or the browser leaves the page (RFC 6455 §7.4.1).
    pub const GOING_AWAY: CloseCode = CloseCode(1001);
    /// The peer broke the protocol (RFC 6455 §7.4.1).
    pub const PROTOCOL_ERROR: CloseCode = CloseCode(1002);
    /// A kind of message the endpoint does not take (RFC 6455 §7.4.1).
    pub const UNSUPPORTED_DATA: CloseCode = CloseCode(1003);
    /// A payload that is not what its opcode says: text that is not UTF-8 (RFC 6455 §7.4.1).
    pub const INVALID_PAYLOAD: CloseCode = CloseCode(1007);
    /// The peer broke a rule of this server (RFC 6455 §7.4.1).
    pub const POLICY_VIOLATION: CloseCode = CloseCode(1008);
    /// A message longer than this server takes (RFC 6455 §7.4.1).
    pub const MESSAGE_TOO_BIG: CloseCode = CloseCode(1009);
    /// The server failed (RFC 6455 §7.4.1).
    pub const INTERNAL_ERROR: CloseCode = CloseCode(1011);
    /// The server is overloaded; the client should come back later (IANA registry, RFC 6455 §11.7).
    pub const TRY_AGAIN_LATER: CloseCode = CloseCode(1013);
    /// The client's token has expired; after HTTP's 401 (for applications, RFC 6455 §7.4.2).
    pub const TOKEN_EXPIRED: CloseCode = CloseCode(4401);
    /// The client's token does not allow what it did; after HTTP's 403 (RFC 6455 §7.4.2).
    pub const FORBIDDEN: CloseCode = CloseCode(4403);

    /// Whether the code may stand in a close frame (RFC 6455 §7.4.1, §7.4.2 and the registry
    /// of §11.7): 1000-1003, 1007-1014 and 3000-4999.
    ///
    /// 1005, 1006 and 1015 tell of a connection that ended without a close frame; the others are
    /// not assigned.
    pub const fn may_be_sent(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }
}

impl fmt::Debug for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CloseCode({})", self.0)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a close frame says (RFC 6455 §5.5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseFrame<'b> {
    /// Why the peer closes; always one that [`CloseCode::may_be_sent`].
    pub code: CloseCode,
    /// For people who read logs; may be empty, at most 123 bytes.
    pub reason: Cow<'b, str>,
}

impl CloseFrame<'_> {
    /// The same, borrowing nothing. Cost: one copy of the reason, unless it is owned already.
    pub fn into_owned(self) -> CloseFrame<'static> {
        CloseFrame { code: self.code, reason: Cow::Owned(self.reason.into_owned()) }
    }
}

/// Reads the payload of a close frame, unmasked; `None` when it is empty (RFC 6455 §5.5.1).
///
/// # Errors
/// `ClosePayloadLength` for half a code, `CloseCodeInvalid` for a code that must not be sent
/// (§7.4), `InvalidUtf8` for a reason that is not UTF-8.
pub fn parse_close(payload: &[u8]) -> Result<Option<CloseFrame<'_>>, ProtocolError> {
    if payload.is_empty() {
        return Ok(None);
    }
    let (code, reason) =
        payload.split_first_chunk::<2>().ok_or(ProtocolError::ClosePayloadLength)?;
    let code = CloseCode(u16::from_be_bytes(*code));
    if !code.may_be_sent() {
        return Err(ProtocolError::CloseCodeInvalid);
    }
    let reason = std::str::from_utf8(reason).map_err(|_| ProtocolError::InvalidUtf8)?;
    Ok(Some(CloseFrame { code, reason: Cow::Borrowed(reason) }))
}

/// Appends a whole close frame, header included, to `out` (RFC 6455 §5.5.1).
///
/// Without a code the payload is empty and `reason` is left out: it cannot stand alone. A reason
/// longer than [`REASON_LEN_MAX`] is cut between two characters.
pub fn encode_close(code: Option<CloseCode>, reason: &str, out: &mut BytesMut) {
    let Some(code) = code else {
        return encode_frame(Opcode::Close, &[], out);
    };
    debug_assert!(code.may_be_sent(), "{code:?} must not stand in a close frame");
    let mut cut = reason.len().min(REASON_LEN_MAX);
    while !reason.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut payload = [0; CONTROL_PAYLOAD_LEN_MAX];
    payload[..2].copy_from_slice(&code.0.to_be_bytes());
    payload[2..2 + cut].copy_from_slice(&reason.as_bytes()[..cut]);
    encode_frame(Opcode::Close, &payload[..2 + cut], out);
}

/// Longest reason, in bytes: a control payload less the code (RFC 6455 §5.5).
pub const REASON_LEN_MAX: usize = CONTROL_PAYLOAD_LEN_MAX - 2;

#[cfg(test)]
mod tests {
    use super::*;

    type Parsed = Result<Option<CloseFrame<'static>>, ProtocolError>;

    fn frame(code: u16, reason: &'static str) -> Parsed {
        Ok(Some(CloseFrame { code: CloseCode(code), reason: reason.into() }))
    }

    #[test]
    fn payloads() {
        #[rustfmt::skip]
        let rows: &[(&[u8], Parsed)] = &[
            (b"", Ok(None)),
            (b"\x03", Err(ProtocolError::ClosePayloadLength)),
            (b"\x03\xe8", frame(1000, "")),
            (b"\x03\xe9bye", frame(1001, "bye")),
            ("\u{3}\u{0}é".as_bytes(), Err(ProtocolError::CloseCodeInvalid)),
            (b"\x03\xe8\xff", Err(ProtocolError::InvalidUtf8)),
            (b"\x03\xe8\xe2\x82", Err(ProtocolError::InvalidUtf8)),
            (b"\x13\x87", frame(4999, "")),
        ];
        for (payload, expected) in rows {
            assert_eq!(&parse_close(payload), expected, "{payload:02x?}");
        }
    }

    #[test]
    fn codes_allowed_on_the_wire() {
        // First and last of each run that is allowed; everything between the runs is refused.
        let allowed = [1000..=1003, 1007..=1014, 3000..=4999];
        for code in 0..=u16::MAX {
            let expected = allowed.iter().any(|run| run.contains(&code));
            assert_eq!(parse_close(&code.to_be_bytes()).is_ok(), expected, "{code}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        // 122 bytes and then a character of two: it does not fit.
        let reason = format!("{}é", "x".repeat(122));
        let mut out = BytesMut::new();
        encode_close(Some(CloseCode::POLICY_VIOLATION), &reason, &mut out);
        assert_eq!(&out[..4], &[0x88, 124, 0x03, 0xf0]);
        assert_eq!(&out[4..], "x".repeat(122).as_bytes());

        let reason = format!("{}é and more", "x".repeat(121));
        let mut out = BytesMut::new();
        encode_close(Some(CloseCode::NORMAL), &reason, &mut out);
        assert_eq!(out.len(), 2 + 125);
        let close = parse_close(&out[2..]).unwrap().unwrap();
        assert_eq!(close.reason, reason[..123]);
    }

    #[test]
    fn without_a_code_there_is_no_payload() {
        let mut out = BytesMut::new();
        encode_close(None, "left out", &mut out);
        assert_eq!(&out[..], &[0x88, 0]);
    }
}
