use proptest::prelude::*;

use super::*;

fn header(fin: bool, opcode: Opcode, key: Option<[u8; 4]>, payload_len: u64) -> FrameHeader {
    FrameHeader { fin, opcode, masking_key: key, payload_len }
}

/// `input` decodes to `expected`; every shorter input needs more bytes or shows the same error.
fn check(input: &[u8], expected: Result<FrameHeader, ProtocolError>) {
    let result = FrameHeader::decode(input);
    assert_eq!(result, expected.map(|header| Some((header, input.len()))), "{input:02x?}");
    for cut in 0..input.len() {
        let prefix = FrameHeader::decode(&input[..cut]);
        assert!(prefix == Ok(None) || prefix == result, "{:02x?}: {prefix:?}", &input[..cut]);
    }
}

#[test]
fn headers() {
    use Opcode::*;
    let key = Some([1, 2, 3, 4]);
    check(&[0x81, 0x85, 1, 2, 3, 4], Ok(header(true, Text, key, 5)));
    check(&[0x02, 0x80, 1, 2, 3, 4], Ok(header(false, Binary, key, 0)));
    check(&[0x80, 0x05], Ok(header(true, Continuation, None, 5)));
    check(&[0x89, 0x7d], Ok(header(true, Ping, None, 125)));
    check(&[0x8a, 0x00], Ok(header(true, Pong, None, 0)));
    check(&[0x88, 0x02], Ok(header(true, Close, None, 2)));
    check(&[0x82, 0x7e, 0x00, 0x7e], Ok(header(true, Binary, None, 126)));
    check(&[0x82, 0xfe, 0xff, 0xff, 1, 2, 3, 4], Ok(header(true, Binary, key, 65535)));
    check(&[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0], Ok(header(true, Binary, None, 65536)));
    check(
        &[0x82, 0x7f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        Ok(header(true, Binary, None, u64::MAX / 2)),
    );
}

/// The input ends with the byte that shows the error: one byte less and it is not yet known.
#[test]
fn violations_are_refused_at_the_byte_that_shows_them() {
    use ProtocolError::*;
    #[rustfmt::skip]
    let rows: &[(&[u8], ProtocolError)] = &[
        (&[0xc1], ReservedBits),
        (&[0xa1], ReservedBits),
        (&[0x91], ReservedBits),
        (&[0x83], UnknownOpcode),
        (&[0x87], UnknownOpcode),
        (&[0x8b], UnknownOpcode),
        (&[0x8f], UnknownOpcode),
        (&[0x09], FragmentedControl),
        (&[0x08], FragmentedControl),
        (&[0x89, 0xfe], ControlTooLong),
        (&[0x88, 0xff], ControlTooLong),
        (&[0x82, 0xfe, 0x00, 0x7d], LengthNotMinimal),
        (&[0x82, 0xfe, 0x00, 0x00], LengthNotMinimal),
        (&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], LengthNotMinimal),
        (&[0x82, 0xff, 0, 0, 0, 0, 0, 0, 0, 0], LengthNotMinimal),
        (&[0x82, 0xff, 0x80], LengthTooLarge),
    ];
    for &(input, error) in rows {
        check(input, Err(error));
        assert_eq!(FrameHeader::decode(&input[..input.len() - 1]), Ok(None), "{input:02x?}");
        assert_eq!(FrameHeader::decode(&[input, &[0; 14]].concat()), Err(error), "{input:02x?}");
    }
}

#[test]
fn whole_frames_and_their_length() {
    for payload_len in [0, 1, 125, 126, 127, 65535, 65536, 70000] {
        let payload = vec![0xAB; payload_len];
        let mut out = BytesMut::new();
        encode_frame(Opcode::Binary, &payload, &mut out);
        let header_len = server_header_len(payload_len);
        assert_eq!(&out[header_len..], &payload[..]);
        assert_eq!(frame_len(&out), Some(out.len()));
        assert_eq!(frame_len(&out[..header_len]), Some(out.len()));
        assert_eq!(frame_len(&out[..header_len - 1]), None);
    }
}

pub(crate) fn opcodes() -> impl Strategy<Value = Opcode> {
    use Opcode::*;
    proptest::sample::select(&[Continuation, Text, Binary, Close, Ping, Pong])
}

proptest! {
    #[test]
    fn decode_undoes_encode(
        fin: bool,
        opcode in opcodes(),
        masking_key: Option<[u8; 4]>,
        shift in 0u32..64,
        payload_len in 0..=u64::MAX / 2,
        behind: Vec<u8>,
    ) {
        let payload_len = payload_len >> shift;
        let mut header = FrameHeader { fin, opcode, masking_key, payload_len };
        if opcode.is_control() {
            header.fin = true;
            header.payload_len %= 126;
        }
        let mut out = BytesMut::new();
        header.encode(&mut out);
        let header_len = out.len();
        out.extend_from_slice(&behind);
        prop_assert_eq!(FrameHeader::decode(&out), Ok(Some((header, header_len))));
    }
}
