//! Flag over environment over file over default.
//!
//! Each source is turned into what it would be on a command line, `--key=value`, so that every
//! value goes through the one parser its setting declares. Each value is tried alone first: only
//! then can an error name where it came from. The layers are then laid over each other by inserting
//! into one map, lowest first, and the map is parsed as a whole.
//!
//! A value that is wrong stops the start even if a higher source overrides it: it would come into
//! force on the day the override goes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, CommandFactory, FromArgMatches, ValueEnum};
use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::value::{ValueError, accepted};
use super::{BrokenKey, Conflict, Settings};

/// Reads the configuration from the command line `args` (the first is the program's name), the
/// environment and the file that one of them names.
///
/// # Errors
/// See [`ConfigError`]; the first one found, flags before environment before file.
pub fn load(
    args: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, ConfigError> {
    let matches = CommandLine::command()
        .try_get_matches_from(args)
        .map_err(|error| ConfigError::refused(error, None))?;
    let (name, matches) = matches.subcommand().expect("clap requires a subcommand");
    let action = match name {
        "serve" => Action::Serve,
        "check" => {
            Action::Check(CheckOptions::from_arg_matches(matches).map_err(ConfigError::Usage)?)
        }
        _ => Action::Config,
    };

    let flags = Layer::from_flags(matches);
    let environment = Environment::read(environment)?;
    let path = matches.get_one::<PathBuf>("config").or(environment.config.as_ref());
    let mut layer = path.map_or(Ok(Layer::default()), |path| Layer::from_file(path))?;
    layer.0.extend(environment.layer.0);
    layer.0.extend(flags.0);

    let settings = layer.checked_settings()?;
    Ok(Loaded { action, settings, layer, warnings: environment.unknown })
}

/// What the command line asks for, and the configuration in force.
#[derive(Debug)]
pub struct Loaded {
    /// What to do.
    pub action: Action,
    /// The configuration in force.
    pub settings: Settings,
    /// `FANWIRE_` variables that are no setting: worth a warning, no reason not to start.
    pub warnings: Vec<UnknownVariable>,
    pub(super) layer: Layer,
}

impl Loaded {
    /// Where the value of `key` came from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.layer.origin(key)
    }

    /// Names where the conflicting values came from.
    pub fn conflict(&self, conflict: Conflict) -> ConfigError {
        self.layer.conflict(conflict)
    }
}

/// The subcommand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Run the server.
    Serve,
    /// Print the configuration in force.
    Config,
    /// Say whether the host is fit for it.
    Check(CheckOptions),
}

/// What `fanwire check` is asked for, beside the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct CheckOptions {
    /// Profile of tuning/ that the host must meet. Without one the host is compared with
    /// idle-million, and what differs is advice.
    #[arg(long, value_enum, value_name = "idle-million|low-latency", hide_possible_values = true,
          help_heading = CHECK)]
    pub profile: Option<Profile>,
    /// Connections that must fit.
    #[arg(long, value_name = "1..100000000", help_heading = CHECK,
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub connections: Option<u64>,
    /// How the report is printed.
    #[arg(long, value_enum, value_name = "text|json", hide_possible_values = true,
          default_value = "text", help_heading = CHECK)]
    pub format: ReportFormat,
}

const CHECK: &str = "Check";

impl CheckOptions {
    /// The profile to compare the host with.
    pub fn profile(self) -> Profile {
        self.profile.unwrap_or(Profile::IdleMillion)
    }
}

/// Host settings for one kind of load; a file of `tuning/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// A million connections, mostly silent.
    IdleMillion,
    /// Every message there as soon as can be.
    LowLatency,
}

impl Profile {
    /// Its name on the command line, and of its file.
    pub fn name(self) -> &'static str {
        match self {
            Profile::IdleMillion => "idle-million",
            Profile::LowLatency => "low-latency",
        }
    }
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// Tables for people.
    Text,
    /// One object.
    Json,
}

#[derive(clap::Parser)]
#[command(name = "fanwire", version, about, after_help = EXAMPLES, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    _subcommand: Subcommand,
}

#[derive(clap::Subcommand)]
enum Subcommand {
    /// Run the server
    #[command(after_help = EXAMPLES)]
    Serve(Flags),
    /// Print the effective configuration as a commented TOML file
    #[command(after_help = EXAMPLES)]
    Config(Flags),
    /// Compare this host with what a server with these settings needs, and forecast how many
    /// connections it holds; exit code 1 when something must change
    #[command(after_help = EXAMPLES)]
    Check(CheckFlags),
}

#[derive(clap::Args)]
struct CheckFlags {
    #[command(flatten)]
    _options: CheckOptions,
    #[command(flatten)]
    _flags: Flags,
}

#[derive(clap::Args)]
struct Flags {
    /// Read settings from this TOML file; `fanwire config` prints one to start from
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

const EXAMPLES: &str = "\
Every setting can be given in three ways; the first one found counts:
  flag         --handshake-timeout 2s
  environment  FANWIRE_HANDSHAKE_TIMEOUT=2s   (a list is separated by commas)
  file         handshake_timeout = \"2s\"       (--config FILE or FANWIRE_CONFIG)
Ranges include both ends. A bare number is seconds, or bytes.

Examples:
  fanwire serve                                   chat page on http://127.0.0.1:8080/
  fanwire serve --auth-keys HS256:/etc/fanwire/secret --origins https://example.com \
    --listen 0.0.0.0:80 --listen '[::]:80' --admin off
    (the claims of a token: {\"sub\":\"alice\",\"exp\":1890000000,
     \"rooms\":[{\"pattern\":\"chat:*\",\"join\":true,\"publish\":true}]})
  fanwire serve --listen 0.0.0.0:80 --insecure    everybody may join every room
  fanwire serve --shards 8 --cpus 0-3             two shards on each of four CPUs
  fanwire config --shards 8 > fanwire.toml        a commented file with every setting
  fanwire serve --config fanwire.toml
  fanwire check --connections 1000000             would a million fit on this host?";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// This environment variable.
    Variable(String),
    /// This flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{} line {line}", path.display()),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// What some sources set, by key; the values as text.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer(BTreeMap<String, Given>);

#[derive(Debug, Clone)]
struct Given {
    values: Vec<String>,
    origin: Origin,
}

impl Layer {
    fn from_flags(matches: &ArgMatches) -> Layer {
        let mut layer = Layer::default();
        for arg in settings_command().get_arguments() {
            let key = arg.get_id().as_str();
            if matches.value_source(key) == Some(ValueSource::CommandLine) {
                let texts = matches.get_raw(key).into_iter().flatten();
                let values = texts.map(|text| text.to_string_lossy().into_owned()).collect();
                layer.0.insert(key.to_owned(), Given { values, origin: Origin::Flag(flag(key)) });
            }
        }
        layer
    }

    fn from_file(path: &Path) -> Result<Layer, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
        Layer::from_text(path, &text)
    }

    /// What `text`, the contents of the file at `path`, sets.
    pub(super) fn from_text(path: &Path, text: &str) -> Result<Layer, ConfigError> {
        let line = |offset: usize| 1 + text[..offset].matches('\n').count();
        let table = DeTable::parse(text).map_err(|error| ConfigError::NotToml {
            path: path.to_owned(),
            line: line(error.span().map_or(0, |span| span.start)),
            // One line: the parser lists what it expected on further ones.
            message: error.message().replace('\n', "; "),
        })?;

        let command = settings_command();
        let mut entries: Vec<_> = table.get_ref().iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut layer = Layer::default();
        for (key, value) in entries {
            let origin = Origin::File { path: path.to_owned(), line: line(key.span().start) };
            let key: &str = key.get_ref();
            let Some(arg) = find(&command, key) else {
                let (key, nearest) = (key.to_owned(), nearest(key));
                return Err(ConfigError::UnknownKey { key, origin, nearest });
            };
            let is_list = matches!(arg.get_action(), ArgAction::Append);
            let Some(values) = texts(value, is_list) else {
                let expected = if is_list { "a list of strings" } else { "one plain value" };
                return Err(ConfigError::Shape { key: key.to_owned(), origin, expected });
            };
            layer.insert(key.to_owned(), values, origin)?;
        }
        Ok(layer)
    }

    fn insert(
        &mut self,
        key: String,
        values: Vec<String>,
        origin: Origin,
    ) -> Result<(), ConfigError> {
        let given = Given { values, origin };
        settings_command()
            .try_get_matches_from(given.arguments(&key))
            .map_err(|error| ConfigError::refused(error, Some(given.origin.clone())))?;
        self.0.insert(key, given);
        Ok(())
    }

    /// The settings, checked, with the keys that they name.
    fn checked_settings(&self) -> Result<Settings, ConfigError> {
        let mut settings = self.settings()?;
        settings.check().map_err(|conflict| self.conflict(conflict))?;
        let origin = || self.origin("auth_keys").clone();
        settings.read_keys().map_err(|broken| ConfigError::Key { broken, origin: origin() })?;
        Ok(settings)
    }

    /// These values, but those whose key `is_of_other` as the other layer has them, or has not.
    pub(super) fn with_those(&self, is_of_other: impl Fn(&str) -> bool, other: &Layer) -> Layer {
        let own = self.0.iter().filter(|(key, _)| !is_of_other(key));
        let others = other.0.iter().filter(|(key, _)| is_of_other(key));
        Layer(own.chain(others).map(|(key, given)| (key.clone(), given.clone())).collect())
    }

    pub(super) fn settings(&self) -> Result<Settings, ConfigError> {
        let arguments = self.0.iter().flat_map(|(key, given)| given.arguments(key));
        settings_command()
            .try_get_matches_from(arguments)
            .and_then(|matches| Settings::from_arg_matches(&matches))
            .map_err(|error| ConfigError::refused(error, None))
    }

    fn origin(&self, key: &str) -> &Origin {
        self.0.get(key).map_or(&Origin::Default, |given| &given.origin)
    }

    pub(super) fn conflict(&self, conflict: Conflict) -> ConfigError {
        let sources = conflict.keys().iter().map(|key| format!("{key}: {}", self.origin(key)));
        let sources = sources.collect::<Vec<_>>().join(", ");
        ConfigError::Conflict { conflict, sources }
    }
}

impl Given {
    fn arguments(&self, key: &str) -> impl Iterator<Item = String> {
        let flag = flag(key);
        self.values.iter().map(move |value| format!("{flag}={value}"))
    }
}

/// The `FANWIRE_` variables, sorted out.
#[derive(Default)]
struct Environment {
    config: Option<PathBuf>,
    layer: Layer,
    unknown: Vec<UnknownVariable>,
}

impl Environment {
    fn read(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Environment, ConfigError> {
        let command = settings_command();
        let mut environment = Environment::default();
        for (name, value) in variables {
            let Some((name, key)) = name.to_str().and_then(|name| {
                Some((name.to_owned(), name.strip_prefix(PREFIX)?.to_lowercase()))
            }) else {
                continue;
            };
            if name == CONFIG_VARIABLE {
                environment.config = Some(value.into());
            } else if variable(&key) == name && find(&command, &key).is_some() {
                let value = value
                    .into_string()
                    .map_err(|_| ConfigError::NotUnicode { name: name.clone() })?;
                environment.layer.insert(key, vec![value], Origin::Variable(name))?;
            } else {
                let nearest = nearest(&key).as_deref().map(variable);
                environment.unknown.push(UnknownVariable { name, nearest });
            }
        }
        Ok(environment)
    }
}

const PREFIX: &str = "FANWIRE_";
const CONFIG_VARIABLE: &str = "FANWIRE_CONFIG";

/// A `FANWIRE_` variable that is no setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownVariable {
    /// Its name.
    pub name: String,
    /// The setting's variable that was probably meant.
    pub nearest: Option<String>,
}

impl fmt::Display for UnknownVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = did_you_mean(self.nearest.as_deref());
        write!(f, "environment variable {} is no setting and is ignored{hint}", self.name)
    }
}

/// Why there is no configuration. One line each: key, source, what was wrong, what is accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a command line of this program, or a request for help: clap says it best.
    #[error(transparent)]
    Usage(clap::Error),
    /// One value is not understood or out of range.
    #[error("{key} = {value:?} {cause}; accepted: {accepted} ({origin})")]
    Value {
        /// The setting.
        key: String,
        /// As given.
        value: String,
        /// What is wrong with it.
        cause: ValueError,
        /// The accepted range or words.
        accepted: String,
        /// Where it was given.
        origin: Origin,
    },
    /// The file sets something that does not exist.
    #[error("{origin}: there is no setting {key}{}", did_you_mean(.nearest.as_deref()))]
    UnknownKey {
        /// As written.
        key: String,
        /// Where.
        origin: Origin,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// The file has a list where one value belongs, or a table, or a date.
    #[error("{origin}: {key} takes {expected}")]
    Shape {
        /// The setting.
        key: String,
        /// Where.
        origin: Origin,
        /// What belongs there.
        expected: &'static str,
    },
    /// Each value is right, together they are not.
    #[error("{conflict} ({sources})")]
    Conflict {
        /// What does not fit.
        conflict: Conflict,
        /// Where the values came from.
        sources: String,
    },
    /// A file of `auth_keys` cannot be used.
    #[error("{broken} ({origin})")]
    Key {
        /// Which one, why, and the remedy.
        broken: BrokenKey,
        /// Where it was given.
        origin: Origin,
    },
    /// A variable's value is not UTF-8.
    #[error("environment variable {name} is not UTF-8")]
    NotUnicode {
        /// The variable.
        name: String,
    },
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The configuration file is not TOML.
    #[error("{} line {line}: not TOML: {message}", path.display())]
    NotToml {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
}

impl ConfigError {
    /// From what clap says about a value that came from `origin`; without one, from a flag.
    fn refused(error: clap::Error, origin: Option<Origin>) -> ConfigError {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.as_str()),
            _ => None,
        };
        // clap names an argument as the help shows it: `--drain-timeout <0s..1h>`, `--echo[=..]`.
        let flag = context(ContextKind::InvalidArg)
            .and_then(|arg| arg.split(|c: char| c != '-' && !c.is_ascii_lowercase()).next());
        let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref());
        let (Some(flag), Some(value), Some(cause)) =
            (flag, context(ContextKind::InvalidValue), cause)
        else {
            return ConfigError::Usage(error);
        };
        let key = flag.trim_start_matches('-').replace('-', "_");
        ConfigError::Value {
            value: value.to_owned(),
            cause: *cause,
            accepted: find(&settings_command(), &key).map(accepted).unwrap_or_default(),
            origin: origin.unwrap_or_else(|| Origin::Flag(flag.to_owned())),
            key,
        }
    }
}

/// The settings alone as a command: what every source is read with.
pub(super) fn settings_command() -> Command {
    let command = Command::new("fanwire").no_binary_name(true);
    Settings::augment_args(command.disable_help_flag(true))
}

fn find<'c>(command: &'c Command, key: &str) -> Option<&'c Arg> {
    command.get_arguments().find(|arg| arg.get_id() == key)
}

/// The values of an entry as text; `None` when a list stands for one value, or the other way round,
/// or what is there is no plain value.
fn texts(value: &Spanned<DeValue<'_>>, is_list: bool) -> Option<Vec<String>> {
    match value.get_ref() {
        DeValue::Array(items) if is_list && !items.is_empty() => {
            items.iter().map(|item| text(item.get_ref())).collect()
        }
        DeValue::Array(_) => None,
        value => Some(vec![text(value)?]),
    }
}

fn text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        // Past i64 it is out of every range, in whatever notation.
        DeValue::Integer(number) => {
            let decimal = i64::from_str_radix(number.as_str(), number.radix());
            Some(decimal.map_or(number.to_string(), |decimal| decimal.to_string()))
        }
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase())
}

/// The setting that `key` was probably meant to be.
fn nearest(key: &str) -> Option<String> {
    let command = settings_command();
    let keys = command.get_arguments().map(|arg| arg.get_id().as_str());
    let scored = keys.map(|known| (strsim::jaro_winkler(key, known), known));
    // The likeness from which on clap suggests a flag, too.
    let likely = scored.filter(|(likeness, _)| *likeness > 0.7);
    likely.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known.to_owned())
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests;
