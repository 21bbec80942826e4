//! A cluster for as long as a task takes.

use std::path::PathBuf;

use anyhow::Result;

use super::{UpOptions, lab, make};
use crate::{process, progress, workspace::Workspace};

/// A cluster that is removed at the end, however that comes, unless it shall be kept.
pub(super) struct Temporary<'a> {
    workspace: &'a Workspace,
    name: String,
    keep: bool,
    ended: bool,
}

impl<'a> Temporary<'a> {
    /// Makes a cluster. One that is not kept has this process's id in its name, and is stale when this process is gone.
    pub(super) fn make(
        workspace: &'a Workspace,
        name: &str,
        options: &UpOptions,
        images: &[PathBuf],
        keep: bool,
    ) -> Result<Self> {
        let own = std::process::id();
        let name = if keep { name.to_owned() } else { format!("{name}-{own}") };
        make(workspace, &name, options, images, (!keep).then_some(own))?;
        Ok(Self { workspace, name, keep, ended: false })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Removes it, or says how it is removed.
    pub(super) fn end(mut self) -> Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> Result<()> {
        self.ended = true;
        if self.keep {
            progress::note(format_args!(
                "`cargo xtask cluster --name {} down` removes the cluster",
                self.name
            ));
            return Ok(());
        }
        let mut down = lab(self.workspace, &self.name)?;
        process::quietly(self.workspace, &format!("removing the cluster {}", self.name), down.arg("down"))
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.ended
            && let Err(error) = self.remove()
        {
            progress::bad(format_args!("{error:#}"));
        }
    }
}
