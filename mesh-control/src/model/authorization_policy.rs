//! Istio's AuthorizationPolicy, as far as it can be decided without reading the application's bytes.
//!
//! A policy that cannot be expressed is refused. So that a mistake never opens what the policy was to close, one that
//! can still be told apart is replaced by a policy that denies everything it is for ([`PolicyBody::Unusable`]).

mod rule;

#[cfg(test)]
mod tests;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::findings::{Finding, Findings, field};
use super::metadata::{ObjectName, Selector};
use super::policy::{self, Remains, SelectorSpec};
pub use rule::{Clause, Match, Rule, ServiceAccount, Values};
use rule::{RuleReader, RuleSpec};

/// The object of the API.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of every Kubernetes object")]
pub struct AuthorizationPolicyObject {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: AuthorizationPolicySpec,
    #[serde(default)]
    pub status: Value,
}

/// A policy as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicySpec {
    selector: Option<SelectorSpec>,
    target_ref: Value,
    target_refs: Value,
    action: ActionSpec,
    provider: Value,
    rules: Vec<RuleSpec>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum ActionSpec {
    #[default]
    Allow,
    Deny,
    Audit,
    Custom,
}

/// An authorization policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Namespace and name.
    pub name: ObjectName,
    /// Whom it is for; without it every workload of its namespace, or of the mesh in the root namespace.
    pub selector: Option<Selector>,
    /// Whether it is only tried out.
    pub dry_run: bool,
    /// What it says.
    pub body: PolicyBody,
}

/// What a policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyBody {
    /// Which connections match, and what then.
    Rules {
        /// What a match means.
        action: Action,
        /// Alternatives. None never match: an ALLOW without rules denies.
        rules: Vec<Rule>,
        /// Number of rules as it was written; some may never match and are left out.
        written: usize,
    },
    /// It cannot be used, for this reason: everything it is for is denied.
    Unusable(String),
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The connection is allowed.
    Allow,
    /// The connection is refused.
    Deny,
}

impl AuthorizationPolicy {
    /// Reads the object of the API.
    pub fn read(object: AuthorizationPolicyObject, findings: &mut Findings) -> Self {
        let name = ObjectName::namespaced(&object.metadata, findings);
        let dry_run = policy::dry_run(object.metadata.annotations.as_ref(), findings);
        let spec = object.spec;
        check_targets(&spec, findings);
        let action = action(&spec, findings);
        if action == Action::Deny && spec.rules.is_empty() {
            let reason = "a DENY without rules never matches: write `rules: [{}]` to deny everything";
            findings.refuse(field!["spec", "rules"], reason);
        }
        let written = spec.rules.len();
        let mut reader = RuleReader { namespace: &name.namespace, action, findings };
        let rules: Vec<Rule> = spec
            .rules
            .into_iter()
            .enumerate()
            .filter_map(|(position, rule)| reader.read(position, rule))
            .collect();
        if rules.is_empty() && written > 0 {
            findings.warn(
                field!["spec", "rules"],
                "no rule is left that could match: the policy denies everything it is for",
            );
        }
        let selector = spec.selector.and_then(|selector| selector.read(findings));
        Self { name, selector, dry_run, body: PolicyBody::Rules { action, rules, written } }
    }

    /// What is served in the place of a policy that was refused; none if the policy would not have denied anything.
    pub(super) fn unusable(name: &ObjectName, object: &Value, findings: &[Finding]) -> Option<Self> {
        let remains = Remains::of(name, object, findings)?;
        let denies_nothing = remains.elsewhere || remains.action == "AUDIT";
        (!denies_nothing).then_some(Self {
            name: remains.name,
            selector: remains.selector,
            dry_run: remains.dry_run,
            body: PolicyBody::Unusable(remains.reason),
        })
    }

    /// Whether it stands in for one that cannot be used.
    pub fn is_unusable(&self) -> bool {
        matches!(self.body, PolicyBody::Unusable(_))
    }
}

fn check_targets(spec: &AuthorizationPolicySpec, findings: &mut Findings) {
    for (target, name) in [(&spec.target_ref, "targetRef"), (&spec.target_refs, "targetRefs")] {
        if policy::is_empty(target) {
            continue;
        }
        let place = field!["spec", name];
        if spec.selector.is_some() {
            findings.refuse(place, "a policy has either a selector or a target, not both");
        } else {
            findings.unsupported(
                place,
                "is for waypoints and gateways, which agents are not: the policy is left out. To have it enforced at \
                 the pods, name them by spec.selector",
            );
        }
    }
}

fn action(spec: &AuthorizationPolicySpec, findings: &mut Findings) -> Action {
    let place = field!["spec", "action"];
    if spec.action != ActionSpec::Custom && !policy::is_empty(&spec.provider) {
        findings.refuse(field!["spec", "provider"], "only the action CUSTOM has a provider");
    }
    match spec.action {
        ActionSpec::Allow => return Action::Allow,
        ActionSpec::Deny => return Action::Deny,
        ActionSpec::Audit => findings.unsupported(
            place,
            "AUDIT marks requests for a log that the mesh does not write. It changes no decision, so the policy is \
             left out: remove it",
        ),
        ActionSpec::Custom => findings.unsupported(
            place,
            "CUSTOM asks an external authorizer, which the mesh cannot: say with ALLOW or DENY who may connect",
        ),
    }
    Action::Allow
}
