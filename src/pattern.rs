//! Patterns of room names: `*` stands for any characters, or none; all else for itself.
//!
//! A pattern knows only names: it matches the room of `/ws` and that of `/raw` alike. Whoever
//! configures rooms by name uses these, so that a pattern means the same everywhere.

use std::fmt;

/// A pattern of names, never empty and without control characters; prints as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Box<str>);

impl Pattern {
    /// The pattern that `text` is; `None` for one that no name can match: empty, or with control
    /// characters.
    #[must_use]
    pub fn new(text: &str) -> Option<Pattern> {
        let can_match = !text.is_empty() && !text.chars().any(char::is_control);
        can_match.then(|| Pattern(text.into()))
    }

    /// Whether it matches `name`. Cost: linear in the name for each `*`; allocates nothing.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        // The first place for each part leaves the most for those behind it.
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }

    /// Whether every name that `other` matches is matched by this pattern, too.
    #[must_use]
    pub fn covers(&self, other: &Pattern) -> bool {
        // Only a `*` matches the other's `*`, and then also whatever that stands for.
        self.matches(&other.0)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (text, matching, others) in [
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
            let pattern = Pattern::new(text).expect("a pattern");
            assert_eq!(pattern.to_string(), text);
            for name in matching {
                assert!(pattern.matches(name), "{text} and {name:?}");
            }
            for name in others {
                assert!(!pattern.matches(name), "{text} and {name:?}");
            }
        }
        for none in ["", "a\nb", "\u{7f}*"] {
            assert_eq!(Pattern::new(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_pattern_covers_what_it_leaves_nothing_of() {
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
            let [one, other] = [first, second].map(|text| Pattern::new(text).expect("a pattern"));
            assert_eq!(one.covers(&other), covers, "{first} and {second}");
        }
    }
}
