//! The router over a desk whose shards do not run, or end: what is answered then.

use axum::http::HeaderMap;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use monoio::{LegacyDriver, RuntimeBuilder};

use super::*;
use crate::config::{ConfigError, Limits, Loaded, LogFormat, LogLevel, Switch};
use crate::control::api::Health;
use crate::control::desk::Desk;
use crate::control::keys::Keys;
use crate::control::monitor::Monitor;
use crate::control::questions::Questions;
use crate::control::reload::{Reloader, SharedReloader};
use crate::id::HomeHasher;
use crate::io::uring::Bells;
use crate::logging;
use crate::shard::Ends;
use crate::shard::thread::Controls;

/// An interface to one shard, for which so many publishes may wait, and what the shard holds.
fn api(publish_queue_len_max: usize) -> (Api, Vec<Ends>) {
    api_with(publish_queue_len_max, Duration::MAX)
}

/// The same where no publishes are taken while one has waited for its `answer` for so long.
fn api_with(publish_queue_len_max: usize, answer: Duration) -> (Api, Vec<Ends>) {
    let limits = Limits { publish_queue_len_max, ..Limits::default() };
    let (ends, control) = Ends::mesh(&HomeHasher::new(1), &limits);
    let (bells, _) = Bells::new(1).unwrap();
    let live = LiveLimits::new(limits);
    let reloader = SharedReloader::new(Reloader {
        load,
        loaded: load().unwrap(),
        log: logging::start(LogFormat::Text, LogLevel::Error),
        keys: Keys::read(&Switch::Off).unwrap(),
        controls: Controls::new(control.controls, bells.clone()),
        shards: 1,
        limits: live.clone(),
    });
    // Who has no patience is refused at once.
    let questions = Questions::impatient(control.inquirer, bells.clone());
    let publisher = control.publisher.with_patience(answer);
    let desk = Desk::new(publisher, bells, Duration::ZERO);
    let monitor = Monitor::new(Vec::new());
    let log = logging::start(LogFormat::Text, LogLevel::Info);
    let (health, refusals) = (Health::default(), Refusals::default());
    (Api { health, desk, questions, limits: live, monitor, reloader, log, refusals }, ends)
}

fn load() -> Result<Loaded, ConfigError> {
    crate::config::load(["fanwire", "serve"].map(Into::into), [])
}

fn request(method: &str, path: &str, body: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = request.header(CONTENT_TYPE, "application/json; charset=utf-8");
    request.body(Body::from(body.to_owned())).unwrap()
}

async fn answer(api: &Api, request: Request<Body>) -> (u16, HeaderMap, String) {
    let (head, body) = api.clone().router().call(request).await.unwrap().into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    (head.status.as_u16(), head.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().unwrap().block_on(future)
}

/// Polls `future` once: a request is handed in with that, and its answer waits for the shard.
async fn start<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) {
    let polled = poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context))).await;
    assert!(polled.is_pending());
}

const ONE: &str = r#"{"room_id":"lobby","content":1}"#;

fn batch(items: &[&str]) -> String {
    format!(r#"{{"items":[{}]}}"#, items.join(","))
}

#[test]
fn health_and_what_is_not_there() {
    let (api, _ends) = api(2);
    #[track_caller]
    fn check(api: &Api, (method, path): (&str, &str), status: u16, body: &str) {
        let (found, _, text) = run(answer(api, request(method, path, "")));
        assert_eq!(found, status, "{method} {path}");
        assert!(text.starts_with(body) && text.is_empty() == body.is_empty(), "{path}: {text}");
    }
    check(&api, ("GET", "/health"), 200, r#"{"status":"ok"}"#);
    check(&api, ("HEAD", "/health"), 200, "");
    let not_allowed = r#"{"error":{"code":"method_not_allowed","message":"#;
    check(&api, ("POST", "/health"), 405, not_allowed);
    check(&api, ("GET", "/v1/publish"), 405, not_allowed);
    check(&api, ("PUT", "/v1/publish/batch"), 405, not_allowed);
    let not_found = r#"{"error":{"code":"not_found","message":"#;
    check(&api, ("GET", "/"), 200, "<!doctype html>");
    check(&api, ("HEAD", "/"), 200, "");
    check(&api, ("POST", "/"), 405, not_allowed);
    check(&api, ("GET", "/index.html"), 404, not_found);
    check(&api, ("DELETE", "/health/"), 404, not_found);
    check(&api, ("POST", "/v1/publish/"), 404, not_found);
    api.health.set_draining();
    check(&api, ("GET", "/health"), 200, r#"{"status":"draining"}"#);
}

#[test]
fn a_shard_that_is_behind_is_answered_429() {
    let (api, _ends) = api(2);
    run(async {
        let mut first = pin!(answer(&api, request("POST", "/v1/publish", ONE)));
        start(first.as_mut()).await;
        let both = batch(&[ONE, "{}", ONE, ONE]);
        let mut second = pin!(answer(&api, request("POST", "/v1/publish/batch", &both)));
        // One of its items fits, so it waits for that.
        start(second.as_mut()).await;

        let (status, fields, body) = answer(&api, request("POST", "/v1/publish", ONE)).await;
        assert_eq!((status, &fields[RETRY_AFTER]), (429, &HeaderValue::from_static("1")));
        assert!(body.starts_with(r#"{"error":{"code":"server_busy","message":"#), "{body}");

        let bad = batch(&["7", ONE]);
        let (status, fields, body) = answer(&api, request("POST", "/v1/publish/batch", &bad)).await;
        assert_eq!((status, &fields[RETRY_AFTER]), (429, &HeaderValue::from_static("1")));
        let start = r#"{"items":[{"error":{"code":"invalid_message""#;
        assert!(body.starts_with(start) && body.contains("server_busy"), "{body}");

        // Nothing of it is the server's fault.
        let bad = batch(&["7", "{}"]);
        let (status, fields, _) = answer(&api, request("POST", "/v1/publish/batch", &bad)).await;
        assert_eq!((status, fields.get(RETRY_AFTER)), (200, None));
    });
}

#[test]
fn single_publishes_are_refused_when_one_has_waited_too_long() {
    let (api, ends) = api_with(4096, Duration::ZERO);
    run(async {
        let mut first = pin!(answer(&api, request("POST", "/v1/publish", ONE)));
        start(first.as_mut()).await;
        for _ in 0..2 {
            let (status, fields, body) = answer(&api, request("POST", "/v1/publish", ONE)).await;
            assert_eq!((status, &fields[RETRY_AFTER]), (429, &HeaderValue::from_static("1")));
            assert!(body.starts_with(r#"{"error":{"code":"server_busy","message":"#), "{body}");
        }
        drop(ends);
        api.desk.take_answers();
        assert_eq!(first.await.0, 503, "it was handed in and waits for its answer");
    });
}

#[test]
fn a_shard_that_ends_answers_503_to_what_waits_for_it() {
    let (api, ends) = api(2);
    run(async {
        let mut one = pin!(answer(&api, request("POST", "/v1/publish", ONE)));
        start(one.as_mut()).await;
        let some = batch(&[ONE, "7"]);
        let mut some = pin!(answer(&api, request("POST", "/v1/publish/batch", &some)));
        start(some.as_mut()).await;
        drop(ends);
        api.desk.take_answers();
        for (status, fields, body) in [one.await, some.await] {
            assert_eq!((status, &fields[RETRY_AFTER]), (503, &HeaderValue::from_static("1")));
            assert!(body.contains(r#""code":"draining""#), "{body}");
        }
    });
}

#[test]
fn clients_that_go_keep_their_places_until_the_shard_has_answered() {
    let (api, ends) = api(10 * REQUESTS_MAX);
    run(async {
        for _ in 0..REQUESTS_MAX {
            start(pin!(answer(&api, request("POST", "/v1/publish", ONE)))).await;
        }
        let (status, ..) = answer(&api, request("POST", "/v1/publish", ONE)).await;
        assert_eq!(status, 429, "the queue has places, the desk has not");
        drop(ends);
        api.desk.take_answers();
        let (status, ..) = answer(&api, request("POST", "/v1/publish", ONE)).await;
        assert_eq!(status, 503, "the shard has ended, and all places are free again");
    });
}

#[test]
fn a_shard_that_does_not_answer_is_answered_503() {
    let (api, ends) = api(2);
    run(async {
        for path in ["/v1/rooms", "/v1/rooms/raw/lobby", "/v1/top"] {
            let (status, fields, body) = answer(&api, request("GET", path, "")).await;
            assert_eq!((status, &fields[RETRY_AFTER]), (503, &HeaderValue::from_static("1")));
            assert!(body.contains(r#""code":"shard_behind""#), "{body}");
        }
        // What was asked keeps its place until it is answered, and there are only so many.
        for _ in 3..REQUESTS_MAX {
            let (status, ..) = answer(&api, request("GET", "/v1/top", "")).await;
            assert_eq!(status, 503);
        }
        let (status, fields, body) = answer(&api, request("GET", "/v1/top", "")).await;
        assert_eq!((status, &fields[RETRY_AFTER]), (429, &HeaderValue::from_static("1")));
        assert!(body.contains(r#""code":"server_busy""#), "{body}");
        drop(ends);
        api.questions.take_answers();
        let (status, _, body) = answer(&api, request("GET", "/v1/top", "")).await;
        assert_eq!(status, 503);
        assert!(body.contains(r#""code":"draining""#), "{body}");
    });
}

/// The description names every route, and nothing else.
#[test]
fn the_description_is_complete() {
    let described: Value = serde_json::from_str(DESCRIPTION).unwrap();
    let mut there: Vec<String> = Vec::new();
    for (path, item) in described["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
        there.extend(methods.map(|method| format!("{} {path}", method.to_uppercase())));
    }
    let mut routes: Vec<String> =
        routes().iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    there.sort();
    routes.sort();
    assert_eq!(there, routes);
}
