//! `mesh-agent`: runs the agent of a node, or removes its traces.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_agent::agent;
use mesh_agent::settings::{DetachArgs, RunArgs};

/// The agent of a node: gives the node's pods the mesh.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until SIGTERM.
    Run(Box<RunArgs>),
    /// Remove every trace of an agent from this node, also of one that crashed.
    Detach(DetachArgs),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run(settings) => agent::run(*settings),
        Command::Detach(settings) => agent::detach(&settings),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
