//! Frames as a client may send them, or as it had better not: drawn whole, so that what follows a
//! header is what the header says, more often than not.

use arbitrary::{Arbitrary, Unstructured};
use bytes::BytesMut;

use crate::protocol::decoder::fuzz_stream;
use crate::protocol::{FrameHeader, Opcode, PayloadLimits, unmask};

/// A stream, how it is cut, and what may be in it.
#[derive(Debug, Arbitrary)]
struct Stream {
    message_bytes_max: u16,
    frame_bytes_max: Option<u8>,
    pieces: [u8; 4],
    frames: Vec<Frame>,
    /// Cut off at the end.
    missing: u8,
}

#[derive(Debug, Arbitrary)]
struct Frame {
    opcode: Kind,
    more: bool,
    masking_key: Option<[u8; 4]>,
    payload: Content,
}

/// Mostly what fits into the message that is in progress.
#[derive(Debug, Arbitrary)]
enum Kind {
    Next,
    NextBinary,
    Ping,
    Pong,
    Close,
    Text,
    Continuation,
    /// Any first byte.
    Any(u8),
}

#[derive(Debug, Arbitrary)]
enum Content {
    Text(String),
    Bytes(Vec<u8>),
    Long {
        len: u16,
        byte: u8,
    },
    Close {
        code: u16,
        reason: String,
    },
    /// A length that says nothing of what follows.
    Claimed(u64),
}

/// Decodes the stream that is drawn from `data`.
///
/// # Panics
/// When the decoder makes of it something else than the reference does, or something else in
/// pieces.
pub fn frames(data: &[u8]) {
    let Ok(stream) = Stream::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let mut bytes = BytesMut::new();
    let mut in_progress = false;
    for frame in &stream.frames {
        let first = bytes.len();
        frame.put(&mut in_progress, &mut bytes);
        if let Kind::Any(byte) = frame.opcode {
            bytes[first] = byte;
        }
    }
    bytes.truncate(bytes.len().saturating_sub(usize::from(stream.missing)));
    let pieces = stream.pieces.map(usize::from);
    let limits = PayloadLimits {
        // At least what may be configured.
        frame_bytes_max: stream.frame_bytes_max.map_or(usize::MAX, |len| usize::from(len).max(125)),
        message_bytes_max: usize::from(stream.message_bytes_max),
    };
    fuzz_stream(&bytes, &pieces, limits);
}

impl Frame {
    fn put(&self, in_progress: &mut bool, out: &mut BytesMut) {
        let opcode = match self.opcode {
            Kind::Next | Kind::NextBinary if *in_progress => Opcode::Continuation,
            Kind::Next | Kind::Text | Kind::Any(_) => Opcode::Text,
            Kind::NextBinary => Opcode::Binary,
            Kind::Ping => Opcode::Ping,
            Kind::Pong => Opcode::Pong,
            Kind::Close => Opcode::Close,
            Kind::Continuation => Opcode::Continuation,
        };
        let fin = !self.more || opcode.is_control();
        if !opcode.is_control() {
            *in_progress = !fin;
        }
        let mut payload = match &self.payload {
            Content::Text(text) => text.as_bytes().to_vec(),
            Content::Bytes(bytes) => bytes.clone(),
            Content::Long { len, byte } => vec![*byte; usize::from(*len) % LONG_MAX],
            Content::Close { code, reason } => [&code.to_be_bytes(), reason.as_bytes()].concat(),
            Content::Claimed(_) => Vec::new(),
        };
        let payload_len = match self.payload {
            Content::Claimed(len) => len,
            _ => payload.len() as u64,
        };
        let key = self.masking_key.unwrap_or_default();
        FrameHeader { fin, opcode, masking_key: Some(key), payload_len }.encode(out);
        unmask(&mut payload, key, 0);
        out.extend_from_slice(&payload);
    }
}

/// A length in 16 bits, and not so long that a byte at a time takes long.
const LONG_MAX: usize = 1200;
