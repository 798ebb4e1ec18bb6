//! Numbers that look random and are the same in every run.

/// Xorshift with 32 bits (Marsaglia, "Xorshift RNGs", 2003). Never for secrets.
#[derive(Debug, Clone)]
pub struct Xorshift(u32);

impl Xorshift {
    /// A sequence of its own for each of a few thousand seeds.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        // 2^32 divided by the golden ratio, so that small seeds have many bits; 0 it would never
        // leave.
        Self((0x9e37_79b9 ^ seed).max(1))
    }

    /// The next number; any but 0.
    pub fn draw(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_over_a_small_range_whatever_the_seed() {
        for seed in [0, 1, 15, 0x9e37_79b9] {
            let mut random = Xorshift::new(seed);
            let mut counts = [0_u32; 10];
            (0..10_000).for_each(|_| counts[random.draw() as usize % 10] += 1);
            assert!(counts.iter().all(|count| (800..1200).contains(count)), "{seed}: {counts:?}");
        }
    }
}
