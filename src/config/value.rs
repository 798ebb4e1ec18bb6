//! Reads one value from text and checks its range; the same for every source.
//!
//! Each reader is a plain function of the text and of what is accepted. What is accepted is the
//! *value name* of the setting, such as `100ms..1m`, `1..1024|auto` or `text|json`: it stands once
//! in the declaration, is shown in the help, in errors and in `fanwire config`, and is what the
//! reader checks against. Ranges include both ends.
//!
//! Bare numbers: a duration in seconds, a size in bytes. Every value prints as text that reads back
//! as itself.

use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::ValueEnum;
use clap::builder::TypedValueParser;
use serde::{Deserialize, Serialize, Serializer};

/// The high-water marks that a rule may have. None is smaller than what a sweep sends at once.
pub(super) const MARKS: &str = "64KiB..1GiB";
/// The ages that a rule may have.
pub(super) const AGES: &str = "100ms..1h";
/// The numbers of events that a rate and a burst may have.
pub(super) const COUNTS: &str = "1..1000000";
/// The numbers of bytes that they may have.
pub(super) const SIZES: &str = "1KiB..1GiB";
/// The members that a room may be allowed.
pub(super) const MEMBERS: &str = "1..1000000000";

/// Why a text is not the value of a setting; the accepted range is told beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not `NUMBER UNIT`.
    #[error("is not a duration such as 500ms, 5s or 2m (a bare number is seconds)")]
    NotADuration,
    /// Not `NUMBER UNIT`.
    #[error("is not a size such as 512B, 64KiB or 4MiB (a bare number is bytes)")]
    NotASize,
    /// Not digits.
    #[error("is not a whole number")]
    NotANumber,
    /// Host names are not looked up: a listener needs one address, not what a resolver says today.
    #[error("is not an address with a port such as 127.0.0.1:8080 or [::1]:8080")]
    NotAnAddress,
    /// Empty.
    #[error("is not the path of a file")]
    NotAPath,
    /// Not numbers and ranges, separated by commas.
    #[error("is not a list of CPU numbers such as 0-3,8")]
    NotACpuList,
    /// Not `PATTERN=POLICY/MARK` with or without `/AGE`.
    #[error("is not a rule such as ticker:*=skip-to-newest/256KiB or lobby=drop-oldest/1MiB/30s")]
    NotARule,
    /// No name, or one that no room can have.
    #[error("has no pattern of room names in front of the =, such as lobby, ticker:* or *")]
    NotAPattern,
    /// None of the policies.
    #[error("names no policy behind the =: give disconnect, skip-to-newest or drop-oldest")]
    NotAPolicy,
    /// No size, or one that is out of range.
    #[error("has no high-water mark behind the policy: give a size of {MARKS}")]
    NotAMark,
    /// No duration, or one that is out of range.
    #[error("has no age behind the high-water mark: give a duration of {AGES}, or none")]
    NotAnAge,
    /// Not `[KID=]ALG:FILE` or `jwks:FILE`.
    #[error(
        "is not a key such as HS256:/etc/fanwire/secret, 2026-11=ES256:key.pem or jwks:keys.json"
    )]
    NotAKey,
    /// None that tokens may be signed with.
    #[error(
        "names no algorithm before the file: give HS256, HS384, HS512, RS256, ES256, EdDSA or jwks"
    )]
    NotAnAlgorithm,
    /// Not `SCHEME://HOST[:PORT]`, as browsers send it.
    #[error(
        "is not an origin as browsers send it, such as https://example.com or \
         https://*.example.com:8443 (no path, no default port)"
    )]
    NotAnOrigin,
    /// Nothing where a text belongs.
    #[error("is empty")]
    Empty,
    /// Not `RATE` with or without `/BURST`.
    #[error(
        "is not a rate such as 100 or 100/500: give numbers of {COUNTS} per second, and at once"
    )]
    NotARateOfCounts,
    /// The same, in bytes.
    #[error(
        "is not a rate such as 64KiB or 64KiB/4MiB: give sizes of {SIZES} per second, and at once"
    )]
    NotARateOfSizes,
    /// Host names are not looked up, as with listeners.
    #[error("is not a network such as 10.0.0.0/8 or 2001:db8::/32, or an address")]
    NotANetwork,
    /// Not `PATTERN=NUMBER`.
    #[error("is not a rule such as lobby=500 or vip:*=20: give a number of {MEMBERS}")]
    NotAMembersRule,
    /// Not one of a few words.
    #[error("is not one of the accepted words")]
    NotAWord,
    /// Understood, and too small or too large.
    #[error("is out of range")]
    OutOfRange,
}

/// A clap value parser from a reader of this module; gives it the setting's value name.
#[derive(Clone, Copy)]
pub(super) struct Parser<T>(pub(super) fn(&str, &str) -> Result<T, ValueError>);

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Parser<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        text: &OsStr,
    ) -> Result<T, clap::Error> {
        let accepted = arg.map(accepted).unwrap_or_default();
        let read = self.0;
        // Through clap's own parser for functions, so that its error carries flag, text and cause.
        (move |text: &str| read(text, &accepted)).parse_ref(command, arg, text)
    }
}

/// What a setting accepts, from its declaration.
pub(super) fn accepted(arg: &clap::Arg) -> String {
    arg.get_value_names()
        .and_then(|names| names.first())
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// A whole number; underscores may group digits, as in TOML.
pub(super) fn count(text: &str, accepted: &str) -> Result<usize, ValueError> {
    in_range(text, accepted, |text| {
        text.replace('_', "").parse().map_err(|_| ValueError::NotANumber)
    })
}

/// A whole number, or "auto".
pub(super) fn auto_count(text: &str, accepted: &str) -> Result<Auto<usize>, ValueError> {
    auto(text, accepted, count)
}

/// A whole number, or "off".
pub(super) fn count_or_off(text: &str, accepted: &str) -> Result<Switch<usize>, ValueError> {
    switch(text, accepted, count)
}

/// A size, or "auto".
pub(super) fn auto_size(text: &str, accepted: &str) -> Result<Auto<Size>, ValueError> {
    auto(text, accepted, size)
}

/// A time span.
pub(super) fn duration(text: &str, accepted: &str) -> Result<Duration, ValueError> {
    in_range(text, accepted, |text| match text.parse() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|_| ValueError::NotADuration),
    })
}

/// A time span, or "off".
pub(super) fn interval(text: &str, accepted: &str) -> Result<Switch<Duration>, ValueError> {
    switch(text, accepted, duration)
}

/// A number of bytes, or "off".
pub(super) fn size_or_off(text: &str, accepted: &str) -> Result<Switch<Size>, ValueError> {
    switch(text, accepted, size)
}

/// A number of bytes: binary units (KiB) or decimal ones (KB).
pub(super) fn size(text: &str, accepted: &str) -> Result<Size, ValueError> {
    in_range(text, accepted, |text| {
        let bytes = match text.replace('_', "").parse() {
            Ok(bytes) => bytes,
            Err(_) => text.parse::<ByteSize>().map_err(|_| ValueError::NotASize)?.as_u64(),
        };
        usize::try_from(bytes).map(Size).map_err(|_| ValueError::OutOfRange)
    })
}

/// An IPv4 or IPv6 address with a port.
pub(super) fn address(text: &str, _accepted: &str) -> Result<SocketAddr, ValueError> {
    text.parse().map_err(|_| ValueError::NotAnAddress)
}

/// An address with a port, or "off".
pub(super) fn address_or_off(text: &str, accepted: &str) -> Result<Switch<SocketAddr>, ValueError> {
    switch(text, accepted, address)
}

/// The path of a file, or "off". Whether it is there is seen when it is read.
pub(super) fn file_or_off(text: &str, accepted: &str) -> Result<Switch<PathBuf>, ValueError> {
    switch(text, accepted, |path, _| match path {
        "" => Err(ValueError::NotAPath),
        path => Ok(path.into()),
    })
}

/// A CPU list, or "auto". Whether the CPUs exist is for the host to say.
pub(super) fn cpus(text: &str, accepted: &str) -> Result<Auto<CpuList>, ValueError> {
    auto(text, accepted, |text, _| CpuList::read(text).ok_or(ValueError::NotACpuList))
}

/// One of the words that `T` is spelt with.
pub(super) fn word<T: ValueEnum>(text: &str, _accepted: &str) -> Result<T, ValueError> {
    T::from_str(text, false).map_err(|_| ValueError::NotAWord)
}

/// `true` or `false`, as TOML spells them.
pub(super) fn boolean(text: &str, _accepted: &str) -> Result<bool, ValueError> {
    text.parse().map_err(|_| ValueError::NotAWord)
}

/// Any text, or "off".
pub(super) fn text_or_off(text: &str, accepted: &str) -> Result<Switch<String>, ValueError> {
    switch(text, accepted, |text, _| match text {
        "" => Err(ValueError::Empty),
        text => Ok(text.to_owned()),
    })
}

fn auto<T>(
    text: &str,
    accepted: &str,
    read: impl Fn(&str, &str) -> Result<T, ValueError>,
) -> Result<Auto<T>, ValueError> {
    if text == "auto" {
        return Ok(Auto::Auto);
    }
    read(text, accepted.trim_end_matches("|auto")).map(Auto::Set)
}

fn switch<T>(
    text: &str,
    accepted: &str,
    read: impl Fn(&str, &str) -> Result<T, ValueError>,
) -> Result<Switch<T>, ValueError> {
    if text == "off" {
        return Ok(Switch::Off);
    }
    read(text, accepted.trim_end_matches("|off")).map(Switch::On)
}

fn in_range<T: PartialOrd>(
    text: &str,
    accepted: &str,
    read: impl Fn(&str) -> Result<T, ValueError>,
) -> Result<T, ValueError> {
    let value = read(text)?;
    let (low, high) = accepted.split_once("..").expect("a setting's value name is its range");
    let bound = |text| read(text).expect("a range is written in the setting's own unit");
    if (bound(low)..=bound(high)).contains(&value) {
        Ok(value)
    } else {
        Err(ValueError::OutOfRange)
    }
}

/// A setting that the server can work out by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto<T> {
    /// Worked out at start-up.
    Auto,
    /// As configured.
    Set(T),
}

impl<T> Auto<T> {
    /// The value, if it was configured.
    #[must_use]
    pub const fn as_set(&self) -> Option<&T> {
        match self {
            Auto::Auto => None,
            Auto::Set(value) => Some(value),
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Auto::Auto => serializer.serialize_str("auto"),
            Auto::Set(value) => value.serialize(serializer),
        }
    }
}

/// A setting that can be switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch<T> {
    /// Without it: nowhere, never, unlimited, or whatever it is that the setting is about.
    Off,
    /// As configured.
    On(T),
}

impl<T> Switch<T> {
    /// The value, unless it is off.
    #[must_use]
    pub const fn as_on(&self) -> Option<&T> {
        match self {
            Switch::Off => None,
            Switch::On(value) => Some(value),
        }
    }
}

impl<T: Serialize> Serialize for Switch<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Switch::Off => serializer.serialize_str("off"),
            Switch::On(value) => value.serialize(serializer),
        }
    }
}

/// A number of bytes; prints in the largest binary unit that divides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(usize);

impl Size {
    /// The number of bytes.
    pub const fn bytes(self) -> usize {
        self.0
    }
}

impl From<usize> for Size {
    fn from(bytes: usize) -> Size {
        Size(bytes)
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> u64 {
        size.0 as u64
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
            .into_iter()
            .find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit))
            .unwrap_or((1, "B"));
        write!(f, "{}{name}", self.0 / unit)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// CPU numbers in rising order, each once, at least one; prints as "0-3,8".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

impl CpuList {
    /// The largest number accepted: that of the kernel's largest build (`CONFIG_NR_CPUS`).
    const CPU_MAX: usize = 8191;

    /// The CPU numbers.
    pub fn as_slice(&self) -> &[usize] {
        &self.0
    }

    fn read(text: &str) -> Option<CpuList> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: usize = first.trim().parse().ok()?;
            let last: usize = last.trim().parse().ok()?;
            if first > last || last > Self::CPU_MAX {
                return None;
            }
            cpus.extend(first..=last);
        }
        Some(CpuList::from(cpus))
    }
}

impl From<Vec<usize>> for CpuList {
    /// Sorts `cpus` and takes doubles out.
    ///
    /// # Panics
    /// When there is none.
    fn from(mut cpus: Vec<usize>) -> CpuList {
        assert!(!cpus.is_empty(), "shards need a CPU to run on");
        cpus.sort_unstable();
        cpus.dedup();
        CpuList(cpus)
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a + 1 == *b);
        for (i, run) in runs.enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                run => write!(f, "{comma}{}", run[0])?,
            }
        }
        Ok(())
    }
}

impl Serialize for CpuList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// How important a log line is; the later, the more lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// The server cannot do its work.
    Error,
    /// Somebody should look.
    Warn,
    /// Start, stop, and what changes for everybody.
    Info,
    /// One line per connection.
    Debug,
    /// One line per message.
    Trace,
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        })
    }
}

pub(super) fn serialize_duration<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&duration_text(*duration))
}

pub(super) fn serialize_interval<S: Serializer>(
    interval: &Switch<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match interval {
        Switch::Off => serializer.serialize_str("off"),
        Switch::On(duration) => serialize_duration(duration, serializer),
    }
}

/// Without the space of "1m 30s": the value stays one word on a command line.
pub(super) fn duration_text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

#[cfg(test)]
mod tests;
