//! What the end-to-end tests share: the real server as a process, and two ways to talk to it.
//!
//! [`Server`] starts the binary on free ports and ends it. [`Client`] is an independent WebSocket
//! client (tungstenite) for everything that is well formed. [`Wire`] is a bare socket with a small
//! HTTP and frame reader, for hostile bytes and for what a polite client would hide.
//!
//! Every wait has a deadline, generous because the machine may be busy: passing it means that
//! something never happened, not that it was slow. Nothing sleeps to wait for another party: a
//! condition is asked again until it holds ([`wait_until`]).

#![allow(dead_code, reason = "each test binary uses its own part of the helpers")]
#![allow(unused_imports, reason = "each test binary uses its own part of the helpers")]

mod cable;
mod client;
mod link;
mod server;
mod wire;

use std::{
    io::Write,
    time::{Duration, Instant},
};

pub use cable::Quality;
pub use client::{Broadcast, Client, Reply};
pub use link::{Link, beside_link};
pub use server::{Finished, Server, fanwire, free_port, run, wrapped};
pub use wire::{
    Frame, Response, Wire, close_frame, error_code, frame, head_of, masked, upgrade_request,
};

/// How long anything may take that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks `holds` again and again until it is true; panics with `what` after [`PATIENCE`].
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still waiting after {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says on stderr that the running test is left out, and why: libtest would keep what `eprintln!`
/// says to itself.
///
/// # Panics
/// Where `SKIPPING_FAILS` is set: the host has what all tests need, so none may be left out.
/// `scripts/test.sh` sets it where it finds that to be so.
pub fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let may_skip = std::env::var_os("SKIPPING_FAILS").is_none_or(|it| it.is_empty());
    assert!(may_skip, "SKIPPING_FAILS is set, and {name} would be left out: {why}");
    // In one piece, whatever others write.
    let line = format!("SKIPPED {name}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).expect("stderr takes a line");
}

/// Runs `check` and, when it panics, puts the name of the table row in front of the failure.
pub fn row(name: &str, check: impl FnOnce()) {
    if let Err(text) = outcome(check) {
        let text = format!("{name}: {text}");
        eprintln!("in the row {text}");
        // Not `panic!`: the panic itself has been reported where it happened.
        std::panic::resume_unwind(Box::new(text));
    }
}

/// Runs every row of a table and reports all that failed, not only the first.
pub fn rows<R>(table: Vec<R>, name: impl Fn(&R) -> String, check: impl Fn(&R)) {
    let failures: Vec<String> = table
        .iter()
        .filter_map(|entry| {
            let text = outcome(|| check(entry)).err()?;
            Some(format!("{}: {text:.600}", name(entry)))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} rows failed:\n{}",
        failures.len(),
        table.len(),
        failures.join("\n")
    );
}

/// Runs `check`; the text of its panic as an error.
fn outcome(check: impl FnOnce()) -> Result<(), String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("a panic without text").to_owned()
    })
}
