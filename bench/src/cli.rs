//! The command line: every option with its unit, default and reason, and what they add up to.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

/// Load generator for WebSocket servers: honest latency, from one host to a million connections.
///
/// Exit codes: 0 all went well; 1 something was lost, duplicated, reordered or failed; 2 usage.
/// Templates know {room}, {connection}, {sequence}, {timestamp} and {padding}.
#[derive(Debug, Parser)]
#[command(name = "fanwire-bench", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub scenario: Scenario,
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
}

/// Options of all scenarios.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Common {
    /// Address of the server.
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub target: SocketAddr,
    /// Connections (members) over all threads.
    #[arg(long, short, default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    pub connections: u32,
    /// Rooms; connection N is in room N modulo this.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub rooms: u32,
    /// Message sent once a connection is open (template).
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
    /// CPUs the threads are pinned to in turn [default: not pinned].
    #[arg(long, value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Connections opened per second [default: as fast as handshakes are answered].
    #[arg(long)]
    pub open_rate: Option<f64>,
    /// Handshakes under way at once, all threads together.
    #[arg(long, default_value_t = 256)]
    pub opening: u32,
    /// How long a handshake, join or closing handshake may take.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub handshake_timeout: Duration,
    /// Do not answer pings.
    #[arg(long)]
    pub no_pong: bool,
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
    /// How long to hold all connections.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    #[serde(serialize_with = "seconds")]
    pub hold: Duration,
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
    /// Closed loop: messages each publisher has under way [default: 1].
    #[arg(long, conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub window: Option<u32>,
    /// Open loop: messages per second of all publishers together.
    #[arg(long)]
    pub rate: Option<f64>,
    /// The server does not deliver a message to its own publisher.
    #[arg(long)]
    pub sender_excluded: bool,
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
        }
    }

    /// What it has in common with the others.
    #[must_use]
    pub fn common(&self) -> &Common {
        match self {
            Self::Idle(args) => &args.common,
            Self::Fanout(args) => &args.common,
            Self::Echo(args) => &args.common,
        }
    }

    /// The template of its path.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Idle(args) => &args.path,
            Self::Fanout(args) => &args.path,
            Self::Echo(args) => &args.path,
        }
    }

    /// What it sends, if it does.
    #[must_use]
    pub fn load(&self) -> Option<&LoadArgs> {
        match self {
            Self::Idle(_) => None,
            Self::Fanout(args) => Some(&args.load),
            Self::Echo(args) => Some(&args.load),
        }
    }
}

fn parse_duration(text: &str) -> Result<Duration, humantime::DurationError> {
    // A bare number is seconds.
    text.parse().map(Duration::from_secs).or_else(|_| humantime::parse_duration(text))
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
