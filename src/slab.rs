//! Values by key = slot + generation; a stale key finds nothing.
//!
//! Owns its values in fixed chunks, so that growing to a million never moves or copies one and
//! never needs twice the memory. Freed slots are reused last-in first-out, which keeps the
//! touched memory small. Chunks stay for the life of the slab: what one storm needed, the next
//! one will need again.
//!
//! Invariant: a slot's generation changes at every removal, so a key names one value for ever
//! (until 2^24 removals of one slot, long after anything that could still hold the key is gone).
//! Never: moves a value, hands out two keys for one value.

use crate::planted::{Bug, planted};

/// Names one value in one [`Slab`]: 32 bits of slot, 24 bits of generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    slot: u32,
    generation: u32,
}

impl Key {
    /// The key as one number below 2^56, for places that carry a plain integer.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }

    /// The key that [`Key::to_bits`] made a number of.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self { slot: bits as u32, generation: (bits >> 32) as u32 & GENERATION_MASK }
    }

    /// The slot alone: names the value as long as the caller knows it to be there.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.slot
    }

    /// How often its slot was freed before, below 2^24.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Slab<T> {
    chunks: Vec<Box<[Entry<T>]>>,
    free: Option<u32>,
    len: usize,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    slot: Slot<T>,
}

#[derive(Debug)]
enum Slot<T> {
    Free { next: Option<u32> },
    Used(T),
}

/// Values per chunk: small enough that a small server stays small (a chunk of connections is
/// some 16 KiB), large enough that the table of chunks stays in the cache.
const CHUNK: usize = 256;
const GENERATION_MASK: u32 = (1 << 24) - 1;

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: None, len: 0 }
    }
}

impl<T> Slab<T> {
    /// The bytes of memory that one value takes, its generation included.
    pub const SLOT_BYTES: usize = size_of::<Entry<T>>();

    /// An empty slab; allocates with the first value.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many values it holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One past the highest slot ever used: the bound for a walk with [`Slab::key_at`].
    #[must_use]
    pub fn slots(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    /// Takes `value` in and names it. Allocates one chunk when no slot is free.
    pub fn insert(&mut self, value: T) -> Key {
        let slot = match self.free {
            Some(slot) => slot,
            None => self.grow(),
        };
        let entry = self.entry_mut(slot).expect("a free slot exists");
        let generation = entry.generation;
        let Slot::Free { next } = std::mem::replace(&mut entry.slot, Slot::Used(value)) else {
            unreachable!("the free list names free slots only");
        };
        self.free = next;
        self.len += 1;
        Key { slot, generation }
    }

    /// Takes the value out; its key and every copy of it are stale from now on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        let next = self.free;
        let entry = self.entry_mut(key.slot)?;
        entry.generation = (entry.generation + 1) & GENERATION_MASK;
        let taken = std::mem::replace(&mut entry.slot, Slot::Free { next });
        self.free = Some(key.slot);
        self.len -= 1;
        match taken {
            Slot::Used(value) => Some(value),
            Slot::Free { .. } => unreachable!("a valid key names a used slot"),
        }
    }

    /// The value of `key`, unless it is gone.
    #[must_use]
    pub fn get(&self, key: Key) -> Option<&T> {
        match self.entry(key.slot)? {
            Entry { generation, slot: Slot::Used(value) }
                if *generation == key.generation || planted(Bug::StaleGeneration) =>
            {
                Some(value)
            }
            _ => None,
        }
    }

    /// The value of `key`, unless it is gone.
    #[must_use]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.entry_mut(key.slot)? {
            Entry { generation, slot: Slot::Used(value) }
                if *generation == key.generation || planted(Bug::StaleGeneration) =>
            {
                Some(value)
            }
            _ => None,
        }
    }

    /// The value in `slot`, whatever its generation.
    #[must_use]
    pub fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        match &mut self.entry_mut(slot)?.slot {
            Slot::Used(value) => Some(value),
            Slot::Free { .. } => None,
        }
    }

    /// The key of the value in `slot`, if there is one.
    #[must_use]
    pub fn key_at(&self, slot: u32) -> Option<Key> {
        let entry = self.entry(slot)?;
        matches!(entry.slot, Slot::Used(_)).then_some(Key { slot, generation: entry.generation })
    }

    fn entry(&self, slot: u32) -> Option<&Entry<T>> {
        self.chunks.get(slot as usize / CHUNK)?.get(slot as usize % CHUNK)
    }

    fn entry_mut(&mut self, slot: u32) -> Option<&mut Entry<T>> {
        self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)
    }

    /// Adds one chunk and puts its slots on the free list, lowest first. Returns the lowest.
    fn grow(&mut self) -> u32 {
        let first = self.slots();
        let chunk = (first..first + CHUNK as u32)
            .map(|slot| {
                let last = slot + 1 == first + CHUNK as u32;
                Entry { generation: 0, slot: Slot::Free { next: (!last).then_some(slot + 1) } }
            })
            .collect();
        self.chunks.push(chunk);
        self.free = Some(first);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing() {
        let mut slab = Slab::new();
        let first = slab.insert("a");
        assert_eq!(slab.remove(first), Some("a"));
        let second = slab.insert("b");
        assert_eq!(second.slot(), first.slot());
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"b"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn holds_what_a_map_holds() {
        let mut slab = Slab::new();
        let mut model = std::collections::BTreeMap::new();
        let mut state = 1u64;
        let steps = if cfg!(miri) { 2_000 } else { 20_000_u64 };
        for step in 0..steps {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(step);
            if state >> 62 == 0 {
                if let Some(&key) = model.keys().nth((state >> 32) as usize % model.len().max(1)) {
                    assert_eq!(slab.remove(key), model.remove(&key));
                }
            } else {
                assert_eq!(model.insert(slab.insert(step), step), None);
            }
            assert_eq!(slab.len(), model.len());
        }
        for (key, value) in &model {
            assert_eq!(slab.get(*key), Some(value));
            assert_eq!(Key::from_bits(key.to_bits()), *key);
            assert_eq!(slab.key_at(key.slot()), Some(*key));
        }
    }
}
