//! A control group for the server alone, which counts the kernel's memory for it.
//!
//! The host's slab is of everybody on it; a group of its own says what the kernel keeps for this
//! one process: its ends of sockets, its rings, its descriptor tables. It takes the right to make
//! one, which root mostly has. Both versions of control groups are understood (cgroups(7)).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where each version keeps its groups, and the file that says what the kernel uses.
const VERSIONS: [(&str, &str); 2] =
    [("/sys/fs/cgroup/memory", "memory.kmem.usage_in_bytes"), ("/sys/fs/cgroup", "memory.stat")];

/// See the module documentation. It goes with the last process in it, when it is dropped.
#[derive(Debug)]
pub struct Cgroup {
    folder: PathBuf,
    file: &'static str,
}

impl Cgroup {
    /// Makes one and moves the process `pid` into it, with what it starts from then on.
    ///
    /// # Errors
    /// What the kernel says: no right to make one, or none that counts memory.
    pub fn of(pid: u32) -> io::Result<Self> {
        let (base, file) =
            if Path::new(VERSIONS[0].0).exists() { VERSIONS[0] } else { VERSIONS[1] };
        let folder = Path::new(base).join(format!("fanwire-soak-{pid}"));
        fs::create_dir(&folder)?;
        let group = Self { folder, file };
        fs::write(group.folder.join("cgroup.procs"), pid.to_string())?;
        if group.kernel_kib().is_none() {
            return Err(io::Error::other("it does not count the kernel's memory"));
        }
        Ok(group)
    }

    /// The kernel's memory for its processes in KiB.
    #[must_use]
    pub fn kernel_kib(&self) -> Option<f64> {
        parse(&fs::read_to_string(self.folder.join(self.file)).ok()?)
    }
}

/// KiB from a file of either version: a number alone, or the line `kernel`; both are bytes.
fn parse(text: &str) -> Option<f64> {
    let number = text.lines().find_map(|line| line.strip_prefix("kernel ")).unwrap_or(text);
    number.trim().parse::<f64>().ok().map(|bytes| bytes / 1024.0)
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It stays if its process does, and then says by its name whose it was.
        let _ = fs::remove_dir(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        assert_eq!(parse("4096\n"), Some(4.0));
        assert_eq!(parse("anon 1\nkernel_stack 7\nkernel 2048\nslab 3\n"), Some(2.0));
        assert_eq!(parse("anon 1\n"), None);
        assert_eq!(parse(""), None);
    }
}
