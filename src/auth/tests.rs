use serde_json::{Value, json};

use super::*;

/// A file of `tests/keys`; its README says what they are.
macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys/", $name))
    };
}

const SECRET: &str = fixture!("secret");
const NOW: u64 = 1_900_000_000;

fn key(id: Option<&str>, algorithm: Algorithm, text: &str) -> Key {
    Key::read(id, algorithm, text.as_bytes()).expect("a good key")
}

fn verifier(keys: Vec<Key>) -> Verifier {
    Verifier::new(keys, Expected::default())
}

fn expecting(expected: Expected) -> Verifier {
    Verifier::new(vec![key(None, Algorithm::Hs256, SECRET)], expected)
}

/// A token signed with HS256 and a secret.
fn sign(header: &Value, claims: &Value, secret: &str) -> String {
    let [header, claims] = [header, claims].map(|part| BASE64.encode(part.to_string()));
    let message = format!("{header}.{claims}");
    let key = jsonwebtoken::EncodingKey::from_secret(secret.trim_end().as_bytes());
    let signature =
        jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
    format!("{message}.{}", signature.expect("it can be signed"))
}

fn claims(change: Value) -> Value {
    let mut claims = json!({"sub": "alice", "exp": NOW + 60});
    for (name, value) in change.as_object().expect("an object") {
        match value {
            Value::Null => claims.as_object_mut().and_then(|claims| claims.remove(name)),
            value => claims.as_object_mut().and_then(|c| c.insert(name.clone(), value.clone())),
        };
    }
    claims
}

fn signed(change: Value) -> String {
    sign(&json!({"alg": "HS256"}), &claims(change), SECRET)
}

const ALL: [(Algorithm, &str, &str); 6] = [
    (Algorithm::Hs256, SECRET, fixture!("hs256.token")),
    (Algorithm::Hs384, SECRET, fixture!("hs384.token")),
    (Algorithm::Hs512, SECRET, fixture!("hs512.token")),
    (Algorithm::Rs256, fixture!("rs256.pem"), fixture!("rs256.token")),
    (Algorithm::Es256, fixture!("es256.pem"), fixture!("es256.token")),
    (Algorithm::EdDsa, fixture!("eddsa.pem"), fixture!("eddsa.token")),
];

#[test]
fn tokens_of_another_library_are_verified_with_every_algorithm() {
    for (algorithm, text, token) in ALL {
        let token = token.trim_end();
        let own = verifier(vec![key(None, algorithm, text)]);
        let grant = own.verify(token, NOW).expect("a good token");
        assert_eq!((&*grant.user_id, grant.expires, grant.direct), ("alice", 2_000_000_000, false));
        assert!(grant.may_join("chat:a") && grant.may_publish("chat:a"));
        assert!(grant.may_join("news") && !grant.may_publish("news"));
        assert!(!grant.may_join("other") && !grant.may_publish("other"));

        // One changed character anywhere is not the same token.
        for at in [3, token.len() / 2, token.len() - 30] {
            let mut other = token.as_bytes().to_vec();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(other).expect("ASCII");
            assert!(own.verify(&other, NOW).is_err(), "{algorithm:?} at {at}");
        }
        let others = ALL.into_iter().filter(|(other, ..)| *other != algorithm);
        let others = verifier(others.map(|(other, text, _)| key(None, other, text)).collect());
        assert_eq!(others.verify(token, NOW), Err(TokenError::UnknownKey), "{algorithm:?}");
    }
}

#[test]
fn a_jwk_set_gives_the_keys_that_are_for_us() {
    let keys = Key::read_set(fixture!("jwks.json").as_bytes()).expect("a good set");
    let found: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
    let expected = [("rsa", "Rs256"), ("ec", "Es256"), ("ed", "EdDsa"), ("hmac", "Hs512")]
        .map(|(id, algorithm)| format!("Key {{ id: Some({id:?}), algorithm: {algorithm}, .. }}"));
    assert_eq!(found, expected);
    let verifier = verifier(keys);
    for token in ["RS256", "ES256", "EdDSA", "HS512"].map(|name| {
        let of_algorithm = |(algorithm, ..): &&(Algorithm, _, _)| algorithm.name() == name;
        ALL.iter().find(of_algorithm).expect("one of all").2.trim_end()
    }) {
        assert_eq!(verifier.verify(token, NOW).map(|grant| grant.expires), Ok(2_000_000_000));
    }
}

/// RFC 7515 A.1, RFC 7515 A.3 and RFC 8037 A.4: their claims are none of ours, so the signature
/// alone.
#[test]
fn signatures_of_the_rfcs_are_right() {
    let examples = [
        (
            r#"{"kty":"oct","alg":"HS256","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#,
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        ),
        (
            r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
        (
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
    ];
    for (jwk, message, signature) in examples {
        let keys = Key::read_set(format!(r#"{{"keys":[{jwk}]}}"#).as_bytes()).expect(jwk);
        assert!(keys[0].verifies(message, signature), "{jwk}");
        assert!(!keys[0].verifies(&message[1..], signature), "{jwk}");
        assert!(!keys[0].verifies(message, ""), "{jwk}");
    }
}

#[test]
fn kid_chooses_among_keys_and_without_one_all_are_tried() {
    let (old, new) = ("o".repeat(32), "n".repeat(32));
    let rotating = verifier(vec![
        key(Some("old"), Algorithm::Hs256, &old),
        key(Some("new"), Algorithm::Hs256, &new),
        key(Some("new"), Algorithm::Hs384, SECRET),
    ]);
    assert_eq!(rotating.checks_max(), 2);
    let verdict = |kid: Option<&str>, secret: &str| {
        let header = json!({"alg": "HS256", "kid": kid});
        rotating.verify(&sign(&header, &claims(json!({})), secret), NOW).map(|_| ())
    };
    for (kid, secret, expected) in [
        (Some("old"), &old, Ok(())),
        (Some("new"), &new, Ok(())),
        (None, &old, Ok(())),
        (None, &new, Ok(())),
        (Some("old"), &new, Err(TokenError::WrongSignature)),
        (Some("next"), &new, Err(TokenError::UnknownKey)),
        (None, &"x".repeat(32), Err(TokenError::WrongSignature)),
    ] {
        assert_eq!(verdict(kid, secret), expected, "{kid:?}");
    }
    let nameless = verifier(vec![key(None, Algorithm::Hs256, &new)]);
    let header = json!({"alg": "HS256", "kid": "whatever"});
    assert!(nameless.verify(&sign(&header, &claims(json!({})), &new), NOW).is_ok());
}

#[test]
fn no_token_chooses_how_it_is_verified() {
    let pem = fixture!("rs256.pem");
    let rsa = verifier(vec![key(None, Algorithm::Rs256, pem)]);
    let claims = claims(json!({}));
    // The public key, which everybody has, as the secret of an HMAC.
    for secret in [pem, pem.trim_end()] {
        let token = sign(&json!({"alg": "HS256"}), &claims, secret);
        assert_eq!(rsa.verify(&token, NOW), Err(TokenError::UnknownKey));
    }
    let hmac = verifier(vec![key(None, Algorithm::Hs256, SECRET)]);
    for name in ["none", "None", "NONE", "", "hs256", "HS384", "RS256", "ES256K", "HS256 "] {
        let signed = sign(&json!({"alg": name}), &claims, SECRET);
        let (unsigned, _) = signed.rsplit_once('.').expect("three parts");
        for token in [signed.clone(), format!("{unsigned}.")] {
            assert_eq!(hmac.verify(&token, NOW), Err(TokenError::UnknownKey), "{name}");
        }
    }
    let unsigned = sign(&json!({"alg": "HS256"}), &claims, SECRET);
    let (unsigned, _) = unsigned.rsplit_once('.').expect("three parts");
    assert_eq!(hmac.verify(&format!("{unsigned}."), NOW), Err(TokenError::WrongSignature));
    // A key or an extension that the token brings along.
    let token = sign(&json!({"alg": "HS256", "crit": ["b64"], "b64": false}), &claims, SECRET);
    assert_eq!(hmac.verify(&token, NOW), Err(TokenError::Malformed));
    let header = json!({"alg": "HS256", "jwk": {"kty": "oct", "k": BASE64.encode("x".repeat(32))}});
    let token = sign(&header, &claims, &"x".repeat(32));
    assert_eq!(hmac.verify(&token, NOW), Err(TokenError::WrongSignature));
}

#[test]
fn times_are_held_to_the_second() {
    let check = |leeway_s, change: Value, expected: Result<u64, TokenError>| {
        let verifier = expecting(Expected { leeway_s, ..Expected::default() });
        let ends = verifier.verify(&signed(change.clone()), NOW).map(|g| u64::from(g.expires));
        assert_eq!(ends, expected, "{change} with {leeway_s}");
    };
    check(0, json!({"exp": NOW + 1}), Ok(NOW + 1));
    check(0, json!({"exp": NOW}), Err(TokenError::Expired));
    check(0, json!({"exp": NOW as f64 + 1.75}), Ok(NOW + 1));
    check(0, json!({"exp": -1}), Err(TokenError::Expired));
    check(0, json!({"exp": 1e300}), Ok(u64::from(u32::MAX)));
    check(0, json!({"exp": null}), Err(TokenError::Claims));
    check(0, json!({"exp": "soon"}), Err(TokenError::Claims));
    // Leeway lets in what has just ended, and prolongs nothing else.
    check(5, json!({"exp": NOW - 4}), Ok(NOW + 1));
    check(5, json!({"exp": NOW - 5}), Err(TokenError::Expired));
    check(5, json!({"exp": NOW}), Ok(NOW + 5));
    check(5, json!({"exp": NOW + 1}), Ok(NOW + 1));
    check(0, json!({"nbf": NOW}), Ok(NOW + 60));
    check(0, json!({"nbf": NOW + 1}), Err(TokenError::NotYetValid));
    check(5, json!({"nbf": NOW + 5}), Ok(NOW + 60));
    check(5, json!({"nbf": NOW + 6}), Err(TokenError::NotYetValid));
    check(300, json!({"nbf": 1e300}), Err(TokenError::NotYetValid));
    // Null is not there, for every claim that may be left out.
    check(0, json!({"nbf": null, "iss": null, "aud": null}), Ok(NOW + 60));
    check(0, json!({"exp": null}), Err(TokenError::Claims));
}

#[test]
fn issuer_and_audience() {
    let ours = Expected {
        issuer: Some("https://id.example".into()),
        audience: Some("fanwire".into()),
        leeway_s: 0,
    };
    for (change, expected) in [
        (json!({"iss": "https://id.example", "aud": "fanwire"}), Ok(())),
        (json!({"iss": "https://id.example", "aud": ["other", "fanwire"]}), Ok(())),
        (json!({"iss": "https://id.example/", "aud": "fanwire"}), Err(TokenError::WrongIssuer)),
        (json!({"aud": "fanwire"}), Err(TokenError::WrongIssuer)),
        (json!({"iss": null, "aud": "fanwire"}), Err(TokenError::WrongIssuer)),
        (json!({"iss": "https://id.example", "aud": null}), Err(TokenError::WrongAudience)),
        (json!({"iss": ["https://id.example"], "aud": "fanwire"}), Err(TokenError::Claims)),
        (json!({"iss": "https://id.example"}), Err(TokenError::WrongAudience)),
        (json!({"iss": "https://id.example", "aud": ["Fanwire"]}), Err(TokenError::WrongAudience)),
        (json!({"iss": "https://id.example", "aud": 7}), Err(TokenError::Claims)),
    ] {
        let verdict = expecting(ours.clone()).verify(&signed(change.clone()), NOW).map(|_| ());
        assert_eq!(verdict, expected, "{change}");
    }
    let any = expecting(Expected::default());
    assert!(any.verify(&signed(json!({"iss": "whoever"})), NOW).is_ok());
    // It is for somebody else (RFC 7519 §4.1.3).
    assert_eq!(any.verify(&signed(json!({"aud": "mail"})), NOW), Err(TokenError::WrongAudience));
}

#[test]
fn what_is_not_allowed_is_forbidden() {
    let verifier = expecting(Expected::default());
    let grant = |change: Value| verifier.verify(&signed(change), NOW);
    let nothing = grant(json!({})).expect("good");
    assert!(!nothing.may_join("lobby") && !nothing.may_publish("lobby") && !nothing.direct);
    let rooms = json!([{"pattern": "a"}, {"pattern": "*", "join": true}, {"pattern": "a*",
        "publish": true, "colour": "green"}]);
    let some = grant(json!({"rooms": rooms, "direct": true, "more": {"x": [1]}})).expect("good");
    assert!(some.may_join("a") && some.may_publish("ab") && !some.may_publish("b") && some.direct);
    for wrong in [
        json!({"sub": null}),
        json!({"sub": 7}),
        json!({"rooms": "*"}),
        json!({"rooms": ["*"]}),
        json!({"rooms": [{"join": true}]}),
        json!({"rooms": [{"pattern": "", "join": true}]}),
        json!({"rooms": [{"pattern": "a", "join": "yes"}]}),
        json!({"rooms": vec![json!({"pattern": "a"}); grant::ROOMS_MAX + 1]}),
        json!({"direct": 1}),
    ] {
        assert_eq!(grant(wrong.clone()), Err(TokenError::Claims), "{wrong}");
    }
    assert!(grant(json!({"rooms": vec![json!({"pattern": "a"}); grant::ROOMS_MAX]})).is_ok());
}

#[test]
fn what_is_no_token_is_malformed() {
    let verifier = expecting(Expected::default());
    let good = signed(json!({}));
    let parts: Vec<&str> = good.split('.').collect();
    let array = format!("{}.{}.{}", parts[0], BASE64.encode(r#"["a",1]"#), parts[2]);
    let twice = format!("{}.{}.{}", parts[0], BASE64.encode(r#"{"sub":"a","sub":"b"}"#), parts[2]);
    assert_eq!(verifier.verify(&array, NOW), Err(TokenError::Claims));
    assert_eq!(verifier.verify(&twice, NOW), Err(TokenError::Claims));
    for wrong in [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        parts[..2].join("."),
        format!("{good}.{}", parts[2]),
        format!(" {good}"),
        format!("{}=.{}.{}", parts[0], parts[1], parts[2]),
        format!("{}.{}.{}", parts[0], BASE64.encode("{"), parts[2]),
        format!("{}.{}.{}", BASE64.encode("{}"), parts[1], parts[2]),
        "x".repeat(TOKEN_BYTES_MAX + 1),
    ] {
        let text = wrong.get(..60).unwrap_or(&wrong);
        assert_eq!(verifier.verify(&wrong, NOW), Err(TokenError::Malformed), "{text}");
    }
    // The longest that is looked at.
    let filler = |len: usize| signed(json!({"filler": "x".repeat(len)}));
    let longest =
        (TOKEN_BYTES_MAX / 4 * 3 - 400..).map(filler).find(|t| t.len() >= TOKEN_BYTES_MAX);
    let longest = longest.expect("there is one");
    assert_eq!(longest.len() == TOKEN_BYTES_MAX, verifier.verify(&longest, NOW).is_ok());
}

#[test]
fn keys_that_could_verify_nothing_are_refused() {
    for (algorithm, text, error) in [
        (Algorithm::Hs256, "short", KeyError::ShortSecret(32)),
        (Algorithm::Hs256, "", KeyError::ShortSecret(32)),
        (Algorithm::Hs256, "x23456789012345678901234567890\r\n", KeyError::ShortSecret(32)),
        (Algorithm::Hs512, &"x".repeat(63), KeyError::ShortSecret(64)),
        (Algorithm::Hs256, fixture!("rs256.pem"), KeyError::PemAsSecret),
        (Algorithm::Rs256, SECRET, KeyError::NotAPublicKey("RS256")),
        (Algorithm::Rs256, fixture!("es256.pem"), KeyError::NotAPublicKey("RS256")),
        (Algorithm::Rs256, fixture!("rs256.key"), KeyError::NotAPublicKey("RS256")),
        (Algorithm::Rs256, fixture!("rsa1024.pem"), KeyError::RsaLength),
        (Algorithm::Es256, fixture!("es384.pem"), KeyError::NotAPublicKey("ES256")),
        (Algorithm::Es256, fixture!("es256.key"), KeyError::NotAPublicKey("ES256")),
        (Algorithm::Es256, fixture!("eddsa.pem"), KeyError::NotAPublicKey("ES256")),
        (Algorithm::EdDsa, fixture!("eddsa.key"), KeyError::NotAPublicKey("EdDSA")),
        (Algorithm::EdDsa, "-----BEGIN PUBLIC KEY-----\n", KeyError::NotAPublicKey("EdDSA")),
    ] {
        let result = Key::read(None, algorithm, text.as_bytes()).map(|_| ());
        assert_eq!(result, Err(error), "{algorithm:?} {text}");
    }
    for (text, error) in [
        ("", KeyError::NotAJwkSet),
        ("{}", KeyError::NotAJwkSet),
        (r#"{"keys":[]}"#, KeyError::NoKeyInSet),
        (r#"{"keys":[{"kty":"lattice"}]}"#, KeyError::NoKeyInSet),
        (r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#, KeyError::SecretWithoutAlgorithm(1)),
        (r#"{"keys":[{"kty":"oct","alg":"HS256","k":"AAAA"}]}"#, KeyError::ShortSecret(32)),
        (
            r#"{"keys":[{"kty":"x"},{"kty":"OKP","crv":"Ed25519","x":"AA"}]}"#,
            KeyError::BrokenJwk(2),
        ),
        (r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"?"}]}"#, KeyError::BrokenJwk(1)),
        (r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#, KeyError::RsaLength),
        (r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}]}"#, KeyError::BrokenJwk(1)),
        (r#"{"keys":[{"kty":"RSA","alg":"HS256","n":"AQAB","e":"AQAB"}]}"#, KeyError::BrokenJwk(1)),
    ] {
        assert_eq!(Key::read_set(text.as_bytes()).map(|_| ()), Err(error), "{text}");
    }
}

#[test]
fn nothing_prints_a_secret() {
    let verifier = expecting(Expected::default());
    let printed = format!("{verifier:?} {verifier:#?} {:?}", verifier.keys());
    assert!(!printed.contains(&SECRET[..8]), "{printed}");
    assert!(!printed.contains(&format!("{:?}", &SECRET.as_bytes()[..4])[1..10]), "{printed}");
}

#[test]
fn every_error_has_its_place_and_name() {
    for (i, error) in TokenError::ALL.into_iter().enumerate() {
        assert_eq!(error as usize, i, "{error:?}");
    }
    let mut labels = TokenError::ALL.map(TokenError::label).to_vec();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), TokenError::ALL.len());
}

proptest::proptest! {
    #[test]
    fn no_bytes_are_a_token(bytes in proptest::collection::vec(0..=255_u8, 0..200)) {
        fuzz_token(&bytes);
    }

    /// A good token with anything in one place.
    #[test]
    fn no_other_token_has_the_signature(at in 0..200_usize, byte in b'!'..b'~') {
        let good = signed(json!({"sub": "alice"}));
        let mut bytes = good.clone().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        let token = String::from_utf8(bytes).expect("ASCII");
        let verdict = expecting(Expected::default()).verify(&token, NOW);
        proptest::prop_assert_eq!(verdict.is_ok(), token == good);
    }
}
