//! Profiles as flame graphs: SVG for a browser, one column per thread.

use std::io;

use inferno::flamegraph::{self, Options};

use super::symbols::Symbols;
use crate::io::sampler::Samples;

/// A flame graph whose lowest row are the threads.
///
/// # Errors
/// What the library says of it.
pub(super) fn write(samples: &Samples) -> io::Result<Vec<u8>> {
    let mut symbols = Symbols::default();
    let mut lines: Vec<String> = samples
        .stacks
        .iter()
        .map(|((thread, stack), count)| {
            let mut line = samples.threads[*thread].clone();
            for (place, &address) in stack.iter().enumerate().rev() {
                for symbol in symbols.at(address, place == 0).iter().rev() {
                    line.push(';');
                    // The one character that means something.
                    line.push_str(&symbol.name.replace(';', ","));
                }
            }
            format!("{line} {count}")
        })
        .collect();
    if lines.is_empty() {
        // An empty graph is an error to the library, but nobody did anything wrong.
        lines.push("no thread used the CPU 1".into());
    }
    lines.sort();
    let mut options = Options::default();
    options.title = "Fanwire: CPU time by thread and function".into();
    options.count_name = "samples".into();
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)
        .map_err(io::Error::other)?;
    Ok(svg)
}
