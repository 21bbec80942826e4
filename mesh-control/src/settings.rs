//! What can be set, from the command line or the environment, checked as a whole before anything starts.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use rcgen::SanType;
use rcgen::string::Ia5String;

use crate::admission::{AdmissionArgs, AdmissionSettings, LeaderSettings};
use crate::authority::{AuthorityArgs, AuthorityCommand, AuthoritySettings};
use crate::model::is_label;
use crate::translate::Mesh;

/// Where Istio's users have the policies of the whole mesh; elsewhere these would silently be for one namespace only.
const ROOT_NAMESPACE: &str = "istio-system";

/// The control server of the mesh: reads Kubernetes resources and serves workloads, services and policies to the agents.
#[derive(Debug, Parser)]
#[command(name = "mesh-control", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Something else than serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What else the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Checks manifests as the webhook does: prints everything that is wrong with them, as file:line, and exits with 1 if
    /// any would be refused
    Validate {
        /// Files, directories of files, or - for the standard input
        #[arg(required = true, value_name = "FILE")]
        paths: Vec<PathBuf>,
        /// How to print
        #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t)]
        output: ValidationFormat,
        /// Namespace whose policies are for the whole mesh
        #[arg(long, value_name = "NAMESPACE", default_value = ROOT_NAMESPACE)]
        root_namespace: String,
    },
    /// Shows the certificate authority, or replaces its root
    Ca {
        /// Which of them.
        #[command(subcommand)]
        command: AuthorityCommand,
    },
}

/// How the outcome of a validation is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ValidationFormat {
    /// A line for each problem, and a summary on the standard error.
    #[default]
    Text,
    /// An object with what is accepted, what is ignored, and the problems.
    Json,
}

/// Settings as they are written.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Watch the Kubernetes API: that of the cluster this runs in, or of the current context of KUBECONFIG
    #[arg(long, env = "MESH_CONTROL_KUBERNETES")]
    pub kubernetes: bool,
    /// Directory of Kubernetes manifests to serve instead (*.yaml, *.yml, *.json; read with its subdirectories, and
    /// watched). May be given several times
    #[arg(long, env = "MESH_CONTROL_MANIFESTS", value_name = "DIR", value_delimiter = ',')]
    pub manifests: Vec<PathBuf>,
    /// Address for agents, in plain text
    #[arg(long, env = "MESH_CONTROL_GRPC_ADDRESS", value_name = "ADDRESS:PORT", default_value_t = any(15010))]
    pub grpc_address: SocketAddr,
    /// Address for agents over TLS; used if there is a certificate or an authority
    #[arg(long, env = "MESH_CONTROL_TLS_ADDRESS", value_name = "ADDRESS:PORT", default_value_t = any(15012))]
    pub tls_address: SocketAddr,
    /// PEM file of the server's certificate chain, leaf first
    #[arg(long, env = "MESH_CONTROL_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key
    #[arg(long, env = "MESH_CONTROL_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// DNS name or address that agents know this server by, for the certificate that its own authority issues to it if
    /// there is no --tls-cert. May be given several times
    #[arg(
        long = "tls-name", env = "MESH_CONTROL_TLS_NAMES", value_name = "NAME", value_delimiter = ',', value_parser = server_name,
        default_values = ["localhost", "mesh-control", "mesh-control.mesh-system", "mesh-control.mesh-system.svc", "mesh-control.mesh-system.svc.cluster.local"]
    )]
    pub tls_names: Vec<SanType>,
    /// Address for health, metrics and status
    #[arg(long, env = "MESH_CONTROL_HTTP_ADDRESS", value_name = "ADDRESS:PORT", default_value_t = any(15014))]
    pub http_address: SocketAddr,
    /// Connections of agents at the same time; more are made to wait
    #[arg(long, env = "MESH_CONTROL_MAX_CONNECTIONS", value_name = "N", default_value_t = 10_000)]
    pub max_connections: usize,
    /// Name of the cluster: the first part of every workload's uid
    #[arg(long, env = "MESH_CONTROL_CLUSTER_ID", value_name = "NAME", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// DNS domain of the cluster's services
    #[arg(long, env = "MESH_CONTROL_CLUSTER_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Network of workloads that do not say otherwise by the label topology.istio.io/network
    #[arg(long, env = "MESH_CONTROL_NETWORK", value_name = "NAME", default_value = "")]
    pub network: String,
    /// Trust domain of the workloads' identities
    #[arg(long, env = "MESH_CONTROL_TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Other names of the trust domain: an identity that a policy names in one of them is meant in all of them
    #[arg(long, env = "MESH_CONTROL_TRUST_DOMAIN_ALIASES", value_name = "DOMAIN", value_delimiter = ',')]
    pub trust_domain_aliases: Vec<String>,
    /// Namespace whose policies are for the whole mesh
    #[arg(long, env = "MESH_CONTROL_ROOT_NAMESPACE", value_name = "NAMESPACE", default_value = ROOT_NAMESPACE)]
    pub root_namespace: String,
    /// What to log, such as `info` or `mesh_control=debug,warn`
    #[arg(long, env = "MESH_CONTROL_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    pub log_level: String,
    /// How to log
    #[arg(long, env = "MESH_CONTROL_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
    /// The certificate authority. Behind what has no heading, since its own is for all that follows.
    #[command(flatten)]
    pub authority: AuthorityArgs,
    /// The webhook, and who writes to the Kubernetes API.
    #[command(flatten)]
    pub admission: AdmissionArgs,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// Objects for programs.
    Json,
}

/// Settings that were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where resources come from.
    pub source: SourceSettings,
    /// Address for agents in plain text.
    pub grpc_address: SocketAddr,
    /// Agents over TLS.
    pub tls: Option<TlsSettings>,
    /// The certificate authority.
    pub authority: Option<AuthoritySettings>,
    /// The webhook that judges policies before the API server takes them.
    pub admission: Option<AdmissionSettings>,
    /// What is written to the Kubernetes API by the one of several servers that leads.
    pub leader: Option<LeaderSettings>,
    /// Address for health, metrics and status.
    pub http_address: SocketAddr,
    /// Connections of agents at the same time.
    pub max_connections: usize,
    /// What is the same for everything in the mesh.
    pub mesh: Mesh,
}

/// Where resources come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSettings {
    /// The Kubernetes API.
    Kubernetes,
    /// Directories of manifests, at least one.
    Manifests(Vec<PathBuf>),
}

/// Where TLS is served, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Address.
    pub address: SocketAddr,
    /// What agents verify.
    pub certificate: ServerCertificate,
}

/// Where the server's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerCertificate {
    /// PEM files.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
    /// The server's own authority, for these names.
    Issued(Vec<SanType>),
}

/// Every mistake in the settings.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("settings cannot be used:{}", .0.iter().map(|mistake| format!("\n  - {mistake}")).collect::<String>())]
pub struct SettingsError(pub Vec<String>);

impl ServeArgs {
    /// Checks all settings and reports all mistakes.
    pub fn check(mut self) -> Result<Settings, SettingsError> {
        let mut mistakes = Vec::new();
        // An empty variable has one empty value.
        self.manifests.retain(|path| !path.as_os_str().is_empty());
        match (self.kubernetes, self.manifests.is_empty()) {
            (false, true) => mistakes.push(
                "--kubernetes, --manifests: say where resources come from, the Kubernetes API or a directory of manifests"
                    .to_owned(),
            ),
            (true, false) => mistakes.push(
                "--kubernetes, --manifests: give one of them, or a resource would have two owners".to_owned(),
            ),
            _ => {}
        }
        for path in self.manifests.iter().filter(|path| path.exists() && !path.is_dir()) {
            mistakes.push(format!("--manifests: {} is not a directory", path.display()));
        }
        if self.max_connections == 0 {
            mistakes.push("--max-connections: allow at least 1".to_owned());
        }
        for (flag, value) in [
            ("--cluster-id", &self.cluster_id),
            ("--cluster-domain", &self.cluster_domain),
            ("--trust-domain", &self.trust_domain),
        ] {
            if !is_name(value) {
                mistakes.push(format!("{flag}: use letters, digits, '-', '_' and '.', not {value:?}"));
            }
        }
        if !self.network.is_empty() && !is_name(&self.network) {
            mistakes
                .push(format!("--network: use letters, digits, '-', '_' and '.', not {:?}", self.network));
        }
        // An empty variable has one empty value.
        self.trust_domain_aliases.retain(|alias| !alias.is_empty());
        for alias in self.trust_domain_aliases.iter().filter(|alias| !is_name(alias)) {
            mistakes.push(format!(
                "--trust-domain-aliases: use letters, digits, '-', '_' and '.', not {alias:?}"
            ));
        }
        if !is_label(&self.root_namespace) {
            mistakes.push(format!("--root-namespace: {:?} is no name of a namespace", self.root_namespace));
        }
        let authority = self.authority.check(&mut mistakes);
        let (admission, leader) = self.admission.check(authority.is_some(), &mut mistakes);
        let certificate = match (self.tls_cert, self.tls_key) {
            (Some(certificate), Some(key)) => {
                for path in [&certificate, &key].into_iter().filter(|path| !path.is_file()) {
                    mistakes.push(format!("--tls-cert, --tls-key: {} is not a file", path.display()));
                }
                Some(ServerCertificate::Files { certificate, key })
            }
            (None, None) => authority.is_some().then_some(ServerCertificate::Issued(self.tls_names)),
            _ => {
                mistakes.push("--tls-cert and --tls-key: give both or neither".to_owned());
                None
            }
        };
        if !mistakes.is_empty() {
            return Err(SettingsError(mistakes));
        }
        Ok(Settings {
            source: if self.kubernetes {
                SourceSettings::Kubernetes
            } else {
                SourceSettings::Manifests(self.manifests)
            },
            grpc_address: self.grpc_address,
            tls: certificate.map(|certificate| TlsSettings { address: self.tls_address, certificate }),
            authority,
            admission,
            leader,
            http_address: self.http_address,
            max_connections: self.max_connections,
            mesh: Mesh {
                cluster_id: self.cluster_id,
                cluster_domain: self.cluster_domain,
                network: self.network,
                trust_domain: self.trust_domain,
                trust_domain_aliases: self.trust_domain_aliases,
                root_namespace: self.root_namespace,
            },
        })
    }
}

/// Reads a DNS name or an IP address.
pub(crate) fn server_name(text: &str) -> Result<SanType, String> {
    if let Ok(address) = text.parse() {
        return Ok(SanType::IpAddress(address));
    }
    let name = Ia5String::try_from(text).ok().filter(|name| is_name(name.as_str()));
    name.map(SanType::DnsName).ok_or_else(|| "expected a DNS name or an IP address".to_owned())
}

/// These become parts of resource names, between slashes.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Every address of the machine, of both families.
pub(crate) fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str]) -> Result<Settings, SettingsError> {
        let cli = Cli::try_parse_from(["mesh-control"].iter().chain(arguments)).unwrap();
        cli.serve.check()
    }

    #[test]
    fn defaults_are_those_of_kubernetes_and_istio() {
        let settings = check(&["--manifests", "/nowhere", "--network="]).unwrap();
        assert_eq!(settings.mesh, Mesh::default());
        assert_eq!((settings.grpc_address.port(), settings.http_address.port()), (15010, 15014));
        assert_eq!(settings.tls, None);
        assert_eq!(settings.source, SourceSettings::Manifests(vec!["/nowhere".into()]));
        assert_eq!(check(&["--kubernetes"]).unwrap().source, SourceSettings::Kubernetes);
        let both = check(&["--kubernetes", "--manifests", "/nowhere"]).unwrap_err();
        assert!(both.to_string().contains("give one of them"), "{both}");
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let error =
            check(&["--tls-cert", "/nowhere", "--cluster-id", "a/b", "--max-connections", "0"]).unwrap_err();
        assert_eq!(error.0.len(), 4, "{error}");
        assert!(error.to_string().lines().count() == 5, "{error}");
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
