//! The `fanwire-bench` binary: command line in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use fanwire_bench::cli::Cli;
use fanwire_bench::run;

/// Exit codes: 0 all went well, 1 something did not (the report says what), 2 usage.
fn main() -> ExitCode {
    let cli = Cli::parse();
    match run::run(&cli.scenario) {
        Ok(report) => {
            print!("{report}");
            if report.verdict.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("fanwire-bench: {error}");
            if error.is_usage() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
