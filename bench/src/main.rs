//! The `fanwire-bench` binary: command line in, exit code out.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use fanwire_bench::cli::{Cli, Command};
use fanwire_bench::{bare, compare, merge, peers, publish, run, soak};

/// Exit codes: 0 all went well, 1 something did not (the report says what), 2 usage.
fn main() -> ExitCode {
    match &Cli::parse().command {
        Command::Run(scenario) => {
            finish(run::run(scenario), |report| report.verdict.passed, run::RunError::is_usage)
        }
        Command::Compare(args) => {
            let compared = compare::compare(args);
            finish(compared, |comparison| comparison.passed, compare::CompareError::is_usage)
        }
        Command::Merge(args) => {
            let merged = merge::merge(args);
            finish(merged, |merged| merged.report.verdict.passed, merge::MergeError::is_usage)
        }
        Command::Peers(args) => {
            finish(peers::peers(args), |peers| peers.passed, peers::PeersError::is_usage)
        }
        Command::Bare(args) => finish(bare::bare(args), |_| true, bare::BareError::is_usage),
        Command::Publish(args) => {
            let published = publish::publish(args);
            finish(published, |record| record.passed, publish::PublishError::is_usage)
        }
        Command::Soak(args) => finish(soak::soak(args), |record| record.passed, |_| false),
    }
}

/// Prints what came out and finds the exit code for it.
fn finish<T: Display, E: Display>(
    outcome: Result<T, E>,
    passed: impl FnOnce(&T) -> bool,
    is_usage: impl FnOnce(&E) -> bool,
) -> ExitCode {
    match outcome {
        Ok(outcome) => {
            // Whoever closed standard output wants no more of it.
            let _ = write!(io::stdout(), "{outcome}");
            if passed(&outcome) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("fanwire-bench: {error}");
            if is_usage(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
