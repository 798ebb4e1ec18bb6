//! How many idle connections fit, by every limit that could be the first to be met.
//!
//! Pure. The costs per connection are measured ones and stand here alone ([`USER_BYTES`],
//! [`KERNEL_BYTES`]). The forecast is for connections that come on top of what the host does now:
//! what is free is counted, not what there is.

use serde::Serialize;

use crate::config::{Auto, SHARDS_MAX, Settings};
use crate::io::host;

use super::{Host, grouped};

/// Memory of the server for one idle member of a room, in bytes: `results/README.md`.
const USER_BYTES: u64 = 152;

/// Memory of the kernel for one idle connection, in bytes: 3,830 for the socket with its inode,
/// file and directory entry, 256 for the poll that waits on it; Linux 6.18.
const KERNEL_BYTES: u64 = 3_830 + 256;

/// The share of the free memory that is not given to connections: one part in ten, for messages in
/// flight and for everything else on the host.
const MEMORY_SPARED: u64 = 10;

/// What people come for: the remedies are worked out for it when no other number is asked for.
const MILLION: u64 = 1_000_000;

/// What bounds the number of connections, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// What would run out.
    pub name: &'static str,
    /// How many idle connections it allows.
    pub connections: u64,
    /// Whether the connections that were asked for fit; true when none were.
    pub fits: bool,
    /// What was found.
    pub found: String,
    /// What raises it.
    pub remedy: String,
}

/// The limits of a server with `settings` and `shards` on `host`, the nearest first, and what else
/// is worth knowing about them. `asked` is the number of connections that must fit.
pub(super) fn forecast(
    host: &Host,
    settings: &Settings,
    shards: usize,
    asked: Option<u64>,
) -> (Vec<Limit>, Vec<String>) {
    let target = asked.unwrap_or(MILLION);
    let descriptors = Descriptors::new(host, settings, shards);
    let fits = |connections| asked.is_none_or(|asked| asked <= connections);
    let mut limits =
        vec![Limit { fits: fits(descriptors.evenly()), ..descriptors.limit(host, target) }];
    let others = [
        connections_max(settings),
        open_files(host, target),
        memory(host),
        conntrack(host, target),
    ];
    for limit in others.into_iter().flatten() {
        limits.push(Limit { fits: fits(limit.connections), ..limit });
    }
    limits.sort_by_key(|limit| limit.connections);
    (limits, notes(host, &descriptors))
}

fn limit(name: &'static str, connections: u64, found: String, remedy: String) -> Limit {
    Limit { name, connections, fits: true, found, remedy }
}

/// What each shard's own descriptor table holds.
struct Descriptors {
    limit: u64,
    listeners: usize,
    shards: usize,
}

impl Descriptors {
    fn new(host: &Host, settings: &Settings, shards: usize) -> Descriptors {
        let limit = host.descriptor_limit.as_ref().map_or(0, |limit| *limit);
        Descriptors { limit, listeners: settings.listen.len(), shards }
    }

    fn per_shard(&self) -> usize {
        host::connections_per_shard(self.limit, self.listeners, self.shards).unwrap_or(0)
    }

    /// All shards full to the last descriptor.
    fn in_total(&self) -> u64 {
        self.per_shard().saturating_mul(self.shards) as u64
    }

    /// How many connections there are when the first shard may be full.
    fn evenly(&self) -> u64 {
        match (self.per_shard(), self.shards) {
            (per_shard, 1) => per_shard as u64,
            (0, _) => 0,
            (per_shard, shards) => host::usable_per_shard(per_shard).saturating_mul(shards) as u64,
        }
    }

    /// The smallest number of shards that holds `connections`, if more than now can.
    fn shards_for(&self, connections: u64) -> Option<usize> {
        let holds =
            |shards: &usize| Descriptors { shards: *shards, ..*self }.evenly() >= connections;
        (self.shards + 1..=SHARDS_MAX).find(holds)
    }

    fn limit(&self, host: &Host, target: u64) -> Limit {
        let nr_open = number(host, "fs.nr_open")
            .map_or(String::new(), |nr_open| format!(", at most fs.nr_open = {nr_open}"));
        let raise = format!("LimitNOFILE= of the unit or ulimit -n{nr_open}");
        let remedy = match self.shards_for(target) {
            Some(shards) if self.evenly() < target => {
                format!("--shards {shards} would hold {}; or {raise}", grouped(target))
            }
            _ => raise,
        };
        let found = format!("RLIMIT_NOFILE {}, shards {}", grouped(self.limit), self.shards);
        limit("descriptors", self.in_total(), found, remedy)
    }
}

fn connections_max(settings: &Settings) -> Option<Limit> {
    let Auto::Set(connections) = settings.connections_max else { return None };
    let found = format!("connections_max {}", grouped(connections as u64));
    Some(limit("configuration", connections as u64, found, "raise connections_max".into()))
}

/// The host's own table of open files, less what is open now.
fn open_files(host: &Host, target: u64) -> Option<Limit> {
    let file_max = number(host, "fs.file-max")?;
    let open = number(host, "fs.file-nr").unwrap_or(0);
    let found = format!("fs.file-max {}, {} open", grouped(file_max), grouped(open));
    let remedy = raise("fs.file-max", file_max, target.saturating_add(open));
    Some(limit("open files", file_max.saturating_sub(open), found, remedy))
}

/// The command that raises a sysctl to what is needed, or the sysctl's name if it is enough.
fn raise(key: &str, found: u64, needed: u64) -> String {
    if found < needed { format!("sysctl -w {key}={needed}") } else { format!("raise {key}") }
}

/// What is available on the host, or left in the narrowest control group around this process.
fn memory(host: &Host) -> Option<Limit> {
    let readings = &host.readings;
    let whole = readings
        .memory_available
        .map(|bytes| (bytes, format!("{} available", mebibytes(bytes)), "more memory".to_owned()));
    let groups = readings.cgroups.iter().map(|group| {
        let left = group.limit.saturating_sub(group.used);
        let found = format!("{} left in control group {}", mebibytes(left), group.path);
        (left, found, "raise the group's limit (systemd: MemoryMax=, Docker: --memory)".to_owned())
    });
    let (bytes, found, remedy) =
        whole.into_iter().chain(groups).min_by_key(|(bytes, ..)| *bytes)?;
    let connections = (bytes - bytes / MEMORY_SPARED) / (USER_BYTES + KERNEL_BYTES);
    Some(limit("memory", connections, found, remedy))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", grouped(bytes >> 20))
}

/// The firewall's table; a limit only where it tracks something now. It is loaded on many hosts
/// that track nothing.
fn conntrack(host: &Host, target: u64) -> Option<Limit> {
    let max = number(host, CONNTRACK_MAX)?;
    let count = number(host, CONNTRACK_COUNT).filter(|count| *count > 0)?;
    let found = format!("nf_conntrack_max {}, {} tracked", grouped(max), grouped(count));
    let remedy = raise(CONNTRACK_MAX, max, target.saturating_add(count));
    let remedy = format!("exempt the port (tuning/README.md), or {remedy}");
    Some(limit("conntrack", max.saturating_sub(count), found, remedy))
}

const CONNTRACK_MAX: &str = "net.netfilter.nf_conntrack_max";
const CONNTRACK_COUNT: &str = "net.netfilter.nf_conntrack_count";

fn notes(host: &Host, descriptors: &Descriptors) -> Vec<String> {
    let mut notes = Vec::new();
    if host.readings.memory_available.is_some() {
        notes.push(format!(
            "Memory is counted as {USER_BYTES} bytes in the server and {} in the kernel per idle \
             connection, with a tenth of it spared. A load generator on this host needs as much of \
             the kernel again.",
            grouped(KERNEL_BYTES)
        ));
    }
    if descriptors.shards > 1 {
        notes.push(format!(
            "The kernel deals connections to shards by a hash, not evenly: from about {} on, a \
             shard may be full and answer 503 while others have room.",
            grouped(descriptors.evenly())
        ));
    }
    if let Some([_, pressure, max]) = numbers(host, "net.ipv4.tcp_mem").as_deref() {
        notes.push(format!(
            "Idle connections need no net.ipv4.tcp_mem; one with bytes in flight needs a page ({} \
             bytes) of it. A message to all at once is slowed down from {} connections on, and \
             stalls from {} on.",
            grouped(host.readings.page_bytes),
            grouped(*pressure),
            grouped(*max)
        ));
    }
    if let Some([first, last]) = numbers(host, "net.ipv4.ip_local_port_range").as_deref() {
        notes.push(format!(
            "Local ports ({first} to {last}) bound no server. A proxy or a load generator on this \
             host opens at most {} connections per source address to one listening address.",
            grouped((last + 1).saturating_sub(*first))
        ));
    }
    if let (Some(max), Some(0)) = (number(host, CONNTRACK_MAX), number(host, CONNTRACK_COUNT)) {
        notes.push(format!(
            "conntrack is loaded and tracks nothing now. With a firewall rule that looks at \
             connection states, its {} entries become a limit.",
            grouped(max)
        ));
    }
    notes
}

fn numbers(host: &Host, key: &str) -> Option<Vec<u64>> {
    host.readings.sysctls.get(key)?.numbers()
}

/// The first number of a sysctl.
fn number(host: &Host, key: &str) -> Option<u64> {
    numbers(host, key)?.first().copied()
}
