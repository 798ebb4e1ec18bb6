//! What operators ask and do on the admin address: rooms, members, disconnecting, keys, profiles.

pub mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use prost::Message as _;
use serde_json::{Value, json};
use support::{
    Client, Response, Server, Wire, error_code, fanwire, free_port, row, rows, run, wait_until,
};
use tungstenite::Message;

/// A kept-alive connection of an operator.
struct Operator {
    wire: Wire,
    /// Fields that every request carries.
    fields: String,
}

impl Operator {
    fn connect(server: &Server) -> Operator {
        Operator { wire: Wire::connect(server.admin()), fields: "Host: localhost\r\n".into() }
    }

    fn with_key(server: &Server, key: &str) -> Operator {
        let fields = format!("Host: fanwire.example\r\nAuthorization: Bearer {key}\r\n");
        Operator { wire: Wire::connect(server.admin()), fields }
    }

    fn send(&mut self, method: &str, path: &str, body: &str) {
        let (fields, len) = (&self.fields, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{fields}Content-Type: application/json\r\n\
             Content-Length: {len}\r\n\r\n"
        );
        self.wire.send(&[head.as_bytes(), body.as_bytes()].concat());
    }

    /// Asks for a profile, and comes back when it is under way: when another one is refused.
    fn profile_beside(&mut self, other: &mut Operator, path: &str) {
        self.send("GET", path, "");
        wait_until("a second one is refused", || {
            // The other one may have come first.
            if self.wire.has_input() {
                assert_eq!(self.wire.response().status, 409);
                self.send("GET", path, "");
            }
            let answer = other.ask("GET", "/debug/profile?seconds=1", "");
            assert!([200, 409].contains(&answer.status), "{answer:?}");
            answer.status == 409
        });
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Response {
        self.send(method, path, body);
        self.wire.response()
    }

    /// The status and the JSON.
    fn json(&mut self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let response = self.ask(method, path, body);
        assert_eq!(response.field("content-type"), Some("application/json"), "{response:?}");
        (response.status, response.json())
    }

    /// The JSON of an answer 200.
    fn get(&mut self, path: &str) -> Value {
        let (status, answer) = self.json("GET", path, "");
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// All pages of a list, in one list, and how many there were.
    fn pages(&mut self, path: &str, query: &str, list: &str) -> (Vec<Value>, usize) {
        let (mut all, mut after, mut count) = (Vec::new(), String::new(), 0);
        loop {
            let page = self.get(&format!("{path}?{query}{after}"));
            all.extend(page[list].as_array().expect("a list").iter().cloned());
            count += 1;
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return (all, count),
            }
        }
    }

    fn disconnect(&mut self, body: &Value) -> (u16, Value) {
        self.json("POST", "/v1/disconnect", &body.to_string())
    }

    /// The names of the connections in a room.
    fn members(&mut self, namespace: &str, room_id: &str) -> Vec<String> {
        let page = self.get(&format!("/v1/rooms/{namespace}/{room_id}?limit=1000"));
        let name = |member: &Value| member["connection"].as_str().expect("a name").to_owned();
        page["members"].as_array().expect("a list").iter().map(name).collect()
    }
}

fn key_file(directory: &Path, keys: &str) -> String {
    let path = directory.join("keys");
    std::fs::write(&path, keys).expect("the directory can be written to");
    path.to_str().expect("a path of ASCII").to_owned()
}

const KEY: &str = "k3y-0f_the.operator~+/==";

/// A request of the table below, and what comes of it.
type Case = (&'static str, &'static str, &'static str, &'static str, u16, &'static str);

/// Method, path as described, path as asked, body, status, code of the error.
#[rustfmt::skip]
const CASES: &[Case] = &[
    ("GET", "/", "/", "", 200, ""),
    ("GET", "/health", "/health", "", 200, ""),
    ("GET", "/health", "/health", "{}", 200, ""),
    ("GET", "/ready", "/ready", "", 200, ""),
    ("GET", "/metrics", "/metrics", "", 200, ""),
    ("GET", "/v1/stats", "/v1/stats", "", 200, ""),
    ("POST", "/v1/publish", "/v1/publish", r#"{"room_id":"lobby","content":1}"#, 200, ""),
    ("POST", "/v1/publish", "/v1/publish", r#"{"room_id":"nobody","content":1}"#, 200, ""),
    ("POST", "/v1/publish", "/v1/publish", r#"{"room_id":"lobby"}"#, 400, "missing_field"),
    ("POST", "/v1/publish/batch", "/v1/publish/batch", r#"{"items":[{"room_id":"lobby","content":1},{"room_id":""},{"room_id":"x","text":""}]}"#, 200, ""),
    ("POST", "/v1/publish/batch", "/v1/publish/batch", r#"{"items":1}"#, 400, "invalid_message"),
    ("GET", "/v1/rooms", "/v1/rooms", "", 200, ""),
    ("GET", "/v1/rooms", "/v1/rooms?limit=1", "", 200, ""),
    ("GET", "/v1/rooms", "/v1/rooms?limit=1000&prefix=lo%62", "", 200, ""),
    ("GET", "/v1/rooms", "/v1/rooms?limit=0", "", 400, "invalid_parameter"),
    ("GET", "/v1/rooms", "/v1/rooms?limit=1001", "", 400, "invalid_parameter"),
    ("GET", "/v1/rooms", "/v1/rooms?limit=x", "", 400, "invalid_parameter"),
    ("GET", "/v1/rooms", "/v1/rooms?limmit=5", "", 400, "invalid_parameter"),
    ("GET", "/v1/rooms", "/v1/rooms?after=2-0", "", 400, "invalid_cursor"),
    ("GET", "/v1/rooms", "/v1/rooms?after=0", "", 400, "invalid_cursor"),
    ("GET", "/v1/rooms", "/v1/rooms?after=0-4294967295", "", 200, ""),
    ("GET", "/v1/rooms/{namespace}/{room_id}", "/v1/rooms/native/lobby", "", 200, ""),
    ("GET", "/v1/rooms/{namespace}/{room_id}", "/v1/rooms/raw/a%2Fb%20%C3%A9", "", 200, ""),
    ("GET", "/v1/rooms/{namespace}/{room_id}", "/v1/rooms/raw/lobby", "", 404, "unknown_room"),
    ("GET", "/v1/rooms/{namespace}/{room_id}", "/v1/rooms/other/lobby", "", 404, "unknown_room"),
    ("GET", "/v1/rooms/{namespace}/{room_id}", "/v1/rooms/raw/%FF", "", 404, "unknown_room"),
    ("GET", "/v1/rooms/{namespace}/{room_id}", "/v1/rooms/native/lobby?after=x", "", 400, "invalid_cursor"),
    ("GET", "/v1/rooms/{namespace}/{room_id}", "/v1/rooms/native/lobby?limit=-1", "", 400, "invalid_parameter"),
    ("GET", "/v1/rooms/{namespace}/{room_id}", "/v1/rooms/native/lobby?prefix=x", "", 400, "invalid_parameter"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"user_id":"nobody"}"#, 200, ""),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"user_id":"nobody","code":4999,"reason":"x"}"#, 200, ""),
    ("POST", "/v1/disconnect", "/v1/disconnect", "{", 400, "invalid_json"),
    ("POST", "/v1/disconnect", "/v1/disconnect", "[]", 400, "invalid_message"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"user_id":7}"#, 400, "invalid_message"),
    ("POST", "/v1/disconnect", "/v1/disconnect", "{}", 400, "invalid_target"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"user_id":"a","room_id":"b"}"#, 400, "invalid_target"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"user_id":"a","namespace":"raw"}"#, 400, "invalid_target"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"room_id":"a","namespace":"new"}"#, 400, "invalid_target"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"user_id":"a","code":1006}"#, 400, "invalid_code"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"user_id":"a","code":5000}"#, 400, "invalid_code"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"user_id":"a","code":70000}"#, 400, "invalid_message"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"room_id":"nobody"}"#, 404, "unknown_room"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"connection":"0-0-77"}"#, 404, "unknown_connection"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"connection":"99-0-0"}"#, 404, "unknown_connection"),
    ("POST", "/v1/disconnect", "/v1/disconnect", r#"{"connection":"me"}"#, 404, "unknown_connection"),
    ("GET", "/v1/top", "/v1/top", "", 200, ""),
    ("GET", "/v1/top", "/v1/top?n=100", "", 200, ""),
    ("GET", "/v1/top", "/v1/top?n=101", "", 400, "invalid_parameter"),
    ("GET", "/v1/top", "/v1/top?m=1", "", 400, "invalid_parameter"),
    ("GET", "/v1/log-level", "/v1/log-level", "", 200, ""),
    ("PUT", "/v1/log-level", "/v1/log-level", r#"{"level":"info"}"#, 200, ""),
    ("PUT", "/v1/log-level", "/v1/log-level", r#"{"level":"loud"}"#, 400, "invalid_message"),
    ("PUT", "/v1/log-level", "/v1/log-level", "level", 400, "invalid_json"),
    ("POST", "/v1/reload", "/v1/reload", "", 200, ""),
    ("GET", "/v1/openapi.json", "/v1/openapi.json", "", 200, ""),
    ("GET", "/debug/profile", "/debug/profile?seconds=1", "", 200, ""),
    ("GET", "/debug/profile", "/debug/profile?seconds=61", "", 400, "invalid_parameter"),
    ("GET", "/debug/profile", "/debug/profile?seconds=0", "", 400, "invalid_parameter"),
    ("GET", "/debug/profile", "/debug/profile?frequency=1000", "", 400, "invalid_parameter"),
    ("GET", "/debug/profile", "/debug/profile?format=text", "", 400, "invalid_parameter"),
];

/// The schema of an answer, with what it refers to; `None`: the answer is not JSON.
fn schema(description: &Value, method: &str, path: &str, status: u16) -> Option<Value> {
    let responses = &description["paths"][path][method.to_lowercase()]["responses"];
    let mut response = &responses[status.to_string()];
    if let Some(name) = response["$ref"].as_str() {
        response = description.pointer(name.trim_start_matches('#')).expect("it is there");
    }
    assert!(response.is_object(), "{method} {path} may not be answered {status}");
    let content = response["content"].as_object().expect("content");
    let schema = &content.get("application/json")?["schema"];
    let mut schema = schema.as_object().expect("a schema").clone();
    schema.insert("components".into(), description["components"].clone());
    Some(Value::Object(schema))
}

#[test]
fn every_answer_is_as_described() {
    let server = Server::start(&["--shards", "2"]);
    let mut operator = Operator::connect(&server);
    let description = operator.get("/v1/openapi.json");
    assert_eq!(description["openapi"], "3.1.0");
    let _raw: Vec<Client> =
        (0..4).map(|_| Client::connect(server.address(), "/raw/a%2Fb%20%C3%A9")).collect();
    let mut native = Client::join(server.address(), "lobby", "alice");
    native.expect_silence();

    let mut described = BTreeSet::new();
    for (path, item) in description["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("methods").keys() {
            described.insert((method.to_uppercase(), path.clone()));
        }
    }
    let mut asked = BTreeSet::new();
    for &(method, path, target, body, status, error) in CASES {
        row(&format!("{method} {target} {body}"), || {
            let response = operator.ask(method, target, body);
            let text = String::from_utf8_lossy(&response.body);
            assert_eq!(response.status, status, "{text}");
            let Some(schema) = schema(&description, method, path, status) else {
                let content_type = response.field("content-type").expect("a type");
                let responses = &description["paths"][path][method.to_lowercase()]["responses"];
                assert!(responses["200"]["content"][content_type].is_object(), "{content_type}");
                return;
            };
            let answer = response.json();
            let validator = jsonschema::validator_for(&schema).expect("a schema");
            let errors: Vec<_> = validator.iter_errors(&answer).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{answer}: {errors:?}");
            if status != 200 {
                assert_eq!(error_code(&answer), error);
            }
        });
        asked.insert((method.to_owned(), path.to_owned()));
    }
    assert_eq!(described, asked, "what is described is asked for, and the other way round");

    // What goes for all of them.
    for (method, path) in &described {
        let target = path.replace("{namespace}", "native").replace("{room_id}", "lobby");
        let (status, answer) = operator.json("DELETE", &target, "");
        assert_eq!((status, error_code(&answer)), (405, "method_not_allowed"), "{path}");
        let responses = &description["paths"][path][method.to_lowercase()]["responses"];
        assert!(responses["405"].is_object(), "{path}");
    }
    assert_eq!(operator.json("GET", "/v2", "").0, 404);
    let words = "x".repeat(124);
    let (status, answer) = operator.disconnect(&json!({"user_id": "a", "reason": words}));
    assert_eq!((status, error_code(&answer)), (400, "invalid_reason"));
    operator
        .wire
        .send(b"POST /v1/disconnect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}");
    assert_eq!(operator.wire.response().status, 415);
    (1..=2).for_each(|offset| assert_eq!(native.receive_reply().offset, Some(offset)));
    native.expect_silence();
}

#[test]
fn a_room_is_listed_once_however_many_there_are_and_others_come_and_go() {
    const CONNECTIONS: usize = 24;
    const EACH: usize = 100;
    let server = Server::start(&["--shards", "3", "--publish-queue-len-max", "16"]);
    let mut members: Vec<Client> =
        (0..CONNECTIONS).map(|_| Client::connect(server.address(), "/ws")).collect();
    let name = |connection: usize, room: usize| format!("stays-{connection:02}-{room:02}");
    for (connection, member) in members.iter_mut().enumerate() {
        for room in 0..EACH {
            let join = json!({"type": "join", "room_id": name(connection, room)});
            member.queue(Message::text(join.to_string()));
        }
        member.flush();
    }
    for member in &mut members {
        (0..EACH).for_each(|_| assert_eq!(member.receive_reply().kind, "joined"));
    }
    let expected: BTreeSet<String> = (0..CONNECTIONS)
        .flat_map(|connection| (0..EACH).map(move |room| name(connection, room)))
        .collect();

    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let rounds = scope.spawn(|| {
            let mut client = Client::connect(server.address(), "/ws");
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                for kind in ["join", "leave"] {
                    for room in 0..50 {
                        let message =
                            json!({"type": kind, "room_id": format!("goes-{}", round * 7 + room)});
                        client.queue(Message::text(message.to_string()));
                    }
                    client.flush();
                    (0..50).for_each(|_| drop(client.receive_reply()));
                }
                round += 1;
            }
            round
        });
        let mut operator = Operator::connect(&server);
        let (mut passes, mut came) = (0, false);
        // Until somebody has been seen to come, too.
        let deadline = Instant::now() + support::PATIENCE;
        while passes < 3 || !came {
            assert!(Instant::now() < deadline, "nobody comes");
            for limit in [7 + passes, 100, 1000] {
                let (rooms, pages) =
                    operator.pages("/v1/rooms", &format!("limit={limit}"), "rooms");
                assert!(pages >= expected.len() / limit, "{pages} pages of {limit}");
                let mut seen = BTreeSet::new();
                for room in &rooms {
                    let room_id = room["room_id"].as_str().expect("a name").to_owned();
                    came |= room_id.starts_with("goes-");
                    if room_id.starts_with("stays-") {
                        assert_eq!(room["members"], 1, "{room}");
                        assert!(seen.insert(room_id), "twice: {room}");
                    }
                }
                assert!(seen == expected, "{} of {} are listed", seen.len(), expected.len());
            }
            passes += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(rounds.join().expect("the other thread") > 0);
    });
    let mut operator = Operator::connect(&server);
    let (rooms, _) = operator.pages("/v1/rooms", "limit=9&prefix=stays-07-", "rooms");
    assert_eq!(rooms.len(), EACH);
}

#[test]
fn the_members_of_a_room_are_listed_over_all_shards() {
    let server = Server::start(&["--shards", "3"]);
    let address = server.address();
    let mut native: Vec<Client> =
        (0..40).map(|n| Client::join(address, "lobby", &format!("user-{n}"))).collect();
    let _raw: Vec<Client> = (0..30).map(|_| Client::connect(address, "/raw/lobby")).collect();
    let mut anonymous = Client::connect(address, "/ws");
    anonymous.ask(r#"{"type":"join","room_id":"lobby"}"#);
    native[0].send_text(r#"{"type":"broadcast","room_id":"lobby","content":1}"#);
    native.iter_mut().for_each(|member| assert_eq!(member.receive_reply().offset, Some(1)));

    let mut operator = Operator::connect(&server);
    let (mut rooms, _) = operator.pages("/v1/rooms", "limit=1", "rooms");
    rooms.sort_by_key(|room| room["namespace"].to_string());
    let room = |space, members, offset| json!({"namespace": space, "room_id": "lobby", "members": members, "offset": offset});
    assert_eq!(rooms, [room("native", 41, 1), room("raw", 30, 0)]);

    for limit in [1, 7, 40, 41, 1000] {
        let path = "/v1/rooms/native/lobby";
        let (members, _) = operator.pages(path, &format!("limit={limit}"), "members");
        assert_eq!(members.len(), 41, "limit {limit}");
        let mut users: Vec<_> = members.iter().map(|m| m["user_id"].as_str()).collect();
        users.sort_unstable();
        users.dedup();
        assert_eq!(users.len(), 41, "every one has a name of its own, and one has none");
        let shards: BTreeSet<_> = members
            .iter()
            .map(|m| m["connection"].as_str().expect("a name").split('-').next())
            .collect();
        assert!(shards.len() > 1, "the kernel puts 41 connections on one shard: {shards:?}");
        for member in &members {
            assert_eq!(member["address"], "127.0.0.1");
            assert_eq!(member["behind_bytes"], 0);
        }
    }
    assert_eq!(operator.get("/v1/rooms/raw/lobby")["room"], room("raw", 30, 0));
}

#[test]
fn connections_users_and_rooms_are_disconnected() {
    let server = Server::start(&["--shards", "3"]);
    let address = server.address();
    let mut operator = Operator::connect(&server);

    // One connection.
    let mut one = Client::join(address, "one", "alice");
    let mut other = Client::join(address, "other", "alice");
    let name = operator.members("native", "one").remove(0);
    let body = json!({"connection": name, "code": 4000, "reason": "so wird's gemacht \u{1f44b}"});
    assert_eq!(operator.disconnect(&body), (200, json!({"disconnected": 1})));
    let reason = body["reason"].as_str().expect("a reason").to_owned();
    assert_eq!(one.expect_close_frame(), Some((4000, reason)));
    drop(one);
    // Its name is nobody's any more, also when somebody has its place.
    let mut places = Vec::new();
    let (slot, _) = name.rsplit_once('-').expect("a name");
    wait_until("somebody has its place", || {
        places.push(Client::join(address, "places", "bob"));
        let now = operator.members("native", "places");
        assert!(!now.contains(&name), "{name}: {now:?}");
        now.iter().any(|it| it.starts_with(&format!("{slot}-")))
    });
    assert_eq!(operator.json("GET", "/v1/rooms/native/one", "").0, 404);
    let (status, answer) = operator.disconnect(&body);
    assert_eq!((status, error_code(&answer)), (404, "unknown_connection"));
    places.iter_mut().for_each(Client::expect_silence);

    // A user, wherever.
    let body = json!({"user_id": "bob", "code": 1000});
    assert_eq!(operator.disconnect(&body), (200, json!({"disconnected": places.len()})));
    for client in &mut places {
        assert_eq!(client.expect_close(), Some(1000));
    }
    assert_eq!(operator.disconnect(&body), (200, json!({"disconnected": 0})));
    other.expect_silence();

    // A room, and not the one of the other name space.
    let mut raw: Vec<Client> = (0..20).map(|_| Client::connect(address, "/raw/other")).collect();
    let body = json!({"room_id": "other", "namespace": "raw"});
    assert_eq!(operator.disconnect(&body), (200, json!({"disconnected": 20})));
    for client in &mut raw {
        assert_eq!(client.expect_close(), Some(1008), "unless another code is given");
    }
    other.expect_silence();
    assert_eq!(
        operator.disconnect(&json!({"room_id": "other"})),
        (200, json!({"disconnected": 1}))
    );
    assert_eq!(other.expect_close(), Some(1008));
    wait_until("both rooms have ended", || operator.get("/v1/rooms")["rooms"] == json!([]));
}

#[test]
fn the_top_are_at_the_top() {
    let server = Server::start(&["--shards", "3", "--send-timeout", "10m"]);
    let address = server.address();
    let mut operator = Operator::connect(&server);
    let nobody = json!({"slow_consumers": [], "rooms": [], "publishers": []});
    assert_eq!(operator.get("/v1/top"), nobody);

    // More members over all shards than any other room has on one of them.
    let _big: Vec<Client> = (0..30).map(|_| Client::connect(address, "/raw/big")).collect();
    let _small: Vec<Client> = (0..4).map(|_| Client::connect(address, "/raw/small")).collect();
    let mut busy: Vec<Client> =
        (0..5).map(|n| Client::join(address, "busy", &format!("busy-{n}"))).collect();
    for (n, client) in busy.iter_mut().enumerate() {
        (0..10 * n).for_each(|_| client.expect_silence());
    }
    // It reads nothing.
    let _slow = Wire::open(address, "/raw/flood");
    let mut fast = Client::connect(address, "/raw/flood");
    let payload = vec![7; 64 << 10];
    wait_until("one is behind", || {
        fast.send_binary(&payload);
        assert_eq!(fast.receive().len(), payload.len());
        operator.get("/v1/top")["slow_consumers"] != json!([])
    });
    let top = operator.get("/v1/top?n=3");
    let rooms: Vec<_> = top["rooms"]
        .as_array()
        .expect("rooms")
        .iter()
        .map(|room| room["room_id"].as_str())
        .collect();
    assert_eq!(rooms, [Some("big"), Some("busy"), Some("small")], "{top}");
    assert_eq!(top["rooms"][0]["members"], 30);
    let slow = top["slow_consumers"].as_array().expect("slow ones");
    assert_eq!(slow.len(), 1, "{top}");
    assert_eq!((&slow[0]["room_id"], &slow[0]["namespace"]), (&json!("flood"), &json!("raw")));
    assert!(slow[0]["behind_bytes"].as_u64() >= Some(1), "{top}");
    let publishers: BTreeMap<_, _> = top["publishers"]
        .as_array()
        .expect("publishers")
        .iter()
        .map(|it| (it["user_id"].as_str().unwrap_or("nobody"), it["messages"].as_u64()))
        .collect();
    // The join is a message, too.
    assert_eq!(publishers.get("busy-4"), Some(&Some(41)), "{top}");
    let members = operator.get("/v1/rooms/raw/flood")["members"].clone();
    let behind = members.as_array().expect("members").iter().filter(|m| m["behind_bytes"] != 0);
    let behind: Vec<_> = behind.map(|member| &member["connection"]).collect();
    assert_eq!(behind, [&slow[0]["connection"]]);
}

#[test]
fn the_log_level_changes_at_run_time() {
    let server = Server::start(&["--shards", "2"]);
    let mut operator = Operator::connect(&server);
    assert_eq!(operator.get("/v1/log-level"), json!({"level": "info"}));
    let ends = |server: &Server| server.log().matches("connection ends").count();
    Client::join(server.address(), "lobby", "alice").close();
    assert_eq!(ends(&server), 0);
    let debug = r#"{"level":"debug"}"#;
    assert_eq!(operator.json("PUT", "/v1/log-level", debug), (200, json!({"level": "debug"})));
    server.wait_log("log_level info -> debug");
    Client::join(server.address(), "lobby", "alice").close();
    wait_until("the end is logged", || ends(&server) == 1);
    operator.json("PUT", "/v1/log-level", r#"{"level":"error"}"#);
    assert_eq!(operator.get("/v1/log-level"), json!({"level": "error"}));
    Client::join(server.address(), "lobby", "alice").close();
    server.signal(libc::SIGHUP);
    wait_until("the configuration counts again", || {
        operator.get("/v1/log-level") == json!({"level": "info"})
    });
    assert_eq!(ends(&server), 1);
}

#[test]
fn with_keys_only_who_has_one_may_ask() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = key_file(directory.path(), &format!("{KEY}\n"));
    let server = Server::start(&["--admin-key-file", &file]);
    let paths = ["/v1/rooms", "/v1/top", "/v1/openapi.json", "/debug/profile", "/nothing"];

    let mut nobody = Operator::connect(&server);
    assert_eq!(nobody.get("/health"), json!({"status": "ok"}));
    for path in paths {
        let response = nobody.ask("GET", path, "");
        assert_eq!(
            (response.status, error_code(&response.json())),
            (401, "unauthorized"),
            "{path}"
        );
        assert_eq!(response.field("www-authenticate"), Some("Bearer realm=\"fanwire\""));
    }
    let big = " ".repeat(1 << 20);
    let response = nobody.ask("POST", "/v1/publish", &big);
    assert_eq!(response.status, 401, "however long the body is");

    let mut wrong = Operator::with_key(&server, "k3y-0f_the.operator~+/=");
    let response = wrong.ask("POST", "/v1/publish", r#"{"room_id":"lobby","content":1}"#);
    assert_eq!((response.status, error_code(&response.json())), (401, "invalid_token"));
    let challenge = response.field("www-authenticate");
    assert_eq!(challenge, Some("Bearer realm=\"fanwire\", error=\"invalid_token\""));

    let mut operator = Operator::with_key(&server, KEY);
    assert_eq!(operator.get("/v1/rooms"), json!({"rooms": [], "next": null}));
    let item = r#"{"room_id":"lobby","content":1}"#;
    assert_eq!(operator.json("POST", "/v1/publish", item).0, 200);

    // Rotation: both for a while, then the new one.
    let new = "another-key-of-the-operator";
    key_file(directory.path(), &format!("{KEY}\n{new}\n"));
    server.signal(libc::SIGHUP);
    let mut next = Operator::with_key(&server, new);
    wait_until("the new key opens", || next.ask("GET", "/v1/rooms", "").status == 200);
    operator.get("/v1/rooms");
    key_file(directory.path(), new);
    server.signal(libc::SIGHUP);
    wait_until("the old one does not", || operator.ask("GET", "/v1/rooms", "").status == 401);
    next.get("/v1/rooms");
    // What is wrong changes nothing.
    key_file(directory.path(), "short");
    server.signal(libc::SIGHUP);
    server.wait_log("line 1 of");
    next.get("/v1/rooms");
    assert!(!server.log().contains(KEY) && !server.log().contains(new), "a key is in the log");
}

#[test]
fn without_keys_the_server_starts_on_loopback_only() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let listen = format!("127.0.0.1:{}", free_port());
    let open = format!("0.0.0.0:{}", free_port());
    let refused = |flags: &[&str], words: &[&str]| {
        let finished = run(fanwire(&[&["serve", "--listen", &listen][..], flags].concat()));
        assert_eq!(finished.code, Some(1), "{finished:?}");
        words.iter().for_each(|it| assert!(finished.stderr.contains(it), "{it}: {finished:?}"));
    };
    refused(&["--admin", &open], &["not a loopback address", "admin_key_file", "--insecure"]);
    let nowhere = directory.path().join("nowhere");
    let nowhere = nowhere.to_str().expect("ASCII");
    refused(&["--admin", &open, "--admin-key-file", nowhere], &["cannot read", "nowhere"]);
    let empty = key_file(directory.path(), "\n");
    refused(&["--admin", &open, "--admin-key-file", &empty], &["holds no key", "openssl rand"]);

    let at = |flags: &[&str]| {
        let (listen, admin) = (free_port(), free_port());
        let address = format!("127.0.0.1:{listen}");
        let all = format!("0.0.0.0:{admin}");
        let arguments = [&["serve", "--listen", &address, "--admin", &all][..], flags].concat();
        let local = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        Server::spawn(fanwire(&arguments), local(listen), Some(local(admin)))
    };
    let server = at(&["--insecure"]);
    server.wait_log("needs no key and is not on a loopback address");
    Operator::connect(&server).get("/v1/rooms");
    let file = key_file(directory.path(), KEY);
    let server = at(&["--admin-key-file", &file]);
    assert!(!server.log().contains("needs no key"), "{}", server.log());
    Operator::with_key(&server, KEY).get("/v1/rooms");
    assert_eq!(Operator::connect(&server).ask("GET", "/v1/rooms", "").status, 401);
}

#[test]
fn a_web_site_gets_nowhere() {
    let server = Server::start(&["--shards", "1"]);
    let publish = r#"{"room_id":"lobby","content":1}"#;
    let own = format!("http://{}", server.admin());
    let host = server.admin().to_string();
    rows(
        vec![
            ("localhost", "", 200),
            ("evil.example", "", 421),
            ("localhost.evil.example:8081", "", 421),
            (&host, "Origin: https://evil.example\r\n", 403),
            (&host, "Origin: null\r\n", 403),
            (&host, &format!("Origin: {own}\r\n"), 200),
            (&host, "Sec-Fetch-Site: cross-site\r\n", 403),
            (&host, "Sec-Fetch-Site: same-origin\r\n", 200),
        ],
        |(host, fields, _)| format!("{host} {fields}"),
        |(host, fields, status)| {
            let fields = format!("Host: {host}\r\n{fields}");
            let mut browser = Operator { wire: Wire::connect(server.admin()), fields };
            let (found, answer) = browser.json("POST", "/v1/publish", publish);
            assert_eq!(found, *status, "{answer}");
            // Reading is for the same site only by the browser's own rule.
            let status = if *status == 421 { 421 } else { 200 };
            assert_eq!(browser.json("GET", "/v1/rooms", "").0, status);
            assert_eq!(browser.json("GET", "/health", "").0, 200);
        },
    );
}

/// The parts of `perftools.profiles.Profile` that are looked at, declared once more.
#[derive(Clone, PartialEq, prost::Message)]
struct Profile {
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Pair>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Pair {
    #[prost(int64, tag = "1")]
    first: i64,
    #[prost(int64, tag = "2")]
    second: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Pair>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
}

impl Profile {
    fn string(&self, number: i64) -> &str {
        &self.string_table[usize::try_from(number).expect("a number of a string")]
    }

    /// The names of the functions of a sample.
    fn names(&self, sample: &Sample) -> Vec<&str> {
        let location =
            |id: &u64| self.location.iter().find(|it| it.id == *id).expect("it is there");
        let function = |id: i64| self.function.iter().find(|it| it.id == id as u64).expect("it is");
        let lines = sample.location_id.iter().flat_map(|id| &location(id).line);
        lines.map(|line| self.string(function(line.first).name)).collect()
    }
}

/// Stops a load when it goes.
struct Stops<'s>(&'s AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_profile_says_what_the_shards_do() {
    let server = Server::start(&["--shards", "2"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when an assertion fails: the scope waits for its threads.
        let _load = Stops(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = Client::join(server.address(), "lobby", "alice");
                while !stop.load(Ordering::Relaxed) {
                    client.expect_pongs(100);
                }
            });
        }
        let mut operator = Operator::connect(&server);
        // One at a time, and everything else goes on.
        let mut other = Operator::connect(&server);
        operator.profile_beside(&mut other, "/debug/profile?seconds=3&frequency=499");
        other.get("/v1/top");
        let response = operator.wire.response();
        assert_eq!(response.status, 200, "{:?}", String::from_utf8_lossy(&response.body));
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&response.body[..]).read_to_end(&mut bytes).expect("gzip");
        let profile = Profile::decode(&bytes[..]).expect("protobuf");
        assert_eq!(profile.string_table[0], "");
        assert!(profile.duration_nanos >= 3_000_000_000, "{}", profile.duration_nanos);
        let mut of_thread: BTreeMap<&str, i64> = BTreeMap::new();
        let mut in_shards = 0;
        for sample in &profile.sample {
            assert_eq!((sample.value.len(), sample.label.len()), (2, 1), "{sample:?}");
            assert_eq!(profile.string(sample.label[0].first), "thread");
            let thread = profile.string(sample.label[0].second);
            *of_thread.entry(thread).or_default() += sample.value[0];
            let names = profile.names(sample);
            let is_ours = names.iter().any(|name| name.contains("fanwire::shard::"));
            if thread.starts_with("fanwire-shard-") && is_ours {
                in_shards += sample.value[0];
            }
        }
        let all: i64 = of_thread.values().sum();
        assert!(all > 50 && 2 * in_shards > all, "{in_shards} of {all}: {of_thread:?}");

        let svg = operator.ask("GET", "/debug/profile?seconds=1&format=svg", "");
        let text = String::from_utf8(svg.body).expect("SVG is text");
        assert_eq!(svg.status, 200, "{text}");
        assert!(text.contains("<svg") && text.contains("fanwire-shard-"), "{text:.2000}");
        assert!(text.contains("fanwire::shard::"), "{text:.2000}");
    });
    // Nobody waits for it: it ends, and the next one may begin.
    drop({
        let mut operator = Operator::connect(&server);
        let mut other = Operator::connect(&server);
        operator.profile_beside(&mut other, "/debug/profile?seconds=60");
        operator
    });
    let mut operator = Operator::connect(&server);
    wait_until("the abandoned one has ended", || {
        operator.ask("GET", "/debug/profile?seconds=1", "").status == 200
    });
}
