//! `GET /`: the live page, one file for a browser.
//!
//! The page holds no secret and shows nothing by itself: it asks `/v1/stats` and `/v1/top`, with
//! the key that its reader gives it where the server wants one.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};

/// The page and how a browser is to treat it: nothing may be loaded, sent elsewhere, or put around
/// it.
pub(super) async fn page() -> ([(HeaderName, &'static str); 5], &'static str) {
    (
        [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            (CACHE_CONTROL, "no-cache"),
        ],
        PAGE,
    )
}

const PAGE: &str = include_str!("page.html");

/// What the page may do: run what is written in it, and ask this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";
