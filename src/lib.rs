//! Fanwire: a WebSocket push fan-out server for tuned Linux hosts.
//!
//! Clients and backends publish once, Fanwire delivers to every member of a room. It is
//! thread-per-core: every core runs one io_uring loop and owns a shard of connections and rooms; a
//! publish is encoded once and goes to the other shards as shared `Bytes` through lock-free
//! queues.
//!
//! # The map
//!
//! Dependencies point one way; nothing points up, and `protocol` and `io` never name each other.
//!
//! ```text
//!   main ──▶ control ──▶ shard ──▶ room ─────▶ protocol
//!    │          │          ├─────▶ dialect ──▶ protocol
//!    │          │          ├─────▶ protocol
//!    │          │          └─────▶ io ──▶ (kernel)
//!    ├─▶ check ───────────────────▶ io
//!    └─▶ config ──▶ auth ──▶ pattern     config, auth, pattern, id, slab: named by all
//! ```
//!
//! | Module       | What it is                                                       | IO?       |
//! |--------------|------------------------------------------------------------------|-----------|
//! | [`auth`]     | who may do what: tokens, keys, grants                            | no        |
//! | [`check`]    | `fanwire check`: is this host fit, how many connections fit       | via `io`  |
//! | [`config`]   | every setting, declared once; `Limits` for the data plane        | no        |
//! | [`control`]  | one thread: HTTP API, signals, reload, drain; the only `async`   | yes       |
//! | [`shard`]    | one per core: the tick, connections, mailboxes, sweeps           | via `io`  |
//! | [`room`]     | fan-out state: members, logs, sweeps, homes                      | no        |
//! | [`dialect`]  | what messages mean: native JSON, raw, echo; routing by path      | no        |
//! | [`protocol`] | RFC 6455: handshake, frames, close; resumable at any byte        | no        |
//! | [`io`]       | the boundary to the kernel: operations in, completions out       | **yes**   |
//! | [`id`], [`slab`] | plain values; values by key with generations                 | no        |
//! | [`pattern`]  | names in which `*` stands for anything                           | no        |
//! | [`logging`]  | log lines as text or JSON                                        | via `io`  |
//! | `planted`    | bugs on purpose, in test builds alone, for the simulation to find | no        |
//! | `fuzz`       | what fuzzers call; built for them and for tests                  | no        |
//!
//! # The life of a message
//!
//! 1. [`io::uring`] reports a readable socket; the shard receives into a pooled buffer.
//! 2. [`protocol::decoder`] unmasks it in place and yields an event; [`dialect`] reads it as a
//!    command.
//! 3. A publish goes to the room's home shard through [`io::mailbox`], or from the control thread
//!    through [`shard::publisher`]. [`room::home`] numbers it and encodes its frame once into a
//!    pooled segment.
//! 4. Every shard with members gets the slice and appends it to the room's [`room::log`].
//! 5. [`room::sweep`] visits the members; each gets everything from its cursor to the head in one
//!    send, submitted together with hundreds of others in one system call. What becomes of a member
//!    that does not keep up, [`room::policy`] decides.
//!
//! # The rules
//!
//! - Everything has a bound, and a stated answer when it is reached.
//! - A peer's mistake ends one connection with the right code; a short host degrades and counts; a
//!   wrong configuration stops the start; our own bug asserts.
//! - `unsafe`, system calls, descriptors and the clock live in [`io`] alone. Everything else runs
//!   in the simulation (`src/tests/sim.rs`), from a seed, without a kernel.

pub mod auth;
pub mod check;
pub mod config;
pub mod control;
pub mod dialect;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod id;
#[expect(unsafe_code, reason = "the boundary to the kernel; nowhere else")]
pub mod io;
pub mod logging;
pub mod pattern;
mod planted;
pub mod protocol;
pub mod room;
pub mod shard;
pub mod slab;

#[cfg(test)]
mod tests;
