//! What arrived against what was sent: lost, duplicated, reordered, per stream.
//!
//! A stream is one publisher as one member hears it; its sequence numbers count from 0. In order,
//! a stream is one number. A jump ahead leaves a gap; a number from a gap arrives reordered, any
//! other old number is a duplicate, and what is left of the gaps at the end is lost. Order between
//! publishers is not judged: a client cannot know it.
//!
//! Memory: 4 bytes a stream, plus 8 for each gap that is open.

use std::collections::HashMap;

/// What an arrival was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The next one, or one after a jump.
    InOrder,
    /// Its first time, but a later one was here before it.
    Reordered,
    /// It was here before.
    Duplicate,
}

/// Expectations of all streams of one thread.
#[derive(Debug, Default)]
pub struct Streams {
    next: Vec<u32>,
    /// Half-open ranges of missing numbers, ascending, for the streams that have any.
    gaps: HashMap<usize, Vec<(u32, u32)>>,
}

impl Streams {
    /// `len` streams that expect 0.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self { next: vec![0; len], gaps: HashMap::new() }
    }

    /// Judges one arrival. Cost: O(1) in order, O(gaps of the stream) otherwise.
    pub fn arrive(&mut self, stream: usize, sequence: u32) -> Arrival {
        let next = &mut self.next[stream];
        if sequence >= *next {
            if sequence > *next {
                self.gaps.entry(stream).or_default().push((*next, sequence));
            }
            *next = sequence + 1;
            return Arrival::InOrder;
        }
        let Some(gaps) = self.gaps.get_mut(&stream) else { return Arrival::Duplicate };
        let Some(at) = gaps.iter().position(|gap| (gap.0..gap.1).contains(&sequence)) else {
            return Arrival::Duplicate;
        };
        let (start, end) = gaps.remove(at);
        if sequence + 1 < end {
            gaps.insert(at, (sequence + 1, end));
        }
        if start < sequence {
            gaps.insert(at, (start, sequence));
        }
        if gaps.is_empty() {
            self.gaps.remove(&stream);
        }
        Arrival::Reordered
    }

    /// How many of the first `published` messages have not arrived.
    #[must_use]
    pub fn missing(&self, stream: usize, published: u32) -> u64 {
        let tail = published.saturating_sub(self.next[stream]);
        let gaps = self
            .gaps
            .get(&stream)
            .map_or(0, |gaps| gaps.iter().map(|&(start, end)| u64::from(end - start)).sum::<u64>());
        u64::from(tail) + gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_lost_duplicated_and_reordered_apart() {
        /// Reordered, duplicated, lost.
        type Found = (usize, usize, u64);
        let table: &[(&[u32], u32, Found)] = &[
            (&[0, 1, 2], 3, (0, 0, 0)),
            (&[], 3, (0, 0, 3)),
            (&[0, 2], 3, (0, 0, 1)),
            (&[0, 1], 3, (0, 0, 1)),
            (&[1, 0, 2], 3, (1, 0, 0)),
            (&[0, 0, 1, 1], 2, (0, 2, 0)),
            (&[0, 5, 3, 3, 1], 6, (2, 1, 2)),
            (&[5, 0, 1, 2, 3, 4, 4], 6, (5, 1, 0)),
            (&[9, 4, 5, 3], 10, (3, 0, 6)),
        ];
        for &(arrivals, published, expected) in table {
            let mut streams = Streams::new(2);
            let judged: Vec<_> =
                arrivals.iter().map(|&sequence| streams.arrive(1, sequence)).collect();
            let count = |kind| judged.iter().filter(|&&arrival| arrival == kind).count();
            let lost = streams.missing(1, published);
            let found = (count(Arrival::Reordered), count(Arrival::Duplicate), lost);
            assert_eq!(found, expected, "{arrivals:?}");
        }
    }
}
