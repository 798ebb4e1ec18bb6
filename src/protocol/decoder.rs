//! What an open connection receives: bytes in, messages and control frames out (RFC 6455 §5, §6.2).
//!
//! ```text
//!                        header complete, checked against the message in progress
//!                ┌────────────────────────────────────────────────────────────────┐
//!                │                                                                ▼
//!    more  ┌─────┴──────┐                                                  ┌─────────────┐  more
//!    bytes │   Header   │◀──── payload complete, not final: next fragment ─┤   Payload   │ bytes
//!    ┌────▶│ 0-13 bytes │                                                  │ of one frame│◀────┐
//!    └─────┤  are held  │◀──── payload complete: event ────────────────────┤ unmask,     ├─────┘
//!          └─────┬──────┘                                                  │ check, keep │
//!                │                                                         └──────┬──────┘
//!                └──────────────────▶ ProtocolError: the end ◀────────────────────┘
//!
//!    Beside both states: the message in progress (its fragments so far), which control frames
//!    do not disturb. Idle = Header with 0 bytes held and no message: nothing is allocated.
//! ```
//!
//! A frame that lies whole in the input is handed out where it lies, unmasked in place: no copy,
//! no allocation. Only what the input cuts off is kept, in one box that goes with the event.
//! What is kept grows with the bytes that arrived, never with the length a header claims, and is
//! accounted in the shard's [`PartialBudget`].
//!
//! Never: answers (pong and close are the session's), waits, or holds on to the input.

use std::fmt;
use std::ops::Deref;

use super::close::{CloseFrame, parse_close};
use super::error::ProtocolError;
use super::frame::{FrameHeader, HEADER_LEN_MAX, Opcode};
use super::mask::unmask;
use super::utf8::Utf8Validator;

/// Decodes the frames of one client, cut anywhere (RFC 6455 §5, §6.2).
///
/// Eight bytes while idle. Call [`Decoder::reset`] before dropping it, or its share of the budget
/// is lost.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

/// What one call of [`Decoder::decode`] did.
#[derive(Debug, PartialEq, Eq)]
pub struct Step<'b> {
    /// Bytes of the input that are dealt with; the next call starts behind them.
    pub consumed: usize,
    /// What they completed. `None`: all of the input was taken in, and more is needed.
    pub event: Option<Event<'b>>,
}

/// What a client said (RFC 6455 §6.2, §5.5).
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'b> {
    /// A whole message, all fragments together (§5.4, §5.6).
    Message {
        /// `Text`, whose payload is valid UTF-8, or `Binary`.
        opcode: Opcode,
        /// The bytes, unmasked.
        payload: Payload<'b>,
    },
    /// A ping: owed a pong with the same payload (§5.5.2).
    Ping(Payload<'b>),
    /// A pong, asked for or not (§5.5.3).
    Pong(Payload<'b>),
    /// A close, `None` without a code (§5.5.1): nothing after it is to be decoded.
    Close(Option<CloseFrame<'b>>),
}

/// Unmasked payload of a message or control frame (RFC 6455 §5.3).
#[derive(Clone)]
pub enum Payload<'b> {
    /// It lay whole in the input, and lies there still.
    Borrowed(&'b [u8]),
    /// It came in parts and was put together.
    Owned(Vec<u8>),
}

/// How much a connection may send at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadLimits {
    /// Payload of one frame, in bytes.
    pub frame_bytes_max: usize,
    /// Payload of one message over all its fragments, in bytes.
    pub message_bytes_max: usize,
}

impl Decoder {
    /// Decodes `input` up to the first event (RFC 6455 §5, §6.2).
    ///
    /// `input` is what the connection received, in order; its payloads are unmasked in place, so
    /// each byte must be passed once only: continue behind [`Step::consumed`]. A non-empty input
    /// is never left untouched: either some of it is consumed or the call fails.
    /// `limits` are checked as soon as the header of a frame is known; the one of messages must not
    /// change while a message is in progress. `budget` is the shard's account of incomplete
    /// messages.
    ///
    /// Cost: one pass. Allocates only for frames and messages that `input` holds in part.
    ///
    /// # Errors
    /// The violation, at the first header, text byte or close payload that shows it; `NoRoom` when
    /// the budget or memory is used up. The decoder must not be used after that, except for
    /// [`Decoder::reset`].
    pub fn decode<'b>(
        &mut self,
        input: &'b mut [u8],
        limits: PayloadLimits,
        budget: &mut PartialBudget,
    ) -> Result<Step<'b>, ProtocolError> {
        let input_len = input.len();
        let mut rest = input;
        while !rest.is_empty() {
            let mut frame = match self.frame_in_progress() {
                Some(frame) => frame,
                None => {
                    let Some((header, taken)) = self.take_header(rest)? else {
                        break;
                    };
                    rest = &mut rest[taken..];
                    self.begin_frame(header, limits)?
                }
            };
            let (chunk, behind) = rest.split_at_mut(frame.missing().min(rest.len()));
            rest = behind;
            unmask(chunk, frame.masking_key, frame.received);
            frame.received += chunk.len();
            let event = if frame.opcode.is_control() {
                self.take_control(&frame, chunk)?
            } else {
                self.take_data(&frame, chunk, limits.message_bytes_max, budget)?
            };
            if event.is_some() {
                return Ok(Step { consumed: input_len - rest.len(), event });
            }
        }
        Ok(Step { consumed: input_len, event: None })
    }

    /// Whether nothing partial is held: the input ended with the end of a message.
    pub fn is_idle(&self) -> bool {
        self.partial.is_none()
    }

    /// Bytes this decoder takes from the budget: the capacity of the message in progress.
    pub fn partial_bytes(&self) -> usize {
        self.message().map_or(0, |message| message.payload.capacity())
    }

    /// Drops what is held and gives it back to the budget: the connection ends.
    pub fn reset(&mut self, budget: &mut PartialBudget) {
        budget.credit(self.partial_bytes());
        self.partial = None;
    }

    /// Completes a header from the front of `input` and says how many bytes of `input` it took;
    /// `None`: all of `input` is kept, and more is needed.
    fn take_header(&mut self, input: &[u8]) -> Result<Option<(FrameHeader, usize)>, ProtocolError> {
        // Held bytes and new ones together; the few bytes copied cost less than a second way.
        let (mut bytes, held_len) = self.held_header();
        let len = (held_len + input.len()).min(HEADER_LEN_MAX);
        bytes[held_len..len].copy_from_slice(&input[..len - held_len]);
        match FrameHeader::decode(&bytes[..len])? {
            Some((header, header_len)) => Ok(Some((header, header_len - held_len))),
            None => {
                self.partial_mut().stage = Stage::Header { bytes, len: len as u8 };
                Ok(None)
            }
        }
    }

    /// Checks a complete header against the message in progress (RFC 6455 §5.1, §5.4).
    fn begin_frame(
        &self,
        header: FrameHeader,
        limits: PayloadLimits,
    ) -> Result<Frame, ProtocolError> {
        let FrameHeader { fin, opcode, masking_key, payload_len } = header;
        let PayloadLimits { frame_bytes_max, message_bytes_max } = limits;
        let masking_key = masking_key.ok_or(ProtocolError::Unmasked)?;
        let room = match (opcode, self.message()) {
            // At most 125 bytes, and beside the message: no limit of messages applies.
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => usize::MAX,
            (Opcode::Text | Opcode::Binary, None) => message_bytes_max,
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(ProtocolError::ExpectedContinuation);
            }
            (Opcode::Continuation, None) => return Err(ProtocolError::UnexpectedContinuation),
            (Opcode::Continuation, Some(message)) => {
                message_bytes_max.saturating_sub(message.payload.len())
            }
        };
        match usize::try_from(payload_len) {
            Ok(payload_len) if payload_len <= room => {
                // (A control frame is no longer than the least that may be set.)
                if payload_len > frame_bytes_max {
                    return Err(ProtocolError::FrameTooBig);
                }
                Ok(Frame { fin, opcode, masking_key, payload_len, received: 0 })
            }
            _ => Err(ProtocolError::MessageTooBig),
        }
    }

    /// Takes the next part of a control frame's payload; the event when it is complete (§5.5).
    fn take_control<'b>(
        &mut self,
        frame: &Frame,
        chunk: &'b [u8],
    ) -> Result<Option<Event<'b>>, ProtocolError> {
        let payload = if frame.payload_len == chunk.len() {
            Payload::Borrowed(chunk)
        } else {
            let control = &mut self.partial_mut().control;
            control.extend_from_slice(chunk);
            if frame.missing() > 0 {
                self.partial_mut().stage = Stage::Payload(*frame);
                return Ok(None);
            }
            Payload::Owned(std::mem::take(control))
        };
        self.end_frame();
        Ok(Some(match frame.opcode {
            Opcode::Ping => Event::Ping(payload),
            Opcode::Pong => Event::Pong(payload),
            _ => Event::Close(match &payload {
                Payload::Borrowed(bytes) => parse_close(bytes)?,
                Payload::Owned(bytes) => parse_close(bytes)?.map(CloseFrame::into_owned),
            }),
        }))
    }

    /// Takes the next part of a data frame's payload; the event when it completes the message
    /// (§5.4, §5.6).
    fn take_data<'b>(
        &mut self,
        frame: &Frame,
        chunk: &'b [u8],
        message_bytes_max: usize,
        budget: &mut PartialBudget,
    ) -> Result<Option<Event<'b>>, ProtocolError> {
        let ends_message = frame.fin && frame.missing() == 0;
        let (opcode, held) =
            self.message().map_or((frame.opcode, 0), |held| (held.opcode, held.payload.len()));
        if ends_message && held == 0 {
            // The whole message is this chunk: it stays where it lies.
            if opcode == Opcode::Text {
                let mut utf8 = Utf8Validator::default();
                utf8.push(chunk)?;
                utf8.finish()?;
            }
            self.reset(budget);
            return Ok(Some(Event::Message { opcode, payload: Payload::Borrowed(chunk) }));
        }

        // What the message may still come to: exactly known in its last frame only.
        let len_max =
            if frame.fin { held + chunk.len() + frame.missing() } else { message_bytes_max };
        let partial = self.partial_mut();
        let message = partial.message.get_or_insert_with(|| PartialMessage::new(opcode));
        message.append(chunk, len_max, budget)?;
        if !ends_message {
            partial.stage = match frame.missing() {
                0 => Stage::default(),
                _ => Stage::Payload(*frame),
            };
            return Ok(None);
        }
        message.utf8.finish()?;
        let payload = std::mem::take(&mut message.payload);
        budget.credit(payload.capacity());
        self.partial = None;
        Ok(Some(Event::Message { opcode, payload: Payload::Owned(payload) }))
    }

    /// Back to between two frames; without a message in progress nothing is held any more.
    fn end_frame(&mut self) {
        if let Some(partial) = &mut self.partial {
            if partial.message.is_some() {
                partial.stage = Stage::default();
            } else {
                self.partial = None;
            }
        }
    }

    fn held_header(&self) -> ([u8; HEADER_LEN_MAX], usize) {
        match self.partial.as_deref().map(|partial| &partial.stage) {
            Some(Stage::Header { bytes, len }) => (*bytes, usize::from(*len)),
            Some(Stage::Payload(_)) | None => ([0; HEADER_LEN_MAX], 0),
        }
    }

    fn frame_in_progress(&self) -> Option<Frame> {
        match self.partial.as_deref()?.stage {
            Stage::Payload(frame) => Some(frame),
            Stage::Header { .. } => None,
        }
    }

    fn message(&self) -> Option<&PartialMessage> {
        self.partial.as_deref()?.message.as_ref()
    }

    fn partial_mut(&mut self) -> &mut Partial {
        self.partial.get_or_insert_default()
    }
}

/// What is held of a frame or message of which only a part has arrived.
#[derive(Debug, Default)]
struct Partial {
    stage: Stage,
    /// Payload so far of a control frame in progress: at most 125 bytes, outside the budget.
    control: Vec<u8>,
    message: Option<PartialMessage>,
}

/// Where in a frame the last input ended; see the picture above.
#[derive(Debug)]
enum Stage {
    /// Inside the header, of which `bytes[..len]` have come, or before it.
    Header { bytes: [u8; HEADER_LEN_MAX], len: u8 },
    /// Inside the payload.
    Payload(Frame),
}

impl Default for Stage {
    fn default() -> Self {
        Stage::Header { bytes: [0; HEADER_LEN_MAX], len: 0 }
    }
}

/// A frame whose header is complete and accepted.
#[derive(Debug, Clone, Copy)]
struct Frame {
    fin: bool,
    opcode: Opcode,
    masking_key: [u8; 4],
    payload_len: usize,
    /// Payload bytes so far.
    received: usize,
}

impl Frame {
    /// Payload bytes that are still to come.
    fn missing(&self) -> usize {
        self.payload_len - self.received
    }
}

/// A message of which some bytes, or only empty fragments, have arrived.
#[derive(Debug)]
struct PartialMessage {
    opcode: Opcode,
    /// Its capacity is what the decoder takes from the budget.
    payload: Vec<u8>,
    /// Used for text only.
    utf8: Utf8Validator,
}

impl PartialMessage {
    fn new(opcode: Opcode) -> Self {
        PartialMessage { opcode, payload: Vec::new(), utf8: Utf8Validator::default() }
    }

    /// Validates and keeps the next bytes of a message that can come to `len_max` bytes.
    fn append(
        &mut self,
        chunk: &[u8],
        len_max: usize,
        budget: &mut PartialBudget,
    ) -> Result<(), ProtocolError> {
        if self.opcode == Opcode::Text {
            self.utf8.push(chunk)?;
        }
        self.reserve(self.payload.len() + chunk.len(), len_max, budget)?;
        self.payload.extend_from_slice(chunk);
        Ok(())
    }

    /// Makes room for `len` bytes in all: by doubling, so that a message in many small parts
    /// costs O(n), but not past `len_max`.
    fn reserve(
        &mut self,
        len: usize,
        len_max: usize,
        budget: &mut PartialBudget,
    ) -> Result<(), ProtocolError> {
        let capacity = self.payload.capacity();
        if len <= capacity {
            return Ok(());
        }
        let target = (2 * capacity).max(CAPACITY_MIN).min(len_max).max(len);
        if target - capacity > budget.free() {
            return Err(ProtocolError::NoRoom);
        }
        let additional = target - self.payload.len();
        self.payload.try_reserve_exact(additional).map_err(|_| ProtocolError::NoRoom)?;
        budget.charge(self.payload.capacity() - capacity);
        Ok(())
    }
}

/// First capacity of a message that comes in parts, in bytes, unless it is known to be shorter:
/// saves the first doublings of a message that trickles.
const CAPACITY_MIN: usize = 256;

/// A shard's account of the bytes that incomplete messages take, over all its connections.
///
/// Counts capacities, in bytes. What it bounds is memory that peers make the server hold without
/// finishing anything; the fixed part of a decoder is bounded by the number of connections.
#[derive(Debug)]
pub struct PartialBudget {
    used: usize,
    max: usize,
}

impl PartialBudget {
    /// An account of at most `max` bytes, all of them free.
    pub const fn new(max: usize) -> Self {
        PartialBudget { used: 0, max }
    }

    /// Changes the bound. What is held beyond it stays.
    pub const fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Bytes held by incomplete messages now.
    pub const fn used(&self) -> usize {
        self.used
    }

    const fn free(&self) -> usize {
        self.max.saturating_sub(self.used)
    }

    const fn charge(&mut self, bytes: usize) {
        self.used += bytes;
    }

    fn credit(&mut self, bytes: usize) {
        assert!(bytes <= self.used, "a decoder gives back more than all of them took");
        self.used -= bytes;
    }
}

impl Payload<'_> {
    /// The bytes as a vector of their own. Cost: one copy if they are borrowed.
    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Payload::Borrowed(bytes) => bytes.to_vec(),
            Payload::Owned(bytes) => bytes,
        }
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Payload::Borrowed(bytes) => bytes,
            Payload::Owned(bytes) => bytes,
        }
    }
}

/// Equal bytes are equal payloads, wherever they lie.
impl PartialEq for Payload<'_> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Payload<'_> {}

impl fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

const _: () = assert!(size_of::<Decoder>() <= 16, "part of every idle connection");

#[cfg(any(test, fuzzing))]
mod harness;
#[cfg(any(test, fuzzing))]
mod reference;
#[cfg(any(test, fuzzing))]
pub use harness::{fuzz_decoder, fuzz_stream};

#[cfg(test)]
mod tests;
