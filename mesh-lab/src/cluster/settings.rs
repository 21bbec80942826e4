//! What a cluster is made from, kept beside its record for those who open it later.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{ClusterError, write};

const FILE: &str = "cluster.json";
/// Kubernetes' programs: one file each in [`Settings::programs`].
const PROGRAMS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];
const BUILD: &str = "run `cargo xtask cluster build`";
/// What comes from packages: program, package.
const PACKAGED: [&str; 4] = ["etcd", "containerd", "runc", "ctr"];
/// Where Debian keeps the CNI plugins.
pub(super) const CNI_PLUGINS: &str = "/usr/lib/cni";

/// How pods are connected to their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CniPlugin {
    /// A veth per pod, routed.
    Ptp,
    /// A bridge `cni0` with a veth per pod.
    Bridge,
}

impl CniPlugin {
    /// The plugin's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ptp => "ptp",
            Self::Bridge => "bridge",
        }
    }
}

impl FromStr for CniPlugin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "ptp" => Ok(Self::Ptp),
            "bridge" => Ok(Self::Bridge),
            other => Err(format!("{other:?}: use ptp or bridge")),
        }
    }
}

/// How kube-proxy translates the addresses of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// By iptables.
    Iptables,
    /// By nftables.
    Nftables,
}

impl ProxyMode {
    /// The name that kube-proxy knows it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

impl FromStr for ProxyMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "iptables" => Ok(Self::Iptables),
            "nftables" => Ok(Self::Nftables),
            other => Err(format!("{other:?}: use iptables or nftables")),
        }
    }
}

/// What a cluster is made from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settings {
    /// Prefix of everything it makes.
    pub name: String,
    /// How many nodes.
    pub nodes: u8,
    /// How pods are connected.
    pub cni: CniPlugin,
    /// How services are translated.
    pub kube_proxy: ProxyMode,
    /// The folder of Kubernetes' programs.
    pub programs: PathBuf,
    /// Archives of images that every node has from its start; those of `pause` and CoreDNS must be among them.
    pub images: Vec<PathBuf>,
}

impl Settings {
    /// Says what is missing before anything is made.
    pub(super) fn check(&self) -> Result<(), ClusterError> {
        if !(1..=9).contains(&self.nodes) {
            return Err(ClusterError::Settings(format!("{} nodes: use 1 to 9", self.nodes)));
        }
        for program in PROGRAMS {
            if !self.programs.join(program).exists() {
                let what = format!("{program} in {}", self.programs.display());
                return Err(ClusterError::Missing { what, remedy: BUILD });
            }
        }
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let found =
            |program: &str| std::env::split_paths(&folders).any(|folder| folder.join(program).exists());
        if let Some(program) = PACKAGED.into_iter().find(|program| !found(program)) {
            return Err(ClusterError::Missing { what: program.to_owned(), remedy: BUILD });
        }
        if !Path::new(CNI_PLUGINS).join(self.cni.name()).exists() {
            let what = format!("the CNI plugin {} in {CNI_PLUGINS}", self.cni.name());
            return Err(ClusterError::Missing { what, remedy: BUILD });
        }
        Ok(())
    }

    /// Whether a lab is a cluster.
    pub(super) fn exist(directory: &Path) -> bool {
        directory.join(FILE).exists()
    }

    pub(super) fn store(&self, directory: &Path) -> Result<(), ClusterError> {
        let path = directory.join(FILE);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| ClusterError::File { path: path.clone(), source: error.into() })?;
        write(&path, text)
    }

    pub(super) fn load(name: &str, directory: &Path) -> Result<Self, ClusterError> {
        let path = directory.join(FILE);
        let failed = |source| ClusterError::File { path: path.clone(), source };
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(ClusterError::Unknown(name.to_owned())),
            Err(error) => Err(failed(error)),
            Ok(text) => serde_json::from_slice(&text).map_err(|error| failed(error.into())),
        }
    }
}
