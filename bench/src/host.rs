//! What the host says: the environment of a run, and what processes and the kernel use.
//!
//! Everything is read from /proc and /sys; what cannot be read is absent from the report, never
//! guessed. CPU time comes from `schedstat`, which counts nanoseconds, not ticks.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde::Serialize;

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
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
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
    pub generator: &'static str,
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
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_kib: kib(&read("/proc/meminfo"), "MemTotal").unwrap_or(0),
            descriptors: rlimit::Resource::NOFILE.get().ok(),
            sysctls: SYSCTLS.iter().filter_map(sysctl).collect(),
            commit: commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            generator: env!("CARGO_PKG_VERSION"),
            server_command: command
                .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()),
        }
    }
}

/// What a process uses at one moment.
#[derive(Debug, Clone, Copy, Default, Serialize)]
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
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let cpu_ns = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    let rss_kib = kib(&status, "VmRSS").unwrap_or(0);
    Some(Usage { cpu_ns: cpu_ns.sum(), rss_kib, pss_kib: None })
}

/// [`usage`] with the proportional set. Cost: the kernel walks the page tables.
#[must_use]
pub fn usage_with_pss(pid: u32) -> Option<Usage> {
    let rollup = read(&format!("/proc/{pid}/smaps_rollup"));
    Some(Usage { pss_kib: kib(&rollup, "Pss"), ..usage(pid)? })
}

/// Slab memory of the whole host in KiB: sockets, inodes, files, dentries, polls, of both ends
/// when both are here.
#[must_use]
pub fn slab_kib() -> Option<u64> {
    kib(&read("/proc/meminfo"), "Slab")
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
        let environment = Environment::read(Some(std::process::id()));
        assert!(!environment.kernel.is_empty() && environment.memory_kib > 0);
        assert!(environment.server_command.is_some());
        assert_eq!(usage_of_nobody(), None);
    }

    fn usage_of_nobody() -> Option<u64> {
        usage(u32::MAX).map(|usage| usage.cpu_ns)
    }
}
