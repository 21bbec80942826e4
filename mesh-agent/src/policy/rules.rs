//! The policies of one scope and one action, indexed so that a check looks only at rules that can match.
//!
//! Every rule has an anchor: of one of its clauses, the values of one field of each match. The rule can match only a
//! connection that has one of them ([`super::anchor`]). It is listed under each of these values, and a check looks up
//! what the connection has: its principal, its port, its address cut to every prefix length in use, and so on.
//! What is found is compared in full, so the index may name too many rules but never too few. Of the possible anchors a
//! rule takes the one whose values are used least so far: neither ten thousand rules for one namespace nor ten thousand
//! for one port end up in one list, unless nothing else tells them apart.
//!
//! The lists are one ordered set of (hash of the value, policy, rule). It is persistent, so that a change copies a few
//! nodes, and has the rules of a value in the order of evaluation.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::anchor::{Shape, Value};
use super::matching::Facts;
use super::model::{Clause, Match, Policy};

/// Lists longer than this are all alike when an anchor is chosen.
const LONG: usize = 32;

/// Policies that mean the same: those of one scope that deny, or allow, enforced or not.
#[derive(Debug, Clone, Default)]
pub(super) struct RuleSet {
    policies: OrdMap<Arc<str>, Arc<Policy>>,
    entries: OrdSet<Entry>,
    /// The kinds of values in use and the number of their entries: nothing else has to be looked up.
    shapes: OrdMap<Shape, usize>,
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
        self.policy.rule_number(position(self.index))
    }
}

/// A rule in the list of a value.
#[derive(Debug, Clone)]
struct Entry {
    hash: u64,
    /// `None` comes before every policy: where a list begins.
    policy: Option<Arc<Policy>>,
    index: u32,
}

impl Entry {
    fn beginning(hash: u64) -> Self {
        Self { hash, policy: None, index: 0 }
    }

    /// Position in the order of evaluation.
    fn order(&self) -> (Option<&str>, u32) {
        (self.policy.as_deref().map(|policy| &*policy.name), self.index)
    }

    fn matches(&self, facts: &Facts<'_>) -> bool {
        self.policy.as_ref().is_some_and(|policy| policy.rule_matches(position(self.index), facts))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.hash.cmp(&other.hash).then_with(|| self.order().cmp(&other.order()))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl RuleSet {
    pub(super) fn insert(&mut self, policy: Arc<Policy>) {
        self.remove(&policy.name);
        for index in indices(&policy) {
            for value in self.anchor(&policy, index) {
                let entry = Entry { hash: value.hash, policy: Some(Arc::clone(&policy)), index };
                if self.entries.insert(entry).is_none() {
                    *self.shapes.entry(value.shape).or_default() += 1;
                }
            }
        }
        self.policies.insert(Arc::clone(&policy.name), policy);
    }

    pub(super) fn remove(&mut self, name: &str) {
        let Some(policy) = self.policies.remove(name) else { return };
        for index in indices(&policy) {
            // Which anchor a rule took depended on what was there at that time.
            let clauses = policy.rules.get(position(index)).into_iter().flat_map(|rule| &*rule.clauses);
            let fields = clauses.flat_map(|clause| &*clause.matches).flat_map(|one| &*one.fields);
            let values = fields.filter_map(|field| field.anchors(policy.action)).flatten();
            for value in values.chain([Value::ALWAYS]).collect::<BTreeSet<_>>() {
                let entry = Entry { hash: value.hash, policy: Some(Arc::clone(&policy)), index };
                if self.entries.remove(&entry).is_some() {
                    self.forget(value.shape);
                }
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.policies.len()
    }

    /// Whether the index is as empty as the set.
    #[cfg(test)]
    pub(super) fn is_pristine(&self) -> bool {
        self.policies.is_empty() && self.entries.is_empty() && self.shapes.is_empty()
    }

    pub(super) fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// The first rule that matches, policies in the order of their names.
    pub(super) fn first_match(&self, facts: &Facts<'_>) -> Option<RuleRef> {
        let mut first: Option<&Entry> = None;
        for shape in self.shapes.keys() {
            let Some(hash) = shape.of(facts) else { continue };
            let sooner = |entry: &&Entry| {
                entry.hash == hash && first.is_none_or(|first| entry.order() < first.order())
            };
            let beginning = Entry::beginning(hash);
            // Most values have no list; finding that out should not cost an iterator.
            if self.entries.get_next(&beginning).is_some_and(|entry| sooner(&entry)) {
                let mut list = self.entries.range(beginning..).take_while(sooner);
                first = list.find(|entry| entry.matches(facts)).or(first);
            }
        }
        let Entry { policy, index, .. } = first?;
        Some(RuleRef { policy: policy.clone()?, index: *index })
    }

    /// The values to list a rule under: those of its best clause.
    fn anchor(&self, policy: &Policy, index: u32) -> BTreeSet<Value> {
        if policy.unusable.is_some() {
            return [Value::ALWAYS].into();
        }
        let clauses = policy.rules.get(position(index)).map(|rule| &*rule.clauses).unwrap_or_default();
        let candidates = clauses.iter().filter_map(|clause| self.clause_anchor(policy, clause));
        let best = candidates.min_by_key(|values| self.cost(values));
        best.unwrap_or_else(|| [Value::ALWAYS].into())
    }

    /// What one of its matches needs; `None` if the clause can match a connection of which nothing is known.
    fn clause_anchor(&self, policy: &Policy, clause: &Clause) -> Option<BTreeSet<Value>> {
        if clause.matches.is_empty() {
            return None;
        }
        let values = clause.matches.iter().map(|one| self.match_anchor(policy, one));
        values.collect::<Option<Vec<_>>>().map(|values| values.into_iter().flatten().collect())
    }

    fn match_anchor(&self, policy: &Policy, one: &Match) -> Option<BTreeSet<Value>> {
        if one.fields.is_empty() {
            // It never matches.
            return Some(BTreeSet::new());
        }
        let fields = one.fields.iter().filter_map(|field| field.anchors(policy.action));
        fields.map(|values| values.into_iter().collect()).min_by_key(|values| self.cost(values))
    }

    /// How much an anchor is worth, less is better: the longest of its lists, their number, and which kind usually
    /// tells more.
    fn cost(&self, values: &BTreeSet<Value>) -> (usize, usize, Option<Shape>) {
        let longest = values.iter().map(|value| self.list_length(value.hash)).max();
        (longest.unwrap_or_default(), values.len(), values.last().map(|value| value.shape))
    }

    fn list_length(&self, hash: u64) -> usize {
        let list = self.entries.range(Entry::beginning(hash)..);
        list.take_while(|entry| entry.hash == hash).take(LONG).count()
    }

    fn forget(&mut self, shape: Shape) {
        if let Some(count) = self.shapes.get_mut(&shape) {
            *count -= 1;
            if *count == 0 {
                self.shapes.remove(&shape);
            }
        }
    }
}

/// The rules of a policy. One that cannot be used acts as one rule that always matches.
fn indices(policy: &Policy) -> Range<u32> {
    let rules = if policy.unusable.is_some() { 1 } else { policy.rule_count() };
    0..u32::try_from(rules).unwrap_or(u32::MAX)
}

fn position(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}
