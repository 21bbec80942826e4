//! `cargo xtask chart`: the Helm chart rendered with its default values into `deploy/mesh.yaml`, for those
//! who apply plain manifests, and the definitions of Istio's kinds into `deploy/crds.yaml`, for those who have none.

#[cfg(test)]
mod tests;

use std::fs;

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
    /// Only say whether deploy/mesh.yaml and deploy/crds.yaml are what the chart renders, and fail if not.
    #[arg(long)]
    check: bool,
}

/// A file that is rendered from the chart.
struct Rendered {
    path: &'static str,
    header: &'static str,
    values: &'static str,
    /// One template instead of all.
    template: Option<&'static str>,
}

/// Nobody can be asked here which definitions a cluster has, so they are a file of their own.
const FILES: [Rendered; 2] = [
    Rendered {
        path: "deploy/mesh.yaml",
        header: "# The chart in deploy/chart with its default values, rendered by `cargo xtask chart`. Do not edit.\n\
                 # On a cluster without Istio's definitions apply crds.yaml first.\n\
                 # kubectl create namespace mesh-system && kubectl apply -f mesh.yaml\n",
        values: "{crds: {install: never}}",
        template: None,
    },
    Rendered {
        path: "deploy/crds.yaml",
        header: "# Definitions of Istio's kinds that the mesh reads, rendered by `cargo xtask chart`. Do not edit.\n\
                 # Only for clusters that do not have Istio's own: kubectl apply --server-side -f crds.yaml\n",
        values: "{crds: {install: always}}",
        template: Some("templates/crds.yaml"),
    },
];

/// The Kubernetes that the chart is rendered for, that of the types which the tests read it with.
const KUBERNETES: &str = "1.34.0";

/// `cargo xtask chart`.
pub(crate) fn task(workspace: &Workspace, options: &Options) -> Result<()> {
    setup::ensure(workspace, setup::Purpose::Testing)?;
    if options.check {
        return check(workspace);
    }
    for file in &FILES {
        let path = workspace.root().join(file.path);
        fs::write(&path, manifest(workspace, file)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        progress::good(format_args!("wrote {}", path.display()));
    }
    Ok(())
}

/// Fails if a rendered file is not what the chart renders.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    for file in &FILES {
        let path = workspace.root().join(file.path);
        let committed =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if committed != manifest(workspace, file)? {
            bail!("{} is not what the chart renders: run `cargo xtask chart` and commit it", path.display());
        }
        progress::good(format_args!("{} is what the chart renders", file.path));
    }
    Ok(())
}

fn manifest(workspace: &Workspace, file: &Rendered) -> Result<String> {
    Ok(format!("{}{}", file.header, render(workspace, file.values, file.template)?))
}

/// What Helm makes of the chart, or of one of its templates, with these values (YAML) over its own.
fn render(workspace: &Workspace, values: &str, template: Option<&str>) -> Result<String> {
    let helm = helm::find(workspace).context("Helm is missing: run `cargo xtask setup`")?;
    let mut command = workspace.command(helm);
    command.args(["template", "mesh", "deploy/chart", "--namespace", "mesh-system", "--values", "-"]);
    // A Helm that was built without a version of Kubernetes takes itself for one of an ancient cluster.
    command.args(["--kube-version", KUBERNETES]);
    command.args(template.iter().flat_map(|template| ["--show-only", template]));
    process::output_for(&mut command, values)
}
