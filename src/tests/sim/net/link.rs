//! One connection: two byte queues, and which of their ends are still there.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::io::{Errno, Token};

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) to_server: VecDeque<u8>,
    pub(super) to_server_max: usize,
    pub(super) to_client: VecDeque<u8>,
    pub(super) to_client_max: usize,
    /// Whether sends may be short although there is room.
    pub(super) unreliable: bool,
    pub(super) client_fin: bool,
    pub(super) client_closed: bool,
    pub(super) client_reset: bool,
    /// What the server has not been told yet of the reset.
    pub(super) errno: Option<Errno>,
    /// Whether the reset threw away what the server had not received yet.
    pub(super) purged: bool,
    pub(super) server_fin: bool,
    pub(super) server_shut: bool,
    pub(super) server_closed: bool,
    pub(super) server_reset: bool,
    /// The shard that has accepted it.
    pub(super) shard: Option<usize>,
    /// What is armed on it: for input, for output.
    pub(super) polls: [Option<Poll>; 2],
}

#[derive(Debug)]
pub(super) struct Poll {
    pub(super) token: Token,
    pub(super) ready_at: Option<Duration>,
}

/// What kind of connection a peer has.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct LinkHabits {
    pub(in super::super) to_server_max: usize,
    pub(in super::super) to_client_max: usize,
    pub(in super::super) unreliable: bool,
}

impl Link {
    /// A connection to a listener, which may be closed.
    pub(super) fn new(habits: LinkHabits, closed: bool) -> Self {
        Self {
            to_server: VecDeque::new(),
            to_server_max: habits.to_server_max,
            to_client: VecDeque::new(),
            to_client_max: habits.to_client_max,
            unreliable: habits.unreliable,
            client_fin: false,
            client_closed: false,
            client_reset: false,
            errno: None,
            purged: false,
            server_fin: false,
            server_shut: false,
            server_closed: closed,
            server_reset: closed,
            shard: None,
            polls: [None, None],
        }
    }

    /// Whether a poll comes true: there is something to receive, or, if `writable`, it takes bytes;
    /// be it an end.
    pub(super) fn is_ready(&self, writable: bool) -> bool {
        if !writable {
            return !self.to_server.is_empty()
                || self.client_fin
                || self.client_reset
                || self.server_shut;
        }
        let free = self.to_client_max.saturating_sub(self.to_client.len());
        free > self.to_client_max / 3 || self.client_reset || self.client_closed || self.server_fin
    }

    /// The connection is broken, and this is what the server is told, once.
    pub(super) fn reset_by_client(&mut self, errno: Errno) {
        if !std::mem::replace(&mut self.client_reset, true) {
            self.errno = Some(errno);
        }
    }

    /// The server's kernel says that nobody is there; what was not read is lost.
    pub(super) fn reset_by_server(&mut self) {
        self.server_reset = true;
        self.to_client.clear();
        self.to_server.clear();
    }
}

/// Where a connection comes from: one of a few hosts, so that some have several.
pub(in super::super) fn client_address(link: usize) -> SocketAddr {
    let host = link % CLIENT_HOSTS;
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, host as u8), 1024 + (link / CLIENT_HOSTS) as u16))
}

/// Hosts that connections come from.
const CLIENT_HOSTS: usize = 7;
