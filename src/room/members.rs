//! The members of a room: a dense list in chunks.
//!
//! Dense, because a sweep walks it from end to end. In chunks, because one vector would double: a
//! crowd that joins would copy itself again and again, hold up to twice the memory, and leave
//! blocks of every size behind. A small room is one small vector.
//!
//! Invariant: every chunk but the last is full, and only the first may be empty.

use std::ops::{Index, IndexMut};

use super::Member;

/// Members per chunk: 4 KiB.
const CHUNK: usize = 256;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Members {
    chunks: Vec<Vec<Member>>,
    len: usize,
}

impl Members {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The member at `index`, if there are so many.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&Member> {
        self.chunks.get(index / CHUNK)?.get(index % CHUNK)
    }

    /// Adds a member behind the others. Returns its index.
    pub fn push(&mut self, member: Member) -> usize {
        let index = self.len;
        if index.is_multiple_of(CHUNK) && self.chunks.len() == index / CHUNK {
            // The first grows from nothing: most rooms are small.
            self.chunks.push(Vec::with_capacity(if index == 0 { 0 } else { CHUNK }));
        }
        self.chunks[index / CHUNK].push(member);
        self.len += 1;
        index
    }

    /// Takes out the member at `index` and puts the last one in its place. Constant time.
    ///
    /// # Panics
    /// When there is none.
    pub fn swap_remove(&mut self, index: usize) -> Member {
        let last = self.len.checked_sub(1).expect("there is a member to remove");
        let chunk = &mut self.chunks[last / CHUNK];
        let member = chunk.pop().expect("the last chunk has the last member");
        if chunk.is_empty() && last >= CHUNK {
            self.chunks.pop();
        }
        self.len = last;
        if index == last { member } else { std::mem::replace(&mut self[index], member) }
    }
}

impl Index<usize> for Members {
    type Output = Member;

    fn index(&self, index: usize) -> &Member {
        &self.chunks[index / CHUNK][index % CHUNK]
    }
}

impl IndexMut<usize> for Members {
    fn index_mut(&mut self, index: usize) -> &mut Member {
        &mut self.chunks[index / CHUNK][index % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_what_a_vector_is() {
        let mut members = Members::default();
        let mut model = Vec::new();
        let mut state = 1_u64;
        for step in 0..20_000_u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(step));
            // Up for a while, then down for a while, over the ends of several chunks.
            let grow = (step / 1500).is_multiple_of(2) == (state >> 61 != 0);
            if grow || model.is_empty() {
                let member = Member::new(step, state);
                assert_eq!(members.push(member), model.len());
                model.push(member);
            } else {
                let index = (state >> 32) as usize % model.len();
                assert_eq!(members.swap_remove(index), model.swap_remove(index));
            }
            assert_eq!(members.len(), model.len());
            assert_eq!(members.get(model.len()), None);
            let probe = (state >> 20) as usize % model.len().max(1);
            assert_eq!(members.get(probe), model.get(probe));
        }
        while !members.is_empty() {
            members.swap_remove(0);
        }
        assert!(members.chunks.len() <= 1, "an empty list keeps no chunks");
    }
}
