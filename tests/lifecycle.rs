//! Start and end of the server: configuration, start-up refusals, signals and draining.

pub mod support;

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
};

use support::{
    Client, Finished, Server, Wire, close_frame, fanwire, free_port, head_of, rows, run,
    upgrade_request, wait_until,
};

/// Every key of the configuration.
const KEYS: &[&str] = &[
    "listen",
    "admin",
    "admin_key_file",
    "auth_keys",
    "auth_issuer",
    "auth_audience",
    "auth_leeway",
    "origins",
    "insecure",
    "shards",
    "cpus",
    "echo",
    "log_format",
    "log_level",
    "connections_max",
    "trusted_proxies",
    "proxy_protocol",
    "connections_per_address_max",
    "handshakes_per_second",
    "handshakes_per_second_per_address",
    "frame_bytes_max",
    "messages_per_second",
    "bytes_per_second",
    "members_per_room_max",
    "room_id_alphabet",
    "handshake_timeout",
    "close_timeout",
    "message_timeout",
    "send_timeout",
    "ping_interval",
    "pong_timeout",
    "drain_delay",
    "drain_rate",
    "drain_timeout",
    "handshakes_max",
    "handshake_bytes_max",
    "target_bytes_max",
    "ws_message_bytes_max",
    "raw_message_bytes_max",
    "echo_message_bytes_max",
    "partial_bytes_max",
    "rooms_per_connection_max",
    "rooms_max",
    "room_id_bytes_max",
    "user_id_bytes_max",
    "high_water_mark",
    "room_policy",
    "mailbox_len_max",
    "publish_queue_len_max",
    "publish_bytes_max",
    "ready_rss_max",
];

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

// --- The end -----------------------------------------------------------------------------------

#[test]
fn sigterm_and_sigint_say_1001_to_everyone_and_exit_0() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut server = Server::start(&["--shards", "4", "--echo"]);
        let address = server.address();
        let mut clients: Vec<Client> = (0..8)
            .flat_map(|_| ["/ws", "/raw/r", "/echo"].map(|path| Client::connect(address, path)))
            .collect();
        clients.push(Client::join(address, "room", "member"));
        let mut idle = Wire::connect(address);
        let mut half = Wire::connect(address);
        half.send(&upgrade_request("/ws")[..40]);
        // Both sides of these are known to the server before the signal: each asks something.
        for client in &mut clients {
            client.send(tungstenite::Message::Ping(tungstenite::Bytes::new()));
            client.receive();
        }

        server.signal(signal);

        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.expect_close(), Some(1001), "client {number}");
        }
        // Unfinished handshakes are answered or let go; they do not hold up the exit.
        idle.read_to_end_of_life();
        half.read_to_end_of_life();
        assert_eq!(server.wait_exit().code(), Some(0), "signal {signal}: {}", server.log());
        refused(address);
    }
}

#[test]
fn the_listeners_close_before_the_drain_ends() {
    let mut server =
        Server::start(&["--shards", "2", "--drain-timeout", "1h", "--close-timeout", "1m"]);
    let address = server.address();
    // It never answers the close, so the drain goes on.
    let mut stubborn = Wire::open(address, "/raw/r");
    server.signal(libc::SIGTERM);
    assert_eq!(stubborn.expect_close(), Some(1001));
    wait_until("the listeners close", || {
        TcpStream::connect(address).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    assert!(server.is_running(), "the drain waits for the stubborn one");
    stubborn.send(&close_frame(1001, ""));
    stubborn.expect_eof();
    drop(stubborn);
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
}

#[test]
fn a_client_that_never_answers_does_not_outlast_the_drain_timeout() {
    let mut server =
        Server::start(&["--shards", "2", "--drain-timeout", "500ms", "--close-timeout", "1m"]);
    let mut stubborn = Wire::open(server.address(), "/ws");
    server.signal(libc::SIGTERM);
    assert_eq!(stubborn.expect_close(), Some(1001));
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
}

#[test]
fn a_client_that_never_reads_does_not_either() {
    let mut server =
        Server::start(&["--shards", "1", "--drain-timeout", "500ms", "--close-timeout", "1m"]);
    let full = Wire::open(server.address(), "/raw/full");
    let mut publisher = Client::connect(server.address(), "/raw/full");
    for _ in 0..64 {
        publisher.send_binary(&[1; 64_000]);
        publisher.receive();
    }
    server.signal(libc::SIGTERM);
    assert_eq!(publisher.expect_close(), Some(1001));
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
    drop(full);
}

#[test]
fn a_second_signal_exits_at_once() {
    let mut server =
        Server::start(&["--shards", "2", "--drain-timeout", "1h", "--close-timeout", "1m"]);
    let mut stubborn = Wire::open(server.address(), "/ws");
    server.signal(libc::SIGTERM);
    assert_eq!(stubborn.expect_close(), Some(1001));
    assert!(server.is_running(), "one signal waits");
    server.signal(libc::SIGTERM);
    // That it ends at all is the point: the drain would take an hour.
    server.wait_exit();
}

#[test]
fn a_drain_timeout_of_zero_waits_for_nobody() {
    let mut server = Server::start(&["--shards", "2", "--drain-timeout", "0s"]);
    let _stubborn = Wire::open(server.address(), "/ws");
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
}

#[test]
fn an_idle_server_ends_and_its_port_is_free_again() {
    let mut server = Server::start(&["--shards", "2"]);
    let address = server.address();
    Client::connect(address, "/ws").close();
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log());
    let again = Server::start_at(&[address], &["--shards", "2"]);
    Client::join(again.address(), "room", "member").expect_silence();
}

// --- The start ---------------------------------------------------------------------------------

#[test]
fn the_start_line_says_what_serves_where() {
    let server = Server::start(&["--shards", "3"]);
    let address = server.address().to_string();
    let log = server.wait_log(&address);
    let line = log.lines().find(|line| line.contains(&address)).unwrap_or_default();
    for word in ["http://", "holds up to", "3", "shard"] {
        assert!(line.contains(word), "\"{word}\" in the start line of:\n{log}");
    }
}

#[test]
fn json_logs_are_json_line_by_line() {
    let mut server =
        Server::start(&["--shards", "1", "--log-format", "json", "--log-level", "debug"]);
    Client::connect(server.address(), "/ws").close();
    server.signal(libc::SIGTERM);
    server.wait_exit();
    let log = server.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        let value: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(value.is_ok_and(|value| value.is_object()), "not a JSON object: {line}");
    }
}

#[test]
fn several_addresses_of_both_families_share_the_rooms() {
    let v4 = local(free_port());
    let other_v4 = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), free_port()));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, free_port()));
    // The same port in both families must not be in its own way.
    let v6_same_port = SocketAddr::from((Ipv6Addr::LOCALHOST, v4.port()));
    let server = Server::start_at(&[v4, other_v4, v6, v6_same_port], &["--shards", "2"]);
    let mut clients: Vec<Client> = [v4, other_v4, v6, v6_same_port]
        .into_iter()
        .flat_map(|address| [address, address])
        .map(|address| Client::connect(address, "/raw/shared"))
        .collect();
    clients[5].send_text("to all families");
    for client in &mut clients {
        assert_eq!(client.receive_text(), "to all families");
    }
    drop(server);
}

#[test]
fn health_is_answered_on_the_admin_address_alone() {
    let server = Server::start(&["--shards", "1"]);
    // `start` has waited for 200 from the admin address already.
    let mut wire = Wire::connect(server.address());
    wire.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(wire.response().status, 404);
    let mut wire = Wire::connect(server.admin());
    wire.send(&head_of("GET /ws HTTP/1.1", &[]));
    assert_eq!(wire.response_head().status, 404);
}

#[test]
fn the_admin_address_can_be_switched_off() {
    let address = local(free_port());
    let mut command = fanwire(&["serve", "--shards", "1", "--admin", "off", "--listen"]);
    command.arg(address.to_string());
    let server = Server::spawn(command, address, None);
    Client::join(server.address(), "room", "member").expect_silence();
}

/// A start that must fail: arguments, environment, and words the one line on stderr must have.
struct Refusal {
    name: &'static str,
    arguments: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
    file: Option<&'static str>,
    words: Vec<&'static str>,
}

fn flags(arguments: &[&str], words: &[&'static str]) -> Refusal {
    Refusal {
        name: "flags",
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        environment: Vec::new(),
        file: None,
        words: words.to_vec(),
    }
}

fn environment(name: &'static str, value: &'static str, words: &[&'static str]) -> Refusal {
    Refusal { name: "environment", environment: vec![(name, value)], ..flags(&[], words) }
}

fn file(text: &'static str, words: &[&'static str]) -> Refusal {
    Refusal { name: "file", file: Some(text), ..flags(&[], words) }
}

fn refusals() -> Vec<Refusal> {
    vec![
        flags(&["--shards", "0"], &["shards", "1", "1024"]),
        flags(&["--shards", "1025"], &["shards", "1", "1024"]),
        flags(&["--shards", "two"], &["shards"]),
        flags(&["--shards=-1"], &["shards"]),
        flags(&["--cpus", "99999"], &["cpus", "99999"]),
        flags(&["--cpus", "3-1"], &["cpus"]),
        flags(&["--cpus", "a"], &["cpus"]),
        flags(&["--cpus", ""], &["cpus"]),
        flags(&["--listen", "nowhere"], &["listen", "nowhere"]),
        flags(&["--listen", "127.0.0.1"], &["listen"]),
        flags(&["--listen", "127.0.0.1:70000"], &["listen"]),
        flags(&["--admin", "nowhere"], &["admin"]),
        flags(&["--handshake-timeout", "99ms"], &["handshake_timeout", "100ms", "1m"]),
        flags(&["--handshake-timeout", "61s"], &["handshake_timeout", "100ms", "1m"]),
        flags(&["--close-timeout", "5 parsecs"], &["close_timeout", "100ms"]),
        flags(&["--send-timeout", "0"], &["send_timeout", "1s", "10m"]),
        flags(&["--message-timeout", "2h"], &["message_timeout", "1s", "1h"]),
        flags(&["--ping-interval", "500ms"], &["ping_interval", "1s", "1h", "off"]),
        flags(&["--ping-interval", "2h"], &["ping_interval", "1s", "1h", "off"]),
        flags(&["--ping-interval", "never"], &["ping_interval", "off"]),
        flags(&["--ready-rss-max", "1KiB"], &["ready_rss_max", "1MiB", "4TiB", "off"]),
        flags(&["--pong-timeout", "0"], &["pong_timeout", "1s", "10m"]),
        flags(&["--pong-timeout", "off"], &["pong_timeout", "1s", "10m"]),
        flags(&["--drain-timeout", "2h"], &["drain_timeout", "1h"]),
        flags(&["--drain-timeout", "soon"], &["drain_timeout"]),
        flags(&["--handshake-bytes-max", "100"], &["handshake_bytes_max", "512", "64"]),
        flags(&["--target-bytes-max", "1MiB"], &["target_bytes_max", "64", "16"]),
        flags(&["--ws-message-bytes-max", "124"], &["ws_message_bytes_max", "125", "64"]),
        flags(&["--raw-message-bytes-max", "65MiB"], &["raw_message_bytes_max", "64"]),
        flags(&["--echo-message-bytes-max", "1 furlong"], &["echo_message_bytes_max"]),
        flags(&["--partial-bytes-max", "1MiB"], &["partial_bytes_max", "64"]),
        flags(&["--rooms-per-connection-max", "0"], &["rooms_per_connection_max", "1", "65536"]),
        flags(&["--rooms-max", "0"], &["rooms_max", "1"]),
        flags(&["--room-id-bytes-max", "2000"], &["room_id_bytes_max", "1024B"]),
        flags(&["--user-id-bytes-max", "0"], &["user_id_bytes_max", "1024B"]),
        flags(&["--high-water-mark", "1KiB"], &["high_water_mark", "64"]),
        flags(&["--high-water-mark", "1MiB"], &["high_water_mark", "message_bytes_max"]),
        flags(&["--ws-message-bytes-max", "4MiB"], &["high_water_mark", "ws_message_bytes_max"]),
        flags(&["--room-policy", "lobby"], &["room_policy", "lobby", "drop-oldest/1MiB"]),
        flags(&["--room-policy", "a=drop/1MiB"], &["room_policy", "skip-to-newest", "disconnect"]),
        flags(&["--room-policy", "a=drop-oldest/1KiB"], &["room_policy", "64KiB", "1GiB"]),
        flags(&["--room-policy", "a=drop-oldest/1MiB/2h"], &["room_policy", "100ms", "1h"]),
        flags(&["--room-policy", "=drop-oldest/1MiB"], &["room_policy", "pattern"]),
        flags(&["--room-policy", "a=disconnect/1MiB"], &["room_policy", "ws_message_bytes_max"]),
        flags(
            &["--room-policy", "*=drop-oldest/1MiB", "--room-policy", "a=drop-oldest/2MiB"],
            &["room_policy", "a=drop-oldest/2MiB", "*=drop-oldest/1MiB", "first"],
        ),
        flags(&["--mailbox-len-max", "8"], &["mailbox_len_max", "16", "65536"]),
        flags(&["--connections-max", "0"], &["connections_max", "1"]),
        flags(&["--log-format", "xml"], &["log_format", "text", "json"]),
        flags(&["--log-level", "loud"], &["log_level", "info", "trace"]),
        flags(&["--config", "/nonexistent/fanwire.toml"], &["/nonexistent/fanwire.toml"]),
        environment("FANWIRE_SHARDS", "0", &["1", "1024"]),
        environment("FANWIRE_HANDSHAKE_TIMEOUT", "1ms", &["100ms", "1m"]),
        environment("FANWIRE_LISTEN", "127.0.0.1:80,here", &["here"]),
        environment("FANWIRE_ROOM_POLICY", "a=drop-oldest/1MiB,b", &["FANWIRE_ROOM_POLICY"]),
        environment("FANWIRE_ECHO", "perhaps", &["true", "false"]),
        file("shardz = 4", &["shardz"]),
        file("[shards]\nmax = 4", &["shards"]),
        file("shards = 0", &["shards", "1", "1024"]),
        file("shards = \"many\"", &["shards"]),
        file("listen = \"nowhere\"", &["listen"]),
        file("listen = []", &["listen"]),
        file("room_policy = [\"a=drop-oldest\"]", &["room_policy", "line 1"]),
        file("[room_policy]\na = \"drop-oldest/1MiB\"", &["room_policy", "list of strings"]),
        file("close_timeout = \"1ms\"", &["close_timeout", "100ms", "1m"]),
        file("ws_message_bytes_max = \"1 GiB\"", &["ws_message_bytes_max", "64"]),
        file("echo = \"yes\"", &["echo"]),
        file("this is not TOML", &[]),
    ]
}

#[test]
fn a_wrong_setting_stops_the_start_with_its_name_and_range() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("fanwire.toml");
    let name = |refusal: &Refusal| {
        let file = refusal.file.unwrap_or_default();
        format!("{} {:?} {:?} {file}", refusal.name, refusal.arguments, refusal.environment)
    };
    rows(refusals(), name, |refusal| {
        let mut command = fanwire(&["serve"]);
        // Ports of its own, in case it starts after all.
        if !refusal.arguments.iter().any(|argument| argument == "--listen")
            && !refusal.environment.iter().any(|(name, _)| *name == "FANWIRE_LISTEN")
            && !refusal.file.is_some_and(|text| text.starts_with("listen"))
        {
            command.args(["--listen", &local(free_port()).to_string()]);
        }
        if !refusal.arguments.iter().any(|argument| argument == "--admin") {
            command.args(["--admin", "off"]);
        }
        command.args(&refusal.arguments).envs(refusal.environment.iter().copied());
        if let Some(text) = refusal.file {
            fs::write(&path, text).expect("the file can be written");
            command.arg("--config").arg(&path);
        }
        let finished = run(command);
        check_refusal(&finished, &refusal.words);
        if refusal.file.is_some() {
            let named = finished.stderr.contains("fanwire.toml");
            assert!(named, "the file is named: {}", finished.stderr);
        }
        for (variable, _) in &refusal.environment {
            let key = variable.trim_start_matches("FANWIRE_").to_ascii_lowercase();
            let named = finished.stderr.contains(variable) || finished.stderr.contains(&key);
            assert!(named, "{variable} or {key} is named: {}", finished.stderr);
        }
    });
}

#[test]
fn an_address_in_use_stops_the_start() {
    let holder = TcpListener::bind(local(0)).expect("a free port");
    let taken = holder.local_addr().expect("it is bound").to_string();
    let free = local(free_port()).to_string();
    let table = vec![
        ("the listen address", vec!["--listen", &taken, "--admin", "off"]),
        (
            "one of two listen addresses",
            vec!["--listen", &free, "--listen", &taken, "--admin", "off"],
        ),
        ("the admin address", vec!["--listen", &free, "--admin", &taken]),
    ];
    rows(
        table,
        |row| row.0.to_owned(),
        |(_, arguments)| {
            let mut command = fanwire(&["serve", "--shards", "2"]);
            command.args(arguments);
            check_refusal(&run(command), &[&taken, "in use"]);
        },
    );
}

#[test]
fn a_second_server_on_the_same_address_is_refused() {
    // SO_REUSEPORT would let it in and share the clients out between two servers.
    let mut server = Server::start(&["--shards", "2"]);
    let taken = server.address().to_string();
    let finished = run(fanwire(&["serve", "--shards", "2", "--admin", "off", "--listen", &taken]));
    check_refusal(&finished, &[&taken, "in use"]);
    assert!(server.is_running());
}

#[test]
fn an_address_of_another_host_stops_the_start() {
    let finished = run(fanwire(&["serve", "--admin", "off", "--listen", "192.0.2.1:8080"]));
    check_refusal(&finished, &["192.0.2.1:8080"]);
}

#[test]
fn a_port_without_permission_stops_the_start() {
    const NOBODY: u32 = 65_534;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let everyone = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), everyone).expect("the mode can be set");
    let copy = directory.path().join("fanwire");
    // By another process: what another test starts while this one holds the file open for writing
    // would inherit it for a moment, in which nobody can run it (ETXTBSY).
    let mut copying = Command::new("cp");
    copying.args([Path::new(env!("CARGO_BIN_EXE_fanwire")), &copy]);
    assert_eq!(run(copying).code, Some(0), "the binary can be copied");
    let unprivileged = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let unprivileged: u16 =
        unprivileged.ok().and_then(|text| text.trim().parse().ok()).expect("a port number");
    let port = unprivileged.checked_sub(1).filter(|port| *port > 0);
    let port = port.expect("this host gives every port to everyone: nothing to test here");
    let mut command = Command::new(&copy);
    command.args(["serve", "--admin", "off", "--listen", &local(port).to_string()]);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let finished = run(command);
    check_refusal(&finished, &[&local(port).to_string(), "ermission"]);
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").expect("proc is mounted").uid() == 0
}

/// Checks the exit code and the one line on stderr.
fn check_refusal(finished: &Finished, words: &[&str]) {
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let lines: Vec<&str> = finished.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one line on stderr: {finished:?}");
    assert!(lines[0].len() > 20, "it says something: {finished:?}");
    // A flag is as good a name for a setting as its key.
    let line = lines[0].replace('-', "_");
    for word in words {
        assert!(line.contains(&word.replace('-', "_")), "\"{word}\" is missing: {}", lines[0]);
    }
}

// --- Configuration -----------------------------------------------------------------------------

/// Runs `fanwire config` and gives its output.
fn effective(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = fanwire(&["config"]);
    command.args(arguments).envs(environment.iter().copied());
    let finished = run(command);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout
}

/// One value of a configuration, as TOML text.
fn value(config: &str, key: &str) -> String {
    let table: toml::Table = config.parse().unwrap_or_else(|error| panic!("{error}:\n{config}"));
    table.get(key).unwrap_or_else(|| panic!("{key} is missing:\n{config}")).to_string()
}

fn write(path: &Path, text: &str) -> String {
    fs::write(path, text).expect("the file can be written");
    path.to_str().expect("a UTF-8 path").to_owned()
}

#[test]
fn every_key_is_printed_with_a_comment() {
    let config = effective(&[], &[]);
    for key in KEYS {
        value(&config, key);
    }
    let lines: Vec<&str> = config.lines().collect();
    for pair in lines.windows(2).filter(|pair| pair[1].contains(" = ") && !pair[1].starts_with('#'))
    {
        assert!(pair[0].starts_with("# "), "no comment above {}", pair[1]);
    }
    let table: toml::Table = config.parse().expect("it is TOML");
    let unknown: Vec<&String> = table.keys().filter(|key| !KEYS.contains(&key.as_str())).collect();
    assert!(unknown.is_empty(), "keys this test does not know: {unknown:?}");
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |text: &str| write(&directory.path().join("fanwire.toml"), text);
    let path = file(
        "shards = 7\nlisten = [\"127.0.0.1:7\"]\nhandshake_timeout = \"7s\"\n\
         ws_message_bytes_max = \"7KiB\"\necho = true\nlog_level = \"warn\"\n",
    );
    let environment = [
        ("FANWIRE_SHARDS", "5"),
        ("FANWIRE_LISTEN", "127.0.0.1:5,[::1]:5"),
        ("FANWIRE_HANDSHAKE_TIMEOUT", "5500ms"),
        ("FANWIRE_WS_MESSAGE_BYTES_MAX", "5000"),
        ("FANWIRE_ECHO", "false"),
        ("FANWIRE_LOG_LEVEL", "error"),
    ];
    let arguments = [
        "--shards",
        "3",
        "--listen",
        "127.0.0.1:3",
        "--listen",
        "[::1]:3",
        "--handshake-timeout",
        "3",
        "--ws-message-bytes-max",
        "3MiB",
        "--high-water-mark",
        "6MiB",
        "--echo",
        "--log-level",
        "debug",
    ];
    let of_default = effective(&[], &[]);
    let of_file = effective(&["--config", &path], &[]);
    let of_environment = effective(&["--config", &path], &environment);
    let of_flags =
        effective(&[&["--config", path.as_str()][..], &arguments].concat(), &environment);
    let table = vec![
        (
            "listen",
            [
                "[\"127.0.0.1:8080\"]",
                "[\"127.0.0.1:7\"]",
                "[\"127.0.0.1:5\", \"[::1]:5\"]",
                "[\"127.0.0.1:3\", \"[::1]:3\"]",
            ],
        ),
        ("handshake_timeout", ["\"5s\"", "\"7s\"", "\"5500ms\"", "\"3s\""]),
        ("ws_message_bytes_max", ["\"1MiB\"", "\"7KiB\"", "5000", "\"3MiB\""]),
        ("echo", ["false", "true", "false", "true"]),
        ("log_level", ["\"info\"", "\"warn\"", "\"error\"", "\"debug\""]),
        ("close_timeout", ["\"5s\"", "\"5s\"", "\"5s\"", "\"5s\""]),
    ];
    rows(
        table,
        |row| row.0.to_owned(),
        |(key, expected)| {
            let layers = [&of_default, &of_file, &of_environment, &of_flags];
            for (config, expected) in layers.into_iter().zip(expected) {
                assert_eq!(plain(&value(config, key)), plain(expected));
            }
        },
    );
    assert_eq!(value(&of_file, "shards"), "7");
    assert_eq!(value(&of_environment, "shards"), "5");
    assert_eq!(value(&of_flags, "shards"), "3");
    let of_variable = effective(&[], &[("FANWIRE_CONFIG", &path)]);
    assert_eq!(value(&of_variable, "shards"), "7", "the file named by the environment");
}

/// A value without what writers of durations and sizes may differ in.
fn plain(value: &str) -> String {
    value.replace(['"', ' '], "").replace("5s500ms", "5500ms").trim_end_matches('B').to_owned()
}

#[test]
fn the_printed_configuration_is_a_configuration() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let table: Vec<Vec<&str>> = vec![
        vec![],
        vec!["--shards", "4", "--cpus", "0", "--echo", "--admin", "off", "--log-format", "json"],
        vec!["--listen", "0.0.0.0:9000,[::]:9000", "--insecure", "--connections-max", "1000000"],
        vec!["--handshake-timeout", "1500ms", "--drain-timeout", "0s", "--send-timeout", "90s"],
        vec!["--ping-interval", "off", "--pong-timeout", "1500ms"],
        vec!["--ping-interval", "90"],
        vec!["--ws-message-bytes-max", "1000001", "--high-water-mark", "3MiB", "--rooms-max", "5"],
    ];
    rows(
        table,
        |row| format!("{row:?}"),
        |arguments| {
            let printed = effective(arguments, &[]);
            let path = write(&directory.path().join("printed.toml"), &printed);
            // But for the comments, which say where a value came from.
            let settings = |toml: &str| toml.parse::<toml::Table>().expect("it is TOML");
            assert_eq!(settings(&effective(&["--config", &path], &[])), settings(&printed));
        },
    );
}

#[test]
fn a_server_serves_from_file_and_environment() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (address, admin) = (local(free_port()), local(free_port()));
    let path = write(
        &directory.path().join("fanwire.toml"),
        &format!("listen = [\"{address}\"]\nadmin = \"127.0.0.1:1\"\necho = true\nshards = 2\n"),
    );
    let mut command = fanwire(&["serve"]);
    command.env("FANWIRE_CONFIG", path).env("FANWIRE_ADMIN", admin.to_string());
    let server = Server::spawn(command, address, Some(admin));
    let mut client = Client::connect(server.address(), "/echo");
    client.send_text("configured");
    assert_eq!(client.receive_text(), "configured");
}

#[test]
fn help_and_version_are_answers() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["config", "--help"], &["--version"]]
    {
        let finished = run(fanwire(arguments));
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        assert!(finished.stdout.contains("fanwire"), "{arguments:?}: {finished:?}");
    }
}

/// Checks that nothing listens there.
fn refused(address: SocketAddr) {
    let error = TcpStream::connect(address).map(drop).expect_err("nothing listens here");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}
