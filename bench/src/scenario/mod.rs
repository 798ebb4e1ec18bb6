//! What the scenarios do with open connections: one [`Script`](crate::engine::Script) each.

pub mod echo;
pub mod fanout;
pub mod idle;
