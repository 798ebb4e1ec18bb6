//! Who may do what: JSON Web Tokens (RFC 7519) in, grants out.
//!
//! ```text
//! key files ──▶ Key ─┐
//!                    ▼
//! token, time ──▶ Verifier ──▶ Grant: user, rooms, direct messages, until when
//!                    └───────▶ TokenError
//! ```
//!
//! | Module    | Job                                                                 |
//! |-----------|---------------------------------------------------------------------|
//! | [`key`]   | keys from secrets, PEM and JWK Sets; each bound to one algorithm    |
//! | [`grant`] | what the claims of a token allow                                    |
//!
//! The signature is checked last, by `jsonwebtoken`: what is cheap to see (the algorithm, the key,
//! the times, issuer and audience) refuses most tokens before any arithmetic. Its `decode` goes the
//! other way round, and reads the clock. (Release build, an undisturbed core, the signature
//! alone: HS256 0.5 us, EdDSA 33, RS256 133, ES256 175.)
//!
//! Against the known attacks (RFC 8725): a key verifies nothing but the algorithm that it was
//! configured for, `none` is no algorithm, extensions that must be understood (`crit`) are refused,
//! short secrets and RSA keys are not taken in.
//!
//! Never: reads a file or the clock, logs, keeps a token, prints a key.

pub mod grant;
pub mod key;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Deserialize;

use grant::Claims;
pub use grant::Grant;
pub use key::{Algorithm, Key, KeyError};

/// The longest token, in bytes. A longer one is [`TokenError::Malformed`]; it could not come in
/// the head of a request either, by default.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Verifies tokens. See the module documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifier {
    keys: Vec<Key>,
    expected: Expected,
}

/// What a token must say, beside being signed with a key of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Its `iss`, if that matters.
    pub issuer: Option<String>,
    /// One of its `aud`. Without one, no token that has any is for us (RFC 7519 §4.1.3).
    pub audience: Option<String>,
    /// How far the clock of whoever signs may be off, in seconds.
    pub leeway_s: u32,
}

/// Why a token is refused. Told to logs and counters, not to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts of Base64 with JSON in them, or too long.
    #[error("malformed")]
    Malformed,
    /// No key of ours has its algorithm and `kid`.
    #[error("signed with an algorithm or a key (kid) that is not in auth_keys")]
    UnknownKey,
    /// A claim is missing or has a wrong form: `sub`, `exp`, `rooms`, another of ours.
    #[error("a claim is missing or malformed: sub and exp must be there")]
    Claims,
    /// Its `exp` is over.
    #[error("expired")]
    Expired,
    /// Its `nbf` is still to come.
    #[error("not valid yet")]
    NotYetValid,
    /// Its `iss` is not `auth_issuer`.
    #[error("iss is not auth_issuer")]
    WrongIssuer,
    /// Its `aud` is not `auth_audience`.
    #[error("aud does not name auth_audience")]
    WrongAudience,
    /// No key of ours made the signature.
    #[error("the signature is wrong")]
    WrongSignature,
    /// It is good, and of another user than the connection.
    #[error("another user's")]
    OtherUser,
}

impl TokenError {
    /// All of them; the place of each is its value `as usize`, for tables of counters.
    pub const ALL: [TokenError; 9] = [
        Self::Malformed,
        Self::UnknownKey,
        Self::Claims,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongIssuer,
        Self::WrongAudience,
        Self::WrongSignature,
        Self::OtherUser,
    ];

    /// The name in metrics, snake_case.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::Claims => "claims",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::WrongSignature => "wrong_signature",
            Self::OtherUser => "other_user",
        }
    }
}

/// The header of a token (RFC 7515 §4.1), as far as it is understood.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood. None is.
    crit: Option<serde::de::IgnoredAny>,
}

impl Verifier {
    /// A verifier of tokens that are signed with one of `keys` and are as `expected`.
    #[must_use]
    pub fn new(keys: Vec<Key>, expected: Expected) -> Verifier {
        Verifier { keys, expected }
    }

    /// The keys, in order.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// The most signatures that one token can make it check: its keys of one algorithm, which a
    /// token without `kid` tries all.
    #[must_use]
    pub fn checks_max(&self) -> usize {
        let of = |key: &Key| self.keys.iter().filter(|k| k.algorithm == key.algorithm).count();
        self.keys.iter().map(of).max().unwrap_or(0)
    }

    /// What `token` (RFC 7515 §3.1, compact) allows at the time `now`, in seconds since 1970.
    ///
    /// A key with an id verifies tokens with that `kid` or none; a key without an id verifies
    /// tokens with any.
    ///
    /// # Errors
    /// The first [`TokenError`] found, the cheap ones first.
    pub fn verify(&self, token: &str, now: u64) -> Result<Grant, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let algorithm = Algorithm::from_name(&header.alg).ok_or(TokenError::UnknownKey)?;
        let kid = header.kid.as_deref();
        let mut keys = self.keys.iter().filter(|key| key.may_verify(algorithm, kid)).peekable();
        if keys.peek().is_none() {
            return Err(TokenError::UnknownKey);
        }
        let claims = Claims::read(&decode(claims)?)?;
        self.expected.check(&claims, now)?;
        if !keys.any(|key| key.verifies(message, signature)) {
            return Err(TokenError::WrongSignature);
        }
        claims.grant(now, self.expected.leeway_s)
    }
}

impl Expected {
    fn check(&self, claims: &Claims, now: u64) -> Result<(), TokenError> {
        let leeway = u64::from(self.leeway_s);
        if now >= claims.exp.saturating_add(leeway) {
            return Err(TokenError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| now.saturating_add(leeway) < nbf) {
            return Err(TokenError::NotYetValid);
        }
        if self.issuer.is_some() && self.issuer != claims.iss {
            return Err(TokenError::WrongIssuer);
        }
        match &self.audience {
            Some(audience) if claims.aud.iter().any(|aud| aud == audience) => Ok(()),
            None if claims.aud.is_empty() => Ok(()),
            _ => Err(TokenError::WrongAudience),
        }
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    BASE64.decode(part).map_err(|_| TokenError::Malformed)
}

fn malformed(_: serde_json::Error) -> TokenError {
    TokenError::Malformed
}

/// Feeds any bytes to the verifier as a token: no panic, and no grant without a signature.
///
/// # Panics
/// When it grants something: that is a finding.
#[cfg(any(test, fuzzing))]
pub fn fuzz_token(data: &[u8]) {
    let secret = b"0123456789abcdef0123456789abcdef";
    let key = Key::read(None, Algorithm::Hs256, secret).expect("a good secret");
    let verifier = Verifier::new(vec![key], Expected::default());
    if let Ok(token) = std::str::from_utf8(data) {
        assert!(verifier.verify(token, 0).is_err());
    }
}

#[cfg(test)]
mod tests;
