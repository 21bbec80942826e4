//! All policies at one moment, and the check.

use std::borrow::Cow;
use std::sync::Arc;

use imbl::{HashMap, OrdMap, OrdSet};

use super::Request;
use super::matching::Facts;
use super::model::{Action, Policy};
use super::rules::{RuleRef, RuleSet};
use super::verdict::{Allowed, Denied, Matched, Why};
use crate::config::Workload;

/// The policies the agent holds. Persistent: the next version shares with this one all but what changed.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    pub(super) revision: u64,
    pub(super) held: OrdMap<Arc<str>, Arc<Policy>>,
    pub(super) global: PolicySet,
    pub(super) namespaces: HashMap<Arc<str>, PolicySet>,
    /// What the workloads of this node name, by the numbers in `selected`.
    pub(super) selections: HashMap<u64, Selection>,
    /// The workloads of this node that name policies, by uid.
    pub(super) selected: HashMap<Arc<str>, u64>,
}

/// The policies of one scope, by what is done with them.
#[derive(Debug, Clone, Default)]
pub(super) struct PolicySet {
    pub(super) deny: RuleSet,
    pub(super) allow: RuleSet,
    pub(super) dry_deny: RuleSet,
    pub(super) dry_allow: RuleSet,
}

/// What a list of names selects, beside the policies that apply anyway.
#[derive(Debug, Clone, Default)]
pub(super) struct Selection {
    pub(super) set: PolicySet,
    /// Named and not held.
    pub(super) missing: OrdSet<Arc<str>>,
}

impl PolicySet {
    pub(super) fn insert(&mut self, policy: &Arc<Policy>) {
        self.of(policy).insert(Arc::clone(policy));
    }

    pub(super) fn remove(&mut self, policy: &Policy) {
        self.of(policy).remove(&policy.name);
    }

    pub(super) fn is_empty(&self) -> bool {
        [&self.deny, &self.allow, &self.dry_deny, &self.dry_allow].into_iter().all(|rules| rules.len() == 0)
    }

    #[cfg(test)]
    pub(super) fn is_pristine(&self) -> bool {
        [&self.deny, &self.allow, &self.dry_deny, &self.dry_allow].into_iter().all(RuleSet::is_pristine)
    }

    fn of(&mut self, policy: &Policy) -> &mut RuleSet {
        match (policy.action, policy.dry_run) {
            (Action::Deny, false) => &mut self.deny,
            (Action::Allow, false) => &mut self.allow,
            (Action::Deny, true) => &mut self.dry_deny,
            (Action::Allow, true) => &mut self.dry_allow,
        }
    }
}

impl Selection {
    /// What `names` select for workloads of `namespace`.
    pub(super) fn new(names: &[Arc<str>], namespace: &str, held: &OrdMap<Arc<str>, Arc<Policy>>) -> Self {
        let mut selection = Self::default();
        for name in names {
            match held.get(name) {
                Some(policy) if policy.covers(namespace) => {}
                Some(policy) => selection.set.insert(policy),
                None => drop(selection.missing.insert(Arc::clone(name))),
            }
        }
        selection
    }
}

/// The policies that apply to one workload, in the order of evaluation.
pub(super) struct Applicable<'a> {
    pub(super) selection: Cow<'a, Selection>,
    global: &'a PolicySet,
    namespace: Option<&'a PolicySet>,
}

impl Applicable<'_> {
    pub(super) fn sets(&self) -> impl Iterator<Item = &PolicySet> {
        [Some(self.global), self.namespace, Some(&self.selection.set)].into_iter().flatten()
    }
}

impl Policies {
    /// Changes whenever a decision about this node's workloads could have changed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Number of policies held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The policy with this resource name, `<namespace>/<name>`.
    pub fn policy(&self, name: &str) -> Option<&Arc<Policy>> {
        self.held.get(name)
    }

    /// All policies by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.held.values()
    }

    /// Decides about a connection.
    ///
    /// # Errors
    /// When it must not be made; the error says which policy denies it and why.
    pub fn authorize(&self, request: &Request<'_>) -> Result<Allowed, Denied> {
        let facts = Facts::new(request);
        let applicable = self.applicable(request.workload);
        let denied = |why| Denied::new(why, request);

        if let Some(matched) = applicable.sets().find_map(|set| set.deny.first_match(&facts)) {
            return Err(denied(Why::Rule(Matched::new(matched))));
        }
        // A name may stand for a policy that denies as well as for one that allows.
        if let Some(name) = applicable.selection.missing.get_min() {
            return Err(denied(Why::Missing(Arc::clone(name))));
        }
        let by = match first_allowed(applicable.sets().map(|set| &set.allow), &facts) {
            Ok(by) => by.map(Matched::new),
            Err(why) => return Err(denied(why)),
        };
        let would_be_denied = applicable.would_be_denied(&facts, by.is_some());
        Ok(Allowed::new(by, would_be_denied.map(denied)))
    }

    /// The policies that apply to `workload`.
    pub(super) fn applicable(&self, workload: &Workload) -> Applicable<'_> {
        let number = self.selected.get(&*workload.uid);
        let selection = match number.and_then(|number| self.selections.get(number)) {
            Some(selection) => Cow::Borrowed(selection),
            // Nothing is kept ready for workloads of other nodes: their own agents decide.
            None => {
                let names = &workload.authorization_policies;
                Cow::Owned(Selection::new(names, &workload.namespace, &self.held))
            }
        };
        let namespace = self.namespaces.get(&workload.namespace);
        Applicable { selection, global: &self.global, namespace }
    }
}

impl Applicable<'_> {
    /// What the dry-run policies have against a connection that the others allow.
    fn would_be_denied(&self, facts: &Facts<'_>, allowed_by_rule: bool) -> Option<Why> {
        if let Some(matched) = self.sets().find_map(|set| set.dry_deny.first_match(facts)) {
            return Some(Why::Rule(Matched::new(matched)));
        }
        if allowed_by_rule {
            return None;
        }
        first_allowed(self.sets().map(|set| &set.dry_allow), facts).err()
    }
}

/// The first rule that allows; `None` if there are no policies, an error if there are and none matches.
fn first_allowed<'a>(
    sets: impl Iterator<Item = &'a RuleSet>,
    facts: &Facts<'_>,
) -> Result<Option<RuleRef>, Why> {
    let (mut first, mut count) = (None, 0);
    for set in sets {
        if let Some(matched) = set.first_match(facts) {
            return Ok(Some(matched));
        }
        first = first.or_else(|| set.policies().next());
        count += set.len();
    }
    match first {
        None => Ok(None),
        Some(first) => Err(Why::NoRule { first: Arc::clone(first), others: count - 1 }),
    }
}
