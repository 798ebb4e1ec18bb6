//! Bounded single-producer rings between shards, and who must be woken for them.
//!
//! Between every ordered pair of shards lies one lock-free ring per kind of message; a shard's
//! ring to itself is one like any other, so nobody special-cases "local". A full ring gives the
//! message back: the producer keeps it and stops reading from its own peers; nothing is dropped.
//!
//! Waking: a shard that is about to sleep raises its flag and looks once more into its rings; a
//! producer that has pushed looks at the flag. Both sides put a fence between the two steps
//! (Dekker), so at least one of them sees the other, and a shard that is awake costs its
//! producers one load per tick instead of a system call per message. The wake-up itself is a write
//! to an eventfd; [`super::uring`] says why, and why nobody waits for more than one message.
//!
//! `mailbox/model.rs` tries this in the orders in which threads may see each other's steps.
//!
//! Memory: `mailbox_len_max` messages per pair and kind, the only thing that grows with the
//! square of the number of shards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rtrb::{Consumer, Producer, RingBuffer};

use crate::id::ShardId;

/// The rings of one kind of message as one shard holds them: out to all, in from all.
#[derive(Debug)]
pub struct Lanes<T> {
    outgoing: Vec<Producer<T>>,
    incoming: Vec<Consumer<T>>,
}

impl<T> Lanes<T> {
    /// The rings between `shards` shards, `len_max` messages each; one [`Lanes`] per shard.
    #[must_use]
    pub fn mesh(shards: usize, len_max: usize) -> Vec<Self> {
        let mut all: Vec<Self> = (0..shards)
            .map(|_| Self {
                outgoing: Vec::with_capacity(shards),
                incoming: Vec::with_capacity(shards),
            })
            .collect();
        for from in 0..shards {
            for to in 0..shards {
                let (producer, consumer) = RingBuffer::new(len_max);
                all[from].outgoing.push(producer);
                all[to].incoming.push(consumer);
            }
        }
        all
    }

    /// Sends `message` to shard `to`.
    ///
    /// # Errors
    /// Gives the message back when the ring is full.
    pub fn send(&mut self, to: ShardId, message: T) -> Result<(), T> {
        self.outgoing[to.index()].push(message).map_err(|rtrb::PushError::Full(message)| message)
    }

    /// How many messages fit into the ring to shard `to` just now.
    #[must_use]
    pub fn room(&self, to: ShardId) -> usize {
        self.outgoing[to.index()].slots()
    }

    /// The oldest message from shard `from`, left where it is.
    #[must_use]
    pub fn peek(&self, from: ShardId) -> Option<&T> {
        self.incoming[from.index()].peek().ok()
    }

    /// Takes the oldest message from shard `from`.
    pub fn receive(&mut self, from: ShardId) -> Option<T> {
        self.incoming[from.index()].pop().ok()
    }

    /// Whether `is_it` says so of a message from shard `from` that waits to be received.
    #[cfg(test)]
    pub fn has(&mut self, from: ShardId, is_it: impl Fn(&T) -> bool) -> bool {
        let incoming = &mut self.incoming[from.index()];
        let waiting = incoming.read_chunk(incoming.slots()).expect("so many are there");
        let (first, rest) = waiting.as_slices();
        // Nothing is taken out that is not committed.
        first.iter().chain(rest).any(is_it)
    }

    /// How many messages from shard `from` wait to be received.
    #[must_use]
    pub fn depth_from(&self, from: ShardId) -> usize {
        self.incoming[from.index()].slots()
    }

    /// How many messages wait to be received, from all together.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.incoming.iter().map(Consumer::slots).sum()
    }

    /// Whether anything waits to be received, from whomever.
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.incoming.iter().any(|ring| !ring.is_empty())
    }
}

/// Which shards sleep. Cloning shares the flags.
#[derive(Debug, Clone)]
pub struct Sleepers {
    flags: Arc<[Sleeper]>,
}

impl Sleepers {
    /// All awake.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self { flags: (0..shards).map(|_| Sleeper::default()).collect() }
    }

    /// [`Sleeper::fall_asleep`] of `shard`.
    pub fn fall_asleep(&self, shard: ShardId) {
        self.flags[shard.index()].fall_asleep();
    }

    /// [`Sleeper::wake_up`] of `shard`.
    pub fn wake_up(&self, shard: ShardId) {
        self.flags[shard.index()].wake_up();
    }

    /// [`Sleeper::must_wake`] of `shard`.
    #[must_use]
    pub fn must_wake(&self, shard: ShardId) -> bool {
        self.flags[shard.index()].must_wake()
    }
}

/// Whether one thread sleeps, on a cache line of its own: its neighbours are written by other
/// cores. Awake at first.
///
/// Generic over its flag, so that a model checker can try the orders in which threads may see each
/// other's steps (`mailbox/model.rs`).
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Sleeper<F = AtomicBool>(F);

impl<F: Flag> Sleeper<F> {
    /// The thread is about to sleep. It must look into its rings once more after this and before
    /// it sleeps.
    pub fn fall_asleep(&self) {
        self.0.store(true);
        F::fence();
    }

    /// The thread is awake.
    pub fn wake_up(&self) {
        self.0.store(false);
    }

    /// After messages were pushed for the thread: whether the caller must wake it. True for one
    /// caller only, the others need not.
    #[must_use]
    pub fn must_wake(&self) -> bool {
        F::fence();
        self.0.load() && self.0.take()
    }
}

/// The flag of a [`Sleeper`]. None of its steps orders anything but the fence.
pub trait Flag {
    /// Sets it.
    fn store(&self, value: bool);

    /// Looks at it.
    fn load(&self) -> bool;

    /// Takes it down; whether it was up.
    fn take(&self) -> bool;

    /// What comes before is seen by whoever comes here later, in one order for all threads.
    fn fence();
}

impl Flag for AtomicBool {
    fn store(&self, value: bool) {
        self.store(value, Ordering::Relaxed);
    }

    fn load(&self) -> bool {
        self.load(Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        self.swap(false, Ordering::Relaxed)
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_connects_every_pair_once() {
        let mut mesh = Lanes::mesh(3, 2);
        for (from, lanes) in mesh.iter_mut().enumerate() {
            for to in 0..3 {
                assert_eq!(lanes.send(ShardId::from(to), (from, to)), Ok(()));
            }
        }
        for (to, lanes) in mesh.iter_mut().enumerate() {
            for from in 0..3 {
                assert!(lanes.has_input());
                assert_eq!(lanes.depth(), 3 - from);
                assert_eq!(lanes.peek(ShardId::from(from)), Some(&(from, to)));
                assert_eq!(lanes.receive(ShardId::from(from)), Some((from, to)));
                assert_eq!(lanes.receive(ShardId::from(from)), None);
            }
            assert!(!lanes.has_input());
        }
    }

    #[test]
    fn a_full_ring_gives_the_message_back() {
        let mut mesh = Lanes::mesh(1, 2);
        let lanes = &mut mesh[0];
        assert_eq!(lanes.room(ShardId(0)), 2);
        assert_eq!(lanes.send(ShardId(0), 1), Ok(()));
        assert_eq!(lanes.send(ShardId(0), 2), Ok(()));
        assert_eq!(lanes.send(ShardId(0), 3), Err(3));
        assert_eq!(lanes.receive(ShardId(0)), Some(1));
        assert_eq!(lanes.send(ShardId(0), 3), Ok(()));
    }

    #[test]
    fn no_wake_up_is_lost_between_two_threads() {
        const MESSAGES: u32 = 20_000;
        let mut mesh = Lanes::mesh(2, 8);
        let sleepers = Sleepers::new(2);
        let (mut second, mut first) = (mesh.pop().expect("two"), mesh.pop().expect("two"));
        let consumer = std::thread::spawn({
            let sleepers = sleepers.clone();
            move || {
                let me = ShardId(1);
                let mut expected = 0;
                while expected < MESSAGES {
                    while let Some(message) = second.receive(ShardId(0)) {
                        assert_eq!(message, expected);
                        expected += 1;
                    }
                    sleepers.fall_asleep(me);
                    if !second.has_input() && expected < MESSAGES {
                        // Sleeps until unparked: a lost wake-up hangs the test.
                        while sleepers.flags[me.index()].0.load(Ordering::SeqCst) {
                            std::thread::park();
                        }
                    }
                    sleepers.wake_up(me);
                }
            }
        });
        for message in 0..MESSAGES {
            let mut message = message;
            while let Err(back) = first.send(ShardId(1), message) {
                message = back;
                std::thread::yield_now();
            }
            if sleepers.must_wake(ShardId(1)) {
                consumer.thread().unpark();
            }
        }
        consumer.join().expect("the consumer saw every message in order");
    }
}
