//! Drives a decoder over a stream cut into pieces, for tests and for fuzzing.

use super::reference;
use super::*;

/// What a stream came to: its events, and the error that ended it if one did.
pub(super) type Outcome = (Vec<Event<'static>>, Option<ProtocolError>);

/// Decodes `stream` as if it arrived in pieces of these lengths, over and over, and checks what
/// must hold at every step. No piece at all means one piece. No message has more than `max` bytes.
#[cfg(test)]
pub(super) fn decode_in_pieces(stream: &[u8], pieces: &[usize], max: usize) -> Outcome {
    decode_within(stream, pieces, of(max), usize::MAX)
}

/// The same with any limits, and with so many bytes for what is incomplete.
pub(super) fn decode_within(
    stream: &[u8],
    pieces: &[usize],
    limits: PayloadLimits,
    budget_max: usize,
) -> Outcome {
    let mut budget = PartialBudget::new(budget_max);
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    let mut error = None;
    let mut rest = stream;
    let mut lengths = pieces.iter().cycle();
    'stream: while !rest.is_empty() {
        let len = lengths.next().map_or(rest.len(), |len| (*len).clamp(1, rest.len()));
        let (piece, behind) = rest.split_at(len);
        rest = behind;
        let mut piece = piece.to_vec();
        let mut input = &mut piece[..];
        while !input.is_empty() {
            let input_len = input.len();
            let step = match decoder.decode(input, limits, &mut budget) {
                Ok(step) => step,
                Err(violation) => {
                    error = Some(violation);
                    break 'stream;
                }
            };
            let consumed = step.consumed;
            assert!(0 < consumed && consumed <= input_len, "{consumed} consumed");
            assert!(step.event.is_some() || consumed == input_len, "stopped without an event");
            events.extend(step.event.map(into_owned));
            input = &mut input[consumed..];
            assert_eq!(budget.used(), decoder.partial_bytes());
            assert!(decoder.partial_bytes() <= limits.message_bytes_max.max(CAPACITY_MIN));
            assert!(budget.used() <= budget_max);
            assert!(!decoder.is_idle() || decoder.partial_bytes() == 0);
        }
    }
    decoder.reset(&mut budget);
    assert_eq!(budget.used(), 0, "all is given back, also after an error");
    (events, error)
}

fn into_owned(event: Event<'_>) -> Event<'static> {
    let owned = |payload: Payload<'_>| Payload::Owned(payload.into_vec());
    match event {
        Event::Message { opcode, payload } => Event::Message { opcode, payload: owned(payload) },
        Event::Ping(payload) => Event::Ping(owned(payload)),
        Event::Pong(payload) => Event::Pong(owned(payload)),
        Event::Close(close) => Event::Close(close.map(CloseFrame::into_owned)),
    }
}

/// Feeds any bytes to the decoder, whole and in pieces, and to [`reference`]: the outcome must be
/// the same.
///
/// The first eight bytes of `data` are the lengths of the pieces, the rest is the stream.
///
/// # Panics
/// When it is not, or when an invariant does not hold: that is a finding.
pub fn fuzz_decoder(data: &[u8]) {
    let (lengths, stream) = data.split_at(data.len().min(8));
    let pieces: Vec<usize> = lengths.iter().map(|len| usize::from(*len)).collect();
    fuzz_stream(stream, &pieces, of(FUZZ_MESSAGE_BYTES_MAX));
}

/// The same with the pieces and the limits apart from the stream.
///
/// # Panics
/// As [`fuzz_decoder`].
pub fn fuzz_stream(stream: &[u8], pieces: &[usize], limits: PayloadLimits) {
    let whole = reference::decode(stream, limits);
    for pieces in [&[], pieces, &[1]] {
        assert_eq!(decode_within(stream, pieces, limits, usize::MAX), whole, "in {pieces:?}");
        // With little room for what is incomplete it may end sooner, and not otherwise.
        let (events, error) = decode_within(stream, pieces, limits, FUZZ_BUDGET);
        assert!(whole.0.starts_with(&events), "in {pieces:?}: {events:?}");
        assert!(error == Some(ProtocolError::NoRoom) || (events, error) == whole, "in {pieces:?}");
    }
}

/// Small, so that the limits are met often.
const FUZZ_MESSAGE_BYTES_MAX: usize = 1000;
const FUZZ_BUDGET: usize = 600;

/// Limits for messages of at most `message_bytes_max` in any frames.
pub(super) fn of(message_bytes_max: usize) -> PayloadLimits {
    PayloadLimits { frame_bytes_max: usize::MAX, message_bytes_max }
}
