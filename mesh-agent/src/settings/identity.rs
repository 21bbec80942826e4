//! Settings of identities and their certificates.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use mesh_xds::transport::{TlsConfig, Transport};

use super::{control_server, duration};
use crate::identity::IdentitySettings;

/// How the identities of this node's pods are certified, and which peers are trusted.
#[derive(Debug, Clone, Args)]
pub struct IdentityArgs {
    /// Trust domain of this node's pods.
    #[arg(long, env = "MESH_TRUST_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,

    /// Another trust domain whose clients are let in, such as the one before a renaming. Repeat for more.
    #[arg(
        long = "trust-domain-alias",
        env = "MESH_TRUST_DOMAIN_ALIASES",
        value_name = "DOMAIN",
        value_delimiter = ','
    )]
    pub trust_domain_aliases: Vec<String>,

    /// Server that signs certificates, `http://host:port` or `https://host:port`. Repeat for more; the control
    /// servers by default.
    #[arg(long = "ca-server", env = "MESH_CA_SERVER", value_name = "URL", value_delimiter = ',')]
    pub ca_servers: Vec<String>,

    /// PEM file with the roots that an https server given by --ca-server is checked against; --control-root-cert by
    /// default.
    #[arg(long, env = "MESH_CA_ROOT_CERT", value_name = "FILE")]
    pub ca_root_cert: Option<PathBuf>,

    /// PEM file with roots that the certificates of peers may lead to, besides those that come with certificates.
    /// Read again when it changes.
    #[arg(long, env = "MESH_ROOT_CERT", value_name = "FILE")]
    pub mesh_root_cert: Option<PathBuf>,

    /// PEM file with revocation lists. Read again when it changes; while it could never be read, no peer is accepted.
    #[arg(long, env = "MESH_CRL_FILE", value_name = "FILE")]
    pub crl_file: Option<PathBuf>,

    /// Lifetime that certificates are asked for with. They are renewed before half of it has passed.
    #[arg(long, env = "MESH_CERT_TTL", value_parser = duration, default_value = "24h")]
    pub cert_ttl: Duration,
}

impl IdentityArgs {
    pub(super) fn check(&self, problems: &mut Vec<String>) {
        let flags = [("--trust-domain", &self.trust_domain)].into_iter();
        let aliases = self.trust_domain_aliases.iter().map(|alias| ("--trust-domain-alias", alias));
        for (flag, domain) in flags.chain(aliases) {
            // https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md#21-trust-domain
            let plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '-' | '.' | '_');
            if domain.is_empty() || domain.len() > 255 || !domain.chars().all(plain) {
                problems.push(format!(
                    "{flag} {domain:?}: 1 to 255 lower-case letters, digits, '-', '.' and '_'"
                ));
            }
        }
        for server in &self.ca_servers {
            if let Err(reason) = control_server(server) {
                problems.push(format!("--ca-server {server:?}: {reason}"));
            }
        }
        if let Some(path) = &self.ca_root_cert
            && let Err(error) = std::fs::metadata(path)
        {
            problems.push(format!("--ca-root-cert {}: {error}", path.display()));
        }
        if self.cert_ttl < Duration::from_secs(1) {
            problems.push(format!("--cert-ttl {:?}: must be a second at least", self.cert_ttl));
        }
    }

    /// The settings of the identity manager of an agent that reaches its control servers in this way.
    pub fn settings(&self, control_servers: &[String], control: &Transport) -> IdentitySettings {
        let servers = if self.ca_servers.is_empty() { control_servers } else { &self.ca_servers };
        let own_roots = self.ca_root_cert.clone().map(|roots| TlsConfig { roots, server_name: None });
        let transport = Transport { tls: own_roots.or_else(|| control.tls.clone()), ..control.clone() };
        let domain = |domain: &String| Arc::from(domain.as_str());
        IdentitySettings {
            trust_domain_aliases: self.trust_domain_aliases.iter().map(domain).collect(),
            root_file: self.mesh_root_cert.clone(),
            crl_file: self.crl_file.clone(),
            lifetime: self.cert_ttl,
            ..IdentitySettings::new(servers.to_vec(), transport, domain(&self.trust_domain))
        }
    }
}
