//! UTF-8 in pieces, held against the standard library.

use crate::protocol::Utf8Validator;

/// The first four bytes are the lengths of the pieces, over and over; the rest is the text.
///
/// # Panics
/// When the text is judged otherwise than by `std`, or not at the byte that shows it.
pub fn utf8(data: &[u8]) {
    let (lengths, text) = data.split_at(data.len().min(4));
    let wrong_at = first_wrong(text);
    for lengths in [lengths, &[1], &[u8::MAX]] {
        let mut validator = Utf8Validator::default();
        let mut rest = text;
        let mut lengths = lengths.iter().cycle();
        let verdict = loop {
            let len = lengths.next().map_or(rest.len(), |len| usize::from(*len).max(1));
            let (piece, behind) = rest.split_at(len.min(rest.len()));
            rest = behind;
            let taken = text.len() - rest.len();
            match validator.push(piece) {
                Ok(()) => assert!(wrong_at.is_none_or(|at| taken <= at), "accepted at {taken}"),
                Err(_) => break Err(taken),
            }
            if rest.is_empty() {
                break validator.finish().map_err(|_| taken);
            }
        };
        match verdict {
            Ok(()) => assert!(std::str::from_utf8(text).is_ok()),
            // Only the end shows that a character is incomplete.
            Err(taken) if wrong_at.is_none() => {
                assert_eq!(taken, text.len());
                assert!(std::str::from_utf8(text).is_err());
            }
            Err(taken) => assert!(wrong_at.is_some_and(|at| at < taken), "refused at {taken}"),
        }
    }
}

/// The place of the byte that no text can have there; `None` if some text begins like this.
fn first_wrong(text: &[u8]) -> Option<usize> {
    let error = std::str::from_utf8(text).err()?;
    error.error_len()?;
    let begins_text = |end: &usize| {
        let error = std::str::from_utf8(&text[..*end]).err();
        error.is_none_or(|error| error.error_len().is_none())
    };
    let start = error.valid_up_to();
    (start + 1..=text.len()).find(|end| !begins_text(end)).map(|end| end - 1)
}
