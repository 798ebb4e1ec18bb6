//! Names of functions, by addresses.

use std::collections::HashMap;
use std::ptr;

/// A function, inlined or not, at a place in the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Symbol {
    /// As people write it.
    pub(super) name: String,
    /// Of the source, if known.
    pub(super) file: String,
    /// In the file; 0 if not known.
    pub(super) line: u32,
}

/// Looks up each address once.
#[derive(Debug, Default)]
pub(super) struct Symbols(HashMap<usize, Vec<Symbol>>);

impl Symbols {
    /// The functions at a place of a stack, the innermost first; at least one. What is not the
    /// innermost place is where a call returns to: the call itself lies before it.
    pub(super) fn at(&mut self, address: usize, is_innermost: bool) -> &[Symbol] {
        let address = if is_innermost { address } else { address.saturating_sub(1) };
        self.0.entry(address).or_insert_with(|| look_up(address))
    }
}

fn look_up(address: usize) -> Vec<Symbol> {
    let mut symbols = Vec::new();
    backtrace::resolve(ptr::without_provenance_mut(address), |symbol| {
        symbols.push(Symbol {
            // Without the hash at its end.
            name: symbol.name().map_or("?".into(), |name| format!("{name:#}")),
            file: symbol.filename().map_or(String::new(), |file| file.display().to_string()),
            line: symbol.lineno().unwrap_or(0),
        });
    });
    if symbols.is_empty() {
        symbols.push(Symbol { name: format!("{address:#x}"), file: String::new(), line: 0 });
    }
    symbols
}
