//! `cargo xtask build`: the kernel programs, then the binaries that carry them.

use anyhow::Result;
use clap::Args;

use crate::{ebpf, process, progress, setup, workspace::Workspace};

/// What `build` may be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Optimised binaries, as the images ship them.
    #[arg(long)]
    release: bool,
}

/// `cargo xtask build`.
pub(crate) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(workspace, setup::Purpose::Building)?;
    ebpf::build(workspace)?;
    let profile = if options.release { "release" } else { "debug" };
    binaries(workspace, options.release)?;
    progress::good(format_args!(
        "mesh-agent, meshctl, mesh-control and mesh-lab are in {}",
        workspace.target().join(profile).display()
    ));
    Ok(())
}

/// Builds every binary of the workspace.
pub(crate) fn binaries(workspace: &Workspace, release: bool) -> Result<()> {
    let mut command = workspace.cargo();
    command.args(["build", "--workspace", "--all-features", "--bins"]);
    if release {
        command.arg("--release");
    }
    process::quietly(workspace, "binaries", &mut command)
}
