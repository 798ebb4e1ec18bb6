//! The encoded frames of one room on one shard, in order; shared, never copied for a member.
//!
//! A position counts bytes since the room came to this shard; a member's cursor is a position at
//! the start of a frame. The log keeps everything from the slowest cursor, or from the floor that
//! the room's policy sets ([`super::policy`]), to the head. It knows the offset of every frame, and
//! when it was numbered at the room's home.
//!
//! Frames arrive in slices, a slice per publish or per burst. Before a sweep carries several small
//! slices to many members, [`RoomLog::coalesce`] copies them once into one, so that every member
//! costs one send. That copy replaces one system call per slice and *member*.
//!
//! When frames came is kept apart from the slices, because slices are cut and copied together as
//! the sweep goes round, and ages are not.
//!
//! Invariant: slices are contiguous in position, none is empty, each starts at a frame; the first
//! time is that of the first slice or older.
//! Never: looks into a frame, except at its header to find its end.

use std::collections::{VecDeque, vec_deque};
use std::ops::Range;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::segment::{SEGMENT_BYTES, SegmentPool};
use crate::protocol::frame;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct RoomLog {
    slices: VecDeque<Slice>,
    /// When what lies from a position on was numbered, as far as the next of them.
    times: VecDeque<(u64, Instant)>,
    head: u64,
    offset: u64,
}

#[derive(Debug)]
struct Slice {
    start: u64,
    /// Offset of its first frame.
    offset: u64,
    bytes: Bytes,
}

impl Slice {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Where its frames begin. Cost: reads one header per frame.
    fn frames(&self) -> impl Iterator<Item = u64> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = next;
            let rest = self.bytes.get(start..).filter(|rest| !rest.is_empty())?;
            next += frame::frame_len(rest).expect("the log holds whole frames");
            Some(self.start + start as u64)
        })
    }
}

impl RoomLog {
    /// The position behind the newest frame.
    #[must_use]
    pub const fn head(&self) -> u64 {
        self.head
    }

    /// Offset of the newest frame, also of one that came before the log began.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Begins behind the frame with that offset.
    ///
    /// # Panics
    /// When something was appended already.
    pub fn begin(&mut self, offset: u64) {
        assert!(self.head == 0, "a log begins once");
        self.offset = offset;
    }

    /// Bytes held, up to the head.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.slices.front().map_or(0, |slice| self.head - slice.start)
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Appends whole frames of which the first was numbered `at` this time; the last one has the
    /// offset `offset`.
    pub fn append(&mut self, bytes: Bytes, offset: u64, at: Instant) {
        if !bytes.is_empty() {
            let slice = Slice { start: self.head, offset: self.offset + 1, bytes };
            self.times.push_back((slice.start, at));
            self.head = slice.end();
            self.offset = offset;
            self.slices.push_back(slice);
            if self.times.len() > TIMES_MAX {
                self.thin();
            }
        }
    }

    /// Forgets times that are close to the one before: what came then counts as old as that. An age
    /// is off by less than a hundredth of the oldest then.
    fn thin(&mut self) {
        let (Some(&(_, first)), Some(&(_, last))) = (self.times.front(), self.times.back()) else {
            return;
        };
        let apart = (last - first) * 2 / TIMES_MAX as u32;
        let mut before = None::<Instant>;
        self.times.retain(|&(_, at)| {
            let stays = before.is_none_or(|before| at - before > apart);
            if stays {
                before = Some(at);
            }
            stays
        });
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
        let slice = if cursor >= last.start { last } else { self.slice_at(cursor)? };
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

    /// Offset of the frame that begins at `position`; at the head, of the next one to come.
    ///
    /// Cost: reads one header per frame that lies before it in its slice.
    ///
    /// # Panics
    /// When it was trimmed.
    #[must_use]
    pub fn offset_at(&self, position: u64) -> u64 {
        let Some(slice) = self.slice_at(position) else { return self.offset + 1 };
        assert!(position >= slice.start, "an offset is asked for while its frame is here");
        slice.offset + slice.frames().take_while(|&start| start < position).count() as u64
    }

    /// Where the frame with that offset begins, or the first one behind it that is kept; the head
    /// if there is none. Cost: as [`RoomLog::offset_at`].
    #[must_use]
    pub fn position_of(&self, offset: u64) -> u64 {
        let behind = self.slices.partition_point(|slice| slice.offset <= offset);
        let Some(slice) = self.slices.get(behind.saturating_sub(1)) else { return self.head };
        let nth = offset.saturating_sub(slice.offset) as usize;
        slice.frames().nth(nth).unwrap_or(slice.end())
    }

    /// How many frames lie between two positions. Cost: as [`RoomLog::offset_at`], twice.
    ///
    /// # Panics
    /// When the first of them was trimmed.
    #[must_use]
    pub fn messages(&self, positions: Range<u64>) -> u64 {
        if positions.is_empty() {
            return 0;
        }
        self.offset_at(positions.end) - self.offset_at(positions.start)
    }

    /// Where the first frame begins that begins at `position` or later; the head if there is none.
    /// Cost: as [`RoomLog::offset_at`].
    #[must_use]
    pub fn frame_from(&self, position: u64) -> u64 {
        let Some(slice) = self.slice_at(position) else { return self.head };
        slice.frames().find(|&start| start >= position).unwrap_or(slice.end())
    }

    /// Where the newest frame begins; the head if there is none. Cost: reads one header per frame
    /// of the last slice.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.slices.back().and_then(|slice| slice.frames().last()).unwrap_or(self.head)
    }

    /// `position`, or where the newest frame begins if that is before it.
    #[must_use]
    pub fn at_most_newest(&self, position: u64) -> u64 {
        // Looked up only if need be: a position is hardly ever inside of the last slice.
        match self.slices.back() {
            Some(last) if position <= last.start => position,
            _ => position.min(self.newest()),
        }
    }

    /// When what lies at `position` was numbered; `None` at the head, and for what was trimmed.
    /// Cost: as [`RoomLog::since`].
    #[must_use]
    pub fn time_at(&self, position: u64) -> Option<Instant> {
        let behind = self.times.partition_point(|&(start, _)| start <= position);
        let (_, at) = self.times.get(behind.checked_sub(1)?)?;
        (position < self.head).then_some(*at)
    }

    /// When the oldest frame that is kept was numbered, or one before it; `None` if none is kept.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.times.front().map(|&(_, at)| at)
    }

    /// Where what was numbered at `time` or later begins. Cost: a binary search.
    #[must_use]
    pub fn since(&self, time: Instant) -> u64 {
        let index = self.times.partition_point(|&(_, at)| at < time);
        self.times.get(index).map_or(self.head, |&(start, _)| start)
    }

    fn slice_at(&self, position: u64) -> Option<&Slice> {
        let index = self.slices.partition_point(|slice| slice.end() <= position);
        self.slices.get(index)
    }

    /// After a send from `cursor` that took `taken` bytes: the start of the next whole frame, and
    /// the rest of the frame that was cut, empty if the send ended between two frames. Slices may
    /// have been cut and copied together since then.
    ///
    /// Cost: as [`RoomLog::offset_at`]; for short sends only.
    #[must_use]
    pub fn split(&self, cursor: u64, taken: usize) -> (u64, Bytes) {
        let cut = cursor + taken as u64;
        let next = self.frame_from(cut);
        let rest = self.slice_at(cut).map(|slice| {
            slice.bytes.slice((cut - slice.start) as usize..(next - slice.start) as usize)
        });
        (next, rest.unwrap_or_default())
    }

    /// Makes one slice of the small ones that lie from `from` on, the start of a frame, as far as
    /// one segment goes. Cost: copies no more than a segment.
    pub fn coalesce(&mut self, from: u64, segments: &mut SegmentPool) {
        if self.slices.len() < 2 {
            return;
        }
        let first = self.cut_at(from);
        let count = self.run_at(first);
        if count > 1 {
            self.merge(first, count, |run, total| {
                let segment = segments.open(total);
                run.for_each(|slice| segment.put_slice(&slice.bytes));
                segments.cut()
            });
        }
    }

    /// Copies small slices that have stayed into memory of their own, if there are many: each keeps
    /// a whole segment alive, of which it may be a hundredth. What is kept for members that are
    /// behind so takes little more memory than it has bytes.
    ///
    /// Cost: at most one segment is copied per [`SMALL_SLICES_MAX`] that were appended.
    pub fn compact(&mut self) {
        if self.slices.len() <= SMALL_SLICES_MAX
            || self.slices.len() <= SMALL_SLICES_MAX + 2 * self.len() as usize / SEGMENT_BYTES
        {
            return;
        }
        let mut first = 0;
        while first < self.slices.len() {
            let count = self.run_at(first);
            if count > 1 {
                self.merge(first, count, |run, total| {
                    let mut own = BytesMut::with_capacity(total);
                    run.for_each(|slice| own.put_slice(&slice.bytes));
                    own.freeze()
                });
            }
            first += 1;
        }
    }

    /// Makes `position`, the start of a frame, the start of a slice, if anything could be copied
    /// together with what lies there. Returns the index of the first slice that begins there or
    /// later. Shares memory, copies nothing.
    fn cut_at(&mut self, position: u64) -> usize {
        let index = self.slices.partition_point(|slice| slice.end() <= position);
        let next_len = self.slices.get(index + 1).map(|next| next.bytes.len());
        match self.slices.get(index) {
            Some(slice) if slice.start < position => {
                let rest = slice.end() - position;
                if next_len.is_some_and(|next| rest as usize + next <= SEGMENT_BYTES) {
                    let offset = self.offset_at(position);
                    let slice = &mut self.slices[index];
                    let bytes = slice.bytes.split_off((position - slice.start) as usize);
                    self.slices.insert(index + 1, Slice { start: position, offset, bytes });
                }
                index + 1
            }
            _ => index,
        }
    }

    /// How many slices from the one at `first` on fit into a segment together.
    fn run_at(&self, first: usize) -> usize {
        let mut len = 0;
        let fits = |slice: &&Slice| {
            len += slice.bytes.len();
            len <= SEGMENT_BYTES
        };
        self.slices.range(first.min(self.slices.len())..).take_while(fits).count()
    }

    /// Makes one slice of `count` from the one at `first` on; `copy` copies so many bytes.
    fn merge(
        &mut self,
        first: usize,
        count: usize,
        copy: impl FnOnce(vec_deque::Iter<'_, Slice>, usize) -> Bytes,
    ) {
        let run = self.slices.range(first..first + count);
        let total = run.clone().map(|slice| slice.bytes.len()).sum();
        let bytes = copy(run, total);
        self.slices.drain(first + 1..first + count);
        self.slices[first].bytes = bytes;
    }

    /// Forgets the slices that lie wholly before `position`.
    pub fn trim(&mut self, position: u64) {
        while self.slices.front().is_some_and(|slice| slice.end() <= position) {
            self.slices.pop_front();
        }
        match self.slices.front() {
            Some(&Slice { start, .. }) => {
                while self.times.get(1).is_some_and(|&(next, _)| next <= start) {
                    self.times.pop_front();
                }
            }
            None => {
                self.times.clear();
                if self.slices.capacity().max(self.times.capacity()) > SLICES_KEPT {
                    self.slices.shrink_to(SLICES_KEPT);
                    self.times.shrink_to(SLICES_KEPT);
                }
            }
        }
    }
}

/// Slices, beyond those that are large, that are kept without being copied together.
const SMALL_SLICES_MAX: usize = 16;

/// Times that are kept before those that are close to each other are forgotten.
const TIMES_MAX: usize = 256;

/// Places for slices and times that a quiet room keeps.
const SLICES_KEPT: usize = 8;

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        let now = Instant::now();
        (1..).zip(&slices).for_each(|(offset, slice)| log.append(slice.clone(), offset, now));
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
        log.append(frames(&["abc", "defgh", "i"]), 3, Instant::now());
        for (taken, next, rest) in
            [(0, 0, 0), (1, 5, 4), (5, 5, 0), (6, 12, 6), (11, 12, 1), (12, 12, 0), (13, 15, 2)]
        {
            let (cursor, bytes) = log.split(0, taken);
            assert_eq!((cursor, bytes.len()), (next, rest), "after {taken} bytes");
        }
        assert_eq!(log.split(5, 3), (12, log.at(0).expect("frames").0.slice(8..12)));
        // A sweep may have cut the slice since then.
        log.append(frames(&["j"]), 4, Instant::now());
        log.coalesce(5, &mut SegmentPool::new());
        assert_eq!(log.split(0, 8), (12, frames(&["defgh"]).slice(3..)));
    }

    #[test]
    fn large_slices_are_not_copied() {
        let mut log = RoomLog::default();
        let large = frames(&["x".repeat(SEGMENT_BYTES).as_str()]);
        let pointer = large.as_ptr();
        let slices = [frames(&["a"]), frames(&["b"]), large, frames(&["c"]), frames(&["d"])];
        let now = Instant::now();
        (1..).zip(slices).for_each(|(offset, slice)| log.append(slice, offset, now));
        log.coalesce(0, &mut SegmentPool::new());
        log.coalesce(log.slices[2].start, &mut SegmentPool::new());
        assert_eq!(log.slices.len(), 3);
        assert_eq!(log.slices[1].bytes.as_ptr(), pointer);
    }

    #[test]
    #[cfg_attr(miri, ignore = "a thousand segments take minutes")]
    fn small_slices_that_stay_are_copied_out_of_their_segments() {
        let (mut log, start) = (RoomLog::default(), Instant::now());
        let (mut whole, mut starts, mut lent) = (Vec::new(), vec![0], Vec::new());
        for offset in 1..=1000_u32 {
            starts.push(whole.len() as u64);
            let frame = frames(&["a", "bb", "ccc"][..1 + offset as usize % 3]);
            whole.extend_from_slice(&frame);
            // Each in a segment of its own, as in a room that is quiet among busy ones.
            let segment = Bytes::from([&frame[..], &[0; SEGMENT_BYTES]].concat());
            lent.push(segment.clone());
            let at = start + Duration::from_millis(500) * offset;
            log.append(segment.slice(..frame.len()), u64::from(offset), at);
            log.compact();
        }
        assert_eq!(log.from(0).collect::<Vec<_>>().concat(), whole);
        let slices_max = SMALL_SLICES_MAX + 1 + 4 * whole.len() / SEGMENT_BYTES;
        assert!(log.slices.len() <= slices_max, "{} slices", log.slices.len());
        let pinned = lent.iter().filter(|segment| !segment.is_unique()).count();
        assert!(pinned <= SMALL_SLICES_MAX + 1, "{pinned} segments are kept");
        assert!(log.times.len() <= TIMES_MAX);
        for second in [0, 100, 250, 490] {
            // Within a hundredth of all: five seconds.
            let since = log.since(start + Duration::from_secs(second as u64));
            assert!((starts[2 * second]..=starts[2 * second + 10]).contains(&since));
        }
        log.trim(starts[500]);
        assert!(log.time_at(starts[500]).is_some_and(|at| at <= start + Duration::from_secs(250)));
        log.trim(log.head());
        assert!(log.times.is_empty());
    }

    #[test]
    fn coalesces_from_the_middle_of_a_slice() {
        let mut log = RoomLog::default();
        let (first, second) = (frames(&["a", "bb", "ccc"]), frames(&["dddd"]));
        let whole = [&first[..], &second[..]].concat();
        log.append(first, 3, Instant::now());
        log.append(second, 4, Instant::now());
        log.coalesce(3, &mut SegmentPool::new());
        for (cursor, offset) in [(0, 1), (3, 2), (7, 3), (12, 4)] {
            let end = if cursor < 3 { 3 } else { whole.len() };
            let (bytes, from) = log.at(cursor).expect("before the head");
            assert_eq!(bytes[from..], whole[cursor as usize..end], "at {cursor}");
            assert_eq!((log.offset_at(cursor), log.position_of(offset)), (offset, cursor));
        }
        // What does not fit into a segment stays where it is.
        log.append(frames(&["x".repeat(SEGMENT_BYTES).as_str()]), 5, Instant::now());
        log.coalesce(7, &mut SegmentPool::new());
        let (bytes, from) = log.at(7).expect("before the head");
        assert_eq!(bytes[from..], whole[7..]);
    }

    /// Against the plain list of all frames: where each begins, its offset, when it came.
    #[test]
    fn knows_offsets_and_ages_before_and_after_coalescing() {
        let (mut log, start) = (RoomLog::default(), Instant::now());
        log.begin(40);
        assert_eq!((log.offset_at(0), log.newest(), log.since(start)), (41, 0, 0));
        let mut model = Vec::new();
        for (second, payloads) in
            (0..).zip([&["a", "bb"][..], &["ccc"], &["d", "", "eeee"], &["f"]])
        {
            let at = start + Duration::from_secs(second);
            let mut position = log.head();
            for payload in payloads {
                model.push((position, 41 + model.len() as u64, at));
                position += frames(&[payload]).len() as u64;
            }
            log.append(frames(payloads), 40 + model.len() as u64, at);
        }
        assert_eq!(log.offset(), 47);
        let check = |log: &RoomLog, trimmed: u64| {
            for &(position, offset, _) in model.iter().filter(|(start, ..)| *start >= trimmed) {
                assert_eq!(log.offset_at(position), offset);
                assert_eq!(log.position_of(offset), position);
                assert_eq!(log.frame_from(position), position);
                let next = model.iter().map(|frame| frame.0).find(|&start| start > position);
                assert_eq!(log.frame_from(position + 1), next.unwrap_or(log.head()));
                assert_eq!(log.at_most_newest(position + 1), (position + 1).min(log.newest()));
            }
            assert_eq!(log.newest(), model.last().expect("frames").0);
            assert_eq!(log.offset_at(log.head()), 48);
            assert_eq!(log.frame_from(log.head()), log.head());
            assert_eq!((log.position_of(0), log.position_of(48)), (trimmed, log.head()));
        };
        check(&log, 0);
        for (second, index) in [(0, 0), (1, 2), (2, 3), (3, 6)] {
            assert_eq!(log.since(start + Duration::from_secs(second)), model[index].0);
        }
        assert_eq!(log.since(start + Duration::from_secs(4)), log.head());
        // The third and the fourth slice become one, and are as old as they were.
        log.coalesce(model[3].0, &mut SegmentPool::new());
        check(&log, 0);
        assert_eq!(log.slices.len(), 3);
        assert_eq!(log.since(start + Duration::from_secs(2)), model[3].0);
        assert_eq!(log.since(start + Duration::from_secs(3)), model[6].0);
        assert_eq!(log.time_at(model[5].0), Some(start + Duration::from_secs(2)));
        log.trim(model[3].0);
        check(&log, model[3].0);
    }
}
