//! The mesh's Helm chart, installed as its users do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::Program;

use super::kubectl::succeeded;
use super::{CONTROL, Cluster, ClusterError};

/// How long an installation may take until all pods are ready.
const INSTALL: Duration = Duration::from_secs(150);

/// A chart, and under which name and where it is installed.
#[derive(Debug, Clone)]
pub struct Chart {
    helm: PathBuf,
    folder: PathBuf,
    release: String,
    namespace: String,
}

impl Chart {
    /// The chart in a folder, installed by this `helm` as release `mesh` in the namespace `mesh-system`.
    #[must_use]
    pub fn new(helm: &Path, folder: &Path) -> Self {
        Self {
            helm: helm.to_owned(),
            folder: folder.to_owned(),
            release: "mesh".to_owned(),
            namespace: "mesh-system".to_owned(),
        }
    }

    /// The namespace that it is installed in.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Installs it, or upgrades what is installed, with these values (YAML) over its own, and waits until all pods are ready.
    ///
    /// # Errors
    /// When Helm or the API server refuses, or pods do not get ready.
    pub fn install(&self, cluster: &Cluster, values: &str) -> Result<String, ClusterError> {
        let file = cluster.data().join("values.yaml");
        super::write(&file, values)?;
        let folder = self.folder.display().to_string();
        let program = self
            .helm(cluster)?
            .args(["upgrade", "--install", &self.release, &folder, "--namespace", &self.namespace])
            .args(["--create-namespace", "--wait", "--timeout", &format!("{}s", INSTALL.as_secs())])
            .arg("--values")
            .arg(&file);
        succeeded("helm upgrade --install", program.output()?)
    }

    /// Uninstalls it, and waits until its pods are gone.
    ///
    /// # Errors
    /// When Helm or the API server refuses.
    pub fn uninstall(&self, cluster: &Cluster) -> Result<String, ClusterError> {
        let timeout = format!("{}s", INSTALL.as_secs());
        let arguments =
            ["uninstall", &self.release, "--namespace", &self.namespace, "--wait", "--timeout", &timeout];
        succeeded("helm uninstall", self.helm(cluster)?.args(arguments).output()?)
    }

    fn helm(&self, cluster: &Cluster) -> Result<Program, ClusterError> {
        let program = cluster.lab.host(CONTROL)?.program(&self.helm)?;
        let variables = cluster.kubectl_variables().into_iter();
        let program = variables.fold(program, |program, (name, value)| program.env(name, value));
        // Helm waits less than we do, and says what for.
        Ok(program.timeout(INSTALL + Duration::from_secs(30)))
    }
}
