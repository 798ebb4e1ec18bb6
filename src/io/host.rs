//! What the host must offer, checked before anything is started.
//!
//! Kernel and io_uring, descriptors, CPUs, addresses. Every check that fails is one line that says
//! what failed, why, and the remedy, because whoever reads it is starting a server, not debugging
//! one. All of it is asked of the kernel itself: `/proc`, a trial ring, a trial bind.
//!
//! The checks look; only [`raise_descriptor_limit`], [`refuse_huge_pages`], [`give_back_memory`]
//! and [`pin`] change something. A check that passed can still be overtaken (a port taken a moment
//! later), so what uses the resource reports its own errors as well.
//!
//! Never: keeps a descriptor, runs after start-up (except [`pin`], once per shard, and
//! [`resident_bytes`] and [`give_back_memory`], once per second).

use std::fs;
use std::io;
use std::net::SocketAddr;

use core_affinity::CoreId;
use io_uring::{IoUring, squeue};
use socket2::Socket;

use super::socket;

/// Checks that the kernel is 6.1 or newer and lets this process use io_uring as the shards do.
///
/// # Errors
/// The `Kernel*` and `IoUring*` kinds of [`HostError`].
pub fn check_kernel() -> Result<(), HostError> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").map_err(HostError::KernelUnknown)?;
    let release = release.trim();
    if kernel_version(release).is_some_and(|version| version < KERNEL_MIN) {
        return Err(HostError::KernelTooOld { release: release.to_owned() });
    }
    // The flags of a shard's ring, so that what is refused here is what would be refused there; and
    // one enter, since a sandbox may refuse that alone.
    IoUring::<squeue::Entry>::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(TRIAL_ENTRIES)
        .and_then(|ring| ring.submit())
        .map(drop)
        .map_err(|error| io_uring_error(error, io_uring_disabled()))
}

/// Linux 6.1: IORING_SETUP_DEFER_TASKRUN.
const KERNEL_MIN: (u32, u32) = (6, 1);

const TRIAL_ENTRIES: u32 = 8;

/// Major and minor of a release such as "6.18.44-fc"; `None` for names we do not understand, which
/// the trial ring then judges.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The sysctl kernel.io_uring_disabled (since 6.6): 0 for nobody, 1 for the unprivileged, 2 for
/// all.
fn io_uring_disabled() -> u8 {
    let text = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn io_uring_error(error: io::Error, disabled: u8) -> HostError {
    match error.raw_os_error() {
        Some(libc::EPERM) if disabled != 0 => HostError::IoUringDisabled { sysctl: disabled },
        Some(libc::EPERM | libc::EACCES) => HostError::IoUringForbidden,
        Some(libc::ENOSYS) => HostError::IoUringMissing,
        Some(libc::EINVAL) => HostError::IoUringTooOld,
        Some(libc::ENOMEM) => HostError::IoUringMemory,
        Some(libc::EMFILE | libc::ENFILE) => HostError::IoUringDescriptors,
        _ => HostError::IoUring(error),
    }
}

/// Raises the soft limit of descriptors (RLIMIT_NOFILE) to the hard one and returns it.
///
/// # Errors
/// `DescriptorLimit` when the kernel refuses.
pub fn raise_descriptor_limit() -> Result<u64, HostError> {
    rlimit::increase_nofile_limit(u64::MAX).map_err(HostError::DescriptorLimit)
}

/// Refuses transparent huge pages for this process, also where the host gives them to everybody
/// (`always` in /sys/kernel/mm/transparent_hugepage/enabled).
///
/// The allocator asks for none (`no_thp` in Cargo.toml), which is enough under `madvise` and not
/// under `always`: there the kernel fills 2 MiB at the first touch of any page in it, and a server
/// touches its memory here and there. Measured with them: 933 bytes per idle member instead of 152
/// (results/README.md).
///
/// # Errors
/// What prctl(2) says for PR_SET_THP_DISABLE; `EPERM` where a sandbox forbids it.
pub fn refuse_huge_pages() -> io::Result<()> {
    let (refuse, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: this prctl takes numbers alone and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, refuse, none, none, none) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many connections one shard has descriptors for, with `descriptor_limit` from
/// [`raise_descriptor_limit`], a listener for each of `listeners` addresses, and an eventfd to wake
/// each of `shards` shards.
///
/// The limit counts per descriptor table, and each shard has a table of its own.
///
/// # Errors
/// `DescriptorsTooFew` when nothing is left for connections.
pub fn connections_per_shard(
    descriptor_limit: u64,
    listeners: usize,
    shards: usize,
) -> Result<usize, HostError> {
    let reserved = (DESCRIPTORS_RESERVED + listeners + shards) as u64;
    match descriptor_limit.saturating_sub(reserved) {
        0 => Err(HostError::DescriptorsTooFew { limit: descriptor_limit, reserved }),
        connections => Ok(usize::try_from(connections).unwrap_or(usize::MAX)),
    }
}

/// Descriptors of a shard that are no connection, listeners and eventfds apart: its ring, standard
/// input, output and error, and 60 to spare for what is open for a moment (an accepted connection
/// that is answered 503 and closed).
const DESCRIPTORS_RESERVED: usize = 64;

/// How many shards hold `connections`, if each has descriptors for `per_shard` of them (at least
/// one): more than the quotient, see [`usable_per_shard`].
#[must_use]
pub fn shards_for(connections: usize, per_shard: usize) -> usize {
    connections.div_ceil(usable_per_shard(per_shard))
}

/// The connections that each of several shards may be expected to take before the first of them is
/// full, if each has descriptors for `per_shard`; at least one.
///
/// SO_REUSEPORT deals connections to shards by hash, so their numbers scatter like any random
/// deal's, by the square root of their mean, and a full shard refuses although others have room.
/// Five such deviations are kept free.
#[must_use]
pub fn usable_per_shard(per_shard: usize) -> usize {
    per_shard.saturating_sub(5 * per_shard.isqrt()).max(1)
}

/// The CPUs this process may run on, in rising order; at least one.
///
/// # Errors
/// `CpusUnknown` when the kernel does not tell.
pub fn allowed_cpus() -> Result<Vec<usize>, HostError> {
    let ids = core_affinity::get_core_ids().filter(|ids| !ids.is_empty());
    let ids = ids.ok_or(HostError::CpusUnknown)?;
    Ok(ids.into_iter().map(|core| core.id).collect())
}

/// Checks that each of `cpus` is one this process may run on.
///
/// # Errors
/// `CpuOffline` or `CpuNotAllowed` for the first that is not.
pub fn check_cpus(cpus: &[usize]) -> Result<(), HostError> {
    let allowed = allowed_cpus()?;
    let Some(&cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) else {
        return Ok(());
    };
    // Both lists as the kernel writes them: "0-3,8".
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let (online, allowed) = (online.trim(), allowed.unwrap_or_default().trim());
    if is_listed(cpu, online) {
        Err(HostError::CpuNotAllowed { cpu, allowed: allowed.to_owned() })
    } else {
        Err(HostError::CpuOffline { cpu, online: online.to_owned() })
    }
}

fn is_listed(cpu: usize, list: &str) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse(), last.parse());
        matches!((first, last), (Ok(first), Ok(last)) if (first..=last).contains(&cpu))
    })
}

/// The CPUs shards are dealt to: `chosen`, or every one this process may use.
///
/// # Errors
/// As [`check_cpus`] and [`allowed_cpus`].
pub fn shard_cpus(chosen: Option<&[usize]>) -> Result<Vec<usize>, HostError> {
    match chosen {
        None => allowed_cpus(),
        Some(cpus) => check_cpus(cpus).map(|()| cpus.to_vec()),
    }
}

/// Pins the calling thread to `cpu`.
///
/// # Errors
/// `NotPinned` when the kernel refuses, which after [`check_cpus`] means the CPU has gone since.
pub fn pin(cpu: usize) -> Result<(), HostError> {
    if core_affinity::set_for_current(CoreId { id: cpu }) {
        Ok(())
    } else {
        Err(HostError::NotPinned { cpu })
    }
}

/// Checks that all of `addresses` are free and ours to take; returns them with the port each got
/// where 0 was asked for.
///
/// The shards share each address by SO_REUSEPORT, which would let them share it with another
/// Fanwire, too: connections would go astray between the two. So each address is bound once without
/// that option, which fails if anything else listens there, and let go again.
///
/// # Errors
/// [`ListenError`] for the first that cannot be had.
pub fn probe(addresses: &[SocketAddr]) -> Result<Vec<SocketAddr>, ListenError> {
    // All held until all are bound: else two addresses with port 0 could get the same port.
    let sockets: Vec<_> =
        addresses.iter().map(|address| bind(*address)).collect::<Result<_, _>>()?;
    let bound = sockets.iter().zip(addresses).map(|(socket, address)| local(socket, *address));
    bound.collect()
}

/// The resident memory of this process in bytes; `None` where `/proc` does not tell.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * super::readings::page_bytes())
}

/// Gives memory back to the kernel that has been free for a second.
///
/// The allocator does so when it needs fresh pages. Who has nothing to do needs none, and would
/// keep what a burst of large messages took: up to 256 MiB per shard, by default.
///
/// Cost: nothing to speak of if there is none. Other threads go on allocating meanwhile.
pub fn give_back_memory() {
    // SAFETY: it may be called at any time, by any thread; also where the allocator is another one,
    // and this one has nothing.
    unsafe { libmimalloc_sys::mi_collect(false) };
}

/// Binds and listens on `address`, exclusively.
///
/// # Errors
/// [`ListenError`] when it cannot be had.
pub fn listen(address: SocketAddr, backlog: i32) -> Result<std::net::TcpListener, ListenError> {
    let socket = bind(address)?;
    socket.listen(backlog).map_err(|error| ListenError::new(address, error))?;
    Ok(socket.into())
}

fn bind(address: SocketAddr) -> Result<Socket, ListenError> {
    socket::bind(address, false).map_err(|error| ListenError::new(address, error))
}

fn local(socket: &Socket, address: SocketAddr) -> Result<SocketAddr, ListenError> {
    let local = socket.local_addr().map_err(|error| ListenError::new(address, error))?;
    Ok(local.as_socket().expect("an address that was bound as IPv4 or IPv6 is one"))
}

/// What the host does not offer: what failed, why, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// `/proc` is missing.
    #[error("cannot read the kernel's version from /proc/sys/kernel/osrelease: {0}; mount /proc")]
    KernelUnknown(io::Error),
    /// Before 6.1.
    #[error(
        "Linux {release} is too old: Fanwire needs io_uring's IORING_SETUP_DEFER_TASKRUN, which came with 6.1; boot Linux 6.1 or newer"
    )]
    KernelTooOld {
        /// As `uname -r` says.
        release: String,
    },
    /// EPERM, and the sysctl says why.
    #[error(
        "io_uring is disabled for {} by kernel.io_uring_disabled = {sysctl}; allow it: sysctl -w kernel.io_uring_disabled=0{}",
        if *.sysctl == 1 { "unprivileged processes" } else { "all processes" },
        if *.sysctl == 1 { ", or run Fanwire in the group of kernel.io_uring_group" } else { "" },
    )]
    IoUringDisabled {
        /// Its value.
        sysctl: u8,
    },
    /// EPERM, and the sysctl is not why.
    #[error(
        "io_uring is forbidden (EPERM), most likely by a seccomp profile such as a container's default one; allow io_uring_setup, io_uring_enter and io_uring_register there (Docker: --security-opt seccomp=PROFILE)"
    )]
    IoUringForbidden,
    /// ENOSYS.
    #[error(
        "io_uring is missing (ENOSYS): the kernel is built without CONFIG_IO_URING, or a sandbox (seccomp, gVisor) hides it; use a kernel with it, or allow io_uring_setup, io_uring_enter and io_uring_register in the sandbox"
    )]
    IoUringMissing,
    /// EINVAL.
    #[error(
        "io_uring lacks a feature of Linux 6.1 (EINVAL for SINGLE_ISSUER, DEFER_TASKRUN, TASKRUN_FLAG and SUBMIT_ALL); boot Linux 6.1 or newer"
    )]
    IoUringTooOld,
    /// ENOMEM.
    #[error(
        "no memory for an io_uring ring (ENOMEM); raise the memory limit of this process's cgroup, or free memory"
    )]
    IoUringMemory,
    /// EMFILE or ENFILE.
    #[error(
        "no descriptor for an io_uring ring (EMFILE); raise the limit (ulimit -n, systemd: LimitNOFILE=)"
    )]
    IoUringDescriptors,
    /// Any other error.
    #[error("cannot create an io_uring ring: {0}")]
    IoUring(io::Error),
    /// setrlimit failed.
    #[error(
        "cannot raise the descriptor limit to its hard value: {0}; set it before the start (ulimit -n, systemd: LimitNOFILE=)"
    )]
    DescriptorLimit(io::Error),
    /// Not one connection fits.
    #[error(
        "RLIMIT_NOFILE is {limit}, of which a shard needs {reserved} for itself; raise it (ulimit -n, systemd: LimitNOFILE=)"
    )]
    DescriptorsTooFew {
        /// Hard limit.
        limit: u64,
        /// Needed beside connections.
        reserved: u64,
    },
    /// sched_getaffinity failed.
    #[error("the kernel does not tell which CPUs this process may use; name them with --cpus")]
    CpusUnknown,
    /// No such CPU, or switched off.
    #[error("cpus names CPU {cpu}, which is not online; online are {online}")]
    CpuOffline {
        /// The first such.
        cpu: usize,
        /// As the kernel lists them.
        online: String,
    },
    /// Outside the affinity mask or cpuset.
    #[error(
        "cpus names CPU {cpu}, which this process may not use (taskset, cpuset or container limit); allowed are {allowed}"
    )]
    CpuNotAllowed {
        /// The first such.
        cpu: usize,
        /// As the kernel lists them.
        allowed: String,
    },
    /// sched_setaffinity failed.
    #[error(
        "cannot pin a thread to CPU {cpu}: it has gone offline or out of this process's cpuset"
    )]
    NotPinned {
        /// Which.
        cpu: usize,
    },
}

/// Why an address cannot be listened on: what failed, why, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// EADDRINUSE.
    #[error(
        "cannot listen on {0}: the address is in use, perhaps by another Fanwire; stop that program (ss -ltnp 'sport = {port}' names it) or choose another address",
        port = .0.port()
    )]
    InUse(SocketAddr),
    /// EACCES.
    #[error(
        "cannot listen on {0}: no permission for a port below net.ipv4.ip_unprivileged_port_start; choose a higher port, or lower that sysctl, or grant the right: setcap cap_net_bind_service=+ep {program}",
        program = program()
    )]
    NoPermission(SocketAddr),
    /// EADDRNOTAVAIL.
    #[error(
        "cannot listen on {0}: no interface of this host has that address; see ip address, or use {any}:{port} for all",
        any = if .0.is_ipv4() { "0.0.0.0" } else { "[::]" },
        port = .0.port()
    )]
    NotAvailable(SocketAddr),
    /// EAFNOSUPPORT.
    #[error(
        "cannot listen on {0}: the kernel has no IPv6; enable it (sysctl net.ipv6.conf.all.disable_ipv6=0) or use an IPv4 address"
    )]
    NoFamily(SocketAddr),
    /// Any other error.
    #[error("cannot listen on {0}: {1}")]
    Other(SocketAddr, io::Error),
}

impl ListenError {
    /// From the error of a system call on the way to listening on `address`.
    pub fn new(address: SocketAddr, error: io::Error) -> ListenError {
        match error.raw_os_error() {
            Some(libc::EADDRINUSE) => ListenError::InUse(address),
            Some(libc::EACCES | libc::EPERM) => ListenError::NoPermission(address),
            Some(libc::EADDRNOTAVAIL) => ListenError::NotAvailable(address),
            Some(libc::EAFNOSUPPORT) => ListenError::NoFamily(address),
            _ => ListenError::Other(address, error),
        }
    }
}

fn program() -> String {
    std::env::current_exe().map_or("fanwire".into(), |path| path.display().to_string())
}

#[cfg(test)]
mod tests;
