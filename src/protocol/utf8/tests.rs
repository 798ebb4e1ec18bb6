use proptest::prelude::*;

use super::*;

/// Whether some text begins with `bytes`, by the standard library.
fn may_become_text(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    }
}

/// Pushes `bytes` one at a time and returns the index that was refused.
fn refused_at(bytes: &[u8]) -> Option<usize> {
    let mut validator = Utf8Validator::default();
    bytes.iter().position(|byte| validator.push(&[*byte]).is_err())
}

#[test]
fn refuses_at_the_first_wrong_byte() {
    #[rustfmt::skip]
    let rows: &[(&[u8], Option<usize>)] = &[
        (b"plain ascii", None),
        ("κόσμε \u{10FFFF}".as_bytes(), None),
        (&[0x80], Some(0)),                         // a continuation that continues nothing
        (&[0xC0], Some(0)),                         // overlong, two bytes
        (&[0xC1, 0xBF], Some(0)),
        (&[0xC2, 0x41], Some(1)),
        (&[0xE0, 0x9F], Some(1)),                   // overlong, three bytes
        (&[0xED, 0xA0], Some(1)),                   // a surrogate
        (&[0xF0, 0x8F], Some(1)),                   // overlong, four bytes
        (&[0xF4, 0x90], Some(1)),                   // past U+10FFFF (Autobahn 6.4)
        (&[0xF5], Some(0)),
        (&[0xFF], Some(0)),
        (&[0xE2, 0x82, 0x41], Some(2)),
        (&[0xF0, 0x9F, 0x98, 0x41], Some(3)),
        (&[0xE2, 0x82], None),                      // cut, but can become U+20AC
        (&[0xF4, 0x8F, 0xBF], None),
    ];
    for &(bytes, expected) in rows {
        assert_eq!(refused_at(bytes), expected, "{bytes:02x?}");
        let whole = Utf8Validator::default().push(bytes);
        assert_eq!(whole.is_err(), expected.is_some(), "{bytes:02x?} in one piece");
    }
}

#[test]
fn an_incomplete_character_is_no_end() {
    let mut validator = Utf8Validator::default();
    for (byte, may_end) in [(0xF0, false), (0x9F, false), (0x98, false), (0x80, true)] {
        validator.push(&[byte]).unwrap();
        assert_eq!(validator.finish().is_ok(), may_end, "after {byte:02x}");
    }
    validator.push(&[]).unwrap();
    assert!(validator.finish().is_ok());
}

/// Every lead byte with every second byte, and a third from each class.
#[test]
#[cfg_attr(miri, ignore = "half a million sequences take minutes")]
fn agrees_with_the_standard_library_on_short_sequences() {
    for lead in 0..=0xFF {
        for second in 0..=0xFF {
            for third in [0x00, 0x41, 0x80, 0x9F, 0xA0, 0xBF, 0xC2, 0xFF] {
                let bytes = [lead, second, third];
                let expected = (0..3).find(|&i| !may_become_text(&bytes[..=i]));
                assert_eq!(refused_at(&bytes), expected, "{bytes:02x?}");
            }
        }
    }
}

/// Bytes that are often, but not always, the parts of characters.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let character = any::<char>().prop_map(|c| c.to_string().into_bytes());
    let broken = any::<char>().prop_map(|c| c.to_string().into_bytes().split_off(1));
    let piece = prop_oneof![
        12 => character,
        4 => proptest::collection::vec(0x20u8..0x7F, 1..80),
        1 => broken,
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn equals_the_standard_library_at_each_prefix(
        text in texts(),
        steps in proptest::collection::vec(1usize..70, 1..20),
    ) {
        let mut validator = Utf8Validator::default();
        let mut seen = 0;
        for step in steps.into_iter().cycle() {
            let next = (seen + step).min(text.len());
            let result = validator.push(&text[seen..next]);
            seen = next;
            prop_assert_eq!(result.is_ok(), may_become_text(&text[..seen]));
            if result.is_err() || seen == text.len() {
                break;
            }
            let whole = std::str::from_utf8(&text[..seen]).is_ok();
            prop_assert_eq!(validator.finish().is_ok(), whole);
        }
    }
}
