//! Patterns of room names, held against a matcher that tries everything.

use crate::pattern::Pattern;

/// Three lines: a pattern, another one, and a name.
///
/// # Panics
/// When the pattern matches what it should not, or covers what it does not, or the other way round.
pub fn pattern(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let [one, other, name] = [(); 3].map(|()| lines.next().unwrap_or_default());
    let Some(pattern) = Pattern::new(one) else {
        assert!(one.is_empty() || one.contains(char::is_control));
        return;
    };
    assert_eq!(pattern.to_string(), one);
    assert_eq!(pattern.matches(name), matches(one, name), "{one:?} and {name:?}");
    let Some(other) = Pattern::new(other) else { return };
    if pattern.covers(&other) {
        assert!(!other.matches(name) || pattern.matches(name), "{one:?} covers {other}: {name:?}");
    } else {
        // A name that the other matches: with what the pattern has nowhere in place of each `*`.
        let unlike = ('\u{e000}'..).find(|stranger| !one.contains(*stranger));
        let witness = other.to_string().replace('*', &unlike.map(String::from).unwrap_or_default());
        assert!(other.matches(&witness) && !pattern.matches(&witness), "{one:?} covers {other}");
    }
}

/// Whether the pattern `text` matches `name`, by the table of all their beginnings.
fn matches(text: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    // Whether what has been seen of the pattern matches the first so many characters of the name.
    let mut row = vec![false; name.len() + 1];
    row[0] = true;
    for part in text.chars() {
        let before = row.clone();
        for len in 0..=name.len() {
            row[len] = match part {
                '*' => before[len] || (len > 0 && row[len - 1]),
                letter => len > 0 && before[len - 1] && name[len - 1] == letter,
            };
        }
    }
    row[name.len()]
}
