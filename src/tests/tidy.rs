//! Rules of the source that neither the compiler nor a lint knows.
//!
//! Each test reads the files of the repository and names the line that breaks the rule.

use std::fs;
use std::path::{Path, PathBuf};

/// Who may name whom (`crate::...`), one row per part of the library. Dependencies point one way:
/// `main -> control -> shard -> {room, dialect, protocol, io}`; `protocol` and `io` never meet.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("protocol", &[]),
    ("planted", &[]),
    ("slab", &["planted"]),
    ("id", &["slab"]),
    ("pattern", &[]),
    ("auth", &["pattern"]),
    ("config", &["auth", "pattern"]),
    ("logging", &["config", "io"]),
    ("io", &["id"]),
    ("room", &["protocol", "config", "id", "slab", "planted"]),
    ("dialect", &["protocol", "config"]),
    (
        "shard",
        &[
            "auth", "room", "dialect", "protocol", "io", "config", "logging", "id", "slab",
            "planted",
        ],
    ),
    ("check", &["io", "config"]),
    ("control", &["shard", "dialect", "protocol", "auth", "io", "config", "logging", "id", "slab"]),
];

/// Columns of a line, also where `rustfmt` leaves it alone; a table may be wider.
const COLUMNS_MAX: usize = 100;

/// A line of a source file.
struct Line {
    file: String,
    number: usize,
    text: String,
}

impl Line {
    fn place(&self) -> String {
        format!("{}:{}: {}", self.file, self.number, self.text.trim())
    }

    /// What the compiler sees of it, roughly: strings that contain `//` are cut, too.
    fn code(&self) -> &str {
        self.text.split("//").next().unwrap_or_default()
    }

    /// Whether it begins a block, function or implementation that is unsafe.
    fn is_unsafe(&self) -> bool {
        let words: Vec<&str> =
            self.code().split(|c: char| !c.is_alphanumeric() && c != '{').collect();
        words.windows(2).any(|two| {
            two[0] == "unsafe" && ["{", "fn", "impl", "trait", "extern"].contains(&two[1])
        })
    }

    /// `protocol` for `src/protocol/frame.rs`, `bench` for all of the load generator.
    fn part(&self) -> &str {
        let path = self.file.strip_prefix("src/").unwrap_or(&self.file);
        path.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_bench(&self) -> bool {
        self.part() == "bench"
    }

    fn is_test(&self) -> bool {
        self.file.contains("tests")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<PathBuf> {
    let mut sources = Vec::new();
    let mut folders = vec![root().join("src"), root().join("bench/src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(path);
            }
        }
    }
    assert!(sources.len() > 20, "these are not the sources");
    sources.sort();
    sources
}

fn lines_of(path: &Path) -> Vec<Line> {
    let file = path.strip_prefix(root()).expect("below the root").display().to_string();
    let text = fs::read_to_string(path).expect("readable");
    let line = |(number, text): (usize, &str)| Line {
        file: file.clone(),
        number: number + 1,
        text: text.to_owned(),
    };
    text.lines().enumerate().map(line).collect()
}

fn lines() -> Vec<Line> {
    sources().iter().flat_map(|path| lines_of(path)).collect()
}

/// Fails with every line for which `breaks` is true.
fn check(rule: &str, breaks: impl Fn(&Line) -> bool) {
    let broken: Vec<String> = lines().iter().filter(|line| breaks(line)).map(Line::place).collect();
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

/// The parts of the crate that a line of code names: `a` in `crate::a::b`, `a` and `c` in
/// `crate::{a, c::d}`.
fn named_parts(code: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        let names = match rest.strip_prefix('{') {
            Some(list) => list.split(['}', ';']).next().unwrap_or_default().split(',').collect(),
            None => vec![rest],
        };
        let first = |name: &'_ str| name.trim().find(|c: char| !c.is_alphanumeric() && c != '_');
        for name in names.into_iter().map(str::trim) {
            parts.push(&name[..first(name).unwrap_or(name.len())]);
        }
    }
    parts
}

#[test]
fn tidy_dependencies_point_one_way() {
    for (code, expected) in [
        ("use crate::id::ShardId;", &["id"][..]),
        ("use crate::{io, room::log};", &["io", "room"]),
        ("let x = crate::slab::Key::from_bits(crate::io::BITS);", &["slab", "io"]),
    ] {
        assert_eq!(named_parts(code), expected);
    }
    let known = |part: &str| MAY_NAME.iter().find(|(name, _)| *name == part);
    check("a part names another that it must not know", |line| {
        if matches!(line.part(), "main" | "lib" | "tests" | "fuzz" | "bench") {
            return false;
        }
        let Some((own, allowed)) = known(line.part()) else {
            panic!("{} has no row in MAY_NAME", line.part());
        };
        let named = named_parts(line.code());
        named.iter().any(|part| part != own && known(part).is_some() && !allowed.contains(part))
    });
}

#[test]
fn tidy_unsafe_is_in_io_alone() {
    check("unsafe outside of io", |line| {
        line.part() != "io" && line.file != "bench/src/ring.rs" && line.is_unsafe()
    });
    assert!(lines().iter().any(|line| line.part() == "io" && line.is_unsafe()), "it finds some");
}

#[test]
fn tidy_nothing_is_left_over() {
    // Written apart, so that this file does not break its own rule.
    let marks = ["TO".to_owned() + "DO", "FIX".to_owned() + "ME", "XX".to_owned() + "X"];
    check("unfinished", |line| marks.iter().any(|mark| line.text.contains(mark.as_str())));
    let macros = ["dbg!", "println!", "print!", "todo!", "unimplemented!"];
    check("left over from a search, or not logged but printed", |line| {
        !line.is_test()
            && !line.is_bench()
            && line.part() != "main"
            && line
                .code()
                .replace("eprintln!", "println!")
                .split_whitespace()
                .any(|word| macros.iter().any(|name| word.starts_with(name)))
    });
}

#[test]
fn tidy_every_file_says_what_it_is() {
    for path in sources() {
        let lines = lines_of(&path);
        let first = lines.first().map_or("", |line| line.text.as_str());
        // The tests of one file belong to that file.
        let own = path.parent().and_then(Path::file_name) == Some("src".as_ref());
        let beside = path.file_name() == Some("tests.rs".as_ref()) && !own;
        let says = first.strip_prefix("//! ").is_some_and(|words| words.len() > 10);
        assert!(says || beside, "{}: no module documentation", path.display());
    }
}

#[test]
fn tidy_lines_are_not_too_long() {
    // Rows of tables, one case a line, and what cannot be broken: addresses and long texts.
    check("too long", |line| {
        let trimmed = line.text.trim_start();
        let is_table = trimmed.starts_with('(') || trimmed.contains("=> (") || {
            trimmed.starts_with("//! |") || trimmed.starts_with("/// |")
        };
        let is_text = line.text.contains('"');
        line.text.chars().count() > COLUMNS_MAX && !is_table && !is_text
    });
}

#[test]
fn tidy_the_load_generator_shares_nothing_with_the_server() {
    check("what measures the server must not have its bugs", |line| {
        line.is_bench() && line.code().contains("fanwire::")
    });
    for line in lines_of(&root().join("bench/Cargo.toml")) {
        assert!(!line.text.starts_with("fanwire ="), "{}", line.place());
    }
}

#[test]
fn tidy_every_dependency_says_why() {
    for manifest in ["Cargo.toml", "bench/Cargo.toml"] {
        check_reasons(&lines_of(&root().join(manifest)));
    }
}

fn check_reasons(manifest: &[Line]) {
    let mut explained = false;
    let mut section = String::new();
    let mut seen = 0;
    for line in manifest {
        let text = line.text.trim();
        if let Some(name) = text.strip_prefix('[') {
            section = name.to_owned();
            explained = false;
        } else if text.is_empty() {
            explained = false;
        } else if text.starts_with('#') {
            explained = true;
        } else if section.contains("dependencies") && text.contains(" = ") {
            // One reason may stand for a few lines below it.
            assert!(explained, "no reason for it: {}", line.place());
            seen += 1;
        }
    }
    assert!(seen > 10, "these are not the dependencies");
}
