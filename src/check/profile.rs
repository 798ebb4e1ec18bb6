//! The profiles of `tuning/`: the same files that `scripts/tune.sh` reads, built in.
//!
//! A profile is a sysctl.d file. A line `key = value` is a setting, with a dash before the key if
//! not every kernel has it; the comment lines `want:` and `ceiling:` above it say how it is meant.

use crate::config::Profile;

use super::Verdict;

/// One setting of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// As sysctl(8) calls it.
    pub(super) name: &'static str,
    /// The numbers wanted; a few keys have three.
    pub(super) numbers: Vec<u64>,
    /// Which numbers are as good.
    pub(super) want: Want,
    /// Whether the last number, in pages, may come to a quarter of the host's memory at most.
    pub(super) ceiling: bool,
}

/// Which values are as good as the wanted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// It and all above it.
    AtLeast,
    /// It and all below it.
    AtMost,
    /// It alone.
    Exactly,
}

/// The settings of a profile, in the order of its file.
pub(super) fn keys(profile: Profile) -> Vec<Key> {
    parse(text(profile)).expect("a test reads each profile")
}

fn text(profile: Profile) -> &'static str {
    match profile {
        Profile::IdleMillion => include_str!("../../tuning/idle-million.conf"),
        Profile::LowLatency => include_str!("../../tuning/low-latency.conf"),
    }
}

/// Reads a profile; `None` if a line is neither empty, nor a comment, nor a whole setting.
fn parse(text: &'static str) -> Option<Vec<Key>> {
    let (mut keys, mut want, mut ceiling) = (Vec::new(), None, false);
    for line in text.lines() {
        if let Some(word) = line.strip_prefix("# want: ") {
            want = Some(Want::parse(word)?);
        } else if let Some(share) = line.strip_prefix("# ceiling: ") {
            ceiling = share == "a quarter of memory";
        } else if !line.is_empty() && !line.starts_with('#') {
            let (name, value) = line.split_once(" = ")?;
            let numbers = value.split(' ').map(|number| number.parse().ok());
            keys.push(Key {
                name: name.strip_prefix('-').unwrap_or(name),
                numbers: numbers.collect::<Option<_>>()?,
                want: want.take()?,
                ceiling: std::mem::take(&mut ceiling),
            });
        }
    }
    Some(keys)
}

impl Want {
    fn parse(word: &str) -> Option<Want> {
        match word {
            "at-least" => Some(Want::AtLeast),
            "at-most" => Some(Want::AtMost),
            "exactly" => Some(Want::Exactly),
            _ => None,
        }
    }

    fn judge(self, found: u64, wanted: u64) -> Verdict {
        match self {
            Want::AtLeast if found < wanted => Verdict::Low,
            Want::AtMost if found > wanted => Verdict::High,
            Want::Exactly if found != wanted => Verdict::Differs,
            _ => Verdict::Ok,
        }
    }
}

impl Key {
    /// The numbers wanted on a host with so much memory: all shrink in proportion when the last one
    /// is beyond the ceiling.
    pub(super) fn numbers_here(&self, memory: Option<u64>, page_bytes: u64) -> Vec<u64> {
        let last = self.numbers.last().copied().unwrap_or(0);
        let pages = memory.map_or(u64::MAX, |bytes| bytes / page_bytes / 4);
        if !self.ceiling || last <= pages {
            return self.numbers.clone();
        }
        self.numbers.iter().map(|number| number * pages / last).collect()
    }

    /// Judges each number by itself and returns the first verdict that is not [`Verdict::Ok`].
    pub(super) fn judge(&self, found: &[u64], wanted: &[u64]) -> Verdict {
        if found.len() != wanted.len() {
            return Verdict::Differs;
        }
        let verdicts =
            found.iter().zip(wanted).map(|(found, wanted)| self.want.judge(*found, *wanted));
        verdicts.into_iter().find(|verdict| *verdict != Verdict::Ok).unwrap_or(Verdict::Ok)
    }

    /// What to write: `wanted`, or the number that was found where that is better.
    pub(super) fn better(&self, found: &[u64], wanted: &[u64]) -> Vec<u64> {
        let better = |(i, wanted): (usize, &u64)| match found.get(i) {
            Some(found) if self.want.judge(*found, *wanted) == Verdict::Ok => *found,
            _ => *wanted,
        };
        wanted.iter().enumerate().map(better).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_says_what_it_does_why_this_value_and_what_it_costs() {
        for profile in [Profile::IdleMillion, Profile::LowLatency] {
            // Blocks are apart by empty lines; the first one is about the file.
            let blocks: Vec<_> = text(profile).split("\n\n").collect();
            let settings = blocks.iter().filter(|block| !block.lines().all(|l| l.starts_with('#')));
            let mut seen = 0;
            for block in settings {
                let lines: Vec<_> = block.lines().collect();
                let (setting, comment) = lines.split_last().unwrap();
                let one = |start: &str| comment.iter().filter(|l| l.starts_with(start)).count();
                assert!(comment.iter().all(|line| line.starts_with("# ")), "{block}");
                assert!(!comment[0].starts_with("# Why"), "what it does comes first: {block}");
                let parts = ["# Why: ", "# Costs: ", "# want: "].map(one);
                assert_eq!(parts, [1, 1, 1], "{block}");
                assert!(setting.contains(" = "), "{block}");
                seen += 1;
            }
            let keys = keys(profile);
            assert_eq!((keys.len(), keys.len() > 5), (seen, true), "a key has a block of its own");
            assert!(text(profile).lines().all(|line| line.len() <= 100));
        }
    }

    #[test]
    fn a_profile_is_read_as_it_is_meant() {
        let text = "# About.\n# want: at-least\n# ceiling: a quarter of memory\na.b = 1 2 3\n\n\
                    # want: exactly\n-c.d-e = 0\n";
        let key = |name, numbers: &[u64], want, ceiling| Key {
            name,
            numbers: numbers.to_vec(),
            want,
            ceiling,
        };
        let expected = vec![
            key("a.b", &[1, 2, 3], Want::AtLeast, true),
            key("c.d-e", &[0], Want::Exactly, false),
        ];
        assert_eq!(parse(text), Some(expected));
        for wrong in
            ["a = 1", "# want: more\na = 1", "# want: exactly\na=1", "# want: exactly\na = x"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn numbers_are_judged_one_by_one_and_what_is_better_stays() {
        use Want::{AtLeast, AtMost, Exactly};
        #[track_caller]
        fn check(want: Want, found: &[u64], wanted: &[u64], verdict: Verdict, better: &[u64]) {
            let key = Key { name: "a.b", numbers: wanted.to_vec(), want, ceiling: false };
            assert_eq!(key.judge(found, wanted), verdict);
            assert_eq!(key.better(found, wanted), better);
        }
        check(AtLeast, &[5, 5, 5], &[4, 5, 6], Verdict::Low, &[5, 5, 6]);
        check(AtLeast, &[u64::MAX], &[4], Verdict::Ok, &[u64::MAX]);
        check(AtMost, &[4, 9], &[4, 5], Verdict::High, &[4, 5]);
        check(AtMost, &[1, 2], &[4, 5], Verdict::Ok, &[1, 2]);
        check(Exactly, &[1], &[0], Verdict::Differs, &[0]);
        check(AtLeast, &[7], &[4, 5], Verdict::Differs, &[7, 5]);
    }

    #[test]
    fn what_has_a_ceiling_shrinks_on_a_small_host() {
        let key = Key { name: "a", numbers: vec![60, 80, 100], want: Want::AtLeast, ceiling: true };
        let here = |pages: u64| key.numbers_here(Some(pages * 4096), 4096);
        assert_eq!(here(400), [60, 80, 100]);
        assert_eq!(here(40), [6, 8, 10]);
        assert_eq!(key.numbers_here(None, 4096), [60, 80, 100]);
        let plain = Key { ceiling: false, ..key };
        assert_eq!(plain.numbers_here(Some(40 * 4096), 4096), [60, 80, 100]);
    }
}
