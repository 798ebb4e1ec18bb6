//! What the host says: the environment of a run, and what processes and the kernel use.
//!
//! Everything is read from /proc and /sys; what cannot be read is absent from the report, never
//! guessed. CPU time comes from `schedstat`, which counts nanoseconds, not ticks.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// Settings that change what a run can show.
const SYSCTLS: [&str; 11] = [
    "net/core/somaxconn",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/tcp_max_syn_backlog",
    "net/ipv4/tcp_mem",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_tw_reuse",
    "fs/file-max",
    "fs/nr_open",
    "kernel/io_uring_disabled",
];

/// The host a run was made on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Environment {
    /// Its name.
    #[serde(default)]
    pub host: String,
    /// Linux release.
    pub kernel: String,
    /// Model name of the first CPU.
    pub cpu: String,
    /// CPUs this process may use.
    pub cpus: usize,
    /// Total memory in KiB.
    pub memory_kib: u64,
    /// Soft and hard `RLIMIT_NOFILE`.
    pub descriptors: Option<(u64, u64)>,
    /// By their path under /proc/sys.
    pub sysctls: BTreeMap<String, String>,
    /// `git rev-parse HEAD` in the current directory.
    pub commit: Option<String>,
    /// Version of the generator.
    pub generator: String,
    /// Command line of the process that `--pid` names.
    pub server_command: Option<String>,
}

impl Environment {
    /// Reads it, once.
    #[must_use]
    pub fn read(server: Option<u32>) -> Self {
        let sysctl = |&name: &&str| {
            let value = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
            Some((name.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        };
        let commit = Command::new("git").args(["rev-parse", "HEAD"]).output().ok();
        let commit = commit.filter(|output| output.status.success());
        let command = server.and_then(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
        Self {
            host: read("/proc/sys/kernel/hostname").trim().to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_kib: kib(&read("/proc/meminfo"), "MemTotal").unwrap_or(0),
            descriptors: rlimit::Resource::NOFILE.get().ok(),
            sysctls: SYSCTLS.iter().filter_map(sysctl).collect(),
            commit: commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            generator: env!("CARGO_PKG_VERSION").to_owned(),
            server_command: command
                .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()),
        }
    }
}

/// What a process uses at one moment.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Time on a CPU of all its threads, user and kernel, in nanoseconds.
    pub cpu_ns: u64,
    /// Resident set in KiB.
    pub rss_kib: u64,
    /// Proportional set in KiB, where it may be read.
    pub pss_kib: Option<u64>,
}

/// CPU time and resident set of a process; `None` when it is gone. Cost: a file per thread.
#[must_use]
pub fn usage(pid: u32) -> Option<Usage> {
    let rss_kib = rss_kib(pid)?;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let cpu_ns = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Some(Usage { cpu_ns: cpu_ns.sum(), rss_kib, pss_kib: None })
}

/// [`usage`] with the proportional set, and the resident set to the page, where they may be read.
/// Cost: the kernel walks the page tables.
#[must_use]
pub fn usage_with_pss(pid: u32) -> Option<Usage> {
    let usage = usage(pid)?;
    let rollup = read(&format!("/proc/{pid}/smaps_rollup"));
    // The counter behind VmRSS is off by some pages per CPU.
    let rss_kib = kib(&rollup, "Rss").unwrap_or(usage.rss_kib);
    Some(Usage { rss_kib, pss_kib: kib(&rollup, "Pss"), ..usage })
}

/// Resident set of a process in KiB; `None` when it is gone. Cost: one file.
#[must_use]
pub fn rss_kib(pid: u32) -> Option<u64> {
    kib(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS")
}

/// Slab memory of the whole host in KiB: sockets, inodes, files, dentries, polls, of both ends
/// when both are here.
#[must_use]
pub fn slab_kib() -> Option<u64> {
    kib(&read("/proc/meminfo"), "Slab")
}

/// The kernel's objects by cache.
#[derive(Debug, Clone, Default)]
pub struct Slabs {
    caches: BTreeMap<String, Slab>,
}

/// One cache of kernel objects.
#[derive(Debug, Clone, Copy)]
pub struct Slab {
    /// Live objects. Those that a CPU keeps at hand count as live.
    pub objects: f64,
    /// Bytes an object takes, its share of the pages' waste included.
    pub object_bytes: f64,
}

impl Slabs {
    /// Parses /proc/slabinfo (slabinfo(5)) of a host with pages of `page_bytes`.
    #[must_use]
    pub fn parse(text: &str, page_bytes: u64) -> Self {
        // name active_objs num_objs objsize objperslab pagesperslab : ..
        let slab = |line: &str| {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            let mut number = || words.next()?.parse::<f64>().ok();
            let (objects, _, _) = (number()?, number()?, number()?);
            let (objects_per_slab, pages_per_slab) = (number()?, number()?);
            let object_bytes = pages_per_slab * page_bytes as f64 / objects_per_slab;
            Some((name, Slab { objects, object_bytes }))
        };
        Self { caches: text.lines().filter_map(slab).collect() }
    }

    /// Caches by name.
    pub fn caches(&self) -> impl Iterator<Item = (&str, Slab)> {
        self.caches.iter().map(|(name, &slab)| (name.as_str(), slab))
    }

    /// Live objects of the cache `name`.
    #[must_use]
    pub fn objects(&self, name: &str) -> f64 {
        self.caches.get(name).map_or(0.0, |slab| slab.objects)
    }

    /// Bytes of all live objects. Not the memory that caches hold: one live object keeps a whole
    /// page, so after half of the objects are freed most pages are still there.
    #[must_use]
    pub fn bytes(&self) -> f64 {
        self.caches.values().map(|slab| slab.objects * slab.object_bytes).sum()
    }
}

/// The kernel's objects now; `None` where /proc/slabinfo may not be read.
#[must_use]
pub fn slabs() -> Option<Slabs> {
    let page_bytes = kib(&read("/proc/self/smaps"), "KernelPageSize")? * 1024;
    Some(Slabs::parse(&fs::read_to_string("/proc/slabinfo").ok()?, page_bytes))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first line `name: value`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn kib(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_very_process() {
        let usage = usage_with_pss(std::process::id()).expect("we are alive");
        assert!(usage.rss_kib > 0 && usage.cpu_ns > 0, "{usage:?}");
        assert!(slab_kib().is_some_and(|kib| kib > 0));
        // Readable for root alone.
        if let Some(slabs) = slabs() {
            let whole = slab_kib().expect("as above") as f64 * 1024.0;
            assert!(slabs.objects("dentry") > 0.0, "every Linux has dentries");
            assert!(slabs.bytes() > 0.1 * whole && slabs.bytes() < 2.0 * whole, "{slabs:?}");
        }
        let environment = Environment::read(Some(std::process::id()));
        assert!(!environment.kernel.is_empty() && environment.memory_kib > 0);
        assert!(environment.server_command.is_some());
        assert_eq!(usage_of_nobody(), None);
    }

    fn usage_of_nobody() -> Option<u64> {
        usage(u32::MAX).map(|usage| usage.cpu_ns)
    }
}
