//! What can be set about the authority.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};

use super::generations::Lifetimes;
use crate::model::ObjectName;

/// Settings as they are written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Certificate authority")]
#[group(skip)]
pub struct AuthorityArgs {
    /// Where keys and certificates are.
    #[command(flatten)]
    pub material: MaterialArgs,
    /// File to write the roots to (PEM, replaced when they change), for agents to verify this server with
    #[arg(long, env = "MESH_CONTROL_CA_ROOT_FILE", value_name = "FILE")]
    pub ca_root_file: Option<PathBuf>,
    /// Issue certificates on the plain text port as well. Whoever can read the traffic then has the agents' tokens:
    /// for labs
    #[arg(long, env = "MESH_CONTROL_CA_PLAINTEXT")]
    pub ca_plaintext: bool,
    /// Longest life of a workload's certificate; agents that ask for less get less
    #[arg(long, env = "MESH_CONTROL_CA_LEAF_LIFETIME", value_name = "TIME", value_parser = duration, default_value = "24h")]
    pub ca_leaf_lifetime: Duration,
    /// Life of a generated intermediate, which signs the workloads' certificates; replaced when a third is left
    #[arg(long, env = "MESH_CONTROL_CA_ISSUER_LIFETIME", value_name = "TIME", value_parser = duration, default_value = "90d")]
    pub ca_issuer_lifetime: Duration,
    /// Life of a generated root
    #[arg(long, env = "MESH_CONTROL_CA_ROOT_LIFETIME", value_name = "TIME", value_parser = duration, default_value = "3650d")]
    pub ca_root_lifetime: Duration,
    /// A generated root is replaced when this much of its life is left
    #[arg(long, env = "MESH_CONTROL_CA_ROOT_RENEW_BEFORE", value_name = "TIME", value_parser = duration, default_value = "365d")]
    pub ca_root_renew_before: Duration,
    /// Time for which a new root is handed out before anything is signed with it, and for which an old one stays
    /// trusted after that; at least --ca-leaf-lifetime [default: twice --ca-leaf-lifetime]
    #[arg(long, env = "MESH_CONTROL_CA_OVERLAP", value_name = "TIME", value_parser = duration)]
    pub ca_overlap: Option<Duration>,
    /// YAML file of the agents' tokens, a list of `{token or sha256, node, expires (RFC 3339), name (optional)}`.
    /// Watched
    #[arg(long, env = "MESH_CONTROL_AGENT_TOKENS", value_name = "FILE")]
    pub agent_tokens: Option<PathBuf>,
    /// Accept service account tokens of agents' pods, which the Kubernetes API server checks
    #[arg(long, env = "MESH_CONTROL_AGENT_TOKEN_REVIEW")]
    pub agent_token_review: bool,
    /// Audience that service account tokens must have
    #[arg(long, env = "MESH_CONTROL_AGENT_TOKEN_AUDIENCE", value_name = "NAME", default_value = "istio-ca")]
    pub agent_token_audience: String,
    /// Service account that agents run as. May be given several times
    #[arg(
        long = "agent-service-account", env = "MESH_CONTROL_AGENT_SERVICE_ACCOUNTS", value_name = "NAMESPACE/NAME",
        value_delimiter = ',', value_parser = namespaced, default_value = "mesh-system/mesh-agent"
    )]
    pub agent_service_accounts: Vec<ObjectName>,
}

/// Where keys and certificates are, as it is written.
#[derive(Debug, Clone, Default, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("material").multiple(false))]
pub struct MaterialArgs {
    /// Directory that keeps a root and an intermediate, generated at the first start
    #[arg(long, env = "MESH_CONTROL_CA_DIR", value_name = "DIR", group = "material")]
    pub ca_dir: Option<PathBuf>,
    /// Directory of an operator's files, named as in Istio: ca-cert.pem, ca-key.pem, root-cert.pem and, if there are more
    /// intermediates, cert-chain.pem. Watched
    #[arg(long, env = "MESH_CONTROL_CA_FILES", value_name = "DIR", group = "material")]
    pub ca_files: Option<PathBuf>,
    /// Kubernetes secret with these files as keys (Istio's istio-system/cacerts); one without them, or one that does not
    /// exist, is made to keep a generated root and intermediate
    #[arg(long, env = "MESH_CONTROL_CA_SECRET", value_name = "NAMESPACE/NAME", value_parser = namespaced, group = "material")]
    pub ca_secret: Option<ObjectName>,
}

/// Settings that were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthoritySettings {
    /// Where keys and certificates are.
    pub material: MaterialSettings,
    /// How long they last.
    pub lifetimes: Lifetimes,
    /// File for the roots.
    pub root_file: Option<PathBuf>,
    /// Whether to issue over plain text.
    pub plaintext: bool,
    /// File of the agents' tokens.
    pub tokens: Option<PathBuf>,
    /// How service account tokens are judged, if they are accepted.
    pub reviews: Option<ReviewSettings>,
}

/// Where keys and certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MaterialSettings {
    /// Generated, and kept here.
    Directory(PathBuf),
    /// The operator's, here.
    Files(PathBuf),
    /// Either of them, in this secret.
    Secret(ObjectName),
}

/// Whose service account tokens are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewSettings {
    /// Audience they must have.
    pub audience: String,
    /// Service accounts, as `namespace/name`.
    pub accounts: BTreeSet<String>,
}

impl MaterialArgs {
    /// What was set, if anything.
    pub fn check(self) -> Option<MaterialSettings> {
        let directory = self.ca_dir.map(MaterialSettings::Directory);
        let files = || self.ca_files.map(MaterialSettings::Files);
        let secret = || self.ca_secret.map(MaterialSettings::Secret);
        directory.or_else(files).or_else(secret)
    }
}

impl AuthorityArgs {
    /// Checks everything and adds to the mistakes. `None` if there is to be no authority.
    pub(crate) fn check(self, mistakes: &mut Vec<String>) -> Option<AuthoritySettings> {
        let reviews = self.agent_token_review.then(|| ReviewSettings {
            audience: self.agent_token_audience,
            accounts: self.agent_service_accounts.iter().map(ObjectName::to_string).collect(),
        });
        let lifetimes = Lifetimes {
            leaf: self.ca_leaf_lifetime,
            issuer: self.ca_issuer_lifetime,
            root: self.ca_root_lifetime,
            renew_root: self.ca_root_renew_before,
            overlap: self.ca_overlap.unwrap_or(self.ca_leaf_lifetime * 2),
        };
        let material = self.material.check();
        let flags = [
            ("--ca-root-file", self.ca_root_file.is_some()),
            ("--ca-plaintext", self.ca_plaintext),
            ("--agent-tokens", self.agent_tokens.is_some()),
            ("--agent-token-review", reviews.is_some()),
        ];
        let Some(material) = material else {
            for (flag, _) in flags.into_iter().filter(|(_, set)| *set) {
                mistakes.push(format!(
                    "{flag}: there is no authority without --ca-dir, --ca-files or --ca-secret"
                ));
            }
            return None;
        };
        if self.agent_tokens.is_none() && reviews.is_none() {
            mistakes.push(
                "--ca-dir, --ca-files, --ca-secret: nobody could be given a certificate; set --agent-tokens or, in \
                 Kubernetes, --agent-token-review"
                    .to_owned(),
            );
        }
        lifetimes.check(mistakes);
        Some(AuthoritySettings {
            material,
            lifetimes,
            root_file: self.ca_root_file,
            plaintext: self.ca_plaintext,
            tokens: self.agent_tokens,
            reviews,
        })
    }
}

impl Lifetimes {
    fn check(&self, mistakes: &mut Vec<String>) {
        let mut mistake = |wrong: bool, text: &str| {
            if wrong {
                mistakes.push(text.to_owned());
            }
        };
        mistake(
            self.overlap < self.leaf,
            "--ca-overlap: must be at least --ca-leaf-lifetime, or certificates are refused during a rotation",
        );
        mistake(
            self.issuer < self.leaf * 2,
            "--ca-issuer-lifetime: must be at least twice --ca-leaf-lifetime, or leaves are cut short",
        );
        mistake(
            self.renew_root < self.overlap * 2,
            "--ca-root-renew-before: must be at least twice --ca-overlap, or the root expires during its rotation",
        );
        mistake(self.root <= self.renew_root, "--ca-root-lifetime: must be more than --ca-root-renew-before");
    }
}

/// Reads `NAMESPACE/NAME`.
pub(crate) fn namespaced(text: &str) -> Result<ObjectName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err("expected NAMESPACE/NAME".to_owned()),
    }
}

/// Reads `30s`, `10m`, `24h` or `90d`.
fn duration(text: &str) -> Result<Duration, String> {
    /// A century, within which no sum of times overflows.
    const MAX_SECONDS: u64 = 100 * 365 * 24 * 60 * 60;
    let usage = || "expected a whole number with a unit, such as 30s, 10m, 24h or 90d".to_owned();
    let digits = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(usage)?;
    let (amount, unit) = text.split_at(digits);
    let amount: u64 = amount.parse().map_err(|_| usage())?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(usage()),
    };
    match amount.checked_mul(unit) {
        Some(seconds @ 1..=MAX_SECONDS) => Ok(Duration::from_secs(seconds)),
        _ => Err("must be more than 0 and at most 100 years".to_owned()),
    }
}

#[cfg(test)]
mod tests;
