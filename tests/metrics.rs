//! What operators see: metrics in both formats, statistics, readiness, the line of a connection
//! that ends; and that the dashboard, the alert rules and the documentation name what exists.

pub mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;

use openmetrics_parser::openmetrics::parse_openmetrics;
use openmetrics_parser::prometheus::parse_prometheus;
use saphyr::{LoadableYamlNode, Yaml};
use serde_json::Value;
use tungstenite::Message;
use tungstenite::protocol::{CloseFrame, frame::coding::CloseCode};

use support::{Client, Response, Server, Wire, close_frame, frame, wait_until};

fn get(admin: SocketAddr, path: &str, accept: &str) -> Response {
    let mut wire = Wire::connect(admin);
    let request = format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nAccept: {accept}\r\n\r\n");
    wire.send(request.as_bytes());
    wire.response()
}

fn get_json(admin: SocketAddr, path: &str) -> (u16, Value) {
    let response = get(admin, path, "*/*");
    (response.status, response.json())
}

fn text(response: Response) -> String {
    assert_eq!(response.status, 200, "{response:?}");
    String::from_utf8(response.body).expect("it is UTF-8")
}

/// Closes with code 1000 and waits for the answer.
fn close_normally(mut client: Client) {
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    client.send(Message::Close(Some(frame)));
    assert_eq!(client.expect_close(), Some(1000));
}

/// All series in the text format, as lines "name{labels} value".
struct Scrape(String);

impl Scrape {
    fn of(server: &Server) -> Scrape {
        let text = text(get(server.admin(), "/metrics", "text/plain"));
        if let Err(error) = parse_prometheus(&text) {
            panic!("{error}\n{text}");
        }
        Scrape(text)
    }

    fn series(&self) -> impl Iterator<Item = (&str, f64)> {
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a value behind the name");
            (series, value.parse().expect("a number"))
        })
    }

    /// The sum of the series of `name` that have these labels, written `key="value"`; there must be
    /// one.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let is_meant = |series: &str| {
            let rest = series.strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
                && labels.iter().all(|label| series.contains(label))
        };
        let found: Vec<_> = self.series().filter(|(series, _)| is_meant(series)).collect();
        assert!(!found.is_empty(), "no {name} with {labels:?}");
        found.iter().map(|(_, value)| value).sum()
    }

    fn names(&self) -> BTreeSet<&str> {
        self.series().map(|(series, _)| series.split('{').next().unwrap_or_default()).collect()
    }

    /// The families with their types.
    fn families(&self) -> BTreeSet<(&str, &str)> {
        let types = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.map(|line| line.split_once(' ').expect("a type behind the name")).collect()
    }
}

#[test]
fn both_formats_keep_to_their_grammar_and_say_the_same() {
    let server = Server::start(&["--shards", "2"]);
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let response = get(server.admin(), "/metrics", prometheus);
    let kind = response.field("content-type").expect("a type").to_owned();
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let openmetrics = text(response);
    let parsed = parse_openmetrics(&openmetrics).unwrap_or_else(|error| panic!("{error}"));
    assert!(openmetrics.ends_with("\n# EOF\n"));

    let response = get(server.admin(), "/metrics", "*/*");
    let kind = response.field("content-type").expect("a type");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let scrape = Scrape::of(&server);
    let families: BTreeSet<_> = scrape.families().into_iter().map(|(name, _)| name).collect();
    let expected: BTreeSet<_> = parsed
        .families
        .keys()
        .map(|name| if families.contains(&**name) { name.clone() } else { format!("{name}_total") })
        .collect();
    assert_eq!(families.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), expected);
    // As many series, in the same order under the same names.
    let names = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.rsplit_once(' ').expect("a value").0.to_owned()).collect()
    };
    assert_eq!(names(&openmetrics), names(&scrape.0));
}

#[test]
fn counters_say_exactly_what_happened_and_gauges_return_to_zero() {
    let server = Server::start(&["--shards", "2", "--echo"]);
    let mut members: Vec<_> =
        ["a", "b", "c"].map(|name| Client::join(server.address(), "lobby", name)).into();
    for n in 1..=5 {
        let ask = r#"{"type":"broadcast","room_id":"lobby","content":"hello","id":1}"#;
        members[0].send_text(ask);
        let mut kinds: Vec<_> = (0..2).map(|_| members[0].receive_reply().kind).collect();
        kinds.sort();
        assert_eq!(kinds, ["ack", "broadcast"]);
        for member in &mut members[1..] {
            assert_eq!(member.receive_reply().offset, Some(n));
        }
    }
    let mut echo = Client::connect(server.address(), "/echo");
    echo.send_binary(b"twice");
    echo.send_binary(b"twice");
    echo.receive();
    echo.receive();
    let refused = get(server.address(), "/nowhere", "*/*");
    assert_eq!(refused.status, 404);
    assert_eq!(get(server.address(), "/", "*/*").status, 200);

    let now = Scrape::of(&server);
    for (name, labels, expected) in [
        ("websocket_active_connections", &[][..], 4.0),
        ("fanwire_connections", &["state=\"open\""], 4.0),
        ("fanwire_rooms", &[], 1.0),
        ("fanwire_members", &[], 3.0),
        // Three joins, five broadcasts, two echoes.
        ("websocket_messages_received_total", &[], 10.0),
        // Three joined, five to each of three, five acknowledgements, two echoes.
        ("websocket_messages_sent_total", &[], 25.0),
        ("fanwire_publishes_total", &[], 5.0),
        ("fanwire_deliveries_total", &[], 15.0),
        ("fanwire_handshakes_total", &["outcome=\"opened\""], 4.0),
        ("fanwire_handshakes_total", &["outcome=\"not_found\""], 1.0),
        ("fanwire_handshakes_total", &["outcome=\"page\""], 1.0),
        ("fanwire_handshakes_total", &[], 6.0),
        ("fanwire_handshake_seconds_count", &[], 4.0),
        ("fanwire_disconnects_total", &[], 0.0),
        ("fanwire_skipped_messages_total", &[], 0.0),
        ("fanwire_ready", &[], 1.0),
    ] {
        assert_eq!(now.sum(name, labels), expected, "{name} {labels:?}");
    }
    assert!(now.sum("fanwire_publish_seconds_count", &[]) >= 5.0, "a sweep for each publish");
    assert!(now.sum("process_resident_memory_bytes", &[]) > 1e6);

    let (status, stats) = get_json(server.admin(), "/v1/stats");
    assert_eq!((status, &stats["state"]), (200, &Value::from("ready")));
    assert_eq!(stats["totals"]["messages_sent"], 25);
    assert_eq!(stats["totals"]["publishes"], 5);
    assert_eq!((&stats["rooms"], &stats["members"]), (&Value::from(1), &Value::from(3)));
    assert!(stats["per_second"]["messages_sent"].as_f64().expect("a rate") > 0.0);
    assert!(stats["latency_ms"]["publish"]["p99"].as_f64().expect("a time") > 0.0);
    assert_eq!(stats["shards"].as_array().expect("shards").len(), 2);

    // One closes with a code, one breaks the protocol, two just go.
    close_normally(members.remove(0));
    let mut wire = Wire::open(server.address(), "/ws");
    let mut unmasked = frame(0x81, b"{}");
    unmasked[1] &= 0x7f;
    wire.send(&unmasked);
    assert_eq!(wire.expect_close(), Some(1002));
    drop((members, echo, wire));
    wait_until("everybody has left", || Scrape::of(&server).sum("fanwire_connections", &[]) == 0.0);
    let then = Scrape::of(&server);
    for gauge in [
        "websocket_active_connections",
        "fanwire_rooms",
        "fanwire_members",
        "fanwire_mailbox_depth",
        "fanwire_sweep_lag_bytes",
        "fanwire_partial_bytes",
    ] {
        assert_eq!(then.sum(gauge, &[]), 0.0, "{gauge}");
    }
    for (labels, expected) in [
        (&[][..], 5.0),
        (&["reason=\"peer_closed\"", "code=\"1000\""], 1.0),
        (&["reason=\"unmasked\"", "code=\"1002\""], 1.0),
    ] {
        assert_eq!(then.sum("fanwire_disconnects_total", labels), expected, "{labels:?}");
    }
}

#[test]
fn bytes_are_those_on_the_wire() {
    let server = Server::start(&["--shards", "1", "--echo"]);
    let mut wire = Wire::open(server.address(), "/echo");
    let before = Scrape::of(&server);
    // Header of 4 and mask of 4 in, header of 4 out.
    let payload = vec![b'x'; 1000];
    wire.send(&frame(0x82, &payload));
    assert_eq!(wire.expect_frame().payload, payload);
    let after = Scrape::of(&server);
    for (name, expected) in
        [("fanwire_received_bytes_total", 1008.0), ("fanwire_sent_bytes_total", 1004.0)]
    {
        assert_eq!(after.sum(name, &[]) - before.sum(name, &[]), expected, "{name}");
    }
}

#[test]
fn ready_says_why_not() {
    let server = Server::start(&["--ready-rss-max", "1MiB"]);
    let (status, answer) = get_json(server.admin(), "/ready");
    assert_eq!((status, &answer["status"]), (503, &Value::from("memory")));
    assert_eq!(answer["ready_rss_max"], 1 << 20);
    assert!(answer["resident_bytes"].as_u64().expect("a number") > 1 << 20);
    assert_eq!(get_json(server.admin(), "/health").0, 200, "it is alive");
    assert_eq!(get_json(server.admin(), "/v1/stats").1["state"], "memory");
    assert_eq!(Scrape::of(&server).sum("fanwire_ready", &[]), 0.0);
    drop(Client::connect(server.address(), "/ws"));

    let mut server = Server::start(&["--drain-timeout", "1m", "--close-timeout", "1m"]);
    let (status, answer) = get_json(server.admin(), "/ready");
    assert_eq!((status, &answer["status"]), (200, &Value::from("ready")));
    // It does not answer the close, so the server stays for a while.
    let mut wire = Wire::open(server.address(), "/ws");
    server.signal(15);
    assert_eq!(wire.expect_close(), Some(1001));
    let (status, answer) = get_json(server.admin(), "/ready");
    assert_eq!((status, &answer["status"]), (503, &Value::from("draining")));
    wire.send(&close_frame(1001, ""));
    drop(wire);
    assert!(server.wait_exit().success());
}

/// What a counter with a label `code` says, for the codes that have been counted.
fn codes(server: &Server, name: &str) -> Vec<(String, u64)> {
    let scrape = Scrape::of(server);
    let counts = scrape.series().filter_map(|(series, value)| {
        let code = series.strip_prefix(name)?.strip_prefix("{code=\"")?.strip_suffix("\"}")?;
        (value > 0.0).then_some((code.to_owned(), value as u64))
    });
    counts.collect()
}

/// How many lines with this message there are of each code.
fn logged(server: &Server, message: &str) -> Vec<(String, u64)> {
    let mut codes = BTreeMap::new();
    for line in server.log().lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        if line["message"] == message {
            assert_eq!(line["level"], "DEBUG");
            *codes.entry(line["code"].as_str().expect("a code").to_owned()).or_default() += 1;
        }
    }
    codes.into_iter().collect()
}

fn sorted(mut counts: Vec<(String, u64)>) -> Vec<(String, u64)> {
    counts.sort();
    counts
}

const DEBUG: [&str; 4] = ["--log-level", "debug", "--log-format", "json"];

#[test]
fn every_native_error_is_counted_and_logged() {
    let limits =
        ["--rooms-per-connection-max", "2", "--members-per-room-max", "few=1", "--rooms-max", "2"];
    let server = Server::start(&[&["--shards", "1"], &DEBUG[..], &limits[..]].concat());
    let mut first = Client::connect(server.address(), "/ws");
    first.join_room("few", "alice");
    let mut client = Client::connect(server.address(), "/ws");
    client.send_binary(b"PAYLOAD");
    assert_eq!(client.receive_reply().code.as_deref(), Some("invalid_message"));
    for (ask, code) in [
        ("PAYLOAD", "invalid_json"),
        (r#"["PAYLOAD"]"#, "invalid_message"),
        (r#"{"type":"fly"}"#, "unknown_type"),
        (r#"{"type":"join"}"#, "missing_field"),
        (r#"{"type":"join","room_id":""}"#, "invalid_room_id"),
        (r#"{"type":"join","room_id":"a","user_id":""}"#, "invalid_user_id"),
        (r#"{"type":"broadcast","room_id":"a","content":"PAYLOAD"}"#, "not_member"),
        (r#"{"type":"leave","room_id":"a"}"#, "not_member"),
        (r#"{"type":"auth","token":"PAYLOAD"}"#, "auth_off"),
        (r#"{"type":"join","room_id":"few"}"#, "room_full"),
        (r#"{"type":"join","room_id":"a"}"#, ""),
        (r#"{"type":"join","room_id":"b"}"#, "server_busy"),
        (r#"{"type":"ping"}"#, ""),
    ] {
        assert_eq!(client.ask(ask).code.as_deref().unwrap_or_default(), code, "{ask}");
    }
    first.join_room("a", "alice");
    let reply = first.ask(r#"{"type":"join","room_id":"c"}"#);
    assert_eq!(reply.code.as_deref(), Some("too_many_rooms"));
    let expected = [
        ("auth_off", 1),
        ("invalid_json", 1),
        ("invalid_message", 2),
        ("invalid_room_id", 1),
        ("invalid_user_id", 1),
        ("missing_field", 1),
        ("not_member", 2),
        ("room_full", 1),
        ("server_busy", 1),
        ("too_many_rooms", 1),
        ("unknown_type", 1),
    ];
    let expected: Vec<_> = expected.map(|(code, count)| (code.to_owned(), count)).into();
    assert_eq!(sorted(codes(&server, "fanwire_errors_total")), expected);
    wait_until("the lines are there", || logged(&server, "request refused") == expected);
    assert!(!server.log().contains("PAYLOAD"), "{}", server.log());
}

#[test]
fn every_refusal_of_the_admin_interface_is_counted_and_logged() {
    let server = Server::start(&[&["--shards", "1"], &DEBUG[..]].concat());
    let ask = |line: &str, fields: &str, body: &str| {
        let mut wire = Wire::connect(server.admin());
        let (host, len) = ("Host: localhost", body.len());
        let head = format!("{line} HTTP/1.1\r\n{host}\r\n{fields}Content-Length: {len}\r\n\r\n");
        wire.send(&[head.as_bytes(), body.as_bytes()].concat());
        wire.response()
    };
    let json = "Content-Type: application/json\r\n";
    let foreign = "Origin: https://evil.example\r\n";
    for (line, fields, body, status) in [
        ("GET /SECRET", "", "", 404),
        ("DELETE /health", "", "", 405),
        ("POST /v1/publish", "", "SECRET", 415),
        ("POST /v1/publish", json, "SECRET", 400),
        ("POST /v1/disconnect", foreign, "SECRET", 403),
        ("GET /v1/rooms/raw/SECRET", "", "", 404),
        ("GET /v1/top?n=SECRET", "", "", 400),
        // What is refused of a batch that is not.
        (
            "POST /v1/publish/batch",
            json,
            r#"{"items":["SECRET",{},{"room_id":"a","text":""}]}"#,
            200,
        ),
        ("GET /health", "", "", 200),
    ] {
        assert_eq!(ask(line, fields, body).status, status, "{line}");
    }
    // What the HTTP library cannot read.
    let mut wire = Wire::connect(server.admin());
    wire.send(b"SECRET\r\n\r\n");
    assert_eq!(wire.response().status, 400);
    let expected = [
        ("cross_site", 1),
        ("invalid_json", 1),
        ("invalid_message", 1),
        ("invalid_parameter", 1),
        ("malformed_request", 1),
        ("method_not_allowed", 1),
        ("missing_field", 1),
        ("not_found", 1),
        ("unknown_room", 1),
        ("unsupported_media_type", 1),
    ];
    let expected: Vec<_> = expected.map(|(code, count)| (code.to_owned(), count)).into();
    // The last one is counted when its connection ends.
    wait_until("all are counted", || codes(&server, "fanwire_admin_refused_total") == expected);
    wait_until("the lines are there", || logged(&server, "admin request refused") == expected);
    assert!(!server.log().contains("SECRET"), "{}", server.log());
}

#[test]
fn a_connection_that_ends_is_one_line_without_secrets() {
    let server = Server::start(&["--log-level", "debug", "--log-format", "json"]);
    let mut client = Client::connect(server.address(), "/ws?token=S3CRET");
    client.join_room("lobby", "alice");
    client.send_text(r#"{"type":"broadcast","room_id":"lobby","content":"PAYLOAD"}"#);
    assert_eq!(client.receive_reply().kind, "broadcast");
    close_normally(client);
    let ends = || -> Vec<Value> {
        let lines = server.log();
        let lines = lines.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        lines.filter(|line: &Value| line["message"] == "connection ends").collect()
    };
    wait_until("the line is there", || !ends().is_empty());
    let ends = ends();
    assert_eq!(ends.len(), 1, "{ends:?}");
    for (field, expected) in [
        ("reason", Value::from("peer_closed")),
        ("code", Value::from(1000)),
        ("messages_received", Value::from(2)),
        ("endpoint", Value::from("ws")),
        ("user", Value::from("alice")),
        ("address", Value::from("127.0.0.1")),
    ] {
        assert_eq!(ends[0][field], expected, "{field}: {}", ends[0]);
    }
    assert!(ends[0]["duration_ms"].is_u64(), "{}", ends[0]);
    let log = server.log();
    assert!(!log.contains("S3CRET") && !log.contains("PAYLOAD"), "{log}");
}

fn file(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names of metrics in a query.
fn metrics_in(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let prefixes = ["fanwire_", "websocket_", "process_"];
    words.filter(move |word| prefixes.iter().any(|prefix| word.starts_with(prefix)))
}

/// Every string under a key of that name, however deep.
fn strings_at<'v>(value: &'v Value, key: &str, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| match value {
            Value::String(text) if name == key => found.push(text),
            value => strings_at(value, key, found),
        }),
        Value::Array(items) => items.iter().for_each(|item| strings_at(item, key, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_what_exists() {
    let server = Server::start(&[]);
    let scrape = Scrape::of(&server);
    let names = scrape.names();
    let check = |query: &str| {
        let mut asked = metrics_in(query).peekable();
        assert!(asked.peek().is_some(), "it asks for nothing of ours: {query}");
        asked.for_each(|name| assert!(names.contains(name), "no {name} in {query}"));
    };
    let dashboard: Value =
        serde_json::from_str(&file("docs/grafana-dashboard.json")).expect("it is JSON");
    let mut queries = Vec::new();
    strings_at(&dashboard, "expr", &mut queries);
    queries.iter().copied().for_each(check);
    // And the other way round: whatever there is can be seen.
    let shown: BTreeSet<_> = queries.iter().flat_map(|query| metrics_in(query)).collect();
    for (family, kind) in scrape.families() {
        let bucket = format!("{family}_bucket");
        let name = if kind == "histogram" { &bucket } else { family };
        assert!(shown.contains(name), "{family} is not on the dashboard");
    }

    let rules = file("docs/alerts.yaml");
    let rules = Yaml::load_from_str(&rules).expect("it is YAML");
    let groups = rules[0]["groups"].as_vec().expect("groups");
    let mut count = 0;
    for rule in groups.iter().flat_map(|group| group["rules"].as_vec().expect("rules")) {
        let at = |key: &str| rule[key].as_str().unwrap_or_else(|| panic!("no {key}: {rule:?}"));
        check(at("expr"));
        assert!(!at("alert").is_empty() && at("for").ends_with('m'));
        for words in ["summary", "description"] {
            assert!(rule["annotations"][words].as_str().is_some_and(|words| words.len() > 20));
        }
        assert!(rule["labels"]["severity"].as_str().is_some());
        count += 1;
    }
    assert!(count >= 8, "{count} alerts");
}

#[test]
fn the_documentation_lists_every_family() {
    let server = Server::start(&[]);
    let scrape = Scrape::of(&server);
    let page = file("docs/metrics.md");
    let listed: BTreeSet<_> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            Some((cells.next()?.trim_end_matches('`'), cells.next()?))
        })
        .collect();
    assert_eq!(listed, scrape.families());
}
