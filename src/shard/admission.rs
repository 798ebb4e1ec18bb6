//! Whose connections they are: the addresses of clients.

use std::net::IpAddr;

use super::Shard;
use crate::io::Io;
use crate::slab::Key;

impl<I: Io> Shard<I> {
    /// The address of the client behind a connection; `None` if the connection is broken already.
    ///
    /// Cost: a system call. Only for what is rare, or asked for by a setting.
    pub(super) fn address_of(&self, key: Key) -> Option<IpAddr> {
        let connection = self.connections.get(key)?;
        Some(self.io.peer_address(connection.socket)?.ip().to_canonical())
    }
}
