//! What every thread must know to open its connections, and to end them.
//!
//! Made once from the command line, read by all threads. Connections are known by their number in
//! the whole run here, so that a share of them is the same however many threads there are.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::SlowArgs;
use crate::rooms::Rooms;
use crate::template::Template;
use crate::wire::Upgrade;

/// Connections per source address: few of its ports, so that finding a free one stays cheap.
const CONNECTIONS_PER_SOURCE: u32 = 10_000;

/// See the module documentation.
#[derive(Debug)]
pub struct Plan {
    /// The server.
    pub target: SocketAddr,
    /// Source addresses in turn; empty: spread over 127.0.0.0/8 if the target is there.
    pub sources: Vec<IpAddr>,
    /// The constant part of the upgrade request.
    pub upgrade: Upgrade,
    /// The path of each connection.
    pub path: Template,
    /// What each connection sends once it is open, for each of its rooms.
    pub join: Option<Template>,
    /// Whether each `join` is answered with a message.
    pub join_answered: bool,
    /// Connections over all threads.
    pub connections: u32,
    /// Who is in which.
    pub rooms: Rooms,
    /// Connections opened per second over all threads; `None`: as fast as the server answers.
    pub open_rate: Option<f64>,
    /// Handshakes under way at once in one thread, at most.
    pub opening_max: usize,
    /// How long a handshake, join included, may take; also a closing handshake.
    pub handshake_timeout: Duration,
    /// Whether pings are answered.
    pub pong: bool,
    /// How connections end when the run does.
    pub farewell: Farewell,
    /// The connections that drop and come back, in `storm`.
    pub storm: Option<Storm>,
    /// The connections that read slowly, in `slow`.
    pub slow: Option<Slow>,
}

/// How a connection is ended by its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Farewell {
    /// A closing handshake.
    Close,
    /// A reset: RST without a word (SO_LINGER 0).
    Reset,
    /// Nothing at all: the server's end stays open, as after a power cut (needs CAP_NET_ADMIN).
    Vanish,
}

/// What drops, and how it comes back.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// Share of the connections that drop in each wave, 0 to 1.
    pub share: f64,
    /// How they end.
    pub how: Farewell,
    /// They come back at random times within this; 0: all at once.
    pub within: Duration,
    /// After an attempt to come back has failed, when the next follows.
    pub retry_after: Duration,
}

/// Who reads slowly, and how.
#[derive(Debug, Clone, Copy)]
pub struct Slow {
    /// Share of the connections that are no publishers, 0 to 1.
    pub share: f64,
    /// Publishers: connections 0 to this are healthy.
    pub publishers: u32,
    /// What each of them reads; 0: nothing ever.
    pub bytes_per_second: u32,
    /// Their SO_RCVBUF in bytes (the kernel doubles it).
    pub buffer: u32,
}

impl Plan {
    /// The address connection `number` comes from, if it matters.
    #[must_use]
    pub fn source(&self, number: u32) -> Option<IpAddr> {
        if !self.sources.is_empty() {
            return Some(self.sources[number as usize % self.sources.len()]);
        }
        let loopback = matches!(self.target.ip(), IpAddr::V4(target) if target.is_loopback());
        loopback.then(|| {
            // 127.1.0.1 upwards: no address a server is likely to listen on.
            let index = number / CONNECTIONS_PER_SOURCE;
            let [_, _, c, _] = ((index / 254) << 8).to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(127, 1, c, (index % 254 + 1) as u8))
        })
    }

    /// Whether connection `number` reads slowly.
    #[must_use]
    pub fn is_slow(&self, number: u32) -> bool {
        self.slow.is_some_and(|slow| slow.has(number))
    }
}

impl Storm {
    /// Whether connection `number` drops.
    #[must_use]
    pub fn has(&self, number: u32) -> bool {
        is_of_share(number, self.share)
    }
}

impl Slow {
    /// Those that the command line asks for.
    #[must_use]
    pub fn of(args: &SlowArgs) -> Self {
        Self {
            share: args.slow_share,
            publishers: args.fanout.publishers,
            bytes_per_second: args.slow_rate,
            buffer: args.slow_buffer,
        }
    }

    /// Whether connection `number` is one of them.
    #[must_use]
    pub fn has(&self, number: u32) -> bool {
        number >= self.publishers && is_of_share(number - self.publishers, self.share)
    }
}

/// Picks `share` of all numbers, evenly spread: exactly `floor(n * share)` of the first `n`.
fn is_of_share(number: u32, share: f64) -> bool {
    let picked = |n: f64| (n * share).floor();
    picked(f64::from(number) + 1.0) > picked(f64::from(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_and_spread() {
        for (share, expected) in [(0.0, 0), (0.25, 25), (0.333, 33), (0.5, 50), (1.0, 100)] {
            let picked = (0..100).filter(|&number| is_of_share(number, share)).count();
            assert_eq!(picked, expected, "{share}");
        }
        let slow = Slow { share: 0.5, publishers: 4, bytes_per_second: 0, buffer: 4096 };
        let picked: Vec<_> = (0..10).filter(|&number| slow.has(number)).collect();
        assert_eq!(picked, [5, 7, 9]);
    }
}
