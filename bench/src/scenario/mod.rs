//! What the scenarios do with open connections: one [`Script`] each.
//!
//! `storm` has none of its own: dropping and coming back are the engine's, and nothing is asked
//! of the connections in between. `slow` is `fanout`, which never hears of the slow ones.

pub mod echo;
pub mod fanout;
pub mod flight;
pub mod idle;

use crate::measure::Latency;
use crate::shared::Stage;

/// What a scenario does with connections that are open. Connections are named by their index in
/// the thread; see [`Place::number`].
pub trait Script {
    /// A connection has opened and joined.
    fn ready(&mut self, connection: u32);
    /// A ready connection is gone.
    fn gone(&mut self, connection: u32);
    /// The run has moved on.
    fn enter(&mut self, stage: Stage, now: u64, outbox: &mut Outbox);
    /// A message has arrived, complete.
    fn message(&mut self, connection: u32, payload: &[u8], now: u64);
    /// A pong has arrived.
    fn pong(&mut self, _connection: u32, _payload: &[u8], _now: u64) {}
    /// Once per turn, after all messages: send what is due. Returns when it wants the next turn,
    /// on the clock, if nothing else happens.
    fn act(&mut self, now: u64, outbox: &mut Outbox) -> Option<u64>;
    /// The end.
    fn finish(self: Box<Self>) -> Outcome;
}

/// What a script found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// From the intended time of a message (or ping) to each of its deliveries (or its pong).
    pub latency: Latency,
    /// From the intended time of a message to the last of its deliveries.
    pub to_last: Latency,
    /// Deliveries that never came.
    pub lost: u64,
}

/// What a script wants sent.
#[derive(Debug, Default)]
pub struct Outbox {
    items: Vec<(u32, Item)>,
}

/// One frame that a script wants sent.
#[derive(Debug)]
pub enum Item {
    /// A text message.
    Text(String),
    /// A ping with this payload.
    Ping([u8; 8]),
}

impl Outbox {
    /// Sends `text` on `connection`. What one turn sends to one connection leaves together.
    pub fn send(&mut self, connection: u32, text: String) {
        self.items.push((connection, Item::Text(text)));
    }

    /// Sends a ping on `connection`.
    pub fn ping(&mut self, connection: u32, payload: [u8; 8]) {
        self.items.push((connection, Item::Ping(payload)));
    }

    /// Takes out everything, and leaves the memory to be given back.
    #[must_use]
    pub fn take(&mut self) -> Vec<(u32, Item)> {
        std::mem::take(&mut self.items)
    }

    /// Gives back the emptied memory of [`take`](Self::take).
    pub fn give_back(&mut self, items: Vec<(u32, Item)>) {
        debug_assert!(items.is_empty(), "drained");
        self.items = items;
    }
}

/// Which thread this is, and so which connections it has.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The thread, from 0.
    pub thread: u32,
    /// Threads of the run.
    pub threads: u32,
}

impl Place {
    /// The number in the whole run of the thread's connection `index`: dealt like cards, so that
    /// every thread has a share of every room.
    #[must_use]
    pub fn number(self, index: u32) -> u32 {
        index * self.threads + self.thread
    }

    /// The index of connection `number` if this thread has it.
    #[must_use]
    pub fn index(self, number: u32) -> Option<u32> {
        (number % self.threads == self.thread).then_some(number / self.threads)
    }

    /// How many of `connections` this thread has.
    #[must_use]
    pub fn share(self, connections: u32) -> u32 {
        connections / self.threads + u32::from(self.thread < connections % self.threads)
    }
}
