//! Where encoded frames live: append to the open segment, cut off what is finished.
//!
//! A segment is one allocation of [`SEGMENT_BYTES`] that many frames share. What has been
//! appended is cut off as `Bytes`, shared by reference count, and never moves; when the last
//! reference is gone the segment is written again from its start. So frames cost neither an
//! allocation each nor a free on another core, and neighbouring frames are one slice of memory.
//!
//! Bound: at most [`RETIRED_MAX`] filled segments wait to be reused; beyond that the allocator
//! takes them back when their last reference goes. A frame larger than a segment gets memory of
//! its own.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

/// The size of one segment in bytes. A sweep sends at most this much per member and visit, which
/// is also about what an idle socket takes at once.
pub const SEGMENT_BYTES: usize = if cfg!(test) { 4 * 1024 } else { 64 * 1024 };

/// Filled segments kept for reuse, per pool.
const RETIRED_MAX: usize = 16;

/// Looks into so many retired segments for a free one before it allocates.
const RECLAIM_TRIES: usize = 4;

/// The open segment and those that wait for their readers. See the module documentation.
#[derive(Debug, Default)]
pub struct SegmentPool {
    open: BytesMut,
    /// The whole size of the open segment; 0 before the first.
    open_bytes: usize,
    retired: VecDeque<BytesMut>,
}

impl SegmentPool {
    /// An empty pool; allocates with the first frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The open segment with room for `len` more bytes behind what is not cut off yet.
    ///
    /// What is appended and not cut off yet goes together: cut off first what belongs to others.
    ///
    /// # Panics
    /// When bytes that are not cut off would be lost.
    pub fn open(&mut self, len: usize) -> &mut BytesMut {
        if !self.fits(len) {
            assert!(self.open.is_empty(), "cut off what was appended before opening a segment");
            self.replace(len.max(SEGMENT_BYTES));
        }
        &mut self.open
    }

    /// Whether `len` more bytes fit into the open segment.
    #[must_use]
    pub fn fits(&self, len: usize) -> bool {
        self.open.capacity() - self.open.len() >= len
    }

    /// Cuts off what was appended since the last cut, for sharing. No copy.
    #[must_use]
    pub fn cut(&mut self) -> Bytes {
        self.open.split().freeze()
    }

    /// A copy of `bytes` in a segment. Must not come between an append and its cut.
    pub fn copy(&mut self, bytes: &[u8]) -> Bytes {
        self.open(bytes.len()).put_slice(bytes);
        self.cut()
    }

    /// Segments held for reuse; the open one does not count.
    #[must_use]
    pub fn retired(&self) -> usize {
        self.retired.len()
    }

    fn replace(&mut self, len: usize) {
        let full = std::mem::take(&mut self.open);
        // One that was made for a large frame is worth more to the allocator than to us.
        if self.open_bytes == SEGMENT_BYTES && self.retired.len() < RETIRED_MAX {
            self.retired.push_back(full);
        }
        self.open_bytes = len;
        if len == SEGMENT_BYTES {
            for _ in 0..self.retired.len().min(RECLAIM_TRIES) {
                let Some(mut segment) = self.retired.pop_front() else { break };
                if segment.try_reclaim(len) {
                    self.open = segment;
                    return;
                }
                self.retired.push_back(segment);
            }
        }
        self.open = BytesMut::with_capacity(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_contiguous_and_segments_come_back() {
        let mut pool = SegmentPool::new();
        pool.open(4).put_slice(b"abcd");
        pool.open(4).put_slice(b"efgh");
        assert_eq!(pool.cut(), "abcdefgh");
        let mut addresses = std::collections::BTreeSet::new();
        for _ in 0..200 {
            addresses.insert(pool.copy(&[7; SEGMENT_BYTES / 2]).as_ptr() as usize);
        }
        assert!(addresses.len() <= 2 * (RETIRED_MAX + 1), "{} places", addresses.len());
        assert!(pool.retired() <= RETIRED_MAX);
    }

    #[test]
    fn held_segments_are_never_written_again() {
        let mut pool = SegmentPool::new();
        let held: Vec<_> = (0..100_u8).map(|n| pool.copy(&[n; SEGMENT_BYTES / 3])).collect();
        for (n, bytes) in (0..).zip(&held) {
            assert!(bytes.iter().all(|&byte| byte == n));
        }
        drop(held);
        let retired = pool.retired();
        for _ in 0..100 {
            assert_eq!(pool.copy(&vec![1; 3 * SEGMENT_BYTES]).len(), 3 * SEGMENT_BYTES);
        }
        assert!(pool.retired() <= retired + 1, "large ones are not kept");
    }
}
