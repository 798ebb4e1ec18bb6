//! What we depend on: licences, sources, bans and second versions, against deny.toml.
//!
//! `cargo deny` checks the same and more, where it is installed; this needs nothing but cargo, so
//! it is checked in every `cargo test`. What cannot be read counts as not allowed. Advisories are
//! left to `cargo deny`: their data changes without us.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// What `cargo metadata` says of a package.
struct Package {
    id: String,
    name: String,
    version: String,
    license: String,
    /// `None` for our own.
    source: Option<String>,
}

/// What deny.toml says.
struct Rules {
    allowed: BTreeSet<String>,
    /// By package.
    exceptions: BTreeMap<String, BTreeSet<String>>,
    banned: BTreeSet<String>,
    /// What may be there in a newer version, too: its name, and how its version begins.
    skipped: Vec<(String, String)>,
    registries: BTreeSet<String>,
}

fn metadata() -> Value {
    // What is not built here, for Windows say, need not be on this host.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn packages(metadata: &Value) -> Vec<Package> {
    let package = |package: &Value| Package {
        id: text(&package["id"]),
        name: text(&package["name"]),
        version: text(&package["version"]),
        license: text(&package["license"]),
        source: package["source"].as_str().map(str::to_owned),
    };
    list(&metadata["packages"]).map(package).collect()
}

fn rules() -> Rules {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    let rules = fs::read_to_string(path).expect("deny.toml");
    let rules: Value = toml::from_str(&rules).expect("TOML");
    let texts = |value: &Value| list(value).map(text).collect::<BTreeSet<_>>();
    let licenses = &rules["licenses"];
    let exception = |entry: &Value| (text(&entry["crate"]), texts(&entry["allow"]));
    let skipped = |entry: &Value| {
        assert!(text(&entry["reason"]).len() >= 3, "{entry} says why");
        let name = text(&entry["crate"]);
        let (name, version) = name.split_once('@').expect("a name and a version");
        (name.to_owned(), version.to_owned())
    };
    let banned = list(&rules["bans"]["deny"]).map(|entry| text(&entry["crate"]));
    Rules {
        allowed: texts(&licenses["allow"]),
        exceptions: list(&licenses["exceptions"]).map(exception).collect(),
        banned: banned.collect(),
        skipped: list(&rules["bans"]["skip"]).map(skipped).collect(),
        registries: texts(&rules["sources"]["allow-registry"]),
    }
}

/// Whether `expression` (SPDX 2.3, annex D, and the `/` that crates wrote before) leaves a choice
/// in which every licence is allowed.
fn is_allowed(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let value = alternatives(&words, &mut at, allowed);
    value && at == words.len()
}

fn alternatives(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut value = all_of(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        value |= all_of(words, at, allowed);
    }
    value
}

fn all_of(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut value = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        value &= one(words, at, allowed);
    }
    value
}

fn one(words: &[&str], at: &mut usize, allowed: &dyn Fn(&str) -> bool) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let value = alternatives(words, at, allowed);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return value && closed;
    }
    match (words.get(*at), words.get(*at + 1)) {
        (Some(&"WITH"), Some(exception)) => {
            *at += 2;
            allowed(&format!("{word} WITH {exception}"))
        }
        _ => allowed(word),
    }
}

#[test]
fn license_expressions_are_read_as_they_are_meant() {
    let allowed =
        |license: &str| ["MIT", "Zlib", "Apache-2.0 WITH LLVM-exception"].contains(&license);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("MIT AND Zlib", true),
        ("(GPL-3.0 OR MIT) AND Zlib", true),
        ("(GPL-3.0 OR MIT) AND GPL-2.0", false),
        ("GPL-3.0 OR MIT AND GPL-2.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("MIT WITH LLVM-exception", false),
        ("", false),
        ("(MIT", false),
        ("MIT Zlib", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression:?}");
    }
}

#[test]
fn every_dependency_is_licensed_and_comes_from_where_it_may() {
    let (rules, metadata) = (rules(), metadata());
    let packages = packages(&metadata);
    let foreign = || packages.iter().filter(|package| package.source.is_some());
    assert!(foreign().count() > 100, "these are not all");
    for Package { name, license, source, .. } in foreign() {
        let exception = rules.exceptions.get(name);
        let allowed = |license: &str| {
            rules.allowed.contains(license)
                || exception.is_some_and(|exception| exception.contains(license))
        };
        assert!(is_allowed(license, &allowed), "{name}: deny.toml does not allow {license:?}");
        let registry = source.as_deref().and_then(|source| source.strip_prefix("registry+"));
        let is_known = registry.is_some_and(|registry| rules.registries.contains(registry));
        assert!(is_known, "{name}: deny.toml does not allow the source {source:?}");
        assert!(!rules.banned.contains(name), "{name}: deny.toml bans it");
    }
    for name in rules.exceptions.keys() {
        let needed = foreign().any(|package| package.name == *name);
        assert!(needed, "deny.toml makes an exception for {name}, which nobody needs");
    }
}

/// What keeps `versions` from being one of each name but for those that are `skipped`, and entries
/// of `skipped` that skip none, or the only one.
fn second_versions(versions: &[(&str, &str)], skipped: &[(String, String)]) -> Vec<String> {
    let is_meant = |version: &str, start: &str| {
        version.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let is_skipped = |name: &str, version: &str| {
        skipped.iter().any(|(skipped, start)| name == skipped && is_meant(version, start))
    };
    let mut wrong = Vec::new();
    let mut kept = BTreeMap::new();
    for (name, version) in versions.iter().filter(|(name, version)| !is_skipped(name, version)) {
        if let Some(other) = kept.insert(*name, *version) {
            wrong.push(format!("{name} {other} and {version}"));
        }
    }
    for (name, start) in skipped {
        let skips = versions.iter().any(|(it, version)| it == name && is_meant(version, start));
        if !skips || !kept.contains_key(&**name) {
            wrong.push(format!("{name}@{start}, which is needed no more"));
        }
    }
    wrong
}

#[test]
fn second_versions_are_found_and_so_are_entries_without_them() {
    let check = |versions: &[(&str, &str)], skipped: &[&str], expected: &[&str]| {
        let entry = |entry: &&str| {
            let (name, version) = entry.split_once('@').expect("a name and a version");
            (name.to_owned(), version.to_owned())
        };
        let skipped: Vec<_> = skipped.iter().map(entry).collect();
        assert_eq!(second_versions(versions, &skipped), expected, "{versions:?} {skipped:?}");
    };
    let two = [("a", "1.10.2"), ("a", "2.0.0"), ("b", "1.1.0")];
    let gone = ["a@1, which is needed no more"];
    check(&two, &["a@1"], &[]);
    check(&two, &["a@1.10"], &[]);
    check(&two, &["a@1.10.2"], &[]);
    check(&two, &[], &["a 1.10.2 and 2.0.0"]);
    check(&two, &["b@1"], &["a 1.10.2 and 2.0.0", "b@1, which is needed no more"]);
    check(&two, &["a@1.1"], &["a 1.10.2 and 2.0.0", "a@1.1, which is needed no more"]);
    check(&two[..1], &["a@1"], &gone);
    check(&two[1..], &["a@1"], &gone);
    check(&two[2..], &["a@1"], &gone);
}

#[test]
fn no_dependency_is_there_in_a_second_version_but_those_that_deny_toml_names() {
    let (rules, metadata) = (rules(), metadata());
    let packages = packages(&metadata);
    let versions = packages.iter().map(|package| (&*package.name, &*package.version));
    let mut versions: Vec<_> = versions.collect();
    versions.sort_unstable();
    assert!(versions.len() > 100, "these are not all");
    assert_eq!(second_versions(&versions, &rules.skipped), [""; 0], "deny.toml says otherwise");
}

#[test]
fn what_is_shipped_has_no_copyleft_that_binds_it() {
    let metadata = metadata();
    let packages = packages(&metadata);
    // The packages that go into the server: all edges but those of tests.
    let mut shipped: BTreeSet<String> = BTreeSet::new();
    let server = packages.iter().find(|package| package.name == "fanwire").expect("our own");
    let mut open = vec![server.id.clone()];
    while let Some(id) = open.pop() {
        if !shipped.insert(id.clone()) {
            continue;
        }
        let node = list(&metadata["resolve"]["nodes"]).find(|node| node["id"] == id.as_str());
        for edge in list(&node.expect("every package is a node")["deps"]) {
            if list(&edge["dep_kinds"]).any(|kind| kind["kind"] != "dev") {
                open.push(text(&edge["pkg"]));
            }
        }
    }
    assert!(shipped.len() > 50 && shipped.len() < packages.len(), "{}", shipped.len());
    for package in packages.iter().filter(|package| shipped.contains(&package.id)) {
        let binds = |license: &str| license.contains("GPL") || license.contains("SSPL");
        let free = |license: &str| !binds(license);
        let Package { name, license, .. } = package;
        assert!(is_allowed(license, &free), "{name} is shipped under {license}");
    }
}
