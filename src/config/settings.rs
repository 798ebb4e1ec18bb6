//! Every setting, declared once; what a declaration is, [`super`] says.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ArgGroup;
use serde::Serialize;

use super::keys::{self, AuthKey};
use super::network::{self, ProxyProtocol, TrustedProxy};
use super::origin::{self, OriginRule};
use super::policy::{self, RoomPolicy, RoomRule};
use super::rate::{self, Count, RateLimit};
use super::room::{self, RoomAlphabet, RoomMembers};
use super::value::{self, Auto, CpuList, LogFormat, LogLevel, Parser, Size, Switch};
use crate::auth::Verifier;

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

    /// Address of the admin interface: health, metrics, and the HTTP API by which backends publish
    /// and operators look and disconnect. On any other than a loopback address it needs keys
    /// (`admin_key_file`).
    #[arg(long, help_heading = ADDRESSES, default_value = "127.0.0.1:8081",
          value_name = "IP:PORT|off", value_parser = Parser(value::address_or_off))]
    pub admin: Switch<SocketAddr>,

    /// File with the keys of the admin interface, one on each line, at least 16 bytes each: a
    /// request then needs the field "Authorization: Bearer KEY" with one of them, except for
    /// /health, /ready and the page. Read again at SIGHUP. "off": no key is needed, on a loopback
    /// address.
    #[arg(long, help_heading = ADDRESSES, default_value = "off", value_name = "FILE|off",
          value_parser = Parser(value::file_or_off), group = LIVE)]
    pub admin_key_file: Switch<PathBuf>,

    /// Serve /echo, which sends every message back to its sender; for conformance suites and
    /// round-trip benchmarks.
    #[arg(long, help_heading = ADDRESSES, default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set,
          value_name = "true|false", value_parser = Parser(value::boolean), group = LIVE)]
    pub echo: bool,

    /// Keys that verify the tokens of clients (JSON Web Tokens); with one, every client must show
    /// a token. ALG is HS256, HS384 or HS512 (FILE is the secret), RS256, ES256 or EdDSA (FILE is
    /// a public key in PEM); "jwks" is a JWK Set. A key with KID verifies tokens with that "kid" or
    /// none, one without KID any of its ALG. Give several keys, or a list, to rotate them; the
    /// files are read again at SIGHUP. "off" lets everybody in, and to every room.
    #[arg(long, help_heading = AUTHENTICATION, default_value = "off",
          value_name = "[KID=]ALG:FILE|jwks:FILE|off", value_delimiter = ',',
          value_parser = Parser(keys::read), group = LIVE)]
    pub auth_keys: Vec<AuthKey>,

    /// The "iss" that a token must have.
    #[arg(long, help_heading = AUTHENTICATION, default_value = "off", value_name = "TEXT|off",
          value_parser = Parser(value::text_or_off), group = LIVE)]
    pub auth_issuer: Switch<String>,

    /// The "aud" that a token must name. With "off", tokens that name any are for another server
    /// and are refused.
    #[arg(long, help_heading = AUTHENTICATION, default_value = "off", value_name = "TEXT|off",
          value_parser = Parser(value::text_or_off), group = LIVE)]
    pub auth_audience: Switch<String>,

    /// How far the clock of whoever signs the tokens may differ from this host's, for "exp" and
    /// "nbf", in whole seconds (a fraction is dropped).
    #[arg(long, help_heading = AUTHENTICATION, default_value = "0s", value_name = "0s..5m",
          value_parser = Parser(value::duration), group = LIVE)]
    #[serde(serialize_with = "value::serialize_duration")]
    pub auth_leeway: Duration,

    /// Origins whose pages may connect, such as `https://example.com` or `https://*.example.com`
    /// (every host below it); pages of others are answered 403. Clients that send no Origin are no
    /// browsers, and pass. Give several, or a list; "off" lets all in.
    #[arg(long, help_heading = AUTHENTICATION, default_value = "off", value_name = "ORIGIN|off",
          value_delimiter = ',', value_parser = Parser(origin::read), group = LIVE)]
    pub origins: Vec<OriginRule>,

    /// Serve without authentication on addresses that are not loopback, of `listen` and of `admin`:
    /// whoever reaches them may join every room and publish to it, and disconnect everybody.
    #[arg(long, help_heading = AUTHENTICATION, default_value = "false",
          default_missing_value = "true", num_args = 0..=1, require_equals = true,
          action = clap::ArgAction::Set, value_name = "true|false",
          value_parser = Parser(value::boolean), group = LIVE)]
    pub insecure: bool,

    /// What `auth_keys` names, read; `None` while it is off. No setting of its own.
    #[arg(skip)]
    #[serde(skip)]
    pub verifier: Option<Arc<Verifier>>,

    /// Networks of proxies in front of this server, such as 10.0.0.0/8, or addresses. What they say
    /// about whom they connect for is believed: X-Forwarded-For, Forwarded, and the PROXY protocol
    /// if `proxy_protocol` says so; the right-most address that is not theirs is the client's. Give
    /// the flag several times, or a list.
    #[arg(long, help_heading = ADDRESSES, default_value = "off", value_name = "CIDR|off",
          value_delimiter = ',', value_parser = Parser(network::trusted_proxy), group = LIVE)]
    pub trusted_proxies: Vec<TrustedProxy>,

    /// Whether trusted proxies begin each connection with a PROXY header, of version 1 or 2:
    /// "optional" takes one, "required" answers 400 without. From anybody else, and with "off", a
    /// PROXY header is answered 400.
    #[arg(long, help_heading = ADDRESSES, default_value = "off",
          value_name = "off|optional|required", value_parser = Parser(value::word::<ProxyProtocol>),
          group = LIVE)]
    pub proxy_protocol: ProxyProtocol,

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
          value_parser = Parser(value::auto_count), group = LIVE)]
    pub connections_max: Auto<usize>,

    /// Connections of one address at once, over all shards; those beyond it are answered 429. Of
    /// IPv6 addresses the first 64 bits count: a network of that size is one client's. Counts those
    /// who come while it is set.
    #[arg(long, help_heading = LIMITS, default_value = "off", value_name = "1..100000000|off",
          value_parser = Parser(value::count_or_off), group = LIVE)]
    pub connections_per_address_max: Switch<usize>,

    /// Connections accepted per second, over all shards, and how many of them at once (a second's
    /// worth unless BURST says otherwise); those beyond it are answered 503.
    #[arg(long, help_heading = LIMITS, default_value = "off", value_name = "RATE[/BURST]|off",
          value_parser = Parser(rate::counts), group = LIVE)]
    pub handshakes_per_second: RateLimit<Count>,

    /// The same for one address; those beyond it are answered 429. Addresses are counted as for
    /// `connections_per_address_max`.
    #[arg(long, help_heading = LIMITS, default_value = "off", value_name = "RATE[/BURST]|off",
          value_parser = Parser(rate::counts), group = LIVE)]
    pub handshakes_per_second_per_address: RateLimit<Count>,

    /// Opening handshakes under way at once, per shard. Further connections wait, unread, until one
    /// of them is over: in the kernel's backlog (net.core.somaxconn), and those that come out of it
    /// in one burst in the server.
    #[arg(long, help_heading = LIMITS, default_value = "4096", value_name = "1..1000000",
          value_parser = Parser(value::count), group = LIVE)]
    pub handshakes_max: usize,

    /// Size of an opening handshake: request line and header fields together. A longer one is
    /// answered 431.
    #[arg(long, help_heading = LIMITS, default_value = "8KiB", value_name = "512B..64KiB",
          value_parser = Parser(value::size), group = LIVE)]
    pub handshake_bytes_max: Size,

    /// Length of the request target, path and query. A longer one is answered 414.
    #[arg(long, help_heading = LIMITS, default_value = "2KiB", value_name = "64B..16KiB",
          value_parser = Parser(value::size), group = LIVE)]
    pub target_bytes_max: Size,

    /// Size of one message to /ws, all fragments together. A longer one closes the connection with
    /// code 1009.
    #[arg(long, help_heading = LIMITS, default_value = "1MiB", value_name = "125B..64MiB",
          value_parser = Parser(value::size), group = LIVE)]
    pub ws_message_bytes_max: Size,

    /// Size of one message to /raw/ROOM, all fragments together. A longer one closes the connection
    /// with code 1009.
    #[arg(long, help_heading = LIMITS, default_value = "1MiB", value_name = "125B..64MiB",
          value_parser = Parser(value::size), group = LIVE)]
    pub raw_message_bytes_max: Size,

    /// Size of one message to /echo, all fragments together. A longer one closes the connection
    /// with code 1009.
    #[arg(long, help_heading = LIMITS, default_value = "16MiB", value_name = "125B..64MiB",
          value_parser = Parser(value::size), group = LIVE)]
    pub echo_message_bytes_max: Size,

    /// Size of one frame's payload, on any endpoint. A longer one closes the connection with code
    /// 1009. "auto" is as long as a message may be; set less, clients have to send longer messages
    /// in fragments, which browsers cannot.
    #[arg(long, help_heading = LIMITS, default_value = "auto", value_name = "125B..64MiB|auto",
          value_parser = Parser(value::auto_size), group = LIVE)]
    pub frame_bytes_max: Auto<Size>,

    /// Messages, pings and pongs that one connection may send per second, and how many of them at
    /// once (a second's worth unless BURST says otherwise). One more closes it with code 1008.
    #[arg(long, help_heading = LIMITS, default_value = "off", value_name = "RATE[/BURST]|off",
          value_parser = Parser(rate::counts), group = LIVE)]
    pub messages_per_second: RateLimit<Count>,

    /// Bytes that one connection may send per second, frame headers included, and how many of them
    /// at once (a second's worth, and at least a longest message, unless BURST says otherwise). One
    /// more closes it with code 1008.
    #[arg(long, help_heading = LIMITS, default_value = "off", value_name = "RATE[/BURST]|off",
          value_parser = Parser(rate::sizes), group = LIVE)]
    pub bytes_per_second: RateLimit<Size>,

    /// Size of the body of a request to the admin interface: one publish, or one batch. A longer
    /// one is answered 413.
    #[arg(long, help_heading = LIMITS, default_value = "4MiB", value_name = "1KiB..64MiB",
          value_parser = Parser(value::size), group = LIVE)]
    pub publish_bytes_max: Size,

    /// Memory, per shard, for messages of which only a part has arrived. The connection whose
    /// message does not fit is closed with code 1013.
    #[arg(long, help_heading = LIMITS, default_value = "256MiB", value_name = "64MiB..64GiB",
          value_parser = Parser(value::size), group = LIVE)]
    pub partial_bytes_max: Size,

    /// Resident memory from which on GET /ready answers 503, so that a load balancer sends new
    /// clients elsewhere. Nobody is disconnected or refused for it.
    #[arg(long, help_heading = LIMITS, default_value = "off", value_name = "1MiB..4TiB|off",
          value_parser = Parser(value::size_or_off), group = LIVE)]
    pub ready_rss_max: Switch<Size>,

    /// Bytes a connection may fall behind in a room before it is disconnected as a slow consumer,
    /// where `room_policy` does not say otherwise. At least twice the largest message of /ws and
    /// /raw.
    #[arg(long, help_heading = LIMITS, default_value = "4MiB", value_name = value::MARKS,
          value_parser = Parser(value::size), group = LIVE)]
    pub high_water_mark: Size,

    /// What becomes of slow consumers in the rooms, of /ws and /raw, whose names match PATTERN, in
    /// which * stands for any characters. MARK is how many bytes (64KiB..1GiB) a member may fall
    /// behind, AGE how old (100ms..1h) what it waits for may be. Past either, "disconnect" closes
    /// with code 1013, "skip-to-newest" goes on with the newest message, "drop-oldest" with the
    /// oldest within both. Give several rules, or a list; the first that matches counts.
    #[arg(long, help_heading = LIMITS, default_value = "off",
          value_name = "PATTERN=POLICY/MARK[/AGE]|off", value_delimiter = ',',
          value_parser = Parser(policy::read), group = LIVE)]
    pub room_policy: Vec<RoomPolicy>,

    /// Rooms one connection may be a member of.
    #[arg(long, help_heading = LIMITS, default_value = "128", value_name = "1..65536",
          value_parser = Parser(value::count), group = LIVE)]
    pub rooms_per_connection_max: usize,

    /// Rooms that may exist at once, per shard.
    #[arg(long, help_heading = LIMITS, default_value = "1000000", value_name = "1..1000000000",
          value_parser = Parser(value::count), group = LIVE)]
    pub rooms_max: usize,

    /// Members of one room at once, over all shards, in rooms of /ws and /raw whose names match
    /// PATTERN, in which * stands for any characters. Whoever would be one more is told room_full,
    /// or answered 503. Give several rules, or a list; the first that matches counts. A room that
    /// exists when the first rule for it is set has no limit until everybody has left it.
    #[arg(long, help_heading = LIMITS, default_value = "off", value_name = "PATTERN=MEMBERS|off",
          value_delimiter = ',', value_parser = Parser(room::members), group = LIVE)]
    pub members_per_room_max: Vec<RoomMembers>,

    /// Characters that a room's name may have: "any" but control characters; "ascii", the visible
    /// ones without space; "token", letters and digits of ASCII and - . _ ~ and the colon.
    #[arg(long, help_heading = LIMITS, default_value = "any", value_name = "any|ascii|token",
          value_parser = Parser(value::word::<RoomAlphabet>), group = LIVE)]
    pub room_id_alphabet: RoomAlphabet,

    /// Length of a room's name in UTF-8.
    #[arg(long, help_heading = LIMITS, default_value = "128B", value_name = "1B..1024B",
          value_parser = Parser(value::size), group = LIVE)]
    pub room_id_bytes_max: Size,

    /// Length of a user's display name in UTF-8.
    #[arg(long, help_heading = LIMITS, default_value = "128B", value_name = "1B..1024B",
          value_parser = Parser(value::size), group = LIVE)]
    pub user_id_bytes_max: Size,

    /// Time for the opening handshake, from accept to the last byte of the request. A slower client
    /// is answered 408 and cut.
    #[arg(long, help_heading = TIMEOUTS, default_value = "5s", value_name = "100ms..1m",
          value_parser = Parser(value::duration), group = LIVE)]
    #[serde(serialize_with = "value::serialize_duration")]
    pub handshake_timeout: Duration,

    /// Time for a peer to finish the closing handshake, or to close after it was refused, once it
    /// has taken all that it is owed; then it is cut.
    #[arg(long, help_heading = TIMEOUTS, default_value = "5s", value_name = "100ms..1m",
          value_parser = Parser(value::duration), group = LIVE)]
    #[serde(serialize_with = "value::serialize_duration")]
    pub close_timeout: Duration,

    /// Time from the first byte of a message to its last, all fragments together; then the
    /// connection is closed with code 1008.
    #[arg(long, help_heading = TIMEOUTS, default_value = "60s", value_name = "1s..1h",
          value_parser = Parser(value::duration), group = LIVE)]
    #[serde(serialize_with = "value::serialize_duration")]
    pub message_timeout: Duration,

    /// Time a peer may leave bytes that are owed to it untouched; then it is cut.
    #[arg(long, help_heading = TIMEOUTS, default_value = "30s", value_name = "1s..10m",
          value_parser = Parser(value::duration), group = LIVE)]
    #[serde(serialize_with = "value::serialize_duration")]
    pub send_timeout: Duration,

    /// How often an idle connection is sent a ping. A peer that falls silent is pinged after half
    /// this time at the earliest and all of it at the latest; whoever sends messages is not pinged.
    #[arg(long, help_heading = TIMEOUTS, default_value = "60s", value_name = "1s..1h|off",
          value_parser = Parser(value::interval), group = LIVE)]
    #[serde(serialize_with = "value::serialize_interval")]
    pub ping_interval: Switch<Duration>,

    /// Time for a sign of life, whatever it is, after a ping; then the connection is cut. A peer
    /// whose host has vanished is gone after this and `ping_interval`.
    #[arg(long, help_heading = TIMEOUTS, default_value = "20s", value_name = "1s..10m",
          value_parser = Parser(value::duration), group = LIVE)]
    #[serde(serialize_with = "value::serialize_duration")]
    pub pong_timeout: Duration,

    /// Time, after SIGTERM or SIGINT, in which the server goes on as before and only says on the
    /// admin interface that it drains: for load balancers to notice.
    #[arg(long, help_heading = TIMEOUTS, default_value = "0s", value_name = "0s..1h",
          value_parser = Parser(value::duration), group = LIVE)]
    #[serde(serialize_with = "value::serialize_duration")]
    pub drain_delay: Duration,

    /// Connections closed per second while the server drains, over all shards. "auto" is as many as
    /// take half of `drain_timeout` for all, but at least 1000.
    #[arg(long, help_heading = TIMEOUTS, default_value = "auto", value_name = "1..100000000|auto",
          value_parser = Parser(value::auto_count), group = LIVE)]
    pub drain_rate: Auto<usize>,

    /// Time for a drain: for all connections to be closed, at `drain_rate`, and to finish their
    /// closing handshake. Who is left at its end is cut.
    #[arg(long, help_heading = TIMEOUTS, default_value = "10s", value_name = "0s..1h",
          value_parser = Parser(value::duration), group = LIVE)]
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
const AUTHENTICATION: &str = "Authentication";
const SHARDS: &str = "Shards";
const LIMITS: &str = "Limits";
const TIMEOUTS: &str = "Timeouts";
const LOGGING: &str = "Logging";

/// The group of the settings that change at once when the configuration is read again; the others
/// wait for a restart.
pub(super) const LIVE: &str = "live";

impl Settings {
    /// How many shards there are on `cpus` CPUs.
    #[must_use]
    pub fn shard_count(&self, cpus: usize) -> usize {
        match self.shards {
            Auto::Auto => cpus.min(SHARDS_MAX),
            Auto::Set(shards) => shards,
        }
    }

    /// The longest message of any endpoint that there is.
    pub(super) fn message_bytes_max(&self) -> Size {
        let echo = self.echo.then_some(self.echo_message_bytes_max);
        self.ws_message_bytes_max.max(self.raw_message_bytes_max).max(echo.unwrap_or(Size::from(0)))
    }

    /// The rules of `room_policy`.
    pub(super) fn rules(&self) -> impl Iterator<Item = &RoomRule> {
        self.room_policy.iter().filter_map(RoomPolicy::rule)
    }
}
