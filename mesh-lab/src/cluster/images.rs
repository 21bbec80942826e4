//! Images come to the nodes from files: there is no registry.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use super::{Cluster, ClusterError, Node};

/// The image that keeps a pod's namespaces while it has no container.
pub(super) const PAUSE: &str = "localhost/pause:test";
/// A large image on a busy machine.
const IMPORT: Duration = Duration::from_secs(120);

impl Cluster {
    /// Gives every node an image, from an archive: an OCI image layout or what `docker save` writes.
    ///
    /// # Errors
    /// When the archive cannot be read, or is none.
    pub fn load(&self, archive: &Path) -> Result<(), ClusterError> {
        self.nodes().try_for_each(|node| import(&node, archive))
    }
}

/// Gives one node an image. The archive is opened here: the node may not see the folder it is in.
pub(super) fn import(node: &Node<'_>, archive: &Path) -> Result<(), ClusterError> {
    let file =
        File::open(archive).map_err(|source| ClusterError::File { path: archive.to_owned(), source })?;
    let arguments = ["--namespace=k8s.io", "images", "import", "-"];
    let output = node.program("ctr")?.args(arguments).stdin(file).timeout(IMPORT).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(ClusterError::Command {
        command: format!("ctr images import {}", archive.display()),
        said: format!("{}{}", output.stdout, output.stderr),
    })
}
