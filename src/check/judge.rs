//! Settings of the host: what is found, what is wanted, the verdict and the remedy.
//!
//! Pure: from what was read to rows of a table. Which numbers are wanted is the profile's business.

use serde::Serialize;

use crate::config::{CheckOptions, Settings};
use crate::io::host::{self, HostError};
use crate::io::readings::{Reading, Readings};

use super::profile::{self, Key, Want};
use super::{Host, grouped};

/// One setting of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Its name, as sysctl(8) has it if it is one.
    pub setting: String,
    /// What is there.
    pub found: String,
    /// What is as good as can be.
    pub wanted: String,
    /// How the two compare.
    pub verdict: Verdict,
    /// Whether it must change; advice otherwise.
    pub must_change: bool,
    /// What to do, a command where there is one; empty where there is nothing to do.
    pub remedy: String,
}

/// How what is found compares with what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As good as wanted.
    Ok,
    /// Less than wanted.
    Low,
    /// More than wanted.
    High,
    /// Not what is wanted.
    Differs,
    /// This kernel, or this container, does not have it.
    Missing,
    /// It may not be read.
    Unreadable,
}

impl Verdict {
    /// As it stands in the table.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Low => "low",
            Verdict::High => "high",
            Verdict::Differs => "differs",
            Verdict::Missing => "missing",
            Verdict::Unreadable => "cannot read",
        }
    }
}

/// All rows, in the order of the table: what the server needs, the profile, what is no sysctl.
pub(super) fn rows(
    host: &Host,
    settings: &Settings,
    shards: usize,
    options: CheckOptions,
) -> Vec<Row> {
    let readings = &host.readings;
    let mut rows =
        vec![kernel(host), io_uring(host), cpus(host), descriptors(host, settings, shards)];
    rows.extend(profile::keys(options.profile()).iter().map(|key| {
        let row = sysctl(key, readings);
        // What the kernel does not have nobody can change.
        let must_change =
            options.profile.is_some() && !matches!(row.verdict, Verdict::Ok | Verdict::Missing);
        Row { must_change, ..row }
    }));
    rows.extend([overcommit(readings), governor(readings), huge_pages(readings)]);
    rows
}

/// A row without which the server does not start; `error` says why it would not.
fn needed(setting: &str, found: &str, wanted: &str, error: Option<&HostError>) -> Row {
    Row {
        setting: setting.to_owned(),
        found: found.to_owned(),
        wanted: wanted.to_owned(),
        verdict: if error.is_some() { Verdict::Low } else { Verdict::Ok },
        must_change: error.is_some(),
        remedy: error.map(ToString::to_string).unwrap_or_default(),
    }
}

/// A row that is good to have.
fn advice(setting: &str, found: &str, wanted: &str, verdict: Verdict, remedy: &str) -> Row {
    Row {
        setting: setting.to_owned(),
        found: found.to_owned(),
        wanted: wanted.to_owned(),
        verdict,
        must_change: false,
        remedy: remedy.to_owned(),
    }
}

fn kernel(host: &Host) -> Row {
    let release = host.readings.sysctls["kernel.osrelease"].text().unwrap_or("?");
    needed("kernel", release, "6.1 or newer", kernel_error(host))
}

fn kernel_error(host: &Host) -> Option<&HostError> {
    let is_about_it = |error: &&HostError| {
        matches!(error, HostError::KernelTooOld { .. } | HostError::KernelUnknown(_))
    };
    host.kernel.as_ref().err().filter(is_about_it)
}

fn io_uring(host: &Host) -> Row {
    let wanted = "usable";
    match (kernel_error(host), host.kernel.as_ref().err()) {
        (None, Some(error)) => needed("io_uring", "not usable", wanted, Some(error)),
        (Some(_), _) => advice("io_uring", "not tried", wanted, Verdict::Missing, ""),
        (None, None) => needed("io_uring", wanted, wanted, None),
    }
}

fn cpus(host: &Host) -> Row {
    let found = host.cpus.as_ref().map_or("?".into(), |cpus| cpus.len().to_string());
    needed("CPUs for shards", &found, "1 or more", host.cpus.as_ref().err())
}

fn descriptors(host: &Host, settings: &Settings, shards: usize) -> Row {
    let (setting, wanted) = ("RLIMIT_NOFILE", "enough for one shard");
    match &host.descriptor_limit {
        Ok(limit) => {
            let found = format!("{} per shard", grouped(*limit));
            let error = host::connections_per_shard(*limit, settings.listen.len(), shards).err();
            needed(setting, &found, wanted, error.as_ref())
        }
        Err(error) => needed(setting, "cannot be raised", wanted, Some(error)),
    }
}

fn sysctl(key: &Key, readings: &Readings) -> Row {
    let wanted = key.numbers_here(readings.memory, readings.page_bytes);
    let reading = &readings.sysctls[key.name];
    let (verdict, remedy) = match (reading, reading.numbers()) {
        (Reading::Missing, _) => (Verdict::Missing, String::new()),
        (Reading::Unreadable, _) => (Verdict::Unreadable, "run as root".to_owned()),
        (Reading::Found(_), found) => {
            let found = found.unwrap_or_default();
            let target = spaced(&key.better(&found, &wanted));
            let quote = if wanted.len() > 1 { "'" } else { "" };
            match key.judge(&found, &wanted) {
                Verdict::Ok => (Verdict::Ok, String::new()),
                verdict => (verdict, format!("sysctl -w {}={quote}{target}{quote}", key.name)),
            }
        }
    };
    let found = reading.text().map_or("-".into(), |text| text.replace('\t', " "));
    let wanted = match key.want {
        Want::AtLeast => format!("at least {}", spaced(&wanted)),
        Want::AtMost => format!("at most {}", spaced(&wanted)),
        Want::Exactly => spaced(&wanted),
    };
    advice(key.name, &found, &wanted, verdict, &remedy)
}

fn spaced(numbers: &[u64]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Strict accounting (2) refuses memory that is set aside and not used, as allocators do.
fn overcommit(readings: &Readings) -> Row {
    let reading = &readings.sysctls["vm.overcommit_memory"];
    let (verdict, remedy) = match reading {
        Reading::Missing => (Verdict::Missing, ""),
        Reading::Unreadable => (Verdict::Unreadable, ""),
        Reading::Found(mode) if mode == "2" => {
            (Verdict::Differs, "sysctl -w vm.overcommit_memory=0")
        }
        Reading::Found(_) => (Verdict::Ok, ""),
    };
    let found = reading.text().unwrap_or("-");
    advice("vm.overcommit_memory", found, "0 or 1", verdict, remedy)
}

/// Any other governor lets a CPU that waits become slow, and the next message pays for it.
fn governor(readings: &Readings) -> Row {
    let governors: Vec<&str> = readings.governors.iter().map(String::as_str).collect();
    let (verdict, remedy) = match governors[..] {
        [] => (Verdict::Missing, ""),
        ["performance"] => (Verdict::Ok, ""),
        _ => (Verdict::Differs, "cpupower frequency-set -g performance"),
    };
    let found = if governors.is_empty() { "-".to_owned() } else { governors.join(", ") };
    advice("CPU governor", &found, "performance", verdict, remedy)
}

/// Fanwire opts out for itself, so every mode is right; it is shown because it is always asked for.
fn huge_pages(readings: &Readings) -> Row {
    let modes = readings.huge_pages.text().unwrap_or_default();
    let mode = modes.split(['[', ']']).nth(1);
    let verdict = match readings.huge_pages {
        Reading::Missing => Verdict::Missing,
        Reading::Unreadable => Verdict::Unreadable,
        Reading::Found(_) => Verdict::Ok,
    };
    advice("transparent huge pages", mode.unwrap_or("-"), "any", verdict, "")
}
