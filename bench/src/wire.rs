//! The WebSocket protocol as a client speaks it, all of it tungstenite's.
//!
//! Requests, accept keys, frame headers and masking come from tungstenite, response heads from
//! httparse; this file only fits them to buffers that the engine owns. The server's codec is not
//! used anywhere: a bug in it must not hide on both sides.
//!
//! Never: touches a socket, keeps state between calls.

use std::io::{self, Cursor};

use thiserror::Error;
use tungstenite::handshake::client::{generate_key, generate_request};
use tungstenite::handshake::derive_accept_key;
use tungstenite::http::{Request, Uri};
use tungstenite::protocol::frame::coding::{CloseCode, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame, FrameHeader};

pub use tungstenite::protocol::frame::coding::{Control, Data};

/// A frame larger than this is a server gone mad, not a message of ours coming back.
const FRAME_BYTES_MAX: u64 = 64 << 20;
/// A response head larger than this is not one.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// Why the server's bytes are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireError {
    /// An answer to the upgrade request with another status.
    #[error("status {0}")]
    Status(u16),
    /// A 101 that is none, or no HTTP at all.
    #[error("not a WebSocket handshake")]
    Handshake,
    /// Not a frame a server may send.
    #[error("bad frame")]
    Frame,
}

/// Why a client on a blocking socket cannot go on.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The connection, or too long a silence.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What the server sent.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// No request could be made of the target.
    #[error("{0}")]
    Request(#[from] Box<tungstenite::Error>),
    /// Not what was promised.
    #[error("{0}")]
    Broken(String),
}

/// Everything about the upgrade request that is the same for all connections.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// The Host header.
    pub host: String,
    /// The subprotocol to offer, if any.
    pub subprotocol: Option<String>,
}

/// The text of a request and the answer it must get.
#[derive(Debug)]
pub struct Opening {
    /// Bytes to send.
    pub request: Vec<u8>,
    /// The Sec-WebSocket-Accept that proves the server understood.
    pub accept: String,
}

impl Upgrade {
    /// The request for `path`, with a fresh key.
    ///
    /// # Errors
    /// When `path` is no request target, or a header no header.
    pub fn open(&self, path: &str) -> Result<Opening, tungstenite::Error> {
        let key = generate_key();
        let accept = derive_accept_key(key.as_bytes());
        let uri: Uri = format!("ws://{}{path}", self.host).parse()?;
        let mut request = Request::builder()
            .uri(uri)
            .header("Host", &self.host)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", key);
        if let Some(subprotocol) = &self.subprotocol {
            request = request.header("Sec-WebSocket-Protocol", subprotocol);
        }
        let (request, _key) = generate_request(request.body(())?)?;
        Ok(Opening { request, accept })
    }
}

/// The length of the response head at the start of `input`, or `None` while it is incomplete.
///
/// # Errors
/// When it is complete and not the 101 that `accept` asks for (RFC 6455 section 4.1).
pub fn read_response(input: &[u8], accept: &str) -> Result<Option<usize>, WireError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(input).map_err(|_| WireError::Handshake)? {
        httparse::Status::Complete(len) => len,
        httparse::Status::Partial if input.len() > HEAD_BYTES_MAX => {
            return Err(WireError::Handshake);
        }
        httparse::Status::Partial => return Ok(None),
    };
    match response.code {
        Some(101) => {}
        Some(status) => return Err(WireError::Status(status)),
        None => return Err(WireError::Handshake),
    }
    let header = |name: &str| {
        let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.map_or(&[][..], |header| header.value)
    };
    let upgrades = header("Upgrade").eq_ignore_ascii_case(b"websocket");
    let accepts = header("Sec-WebSocket-Accept") == accept.as_bytes();
    if upgrades && accepts { Ok(Some(len)) } else { Err(WireError::Handshake) }
}

/// A frame at the start of some input.
#[derive(Debug)]
pub struct Received<'i> {
    /// What it is.
    pub opcode: OpCode,
    /// Whether it ends its message.
    pub is_final: bool,
    /// Its payload.
    pub payload: &'i [u8],
    /// Its bytes, header included.
    pub len: usize,
}

/// The first frame of `input`, or `None` while it is incomplete. Copies nothing.
///
/// # Errors
/// A reserved bit or opcode, a masked frame (RFC 6455 section 5.1), or one beyond all measure.
pub fn read_frame(input: &[u8]) -> Result<Option<Received<'_>>, WireError> {
    let mut cursor = Cursor::new(input);
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| WireError::Frame)?;
    let Some((header, payload_len)) = parsed else { return Ok(None) };
    let reserved = header.rsv1 || header.rsv2 || header.rsv3;
    if reserved || header.mask.is_some() || payload_len > FRAME_BYTES_MAX {
        return Err(WireError::Frame);
    }
    let start = cursor.position() as usize;
    let len = start + payload_len as usize;
    let Some(payload) = input.get(start..len) else { return Ok(None) };
    Ok(Some(Received { opcode: header.opcode, is_final: header.is_final, payload, len }))
}

/// Appends `text` as one masked text frame.
pub fn write_text(text: String, masking_key: [u8; 4], out: &mut Vec<u8>) {
    write(Frame::message(text, OpCode::Data(Data::Text), true), masking_key, out);
}

/// Appends the answer to a ping.
pub fn write_pong(payload: &[u8], masking_key: [u8; 4], out: &mut Vec<u8>) {
    write(Frame::pong(payload.to_vec()), masking_key, out);
}

/// Appends a ping.
pub fn write_ping(payload: &[u8], masking_key: [u8; 4], out: &mut Vec<u8>) {
    write(Frame::ping(payload.to_vec()), masking_key, out);
}

/// The code in the payload of a close frame; 1005 if there is none (RFC 6455 section 7.1.5).
#[must_use]
pub fn close_code(payload: &[u8]) -> u16 {
    payload.first_chunk().map_or(1005, |&code| u16::from_be_bytes(code))
}

/// Appends a normal close.
pub fn write_close(masking_key: [u8; 4], out: &mut Vec<u8>) {
    let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    write(Frame::close(Some(close)), masking_key, out);
}

fn write(mut frame: Frame, masking_key: [u8; 4], out: &mut Vec<u8>) {
    frame.header_mut().mask = Some(masking_key);
    frame.format(out).expect("writing to memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_may_trickle_and_must_prove_itself() {
        let upgrade = Upgrade { host: "127.0.0.1:80".into(), subprotocol: Some("v1".into()) };
        let opening = upgrade.open("/raw/a?b").expect("a request");
        let request = String::from_utf8(opening.request).expect("text");
        assert!(request.starts_with("GET /raw/a?b HTTP/1.1\r\nHost: 127.0.0.1:80\r\n"));
        assert!(request.contains("Sec-WebSocket-Protocol: v1\r\n"));
        let response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\r\n",
            opening.accept
        );
        for cut in 0..response.len() {
            assert_eq!(read_response(&response.as_bytes()[..cut], &opening.accept), Ok(None));
        }
        let whole = response.len();
        let more = [response.as_bytes(), b"\x81\x00"].concat();
        assert_eq!(read_response(&more, &opening.accept), Ok(Some(whole)));
        assert_eq!(read_response(&more, "other"), Err(WireError::Handshake));
        let refused = b"HTTP/1.1 503 Service Unavailable\r\n\r\n";
        assert_eq!(read_response(refused, "any"), Err(WireError::Status(503)));
        assert_eq!(read_response(b"SSH-2.0\r\n\r\n", "any"), Err(WireError::Handshake));
    }

    #[test]
    fn frames_come_whole_or_not_at_all() {
        let input = [&b"\x81\x03abc"[..], b"\x8a\x00"].concat();
        for cut in 0..5 {
            assert!(matches!(read_frame(&input[..cut]), Ok(None)), "cut at {cut}");
        }
        let frame = read_frame(&input).expect("good").expect("whole");
        assert_eq!((frame.payload, frame.len, frame.is_final), (&b"abc"[..], 5, true));
        assert!(matches!(read_frame(b"\x81\x80abcd"), Err(WireError::Frame)), "masked");
        assert!(matches!(read_frame(b"\xc1\x00"), Err(WireError::Frame)), "reserved bit");
    }

    #[test]
    fn writes_masked() {
        let mut out = Vec::new();
        write_text("ab".into(), [1, 2, 3, 4], &mut out);
        assert_eq!(out, [0x81, 0x82, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2]);
        write_close([0; 4], &mut out);
        assert_eq!(out[8..], [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]);
        assert_eq!((close_code(&out[14..]), close_code(&[])), (1000, 1005));
    }
}
