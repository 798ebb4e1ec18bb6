//! A child process that ends with its owner.
//!
//! Every child leads a process group of its own. So Ctrl-C on the terminal reaches only us, who end
//! the others in order, and whatever a child has started ends with it. First SIGTERM, and SIGKILL
//! for who has not ended within `GRACE`. Should we be killed ourselves, the kernel ends those
//! that were [`bound`] to us. Only what was started here is ever signalled.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process_group};

pub use rustix::process::Signal;

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long a server may take until it listens.
const START_MAX: Duration = Duration::from_secs(30);
/// How often a child is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A command for `program` that gets SIGTERM when the thread that starts it is no more, however
/// that came about; the thread must outlive it otherwise. For those that would run on.
#[must_use]
pub fn bound(program: impl AsRef<OsStr>) -> Command {
    // It becomes the program, in the same process.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(program);
    command
}

/// An address nobody listens on, for a server that is to be started.
///
/// # Errors
/// Those of bind(2).
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// The last line that says something.
#[must_use]
pub fn last_line(text: &str) -> String {
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no word why").to_owned()
}

/// The last line of a log that says something.
#[must_use]
pub fn said(log: &Path) -> String {
    last_line(&fs::read_to_string(log).unwrap_or_default())
}

/// See the module documentation.
#[derive(Debug)]
pub struct Owned {
    child: Child,
    ended: Option<ExitStatus>,
}

/// How waiting for a child came out.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited {
    /// What was waited for is there.
    Done,
    /// The child ended with an exit code other than 0, or before it listened.
    Failed,
    /// A server did not listen within `START_MAX`.
    TimedOut,
    /// Somebody pressed Ctrl-C.
    Interrupted,
}

impl Owned {
    /// Starts `command` with everything it prints going to `log`.
    ///
    /// # Errors
    /// When it cannot be started, `NotFound` if there is no such program, or `log` not be written.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let log = File::create(log)?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self { child, ended: None })
    }

    /// Its process, which also leads its group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn wait(&mut self, interrupted: &AtomicBool) -> io::Result<Waited> {
        loop {
            if let Some(status) = self.poll()? {
                return Ok(if status.success() { Waited::Done } else { Waited::Failed });
            }
            if interrupted.load(Ordering::Relaxed) {
                return Ok(Waited::Interrupted);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until it listens at `address`.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn wait_until_listening(
        &mut self,
        address: SocketAddr,
        interrupted: &AtomicBool,
    ) -> io::Result<Waited> {
        let deadline = Instant::now() + START_MAX;
        loop {
            let listening = TcpStream::connect(address).is_ok();
            // In this order: it is not somebody else who listens if it still lives.
            if self.poll()?.is_some() {
                return Ok(Waited::Failed);
            }
            if listening {
                return Ok(Waited::Done);
            }
            if interrupted.load(Ordering::Relaxed) {
                return Ok(Waited::Interrupted);
            }
            if Instant::now() > deadline {
                return Ok(Waited::TimedOut);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn poll(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
        }
        Ok(self.ended)
    }

    /// Sends a signal to it and all that it has started.
    pub fn signal(&self, signal: Signal) {
        // Its end is not collected yet, so the number is still its own. Fails when it has ended.
        if let Some(group) = i32::try_from(self.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let deadline = Instant::now() + GRACE;
        // An error means that there is no such child any more.
        if matches!(self.poll(), Ok(None)) {
            self.signal(Signal::TERM);
        }
        while matches!(self.poll(), Ok(None)) {
            if Instant::now() > deadline {
                self.signal(Signal::KILL);
                let _ = self.child.wait();
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (Owned, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let child = Owned::start(Command::new("sh").args(["-c", script]), &log);
        (child.expect("a shell"), folder)
    }

    #[test]
    fn waits_for_the_end_and_tells_how_it_was() {
        let never = AtomicBool::new(false);
        for (script, expected) in [("exit 0", Waited::Done), ("exit 3", Waited::Failed)] {
            assert_eq!(shell(script).0.wait(&never).expect("a child"), expected, "{script}");
        }
        let (mut sleeper, _folder) = shell("sleep 1000");
        assert_eq!(sleeper.wait(&AtomicBool::new(true)).expect("a child"), Waited::Interrupted);
    }

    #[test]
    fn takes_what_it_has_started_with_it() {
        let (child, folder) = shell("sleep 1000 & echo $!; wait");
        let log = folder.path().join("log");
        let grandchild = loop {
            let text = fs::read_to_string(&log).expect("a log");
            if let Some(pid) = text.strip_suffix('\n') {
                break pid.to_owned();
            }
            thread::sleep(LOOK_EVERY);
        };
        drop(child);
        let gone = || {
            let stat = fs::read_to_string(format!("/proc/{grandchild}/stat"));
            // Nobody may have collected it yet.
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        let deadline = Instant::now() + GRACE;
        while !gone() {
            assert!(Instant::now() < deadline, "{grandchild} is still there");
            thread::sleep(LOOK_EVERY);
        }
    }
}
