//! `cargo xtask test`: every test, against real namespaces, real eBPF and real servers.

mod summary;

use std::{io::IsTerminal, time::Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{build, ebpf, process, progress, setup, test::summary::Summary, workspace::Workspace};

/// What `test` may be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Run only tests whose name contains this.
    filter: Option<String>,
    /// Run only the tests of this package (may be given several times).
    #[arg(short, long)]
    package: Vec<String>,
    /// For the test programs themselves, for instance `-- --nocapture`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// `cargo xtask test`.
pub(crate) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "tests make network namespaces and load eBPF programs, which only root may: run\n\n    \
             sudo -E env PATH=\"$PATH\" cargo xtask test"
        );
    }
    setup::ensure(workspace, setup::Purpose::Testing)?;
    ebpf::build(workspace)?;
    // Tests start other packages' binaries, which `cargo test` alone would not build.
    build::binaries(workspace, false)?;
    raise_limits()?;
    remove_stale_labs(workspace)?;
    run(workspace, options)
}

/// Runs them all, also after one has failed, and sums up at the end.
fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut command = workspace.cargo();
    command.args(["test", "--all-features", "--no-fail-fast"]);
    if options.package.is_empty() {
        command.arg("--workspace");
    }
    for package in &options.package {
        command.args(["--package", package]);
    }
    command.args(&options.filter).arg("--").args(&options.arguments);
    if std::io::stdout().is_terminal() {
        // Cargo sees our pipe instead of the terminal.
        command.env("CARGO_TERM_COLOR", "always");
    }

    progress::heading("Tests");
    let started = Instant::now();
    let mut summary = Summary::default();
    let outcome = process::aloud(&mut command, |line| summary.read(line));
    summary.show(started.elapsed());
    outcome.context("tests failed")
}

/// Ten thousand connections at once need descriptors; the soft limit of a login shell is often 1,024.
fn raise_limits() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
    }
    Ok(())
}

/// Removes what labs of tests that were killed have left: namespaces, devices, mounts.
fn remove_stale_labs(workspace: &Workspace) -> Result<()> {
    let mut lab = workspace.command(workspace.target().join("debug/mesh-lab"));
    process::quietly(workspace, "labs of earlier runs", lab.args(["down", "--all-stale"]))
}
