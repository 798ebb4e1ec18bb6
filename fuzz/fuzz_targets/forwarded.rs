//! Runs the target of that name of `src/fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fanwire::fuzz::forwarded(data));
