//! What policy says.

use serde::{Deserialize, Serialize};

/// The policies that apply to a pod of this node, in the order they are evaluated in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPolicies {
    /// Namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Which of its ports take mutual TLS, in words.
    pub mutual_tls: String,
    /// The policies; those on trial (dry run) last.
    pub policies: Vec<PolicyInfo>,
}

/// A policy that applies to a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyInfo {
    /// The resource it was made from, `AuthorizationPolicy shop/web` or `PeerAuthentication shop/default`.
    pub policy: String,
    /// `mesh`, `namespace` or `workload`.
    pub scope: String,
    /// `ALLOW` or `DENY`.
    pub action: String,
    /// Number of its rules.
    pub rules: usize,
    /// Whether it is only reported.
    pub dry_run: bool,
    /// Why it cannot be used, if it cannot; it then denies.
    pub unusable: Option<String>,
}

/// What policy says of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizationInfo {
    /// The pod that would be reached, `namespace/name`.
    pub server: String,
    /// Its address and port.
    pub address: String,
    /// Who the client would have proved to be; nothing where all that is known is its address.
    pub client: Option<String>,
    /// Whether the connection would be allowed.
    pub allowed: bool,
    /// The verdict in words, as the access log has it.
    pub verdict: String,
    /// The verdict if the policies on trial were in force, where that is another.
    pub dry_run_verdict: Option<String>,
    /// Every policy that was looked at, in order.
    pub policies: Vec<PolicyCheck>,
}

/// What one policy says of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCheck {
    /// The policy.
    #[serde(flatten)]
    pub policy: PolicyInfo,
    /// Whether it matches.
    pub matches: bool,
    /// What each of its rules says.
    pub outcomes: Vec<RuleCheck>,
}

/// What one rule says of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCheck {
    /// Its position in the resource, from 0.
    pub rule: u32,
    /// Whether it matches.
    pub matches: bool,
    /// The conditions that decided.
    pub because: Vec<String>,
}
