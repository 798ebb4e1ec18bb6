//! Listeners and their socket options.
//!
//! Options set on a listener are inherited by the sockets it accepts, so an accepted connection
//! costs no further system call.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel may complete ahead of us; capped by `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// Opens one shard's own listener on `address`.
///
/// `SO_REUSEPORT` lets every shard listen on the same address; the kernel spreads connections by
/// a hash of their addresses (socket(7)). An IPv6 listener takes IPv6 only, so that `0.0.0.0` and
/// `[::]` can be given side by side. `TCP_NODELAY`, because a fan-out server writes whole messages.
///
/// # Errors
/// Whatever socket(2), bind(2) or listen(2) say.
pub fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}
