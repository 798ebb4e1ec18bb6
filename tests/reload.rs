//! Reloading: what SIGHUP and `POST /v1/reload` change while connections stay, and what they do not.

pub mod support;

use std::{fs, net::SocketAddr, path::PathBuf};

use serde_json::{Value, json};
use support::{
    Client, Response, Server, Wire, close_frame, fanwire, frame, free_port, head_of, rows,
    upgrade_request, wait_until,
};
use tungstenite::Message;

const PING: u8 = 9;

/// The next frame, which must be a ping; gives its payload.
fn expect_ping(wire: &mut Wire) -> Vec<u8> {
    let frame = wire.expect_frame();
    assert!(frame.fin && frame.opcode == PING, "a ping: {frame:?}");
    frame.payload
}

/// A server with a configuration file that the test rewrites.
struct Reloaded {
    server: Server,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Reloaded {
    fn start(text: &str) -> Reloaded {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("fanwire.toml");
        fs::write(&path, text).expect("the file can be written");
        let [address, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let mut command = fanwire(&["serve", "--shards", "2", "--admin", &admin.to_string()]);
        command.args(["--listen", &address.to_string(), "--config"]).arg(&path);
        let server = Server::spawn(command, address, Some(admin));
        Reloaded { server, path, _directory: directory }
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Writes the file, asks for a reload over HTTP, and gives the answer.
    fn post(&self, text: &str) -> (u16, Value) {
        fs::write(&self.path, text).expect("the file can be written");
        let response = ask(self.server.admin(), "POST", "/v1/reload", "");
        assert_eq!(response.field("content-type"), Some("application/json"), "{response:?}");
        (response.status, response.json())
    }

    /// The same, where all is right and `key` alone is to change.
    fn change(&self, key: &str, text: &str) {
        let (status, answer) = self.post(text);
        assert_eq!((status, &answer["needs_restart"]), (200, &json!([])), "{answer}");
        let changed = answer["changed"].as_array().expect("a list");
        assert!(changed.len() == 1 && changed[0]["key"] == key, "{key}: {answer}");
    }

    /// Writes the file, sends SIGHUP, and waits for a line of the log with each of `words`.
    fn reload(&self, text: &str, words: &[&str]) {
        let seen = self.server.log().len();
        fs::write(&self.path, text).expect("the file can be written");
        self.server.signal(libc::SIGHUP);
        for words in words {
            self.server.wait_log_from(seen, words);
        }
    }
}

#[test]
fn sighup_turns_heartbeats_on_and_off_and_nobody_is_dropped() {
    let off = "ping_interval = \"off\"\npong_timeout = \"1s\"\n";
    let on = "ping_interval = \"1s\"\npong_timeout = \"1s\"\n";
    let reloaded = Reloaded::start(off);
    let address = reloaded.server.address();
    let mut wire = Wire::open(address, "/ws");
    for _ in 0..2 {
        reloaded.reload(on, &["SIGHUP: ping_interval off -> 1s"]);
        for _ in 0..2 {
            let payload = expect_ping(&mut wire);
            wire.send(&frame(0x8a, &payload));
        }
        reloaded.reload(off, &["SIGHUP: ping_interval 1s -> off"]);
        // Pings may have left before it was off; after its answer to this there are none.
        wire.send(&frame(0x89, b"off"));
        while wire.expect_frame().opcode == PING {
            wire.send(&frame(0x8a, b""));
        }
    }
    // Nobody answers a server that does not ask.
    let clock = Server::start(&["--shards", "1", "--ping-interval", "1s"]);
    let mut ticks = Client::connect(clock.address(), "/ws");
    for _ in 0..3 {
        assert!(matches!(ticks.receive(), Message::Ping(_)));
    }
    assert!(!wire.has_input());
    reloaded.reload(off, &["SIGHUP: nothing has changed"]);
}

#[test]
fn a_broken_file_changes_nothing_at_sighup() {
    let good = "ping_interval = \"1s\"\npong_timeout = \"1s\"\nlog_level = \"info\"\n";
    let reloaded = Reloaded::start(good);
    let mut wire = Wire::open(reloaded.server.address(), "/ws");
    let path = reloaded.path.display().to_string();
    let table = [
        ("ping_interval = \"off\"\nlog_level = \"loud\"", "log_level = \"loud\" is not one of"),
        (
            "ping_interval = \"off\"\nshards = 0",
            "shards = \"0\" is out of range; accepted: 1..1024",
        ),
        ("ping_interval = \"off\"\npong_timeot = 3", "did you mean pong_timeout?"),
        ("ping_interval = \"off\"\nhigh_water_mark = \"1MiB\"", "must be at least twice"),
        ("ping_interval = off", "not TOML"),
    ];
    for (text, words) in table {
        reloaded.reload(text, &["ERROR", &path, words, "; nothing has changed"]);
    }
    // Still asked, so still on.
    for _ in 0..2 {
        let payload = expect_ping(&mut wire);
        wire.send(&frame(0x8a, &payload));
    }
    fs::remove_file(&reloaded.path).expect("it is there");
    reloaded.server.signal(libc::SIGHUP);
    reloaded.server.wait_log("cannot read the configuration file");
    let payload = expect_ping(&mut wire);
    wire.send(&frame(0x8a, &payload));
}

#[test]
fn sighup_changes_the_log_level_and_names_what_needs_a_restart() {
    let reloaded = Reloaded::start("");
    let address = reloaded.server.address();
    let debug = "connection ends";
    Client::connect(address, "/ws").close();
    reloaded.reload("log_level = \"debug\"\n", &["SIGHUP: log_level info -> debug"]);
    let mark = reloaded.server.log().len();
    assert!(!reloaded.server.log()[..mark].contains(debug), "{}", reloaded.server.log());
    Client::connect(address, "/ws").close();
    reloaded.server.wait_log_from(mark, debug);
    reloaded.reload(
        "log_level = \"error\"\necho = true\nlog_format = \"json\"\nmailbox_len_max = 17\n\
         ping_interval = \"90s\"\n",
        &[
            "SIGHUP: echo false -> true, ping_interval 1m -> 1m30s, log_level debug -> error",
            "SIGHUP: restart the server for mailbox_len_max 256 -> 17, log_format text -> json",
        ],
    );
    let mark = reloaded.server.log().len();
    Client::connect(address, "/ws").close();
    reloaded
        .reload("log_level = \"info\"\nping_interval = \"90s\"\n", &["log_level error -> info"]);
    let log = reloaded.server.log();
    assert!(!log[mark..].contains(debug), "{log}");
    assert!(!log[mark..].contains("restart"), "as at the start again: {log}");
}

#[test]
fn sighup_does_not_hide_the_end() {
    let mut reloaded = Reloaded::start("");
    let mut client = Client::connect(reloaded.server.address(), "/ws");
    for _ in 0..100 {
        reloaded.server.signal(libc::SIGHUP);
    }
    reloaded.server.signal(libc::SIGTERM);
    reloaded.server.signal(libc::SIGHUP);
    assert_eq!(client.expect_close(), Some(1001));
    assert_eq!(reloaded.server.wait_exit().code(), Some(0), "{}", reloaded.server.log());
}

/// One request to the admin interface.
fn ask(admin: SocketAddr, method: &str, path: &str, body: &str) -> Response {
    let mut wire = Wire::connect(admin);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    wire.send(head.as_bytes());
    wire.response()
}

/// The status with which an opening handshake is answered.
fn status(address: SocketAddr, request: &[u8]) -> u16 {
    let mut wire = Wire::connect(address);
    wire.send(request);
    wire.response_head().status
}

#[test]
fn live_settings_count_from_the_reload_on_and_everybody_stays() {
    type Check = fn(&Reloaded, bool);
    // Each is tried before and after the change; only the change tells the one from the other.
    let table: Vec<(&str, &str, Check)> = vec![
        ("echo", "true", |it, after| {
            assert_eq!(
                status(it.address(), &upgrade_request("/echo")),
                if after { 101 } else { 404 }
            );
        }),
        ("handshake_timeout", "\"100ms\"", |it, after| {
            // Before, it has a minute: nothing to wait for.
            if after {
                assert_eq!(Wire::connect(it.address()).response_head().status, 408);
            }
        }),
        ("target_bytes_max", "\"64B\"", |it, after| {
            let request = head_of(&format!("GET /raw/{} HTTP/1.1", "r".repeat(100)), &[]);
            assert_eq!(status(it.address(), &request), if after { 414 } else { 101 });
        }),
        ("room_id_bytes_max", "\"2B\"", |it, after| {
            let mut client = Client::connect(it.address(), "/ws");
            let reply = client.ask(r#"{"type":"join","room_id":"abc"}"#);
            assert_eq!(reply.kind, if after { "error" } else { "joined" });
        }),
        ("rooms_per_connection_max", "1", |it, after| {
            let mut client = Client::join(it.address(), "one", "member");
            let reply = client.ask(r#"{"type":"join","room_id":"two"}"#);
            assert_eq!(reply.code.as_deref(), after.then_some("too_many_rooms"));
        }),
        ("connections_max", "2", |it, after| {
            // The one that stays all along, and this.
            let _one = Client::connect(it.address(), "/raw/full");
            let expected = if after { 503 } else { 101 };
            wait_until("it is counted", || {
                status(it.address(), &upgrade_request("/raw/full")) == expected
            });
        }),
        ("publish_bytes_max", "\"1KiB\"", |it, after| {
            let item = format!(r#"{{"room_id":"p","content":"{}"}}"#, "x".repeat(2000));
            let response = ask(it.server.admin(), "POST", "/v1/publish", &item);
            assert_eq!(response.status, if after { 413 } else { 200 });
        }),
        ("raw_message_bytes_max", "\"1KiB\"", |it, after| {
            let mut client = Client::connect(it.address(), "/raw/long");
            client.send_binary(&[1; 2000]);
            match client.receive() {
                Message::Binary(_) => assert!(!after),
                Message::Close(close) => {
                    assert_eq!((after, close.map(|it| u16::from(it.code))), (true, Some(1009)));
                }
                other => panic!("{other:?}"),
            }
        }),
    ];
    rows(
        table,
        |row| row.0.to_owned(),
        |(key, value, check)| {
            let reloaded = Reloaded::start("handshake_timeout = \"1m\"\n");
            let mut stays = Client::join(reloaded.address(), "r", "stays");
            check(&reloaded, false);
            let before =
                if *key == "handshake_timeout" { "" } else { "handshake_timeout = \"1m\"" };
            reloaded.change(key, &format!("{before}\n{key} = {value}\n"));
            check(&reloaded, true);
            stays.expect_silence();
        },
    );
}

#[test]
fn a_room_that_exists_gets_its_new_policy() {
    let reloaded = Reloaded::start("room_policy = [\"*=drop-oldest/1GiB\"]\n");
    let mut slow = Wire::open(reloaded.address(), "/raw/r");
    let mut publisher = Client::connect(reloaded.address(), "/raw/r");
    let mut publish = |count: usize| {
        for _ in 0..count {
            publisher.send_binary(&[7; 100_000]);
            publisher.receive();
        }
    };
    // Far past the mark that is to come, and past what the kernel keeps for a socket.
    publish(400);
    reloaded.change("room_policy", "room_policy = [\"*=disconnect/2MiB\"]\n");
    publish(1);
    assert_eq!(slow.expect_close(), Some(1013));
}

#[test]
fn post_says_what_changed_and_what_needs_a_restart() {
    let reloaded = Reloaded::start("");
    let mut stays = Client::join(reloaded.address(), "r", "stays");
    let (status, answer) = reloaded.post("close_timeout = 3\nshards = 3\nlog_format = \"json\"\n");
    let expected = json!({
        "changed": [{"key": "close_timeout", "old": "5s", "new": "3s"}],
        "needs_restart": [
            {"key": "shards", "old": "auto", "new": "3"},
            {"key": "log_format", "old": "text", "new": "json"},
        ],
    });
    let shards = &answer["needs_restart"];
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["changed"], expected["changed"]);
    // The flag --shards wins over the file, at a restart, too.
    assert_eq!(shards, &json!([expected["needs_restart"][1]]));
    reloaded.server.wait_log("POST /v1/reload: close_timeout 5s -> 3s");
    reloaded.server.wait_log("restart the server for log_format text -> json");
    assert_eq!(reloaded.post("close_timeout = 3\n").1, json!({"changed": [], "needs_restart": []}));

    let seen = reloaded.server.log().len();
    let (status, answer) = reloaded.post("close_timeout = 4\nsend_timeout = 4000\n");
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("invalid_configuration")));
    let message = answer["error"]["message"].as_str().expect("words");
    let path = reloaded.path.display();
    for words in ["send_timeout = \"4000\"", "1s..10m", "line 2", "nothing has changed"] {
        assert!(message.contains(words), "{words}: {message}");
    }
    assert!(message.contains(&path.to_string()), "{message}");
    reloaded.server.wait_log_from(seen, &format!("POST /v1/reload: {message}"));
    // Not even what was right: it is still to be done.
    reloaded.change("close_timeout", "close_timeout = 4\n");
    stays.expect_silence();

    let response = ask(reloaded.server.admin(), "GET", "/v1/reload", "");
    assert_eq!(response.status, 405);
}

#[test]
fn a_server_reloads_before_it_drains_and_no_more_then() {
    let late = Reloaded::start("drain_delay = \"1h\"\n");
    late.server.signal(libc::SIGTERM);
    late.server.wait_log("draining in");
    late.change("echo", "drain_delay = \"1h\"\necho = true\n");
    let mut echo = Client::connect(late.address(), "/echo");
    echo.send_binary(b"twice");
    assert_eq!(echo.receive(), Message::binary(&b"twice"[..]));

    let mut reloaded = Reloaded::start("close_timeout = \"1m\"\ndrain_timeout = \"1m\"\n");
    // Its peer has not closed, so the server is still there.
    let mut last = Wire::open(reloaded.address(), "/ws");
    reloaded.server.signal(libc::SIGTERM);
    assert_eq!(last.expect_close(), Some(1001));
    let (status, answer) = reloaded.post("echo = true\n");
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("draining")), "{answer}");
    last.send(&close_frame(1001, ""));
    drop(last);
    assert!(reloaded.server.wait_exit().success());
}
