//! The benchmarks: the same work done directly, through this mesh and through its peers, in turn within one run.
//!
//! Started by `cargo xtask bench`, which builds everything optimised first. A [scenario](scenarios) builds its lab, runs
//! every contender in every round and [records](bench::Bench::record) what it measured; medians, spreads and ratios are
//! made of the samples at the end. BENCHMARKS.md says what is measured and what it said.

mod bench;
mod cli;
mod contenders;
mod discovery;
mod hold;
mod interrupt;
mod load;
mod metric;
mod outcome;
mod progress;
mod quantile;
mod report;
mod resident;
mod sample;
mod scenarios;
mod synthetic;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    match cli::Arguments::parse().command.run() {
        Ok(code) => code,
        Err(error) => {
            progress::failure(&error);
            ExitCode::FAILURE
        }
    }
}
