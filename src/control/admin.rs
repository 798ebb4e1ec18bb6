//! The admin interface: HTTP on its own address, for operators and backends, not for clients.
//!
//! `GET /health` answers `{"status":"ok"}`, while the server drains `{"status":"draining"}`;
//! `GET /ready` 200, or 503 with the [`Obstacle`] in the way of traffic. `GET /metrics` is in
//! [`super::metrics`], `GET /v1/stats` in [`super::monitor`], `POST /v1/publish` and
//! `POST /v1/publish/batch` in [`super::publish`], `POST /v1/reload` in [`super::reload`]. Every
//! answer is JSON,
//! errors too: `{"error":{"code":C,"message":M}}`. Bounded like the rest: so many connections, so
//! long to send a request, so large a body, so long to take an answer. No authentication: whoever
//! reaches it may use it.

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
use axum::http::header::EXPECT;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::BytesMut;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use monoio::io::IntoPollIo;
use monoio::net::{TcpListener, TcpStream};
use monoio_compat::hyper::{MonoioIo, MonoioTimer};
use serde_json::{Value, json};
use tower_service::Service;
use tracing::{debug, warn};

use super::api::{self, Api, LiveLimits, Obstacle, Refusal};
use super::monitor::Stats;
use super::{desk, metrics, publish, reload};
use crate::logging::Limiter;

impl Api {
    /// Starts to serve `listener`, on the runtime of the calling thread.
    ///
    /// # Errors
    /// When the socket cannot be set up.
    pub(super) fn start(self, listener: StdTcpListener) -> io::Result<()> {
        // Inherited by every connection: a peer that takes no answer is cut by the kernel.
        socket2::SockRef::from(&listener).set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
        listener.set_nonblocking(true)?;
        let listener = Rc::new(TcpListener::from_std(listener)?);
        let site = Site { limits: self.limits.clone(), router: self.router() };
        // Each task serves one connection after the other: the bound needs no counting.
        for _ in 0..CONNECTIONS_MAX {
            monoio::spawn(serve_in_turn(listener.clone(), site.clone()));
        }
        Ok(())
    }

    fn router(self) -> Router {
        Router::new()
            .route("/health", get(report_health))
            .route("/ready", get(report_ready))
            .route("/metrics", get(metrics::report))
            .route("/v1/stats", get(report_stats))
            .merge(publish::routes())
            .merge(reload::routes())
            .fallback(|| async { NOT_FOUND })
            .method_not_allowed_fallback(|| async { METHOD_NOT_ALLOWED })
            // `Site` has one for all.
            .layer(DefaultBodyLimit::disable())
            .with_state(self)
    }
}

async fn serve_in_turn(listener: Rc<TcpListener>, site: Site) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = serve_connection(stream, site.clone()).await {
                    debug!("admin connection from {peer}: {error}");
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

async fn serve_connection(stream: TcpStream, site: Site) -> Result<(), hyper::Error> {
    let Ok(stream) = stream.into_poll_io() else {
        return Ok(());
    };
    let service = service_fn(|request| site.clone().answer(request));
    http1::Builder::new()
        .timer(MonoioTimer)
        .header_read_timeout(PEER_TIMEOUT)
        .serve_connection(MonoioIo::new(stream), service)
        .await
}

/// Answers requests once they are here as a whole: no handler waits for a peer.
#[derive(Debug, Clone)]
struct Site {
    router: Router,
    limits: LiveLimits,
}

impl Site {
    async fn answer(mut self, request: Request<Incoming>) -> Result<Response, hyper::Error> {
        let body_bytes_max = self.limits.get().publish_bytes_max;
        let (head, body) = request.into_parts();
        let too_long = body.size_hint().lower() > body_bytes_max as u64;
        if too_long && head.headers.contains_key(EXPECT) {
            // It waits for a word before it sends the body.
            return Ok(BODY_TOO_LONG.into_response());
        }
        let body = match monoio::time::timeout(PEER_TIMEOUT, receive(body, body_bytes_max)).await {
            Ok(Ok(Some(body))) => Body::from(body),
            Ok(Ok(None)) => return Ok(BODY_TOO_LONG.into_response()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(REQUEST_TIMEOUT.into_response()),
        };
        let response = self.router.call(Request::from_parts(head, body)).await;
        Ok(response.unwrap_or_else(|never: Infallible| match never {}))
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

const NOT_FOUND: Refusal = Refusal {
    status: StatusCode::NOT_FOUND,
    code: "not_found",
    message: "There is nothing here. Endpoints are /health, /ready, /metrics, /v1/stats, \
              /v1/publish, /v1/publish/batch and /v1/reload.",
};

const METHOD_NOT_ALLOWED: Refusal = Refusal {
    status: StatusCode::METHOD_NOT_ALLOWED,
    code: "method_not_allowed",
    message: "Read /health, /ready, /metrics and /v1/stats with GET; send to /v1/publish, \
              /v1/publish/batch and /v1/reload with \
              POST.",
};

const REQUEST_TIMEOUT: Refusal = Refusal {
    status: StatusCode::REQUEST_TIMEOUT,
    code: "request_timeout",
    message: "The request was not complete in time; send its body at once.",
};

const BODY_TOO_LONG: Refusal = Refusal {
    status: StatusCode::PAYLOAD_TOO_LARGE,
    code: "body_too_long",
    message: "The body is longer than publish_bytes_max; send several requests, or raise it.",
};

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = desk::REQUESTS_MAX;

/// Connections that may wait to be accepted.
pub(super) const BACKLOG: i32 = 64;

/// To send a request's header (also the time a kept-alive connection may be idle), to send its
/// body, and to take an answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
