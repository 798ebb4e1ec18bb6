//! Authentication and authorisation: who may come in, what they may do, and for how long.
//!
//! Tokens are made here with the keys of `tests/keys`, and with those of another library that lie
//! beside them. What a token may be is tested in `src/auth`; here, what becomes of a connection.

pub mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use support::{
    Client, Finished, Reply, Response, Server, Wire, fanwire, frame, free_port, head_of, rows, run,
    upgrade_request, wait_until,
};

const SECRET_FILE: &str = "HS256:tests/keys/secret";

fn secret() -> String {
    std::fs::read_to_string("tests/keys/secret").expect("it is there").trim_end().to_owned()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// A token of alice, signed with the secret, with these claims changed.
fn token(changes: Value) -> String {
    let mut claims = json!({
        "sub": "alice", "exp": now() + 600,
        "rooms": [
            {"pattern": "chat:*", "join": true, "publish": true},
            {"pattern": "news", "join": true},
        ],
    });
    for (name, value) in changes.as_object().expect("an object") {
        claims[name] = value.clone();
    }
    sign(Algorithm::HS256, &EncodingKey::from_secret(secret().as_bytes()), &claims)
}

fn sign(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
    encode(&Header::new(algorithm), claims, key).expect("it can be signed")
}

/// A server that asks for tokens.
fn server(flags: &[&str]) -> Server {
    Server::start(&[&["--auth-keys", SECRET_FILE, "--log-level", "trace"], flags].concat())
}

/// The answer to an upgrade request with these fields added.
fn ask(server: &Server, target: &str, fields: &[(&str, &str)]) -> (Response, Wire) {
    let mut wire = Wire::connect(server.address());
    wire.send(&head_of(&format!("GET {target} HTTP/1.1"), fields));
    (wire.response(), wire)
}

/// Opens a connection with the token in the `Authorization` field.
fn open(server: &Server, path: &str, token: &str) -> Wire {
    let (response, wire) = ask(server, path, &[("Authorization", &format!("Bearer {token}"))]);
    assert_eq!(response.status, 101, "{path}: {response:?}");
    wire
}

/// A client of the native protocol with this token.
fn connect(server: &Server, token: &str) -> Client {
    Client::connect(server.address(), &format!("/ws?token={token}"))
}

fn check_error(reply: &Reply, code: &str) {
    assert_eq!((reply.kind.as_str(), reply.code.as_deref()), ("error", Some(code)), "{reply:?}");
}

// --- The handshake -----------------------------------------------------------------------------

#[test]
fn a_token_may_come_in_three_ways() {
    let server = server(&["--echo"]);
    let token = token(json!({}));
    let bearer = format!("Bearer {token}");
    let query = |path: &str| format!("{path}?x=1&token={}", token.replace('.', "%2E"));
    let offered = format!("bearer.{token}");
    let native = format!("fanwire.v1, {offered}");
    let raw = format!("{offered}, fanwire.raw.v1");
    for (target, fields, protocol) in [
        ("/ws", &[("Authorization", bearer.as_str())][..], None),
        (&query("/ws"), &[], None),
        ("/ws", &[("Sec-WebSocket-Protocol", &native)], Some("fanwire.v1")),
        ("/ws", &[("Sec-WebSocket-Protocol", &offered)], None),
        ("/raw/chat:a", &[("Authorization", &bearer)], None),
        (&query("/raw/chat:a"), &[], None),
        ("/raw/chat:a", &[("Sec-WebSocket-Protocol", &raw)], Some("fanwire.raw.v1")),
        ("/echo", &[("Authorization", &bearer)], None),
    ] {
        let (response, _wire) = ask(&server, target, fields);
        assert_eq!(response.status, 101, "{target} {fields:?}: {response:?}");
        // The token is never told back.
        assert_eq!(response.field("sec-websocket-protocol"), protocol, "{target} {fields:?}");
    }
}

#[test]
fn an_independent_client_offers_its_token_as_a_subprotocol() {
    let server = server(&[]);
    let offer = format!("fanwire.v1, bearer.{}", token(json!({})));
    let (mut client, _) = Client::connect_offering(server.address(), "/ws", Some(&offer));
    client.join_room("chat:a", "alice");
}

#[test]
fn tokens_of_every_algorithm_open_a_connection() {
    let server = Server::start(&[
        "--auth-keys=HS256:tests/keys/secret,HS384:tests/keys/secret,HS512:tests/keys/secret",
        "--auth-keys=RS256:tests/keys/rs256.pem,ES256:tests/keys/es256.pem",
        "--auth-keys=EdDSA:tests/keys/eddsa.pem",
    ]);
    let from_set = Server::start(&["--auth-keys", "jwks:tests/keys/jwks.json"]);
    for name in ["hs256", "hs384", "hs512", "rs256", "es256", "eddsa"] {
        let token = std::fs::read_to_string(format!("tests/keys/{name}.token")).expect(name);
        open(&server, "/raw/chat:a", token.trim_end());
        if !["hs256", "hs384"].contains(&name) {
            open(&from_set, "/raw/chat:a", token.trim_end());
        }
    }
}

#[test]
fn who_may_not_come_in_is_told_before_the_upgrade() {
    struct Case(&'static str, &'static str, Vec<(&'static str, String)>, u16, Option<&'static str>);
    const REALM: Option<&str> = Some(r#"Bearer realm="fanwire""#);
    const INVALID: Option<&str> = Some(r#"Bearer realm="fanwire", error="invalid_token""#);
    const SCOPE: Option<&str> = Some(r#"Bearer realm="fanwire", error="insufficient_scope""#);
    const REQUEST: Option<&str> = Some(r#"Bearer realm="fanwire", error="invalid_request""#);
    let server = server(&["--origins", "https://*.example.com,https://example.org", "--echo"]);
    let bearer = |token: &str| vec![("Authorization", format!("Bearer {token}"))];
    let good = token(json!({}));
    let with = |more: &[(&'static str, &str)]| {
        let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
        bearer(&good).into_iter().chain(more).collect::<Vec<_>>()
    };
    let foreign = EncodingKey::from_secret(&[b'x'; 32]);
    let forged = sign(Algorithm::HS256, &foreign, &json!({"sub": "alice", "exp": now() + 60}));
    let rsa = EncodingKey::from_rsa_pem(include_bytes!("keys/rs256.key")).expect("a key");
    let unknown = sign(Algorithm::RS256, &rsa, &json!({"sub": "alice", "exp": now() + 60}));
    let unsigned = format!("{}.", good.rsplit_once('.').expect("three parts").0);
    let table = vec![
        Case("no token", "/ws", vec![], 401, REALM),
        Case("no token, raw", "/raw/chat:a", vec![], 401, REALM),
        Case("no token, echo", "/echo", vec![], 401, REALM),
        Case("no token, not even an upgrade", "/ws", vec![("Upgrade", String::new())], 401, REALM),
        Case("another scheme", "/ws", vec![("Authorization", "Basic YTpi".into())], 401, REALM),
        Case("garbage", "/ws", bearer("garbage"), 401, INVALID),
        Case("an empty one", "/ws?token=", vec![], 401, INVALID),
        Case("no signature", "/ws", bearer(&unsigned), 401, INVALID),
        Case("another secret", "/ws", bearer(&forged), 401, INVALID),
        Case("another algorithm", "/ws", bearer(&unknown), 401, INVALID),
        Case("expired", "/ws", bearer(&token(json!({"exp": now()}))), 401, INVALID),
        Case("to come", "/ws", bearer(&token(json!({"nbf": now() + 60}))), 401, INVALID),
        Case("no exp", "/ws", bearer(&token(json!({"exp": null}))), 401, INVALID),
        Case("no user", "/ws", bearer(&token(json!({"sub": ""}))), 401, INVALID),
        Case("user too long", "/ws", bearer(&token(json!({"sub": "x".repeat(129)}))), 401, INVALID),
        Case("for others", "/ws", bearer(&token(json!({"aud": "mail"}))), 401, INVALID),
        Case("twice", "/ws?token=a", bearer(&good), 400, REQUEST),
        Case("not this room", "/raw/other", bearer(&good), 403, SCOPE),
        Case("a room to read", "/raw/news", bearer(&good), 101, None),
        Case("no rooms", "/raw/news", bearer(&token(json!({"rooms": []}))), 403, SCOPE),
        Case("no rooms, native", "/ws", bearer(&token(json!({"rooms": []}))), 101, None),
        Case("wrong origin", "/ws", with(&[("Origin", "https://example.com")]), 403, None),
        Case("wrong origin, no token", "/ws", vec![("Origin", "null".into())], 403, None),
        Case("origin below", "/ws", with(&[("Origin", "https://a.b.example.com")]), 101, None),
        Case("origin itself", "/ws", with(&[("Origin", "https://example.org")]), 101, None),
        Case("not found", "/nothing", vec![], 404, None),
        Case("no upgrade", "/ws", with(&[("Upgrade", "")]), 426, None),
        Case("the page", "/", vec![("Origin", "https://example.com".into())], 200, None),
    ];
    let check = |Case(_, target, fields, status, challenge): &Case| {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (response, mut wire) = ask(&server, target, &fields);
        assert_eq!(response.status, *status, "{response:?}");
        assert_eq!(response.field("www-authenticate"), *challenge);
        if *status >= 400 {
            let body = String::from_utf8(response.body).expect("text");
            assert!(body.ends_with(".\n") && !body.contains(good.as_str()), "{body}");
            wire.expect_eof();
        }
    };
    rows(table, |case| case.0.to_owned(), check);
}

#[test]
fn issuer_audience_and_leeway_are_held_to() {
    let server = server(&[
        "--auth-issuer=https://id.example",
        "--auth-audience=fanwire",
        "--auth-leeway=300s",
    ]);
    for (claims, status) in [
        (json!({"iss": "https://id.example", "aud": ["x", "fanwire"]}), 101),
        (json!({"iss": "https://id.example", "aud": "fanwire", "exp": now() - 200}), 101),
        (json!({"iss": "https://id.example", "aud": "fanwire", "exp": now() - 301}), 401),
        (json!({"iss": "https://id.example"}), 401),
        (json!({"aud": "fanwire"}), 401),
    ] {
        let bearer = format!("Bearer {}", token(claims.clone()));
        let (response, _) = ask(&server, "/ws", &[("Authorization", &bearer)]);
        assert_eq!(response.status, status, "{claims}");
    }
}

#[test]
fn a_flood_of_bad_tokens_is_answered_and_keeps_nobody_out() {
    let server = Server::start(&["--shards=1", "--auth-keys=ES256:tests/keys/es256.pem"]);
    let token = include_str!("keys/es256.token").trim_end();
    let (unsigned, signature) = token.rsplit_once('.').expect("three parts");
    let forged = format!("{unsigned}.B{}", &signature[1..]);
    let head =
        |token: &str| head_of("GET /ws HTTP/1.1", &[("Authorization", &format!("Bearer {token}"))]);
    // Far more than are verified in one tick, and a good one among them.
    let mut wires: Vec<Wire> = (0..200).map(|_| Wire::connect(server.address())).collect();
    for (i, wire) in wires.iter_mut().enumerate() {
        wire.send(&head(if i == 100 { token } else { &forged }));
    }
    for (i, wire) in wires.iter_mut().enumerate() {
        assert_eq!(wire.response().status, if i == 100 { 101 } else { 401 }, "{i}");
    }
    // What came with the request is handled behind it, however long that had to wait.
    wires[100].send(&frame(0x81, br#"{"type":"ping"}"#));
    assert_eq!(wires[100].expect_frame().payload, br#"{"type":"pong"}"#);
}

// --- On the open connection --------------------------------------------------------------------

#[test]
fn the_token_says_who_somebody_is() {
    let server = server(&[]);
    let mut alice = connect(&server, &token(json!({})));
    let mut bob = connect(&server, &token(json!({"sub": "bob"})));
    alice.join_room("chat:a", "somebody else");
    assert_eq!(bob.ask(r#"{"type":"join","room_id":"chat:a"}"#).kind, "joined");
    for (client, other, name) in [(0, 1, "alice"), (1, 0, "bob")] {
        let clients = [&mut alice, &mut bob];
        clients[client].send_text(r#"{"type":"broadcast","room_id":"chat:a","content":1}"#);
        for at in [client, other] {
            assert_eq!(clients[at].receive_reply().sender.as_deref(), Some(name));
        }
    }
}

#[test]
fn what_the_token_does_not_allow_is_forbidden() {
    let server = server(&[]);
    let mut client = connect(&server, &token(json!({})));
    check_error(&client.ask(r#"{"type":"join","room_id":"other","id":1}"#), "forbidden");
    assert_eq!(client.ask(r#"{"type":"join","room_id":"news"}"#).kind, "joined");
    let publish = r#"{"type":"broadcast","room_id":"news","content":1,"id":"b"}"#;
    let reply = client.ask(publish);
    check_error(&reply, "forbidden");
    assert_eq!(reply.id.as_deref(), Some("\"b\""));
    assert_eq!(client.ask(r#"{"type":"leave","room_id":"news"}"#).kind, "left");
    client.expect_silence();

    // Raw has no answers: who may only listen and speaks is cut.
    let mut listener = open(&server, "/raw/news", &token(json!({})));
    let mut speaker = open(&server, "/raw/chat:a", &token(json!({})));
    for wire in [&mut listener, &mut speaker] {
        wire.send(&frame(0x81, b"hello"));
    }
    assert_eq!(listener.expect_close(), Some(4403));
    assert_eq!(speaker.expect_frame().payload, b"hello");
}

#[test]
fn a_connection_ends_with_its_token() {
    let server = server(&["--echo", "--shards=1"]);
    let short = token(json!({"exp": now() + 2}));
    let mut native = connect(&server, &short);
    native.join_room("chat:a", "alice");
    let mut raw = open(&server, "/raw/chat:a", &short);
    let mut echo = open(&server, "/echo", &short);
    let mut stays = open(&server, "/raw/chat:a", &token(json!({})));
    assert_eq!(native.expect_close(), Some(4401));
    assert!(now() > short_end(&short) - 1, "not before its time");
    assert_eq!(raw.expect_close(), Some(4401));
    assert_eq!(echo.expect_close(), Some(4401));
    stays.send(&frame(0x81, b"still here"));
    assert_eq!(stays.expect_frame().payload, b"still here");
}

fn short_end(token: &str) -> u64 {
    let claims = jsonwebtoken::dangerous::insecure_decode_claims::<Value>(token).expect("ours");
    claims["exp"].as_u64().expect("a number")
}

#[test]
fn a_token_is_renewed_on_the_open_connection() {
    let server = server(&[]);
    let end = now() + 4;
    let mut client = connect(&server, &token(json!({"exp": end})));
    client.join_room("chat:a", "alice");
    client.join_room("news", "alice");
    let auth = |token: &str| json!({"type": "auth", "id": 1, "token": token}).to_string();

    // None of these changes anything.
    let long = "x".repeat(9000);
    let other = token(json!({"sub": "bob"}));
    let expired = token(json!({"exp": now() - 1}));
    for wrong in ["", "a.b.c", &long, &other, &expired] {
        let reply = client.ask(&auth(wrong));
        check_error(&reply, "invalid_token");
        assert_eq!(reply.id.as_deref(), Some("1"));
    }
    check_error(&client.ask(r#"{"type":"auth"}"#), "missing_field");

    // The new token has a room less: it is left at once, and the others stay.
    let rooms = json!([{"pattern": "chat:*", "join": true, "publish": true}]);
    client.send_text(&auth(&token(json!({"exp": now() + 600, "rooms": rooms}))));
    let text = client.receive_text();
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&answer["type"], &answer["id"]), (&json!("authenticated"), &json!(1)), "{text}");
    assert!((590..=600).contains(&answer["expires_in_s"].as_u64().expect(&text)), "{text}");
    let left = client.receive_reply();
    assert_eq!((left.kind.as_str(), left.room_id.as_deref()), ("left", Some("news")), "{left:?}");
    check_error(&client.ask(r#"{"type":"join","room_id":"news"}"#), "forbidden");
    let mut admin = Wire::connect(server.admin());
    admin.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let metrics = String::from_utf8(admin.response().body).expect("it is text");
    for (code, count) in [("invalid_token", 5), ("missing_field", 1), ("forbidden", 1)] {
        let line = format!("fanwire_errors_total{{code=\"{code}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }

    // It outlives the token that it came with.
    let mut witness = connect(&server, &token(json!({"exp": end})));
    assert_eq!(witness.expect_close(), Some(4401));
    client.send_text(r#"{"type":"broadcast","room_id":"chat:a","content":1}"#);
    assert_eq!(client.receive_reply().sender.as_deref(), Some("alice"));
    client.expect_silence();
}

#[test]
fn many_renewals_in_one_go_are_answered_in_order() {
    let server = server(&[]);
    let token = token(json!({}));
    let mut client = connect(&server, &token);
    for id in 0..100 {
        let token = if id % 3 == 0 { &token } else { "a.b.c" };
        client.queue(tungstenite::Message::text(
            json!({"type": "auth", "id": id, "token": token}).to_string(),
        ));
    }
    client.flush();
    for id in 0..100 {
        let text = client.receive_text();
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let expected = if id % 3 == 0 { "authenticated" } else { "error" };
        assert_eq!((&answer["id"], &answer["type"]), (&json!(id), &json!(expected)), "{text}");
    }
}

#[test]
fn without_authentication_nobody_needs_a_token() {
    let server = Server::start(&[]);
    let mut client = connect(&server, "whatever");
    client.join_room("other", "alice");
    check_error(&client.ask(r#"{"type":"auth","token":"a.b.c"}"#), "auth_off");
    client.expect_silence();
    // And no origin is refused, unless some are named.
    let (response, _) = ask(&server, "/ws", &[("Origin", "https://example.com")]);
    assert_eq!(response.status, 101);
}

// --- Reloading ---------------------------------------------------------------------------------

#[test]
fn keys_and_origins_are_read_again_at_sighup() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    let write = |name: &str, text: &str| std::fs::write(path(name), text).expect("writable");
    let key = format!("HS256:{}", path("secret"));
    let keys = |more: &str| write("toml", &format!("auth_keys = [{key:?}{more}]\n"));
    write("secret", &secret());
    keys("");
    let server = Server::start(&["--config", &path("toml")]);
    let good = token(json!({}));
    let status = |token: &str| {
        let bearer = format!("Bearer {token}");
        let fields = [("Authorization", bearer.as_str()), ("Origin", "https://a.example")];
        ask(&server, "/ws", &fields).0.status
    };
    let mut stays = connect(&server, &good);
    stays.join_room("chat:a", "alice");

    // A broken file changes nothing.
    write("secret", "short");
    server.signal(libc::SIGHUP);
    server.wait_log("nothing has changed");
    assert!(server.log().contains("shorter than the 32 bytes"), "{}", server.log());
    assert_eq!(status(&good), 101);

    // Another secret: old tokens open nothing any more, and nobody is dropped.
    let new_secret = "n".repeat(32);
    write("secret", &new_secret);
    server.signal(libc::SIGHUP);
    wait_until("the new secret is in force", || status(&good) == 401);
    let claims = json!({"sub": "alice", "exp": now() + 600});
    let new = sign(Algorithm::HS256, &EncodingKey::from_secret(new_secret.as_bytes()), &claims);
    assert_eq!(status(&new), 101);
    server.wait_log("other keys in the same files");
    stays.send_text(r#"{"type":"broadcast","room_id":"chat:a","content":1}"#);
    assert_eq!(stays.receive_reply().sender.as_deref(), Some("alice"));

    // One more key, and only some origins.
    keys(
        r#", "x=HS256:tests/keys/secret"]
        origins = ["https://b.example""#,
    );
    server.signal(libc::SIGHUP);
    wait_until("the origin is refused", || status(&new) == 403);
    let bearer = format!("Bearer {good}");
    assert_eq!(ask(&server, "/ws", &[("Authorization", &bearer)]).0.status, 101);
    assert!(!server.log().contains(&new_secret), "{}", server.log());
}

// --- Starting, secrets -------------------------------------------------------------------------

fn refuses_to_start(flags: &[&str], words: &[&str]) {
    let mut command = fanwire(&["serve", "--admin", "off"]);
    command.args(flags);
    let Finished { code, stderr, .. } = run(command);
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{flags:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{flags:?}: {word} is missing: {stderr}");
    }
}

#[test]
fn the_server_does_not_serve_everybody_unless_told_to() {
    let listen = format!("0.0.0.0:{}", free_port());
    refuses_to_start(&["--listen", &listen], &["not a loopback", "--insecure", "auth_keys"]);
    for flags in [&["--insecure"][..], &["--auth-keys", SECRET_FILE]] {
        let everywhere = format!("0.0.0.0:{}", free_port()).parse().expect("an address");
        let server = Server::start_at(&[everywhere], flags);
        let mut wire = Wire::connect(server.address());
        wire.send(&upgrade_request("/ws"));
        let insecure = flags.len() == 1;
        assert_eq!(wire.response().status, if insecure { 101 } else { 401 });
        assert_eq!(server.log().contains("without authentication"), insecure, "{}", server.log());
    }
}

#[test]
fn a_key_that_cannot_be_used_stops_the_start() {
    for (key, words) in [
        ("HS256:tests/keys/none", &["tests/keys/none", "No such file"][..]),
        ("HS256:tests/keys/rs256.pem", &["PEM", "RS256"]),
        ("RS256:tests/keys/rsa1024.pem", &["2048"]),
        ("HS999:tests/keys/secret", &["HS256", "EdDSA"]),
    ] {
        refuses_to_start(&["--auth-keys", key], words);
    }
}

#[test]
fn no_secret_and_no_token_is_ever_printed() {
    let secret = secret();
    let mut config = fanwire(&["config", "--auth-keys", SECRET_FILE]);
    config.args(["--log-level", "trace"]);
    let config = run(config);
    assert_eq!(config.code, Some(0), "{config:?}");
    assert!(config.stdout.contains("auth_keys = [\"HS256:tests/keys/secret\"]"), "{config:?}");
    assert!(!config.stdout.contains(&secret) && !config.stderr.contains(&secret));

    let server = server(&[]);
    let tokens = [token(json!({})), token(json!({"exp": now() - 9}))];
    for token in &tokens {
        let bearer = format!("Bearer {token}");
        ask(&server, "/ws", &[("Authorization", &bearer)]);
        ask(&server, &format!("/ws?token={token}"), &[]);
        ask(&server, "/ws", &[("Sec-WebSocket-Protocol", &format!("bearer.{token}"))]);
    }
    let mut client = connect(&server, &tokens[0]);
    client.ask(&json!({"type": "auth", "token": tokens[1]}).to_string());
    wait_until("the refusals are logged", || {
        server.log().matches("token refused: expired").count() == 4
    });
    let log = server.log();
    for text in tokens.iter().flat_map(|token| token.split('.').skip(1)).chain([&*secret]) {
        assert!(!log.contains(text), "{text} is in the log:\n{log}");
    }
}

#[test]
fn direct_messages_go_from_who_may_to_who_is_proven() {
    let server = server(&[]);
    let mut allowed = connect(&server, &token(json!({"sub": "carol", "direct": true})));
    let mut forbidden = connect(&server, &token(json!({"direct": false})));
    let mut silent = connect(&server, &token(json!({})));
    let direct = |to: &str| format!(r#"{{"type":"direct","user_id":"{to}","content":1,"id":1}}"#);
    for client in [&mut forbidden, &mut silent] {
        check_error(&client.ask(&direct("carol")), "forbidden");
    }
    // Users are known by their tokens alone: none of them has joined a room, or given a name.
    allowed.send_text(&direct("alice"));
    assert_eq!(allowed.receive_text(), r#"{"type":"ack","id":1,"delivered":2}"#);
    for client in [&mut forbidden, &mut silent] {
        let expected = r#"{"type":"direct","sender":"carol","content":1}"#;
        assert_eq!(client.receive_text(), expected);
    }
    // Who says that it is somebody else is not.
    silent.send_text(r#"{"type":"join","room_id":"news","user_id":"bob"}"#);
    silent.receive_reply();
    allowed.send_text(&direct("bob"));
    assert_eq!(allowed.receive_text(), r#"{"type":"ack","id":1,"delivered":0}"#);
}
