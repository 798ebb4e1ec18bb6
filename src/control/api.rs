//! What the endpoints of the admin interface share: what they work with, and how they answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::desk::Desk;
use super::monitor::Monitor;
use super::questions::Questions;
use super::refusal::{Code, Refusals};
use super::reload::SharedReloader;
use crate::config::Limits;
use crate::dialect::publish::PublishError;
use crate::logging::Threshold;

/// What the handlers of requests share. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) health: Health,
    pub(super) desk: Desk,
    pub(super) questions: Questions,
    pub(super) limits: LiveLimits,
    pub(super) monitor: Monitor,
    pub(super) reloader: SharedReloader,
    pub(super) log: Threshold,
    pub(super) refusals: Refusals,
}

impl Api {
    /// The body of a request as text, unless it is not said to be JSON.
    ///
    /// Nothing else is taken because browsers send anything else without asking: a page of any site
    /// could publish, or disconnect, through a visitor who can reach this address.
    pub(super) fn json_body<'b>(
        &self,
        head: &HeaderMap,
        body: &'b [u8],
    ) -> Result<&'b str, Refusal> {
        let content_type = head.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        let media_type = content_type.split(|&b| b == b';').next().unwrap_or_default();
        if !media_type.trim_ascii().eq_ignore_ascii_case(b"application/json") {
            return Err(NOT_JSON);
        }
        simdutf8::basic::from_utf8(body).map_err(|_| PublishError::InvalidJson.into())
    }
}

/// The limits in force, which a reload replaces. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct LiveLimits(Arc<RwLock<Arc<Limits>>>);

impl LiveLimits {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(limits))))
    }

    /// Those of now; a request keeps to them until it is answered.
    pub(super) fn get(&self) -> Arc<Limits> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set(&self, limits: Arc<Limits>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }
}

/// What `/health` reports, and whether requests are still carried out. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(super) struct Health(Arc<State>);

#[derive(Debug, Default)]
struct State {
    draining: AtomicBool,
    refuses: AtomicBool,
}

impl Health {
    /// The server is going to end: it says so, and goes on until [`Health::set_refusing`].
    pub(super) fn set_draining(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// From now on nothing is published any more.
    pub(super) fn set_refusing(&self) {
        self.0.refuses.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    pub(super) fn refuses(&self) -> bool {
        self.0.refuses.load(Ordering::Relaxed)
    }
}

/// Why the server takes no traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// It is about to end.
    Draining,
    /// It holds more memory than `ready_rss_max` says.
    Memory {
        /// Resident bytes at the last look.
        resident: u64,
        /// What is said.
        max: u64,
    },
}

impl Api {
    /// Why the server takes no traffic; `None`: it does.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        if self.health.is_draining() {
            return Some(Obstacle::Draining);
        }
        let (resident, max) =
            (self.monitor.resident_bytes(), self.limits.get().ready_rss_max? as u64);
        (resident > max).then_some(Obstacle::Memory { resident, max })
    }
}

impl Obstacle {
    /// One word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Memory { .. } => "memory",
        }
    }
}

/// A JSON answer that is written already.
pub(super) fn json(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = (status, body).into_response();
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        fields.insert(RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER_S));
    }
    response
}

/// A JSON answer.
pub(super) fn json_of(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("text and numbers are JSON");
    json(status, body)
}

/// An answer that says what is wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// For programs.
    pub(super) code: Code,
    /// For people: what is wrong and what to do.
    pub(super) message: &'static str,
}

impl Refusal {
    /// Writes it as JSON.
    pub(super) fn put(self, out: &mut Vec<u8>) {
        let error = json!({"error": {"code": self.code.name(), "message": self.message}});
        serde_json::to_writer(out, &error).expect("memory never fails");
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = Vec::new();
        self.put(&mut body);
        let mut response = json(self.status, body);
        response.extensions_mut().insert(self.code);
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 6750 section 3: the error only when there was a key.
            let challenge = if self.code == Code::of("invalid_token") {
                "Bearer realm=\"fanwire\", error=\"invalid_token\""
            } else {
                "Bearer realm=\"fanwire\""
            };
            let challenge = HeaderValue::from_static(challenge);
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

const NOT_JSON: Refusal = Refusal {
    status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
    code: Code::of("unsupported_media_type"),
    message: "Send JSON, with the field Content-Type: application/json.",
};

/// When to try again what could not be done for now, in seconds.
const RETRY_AFTER_S: &str = "1";
