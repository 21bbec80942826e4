//! `cargo xtask cluster demo`: the mesh on a real cluster, from `helm install` to a rolling update under load.

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{UpOptions, chart, lab, prepare, temporary::Temporary};
use crate::{images, process, workspace::Workspace};

/// What `cluster demo` may be told.
#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    cluster: UpOptions,
    /// Leave the cluster running at the end.
    #[arg(long)]
    keep: bool,
}

/// Makes a cluster and plays the demo on it.
pub(super) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut images = prepare(workspace)?;
    images.extend(images::write_for_tests(workspace)?);
    let cluster = Temporary::make(workspace, "mesh-cluster-demo", &options.cluster, &images, options.keep)?;
    let mut demo = lab(workspace, cluster.name())?;
    demo.arg("demo").args(chart(workspace)?);
    // Its output is ours, so that it knows whether it writes to a terminal.
    let status = demo.status().with_context(|| format!("cannot start `{}`", process::shown(&demo)))?;
    cluster.end()?;
    if !status.success() {
        bail!("the demo failed ({status})");
    }
    Ok(())
}
