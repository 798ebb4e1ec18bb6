//! The server's side of the WebSocket protocol, as much of it as the bare loop needs.
//!
//! Accept keys and frame headers are tungstenite's, request heads are parsed by httparse. A frame
//! goes out as it came in, opcode and FIN bit included, but unmasked; that is all the encoding
//! there is, once per message and not per member.
//!
//! Never: touches a socket, keeps state between calls, checks what a server would have to.

use std::io::Cursor;

use thiserror::Error;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, OpCode};

const HEADERS_MAX: usize = 64;
/// A frame larger than this is not one of the generator's.
const FRAME_BYTES_MAX: u64 = 16 << 20;

/// Not an upgrade request, or not a frame of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not the WebSocket protocol")]
pub(super) struct NotWebSocket;

/// The length of the upgrade request at the start of `input` and the answer to it, or `None` while
/// it is incomplete. Any path will do.
pub(super) fn answer(input: &[u8]) -> Result<Option<(usize, String)>, NotWebSocket> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(len) = request.parse(input).map_err(|_| NotWebSocket)? else {
        return Ok(None);
    };
    let key = request.headers.iter().find(|h| h.name.eq_ignore_ascii_case("Sec-WebSocket-Key"));
    let accept = derive_accept_key(key.ok_or(NotWebSocket)?.value);
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    Ok(Some((len, answer)))
}

/// What [`relay`] found in some input.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Relayed {
    /// Bytes of whole frames.
    pub(super) used: usize,
    /// Messages, or fragments of them, among these.
    pub(super) messages: u64,
    /// The last frame was a close: nothing after it counts.
    pub(super) closed: bool,
}

/// Appends the data frames at the start of `input` to `out` as a server sends them. Pings and pongs
/// are passed over, unanswered.
pub(super) fn relay(input: &[u8], out: &mut Vec<u8>) -> Result<Relayed, NotWebSocket> {
    let mut relayed = Relayed { used: 0, messages: 0, closed: false };
    while !relayed.closed {
        let rest = &input[relayed.used..];
        let mut cursor = Cursor::new(rest);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| NotWebSocket)?;
        let Some((mut header, payload_len)) = parsed else { break };
        let mask = header.mask.take().ok_or(NotWebSocket)?;
        if payload_len > FRAME_BYTES_MAX {
            return Err(NotWebSocket);
        }
        let start = cursor.position() as usize;
        let end = start + payload_len as usize;
        let Some(payload) = rest.get(start..end) else { break };
        relayed.used += end;
        match header.opcode {
            OpCode::Data(_) => {
                relayed.messages += 1;
                header.format(payload_len, out).expect("writing to memory cannot fail");
                out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
            }
            OpCode::Control(Control::Close) => relayed.closed = true,
            OpCode::Control(_) => {}
        }
    }
    Ok(relayed)
}

/// The answer to a close frame: one without a code (RFC 6455 section 5.5.1).
pub(super) const CLOSE: [u8; 2] = [0x88, 0];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Upgrade, read_frame, read_response, write_close, write_ping, write_text};

    #[test]
    fn answers_what_the_generator_asks() {
        let upgrade = Upgrade { host: "127.0.0.1:80".into(), subprotocol: None };
        let opening = upgrade.open("/raw/any").expect("a request");
        for cut in 0..opening.request.len() {
            assert_eq!(answer(&opening.request[..cut]), Ok(None), "cut at {cut}");
        }
        let (len, text) = answer(&opening.request).expect("good").expect("whole");
        assert_eq!(len, opening.request.len());
        assert_eq!(read_response(text.as_bytes(), &opening.accept), Ok(Some(text.len())));
        assert_eq!(answer(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(NotWebSocket));
    }

    #[test]
    fn relays_whole_frames_in_order_until_the_close() {
        let long = "b".repeat(70_000);
        let mut input = Vec::new();
        write_text("ab".into(), [1, 2, 3, 4], &mut input);
        write_ping(b"?", [5; 4], &mut input);
        write_text(long.clone(), [9, 8, 7, 6], &mut input);
        let whole = input.len();
        write_close([7; 4], &mut input);
        let mut out = Vec::new();
        let relayed = relay(&input[..whole - 1], &mut out).expect("good");
        assert_eq!((relayed.messages, relayed.closed, &out[..]), (1, false, &b"\x81\x02ab"[..]));
        let rest = input.split_off(relayed.used);
        let relayed = relay(&[&rest[..], b"after the close"].concat(), &mut out).expect("good");
        assert_eq!(relayed, Relayed { used: rest.len(), messages: 1, closed: true });
        let first = read_frame(&out).expect("good").expect("whole");
        let second = read_frame(&out[first.len..]).expect("good").expect("whole");
        assert_eq!((first.payload, second.payload), (&b"ab"[..], long.as_bytes()));
        assert_eq!(first.len + second.len, out.len(), "nothing else");
        assert_eq!(relay(b"\x81\x02ab", &mut out), Err(NotWebSocket), "not masked");
    }
}
