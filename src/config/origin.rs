//! Which web pages may connect: the origins that browsers send (RFC 6454, RFC 6455 §10.2).
//!
//! An origin is allowed by its own text, such as `https://example.com`, or by that of a domain:
//! `https://*.example.com` allows every host below it, at any depth, and not `example.com` itself.
//! Only browsers send an origin, and they do not lie about it; who sends none is no browser, and
//! passes.

use std::fmt;

use serde::{Serialize, Serializer};

use super::value::ValueError;

/// The origins that may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins {
    /// `None`: all.
    pub(super) allowed: Option<Vec<OriginRule>>,
}

impl Origins {
    /// Whether all may.
    #[must_use]
    pub const fn is_any(&self) -> bool {
        self.allowed.is_none()
    }

    /// Whether pages of `origin` may connect. Cost: linear in the rules; allocates nothing.
    #[must_use]
    pub fn allow(&self, origin: &str) -> bool {
        let allowed = |rules: &Vec<OriginRule>| rules.iter().any(|rule| rule.allows(origin));
        self.allowed.as_ref().is_none_or(allowed)
    }
}

/// One entry of `origins`; prints as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OriginRule {
    /// Every origin is allowed: `off`.
    Any,
    /// This one.
    Exact(Box<str>),
    /// Every host below a domain.
    Below {
        /// `https://`
        scheme: Box<str>,
        /// `.example.com`, with the port if there is one.
        domain: Box<str>,
    },
}

impl OriginRule {
    fn allows(&self, origin: &str) -> bool {
        match self {
            OriginRule::Any => true,
            OriginRule::Exact(exact) => origin.eq_ignore_ascii_case(exact),
            OriginRule::Below { scheme, domain } => {
                let Some(at) = origin.len().checked_sub(domain.len()) else { return false };
                // Both cuts are checked: an origin may be any bytes of any length.
                let (Some(start), Some(end)) = (origin.get(..scheme.len()), origin.get(at..))
                else {
                    return false;
                };
                let host = origin.get(scheme.len()..at).unwrap_or_default();
                start.eq_ignore_ascii_case(scheme)
                    && end.eq_ignore_ascii_case(domain)
                    && is_host(host)
            }
        }
    }
}

impl fmt::Display for OriginRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OriginRule::Any => f.write_str("off"),
            OriginRule::Exact(origin) => f.write_str(origin),
            OriginRule::Below { scheme, domain } => write!(f, "{scheme}*{domain}"),
        }
    }
}

impl Serialize for OriginRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An origin, a domain of them, or "off" (also written "*").
pub(super) fn read(text: &str, _accepted: &str) -> Result<OriginRule, ValueError> {
    let text = text.trim().to_ascii_lowercase();
    match text.as_str() {
        "off" | "*" => return Ok(OriginRule::Any),
        // What browsers send for files and sandboxed frames.
        "null" => return Ok(OriginRule::Exact(text.into())),
        _ => {}
    }
    let (scheme, authority) = text.split_once("://").ok_or(ValueError::NotAnOrigin)?;
    let host_and_port = authority.strip_prefix("*.").unwrap_or(authority);
    let (host, port) = match host_and_port.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (host_and_port, None),
    };
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric());
    // Browsers leave the default port out: with it, nothing would ever match.
    let is_port = port.is_none_or(|port| {
        port.parse::<u16>().is_ok() && !matches!((scheme, port), ("http", "80") | ("https", "443"))
    });
    let is_address = host.starts_with('[') && host.ends_with(']');
    if !is_scheme || !is_port || !(is_host(host) || (is_address && host_and_port == authority)) {
        return Err(ValueError::NotAnOrigin);
    }
    Ok(match authority.strip_prefix('*') {
        Some(domain) => {
            OriginRule::Below { scheme: format!("{scheme}://").into(), domain: domain.into() }
        }
        None => OriginRule::Exact(text.into()),
    })
}

/// Whether it is labels of a host name, and nothing that could end one.
fn is_host(text: &str) -> bool {
    let is_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    !text.is_empty() && text.bytes().all(is_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(rules: &[&str]) -> Origins {
        let rules = rules.iter().map(|rule| read(rule, "").expect("a good rule")).collect();
        Origins { allowed: Some(rules) }
    }

    #[test]
    fn origins_allowed_and_not() {
        for (rules, allowed, others) in [
            (
                &["https://example.com"][..],
                &["https://example.com", "HTTPS://Example.com"][..],
                &[
                    "http://example.com",
                    "https://example.com:8443",
                    "https://example.com.evil.org",
                    "https://a.example.com",
                    "null",
                    "",
                ][..],
            ),
            (
                &["https://*.Example.com", "http://localhost:3000"],
                &["https://a.example.com", "https://a.b.EXAMPLE.com", "http://localhost:3000"],
                &[
                    "https://example.com",
                    "https://.example.com",
                    "https://evilexample.com",
                    "https://evil.org/.example.com",
                    "https://evil.org#.example.com",
                    "https://a.example.com:444",
                    "http://a.example.com",
                    "http://localhost",
                    "é",
                    "https://é.example.com",
                ],
            ),
            (
                &["https://*.example.com:444"],
                &["https://a.example.com:444"],
                &["https://a.example.com"],
            ),
            (&["http://[::1]:3000", "null"], &["http://[::1]:3000", "null"], &["http://[::1]"]),
            (&["*"], &["anything", ""], &[]),
        ] {
            let origins = origins(rules);
            for origin in allowed {
                assert!(origins.allow(origin), "{rules:?} and {origin}");
            }
            for origin in others {
                assert!(!origins.allow(origin), "{rules:?} and {origin}");
            }
        }
        assert!(Origins::default().allow("anything"));
    }

    #[test]
    fn rules_read_and_print() {
        for (text, printed) in [
            ("off", "off"),
            ("*", "off"),
            ("null", "null"),
            (" HTTPS://Example.com ", "https://example.com"),
            ("https://*.example.com:444", "https://*.example.com:444"),
            ("http://[::1]", "http://[::1]"),
        ] {
            let rule = read(text, "").expect(text);
            assert_eq!(rule.to_string(), printed);
            assert_eq!(read(printed, ""), Ok(rule));
        }
        for wrong in [
            "",
            "example.com",
            "https://",
            "https://example.com/",
            "https://example.com:443",
            "http://a:80",
            "https://a:99999",
            "https://a b",
            "https://*example.com",
            "https://*.",
            "https://*.*.com",
            "https://*.[::1]",
            "://a",
        ] {
            assert_eq!(read(wrong, ""), Err(ValueError::NotAnOrigin), "{wrong}");
        }
    }
}
