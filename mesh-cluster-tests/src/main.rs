//! Tests of the mesh on a real Kubernetes cluster, from installing the chart to uninstalling it.
//!
//! `cargo xtask cluster test` makes a cluster for each CNI plugin and runs this on it. The tests of one cluster share it: those that
//! keep to namespaces of their own run beside each other, those that disturb all of it one after another, at the same time on
//! all clusters, and the one that uninstalls the chart last. A test finds the chart installed as the one before has left it.

#![allow(clippy::indexing_slicing, reason = "test code, and JSON, which has null where nothing is")]

mod runner;
mod tests;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

/// Tests of the mesh on a Kubernetes cluster.
#[derive(Parser)]
pub(crate) struct Arguments {
    /// The cluster, as `cargo xtask cluster up --name` has made it, with the images of the mesh loaded.
    #[arg(long)]
    cluster: String,
    /// Helm, version 3.
    #[arg(long)]
    helm: PathBuf,
    /// The folder of the chart.
    #[arg(long)]
    chart: PathBuf,
    /// Before the tests that disturb the cluster, print `paused` and wait for the end of standard input.
    #[arg(long)]
    pause: bool,
    /// Run only tests whose name contains one of these.
    filter: Vec<String>,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    match runner::run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mesh-cluster-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}
