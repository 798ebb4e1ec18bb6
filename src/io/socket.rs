//! Listeners and their socket options.
//!
//! Options set on a listener are inherited by the sockets it accepts, so an accepted connection
//! costs no further system call.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Connections the kernel may complete ahead of us; capped by `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// Bytes that a connection may have waiting in the kernel, apart from what is on its way, before
/// it counts as full.
const NOT_SENT_MAX: u32 = 64 * 1024;

/// Opens one shard's own listener on `address`.
///
/// `SO_REUSEPORT` lets every shard listen on the same address; the kernel spreads connections by
/// a hash of their addresses (socket(7)). An IPv6 listener takes IPv6 only, so that `0.0.0.0` and
/// `[::]` can be given side by side. `TCP_NODELAY`, because a fan-out server writes whole messages.
///
/// (Rejected: `TCP_DEFER_ACCEPT`, tcp(7), by which a connection comes to us with its request. It
/// saves a wake-up and a poll, and opens 1.2 to 1.3 times as many per second on loopback. But a
/// connection that the kernel still keeps to itself when the listener is closed is forgotten
/// without a word: its client waits for a server that has ended. And whoever connects and says
/// nothing would be answered 408 a second late.)
///
/// `TCP_NOTSENT_LOWAT`, tcp(7): what a slow consumer has not been sent yet belongs in its room's
/// log, which all members share, and not in the kernel. With 5,000 of 10,000 members that never
/// read, both ends of all sockets hold 1.65 GB instead of 2.29, and the others get 0.89 to 0.95 of
/// the deliveries they get without them instead of 0.80 to 0.90; deliveries and large messages are
/// as fast. Such a member learns sooner that it is slow, and may skip messages in several steps.
///
/// # Errors
/// Whatever socket(2), bind(2) or listen(2) say.
pub fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = bind(address, true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(NOT_SENT_MAX)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// The other end of a connected socket of this thread's descriptor table (getpeername(2)).
pub(super) fn peer_address(socket: super::Socket) -> Option<SocketAddr> {
    // SAFETY: a plain number, borrowed for one call that writes to memory of its own; if it names
    // no socket of this thread, or one that is not connected, the call fails.
    let fd = unsafe { BorrowedFd::borrow_raw(socket.0.cast_signed()) };
    SockRef::from(&fd).peer_addr().ok()?.as_socket()
}

/// Binds `address`; with `reuse_port` others that say so, too, may share it.
///
/// # Errors
/// Whatever socket(2) or bind(2) say.
pub(super) fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT do not hold the address.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    if address.is_ipv6() {
        // [::]:80 and 0.0.0.0:80 are two addresses, whatever net.ipv6.bindv6only says.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
