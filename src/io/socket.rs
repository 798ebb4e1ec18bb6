//! Listeners and their socket options.
//!
//! Options set on a listener are inherited by the sockets it accepts, so an accepted connection
//! costs no further system call.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel may complete ahead of us; capped by `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// Opens one shard's own listener on `address`.
///
/// `SO_REUSEPORT` lets every shard listen on the same address; the kernel spreads connections by
/// a hash of their addresses (socket(7)). An IPv6 listener takes IPv6 only, so that `0.0.0.0` and
/// `[::]` can be given side by side. `TCP_NODELAY`, because a fan-out server writes whole messages.
///
/// `TCP_DEFER_ACCEPT` (tcp(7)): a connection comes to us with its request, so that one wake-up and
/// one receive make a handshake, and a peer that connects and says nothing costs neither socket nor
/// descriptor. Such a one is handed to us when the kernel has asked it once more, a second later.
///
/// # Errors
/// Whatever socket(2), bind(2) or listen(2) say.
pub fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = bind(address, true)?;
    socket.set_tcp_nodelay(true)?;
    defer_accept(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn defer_accept(socket: &Socket) -> io::Result<()> {
    // In seconds; the kernel makes retransmissions of its SYN-ACK of it: here, one.
    let patience: libc::c_int = 1;
    // SAFETY: setsockopt(2) reads one int at the address given, which is that of `patience`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const patience).cast(),
            size_of_val(&patience) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
