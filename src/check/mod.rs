//! `fanwire check`: is this host fit for it, what would make it fitter, how many connections fit.
//!
//! Reads the host once and changes nothing but its own soft descriptor limit. The addresses are not
//! tried: a server may be running on them. What is wanted of a host comes from the profiles in
//! `tuning/`, the files that `scripts/tune.sh` applies.
//!
//! | Module | Job |
//! | --- | --- |
//! | [`profile`] | the profiles, and which of two values is the better one |
//! | [`judge`] | settings of the host: found, wanted, verdict, remedy |
//! | [`forecast`] | every limit on the number of connections, the nearest first |
//! | [`render`] | the report for people |
//!
//! Something *must* change when the server would not start, when the host is not as a profile that
//! was asked for, or when the connections that were asked for do not fit. Everything else is
//! advice: a host that is not tuned is fit to develop on.

mod forecast;
mod judge;
mod profile;
mod render;

use std::path::Path;

use serde::Serialize;

use crate::config::{CheckOptions, CpuList, Profile, Settings};
use crate::io::host::{self, HostError};
use crate::io::readings::{self, Readings};

pub use forecast::Limit;
pub use judge::{Row, Verdict};

/// Reads this host and judges it for a server with these settings.
pub fn run(settings: &Settings, options: CheckOptions) -> Report {
    Report::new(&Host::read(settings, options.profile()), settings, options)
}

/// What is known of the host.
struct Host {
    readings: Readings,
    /// Whether shards can have their rings.
    kernel: Result<(), HostError>,
    /// RLIMIT_NOFILE, raised as the server would.
    descriptor_limit: Result<u64, HostError>,
    /// The CPUs the shards would be dealt to.
    cpus: Result<Vec<usize>, HostError>,
}

impl Host {
    fn read(settings: &Settings, profile: Profile) -> Host {
        let keys = profile::keys(profile);
        Host {
            readings: readings::read(Path::new("/"), keys.iter().map(|key| key.name)),
            kernel: host::check_kernel(),
            descriptor_limit: host::raise_descriptor_limit(),
            cpus: host::shard_cpus(settings.cpus.as_set().map(CpuList::as_slice)),
        }
    }

    /// How many shards `settings` make here; one if the CPUs are not known.
    fn shards(&self, settings: &Settings) -> usize {
        settings.shard_count(self.cpus.as_ref().map_or(1, Vec::len))
    }
}

/// What came of it; prints as text, serialises as JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The profile the host is compared with.
    pub profile: Profile,
    /// Whether it was asked for: then what differs must change.
    pub profile_is_required: bool,
    /// The number of connections that was asked for.
    pub connections: Option<u64>,
    /// The shards that the forecast is for.
    pub shards: usize,
    /// Settings of the host.
    pub settings: Vec<Row>,
    /// What bounds the number of idle connections, the nearest first; at least one.
    pub limits: Vec<Limit>,
    /// What the table of limits does not say.
    pub notes: Vec<String>,
    /// How many settings and limits must change.
    pub must_change: usize,
}

impl Report {
    fn new(host: &Host, settings: &Settings, options: CheckOptions) -> Report {
        let shards = host.shards(settings);
        let rows = judge::rows(host, settings, shards, options);
        let (limits, notes) = forecast::forecast(host, settings, shards, options.connections);
        let must_change = rows.iter().filter(|row| row.must_change).count()
            + limits.iter().filter(|limit| !limit.fits).count();
        Report {
            profile: options.profile(),
            profile_is_required: options.profile.is_some(),
            connections: options.connections,
            shards,
            settings: rows,
            limits,
            notes,
            must_change,
        }
    }

    /// Whether nothing must change.
    pub fn passes(&self) -> bool {
        self.must_change == 0
    }

    /// The report as JSON, with a line's end.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("plain values serialise");
        format!("{json}\n")
    }
}

/// A number with commas between the thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
