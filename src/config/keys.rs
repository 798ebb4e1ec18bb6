//! The keys that verify tokens: where they are, and reading them.
//!
//! `auth_keys` names files, so that no secret stands on a command line, in `fanwire config` or in
//! a log. They are read when the configuration is: what cannot be used stops the start, or the
//! reload, with the file's name.

use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::settings::Settings;
use super::value::ValueError;
use crate::auth::key::KEYS_MAX;
use crate::auth::{Algorithm, Expected, Key, KeyError, Verifier};

/// One entry of `auth_keys`; prints as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthKey {
    /// No authentication.
    Off,
    /// One key in a file.
    File {
        /// The `kid` of the tokens that it verifies; `None`: of any.
        id: Option<String>,
        /// The one algorithm that it is for.
        algorithm: Algorithm,
        /// A secret, or a public key in PEM.
        path: PathBuf,
    },
    /// A JWK Set in a file.
    Set(PathBuf),
}

impl AuthKey {
    fn path(&self) -> Option<&Path> {
        match self {
            AuthKey::Off => None,
            AuthKey::File { path, .. } | AuthKey::Set(path) => Some(path),
        }
    }

    fn read(&self) -> Result<Vec<Key>, KeyCause> {
        let Some(path) = self.path() else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(KeyCause::TooLong);
        }
        Ok(match self {
            AuthKey::Off => Vec::new(),
            AuthKey::File { id, algorithm, .. } => {
                vec![Key::read(id.as_deref(), *algorithm, &bytes)?]
            }
            AuthKey::Set(_) => Key::read_set(&bytes)?,
        })
    }
}

/// The longest key file, in bytes: a JWK Set with certificates in it is some 10 KiB.
const FILE_BYTES_MAX: u64 = 256 * 1024;

impl fmt::Display for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuthKey::Off => f.write_str("off"),
            AuthKey::File { id, algorithm, path } => {
                if let Some(id) = id {
                    write!(f, "{id}=")?;
                }
                write!(f, "{}:{}", algorithm.name(), path.display())
            }
            AuthKey::Set(path) => write!(f, "{SET}:{}", path.display()),
        }
    }
}

impl Serialize for AuthKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What stands in place of an algorithm for a JWK Set.
const SET: &str = "jwks";

/// A key in a file, a JWK Set, or "off".
pub(super) fn read(text: &str, _accepted: &str) -> Result<AuthKey, ValueError> {
    if text == "off" {
        return Ok(AuthKey::Off);
    }
    // A path may have any of the separators; what stands before it has not.
    let (name, path) = text.split_once(':').ok_or(ValueError::NotAKey)?;
    if path.is_empty() {
        return Err(ValueError::NotAKey);
    }
    let path = PathBuf::from(path);
    if name == SET {
        return Ok(AuthKey::Set(path));
    }
    let (id, name) = match name.rsplit_once('=') {
        Some((id, name)) => (Some(id.to_owned()), name),
        None => (None, name),
    };
    let algorithm = Algorithm::from_name(name).ok_or(ValueError::NotAnAlgorithm)?;
    if id.as_deref() == Some("") {
        return Err(ValueError::NotAKey);
    }
    Ok(AuthKey::File { id, algorithm, path })
}

impl Settings {
    /// Whether clients must show a token.
    #[must_use]
    pub fn authenticates(&self) -> bool {
        self.auth_keys.iter().any(|key| key.path().is_some())
    }

    /// An address at which others than this host's users are served without a token.
    #[must_use]
    pub fn open_to_all(&self) -> Option<SocketAddr> {
        let is_public = |address: &&SocketAddr| !address.ip().to_canonical().is_loopback();
        self.listen.iter().find(is_public).copied().filter(|_| !self.authenticates())
    }

    /// Reads the files that `auth_keys` names.
    ///
    /// # Errors
    /// The first [`BrokenKey`]; then nothing has changed.
    pub(super) fn read_keys(&mut self) -> Result<(), BrokenKey> {
        let mut keys = Vec::new();
        for key in &self.auth_keys {
            let broken = |cause| BrokenKey { key: key.to_string(), cause };
            keys.extend(key.read().map_err(broken)?);
            if keys.len() > KEYS_MAX {
                return Err(broken(KeyCause::TooMany));
            }
        }
        let expected = Expected {
            issuer: self.auth_issuer.as_on().cloned(),
            audience: self.auth_audience.as_on().cloned(),
            leeway_s: self.auth_leeway.as_secs() as u32,
        };
        self.verifier = self.authenticates().then(|| Arc::new(Verifier::new(keys, expected)));
        Ok(())
    }
}

/// A key that cannot be had, and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("auth_keys {key}: {cause}")]
pub struct BrokenKey {
    /// As configured.
    pub key: String,
    /// Why.
    pub cause: KeyCause,
}

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyCause {
    /// The file cannot be read.
    #[error("cannot read the file: {0}; give the path of one that the server may read")]
    Unreadable(#[from] std::io::Error),
    /// The file is no key file.
    #[error("the file is longer than 256 KiB, so it holds no keys")]
    TooLong,
    /// Its contents are no key.
    #[error(transparent)]
    Broken(#[from] KeyError),
    /// Too many, with those before it.
    #[error("there are more than {KEYS_MAX} keys; take out those that sign no more")]
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_and_print() {
        let file = |id: Option<&str>, algorithm, path: &str| AuthKey::File {
            id: id.map(Into::into),
            algorithm,
            path: path.into(),
        };
        for (text, key) in [
            ("off", AuthKey::Off),
            ("HS256:/etc/secret", file(None, Algorithm::Hs256, "/etc/secret")),
            ("2026=ES256:a=b:c.pem", file(Some("2026"), Algorithm::Es256, "a=b:c.pem")),
            ("a=b=EdDSA:x", file(Some("a=b"), Algorithm::EdDsa, "x")),
            ("jwks:keys.json", AuthKey::Set("keys.json".into())),
        ] {
            assert_eq!(read(text, ""), Ok(key.clone()));
            assert_eq!(key.to_string(), text);
        }
        for (text, error) in [
            ("", ValueError::NotAKey),
            ("secret", ValueError::NotAKey),
            ("HS256:", ValueError::NotAKey),
            ("=HS256:a", ValueError::NotAKey),
            ("HS1:a", ValueError::NotAnAlgorithm),
            ("none:a", ValueError::NotAnAlgorithm),
            ("hs256:a", ValueError::NotAnAlgorithm),
            ("a=jwks:a", ValueError::NotAnAlgorithm),
            ("/etc/a:b", ValueError::NotAnAlgorithm),
        ] {
            assert_eq!(read(text, ""), Err(error), "{text:?}");
        }
    }
}
