//! `publish`: what a publish costs the server, over one WebSocket and in batches over HTTP.
//!
//! ```text
//! mod -> member    a WebSocket: the room's only member, which may publish
//! ```
//!
//! A room has one member, and every message goes to it, whichever way it is published: so the two
//! ways differ in nothing but the way in. A pass publishes batch after batch one way, each in one
//! write, and waits for the deliveries of each before the next. A round is a pass each way, the
//! second round in the other order and so on; the ratio is that of a round. The CPU time is of all
//! threads of the server, and so includes the delivery.
//!
//! Never: opens a loop. How fast a server can take publishes is the business of `fanout`.

pub mod member;

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use clap::Args;
use serde::Serialize;
use thiserror::Error;

use self::member::Member;
use crate::cli::Target;
use crate::compare::Spread;
use crate::host::{self, Environment};
use crate::http::{Client, HttpError};
use crate::measure::Clock;
use crate::report::WriteError;
use crate::template::{Stamp, Template, TemplateError, Values};
use crate::wire::ClientError;

/// Version of `publish.json`.
const FORMAT: u32 = 1;
/// The room; nobody else should be in it.
const ROOM: &str = "bench-publish";
/// What is published: the content of a message of the native protocol.
const CONTENT: &str = "{sequence}{timestamp}{padding}";

/// Options of `publish`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct PublishArgs {
    /// The server, as HOST:PORT; it speaks Fanwire's native protocol at /ws.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    pub target: Target,
    /// Its HTTP API, as HOST:PORT.
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "HOST:PORT")]
    pub admin: Target,
    /// Process of the server, which must be on this host: its CPU time is what is measured.
    #[arg(long)]
    pub pid: u32,
    /// Messages of a batch: of one HTTP request, or written to the WebSocket at once.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Batches of a pass.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batches: u32,
    /// Rounds; a figure is the median over them. One more goes before them and does not count.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Size of the content of a message in bytes.
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub payload: u32,
    /// Words about this run for the report.
    #[arg(long, default_value = "")]
    pub label: String,
    /// Folder for the results [default: results/publish-TIME].
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Why there are no figures.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The content has no room for its marks.
    #[error("--payload: {0}")]
    Payload(TemplateError),
    /// There is nothing to measure.
    #[error("--pid {0}: no such process, or it uses no CPU time; name the server's")]
    Process(u32),
    /// The WebSocket.
    #[error("the WebSocket to {target} failed: {cause}")]
    Member {
        /// The server.
        target: String,
        /// Why.
        cause: ClientError,
    },
    /// The HTTP API.
    #[error("the batch to {admin} failed: {cause}; is this the server's admin address?")]
    Http {
        /// The API.
        admin: String,
        /// Why.
        cause: HttpError,
    },
    /// The report could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl PublishError {
    /// Whether the command line is to blame.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Payload(_) | Self::Process(_))
    }
}

/// The way a message comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    Websocket,
    Http,
}

/// Many batches one way.
#[derive(Debug, Serialize)]
struct Pass {
    /// From 1.
    round: u32,
    way: Way,
    publishes_per_second: f64,
    server_cpu_us_per_publish: f64,
}

/// All passes of one way.
#[derive(Debug, Serialize)]
struct Figures {
    publishes_per_second: Spread,
    server_cpu_us_per_publish: Spread,
}

/// `publish.json`.
#[derive(Debug, Serialize)]
pub struct Record {
    format: u32,
    /// RFC 3339, UTC.
    started: String,
    parameters: PublishArgs,
    environment: Environment,
    websocket: Figures,
    http: Figures,
    /// CPU of a publish over HTTP to that over the WebSocket, round by round.
    cpu_ratio: Spread,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    /// Whether every message arrived once and in order.
    pub passed: bool,
    passes: Vec<Pass>,
    #[serde(skip)]
    folder: PathBuf,
}

/// Publishes both ways in turn, and writes `publish.json`.
///
/// # Errors
/// [`PublishError`]: what cannot be reached, or refuses a message.
pub fn publish(args: &PublishArgs) -> Result<Record, PublishError> {
    let template = Template::parse(CONTENT).and_then(|template| {
        template.check_published(args.payload as usize)?;
        Ok(template)
    });
    let template = template.map_err(PublishError::Payload)?;
    let started = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let mut doors = Doors::open(args, template)?;
    let mut passes = Vec::new();
    for round in 0..=args.rounds {
        let ways = [Way::Websocket, Way::Http];
        let turned = [ways[1], ways[0]];
        for way in if round % 2 == 0 { turned } else { ways } {
            let pass = doors.pass(round, way)?;
            eprintln!("round {round}/{}  {pass}", args.rounds);
            passes.extend((round > 0).then_some(pass));
        }
    }
    let published = u64::from(doors.published);
    let heard = doors.member.leave().map_err(failed(args))?;
    let lost = published.saturating_sub(heard.delivered);
    let folder = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("results/publish-{}", started.replace(':', "-"))));
    let record = Record {
        format: FORMAT,
        started,
        parameters: args.clone(),
        environment: Environment::read(Some(args.pid)),
        websocket: Figures::of(&passes, Way::Websocket),
        http: Figures::of(&passes, Way::Http),
        cpu_ratio: ratio(&passes),
        lost,
        duplicated: heard.duplicated,
        reordered: heard.reordered,
        passed: lost + heard.duplicated + heard.reordered == 0,
        passes,
        folder,
    };
    record.write()?;
    Ok(record)
}

fn failed(args: &PublishArgs) -> impl Fn(ClientError) -> PublishError {
    |cause| PublishError::Member { target: args.target.host.clone(), cause }
}

/// Both ways in.
struct Doors<'a> {
    args: &'a PublishArgs,
    content: Template,
    member: Member,
    client: Client,
    clock: Clock,
    /// Messages so far, either way.
    published: u32,
}

impl<'a> Doors<'a> {
    fn open(args: &'a PublishArgs, content: Template) -> Result<Self, PublishError> {
        host::usage(args.pid).ok_or(PublishError::Process(args.pid))?;
        let member = Member::join(&args.target, ROOM).map_err(failed(args))?;
        let client = Client::connect(&args.admin).map_err(|error| PublishError::Http {
            admin: args.admin.host.clone(),
            cause: error.into(),
        })?;
        Ok(Self { args, content, member, client, clock: Clock::start(), published: 0 })
    }

    fn pass(&mut self, round: u32, way: Way) -> Result<Pass, PublishError> {
        let (began, before) = (Instant::now(), self.cpu_ns()?);
        for _ in 0..self.args.batches {
            self.batch(way)?;
        }
        let (seconds, after) = (began.elapsed().as_secs_f64(), self.cpu_ns()?);
        if after <= before {
            return Err(PublishError::Process(self.args.pid));
        }
        let publishes = f64::from(self.args.batch) * f64::from(self.args.batches);
        Ok(Pass {
            round,
            way,
            publishes_per_second: publishes / seconds,
            server_cpu_us_per_publish: (after - before) as f64 / 1e3 / publishes,
        })
    }

    /// Publishes one batch and waits until it is delivered.
    fn batch(&mut self, way: Way) -> Result<(), PublishError> {
        let (first, intended_ns) = (self.published, self.clock.now());
        self.published += self.args.batch;
        let content = |sequence| {
            let stamp = Stamp { line: 0, sequence, intended_ns };
            let values = Values { stamp, ..Values::default() };
            self.content.render(values, self.args.payload as usize)
        };
        let contents: Vec<_> = (first..self.published).map(content).collect();
        match way {
            Way::Websocket => self.member.publish(ROOM, &contents).map_err(failed(self.args))?,
            Way::Http => self.client.publish(ROOM, &contents).map_err(|cause| {
                PublishError::Http { admin: self.args.admin.host.clone(), cause }
            })?,
        }
        self.member.wait(self.published.into()).map_err(failed(self.args))
    }

    fn cpu_ns(&self) -> Result<u64, PublishError> {
        let usage = host::usage(self.args.pid).ok_or(PublishError::Process(self.args.pid))?;
        Ok(usage.cpu_ns)
    }
}

impl Figures {
    fn of(passes: &[Pass], way: Way) -> Self {
        let spread = |value: fn(&Pass) -> f64| {
            Spread::of(passes.iter().filter(|pass| pass.way == way).map(value).collect())
        };
        Self {
            publishes_per_second: spread(|pass| pass.publishes_per_second),
            server_cpu_us_per_publish: spread(|pass| pass.server_cpu_us_per_publish),
        }
    }
}

/// CPU of a publish over HTTP to that over the WebSocket in the same round.
fn ratio(passes: &[Pass]) -> Spread {
    let cpu = |round, way| {
        let pass = passes.iter().find(|pass| pass.round == round && pass.way == way);
        pass.map(|pass| pass.server_cpu_us_per_publish)
    };
    let rounds = passes.iter().filter(|pass| pass.way == Way::Http).map(|pass| pass.round);
    let ratio = |round| Some(cpu(round, Way::Http)? / cpu(round, Way::Websocket)?);
    Spread::of(rounds.filter_map(ratio).collect())
}

impl Record {
    fn write(&self) -> Result<(), WriteError> {
        fs::create_dir_all(&self.folder).map_err(|cause| WriteError::new(&self.folder, cause))?;
        let path = self.folder.join("publish.json");
        let json = serde_json::to_string_pretty(self).map_err(io::Error::from);
        let written = json.and_then(|json| fs::write(&path, json + "\n"));
        written.map_err(|cause| WriteError::new(&path, cause))
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { way, publishes_per_second, server_cpu_us_per_publish, .. } = self;
        let way = match way {
            Way::Websocket => "websocket",
            Way::Http => "http",
        };
        write!(
            f,
            "{way:9}  {server_cpu_us_per_publish:.3} us of server CPU per publish, \
             {publishes_per_second:.0} publishes/s"
        )
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, min, max } = self.server_cpu_us_per_publish;
        write!(
            f,
            "{median:.3} us of server CPU per publish ({min:.3}..{max:.3}), {:.0} publishes/s",
            self.publishes_per_second.median
        )
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, min, max } = self.cpu_ratio;
        let Self { websocket, http, lost, duplicated, reordered, .. } = self;
        writeln!(f, "websocket   {websocket}")?;
        writeln!(f, "http        {http}")?;
        writeln!(f, "CPU ratio   {median:.3} ({min:.3}..{max:.3}), HTTP to WebSocket")?;
        writeln!(f, "checked     {lost} lost, {duplicated} duplicated, {reordered} reordered")?;
        writeln!(f, "report      {}", self.folder.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_a_round() {
        let pass = |round, way, server_cpu_us_per_publish| Pass {
            round,
            way,
            publishes_per_second: 1e6 / server_cpu_us_per_publish,
            server_cpu_us_per_publish,
        };
        let passes = [
            pass(1, Way::Websocket, 1.0),
            pass(1, Way::Http, 1.5),
            pass(2, Way::Http, 8.0),
            pass(2, Way::Websocket, 4.0),
            pass(3, Way::Websocket, 2.0),
            pass(3, Way::Http, 5.0),
        ];
        assert_eq!(ratio(&passes), Spread { median: 2.0, min: 1.5, max: 2.5 });
        let http = Figures::of(&passes, Way::Http);
        assert_eq!(http.server_cpu_us_per_publish, Spread { median: 5.0, min: 1.5, max: 8.0 });
        assert_eq!(http.publishes_per_second.max, 1e6 / 1.5);
    }
}
