//! The figures that can be compared, and what their ratios mean.
//!
//! Never: reads a file. A figure says where in a report it is; finding it is `compare`'s.

use serde::Serialize;

use Better::{Higher, Lower, Neither};

/// Which of two values is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// The larger.
    Higher,
    /// The smaller.
    Lower,
    /// It depends: says how a run was made rather than how good it is.
    Neither,
}

/// A figure that can be compared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure {
    /// Its name for `--judge` and `--json`.
    pub(super) key: &'static str,
    /// Its name in the table, with its unit.
    pub(super) name: &'static str,
    /// Where it is in `report.json` (JSON pointer, RFC 6901).
    pub(super) pointer: &'static str,
    /// Which value is the better one.
    pub(super) better: Better,
}

const fn figure(
    key: &'static str,
    name: &'static str,
    pointer: &'static str,
    better: Better,
) -> Figure {
    Figure { key, name, pointer, better }
}

#[rustfmt::skip] // A table is read by its columns.
pub(super) const FIGURES: [Figure; 32] = [
    figure("deliveries_per_second", "deliveries/s", "/traffic/deliveries_per_second", Higher),
    figure("server_cpu", "server CPU per delivery, us", "/server/cpu_us_per_delivery", Lower),
    figure("p50", "latency p50, ms", "/traffic/latency/p50_ms", Lower),
    figure("p90", "latency p90, ms", "/traffic/latency/p90_ms", Lower),
    figure("p99", "latency p99, ms", "/traffic/latency/p99_ms", Lower),
    figure("p999", "latency p99.9, ms", "/traffic/latency/p999_ms", Lower),
    figure("max", "latency max, ms", "/traffic/latency/max_ms", Lower),
    figure("to_last_p50", "time to last p50, ms", "/traffic/to_last/p50_ms", Lower),
    figure("to_last_p99", "time to last p99, ms", "/traffic/to_last/p99_ms", Lower),
    figure("beside_p99", "small rooms beside p99, ms", "/beside/rooms/latency/p99_ms", Lower),
    figure("beside_echo_p99", "echoes beside p99, ms", "/beside/echoes/latency/p99_ms", Lower),
    figure("opened_per_second", "opened/s", "/opening/per_second", Higher),
    figure("handshake_p50", "handshake p50, ms", "/opening/handshake/p50_ms", Lower),
    figure("handshake_p99", "handshake p99, ms", "/opening/handshake/p99_ms", Lower),
    figure("storm_p50", "handshake in storm p50, ms", "/storm/handshake/p50_ms", Lower),
    figure("storm_p99", "handshake in storm p99, ms", "/storm/handshake/p99_ms", Lower),
    figure("ping_p99", "ping round trip p99, ms", "/heartbeat/round_trip/p99_ms", Lower),
    figure("server_cpus", "server CPUs", "/server/cpus", Neither),
    figure("server_rss", "server RSS per connection, B", "/server/rss_bytes_per_connection", Lower),
    figure("server_rss_max", "server RSS at most, KiB", "/server_rss_kib_max", Lower),
    figure("kernel", "kernel objects per connection, B",
        "/kernel/both_bytes_per_connection", Lower),
    figure("kernel_server", "kernel objects of the server, B",
        "/kernel/server_bytes_per_connection", Lower),
    figure("slab", "kernel slab per connection, B", "/slab_bytes_per_connection", Lower),
    figure("generator_cpus", "generator CPUs", "/generator/cpus", Neither),
    figure("generator_cpu", "generator CPU per delivery, us", "/generator/cpu_us_per_delivery",
        Neither),
    figure("late", "late share of sends", "/traffic/late_share", Lower),
    figure("stalled", "stalled windows", "/traffic/stalled", Lower),
    figure("lost", "lost", "/traffic/lost", Lower),
    figure("duplicated", "duplicated", "/traffic/duplicated", Lower),
    figure("reordered", "reordered", "/traffic/reordered", Lower),
    figure("foreign", "foreign", "/traffic/foreign", Lower),
    figure("unclean", "closed uncleanly", "/closing/unclean", Lower),
];

/// What decides between runs that deliver messages.
pub(super) const JUDGED: [&str; 7] =
    ["deliveries_per_second", "p50", "p99", "server_cpu", "lost", "duplicated", "reordered"];
/// What decides between runs that do not.
pub(super) const JUDGED_IDLE: [&str; 4] =
    ["opened_per_second", "handshake_p99", "storm_p99", "server_rss"];

/// A middle value, and how far the others lie around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the middle two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// That of `values`, of which there must be one.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        // Equal ones first: two infinite ratios have no sum.
        let median = if low == high { low } else { low + (high - low) / 2.0 };
        Self { median, min: values[0], max: values[values.len() - 1] }
    }
}

/// What a ratio means, given the tolerance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Better by more than the tolerance.
    Better,
    /// Within the tolerance, or a figure that is neither good nor bad.
    Same,
    /// Worse by more than the tolerance.
    Worse,
}

impl Change {
    pub(super) fn of(ratio: f64, better: Better, tolerance: f64) -> Self {
        // For figures that were computed: 5 % more than 5 % is worse, its last bit is not.
        let tolerance = tolerance + 1e-9;
        let (up, down) = match better {
            Higher => (Self::Better, Self::Worse),
            Lower => (Self::Worse, Self::Better),
            Neither => (Self::Same, Self::Same),
        };
        match ratio {
            ratio if ratio > 1.0 + tolerance => up,
            ratio if ratio < 1.0 - tolerance => down,
            _ => Self::Same,
        }
    }
}

/// The ratios of pairs. Nothing to nothing is 1; something to nothing is infinitely more.
pub(super) fn ratios(values: &[f64], base: &[f64]) -> Spread {
    let ratio = |(&value, &base): (&f64, &f64)| if value == base { 1.0 } else { value / base };
    Spread::of(values.iter().zip(base).map(ratio).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_change_is_what_passes_the_tolerance() {
        let check = |ratio, better, expected| {
            assert_eq!(Change::of(ratio, better, 0.05), expected, "{ratio} {better:?}");
        };
        check(0.95, Higher, Change::Same);
        check(0.949, Higher, Change::Worse);
        check(1.051, Higher, Change::Better);
        check(1.05, Lower, Change::Same);
        check(1.051, Lower, Change::Worse);
        check(0.949, Lower, Change::Better);
        check(f64::INFINITY, Lower, Change::Worse);
        check(9.0, Neither, Change::Same);
    }

    #[test]
    fn ratios_are_of_pairs() {
        // The host became twice as slow in the middle; the ratio of each pair does not see it.
        let spread = ratios(&[11.0, 22.0, 22.0], &[10.0, 20.0, 20.0]);
        assert_eq!(spread, Spread { median: 1.1, min: 1.1, max: 1.1 });
        assert_eq!(ratios(&[0.0], &[0.0]).median, 1.0);
        assert_eq!(ratios(&[5.0, 6.0], &[0.0, 0.0]).median, f64::INFINITY);
        assert_eq!(Spread::of(vec![4.0, 1.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
    }

    #[test]
    fn what_is_judged_exists() {
        let exists = |key: &&str| FIGURES.iter().any(|figure| figure.key == *key);
        assert!(JUDGED.iter().chain(&JUDGED_IDLE).all(exists));
        let keys: BTreeSet<_> = FIGURES.iter().map(|figure| figure.key).collect();
        assert_eq!(keys.len(), FIGURES.len(), "no key twice");
    }
}
