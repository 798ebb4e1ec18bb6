//! The command line: every option with its unit, default and reason, and what they add up to.
//!
//! Options of the commands that make no run stand with their code, in [`compare`](crate::compare),
//! [`merge`](crate::merge), [`peers`](crate::peers), [`bare`](crate::bare),
//! [`publish`](crate::publish) and [`soak`](crate::soak).

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::bare::BareArgs;
use crate::beside::BesideArgs;
use crate::compare::CompareArgs;
use crate::merge::MergeArgs;
use crate::peers::PeersArgs;
use crate::plan::Farewell;
use crate::publish::PublishArgs;
use crate::soak::SoakArgs;

/// Load generator for WebSocket servers: honest latency, from one host to a million connections.
///
/// Exit codes: 0 all went well; 1 something was lost, duplicated, reordered or failed, or is worse
/// than the tolerance of a comparison; 2 usage.
/// Templates know {room}, {connection}, {sequence}, {timestamp} and {padding}.
#[derive(Debug, Parser)]
#[command(name = "fanwire-bench", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands: every scenario is one.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Makes a run.
    #[command(flatten)]
    Run(Box<Scenario>),
    /// Compare runs: a table of ratios and one picture of their latencies.
    Compare(CompareArgs),
    /// Merge the runs of several generators that ran at the same time into one.
    Merge(MergeArgs),
    /// Measure other servers beside Fanwire: one table and one picture.
    Peers(PeersArgs),
    /// Send what comes to all who are there, and nothing else: the limit that `fanout` shows for
    /// any server. Measuring equipment, not a server; loopback only.
    Bare(BareArgs),
    /// Measure what a publish costs the server over a WebSocket and in batches over HTTP.
    Publish(PublishArgs),
    /// Soak Fanwire in mixed load for an hour, and find out whether anything of it grows.
    Soak(SoakArgs),
}

/// The scenarios.
#[derive(Debug, Clone, Subcommand, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scenario {
    /// Open connections, hold them, close them.
    Idle(IdleArgs),
    /// Publish to rooms and check every delivery.
    Fanout(FanoutArgs),
    /// Round trips to a server that sends everything back.
    Echo(EchoArgs),
    /// Drop connections in waves and open them again.
    Storm(StormArgs),
    /// As fanout, while a share of the members reads slowly or never.
    Slow(SlowArgs),
}

/// Options of all scenarios.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Common {
    /// The server, as HOST:PORT or ws://HOST:PORT; a name is looked up once.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    pub target: Target,
    /// Connections (members) over all threads.
    #[arg(long, short, default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    pub connections: u32,
    /// Rooms; connection N is in room N modulo this.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub rooms: u32,
    /// Message sent once a connection is open, for each of its rooms (template).
    #[arg(long)]
    pub join: Option<String>,
    /// The server does not answer --join: count a connection as ready at once.
    #[arg(long, requires = "join")]
    pub join_unanswered: bool,
    /// Subprotocol to offer.
    #[arg(long)]
    pub subprotocol: Option<String>,
    /// Source addresses, used in turn [default: all over 127.0.0.0/8 if the target is there].
    #[arg(long, value_delimiter = ',')]
    pub source: Vec<IpAddr>,
    /// Threads [default: as many as --cpus, more if the descriptor limit asks for it].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// CPUs the threads are pinned to in turn, as in 0-3,8 [default: not pinned].
    #[arg(long)]
    pub cpus: Option<Cpus>,
    /// Connections opened per second [default: adaptive, as fast as handshakes are answered
    /// quickly].
    #[arg(long)]
    pub open_rate: Option<f64>,
    /// Handshakes under way at once, all threads together: at most so many when adaptive.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    pub opening: u32,
    /// How long a handshake, join or closing handshake may take.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub handshake_timeout: Duration,
    /// Do not answer pings.
    #[arg(long)]
    pub no_pong: bool,
    /// Once all are open, hold them this long before anything else happens; several times, as in
    /// 20s,60s, make holds that are reported apart [default: 10s in idle, else none].
    #[arg(long, value_delimiter = ',', value_parser = parse_duration)]
    #[serde(serialize_with = "each_in_seconds")]
    pub hold: Vec<Duration>,
    /// Shell command that runs before the second and each later hold.
    #[arg(long)]
    pub hold_command: Option<String>,
    /// Once all are open, wait for this time (RFC 3339, or seconds since the Unix epoch): several
    /// generators go on together.
    #[arg(long)]
    pub start_at: Option<WallTime>,
    /// At the end close without FIN and RST: the server's ends stay open, and so the kernel's
    /// memory for both ends can be told apart (needs CAP_NET_ADMIN).
    #[arg(long)]
    pub vanish: bool,
    /// Process of the server, if it is on this host: its memory and CPU go into the report.
    #[arg(long)]
    pub pid: Option<u32>,
    /// Words about this run for the report.
    #[arg(long, default_value = "")]
    pub label: String,
    /// Folder for the results [default: results/SCENARIO-TIME].
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Options of `idle`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct IdleArgs {
    #[command(flatten)]
    #[serde(flatten)]
    /// See [`Common`].
    pub common: Common,
    /// Path of each connection (template).
    #[arg(long, default_value = "/raw/bench-{room}")]
    pub path: String,
    /// Send a ping on every connection once per this time, evenly spread [default: none].
    #[arg(long, value_parser = parse_duration)]
    #[serde(serialize_with = "in_seconds")]
    pub ping_interval: Option<Duration>,
}

/// Options of `fanout`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct FanoutArgs {
    #[command(flatten)]
    #[serde(flatten)]
    /// See [`Common`].
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    /// See [`LoadArgs`].
    pub load: LoadArgs,
    /// Path of each connection (template).
    #[arg(long, default_value = "/raw/bench-{room}")]
    pub path: String,
    /// Publishers: connections 0, 1, 2.., each publishes into its own room.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub publishers: u32,
    /// Publishers share the rooms: each joins its part of them and publishes into one at random,
    /// always in the same order. All other connections are members of one room each.
    #[arg(long, requires = "join")]
    pub roam: bool,
    /// Closed loop: messages each publisher has under way [default: 1].
    #[arg(long, conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub window: Option<u32>,
    /// Open loop: messages per second of all publishers together.
    #[arg(long)]
    pub rate: Option<f64>,
    /// Messages of each publisher: the run ends with the last delivery of the last one, and has no
    /// --warmup and no --duration.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub messages: Option<u32>,
    /// The server does not deliver a message to its own publisher.
    #[arg(long)]
    pub sender_excluded: bool,
    #[command(flatten)]
    #[serde(flatten)]
    /// See [`BesideArgs`].
    pub beside: BesideArgs,
}

/// Options of `storm`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct StormArgs {
    #[command(flatten)]
    #[serde(flatten)]
    /// See [`Common`].
    pub common: Common,
    /// Path of each connection (template).
    #[arg(long, default_value = "/raw/bench-{room}")]
    pub path: String,
    /// Waves after the opening.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub waves: u32,
    /// How long connections stay before a wave drops them.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub stay: Duration,
    /// Share of the connections that a wave drops, above 0, up to 1.
    #[arg(long, default_value_t = 1.0, value_parser = parse_share)]
    pub drop: f64,
    /// How they drop.
    #[arg(long, default_value = "reset")]
    pub drop_how: Farewell,
    /// They come back at random times within this; 0 is all at once.
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub reconnect_within: Duration,
    /// After an attempt has failed, when the next one follows.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub retry_after: Duration,
    /// A connection that is not back this long after the drop has failed.
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub back_within: Duration,
}

/// Options of `slow`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct SlowArgs {
    #[command(flatten)]
    #[serde(flatten)]
    /// See [`FanoutArgs`].
    pub fanout: FanoutArgs,
    /// Share of the members that are no publishers which reads slowly, above 0, up to 1.
    #[arg(long, default_value_t = 0.5, value_parser = parse_share)]
    pub slow_share: f64,
    /// Bytes per second that each of them reads; 0 is never.
    #[arg(long, default_value_t = 0)]
    pub slow_rate: u32,
    /// Receive buffer of their sockets in bytes (SO_RCVBUF; the kernel doubles it).
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub slow_buffer: u32,
}

/// Options of `echo`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct EchoArgs {
    #[command(flatten)]
    #[serde(flatten)]
    /// See [`Common`].
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    /// See [`LoadArgs`].
    pub load: LoadArgs,
    /// Path of each connection (template).
    #[arg(long, default_value = "/echo")]
    pub path: String,
    /// Messages each connection has under way.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub window: u32,
}

/// Options of the scenarios that send messages.
#[derive(Debug, Clone, Args, Serialize)]
pub struct LoadArgs {
    /// Message (template); needs {sequence} and {timestamp}.
    #[arg(long, default_value = "{sequence}{timestamp}{padding}")]
    pub message: String,
    /// Size of a message in bytes, reached with {padding}.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub payload: u32,
    /// Run before figures are taken.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub warmup: Duration,
    /// Run that figures are taken from.
    #[arg(long, short, default_value = "10s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub duration: Duration,
    /// How long to wait for deliveries after the last message.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub drain: Duration,
}

impl Scenario {
    /// Its name on the command line.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle(_) => "idle",
            Self::Fanout(_) => "fanout",
            Self::Echo(_) => "echo",
            Self::Storm(_) => "storm",
            Self::Slow(_) => "slow",
        }
    }

    /// What it has in common with the others.
    #[must_use]
    pub fn common(&self) -> &Common {
        match self {
            Self::Idle(args) => &args.common,
            Self::Fanout(args) => &args.common,
            Self::Echo(args) => &args.common,
            Self::Storm(args) => &args.common,
            Self::Slow(args) => &args.fanout.common,
        }
    }

    /// The template of its path.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Idle(args) => &args.path,
            Self::Fanout(args) => &args.path,
            Self::Echo(args) => &args.path,
            Self::Storm(args) => &args.path,
            Self::Slow(args) => &args.fanout.path,
        }
    }

    /// What it sends, if it does.
    #[must_use]
    pub fn load(&self) -> Option<&LoadArgs> {
        match self {
            Self::Idle(_) | Self::Storm(_) => None,
            Self::Fanout(args) => Some(&args.load),
            Self::Echo(args) => Some(&args.load),
            Self::Slow(args) => Some(&args.fanout.load),
        }
    }

    /// What it publishes into rooms, if it does.
    #[must_use]
    pub fn fanout(&self) -> Option<&FanoutArgs> {
        match self {
            Self::Fanout(args) => Some(args),
            Self::Slow(args) => Some(&args.fanout),
            Self::Idle(_) | Self::Echo(_) | Self::Storm(_) => None,
        }
    }

    /// How long to hold the open connections, hold by hold.
    #[must_use]
    pub fn holds(&self) -> Vec<Duration> {
        let asked = self.common().hold.clone();
        let default = matches!(self, Self::Idle(_)) && asked.is_empty();
        if default { vec![IDLE_HOLD] } else { asked }
    }
}

/// How long `idle` holds unless told otherwise.
const IDLE_HOLD: Duration = Duration::from_secs(10);

/// A server to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it was named, without a scheme: the Host header.
    pub host: String,
    /// Where that is.
    pub address: SocketAddr,
}

/// `HOST:PORT`, with `ws://` before it or not. The first address of a name counts.
impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("wss://") {
            return Err("TLS is not spoken: name the server behind it, as HOST:PORT".to_owned());
        }
        let host = text.strip_prefix("ws://").unwrap_or(text).trim_end_matches('/');
        if host.contains('/') {
            return Err("the path is a matter of --path: name HOST:PORT here".to_owned());
        }
        let addresses = host.to_socket_addrs();
        let found = addresses.map_err(|error| {
            format!("name HOST:PORT, such as 127.0.0.1:8080 or localhost:8080 ({error})")
        });
        let address = found?.next().ok_or("the name has no address")?;
        Ok(Self { host: host.to_owned(), address })
    }
}

impl Serialize for Target {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.host)
    }
}

/// CPUs by number, in the order they are used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Cpus(pub Vec<usize>);

/// Numbers and ranges: `0-3,8`.
impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse(), last.trim().parse());
            let (Ok(first), Ok(last @ ..=CPU_MAX)) = (first, last) else {
                return Err(format!("'{part}' is no CPU and no range of CPUs as in 0-3,8"));
            };
            if first > last {
                return Err(format!("the range '{part}' is empty"));
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

/// The last CPU that Linux can have on any architecture (CONFIG_NR_CPUS).
const CPU_MAX: usize = 8191;

/// A time on the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WallTime(pub SystemTime);

impl FromStr for WallTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let since_epoch = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
        let unix = since_epoch.and_then(|passed| SystemTime::UNIX_EPOCH.checked_add(passed));
        let time = unix.or_else(|| humantime::parse_rfc3339(text).ok());
        time.map(Self)
            .ok_or_else(|| "write 2026-01-31T12:00:00Z, or seconds since the Unix epoch".to_owned())
    }
}

impl Serialize for WallTime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(self.0))
    }
}

/// Reads "500ms", "2s" and the like.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, humantime::DurationError> {
    // A bare number is seconds.
    text.parse().map(Duration::from_secs).or_else(|_| humantime::parse_duration(text))
}

/// A duration in a report.
pub(crate) fn seconds<S: serde::Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn in_seconds<S: serde::Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}

fn each_in_seconds<S: serde::Serializer>(
    durations: &[Duration],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(durations.iter().map(Duration::as_secs_f64))
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|&share: &f64| share > 0.0 && share <= 1.0);
    share.ok_or_else(|| "a share is above 0 and at most 1".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_and_a_port() {
        let address = |text: &str| text.parse::<Target>().map(|target| target.address.to_string());
        assert_eq!(address("127.0.0.1:80").as_deref(), Ok("127.0.0.1:80"));
        assert_eq!(address("ws://[::1]:8080/").as_deref(), Ok("[::1]:8080"));
        for (text, says) in [
            ("wss://127.0.0.1:443", "TLS is not spoken"),
            ("ws://127.0.0.1:80/room", "--path"),
            ("127.0.0.1", "name HOST:PORT"),
            ("127.0.0.1:99999", "name HOST:PORT"),
        ] {
            let error = address(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn cpus_are_numbers_and_ranges() {
        let table: &[(&str, Option<&[usize]>)] = &[
            ("3", Some(&[3])),
            ("0-3,8", Some(&[0, 1, 2, 3, 8])),
            ("5-5, 1", Some(&[5, 1])),
            ("3-1", None),
            ("", None),
            ("1,", None),
            ("-2", None),
            ("0-99999999999", None),
        ];
        for &(text, expected) in table {
            let parsed = text.parse().ok().map(|Cpus(cpus)| cpus);
            assert_eq!(parsed.as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn times_are_rfc_3339_or_unix_seconds() {
        let second = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        for text in ["1.5", "1970-01-01T00:00:01.5Z"] {
            assert_eq!(text.parse(), Ok(WallTime(second)), "{text}");
        }
        for text in ["", "noon", "-1", "1e40", "1970-01-01"] {
            assert!(text.parse::<WallTime>().is_err(), "{text}");
        }
    }
}
