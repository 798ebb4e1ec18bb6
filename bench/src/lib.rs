//! Load generator for WebSocket servers.
//!
//! ```text
//! main -> run -> {conductor, engine, facts}      run: from the command line to the report
//!         conductor -> {progress, host}          the main thread, stage by stage
//!         engine -> {ring, wire, window, slow}   one worker thread and its connections
//!         scenario -> {template, sequence}       what is sent, and whether all of it arrived
//!         {engine, scenario} -> rooms            who is in which room and publishes where
//!         beside                                 small rooms and echoes beside the main load
//!         facts -> report -> {sections, plot}    the figures, and one folder per run
//! main -> {compare, merge} -> {report, plot}     folders of runs in, figures out
//! main -> peers -> {child, host, plot}           other servers, and this binary as their load
//! main -> soak -> {child, http, wire, plot}      an hour of mixed load: does the server grow?
//! main -> bare -> ring                           sends alone: the limit of any server
//! main -> publish -> {wire, http, sequence}      one publisher, over a WebSocket and over HTTP
//! ```
//!
//! Threads share [`shared::Shared`] and nothing else. Not one line is shared with the server: what
//! measures it must not have its bugs. Only [`ring`] has unsafe code.

pub mod bare;
pub mod beside;
pub mod child;
pub mod cli;
pub mod compare;
pub mod conductor;
pub mod engine;
pub mod facts;
pub mod failure;
pub mod host;
pub mod http;
pub mod measure;
pub mod merge;
pub mod peers;
pub mod plan;
pub mod plot;
pub mod progress;
pub mod publish;
pub mod random;
pub mod report;
pub mod ring;
pub mod rooms;
pub mod run;
pub mod scenario;
pub mod sections;
pub mod sequence;
pub mod shared;
pub mod slow;
pub mod soak;
pub mod template;
pub mod window;
pub mod wire;
