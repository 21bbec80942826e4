//! `cargo xtask demo`: builds the mesh and plays its demo, which lives in `mesh-lab`.

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{build, ebpf, process, setup, workspace::Workspace};

/// What `demo` may be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Leave everything running and print commands to try.
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// Remove what --keep has left.
    #[arg(long)]
    down: bool,
}

/// `cargo xtask demo`.
pub(crate) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the demo makes network namespaces and loads eBPF programs, which only root may: run\n\n    \
             sudo -E env PATH=\"$PATH\" cargo xtask demo"
        );
    }
    let program = workspace.target().join("debug/mesh-lab");
    if !(options.down && program.is_file()) {
        setup::ensure(workspace, setup::Purpose::Testing)?;
        ebpf::build(workspace)?;
        // Not optimised: built in half the time, and shared with `cargo xtask test`. Speed is for the benchmarks.
        build::binaries(workspace, false)?;
    }
    let mut command = workspace.command(program);
    command.arg("demo").arg("--examples").arg(workspace.root().join("examples"));
    // Info messages of the lab would stand in the way of the show.
    command.env("RUST_LOG", std::env::var_os("RUST_LOG").unwrap_or_else(|| "warn".into()));
    for (flag, set) in [("--keep", options.keep), ("--down", options.down)] {
        if set {
            command.arg(flag);
        }
    }
    // Its output is ours, so that it knows whether it writes to a terminal.
    let status = command.status().with_context(|| format!("cannot start `{}`", process::shown(&command)))?;
    if !status.success() {
        bail!("the demo failed ({status}); `cargo xtask demo --down` removes what is left of it");
    }
    Ok(())
}
