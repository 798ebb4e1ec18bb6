//! What the admin interface refuses: a closed list of codes, a counter for each, and a line in the
//! log at debug.
//!
//! Every answer that refuses carries its [`Code`]; [`super::admin::Site`] sees it on its way out
//! and notes it. The items of a batch are noted one by one, because an answer of 200 may hold some.

use std::array;
use std::sync::Arc;

use axum::http::StatusCode;
use tracing::debug;

use crate::dialect::publish::PublishError;
use crate::shard::metrics::Counter;

/// Why something is refused, for programs and as a label: all that there are.
pub(super) const CODES: [&str; 30] = [
    "body_too_long",
    "cross_site",
    "draining",
    "invalid_code",
    "invalid_configuration",
    "invalid_cursor",
    "invalid_json",
    "invalid_message",
    "invalid_parameter",
    "invalid_reason",
    "invalid_room_id",
    "invalid_target",
    "invalid_token",
    "invalid_user_id",
    "malformed_request",
    "message_too_long",
    "method_not_allowed",
    "misdirected_request",
    "missing_field",
    "not_found",
    "profile_failed",
    "profile_running",
    "request_timeout",
    "server_busy",
    "shard_behind",
    "too_many_items",
    "unauthorized",
    "unknown_connection",
    "unknown_room",
    "unsupported_media_type",
];

/// One of [`CODES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(usize);

impl Code {
    /// The code of that name.
    ///
    /// # Panics
    /// When it is none: while compiling, where it is a constant.
    pub(super) const fn of(name: &str) -> Self {
        let mut place = 0;
        while place < CODES.len() {
            if is_same(CODES[place].as_bytes(), name.as_bytes()) {
                return Self(place);
            }
            place += 1;
        }
        panic!("a code that is not in CODES")
    }

    pub(super) const fn name(self) -> &'static str {
        CODES[self.0]
    }
}

/// `==` cannot be used in constants.
const fn is_same(one: &[u8], other: &[u8]) -> bool {
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

// What publishes may be refused for has its place, too.
const _: () = {
    let mut at = 0;
    while at < PublishError::ALL.len() {
        Code::of(PublishError::ALL[at].code());
        at += 1;
    }
};

/// How often what was refused. The control thread alone counts; cloning shares it.
#[derive(Debug, Clone)]
pub(super) struct Refusals(Arc<[Counter; CODES.len()]>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Arc::new(array::from_fn(|_| Counter::new())))
    }
}

impl Refusals {
    /// Counts what is refused, and says so at debug: neither what was asked for, nor by whom, as
    /// both may hold what is nobody's business.
    pub(super) fn note(&self, status: StatusCode, code: Code) {
        self.0[code.0].add(1);
        debug!(status = status.as_u16(), code = code.name(), "admin request refused");
    }

    /// All codes with their counts.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CODES.into_iter().zip(self.0.iter().map(Counter::value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_documents_for_people() {
        for (name, page) in [
            ("README.md", include_str!("../../README.md")),
            ("operators.md", include_str!("../../docs/operators.md")),
        ] {
            for code in CODES {
                assert!(page.contains(&format!("`{code}`")), "{code} is not in {name}");
            }
        }
    }

    #[test]
    fn a_code_is_counted_under_its_name() {
        assert!(CODES.is_sorted_by(|a, b| a < b));
        let refusals = Refusals::default();
        refusals.note(StatusCode::NOT_FOUND, Code::of("not_found"));
        refusals.clone().note(StatusCode::NOT_FOUND, Code::of("not_found"));
        let counted: Vec<_> = refusals.counts().filter(|&(_, count)| count > 0).collect();
        assert_eq!(counted, [("not_found", 2)]);
        assert_eq!(CODES.map(|code| Code::of(code).name()), CODES);
    }
}
