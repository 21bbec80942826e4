//! The benchmarks: the same work done directly, through this mesh and through its peers, in turn within one run.
//!
//! Started by `cargo xtask bench`, which builds everything optimised first. A [scenario](scenarios) builds its lab, runs
//! every contender in every round and [records](bench::Bench::record) what it measured; medians, spreads and ratios are
//! made of the samples at the end. BENCHMARKS.md says what is measured and what it said.

mod bench;
mod hold;
mod metric;
mod resident;
mod sample;
mod scenarios;
mod synthetic;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Compares the mesh with direct connections and with its peers.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the benchmarks.
    Run(bench::Options),
    /// Take connections and hold them.
    #[command(hide = true)]
    Accept(hold::AcceptOptions),
    /// Open connections and hold them.
    #[command(hide = true)]
    Hold(hold::HoldOptions),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    let result = match Arguments::parse().command {
        Command::Run(options) => bench::Bench::new(options).run(),
        Command::Accept(options) => hold::accept(&options),
        Command::Hold(options) => hold::hold(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
