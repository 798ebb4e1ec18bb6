//! What rooms may be: the characters of their names, and how many members they have.

use std::fmt;

use clap::ValueEnum;
use serde::{Serialize, Serializer};

use super::value::{self, MEMBERS, ValueError};
use crate::pattern::Pattern;

/// The characters that names of rooms may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum RoomAlphabet {
    /// All but control characters.
    Any,
    /// Visible ASCII: `!` to `~`, no space.
    Ascii,
    /// ASCII letters and digits, and `-`, `.`, `_`, `~`, `:`.
    Token,
}

impl RoomAlphabet {
    /// Whether `name` has no other characters. Control characters are not asked for here.
    #[must_use]
    pub fn allows(self, name: &str) -> bool {
        let mut bytes = name.bytes();
        match self {
            RoomAlphabet::Any => true,
            RoomAlphabet::Ascii => bytes.all(|byte| byte.is_ascii_graphic()),
            RoomAlphabet::Token => {
                bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte))
            }
        }
    }
}

/// One entry of `members_per_room_max`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoomMembers {
    /// No rule.
    Off,
    /// A limit for some rooms.
    Rule(MembersRule),
}

/// How many members the rooms that match a pattern may have; prints as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembersRule {
    /// Which rooms.
    pub pattern: Pattern,
    /// How many members, over all shards.
    pub members_max: usize,
}

impl fmt::Display for MembersRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.members_max)
    }
}

impl Serialize for RoomMembers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            RoomMembers::Off => serializer.serialize_str("off"),
            RoomMembers::Rule(rule) => serializer.collect_str(rule),
        }
    }
}

/// How many members rooms may have: the first rule that matches counts, a room that none matches
/// has no limit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MembersMax(pub Vec<MembersRule>);

impl MembersMax {
    /// The limit of the room with that name. Cost: linear in the rules.
    #[must_use]
    pub fn of(&self, room: &str) -> Option<usize> {
        self.0.iter().find(|rule| rule.pattern.matches(room)).map(|rule| rule.members_max)
    }
}

/// A limit for some rooms, or "off".
pub(super) fn members(text: &str, _accepted: &str) -> Result<RoomMembers, ValueError> {
    if text == "off" {
        return Ok(RoomMembers::Off);
    }
    // From behind: a room's name may have a =, a number has not.
    let (pattern, number) = text.rsplit_once('=').ok_or(ValueError::NotAMembersRule)?;
    let pattern = Pattern::new(pattern.trim()).ok_or(ValueError::NotAPattern)?;
    let members_max =
        value::count(number.trim(), MEMBERS).map_err(|_| ValueError::NotAMembersRule)?;
    Ok(RoomMembers::Rule(MembersRule { pattern, members_max }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabets() {
        for (name, ascii, token) in [
            ("lobby-1.eu_west~x:y", true, true),
            ("a/b", true, false),
            ("a b", false, false),
            ("é", false, false),
            ("!~", true, false),
        ] {
            assert!(RoomAlphabet::Any.allows(name));
            assert_eq!(RoomAlphabet::Ascii.allows(name), ascii, "{name}");
            assert_eq!(RoomAlphabet::Token.allows(name), token, "{name}");
        }
    }

    #[test]
    fn rules_read_print_and_count_in_order() {
        let texts = ["vip:*=2", " a=b = 1_000 ", "*=1000000000"];
        let mut rules = MembersMax::default();
        for (text, printed) in texts.iter().zip(["vip:*=2", "a=b=1000", "*=1000000000"]) {
            let read = members(text, "").unwrap();
            assert_eq!(toml::Value::try_from(&read).unwrap().as_str(), Some(printed));
            let RoomMembers::Rule(rule) = read else { panic!("{text}") };
            rules.0.push(rule);
        }
        for (room, expected) in [("vip:1", 2), ("a=b", 1000), ("else", 1_000_000_000)] {
            assert_eq!(rules.of(room), Some(expected));
        }
        assert_eq!(MembersMax::default().of("lobby"), None);
        assert_eq!(members("off", ""), Ok(RoomMembers::Off));
    }

    #[test]
    fn wrong_rules() {
        for (text, expected) in [
            ("", ValueError::NotAMembersRule),
            ("lobby", ValueError::NotAMembersRule),
            ("lobby=", ValueError::NotAMembersRule),
            ("lobby=0", ValueError::NotAMembersRule),
            ("lobby=1000000001", ValueError::NotAMembersRule),
            ("=5", ValueError::NotAPattern),
            ("a\nb=5", ValueError::NotAPattern),
        ] {
            assert_eq!(members(text, ""), Err(expected), "{text:?}");
        }
    }
}
