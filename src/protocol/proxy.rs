//! The PROXY protocol: the header in which a proxy says, before anything else, for whom it
//! connects (HAProxy, "The PROXY protocol", versions 1 and 2).
//!
//! ```text
//!   PROXY TCP4 198.51.100.7 203.0.113.1 56324 443\r\n          version 1, at most 107 bytes
//!   \r\n\r\n\0\r\nQUIT\n 21 11 00 0C <addresses> <TLVs>        version 2, at most 4 KiB
//! ```
//!
//! The crate `ppp` reads a header; here is what it leaves to its caller: where the header ends, how
//! long it may be, and that the bytes may come in any pieces, with the request right behind them.
//! The verdict on a prefix is final.
//!
//! Never: decides whom to believe; that is the shard's `admission`.

use std::net::IpAddr;

use ppp::{v1, v2};

use super::error::HandshakeError;

/// The longest header of version 1, line end included, as the specification has it.
pub const V1_BYTES_MAX: usize = 107;
/// The longest header of version 2: 16 bytes, the addresses, and what a proxy adds as TLVs, which
/// is some 100 bytes for a load balancer, and more where it adds the name in a certificate.
pub const V2_BYTES_MAX: usize = 4096;

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preface {
    /// It may be a header; more bytes will tell.
    Incomplete,
    /// It is none.
    Absent,
    /// A header.
    Header {
        /// Whom the proxy connects for; `None`: itself (`LOCAL`, a health check), or it does not
        /// say (`UNKNOWN`, `UNSPEC`, a Unix socket).
        source: Option<IpAddr>,
        /// Its length in bytes; what follows is the request.
        len: usize,
    },
}

/// Reads the header at the start of `input`, everything received on the connection so far.
///
/// # Errors
/// `ProxyHeaderMalformed` for what begins as a header and is none, or is too long.
pub fn parse_proxy_header(input: &[u8]) -> Result<Preface, HandshakeError> {
    let header = if begins(input, V1_PREFIX) {
        read_v1(input)
    } else if begins(input, v2::PROTOCOL_PREFIX) {
        read_v2(input)
    } else {
        return Ok(Preface::Absent);
    };
    header.ok_or(HandshakeError::ProxyHeaderMalformed)
}

/// Whether `input` begins with a whole mark of a header, well-formed or not. No request does.
#[must_use]
pub fn is_proxy_header(input: &[u8]) -> bool {
    let v1 =
        |protocol: &[u8]| input.strip_prefix(V1_PREFIX).is_some_and(|r| r.starts_with(protocol));
    v1(b"TCP") || v1(b"UNKNOWN") || input.starts_with(v2::PROTOCOL_PREFIX)
}

/// Whether `input` begins with `mark`, as far as it has come.
fn begins(input: &[u8], mark: &[u8]) -> bool {
    let len = input.len().min(mark.len());
    input[..len] == mark[..len]
}

fn read_v1(input: &[u8]) -> Option<Preface> {
    let input = &input[..input.len().min(V1_BYTES_MAX)];
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
        return (input.len() < V1_BYTES_MAX).then_some(Preface::Incomplete);
    };
    let len = end + 2;
    let line = &input[..len];
    let source = match v1::Header::try_from(line).ok()?.addresses {
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Unknown => None,
    };
    // The crate reads numbers as Rust does, which lets a port have a sign.
    if source.is_some() && line.contains(&b'+') {
        return None;
    }
    Some(Preface::Header { source: source.map(canonical), len })
}

fn read_v2(input: &[u8]) -> Option<Preface> {
    let Some(head) = input.first_chunk::<V2_HEAD>() else {
        return Some(Preface::Incomplete);
    };
    let len = V2_HEAD + usize::from(u16::from_be_bytes([head[14], head[15]]));
    if len > V2_BYTES_MAX {
        return None;
    }
    let Some(header) = input.get(..len) else {
        return Some(Preface::Incomplete);
    };
    // Whatever else a LOCAL header says is to be ignored.
    if head[12] == V2_LOCAL {
        return Some(Preface::Header { source: None, len });
    }
    let header = v2::Header::try_from(header).ok()?;
    if header.protocol == v2::Protocol::Datagram {
        return None;
    }
    let source = match header.addresses {
        v2::Addresses::IPv4(addresses) => Some(addresses.source_address.into()),
        v2::Addresses::IPv6(addresses) => Some(addresses.source_address.into()),
        v2::Addresses::Unspecified | v2::Addresses::Unix(_) => None,
    };
    Some(Preface::Header { source: source.map(canonical), len })
}

/// An IPv4 address that came as `::ffff:a.b.c.d` is that IPv4 address.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// What a header of version 1 begins with.
const V1_PREFIX: &[u8] = b"PROXY ";
/// The fixed part of a header of version 2, with the length of the rest in its last two bytes.
const V2_HEAD: usize = 16;
/// Version 2, command LOCAL.
const V2_LOCAL: u8 = 0x20;

/// Feeds any bytes to the parser, whole and in pieces: the result must be the same.
///
/// # Panics
/// When it is not: that is a finding.
#[cfg(any(test, fuzzing))]
pub fn fuzz_proxy(data: &[u8]) {
    let whole = parse_proxy_header(data);
    if let Ok(Preface::Header { len, .. }) = whole {
        assert!(len <= data.len() && len <= V2_BYTES_MAX);
    }
    for end in 0..data.len() {
        let part = parse_proxy_header(&data[..end]);
        assert!(part == Ok(Preface::Incomplete) || part == whole, "at {end} of {}", data.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [v2::PROTOCOL_PREFIX, &[0x20 | command, family], &len, rest].concat()
    }

    fn v4_addresses(tlvs: usize) -> Vec<u8> {
        [&[198, 51, 100, 7, 203, 0, 113, 1, 0xdc, 4, 1, 0xbb][..], &vec![4; tlvs]].concat()
    }

    #[track_caller]
    fn check(header: &[u8], expected: Option<&str>) {
        let source = expected.map(|address| address.parse().unwrap());
        let expected = Ok(Preface::Header { source, len: header.len() });
        assert_eq!(parse_proxy_header(header), expected);
        // With the request right behind it.
        let all = [header, b"GET /ws HTTP/1.1\r\n"].concat();
        assert_eq!(parse_proxy_header(&all), expected);
        fuzz_proxy(&all);
    }

    #[track_caller]
    fn refused(header: &[u8]) {
        assert_eq!(parse_proxy_header(header), Err(HandshakeError::ProxyHeaderMalformed));
        fuzz_proxy(header);
    }

    #[test]
    fn headers_of_version_1() {
        check(b"PROXY TCP4 198.51.100.7 203.0.113.1 56324 443\r\n", Some("198.51.100.7"));
        check(b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n", Some("2001:db8::7"));
        check(b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Some("192.0.2.1"));
        check(b"PROXY UNKNOWN\r\n", None);
        check(b"PROXY UNKNOWN ff:: ff:: 1 2\r\n", None);
    }

    #[test]
    fn a_header_of_version_1_has_107_bytes_at_most() {
        let line = |len: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(len - 16)).into_bytes();
        check(&line(V1_BYTES_MAX), None);
        refused(&line(V1_BYTES_MAX + 1));
        assert_eq!(parse_proxy_header(&line(200)[..106]), Ok(Preface::Incomplete));
        refused(&line(200)[..107]);
    }

    #[test]
    fn headers_of_version_2() {
        check(&v2(1, 0x11, &v4_addresses(0)), Some("198.51.100.7"));
        check(&v2(1, 0x11, &v4_addresses(300)), Some("198.51.100.7"));
        let v6 =
            [[0x20, 1, 0xd, 0xb8].as_slice(), &[0; 11], &[7], &[0; 16], &[0, 1, 0, 2]].concat();
        check(&v2(1, 0x21, &v6), Some("2001:db8::7"));
        // Unspecified, a Unix socket, the proxy itself, the same with what is to be ignored.
        check(&v2(1, 0x00, &[]), None);
        check(&v2(1, 0x31, &[0; 216]), None);
        check(&v2(0, 0x00, &[]), None);
        check(&v2(0, 0xff, &[1, 2, 3]), None);
    }

    #[test]
    fn a_header_of_version_2_has_4_kib_at_most() {
        let fits = V2_BYTES_MAX - V2_HEAD - 12;
        check(&v2(1, 0x11, &v4_addresses(fits)), Some("198.51.100.7"));
        refused(&v2(1, 0x11, &v4_addresses(fits + 1)));
        // It is told by the length alone, not when all has come.
        refused(&v2(1, 0x11, &v4_addresses(fits + 1))[..V2_HEAD]);
    }

    #[test]
    fn malformed_headers() {
        for header in [
            &b"PROXY TCP4 198.51.100.7 203.0.113.1 56324\r\n"[..],
            b"PROXY TCP4 198.51.100.777 203.0.113.1 56324 443\r\n",
            b"PROXY TCP4 2001:db8::7 2001:db8::1 56324 443\r\n",
            b"PROXY TCP4 198.51.100.7 203.0.113.1 56324 65536\r\n",
            b"PROXY TCP4 198.51.100.7 203.0.113.1 56324 +443\r\n",
            b"PROXY TCP6 2001:db8::7 2001:db8::1 +56324 443\r\n",
            b"PROXY UDP4 198.51.100.7 203.0.113.1 56324 443\r\n",
            b"PROXY  TCP4 198.51.100.7 203.0.113.1 56324 443\r\n",
            b"PROXY \r\n",
            &v2(1, 0x11, &[0; 11]),
            &v2(1, 0x12, &v4_addresses(0)),
            &v2(1, 0x41, &v4_addresses(0)),
            &v2(2, 0x11, &v4_addresses(0)),
        ] {
            refused(header);
        }
    }

    #[test]
    fn requests_are_no_headers() {
        for request in
            [&b"GET / HTTP/1.1\r\n"[..], b"PUT /", b"PROXX", b"\r\n\r\nGET /", b"\x16\x03"]
        {
            assert_eq!(parse_proxy_header(request), Ok(Preface::Absent));
            assert!(!is_proxy_header(request));
        }
        for start in [&b""[..], b"P", b"PROXY", b"\r\n", b"\r\n\r\n\0\r\nQUIT"] {
            assert_eq!(parse_proxy_header(start), Ok(Preface::Incomplete));
            assert!(!is_proxy_header(start));
        }
        assert!(is_proxy_header(b"PROXY TCP4 ") && is_proxy_header(v2::PROTOCOL_PREFIX));
    }

    proptest! {
        #[test]
        fn any_split_comes_to_the_same(
            start in prop::sample::select(vec![
                &b""[..], b"PROXY ", b"PROXY TCP4 1.2.3.4 1.2.3.4 ", b"PROXY UNKNOWN",
                v2::PROTOCOL_PREFIX, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c",
            ]),
            rest in prop::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(b"\r\n 0159.:".to_vec())], 0..150),
        ) {
            fuzz_proxy(&[start, &rest].concat());
        }
    }
}
