use std::ffi::OsString;
use std::time::Duration;

use super::layers::settings_command;
use super::value::accepted;
use super::*;

pub(super) fn settings(flags: &[&str]) -> Result<Settings, ConfigError> {
    loaded(flags).map(|loaded| loaded.settings)
}

pub(super) fn loaded(flags: &[&str]) -> Result<Loaded, ConfigError> {
    let args = ["fanwire", "serve"].iter().chain(flags).map(OsString::from);
    load(args, [])
}

#[test]
fn declarations_are_sound() {
    // clap's own checks; among them, that every default is a value its parser accepts.
    settings_command().debug_assert();
}

#[test]
fn every_setting_says_what_it_is_and_accepts() {
    for arg in settings_command().get_arguments() {
        let key = arg.get_id();
        assert!(arg.get_help().is_some(), "{key} has no doc comment");
        assert!(arg.get_help_heading().is_some(), "{key} has no heading");
        assert!(!arg.get_default_values().is_empty(), "{key} has no default");
        assert!(!accepted(arg).is_empty(), "{key} does not say what it accepts");
    }
}

#[test]
fn ranges_include_their_ends_and_end_there() {
    let mut ranges = 0;
    for arg in settings_command().get_arguments() {
        let key = arg.get_id().as_str();
        let accepted = accepted(arg);
        let Some((low, high)) =
            accepted.trim_end_matches("|auto").trim_end_matches("|off").split_once("..")
        else {
            continue;
        };
        ranges += 1;
        let parses = |value: &str| {
            let flag = format!("--{}={value}", key.replace('_', "-"));
            settings_command().try_get_matches_from([flag]).is_ok()
        };
        assert!(parses(low) && parses(high), "{key}: {accepted}");
        assert!(!parses(&format!("9{high}")), "{key} takes more than {accepted}");
        assert!(!parses("-1"), "{key} takes a negative number");
    }
    assert!(ranges > 15, "the settings with a range were not found");
}

#[test]
fn the_largest_number_of_shards_is_said_once() {
    let command = settings_command();
    let shards = command.get_arguments().find(|arg| arg.get_id() == "shards");
    assert_eq!(accepted(shards.unwrap()), format!("1..{SHARDS_MAX}|auto"));
}

/// `partial_bytes_max` needs no check against the message sizes as long as its range lies above.
#[test]
fn the_largest_message_always_fits_the_partial_messages() {
    for key in ["ws", "raw", "echo"] {
        assert!(settings(&[&format!("--{key}-message-bytes-max=67108865")]).is_err());
    }
    assert!(settings(&["--partial-bytes-max=67108863"]).is_err());
    assert!(settings(&["--partial-bytes-max=67108864"]).is_ok());
}

#[test]
fn defaults() {
    let settings = settings(&[]).unwrap();
    let limits = settings.limits(2, 19_000);
    assert_eq!(settings.listen, ["127.0.0.1:8080".parse().unwrap()]);
    assert_eq!(settings.admin, Switch::On("127.0.0.1:8081".parse().unwrap()));
    assert_eq!((settings.shards, settings.cpus), (Auto::Auto, Auto::Auto));
    assert_eq!((settings.log_format, settings.log_level), (LogFormat::Text, LogLevel::Info));
    let expected = Limits {
        verifier: None,
        origins: Origins::default(),
        handshake_timeout: Duration::from_secs(5),
        close_timeout: Duration::from_secs(5),
        message_timeout: Duration::from_secs(60),
        send_timeout: Duration::from_secs(30),
        drain_rate: None,
        drain_timeout: Duration::from_secs(10),
        heartbeats: Heartbeats {
            ping_interval: Some(Duration::from_secs(60)),
            pong_timeout: Duration::from_secs(20),
        },
        connections_per_address_max: None,
        handshakes_per_second: None,
        handshakes_per_second_per_address: None,
        trusted_proxies: TrustedProxies::default(),
        proxy_protocol: ProxyProtocol::Off,
        handshakes_max: 4096,
        handshake_bytes_max: 8 << 10,
        target_bytes_max: 2 << 10,
        ws_message_bytes_max: 1 << 20,
        raw_message_bytes_max: 1 << 20,
        echo_message_bytes_max: 16 << 20,
        frame_bytes_max: usize::MAX,
        messages_per_second: None,
        bytes_per_second: None,
        partial_bytes_max: 256 << 20,
        rooms_per_connection_max: 128,
        rooms_max: 1_000_000,
        members_per_room_max: MembersMax::default(),
        room_id_alphabet: RoomAlphabet::Any,
        room_id_bytes_max: 128,
        user_id_bytes_max: 128,
        policies: Policies {
            rules: Vec::new(),
            default: Policy {
                slow_consumer: SlowConsumer::Disconnect,
                high_water_mark: 4 << 20,
                age_max: None,
            },
        },
        mailbox_len_max: 256,
        publish_queue_len_max: 4096,
        publish_bytes_max: 4 << 20,
        ready_rss_max: None,
        echo: false,
        connections_max: 38_000,
        connections_per_shard_max: 19_000,
    };
    assert_eq!(limits, expected);
}

#[test]
fn conflicts() {
    #[track_caller]
    fn check(flags: &[&str], expected: &str) {
        assert_eq!(settings(flags).unwrap_err().to_string(), expected);
    }
    check(
        &["--high-water-mark=2MiB", "--raw-message-bytes-max=1025KiB"],
        "high_water_mark = 2MiB must be at least twice raw_message_bytes_max = 1025KiB \
         (high_water_mark: flag --high-water-mark, raw_message_bytes_max: flag \
         --raw-message-bytes-max)",
    );
    check(
        &["--ws-message-bytes-max=64MiB"],
        "high_water_mark = 4MiB must be at least twice ws_message_bytes_max = 64MiB \
         (high_water_mark: default, ws_message_bytes_max: flag --ws-message-bytes-max)",
    );
    check(
        &["--room-policy=a*=disconnect/1MiB"],
        "room_policy a*=disconnect/1MiB disconnects, so its high-water mark must be at least twice \
         ws_message_bytes_max = 1MiB; raise it, or let the rule skip messages (room_policy: flag \
         --room-policy, ws_message_bytes_max: default)",
    );
    check(
        &["--room-policy=a*=drop-oldest/1MiB,ab*=drop-oldest/2MiB"],
        "room_policy ab*=drop-oldest/2MiB would never count: a*=drop-oldest/1MiB stands before it \
         and matches all its rooms; put it first, or take it out (room_policy: flag --room-policy)",
    );
    check(
        &["--handshake-bytes-max=1KiB"],
        "target_bytes_max = 2KiB must be at most handshake_bytes_max = 1KiB, of which it is a part \
         (target_bytes_max: default, handshake_bytes_max: flag --handshake-bytes-max)",
    );
    check(
        &["--proxy-protocol=required"],
        "proxy_protocol needs trusted_proxies, the networks whose PROXY headers are to be \
         believed; name them, or set proxy_protocol = off (proxy_protocol: flag --proxy-protocol, \
         trusted_proxies: default)",
    );
    check(
        &["--bytes-per-second=64KiB/1MiB"],
        "bytes_per_second has a burst of 1MiB, less than a longest message of 1MiB and its header; \
         raise the burst, or leave it out (bytes_per_second: flag --bytes-per-second)",
    );
    check(
        &["--listen=[::1]:80,127.0.0.1:80", "--listen=[::1]:80"],
        "listen names [::1]:80 twice; name it once (listen: flag --listen)",
    );
    check(
        &["--listen=127.0.0.1:1,10.0.0.1:80"],
        "listen = 10.0.0.1:80 is not a loopback address, and without auth_keys whoever reaches it \
         could join every room and publish to it; give auth_keys, listen on 127.0.0.1 behind a \
         proxy that authenticates, or say --insecure (listen: flag --listen, auth_keys: default, \
         insecure: default)",
    );
    check(
        &["--auth-keys=off,HS256:tests/keys/secret"],
        "auth_keys has off beside keys; take off out, or the keys (auth_keys: flag --auth-keys)",
    );
    check(
        &["--listen=127.0.0.1:8081"],
        "admin = 127.0.0.1:8081 is also in listen; give it a port of its own, or turn it off with \
         admin = off (admin: default, listen: flag --listen)",
    );
}

#[test]
fn keys_are_read_with_the_configuration() {
    let settings = settings(&[
        "--auth-keys=a=HS256:tests/keys/secret,jwks:tests/keys/jwks.json",
        "--auth-keys=EdDSA:tests/keys/eddsa.pem",
        "--auth-issuer=https://id.example",
        "--auth-leeway=90s",
    ]);
    let settings = settings.unwrap();
    let limits = settings.limits(1, 1);
    let verifier = limits.verifier.expect("there are keys");
    assert_eq!(verifier.keys().len(), 6);
    assert!(settings.authenticates());
    assert!(!format!("{settings:?}").contains("0123456789abcdef"));
    assert!(!settings.to_table().to_string().contains("0123456789abcdef"));
}

#[test]
fn broken_keys_stop_the_start() {
    #[track_caller]
    fn check(key: &str, expected: &str) {
        let error = settings(&[&format!("--auth-keys={key}")]).unwrap_err().to_string();
        assert_eq!(error, format!("auth_keys {key}: {expected} (flag --auth-keys)"));
    }
    check(
        "HS256:tests/keys/none",
        "cannot read the file: No such file or directory (os error 2); give the path of one that \
         the server may read",
    );
    check(
        "HS256:tests/keys",
        "cannot read the file: Is a directory (os error 21); give the path of one that the server \
         may read",
    );
    check(
        "HS256:/dev/null",
        "the secret is shorter than the 32 bytes that its algorithm needs; make one with: openssl \
         rand -hex 32",
    );
    check("HS256:/dev/zero", "the file is longer than 256 KiB, so it holds no keys");
    check(
        "x=RS256:tests/keys/es256.pem",
        "it is no public key for RS256 in PEM (BEGIN PUBLIC KEY); make one with: openssl pkey \
         -pubout",
    );
    check(
        "jwks:tests/keys/secret",
        "it is no JWK Set: a JSON object with a list \"keys\" (RFC 7517)",
    );
    let many = ["--auth-keys=HS256:tests/keys/secret"; 17];
    assert!(settings(&many[1..]).is_ok());
    assert_eq!(
        settings(&many).unwrap_err().to_string(),
        "auth_keys HS256:tests/keys/secret: there are more than 16 keys; take out those that sign \
         no more (flag --auth-keys)"
    );
}

#[test]
fn what_fits_is_no_conflict() {
    for flags in [
        &["--high-water-mark=2MiB"][..],
        &["--room-policy=ab*=drop-oldest/64KiB", "--room-policy=a*=disconnect/2MiB", "--shards=1"],
        &["--room-policy=off,*=skip-to-newest/64KiB"],
        &["--target-bytes-max=8KiB"],
        &["--bytes-per-second=64KiB/1048590"],
        &["--bytes-per-second=64KiB"],
        &["--proxy-protocol=required", "--trusted-proxies=::1,10.0.0.0/8"],
        &["--listen=127.0.0.1:0,127.0.0.1:0", "--admin=127.0.0.1:0"],
        &["--listen=127.0.0.1:8081", "--admin=off"],
        &["--connections-max=1", "--shards=4"],
        &["--listen=127.9.9.9:1,[::1]:1,[::ffff:127.0.0.1]:1"],
        &["--listen=0.0.0.0:1", "--insecure"],
        &["--listen=[::]:1", "--auth-keys=HS256:tests/keys/secret"],
        &["--auth-keys=HS256:tests/keys/secret", "--origins=off,https://a"],
    ] {
        assert!(settings(flags).is_ok(), "{flags:?}");
    }
}

#[test]
fn connections_are_limited_by_the_setting_or_by_descriptors() {
    #[track_caller]
    fn check(connections_max: &str, shards: usize, per_shard: usize, expected: usize) {
        let settings = settings(&["--connections-max", connections_max]).unwrap();
        let limits = settings.limits(shards, per_shard);
        assert_eq!(limits.connections_max, expected);
        assert_eq!(limits.connections_per_shard_max, per_shard);
    }
    check("auto", 3, 500, 1500);
    check("100", 3, 500, 100);
    check("1", 3, 500, 1);
    check("1500", 3, 500, 1500);
    check("1_000_000", 3, 500, 1500);
}
