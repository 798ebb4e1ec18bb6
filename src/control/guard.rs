//! Who may use the admin interface.
//!
//! With keys: whoever has one, and everybody for `/health`, `/ready` and the page at `/`, which by
//! themselves tell and change nothing. Without: everybody, on a loopback address. That includes the
//! browsers of this host, and with them every site they visit, so that:
//!
//! - the host that a request names must be `localhost` or an address. A site can let its own name
//!   stand for 127.0.0.1 (DNS rebinding) and would be one with us in the eyes of the browser; but
//!   its name is what the browser asks for.
//! - what changes something must not come from another site's page. A browser says where it comes
//!   from, in `Sec-Fetch-Site` (W3C Fetch Metadata) or `Origin` (RFC 6454); other programs say
//!   nothing. It does not ask before it sends what a form could send, so bodies must be JSON, too.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, Method, StatusCode};

use super::api::Refusal;
use super::keys::Keys;
use super::refusal::Code;

/// What is open to everybody.
pub(super) const OPEN: [&str; 3] = ["/", "/health", "/ready"];

/// See the module documentation.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    pub(super) keys: Keys,
    /// The interface is on a loopback address.
    is_loopback: bool,
}

impl Guard {
    /// For the interface at `address`.
    pub(super) fn new(keys: Keys, address: SocketAddr) -> Self {
        Self { keys, is_loopback: address.ip().to_canonical().is_loopback() }
    }

    /// Whether the request may be answered.
    ///
    /// # Errors
    /// What is to be answered instead.
    pub(super) fn check(&self, head: &Parts) -> Result<(), Refusal> {
        if is_cross_site(head) {
            return Err(CROSS_SITE);
        }
        let key = bearer(head);
        match self.keys.open_to(key) {
            Some(true) => Ok(()),
            _ if OPEN.contains(&head.uri.path()) => Ok(()),
            Some(false) if key.is_some() => Err(WRONG_KEY),
            Some(false) => Err(NO_KEY),
            None if self.is_loopback && !head.headers.get_all(HOST).iter().all(is_local) => {
                Err(MISDIRECTED)
            }
            None => Ok(()),
        }
    }
}

/// What stands behind `Authorization: Bearer` (RFC 6750 section 2.1).
fn bearer(head: &Parts) -> Option<&[u8]> {
    let (scheme, key) = head.headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// Whether the host is one that no site can call its own.
fn is_local(host: &HeaderValue) -> bool {
    let Ok(host) = Authority::try_from(host.as_bytes()) else { return false };
    let name = host.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// Whether a page of another site sends what could change something.
fn is_cross_site(head: &Parts) -> bool {
    if matches!(head.method, Method::GET | Method::HEAD) {
        return false;
    }
    if let Some(site) = head.headers.get("sec-fetch-site") {
        return !matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    let own = head.headers.get(HOST).map_or(&b""[..], |host| host.as_bytes());
    head.headers.get(ORIGIN).is_some_and(|origin| {
        let origin = origin.as_bytes();
        let host = origin.windows(3).position(|bytes| bytes == b"://").map(|at| &origin[at + 3..]);
        !host.is_some_and(|host| host.eq_ignore_ascii_case(own))
    })
}

const NO_KEY: Refusal = Refusal {
    status: StatusCode::UNAUTHORIZED,
    code: Code::of("unauthorized"),
    message: "This needs a key: send the field Authorization: Bearer KEY.",
};

const WRONG_KEY: Refusal = Refusal {
    status: StatusCode::UNAUTHORIZED,
    code: Code::of("invalid_token"),
    message: "The key is none of those in admin_key_file.",
};

const MISDIRECTED: Refusal = Refusal {
    status: StatusCode::MISDIRECTED_REQUEST,
    code: Code::of("misdirected_request"),
    message: "Without a key this answers to localhost and to addresses only; ask for one of \
              those, or set admin_key_file.",
};

const CROSS_SITE: Refusal = Refusal {
    status: StatusCode::FORBIDDEN,
    code: Code::of("cross_site"),
    message: "A page of another site must not change anything here.",
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Switch;
    use axum::http::Request;

    fn guard(key: Option<&str>, address: &str) -> Guard {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), key.unwrap_or_default()).unwrap();
        let file = key.map_or(Switch::Off, |_| Switch::On(file.path().into()));
        Guard::new(Keys::read(&file).unwrap(), address.parse().unwrap())
    }

    #[track_caller]
    fn check(guard: &Guard, line: &str, fields: &[(&str, &str)], status: u16) {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let found = guard.check(&head).map_or_else(|refusal| refusal.status.as_u16(), |()| 200);
        assert_eq!(found, status, "{line} {fields:?}");
    }

    #[test]
    fn a_key_opens() {
        let guard = guard(Some("0123456789abcdef"), "0.0.0.0:1");
        let right = ("authorization", "Bearer 0123456789abcdef");
        check(&guard, "GET /v1/rooms", &[right], 200);
        check(&guard, "GET /v1/rooms", &[right, ("host", "fanwire.example")], 200);
        check(&guard, "GET /v1/rooms", &[("authorization", "bearer  0123456789abcdef ")], 200);
        for wrong in ["", "Bearer", "Bearer ", "Basic 0123456789abcdef", "Bearer 0123456789abcde"] {
            check(&guard, "GET /v1/rooms", &[("authorization", wrong)], 401);
        }
        check(&guard, "GET /v1/rooms", &[], 401);
        check(&guard, "GET /nothing", &[], 401);
        check(&guard, "GET /metrics", &[], 401);
        for open in OPEN {
            check(&guard, &format!("GET {open}"), &[], 200);
            check(&guard, &format!("GET {open}?x=/"), &[("authorization", "Bearer no")], 200);
        }
        check(&guard, "GET //health", &[], 401);
    }

    #[test]
    fn no_name_of_a_site_stands_for_loopback() {
        let loopback = guard(None, "127.0.0.1:1");
        for host in ["localhost", "LOCALHOST:8081", "127.0.0.1:8081", "[::1]", "[::1]:8081"] {
            check(&loopback, "GET /v1/rooms", &[("host", host)], 200);
        }
        for host in ["evil.example", "evil.example:8081", "127.0.0.1.evil.example", "", "[::1"] {
            check(&loopback, "GET /v1/rooms", &[("host", host)], 421);
            check(&loopback, "GET /v1/rooms", &[("host", "localhost"), ("host", host)], 421);
        }
        // Health checks of HTTP/1.0.
        check(&loopback, "GET /health", &[], 200);
        check(&guard(None, "[::ffff:127.0.0.1]:1"), "GET /v1/top", &[("host", "a.b")], 421);
        // With --insecure.
        check(&guard(None, "0.0.0.0:1"), "GET /v1/rooms", &[("host", "fanwire.example")], 200);
    }

    #[test]
    fn another_site_changes_nothing() {
        let guard = guard(None, "127.0.0.1:1");
        let host = ("host", "127.0.0.1:1");
        let origin = |origin| [host, ("origin", origin)];
        let site = |site| [host, ("sec-fetch-site", site), ("origin", "http://127.0.0.1:1")];
        check(&guard, "POST /v1/publish", &[host], 200);
        check(&guard, "POST /v1/publish", &origin("http://127.0.0.1:1"), 200);
        for other in ["http://127.0.0.1:2", "https://evil.example", "null", ""] {
            check(&guard, "POST /v1/publish", &origin(other), 403);
            check(&guard, "PUT /v1/log-level", &origin(other), 403);
            check(&guard, "GET /v1/rooms", &origin(other), 200);
        }
        for (from, status) in
            [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)]
        {
            check(&guard, "POST /v1/disconnect", &site(from), status);
        }
    }
}
