//! A decoder that is easy to read, for comparison: all of the stream at once, byte by byte.
//!
//! It shares no code with the real one but the names of what comes out.

use super::harness::Outcome;
use super::*;
use crate::protocol::close::CloseCode;

/// What `stream` comes to (RFC 6455 §5).
pub(super) fn decode(stream: &[u8], limits: PayloadLimits) -> Outcome {
    let mut events = Vec::new();
    let error = read_frames(stream, limits, &mut events).err().flatten();
    (events, error)
}

/// Ends with `Err(None)` where the stream does.
fn read_frames(
    stream: &[u8],
    limits: PayloadLimits,
    events: &mut Vec<Event<'static>>,
) -> Result<(), Option<ProtocolError>> {
    let mut bytes = stream.iter().copied();
    let mut message: Option<(Opcode, Vec<u8>)> = None;
    loop {
        let first = bytes.next().ok_or(None)?;
        if first & 0x70 != 0 {
            return Err(Some(ProtocolError::ReservedBits));
        }
        let fin = first >= 0x80;
        let opcode = match first & 0x0f {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return Err(Some(ProtocolError::UnknownOpcode)),
        };
        let is_control = first & 0x08 != 0;
        if is_control && !fin {
            return Err(Some(ProtocolError::FragmentedControl));
        }
        let second = bytes.next().ok_or(None)?;
        let len = read_len(second & 0x7f, is_control, &mut bytes)?;
        if second < 0x80 {
            return Err(Some(ProtocolError::Unmasked));
        }
        let mut key = [0; 4];
        for byte in &mut key {
            *byte = bytes.next().ok_or(None)?;
        }
        match (opcode, &message) {
            (Opcode::Continuation, None) => {
                return Err(Some(ProtocolError::UnexpectedContinuation));
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(Some(ProtocolError::ExpectedContinuation));
            }
            _ => {}
        }
        let held = message.as_ref().map_or(0, |(_, held)| held.len() as u64);
        if !is_control && held.saturating_add(len) > limits.message_bytes_max as u64 {
            return Err(Some(ProtocolError::MessageTooBig));
        }
        if len > limits.frame_bytes_max as u64 {
            return Err(Some(ProtocolError::FrameTooBig));
        }
        let masked: Vec<u8> = bytes.by_ref().take(len as usize).collect();
        let is_whole = masked.len() as u64 == len;
        let payload: Vec<u8> = masked.iter().zip(key.iter().cycle()).map(|(a, b)| a ^ b).collect();
        if is_control {
            events.push(if is_whole { control(opcode, payload)? } else { return Err(None) });
            continue;
        }
        let (kind, held) = message.get_or_insert_with(|| (opcode, Vec::new()));
        held.extend(payload);
        let ends = fin && is_whole;
        if *kind == Opcode::Text
            && std::str::from_utf8(held).is_err_and(|error| ends || error.error_len().is_some())
        {
            return Err(Some(ProtocolError::InvalidUtf8));
        }
        if !is_whole {
            return Err(None);
        }
        if let Some((opcode, payload)) = message.take_if(|_| ends) {
            events.push(Event::Message { opcode, payload: Payload::Owned(payload) });
        }
    }
}

/// The length of a payload (§5.2).
fn read_len(
    short: u8,
    is_control: bool,
    bytes: &mut impl Iterator<Item = u8>,
) -> Result<u64, Option<ProtocolError>> {
    if is_control && short > 125 {
        return Err(Some(ProtocolError::ControlTooLong));
    }
    let (more, least) = match short {
        126 => (2, 126),
        127 => (8, 0x1_0000),
        _ => return Ok(u64::from(short)),
    };
    let mut len = 0;
    for place in 0..more {
        let byte = bytes.next().ok_or(None)?;
        if more == 8 && place == 0 && byte >= 0x80 {
            return Err(Some(ProtocolError::LengthTooLarge));
        }
        len = len << 8 | u64::from(byte);
    }
    if len < least { Err(Some(ProtocolError::LengthNotMinimal)) } else { Ok(len) }
}

/// A whole control frame (§5.5).
fn control(opcode: Opcode, payload: Vec<u8>) -> Result<Event<'static>, Option<ProtocolError>> {
    match opcode {
        Opcode::Ping => return Ok(Event::Ping(Payload::Owned(payload))),
        Opcode::Pong => return Ok(Event::Pong(Payload::Owned(payload))),
        _ => {}
    }
    let (code, reason) = match payload[..] {
        [] => return Ok(Event::Close(None)),
        [_] => return Err(Some(ProtocolError::ClosePayloadLength)),
        [high, low, ..] => (u16::from(high) << 8 | u16::from(low), payload[2..].to_vec()),
    };
    if !(1000..5000).contains(&code)
        || (1004..=1006).contains(&code)
        || (1015..3000).contains(&code)
    {
        return Err(Some(ProtocolError::CloseCodeInvalid));
    }
    let reason = String::from_utf8(reason).map_err(|_| Some(ProtocolError::InvalidUtf8))?;
    Ok(Event::Close(Some(CloseFrame { code: CloseCode(code), reason: reason.into() })))
}
