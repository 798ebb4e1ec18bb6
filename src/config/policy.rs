//! What becomes of members that do not keep up: a policy per room, by rules in order.
//!
//! A rule is `PATTERN=POLICY/MARK` or `PATTERN=POLICY/MARK/AGE`, such as
//! `ticker:*=skip-to-newest/256KiB/5s`. The first rule whose pattern matches a room's name counts;
//! a room that no rule matches has the default: `disconnect` at `high_water_mark`, without an age.
//!
//! In a pattern `*` stands for any characters, or none; everything else stands for itself. A
//! pattern knows only names: it matches the room of `/ws` and that of `/raw` alike.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use super::value::{self, AGES, MARKS, Size, ValueError};

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
    pattern: Box<str>,
    /// What counts in these rooms.
    pub policy: Policy,
}

impl RoomRule {
    /// A rule for the rooms that match `pattern`.
    #[must_use]
    pub fn new(pattern: &str, policy: Policy) -> RoomRule {
        RoomRule { pattern: pattern.into(), policy }
    }

    /// Whether it counts in the room with that name, unless an earlier one does.
    #[must_use]
    pub fn matches(&self, room: &str) -> bool {
        let mut parts = self.pattern.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = room.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        // The first place for each part leaves the most for those behind it.
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }

    /// Whether it disconnects members that are not yet `bytes` behind.
    pub(super) fn disconnects_below(&self, bytes: u64) -> bool {
        self.policy.slow_consumer == SlowConsumer::Disconnect && self.policy.high_water_mark < bytes
    }

    /// Whether every room that `other` matches is matched by this rule, too.
    pub(super) fn covers(&self, other: &RoomRule) -> bool {
        // Only a `*` matches the other's `*`, and then also whatever that stands for.
        self.matches(&other.pattern)
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
    let pattern = pattern.trim();
    if pattern.is_empty() || pattern.chars().any(char::is_control) {
        return Err(ValueError::NotAPattern);
    }
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
    fn patterns() {
        for (pattern, matching, others) in [
            ("lobby", &["lobby"][..], &["lobby2", "a lobby", "Lobby", ""][..]),
            ("*", &["", "lobby", "a/b:c", "é"], &[]),
            ("ticker:*", &["ticker:", "ticker:a:b"], &["ticker", "a ticker:b"]),
            ("*:eu", &[":eu", "a:eu", ":eu:eu"], &["a:eu ", "eu"]),
            ("a*b", &["ab", "aab", "a/b"], &["a", "b", "ba", "abc"]),
            ("aba*aba", &["abaaba", "aba aba"], &["aba", "ababa"]),
            ("a*b*c", &["abc", "a b c", "abcbc"], &["acb", "ab", "bc"]),
            ("*a*a*", &["aa", "xaxax"], &["a", "xax"]),
            ("**", &["", "x"], &[]),
            ("a=b/c", &["a=b/c"], &["a"]),
        ] {
            let rule = rule(&format!("{pattern}=disconnect/4MiB"));
            for room in matching {
                assert!(rule.matches(room), "{pattern} and {room:?}");
            }
            for room in others {
                assert!(!rule.matches(room), "{pattern} and {room:?}");
            }
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

    #[test]
    fn a_rule_covers_what_it_leaves_nothing_of() {
        for (first, second, covers) in [
            ("*", "a*", true),
            ("a*", "a", true),
            ("a*", "ab*c", true),
            ("a", "a", true),
            ("a*c", "a*b*c", true),
            ("a", "a*", false),
            ("ab*", "a*", false),
            ("*a", "a*", false),
        ] {
            let [first, second] =
                [first, second].map(|pattern| rule(&format!("{pattern}=disconnect/1MiB")));
            assert_eq!(first.covers(&second), covers, "{first} and {second}");
        }
    }
}
