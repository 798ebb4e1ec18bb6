//! What the end-to-end tests share: the generator as a process, and a server that can lie.

#![allow(dead_code, reason = "each test binary uses its own part of the helpers")]
#![allow(unreachable_pub, reason = "`pub` here means: for the tests")]
#![allow(unused_imports, reason = "each test binary uses its own part of the helpers")]

mod bench;
mod hub;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

pub use bench::{Bench, Run};
pub use hub::{Hub, Lie};

/// An address nobody listens on.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}

/// The server, or `None` and a word about it.
pub fn fanwire_binary() -> Option<PathBuf> {
    if let Some(binary) = std::env::var_os("FANWIRE_BIN") {
        return Some(binary.into());
    }
    let beside = Path::new(env!("CARGO_BIN_EXE_fanwire-bench")).with_file_name("fanwire");
    if !beside.exists() {
        eprintln!("skipped: no fanwire binary; cargo build it or set FANWIRE_BIN");
        return None;
    }
    Some(beside)
}
