//! PROXY headers, held against the text of the specification.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::protocol::proxy::{V1_BYTES_MAX, V2_BYTES_MAX, fuzz_proxy};
use crate::protocol::{Preface, is_proxy_header, parse_proxy_header};

/// What a connection begins with.
///
/// # Panics
/// When a header is taken that the specification does not know, or another address read from it.
pub fn proxy(data: &[u8]) {
    fuzz_proxy(data);
    match parse_proxy_header(data) {
        Ok(Preface::Header { source, len }) => {
            assert!(is_proxy_header(data));
            let header = &data[..len];
            let said = if header.starts_with(b"PROXY ") {
                assert!(len <= V1_BYTES_MAX);
                read_v1(header)
            } else {
                assert!(len <= V2_BYTES_MAX);
                read_v2(header)
            };
            let said = said.map(|source| source.map(|address| address.to_canonical()));
            assert_eq!(said, Some(source), "{:?}", header.escape_ascii().to_string());
        }
        // A request never begins like this.
        Ok(Preface::Absent) => assert!(!is_proxy_header(data)),
        Ok(Preface::Incomplete) => assert!(data.len() < V2_BYTES_MAX),
        Err(error) => assert_eq!(error.status(), 400),
    }
}

/// Section 2.1: words with one space between them, `None` for what is no header.
fn read_v1(header: &[u8]) -> Option<Option<IpAddr>> {
    let line = str::from_utf8(header).ok()?.strip_suffix("\r\n")?;
    let words: Vec<&str> = line.split(' ').collect();
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port.to_string() == text);
    match words[..] {
        // "The receiver must ignore anything presented before the CRLF is found."
        ["PROXY", "UNKNOWN", ..] => Some(None),
        ["PROXY", family, source, destination, from, to] if is_port(from) && is_port(to) => {
            let both: [IpAddr; 2] = [source.parse().ok()?, destination.parse().ok()?];
            let is_family = |address: &IpAddr| match family {
                "TCP4" => address.is_ipv4(),
                "TCP6" => address.is_ipv6(),
                _ => false,
            };
            both.iter().all(is_family).then_some(Some(both[0]))
        }
        _ => None,
    }
}

/// Section 2.2, of which only streams are taken.
fn read_v2(header: &[u8]) -> Option<Option<IpAddr>> {
    let rest = header.strip_prefix(b"\r\n\r\n\0\r\nQUIT\n")?;
    let (head, rest) = rest.split_first_chunk::<4>()?;
    if usize::from(u16::from_be_bytes([head[2], head[3]])) != rest.len() {
        return None;
    }
    match (head[0], head[1]) {
        // LOCAL: "The receiver must discard the protocol block including the family."
        (0x20, _) => Some(None),
        // UNSPEC, of an unspecified or a known kind, and Unix.
        (0x21, 0x00 | 0x01) => Some(None),
        (0x21, 0x10 | 0x11) if rest.len() >= 12 => {
            Some(Some(Ipv4Addr::from(*rest.first_chunk::<4>()?).into()))
        }
        (0x21, 0x20 | 0x21) if rest.len() >= 36 => {
            Some(Some(Ipv6Addr::from(*rest.first_chunk::<16>()?).into()))
        }
        (0x21, 0x30 | 0x31) if rest.len() >= 216 => Some(None),
        _ => None,
    }
}
