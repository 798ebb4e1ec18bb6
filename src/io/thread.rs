//! What makes a thread a shard's own: a private descriptor table and no signals; and the CPU time
//! it takes.
//!
//! `RLIMIT_NOFILE` counts per descriptor table, and threads share one unless they say otherwise.
//! A shard with a table of its own holds as many connections as the limit allows *per shard*, and
//! takes no lock that another shard takes when it accepts or closes.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::Duration;

/// Gives the calling thread a descriptor table of its own that holds the standard streams and
/// `keep`, under their numbers, and nothing else.
///
/// Everything else must go: a copy of a descriptor would keep its socket open for ever after the
/// rest of the process has closed it.
///
/// # Errors
/// What close_range(2) says; `EPERM` where a sandbox forbids it.
pub fn take_private_descriptor_table(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|&fd| fd.cast_unsigned()).collect();
    keep.sort_unstable();
    // The first call also unshares the table; an empty range (MAX..=MAX) does just that.
    close_range(u32::MAX, u32::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    let mut first = 3;
    for fd in keep {
        if first < fd {
            close_range(first, fd - 1, 0)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX, 0)
}

fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: close_range touches no memory of ours. The descriptors it closes are those of this
    // thread's private table: `take_private_descriptor_table` unshares before it closes.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Blocks signals on the calling thread, so that the control thread's handlers never run on it:
/// they write to a descriptor that this thread's private table does not have. All but SIGPROF: its
/// handler ([`super::sampler`]) needs no descriptor, and must run here.
pub fn block_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset(3) only writes the set it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` was initialised above.
    unsafe { libc::sigdelset(all.as_mut_ptr(), libc::SIGPROF) };
    // SAFETY: `all` was initialised above; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) };
}

/// The CPU time of one thread, read by any other of the process.
#[derive(Debug, Clone, Copy)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// The clock of the thread of `handle`; `None` if the thread has ended.
    #[must_use]
    pub fn of<T>(handle: &JoinHandle<T>) -> Option<Self> {
        let mut clock = 0;
        // SAFETY: the thread was not joined, since its handle is here, so the identifier is valid;
        // the clock's identifier is written to a variable of ours.
        let error = unsafe { libc::pthread_getcpuclockid(handle.as_pthread_t(), &mut clock) };
        (error == 0).then_some(Self(clock))
    }

    /// The CPU time that the thread has taken, in user space and in the kernel; zero once it has
    /// ended. Cost: one system call.
    #[must_use]
    pub fn read(self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the time is written to a variable of ours. The identifier is a plain number: that
        // of a thread that has ended is an error.
        let result = unsafe { libc::clock_gettime(self.0, &mut time) };
        if result != 0 {
            return Duration::ZERO;
        }
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_private_table_keeps_what_it_should_and_nothing_else() {
        let (mut reader, mut writer) = io::pipe().expect("pipe");
        let (other, _keep_open) = io::pipe().expect("pipe");
        let (kept, dropped) = (writer.as_raw_fd(), other.as_raw_fd());
        std::thread::spawn(move || {
            take_private_descriptor_table(&[kept]).expect("unshare");
            writer.write_all(b"x").expect("the kept descriptor works");
            let path = format!("/proc/thread-self/fd/{dropped}");
            assert!(std::fs::symlink_metadata(path).is_err(), "the other one is gone here");
            // Dropping `other` here would close nothing: it lives in the other table.
            std::mem::forget(writer);
            std::mem::forget(other);
        })
        .join()
        .expect("the thread");
        let mut byte = [0];
        reader.read_exact(&mut byte).expect("the byte arrived");
    }

    #[test]
    fn the_cpu_time_of_another_thread_is_its_own() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let thread = std::thread::spawn(move || {
            let started = std::time::Instant::now();
            while started.elapsed() < Duration::from_millis(20) {}
            drop(writer);
            std::thread::park();
        });
        let clock = CpuClock::of(&thread).expect("it runs");
        // At its end the thread has been busy, and sleeps.
        assert_eq!(reader.read(&mut [0]).expect("the other end closes"), 0);
        let busy = clock.read();
        assert!(busy > Duration::ZERO);
        thread.thread().unpark();
        thread.join().expect("it ends");
    }
}
