//! What all shards count together: connections, and what each address has and does.
//!
//! Touched once at the beginning and once at the end of a connection; that is all that shards share
//! besides mailboxes. Connections in all, and accepts per second, are each one number. What is
//! counted by address lies in a table of [`STRIPES`] parts, each behind a lock of its own, and is
//! touched only while a limit by address is set. That is no lock on the way of a message, and
//! hardly one on the way of a connection: it is held for one look-up in a map, and two shards meet
//! at it only when they do so at once for addresses of one stripe. (Rejected: an owner for each
//! address, asked through the mailboxes. Exact, too, but every accept would wait for a round trip
//! of two ticks, and the answers would need places to wait in.)
//!
//! An address is forgotten when it has no connections and its bucket is full again. So the table
//! has a place for each address that is connected, and for at most [`IDLE_MAX`] others per stripe:
//! when so many have come and gone that even forgetting the idle ones leaves no room, those are
//! forgotten, too. (Whoever has a quarter of a million addresses is not held back by a rate per
//! address; the rate in all is for that.)

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::rate::{Bucket, SharedBucket};
use crate::config::{Limits, Rate};
use crate::protocol::HandshakeError;

/// Shared by all shards. See the module documentation.
#[derive(Debug, Clone, Default)]
pub struct Census(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicUsize,
    accepts: SharedBucket,
    /// Times are counted from here.
    epoch: OnceLock<Instant>,
    stripes: OnceLock<Box<[Mutex<Stripe>]>>,
    hasher: RandomState,
}

/// The addresses of one stripe.
#[derive(Debug, Default)]
struct Stripe {
    visitors: HashMap<Subnet, Visitor>,
    /// How many of them have no connections.
    idle: usize,
    /// Forget the idle ones when there are so many.
    forget_at: usize,
}

/// What one address has and does.
#[derive(Debug, Default)]
struct Visitor {
    connections: usize,
    handshakes: Bucket,
}

impl Census {
    /// Nanoseconds from the first time that was asked for to `now`, for the rates.
    pub fn nanoseconds(&self, now: Instant) -> u64 {
        let epoch = self.0.epoch.get_or_init(|| now);
        u64::try_from(now.saturating_duration_since(*epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Counts one more accept, unless there were as many as `rate` allows.
    pub fn accept(&self, now: Instant, rate: Rate) -> bool {
        self.0.accepts.take(self.nanoseconds(now), 1, rate)
    }

    /// Counts one more connection, unless there are `max` already.
    pub fn admit(&self, max: usize) -> bool {
        let admitted = self.0.connections.fetch_add(1, Ordering::Relaxed) < max;
        if !admitted {
            self.leave();
        }
        admitted
    }

    /// How many there are, give or take those that come and go now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Counts one connection less.
    pub fn leave(&self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts one more connection and handshake of an address.
    ///
    /// # Errors
    /// `AddressFull` or `AddressTooFast` when it has as many as `limits` allow; it is not counted.
    pub fn enter(
        &self,
        subnet: Subnet,
        now: Instant,
        limits: &Limits,
    ) -> Result<(), HandshakeError> {
        let now = self.nanoseconds(now);
        let mut stripe = self.stripe(subnet);
        stripe.forget(now);
        let is_new = !stripe.visitors.contains_key(&subnet);
        let visitor = stripe.visitors.entry(subnet).or_default();
        let was_idle = visitor.connections == 0;
        let entered = visitor.enter(now, limits);
        // (Whoever is new is let in: a limit is at least 1.)
        if was_idle && !is_new && entered.is_ok() {
            stripe.idle -= 1;
        }
        entered
    }

    /// Counts one connection of an address less.
    pub fn exit(&self, subnet: Subnet) {
        let mut stripe = self.stripe(subnet);
        let visitor = stripe.visitors.get_mut(&subnet).expect("it has a connection");
        visitor.connections -= 1;
        if visitor.connections == 0 {
            stripe.idle += 1;
        }
    }

    fn stripe(&self, subnet: Subnet) -> MutexGuard<'_, Stripe> {
        let make = || (0..STRIPES).map(|_| Mutex::default()).collect();
        let stripes = self.0.stripes.get_or_init(make);
        let stripe = self.0.hasher.hash_one(subnet) as usize % STRIPES;
        stripes[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections in all, and those that are counted by address.
    #[cfg(any(test, fuzzing))]
    pub(super) fn totals(&self) -> (usize, usize) {
        let stripes = self.0.stripes.get().map_or(&[][..], |stripes| stripes);
        let of = |stripe: &Mutex<Stripe>| {
            let stripe = stripe.lock().expect("nobody panics");
            let idle = stripe.visitors.values().filter(|visitor| visitor.connections == 0).count();
            assert_eq!(idle, stripe.idle, "who has no connections");
            stripe.visitors.values().map(|visitor| visitor.connections).sum::<usize>()
        };
        (self.count(), stripes.iter().map(of).sum())
    }
}

impl Stripe {
    /// Forgets whoever has no connections and a full bucket, if there may be many.
    fn forget(&mut self, now: u64) {
        if self.idle < self.forget_at.max(FORGET_AT_LEAST) {
            return;
        }
        self.visitors
            .retain(|_, visitor| visitor.connections > 0 || !visitor.handshakes.is_full(now));
        self.idle = self.visitors.values().filter(|visitor| visitor.connections == 0).count();
        if self.idle >= IDLE_MAX {
            self.visitors.retain(|_, visitor| visitor.connections > 0);
            self.idle = 0;
        }
        // Each look at all of them is paid for by as many that have come meanwhile.
        self.forget_at = (2 * self.idle).min(IDLE_MAX);
    }
}

impl Visitor {
    fn enter(&mut self, now: u64, limits: &Limits) -> Result<(), HandshakeError> {
        if limits.connections_per_address_max.is_some_and(|max| self.connections >= max) {
            return Err(HandshakeError::AddressFull);
        }
        let rate = limits.handshakes_per_second_per_address;
        if rate.is_some_and(|rate| !self.handshakes.take(now, 1, rate)) {
            return Err(HandshakeError::AddressTooFast);
        }
        self.connections += 1;
        Ok(())
    }
}

/// What counts as one address: an IPv4 address, or the first 64 bits of an IPv6 address, since a
/// network of that size is what one host or home is given (RFC 6177) and can choose from freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet(NonZeroU64);

impl From<IpAddr> for Subnet {
    fn from(address: IpAddr) -> Self {
        // What is said here of IPv4 and of `::/64`, where the loopback is, no host outside can say:
        // ::/8 is reserved (RFC 4291 §2.4).
        let (mark, bits) = match address.to_canonical() {
            IpAddr::V4(v4) => (1 << 32, u64::from(v4.to_bits())),
            IpAddr::V6(v6) => match (v6.to_bits() >> 64) as u64 {
                0 => (2 << 32, 0),
                prefix => (0, prefix),
            },
        };
        Self(NonZeroU64::new(mark | bits).expect("there is a mark, or a prefix"))
    }
}

/// Parts of the table: many times the threads that may meet at one.
const STRIPES: usize = 64;
/// Addresses without connections that a stripe remembers at most.
const IDLE_MAX: usize = 4096;
/// So many are not worth a look.
const FORGET_AT_LEAST: usize = 64;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limits(connections: Option<usize>, rate: Option<(u64, u64)>) -> Limits {
        Limits {
            connections_per_address_max: connections,
            handshakes_per_second_per_address: rate
                .map(|(per_second, burst)| Rate { per_second, burst }),
            ..Limits::default()
        }
    }

    fn subnet(address: &str) -> Subnet {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn subnets() {
        for (one, other, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8:0:1::1", "2001:db8:0:1:ffff::", true),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
            ("::1", "0.0.0.0", false),
            ("::1", "127.0.0.1", false),
        ] {
            assert_eq!(subnet(one) == subnet(other), same, "{one} {other}");
        }
        assert_eq!(size_of::<Option<Subnet>>(), 8);
    }

    #[test]
    fn as_many_connections_as_allowed() {
        let (census, now) = (Census::default(), Instant::now());
        let (limits, address) = (limits(Some(3), None), subnet("192.0.2.1"));
        for _ in 0..3 {
            assert_eq!(census.enter(address, now, &limits), Ok(()));
        }
        assert_eq!(census.enter(address, now, &limits), Err(HandshakeError::AddressFull));
        assert_eq!(census.enter(subnet("192.0.2.2"), now, &limits), Ok(()));
        assert_eq!(census.totals(), (0, 4));
        census.exit(address);
        assert_eq!(census.enter(address, now, &limits), Ok(()));
        assert_eq!(census.enter(address, now, &limits), Err(HandshakeError::AddressFull));
        for _ in 0..3 {
            census.exit(address);
        }
        census.exit(subnet("192.0.2.2"));
        assert_eq!(census.totals(), (0, 0));
    }

    #[test]
    fn as_many_handshakes_as_allowed() {
        let (census, now) = (Census::default(), Instant::now());
        let (limits, address) = (limits(None, Some((2, 3))), subnet("::1"));
        census.nanoseconds(now);
        for _ in 0..3 {
            assert_eq!(census.enter(address, now, &limits), Ok(()));
            census.exit(address);
        }
        assert_eq!(census.enter(address, now, &limits), Err(HandshakeError::AddressTooFast));
        assert_eq!(census.enter(subnet("192.0.2.2"), now, &limits), Ok(()));
        let later = now + Duration::from_millis(500);
        assert_eq!(census.enter(address, later, &limits), Ok(()));
        assert_eq!(census.enter(address, later, &limits), Err(HandshakeError::AddressTooFast));
        assert_eq!(census.totals(), (0, 2));
    }

    #[test]
    fn whoever_is_idle_is_forgotten() {
        let (census, start) = (Census::default(), Instant::now());
        let (slow, fast) = (limits(None, Some((1, 1))), limits(None, Some((1_000_000, 1))));
        census.nanoseconds(start);
        let remembered = || {
            let stripes = census.0.stripes.get().unwrap().iter();
            stripes.map(|stripe| stripe.lock().unwrap().visitors.len()).sum::<usize>()
        };
        let visit = |number: u32, limits: &Limits, seconds: u64| {
            let address = Subnet::from(IpAddr::from(number.to_be_bytes()));
            let now = start + Duration::from_secs(seconds);
            census.enter(address, now, limits).map(|()| census.exit(address))
        };
        // Their buckets are full again when the next one comes.
        for number in 0..100_000 {
            visit(number, &fast, u64::from(number)).unwrap();
        }
        assert!(remembered() <= STRIPES * (FORGET_AT_LEAST + 1), "{}", remembered());
        // All at once: none may be forgotten yet, until there are too many.
        for number in 0..STRIPES as u32 * 1000 {
            visit(number, &slow, 200_000).unwrap();
            assert!(visit(number, &slow, 200_000).is_err());
        }
        assert!(remembered() >= STRIPES * 1000);
        for number in 0..STRIPES as u32 * 6000 {
            let _ = visit(number, &slow, 200_000);
        }
        assert!(remembered() <= STRIPES * (IDLE_MAX + 1), "{}", remembered());
        // Whoever is connected is not forgotten with them.
        let here = subnet("198.51.100.7");
        let one = limits(Some(1), None);
        census.enter(here, start, &one).unwrap();
        for number in 0..STRIPES as u32 * 6000 {
            let _ = visit(number, &slow, 200_000);
        }
        assert_eq!(census.enter(here, start, &one), Err(HandshakeError::AddressFull));
    }

    #[test]
    fn connections_in_all() {
        let census = Census::default();
        assert!(census.admit(2) && census.admit(2) && !census.admit(2));
        census.leave();
        assert!(census.admit(2) && !census.admit(2));
        assert_eq!(census.totals(), (2, 0));
    }
}
