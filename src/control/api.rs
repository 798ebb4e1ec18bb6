//! What the endpoints of the admin interface share: what they work with, and how they answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::desk::Desk;
use super::monitor::Monitor;
use super::reload::SharedReloader;
use crate::config::Limits;

/// What the handlers of requests share. Cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) health: Health,
    pub(super) desk: Desk,
    pub(super) limits: LiveLimits,
    pub(super) monitor: Monitor,
    pub(super) reloader: SharedReloader,
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

/// What `/health` reports.
#[derive(Debug, Clone, Default)]
pub(super) struct Health(Arc<AtomicBool>);

impl Health {
    pub(super) fn set_draining(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.0.load(Ordering::Relaxed)
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

/// An answer that says what is wrong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// For programs.
    pub(super) code: &'static str,
    /// For people: what is wrong and what to do.
    pub(super) message: &'static str,
}

impl Refusal {
    /// Writes it as JSON.
    pub(super) fn put(self, out: &mut Vec<u8>) {
        let error = json!({"error": {"code": self.code, "message": self.message}});
        serde_json::to_writer(out, &error).expect("memory never fails");
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = Vec::new();
        self.put(&mut body);
        json(self.status, body)
    }
}

/// When to try again what could not be done for now, in seconds.
const RETRY_AFTER_S: &str = "1";
