//! The encoded frames of one room on one shard, in order; shared, never copied for a member.
//!
//! A position counts bytes since the room came to this shard; a member's cursor is a position at
//! the start of a frame. The log keeps everything from the slowest cursor to the head.
//!
//! Frames arrive in slices, a slice per publish or per burst. Before a sweep carries several small
//! slices to all members, [`RoomLog::coalesce`] copies them once into one, so that every member
//! costs one send. That one copy per sweep replaces one system call per slice and *member*.
//!
//! Invariant: slices are contiguous in position, none is empty, each starts at a frame.
//! Never: looks into a frame, except at its header to find its end.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes};

use super::segment::{SEGMENT_BYTES, SegmentPool};
use crate::protocol::frame;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct RoomLog {
    slices: VecDeque<Slice>,
    head: u64,
}

#[derive(Debug)]
struct Slice {
    start: u64,
    bytes: Bytes,
}

impl Slice {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl RoomLog {
    /// The position behind the newest frame.
    #[must_use]
    pub const fn head(&self) -> u64 {
        self.head
    }

    /// Bytes held, from the slowest cursor to the head.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.slices.front().map_or(0, |slice| self.head - slice.start)
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Appends whole frames.
    pub fn append(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            let start = self.head;
            self.head += bytes.len() as u64;
            self.slices.push_back(Slice { start, bytes });
        }
    }

    /// What lies at `cursor`: a slice and where in it the cursor is. `None` at the head.
    ///
    /// # Panics
    /// When the frames at `cursor` were trimmed: a member was left behind.
    #[must_use]
    pub fn at(&self, cursor: u64) -> Option<(&Bytes, usize)> {
        if cursor >= self.head {
            return None;
        }
        // Nearly every member is one sweep behind: at the start of the last slice.
        let last = self.slices.back()?;
        let slice = if cursor >= last.start {
            last
        } else {
            let index = self.slices.partition_point(|slice| slice.end() <= cursor);
            &self.slices[index]
        };
        assert!(cursor >= slice.start, "a cursor never falls behind the log");
        Some((&slice.bytes, (cursor - slice.start) as usize))
    }

    /// Everything from `cursor` to the head, slice by slice.
    pub fn from(&self, cursor: u64) -> impl Iterator<Item = Bytes> {
        let first = self.slices.partition_point(|slice| slice.end() <= cursor);
        self.slices
            .range(first..)
            .map(move |slice| slice.bytes.slice(cursor.saturating_sub(slice.start) as usize..))
    }

    /// After a send from `cursor` that took `taken` bytes: the start of the next whole frame, and
    /// the rest of the frame that was cut, empty if the send ended between two frames.
    ///
    /// Cost: reads one header per frame sent; for short sends only.
    ///
    /// # Panics
    /// When there is nothing at `cursor`, or less than `taken`.
    #[must_use]
    pub fn split(&self, cursor: u64, taken: usize) -> (u64, Bytes) {
        let (bytes, from) = self.at(cursor).expect("what was sent is still in the log");
        let mut end = from;
        while end < from + taken {
            end += frame::frame_len(&bytes[end..]).expect("the log holds whole frames");
        }
        (cursor + (end - from) as u64, bytes.slice(from + taken..end))
    }

    /// Makes one slice of the small ones that lie from `from` on, as far as a segment goes.
    pub fn coalesce(&mut self, from: u64, segments: &mut SegmentPool) {
        let first = self.slices.partition_point(|slice| slice.start < from);
        if self.slices.len() - first < 2 {
            return;
        }
        let tail: Vec<Slice> = self.slices.drain(first..).collect();
        let mut rest = tail.as_slice();
        while let Some(slice) = rest.first() {
            let mut len = 0;
            let count = rest
                .iter()
                .take_while(|slice| {
                    len += slice.bytes.len();
                    len <= SEGMENT_BYTES
                })
                .count();
            let (run, behind) = rest.split_at(count.max(1));
            let bytes = if let [single] = run {
                single.bytes.clone()
            } else {
                let total = run.iter().map(|slice| slice.bytes.len()).sum();
                let segment = segments.open(total);
                run.iter().for_each(|slice| segment.put_slice(&slice.bytes));
                segments.cut()
            };
            self.slices.push_back(Slice { start: slice.start, bytes });
            rest = behind;
        }
    }

    /// Forgets the slices that lie wholly before `position`.
    pub fn trim(&mut self, position: u64) {
        while self.slices.front().is_some_and(|slice| slice.end() <= position) {
            self.slices.pop_front();
        }
        if self.slices.is_empty() && self.slices.capacity() > SLICES_KEPT {
            self.slices.shrink_to(SLICES_KEPT);
        }
    }
}

/// Places for slices that a quiet room keeps.
const SLICES_KEPT: usize = 8;

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::protocol::frame::{Opcode, encode_frame};

    fn frames(payloads: &[&str]) -> Bytes {
        let mut out = BytesMut::new();
        for payload in payloads {
            encode_frame(Opcode::Text, payload.as_bytes(), &mut out);
        }
        out.freeze()
    }

    #[test]
    fn finds_what_lies_at_a_cursor_before_and_after_coalescing() {
        let mut log = RoomLog::default();
        let slices = [frames(&["a", "bb"]), frames(&["ccc"]), frames(&["d"]), frames(&["eeee"])];
        slices.iter().for_each(|slice| log.append(slice.clone()));
        let whole: Vec<u8> = slices.concat();
        let check = |log: &RoomLog, from: u64| {
            for cursor in from..log.head() {
                let (bytes, at) = log.at(cursor).expect("before the head");
                assert!(whole[cursor as usize..].starts_with(&bytes[at..]), "at {cursor}");
                assert_eq!(log.from(cursor).collect::<Vec<_>>().concat(), whole[cursor as usize..]);
            }
            assert_eq!(log.at(log.head()), None);
        };
        check(&log, 0);
        log.coalesce(slices[0].len() as u64, &mut SegmentPool::new());
        assert_eq!(log.slices.len(), 2);
        check(&log, 0);
        log.trim(3);
        check(&log, 0);
        log.trim(slices[0].len() as u64);
        check(&log, slices[0].len() as u64);
        assert_eq!(log.len(), (whole.len() - slices[0].len()) as u64);
        log.trim(log.head());
        assert!(log.is_empty());
    }

    #[test]
    fn a_short_send_leaves_the_rest_of_one_frame() {
        let mut log = RoomLog::default();
        log.append(frames(&["abc", "defgh", "i"]));
        for (taken, next, rest) in
            [(0, 0, 0), (1, 5, 4), (5, 5, 0), (6, 12, 6), (11, 12, 1), (12, 12, 0), (13, 15, 2)]
        {
            let (cursor, bytes) = log.split(0, taken);
            assert_eq!((cursor, bytes.len()), (next, rest), "after {taken} bytes");
        }
        assert_eq!(log.split(5, 3), (12, log.at(0).expect("frames").0.slice(8..12)));
    }

    #[test]
    fn large_slices_are_not_copied() {
        let mut log = RoomLog::default();
        let large = frames(&["x".repeat(SEGMENT_BYTES).as_str()]);
        let pointer = large.as_ptr();
        log.append(frames(&["a"]));
        log.append(frames(&["b"]));
        log.append(large);
        log.append(frames(&["c"]));
        log.append(frames(&["d"]));
        log.coalesce(0, &mut SegmentPool::new());
        assert_eq!(log.slices.len(), 3);
        assert_eq!(log.slices[1].bytes.as_ptr(), pointer);
    }
}
