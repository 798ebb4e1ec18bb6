//! Who may come in: connections in all and by address, and whose they are.
//!
//! ```text
//!                     ┌─ no trusted proxy ──────────────────────────▶ counted: the peer
//!   accept ▶ in all ──┤                    ┌─ not trusted ──────────▶ counted: the source
//!            (503)    └─ trusted ─▶ PROXY ─┤                                  (429)
//!                            (if it is on) └─ trusted ▶ the request ▶ counted: the client
//!                                             or none   its fields
//! ```
//!
//! A client is counted as soon as its address is known, and refused before the upgrade. As long as
//! no setting needs to know it, nobody asks: an accept costs what it always did. What is remembered
//! of a connection is 8 bytes while it is counted by address, and its client's address while it
//! came through a trusted proxy, both in side tables by slot.

use std::collections::HashMap;
use std::mem;
use std::net::IpAddr;

use super::Shard;
use super::census::Subnet;
use super::connection::Phase;
use crate::config::ProxyProtocol;
use crate::io::Io;
use crate::planted::{Bug, planted};
use crate::protocol::{HandshakeError, Preface, Request, client_address, parse_proxy_header};
use crate::slab::Key;

/// What is known of the connections' clients, by slot.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Of those who came through a trusted proxy: whom it connects for.
    proxied: HashMap<u32, IpAddr>,
    /// Under what they are counted by address; as long as the highest slot that ever was.
    counted: Vec<Option<Subnet>>,
}

impl<I: Io> Shard<I> {
    /// The address of the client behind a connection: what a trusted proxy has said, otherwise the
    /// peer's. `None` if the connection is broken already.
    ///
    /// Cost: a system call. Only for what is rare, or asked for by a setting.
    pub(super) fn address_of(&self, key: Key) -> Option<IpAddr> {
        if let Some(address) = self.clients.proxied.get(&key.slot()) {
            return Some(*address);
        }
        let connection = self.connections.get(key)?;
        Some(self.io.peer_address(connection.socket)?.ip().to_canonical())
    }

    /// Lets a new connection in, or does not.
    ///
    /// # Errors
    /// `TooFast` or `Full`, and what an address may be refused with.
    pub(super) fn admit(&mut self, key: Key) -> Result<(), HandshakeError> {
        let Self { limits, ends, connections, parked, .. } = self;
        let rate = limits.handshakes_per_second;
        if rate.is_some_and(|rate| !ends.census.accept(self.io.now(), rate)) {
            return Err(HandshakeError::TooFast);
        }
        let max = limits.connections_per_shard_max + usize::from(planted(Bug::OneTooMany));
        if connections.len() + parked.len() > max || !ends.census.admit(limits.connections_max) {
            return Err(HandshakeError::Full);
        }
        if let Some(connection) = connections.get_mut(key) {
            connection.admitted = true;
        }
        if limits.trusted_proxies.is_empty() && !limits.counts_addresses() {
            return Ok(());
        }
        // Without an address it is broken already, and will say so.
        let Some(peer) = self.address_of(key) else { return Ok(()) };
        if !self.limits.trusted_proxies.trusts(peer) {
            return self.count(key, peer);
        }
        if self.limits.proxy_protocol != ProxyProtocol::Off {
            self.enter_phase(key, Phase::Preface);
        }
        Ok(())
    }

    /// The PROXY header that comes before the request, of a trusted proxy.
    pub(super) fn handle_preface(&mut self, key: Key, input: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        let mut head = connection.take_held();
        head.extend_from_slice(input);
        let source = match parse_proxy_header(&head) {
            Ok(Preface::Incomplete) => return self.hold(key, &head),
            Ok(Preface::Header { source, len }) => {
                head.drain(..len);
                Ok(source)
            }
            Ok(Preface::Absent) if self.limits.proxy_protocol == ProxyProtocol::Required => {
                Err(HandshakeError::ProxyHeaderMissing)
            }
            Ok(Preface::Absent) => Ok(None),
            Err(error) => Err(error),
        };
        self.enter_phase(key, Phase::Opening);
        let admitted = source.and_then(|source| match source {
            Some(client) => {
                self.clients.proxied.insert(key.slot(), client);
                let is_proxy = self.limits.trusted_proxies.trusts(client);
                if is_proxy { Ok(()) } else { self.count(key, client) }
            }
            None => Ok(()),
        });
        match admitted {
            Ok(()) if head.is_empty() => {}
            Ok(()) => self.handle_opening(key, &mut head),
            Err(error) => self.refuse(key, error),
        }
    }

    /// Finds out from its request whom a trusted proxy connects for.
    ///
    /// # Errors
    /// What its fields, or the client's address, may be refused with.
    pub(super) fn identify(
        &mut self,
        key: Key,
        request: &Request<'_>,
    ) -> Result<(), HandshakeError> {
        let trusted = &self.limits.trusted_proxies;
        if trusted.is_empty() {
            return Ok(());
        }
        // Whoever is no proxy was counted before.
        let Some(peer) = self.address_of(key).filter(|peer| trusted.trusts(*peer)) else {
            return Ok(());
        };
        let client = client_address(request, peer, |address| trusted.trusts(address))?;
        self.clients.proxied.insert(key.slot(), client);
        self.count(key, client)
    }

    /// Counts a connection by its client's address, once.
    fn count(&mut self, key: Key, client: IpAddr) -> Result<(), HandshakeError> {
        let slot = key.slot() as usize;
        let counted = &mut self.clients.counted;
        if !self.limits.counts_addresses() || counted.get(slot).is_some_and(Option::is_some) {
            return Ok(());
        }
        let subnet = Subnet::from(client);
        self.ends.census.enter(subnet, self.io.now(), &self.limits)?;
        if counted.len() <= slot {
            counted.resize(slot + 1, None);
        }
        counted[slot] = Some(subnet);
        Ok(())
    }

    /// How many addresses are remembered that proxies have said.
    #[cfg(any(test, fuzzing))]
    pub(super) fn proxied_len(&self) -> usize {
        self.clients.proxied.len()
    }

    /// A connection is gone, and counts no more.
    pub(super) fn forget(&mut self, key: Key, admitted: bool) {
        if admitted {
            self.ends.census.leave();
        }
        let counted = self.clients.counted.get_mut(key.slot() as usize).and_then(mem::take);
        if let Some(subnet) = counted {
            self.ends.census.exit(subnet);
        }
        if !self.clients.proxied.is_empty() {
            self.clients.proxied.remove(&key.slot());
        }
    }
}
