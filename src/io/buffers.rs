//! Receive buffers: a pool that lends, and a lease that gives back when dropped.
//!
//! A receive is submitted only when the socket has something and is resolved in the same tick, so
//! a shard needs as many buffers as it receives in one tick, however many connections it has. The
//! pool is last-in first-out: a lightly loaded shard works in one or two buffers that stay in the
//! cache, and buffers that were never needed were never touched.
//!
//! (Rejected: a provided buffer ring. It hands buffers out first-in first-out, so every buffer of
//! every shard ends up resident, 4 MiB a shard; and it can run dry in the middle of a tick.)
//!
//! Invariant: lent + free = made so far <= `buffers_max`.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// The size of one receive buffer in bytes: a TLS record, a jumbo burst, many small frames.
pub const RECEIVE_BYTES_MAX: usize = 16 * 1024;

/// Receives per tick. More would not batch better but delay what the first ones brought.
pub const RECEIVES_MAX: usize = 64;

/// Lends receive buffers. Cloning shares the pool.
#[derive(Debug, Clone, Default)]
pub struct ReceivePool {
    shared: Rc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    free: RefCell<Vec<Box<[u8]>>>,
    lent: Cell<usize>,
}

impl ReceivePool {
    /// How many more buffers may be lent now.
    #[must_use]
    pub fn left(&self) -> usize {
        RECEIVES_MAX - self.shared.lent.get()
    }

    /// How many buffers it has made so far.
    #[must_use]
    pub fn made(&self) -> usize {
        self.shared.lent.get() + self.shared.free.borrow().len()
    }

    /// Lends one buffer of [`RECEIVE_BYTES_MAX`] bytes. Allocates only if it never lent so many.
    ///
    /// # Panics
    /// When none is [`left`](Self::left).
    #[must_use]
    pub fn lend(&self) -> Lease {
        assert!(self.left() > 0, "the shard receives only while buffers are left");
        let buffer = self.shared.free.borrow_mut().pop();
        self.shared.lent.set(self.shared.lent.get() + 1);
        Lease {
            buffer: buffer.unwrap_or_else(|| vec![0; RECEIVE_BYTES_MAX].into_boxed_slice()),
            len: RECEIVE_BYTES_MAX,
            pool: self.clone(),
        }
    }
}

/// A lent buffer: the bytes that were received into it.
#[derive(Debug)]
pub struct Lease {
    buffer: Box<[u8]>,
    len: usize,
    pool: ReceivePool,
}

impl Lease {
    /// Keeps the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let shared = &self.pool.shared;
        shared.lent.set(shared.lent.get() - 1);
        shared.free.borrow_mut().push(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lends_up_to_the_bound_and_takes_back() {
        let pool = ReceivePool::default();
        let mut leases: Vec<_> = (0..RECEIVES_MAX).map(|_| pool.lend()).collect();
        assert_eq!(pool.left(), 0);
        leases.truncate(1);
        assert_eq!(pool.left(), RECEIVES_MAX - 1);
        leases[0].truncate(3);
        assert_eq!(leases[0].len(), 3);
        drop(leases);
        assert_eq!(pool.lend().len(), RECEIVE_BYTES_MAX, "a lease starts whole");
        assert_eq!(pool.made(), RECEIVES_MAX);
    }
}
