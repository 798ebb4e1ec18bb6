//! What a request shows of who asks: its bearer token (RFC 6750) and its origin (RFC 6454).
//!
//! A token may come in three ways: in the `Authorization` field; in the query, as `token`, percent-
//! encoded; or as a subprotocol `bearer.TOKEN` beside the one that is meant, for that is the only
//! field of a WebSocket's request that a web page can write into. Two tokens are one too many (RFC
//! 6750 §2): a proxy and this server might each choose another.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::{Request, list};
use crate::protocol::error::HandshakeError;

/// What stands before a token that is offered as a subprotocol.
const SUBPROTOCOL_PREFIX: &[u8] = b"bearer.";

impl<'h> Request<'h> {
    /// The token of the request, if it has one. Another scheme of `Authorization` than Bearer is
    /// none of ours: a proxy may have asked for it.
    ///
    /// Cost: one pass over the fields; allocates only for percent-encoding.
    ///
    /// # Errors
    /// `TokenRepeated` for more than one. (A token that is not UTF-8 is none of ours either, and is
    /// given as an empty one.)
    pub fn bearer_token(&self) -> Result<Option<Cow<'h, str>>, HandshakeError> {
        let authorization = self.values("authorization").filter_map(|value| {
            let (scheme, token) = value.split_at(value.iter().position(|byte| *byte == b' ')?);
            scheme.eq_ignore_ascii_case(b"bearer").then(|| token.trim_ascii())
        });
        let offered = self.values("sec-websocket-protocol").flat_map(list);
        let offered = offered.filter_map(|name| name.strip_prefix(SUBPROTOCOL_PREFIX));
        let in_fields = authorization.chain(offered).map(|token| {
            let text = std::str::from_utf8(token).unwrap_or_default();
            Cow::Borrowed(text)
        });
        let parameters = self.query.into_iter().flat_map(|query| query.split('&'));
        let in_query = parameters.filter_map(|parameter| {
            let token = parameter.strip_prefix("token=")?;
            Some(percent_decode_str(token).decode_utf8().unwrap_or_default())
        });
        let mut tokens = in_fields.chain(in_query);
        let token = tokens.next();
        if tokens.next().is_some() { Err(HandshakeError::TokenRepeated) } else { Ok(token) }
    }

    /// The origin of the page that asks; `None` if it is no browser that asks. Several, or one that
    /// is not text, are an origin that nobody has: the empty one.
    pub fn origin(&self) -> Option<&'h str> {
        let mut origins = self.values("origin");
        let origin = std::str::from_utf8(origins.next()?).unwrap_or_default();
        Some(if origins.next().is_some() { "" } else { origin })
    }
}

/// The values of the field lines of that name, without the space around them.
pub(super) fn values<'h>(
    lines: &'h [u8],
    name: &'static str,
) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    lines.split(|byte| *byte == b'\n').filter_map(move |line| {
        let (field, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
        field.eq_ignore_ascii_case(name.as_bytes()).then(|| value[1..].trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::super::{HandshakeLimits, Progress, parse_request};
    use super::*;

    const LIMITS: HandshakeLimits =
        HandshakeLimits { handshake_bytes_max: 1024, target_bytes_max: 512 };

    fn with<R>(target: &str, fields: &[&str], look: impl Fn(&Request<'_>) -> R) -> R {
        let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        match parse_request(head.as_bytes(), 0, &LIMITS) {
            Ok(Progress::Complete { request, .. }) => look(&request),
            other => panic!("{head}: {other:?}"),
        }
    }

    #[test]
    fn tokens_in_each_place() {
        for (target, fields, expected) in [
            ("/ws", &[][..], Ok(None)),
            ("/ws?a=b&tokens=c&xtoken=d&token", &["Origin: x"], Ok(None)),
            ("/ws", &["Authorization: Bearer a.b.c"], Ok(Some("a.b.c"))),
            ("/ws", &["authorization:  bearer   a.b.c  "], Ok(Some("a.b.c"))),
            ("/ws", &["Authorization: Bearer"], Ok(None)),
            ("/ws", &["Authorization: Basic YTpi"], Ok(None)),
            ("/ws?token=a.b.c", &["Authorization: Basic YTpi"], Ok(Some("a.b.c"))),
            ("/ws?x=1&token=a%2Eb.c&y=2", &[], Ok(Some("a.b.c"))),
            ("/ws?token=", &[], Ok(Some(""))),
            ("/ws?token=%FF", &[], Ok(Some(""))),
            ("/ws", &["Sec-WebSocket-Protocol: fanwire.v1, bearer.a.b.c"], Ok(Some("a.b.c"))),
            (
                "/ws",
                &["Sec-WebSocket-Protocol: fanwire.v1", "sec-websocket-protocol: ,bearer.a"],
                Ok(Some("a")),
            ),
            ("/ws", &["Sec-WebSocket-Protocol: Bearer.a, bearer"], Ok(None)),
            ("/ws?token=a&token=a", &[], Err(HandshakeError::TokenRepeated)),
            ("/ws?token=a", &["Authorization: Bearer a"], Err(HandshakeError::TokenRepeated)),
            (
                "/ws",
                &["Authorization: Bearer a", "Authorization: Bearer a"],
                Err(HandshakeError::TokenRepeated),
            ),
            (
                "/ws",
                &["Sec-WebSocket-Protocol: bearer.a, bearer.b"],
                Err(HandshakeError::TokenRepeated),
            ),
            (
                "/ws",
                &["Sec-WebSocket-Protocol: bearer.a", "Authorization: Bearer a"],
                Err(HandshakeError::TokenRepeated),
            ),
        ] {
            with(target, fields, |request| {
                let token = request.bearer_token();
                let token = token.as_ref().map(|token| token.as_deref()).map_err(|error| *error);
                assert_eq!(token, expected, "{target} {fields:?}");
            });
        }
    }

    #[test]
    fn origins() {
        for (fields, expected) in [
            (&[][..], None),
            (&["Origin: https://a.example"], Some("https://a.example")),
            (&["ORIGIN:null "], Some("null")),
            (&["Origin: https://a.example", "Origin: https://a.example"], Some("")),
            (&["Origin:"], Some("")),
        ] {
            with("/ws", fields, |request| assert_eq!(request.origin(), expected, "{fields:?}"));
        }
    }
}
