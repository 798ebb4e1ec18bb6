//! A straight line through what was sampled, and how sure its slope is.
//!
//! Samples a few seconds apart are not independent: load comes in cycles, memory is given back
//! late. Taken as if they were, they would make any slope look certain. So the line goes through
//! the means of a few long blocks, each as long as several cycles of the load, and what those still
//! have in common with their neighbours (the autocorrelation of the residuals) widens the interval.
//!
//! Sources: G. Fishman, "Principles of Discrete Event Simulation", 1978 (batch means); the
//! correction for an AR(1) process, and for the bias of its estimate in short series, from
//! F. Marriott and J. Pope, "Bias in the estimation of autocorrelations", Biometrika 41, 1954.

use serde::Serialize;

/// Blocks: few enough to be long, enough for a narrow interval.
const BLOCKS: usize = 15;
/// The 99.5th percentile of Student's t with two degrees of freedom fewer: an interval of 99 %.
const STUDENT: f64 = 3.012;
/// The strongest autocorrelation that is made up for; with more, a line says nothing.
const AUTOCORRELATION_MAX: f64 = 0.9;
/// Growth by less than this share of the level is none that matters, however certain it is.
const TOLERANCE: f64 = 0.01;

/// See the module documentation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trend {
    /// The mean.
    pub level: f64,
    /// How much the line rises from its first sample to its last.
    pub growth: f64,
    /// The interval in which the true growth is with a confidence of 99 %.
    pub growth_low: f64,
    /// Its upper end: more growth than this the samples rule out.
    pub growth_high: f64,
    /// Of the residuals of neighbouring blocks.
    pub autocorrelation: f64,
}

impl Trend {
    /// The line through `samples`, of which each is a time and a value, in order of time; `None` if
    /// they are too few.
    #[must_use]
    pub fn of(samples: &[(f64, f64)]) -> Option<Self> {
        let (from, until) = (samples.first()?.0, samples.last()?.0);
        let means = block_means(samples, from, until)?;
        let count = BLOCKS as f64;
        let level = means.iter().sum::<f64>() / count;
        // Blocks are numbered from the middle, so that the line passes there through the level.
        let place = |block: usize| block as f64 - (count - 1.0) / 2.0;
        let spread: f64 = (0..BLOCKS).map(|block| place(block).powi(2)).sum();
        let slope = (0..BLOCKS).map(|block| place(block) * means[block]).sum::<f64>() / spread;
        let residual = |block: usize| means[block] - level - slope * place(block);
        let squares: f64 = (0..BLOCKS).map(|block| residual(block).powi(2)).sum();
        let products: f64 = (1..BLOCKS).map(|block| residual(block) * residual(block - 1)).sum();
        let found = if squares > 0.0 { products / squares } else { 0.0 };
        // Residuals of a line through few points look less alike than they are.
        let autocorrelation = (found + (2.0 + 4.0 * found) / count).clamp(0.0, AUTOCORRELATION_MAX);
        let inflation = ((1.0 + autocorrelation) / (1.0 - autocorrelation)).sqrt();
        let error = (squares / (count - 2.0) / spread).sqrt() * inflation;
        let growth = |slope: f64| slope * count;
        Some(Self {
            level,
            growth: growth(slope),
            growth_low: growth(slope - STUDENT * error),
            growth_high: growth(slope + STUDENT * error),
            autocorrelation,
        })
    }

    /// Whether it grows beyond noise.
    #[must_use]
    pub fn grows(&self) -> bool {
        self.growth_low > 0.0 && self.growth > TOLERANCE * self.level
    }

    /// Where the line begins and ends.
    #[must_use]
    pub fn ends(&self) -> (f64, f64) {
        (self.level - self.growth / 2.0, self.level + self.growth / 2.0)
    }
}

/// The means of blocks of the same length; `None` if one is empty.
fn block_means(samples: &[(f64, f64)], from: f64, until: f64) -> Option<[f64; BLOCKS]> {
    let mut sums = [(0.0, 0_u32); BLOCKS];
    for &(at, value) in samples {
        let block = (at - from) / (until - from) * BLOCKS as f64;
        let sum = &mut sums[(block as usize).min(BLOCKS - 1)];
        *sum = (sum.0 + value, sum.1 + 1);
    }
    let is_full = sums.iter().all(|&(_, count)| count > 0);
    is_full.then(|| sums.map(|(sum, count)| sum / f64::from(count)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Xorshift;

    /// Half an hour, a sample every five seconds.
    fn series(value: impl FnMut(f64) -> f64) -> Vec<(f64, f64)> {
        let mut value = value;
        (0..=360).map(|n| f64::from(n) * 5.0).map(|at| (at, value(at))).collect()
    }

    /// Noise with a mean of 0 and values from -1 to 1.
    fn noise(random: &mut Xorshift) -> f64 {
        f64::from(random.draw()) / f64::from(u32::MAX) * 2.0 - 1.0
    }

    #[test]
    fn a_line_is_found_exactly_where_there_is_nothing_else() {
        let trend = Trend::of(&series(|at| 100.0 + at / 180.0)).expect("enough");
        assert!((trend.growth - 10.0).abs() < 0.2, "{trend:?}");
        assert!((trend.level - 105.0).abs() < 0.1 && trend.grows(), "{trend:?}");
        let trend = Trend::of(&series(|_| 7.0)).expect("enough");
        assert_eq!((trend.level, trend.growth, trend.growth_high), (7.0, 0.0, 0.0));
        assert!(!trend.grows(), "{trend:?}");
        let falls = Trend::of(&series(|at| 100.0 - at / 100.0)).expect("enough");
        assert!(!falls.grows() && falls.growth_high < 0.0, "{falls:?}");
        assert_eq!(Trend::of(&series(|_| 7.0)[..BLOCKS - 2]), None, "too few");
        assert_eq!(Trend::of(&[]), None);
    }

    #[test]
    fn a_leak_is_found_under_cycles_and_noise() {
        // 20 MiB with storms every 20 s that need 2 more, and a leak of 100 bytes for each of their
        // 25 connections per second: 4.3 MiB in half an hour.
        let mut random = Xorshift::new(1);
        let mut load = |at: f64| 20.0 + 2.0 * f64::from(at % 20.0 < 5.0) + noise(&mut random);
        let leak = series(|at| load(at) + at * 2500.0 / f64::from(1 << 20));
        let trend = Trend::of(&leak).expect("enough");
        assert!(trend.grows() && (trend.growth - 4.3).abs() < 0.4, "{trend:?}");
        let none = Trend::of(&series(load)).expect("enough");
        assert!(!none.grows() && none.growth_high < 1.0, "{none:?}");
    }

    #[test]
    fn what_only_wanders_hardly_ever_grows() {
        // Noise with a memory of 100 s (an AR(1) process): of samples taken as independent the
        // slope would look certain in every third run.
        let mut random = Xorshift::new(2);
        let grows = (0..1000).filter(|_| {
            let mut wanders = 0.0;
            let samples = series(|_| {
                wanders = 0.95 * wanders + noise(&mut random);
                20.0 + wanders
            });
            Trend::of(&samples).expect("enough").grows()
        });
        let grows = grows.count();
        assert!(grows <= 20, "{grows} of 1000");
    }
}
