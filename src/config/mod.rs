//! Configuration: every knob of the server, declared once.
//!
//! A field of [`Settings`] is the whole declaration of a setting: its doc comment is the help text
//! and the comment `fanwire config` prints, its name is the TOML key, the flag (in kebab-case) and
//! the environment variable (`FANWIRE_` and the name in capitals), its value name is the range that
//! is accepted. Adding a setting is adding a field.
//!
//! | Module | Job |
//! | --- | --- |
//! | [`policy`] | what becomes of members that do not keep up: rules for rooms |
//! | [`value`] | reads one value from text and checks its range, whatever source it came from |
//! | [`layers`] | flag over environment over file over default; errors name the key and the source |
//! | [`render`] | the effective configuration as a commented TOML file |
//! | [`change`] | what a second reading changes, and which of it at once |
//!
//! What relates one setting to another is checked once, by [`Settings::check`]. The data plane
//! never sees settings: it gets [`Limits`], plain checked numbers.
//!
//! Never: reads a clock, opens a socket, knows the host; that is `control`'s and `io::host`'s job.

mod change;
mod layers;
mod policy;
mod render;
mod value;

use std::net::SocketAddr;
use std::time::Duration;

use clap::ArgGroup;
use serde::Serialize;

pub use change::Change;
pub use layers::{
    Action, CheckOptions, ConfigError, Loaded, Origin, Profile, ReportFormat, UnknownVariable, load,
};
pub use policy::{Policies, Policy, RoomPolicy, RoomRule, SlowConsumer};
pub use value::{Admin, Auto, CpuList, Interval, LogFormat, LogLevel, Size, ValueError};

use value::Parser;

/// Every setting of the server, checked one by one; [`Settings::check`] checks how they relate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, clap::Args)]
// So that `--shards -1` is answered with the range, not as an unknown flag.
#[command(allow_negative_numbers = true, group = ArgGroup::new(LIVE).multiple(true))]
pub struct Settings {
    /// Address that serves WebSocket clients and the chat page, IPv4 or IPv6. Give the flag several
    /// times, or a list, for several addresses; port 0 takes a free port.
    #[arg(long, help_heading = ADDRESSES, default_value = "127.0.0.1:8080", value_name = "IP:PORT",
          value_delimiter = ',', value_parser = Parser(value::address))]
    pub listen: Vec<SocketAddr>,

    /// Address of the admin interface (GET /health, POST /v1/publish). It has no authentication,
    /// and whoever reaches it may publish to every room: keep it on a loopback or private address,
    /// or turn it off.
    #[arg(long, help_heading = ADDRESSES, default_value = "127.0.0.1:8081",
          value_name = "IP:PORT|off", value_parser = Parser(value::admin))]
    pub admin: Admin,

    /// Serve /echo, which sends every message back to its sender; for conformance suites and
    /// round-trip benchmarks.
    #[arg(long, help_heading = ADDRESSES, default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set,
          value_name = "true|false", value_parser = Parser(value::boolean))]
    pub echo: bool,

    /// Number of shards: pinned threads, each with its own share of the connections. "auto" is one
    /// per CPU of `cpus`. More shards than CPUs are allowed: each has its own descriptor table, so
    /// they hold more connections under the same RLIMIT_NOFILE.
    #[arg(long, help_heading = SHARDS, default_value = "auto", value_name = "1..1024|auto",
          value_parser = Parser(value::auto_count))]
    pub shards: Auto<usize>,

    /// CPUs to run shards on, such as "0-3,8"; shards are dealt to them in turn. "auto" is every
    /// CPU this process may use.
    #[arg(long, help_heading = SHARDS, default_value = "auto", value_name = "LIST|auto",
          value_parser = Parser(value::cpus))]
    pub cpus: Auto<CpuList>,

    /// Messages that one shard may have waiting for another before it stops reading from its own
    /// publishers.
    #[arg(long, help_heading = SHARDS, default_value = "256", value_name = "16..65536",
          value_parser = Parser(value::count))]
    pub mailbox_len_max: usize,

    /// Publishes of the admin interface that may wait for one shard. Those beyond it wait for room,
    /// for a second at most; then they are answered 429 (server_busy).
    #[arg(long, help_heading = SHARDS, default_value = "4096", value_name = "16..65536",
          value_parser = Parser(value::count))]
    pub publish_queue_len_max: usize,

    /// Connections held at once, over all shards; those beyond it are answered 503. "auto" is as
    /// many as there are descriptors.
    #[arg(long, help_heading = LIMITS, default_value = "auto", value_name = "1..100000000|auto",
          value_parser = Parser(value::auto_count))]
    pub connections_max: Auto<usize>,

    /// Opening handshakes under way at once, per shard. Further connections wait in the kernel's
    /// backlog (net.core.somaxconn) until one of them is over.
    #[arg(long, help_heading = LIMITS, default_value = "4096", value_name = "1..1000000",
          value_parser = Parser(value::count))]
    pub handshakes_max: usize,

    /// Size of an opening handshake: request line and header fields together. A longer one is
    /// answered 431.
    #[arg(long, help_heading = LIMITS, default_value = "8KiB", value_name = "512B..64KiB",
          value_parser = Parser(value::size))]
    pub handshake_bytes_max: Size,

    /// Length of the request target, path and query. A longer one is answered 414.
    #[arg(long, help_heading = LIMITS, default_value = "2KiB", value_name = "64B..16KiB",
          value_parser = Parser(value::size))]
    pub target_bytes_max: Size,

    /// Size of one message to /ws, all fragments together. A longer one closes the connection with
    /// code 1009.
    #[arg(long, help_heading = LIMITS, default_value = "1MiB", value_name = "125B..64MiB",
          value_parser = Parser(value::size))]
    pub ws_message_bytes_max: Size,

    /// Size of one message to /raw/ROOM, all fragments together. A longer one closes the connection
    /// with code 1009.
    #[arg(long, help_heading = LIMITS, default_value = "1MiB", value_name = "125B..64MiB",
          value_parser = Parser(value::size))]
    pub raw_message_bytes_max: Size,

    /// Size of one message to /echo, all fragments together. A longer one closes the connection
    /// with code 1009.
    #[arg(long, help_heading = LIMITS, default_value = "16MiB", value_name = "125B..64MiB",
          value_parser = Parser(value::size))]
    pub echo_message_bytes_max: Size,

    /// Size of the body of a request to the admin interface: one publish, or one batch. A longer
    /// one is answered 413.
    #[arg(long, help_heading = LIMITS, default_value = "4MiB", value_name = "1KiB..64MiB",
          value_parser = Parser(value::size))]
    pub publish_bytes_max: Size,

    /// Memory, per shard, for messages of which only a part has arrived. The connection whose
    /// message does not fit is closed with code 1013.
    #[arg(long, help_heading = LIMITS, default_value = "256MiB", value_name = "64MiB..64GiB",
          value_parser = Parser(value::size))]
    pub partial_bytes_max: Size,

    /// Bytes a connection may fall behind in a room before it is disconnected as a slow consumer,
    /// where `room_policy` does not say otherwise. At least twice the largest message of /ws and
    /// /raw.
    #[arg(long, help_heading = LIMITS, default_value = "4MiB", value_name = value::MARKS,
          value_parser = Parser(value::size))]
    pub high_water_mark: Size,

    /// What becomes of slow consumers in the rooms, of /ws and /raw, whose names match PATTERN, in
    /// which * stands for any characters. MARK is how many bytes (64KiB..1GiB) a member may fall
    /// behind, AGE how old (100ms..1h) what it waits for may be. Past either, "disconnect" closes
    /// with code 1013, "skip-to-newest" goes on with the newest message, "drop-oldest" with the
    /// oldest within both. Give several rules, or a list; the first that matches counts.
    #[arg(long, help_heading = LIMITS, default_value = "off",
          value_name = "PATTERN=POLICY/MARK[/AGE]|off", value_delimiter = ',',
          value_parser = Parser(policy::read))]
    pub room_policy: Vec<RoomPolicy>,

    /// Rooms one connection may be a member of.
    #[arg(long, help_heading = LIMITS, default_value = "128", value_name = "1..65536",
          value_parser = Parser(value::count))]
    pub rooms_per_connection_max: usize,

    /// Rooms that may exist at once, per shard.
    #[arg(long, help_heading = LIMITS, default_value = "1000000", value_name = "1..1000000000",
          value_parser = Parser(value::count))]
    pub rooms_max: usize,

    /// Length of a room's name in UTF-8.
    #[arg(long, help_heading = LIMITS, default_value = "128B", value_name = "1B..1024B",
          value_parser = Parser(value::size))]
    pub room_id_bytes_max: Size,

    /// Length of a user's display name in UTF-8.
    #[arg(long, help_heading = LIMITS, default_value = "128B", value_name = "1B..1024B",
          value_parser = Parser(value::size))]
    pub user_id_bytes_max: Size,

    /// Time for the opening handshake, from accept to the last byte of the request. A slower client
    /// is answered 408 and cut.
    #[arg(long, help_heading = TIMEOUTS, default_value = "5s", value_name = "100ms..1m",
          value_parser = Parser(value::duration))]
    #[serde(serialize_with = "value::serialize_duration")]
    pub handshake_timeout: Duration,

    /// Time for a peer to finish the closing handshake, or to close after it was refused; then it
    /// is cut.
    #[arg(long, help_heading = TIMEOUTS, default_value = "5s", value_name = "100ms..1m",
          value_parser = Parser(value::duration))]
    #[serde(serialize_with = "value::serialize_duration")]
    pub close_timeout: Duration,

    /// Time from the first byte of a message to its last, all fragments together; then the
    /// connection is closed with code 1008.
    #[arg(long, help_heading = TIMEOUTS, default_value = "60s", value_name = "1s..1h",
          value_parser = Parser(value::duration))]
    #[serde(serialize_with = "value::serialize_duration")]
    pub message_timeout: Duration,

    /// Time a peer may leave bytes that are owed to it untouched; then it is cut.
    #[arg(long, help_heading = TIMEOUTS, default_value = "30s", value_name = "1s..10m",
          value_parser = Parser(value::duration))]
    #[serde(serialize_with = "value::serialize_duration")]
    pub send_timeout: Duration,

    /// How often an idle connection is sent a ping. A peer that falls silent is pinged after half
    /// this time at the earliest and all of it at the latest; whoever sends messages is not pinged.
    #[arg(long, help_heading = TIMEOUTS, default_value = "60s", value_name = "1s..1h|off",
          value_parser = Parser(value::interval), group = LIVE)]
    pub ping_interval: Interval,

    /// Time for a sign of life, whatever it is, after a ping; then the connection is cut. A peer
    /// whose host has vanished is gone after this and `ping_interval`.
    #[arg(long, help_heading = TIMEOUTS, default_value = "20s", value_name = "1s..10m",
          value_parser = Parser(value::duration), group = LIVE)]
    #[serde(serialize_with = "value::serialize_duration")]
    pub pong_timeout: Duration,

    /// Time, after SIGTERM or SIGINT, for connections to finish their closing handshake.
    #[arg(long, help_heading = TIMEOUTS, default_value = "10s", value_name = "0s..1h",
          value_parser = Parser(value::duration))]
    #[serde(serialize_with = "value::serialize_duration")]
    pub drain_timeout: Duration,

    /// How log lines look on standard error.
    #[arg(long, help_heading = LOGGING, default_value = "text", value_name = "text|json",
          value_parser = Parser(value::word::<LogFormat>))]
    pub log_format: LogFormat,

    /// Least important log line that is written.
    #[arg(long, help_heading = LOGGING, default_value = "info",
          value_name = "error|warn|info|debug|trace", value_parser = Parser(value::word::<LogLevel>),
          group = LIVE)]
    pub log_level: LogLevel,
}

/// The largest number of shards; the accepted range of `shards` says the same.
pub const SHARDS_MAX: usize = 1024;

const ADDRESSES: &str = "Addresses";
const SHARDS: &str = "Shards";
const LIMITS: &str = "Limits";
const TIMEOUTS: &str = "Timeouts";
const LOGGING: &str = "Logging";

/// The group of the settings that change at SIGHUP, without a restart.
const LIVE: &str = "live";

impl Settings {
    /// Checks how the settings relate to each other; each one's own range is checked when it is
    /// read.
    ///
    /// # Errors
    /// The first [`Conflict`] found.
    pub fn check(&self) -> Result<(), Conflict> {
        for (i, address) in self.listen.iter().enumerate() {
            if address.port() != 0 && self.listen[..i].contains(address) {
                return Err(Conflict::ListenTwice(*address));
            }
        }
        if let Admin::At(admin) = self.admin
            && admin.port() != 0
            && self.listen.contains(&admin)
        {
            return Err(Conflict::AdminListens(admin));
        }
        if self.target_bytes_max > self.handshake_bytes_max {
            return Err(Conflict::TargetBeyondHandshake {
                target_bytes_max: self.target_bytes_max,
                handshake_bytes_max: self.handshake_bytes_max,
            });
        }
        let rules: Vec<&RoomRule> = self.rules().collect();
        for (i, rule) in rules.iter().enumerate() {
            if let Some(before) = rules[..i].iter().find(|before| before.covers(rule)) {
                let (rule, before) = (Box::new((*rule).clone()), Box::new((*before).clone()));
                return Err(Conflict::RuleWithoutRooms { rule, before });
            }
        }
        // A member that has just begun to take one largest message must not be over the mark when
        // the next one is published. (Members that are not disconnected keep the newest one.)
        for (key, message_bytes_max) in [
            ("ws_message_bytes_max", self.ws_message_bytes_max),
            ("raw_message_bytes_max", self.raw_message_bytes_max),
        ] {
            let least = 2 * message_bytes_max.bytes();
            if self.high_water_mark.bytes() < least {
                return Err(Conflict::HighWaterMark {
                    high_water_mark: self.high_water_mark,
                    key,
                    message_bytes_max,
                });
            }
            if let Some(rule) = rules.iter().find(|rule| rule.disconnects_below(least as u64)) {
                let rule = Box::new((*rule).clone());
                return Err(Conflict::RuleMark { rule, key, message_bytes_max });
            }
        }
        Ok(())
    }

    fn rules(&self) -> impl Iterator<Item = &RoomRule> {
        self.room_policy.iter().filter_map(RoomPolicy::rule)
    }

    fn policies(&self) -> Policies {
        let default = Policy {
            slow_consumer: SlowConsumer::Disconnect,
            high_water_mark: self.high_water_mark.bytes() as u64,
            age_max: None,
        };
        Policies { rules: self.rules().cloned().collect(), default }
    }

    /// How vanished peers are found out.
    #[must_use]
    pub fn heartbeats(&self) -> Heartbeats {
        let ping_interval = match self.ping_interval {
            Interval::Off => None,
            Interval::Every(interval) => Some(interval),
        };
        Heartbeats { ping_interval, pong_timeout: self.pong_timeout }
    }

    /// How many shards there are on `cpus` CPUs.
    #[must_use]
    pub fn shard_count(&self, cpus: usize) -> usize {
        match self.shards {
            Auto::Auto => cpus.min(SHARDS_MAX),
            Auto::Set(shards) => shards,
        }
    }

    /// The numbers the data plane needs, for a server of `shards` shards of which each has
    /// descriptors for `connections_per_shard_max` connections.
    #[must_use]
    pub fn limits(&self, shards: usize, connections_per_shard_max: usize) -> Limits {
        let possible = connections_per_shard_max.saturating_mul(shards);
        let connections_max = match self.connections_max {
            Auto::Auto => possible,
            Auto::Set(connections_max) => connections_max.min(possible),
        };
        Limits {
            handshake_timeout: self.handshake_timeout,
            close_timeout: self.close_timeout,
            message_timeout: self.message_timeout,
            send_timeout: self.send_timeout,
            drain_timeout: self.drain_timeout,
            heartbeats: self.heartbeats(),
            handshakes_max: self.handshakes_max,
            handshake_bytes_max: self.handshake_bytes_max.bytes(),
            target_bytes_max: self.target_bytes_max.bytes(),
            ws_message_bytes_max: self.ws_message_bytes_max.bytes(),
            raw_message_bytes_max: self.raw_message_bytes_max.bytes(),
            echo_message_bytes_max: self.echo_message_bytes_max.bytes(),
            partial_bytes_max: self.partial_bytes_max.bytes(),
            rooms_per_connection_max: self.rooms_per_connection_max,
            rooms_max: self.rooms_max,
            room_id_bytes_max: self.room_id_bytes_max.bytes(),
            user_id_bytes_max: self.user_id_bytes_max.bytes(),
            policies: self.policies(),
            mailbox_len_max: self.mailbox_len_max,
            publish_queue_len_max: self.publish_queue_len_max,
            publish_bytes_max: self.publish_bytes_max.bytes(),
            echo: self.echo,
            connections_max,
            connections_per_shard_max,
        }
    }
}

/// What the data plane may use: checked, derived from [`Settings`], immutable.
///
/// Sizes are bytes. What is said "per shard" is not shared with the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From accept to the last byte of the upgrade request.
    pub handshake_timeout: Duration,
    /// From our close frame or refusal until the connection is cut.
    pub close_timeout: Duration,
    /// From the first byte of a message to its last.
    pub message_timeout: Duration,
    /// Without the peer taking any of the bytes owed to it.
    pub send_timeout: Duration,
    /// From the start of a drain until every connection is cut.
    pub drain_timeout: Duration,
    /// At the start; may change later.
    pub heartbeats: Heartbeats,
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
    /// Incomplete messages, per shard; at least the largest message.
    pub partial_bytes_max: usize,
    /// Rooms of one connection.
    pub rooms_per_connection_max: usize,
    /// Rooms at once, per shard.
    pub rooms_max: usize,
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

/// Settings that are each in range and do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// One address to listen on was given twice.
    #[error("listen names {0} twice; name it once")]
    ListenTwice(SocketAddr),
    /// The admin interface was put on an address that serves clients.
    #[error(
        "admin = {0} is also in listen; give it a port of its own, or turn it off with admin = off"
    )]
    AdminListens(SocketAddr),
    /// A target of the allowed length could not arrive.
    #[error(
        "target_bytes_max = {target_bytes_max} must be at most handshake_bytes_max = {handshake_bytes_max}, of which it is a part"
    )]
    TargetBeyondHandshake {
        /// As configured.
        target_bytes_max: Size,
        /// As configured.
        handshake_bytes_max: Size,
    },
    /// One message could make every member a slow consumer.
    #[error(
        "high_water_mark = {high_water_mark} must be at least twice {key} = {message_bytes_max}"
    )]
    HighWaterMark {
        /// As configured.
        high_water_mark: Size,
        /// Whose maximum it is.
        key: &'static str,
        /// As configured.
        message_bytes_max: Size,
    },
    /// The same, in the rooms of a rule.
    #[error(
        "room_policy {rule} disconnects, so its high-water mark must be at least twice {key} = {message_bytes_max}; raise it, or let the rule skip messages"
    )]
    RuleMark {
        /// As configured.
        rule: Box<RoomRule>,
        /// Whose maximum it is.
        key: &'static str,
        /// As configured.
        message_bytes_max: Size,
    },
    /// A rule would never count.
    #[error(
        "room_policy {rule} would never count: {before} stands before it and matches all its rooms; put it first, or take it out"
    )]
    RuleWithoutRooms {
        /// As configured.
        rule: Box<RoomRule>,
        /// The one that counts.
        before: Box<RoomRule>,
    },
}

impl Conflict {
    /// The keys that do not fit together; to change any of them may solve it.
    pub fn keys(&self) -> &'static [&'static str] {
        match self {
            Conflict::ListenTwice(_) => &["listen"],
            Conflict::AdminListens(_) => &["admin", "listen"],
            Conflict::TargetBeyondHandshake { .. } => &["target_bytes_max", "handshake_bytes_max"],
            Conflict::HighWaterMark { key: "raw_message_bytes_max", .. } => {
                &["high_water_mark", "raw_message_bytes_max"]
            }
            Conflict::HighWaterMark { .. } => &["high_water_mark", "ws_message_bytes_max"],
            Conflict::RuleMark { key: "raw_message_bytes_max", .. } => {
                &["room_policy", "raw_message_bytes_max"]
            }
            Conflict::RuleMark { .. } => &["room_policy", "ws_message_bytes_max"],
            Conflict::RuleWithoutRooms { .. } => &["room_policy"],
        }
    }
}

#[cfg(test)]
mod tests;

/// The defaults on a host with plenty of descriptors, for tests of other modules.
#[cfg(test)]
impl Default for Limits {
    fn default() -> Self {
        let settings = tests::settings(&[]).expect("the defaults are valid");
        settings.limits(1, 100_000)
    }
}
