//! The admin interface: HTTP on its own address, for operators and their tools, not for clients.
//!
//! `GET /health` answers `{"status":"ok"}`, while the server drains `{"status":"draining"}`. Every
//! answer is JSON, errors too. Bounded like the rest: so many connections, so long to send a
//! request, so long to take an answer. No authentication: whoever reaches it may use it.

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router, http::StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use monoio::io::IntoPollIo;
use monoio::net::{TcpListener, TcpStream};
use monoio_compat::hyper::{MonoioIo, MonoioTimer};
use serde_json::{Value, json};
use tower_service::Service;
use tracing::{debug, warn};

/// Starts to serve `listener`, on the runtime of the calling thread.
///
/// # Errors
/// When the socket cannot be set up.
pub(super) fn start(listener: StdTcpListener, health: Health) -> io::Result<()> {
    // Inherited by every connection: a peer that takes no answer is cut by the kernel.
    socket2::SockRef::from(&listener).set_tcp_user_timeout(Some(PEER_TIMEOUT))?;
    listener.set_nonblocking(true)?;
    let listener = Rc::new(TcpListener::from_std(listener)?);
    let router = router(health);
    // Each task serves one connection after the other: the bound needs no counting.
    for _ in 0..CONNECTIONS_MAX {
        monoio::spawn(serve_in_turn(listener.clone(), router.clone()));
    }
    Ok(())
}

async fn serve_in_turn(listener: Rc<TcpListener>, router: Router) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Err(error) = serve_connection(stream, router.clone()).await {
                    debug!("admin connection from {peer}: {error}");
                }
            }
            // Out of descriptors, most likely: others must close before it gets better.
            Err(error) => {
                warn!("admin: cannot accept a connection: {error}");
                monoio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, router: Router) -> Result<(), hyper::Error> {
    let Ok(stream) = stream.into_poll_io() else {
        return Ok(());
    };
    let service = service_fn(|request| {
        let mut router = router.clone();
        async move { router.call(request).await }
    });
    http1::Builder::new()
        .timer(MonoioTimer)
        .header_read_timeout(PEER_TIMEOUT)
        .serve_connection(MonoioIo::new(stream), service)
        .await
}

fn router(health: Health) -> Router {
    let not_allowed =
        || async { (StatusCode::METHOD_NOT_ALLOWED, Json(json!({"error": "method_not_allowed"}))) };
    Router::new()
        .route("/health", get(report_health))
        .fallback(|| async { (StatusCode::NOT_FOUND, Json(json!({"error": "not_found"}))) })
        .method_not_allowed_fallback(not_allowed)
        .with_state(health)
}

async fn report_health(State(health): State<Health>) -> Json<Value> {
    Json(json!({"status": if health.is_draining() { "draining" } else { "ok" }}))
}

/// What `/health` reports.
#[derive(Debug, Clone, Default)]
pub(super) struct Health(Arc<AtomicBool>);

impl Health {
    pub(super) fn set_draining(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Connections at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 64;

/// Connections that may wait to be accepted.
pub(super) const BACKLOG: i32 = 64;

/// To send a request's header (also the time a kept-alive connection may be idle), and to take an
/// answer.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
