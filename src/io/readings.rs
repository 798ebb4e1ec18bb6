//! What the host says about itself: values of `/proc` and `/sys`, read once and not judged.
//!
//! For `fanwire check`, which judges them. A value that is not there, or may not be read, is a
//! reading like any other: hosts and containers differ in what they show.
//!
//! Never: changes anything, fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

/// One value as the kernel prints it, without the line's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// What it says.
    Found(String),
    /// This kernel, or this container, does not have it.
    Missing,
    /// It is there and may not be read.
    Unreadable,
}

impl Reading {
    fn of(path: &Path) -> Reading {
        match fs::read_to_string(path) {
            Ok(text) => Reading::Found(text.trim_end().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::Missing,
            Err(_) => Reading::Unreadable,
        }
    }

    /// The text that was found.
    pub fn text(&self) -> Option<&str> {
        match self {
            Reading::Found(text) => Some(text),
            Reading::Missing | Reading::Unreadable => None,
        }
    }

    /// The whole numbers that were found, apart by spaces or tabs; `None` if there is anything else
    /// or nothing.
    pub fn numbers(&self) -> Option<Vec<u64>> {
        let words = self.text()?.split_whitespace();
        words
            .map(|word| word.parse().ok())
            .collect::<Option<Vec<_>>>()
            .filter(|all| !all.is_empty())
    }
}

/// Everything that is read, sysctls by their name ("net.core.somaxconn").
#[derive(Debug, Clone)]
pub struct Readings {
    /// Each asked for, and [`ALWAYS`].
    pub sysctls: BTreeMap<String, Reading>,
    /// MemTotal, in bytes.
    pub memory: Option<u64>,
    /// MemAvailable, in bytes.
    pub memory_available: Option<u64>,
    /// The memory limits this process is under, innermost first; none if nothing limits it.
    pub cgroups: Vec<CgroupMemory>,
    /// Which of transparent huge pages' modes are there and, in brackets, in force.
    pub huge_pages: Reading,
    /// The frequency governors of the CPUs; none where frequencies cannot be scaled.
    pub governors: BTreeSet<String>,
    /// Size of a page of memory, in bytes.
    pub page_bytes: u64,
}

/// The memory of one control group that has a limit; bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMemory {
    /// Its path below the hierarchy's root.
    pub path: String,
    /// memory.max, or memory.limit_in_bytes.
    pub limit: u64,
    /// In use, cached files that can be dropped at once not counted.
    pub used: u64,
}

/// Sysctls that are read whoever asks.
pub const ALWAYS: &[&str] = &[
    "fs.file-max",
    "fs.file-nr",
    "fs.nr_open",
    "kernel.osrelease",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_mem",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "vm.overcommit_memory",
];

/// Reads the host whose `/proc` and `/sys` are below `root` ("/"), with the sysctls `keys`.
pub fn read<'k>(root: &Path, keys: impl IntoIterator<Item = &'k str>) -> Readings {
    let sysctl = |key: &str| {
        let path = root.join("proc/sys").join(key.replace('.', "/"));
        (key.to_owned(), Reading::of(&path))
    };
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    Readings {
        sysctls: ALWAYS.iter().copied().chain(keys).map(sysctl).collect(),
        memory: meminfo_bytes(&meminfo, "MemTotal:"),
        memory_available: meminfo_bytes(&meminfo, "MemAvailable:"),
        cgroups: cgroups(root),
        huge_pages: Reading::of(&root.join("sys/kernel/mm/transparent_hugepage/enabled")),
        governors: governors(root),
        page_bytes: page_bytes(),
    }
}

fn meminfo_bytes(meminfo: &str, field: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// The limits of this process's control group and those around it, in version 2 and version 1 of
/// the hierarchy.
///
/// In a container the path may be as the host sees it, of which the container sees only the end:
/// what is not there is passed over, and the root is always tried.
fn cgroups(root: &Path) -> Vec<CgroupMemory> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (hierarchy, files) = if controllers.is_empty() {
            (root.join("sys/fs/cgroup"), &VERSION_2)
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (root.join("sys/fs/cgroup/memory"), &VERSION_1)
        } else {
            continue;
        };
        for path in Path::new(path).ancestors() {
            let folder = hierarchy.join(path.strip_prefix("/").unwrap_or(path));
            let path = path.display().to_string();
            found.extend(files.read(&folder).map(|(limit, used)| CgroupMemory {
                path,
                limit,
                used,
            }));
        }
    }
    found
}

/// The names of what a version of the hierarchy tells about memory.
struct CgroupFiles {
    limit: &'static str,
    used: &'static str,
    inactive_file: &'static str,
}

const VERSION_2: CgroupFiles =
    CgroupFiles { limit: "memory.max", used: "memory.current", inactive_file: "inactive_file " };
const VERSION_1: CgroupFiles = CgroupFiles {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    inactive_file: "total_inactive_file ",
};

impl CgroupFiles {
    /// Limit and use; `None` when there is no limit: no such file, "max", or version 1's number
    /// just below 2^63.
    fn read(&self, folder: &Path) -> Option<(u64, u64)> {
        let number = |file| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
        let limit = number(self.limit).filter(|limit| *limit < 1 << 62)?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix(self.inactive_file));
        let cached = cached.and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
        Some((limit, number(self.used).unwrap_or(0).saturating_sub(cached)))
    }
}

fn governors(root: &Path) -> BTreeSet<String> {
    let cpus = fs::read_dir(root.join("sys/devices/system/cpu")).into_iter().flatten().flatten();
    let files = cpus.map(|cpu| cpu.path().join("cpufreq/scaling_governor"));
    files.filter_map(|file| Some(fs::read_to_string(file).ok()?.trim().to_owned())).collect()
}

/// Size of a page of memory, in bytes.
pub(super) fn page_bytes() -> u64 {
    // SAFETY: sysconf reads a number and has no requirement.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).expect("every system has a page size")
}

#[cfg(test)]
mod tests;
