//! Messages under way: how many deliveries each still has to come, shared by all threads.
//!
//! Every line (see [`Rooms`]) has a ring of slots, which its sequence numbers use in turn. The
//! thread of the publisher fills a slot; each thread takes off what it has seen delivered, and who
//! takes off the last one has finished the message. No locks: a slot is one atomic.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::fanout::Load;
use crate::rooms::Rooms;

/// Messages of all lines that can be under way at once in an open loop, about: bounds a thread's
/// tally.
const UNDER_WAY_MAX: u32 = 1 << 18;

/// See the module documentation.
#[derive(Debug)]
pub struct Flights {
    /// Slots of each line, a power of two.
    slots_each: u32,
    /// Line after line.
    slots: Box<[Slot]>,
    /// Messages published, per line.
    published: Box<[AtomicU32]>,
    /// Messages that have reached every member, per publisher.
    finished: Box<[AtomicU64]>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Sequence number in the upper half, deliveries to come in the lower.
    state: AtomicU64,
    intended_ns: AtomicU64,
}

impl Flights {
    /// Nothing under way.
    #[must_use]
    pub fn new(rooms: Rooms, load: Load) -> Self {
        let lines = rooms.lines();
        let slots_each = match load {
            Load::Window(window) => window.next_power_of_two(),
            Load::Rate(_) => (UNDER_WAY_MAX / lines).clamp(64, 1 << 14).next_power_of_two(),
        };
        let slots = lines as usize * slots_each as usize;
        Self {
            slots_each,
            slots: std::iter::repeat_with(Slot::default).take(slots).collect(),
            published: (0..lines).map(|_| AtomicU32::new(0)).collect(),
            finished: (0..rooms.publishers).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Slots of all lines.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The slot of a message, which it shares with earlier and later ones of its line.
    #[must_use]
    pub fn slot(&self, line: u32, sequence: u32) -> usize {
        line as usize * self.slots_each as usize + (sequence & (self.slots_each - 1)) as usize
    }

    /// The line whose slot this is.
    #[must_use]
    pub fn line(&self, slot: usize) -> u32 {
        (slot / self.slots_each as usize) as u32
    }

    /// Messages that were published on a line, which is also the next sequence number.
    #[must_use]
    pub fn published(&self, line: u32) -> u32 {
        self.published[line as usize].load(Relaxed)
    }

    /// Messages of a publisher that have reached every member.
    #[must_use]
    pub fn finished(&self, publisher: u32) -> u64 {
        self.finished[publisher as usize].load(Acquire)
    }

    /// The next message of a line is published: `hearers` deliveries are to come. Returns its
    /// sequence number. Only the thread of the publisher calls this.
    pub fn publish(&self, line: u32, intended_ns: u64, hearers: u32) -> u32 {
        let sequence = self.published(line);
        let slot = &self.slots[self.slot(line, sequence)];
        slot.intended_ns.store(intended_ns, Relaxed);
        slot.state.store(u64::from(sequence) << 32 | u64::from(hearers), Release);
        self.published[line as usize].store(sequence + 1, Relaxed);
        sequence
    }

    /// Takes `count` deliveries off a message of `publisher`; returns its intended time if they
    /// were the last ones.
    pub fn deliver(&self, publisher: u32, slot: usize, sequence: u32, count: u32) -> Option<u64> {
        let slot = &self.slots[slot];
        let before = slot.state.fetch_update(AcqRel, Acquire, |state| {
            let (current, left) = ((state >> 32) as u32, state as u32);
            // Another sequence number: given up, and the slot used again.
            (current == sequence && left > 0).then(|| state - u64::from(count.min(left)))
        });
        let last = before.is_ok_and(|state| state as u32 <= count);
        last.then(|| {
            self.finished[publisher as usize].fetch_add(1, Release);
            slot.intended_ns.load(Relaxed)
        })
    }

    /// Deliveries to come of a message.
    #[must_use]
    pub fn left(&self, line: u32, sequence: u32) -> u32 {
        let state = self.slots[self.slot(line, sequence)].state.load(Acquire);
        if (state >> 32) as u32 == sequence { state as u32 } else { 0 }
    }

    /// Stops waiting for a message; false if it has just finished.
    pub fn give_up(&self, line: u32, sequence: u32) -> bool {
        let slot = &self.slots[self.slot(line, sequence)];
        slot.state.swap(u64::from(sequence) << 32, AcqRel) as u32 > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_delivery_finishes_a_message_of_its_publisher() {
        let rooms = Rooms { count: 5, publishers: 2, roaming: true };
        let flights = Flights::new(rooms, Load::Window(3));
        // Line 3 is publisher 1's.
        assert_eq!((flights.publish(3, 70, 4), flights.publish(3, 80, 4)), (0, 1));
        let slot = flights.slot(3, 0);
        assert_eq!((flights.slots(), flights.line(slot)), (20, 3));
        assert_eq!(flights.deliver(1, slot, 0, 3), None);
        assert_eq!((flights.left(3, 0), flights.left(3, 1)), (1, 4));
        assert_eq!(flights.deliver(1, slot, 0, 1), Some(70));
        assert_eq!(flights.deliver(1, slot, 0, 1), None, "it is finished");
        assert_eq!((flights.finished(0), flights.finished(1)), (0, 1));
        assert!(flights.give_up(3, 1) && !flights.give_up(3, 1));
        assert_eq!(flights.deliver(1, flights.slot(3, 1), 1, 4), None, "it was given up");
        assert_eq!((flights.published(3), flights.published(4)), (2, 0));
    }
}
