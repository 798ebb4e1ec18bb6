//! Pages of the documentation that say what the code is: held to it, both ways.
//!
//! docs/unsafe.md lists every unsafe block, docs/promises.md every promise with the tests that
//! would catch its breach. What a page names must exist, and what exists must be on its page.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Files whose names end so, in these folders and below.
fn files(folders: &[&str], ends: &[&str]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                // What npm has fetched is not ours.
                open.extend((!path.ends_with("node_modules")).then_some(path));
            } else if ends.iter().any(|end| path.to_string_lossy().ends_with(end)) {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "{folders:?} are not the folders");
    files
}

/// The words in backquotes in a cell of a table.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The rows of all tables of a page, cell by cell. A `\|` is no border but a bar.
fn rows(page: &str) -> Vec<Vec<String>> {
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| ---");
    let cell = |cell: &str| cell.trim().replace('\0', "|");
    let row = |line: &str| {
        let line = line.trim_matches('|').replace("\\|", "\0");
        line.split('|').map(cell).collect()
    };
    page.lines().filter(is_row).map(row).collect()
}

/// The names of all tests there are, Rust's and those of other languages.
fn tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for path in files(&["src", "tests", "bench"], &[".rs"]) {
        let text = fs::read_to_string(&path).expect("readable");
        // A macro that makes tests of properties has the attribute inside.
        for part in text.split("#[test]").skip(1) {
            let name = part.split("fn ").nth(1).and_then(|rest| rest.split('(').next());
            tests.extend(name.map(str::to_owned));
        }
    }
    assert!(tests.len() > 300, "these are not the tests");
    tests
}

/// Where something unsafe begins: its file, its function, and what it does.
type Place = (String, String, String);

/// Everything unsafe in a source file.
fn unsafe_places(file: &str, text: &str) -> Vec<Place> {
    let mut places = Vec::new();
    let mut function = String::new();
    let mut lines = text.lines().map(|line| line.split("//").next().unwrap_or_default()).peekable();
    while let Some(code) = lines.next() {
        if let Some((_, name)) = code.split_once("fn ") {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            name[..end].clone_into(&mut function);
        }
        for (at, word) in code.match_indices("unsafe ") {
            let rest = &code[at + word.len()..];
            if let Some(block) = rest.strip_prefix('{') {
                let mut what = block.split('}').next().unwrap_or_default().trim();
                if what.is_empty() {
                    what = lines.peek().map_or("", |next| next.trim());
                }
                places.push((file.to_owned(), function.clone(), what.to_owned()));
            } else if ["fn ", "impl ", "trait ", "extern "].iter().any(|w| rest.starts_with(w)) {
                let what = rest.split('{').next().unwrap_or_default().trim();
                places.push((file.to_owned(), String::new(), what.to_owned()));
            }
        }
    }
    places
}

#[test]
fn unsafe_places_are_found() {
    // Written apart, so that this file does not break a rule of its own.
    let text = "fn a() {\n let x = UN { f(1) };\n}\n// UN { no }\n\
        UN impl Send for X {}\nfn b() { UN {\n g();\n } }\nlet s = \"UN-inline\";";
    let text = text.replace("UN", &("un".to_owned() + "safe"));
    let found = unsafe_places("x.rs", &text);
    let expected = [("a", "f(1)"), ("", "impl Send for X"), ("b", "g();")];
    let expected = expected.map(|(f, w)| ("x.rs".to_owned(), f.to_owned(), w.to_owned()));
    assert_eq!(found, expected);
}

#[test]
fn unsafe_code_is_as_audited() {
    let mut found = Vec::new();
    for path in &files(&["src", "tests", "bench", "benches"], &[".rs"]) {
        let file = path.strip_prefix(root()).expect("below the root").display().to_string();
        found.extend(unsafe_places(&file, &fs::read_to_string(path).expect("readable")));
    }
    let (page, tests) = (read("docs/unsafe.md"), tests());
    let mut listed = Vec::new();
    for row in rows(&page).iter().filter(|row| row[0].starts_with('`')) {
        let [place, what, why, sound, checked] = &row[..] else {
            panic!("not five cells: {row:?}")
        };
        assert!(why.len() > 5 && sound.len() > 5, "no reasons: {row:?}");
        let mut place = quoted(place).map(str::to_owned);
        let (file, function) = (place.next().unwrap_or_default(), place.next().unwrap_or_default());
        let what = what.trim_matches('`').to_owned();
        assert!(!what.is_empty(), "no block: {row:?}");
        listed.push((file, function, what));
        for name in quoted(checked).filter(|name| name.contains('_') && !name.contains('/')) {
            assert!(tests.contains(name), "there is no test {name}");
        }
    }
    found.sort();
    listed.sort();
    let missing: Vec<_> = found.iter().filter(|place| !listed.contains(place)).collect();
    let gone: Vec<_> = listed.iter().filter(|place| !found.contains(place)).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not in the table: {missing:#?}, gone: {gone:#?}"
    );
    assert_eq!(found, listed, "one row for each");
}

#[test]
fn every_promise_names_tests_that_exist() {
    let (page, tests) = (read("docs/promises.md"), tests());
    let rows = rows(&page);
    let promises: Vec<_> =
        rows.iter().filter(|row| row.len() == 3 && row[0] != "Promise").collect();
    assert!(promises.len() >= 8, "these are not all: {promises:?}");
    for row in promises {
        let names: Vec<_> = quoted(&row[2]).collect();
        assert!(!names.is_empty(), "nothing would catch a breach of: {}", row[0]);
        for name in names {
            // A script, or a file whose tests are many.
            let exists =
                if name.contains('/') { root().join(name).exists() } else { tests.contains(name) };
            assert!(exists, "there is no test {name}");
        }
    }
}
