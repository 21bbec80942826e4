//! The check in slow motion, for people: every policy that applies, rule by rule.

use std::fmt::Display;
use std::sync::Arc;

use serde::Serialize;

use super::Request;
use super::matching::Facts;
use super::model::{Action, Clause, Field, Match, Origin, Pattern, Policy, Rule, Scope, Texts, Values};
use super::policies::{Policies, PolicySet};
use super::rules::RuleSet;
use crate::config::Workload;

/// How a decision comes about.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// Whether the connection is allowed.
    pub allowed: bool,
    /// The verdict as the access log has it.
    pub verdict: String,
    /// The verdict if dry-run policies were enforced, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run_verdict: Option<String>,
    /// Every policy that applies, in the order of evaluation; those of dry runs last.
    pub policies: Vec<PolicyOutcome>,
}

/// A policy that applies to a workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicySummary {
    /// Resource name, `<namespace>/<name>`.
    pub policy: Arc<str>,
    /// The resource it was made from; `None` if the workload names a policy that the agent does not hold.
    pub origin: Option<Origin>,
    /// Which workloads it is for.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Number of its rules.
    pub rules: usize,
    /// Whether it is only reported.
    pub dry_run: bool,
    /// Why it cannot be used, if it cannot: it then denies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
}

/// What a policy says of a connection.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyOutcome {
    /// The policy.
    #[serde(flatten)]
    pub policy: PolicySummary,
    /// Whether it matches: a rule of it, or the policy because it cannot be used.
    pub matches: bool,
    /// What each rule says.
    pub outcomes: Vec<RuleOutcome>,
}

/// What a rule says of a connection.
#[derive(Debug, Clone, Serialize)]
pub struct RuleOutcome {
    /// Its position in the original resource, from 0.
    pub rule: u32,
    /// Whether it matches.
    pub matches: bool,
    /// What decided. If the rule matches, the fields of the first match of each clause that does; if not, the field
    /// that does not hold of each match of the first clause that does not.
    pub because: Vec<Condition>,
}

/// A field that holds or does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Position of its clause in the rule.
    pub clause: usize,
    /// Position of its match in the clause.
    pub r#match: usize,
    /// Its name; `none` for a match that has no fields, which never holds.
    pub field: String,
    /// Its values, the first few.
    pub values: String,
    /// Whether it holds.
    pub holds: bool,
}

/// Values of a field that are written out.
const MAX_VALUES: usize = 8;

impl Policies {
    /// The policies that apply to `workload`, in the order of evaluation; those of dry runs last.
    pub fn listing(&self, workload: &Workload) -> Vec<PolicySummary> {
        let applicable = self.applicable(workload);
        let missing = applicable.selection.missing.iter().map(PolicySummary::missing);
        let held = |choose: fn(&PolicySet) -> &RuleSet| {
            let policies = applicable.sets().map(choose).flat_map(RuleSet::policies);
            policies.map(|policy| PolicySummary::of(policy))
        };
        let (deny, allow) = (held(|set| &set.deny), held(|set| &set.allow));
        let (dry_deny, dry_allow) = (held(|set| &set.dry_deny), held(|set| &set.dry_allow));
        deny.chain(missing).chain(allow).chain(dry_deny).chain(dry_allow).collect()
    }

    /// Why a connection is allowed or denied.
    pub fn explain(&self, request: &Request<'_>) -> Explanation {
        let facts = Facts::new(request);
        let outcome = |summary: PolicySummary| {
            let policy = self.policy(&summary.policy);
            let outcomes = policy.map(|policy| policy.outcomes(&facts)).unwrap_or_default();
            let matches = summary.unusable.is_some() || outcomes.iter().any(|rule| rule.matches);
            PolicyOutcome { policy: summary, matches, outcomes }
        };
        let (allowed, verdict, dry_run_verdict) = match self.authorize(request) {
            Ok(allowed) => (true, allowed.to_string(), allowed.would_be_denied().map(ToString::to_string)),
            Err(denied) => (false, denied.to_string(), None),
        };
        let policies = self.listing(request.workload).into_iter().map(outcome).collect();
        Explanation { allowed, verdict, dry_run_verdict, policies }
    }
}

impl PolicySummary {
    fn of(policy: &Policy) -> Self {
        Self {
            policy: Arc::clone(&policy.name),
            origin: Some(policy.origin.clone()),
            scope: policy.scope,
            action: policy.action,
            rules: policy.rule_count(),
            dry_run: policy.dry_run,
            unusable: policy.unusable.as_deref().map(str::to_owned),
        }
    }

    fn missing(name: &Arc<str>) -> Self {
        Self {
            policy: Arc::clone(name),
            origin: None,
            scope: Scope::Workload,
            action: Action::Deny,
            rules: 0,
            dry_run: false,
            unusable: Some("the workload names it, but it is not known to the agent".to_owned()),
        }
    }
}

impl Policy {
    fn outcomes(&self, facts: &Facts<'_>) -> Vec<RuleOutcome> {
        let outcome = |(index, rule): (usize, &Rule)| {
            let failing = rule.clauses.iter().position(|clause| !clause.matches(facts, self.action));
            let because = match failing {
                Some(clause) => self.failing(index, clause, facts),
                None => self.holding(index, facts),
            };
            RuleOutcome { rule: self.rule_number(index), matches: failing.is_none(), because }
        };
        self.rules.iter().enumerate().map(outcome).collect()
    }

    /// Of each match of a clause that does not match, the field that is to blame.
    fn failing(&self, rule: usize, clause: usize, facts: &Facts<'_>) -> Vec<Condition> {
        let Some(present) = self.rules.get(rule).and_then(|rule| rule.clauses.get(clause)) else {
            return Vec::new();
        };
        let blame = |(position, one): (usize, &Match)| {
            let field = one.fields.iter().find(|field| !field.holds(facts, self.action));
            Condition::new(clause, position, field, false)
        };
        present.matches.iter().enumerate().map(blame).collect()
    }

    /// Of each clause of a rule that matches, the fields of the match that does.
    fn holding(&self, rule: usize, facts: &Facts<'_>) -> Vec<Condition> {
        let clauses = self.rules.get(rule).map(|rule| &*rule.clauses).unwrap_or_default();
        let first = |(clause, present): (usize, &Clause)| {
            let position = present.matches.iter().position(|one| one.matches(facts, self.action))?;
            let fields = &present.matches.get(position)?.fields;
            Some(fields.iter().map(|field| Condition::new(clause, position, Some(field), true)).collect())
        };
        clauses.iter().enumerate().filter_map(first).collect::<Vec<Vec<_>>>().concat()
    }
}

impl Condition {
    fn new(clause: usize, r#match: usize, field: Option<&Field>, holds: bool) -> Self {
        let name = field.map_or("none", |field| field.name()).to_owned();
        let values = field.map(|field| field.values.to_text()).unwrap_or_default();
        Self { clause, r#match, field: name, values, holds }
    }
}

impl Values {
    fn to_text(&self) -> String {
        match self {
            Self::Namespaces(texts) | Self::Principals(texts) => texts.to_text(),
            Self::ServiceAccounts(accounts) => {
                join(accounts.iter().map(|account| format!("{}/{}", account.namespace, account.name)))
            }
            Self::SourceIps(ranges) | Self::DestinationIps(ranges) => join(ranges.iter()),
            Self::DestinationPorts(ports) => join(ports.iter()),
            Self::Unknown(_) => "unknown to this agent".to_owned(),
        }
    }
}

impl Texts {
    /// As AuthorizationPolicy writes them.
    fn to_text(&self) -> String {
        let pattern = |pattern: &Pattern| match pattern {
            Pattern::Prefix(prefix) => format!("{prefix}*"),
            Pattern::Suffix(suffix) => format!("*{suffix}"),
            Pattern::Presence => "*".to_owned(),
            Pattern::Unknown => "(a comparison unknown to this agent)".to_owned(),
        };
        join(self.exact.iter().map(|text| text.to_string()).chain(self.patterns.iter().map(pattern)))
    }
}

fn join<T: Display>(values: impl Iterator<Item = T>) -> String {
    let mut values = values.map(|value| value.to_string());
    let mut text = values.by_ref().take(MAX_VALUES).collect::<Vec<_>>().join(", ");
    let more = values.count();
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}
