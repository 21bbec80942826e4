//! Who may reach what: authorization at layer 4, Istio's semantics.
//!
//! The agent of the server's node asks [`Snapshot::authorize`](crate::config::Snapshot::authorize) before a
//! connection reaches its pod, and again for the open ones whenever
//! [`policy_revision`](crate::config::Snapshot::policy_revision) changes. What a policy says is compiled once, when it
//! comes ([`model`]), into indexes ([`rules`]) in which a check finds the rules that can apply at all.
//!
//! # Which policies apply, and in which order
//!
//! Those of scope GLOBAL, those of scope NAMESPACE in the workload's namespace, and those the workload names in its
//! `authorization_policies`, whatever their scope. Within each scope by name. Then
//!
//! 1. a DENY policy with a rule that matches: denied;
//! 2. a policy that the workload names and the agent does not hold: denied;
//! 3. no ALLOW policy applies: allowed;
//! 4. an ALLOW policy with a rule that matches: allowed; else denied.
//!
//! CUSTOM needs an external server and bytes; no control server sends it to agents. It would be an unknown action.
//!
//! # When a rule matches
//!
//! As ztunnel has it (istio/ztunnel `src/rbac.rs`, `Authorization::matches`), the differences marked with *:
//!
//! | | matches if |
//! |---|---|
//! | policy | one of its rules does; never without rules |
//! | rule | all of its clauses do; always without clauses |
//! | clause | one of its matches does; always without matches |
//! | match | every field that is set does; never if none is |
//! | field `x` | one of its values is the connection's |
//! | field `not_x` | none of its values is the connection's; with `x` beside it, both have to hold |
//!
//! | field | compared with | client without identity |
//! |---|---|---|
//! | `principals` | the client's SPIFFE ID without `spiffe://` | never matches; `not_principals` always does |
//! | `namespaces` | the namespace in it | never matches*; `not_namespaces` always does* |
//! | `service_accounts` | namespace and service account in it, both equal | never matches; `not_service_accounts` always does |
//! | `source_ips` | the client's address | |
//! | `destination_ips`, `destination_ports` | the pod's own address and port | |
//!
//! Texts are compared exactly, by prefix, by suffix, or for presence: any identity. (* ztunnel compares namespaces with
//! an empty text where there is no identity, which an empty prefix or suffix matches.)
//!
//! # What is not understood
//!
//! Never widens what is allowed*. A field, an extension or a kind of comparison that the agent does not know never
//! holds in an ALLOW and always holds in a DENY; in a `not_` field it is the other way round, so that the field as a
//! whole follows the same rule. A policy that is not understood as a whole (unknown action, unknown field or extension of
//! the policy itself, unreadable, marked as unusable by the control server) denies everything in its scope, and every
//! refusal says which policy it was and why. (* ztunnel skips values that it cannot read.)
//!
//! A dry-run policy is evaluated and reported ([`Allowed::would_be_denied`]), never enforced.

mod anchor;
mod convert;
mod explain;
mod matching;
mod model;
mod policies;
mod rules;
mod strings;
mod verdict;
mod wire;
mod writer;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_xds::identity::Identity;

use crate::config::Workload;

pub use convert::{InvalidPolicy, read};
pub use explain::{Condition, Explanation, PolicyOutcome, PolicySummary, RuleOutcome};
pub use model::{Action, Origin, Policy, Scope};
pub use policies::Policies;
pub use strings::Strings;
pub use verdict::{Allowed, Denied, Matched};
pub use writer::PolicyStore;

pub(crate) use convert::unusable;

/// How long a live connection is kept that is denied only because a policy is not there yet
/// ([`Denied::may_settle`]): workloads and policies come separately, so that a new policy may be named before it is
/// sent. New connections are refused at once.
pub const SETTLING_TIME: Duration = Duration::from_secs(2);

/// A connection to be authorized.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who the client is, if it has proven that.
    pub source: Option<&'a Identity>,
    /// The client's address.
    pub source_ip: IpAddr,
    /// The pod's own address and port.
    pub destination: SocketAddr,
    /// The pod.
    pub workload: &'a Workload,
}
