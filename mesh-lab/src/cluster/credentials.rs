//! Keys, certificates and tokens of a cluster's own parts, in a folder that only root may look into.
//!
//! One authority signs for the API server, and for what is asked of the API for certificates. The parts prove who they are by tokens,
//! which are made anew for every cluster.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::certificates::{Authority, Leaf};

use super::{Cluster, ClusterError, addresses, private_directory, write};

/// The kubeconfig of those who may do everything.
pub(super) const ADMIN: &str = "admin";
pub(super) const CONTROLLERS: &str = "kube-controller-manager";
pub(super) const SCHEDULER: &str = "kube-scheduler";
pub(super) const PROXY: &str = "kube-proxy";

/// Where a cluster's credentials are.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    folder: PathBuf,
}

impl Credentials {
    pub(super) fn of(cluster: &Cluster) -> Self {
        Self { folder: cluster.data().join("credentials") }
    }

    /// A file of this folder, as a flag's value.
    pub(super) fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// With what a part, or a node, calls the API server.
    pub(super) fn kubeconfig(&self, user: &str) -> String {
        self.file(&format!("{user}.kubeconfig"))
    }
}

/// Makes all of them.
pub(super) fn write_all(cluster: &Cluster) -> Result<(), ClusterError> {
    private_directory(&cluster.data())?;
    let credentials = Credentials::of(cluster);
    private_directory(&credentials.folder)?;
    certificates(cluster, &credentials)?;
    let mut tokens = String::new();
    let parts = [
        (ADMIN.to_owned(), "admin".to_owned(), "system:masters"),
        (CONTROLLERS.to_owned(), "system:kube-controller-manager".to_owned(), ""),
        (SCHEDULER.to_owned(), "system:kube-scheduler".to_owned(), ""),
        (PROXY.to_owned(), "system:kube-proxy".to_owned(), ""),
    ];
    let nodes = cluster
        .node_names()
        .into_iter()
        .map(|node| (node.clone(), format!("system:node:{node}"), "system:nodes"));
    for (file, user, group) in parts.into_iter().chain(nodes) {
        let token = token()?;
        let _ = writeln!(tokens, "{token},{user},{user},{group}");
        write(Path::new(&credentials.kubeconfig(&file)), kubeconfig(cluster, &credentials, &token)?)?;
    }
    write(Path::new(&credentials.file("tokens.csv")), tokens)
}

fn certificates(cluster: &Cluster, credentials: &Credentials) -> Result<(), ClusterError> {
    let failed = |error: &dyn std::fmt::Display| ClusterError::Certificates(error.to_string());
    let authority = Authority::root("cluster").map_err(|error| failed(&error))?;
    let services = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
    let own = cluster.control_addresses()?.into_iter().chain(addresses::api_server_service());
    let names = services.into_iter().chain(own.map(|address| address.to_string())).collect();
    let server = authority.issue(&Leaf { names, ..Leaf::default() }).map_err(|error| failed(&error))?;
    // Signs the tokens of service accounts.
    let accounts = rcgen::KeyPair::generate().map_err(|error| failed(&error))?;
    for (file, text) in [
        ("ca.pem", authority.root_pem()),
        ("ca-key.pem", &authority.key_pem()),
        ("api-server.pem", &server.chain),
        ("api-server-key.pem", &server.key),
        ("accounts-key.pem", &accounts.serialize_pem()),
        // Of a key in PKCS#8, the API server reads only what is RSA's as a public key.
        ("accounts.pem", &accounts.public_key_pem()),
    ] {
        write(Path::new(&credentials.file(file)), text)?;
    }
    Ok(())
}

/// A random text that nobody guesses.
fn token() -> Result<String, ClusterError> {
    let path = PathBuf::from("/proc/sys/kernel/random/uuid");
    let read = || fs::read_to_string(&path).map(|uuid| uuid.trim().to_owned());
    let failed = |source| ClusterError::File { path: path.clone(), source };
    Ok(format!("{}{}", read().map_err(failed)?, read().map_err(failed)?))
}

fn kubeconfig(cluster: &Cluster, credentials: &Credentials, token: &str) -> Result<String, ClusterError> {
    let (server, authority) = (super::control_plane::url(cluster)?, credentials.file("ca.pem"));
    Ok(format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters: [{{name: cluster, cluster: {{server: \"{server}\", certificate-authority: \"{authority}\"}}}}]\n\
         users: [{{name: user, user: {{token: \"{token}\"}}}}]\n\
         contexts: [{{name: context, context: {{cluster: cluster, user: user}}}}]\n\
         current-context: context\n"
    ))
}
