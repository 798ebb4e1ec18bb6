//! SIGTERM and SIGINT: the first one drains, the second one exits.
//!
//! The second exit happens in the signal handler itself, so it works even if every thread is stuck.
//! The first one arrives as a byte in a pipe, which the control thread awaits. SIGPIPE needs no
//! handler: Rust's runtime ignores it, and a write to a closed socket is an error value.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use monoio::io::AsyncReadRent;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

/// The registered handlers.
pub(super) struct Signals {
    arrived: UnixStream,
    which: Arc<AtomicUsize>,
}

impl Signals {
    /// Registers the handlers, for the whole process and for good.
    pub(super) fn register() -> io::Result<Signals> {
        let (arrived, write) = UnixStream::pair()?;
        let which = Arc::new(AtomicUsize::new(0));
        let one_came = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // Handlers run in this order: the exit looks at the flag before this signal sets it.
            flag::register_conditional_shutdown(signal, 128 + signal, one_came.clone())?;
            flag::register(signal, one_came.clone())?;
            flag::register_usize(signal, which.clone(), signal as usize)?;
            pipe::register(signal, write.try_clone()?)?;
        }
        arrived.set_nonblocking(true)?;
        Ok(Signals { arrived, which })
    }

    /// Waits for the first signal.
    pub(super) async fn first(self) -> io::Result<Signal> {
        let mut arrived = monoio::net::UnixStream::from_std(self.arrived)?;
        arrived.read(vec![0; 1]).await.0?;
        Ok(Signal(self.which.load(Ordering::SeqCst)))
    }
}

/// A signal number that prints as its name.
pub(super) struct Signal(usize);

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 == SIGINT as usize { "SIGINT" } else { "SIGTERM" })
    }
}
