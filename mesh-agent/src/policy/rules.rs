//! The policies of one scope and one action.

use std::sync::Arc;

use imbl::OrdMap;

use super::matching::Facts;
use super::model::Policy;

/// Policies that mean the same: those of one scope that deny, or allow, enforced or not.
#[derive(Debug, Clone, Default)]
pub(super) struct RuleSet {
    policies: OrdMap<Arc<str>, Arc<Policy>>,
}

/// A rule of a policy.
#[derive(Debug, Clone)]
pub(super) struct RuleRef {
    pub(super) policy: Arc<Policy>,
    pub(super) index: u32,
}

impl RuleRef {
    /// Its position in the resource the policy was made from.
    pub(super) fn number(&self) -> u32 {
        self.policy.rule_number(usize::try_from(self.index).unwrap_or(usize::MAX))
    }
}

impl RuleSet {
    pub(super) fn insert(&mut self, policy: Arc<Policy>) {
        self.policies.insert(Arc::clone(&policy.name), policy);
    }

    pub(super) fn remove(&mut self, policy: &Policy) {
        self.policies.remove(&policy.name);
    }

    pub(super) fn len(&self) -> usize {
        self.policies.len()
    }

    pub(super) fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// The first rule that matches, policies in the order of their names.
    pub(super) fn first_match(&self, facts: &Facts<'_>) -> Option<RuleRef> {
        self.policies.values().find_map(|policy| {
            let rules = 0..policy.rule_count().max(1);
            let index = rules.into_iter().find(|index| policy.rule_matches(*index, facts))?;
            Some(RuleRef { policy: Arc::clone(policy), index: u32::try_from(index).ok()? })
        })
    }
}
