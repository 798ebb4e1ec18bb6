//! Standard error, for lines that nobody waits for.
//!
//! Whoever takes them (a disk, a pipe to a collector, the journal's socket) may be full, or hang.
//! A shard that waited would keep its connections waiting, so the kernel is asked before each write
//! whether it takes the bytes at once; a line that it does not take is the caller's again.
//!
//! The kernel's word is good for [`AT_ONCE`] bytes as long as nobody else writes to the same pipe.
//! All of this process that write hold standard error's lock meanwhile; another process that shares
//! the pipe can take the place that was promised, and then a write waits after all.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A pipe that is writable at all takes so much without waiting: PIPE_BUF, see pipe(7).
pub const AT_ONCE: usize = 4096;

/// Writes the first [`AT_ONCE`] bytes of `line`, or all if it is shorter; says how many it were.
///
/// Cost: two system calls.
///
/// # Errors
/// `WouldBlock` when it would have to wait; what write(2) says: `StorageFull` for a full disk.
pub fn write_at_once(line: &[u8]) -> io::Result<usize> {
    write_to(&mut io::stderr().lock(), line)
}

fn write_to(file: &mut (impl Write + AsFd), line: &[u8]) -> io::Result<usize> {
    if !is_writable(file.as_fd()) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    file.write(&line[..line.len().min(AT_ONCE)])
}

/// Whether a write would not wait: also when it would fail.
fn is_writable(file: BorrowedFd<'_>) -> bool {
    let mut watched = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: poll(2) reads and writes one pollfd, which outlives the call; it does not wait.
    unsafe { libc::poll(&raw mut watched, 1, 0) > 0 }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{ErrorKind, Read};

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_takes_what_fits_and_then_refuses() {
        let (mut reader, mut writer) = io::pipe().expect("a pipe");
        let line = [b'x'; AT_ONCE + 1];
        let mut taken = 0;
        let error = loop {
            match write_to(&mut writer, &line) {
                Ok(len) => taken += len,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(taken > 0 && taken % AT_ONCE == 0, "whole pieces: {taken}");
        reader.read_exact(&mut vec![0; taken]).expect("all of it is there");
        assert_eq!(write_to(&mut writer, b"again").expect("there is room"), 5);
    }

    #[test]
    fn what_would_fail_fails_at_once() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        drop(reader);
        let error = write_to(&mut writer, b"to nobody").expect_err("nobody reads");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        let mut full = File::options().write(true).open("/dev/full").expect("it is there");
        let error = write_to(&mut full, b"to a full disk").expect_err("it is full");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }
}
