//! What is sampled: the server's memory, descriptors and pools, and the kernel's memory for it.
//!
//! Everything comes from /proc, from the server's own metrics, and from its control group, which
//! knows the kernel's memory for this process alone; the host's slab, of everybody on it, is
//! sampled beside it. What cannot be read is an empty field, never a guess.

use std::collections::HashMap;
use std::fs;

use serde::Serialize;

use super::cgroup::Cgroup;
use crate::cli::Target;
use crate::host;
use crate::http::{Client, HttpError};

/// One column of the samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// Its name in samples.csv.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// Whether growth of it fails the run. Not of what others on the host have a share in.
    pub judged: bool,
    #[serde(skip)]
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Source {
    Rss,
    Descriptors,
    Kernel,
    Slab,
    /// The sum over shards of a gauge in `/metrics`.
    Gauge(&'static str),
}

const fn gauge(name: &'static str, about: &'static str, metric: &'static str) -> Figure {
    Figure { name, about, judged: true, source: Source::Gauge(metric) }
}

/// All columns, in their order.
pub const FIGURES: [Figure; 11] = [
    Figure { name: "rss_kib", about: "resident memory, KiB", judged: true, source: Source::Rss },
    Figure {
        name: "descriptors",
        about: "descriptors, all threads' tables",
        judged: true,
        source: Source::Descriptors,
    },
    Figure {
        name: "kernel_kib",
        about: "kernel memory for the server, KiB",
        judged: true,
        source: Source::Kernel,
    },
    Figure {
        name: "slab_kib",
        about: "slab of the whole host, KiB",
        judged: false,
        source: Source::Slab,
    },
    gauge("receive_buffers", "receive buffers made", "fanwire_receive_buffers"),
    gauge("segments", "segments that wait to be used again", "fanwire_segments"),
    gauge("partial_bytes", "memory for incomplete messages, bytes", "fanwire_partial_bytes"),
    gauge("connections", "connections", "fanwire_connections"),
    gauge("rooms", "rooms", "fanwire_rooms"),
    gauge("members", "members of rooms", "fanwire_members"),
    gauge("mailbox_depth", "messages between shards", "fanwire_mailbox_depth"),
];

/// Those that are the same before the load and after it, when everybody has left.
const AT_REST: [&str; 5] = ["descriptors", "partial_bytes", "connections", "rooms", "members"];

/// One moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Since the start of the load.
    pub seconds: f64,
    /// In the order of [`FIGURES`].
    pub values: [Option<f64>; FIGURES.len()],
}

/// Where samples come from.
#[derive(Debug)]
pub struct Sampler {
    /// The server.
    pub pid: u32,
    /// Its HTTP API. Every sample has a connection of its own, which counts in it.
    pub admin: Target,
    /// Its control group, if it has one of its own.
    pub cgroup: Option<Cgroup>,
}

impl Sampler {
    /// Takes a sample, `seconds` after the start of the load.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn take(&self, seconds: f64) -> Result<Sample, HttpError> {
        let mut client = Client::connect(&self.admin)?;
        let text = client.ask("GET", "/metrics", b"")?;
        let text = String::from_utf8_lossy(&text);
        let gauges = sums(&text);
        let value = |figure: Figure| match figure.source {
            Source::Rss => host::rss_kib(self.pid).map(|kib| kib as f64),
            Source::Descriptors => descriptors(self.pid),
            Source::Kernel => self.cgroup.as_ref().and_then(Cgroup::kernel_kib),
            Source::Slab => host::slab_kib().map(|kib| kib as f64),
            Source::Gauge(metric) => gauges.get(metric).copied(),
        };
        Ok(Sample { seconds, values: FIGURES.map(value) })
    }
}

impl Sample {
    /// What must be the same whenever nobody is there.
    #[must_use]
    pub fn at_rest(&self) -> Vec<(&'static str, Option<f64>)> {
        let named = FIGURES.iter().zip(self.values).map(|(figure, value)| (figure.name, value));
        named.filter(|(name, _)| AT_REST.contains(name)).collect()
    }

    /// The value of the figure `name`.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<f64> {
        let at = FIGURES.iter().position(|figure| figure.name == name)?;
        self.values[at]
    }
}

/// The samples as a table with a head, one line each.
#[must_use]
pub fn to_csv(samples: &[Sample]) -> String {
    let names: Vec<_> = FIGURES.iter().map(|figure| figure.name).collect();
    let mut text = format!("seconds,{}\n", names.join(","));
    for sample in samples {
        let value = |value: &Option<f64>| value.map_or(String::new(), |value| value.to_string());
        let values: Vec<_> = sample.values.iter().map(value).collect();
        text += &format!("{:.1},{}\n", sample.seconds, values.join(","));
    }
    text
}

/// Open descriptors of all threads, each of which may have a table of its own (the shards have). A
/// table that threads share counts for each of them.
fn descriptors(pid: u32) -> Option<f64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let counts = tasks.flatten().filter_map(|task| fs::read_dir(task.path().join("fd")).ok());
    Some(counts.map(|table| table.count() as f64).sum())
}

/// The metrics in `text` (Prometheus' text format) by name, each added up over its labels.
fn sums(text: &str) -> HashMap<&str, f64> {
    let mut sums = HashMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((metric, value)) = line.rsplit_once(' ') else { continue };
        let name = metric.split('{').next().unwrap_or(metric);
        if let Ok(value) = value.parse::<f64>() {
            *sums.entry(name).or_default() += value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_added_up_over_shards() {
        let text =
            "# HELP a b c\n# TYPE a gauge\na{shard=\"0\",x=\"{ }\"} 2\na{shard=\"1\"} 3.5\nb 7\n\n";
        let sums = sums(text);
        assert_eq!((sums["a"], sums["b"], sums.len()), (5.5, 7.0, 2));
    }

    #[test]
    fn what_is_not_known_is_an_empty_field() {
        let mut values = [None; FIGURES.len()];
        (values[0], values[2]) = (Some(1024.0), Some(0.5));
        let sample = Sample { seconds: 5.04, values };
        let csv = to_csv(&[sample]);
        let (head, line) = csv.split_once('\n').expect("a head");
        assert!(head.starts_with("seconds,rss_kib,descriptors,kernel_kib,"), "{head}");
        assert_eq!(line, "5.0,1024,,0.5,,,,,,,,\n");
        assert_eq!((sample.value("rss_kib"), sample.value("rooms")), (Some(1024.0), None));
        assert_eq!(sample.at_rest().len(), AT_REST.len());
    }

    #[test]
    fn counts_the_descriptors_of_this_very_process() {
        let before = descriptors(std::process::id()).expect("we are alive");
        let more: Vec<_> = (0..1000).map(|_| fs::File::open("/dev/null").expect("there")).collect();
        let after = descriptors(std::process::id()).expect("we are alive");
        assert!(after >= before + more.len() as f64 / 2.0, "{before} {after}");
        assert_eq!(descriptors(u32::MAX), None);
    }
}
