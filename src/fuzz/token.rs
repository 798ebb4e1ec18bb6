//! Tokens, signed as they should be: what is in them is held against JSON as a tree.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use jsonwebtoken::{EncodingKey, crypto};
use serde_json::Value;

use crate::auth::{Algorithm, Expected, Key, TOKEN_BYTES_MAX, TokenError, Verifier, fuzz_token};

/// The first line is the header of a token, the rest its claims.
///
/// # Panics
/// When the token grants what its claims do not say, or anything without its signature.
pub fn token(data: &[u8]) {
    static OURS: LazyLock<Verifier> = LazyLock::new(|| verifier_of(SECRET, expected()));
    static OTHERS: LazyLock<Verifier> =
        LazyLock::new(|| verifier_of(b"fedcba9876543210fedcba9876543210", expected()));
    fuzz_token(data);
    let line_end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (header, claims) = (&data[..line_end], data.get(line_end + 1..).unwrap_or_default());
    let token = sign_bytes(header, claims);

    let granted = OURS.verify(&token, NOW);
    match (OTHERS.verify(&token, NOW), &granted) {
        (Err(TokenError::WrongSignature), Ok(_)) => {}
        // Whatever is wrong otherwise is seen before the signature is looked at, or with it.
        (Err(other), Err(error)) => {
            assert!(other == *error || other == TokenError::WrongSignature, "{other:?} {error:?}");
        }
        (other, ours) => panic!("{other:?} with another key, {ours:?}"),
    }
    let Ok(grant) = granted else { return };
    assert!(token.len() <= TOKEN_BYTES_MAX);
    // What nobody looks at may be what no tree can hold, such as half of a character.
    let tree = |json| serde_json::from_slice::<Value>(json).ok();
    let (Some(header), Some(claims)) = (tree(header), tree(claims)) else { return };
    assert_eq!(header["alg"], "HS256");
    assert_eq!(claims["sub"], *grant.user_id);
    assert_eq!(grant.direct, claims["direct"] == true);
    let exp = claims["exp"].as_f64().expect("a number");
    assert!(exp >= (NOW - LEEWAY_S) as f64, "{exp}");
    let end = if exp as u64 > NOW { exp as u64 } else { exp as u64 + LEEWAY_S };
    assert_eq!(u64::from(grant.expires), end.min(u64::from(u32::MAX)));
    assert!(grant.expires as u64 > NOW);
    assert!(claims["nbf"].as_f64().is_none_or(|nbf| nbf < (NOW + LEEWAY_S + 1) as f64));
    assert_eq!(claims["iss"], "fuzz");
    let audience = |aud: &Value| *aud == "fanwire";
    assert!(
        audience(&claims["aud"])
            || claims["aud"].as_array().is_some_and(|all| all.iter().any(audience))
    );
    // Nothing is allowed that no entry allows, and everything that one of them does.
    let entries = claims["rooms"].as_array().map(Vec::as_slice).unwrap_or_default();
    let allows = |what: &str, any: fn(&str) -> bool| {
        entries
            .iter()
            .any(|entry| entry[what] == true && entry["pattern"].as_str().is_some_and(any))
    };
    for what in ["join", "publish"] {
        let may = |room: &str| match what {
            "join" => grant.may_join(room),
            _ => grant.may_publish(room),
        };
        assert!(
            !may("lobby") || allows(what, |pattern| pattern == "lobby" || pattern.contains('*'))
        );
        assert!(may("lobby") || !allows(what, |pattern| matches!(pattern, "lobby" | "*" | "lob*")));
    }
}

/// When it is, for every target.
pub(super) const NOW: u64 = 1_900_000_000;
const LEEWAY_S: u64 = 60;
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// A token with these claims that [`verifier`] takes.
pub(super) fn sign(claims: &Value) -> String {
    sign_bytes(br#"{"alg":"HS256"}"#, claims.to_string().as_bytes())
}

fn sign_bytes(header: &[u8], claims: &[u8]) -> String {
    let message = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let key = EncodingKey::from_secret(SECRET);
    let signature = crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
    format!("{message}.{}", signature.expect("it can be signed"))
}

/// A verifier with a secret that others do not know.
pub(super) fn verifier(expected: Expected) -> Verifier {
    verifier_of(SECRET, expected)
}

fn expected() -> Expected {
    Expected {
        issuer: Some("fuzz".into()),
        audience: Some("fanwire".into()),
        leeway_s: LEEWAY_S as u32,
    }
}

fn verifier_of(secret: &[u8], expected: Expected) -> Verifier {
    let keys = [None, Some("kid")];
    let keys = keys.map(|id| Key::read(id, Algorithm::Hs256, secret).expect("a good secret"));
    Verifier::new(keys.into(), expected)
}
