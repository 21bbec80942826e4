//! Helm, which renders the chart for its tests. Few distributions have it, so it is built from its source
//! with Go.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Missing, Remedy, go};
use crate::{
    process,
    workspace::{Workspace, find_program},
};

const SOURCE: &str = "helm.sh/helm/v3/cmd/helm@v3.19.5";

/// Helm: the one that was built here, or the one in `PATH`.
pub(crate) fn find(workspace: &Workspace) -> Option<PathBuf> {
    let built = workspace.tools().join("bin/helm");
    if built.exists() { Some(built) } else { find_program("helm") }
}

pub(super) fn missing(workspace: &Workspace) -> Vec<Missing> {
    if find(workspace).is_some() {
        return Vec::new();
    }
    let mut missing = Vec::from_iter(go::missing(workspace));
    let why = "renders the chart for its tests";
    missing.push(Missing { what: "helm".into(), why, remedy: Remedy::Step(install) });
    missing
}

fn install(workspace: &Workspace) -> Result<()> {
    go::with(workspace, |go| build(workspace, go))
}

/// Builds into a folder beside and renames at the end, so that what is there is whole.
fn build(workspace: &Workspace, go: &Path) -> Result<()> {
    let (beside, programs) = (workspace.tools().join("bin.new"), workspace.tools().join("bin"));
    fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
    let mut command = workspace.command(go);
    command.args(["install", "-ldflags", "-s -w", SOURCE]).env("GOBIN", &beside);
    process::quietly(workspace, "Helm (about four minutes)", &mut command)?;
    fs::rename(beside.join("helm"), programs.join("helm")).context("cannot put helm where it belongs")
}
