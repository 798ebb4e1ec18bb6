//! Keys: from secrets, public keys in PEM (RFC 7468) and JWK Sets (RFC 7517).
//!
//! A key is bound to one algorithm when it is read, and is checked then, so that a key that could
//! never verify anything stops the start and not every client. Bytes in, no files.

use std::fmt;

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyAlgorithm, PublicKeyUse,
};
use jsonwebtoken::{AlgorithmFamily, DecodingKey, DecodingKeyKind, crypto};

/// The most keys at once: enough for every rotation, few enough to try them all.
pub const KEYS_MAX: usize = 16;

/// The algorithms that tokens may be signed with (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSA (PKCS #1 v1.5) with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 6] =
        [Self::Hs256, Self::Hs384, Self::Hs512, Self::Rs256, Self::Es256, Self::EdDsa];

    /// Its name in the header of a token; case counts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The algorithm of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Algorithm> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Its name, what the library calls it, and for HMAC the least length of a secret, in bytes:
    /// that of the hash (RFC 7518 §3.2).
    const fn row(self) -> (&'static str, jsonwebtoken::Algorithm, Option<usize>) {
        use jsonwebtoken::Algorithm as Theirs;
        match self {
            Self::Hs256 => ("HS256", Theirs::HS256, Some(32)),
            Self::Hs384 => ("HS384", Theirs::HS384, Some(48)),
            Self::Hs512 => ("HS512", Theirs::HS512, Some(64)),
            Self::Rs256 => ("RS256", Theirs::RS256, None),
            Self::Es256 => ("ES256", Theirs::ES256, None),
            Self::EdDsa => ("EdDSA", Theirs::EdDSA, None),
        }
    }
}

/// What verifies the signatures of one algorithm. Prints without what is secret in it.
#[derive(Clone)]
pub struct Key {
    id: Option<Box<str>>,
    pub(super) algorithm: Algorithm,
    key: DecodingKey,
}

/// Why bytes are no key, and the remedy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not as long as the hash.
    #[error(
        "the secret is shorter than the {0} bytes that its algorithm needs; make one with: openssl rand -hex {0}"
    )]
    ShortSecret(usize),
    /// A public key would be a secret that everybody knows.
    #[error(
        "it is a key in PEM, and HMAC needs a secret: name its own algorithm, RS256, ES256 or EdDSA"
    )]
    PemAsSecret,
    /// Not PEM, or of something else.
    #[error(
        "it is no public key for {0} in PEM (BEGIN PUBLIC KEY); make one with: openssl pkey -pubout"
    )]
    NotAPublicKey(&'static str),
    /// Too short to be safe, or too long for the library.
    #[error("the RSA key must have 2048 to 4096 bits")]
    RsaLength,
    /// Not JSON, or not of the form.
    #[error("it is no JWK Set: a JSON object with a list \"keys\" (RFC 7517)")]
    NotAJwkSet,
    /// An entry that cannot be used.
    #[error("key {0} of the JWK Set is broken, or not for the algorithm it names")]
    BrokenJwk(usize),
    /// What the bytes of a secret are for, nothing in them says.
    #[error("key {0} of the JWK Set is a secret and must say its \"alg\": HS256, HS384 or HS512")]
    SecretWithoutAlgorithm(usize),
    /// None for us.
    #[error("the JWK Set has no key for HS256, HS384, HS512, RS256, ES256 or EdDSA")]
    NoKeyInSet,
}

impl Key {
    /// The key in `bytes`: for HMAC the secret itself, without the line end that an editor puts
    /// behind it; otherwise a public key in PEM.
    ///
    /// # Errors
    /// [`KeyError`], those that are not about JWK Sets.
    pub fn read(id: Option<&str>, algorithm: Algorithm, bytes: &[u8]) -> Result<Key, KeyError> {
        let key = match algorithm {
            Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => {
                if bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
                    return Err(KeyError::PemAsSecret);
                }
                let secret = bytes.strip_suffix(b"\n").unwrap_or(bytes);
                Ok(DecodingKey::from_secret(secret.strip_suffix(b"\r").unwrap_or(secret)))
            }
            Algorithm::Rs256 => DecodingKey::from_rsa_pem(bytes),
            Algorithm::Es256 => DecodingKey::from_ec_pem(bytes),
            Algorithm::EdDsa => DecodingKey::from_ed_pem(bytes),
        };
        let key = key.map_err(|_| KeyError::NotAPublicKey(algorithm.name()))?;
        Key { id: id.map(Into::into), algorithm, key }.checked()
    }

    /// The keys of a JWK Set that are for signatures and have one of our algorithms; others, such
    /// as those for encryption, are passed over (RFC 7517 §5).
    ///
    /// # Errors
    /// [`KeyError`]; keys are counted from 1.
    pub fn read_set(bytes: &[u8]) -> Result<Vec<Key>, KeyError> {
        let set: JwkSet = serde_json::from_slice(bytes).map_err(|_| KeyError::NotAJwkSet)?;
        let mut keys = Vec::new();
        for (index, jwk) in set.keys.iter().enumerate() {
            let Some(algorithm) = algorithm_of(jwk, index + 1)? else { continue };
            let key = DecodingKey::from_jwk(jwk).map_err(|_| KeyError::BrokenJwk(index + 1))?;
            let id = jwk.common.key_id.as_deref().map(Into::into);
            keys.push(match (Key { id, algorithm, key }).checked() {
                Err(KeyError::NotAPublicKey(_)) => return Err(KeyError::BrokenJwk(index + 1)),
                checked => checked?,
            });
        }
        if keys.is_empty() { Err(KeyError::NoKeyInSet) } else { Ok(keys) }
    }

    /// Whether a token with this algorithm and `kid` may be tried with it.
    pub(super) fn may_verify(&self, algorithm: Algorithm, kid: Option<&str>) -> bool {
        let id = self.id.as_deref();
        self.algorithm == algorithm && (id.is_none() || kid.is_none() || id == kid)
    }

    /// Whether it made `signature` (Base64) of `message`. HMACs are compared in constant time.
    pub(super) fn verifies(&self, message: &str, signature: &str) -> bool {
        let (_, theirs, _) = self.algorithm.row();
        crypto::verify(signature, message.as_bytes(), &self.key, theirs).unwrap_or(false)
    }

    /// Itself, if it can verify anything.
    fn checked(self) -> Result<Key, KeyError> {
        let (name, theirs, secret_bytes_min) = self.algorithm.row();
        if let Some(least) = secret_bytes_min {
            let secret = match self.key.family() {
                AlgorithmFamily::Hmac => self.key.try_get_as_bytes(),
                _ => return Err(KeyError::NotAPublicKey(name)),
            };
            let is_long = secret.is_ok_and(|secret| secret.len() >= least);
            return if is_long { Ok(self) } else { Err(KeyError::ShortSecret(least)) };
        }
        // Reads an RSA key and looks at the length of an Ed25519 key; the library itself would do
        // that with every token, and panic at the second.
        let jwk = Jwk::from_decoding_key(&self.key, Some(theirs));
        let jwk = jwk.map_err(|_| KeyError::NotAPublicKey(name))?;
        if let AlgorithmParameters::RSA(rsa) = &jwk.algorithm {
            let bytes = rsa.n.len() * 3 / 4;
            if !(2048 / 8..=4096 / 8).contains(&bytes) {
                return Err(KeyError::RsaLength);
            }
        }
        // Finds a point that is not on the curve, and a key of another family.
        crypto::verify("", b"", &self.key, theirs).map_err(|_| KeyError::NotAPublicKey(name))?;
        Ok(self)
    }
}

/// The algorithm that a key of a set is for; `None` if it is none of ours.
fn algorithm_of(jwk: &Jwk, number: usize) -> Result<Option<Algorithm>, KeyError> {
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return Ok(None);
    }
    let Some(named) = jwk.common.key_algorithm else {
        return match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Ok(Some(Algorithm::Rs256)),
            AlgorithmParameters::EllipticCurve(ec) => {
                Ok((ec.curve == EllipticCurve::P256).then_some(Algorithm::Es256))
            }
            AlgorithmParameters::OctetKeyPair(pair) => {
                Ok((pair.curve == EllipticCurve::Ed25519).then_some(Algorithm::EdDsa))
            }
            AlgorithmParameters::OctetKey(_) => Err(KeyError::SecretWithoutAlgorithm(number)),
            _ => Ok(None),
        };
    };
    let is_ours = |algorithm: &Algorithm| KeyAlgorithm::from(algorithm.row().1) == named;
    Ok(Algorithm::ALL.into_iter().find(is_ours))
}

impl PartialEq for Key {
    /// Whether it verifies the same tokens.
    fn eq(&self, other: &Key) -> bool {
        use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
        let same = match (self.key.kind(), other.key.kind()) {
            (SecretOrDer(one), SecretOrDer(other)) => one == other,
            (RsaModulusExponent { n, e }, RsaModulusExponent { n: their_n, e: their_e }) => {
                (n, e) == (their_n, their_e)
            }
            _ => false,
        };
        same && self.id == other.id && self.algorithm == other.algorithm
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}
