//! Load generator for WebSocket servers.
//!
//! ```text
//! main -> run -> {engine, scenario, report}      run: the main thread, stage by stage
//!                engine -> {ring, wire}          engine: one worker thread and its connections
//!                scenario -> {template, sequence}  what is sent, and whether all of it arrived
//!                report -> {host, plot}          one folder per run
//! ```
//!
//! Threads share [`shared::Shared`] and nothing else. Not one line is shared with the server: what
//! measures it must not have its bugs. Only [`ring`] has unsafe code.

pub mod cli;
pub mod engine;
pub mod host;
pub mod measure;
pub mod plot;
pub mod progress;
pub mod report;
pub mod ring;
pub mod run;
pub mod scenario;
pub mod sequence;
pub mod shared;
pub mod template;
pub mod wire;
