use bytes::BytesMut;
use proptest::prelude::*;

use super::super::close::CloseCode;
use super::super::frame::{CONTROL_PAYLOAD_LEN_MAX, tests::opcodes};
use super::harness::{Outcome, decode_in_pieces, of};
use super::*;
use Opcode::{Binary, Close, Continuation, Ping, Pong, Text};

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const FIN: bool = true;
const MORE: bool = false;

/// One masked frame, as a client sends it.
fn frame(fin: bool, opcode: Opcode, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut out = BytesMut::new();
    let payload_len = payload.len() as u64;
    FrameHeader { fin, opcode, masking_key: Some(KEY), payload_len }.encode(&mut out);
    let start = out.len();
    out.extend_from_slice(payload);
    unmask(&mut out[start..], KEY, 0);
    out.to_vec()
}

fn message(opcode: Opcode, payload: impl AsRef<[u8]>) -> Event<'static> {
    Event::Message { opcode, payload: owned(payload) }
}

fn owned(payload: impl AsRef<[u8]>) -> Payload<'static> {
    Payload::Owned(payload.as_ref().to_vec())
}

const MAX: usize = 1000;

/// `stream` has this outcome in one piece, byte by byte, and cut in two at each place.
fn check(stream: &[u8], events: Vec<Event<'static>>, error: Option<ProtocolError>) {
    let expected: Outcome = (events, error);
    assert_eq!(decode_in_pieces(stream, &[], MAX), expected, "{stream:02x?}");
    assert_eq!(decode_in_pieces(stream, &[1], MAX), expected, "{stream:02x?} byte by byte");
    for cut in 1..stream.len() {
        let pieces = [cut, stream.len() - cut];
        assert_eq!(decode_in_pieces(stream, &pieces, MAX), expected, "{stream:02x?} cut at {cut}");
    }
}

#[test]
fn messages() {
    check(&[], vec![], None);
    check(&frame(FIN, Text, "Hello"), vec![message(Text, "Hello")], None);
    check(&frame(FIN, Text, ""), vec![message(Text, "")], None);
    check(&frame(FIN, Binary, [0xff; 300]), vec![message(Binary, [0xff; 300])], None);
    check(
        &[frame(FIN, Text, "one"), frame(FIN, Binary, "two")].concat(),
        vec![message(Text, "one"), message(Binary, "two")],
        None,
    );
}

#[test]
fn fragments() {
    check(
        &[frame(MORE, Text, "Hel"), frame(FIN, Continuation, "lo")].concat(),
        vec![message(Text, "Hello")],
        None,
    );
    check(
        &[frame(MORE, Binary, ""), frame(MORE, Continuation, ""), frame(FIN, Continuation, "")]
            .concat(),
        vec![message(Binary, "")],
        None,
    );
    check(
        &[frame(MORE, Binary, ""), frame(FIN, Continuation, "late")].concat(),
        vec![message(Binary, "late")],
        None,
    );
    // A character cut between two fragments.
    check(
        &[frame(MORE, Text, [0xe2, 0x82]), frame(FIN, Continuation, [0xac])].concat(),
        vec![message(Text, "€")],
        None,
    );
}

#[test]
fn control_frames_between_fragments() {
    let stream = [
        frame(MORE, Text, "Hel"),
        frame(FIN, Ping, "are you there"),
        frame(FIN, Pong, ""),
        frame(FIN, Continuation, "lo"),
        frame(FIN, Close, b"\x03\xe8bye"),
    ];
    let events = vec![
        Event::Ping(owned("are you there")),
        Event::Pong(owned("")),
        message(Text, "Hello"),
        Event::Close(Some(CloseFrame { code: CloseCode::NORMAL, reason: "bye".into() })),
    ];
    check(&stream.concat(), events, None);
    check(&frame(FIN, Ping, [7; 125]), vec![Event::Ping(owned([7; 125]))], None);
    check(&frame(FIN, Close, ""), vec![Event::Close(None)], None);
}

#[test]
fn violations() {
    use ProtocolError::*;
    let begun = frame(MORE, Text, "begun");
    #[rustfmt::skip]
    let rows: &[(Vec<u8>, ProtocolError)] = &[
        (vec![0xc1, 0x80], ReservedBits),
        (vec![0x83, 0x80], UnknownOpcode),
        (vec![0x81, 0x02, b'h', b'i'], Unmasked),
        (vec![0x89, 0x00], Unmasked),
        (vec![0x82, 0xfe, 0, 5, 1, 2, 3, 4], LengthNotMinimal),
        (vec![0x82, 0xff, 0x80], LengthTooLarge),
        (frame(MORE, Ping, ""), FragmentedControl),
        (vec![0x89, 0xfe, 0, 126], ControlTooLong),
        (frame(FIN, Continuation, "x"), UnexpectedContinuation),
        (frame(MORE, Continuation, ""), UnexpectedContinuation),
        ([&begun[..], &frame(FIN, Text, "new")].concat(), ExpectedContinuation),
        ([&begun[..], &frame(MORE, Binary, "new")].concat(), ExpectedContinuation),
        (frame(FIN, Close, [3]), ClosePayloadLength),
        (frame(FIN, Close, [3, 0xed]), CloseCodeInvalid),       // 1005
        (frame(FIN, Close, b"\x03\xe8\xff"), InvalidUtf8),
        (frame(FIN, Text, [0xff]), InvalidUtf8),
        (frame(FIN, Text, [0xe2, 0x82]), InvalidUtf8),          // ends inside a character
        ([frame(MORE, Text, [0xe2]), frame(FIN, Continuation, "")].concat(), InvalidUtf8),
        ([&begun[..], &frame(MORE, Continuation, [0xff])].concat(), InvalidUtf8),
        (frame(FIN, Binary, [0; MAX + 1]), MessageTooBig),
        ([&begun[..], &frame(FIN, Continuation, [b'x'; MAX - 4])].concat(), MessageTooBig),
        (vec![0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4], MessageTooBig),
    ];
    for (stream, error) in rows {
        check(stream, vec![], Some(*error));
        // The same behind a good message, which is not lost.
        let stream = [&frame(FIN, Binary, "good"), &stream[..]].concat();
        check(&stream, vec![message(Binary, "good")], Some(*error));
    }
}

#[test]
#[cfg_attr(miri, ignore = "ten thousands of decodings take minutes")]
fn the_size_limit_is_inclusive() {
    check(&frame(FIN, Binary, [1; MAX]), vec![message(Binary, [1; MAX])], None);
    check(
        &[frame(MORE, Binary, [1; MAX]), frame(FIN, Continuation, "")].concat(),
        vec![message(Binary, [1; MAX])],
        None,
    );
    // A control frame does not count.
    check(
        &[frame(MORE, Binary, [1; MAX]), frame(FIN, Ping, "x")].concat(),
        vec![Event::Ping(owned("x"))],
        None,
    );
}

/// The largest frame that is allowed, and one byte more; in a message as long as ever.
#[test]
fn frames_have_a_limit_of_their_own() {
    use ProtocolError::{FrameTooBig, MessageTooBig};
    let limits = PayloadLimits { frame_bytes_max: 125, message_bytes_max: MAX };
    let decode = |stream: &[u8]| {
        let (mut decoder, mut budget) = (Decoder::default(), PartialBudget::new(MAX));
        decoder.decode(&mut stream.to_vec(), limits, &mut budget).map(|step| step.consumed)
    };
    for (fin, opcode) in [(FIN, Binary), (MORE, Text)] {
        let fits = frame(fin, opcode, [b'x'; 125]);
        assert_eq!(decode(&fits), Ok(fits.len()));
        assert_eq!(decode(&frame(fin, opcode, [b'x'; 126])), Err(FrameTooBig));
    }
    let begun = frame(MORE, Binary, [1; 125]);
    let last = |len| [&begun[..], &frame(FIN, Continuation, vec![1; len])].concat();
    assert_eq!(decode(&last(125)), Ok(last(125).len()));
    assert_eq!(decode(&last(126)), Err(FrameTooBig));
    assert_eq!(decode(&frame(FIN, Ping, [1; 125])), Ok(131));
    assert_eq!(decode(&frame(FIN, Binary, [1; MAX + 1])), Err(MessageTooBig));
}

/// Autobahn 6.4: neither the frame nor the message is complete, the text is already wrong.
#[test]
fn bad_text_is_refused_with_the_chunk_that_shows_it() {
    let good = "κόσμε".as_bytes();
    let stream = frame(FIN, Text, [good, &[0xf4, 0x90, 0x80, 0x80], b"edited"].concat());
    let header_len = 6;
    let wrong_at = header_len + good.len() + 1;
    let mut budget = PartialBudget::new(MAX);
    let mut decoder = Decoder::default();
    for (i, byte) in stream.iter().enumerate() {
        match decoder.decode(&mut [*byte], of(MAX), &mut budget) {
            Ok(_) => assert!(i < wrong_at, "accepted at {i}"),
            Err(error) => {
                assert_eq!((i, error), (wrong_at, ProtocolError::InvalidUtf8));
                break;
            }
        }
    }
}

#[test]
fn a_whole_frame_is_borrowed_and_a_cut_one_is_put_together() {
    let stream = [frame(FIN, Text, "whole"), frame(FIN, Ping, "ping"), frame(FIN, Text, "cut off")];
    let mut stream = stream.concat();
    let cut = stream.len() - 3;
    let (first, last) = stream.split_at_mut(cut);
    let mut budget = PartialBudget::new(MAX);
    let mut decoder = Decoder::default();

    let step = decoder.decode(first, of(MAX), &mut budget).unwrap();
    assert_eq!(step.consumed, 11);
    let Some(Event::Message { opcode: Text, payload: Payload::Borrowed(b"whole") }) = step.event
    else {
        panic!("{:?}", step.event)
    };
    assert!(decoder.is_idle());

    let step = decoder.decode(&mut first[11..], of(MAX), &mut budget).unwrap();
    assert_eq!(step.consumed, 10);
    assert!(matches!(step.event, Some(Event::Ping(Payload::Borrowed(b"ping")))));
    assert!(decoder.is_idle());

    let step = decoder.decode(&mut first[21..], of(MAX), &mut budget).unwrap();
    assert_eq!(step, Step { consumed: 10, event: None });
    assert_eq!((budget.used(), decoder.partial_bytes()), (7, 7));
    assert!(!decoder.is_idle());

    let step = decoder.decode(last, of(MAX), &mut budget).unwrap();
    let Some(Event::Message { payload: Payload::Owned(payload), .. }) = step.event else {
        panic!("{:?}", step.event)
    };
    assert_eq!(payload, b"cut off");
    assert!(decoder.is_idle());
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_header_alone_takes_no_memory_for_what_it_claims() {
    let max = 1 << 30;
    let mut budget = PartialBudget::new(1000);
    let mut decoder = Decoder::default();
    let stream = frame(FIN, Binary, vec![0; 1 << 20]);
    let (header, payload) = stream.split_at(14);
    decoder.decode(&mut header.to_vec(), of(max), &mut budget).unwrap();
    assert_eq!(budget.used(), 0);
    decoder.decode(&mut payload[..1].to_vec(), of(max), &mut budget).unwrap();
    assert_eq!(budget.used(), CAPACITY_MIN);
    // 500 bytes fit and take 512; doubling that for 600 does not.
    decoder.decode(&mut payload[..499].to_vec(), of(max), &mut budget).unwrap();
    assert_eq!(budget.used(), 512);
    let mut more = payload[..100].to_vec();
    let refused = decoder.decode(&mut more, of(max), &mut budget);
    assert_eq!(refused, Err(ProtocolError::NoRoom));
    decoder.reset(&mut budget);
    assert_eq!(budget.used(), 0);
    assert!(decoder.is_idle());
}

#[test]
#[cfg_attr(miri, ignore = "ten thousands of decodings take minutes")]
fn many_small_fragments_grow_by_doubling() {
    let max = 1 << 20;
    let mut budget = PartialBudget::new(max);
    let mut decoder = Decoder::default();
    let mut capacities = Vec::new();
    decoder.decode(&mut frame(MORE, Binary, [1]), of(max), &mut budget).unwrap();
    for _ in 0..20_000 {
        decoder.decode(&mut frame(MORE, Continuation, [1]), of(max), &mut budget).unwrap();
        capacities.push(decoder.partial_bytes());
    }
    capacities.dedup();
    assert_eq!(capacities, [256, 512, 1024, 2048, 4096, 8192, 16384, 32768]);
    decoder.reset(&mut budget);
}

#[test]
fn what_is_held_stays_small() {
    assert!(size_of::<Decoder>() <= 16);
    assert!(size_of::<Partial>() <= 128, "{}", size_of::<Partial>());
}

/// Frames that mostly follow each other as they should, of all lengths that matter.
fn streams() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        4 => "\\PC{0,40}".prop_map(String::into_bytes),
        2 => proptest::collection::vec(any::<u8>(), 0..40),
        1 => (100usize..400).prop_map(|len| vec![b'x'; len]),
    ];
    let any_frame = (any::<bool>(), opcodes(), payload).prop_map(|(fin, opcode, mut payload)| {
        if opcode.is_control() {
            payload.truncate(CONTROL_PAYLOAD_LEN_MAX);
        }
        if opcode == Close && payload.len() > 1 {
            payload[..2].copy_from_slice(&1000u16.to_be_bytes());
        }
        (fin || opcode.is_control(), opcode, payload)
    });
    proptest::collection::vec((any_frame, 0u8..20), 0..12).prop_map(|frames| {
        let mut in_progress = false;
        let mut stream = Vec::new();
        for ((fin, mut opcode, payload), luck) in frames {
            if !opcode.is_control() {
                // Now and then the sequence is left as it came, right or wrong.
                opcode = match (in_progress, luck) {
                    (_, 0) => opcode,
                    (true, _) => Continuation,
                    (false, 1..10) => Text,
                    (false, _) => Binary,
                };
                in_progress = !fin;
            }
            stream.extend(frame(fin, opcode, payload));
        }
        stream
    })
}

proptest! {
    #[test]
    fn any_split_gives_the_same_outcome(
        stream in streams(),
        pieces in proptest::collection::vec(1usize..60, 1..10),
        flip in proptest::option::weighted(0.2, any::<(proptest::sample::Index, u8)>()),
    ) {
        let mut stream = stream;
        if let Some((at, bits)) = flip && !stream.is_empty() {
            let at = at.index(stream.len());
            stream[at] ^= bits;
        }
        let whole = decode_in_pieces(&stream, &[], MAX);
        prop_assert_eq!(decode_in_pieces(&stream, &pieces, MAX), whole);
    }

    #[test]
    fn any_fragmentation_gives_the_message(
        text in "\\PC{0,200}",
        lens in proptest::collection::vec(0usize..50, 0..8),
    ) {
        let mut stream = Vec::new();
        let mut rest = text.as_bytes();
        let mut opcode = Text;
        for len in lens {
            let (fragment, behind) = rest.split_at(len.min(rest.len()));
            stream.extend(frame(MORE, opcode, fragment));
            stream.extend(frame(FIN, Pong, ""));
            (rest, opcode) = (behind, Continuation);
        }
        stream.extend(frame(FIN, opcode, rest));
        let (events, error) = decode_in_pieces(&stream, &[], MAX);
        prop_assert_eq!(error, None);
        prop_assert_eq!(events.last(), Some(&message(Text, text)));
    }

    #[test]
    fn any_bytes_are_survived(data: Vec<u8>) {
        fuzz_decoder(&data);
    }
}
