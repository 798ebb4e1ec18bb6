//! How many handshakes a thread keeps under way while its connections open.
//!
//! Adaptive, as TCP finds its congestion window: it starts small, grows by one for each handshake
//! that is answered quickly (so it doubles every round trip) and is halved when one fails, times
//! out or takes a second, which is what a lost SYN costs. After the first trouble it grows by one
//! per round trip only. Quick is relative to the best handshake so far, so that a far server is
//! no slow one; a queue that builds up at a near one ends the growth before it overflows, and when
//! it is long the window shrinks again. (Without that it crept up over a million handshakes to
//! 2,800 under way: 160 ms each, for 17,400/s where a tenth as many made 20,700/s.)
//!
//! Sources: RFC 5681 (slow start, additive increase, multiplicative decrease); L. Brakmo, "TCP
//! Vegas" (delay as the signal); RFC 6298 (the initial retransmission timeout of 1 s).

/// Where the adaptive windows of all threads start together: twice doubled it is still less than
/// the backlog of 511 that many servers listen with.
const START: f64 = 64.0;
/// A handshake this long has lost a packet on its way.
const SLOW_NS: u64 = 1_000_000_000;
/// What a handshake may take beyond twice the best one and still be quick.
const QUICK_NS: u64 = 10_000_000;
/// What it may take, as a multiple of what is quick, before it says that the queue is long.
const LONG: u64 = 2;

/// See the module documentation.
#[derive(Debug)]
pub struct Window {
    adaptive: bool,
    size: f64,
    max: f64,
    /// No trouble so far.
    doubling: bool,
    best_ns: u64,
    /// Until then, trouble is of the burst that has halved the window already.
    halved_until: u64,
}

impl Window {
    /// A window that finds its size, from 1 to `max`; one of `threads`.
    #[must_use]
    pub fn adaptive(max: usize, threads: u32) -> Self {
        let fixed = Self::fixed(max);
        let start = (START / f64::from(threads)).clamp(1.0, fixed.max);
        Self { adaptive: true, size: start, ..fixed }
    }

    /// A window of `max`, whatever happens.
    #[must_use]
    pub fn fixed(max: usize) -> Self {
        let max = max.max(1) as f64;
        let (best_ns, halved_until) = (u64::MAX, 0);
        Self { adaptive: false, size: max, max, doubling: true, best_ns, halved_until }
    }

    /// Handshakes that may be under way.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// A handshake has succeeded at `now` and took `took_ns`.
    pub fn answered(&mut self, took_ns: u64, now: u64) {
        self.best_ns = self.best_ns.min(took_ns);
        let quick_ns = 2 * self.best_ns + QUICK_NS;
        if took_ns >= SLOW_NS + self.best_ns {
            self.trouble(now);
        } else if self.adaptive && took_ns <= quick_ns {
            let more = if self.doubling { 1.0 } else { 1.0 / self.size };
            self.size = (self.size + more).min(self.max);
        } else if self.adaptive && took_ns > LONG * quick_ns {
            self.doubling = false;
            self.size = (self.size - 1.0 / self.size).max(1.0);
        }
    }

    /// A handshake has failed at `now`.
    pub fn trouble(&mut self, now: u64) {
        self.doubling = false;
        if self.adaptive && now >= self.halved_until {
            self.size = (self.size / 2.0).max(1.0);
            self.halved_until = now + SLOW_NS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn grows_while_answers_are_quick_and_halves_once_per_burst_of_trouble() {
        let mut window = Window::adaptive(100, 4);
        assert_eq!(window.size(), 16);
        for _ in 0..16 {
            window.answered(40 * MS, 0);
        }
        assert_eq!(window.size(), 32, "a round trip doubles it, however long");
        window.answered(91 * MS, 0);
        assert_eq!(window.size(), 32, "a queue builds up: neither");
        let mut shrinking = Window::adaptive(100, 4);
        for ms in [40, 181, 181, 40] {
            shrinking.answered(ms * MS, 0);
        }
        assert_eq!(shrinking.size(), 16, "a long queue: back, by one per round trip");
        for _ in 0..100 {
            window.answered(50 * MS, 0);
        }
        assert_eq!(window.size(), 100, "bounded");
        window.answered(1040 * MS, 7);
        window.trouble(8);
        assert_eq!(window.size(), 50, "one burst");
        for _ in 0..51 {
            window.answered(40 * MS, 9);
        }
        assert_eq!(window.size(), 51, "one per round trip");
        for second in 1..20 {
            window.trouble(1000 * MS * second + 10);
        }
        assert_eq!(window.size(), 1, "never none");
    }

    #[test]
    fn a_small_bound_bounds_the_start() {
        assert_eq!(Window::adaptive(3, 1).size(), 3);
        assert_eq!(Window::adaptive(100, 1000).size(), 1);
        let mut fixed = Window::fixed(5);
        fixed.trouble(0);
        assert_eq!((fixed.size(), Window::fixed(0).size()), (5, 1));
    }
}
