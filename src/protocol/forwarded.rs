//! Whom a request comes from behind proxies: the fields `Forwarded` (RFC 7239) and
//! `X-Forwarded-For`.
//!
//! Every proxy adds the address it was asked from at the right end. So the list is read from there:
//! as long as an address belongs to a trusted proxy the next one to the left is believed, and the
//! first that does not is the client. What stands further left is what that client claims, and is
//! not looked at.
//!
//! ```text
//!   X-Forwarded-For: 10.9.9.9, 198.51.100.7, 10.0.0.2      from peer 10.0.0.1
//!                    claimed   the client    trusted            trusted
//! ```
//!
//! - A proxy that says `unknown`, or hides the address (`_name`), is the client as far as we know.
//! - Both fields may come if they name the same client. If not, one of them is not the proxy's but
//!   passed through from a client that lies: then nobody is believed.
//!
//! (Rejected: the crate `rfc7239` splits at commas inside quoted strings. A proxy that passes the
//! client's Host on, as `host="x,for=192.0.2.1"`, would let it be whomever it wants.)
//!
//! Never: knows which proxies are trusted; the caller does.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::error::HandshakeError;
use super::handshake::Request;

/// The client of `request`, which came from `peer`, a trusted proxy: the right-most address that is
/// not `trusted`, the left-most one if all are, `peer` if there are none.
///
/// # Errors
/// `ForwardedMalformed` if what a trusted proxy has written cannot be read, `ForwardedConflict` if
/// the two fields name different clients.
pub fn client_address(
    request: &Request<'_>,
    peer: IpAddr,
    trusted: impl Fn(IpAddr) -> bool,
) -> Result<IpAddr, HandshakeError> {
    let mut nodes = Vec::new();
    for value in request.values("forwarded") {
        for element in split(value, b',')? {
            nodes.push(forwarded_for(element));
        }
    }
    let forwarded = walk(peer, nodes, &trusted)?;
    let mut nodes = Vec::new();
    for value in request.values("x-forwarded-for") {
        let elements = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        nodes.extend(elements.filter(|element| !element.is_empty()).map(node));
    }
    match (forwarded, walk(peer, nodes, &trusted)?) {
        (Some(one), Some(other)) if one != other => Err(HandshakeError::ForwardedConflict),
        (one, other) => Ok(one.or(other).unwrap_or(peer)),
    }
}

/// Goes from `peer` to the left as long as addresses are trusted. `None`: there are no nodes.
fn walk(
    peer: IpAddr,
    nodes: Vec<Result<Node, HandshakeError>>,
    trusted: impl Fn(IpAddr) -> bool,
) -> Result<Option<IpAddr>, HandshakeError> {
    if nodes.is_empty() {
        return Ok(None);
    }
    let mut client = peer;
    for node in nodes.into_iter().rev() {
        if !trusted(client) {
            break;
        }
        match node? {
            Node::Address(address) => client = address,
            Node::Hidden => break,
        }
    }
    Ok(Some(client))
}

/// Who asked a proxy (RFC 7239 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Address(IpAddr),
    /// `unknown`, or a name that only the proxy knows.
    Hidden,
}

/// The `for` of an element of Forwarded; without one the proxy does not say.
fn forwarded_for(element: &[u8]) -> Result<Node, HandshakeError> {
    let mut found = None;
    for pair in split(element, b';')? {
        let equals = pair.iter().position(|byte| *byte == b'=');
        let (name, value) = pair.split_at(equals.ok_or(HandshakeError::ForwardedMalformed)?);
        if name.trim_ascii().eq_ignore_ascii_case(b"for")
            && found.replace(node(&unquote(value[1..].trim_ascii()))?).is_some()
        {
            return Err(HandshakeError::ForwardedMalformed);
        }
    }
    Ok(found.unwrap_or(Node::Hidden))
}

/// Reads an address with or without a port, an IPv6 address with or without brackets (with them if
/// there is a port), or one of the words for nobody.
fn node(text: &[u8]) -> Result<Node, HandshakeError> {
    let read = |text: &str| {
        if text.starts_with('_') || text.split(':').next()?.eq_ignore_ascii_case("unknown") {
            return Some(Node::Hidden);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Node::Address(address.to_canonical()));
        }
        let (address, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                (address.parse::<Ipv6Addr>().ok()?.into(), port)
            }
            None => {
                let (address, port) = text.split_at(text.find(':')?);
                (address.parse::<Ipv4Addr>().ok()?.into(), port)
            }
        };
        let is_port = |port: &str| {
            port.starts_with('_')
                || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
        };
        let has_port = port.strip_prefix(':').map_or(port.is_empty(), is_port);
        has_port.then_some(Node::Address(IpAddr::to_canonical(&address)))
    };
    str::from_utf8(text).ok().and_then(read).ok_or(HandshakeError::ForwardedMalformed)
}

/// The parts of `value` between separators outside of quoted strings; empty ones do not count
/// (RFC 9110 §5.6.1, §5.6.4).
fn split(value: &[u8], separator: u8) -> Result<Vec<&[u8]>, HandshakeError> {
    let (mut parts, mut begin) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, &byte) in value.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                parts.push(&value[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    if quoted {
        return Err(HandshakeError::ForwardedMalformed);
    }
    parts.push(&value[begin..]);
    Ok(parts.into_iter().map(<[u8]>::trim_ascii).filter(|part| !part.is_empty()).collect())
}

/// What a token or a quoted string stands for (RFC 9110 §5.6.4).
fn unquote(value: &[u8]) -> Cow<'_, [u8]> {
    let Some(quoted) = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) else {
        return Cow::Borrowed(value);
    };
    let mut escaped = false;
    let plain = |byte: &u8| {
        escaped = *byte == b'\\' && !escaped;
        (!escaped).then_some(*byte)
    };
    Cow::Owned(quoted.iter().filter_map(plain).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::handshake::{HandshakeLimits, Progress, parse_request};
    use super::*;

    /// What the fields say when 10.0.0.0/8 is trusted and the peer is 10.0.0.1.
    fn client(fields: &str) -> Result<String, HandshakeError> {
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        let limits = HandshakeLimits { handshake_bytes_max: 8192, target_bytes_max: 64 };
        let Ok(Progress::Complete { request, .. }) = parse_request(head.as_bytes(), 0, &limits)
        else {
            panic!("{head:?} is no request");
        };
        let trusted = |address| matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10);
        client_address(&request, [10, 0, 0, 1].into(), trusted).map(|client| client.to_string())
    }

    #[test]
    fn the_right_most_untrusted_address_is_the_client() {
        for (fields, expected) in [
            ("", "10.0.0.1"),
            ("X-Forwarded-For: 198.51.100.7\r\n", "198.51.100.7"),
            ("x-forwarded-for: 10.9.9.9, 198.51.100.7, 10.0.0.2\r\n", "198.51.100.7"),
            ("X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-For: 10.0.0.2\r\n", "198.51.100.7"),
            ("X-Forwarded-For: 10.0.0.3, 10.0.0.2\r\n", "10.0.0.3"),
            ("X-Forwarded-For: 192.0.2.1,,198.51.100.7:4711 , \r\n", "198.51.100.7"),
            ("X-Forwarded-For: 2001:db8::7\r\n", "2001:db8::7"),
            ("X-Forwarded-For: [2001:db8::7]\r\n", "2001:db8::7"),
            ("X-Forwarded-For: [2001:db8::7]:80\r\n", "2001:db8::7"),
            ("X-Forwarded-For: ::ffff:192.0.2.1\r\n", "192.0.2.1"),
            ("X-Forwarded-For: ::ffff:10.0.0.2\r\n", "10.0.0.2"),
            ("X-Forwarded-For: 192.0.2.1, unknown\r\n", "10.0.0.1"),
            ("X-Forwarded-For: garbage, 198.51.100.7\r\n", "198.51.100.7"),
            ("Forwarded: for=198.51.100.7\r\n", "198.51.100.7"),
            ("Forwarded: For=\"198.51.100.7\";proto=https;by=_x\r\n", "198.51.100.7"),
            ("Forwarded: for=192.0.2.1, FOR=198.51.100.7;host=h, for=10.0.0.2\r\n", "198.51.100.7"),
            ("Forwarded: for=\"[2001:db8::7]:4711\"\r\n", "2001:db8::7"),
            ("Forwarded: for=\"198.51.100.7:_port\"\r\n", "198.51.100.7"),
            ("Forwarded: for=\"198.\\51.100.7\"\r\n", "198.51.100.7"),
            ("Forwarded: for=192.0.2.1, for=_hidden\r\n", "10.0.0.1"),
            ("Forwarded: for=192.0.2.1, for=\"_hidden:_x\", for=10.0.0.2\r\n", "10.0.0.2"),
            ("Forwarded: for=192.0.2.1, for=unknown\r\n", "10.0.0.1"),
            ("Forwarded: for=192.0.2.1, proto=http\r\n", "10.0.0.1"),
            // What a client put into Host does not become an address.
            ("Forwarded: for=198.51.100.7;host=\"x,for=192.0.2.1\"\r\n", "198.51.100.7"),
            ("Forwarded: for=198.51.100.7;host=\"x\\\",for=192.0.2.1\"\r\n", "198.51.100.7"),
            ("Forwarded: for=198.51.100.7\r\nX-Forwarded-For: 198.51.100.7\r\n", "198.51.100.7"),
        ] {
            assert_eq!(client(fields).as_deref(), Ok(expected), "{fields:?}");
        }
    }

    #[test]
    fn what_a_trusted_proxy_writes_must_be_readable() {
        for fields in [
            "X-Forwarded-For: example.com\r\n",
            "X-Forwarded-For: 198.51.100.777\r\n",
            "X-Forwarded-For: 198.51.100.7:65536\r\n",
            "X-Forwarded-For: 198.51.100.7:\r\n",
            "X-Forwarded-For: [2001:db8::7\r\n",
            "X-Forwarded-For: [198.51.100.7]\r\n",
            "X-Forwarded-For: fe80::1%eth0\r\n",
            "X-Forwarded-For: 198.51.100.7, \u{e9}\r\n",
            "Forwarded: 198.51.100.7\r\n",
            "Forwarded: for=\r\n",
            "Forwarded: for=\"198.51.100.7\r\n",
            "Forwarded: for=198.51.100.7;for=198.51.100.7\r\n",
            "Forwarded: for=\"\", for=198.51.100.7\"\r\n",
        ] {
            assert_eq!(client(fields), Err(HandshakeError::ForwardedMalformed), "{fields:?}");
        }
    }

    #[test]
    fn two_fields_must_not_disagree() {
        for fields in [
            "Forwarded: for=192.0.2.1\r\nX-Forwarded-For: 198.51.100.7\r\n",
            "Forwarded: for=unknown\r\nX-Forwarded-For: 198.51.100.7\r\n",
        ] {
            assert_eq!(client(fields), Err(HandshakeError::ForwardedConflict), "{fields:?}");
        }
    }

    proptest! {
        /// Whatever a client claims, what the trusted proxies have added behind it counts.
        #[test]
        fn nothing_to_the_left_matters(
            claimed in "[ -!#-~]{0,60}",
            hops in prop::collection::vec(0..=255u8, 0..4),
        ) {
            let mut list = format!("{claimed}, 198.51.100.7");
            for hop in hops {
                list += &format!(", 10.0.0.{hop}");
            }
            prop_assert_eq!(
                client(&format!("X-Forwarded-For: {list}\r\n")),
                Ok("198.51.100.7".to_owned())
            );
        }
    }
}
