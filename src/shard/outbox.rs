//! What waits to be sent to one connection, in order, and how many bytes that is.

use std::collections::VecDeque;
use std::collections::vec_deque;

use bytes::Bytes;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: VecDeque<Bytes>,
    /// Of all of them.
    bytes: usize,
}

impl Outbox {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many pieces wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// How many bytes wait.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts a piece behind the others.
    pub fn push_back(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.queue.push_back(piece);
    }

    /// Puts a piece before the others.
    pub fn push_front(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        self.queue.push_front(piece);
    }

    /// Takes the first piece.
    pub fn pop_front(&mut self) -> Option<Bytes> {
        let piece = self.queue.pop_front()?;
        self.bytes -= piece.len();
        Some(piece)
    }

    /// The pieces in order.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.queue.iter()
    }

    /// Takes the first `count` pieces.
    pub fn drain(&mut self, count: usize) -> vec_deque::Drain<'_, Bytes> {
        self.bytes -= self.queue.iter().take(count).map(Bytes::len).sum::<usize>();
        self.queue.drain(..count)
    }
}
