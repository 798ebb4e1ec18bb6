//! `idle`: holds connections and asks nothing of them.

use crate::engine::{Outbox, Outcome, Script};
use crate::shared::Stage;

/// Does nothing; opening, pings and closing are the engine's.
#[derive(Debug)]
pub struct Idle;

impl Script for Idle {
    fn ready(&mut self, _connection: u32) {}

    fn gone(&mut self, _connection: u32) {}

    fn enter(&mut self, _stage: Stage, _now: u64, _outbox: &mut Outbox) {}

    fn message(&mut self, _connection: u32, _payload: &[u8], _now: u64) {}

    fn act(&mut self, _now: u64, _outbox: &mut Outbox) -> Option<u64> {
        None
    }

    fn finish(self: Box<Self>) -> Outcome {
        Outcome::default()
    }
}
