//! The `fanwire` binary: command line in, exit code out.

use std::io::{Write, stdout};
use std::process::ExitCode;

use fanwire::config::{self, Action, ConfigError, Loaded};
use fanwire::{control, logging};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit codes: 0 done, 1 cannot start or a shard failed, 2 not a command line of ours.
fn main() -> ExitCode {
    let loaded = match load() {
        Ok(loaded) => loaded,
        Err(ConfigError::Usage(error)) => error.exit(),
        Err(error) => {
            eprintln!("fanwire: {error}");
            return ExitCode::FAILURE;
        }
    };
    match loaded.action {
        Action::Config => {
            for warning in &loaded.warnings {
                eprintln!("fanwire: {warning}");
            }
            // A reader that has seen enough (`fanwire config | head`) is no failure.
            let _ = stdout().write_all(loaded.to_toml().as_bytes());
            ExitCode::SUCCESS
        }
        Action::Serve => {
            let log = logging::start(loaded.settings.log_format, loaded.settings.log_level);
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            match control::serve(&loaded.settings, load, log) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// Reads the configuration: at the start, and again at SIGHUP.
fn load() -> Result<Loaded, ConfigError> {
    config::load(std::env::args_os(), std::env::vars_os())
}
