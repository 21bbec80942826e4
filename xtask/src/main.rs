//! Everything a contributor runs: `cargo xtask <task>`.
//!
//! Each task calls the ones it needs (`test` installs what is missing and builds the kernel programs first),
//! so that a clean clone needs one command. Tasks are written in Rust instead of shell so that they are
//! checked, and fail with an error that names what mends it.

mod bench;
mod build;
mod chart;
mod ci;
mod cluster;
mod demo;
mod ebpf;
mod images;
mod process;
mod progress;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Builds, tests and shows the mesh.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing on this machine: compilers, test peers, tools.
    Setup(setup::Options),
    /// Build the kernel programs.
    BuildEbpf,
    /// Build the kernel programs and every binary of the workspace.
    Build(build::Options),
    /// Show what the mesh does, with real clients and servers on two nodes.
    Demo(demo::Options),
    /// Measure the mesh and its peers against direct connections.
    Bench(bench::Options),
    /// Write the images that a cluster runs, without Docker.
    Images(images::Options),
    /// Make, use and remove Kubernetes clusters on this machine, and run the tests that need one.
    Cluster(cluster::Options),
    /// Run every test, or those whose name contains FILTER.
    Test(test::Options),
    /// Run what continuous integration runs: tests, formatting, lints, documentation, the rendered chart.
    Ci,
    /// Render the Helm chart into deploy/mesh.yaml.
    Chart(chart::Options),
}

fn main() -> ExitCode {
    match run(&Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress::failure(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<()> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Setup(options) => setup::task(&workspace, options),
        Task::BuildEbpf => {
            setup::ensure(&workspace, setup::Purpose::Building)?;
            ebpf::build(&workspace)
        }
        Task::Build(options) => build::task(&workspace, options),
        Task::Demo(options) => demo::task(&workspace, options),
        Task::Bench(options) => bench::task(&workspace, options),
        Task::Images(options) => images::task(&workspace, options),
        Task::Cluster(options) => cluster::task(&workspace, options),
        Task::Test(options) => test::task(&workspace, options),
        Task::Ci => ci::task(&workspace),
        Task::Chart(options) => chart::task(&workspace, options),
    }
}
