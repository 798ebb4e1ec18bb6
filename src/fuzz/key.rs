//! Files with keys: secrets, public keys in PEM, JWK Sets.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

use crate::auth::{Algorithm, Expected, Key, TokenError, Verifier};

/// What is in the file. Every kind of key is looked for in it.
///
/// # Panics
/// When a key that is taken verifies what nobody has signed, or is shown in a log.
pub fn key(data: &[u8]) {
    let mut keys = Key::read_set(data).unwrap_or_default();
    for algorithm in Algorithm::ALL {
        let read = Key::read(Some("kid"), algorithm, data);
        if let Err(error) = &read {
            assert!(!error.to_string().is_empty());
        }
        if let Ok(key) = read {
            assert!(data.len() >= 32, "{algorithm:?}");
            let shown = format!("Key {{ id: Some(\"kid\"), algorithm: {algorithm:?}, .. }}");
            assert_eq!(format!("{key:?}"), shown, "nothing of a secret");
            assert_eq!(Key::read(Some("kid"), algorithm, data).as_ref(), Ok(&key));
            keys.push(key);
        }
    }
    let verifier = Verifier::new(keys, Expected::default());
    assert!(verifier.checks_max() <= verifier.keys().len());
    let claims = BASE64.encode(r#"{"sub":"alice","exp":2000000000}"#);
    for algorithm in Algorithm::ALL {
        let header = BASE64.encode(format!(r#"{{"alg":"{}"}}"#, algorithm.name()));
        for signature in
            ["", "AAAA", &BASE64.encode([0; 64]), &BASE64.encode(&data[..data.len().min(256)])]
        {
            let found = verifier.verify(&format!("{header}.{claims}.{signature}"), 1_900_000_000);
            assert!(
                matches!(found, Err(TokenError::WrongSignature | TokenError::UnknownKey)),
                "{found:?} by {algorithm:?}"
            );
        }
    }
}
