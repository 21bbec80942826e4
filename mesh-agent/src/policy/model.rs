//! Policies in the agent's own types: parsed once, compared often.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

/// A policy, compiled.
#[derive(Debug, PartialEq, Eq)]
pub struct Policy {
    /// Resource name, `<namespace>/<name>`.
    pub name: Arc<str>,
    /// The namespace it is for, if its scope is that.
    pub namespace: Arc<str>,
    /// Which workloads it is for.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Whether it is only reported.
    pub dry_run: bool,
    /// The resource it was made from.
    pub origin: Origin,
    /// Why it cannot be used, if it cannot. It then denies everything in its scope.
    pub unusable: Option<Box<str>>,
    /// Alternatives: one is enough.
    pub(super) rules: Box<[Rule]>,
}

impl Policy {
    /// How many rules it has.
    pub fn rule_count(&self) -> usize {
        self.rules.len()
    }

    /// Whether it decides about every workload of `namespace` without being named.
    pub(super) fn covers(&self, namespace: &str) -> bool {
        match self.scope {
            Scope::Global => true,
            Scope::Namespace => *self.namespace == *namespace,
            Scope::Workload => false,
        }
    }

    /// Position in the original resource of the rule at `index`.
    pub(super) fn rule_number(&self, index: usize) -> u32 {
        let by_position = || u32::try_from(index).unwrap_or(u32::MAX);
        self.origin.rules.get(index).copied().unwrap_or_else(by_position)
    }
}

/// Which workloads a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All of the mesh.
    Global,
    /// All of its namespace.
    Namespace,
    /// Those that name it.
    Workload,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Allowed, where no policy denies.
    Allow,
    /// Denied.
    Deny,
}

/// The resource a policy was made from, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// `AuthorizationPolicy` or `PeerAuthentication`.
    pub kind: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Position in the resource, from 0, of each rule; empty where they are the same.
    #[serde(skip)]
    pub(super) rules: Box<[u32]>,
}

impl Origin {
    pub(super) const AUTHORIZATION_POLICY: &'static str = "AuthorizationPolicy";
    pub(super) const PEER_AUTHENTICATION: &'static str = "PeerAuthentication";

    /// Whether it is about mutual TLS and not about who may do what.
    pub fn is_peer_authentication(&self) -> bool {
        *self.kind == *Self::PEER_AUTHENTICATION
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Matches if all of its clauses do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) clauses: Box<[Clause]>,
}

/// Matches if one of its matches does, or if it has none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Clause {
    pub(super) matches: Box<[Match]>,
}

/// Matches if all of its fields do and it has any.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Match {
    pub(super) fields: Box<[Field]>,
}

/// A field that is set: one comparison with the connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Whether none of the values may match, instead of one having to.
    pub(super) negated: bool,
    pub(super) values: Values,
}

/// What a field compares, and with what.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Values {
    Namespaces(Texts),
    Principals(Texts),
    ServiceAccounts(Box<[ServiceAccount]>),
    SourceIps(Box<[IpNet]>),
    DestinationIps(Box<[IpNet]>),
    /// Sorted.
    DestinationPorts(Box<[u16]>),
    /// Something that the agent does not know: what it was called.
    Unknown(Box<str>),
}

/// A service account of any trust domain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServiceAccount {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

/// Texts to compare with, those that have to be equal apart: there may be thousands of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Texts {
    /// Sorted.
    pub(super) exact: Box<[Arc<str>]>,
    pub(super) patterns: Box<[Pattern]>,
}

/// A text that need not be equal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Any at all.
    Presence,
    /// A kind of comparison that the agent does not know.
    Unknown,
}

impl Field {
    /// Its name in the protocol.
    pub(super) fn name(&self) -> &str {
        match (&self.values, self.negated) {
            (Values::Namespaces(_), false) => "namespaces",
            (Values::Namespaces(_), true) => "not_namespaces",
            (Values::Principals(_), false) => "principals",
            (Values::Principals(_), true) => "not_principals",
            (Values::ServiceAccounts(_), false) => "service_accounts",
            (Values::ServiceAccounts(_), true) => "not_service_accounts",
            (Values::SourceIps(_), false) => "source_ips",
            (Values::SourceIps(_), true) => "not_source_ips",
            (Values::DestinationIps(_), false) => "destination_ips",
            (Values::DestinationIps(_), true) => "not_destination_ips",
            (Values::DestinationPorts(_), false) => "destination_ports",
            (Values::DestinationPorts(_), true) => "not_destination_ports",
            (Values::Unknown(name), _) => name,
        }
    }
}
