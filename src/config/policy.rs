//! What becomes of members that do not keep up: a policy per room, by rules in order.
//!
//! A rule is `PATTERN=POLICY/MARK` or `PATTERN=POLICY/MARK/AGE`, such as
//! `ticker:*=skip-to-newest/256KiB/5s`. The first rule whose pattern matches a room's name counts;
//! a room that no rule matches has the default: `disconnect` at `high_water_mark`, without an age.
//!
//! What a pattern matches, [`crate::pattern`] says.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use super::value::{self, AGES, MARKS, Size, ValueError};
use crate::pattern::Pattern;

/// What becomes of a slow consumer: a member that is further behind than its room allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SlowConsumer {
    /// It is disconnected with close code 1013: where every message counts.
    Disconnect,
    /// It goes on with the newest message: where a message makes those before it worthless.
    SkipToNewest,
    /// It loses the oldest messages, no more than it must: where recent history is of use.
    DropOldest,
}

/// How far the members of a room may fall behind, and what becomes of those that do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// What becomes of them.
    pub slow_consumer: SlowConsumer,
    /// Bytes on the wire, from the first message that is waiting to the newest.
    pub high_water_mark: u64,
    /// How long ago what is waiting may have been published; `None`: at any time.
    pub age_max: Option<Duration>,
}

/// The policy of every room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies {
    /// The first that matches counts.
    pub rules: Vec<RoomRule>,
    /// For rooms that no rule matches.
    pub default: Policy,
}

impl Policies {
    /// The policy of the room with that name. Cost: linear in the rules.
    #[must_use]
    pub fn of(&self, room: &str) -> Policy {
        let rule = self.rules.iter().find(|rule| rule.matches(room));
        rule.map_or(self.default, |rule| rule.policy)
    }
}

/// One entry of `room_policy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomPolicy {
    /// No rule.
    Off,
    /// A policy for some rooms.
    Rule(RoomRule),
}

impl RoomPolicy {
    /// The rule, if it is one.
    #[must_use]
    pub const fn rule(&self) -> Option<&RoomRule> {
        match self {
            RoomPolicy::Off => None,
            RoomPolicy::Rule(rule) => Some(rule),
        }
    }
}

impl Serialize for RoomPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            RoomPolicy::Off => serializer.serialize_str("off"),
            RoomPolicy::Rule(rule) => serializer.collect_str(rule),
        }
    }
}

/// A policy for the rooms whose names match a pattern; prints as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomRule {
    pattern: Pattern,
    /// What counts in these rooms.
    pub policy: Policy,
}

impl RoomRule {
    /// A rule for the rooms that match `pattern`.
    #[must_use]
    pub const fn new(pattern: Pattern, policy: Policy) -> RoomRule {
        RoomRule { pattern, policy }
    }

    /// Whether it counts in the room with that name, unless an earlier one does.
    #[must_use]
    pub fn matches(&self, room: &str) -> bool {
        self.pattern.matches(room)
    }

    /// Whether it disconnects members that are not yet `bytes` behind.
    pub(super) fn disconnects_below(&self, bytes: u64) -> bool {
        self.policy.slow_consumer == SlowConsumer::Disconnect && self.policy.high_water_mark < bytes
    }

    /// Whether every room that `other` matches is matched by this rule, too.
    pub(super) fn covers(&self, other: &RoomRule) -> bool {
        self.pattern.covers(&other.pattern)
    }
}

impl fmt::Display for RoomRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Policy { slow_consumer, high_water_mark, age_max } = self.policy;
        let word = slow_consumer.to_possible_value().expect("none of them is hidden");
        let mark = Size::from(high_water_mark as usize);
        write!(f, "{}={}/{mark}", self.pattern, word.get_name())?;
        match age_max {
            Some(age_max) => write!(f, "/{}", value::duration_text(age_max)),
            None => Ok(()),
        }
    }
}

/// A rule for some rooms, or "off".
pub(super) fn read(text: &str, _accepted: &str) -> Result<RoomPolicy, ValueError> {
    if text == "off" {
        return Ok(RoomPolicy::Off);
    }
    // From behind: a room's name may have these characters, what follows it has not.
    let (pattern, rule) = text.rsplit_once('=').ok_or(ValueError::NotARule)?;
    let pattern = Pattern::new(pattern.trim()).ok_or(ValueError::NotAPattern)?;
    let mut parts = rule.split('/').map(str::trim);
    let word = parts.next().unwrap_or_default();
    let slow_consumer = SlowConsumer::from_str(word, false).map_err(|_| ValueError::NotAPolicy)?;
    let mark = parts.next().ok_or(ValueError::NotARule)?;
    let mark = value::size(mark, MARKS).map_err(|_| ValueError::NotAMark)?;
    let age_max = match parts.next() {
        Some(age) => Some(value::duration(age, AGES).map_err(|_| ValueError::NotAnAge)?),
        None => None,
    };
    if parts.next().is_some() {
        return Err(ValueError::NotARule);
    }
    let policy = Policy { slow_consumer, high_water_mark: mark.bytes() as u64, age_max };
    Ok(RoomPolicy::Rule(RoomRule::new(pattern, policy)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> RoomRule {
        match read(text, "") {
            Ok(RoomPolicy::Rule(rule)) => rule,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn rules_read_and_print() {
        for (text, slow_consumer, mark, age_ms, printed) in [
            ("a=disconnect/4MiB", SlowConsumer::Disconnect, 4 << 20, None, "a=disconnect/4MiB"),
            (
                "ticker:*=skip-to-newest/256 KiB/5s",
                SlowConsumer::SkipToNewest,
                256 << 10,
                Some(5000),
                "ticker:*=skip-to-newest/256KiB/5s",
            ),
            (
                " a b = drop-oldest / 65536 / 1m 30s ",
                SlowConsumer::DropOldest,
                65536,
                Some(90_000),
                "a b=drop-oldest/64KiB/1m30s",
            ),
        ] {
            let read = rule(text);
            let age_max = age_ms.map(Duration::from_millis);
            assert_eq!(read.policy, Policy { slow_consumer, high_water_mark: mark, age_max });
            assert_eq!(read.to_string(), printed);
            assert_eq!(rule(printed), read);
        }
        assert_eq!(read("off", ""), Ok(RoomPolicy::Off));
    }

    #[test]
    fn wrong_rules() {
        for (text, expected) in [
            ("", ValueError::NotARule),
            ("ticker:*", ValueError::NotARule),
            ("a=drop-oldest", ValueError::NotARule),
            ("a=drop-oldest/1MiB/1s/1s", ValueError::NotARule),
            ("=drop-oldest/1MiB", ValueError::NotAPattern),
            (" =drop-oldest/1MiB", ValueError::NotAPattern),
            ("a\nb=drop-oldest/1MiB", ValueError::NotAPattern),
            ("a=drop/1MiB", ValueError::NotAPolicy),
            ("a=/1MiB", ValueError::NotAPolicy),
            ("a=Disconnect/1MiB", ValueError::NotAPolicy),
            ("a=drop-oldest/5s", ValueError::NotAMark),
            ("a=drop-oldest/65535", ValueError::NotAMark),
            ("a=drop-oldest/1025MiB", ValueError::NotAMark),
            ("a=drop-oldest/1MiB/", ValueError::NotAnAge),
            ("a=drop-oldest/1MiB/99ms", ValueError::NotAnAge),
            ("a=drop-oldest/1MiB/61m", ValueError::NotAnAge),
        ] {
            assert_eq!(read(text, ""), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules = ["a:b=disconnect/1MiB", "a:*=drop-oldest/2MiB", "*:b=skip-to-newest/3MiB"];
        let default =
            Policy { slow_consumer: SlowConsumer::Disconnect, high_water_mark: 7, age_max: None };
        let policies = Policies { rules: rules.map(rule).to_vec(), default };
        for (room, mark) in [("a:b", 1 << 20), ("a:c", 2 << 20), ("c:b", 3 << 20), ("c", 7)] {
            assert_eq!(policies.of(room).high_water_mark, mark, "{room}");
        }
    }
}
