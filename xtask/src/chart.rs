//! `cargo xtask chart`: the Helm chart rendered with its default values into `deploy/mesh.yaml`, for those
//! who apply plain manifests.

#[cfg(test)]
mod tests;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    process, progress,
    setup::{self, helm},
    workspace::Workspace,
};

/// What `chart` may be told.
#[derive(Args)]
pub(crate) struct Options {
    /// Only say whether deploy/mesh.yaml is what the chart renders, and fail if not.
    #[arg(long)]
    check: bool,
}

const HEADER: &str = "# The chart in deploy/chart with its default values, rendered by `cargo xtask chart`. Do not edit.\n\
     # kubectl create namespace mesh-system && kubectl apply -f mesh.yaml\n";

/// The Kubernetes that the chart is rendered for, that of the types which the tests read it with.
const KUBERNETES: &str = "1.34.0";

/// `cargo xtask chart`.
pub(crate) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(workspace, setup::Purpose::Testing)?;
    if options.check {
        return check(workspace);
    }
    let path = rendered_path(workspace);
    fs::write(&path, manifest(workspace)?).with_context(|| format!("cannot write {}", path.display()))?;
    progress::good(format_args!("wrote {}", path.display()));
    Ok(())
}

/// Fails if `deploy/mesh.yaml` is not what the chart renders.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let path = rendered_path(workspace);
    let committed = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if committed != manifest(workspace)? {
        bail!("{} is not what the chart renders: run `cargo xtask chart` and commit it", path.display());
    }
    progress::good("deploy/mesh.yaml is what the chart renders");
    Ok(())
}

fn rendered_path(workspace: &Workspace) -> PathBuf {
    workspace.root().join("deploy/mesh.yaml")
}

fn manifest(workspace: &Workspace) -> Result<String> {
    Ok(format!("{HEADER}{}", render(workspace, "{}")?))
}

/// What Helm makes of the chart with these values (YAML) over its own.
fn render(workspace: &Workspace, values: &str) -> Result<String> {
    let helm = helm::find(workspace).context("Helm is missing: run `cargo xtask setup`")?;
    let mut command = workspace.command(helm);
    command.args(["template", "mesh", "deploy/chart", "--namespace", "mesh-system", "--values", "-"]);
    // A Helm that was built without a version of Kubernetes takes itself for one of an ancient cluster.
    command.args(["--kube-version", KUBERNETES]);
    process::output_for(&mut command, values)
}
