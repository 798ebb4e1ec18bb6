//! The keys of the admin interface: read from a file, compared in constant time, never shown.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use subtle::{Choice, ConstantTimeEq};

use crate::config::Switch;

/// Shorter ones could be guessed.
const KEY_BYTES_MIN: usize = 16;
/// More than anybody rotates through.
const KEYS_MAX: usize = 64;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("admin_key_file: cannot read {}: {error}", path.display())]
    Read {
        /// Of the file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Nobody could come in.
    #[error(
        "admin_key_file: {} holds no key; write one on a line of its own, such as the output of \
         `openssl rand -hex 32`", path.display()
    )]
    None {
        /// Of the file.
        path: PathBuf,
    },
    /// A line is no key. It is not shown: it may be one that was mistyped.
    #[error("admin_key_file: line {line} of {} {problem}", path.display())]
    Line {
        /// Of the file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong, and the remedy.
        problem: &'static str,
    },
}

/// The keys of one file.
struct Keyring(Vec<Box<[u8]>>);

impl Keyring {
    /// Reads the file; `None`: there is none.
    fn read(file: &Switch<PathBuf>) -> Result<Option<Self>, KeyError> {
        let Switch::On(path) = file else { return Ok(None) };
        let path = || path.clone();
        let text =
            fs::read_to_string(path()).map_err(|error| KeyError::Read { path: path(), error })?;
        let mut keys = Vec::new();
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() {
                continue;
            }
            let wrong = |problem| KeyError::Line { path: path(), line: number + 1, problem };
            if line.len() < KEY_BYTES_MIN {
                return Err(wrong("is shorter than 16 bytes; take a longer key"));
            }
            if !line.bytes().all(is_token) {
                return Err(wrong(
                    "has characters that `Authorization: Bearer` cannot carry; use letters, \
                     digits and -._~+/=",
                ));
            }
            if keys.len() == KEYS_MAX {
                return Err(wrong("is one key more than the 64 that may be there"));
            }
            keys.push(line.as_bytes().into());
        }
        if keys.is_empty() { Err(KeyError::None { path: path() }) } else { Ok(Some(Self(keys))) }
    }

    /// Whether `key` is one of them. Takes the same time for every key of one length.
    fn holds(&self, key: &[u8]) -> bool {
        self.0.iter().fold(Choice::from(0), |any, held| any | held.ct_eq(key)).into()
    }
}

/// What may stand behind `Bearer` (RFC 6750 section 2.1).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

/// The keys in force. Cloning shares them.
#[derive(Clone, Default)]
pub(super) struct Keys(Arc<RwLock<Option<Keyring>>>);

impl Keys {
    /// The keys of `file`.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub(super) fn read(file: &Switch<PathBuf>) -> Result<Self, KeyError> {
        Ok(Self(Arc::new(RwLock::new(Keyring::read(file)?))))
    }

    /// From now on the keys are those of `new`.
    pub(super) fn replace(&self, new: Self) {
        let new = new.0.write().unwrap_or_else(PoisonError::into_inner).take();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// Whether `key` opens; `None`: no key is needed.
    pub(super) fn open_to(&self, key: Option<&[u8]>) -> Option<bool> {
        let keyring = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keyring.as_ref().map(|keyring| key.is_some_and(|key| keyring.holds(key)))
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Keys, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Keys::read(&Switch::On(file.path().into())).map_err(|error| error.to_string())
    }

    #[test]
    fn every_line_is_a_key() {
        let keys = read("0123456789abcdef\n\n  fedcba9876543210==\r\n").unwrap();
        for (key, opens) in [
            (Some("0123456789abcdef"), true),
            (Some("fedcba9876543210=="), true),
            (Some("fedcba9876543210="), false),
            (Some("0123456789abcdeF"), false),
            (Some("0123456789abcdef\nfedcba9876543210=="), false),
            (Some(""), false),
            (None, false),
        ] {
            assert_eq!(keys.open_to(key.map(str::as_bytes)), Some(opens), "{key:?}");
        }
        keys.replace(read("another-key-of-some-length").unwrap());
        assert_eq!(keys.open_to(Some(b"0123456789abcdef")), Some(false));
        assert_eq!(keys.open_to(Some(b"another-key-of-some-length")), Some(true));
        assert_eq!(Keys::read(&Switch::Off).unwrap().open_to(None), None);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_key() {
        for (text, expected) in [
            ("", "holds no key"),
            (" \n\n", "holds no key"),
            ("0123456789abcdef\n0123456789abcde", "line 2 of"),
            ("0123456789abcdef ghi", "line 1 of"),
            ("0123456789abcde\u{e9}", "line 1 of"),
            (&"0123456789abcdef\n".repeat(65), "line 65 of"),
        ] {
            let error = read(text).expect_err("no keys");
            assert!(error.contains(expected) && !error.contains("0123"), "{text}: {error}");
        }
        let missing = Switch::On("/nowhere/keys".into());
        let error = Keys::read(&missing).expect_err("no file").to_string();
        assert!(error.contains("cannot read /nowhere/keys"), "{error}");
    }
}
