//! A link that can be bad: two networks of the test's own with a [`Cable`] between them.
//!
//! Both are network namespaces without a name. They live as long as a thread or a descriptor of this
//! process holds them, and their devices as long as the cable, so nothing is left behind, not even
//! when the process is killed, and no other network of the host is touched.

use std::{
    fs::File,
    io::{Error, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd,
    panic::resume_unwind,
    process::Command,
    thread,
};

use super::{
    cable::{Cable, Quality, plug},
    free_port, skipped,
};

/// This end of the link and the other one; addresses for benchmarks (RFC 2544), seen by nobody.
const NEAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);

/// What a test has that runs in [`beside_link`].
pub struct Link {
    /// The network at the other end.
    far: File,
    cable: Cable,
}

/// Runs `test` on a thread whose network is a new one, with a link to another.
///
/// Where this process may not make networks, or the host has no `ip` or no such devices, the test
/// is left out, and stderr says so.
pub fn beside_link(test: impl FnOnce(&Link) + Send) {
    let laid = thread::scope(|scope| {
        let run = scope.spawn(|| Link::lay().map(|link| test(&link)));
        run.join().unwrap_or_else(|panic| resume_unwind(panic))
    });
    if let Err(why) = laid {
        skipped(&format!("no networks to test with: {why}"));
    }
}

impl Link {
    /// Moves this thread into a new network and links it with another; says why it cannot.
    fn lay() -> Result<Link, String> {
        // The near end is made last, so that it is the one this thread stays in.
        let far = thread::scope(|scope| {
            let far = scope.spawn(|| {
                unshare_network()?;
                File::open("/proc/thread-self/ns/net").map_err(|error| error.to_string())
            });
            far.join().unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        unshare_network()?;
        let plug = |name| plug(name).map_err(|error| format!("a device of /dev/net/tun: {error}"));
        let ends = [plug("near")?, beyond(&far, || plug("far"))?];
        let link = Link { far, cable: Cable::between(ends) };
        ip("link set lo up")?;
        ip(&format!("address add {NEAR}/30 dev near"))?;
        ip("link set near up")?;
        link.beyond(|| ip(&format!("address add {FAR}/30 dev far")))?;
        link.beyond(|| ip("link set far up"))?;
        Ok(link)
    }

    /// A free port of this end.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((NEAR, free_port()))
    }

    /// Runs `body` at the other end; the sockets that it opens stay there.
    pub fn beyond<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        beyond(&self.far, body)
    }

    /// Changes what becomes of packets from now on.
    pub fn set_quality(&self, quality: Quality) {
        self.cable.set_quality(quality);
    }

    /// Cuts it: from now on whatever is sent is lost, and nobody is told.
    pub fn cut(&self) {
        self.set_quality(Quality::CUT);
    }

    /// From now on no packet is longer than so many bytes (68 at least, RFC 791).
    pub fn set_mtu(&self, bytes: u32) {
        ip(&format!("link set near mtu {bytes}")).expect("a device has an MTU");
        self.beyond(|| ip(&format!("link set far mtu {bytes}"))).expect("a device has an MTU");
    }
}

/// Runs `body` on a thread whose network is `network`.
fn beyond<T: Send>(network: &File, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            enter_network(network);
            body()
        });
        run.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Runs `ip` in the network of this thread.
fn ip(arguments: &str) -> Result<(), String> {
    let run = Command::new("ip").args(arguments.split(' ')).output();
    let output = run.map_err(|error| format!("ip (of iproute2) cannot be run: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("ip {arguments}: {said}"))
}

/// Moves this thread into a new network that holds nothing but a loopback device.
#[expect(unsafe_code, reason = "std knows no namespaces")]
fn unshare_network() -> Result<(), String> {
    // SAFETY: unshare(2) takes an integer and touches no memory of ours.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => match Error::last_os_error() {
            error if error.kind() == ErrorKind::PermissionDenied => {
                Err(format!("{error}; run the tests as root"))
            }
            error => Err(error.to_string()),
        },
    }
}

/// Moves this thread into `network`.
#[expect(unsafe_code, reason = "std knows no namespaces")]
fn enter_network(network: &File) {
    // SAFETY: setns(2) takes two integers and touches no memory of ours; the descriptor is open.
    let result = unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "setns: {}", Error::last_os_error());
}
