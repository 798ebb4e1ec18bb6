//! What the data plane may use: plain numbers, worked out from the settings.

use std::sync::Arc;
use std::time::Duration;

use super::network::{ProxyProtocol, TrustedProxies};
use super::origin::{OriginRule, Origins};
use super::policy::{Policies, Policy, SlowConsumer};
use super::rate::Rate;
use super::room::{MembersMax, RoomAlphabet, RoomMembers};
use super::settings::Settings;
use super::value::{Auto, Size};
use crate::auth::Verifier;

/// What the data plane may use: checked, derived from [`Settings`], immutable. A reload makes new
/// ones; of these, [`Settings`] says which fields can differ.
///
/// Sizes are bytes. What is said "per shard" is not shared with the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Verifies the tokens of clients; `None`: nobody needs one.
    pub verifier: Option<Arc<Verifier>>,
    /// Whose pages may connect.
    pub origins: Origins,
    /// From accept to the last byte of the upgrade request.
    pub handshake_timeout: Duration,
    /// From our close frame or refusal until the connection is cut.
    pub close_timeout: Duration,
    /// From the first byte of a message to its last.
    pub message_timeout: Duration,
    /// Without the peer taking any of the bytes owed to it.
    pub send_timeout: Duration,
    /// Connections closed per second of a drain, over all shards; `None`: as many as suit
    /// `drain_timeout`.
    pub drain_rate: Option<u32>,
    /// From the start of a drain until every connection is cut.
    pub drain_timeout: Duration,
    /// How vanished peers are found out.
    pub heartbeats: Heartbeats,
    /// Connections of one address, over all shards.
    pub connections_per_address_max: Option<usize>,
    /// Connections accepted, over all shards.
    pub handshakes_per_second: Option<Rate>,
    /// The same for one address.
    pub handshakes_per_second_per_address: Option<Rate>,
    /// Who is believed about whom it connects for.
    pub trusted_proxies: TrustedProxies,
    /// Whether they say it with a PROXY header.
    pub proxy_protocol: ProxyProtocol,
    /// Opening handshakes under way at once, per shard.
    pub handshakes_max: usize,
    /// Request line and header fields together.
    pub handshake_bytes_max: usize,
    /// Request target; at most `handshake_bytes_max`.
    pub target_bytes_max: usize,
    /// One message to `/ws`.
    pub ws_message_bytes_max: usize,
    /// One message to `/raw/ROOM`.
    pub raw_message_bytes_max: usize,
    /// One message to `/echo`.
    pub echo_message_bytes_max: usize,
    /// One frame's payload; `usize::MAX` where only messages are bounded.
    pub frame_bytes_max: usize,
    /// Messages, pings and pongs of one connection.
    pub messages_per_second: Option<Rate>,
    /// Bytes of one connection; the burst is at least a longest message with its header.
    pub bytes_per_second: Option<Rate>,
    /// Incomplete messages, per shard; at least the largest message.
    pub partial_bytes_max: usize,
    /// Rooms of one connection.
    pub rooms_per_connection_max: usize,
    /// Rooms at once, per shard.
    pub rooms_max: usize,
    /// Members of one room, over all shards.
    pub members_per_room_max: MembersMax,
    /// The characters of a room's name.
    pub room_id_alphabet: RoomAlphabet,
    /// A room's name.
    pub room_id_bytes_max: usize,
    /// A user's display name.
    pub user_id_bytes_max: usize,
    /// How far a member may be behind in which room. Where it is disconnected then, at least
    /// twice the largest published message.
    pub policies: Policies,
    /// Messages waiting from one shard for another, per pair.
    pub mailbox_len_max: usize,
    /// Publishes of the control thread under way to one shard.
    pub publish_queue_len_max: usize,
    /// The body of one request to the admin interface.
    pub publish_bytes_max: usize,
    /// Resident memory from which on the server says that it is not ready; `None`: it never does.
    pub ready_rss_max: Option<usize>,
    /// Whether `/echo` exists.
    pub echo: bool,
    /// Connections at once, over all shards.
    pub connections_max: usize,
    /// Connections of one shard: as its descriptor table allows.
    pub connections_per_shard_max: usize,
}

/// How vanished peers are found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeats {
    /// The longest silence before a ping; `None`: nobody is pinged.
    pub ping_interval: Option<Duration>,
    /// From a ping to the first byte after it.
    pub pong_timeout: Duration,
}

impl Limits {
    /// Whether some limit is by address.
    #[must_use]
    pub const fn counts_addresses(&self) -> bool {
        self.connections_per_address_max.is_some()
            || self.handshakes_per_second_per_address.is_some()
    }
}

impl Settings {
    /// The numbers the data plane needs, for a server of `shards` shards of which each has
    /// descriptors for `connections_per_shard_max` connections.
    ///
    /// # Panics
    /// When the keys that the settings name were not read, as [`super::load`] does it.
    #[must_use]
    pub fn limits(&self, shards: usize, connections_per_shard_max: usize) -> Limits {
        // Nobody may come to think that there is no authentication.
        assert_eq!(self.authenticates(), self.verifier.is_some(), "keys are read with settings");
        let possible = connections_per_shard_max.saturating_mul(shards);
        let connections_max = match self.connections_max {
            Auto::Auto => possible,
            Auto::Set(connections_max) => connections_max.min(possible),
        };
        Limits {
            verifier: self.verifier.clone(),
            origins: self.allowed_origins(),
            handshake_timeout: self.handshake_timeout,
            close_timeout: self.close_timeout,
            message_timeout: self.message_timeout,
            send_timeout: self.send_timeout,
            drain_rate: match self.drain_rate {
                Auto::Auto => None,
                // Its range ends far below.
                Auto::Set(rate) => Some(rate as u32),
            },
            drain_timeout: self.drain_timeout,
            heartbeats: self.heartbeats(),
            connections_per_address_max: self.connections_per_address_max.as_on().copied(),
            handshakes_per_second: self.handshakes_per_second.rate(0),
            handshakes_per_second_per_address: self.handshakes_per_second_per_address.rate(0),
            trusted_proxies: TrustedProxies::new(&self.trusted_proxies),
            proxy_protocol: self.proxy_protocol,
            handshakes_max: self.handshakes_max,
            handshake_bytes_max: self.handshake_bytes_max.bytes(),
            target_bytes_max: self.target_bytes_max.bytes(),
            ws_message_bytes_max: self.ws_message_bytes_max.bytes(),
            raw_message_bytes_max: self.raw_message_bytes_max.bytes(),
            echo_message_bytes_max: self.echo_message_bytes_max.bytes(),
            frame_bytes_max: self.frame_bytes_max.as_set().map_or(usize::MAX, |size| size.bytes()),
            messages_per_second: self.messages_per_second.rate(0),
            bytes_per_second: self.bytes_per_second.rate(self.longest_message_on_the_wire()),
            partial_bytes_max: self.partial_bytes_max.bytes(),
            rooms_per_connection_max: self.rooms_per_connection_max,
            rooms_max: self.rooms_max,
            members_per_room_max: self.members_max(),
            room_id_alphabet: self.room_id_alphabet,
            room_id_bytes_max: self.room_id_bytes_max.bytes(),
            user_id_bytes_max: self.user_id_bytes_max.bytes(),
            policies: self.policies(),
            mailbox_len_max: self.mailbox_len_max,
            publish_queue_len_max: self.publish_queue_len_max,
            publish_bytes_max: self.publish_bytes_max.bytes(),
            ready_rss_max: self.ready_rss_max.as_on().copied().map(Size::bytes),
            echo: self.echo,
            connections_max,
            connections_per_shard_max,
        }
    }

    /// How vanished peers are found out.
    #[must_use]
    pub fn heartbeats(&self) -> Heartbeats {
        Heartbeats {
            ping_interval: self.ping_interval.as_on().copied(),
            pong_timeout: self.pong_timeout,
        }
    }

    fn allowed_origins(&self) -> Origins {
        let any = self.origins.contains(&OriginRule::Any);
        Origins { allowed: (!any).then(|| self.origins.clone()) }
    }

    /// A longest message in one frame, with its header (RFC 6455 §5.2).
    pub(super) fn longest_message_on_the_wire(&self) -> u64 {
        u64::from(self.message_bytes_max()) + FRAME_HEADER_BYTES_MAX
    }

    fn members_max(&self) -> MembersMax {
        let rule = |entry: &RoomMembers| match entry {
            RoomMembers::Off => None,
            RoomMembers::Rule(rule) => Some(rule.clone()),
        };
        MembersMax(self.members_per_room_max.iter().filter_map(rule).collect())
    }

    fn policies(&self) -> Policies {
        let default = Policy {
            slow_consumer: SlowConsumer::Disconnect,
            high_water_mark: self.high_water_mark.bytes() as u64,
            age_max: None,
        };
        Policies { rules: self.rules().cloned().collect(), default }
    }
}

/// Two bytes, eight of length, and the masking key.
const FRAME_HEADER_BYTES_MAX: u64 = 14;

/// The limits of a server without any setting, on a host with plenty of descriptors.
#[cfg(any(test, fuzzing))]
impl Default for Limits {
    fn default() -> Self {
        // Reading a command line takes Miri half a minute.
        static DEFAULT: std::sync::LazyLock<Limits> = std::sync::LazyLock::new(|| {
            let loaded = super::load(["fanwire", "serve"].map(Into::into), []);
            loaded.expect("the defaults are valid").settings.limits(1, 100_000)
        });
        DEFAULT.clone()
    }
}
