//! Opcodes and frame headers (RFC 6455 §5.2).
//!
//! ```text
//!  byte 0            byte 1            0, 2 or 8 bytes       0 or 4 bytes
//! +-+-+-+-+-------+ +-+-------------+ +-------------------+ +-------------+
//! |F|R|R|R| opcode| |M| length, 126 | | extended length,  | | masking key |
//! |I|S|S|S|       | |A| or 127      | | network order     | | if MASK     |
//! |N|V|V|V|       | |S|             | |                   | |             |
//! +-+-+-+-+-------+ +-+-------------+ +-------------------+ +-------------+
//! ```
//!
//! Knows single headers, both masked and not, and nothing about what came before: whether a
//! continuation is due, or a client forgot its mask, is the business of [`super::decoder`].
//! What is wrong with a header by itself is refused here, at the byte that shows it.

use bytes::{BufMut, BytesMut};

use super::error::ProtocolError;

/// Longest frame header: two bytes, a 64-bit length and a masking key (RFC 6455 §5.2).
pub const HEADER_LEN_MAX: usize = 14;

/// Longest payload of a control frame, in bytes (RFC 6455 §5.5).
pub const CONTROL_PAYLOAD_LEN_MAX: usize = 125;

/// What a frame is for (RFC 6455 §5.2, §11.8). The reserved values have no variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of the message begun before (§5.4).
    Continuation = 0x0,
    /// A message, or its first fragment, whose payload is UTF-8 (§5.6).
    Text = 0x1,
    /// A message, or its first fragment, of any bytes (§5.6).
    Binary = 0x2,
    /// The sender will send nothing more (§5.5.1).
    Close = 0x8,
    /// Asks for a pong with the same payload (§5.5.2).
    Ping = 0x9,
    /// Answers a ping, or tells that the sender is alive (§5.5.3).
    Pong = 0xA,
}

impl Opcode {
    /// The opcode with these four bits; `None` for the reserved ones (RFC 6455 §5.2).
    pub const fn from_bits(bits: u8) -> Option<Opcode> {
        match bits {
            0x0 => Some(Opcode::Continuation),
            0x1 => Some(Opcode::Text),
            0x2 => Some(Opcode::Binary),
            0x8 => Some(Opcode::Close),
            0x9 => Some(Opcode::Ping),
            0xA => Some(Opcode::Pong),
            _ => None,
        }
    }

    /// Whether this is a control frame: never fragmented, at most 125 bytes (RFC 6455 §5.5).
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// One frame header (RFC 6455 §5.2). The reserved bits have no field: no extension is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// This frame ends its message.
    pub fin: bool,
    /// What the frame is for.
    pub opcode: Opcode,
    /// The key its payload is masked with; every client masks, no server does (§5.1).
    pub masking_key: Option<[u8; 4]>,
    /// Payload bytes that follow the header.
    pub payload_len: u64,
}

impl FrameHeader {
    /// Decodes the header at the start of `input` and says how many bytes long it is;
    /// `Ok(None)` when more bytes are needed (RFC 6455 §5.2).
    ///
    /// Prefix-stable: an error found in a prefix is the error of every longer input.
    ///
    /// # Errors
    /// In the order of the bytes that show them: `ReservedBits`, `UnknownOpcode`,
    /// `FragmentedControl` (byte 0), `ControlTooLong` (byte 1), `LengthTooLarge` (byte 2),
    /// `LengthNotMinimal` (when the length is complete).
    pub fn decode(input: &[u8]) -> Result<Option<(FrameHeader, usize)>, ProtocolError> {
        let Some(&first) = input.first() else {
            return Ok(None);
        };
        if first & RSV != 0 {
            return Err(ProtocolError::ReservedBits);
        }
        let fin = first & FIN != 0;
        let opcode = Opcode::from_bits(first & OPCODE_BITS).ok_or(ProtocolError::UnknownOpcode)?;
        if opcode.is_control() && !fin {
            return Err(ProtocolError::FragmentedControl);
        }

        let Some(&second) = input.get(1) else {
            return Ok(None);
        };
        let short_len = second & LENGTH_BITS;
        if opcode.is_control() && usize::from(short_len) > CONTROL_PAYLOAD_LEN_MAX {
            return Err(ProtocolError::ControlTooLong);
        }

        let Some((payload_len, after_len)) = decode_len(short_len, &input[2..])? else {
            return Ok(None);
        };
        let mut header_len = input.len() - after_len.len();

        let masking_key = if second & MASK != 0 {
            let Some(&key) = after_len.first_chunk::<4>() else {
                return Ok(None);
            };
            header_len += key.len();
            Some(key)
        } else {
            None
        };
        Ok(Some((FrameHeader { fin, opcode, masking_key, payload_len }, header_len)))
    }

    /// Appends the header to `out`, its length in the shortest form (RFC 6455 §5.2).
    ///
    /// Does not judge: what [`FrameHeader::decode`] would refuse is written as it is told.
    pub fn encode(&self, out: &mut BytesMut) {
        let mask = if self.masking_key.is_some() { MASK } else { 0 };
        out.put_u8(if self.fin { FIN } else { 0 } | self.opcode as u8);
        if self.payload_len < u64::from(LENGTH_IS_16_BIT) {
            out.put_u8(mask | self.payload_len as u8);
        } else if let Ok(len) = u16::try_from(self.payload_len) {
            out.put_u8(mask | LENGTH_IS_16_BIT);
            out.put_u16(len);
        } else {
            out.put_u8(mask | LENGTH_IS_64_BIT);
            out.put_u64(self.payload_len);
        }
        if let Some(key) = self.masking_key {
            out.put_slice(&key);
        }
    }
}

/// The payload length that `short_len` and the bytes after it give, and what follows them.
fn decode_len(short_len: u8, input: &[u8]) -> Result<Option<(u64, &[u8])>, ProtocolError> {
    let (len, shortest, rest) = match short_len {
        LENGTH_IS_16_BIT => {
            let Some((len, rest)) = input.split_first_chunk::<2>() else {
                return Ok(None);
            };
            (u64::from(u16::from_be_bytes(*len)), u64::from(LENGTH_IS_16_BIT), rest)
        }
        LENGTH_IS_64_BIT => {
            if input.first().is_some_and(|first| first & 0x80 != 0) {
                return Err(ProtocolError::LengthTooLarge);
            }
            let Some((len, rest)) = input.split_first_chunk::<8>() else {
                return Ok(None);
            };
            (u64::from_be_bytes(*len), u64::from(u16::MAX) + 1, rest)
        }
        short => (u64::from(short), 0, input),
    };
    if len < shortest {
        return Err(ProtocolError::LengthNotMinimal);
    }
    Ok(Some((len, rest)))
}

/// Bytes of the header that a server puts before `payload_len` bytes: 2, 4 or 10 (RFC 6455 §5.2).
pub const fn server_header_len(payload_len: usize) -> usize {
    match payload_len {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    }
}

/// Appends one whole, final, unmasked frame to `out` (RFC 6455 §5.2): what a server sends.
///
/// Cost: one copy of `payload`; allocates only when `out` has to grow.
pub fn encode_frame(opcode: Opcode, payload: &[u8], out: &mut BytesMut) {
    debug_assert!(!opcode.is_control() || payload.len() <= CONTROL_PAYLOAD_LEN_MAX);
    out.reserve(server_header_len(payload.len()) + payload.len());
    let payload_len = payload.len() as u64;
    FrameHeader { fin: true, opcode, masking_key: None, payload_len }.encode(out);
    out.put_slice(payload);
}

/// Bytes on the wire of the whole frame at the start of `frames`, header and payload;
/// `None` if its header is not complete (RFC 6455 §5.2).
///
/// For walking over frames this server encoded, so as to skip only whole ones.
pub fn frame_len(frames: &[u8]) -> Option<usize> {
    let (header, header_len) = FrameHeader::decode(frames).ok().flatten()?;
    usize::try_from(header.payload_len).ok()?.checked_add(header_len)
}

const FIN: u8 = 0x80;
const RSV: u8 = 0x70;
const OPCODE_BITS: u8 = 0x0F;
const MASK: u8 = 0x80;
const LENGTH_BITS: u8 = 0x7F;
const LENGTH_IS_16_BIT: u8 = 126;
const LENGTH_IS_64_BIT: u8 = 127;

#[cfg(test)]
pub(crate) mod tests;
