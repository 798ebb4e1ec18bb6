//! Templates: what a connection asks for, joins with and publishes, with placeholders.
//!
//! `{room}` and `{connection}` are numbers. `{sequence}` and `{timestamp}` expand to marks of
//! fixed form that [`Stamp::find`] recognises wherever a server puts them, bare or wrapped in
//! JSON of its own: `~` + line (6 hex digits) + sequence (8), and `@` + nanoseconds (16).
//! `{padding}` fills the message up to a size. Any other `{word}` is a mistake and refused; braces
//! around anything else, as in JSON, are themselves.
//!
//! Never: knows what a server's protocol means.

use std::fmt::Write;

use thiserror::Error;

/// Why a template is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// A placeholder we do not know.
    #[error(
        "unknown placeholder {{{0}}}; there are \
         {{room}} {{connection}} {{sequence}} {{timestamp}} {{padding}}"
    )]
    Unknown(String),
    /// The message cannot be as small as it was asked to be.
    #[error("the message is at least {needed} bytes without padding, more than {wanted}")]
    TooSmall {
        /// Its bytes without padding.
        needed: usize,
        /// The size that was asked for.
        wanted: usize,
    },
    /// Deliveries of such messages could not be told apart.
    #[error("the message needs both {{sequence}} and {{timestamp}}, or nothing can be checked")]
    Unmarked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Room,
    Connection,
    Sequence,
    Timestamp,
    Padding,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

/// What the placeholders stand for in one rendering.
#[derive(Debug, Clone, Copy, Default)]
pub struct Values {
    /// `{room}`
    pub room: u32,
    /// `{connection}`
    pub connection: u32,
    /// `{sequence}` and `{timestamp}`
    pub stamp: Stamp,
}

/// The mark a published message carries and every delivery of it shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Who says it where, below 2^24: a line of [`Rooms`](crate::rooms::Rooms), or in `echo` the
    /// connection.
    pub line: u32,
    /// Counts from 0 per line.
    pub sequence: u32,
    /// When it was meant to be sent: nanoseconds since the Unix epoch on the generator's clock.
    pub intended_ns: u64,
}

/// Lines a `{sequence}` mark can name: more than there may be connections or rooms.
pub const LINES_MAX: u32 = 1 << 24;
const SEQUENCE_LEN: usize = 6 + 8;
const TIMESTAMP_LEN: usize = 16;

impl Template {
    /// Parses `text`.
    ///
    /// # Errors
    /// [`TemplateError::Unknown`] for a `{word}` that is no placeholder.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        let mut literal = String::new();
        while let Some(start) = rest.find('{') {
            literal.push_str(&rest[..start]);
            let word = rest[start + 1..].split_once('}').map_or("", |(word, _)| word);
            if word.is_empty() || !word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                literal.push('{');
                rest = &rest[start + 1..];
                continue;
            }
            let piece = match word {
                "room" => Piece::Room,
                "connection" => Piece::Connection,
                "sequence" => Piece::Sequence,
                "timestamp" => Piece::Timestamp,
                "padding" => Piece::Padding,
                _ => return Err(TemplateError::Unknown(word.to_owned())),
            };
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(piece);
            rest = &rest[start + word.len() + 2..];
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Self { pieces })
    }

    /// Whether messages of it can be checked and `bytes` holds the largest of them.
    ///
    /// # Errors
    /// [`TemplateError::Unmarked`], [`TemplateError::TooSmall`].
    pub fn check_published(&self, bytes: usize) -> Result<(), TemplateError> {
        if !self.pieces.contains(&Piece::Sequence) || !self.pieces.contains(&Piece::Timestamp) {
            return Err(TemplateError::Unmarked);
        }
        if self.pieces.contains(&Piece::Padding) {
            let widest = Values { room: LINES_MAX, connection: LINES_MAX, ..Values::default() };
            let narrow = self.render(Values::default(), 0).len();
            let needed = if narrow > bytes { narrow } else { self.render(widest, 0).len() };
            if needed > bytes {
                return Err(TemplateError::TooSmall { needed, wanted: bytes });
            }
        }
        Ok(())
    }

    /// The text with everything filled in, padded to `bytes` if it has `{padding}` and is smaller.
    #[must_use]
    pub fn render(&self, values: Values, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes);
        let mut padding_at = None;
        for piece in &self.pieces {
            // Writing to a String cannot fail.
            let _ = match piece {
                Piece::Text(literal) => text.write_str(literal),
                Piece::Room => write!(text, "{}", values.room),
                Piece::Connection => write!(text, "{}", values.connection),
                Piece::Sequence => {
                    let Stamp { line, sequence, .. } = values.stamp;
                    write!(text, "~{line:06x}{sequence:08x}")
                }
                Piece::Timestamp => write!(text, "@{:016x}", values.stamp.intended_ns),
                Piece::Padding => {
                    padding_at.get_or_insert(text.len());
                    Ok(())
                }
            };
        }
        if let Some(at) = padding_at
            && text.len() < bytes
        {
            let padding = "x".repeat(bytes - text.len());
            text.insert_str(at, &padding);
        }
        text
    }
}

impl Stamp {
    /// The first mark in `payload`, wherever it is. Cost: one pass over what comes before it.
    #[must_use]
    pub fn find(payload: &[u8]) -> Option<Self> {
        let sequence = digits_after(payload, b'~', SEQUENCE_LEN)?;
        let intended_ns = digits_after(payload, b'@', TIMESTAMP_LEN)?;
        Some(Self { line: (sequence >> 32) as u32, sequence: sequence as u32, intended_ns })
    }
}

/// The value of the first `len` hex digits right behind a `mark`.
fn digits_after(payload: &[u8], mark: u8, len: usize) -> Option<u64> {
    let mut from = 0;
    loop {
        let at = from + payload[from..].iter().position(|&byte| byte == mark)?;
        let digits = payload.get(at + 1..at + 1 + len)?;
        let value = digits.iter().try_fold(0, |value: u64, &digit| {
            let digit = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            Some(value << 4 | u64::from(digit))
        });
        if value.is_some() {
            return value;
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { line: 0xabc, sequence: 17, intended_ns: 0x1234_5678_9abc };

    #[test]
    fn fills_in_and_leaves_json_alone() {
        let template =
            Template::parse(r#"{"type":"join","room_id":"r{room}","user":"{connection}"}"#)
                .expect("a template");
        let values = Values { room: 3, connection: 12, stamp: STAMP };
        assert_eq!(template.render(values, 0), r#"{"type":"join","room_id":"r3","user":"12"}"#);
    }

    #[test]
    fn pads_to_the_size_and_finds_its_stamp_in_any_wrapping() {
        let template = Template::parse("{sequence}{timestamp}{padding}").expect("a template");
        template.check_published(48).expect("it fits");
        let text = template.render(Values { stamp: STAMP, ..Values::default() }, 48);
        assert_eq!(text.len(), 48);
        assert_eq!(Stamp::find(text.as_bytes()), Some(STAMP));
        let wrapped = format!(r#"{{"room":"~home@","content":"{text}"}}"#);
        assert_eq!(Stamp::find(wrapped.as_bytes()), Some(STAMP));
        for cut in 0..32 {
            assert_eq!(Stamp::find(&text.as_bytes()[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn refuses_what_cannot_work() {
        let error = |text: &str| Template::parse(text).expect_err("a mistake");
        assert_eq!(error("{sequnce}"), TemplateError::Unknown("sequnce".into()));
        let published =
            |text: &str, bytes| Template::parse(text).expect("a template").check_published(bytes);
        assert_eq!(published("{sequence}", 48), Err(TemplateError::Unmarked));
        let small = TemplateError::TooSmall { needed: 32, wanted: 31 };
        assert_eq!(published("{sequence}{timestamp}{padding}", 31), Err(small));
        assert_eq!(published("{sequence}{timestamp}", 1), Ok(()));
    }
}
