//! The fields in which proxies say whom they asked for.

use std::net::IpAddr;

use crate::protocol::{HandshakeError, HandshakeLimits, Progress, client_address, parse_request};

/// The first line is what a client claims in X-Forwarded-For, the second in Forwarded. A proxy of
/// 10.0.0.0/8 adds the client's address to one or the other, or a field of its own.
///
/// # Panics
/// When the claim, whatever it is, makes the client somebody else.
pub fn forwarded(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (listed, element) = text.split_once('\n').unwrap_or((text, ""));
    let is_field = |value: &str| !value.contains(|c: char| c.is_ascii_control() && c != '\t');
    if !is_field(listed) || !is_field(element) {
        return;
    }
    let _ = client(&[("X-Forwarded-For", listed), ("Forwarded", element)]);
    for added in ["198.51.100.7", "198.51.100.7:4711", "198.51.100.7, 10.0.0.2"] {
        for fields in [
            &[("X-Forwarded-For", &format!("{listed}, {added}")[..])][..],
            &[("X-Forwarded-For", listed), ("X-Forwarded-For", added)],
        ] {
            assert_eq!(client(fields), Ok(CLIENT), "{fields:?}");
        }
    }
    for added in
        ["for=198.51.100.7", "for=\"198.51.100.7:1\";by=_x", "for=198.51.100.7, for=10.1.1.1"]
    {
        for fields in [
            &[("Forwarded", &format!("{element}, {added}")[..])][..],
            &[("Forwarded", element), ("Forwarded", added)],
        ] {
            match client(fields) {
                // A claim that leaves a quote open makes all of it unreadable.
                Err(HandshakeError::ForwardedMalformed) => {}
                client => assert_eq!(client, Ok(CLIENT), "{fields:?}"),
            }
        }
    }
}

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 7));

/// Whom a request with these fields comes from, by 10.0.0.1.
fn client(fields: &[(&str, &str)]) -> Result<IpAddr, HandshakeError> {
    let field = |(name, value): &(&str, &str)| format!("{name}: {value}\r\n");
    let fields: String = fields.iter().map(field).collect();
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    let limits = HandshakeLimits { handshake_bytes_max: 1 << 20, target_bytes_max: 64 };
    let Progress::Complete { request, consumed } = parse_request(head.as_bytes(), 0, &limits)?
    else {
        panic!("{head:?} is incomplete");
    };
    assert_eq!(consumed, head.len());
    let trusted = |address| matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10);
    client_address(&request, [10, 0, 0, 1].into(), trusted)
}
