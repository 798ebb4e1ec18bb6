//! `POST /v1/publish` and `POST /v1/publish/batch`: what backends publish over HTTP, and what the
//! members of the rooms get.

pub mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde_json::{Value, json};
use support::{Client, Server, Wire, error_code, rows, wait_until};
use tungstenite::Message;

const ONE: &str = "/v1/publish";
const BATCH: &str = "/v1/publish/batch";

/// A kept-alive connection of a backend.
struct Backend(Wire);

impl Backend {
    fn connect(server: &Server) -> Backend {
        Backend(Wire::connect(server.admin()))
    }

    /// Sends a request and gives its status and the JSON of its answer.
    fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        self.send(method, path, "Content-Type: application/json\r\n", body);
        let response = self.0.response();
        assert_eq!(response.field("content-type"), Some("application/json"), "{response:?}");
        (response.status, response.json())
    }

    fn send(&mut self, method: &str, path: &str, fields: &str, body: &[u8]) {
        let len = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {len}\r\n\r\n"
        );
        self.0.send(&[head.as_bytes(), body].concat());
    }

    fn post(&mut self, path: &str, body: &Value) -> (u16, Value) {
        self.ask("POST", path, body.to_string().as_bytes())
    }

    /// Publishes one; gives its offset.
    fn publish(&mut self, item: Value) -> Option<u64> {
        let (status, answer) = self.post(ONE, &item);
        assert_eq!((status, &answer["room_id"]), (200, &item["room_id"]), "{answer}");
        assert_eq!(answer.as_object().expect("an object").len(), 2, "{answer}");
        answer["offset"].as_u64()
    }

    /// Publishes a batch that is answered 200; gives the outcomes.
    fn publish_batch(&mut self, items: &[Value]) -> Vec<Outcome> {
        let (status, answer) = self.post(BATCH, &json!({ "items": items }));
        assert_eq!(status, 200, "{answer}");
        let batch: Batch = serde_json::from_value(answer).expect("the answer to a batch");
        assert_eq!(batch.items.len(), items.len());
        batch.items
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    items: Vec<Outcome>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Outcome {
    Published { offset: Option<u64> },
    Failed { error: Failure },
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Failure {
    code: String,
    message: String,
}

impl Outcome {
    fn code(&self) -> Option<&str> {
        match self {
            Outcome::Published { .. } => None,
            Outcome::Failed { error } => Some(&error.code),
        }
    }
}

fn published(offset: u64) -> Outcome {
    Outcome::Published { offset: Some(offset) }
}

#[test]
fn one_publish_reaches_every_member_of_a_native_room_byte_for_byte() {
    let server = Server::start(&["--shards", "3"]);
    let mut members: Vec<Client> =
        (0..6).map(|_| Client::join(server.address(), "lobby", "alice")).collect();
    let mut backend = Backend::connect(&server);

    let content = r#"{ "b":[1.50, 1e400,"\u00e9\/é"],  "a":null}"#;
    let body = format!(r#"{{"room_id":"l\u006fbby", "content": {content} }}"#);
    let (status, answer) = backend.ask("POST", ONE, body.as_bytes());
    assert_eq!((status, answer), (200, json!({"room_id": "lobby", "offset": 1})));
    let expected = format!(
        r#"{{"type":"broadcast","room_id":"lobby","sender":"anonymous","offset":1,"content":{content}}}"#
    );
    for member in &mut members {
        assert_eq!(member.receive_text(), expected);
    }

    // Publishes by clients and by backends have one order.
    members[0].send_text(r#"{"type":"broadcast","room_id":"lobby","content":2}"#);
    members.iter_mut().for_each(|member| assert_eq!(member.receive_reply().offset, Some(2)));
    let item = json!({"room_id": "lobby", "content": null, "user_id": "the \"backend\""});
    assert_eq!(backend.publish(item), Some(3));
    for member in &mut members {
        let reply = member.receive_reply();
        assert_eq!((reply.offset, reply.content.as_deref()), (Some(3), Some("null")));
        assert_eq!(reply.sender.as_deref(), Some("the \"backend\""));
    }
    assert_eq!(members[0].join_room("lobby", "alice"), 3);
}

#[test]
fn raw_rooms_get_text_and_binary_messages_verbatim() {
    let server = Server::start(&["--shards", "2"]);
    let mut raw: Vec<Client> =
        (0..3).map(|_| Client::connect(server.address(), "/raw/a%20room")).collect();
    let mut native = Client::join(server.address(), "a room", "bob");
    let mut backend = Backend::connect(&server);

    assert_eq!(backend.publish(json!({"room_id": "a room", "text": "h\"é\n"})), Some(1));
    assert_eq!(backend.publish(json!({"room_id": "a room", "binary": "AP8Q"})), Some(2));
    raw[0].send_binary(b"three");
    for member in &mut raw {
        assert_eq!(member.receive(), Message::text("h\"é\n"));
        assert_eq!(member.receive(), Message::binary(vec![0, 255, 16]));
        assert_eq!(member.receive(), Message::binary(&b"three"[..]));
    }
    assert_eq!(backend.publish(json!({"room_id": "a room", "text": ""})), Some(4));
    raw.iter_mut().for_each(|member| assert_eq!(member.receive(), Message::text("")));
    // The native room of the same name is another one.
    native.expect_silence();
    assert_eq!(backend.publish(json!({"room_id": "a room", "content": 1})), Some(1));
    assert_eq!(native.receive_reply().offset, Some(1));
}

#[test]
fn a_room_that_nobody_is_in_has_no_offset() {
    let server = Server::start(&[]);
    let mut backend = Backend::connect(&server);
    let item = json!({"room_id": "empty", "content": 1});
    assert_eq!(backend.publish(item.clone()), None);
    let member = Client::join(server.address(), "empty", "alice");
    assert_eq!(backend.publish(item.clone()), Some(1));
    member.close();
    // The shard learns it a little later than the member.
    wait_until("the room has ended", || backend.publish(item.clone()).is_none());
    let mut member = Client::connect(server.address(), "/ws");
    assert_eq!(member.join_room("empty", "alice"), 0, "another room of the same name");
}

#[test]
fn a_batch_has_an_outcome_for_each_item_and_keeps_the_order_in_each_room() {
    const ROOMS: u64 = 7;
    const EACH: u64 = 1000 / ROOMS;
    let server = Server::start(&["--shards", "4"]);
    let room = |number: u64| format!("room-{number}");
    let mut member = Client::connect(server.address(), "/ws");
    (0..ROOMS).for_each(|number| assert_eq!(member.join_room(&room(number), "alice"), 0));
    let mut backend = Backend::connect(&server);

    for round in 0..3 {
        // A member publishes in between, which counts, too.
        member.send_text(&format!(
            r#"{{"type":"broadcast","room_id":"room-0","content":"between","id":{round}}}"#
        ));
        while member.receive_reply().kind != "ack" {}
        let items: Vec<Value> = (0..EACH * ROOMS)
            .map(|number| json!({"room_id": room(number % ROOMS), "content": number}))
            .collect();
        let outcomes = backend.publish_batch(&items);
        for (number, outcome) in (0..).zip(&outcomes) {
            let between = if number % ROOMS == 0 { round + 1 } else { 0 };
            let offset = round * EACH + between + number / ROOMS + 1;
            assert_eq!(*outcome, published(offset), "item {number} of round {round}");
        }
        let mut next = vec![0; ROOMS as usize];
        while next.iter().sum::<u64>() < EACH * ROOMS {
            let reply = member.receive_reply();
            if reply.content.as_deref() == Some("\"between\"") {
                continue;
            }
            let content: u64 = reply.content.expect("content").parse().expect("a number");
            let room = (content % ROOMS) as usize;
            assert_eq!(reply.room_id, Some(format!("room-{room}")));
            assert_eq!(content / ROOMS, next[room], "the order in room {room}");
            next[room] += 1;
        }
        assert_eq!(next, [EACH; ROOMS as usize]);
    }
    member.expect_silence();
}

#[test]
fn a_bad_item_harms_no_other() {
    let server = Server::start(&["--shards", "2", "--ws-message-bytes-max", "125B"]);
    let mut native = Client::join(server.address(), "a", "alice");
    let mut raw = Client::connect(server.address(), "/raw/a");
    let mut backend = Backend::connect(&server);
    let outcomes = backend.publish_batch(&[
        json!({"room_id": "a", "content": 1}),
        json!(7),
        json!({"room_id": "a", "text": "two"}),
        json!({"room_id": "", "content": 1}),
        json!({"room_id": "a", "content": 1, "text": "x"}),
        json!({"room_id": "a"}),
        json!({"room_id": "a", "content": "x".repeat(123)}),
        json!({"room_id": "a", "content": "x".repeat(124)}),
        json!({"room_id": "a", "binary": "?"}),
        json!({"room_id": "b", "content": 1}),
        json!({"room_id": "a", "content": 1, "user_id": "\n"}),
        json!({"room_id": "a", "binary": "/w=="}),
    ]);
    let codes: Vec<_> = outcomes.iter().map(Outcome::code).collect();
    let expected = [
        None,
        Some("invalid_message"),
        None,
        Some("invalid_room_id"),
        Some("invalid_message"),
        Some("missing_field"),
        None,
        Some("message_too_long"),
        Some("invalid_message"),
        None,
        Some("invalid_user_id"),
        None,
    ];
    assert_eq!(codes, expected);
    assert_eq!(outcomes[9], Outcome::Published { offset: None });
    assert_eq!((&outcomes[0], &outcomes[6]), (&published(1), &published(2)));
    assert_eq!((&outcomes[2], &outcomes[11]), (&published(1), &published(2)));
    assert_eq!(native.receive_reply().content.as_deref(), Some("1"));
    assert_eq!(native.receive_reply().content.map(|content| content.len()), Some(125));
    native.expect_silence();
    assert_eq!(raw.receive(), Message::text("two"));
    assert_eq!(raw.receive(), Message::binary(vec![255]));

    assert_eq!(backend.publish_batch(&[]), []);
    let codes: Vec<_> = backend.publish_batch(&[json!({}), json!([])]);
    assert_eq!(codes.iter().filter_map(Outcome::code).count(), 2, "200 although all are bad");
}

#[test]
fn what_cannot_be_done_is_answered_in_json() {
    let server = Server::start(&["--shards", "1", "--publish-bytes-max", "64KiB"]);
    let good = r#"{"room_id":"a","content":1}"#;
    let items = |count: usize| format!(r#"{{"items":[{}]}}"#, vec!["{}"; count].join(","));
    let table = vec![
        ("POST", ONE, good.to_owned(), 200, ""),
        ("POST", ONE, String::new(), 400, "invalid_json"),
        ("POST", ONE, good[1..].to_owned(), 400, "invalid_json"),
        ("POST", ONE, format!("[{good}]"), 400, "invalid_message"),
        ("POST", ONE, r#"{"room_id":"a"}"#.to_owned(), 400, "missing_field"),
        ("POST", ONE, r#"{"room_id":"\t","text":""}"#.to_owned(), 400, "invalid_room_id"),
        ("POST", BATCH, items(1000), 200, ""),
        ("POST", BATCH, items(1001), 413, "too_many_items"),
        ("POST", BATCH, format!("[{good}]"), 400, "invalid_message"),
        ("POST", BATCH, format!(r#"{{"items":[{good},]}}"#), 400, "invalid_json"),
        ("POST", BATCH, "{}".to_owned(), 400, "missing_field"),
        ("GET", ONE, String::new(), 405, "method_not_allowed"),
        ("DELETE", BATCH, String::new(), 405, "method_not_allowed"),
        ("POST", "/v1/publish/one", good.to_owned(), 404, "not_found"),
    ];
    rows(
        table,
        |(method, path, body, ..)| format!("{method} {path} {body:.40}"),
        |(method, path, body, status, expected)| {
            let mut backend = Backend::connect(&server);
            // Twice: a refusal does not end the connection.
            for _ in 0..2 {
                let (found, answer) = backend.ask(method, path, body.as_bytes());
                assert_eq!(found, *status, "{answer}");
                if *status != 200 {
                    assert_eq!(error_code(&answer), *expected);
                }
            }
        },
    );
    let mut backend = Backend::connect(&server);
    let not_utf8 = [b"{\"room_id\":\"a\",\"text\":\"", &[0xff][..], b"\"}"].concat();
    let (status, answer) = backend.ask("POST", ONE, &not_utf8);
    assert_eq!((status, error_code(&answer)), (400, "invalid_json"));
}

#[test]
fn only_application_json_is_taken() {
    let server = Server::start(&["--shards", "1"]);
    let mut backend = Backend::connect(&server);
    let good = br#"{"room_id":"a","content":1}"#;
    for (fields, status) in [
        ("Content-Type: application/json\r\n", 200),
        ("Content-Type: Application/JSON; charset=utf-8\r\n", 200),
        ("", 415),
        ("Content-Type: text/plain\r\n", 415),
        ("Content-Type: application/x-www-form-urlencoded\r\n", 415),
        ("Content-Type: application/jsonx\r\n", 415),
    ] {
        backend.send("POST", ONE, fields, good);
        let response = backend.0.response();
        assert_eq!(response.status, status, "{fields:?}");
        assert!(status == 200 || error_code(&response.json()) == "unsupported_media_type");
    }
}

#[test]
fn a_body_is_taken_up_to_its_limit_and_refused_past_it() {
    const BYTES_MAX: usize = 64 * 1024;
    let server = Server::start(&["--shards", "1", "--publish-bytes-max", "64KiB"]);
    let body = |len: usize| {
        let mut body = br#"{"room_id":"a","content":1}"#.to_vec();
        body.resize(len, b' ');
        body
    };
    let mut backend = Backend::connect(&server);
    assert_eq!(backend.ask("POST", ONE, &body(BYTES_MAX)).0, 200);
    let (status, answer) = backend.ask("POST", ONE, &body(BYTES_MAX + 1));
    assert_eq!((status, error_code(&answer)), (413, "body_too_long"));
    // So long that it cannot wait in the sockets: the answer must not be lost for it.
    let (status, answer) = backend.ask("POST", ONE, &body(16 << 20));
    assert_eq!((status, error_code(&answer)), (413, "body_too_long"));
    assert_eq!(backend.ask("POST", ONE, &body(100)).0, 200, "the connection is good for more");

    // In chunks, where nobody says before how long it is.
    for (len, status) in [(BYTES_MAX, 200), (BYTES_MAX + 1, 413)] {
        let head = format!(
            "POST {ONE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        let mut request = head.into_bytes();
        for chunk in body(len).chunks(1000) {
            request.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            request.extend_from_slice(chunk);
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"0\r\n\r\n");
        backend.0.send(&request);
        assert_eq!(backend.0.response().status, status, "{len} bytes in chunks");
    }

    // Whoever asks first is told before it sends anything.
    let head = format!(
        "POST {ONE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        BYTES_MAX + 1
    );
    backend.0.send(head.as_bytes());
    assert_eq!(backend.0.response().status, 413);
}

#[test]
fn a_body_that_does_not_come_is_answered_408() {
    let server = Server::start(&["--shards", "1"]);
    let mut backend = Backend::connect(&server);
    let head = format!(
        "POST {ONE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: 100\r\n\r\n{{"
    );
    backend.0.send(head.as_bytes());
    let response = backend.0.response();
    assert_eq!((response.status, error_code(&response.json())), (408, "request_timeout"));
    backend.0.expect_eof();
}

#[test]
fn a_batch_waits_for_room_in_a_shards_queue() {
    let server = Server::start(&["--shards", "1", "--publish-queue-len-max", "16"]);
    let mut member = Client::join(server.address(), "a", "alice");
    let mut backend = Backend::connect(&server);
    let items: Vec<Value> =
        (0..1000).map(|number| json!({"room_id": "a", "content": number})).collect();
    for (number, outcome) in (0..).zip(backend.publish_batch(&items)) {
        assert_eq!(outcome, published(number + 1));
        assert_eq!(member.receive_reply().content, Some(number.to_string()));
    }
    member.expect_silence();
}

/// So many backends, each of which has published something to room `a` and not looked for an answer.
fn publish_each(server: &Server, backends: usize) -> Vec<Backend> {
    let publish = |_| {
        let mut backend = Backend::connect(server);
        let item = br#"{"room_id":"a","content":1}"#;
        backend.send("POST", ONE, "Content-Type: application/json\r\n", item);
        backend
    };
    (0..backends).map(publish).collect()
}

#[test]
fn a_shard_that_is_behind_is_answered_429() {
    const QUEUE: usize = 16;
    let server = Server::start(&["--shards", "1", "--publish-queue-len-max", "16"]);
    let mut member = Client::join(server.address(), "a", "alice");
    let stopped = server.stop_thread("fanwire-shard-0");
    let mut backends = publish_each(&server, QUEUE + 1);
    // One more than fit: whichever was the last.
    wait_for_a_refusal(&mut backends);
    // Nothing of a batch fits: it is refused as a whole.
    let batch = json!({"items": [{"room_id": "a", "content": 1}, 7, {"room_id": "a", "text": ""}]});
    let mut late = Backend::connect(&server);
    let (status, answer) = late.post(BATCH, &batch);
    assert_eq!(status, 429, "{answer}");
    let batch: Batch = serde_json::from_value(answer).expect("the answer to a batch");
    let codes: Vec<_> = batch.items.iter().filter_map(Outcome::code).collect();
    assert_eq!(codes, ["server_busy", "invalid_message", "server_busy"]);

    drop(stopped);
    let count = expect_published(backends, &mut member);
    assert!(count <= QUEUE as u64, "{count}");
    assert_eq!(late.publish(json!({"room_id": "a", "content": 1})), Some(count + 1));
}

/// Waits until one of them is answered, and takes it out: it must be refused for now.
fn wait_for_a_refusal(backends: &mut Vec<Backend>) {
    let mut refused = None;
    wait_until("one of them is refused", || {
        refused = backends.iter_mut().position(|backend| backend.0.has_input());
        refused.is_some()
    });
    let response = backends.swap_remove(refused.expect("waited for")).0.response();
    assert_eq!((response.status, response.field("retry-after")), (429, Some("1")));
    assert_eq!(error_code(&response.json()), "server_busy");
}

/// Takes the answers of publishes that had to wait: whatever was not refused was published, and
/// nothing else reaches the member. Gives how many were.
fn expect_published(backends: Vec<Backend>, member: &mut Client) -> u64 {
    let mut offsets = Vec::new();
    for mut backend in backends {
        let response = backend.0.response();
        assert!([200, 429].contains(&response.status), "{response:?}");
        if response.status == 200 {
            offsets.extend(response.json()["offset"].as_u64());
        }
    }
    offsets.sort_unstable();
    assert_eq!(offsets, (1..=offsets.len() as u64).collect::<Vec<_>>());
    for offset in &offsets {
        assert_eq!(member.receive_reply().offset, Some(*offset));
    }
    member.expect_silence();
    offsets.len() as u64
}

#[test]
fn single_publishes_that_wait_for_a_stuck_shard_do_not_keep_others_out() {
    /// Requests that are carried out at once. The queue of the shard has room for many more.
    const PLACES: usize = 64;
    let server = Server::start(&["--shards", "1"]);
    let mut member = Client::join(server.address(), "a", "alice");
    let stopped = server.stop_thread("fanwire-shard-0");
    let mut waiting = publish_each(&server, PLACES + 1);
    wait_for_a_refusal(&mut waiting);
    // Who comes now is answered, also when as many connections are kept as there may be.
    let mut kept = Vec::new();
    for _ in 0..10 {
        for path in ["/health", "/ready", "/metrics", "/v1/stats"] {
            let mut other = Backend::connect(&server);
            other.send("GET", path, "", b"");
            assert_eq!(other.0.response().status, 200, "{path}");
            kept.push(other);
        }
    }
    drop(stopped);
    assert!(expect_published(waiting, &mut member) > 0);
}

#[test]
fn health_is_answered_while_batches_run() {
    const BACKENDS: usize = 4;
    const BATCHES: u64 = 20;
    let server = Server::start(&["--shards", "2"]);
    let members: Vec<Client> = (0..BACKENDS)
        .map(|number| Client::join(server.address(), &format!("room-{number}"), "alice"))
        .collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let health = scope.spawn(|| {
            let mut asked = 0_u32;
            while !done.load(Ordering::Relaxed) {
                let mut backend = Backend::connect(&server);
                assert_eq!(backend.ask("GET", "/health", b""), (200, json!({"status": "ok"})));
                asked += 1;
            }
            asked
        });
        let backends: Vec<_> = members
            .into_iter()
            .enumerate()
            .map(|(number, mut member)| {
                let server = &server;
                scope.spawn(move || {
                    let mut backend = Backend::connect(server);
                    let item = json!({"room_id": format!("room-{number}"), "content": "x"});
                    let items = vec![item; 1000];
                    let mut next = 1;
                    for _ in 0..BATCHES {
                        for outcome in backend.publish_batch(&items) {
                            assert_eq!(outcome, published(next));
                            next += 1;
                        }
                    }
                    for offset in 1..next {
                        assert_eq!(member.receive_reply().offset, Some(offset));
                    }
                })
            })
            .collect();
        backends.into_iter().for_each(|backend| backend.join().expect("it says what went wrong"));
        done.store(true, Ordering::Relaxed);
        assert!(health.join().expect("it says what went wrong") > 0);
    });
}

#[test]
fn a_server_that_drains_answers_503() {
    let mut server = Server::start(&["--shards", "1", "--close-timeout", "1m"]);
    // Its peer has not closed, so the server is still there.
    let mut last = Wire::open(server.address(), "/ws");
    let mut backend = Backend::connect(&server);
    assert_eq!(backend.publish(json!({"room_id": "a", "content": 1})), None);
    server.signal(libc::SIGTERM);
    wait_until("it drains", || backend.ask("GET", "/health", b"").1["status"] == "draining");
    for (path, body) in
        [(ONE, r#"{"room_id":"a","content":1}"#), (BATCH, r#"{"items":[]}"#), (ONE, "")]
    {
        backend.send("POST", path, "Content-Type: application/json\r\n", body.as_bytes());
        let response = backend.0.response();
        assert_eq!((response.status, response.field("retry-after")), (503, Some("1")));
        assert_eq!(error_code(&response.json()), "draining");
    }
    assert_eq!(last.expect_close(), Some(1001));
    last.send(&support::close_frame(1001, ""));
    drop(last);
    assert!(server.wait_exit().success());
}
