//! Whether every room of a shard has its turn, whatever else there is to do.
//!
//! A sweep is to come to its end within a number of ticks that depends on the members it has to
//! visit, what it has to bring them, and the rooms that it shares the ticks with; never on how much
//! comes in elsewhere.

use std::collections::HashMap;

use super::net::SimIo;
use crate::id::RoomName;
use crate::room::segment::SEGMENT_BYTES;
use crate::shard::Shard;

/// What is known of one shard.
#[derive(Debug, Default)]
pub(super) struct Fairness {
    ticks: u64,
    /// Rooms with something to sweep: up to where all members have been served, since which tick.
    waiting: HashMap<RoomName, (u64, u64)>,
}

impl Fairness {
    /// The shard has had its turn.
    ///
    /// # Panics
    /// When a room has waited for too long.
    pub(super) fn check(&mut self, shard: &Shard<SimIo>) {
        self.ticks += 1;
        let rooms = shard.sweeps().count() as u64;
        for (room, swept, lag, members) in shard.sweeps() {
            if lag == 0 {
                if !self.waiting.is_empty() {
                    self.waiting.remove(room);
                }
                continue;
            }
            let now = (swept, self.ticks);
            let seen = match self.waiting.get_mut(room) {
                Some(seen) => seen,
                None => self.waiting.entry(room.clone()).or_insert(now),
            };
            if seen.0 != swept {
                *seen = now;
            }
            // A round for each segment, and one for those who were sent something else meanwhile.
            let rounds = 2 + 2 * lag / SEGMENT_BYTES as u64;
            let ticks_max = rounds * rooms * (members as u64 + 32);
            let ticks = self.ticks - seen.1;
            assert!(
                ticks <= ticks_max,
                "{room:?} starves: {ticks} ticks for {lag} bytes, {members} members, {rooms} rooms"
            );
        }
    }
}
