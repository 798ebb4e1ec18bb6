//! What makes a thread a shard's own: a private descriptor table and no signals.
//!
//! `RLIMIT_NOFILE` counts per descriptor table, and threads share one unless they say otherwise.
//! A shard with a table of its own holds as many connections as the limit allows *per shard*, and
//! takes no lock that another shard takes when it accepts or closes.

use std::io;
use std::os::fd::RawFd;

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

/// Blocks all signals on the calling thread, so that the control thread's handlers never run on
/// it: they write to a descriptor that this thread's private table does not have.
pub fn block_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset(3) only writes the set it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: `all` was initialised above; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) };
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
}
