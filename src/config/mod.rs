//! Configuration: every knob of the server, declared once.
//!
//! A field of [`Settings`] is the whole declaration of a setting: its doc comment is the help text
//! and the comment `fanwire config` prints, its name is the TOML key, the flag (in kebab-case) and
//! the environment variable (`FANWIRE_` and the name in capitals), its value name is the range that
//! is accepted. Adding a setting is adding a field.
//!
//! | Module | Job |
//! | --- | --- |
//! | [`settings`] | every setting with its help, its default and its range |
//! | [`policy`] | what becomes of members that do not keep up: rules for rooms |
//! | [`keys`] | where the keys of tokens are, and reading them |
//! | [`origin`] | which web pages may connect |
//! | [`rate`] | so many per second |
//! | [`network`] | whom to believe about where a connection comes from |
//! | [`room`] | what rooms may be called, and how many members they have |
//! | [`value`] | reads one value from text and checks its range, whatever source it came from |
//! | [`layers`] | flag over environment over file over default; errors name the key and the source |
//! | [`conflict`] | how settings relate to each other, checked once |
//! | [`limits`] | what the data plane gets instead of settings: plain checked numbers |
//! | [`render`] | the effective configuration as a commented TOML file |
//! | [`change`] | what a second reading changes, and which of it at once |
//!
//! Never: reads a clock, opens anything but files that hold settings and keys, knows the host; that
//! is `control`'s and `io::host`'s job.

mod change;
mod conflict;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod keys;
mod layers;
mod limits;
mod network;
mod origin;
mod policy;
mod rate;
mod render;
mod room;
mod settings;
mod value;

pub use change::Change;
pub use conflict::Conflict;
#[cfg(any(test, fuzzing))]
pub use fuzz::fuzz_config;
pub use keys::{AuthKey, BrokenKey, KeyCause};
pub use layers::{
    Action, CheckOptions, ConfigError, Loaded, Origin, Profile, ReportFormat, UnknownVariable, load,
};
pub use limits::{Heartbeats, Limits};
pub use network::{ProxyProtocol, TrustedProxies, TrustedProxy};
pub use origin::{OriginRule, Origins};
pub use policy::{Policies, Policy, RoomPolicy, RoomRule, SlowConsumer};
pub use rate::{Count, Rate, RateLimit};
pub use room::{MembersMax, MembersRule, RoomAlphabet, RoomMembers};
pub use settings::{SHARDS_MAX, Settings};
pub use value::{Auto, CpuList, LogFormat, LogLevel, Size, Switch, ValueError};

#[cfg(test)]
mod tests;
