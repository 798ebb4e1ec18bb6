//! SIGTERM and SIGINT: the first one drains, the second one exits. SIGHUP: the server reads its
//! configuration again.
//!
//! The second exit happens in the signal handler itself, so it works even if every thread is stuck.
//! Everything else arrives as a byte in a pipe, which the control thread awaits. SIGPIPE needs no
//! handler: Rust's runtime ignores it, and a write to a closed socket is an error value.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

/// The registered handlers.
pub(super) struct Signals {
    arrived: StdUnixStream,
    /// The last signal that means the end; 0 before the first. SIGHUP leaves no other trace than
    /// its byte, so that it can hide no signal of these.
    end: Arc<AtomicUsize>,
}

impl Signals {
    /// Registers the handlers, for the whole process and for good.
    pub(super) fn register() -> io::Result<Signals> {
        let (arrived, write) = StdUnixStream::pair()?;
        let end = Arc::new(AtomicUsize::new(0));
        let one_came = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // Handlers run in this order: the exit looks at the flag before this signal sets it.
            flag::register_conditional_shutdown(signal, 128 + signal, one_came.clone())?;
            flag::register(signal, one_came.clone())?;
            flag::register_usize(signal, end.clone(), signal as usize)?;
            pipe::register(signal, write.try_clone()?)?;
        }
        pipe::register(SIGHUP, write)?;
        arrived.set_nonblocking(true)?;
        Ok(Signals { arrived, end })
    }

    /// Begins to wait for signals, on the runtime of the calling thread.
    pub(super) fn watch(self) -> io::Result<Watch> {
        Ok(Watch { arrived: UnixStream::from_std(self.arrived)?, end: self.end })
    }
}

/// Signals as they come.
pub(super) struct Watch {
    arrived: UnixStream,
    end: Arc<AtomicUsize>,
}

impl Watch {
    /// Waits for the next signal. Several SIGHUPs at once are one.
    pub(super) async fn next(&mut self) -> io::Result<Signal> {
        self.arrived.read(vec![0; 64]).await.0?;
        Ok(match self.end.load(Ordering::SeqCst) {
            0 => Signal::Reload,
            end => Signal::End(EndSignal(end)),
        })
    }
}

/// What a signal asks for.
pub(super) enum Signal {
    /// Read the configuration again.
    Reload,
    /// Drain.
    End(EndSignal),
}

/// A signal number that prints as its name.
pub(super) struct EndSignal(usize);

impl fmt::Display for EndSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 == SIGINT as usize { "SIGINT" } else { "SIGTERM" })
    }
}
