//! What fuzzers call: for each target one function that takes any bytes; a panic is a finding.
//!
//! | Target         | Reads                           | Holds it against                           |
//! |----------------|---------------------------------|--------------------------------------------|
//! | [`handshake`]  | an opening request              | itself in pieces; a second reading of lines |
//! | [`proxy`]      | a PROXY header                  | itself in pieces; the text of the specification |
//! | [`forwarded`]  | the fields of proxies           | what a trusted proxy adds behind them      |
//! | [`decoder`]    | a stream of frames, as it comes | itself in pieces; a naive decoder          |
//! | [`frames`]     | frames, as they are drawn       | the same                                   |
//! | [`utf8`]       | text in pieces                  | the standard library                       |
//! | [`native`]     | a message to `/ws`              | JSON as a tree; itself, written again      |
//! | [`publish`]    | the body of a publish           | JSON as a tree; itself, in a batch         |
//! | [`connection`] | what clients send to a shard    | itself in pieces; what clients may be sent |
//! | [`admin`]      | requests to the admin interface | JSON; what a member gets                   |
//! | [`config`]     | a configuration file            | itself, printed and read again             |
//! | [`token`]      | header and claims of a token    | JSON as a tree                             |
//! | [`key`]        | files with keys                 | that they verify nothing that is not signed |
//! | [`pattern`]    | patterns and names              | a matcher that tries everything            |
//!
//! Each is a program of `fuzz/` that `scripts/fuzz.sh` runs; the inputs that it keeps, in
//! `fuzz/corpus`, and those that once found something, in `fuzz/found`, are replayed by `cargo
//! test`. So whoever breaks what they reach learns of it without a fuzzer.

pub(crate) mod connection;
mod forwarded;
mod frames;
mod handshake;
mod key;
mod native;
mod pattern;
mod proxy;
mod publish;
mod token;
mod utf8;
pub(crate) mod wire;

pub use crate::config::fuzz_config as config;
pub use crate::control::fuzz_admin as admin;
pub use crate::protocol::decoder::fuzz_decoder as decoder;
pub use connection::connection;
pub use forwarded::forwarded;
pub use frames::frames;
pub use handshake::handshake;
pub use key::key;
pub use native::native;
pub use pattern::pattern;
pub use proxy::proxy;
pub use publish::publish;
pub use token::token;
pub use utf8::utf8;

/// A target: its name, and what it does with its input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 14] = [
    ("admin", admin),
    ("config", config),
    ("connection", connection),
    ("decoder", decoder),
    ("forwarded", forwarded),
    ("frames", frames),
    ("handshake", handshake),
    ("key", key),
    ("native", native),
    ("pattern", pattern),
    ("proxy", proxy),
    ("publish", publish),
    ("token", token),
    ("utf8", utf8),
];

#[cfg(test)]
mod tests;
