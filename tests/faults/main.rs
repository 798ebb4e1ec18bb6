//! Faults on a real kernel: what the host, the network and hostile peers can do to a server, and
//! that the promises hold meanwhile and everything is back where it was afterwards.
//!
//! | File           | The fault                                                              |
//! |----------------|------------------------------------------------------------------------|
//! | [`cpu`]        | a process that is stopped for ten seconds; a core that others keep busy |
//! | [`network`]    | loss, delay, reordering, duplicates, a link cut for a while, tiny MTU  |
//! | [`peers`]      | slow handshakes and frames by the dozen, floods that pass or hold on     |
//! | [`resources`]  | no descriptors; a disk or a pipe for the log that is full              |
//! | [`memory`]     | less memory than peers want                                            |
//! | [`refusal`]    | a sandbox or a sysctl that refuses io_uring                            |
//!
//! [`promises`] is what all of them check with. Whatever a test makes (networks, mounts, control
//! groups, limits of processes) is its own and gone with it. What the host does not let it make is
//! said on stderr: SKIPPED, with the reason; or a failure, where `SKIPPING_FAILS` is set.

#[path = "../support/mod.rs"]
pub mod support;

mod cpu;
mod memory;
mod network;
mod peers;
mod promises;
mod refusal;
mod resources;

use promises::POLICY;
use support::{Server, fanwire, free_port, wrapped};

/// Starts the server with what the rooms of [`promises`] need.
fn serve(flags: &[&str]) -> Server {
    Server::start(&[&[POLICY], flags].concat())
}

/// Starts the server on free ports through `wrapper`, a command that runs the command behind it.
fn serve_through(wrapper: &[&str], flags: &[&str]) -> Server {
    let [listen, admin] = [free_port(), free_port()].map(|port| ([127, 0, 0, 1], port).into());
    let mut command = fanwire(&["serve", "--listen", &format!("{listen}")]);
    command.args(["--admin", &format!("{admin}"), POLICY]).args(flags);
    Server::spawn(wrapped(wrapper, command), listen, Some(admin))
}
