//! The admin interface: HTTP on its own address, for operators and backends, not for clients.
//!
//! [`routes`] is all there is; `docs/openapi.json` describes it, and a test holds the two together.
//! Who may use it, [`super::guard`] decides. Errors are JSON: `{"error":{"code":C,"message":M}}`.
//! Bounded like the rest: so many connections, so long to send a request, so large a body, so long
//! to take an answer.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::handler::Handler;
use axum::http::header::{CONNECTION, EXPECT, HeaderValue};
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Json, Router};
use bytes::BytesMut;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use monoio::io::IntoPollIo;
use monoio::io::poll_io::{AsyncRead, AsyncWrite};
use monoio::net::TcpListener;
use monoio_compat::hyper::{MonoioIo, MonoioTimer};
use serde_json::{Value, json};
use tower_service::Service;
use tracing::{debug, warn};

use super::api::{self, Api, LiveLimits, Obstacle, Refusal};
use super::failure::{Failure, REQUESTS_MAX};
use super::guard::Guard;
use super::monitor::Stats;
use super::refusal::{Code, Refusals};
use super::{metrics, operator, page, profile, publish, reload, rooms};
use crate::logging::Limiter;

impl Api {
    /// Starts to serve `listener`, on the runtime of the calling thread.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub(super) fn start(self, listener: StdTcpListener, guard: Guard) -> io::Result<()> {
        // Inherited by every connection: a peer that takes no answer is cut by the kernel.
        socket2::SockRef::from(&listener).set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
        listener.set_nonblocking(true)?;
        let listener = Rc::new(TcpListener::from_std(listener)?);
        let site = Site::new(guard, self);
        // Each task serves one connection after the other: there are no more.
        for _ in 0..CONNECTIONS_MAX {
            monoio::spawn(serve_in_turn(listener.clone(), site.clone()));
        }
        Ok(())
    }

    fn router(self) -> Router {
        let router = routes()
            .into_iter()
            .fold(Router::new(), |router, route| router.route(route.path, route.handler));
        router
            .fallback(|| async { NOT_FOUND })
            .method_not_allowed_fallback(|| async { METHOD_NOT_ALLOWED })
            // `Site` has one for all.
            .layer(DefaultBodyLimit::disable())
            .with_state(self)
    }
}

/// One thing that can be asked for. What answers GET answers HEAD.
struct Route {
    #[cfg_attr(not(test), expect(dead_code, reason = "held against the description"))]
    method: Method,
    path: &'static str,
    handler: MethodRouter<Api>,
}

/// Everything that can be asked for.
fn routes() -> Vec<Route> {
    vec![
        route(Method::GET, "/", page::page),
        route(Method::GET, "/health", report_health),
        route(Method::GET, "/ready", report_ready),
        route(Method::GET, "/metrics", metrics::report),
        route(Method::GET, "/v1/stats", report_stats),
        route(Method::POST, "/v1/publish", publish::one),
        route(Method::POST, "/v1/publish/batch", publish::batch),
        route(Method::GET, "/v1/rooms", rooms::list),
        route(Method::GET, "/v1/rooms/{namespace}/{room_id}", rooms::one),
        route(Method::POST, "/v1/disconnect", operator::disconnect),
        route(Method::GET, "/v1/top", operator::top),
        route(Method::GET, "/v1/log-level", operator::log_level),
        route(Method::PUT, "/v1/log-level", operator::set_log_level),
        route(Method::POST, "/v1/reload", reload::reload),
        route(Method::GET, "/v1/openapi.json", describe),
        route(Method::GET, "/debug/profile", profile::profile),
    ]
}

fn route<H, T>(method: Method, path: &'static str, handler: H) -> Route
where
    H: Handler<T, Api>,
    T: 'static,
{
    let filter = MethodFilter::try_from(method.clone()).expect("a method of HTTP");
    Route { method, path, handler: on(filter, handler) }
}

async fn serve_in_turn(listener: Rc<TcpListener>, site: Site) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let Ok(stream) = stream.into_poll_io() else { continue };
                let _place = site.connections.take();
                if let Err(error) = serve(stream, site.clone()).await {
                    debug!("admin connection from {peer}: {error}");
                    if error.is_parse() {
                        // The HTTP library has answered it.
                        let code = const { Code::of("malformed_request") };
                        site.refusals.note(StatusCode::BAD_REQUEST, code);
                    }
                }
            }
            // Out of descriptors, most likely: others must close before it gets better.
            Err(error) => {
                warn_of(&error);
                monoio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Every task that cannot accept says so, ten times per second.
static REFUSALS: Mutex<Limiter> = Mutex::new(Limiter::new());

fn warn_of(error: &io::Error) {
    let mut limiter = REFUSALS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(left_out) = limiter.admit(Instant::now()) {
        warn!(left_out, "admin: cannot accept a connection: {error}");
    }
}

/// Serves one connection to its end.
pub(super) async fn serve<S>(stream: S, site: Site) -> Result<(), hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request| site.clone().answer(request));
    http1::Builder::new()
        .timer(MonoioTimer)
        .header_read_timeout(PEER_TIMEOUT)
        .serve_connection(MonoioIo::new(stream), service)
        .await
}

/// Answers requests once they are here as a whole: no handler waits for a peer.
///
/// A request takes a place, unless it is one of those that are answered [`AT_ONCE`]: they must be
/// answered also while a shard is stuck and every place is held by who waits for it. There are more
/// connections than places, and while all are in use each ends with its next answer: so one that
/// waits to be accepted waits for those before it, and not for what they may ask next.
#[derive(Debug, Clone)]
pub(super) struct Site {
    guard: Guard,
    router: Router,
    limits: LiveLimits,
    refusals: Refusals,
    requests: Places,
    connections: Places,
}

impl Site {
    pub(super) fn new(guard: Guard, api: Api) -> Self {
        Self {
            guard,
            limits: api.limits.clone(),
            refusals: api.refusals.clone(),
            requests: Places::new(REQUESTS_MAX),
            connections: Places::new(CONNECTIONS_MAX),
            router: api.router(),
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response, hyper::Error> {
        let (refusals, connections) = (self.refusals.clone(), self.connections.clone());
        let mut response = self.carry_out(request).await?;
        if let Some(&code) = response.extensions().get::<Code>() {
            refusals.note(response.status(), code);
        }
        if connections.are_taken() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    async fn carry_out(mut self, request: Request<Incoming>) -> Result<Response, hyper::Error> {
        let body_bytes_max = self.limits.get().publish_bytes_max;
        let (head, body) = request.into_parts();
        let needs_place = !AT_ONCE.contains(&head.uri.path()) || !body.is_end_stream();
        let place = needs_place.then(|| self.requests.take());
        let busy = matches!(place, Some(None)).then(|| Failure::Busy.into());
        let refused = self.guard.check(&head).err().or(busy);
        // Of a body that nobody will look at nothing is kept.
        let bytes_max = if refused.is_some() { 0 } else { body_bytes_max };
        let too_long = body.size_hint().lower() > bytes_max as u64;
        if too_long && head.headers.contains_key(EXPECT) {
            // It waits for a word before it sends the body.
            return Ok(refused.unwrap_or(BODY_TOO_LONG).into_response());
        }
        let body = match monoio::time::timeout(PEER_TIMEOUT, receive(body, bytes_max)).await {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(refused.unwrap_or(REQUEST_TIMEOUT).into_response()),
        };
        let body = match (refused, body) {
            (Some(refusal), _) => return Ok(refusal.into_response()),
            (None, None) => return Ok(BODY_TOO_LONG.into_response()),
            (None, Some(body)) => Body::from(body),
        };
        let response = self.router.call(Request::from_parts(head, body)).await;
        Ok(response.unwrap_or_else(|never: Infallible| match never {}))
    }
}

/// So many may be taken at once, on this thread. Cloning shares them.
#[derive(Debug, Clone)]
struct Places {
    max: usize,
    taken: Rc<Cell<usize>>,
}

/// Taken until it is dropped.
struct Place(Rc<Cell<usize>>);

impl Places {
    fn new(max: usize) -> Self {
        Self { max, taken: Rc::default() }
    }

    fn are_taken(&self) -> bool {
        self.taken.get() >= self.max
    }

    fn take(&self) -> Option<Place> {
        if self.are_taken() {
            return None;
        }
        self.taken.set(self.taken.get() + 1);
        Some(Place(Rc::clone(&self.taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The whole body, or `None` if it is longer than `bytes_max`. Then it is read to its end all the
/// same: an answer that overtakes it may be lost in the reset that follows.
async fn receive(body: Incoming, bytes_max: usize) -> Result<Option<Bytes>, hyper::Error> {
    let mut body = pin!(body);
    let mut received = BytesMut::new();
    let mut is_too_long = false;
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        // Trailers, if any, mean nothing here.
        let Ok(data) = frame?.into_data() else { continue };
        is_too_long |= received.len() + data.len() > bytes_max;
        if is_too_long {
            received = BytesMut::new();
        } else {
            received.extend_from_slice(&data);
        }
    }
    Ok((!is_too_long).then(|| received.freeze()))
}

async fn report_health(State(api): State<Api>) -> Json<Value> {
    Json(json!({"status": if api.health.is_draining() { "draining" } else { "ok" }}))
}

async fn report_ready(State(api): State<Api>) -> Response {
    let Some(obstacle) = api.obstacle() else {
        return Json(json!({"status": "ready"})).into_response();
    };
    let mut answer = json!({"status": obstacle.name()});
    if let Obstacle::Memory { resident, max } = obstacle {
        answer["resident_bytes"] = resident.into();
        answer["ready_rss_max"] = max.into();
    }
    api::json(StatusCode::SERVICE_UNAVAILABLE, answer.to_string().into_bytes())
}

async fn report_stats(State(api): State<Api>) -> Json<Stats> {
    let state = api.obstacle().map_or("ready", Obstacle::name);
    Json(api.monitor.stats(state, api.limits.get().connections_max))
}

/// What there is, for programs: OpenAPI 3.1.
async fn describe() -> Response {
    api::json(StatusCode::OK, DESCRIPTION.into())
}

const DESCRIPTION: &str = include_str!("../../docs/openapi.json");

const NOT_FOUND: Refusal = Refusal {
    status: StatusCode::NOT_FOUND,
    code: Code::of("not_found"),
    message: "There is nothing here; GET /v1/openapi.json says what there is.",
};

const METHOD_NOT_ALLOWED: Refusal = Refusal {
    status: StatusCode::METHOD_NOT_ALLOWED,
    code: Code::of("method_not_allowed"),
    message: "Use the method in the field Allow; GET /v1/openapi.json says what it does.",
};

const REQUEST_TIMEOUT: Refusal = Refusal {
    status: StatusCode::REQUEST_TIMEOUT,
    code: Code::of("request_timeout"),
    message: "The request was not complete in time; send its body at once.",
};

const BODY_TOO_LONG: Refusal = Refusal {
    status: StatusCode::PAYLOAD_TOO_LARGE,
    code: Code::of("body_too_long"),
    message: "The body is longer than publish_bytes_max; send several requests, or raise it.",
};

/// What waits for no shard and has no body. See [`Site`].
const AT_ONCE: [&str; 6] = ["/", "/health", "/ready", "/metrics", "/v1/stats", "/v1/openapi.json"];

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = REQUESTS_MAX + 16;

/// Connections that may wait to be accepted.
pub(super) const BACKLOG: i32 = 64;

/// To send a request's header (also the time a kept-alive connection may be idle), to send its
/// body, and to take an answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
