//! Replays what fuzzers have kept, and holds the targets, their programs and their inputs together.

use std::fs;
use std::path::{Path, PathBuf};

use super::TARGETS;

/// Inputs that a target keeps, and their bytes all together: more make every clone larger, and
/// reach nothing that fewer do not (`cargo fuzz cmin`).
const INPUTS_MAX: usize = 100;
const INPUT_BYTES_MAX: u64 = 100 * 1024;

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The files in a folder of `fuzz/`; none if there is no such folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files
}

fn replay(kind: &str) -> usize {
    let mut replayed = 0;
    for (name, target) in TARGETS {
        for file in files(&fuzz_folder().join(kind).join(name)) {
            let input = fs::read(&file).expect("readable");
            let outcome = std::panic::catch_unwind(|| target(&input));
            assert!(outcome.is_ok(), "{name} fails with {}", file.display());
            replayed += 1;
        }
    }
    replayed
}

#[test]
fn fuzz_corpora_find_nothing() {
    assert!(replay("corpus") > TARGETS.len(), "the corpora are not there");
}

#[test]
fn fuzz_what_was_found_is_mended() {
    assert!(replay("found") > 0, "the inputs that found something are not there");
}

#[test]
fn fuzz_corpora_are_small() {
    for (name, _) in TARGETS {
        let inputs = files(&fuzz_folder().join("corpus").join(name));
        let bytes = |file: &PathBuf| fs::metadata(file).expect("a file").len();
        assert!((1..=INPUTS_MAX).contains(&inputs.len()), "{name}: {} inputs", inputs.len());
        assert!(inputs.iter().map(bytes).sum::<u64>() <= INPUT_BYTES_MAX, "{name}");
    }
}

#[test]
fn fuzz_every_target_has_a_program() {
    let programs = files(&fuzz_folder().join("fuzz_targets"));
    let names: Vec<_> = programs.iter().filter_map(|path| path.file_stem()?.to_str()).collect();
    assert_eq!(names, TARGETS.map(|(name, _)| name), "in the order of the alphabet");
    let manifest = fs::read_to_string(fuzz_folder().join("Cargo.toml")).expect("readable");
    for name in names {
        let program = fs::read_to_string(fuzz_folder().join(format!("fuzz_targets/{name}.rs")));
        assert!(program.expect("readable").contains(&format!("fanwire::fuzz::{name}(data)")));
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
}
