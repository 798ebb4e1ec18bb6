//! Tests of the whole crate; built only for tests.
//!
//! [`sim`] runs a whole server of several shards in one thread, without a kernel, from a seed.
//! [`tidy`] holds the source to the rules that the compiler does not know.

mod sim;
mod tidy;
