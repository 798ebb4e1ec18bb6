//! RFC 6455, pure: bytes in, events and bytes out.
//!
//! | Module | What it knows | Source |
//! | --- | --- | --- |
//! | [`handshake`] | upgrade request in, 101 or an HTTP refusal out | RFC 6455 §4, RFC 9112 |
//! | [`proxy`] | the header a proxy sends before a request | PROXY protocol 1 and 2 |
//! | [`forwarded`] | the fields a proxy adds to a request | RFC 7239 |
//! | [`frame`] | opcodes and frame headers, both ways | RFC 6455 §5.2 |
//! | [`mask`] | unmasking in place | RFC 6455 §5.3 |
//! | [`utf8`] | UTF-8 cut anywhere | RFC 6455 §8.1, RFC 3629 |
//! | [`close`] | close codes and the close payload | RFC 6455 §5.5.1, §7.4 |
//! | [`decoder`] | what an open connection receives, as events | RFC 6455 §5.4, §6.2 |
//! | [`error`] | what a peer can do wrong, and the code or status that answers it | §7.4, RFC 9110 §15 |
//!
//! Everything here is resumable at any byte: however the network cuts the stream, the same events
//! come out. Each parser judges a prefix for good: an error never turns into something else when
//! more bytes arrive, and it is reported at the first byte that shows it wherever that is cheap.
//!
//! Never: reads a clock, touches a socket, writes a log line, or allocates where it is not stated.

pub mod close;
pub mod decoder;
pub mod error;
pub mod forwarded;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod proxy;
pub mod utf8;

pub use close::{CloseCode, CloseFrame, encode_close, parse_close};
pub use decoder::{Decoder, Event, PartialBudget, Payload, PayloadLimits, Step};
pub use error::{HandshakeError, ProtocolError};
pub use forwarded::client_address;
pub use frame::{FrameHeader, Opcode, encode_frame, frame_len, server_header_len};
pub use handshake::{
    HandshakeLimits, Method, Progress, Request, Upgrade, encode_accept, encode_page,
    encode_refusal, parse_request, percent_decode_room,
};
pub use mask::unmask;
pub use proxy::{Preface, is_proxy_header, parse_proxy_header};
pub use utf8::{InvalidUtf8, Utf8Validator};
