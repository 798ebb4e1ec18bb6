//! Tests of the whole crate; built only for tests.
//!
//! [`sim`] runs a whole server of several shards in one thread, without a kernel, from a seed.
//! [`pages`] holds pages of the documentation to the code, [`supply`] the dependencies to
//! deny.toml, and [`tidy`] the source to the rules that the compiler does not know.

mod pages;
mod sim;
mod supply;
mod tidy;
