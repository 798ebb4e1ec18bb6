//! UTF-8 validation that survives a cut inside a character (RFC 6455 §8.1, RFC 3629).
//!
//! A text message is judged as it arrives, whatever the frames and reads it is cut into, and it is
//! refused at the first byte that can no longer become valid UTF-8: `F4 90` at the `90`, not at
//! the end of the character or of the message.
//!
//! Owns at most the three bytes of a character that is not complete. Whole characters are
//! checked in bulk by `simdutf8`; only the bytes around a cut are looked at one by one.
//! Never: allocates, copies the text.

use thiserror::Error;

/// The text is not UTF-8, or can no longer become it (RFC 6455 §8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not valid UTF-8")]
pub struct InvalidUtf8;

/// Validates a text message chunk by chunk (RFC 6455 §8.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Utf8Validator {
    /// The start of a character whose end has not arrived: `pending[..pending_len]`.
    pending: [u8; 3],
    pending_len: u8,
}

impl Utf8Validator {
    /// Takes the next `chunk` of the text.
    ///
    /// Cost: one pass at memory speed, no allocation.
    ///
    /// # Errors
    /// `InvalidUtf8` when no text can begin with what was pushed so far. The validator must not
    /// be used after that.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), InvalidUtf8> {
        let chunk = self.finish_pending(chunk)?;
        let (whole, cut) = chunk.split_at(chunk.len() - cut_len(chunk));
        simdutf8::basic::from_utf8(whole).map_err(|_| InvalidUtf8)?;
        if cut.is_empty() {
            return Ok(());
        }
        if !begins_character(cut) {
            return Err(InvalidUtf8);
        }
        self.pending[..cut.len()].copy_from_slice(cut);
        self.pending_len = cut.len() as u8;
        Ok(())
    }

    /// Says whether the text may end here.
    ///
    /// # Errors
    /// `InvalidUtf8` when a character is incomplete.
    pub fn finish(&self) -> Result<(), InvalidUtf8> {
        if self.pending_len == 0 { Ok(()) } else { Err(InvalidUtf8) }
    }

    /// Completes the pending character from the front of `chunk`; returns the rest of `chunk`,
    /// which is empty while the character is still incomplete.
    fn finish_pending<'c>(&mut self, chunk: &'c [u8]) -> Result<&'c [u8], InvalidUtf8> {
        let pending_len = usize::from(self.pending_len);
        if pending_len == 0 {
            return Ok(chunk);
        }
        let taken = chunk.len().min(width(self.pending[0]) - pending_len);
        let len = pending_len + taken;
        let mut character = [0; 4];
        character[..pending_len].copy_from_slice(&self.pending[..pending_len]);
        character[pending_len..len].copy_from_slice(&chunk[..taken]);
        if !begins_character(&character[..len]) {
            return Err(InvalidUtf8);
        }
        if len == width(character[0]) {
            self.pending_len = 0;
        } else {
            self.pending.copy_from_slice(&character[..3]);
            self.pending_len = len as u8;
        }
        Ok(&chunk[taken..])
    }
}

/// Bytes at the end of `chunk` that look like the start of a character cut off there: 0 to 3.
///
/// Looks only at the lead byte; what follows it is judged by the caller.
fn cut_len(chunk: &[u8]) -> usize {
    let last = chunk.iter().rev().take(3);
    match last.enumerate().find(|(_, byte)| !is_continuation(**byte)) {
        Some((i, &lead)) if width(lead) > i + 1 => i + 1,
        _ => 0,
    }
}

/// Bytes in the character that `lead` starts; 1 for what starts none (`00..=7F` does).
const fn width(lead: u8) -> usize {
    match lead {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    }
}

/// Whether a character of two to four bytes is, or begins with, `bytes` (RFC 3629 §4).
fn begins_character(bytes: &[u8]) -> bool {
    let [lead, rest @ ..] = bytes else {
        return false;
    };
    let [second, rest @ ..] = rest else {
        return true;
    };
    // The second byte carries what rules out overlong forms, surrogates and all past U+10FFFF.
    let second_is_right = match lead {
        0xE0 => (0xA0..=0xBF).contains(second),
        0xED => (0x80..=0x9F).contains(second),
        0xF0 => (0x90..=0xBF).contains(second),
        0xF4 => (0x80..=0x8F).contains(second),
        _ => is_continuation(*second),
    };
    second_is_right && rest.iter().all(|byte| is_continuation(*byte))
}

const fn is_continuation(byte: u8) -> bool {
    byte & 0xC0 == 0x80
}

const _: () = assert!(size_of::<Utf8Validator>() <= 8, "held by every text message in progress");

#[cfg(test)]
mod tests;
