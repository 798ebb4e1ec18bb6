//! The `fanwire` binary: command line in, exit code out.

use std::io::{Write, stdout};
use std::process::ExitCode;

use fanwire::config::{self, Action, ConfigError, Loaded, ReportFormat};
use fanwire::{check, control, logging};

// It would hide from AddressSanitizer what is done to the heap.
#[cfg(not(asan))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit codes: 0 done, 1 cannot start, or a shard or a check failed, 2 not a command line of ours.
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
            print(&loaded, &loaded.to_toml());
            ExitCode::SUCCESS
        }
        Action::Check(options) => {
            let report = check::run(&loaded.settings, options);
            match options.format {
                ReportFormat::Text => print(&loaded, &report.to_string()),
                ReportFormat::Json => print(&loaded, &report.to_json()),
            }
            if report.passes() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Action::Serve => {
            let log = logging::start(loaded.settings.log_format, loaded.settings.log_level);
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            match control::serve(loaded, load, log) {
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

/// Prints what was asked for on standard output, warnings beside it.
fn print(loaded: &Loaded, text: &str) {
    for warning in &loaded.warnings {
        eprintln!("fanwire: {warning}");
    }
    // A reader that has seen enough (`fanwire config | head`) is no failure.
    let _ = stdout().write_all(text.as_bytes());
}
